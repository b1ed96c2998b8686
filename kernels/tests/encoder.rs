//! A whole layer against the formulas of the paper in f64, and every level against the scalar one, bit for bit.

#![allow(clippy::unwrap_used, missing_docs, dead_code)]

mod oracle;

use flashbulb_kernels::encoder::{
    Activation, Layer, LayerParts, LayerShape, Matrix, Norm, PAIR_MAX, Packed, Scratch, Team, pack,
};
use flashbulb_kernels::{Kernels, SimdLevel, available_levels};
use oracle::Random;

/// A matrix as its maker has it, with the values its codes stand for.
pub struct OwnMatrix {
    pub codes: Vec<i8>,
    pub scales: Vec<f32>,
    pub bias: Vec<f32>,
}

impl OwnMatrix {
    fn random(random: &mut Random, inputs: usize, outputs: usize) -> Self {
        let mut codes: Vec<i8> = random.codes(inputs * outputs);
        // Half of the bound each: any neighbours are within it.
        codes.iter_mut().for_each(|code| *code = (*code).clamp(-64, 64));
        let spread = 1.0 / (40.0 * (inputs as f32).sqrt());
        let scales = random.values(outputs).into_iter().map(|v| spread * (0.5 + v.abs().min(1.0)));
        let scales = scales.collect();
        let bias = random.values(outputs).iter().map(|v| v.clamp(-1.0, 1.0) * 0.1).collect();
        Self { codes, scales, bias }
    }

    fn view(&self) -> Matrix<'_> {
        Matrix { codes: &self.codes, scales: &self.scales, bias: &self.bias }
    }
}

/// All parts of a random layer, owned.
pub struct OwnLayer {
    pub shape: LayerShape,
    pub attention_factors: Vec<f32>,
    pub qkv: OwnMatrix,
    pub out: OwnMatrix,
    pub attention_norm: [Vec<f32>; 2],
    pub widen_factors: Vec<f32>,
    pub widen: OwnMatrix,
    pub narrow_factors: Vec<f32>,
    pub narrow: OwnMatrix,
    pub output_norm: [Vec<f32>; 2],
}

impl OwnLayer {
    fn random(random: &mut Random, shape: LayerShape) -> Self {
        let LayerShape { hidden, wide, .. } = shape;
        let bounded = |random: &mut Random, len: usize, low: f32, high: f32| -> Vec<f32> {
            let unit = |_| (random.bits() >> 40) as f32 / (1u64 << 24) as f32;
            (0..len).map(unit).map(|u| low + (high - low) * u).collect()
        };
        let norm = |random: &mut Random| {
            [bounded(random, hidden, 0.5, 1.5), bounded(random, hidden, -0.2, 0.2)]
        };
        Self {
            attention_factors: bounded(random, hidden, 0.25, 1.0),
            qkv: OwnMatrix::random(random, hidden + shape.attention_copies.len(), 3 * hidden),
            out: OwnMatrix::random(random, hidden, hidden),
            attention_norm: norm(random),
            widen_factors: bounded(random, hidden, 0.25, 1.0),
            widen: OwnMatrix::random(random, hidden + shape.widen_copies.len(), wide),
            narrow_factors: bounded(random, wide, 0.25, 1.0),
            narrow: OwnMatrix::random(random, wide, hidden),
            output_norm: norm(random),
            shape,
        }
    }

    fn packed(&self) -> Packed {
        let norm = |norm: &'_ [Vec<f32>; 2]| -> [Vec<f32>; 2] { norm.clone() };
        let (first, last) = (norm(&self.attention_norm), norm(&self.output_norm));
        let parts = LayerParts {
            attention_factors: &self.attention_factors,
            qkv: self.qkv.view(),
            out: self.out.view(),
            attention_norm: Norm { weight: &first[0], bias: &first[1] },
            widen_factors: &self.widen_factors,
            widen: self.widen.view(),
            narrow_factors: &self.narrow_factors,
            narrow: self.narrow.view(),
            output_norm: Norm { weight: &last[0], bias: &last[1] },
        };
        pack(&self.shape, &parts).unwrap()
    }
}

fn shape(hidden: usize, heads: usize, wide: usize, activation: Activation) -> LayerShape {
    LayerShape {
        hidden,
        heads,
        wide,
        attention_copies: vec![],
        widen_copies: vec![],
        activation,
        epsilon: 1e-12,
    }
}

