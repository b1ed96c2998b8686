//! `ef` means about the same recall in every kind of space, whatever is in it: easy or hard, for all metrics and in both layouts.
//!
//! Written from the contract and without a look at how the index keeps it: a search measures, with vectors of the space, how far its walks
//! have to go. The default `ef` is to find some 0.97 of the ten nearest, a larger one no less, and a loaded index as much as the saved
//! one, at once. Where a walk would cost more than a scan, the scan may run. The oracle is brute force over the original rows, in f64.
#![allow(clippy::unwrap_used)]

use flashbulb_engine::index::{
    Accept, Layout, Metric, RowSource, Scratch, SearchParams, SearchPath, VectorIndex, VectorNo,
};
use flashbulb_kernels::Kernels;
use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use Layout::{Full, Lean};
use Metric::{Cosine, Dot, L2};

const K: usize = 10;
const VECTORS: usize = 12_000;
const QUERIES: usize = 250;
const DEFAULT: usize = SearchParams::DEFAULT_EF;
const EFS: [usize; 3] = [16, DEFAULT, 256];
/// What a larger `ef` may find less, by chance.
const NOISE: f64 = 0.02;
/// What the same searches may find less in an index that is to be the same, but whose walks may take another way.
const WAY: f64 = 0.01;

/// splitmix64 (Steele, Lea & Flood 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Above 0, up to 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Box & Muller 1958.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Of normal components, and so long on average.
    fn cloud(&mut self, dim: usize, length: f64) -> Vec<f64> {
        let deviation = length / (dim as f64).sqrt();
        (0..dim).map(|_| deviation * self.normal()).collect()
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(x, y)| x + y).collect()
}

/// What the vectors of a space are like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Independent components of so many dimensions: no vector is much nearer than the others, and no structure helps a walk.
    Gaussian(usize),
    /// Clusters far from each other, each so wide: the centres are of length 1.
    Tight(f64),
    /// Six dimensions, bent into many.
    Manifold,
    /// A few components, now these and then those, are far larger than the others.
    HeavyTails,
    /// As embeddings are: all in about one direction, and some directions matter more.
    CommonMean,
    /// Words: few frequent meanings, many rare ones, and more noise than meaning.
    Words,
}

use Kind::{CommonMean, Gaussian, HeavyTails, Manifold, Tight, Words};

type Kept = &'static [(Metric, Layout)];
const SOME: Kept = &[(Cosine, Full), (L2, Lean), (Dot, Full)];
const OTHERS: Kept = &[(Cosine, Lean), (L2, Full), (Dot, Lean)];
const ALL: Kept =
    &[(Cosine, Full), (Cosine, Lean), (L2, Full), (L2, Lean), (Dot, Full), (Dot, Lean)];
/// Each kind in both layouts and, but for the one that takes the longest to build, by every metric.
const KINDS: [(Kind, Kept); 9] = [
    (Gaussian(128), &[(Cosine, Full), (L2, Lean)]),
    (Gaussian(48), OTHERS),
    (Gaussian(16), SOME),
    (CommonMean, OTHERS),
    (Words, SOME),
    (HeavyTails, OTHERS),
    (Manifold, SOME),
    (Tight(0.1), ALL),
    (Tight(0.03), SOME),
];

type Draw = Box<dyn Fn(&mut Rng) -> Vec<f64>>;

impl Kind {
    fn dim(self) -> usize {
        match self {
            Gaussian(dim) => dim,
            Tight(_) | HeavyTails => 64,
            Manifold | CommonMean => 96,
            Words => 100,
        }
    }

