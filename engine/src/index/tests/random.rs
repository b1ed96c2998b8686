//! Random interleavings of everything an index can do, against a list.
//!
//! Invariant: exact searches agree with the list at every moment. Must not know: the graph.

use super::super::{Accept, SearchParams, VectorIndex, VectorNo};
use super::data::{Rng, Rows, assert_exact, exact, for_about, recall, search};
use flashbulb_kernels::Kernels;
use proptest::prelude::*;
use std::time::Duration;

const DIM: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    Push(u16),
    Kill(u32),
    Search(u64),
    Build,
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u16..80).prop_map(Step::Push),
        3 => any::<u32>().prop_map(Step::Kill),
        3 => any::<u64>().prop_map(Step::Search),
        2 => Just(Step::Build),
        1 => Just(Step::Reload),
    ];
    prop::collection::vec(step, 1..60)
}

/// The index, and what it should hold.
struct Pair {
    index: VectorIndex,
    rows: Rows,
    live: Vec<bool>,
    rng: Rng,
}

impl Pair {
    fn push(&mut self) {
        let vector: Vec<f32> = (0..DIM).map(|_| self.rng.normal()).collect();
        let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        self.rows.values.extend(vector.iter().map(|v| v / norm));
        self.live.push(true);
        let number = VectorNo(self.live.len() as u32 - 1);
        assert_eq!(self.index.push(self.rows.row(number)), number);
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Push(n) => (0..n).for_each(|_| self.push()),
            Step::Kill(n) if !self.live.is_empty() => {
                let n = n as usize % self.live.len();
                let was_live = std::mem::replace(&mut self.live[n], false);
                assert_eq!(self.index.kill(VectorNo(n as u32)), was_live);
            }
            Step::Kill(_) => {}
            Step::Search(seed) => self.search(seed),
            Step::Build => {
                self.index.build_from(1, 1, &mut for_about(Duration::from_micros(500)));
            }
            Step::Reload => self.reload(),
        }
        let live = self.live.iter().filter(|l| **l).count();
        assert_eq!(
            (self.index.live() as usize, self.index.len() as usize),
            (live, self.live.len())
        );
    }

    fn search(&mut self, seed: u64) {
        let mut rng = Rng(seed);
        let query: Vec<f32> = (0..DIM).map(|_| rng.normal() * 0.3).collect();
        let third = |v: VectorNo| v.0.is_multiple_of(3);
        for (accept, keep) in [(Accept::All, false), (Accept::Test(&third), true)] {
            let kept = |v: VectorNo| self.live[v.0 as usize] && (!keep || third(v));
            let best = self.rows.best(&query, 7, kept);
            let hits = search(&self.index, &self.rows, &query, exact(7), accept).hits;
            assert_exact(&hits, &best);
            let hits = search(&self.index, &self.rows, &query, SearchParams::new(7), accept).hits;
            assert!(hits.iter().all(|hit| kept(hit.0)));
            assert!(recall(&hits, &best) >= 0.5, "recall {}", recall(&hits, &best));
        }
    }

    /// Saves, loads, and pushes again what the graph did not cover.
    fn reload(&mut self) {
        let mut bytes = Vec::new();
        self.index.checkpoint(&mut bytes).unwrap();
        self.index = VectorIndex::load(DIM, Kernels::detect(), &bytes).unwrap();
        for n in self.index.len()..self.live.len() as u32 {
            self.index.push(self.rows.row(VectorNo(n)));
            if !self.live[n as usize] {
                self.index.kill(VectorNo(n));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_list(steps in steps(), seed in any::<u64>()) {
        let mut pair = Pair {
            index: VectorIndex::new(DIM, Kernels::detect()),
            rows: Rows { dim: DIM, values: Vec::new() },
            live: Vec::new(),
            rng: Rng(seed),
        };
        for step in &steps {
            pair.run(step);
        }
    }
}
