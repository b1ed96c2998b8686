//! Wall time of the kernels at 384 dimensions, for each level of this processor.
//!
//! Throughput counts the bytes read. Single pairs stay in the nearest cache; the rows (1.5 MiB) do
//! not fit it. `scattered` walks random rows of a table larger than the caches, as a graph walk
//! does.

#![allow(missing_docs)]

mod common;

use std::hint::black_box;

use common::{DIMENSION, codes, random_bits, values};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flashbulb_kernels::encoder::{
    Activation, Layer, LayerParts, LayerShape, Matrix, Norm, Packed, Scratch, Team, pack,
};
use flashbulb_kernels::{Kernels, SIGN_ROWS, SignTable, available_levels, pack_signs, sign_bytes};

const ROWS: usize = 4096;
const TABLE_ROWS: usize = 1 << 18;
const WALK_STEPS: usize = 1024;

fn levels() -> Vec<Kernels> {
    available_levels().into_iter().filter_map(Kernels::with_level).collect()
}

fn single_vectors(criterion: &mut Criterion) {
    let state = &mut 1;
    let (a, b) = (values(DIMENSION, state), values(DIMENSION, state));
    let (x, y) = (codes(DIMENSION, state), codes(DIMENSION, state));
    let mut out = vec![0i8; DIMENSION];
    for kernels in levels() {
        let level = kernels.level();
        let mut group = criterion.benchmark_group("single");
        group.throughput(Throughput::Bytes(8 * DIMENSION as u64));
        group.bench_function(BenchmarkId::new("dot_f32", level), |bencher| {
            bencher.iter(|| kernels.dot_f32(black_box(&a), black_box(&b)));
        });
        group.throughput(Throughput::Bytes(2 * DIMENSION as u64));
        group.bench_function(BenchmarkId::new("dot_i8", level), |bencher| {
            bencher.iter(|| kernels.dot_i8(black_box(&x), black_box(&y)));
        });
        group.throughput(Throughput::Bytes(4 * DIMENSION as u64));
        group.bench_function(BenchmarkId::new("quantize_i8", level), |bencher| {
            bencher.iter(|| kernels.quantize_i8(black_box(&a), black_box(&mut out)));
        });
        group.finish();
    }
}

fn signs(criterion: &mut Criterion) {
    let state = &mut 7;
    let mut packed = vec![0; sign_bytes(DIMENSION)];
    (0..SIGN_ROWS).for_each(|row| pack_signs(row, &values(DIMENSION, state), &mut packed));
    let (query, mut table) = (values(DIMENSION, state), SignTable::default());
    table.set(&query, Kernels::detect());
    let mut out = [0; SIGN_ROWS];
    let mut group = criterion.benchmark_group("signs");
    group.bench_function("table", |bencher| {
        bencher.iter(|| table.set(black_box(&query), Kernels::detect()))
    });
    group.throughput(Throughput::Bytes(packed.len() as u64));
    for kernels in levels() {
        group.bench_function(BenchmarkId::new("sums", kernels.level()), |bencher| {
            bencher.iter(|| kernels.sign_sums(&table, black_box(&packed), black_box(&mut out)));
        });
    }
    group.finish();
}

fn rows(criterion: &mut Criterion) {
    let state = &mut 2;
    let (query, table) = (codes(DIMENSION, state), codes(DIMENSION * ROWS, state));
    let mut out = vec![0i32; ROWS];
    for kernels in levels() {
        let mut group = criterion.benchmark_group("rows");
        group.throughput(Throughput::Bytes(table.len() as u64));
        group.bench_function(BenchmarkId::new("dot_i8_rows_4096", kernels.level()), |bencher| {
            bencher.iter(|| kernels.dot_i8_rows(black_box(&query), &table, black_box(&mut out)));
        });
        group.finish();
    }
}

/// Four random rows a step; with `ahead`, the rows of a later step are prefetched.
fn walk(kernels: Kernels, query: &[i8], table: &[i8], ids: &[usize], ahead: usize) -> i32 {
    let row = |id: usize| &table[id * DIMENSION..(id + 1) * DIMENSION];
    let mut sum = 0i32;
    for step in (0..ids.len()).step_by(4) {
        if ahead > 0 {
            for id in ids.iter().skip(step + 4 * ahead).take(4) {
                flashbulb_kernels::prefetch(row(*id));
            }
        }
        let four = [ids[step], ids[step + 1], ids[step + 2], ids[step + 3]];
        for dot in kernels.dot_i8_x4(query, four.map(row)) {
            sum = sum.wrapping_add(dot);
        }
    }
    sum
}