    /// What draws vectors of this kind in so many dimensions; of about length 1, so that kinds can be mixed.
    fn drawing(self, dim: usize) -> Draw {
        let mut rng = Rng(0x5bace);
        match self {
            Gaussian(_) => Box::new(move |rng| rng.cloud(dim, 1.0)),
            Tight(width) => {
                let centres: Vec<_> = (0..150).map(|_| rng.cloud(dim, 1.0)).collect();
                Box::new(move |rng| {
                    let centre = &centres[rng.next() as usize % centres.len()];
                    sum(centre, &rng.cloud(dim, width))
                })
            }
            Manifold => {
                let waves: Vec<_> =
                    (0..dim).map(|_| (rng.cloud(6, 2.5), 6.3 * rng.unit())).collect();
                Box::new(move |rng| {
                    let place: Vec<f64> = (0..6).map(|_| 2.0 * rng.unit() - 1.0).collect();
                    let bend = |(wave, phase): &(Vec<f64>, f64)| {
                        let along: f64 = wave.iter().zip(&place).map(|(x, y)| x * y).sum();
                        (along + phase).sin() * (2.0 / dim as f64).sqrt()
                    };
                    waves.iter().map(bend).collect()
                })
            }
            // Student's t of three degrees of freedom, whose variance is 3.
            HeavyTails => Box::new(move |rng| {
                let component = |rng: &mut Rng| {
                    let chi: f64 = (0..3).map(|_| rng.normal().powi(2)).sum();
                    rng.normal() / (chi / 3.0).sqrt() / (3.0 * dim as f64).sqrt()
                };
                (0..dim).map(|_| component(rng)).collect()
            }),
            // The mean is twice as long as the rest: cosines are about 0.8.
            CommonMean => {
                let mean = rng.cloud(dim, 0.9);
                Box::new(move |rng| {
                    let rest = rng.cloud(dim, 1.0);
                    let weigh = |(n, x): (usize, f64)| x / (1.0 + n as f64).sqrt();
                    let rest: Vec<f64> = rest.into_iter().enumerate().map(weigh).collect();
                    // The mean of the weights' squares is about 5.15 / 96, by the harmonic number.
                    let by = 0.45 / (5.15 / 96.0_f64).sqrt();
                    sum(&mean, &rest.iter().map(|x| by * x).collect::<Vec<_>>())
                })
            }
            Words => {
                let centres: Vec<_> = (0..1000).map(|_| rng.cloud(dim, 0.6)).collect();
                // Sizes are as 1 / rank (Zipf): the logarithm of the rank is uniform.
                Box::new(move |rng| {
                    let rank = (1000.0_f64.powf(rng.unit()) as usize).clamp(1, 1000);
                    sum(&centres[rank - 1], &rng.cloud(dim, 0.8))
                })
            }
        }
    }
}

/// As the metric takes it: of length 1, as it is, or of length 0.7 to 1.4.
fn fitted(vector: &[f64], metric: Metric, rng: &mut Rng) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    let by = match metric {
        Cosine => 1.0 / length,
        L2 => 1.0,
        Dot => (0.7 + 0.7 * rng.unit()) / length,
    };
    vector.iter().map(|x| (x * by) as f32).collect()
}

fn score(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b).map(|(x, y)| (f64::from(*x), f64::from(*y)));
    match metric {
        L2 => -pairs.map(|(x, y)| (x - y) * (x - y)).sum::<f64>(),
        _ => pairs.map(|(x, y)| x * y).sum(),
    }
}

#[derive(Default)]
struct Rows(Vec<Vec<f32>>);

impl RowSource for Rows {
    type Error = Infallible;

    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0[vector.0 as usize]);
        Ok(())
    }
}

impl Rows {
    fn grow(&mut self, draw: &Draw, metric: Metric, count: usize, seed: u64) {
        let mut rng = Rng(seed);
        self.0.extend((0..count).map(|_| fitted(&draw(&mut rng), metric, &mut rng)));
    }

    /// Those that the index does not have yet.
    fn push(&self, index: &VectorIndex) {
        for row in &self.0[index.len() as usize..] {
            index.push(row);
        }
    }
}

/// Queries, and for each the score from which on a live vector is among the nearest.
struct Asked(Vec<(Vec<f32>, f64)>);

impl Asked {
    fn new(draw: &Draw, metric: Metric, rows: &Rows, lives: impl Fn(usize) -> bool) -> Asked {
        let mut rng = Rng(0xa5ced);
        let ask = |_| {
            let query = fitted(&draw(&mut rng), metric, &mut rng);
            let live = rows.0.iter().enumerate().filter(|(n, _)| lives(*n));
            let mut scores: Vec<f64> = live.map(|(_, row)| score(metric, &query, row)).collect();
            let last = *scores.select_nth_unstable_by(K - 1, |a, b| b.total_cmp(a)).1;
            // The index computes in f32: who is as near but for rounding is as good.
            let slack = 1e-6 * if metric == L2 { last.abs() } else { 2.0 };
            (query, last - slack)
        };
        Asked((0..QUERIES).map(ask).collect())
    }