/// Sizes that fill the registers, and sizes that leave every kind of rest.
fn shapes() -> Vec<LayerShape> {
    let mut shapes = vec![
        shape(384, 12, 1536, Activation::Gelu),
        shape(64, 2, 128, Activation::GeluTanh),
        shape(30, 3, 51, Activation::Relu),
        shape(17, 1, 7, Activation::Gelu),
        shape(1, 1, 1, Activation::Relu),
    ];
    shapes[0].attention_copies = vec![3, 3, 200];
    shapes[0].widen_copies = vec![383];
    shapes[2].attention_copies = vec![29, 0, 0, 0, 7];
    shapes[2].widen_copies = (0..30).collect();
    shapes
}

/// Row-major `[rows, columns]` in f64.
struct Rows {
    columns: usize,
    values: Vec<f64>,
}

impl Rows {
    fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks(self.columns)
    }

    fn map(&self, columns: usize, f: impl FnMut(&[f64]) -> Vec<f64>) -> Rows {
        Rows { columns, values: self.iter().flat_map(f).collect() }
    }
}

fn multiplied(rows: &Rows, matrix: &OwnMatrix) -> Rows {
    let columns = matrix.scales.len();
    rows.map(columns, |row| {
        (0..columns)
            .map(|column| {
                let weight = |at: usize| f64::from(matrix.codes[at * columns + column]);
                let sum: f64 = row.iter().enumerate().map(|(at, x)| x * weight(at)).sum();
                sum * f64::from(matrix.scales[column]) + f64::from(matrix.bias[column])
            })
            .collect()
    })
}

fn scaled_and_repeated(rows: &Rows, factors: &[f32], copies: &[usize]) -> Rows {
    rows.map(rows.columns + copies.len(), |row| {
        let mut out: Vec<f64> = row.iter().zip(factors).map(|(x, f)| x * f64::from(*f)).collect();
        out.extend(copies.iter().map(|&channel| row[channel] * f64::from(factors[channel])));
        out
    })
}

fn normalised(rows: &Rows, skip: &Rows, norm: &[Vec<f32>; 2], epsilon: f64) -> Rows {
    let mut skips = skip.iter();
    rows.map(rows.columns, |row| {
        let sum: Vec<f64> = row.iter().zip(skips.next().unwrap()).map(|(a, b)| a + b).collect();
        let mean = sum.iter().sum::<f64>() / sum.len() as f64;
        let variance = sum.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / sum.len() as f64;
        let unit = sum.iter().map(|v| (v - mean) / (variance + epsilon).sqrt());
        let [weight, bias] = norm;
        unit.zip(weight.iter().zip(bias))
            .map(|(v, (w, b))| v * f64::from(*w) + f64::from(*b))
            .collect()
    })
}

fn attention(qkv: &Rows, hidden: usize, heads: usize) -> Rows {
    let width = hidden / heads;
    qkv.map(hidden, |query| {
        let mut out = Vec::new();
        for head in 0..heads {
            let part =
                |row: &[f64], part: usize| row[part * hidden + head * width..][..width].to_vec();
            let q = part(query, 0);
            let products = qkv
                .iter()
                .map(|row| -> f64 { part(row, 1).iter().zip(&q).map(|(k, q)| k * q).sum() });
            let weights: Vec<f64> = products.map(|p| (p / (width as f64).sqrt()).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..width).map(|at| -> f64 {
                qkv.iter().zip(&weights).map(|(row, w)| part(row, 2)[at] * w / total).sum()
            }));
        }
        out
    })
}

/// Erf by its Taylor series near zero; one beyond, where its tail is below 1e-8.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut total) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        total += term / f64::from(2 * n + 1);
    }
    total * std::f64::consts::FRAC_2_SQRT_PI
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
    }
}

