//! Instructions of searches and insertions over 8,000 clustered vectors of 384 dimensions, at AVX2, the widest level that valgrind
//! knows. `scripts/instructions.sh` runs it.
//!
//! Several searches or insertions are counted together, so that a walk that turns off a little earlier or later weighs little.
//!
//! Invariant: nothing of what makes or loads vectors and graph is counted, nor a search's first allocations. Must not know the limits.

#![allow(missing_docs)]

mod common;

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use common::{DIM, Data, NEWCOMERS, NODES, QUERIES, Rows, What};
use flashbulb_engine::index::{Layout, Scratch, VectorIndex};
use flashbulb_kernels::{Kernels, SimdLevel};
use gungraun::Callgrind;
use gungraun::prelude::*;

fn kernels() -> Kernels {
    let level = SimdLevel::Avx2;
    Kernels::with_level(level).unwrap_or_else(|| panic!("this processor cannot run {level}"))
}

/// Where vectors and graph lie between runs: beside what was compiled.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn write(name: &str, bytes: &[u8]) {
    let path = file(name);
    fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn read(name: &str) -> Vec<u8> {
    let path = file(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Makes vectors and graph. It runs as an ordinary program before all that is counted, which would take it a minute.
fn prepare() {
    let data = Data::made();
    let bytes = |rows: &Rows| rows.0.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    write("rows", &bytes(&data.rows));
    write("queries", &bytes(&data.queries));
    for layout in [Layout::Full, Layout::Lean] {
        let mut graph = Vec::new();
        data.index(layout, kernels()).checkpoint(&mut graph).expect("a Vec takes all bytes");
        write(&layout.to_string(), &graph);
    }
}

/// What is counted, and what it needs.
struct Task {
    data: Data,
    index: VectorIndex,
    scratch: Scratch,
    what: What,
}

/// Loads what was prepared. It lives until the end of the process, so that freeing it is not counted.
fn task(what: What, layout: Layout) -> &'static mut Task {
    let rows = |name| {
        let bytes = read(name);
        Rows(bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect())
    };
    let data = Data { rows: rows("rows"), queries: rows("queries") };
    assert_eq!(data.rows.0.len(), (NODES + NEWCOMERS) * DIM, "rows of another run");
    let index = VectorIndex::load(DIM, kernels(), &read(&layout.to_string()))
        .unwrap_or_else(|e| panic!("what was just written: {e}"));
    // Draws the sketches, which a checkpoint lacks.
    while index.build_step(&mut || true) {}
    let mut task = Task { data, index, scratch: Scratch::new(), what };
    task.search();
    Box::leak(Box::new(task))
}

impl Task {
    fn search(&mut self) {
        for query in self.data.queries.iter() {
            let found = self.what.search(&self.index, query, &self.data.rows, &mut self.scratch);
            black_box(found);
        }
    }
}

#[library_benchmark]
#[bench::walk_32_times(task(What::Walk, Layout::Full))]
#[bench::filtered_walk_32_times(task(What::FilteredWalk, Layout::Full))]
#[bench::scan_32_times(task(What::Scan, Layout::Full))]
#[bench::lean_walk_32_times(task(What::Walk, Layout::Lean))]
#[bench::lean_scan_32_times(task(What::Scan, Layout::Lean))]
fn search(task: &'static mut Task) {
    const { assert!(QUERIES == 32, "the names say how many") };
    task.search();
}

#[library_benchmark]
#[bench::one_by_one_16_times(task(What::Walk, Layout::Full))]
#[bench::lean_one_by_one_16_times(task(What::Walk, Layout::Lean))]
fn insert(task: &'static mut Task) {
    const { assert!(NEWCOMERS == 16, "the name says how many") };
    for row in task.data.rows.iter().skip(NODES) {
        task.index.push(row);
        while task.index.build_step(&mut || true) {}
    }
}

library_benchmark_group!(name = index, setup = prepare(), benchmarks = [search, insert]);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = index
);
