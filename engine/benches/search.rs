//! Wall time of one search over 8,000 clustered vectors of 384 dimensions, at the best level of this processor.
//!
//! Queries take turns. The index stays in the larger caches, so a search here is faster than one in a large space, where it waits for
//! memory. Must not know what a search may cost.

#![allow(missing_docs)]

mod common;

use std::hint::black_box;

use common::{Data, What};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use flashbulb_engine::index::{Layout, Scratch};
use flashbulb_kernels::Kernels;

fn search(criterion: &mut Criterion) {
    let data = Data::made();
    let mut scratch = Scratch::new();
    let mut group = criterion.benchmark_group("search");
    for layout in [Layout::Full, Layout::Lean] {
        let index = data.index(layout, Kernels::detect());
        for (name, what) in
            [("walk", What::Walk), ("filtered_walk", What::FilteredWalk), ("scan", What::Scan)]
        {
            group.bench_function(BenchmarkId::new(name, layout), |bencher| {
                let mut queries = data.queries.iter().cycle();
                bencher.iter(|| {
                    let query = queries.next().unwrap_or(&[]);
                    what.search(&index, black_box(query), &data.rows, &mut scratch)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