    fn search(&self, index: &VectorIndex, rows: &Rows, ef: usize) -> Cost {
        let (mut cost, mut scratch) = (Cost::default(), Scratch::new());
        let params = SearchParams { ef, ..SearchParams::new(K) };
        let of = self.0.len() as f64;
        for (query, last) in &self.0 {
            let Ok(found) = index.search(query, &params, rows, Accept::All, &mut scratch);
            let distinct: HashSet<_> = found.hits.iter().map(|hit| hit.0).collect();
            assert!(found.hits.len() == K && distinct.len() == K, "{:?}", found.hits);
            assert!(distinct.iter().all(|hit| !index.is_dead(*hit)), "{:?}", found.hits);
            let near = |n: &&VectorNo| score(index.metric(), query, &rows.0[n.0 as usize]) >= *last;
            cost.recall += distinct.iter().filter(near).count() as f64 / K as f64 / of;
            cost.visited += found.visited as f64 / of;
            cost.walks += f64::from(u8::from(found.path == SearchPath::Graph)) / of;
        }
        cost
    }
}

/// Of searches with one `ef`, on average.
#[derive(Clone, Copy, Default)]
struct Cost {
    recall: f64,
    visited: f64,
    /// The share of searches that the graph alone answered; the others ran a scan.
    walks: f64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { recall, visited, walks } = self;
        write!(f, "{recall:.3} ({visited:4.0} visited, {walks:.2} by graph)")
    }
}

/// What was measured in one space.
struct Space {
    kind: Kind,
    metric: Metric,
    layout: Layout,
    /// For each of `EFS`.
    costs: [Cost; 3],
    /// By the default `ef`: at once after loading, and after building whatever the loaded index has to build.
    loaded: Cost,
    rebuilt: Cost,
}

impl Space {
    fn measure(kind: Kind, metric: Metric, layout: Layout) -> Space {
        let (draw, mut rows) = (kind.drawing(kind.dim()), Rows::default());
        rows.grow(&draw, metric, VECTORS, 1);
        let (asked, rows) = (Asked::new(&draw, metric, &rows, |_| true), &rows);
        let index = VectorIndex::with_layout(kind.dim(), metric, layout, Kernels::detect());
        rows.push(&index);
        index.build(1);
        assert_eq!(index.graph_len(), index.len());
        let costs = EFS.map(|ef| asked.search(&index, rows, ef));
        let mut bytes = Vec::new();
        index.checkpoint(&mut bytes).unwrap();
        let index = VectorIndex::load(kind.dim(), Kernels::detect(), bytes.as_slice()).unwrap();
        let loaded = asked.search(&index, rows, DEFAULT);
        index.build(1);
        let rebuilt = asked.search(&index, rows, DEFAULT);
        Space { kind, metric, layout, costs, loaded, rebuilt }
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{:?}, {:?}, {}", self.kind, self.metric, self.layout);
        let [few, usual, many] = self.costs;
        write!(f, "{name:27}: ef 16 {few}, 64 {usual}, 256 {many}; ")?;
        write!(f, "loaded {}, then built {}", self.loaded, self.rebuilt)
    }
}

/// The promise: fewer for products of vectors of any length, and where distances are of four bits.
fn wanted(metric: Metric, layout: Layout) -> f64 {
    match (metric, layout) {
        (Dot, _) | (L2, Lean) => 0.95,
        _ => 0.97,
    }
}

/// All spaces, measured once for all tests: the building takes nearly all the time.
static SPACES: LazyLock<Vec<Space>> = LazyLock::new(|| {
    let next = AtomicUsize::new(0);
    let spaces = KINDS.iter().flat_map(|(kind, kept)| kept.iter().map(move |how| (*kind, *how)));
    let spaces: Vec<_> = spaces.collect();
    let work = || {
        let take = || spaces.get(next.fetch_add(1, Relaxed));
        let measure = |(kind, (metric, layout)): &_| Space::measure(*kind, *metric, *layout);
        std::iter::from_fn(take).map(measure).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let both = [scope.spawn(work), scope.spawn(work)];
        both.into_iter().flat_map(|one| one.join().unwrap()).collect()
    })
});

/// Fails with all the spaces where this does not hold.
fn holds_everywhere(what: &str, holds: impl Fn(&Space) -> bool) {
    let failed: Vec<_> =
        SPACES.iter().filter(|space| !holds(space)).map(Space::to_string).collect();
    let (count, of, list) = (failed.len(), SPACES.len(), failed.join("\n"));
    assert!(failed.is_empty(), "{what}: not in {count} of {of} spaces\n{list}");
}

