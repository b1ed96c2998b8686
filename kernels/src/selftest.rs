//! Whether a SIMD level computes on this processor what the scalar one does.
//!
//! Why: a level may be chosen on a processor on which nobody has run it. Invariant: fixed inputs, about a
//! millisecond; the rests of every register size are among them. The tests proper are in `tests/`.

use crate::encoder::{
    Activation, Layer, LayerParts, LayerShape, Matrix, Norm, PAIR_MAX, Scratch, Team, pack,
};
use crate::{
    Coded, Kernels, NIBBLES_TOGETHER, Rotation, SIGN_ROWS, SignTable, SimdLevel, nibble_bytes,
    pack_nibbles, pack_signs, sign_bytes, sketch_bytes,
};

/// Covers a block of each kernel and a rest.
const LEN: usize = 643;

/// Repeatable pseudo-random bits (xorshift64).
fn bits(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn values(len: usize, state: &mut u64) -> Vec<f32> {
    (0..len).map(|_| (bits(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

fn codes(len: usize, most: i8, state: &mut u64) -> Vec<i8> {
    (0..len).map(|_| (bits(state) >> 56) as i8).map(|code| code.clamp(-most, most)).collect()
}

/// Whether all kernels of `level` agree with the scalar ones.
pub(crate) fn agrees(level: SimdLevel) -> bool {
    let kernels = Kernels { level };
    let scalar = Kernels { level: SimdLevel::Scalar };
    products_agree(kernels, scalar)
        && signs_agree(kernels, scalar)
        && sketches_agree(kernels, scalar)
        && layers_agree(kernels, scalar)
}

fn products_agree(kernels: Kernels, scalar: Kernels) -> bool {
    let state = &mut 0x5eed;
    let (a, b) = (values(LEN, state), values(LEN, state));
    let (x, y) = (codes(LEN, 127, state), codes(LEN, 127, state));
    // Sums of 643 products below one, in any order.
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-3;
    let (mut found, mut wanted) = (vec![0; LEN], vec![0; LEN]);
    let same_codes =
        kernels.quantize_i8(&a, &mut found).scale == scalar.quantize_i8(&a, &mut wanted).scale;
    let (mut rest, mut same_rest) = (vec![0; LEN], vec![0; LEN]);
    kernels.quantize_fine(&a, &x, 0.5 / 127.0, &mut rest);
    scalar.quantize_fine(&a, &x, 0.5 / 127.0, &mut same_rest);
    let exact = scalar.dot_i8(&x, &y);
    let mut rows = [0; 2];
    kernels.dot_i8_rows(&x, &[y.as_slice(), &x].concat(), &mut rows);
    let (query, half) =
        (codes(7 * NIBBLES_TOGETHER, 127, state), codes(7 * NIBBLES_TOGETHER, 8, state));
    let mut packed = vec![0; nibble_bytes(half.len())];
    pack_nibbles(&half.iter().map(|code| (*code).min(7)).collect::<Vec<_>>(), &mut packed);
    same_codes
        && found == wanted
        && kernels.dot_i4(&query, &packed) == scalar.dot_i4(&query, &packed)
        && rest == same_rest
        && near(kernels.dot_f32(&a, &b), scalar.dot_f32(&a, &b))
        && near(kernels.l2_squared_f32(&a, &b), scalar.l2_squared_f32(&a, &b))
        && near(kernels.norm_f32(&a), scalar.norm_f32(&a))
        && kernels.dot_i8(&x, &y) == exact
        && kernels.dot_i8_x4(&x, [&y, &x, &y, &x]) == [exact, rows[1], exact, rows[1]]
        && rows == [exact, scalar.dot_i8(&x, &x)]
        // Sums of 643 products of one and 32,385.
        && (kernels.dot_fine(&a, &x, &y) - scalar.dot_fine(&a, &x, &y)).abs() <= 30.0
}

fn signs_agree(kernels: Kernels, scalar: Kernels) -> bool {
    /// Sums beyond 16 bits, and a rest for each register size.
    const LONG: usize = 1100;
    let state = &mut 0x51675;
    let mut packed = vec![0; sign_bytes(LONG)];
    (0..SIGN_ROWS).for_each(|row| pack_signs(row, &values(LONG, state), &mut packed));
    let mut table = SignTable::default();
    table.set(&values(LONG, state), scalar);
    let (mut found, mut wanted) = ([0; SIGN_ROWS], [0; SIGN_ROWS]);
    kernels.sign_sums(&table, &packed, &mut found);
    scalar.sign_sums(&table, &packed, &mut wanted);
    found == wanted
}

fn sketches_agree(kernels: Kernels, scalar: Kernels) -> bool {
    let state = &mut 0x5ce7c4;
    let (centre, query) = (codes(LEN, 127, state), values(LEN, state));
    let (mut found, mut wanted) = (vec![0; sketch_bytes(LEN)], vec![0; sketch_bytes(LEN)]);
    for row in 0..SIGN_ROWS {
        let point = codes(LEN, 127, state);
        let (centre, point) =
            (Coded { codes: &centre, scale: 1e-3 }, Coded { codes: &point, scale: 2e-3 });
        kernels.sketch(row, centre, point, 0.0, &mut found);
        scalar.sketch(row, centre, point, 0.0, &mut wanted);
    }
    let mut table = SignTable::default();
    table.set(&query, kernels);
    let (mut here, mut there) = ([0.0; SIGN_ROWS], [0.0; SIGN_ROWS]);
    kernels.estimate(&table, &found, 0.5, 0.0, &mut here);
    scalar.estimate(&table, &found, 0.5, 0.0, &mut there);
    let mut rotated = [query.clone(), query];
    let rotation = Rotation::new(LEN, 3);
    rotation.apply(&mut rotated[0], kernels);
    rotation.apply(&mut rotated[1], scalar);
    found == wanted
        && here.iter().zip(there).all(|(a, b)| (a - b).abs() <= 1e-3)
        && rotated[0] == rotated[1]
}

fn layers_agree(kernels: Kernels, scalar: Kernels) -> bool {
    /// More channels than one step of any level takes, and a rest.
    const HIDDEN: usize = 68;
    const WIDE: usize = 84;
    /// More rows than one tile takes, and a rest.
    const TOKENS: usize = 19;
    let state = &mut 0x1a4e5;
    let shape = LayerShape {
        hidden: HIDDEN,
        heads: 2,
        wide: WIDE,
        attention_copies: vec![1],
        widen_copies: vec![],
        activation: Activation::Gelu,
        epsilon: 1e-12,
    };
    let most = (PAIR_MAX / 2) as i8;
    let weights = codes((HIDDEN + 1) * 3 * HIDDEN, most, state);
    let scales = vec![2e-3; 3 * HIDDEN];
    let bias = values(3 * HIDDEN, state);
    let matrix = |inputs: usize, outputs: usize| Matrix {
        codes: &weights[..inputs * outputs],
        scales: &scales[..outputs],
        bias: &bias[..outputs],
    };
    let ones = vec![1.0; WIDE];
    let norm = Norm { weight: &ones[..HIDDEN], bias: &bias[..HIDDEN] };
    let parts = LayerParts {
        attention_factors: &ones[..HIDDEN],
        qkv: matrix(HIDDEN + 1, 3 * HIDDEN),
        out: matrix(HIDDEN, HIDDEN),
        attention_norm: norm,
        widen_factors: &ones[..HIDDEN],
        widen: matrix(HIDDEN, WIDE),
        narrow_factors: &ones,
        narrow: matrix(WIDE, HIDDEN),
        output_norm: norm,
    };
    let Ok(packed) = pack(&shape, &parts) else { return false };
    let Ok(layer) = Layer::new(&shape, &packed.codes, &packed.params) else { return false };
    let input = values(TOKENS * HIDDEN, state);
    let run = |kernels: Kernels| {
        let mut out = vec![0.0f32; input.len()];
        kernels.encoder_layer(&layer, &input, &mut out, &mut Scratch::default(), Team::ALONE);
        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let wanted = run(scalar);
    wanted.iter().all(|&value| f32::from_bits(value).is_finite()) && run(kernels) == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::available_levels;

    #[test]
    fn every_available_level_agrees() {
        for level in available_levels() {
            assert!(agrees(level), "{level}");
        }
    }
}
