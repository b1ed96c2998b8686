//! Instructions of the kernels that searches and insertions use, at 384 dimensions: portable ones, and those of AVX2, the widest
//! that valgrind knows. `scripts/instructions.sh` runs it.
//!
//! Invariant: one call is counted, and nothing of what makes or frees its inputs; a level that the processor lacks ends the run.
//! Must not know the limits.

#![allow(missing_docs)]

mod common;

use common::{DIMENSION, codes, random_bits, values};
use flashbulb_kernels::{
    Coded, I8Params, Kernels, Rotation, SIGN_ROWS, SignTable, SimdLevel, TopK, nibble_bytes,
    pack_nibbles, sketch_bytes,
};
use gungraun::Callgrind;
use gungraun::prelude::*;

/// Rows that an exact scan scores at a time.
const ROWS: usize = 64;
const SCORES: usize = 1_000;
const KEPT: usize = 10;
/// What a step of a code stands for, so that vectors are about one long.
const SCALE: f32 = 1e-3;

fn kernels(level: SimdLevel) -> Kernels {
    Kernels::with_level(level).unwrap_or_else(|| panic!("this processor cannot run {level}"))
}

/// Lives until the end of the process, so that freeing it is not counted.
fn kept<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

struct Pair<T> {
    kernels: Kernels,
    a: Vec<T>,
    b: Vec<T>,
}

fn floats(level: SimdLevel) -> &'static Pair<f32> {
    let state = &mut 1;
    let (a, b) = (values(DIMENSION, state), values(DIMENSION, state));
    kept(Pair { kernels: kernels(level), a, b })
}

fn pair_of_codes(level: SimdLevel) -> &'static Pair<i8> {
    let state = &mut 2;
    let (a, b) = (codes(DIMENSION, state), codes(DIMENSION, state));
    kept(Pair { kernels: kernels(level), a, b })
}

#[library_benchmark(setup = floats)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn dot_f32(of: &'static Pair<f32>) -> f32 {
    of.kernels.dot_f32(&of.a, &of.b)
}

#[library_benchmark(setup = pair_of_codes)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn dot_i8(of: &'static Pair<i8>) -> i32 {
    of.kernels.dot_i8(&of.a, &of.b)
}

struct Packed {
    kernels: Kernels,
    query: Vec<i8>,
    packed: Vec<u8>,
}

fn packed(level: SimdLevel) -> &'static Packed {
    let state = &mut 9;
    let query = codes(DIMENSION, state);
    let halves: Vec<i8> = codes(DIMENSION, state).into_iter().map(|code| code >> 4).collect();
    let mut packed = vec![0; nibble_bytes(DIMENSION)];
    pack_nibbles(&halves, &mut packed);
    kept(Packed { kernels: kernels(level), query, packed })
}

#[library_benchmark(setup = packed)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn dot_i4(of: &'static Packed) -> i32 {
    of.kernels.dot_i4(&of.query, &of.packed)
}

struct Fine {
    kernels: Kernels,
    vector: Vec<f32>,
    codes: Vec<i8>,
    fine: Vec<i8>,
    scale: f32,
}

/// A vector, its codes, and what they leave over.
fn fine(level: SimdLevel) -> &'static mut Fine {
    let (kernels, vector) = (kernels(level), values(DIMENSION, &mut 10));
    let (mut codes, mut fine) = (vec![0; DIMENSION], vec![0; DIMENSION]);
    let scale = kernels.quantize_i8(&vector, &mut codes).scale;
    kernels.quantize_fine(&vector, &codes, scale, &mut fine);
    kept(Fine { kernels, vector, codes, fine, scale })
}

#[library_benchmark(setup = fine)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn quantize_fine(of: &'static mut Fine) {
    of.kernels.quantize_fine(&of.vector, &of.codes, of.scale, &mut of.fine);
}

#[library_benchmark(setup = fine)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn dot_fine(of: &'static mut Fine) -> f32 {
    of.kernels.dot_fine(&of.vector, &of.codes, &of.fine)
}

struct Scan {
    kernels: Kernels,
    query: Vec<i8>,
    rows: Vec<i8>,
    out: [i32; ROWS],
}

fn rows(level: SimdLevel) -> &'static mut Scan {
    let state = &mut 3;
    let (query, rows) = (codes(DIMENSION, state), codes(ROWS * DIMENSION, state));
    kept(Scan { kernels: kernels(level), query, rows, out: [0; ROWS] })
}

#[library_benchmark(setup = rows)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn dot_i8_rows(of: &'static mut Scan) {
    of.kernels.dot_i8_rows(&of.query, &of.rows, &mut of.out);
}

struct Quantizing {
    kernels: Kernels,
    vector: Vec<f32>,
    out: Vec<i8>,
}

