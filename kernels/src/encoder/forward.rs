//! A layer from its input rows to its output rows.
//!
//! Invariant: the buffers of [`Scratch`] only grow; rows of different parts share nothing that is written. It must not
//! know SIMD.

use std::sync::{Mutex, PoisonError};

use super::attention::{self, Projected};
use super::linear::{INPUT_BLOCK, Level, Linear};
use super::math::{self, Affine};
use super::pack::Layer;
use super::team::Team;
use crate::Kernels;

/// Buffers that are kept between layers and texts; one a caller.
#[derive(Debug, Default)]
pub struct Scratch {
    projected: Vec<f32>,
    parts: Vec<Buffers>,
}

/// What the rows of one part need.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    staged: Vec<f32>,
    codes: Vec<u8>,
    affine: Vec<Affine>,
    widened: Vec<f32>,
    mixed: Vec<f32>,
    narrow: Vec<f32>,
    attended: Vec<f32>,
    attention: attention::Buffers,
}

/// Runs `layer` over the rows of `input`, shared out among `team`.
pub(super) fn layer(
    kernels: Kernels,
    layer: &Layer<'_>,
    input: &[f32],
    output: &mut [f32],
    scratch: &mut Scratch,
    team: Team<'_>,
) {
    let (hidden, stride) = (layer.shape.hidden, layer.qkv.outputs);
    let tokens = input.len() / hidden;
    let rows = team.rows_a_part(tokens);
    let Scratch { projected, parts } = scratch;
    projected.resize(tokens * stride, 0.0);
    parts.resize_with(parts.len().max(tokens.div_ceil(rows)), Buffers::default);

    let inputs = input.chunks(rows * hidden);
    let work: Vec<_> = inputs
        .clone()
        .zip(projected.chunks_mut(rows * stride).zip(&mut *parts))
        .map(Mutex::new)
        .collect();
    team.each(work.len(), &|part| {
        let (input, (projected, buffers)) = &mut *take(&work[part]);
        kernels.encoder_project(layer, input, projected, buffers);
    });
    drop(work);

    let heads = layer.shape.heads;
    let text = Projected { values: projected, stride, hidden, heads, tokens };
    let work: Vec<_> =
        inputs.zip(output.chunks_mut(rows * hidden).zip(parts)).map(Mutex::new).collect();
    team.each(work.len(), &|part| {
        let (input, (output, buffers)) = &mut *take(&work[part]);
        kernels.encoder_finish(layer, text, part * rows, input, output, buffers);
    });
}

/// A part that nobody else takes: the lock only proves it to the compiler.
fn take<T>(part: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Queries, keys and values of rows.
#[inline(always)]
pub(super) fn project<L: Level>(
    layer: &Layer<'_>,
    input: &[f32],
    projected: &mut [f32],
    buffers: &mut Buffers,
) {
    let Buffers { staged, codes, affine, .. } = buffers;
    let mut quantised = Quantised { staged, codes, affine };
    let (hidden, copies) = (layer.shape.hidden, &layer.shape.attention_copies);
    quantised.split::<L>(input, hidden, layer.attention_factors, copies, &layer.qkv);
    L::multiply(quantised.codes, quantised.affine, &layer.qkv, projected);
}

/// The rest of the layer for the rows of `input`, which are those of `text` from `first` on.
#[inline(always)]
pub(super) fn finish<L: Level>(
    layer: &Layer<'_>,
    text: Projected<'_>,
    first: usize,
    input: &[f32],
    output: &mut [f32],
    buffers: &mut Buffers,
) {
    let shape = layer.shape;
    let hidden = shape.hidden;
    let Buffers { staged, codes, affine, widened, mixed, narrow, attended, attention } = buffers;
    let mut quantised = Quantised { staged, codes, affine };
    mixed.resize(input.len(), 0.0);
    attention::attend(text, first, attention, mixed);

    quantised.plain::<L>(mixed, hidden, &layer.out);
    quantised.multiply::<L>(&layer.out, narrow);
    attended.resize(input.len(), 0.0);
    let norm = [layer.attention_norm.weight, layer.attention_norm.bias];
    normalise(narrow, layer.out.outputs, input, norm, shape.epsilon, attended);

    quantised.split::<L>(attended, hidden, layer.widen_factors, &shape.widen_copies, &layer.widen);
    quantised.multiply::<L>(&layer.widen, widened);
    for row in widened.chunks_exact_mut(layer.widen.outputs) {
        math::activate(shape.activation, row, layer.narrow_factors);
    }
    quantised.plain::<L>(widened, layer.widen.outputs, &layer.narrow);
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
    fn split<L: Level>(
        &mut self,
        rows: &[f32],
        width: usize,
        factors: &[f32],
        copies: &[usize],
        matrix: &Linear<'_>,
    ) {
        let stride = self.begin::<L>(rows.len() / width, matrix);
        self.staged.resize(width + copies.len(), 0.0);
        for (row, codes) in rows.chunks_exact(width).zip(self.codes.chunks_exact_mut(stride)) {
            let (scaled, repeated) = self.staged.split_at_mut(width);
            for ((out, value), factor) in scaled.iter_mut().zip(row).zip(factors) {
                *out = value * factor;
            }
            for (out, &channel) in repeated.iter_mut().zip(copies) {
                *out = scaled[channel];
            }
            let codes = &mut codes[..width + copies.len()];
            self.affine.push(math::quantise(self.staged, codes, L::lowest_bytes));
        }
    }

    /// Quantises rows as they are.
    #[inline(always)]
    fn plain<L: Level>(&mut self, rows: &[f32], width: usize, matrix: &Linear<'_>) {
        let stride = self.begin::<L>(rows.len() / width, matrix);
        for (row, codes) in rows.chunks_exact(width).zip(self.codes.chunks_exact_mut(stride)) {
            self.affine.push(math::quantise(row, &mut codes[..width], L::lowest_bytes));
        }
    }

    /// Makes room for `rows`, and says how many bytes each takes.
    fn begin<L: Level>(&mut self, rows: usize, matrix: &Linear<'_>) -> usize {
        debug_assert!(matrix.inputs.is_multiple_of(INPUT_BLOCK));
        let stride = matrix.inputs.next_multiple_of(L::ROW_BYTES);
        // What pads a row meets weights of zero, or of another column: it must be zero.
        self.codes.clear();
        self.codes.resize(rows.next_multiple_of(L::ROWS) * stride, 0);
        self.affine.clear();
        stride
    }

    #[inline(always)]
    fn multiply<L: Level>(&self, matrix: &Linear<'_>, out: &mut Vec<f32>) {
        out.resize(self.affine.len() * matrix.outputs, 0.0);
        L::multiply(self.codes, self.affine, matrix, out);
    }
}