fn scattered(criterion: &mut Criterion) {
    let state = &mut 3;
    let (query, table) = (codes(DIMENSION, state), codes(DIMENSION * TABLE_ROWS, state));
    for kernels in levels() {
        let mut group = criterion.benchmark_group("scattered");
        group.throughput(Throughput::Elements(WALK_STEPS as u64));
        for ahead in [0, 1, 2] {
            let name = format!("dot_i8_x4_prefetch_{ahead}");
            group.bench_function(BenchmarkId::new(name, kernels.level()), |bencher| {
                bencher.iter_batched(
                    || {
                        let id = |_| random_bits(state) as usize % TABLE_ROWS;
                        (0..WALK_STEPS).map(id).collect::<Vec<_>>()
                    },
                    |ids| walk(kernels, &query, &table, &ids, ahead),
                    criterion::BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

/// A layer of all-MiniLM-L6-v2's size. Time does not depend on the weights; a model's weights do not stay in the
/// nearest caches between layers, so six layers take turns.
fn encoder(criterion: &mut Criterion) {
    let shape = LayerShape {
        hidden: DIMENSION,
        heads: 12,
        wide: 4 * DIMENSION,
        attention_copies: vec![],
        widen_copies: vec![],
        activation: Activation::Gelu,
        epsilon: 1e-12,
    };
    let (codes, ones) = (vec![1i8; 4 * DIMENSION * DIMENSION], vec![1e-3f32; 4 * DIMENSION]);
    let matrix = |inputs: usize, outputs: usize| Matrix {
        codes: &codes[..inputs * outputs],
        scales: &ones[..outputs],
        bias: &ones[..outputs],
    };
    let narrow = &ones[..DIMENSION];
    let norm = Norm { weight: narrow, bias: narrow };
    let parts = LayerParts {
        attention_factors: narrow,
        qkv: matrix(DIMENSION, 3 * DIMENSION),
        out: matrix(DIMENSION, DIMENSION),
        attention_norm: norm,
        widen_factors: narrow,
        widen: matrix(DIMENSION, 4 * DIMENSION),
        narrow_factors: &ones,
        narrow: matrix(4 * DIMENSION, DIMENSION),
        output_norm: norm,
    };
    let packed: Vec<Packed> = (0..6).filter_map(|_| pack(&shape, &parts).ok()).collect();
    let layers: Vec<Layer<'_>> =
        packed.iter().filter_map(|p| Layer::new(&shape, &p.codes, &p.params).ok()).collect();
    let multiplications = 12 * DIMENSION * DIMENSION * layers.len();
    let mut scratch = Scratch::default();
    let mut large = vec![0u8; 600 << 20];
    for kernels in levels() {
        let mut group = criterion.benchmark_group("encoder_6_layers");
        for tokens in [4, 8, 16, 32, 128] {
            let input = values(tokens * DIMENSION, &mut 5);
            let mut output = vec![0.0; input.len()];
            group.throughput(Throughput::Elements((tokens * multiplications) as u64));
            group.bench_function(
                BenchmarkId::new(kernels.level().to_string(), tokens),
                |bencher| {
                    bencher.iter(|| {
                        run_layers(kernels, &layers, &input, &mut output, &mut scratch);
                    });
                },
            );
        }
        group.finish();
        let mut group = criterion.benchmark_group("encoder_6_layers_from_memory");
        group.sample_size(20);
        for tokens in [4, 16, 32] {
            let input = values(tokens * DIMENSION, &mut 5);
            let mut output = vec![0.0; input.len()];
            group.bench_function(
                BenchmarkId::new(kernels.level().to_string(), tokens),
                |bencher| {
                    bencher.iter_batched(
                        || evict(&mut large),
                        |()| {
                            run_layers(kernels, &layers, &input, &mut output, &mut scratch);
                        },
                        criterion::BatchSize::PerIteration,
                    );
                },
            );
        }
        group.finish();
    }
}

fn run_layers(
    kernels: Kernels,
    layers: &[Layer<'_>],
    input: &[f32],
    output: &mut [f32],
    scratch: &mut Scratch,
) {
    for layer in layers {
        kernels.encoder_layer(layer, black_box(input), output, scratch, Team::ALONE);
    }
}

/// Pushes everything else out of the caches: more than the largest of them holds, written.
fn evict(large: &mut [u8]) {
    large.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
}

criterion_group!(benches, single_vectors, signs, rows, scattered, encoder);
criterion_main!(benches);
