//! Rows of activation codes times a packed matrix.
//!
//! Invariant: a [`Level`] gives exact integer sums, so that all levels give the same. It must not know layers.

use super::math::{self, Affine, LANES, Lanes};

/// Columns of one panel of a packed matrix.
pub(super) const PANEL: usize = LANES;
/// Input channels that lie together in a panel, for each column.
pub(super) const GROUP: usize = 4;
/// Input channels are padded to a multiple of it: a kernel takes two groups at once.
pub(super) const INPUT_BLOCK: usize = 2 * GROUP;
/// Bytes of a panel that hold [`INPUT_BLOCK`] channels of its columns.
pub(super) const STEP: usize = INPUT_BLOCK * PANEL;

/// A matrix as the kernels read it, borrowed from wherever it lies.
///
/// `codes`: panels of [`PANEL`] columns; in a panel, for each [`GROUP`] of input channels, that many bytes of the first
/// column, then of the second, and so on. Channels and columns are padded with zeros.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear<'a> {
    pub inputs: usize,
    pub outputs: usize,
    pub codes: &'a [i8],
    /// One a column: the value of a code.
    pub scales: &'a [f32],
    /// One a column: scale times the sum of its codes, which a row's offset multiplies.
    pub sums: &'a [f32],
    pub bias: &'a [f32],
}

/// How one SIMD level multiplies integers.
pub(super) trait Level {
    /// A row of codes begins at a multiple of so many bytes, and zeros fill it up.
    const ROW_BYTES: usize = INPUT_BLOCK;
    /// The rows that follow the last one, zeros too, make their number a multiple of this.
    const ROWS: usize = 1;

    /// `out[row] = codes[row] · matrix + bias` for as many rows as `affine` has; `out` has rows of `matrix.outputs`.
    fn multiply(codes: &[u8], affine: &[Affine], matrix: &Linear<'_>, out: &mut [f32]);

    /// [`math::lowest_bytes`], which the compiler takes lane by lane where it is left alone.
    #[inline(always)]
    fn lowest_bytes(lanes: Lanes) -> [u8; LANES] {
        math::lowest_bytes(lanes)
    }
}

/// The product of a few rows with one panel, for levels that hold its sums in vector registers.
pub(super) trait Tiles {
    /// The products of `R` rows of codes with the columns of a panel: `rows[r]` holds the row in blocks.
    fn tile<const R: usize>(
        rows: [&[[u8; INPUT_BLOCK]]; R],
        panel: &[[i8; STEP]],
    ) -> [[i32; PANEL]; R];
}

/// Portable Rust: the oracle, and the level of processors without one of their own.
pub(super) struct Portable;

impl Level for Portable {
    #[inline(always)]
    fn multiply(codes: &[u8], affine: &[Affine], matrix: &Linear<'_>, out: &mut [f32]) {
        multiply::<Self>(codes, affine, matrix, out);
    }
}

impl Tiles for Portable {
    #[inline(always)]
    fn tile<const R: usize>(
        rows: [&[[u8; INPUT_BLOCK]]; R],
        panel: &[[i8; STEP]],
    ) -> [[i32; PANEL]; R] {
        let mut sums = [[0i32; PANEL]; R];
        for (block, step) in panel.iter().enumerate() {
            for (row, sums) in rows.iter().zip(&mut sums) {
                let codes = row[block];
                for (at, &weight) in step.iter().enumerate() {
                    let channel = at / (GROUP * PANEL) * GROUP + at % GROUP;
                    let column = at / GROUP % PANEL;
                    sums[column] += i32::from(codes[channel]) * i32::from(weight);
                }
            }
        }
        sums
    }
}

/// Rows taken at once: with two registers of AVX2 a row, eight sums in flight and no spill.
const ROWS: usize = 4;

/// [`Level::multiply`] by tiles.
#[inline(always)]
pub(super) fn multiply<T: Tiles>(
    codes: &[u8],
    affine: &[Affine],
    matrix: &Linear<'_>,
    out: &mut [f32],
) {
    let blocks = matrix.inputs / INPUT_BLOCK;
    let (codes, _) = codes.as_chunks::<INPUT_BLOCK>();
    let (steps, _) = matrix.codes.as_chunks::<STEP>();
    for (at, panel) in steps.chunks_exact(blocks).enumerate() {
        let mut first = 0;
        while first < affine.len() {
            let take = (affine.len() - first).min(ROWS);
            let place = Place { affine, matrix, first, column: at * PANEL };
            match take {
                4 => place.multiply::<T, 4>(codes, panel, out),
                3 => place.multiply::<T, 3>(codes, panel, out),
                2 => place.multiply::<T, 2>(codes, panel, out),
                _ => place.multiply::<T, 1>(codes, panel, out),
            }
            first += take;
        }
    }
}

/// Where a tile's sums belong: rows from `first` on, and the panel that begins at `column`.
pub(super) struct Place<'a> {
    pub affine: &'a [Affine],
    pub matrix: &'a Linear<'a>,
    pub first: usize,
    pub column: usize,
}

impl Place<'_> {
    #[inline(always)]
    fn multiply<T: Tiles, const R: usize>(
        &self,
        codes: &[[u8; INPUT_BLOCK]],
        panel: &[[i8; STEP]],
        out: &mut [f32],
    ) {
        let blocks = panel.len();
        let mut rows: [&[[u8; INPUT_BLOCK]]; R] = [&[]; R];
        for (at, row) in rows.iter_mut().enumerate() {
            *row = &codes[(self.first + at) * blocks..][..blocks];
        }
        self.finish(&T::tile(rows, panel), out);
    }

    /// Turns integer sums, one a column and row, into what the matrix gives.
    #[inline(always)]
    pub(super) fn finish(&self, sums: &[[i32; PANEL]], out: &mut [f32]) {
        let of_column = |values: &[f32]| -> [f32; PANEL] {
            values[self.column..].first_chunk().copied().unwrap_or([0.0; PANEL])
        };
        let scales = of_column(self.matrix.scales);
        let offsets = of_column(self.matrix.sums);
        let bias = of_column(self.matrix.bias);
        for (at, sums) in sums.iter().enumerate() {
            let row = self.first + at;
            let Affine { scale, offset } = self.affine[row];
            let out = &mut out[row * self.matrix.outputs + self.column..][..PANEL];
            for lane in 0..PANEL {
                let fixed = offset.mul_add(offsets[lane], bias[lane]);
                out[lane] = (sums[lane] as f32 * scale).mul_add(scales[lane], fixed);
            }
        }
    }
}
