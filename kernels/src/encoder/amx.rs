//! The encoder's products in AMX tiles: 16 rows by 16 columns, 64 input channels a step.
//!
//! Invariant: the sums are those of every level, exact in 32 bits. A panel of a packed matrix is a column of tiles as it
//! lies: 16 groups of four channels are the 16 rows of a tile (Intel's "Architectures Optimization Reference Manual",
//! chapter on AMX). Rows of codes are filled with zeros to whole tiles, so that what a tile reads past a panel's end
//! counts for nothing.

use std::arch::asm;

use super::linear::{GROUP, Level, Linear, PANEL, Place};
use super::math::{Affine, LANES, Lanes};
use super::x86::lowest_bytes_avx512;

/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Bytes of a tile's row.
const TILE_BYTES: usize = 64;
/// Bytes of a tile.
const TILE: usize = TILE_ROWS * TILE_BYTES;
/// How far ahead weights are asked for, in bytes. It is worth little: 4 to 7 % up to 32 tokens in one program that flushed the
/// weights line by line, nothing beyond noise in the benchmark `encoder_6_layers_from_memory` or with weights in a cache.
const AHEAD: usize = 32 << 10;
/// Bytes of a panel that belong to one input channel.
const CHANNEL: usize = PANEL;

/// One tile of sums.
type Sums = [[i32; PANEL]; TILE_ROWS];

/// Multiplies in tiles.
///
/// # Safety
/// Whoever names it has AVX-512 in its target features, and `SimdLevel::Amx` is available.
pub(super) struct Amx;

impl Level for Amx {
    const ROW_BYTES: usize = TILE_BYTES;
    const ROWS: usize = TILE_ROWS;

    #[inline(always)]
    fn lowest_bytes(lanes: Lanes) -> [u8; LANES] {
        // SAFETY: whoever names this level has AVX-512.
        unsafe { lowest_bytes_avx512(lanes) }
    }

    #[inline(always)]
    fn multiply(codes: &[u8], affine: &[Affine], matrix: &Linear<'_>, out: &mut [f32]) {
        const { assert!(PANEL * GROUP == TILE_BYTES, "a group of a panel is a row of a tile") };
        let tiles = Tiles::configure();
        let stride = matrix.inputs.next_multiple_of(TILE_BYTES);
        let mut spares = [[0; TILE]; 2];
        let mut sums = [[[[0i32; PANEL]; TILE_ROWS]; 2]; 2];
        let mut column = 0;
        while column < matrix.outputs {
            // An odd last panel is taken twice.
            let pair = [column, column + PANEL].map(|at| at.min(matrix.outputs - PANEL));
            let [left, right] = &mut spares;
            let weights = [Weights::of(matrix, pair[0], left), Weights::of(matrix, pair[1], right)];
            for (block, codes) in codes.chunks(2 * TILE_ROWS * stride).enumerate() {
                let both = codes.len() > TILE_ROWS * stride;
                tiles.multiply(codes, stride, both, weights, &mut sums);
                for (half, sums) in sums.iter().take(1 + usize::from(both)).enumerate() {
                    let first = (2 * block + half) * TILE_ROWS;
                    let rows = affine.len().saturating_sub(first).min(TILE_ROWS);
                    for (&column, sums) in pair.iter().zip(sums) {
                        Place { affine, matrix, first, column }.finish(&sums[..rows], out);
                    }
                }
            }
            column += 2 * PANEL;
        }
    }
}

/// A panel's tiles: those that lie wholly in the matrix, and the last one.
#[derive(Clone, Copy)]
struct Weights<'a> {
    whole: &'a [[i8; TILE]],
    last: &'a [i8; TILE],
}

impl<'a> Weights<'a> {
    /// The panel of `matrix` that begins at `column`; `spare` takes its last tile where the matrix ends within it.
    #[inline(always)]
    fn of(matrix: &Linear<'a>, column: usize, spare: &'a mut [i8; TILE]) -> Self {
        let bytes = matrix.inputs * CHANNEL;
        let codes = &matrix.codes[column * matrix.inputs..];
        let (tiles, _) = codes.as_chunks::<TILE>();
        let whole = bytes.div_ceil(TILE) - 1;
        // Past the panel's end a tile reads the next panel, if there is one.
        let last = match tiles.get(whole) {
            Some(last) => last,
            None => {
                let rest = &codes[whole * TILE..bytes];
                spare.fill(0);
                spare[..rest.len()].copy_from_slice(rest);
                spare
            }
        };
        Self { whole: &tiles[..whole], last }
    }
}