#[test]
fn every_kind_of_space_is_searched_well() {
    holds_everywhere("the default ef finds enough, in a loaded index too", |space| {
        space.costs[1].recall.min(space.loaded.recall) >= wanted(space.metric, space.layout)
    });
}

#[test]
fn a_larger_ef_finds_no_less() {
    holds_everywhere("a larger ef finds no less", |space| {
        space.costs.is_sorted_by(|few, many| few.recall <= many.recall + NOISE)
    });
}

/// What was measured is in the checkpoint: nothing has to be built before the walks go far enough.
#[test]
fn a_loaded_index_finds_as_much_as_the_saved_one() {
    holds_everywhere("a loaded index finds as much, at once and after building", |space| {
        space.loaded.recall.min(space.rebuilt.recall) >= space.costs[1].recall - WAY
    });
}

/// What was measured when all vectors were easy must not be kept for the hard ones that replace some.
#[test]
fn a_space_that_becomes_another_is_searched_as_well() {
    let dim = 64;
    let changes = [
        (Manifold, Gaussian(dim), Cosine, Full),
        (Tight(0.1), Gaussian(dim), L2, Full),
        (Tight(0.1), Words, Cosine, Lean),
        (Manifold, Gaussian(dim), L2, Lean),
    ];
    let mut failed = Vec::new();
    for (was, becomes, metric, layout) in changes {
        let (old, new, mut rows) = (was.drawing(dim), becomes.drawing(dim), Rows::default());
        let index = VectorIndex::with_layout(dim, metric, layout, Kernels::detect());
        rows.grow(&old, metric, VECTORS, 2);
        rows.push(&index);
        index.build(1);

        let mut rng = Rng(3);
        let killed = (0..VECTORS as u32).filter(|_| rng.unit() < 0.3);
        let killed = killed.filter(|n| index.kill(VectorNo(*n))).count();
        rows.grow(&new, metric, killed, 4);
        rows.push(&index);
        while index.build_step(&mut || true) {}
        assert_eq!((index.graph_len(), index.live() as usize), (index.len(), VECTORS));

        let lives = |n: usize| !index.is_dead(VectorNo(n as u32));
        let [before, after] = [&old, &new]
            .map(|draw| Asked::new(draw, metric, &rows, lives).search(&index, &rows, DEFAULT));
        // What is measured is of the space as it is, so the one kind may be found worse than the other.
        let mean = 0.7 * before.recall + 0.3 * after.recall;
        let worst = before.recall.min(after.recall);
        if mean < wanted(metric, layout) || worst < wanted(metric, layout) - 0.06 {
            let change = format!("{was:?} became {becomes:?}, {metric:?}, {layout}");
            failed.push(format!("{change}: those of before {before}, of after {after}"));
        }
    }
    assert!(failed.is_empty(), "not found well:\n{}", failed.join("\n"));
}

/// As words' vectors are before anybody scales them: some are a hundred times as long as others, and those are what products look for.
#[test]
fn products_of_vectors_of_very_different_lengths_are_found() {
    for layout in [Full, Lean] {
        let dim = Words.dim();
        let words = Words.drawing(dim);
        let draw: Draw = Box::new(move |rng| {
            let length = rng.normal().exp();
            words(rng).iter().map(|x| x * length).collect()
        });
        let mut rng = Rng(6);
        let mut row = || draw(&mut rng).iter().map(|x| *x as f32).collect::<Vec<_>>();
        let rows = Rows((0..VECTORS).map(|_| row()).collect());
        let index = VectorIndex::with_layout(dim, Dot, layout, Kernels::detect());
        rows.push(&index);
        index.build(2);
        // By the product, a query's own length changes nothing.
        let found = Asked::new(&draw, Dot, &rows, |_| true).search(&index, &rows, DEFAULT);
        assert!(found.recall >= wanted(Dot, layout), "{layout}: {found}");
    }
}

/// So many that no scan is cheaper: here walks must go farther than elsewhere for as much, and do.
#[test]
fn a_large_hard_space_is_walked_farther() {
    let (draw, mut rows) = (Gaussian(48).drawing(48), Rows::default());
    rows.grow(&draw, Cosine, 3 * VECTORS, 1);
    let index = VectorIndex::with_layout(48, Cosine, Lean, Kernels::detect());
    rows.push(&index);
    index.build(2);
    let found = Asked::new(&draw, Cosine, &rows, |_| true).search(&index, &rows, DEFAULT);
    assert!(found.recall >= wanted(Cosine, Lean) && found.walks > 0.99, "{found}");
}