/// The layer of Devlin et al. (2019), with the values that the codes stand for and nothing else rounded.
fn layer_f64(own: &OwnLayer, input: &[f32]) -> Vec<f64> {
    let LayerShape { hidden, heads, wide, activation, epsilon, .. } = own.shape;
    let input = Rows { columns: hidden, values: input.iter().map(|v| f64::from(*v)).collect() };
    let staged = scaled_and_repeated(&input, &own.attention_factors, &own.shape.attention_copies);
    let mixed = attention(&multiplied(&staged, &own.qkv), hidden, heads);
    let epsilon = f64::from(epsilon);
    let attended = normalised(&multiplied(&mixed, &own.out), &input, &own.attention_norm, epsilon);
    let staged = scaled_and_repeated(&attended, &own.widen_factors, &own.shape.widen_copies);
    let active = multiplied(&staged, &own.widen).map(wide, |row| {
        let pairs = row.iter().zip(&own.narrow_factors);
        pairs.map(|(x, f)| activated(activation, *x) * f64::from(*f)).collect()
    });
    normalised(&multiplied(&active, &own.narrow), &attended, &own.output_norm, epsilon).values
}

fn run(level: SimdLevel, own: &OwnLayer, input: &[f32]) -> Vec<f32> {
    let packed = own.packed();
    let layer = Layer::new(&own.shape, &packed.codes, &packed.params).unwrap();
    let mut out = vec![f32::NAN; input.len()];
    let kernels = Kernels::with_level(level).unwrap();
    kernels.encoder_layer(&layer, input, &mut out, &mut Scratch::default(), Team::ALONE);
    out
}

#[test]
fn a_layer_is_what_the_formulas_say() {
    let mut random = Random(2019);
    for shape in shapes().into_iter().filter(|shape| shape.hidden > 1) {
        let own = OwnLayer::random(&mut random, shape);
        for tokens in [1, 2, 5, 16, 33] {
            let input: Vec<f32> = random.values(tokens * own.shape.hidden);
            let found = run(SimdLevel::Scalar, &own, &input);
            let wanted = layer_f64(&own, &input);
            let squares =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
            let off = squares(&mut found.iter().zip(&wanted).map(|(f, w)| f64::from(*f) - w));
            let size = squares(&mut wanted.iter().copied());
            // Eight bits a row: steps of 1/255 of the range at four places.
            let share = (off / size).sqrt();
            assert!(share < 0.02, "{:?}, {tokens} tokens: off by {share:.4}", own.shape);
        }
    }
}

#[test]
fn every_level_gives_the_bits_of_the_scalar_one() {
    let mut random = Random(7);
    for shape in shapes() {
        let own = OwnLayer::random(&mut random, shape);
        for tokens in [1, 2, 3, 4, 5, 15, 16, 17, 40] {
            let input = random.values(tokens * own.shape.hidden);
            let bits = |out: Vec<f32>| out.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let wanted = bits(run(SimdLevel::Scalar, &own, &input));
            for level in available_levels() {
                assert_eq!(bits(run(level, &own, &input)), wanted, "{level}, {tokens} tokens");
            }
        }
    }
}

/// The largest codes and weights everywhere, which is where sixteen bits would overflow first.
#[test]
fn the_worst_case_does_not_saturate() {
    let shape = shape(32, 1, 32, Activation::Relu);
    let mut own = OwnLayer::random(&mut Random(1), shape);
    for (sign, mixed) in [(1i8, false), (-1, false), (1, true)] {
        for matrix in [&mut own.qkv, &mut own.out, &mut own.widen, &mut own.narrow] {
            let columns = matrix.scales.len();
            for (at, code) in matrix.codes.iter_mut().enumerate() {
                let odd = at / columns % 2 == 1;
                *code = match (mixed, odd) {
                    (false, _) => 64 * sign,
                    (true, false) => 127,
                    (true, true) => -127,
                };
            }
        }
        // Nearly all of a row at its top: the codes are 255 but for the one that makes the range.
        let mut input = vec![1.0f32; 32 * 6];
        input.iter_mut().step_by(32).for_each(|value| *value = 0.0);
        let wanted = run(SimdLevel::Scalar, &own, &input);
        for level in available_levels() {
            assert_eq!(run(level, &own, &input), wanted, "{level}");
        }
        let exact = layer_f64(&own, &input);
        for (found, wanted) in wanted.iter().zip(exact) {
            assert!((f64::from(*found) - wanted).abs() < 0.05, "{found} is not {wanted}");
        }
    }
}

/// Threads that each take a part, the last part first.
fn with_threads(parts: usize, work: &(dyn Fn(usize) + Sync)) {
    std::thread::scope(|scope| {
        for part in (0..parts).rev() {
            scope.spawn(move || work(part));
        }
    });
}

