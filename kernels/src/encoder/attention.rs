//! Self-attention of one text: every token over every token, head by head, in f32.
//!
//! Invariant: a token's result is summed in the order of the tokens, whatever else is computed beside it.

use super::math::{LANES, each, softmax};

/// Query rows that share one pass over the keys.
const QUERIES: usize = 4;

/// Where a text's queries, keys and values lie: rows of `stride` floats with `hidden` of each, one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Projected<'a> {
    pub values: &'a [f32],
    pub stride: usize,
    pub hidden: usize,
    pub heads: usize,
    pub tokens: usize,
}

impl<'a> Projected<'a> {
    /// `part` 0 is the query, 1 the key, 2 the value.
    #[inline(always)]
    fn row(&self, part: usize, token: usize, head: usize) -> &'a [f32] {
        let width = self.hidden / self.heads;
        &self.values[token * self.stride + part * self.hidden + head * width..][..width]
    }
}

/// Buffers that are kept between texts.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// One head's keys, transposed: `[width, tokens padded to lanes]`.
    keys: Vec<f32>,
    /// Scores of [`QUERIES`] rows.
    scores: Vec<f32>,
}

/// Writes the heads' results side by side into `out`, `[rows, hidden]`, for the tokens from `first` on.
#[inline(always)]
pub(super) fn attend(
    projected: Projected<'_>,
    first: usize,
    buffers: &mut Buffers,
    out: &mut [f32],
) {
    let Projected { hidden, heads, tokens, .. } = projected;
    let rows = out.len() / hidden;
    let width = hidden / heads;
    let padded = tokens.next_multiple_of(LANES);
    let scale = 1.0 / (width as f32).sqrt();
    buffers.keys.clear();
    buffers.keys.resize(width * padded, 0.0);
    buffers.scores.clear();
    buffers.scores.resize(QUERIES * padded, 0.0);
    for head in 0..heads {
        for token in 0..tokens {
            for (at, value) in projected.row(1, token, head).iter().enumerate() {
                buffers.keys[at * padded + token] = *value;
            }
        }
        let mut row = 0;
        while row < rows {
            let (token, take) = (first + row, (rows - row).min(QUERIES));
            match take {
                QUERIES => score::<QUERIES>(projected, head, token, buffers, padded),
                3 => score::<3>(projected, head, token, buffers, padded),
                2 => score::<2>(projected, head, token, buffers, padded),
                _ => score::<1>(projected, head, token, buffers, padded),
            }
            for scores in buffers.scores.chunks_exact_mut(padded).take(take) {
                softmax(&mut scores[..tokens], scale);
            }
            let out = &mut out[row * hidden..];
            match take {
                QUERIES => mix::<QUERIES>(projected, head, &buffers.scores, padded, out),
                3 => mix::<3>(projected, head, &buffers.scores, padded, out),
                2 => mix::<2>(projected, head, &buffers.scores, padded, out),
                _ => mix::<1>(projected, head, &buffers.scores, padded, out),
            }
            row += take;
        }
    }
}

/// The products of `R` queries with every key.
#[inline(always)]
fn score<const R: usize>(
    projected: Projected<'_>,
    head: usize,
    token: usize,
    buffers: &mut Buffers,
    padded: usize,
) {
    let mut queries: [&[f32]; R] = [&[]; R];
    for (at, query) in queries.iter_mut().enumerate() {
        *query = projected.row(0, token + at, head);
    }
    for block in 0..padded / LANES {
        let mut sums = [[0.0f32; LANES]; R];
        for (at, keys) in buffers.keys.chunks_exact(padded).enumerate() {
            let keys: &[f32; LANES] = keys[block * LANES..].first_chunk().unwrap_or(&[0.0; LANES]);
            for (sums, query) in sums.iter_mut().zip(&queries) {
                let query = query[at];
                *sums = each(|lane| query.mul_add(keys[lane], sums[lane]));
            }
        }
        for (row, sums) in buffers.scores.chunks_exact_mut(padded).zip(&sums) {
            row[block * LANES..][..LANES].copy_from_slice(sums);
        }
    }
}

/// The values of all tokens, weighted by the probabilities of `R` rows, into a head's place in the first rows of `out`.
#[inline(always)]
fn mix<const R: usize>(
    projected: Projected<'_>,
    head: usize,
    weights: &[f32],
    padded: usize,
    out: &mut [f32],
) {
    let Projected { hidden, heads, tokens, .. } = projected;
    let width = hidden / heads;
    let mut rows: [&[f32]; R] = [&[]; R];
    for (row, weights) in rows.iter_mut().zip(weights.chunks_exact(padded)) {
        *row = &weights[..tokens];
    }
    for at in 0..width / LANES {
        let mut sums = [[0.0f32; LANES]; R];
        for token in 0..tokens {
            let values = &projected.row(2, token, head)[at * LANES..];
            let values: &[f32; LANES] = values.first_chunk().unwrap_or(&[0.0; LANES]);
            for (sums, row) in sums.iter_mut().zip(&rows) {
                let weight = row[token];
                *sums = each(|lane| weight.mul_add(values[lane], sums[lane]));
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            out[row * hidden + head * width + at * LANES..][..LANES].copy_from_slice(sums);
        }
    }
    for channel in width / LANES * LANES..width {
        for (row, weights) in rows.iter().enumerate() {
            let mut sum = 0.0f32;
            for (token, &weight) in weights.iter().enumerate() {
                sum = weight.mul_add(projected.row(2, token, head)[channel], sum);
            }
            out[row * hidden + head * width + channel] = sum;
        }
    }
}