/// The tile registers of this thread, configured: 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights.
///
/// The compiler knows nothing of tiles and uses none, so they stay as they are between two pieces of assembly.
struct Tiles(());

/// What `ldtilecfg` reads (Intel SDM).
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static ALL_WHOLE: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Tiles {
    #[inline(always)]
    fn configure() -> Self {
        // SAFETY: `Amx` is named only where tiles are available; the configuration is 64 bytes in the stated form.
        unsafe {
            asm!("ldtilecfg [{at}]", at = in(reg) &raw const ALL_WHOLE, options(nostack, readonly));
        }
        Self(())
    }

    /// The products of one or `both` tiles of rows with two panels: `sums[tile of rows][panel]`.
    #[inline(always)]
    fn multiply(
        &self,
        codes: &[u8],
        stride: usize,
        both: bool,
        [left, right]: [Weights<'_>; 2],
        sums: &mut [[Sums; 2]; 2],
    ) {
        let tiles_of_rows = 1 + usize::from(both);
        assert!(codes.len() >= tiles_of_rows * TILE_ROWS * stride, "rows are whole tiles");
        assert_eq!(left.whole.len(), right.whole.len(), "two panels of one matrix");
        assert!(stride >= (left.whole.len() + 1) * TILE_BYTES, "rows as long as the panel");
        let rows = codes.as_ptr();
        let steps = left.whole.len();
        let out = sums.as_mut_ptr();
        macro_rules! panels {
            ($zero:literal, $load:literal, $products:literal, $store:literal) => {
                // SAFETY: `Tiles` exists, so the registers are configured. Every tile of rows lies in `codes` and every
                // tile of weights in its array, by the assertions; the four of sums are `sums`.
                unsafe {
                    asm!(
                        $zero,
                        "test {steps}, {steps}",
                        "jz 3f",
                        "2:",
                        $load,
                        ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                        "prefetcht1 [{left} + {ahead} + \\line]",
                        "prefetcht1 [{right} + {ahead} + \\line]",
                        ".endr",
                        "tileloadd tmm6, [{left} + {row}]",
                        "tileloadd tmm7, [{right} + {row}]",
                        $products,
                        "add {rows}, 64",
                        "add {below}, 64",
                        "add {left}, 1024",
                        "add {right}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        "3:",
                        $load,
                        "tileloadd tmm6, [{left_last} + {row}]",
                        "tileloadd tmm7, [{right_last} + {row}]",
                        $products,
                        $store,
                        rows = inout(reg) rows => _,
                        below = inout(reg) rows.wrapping_add(TILE_ROWS * stride) => _,
                        stride = in(reg) stride,
                        row = in(reg) TILE_BYTES,
                        left = inout(reg) left.whole.as_ptr() => _,
                        right = inout(reg) right.whole.as_ptr() => _,
                        left_last = in(reg) left.last,
                        right_last = in(reg) right.last,
                        ahead = const AHEAD,
                        steps = inout(reg) steps => _,
                        out = in(reg) out,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            };
        }
        if both {
            panels!(
                "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3",
                "tileloadd tmm4, [{rows} + {stride}]\ntileloadd tmm5, [{below} + {stride}]",
                "tdpbusd tmm0, tmm4, tmm6\ntdpbusd tmm1, tmm4, tmm7\ntdpbusd tmm2, tmm5, tmm6\ntdpbusd tmm3, tmm5, tmm7",
                "tilestored [{out} + {row}], tmm0\ntilestored [{out} + {row} + 1024], tmm1\ntilestored [{out} + {row} + 2048], tmm2\ntilestored [{out} + {row} + 3072], tmm3"
            );
        } else {
            panels!(
                "tilezero tmm0\ntilezero tmm1",
                "tileloadd tmm4, [{rows} + {stride}]",
                "tdpbusd tmm0, tmm4, tmm6\ntdpbusd tmm1, tmm4, tmm7",
                "tilestored [{out} + {row}], tmm0\ntilestored [{out} + {row} + 1024], tmm1"
            );
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: as in `configure`. A thread without configured tiles has less to save when it is switched.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}