fn vector_to_quantize(level: SimdLevel) -> &'static mut Quantizing {
    let vector = values(DIMENSION, &mut 4);
    kept(Quantizing { kernels: kernels(level), vector, out: vec![0; DIMENSION] })
}

#[library_benchmark(setup = vector_to_quantize)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn quantize_i8(of: &'static mut Quantizing) -> I8Params {
    of.kernels.quantize_i8(&of.vector, &mut of.out)
}

#[library_benchmark(setup = vector_to_quantize)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn quantize_i8_along(of: &'static mut Quantizing) -> I8Params {
    of.kernels.quantize_i8_along(&of.vector, &mut of.out)
}

// Portable alone.
#[library_benchmark(setup = vector_to_quantize)]
#[bench::scalar(SimdLevel::Scalar)]
fn quantize_i4(of: &'static mut Quantizing) -> I8Params {
    of.kernels.quantize_i4(&of.vector, &mut of.out)
}

struct Rotating {
    kernels: Kernels,
    rotation: Rotation,
    vector: Vec<f32>,
}

fn vector_to_rotate(level: SimdLevel) -> &'static mut Rotating {
    let (rotation, vector) = (Rotation::new(DIMENSION, 5), values(DIMENSION, &mut 5));
    kept(Rotating { kernels: kernels(level), rotation, vector })
}

#[library_benchmark(setup = vector_to_rotate)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn rotation_apply(of: &'static mut Rotating) {
    of.rotation.apply(&mut of.vector, of.kernels);
}

struct Estimating {
    kernels: Kernels,
    query: Vec<f32>,
    table: SignTable,
    sketch: Vec<u8>,
    out: [f32; SIGN_ROWS],
}

/// A sketch of 32 points, and the table of a query.
fn estimating(level: SimdLevel) -> &'static mut Estimating {
    let (kernels, state) = (kernels(level), &mut 6);
    let centre = codes(DIMENSION, state);
    let centre = Coded { codes: &centre, scale: SCALE };
    let mut sketch = vec![0; sketch_bytes(DIMENSION)];
    for row in 0..SIGN_ROWS {
        let point = codes(DIMENSION, state);
        kernels.sketch(row, centre, Coded { codes: &point, scale: SCALE }, 0.0, &mut sketch);
    }
    let (query, mut table) = (values(DIMENSION, state), SignTable::default());
    table.set(&query, kernels);
    kept(Estimating { kernels, query, table, sketch, out: [0.0; SIGN_ROWS] })
}

#[library_benchmark(setup = estimating)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn sign_table_set(of: &'static mut Estimating) {
    of.table.set(&of.query, of.kernels);
}

#[library_benchmark(setup = estimating)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn estimate(of: &'static mut Estimating) -> u32 {
    of.kernels.estimate(&of.table, &of.sketch, 0.0, 0.0, &mut of.out)
}

struct Sketching {
    kernels: Kernels,
    centre: Vec<i8>,
    point: Vec<i8>,
    sketch: Vec<u8>,
}

fn point_to_sketch(level: SimdLevel) -> &'static mut Sketching {
    let state = &mut 7;
    let (centre, point) = (codes(DIMENSION, state), codes(DIMENSION, state));
    kept(Sketching {
        kernels: kernels(level),
        centre,
        point,
        sketch: vec![0; sketch_bytes(DIMENSION)],
    })
}

#[library_benchmark(setup = point_to_sketch)]
#[bench::scalar(SimdLevel::Scalar)]
#[bench::avx2(SimdLevel::Avx2)]
fn sketch(of: &'static mut Sketching) {
    let centre = Coded { codes: &of.centre, scale: SCALE };
    let point = Coded { codes: &of.point, scale: SCALE };
    of.kernels.sketch(0, centre, point, 0.0, &mut of.sketch);
}

struct Collecting {
    scores: Vec<f32>,
    top: TopK,
    out: Vec<(f32, u32)>,
}

fn scores() -> &'static mut Collecting {
    let state = &mut 8;
    let scores = (0..SCORES).map(|_| (random_bits(state) >> 40) as f32).collect();
    kept(Collecting { scores, top: TopK::new(KEPT), out: Vec::with_capacity(KEPT) })
}

// Portable alone: it has no vector instructions.
#[library_benchmark]
#[bench::best_10_of_1000(scores())]
fn top_k(of: &'static mut Collecting) {
    for (id, score) in (0u32..).zip(&of.scores) {
        of.top.push(*score, id);
    }
    of.top.drain_sorted(&mut of.out);
}

library_benchmark_group!(
    name = kernel,
    benchmarks = [
        dot_f32,
        dot_i8,
        dot_i8_rows,
        dot_i4,
        quantize_fine,
        dot_fine,
        quantize_i8,
        quantize_i8_along,
        quantize_i4,
        rotation_apply,
        sign_table_set,
        estimate,
        sketch,
        top_k
    ]
);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = kernel
);