#[test]
fn every_team_gives_the_bits_of_one_thread() {
    let mut random = Random(11);
    for shape in shapes() {
        let own = OwnLayer::random(&mut random, shape);
        let packed = own.packed();
        let layer = Layer::new(&own.shape, &packed.codes, &packed.params).unwrap();
        let mut scratch = Scratch::default();
        for tokens in [0, 1, 2, 4, 5, 7, 16, 17, 33] {
            let input = random.values(tokens * own.shape.hidden);
            let wanted = run(SimdLevel::Scalar, &own, &input);
            for level in available_levels() {
                for threads in 1..=4 {
                    let kernels = Kernels::with_level(level).unwrap();
                    let mut out = vec![f32::NAN; input.len()];
                    let team = Team::new(threads, &with_threads);
                    kernels.encoder_layer(&layer, &input, &mut out, &mut scratch, team);
                    assert_eq!(out, wanted, "{level}, {tokens} tokens, {threads} threads");
                }
            }
        }
    }
}

/// What a text's neighbours in the buffers were must not matter.
#[test]
fn buffers_of_a_longer_text_leave_no_trace() {
    let mut random = Random(3);
    let own = OwnLayer::random(&mut random, shape(30, 3, 51, Activation::Gelu));
    let packed = own.packed();
    let layer = Layer::new(&own.shape, &packed.codes, &packed.params).unwrap();
    let mut scratch = Scratch::default();
    for tokens in [40, 3, 17, 1, 0, 2] {
        let input = random.values(tokens * 30);
        let mut out = vec![0.0; input.len()];
        Kernels::detect().encoder_layer(&layer, &input, &mut out, &mut scratch, Team::ALONE);
        assert_eq!(out, run(SimdLevel::Scalar, &own, &input), "{tokens} tokens");
    }
}

#[test]
fn what_is_not_finite_shows() {
    let mut random = Random(4);
    let own = OwnLayer::random(&mut random, shape(32, 2, 64, Activation::Gelu));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut input = random.values(32 * 4);
        input[40] = bad;
        for level in available_levels() {
            assert!(
                run(level, &own, &input).iter().all(|value| value.is_nan()),
                "{bad} on {level}"
            );
        }
    }
}

#[test]
fn weights_of_another_shape_are_refused() {
    let own = OwnLayer::random(&mut Random(5), shape(32, 2, 64, Activation::Gelu));
    let Packed { codes, params } = own.packed();
    let short = Layer::new(&own.shape, &codes[1..], &params).unwrap_err().to_string();
    assert_eq!(short, "the codes end early");
    let short = Layer::new(&own.shape, &codes, &params[1..]).unwrap_err().to_string();
    assert_eq!(short, "the floats end early");
    let long = [params.as_slice(), &[0.0]].concat();
    assert!(Layer::new(&own.shape, &codes, &long).unwrap_err().to_string().contains("follows"));
    let mut wrong = own.shape.clone();
    wrong.heads = 5;
    assert!(Layer::new(&wrong, &codes, &params).is_err());
    wrong = own.shape.clone();
    wrong.widen_copies = vec![32];
    assert!(Layer::new(&wrong, &codes, &params).unwrap_err().to_string().contains("channel 32"));
}

#[test]
fn neighbours_beyond_the_bound_are_refused() {
    let mut own = OwnLayer::random(&mut Random(6), shape(32, 2, 64, Activation::Gelu));
    own.narrow.codes[0] = 127;
    own.narrow.codes[32] = (PAIR_MAX - 126) as i8;
    let norm = |norm: &'static [f32]| Norm { weight: norm, bias: norm };
    static ONES: [f32; 32] = [1.0; 32];
    let parts = LayerParts {
        attention_factors: &own.attention_factors,
        qkv: own.qkv.view(),
        out: own.out.view(),
        attention_norm: norm(&ONES),
        widen_factors: &own.widen_factors,
        widen: own.widen.view(),
        narrow_factors: &own.narrow_factors,
        narrow: own.narrow.view(),
        output_norm: norm(&ONES),
    };
    let refused = pack(&own.shape, &parts).unwrap_err().to_string();
    assert!(refused.contains("narrow: rows 0 and 1 of column 0 hold 127 and 2"), "{refused}");
}
