//! One layer of a BERT-family encoder in eight-bit integers: attention, feed-forward, both normalisations.
//!
//! The matrices are signed bytes with one scale a column ([`Matrix`]). A row of activations becomes unsigned bytes with
//! a scale and an offset of its own, found in the row: `x ≈ offset + scale · code`. So
//!
//! - a row's result depends on no other row but through attention: no batch, padding or order changes a text's vector;
//! - no kernel saturates: `vpmaddubsw` adds two products in 16 bits, and weights whose neighbours of one sign sum to at
//!   most [`PAIR_MAX`] keep that sum in range (255 · 128 < 2^15).
//!
//! Invariant: every level gives the same bits. The integer products are exact; the floating-point part is one source
//! in fixed lanes with explicit fused multiply-adds (`math.rs`), compiled once for each level.
//!
//! This module must not know tokens, files or ONNX.
//!
//! Codes of seven bits would let two such sums be added in 16 bits: measured 4 to 7 % faster on AVX2, and the least
//! cosine of the default model to f32 fell from 0.993 to 0.983.
//!
//! Sources: the layer is BERT's (Devlin et al., 2019), post-norm; one scale a token as in ZeroQuant (Yao et al., NeurIPS
//! 2022); saturation as in "Lower Numerical Precision Deep Learning Inference and Training" (Intel, 2018).

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod forward;
mod linear;
mod math;
mod pack;
mod team;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use forward::Scratch;
pub use pack::{Layer, LayerParts, Matrix, Norm, PackError, Packed, pack};
pub use team::{Each, Team};

use crate::{Kernels, SimdLevel};
use attention::Projected;
use forward::Buffers;
use linear::Portable;

/// The largest sum of two neighbouring codes of one sign in a column of a [`Matrix`] (rows 2i and 2i + 1).
pub const PAIR_MAX: i32 = 128;

/// The function between the two feed-forward matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// Its approximation with `tanh`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// The sizes of a layer, and which of its inputs are repeated.
///
/// A channel much larger than its neighbours would widen every row's scale. Such a channel is divided by a factor and
/// repeated: the copies' columns stand behind the channels themselves (outlier channel splitting).
#[derive(Debug, Clone, PartialEq)]
pub struct LayerShape {
    /// Width of a token's vector.
    pub hidden: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Columns of the first feed-forward matrix, repeated neurons included.
    pub wide: usize,
    /// Channels of the layer's input that are repeated for the attention matrix.
    pub attention_copies: Vec<usize>,
    /// Channels repeated for the first feed-forward matrix.
    pub widen_copies: Vec<usize>,
    /// Between the feed-forward matrices.
    pub activation: Activation,
    /// Added to the variance by both normalisations.
    pub epsilon: f32,
}

impl Kernels {
    /// Runs one layer over a text: `input` and `output` are row-major `[tokens, hidden]`. The bits are the same for
    /// every `team`.
    ///
    /// A row with a NaN or an infinity gives NaN in every row of the result.
    ///
    /// # Panics
    /// If `input` or `output` is not whole rows of `hidden`, or their lengths differ.
    pub fn encoder_layer(
        &self,
        layer: &Layer<'_>,
        input: &[f32],
        output: &mut [f32],
        scratch: &mut Scratch,
        team: Team<'_>,
    ) {
        assert_eq!(input.len(), output.len(), "input and output of different lengths");
        assert!(input.len().is_multiple_of(layer.shape.hidden), "input is not whole rows");
        forward::layer(*self, layer, input, output, scratch, team);
    }

    fn encoder_project(
        self,
        layer: &Layer<'_>,
        input: &[f32],
        projected: &mut [f32],
        buffers: &mut Buffers,
    ) {
        match self.level {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Amx => {
                // SAFETY: a `Kernels` of this level exists only where the features were detected and the system allowed tiles.
                unsafe { x86::project_amx(layer, input, projected, buffers) }
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => {
                // SAFETY: a `Kernels` of this level exists only where the features were detected.
                unsafe { x86::project_avx512(layer, input, projected, buffers) }
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => {
                // SAFETY: a `Kernels` of this level exists only where the features were detected.
                unsafe { x86::project_avx2(layer, input, projected, buffers) }
            }
            // NEON has the fused multiply-add in its baseline; its integer products are left to the compiler.
            _ => forward::project::<Portable>(layer, input, projected, buffers),
        }
    }

    fn encoder_finish(
        self,
        layer: &Layer<'_>,
        text: Projected<'_>,
        first: usize,
        input: &[f32],
        output: &mut [f32],
        buffers: &mut Buffers,
    ) {
        match self.level {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Amx => {
                // SAFETY: a `Kernels` of this level exists only where the features were detected and the system allowed tiles.
                unsafe { x86::finish_amx(layer, text, first, input, output, buffers) }
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => {
                // SAFETY: a `Kernels` of this level exists only where the features were detected.
                unsafe { x86::finish_avx512(layer, text, first, input, output, buffers) }
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => {
                // SAFETY: a `Kernels` of this level exists only where the features were detected.
                unsafe { x86::finish_avx2(layer, text, first, input, output, buffers) }
            }
            // As above.
            _ => forward::finish::<Portable>(layer, text, first, input, output, buffers),
        }
    }
}
