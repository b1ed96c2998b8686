//! A layer from its input rows to its output rows.
//!
//! Invariant: the buffers of [`Scratch`] only grow, so that a text no longer than those before allocates nothing here. It
//! must not know SIMD.

use super::attention::{self, Projected};
use super::linear::{INPUT_BLOCK, Level, Linear, multiply};
use super::math::{self, Affine};
use super::pack::Layer;

/// Buffers that are kept between layers and texts; one a thread.
#[derive(Debug, Default)]
pub struct Scratch {
    staged: Vec<f32>,
    codes: Vec<u8>,
    affine: Vec<Affine>,
    projected: Vec<f32>,
    mixed: Vec<f32>,
    narrow: Vec<f32>,
    attended: Vec<f32>,
    attention: attention::Buffers,
}

/// Runs `layer` over the rows of `input`.
#[inline(always)]
pub(super) fn layer<L: Level>(
    layer: &Layer<'_>,
    input: &[f32],
    output: &mut [f32],
    scratch: &mut Scratch,
) {
    let shape = layer.shape;
    let hidden = shape.hidden;
    let tokens = input.len() / hidden;
    let Scratch { staged, codes, affine, projected, mixed, narrow, attended, attention } = scratch;
    let mut quantised = Quantised { staged, codes, affine };

    quantised.split(input, hidden, layer.attention_factors, &shape.attention_copies, &layer.qkv);
    quantised.multiply::<L>(&layer.qkv, projected);
    let text = Projected {
        values: projected.as_slice(),
        stride: layer.qkv.outputs,
        hidden,
        heads: shape.heads,
        tokens,
    };
    mixed.resize(tokens * hidden, 0.0);
    attention::attend(text, attention, mixed);

    quantised.plain(mixed, hidden, &layer.out);
    quantised.multiply::<L>(&layer.out, narrow);
    attended.resize(tokens * hidden, 0.0);
    let norm = [layer.attention_norm.weight, layer.attention_norm.bias];
    normalise(narrow, layer.out.outputs, input, norm, shape.epsilon, attended);

    quantised.split(attended, hidden, layer.widen_factors, &shape.widen_copies, &layer.widen);
    quantised.multiply::<L>(&layer.widen, projected);
    for row in projected.chunks_exact_mut(layer.widen.outputs) {
        math::activate(shape.activation, row, layer.narrow_factors);
    }
    quantised.plain(projected, layer.widen.outputs, &layer.narrow);
    quantised.multiply::<L>(&layer.narrow, narrow);
    let norm = [layer.output_norm.weight, layer.output_norm.bias];
    normalise(narrow, layer.narrow.outputs, attended, norm, shape.epsilon, output);
}

#[inline(always)]
fn normalise(
    rows: &mut [f32],
    stride: usize,
    skip: &[f32],
    norm: [&[f32]; 2],
    epsilon: f32,
    out: &mut [f32],
) {
    let hidden = norm[0].len();
    let skips = skip.chunks_exact(hidden).zip(out.chunks_exact_mut(hidden));
    for (row, (skip, out)) in rows.chunks_exact_mut(stride).zip(skips) {
        math::add_and_normalise(&mut row[..hidden], skip, norm, epsilon, out);
    }
}

/// Rows of activation codes, and how they were made.
struct Quantised<'a> {
    staged: &'a mut Vec<f32>,
    codes: &'a mut Vec<u8>,
    affine: &'a mut Vec<Affine>,
}

impl Quantised<'_> {
    /// Quantises rows whose channels are multiplied by `factors` and partly repeated.
    #[inline(always)]
    fn split(
        &mut self,
        rows: &[f32],
        width: usize,
        factors: &[f32],
        copies: &[usize],
        matrix: &Linear<'_>,
    ) {
        self.begin(rows.len() / width, matrix);
        self.staged.resize(width + copies.len(), 0.0);
        for (row, codes) in rows.chunks_exact(width).zip(self.codes.chunks_exact_mut(matrix.inputs))
        {
            let (scaled, repeated) = self.staged.split_at_mut(width);
            for ((out, value), factor) in scaled.iter_mut().zip(row).zip(factors) {
                *out = value * factor;
            }
            for (out, &channel) in repeated.iter_mut().zip(copies) {
                *out = scaled[channel];
            }
            self.affine.push(math::quantise(self.staged, &mut codes[..width + copies.len()]));
        }
    }

    /// Quantises rows as they are.
    #[inline(always)]
    fn plain(&mut self, rows: &[f32], width: usize, matrix: &Linear<'_>) {
        self.begin(rows.len() / width, matrix);
        for (row, codes) in rows.chunks_exact(width).zip(self.codes.chunks_exact_mut(matrix.inputs))
        {
            self.affine.push(math::quantise(row, &mut codes[..width]));
        }
    }

    fn begin(&mut self, rows: usize, matrix: &Linear<'_>) {
        debug_assert!(matrix.inputs.is_multiple_of(INPUT_BLOCK));
        // What pads a row meets weights of zero; it only has to be a code.
        self.codes.clear();
        self.codes.resize(rows * matrix.inputs, 0);
        self.affine.clear();
    }

    #[inline(always)]
    fn multiply<L: Level>(&self, matrix: &Linear<'_>, out: &mut Vec<f32>) {
        out.resize(self.affine.len() * matrix.outputs, 0.0);
        multiply::<L>(self.codes, self.affine, matrix, out);
    }
}
