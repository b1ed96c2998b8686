//! Rows of activation codes times a packed matrix.
//!
//! Invariant: a [`Level`] gives exact integer sums, so that all levels give the same. It must not know layers.

use super::math::{Affine, LANES};

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

/// `out[row] = codes[row] · matrix + bias` for rows of `matrix.inputs` codes; `out` has rows of `matrix.outputs`.
#[inline(always)]
pub(super) fn multiply<L: Level>(
    codes: &[u8],
    affine: &[Affine],
    matrix: &Linear<'_>,
    out: &mut [f32],
) {
    let blocks = matrix.inputs / INPUT_BLOCK;
    let (codes, _) = codes.as_chunks::<INPUT_BLOCK>();
    let (steps, _) = matrix.codes.as_chunks::<STEP>();
    for (at, panel) in steps.chunks_exact(blocks).enumerate() {
        let column = at * PANEL;
        let mut row = 0;
        while row < affine.len() {
            let take = (affine.len() - row).min(ROWS);
            let tile = Tile { codes, affine, matrix, panel, row, column };
            match take {
                4 => tile.multiply::<L, 4>(out),
                3 => tile.multiply::<L, 3>(out),
                2 => tile.multiply::<L, 2>(out),
                _ => tile.multiply::<L, 1>(out),
            }
            row += take;
        }
    }
}

struct Tile<'a> {
    codes: &'a [[u8; INPUT_BLOCK]],
    affine: &'a [Affine],
    matrix: &'a Linear<'a>,
    panel: &'a [[i8; STEP]],
    row: usize,
    column: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn multiply<L: Level, const R: usize>(&self, out: &mut [f32]) {
        let blocks = self.panel.len();
        let mut rows: [&[[u8; INPUT_BLOCK]]; R] = [&[]; R];
        for (at, row) in rows.iter_mut().enumerate() {
            *row = &self.codes[(self.row + at) * blocks..][..blocks];
        }
        let sums = L::tile(rows, self.panel);
        let of_column = |values: &[f32]| -> [f32; PANEL] {
            values[self.column..].first_chunk().copied().unwrap_or([0.0; PANEL])
        };
        let scales = of_column(self.matrix.scales);
        let offsets = of_column(self.matrix.sums);
        let bias = of_column(self.matrix.bias);
        for (at, sums) in sums.iter().enumerate() {
            let row = self.row + at;
            let Affine { scale, offset } = self.affine[row];
            let out = &mut out[row * self.matrix.outputs + self.column..][..PANEL];
            for lane in 0..PANEL {
                let fixed = offset.mul_add(offsets[lane], bias[lane]);
                out[lane] = (sums[lane] as f32 * scale).mul_add(scales[lane], fixed);
            }
        }
    }
}
