//! The layout for little memory, `Layout::Lean`: answers, filters, deletes, repairs and checkpoints are to be as with the other one.
//!
//! Written from the contract and without a look at the index: its public names, their documentation, and what ARCHITECTURE says of
//! walks, filters and deletes. The oracle is `oracle`: brute force over the f32 rows, in f64. The tests print the recalls they measure:
//!
//!     cargo test -p flashbulb-engine --test lean -- --nocapture
#![allow(clippy::unwrap_used)]

mod oracle;

use flashbulb_engine::index::{
    Accept, GRAPH_FROM, Layout, Metric, Scratch, SearchParams, SearchPath, SearchResult,
    VectorBits, VectorIndex, VectorNo,
};
use flashbulb_kernels::Kernels;
use oracle::{Mixture, Recall, Rng, Rows, Truth, both_ways, check, dot};

use Metric::{Cosine, Dot, L2};
use SearchPath::{Graph, GraphAndScan, GraphThenScan, Scan};

const METRICS: [Metric; 3] = [Cosine, Dot, L2];
/// Just enough for a graph.
const ENOUGH: usize = GRAPH_FROM as usize + 300;
const WANTED: f64 = 0.9;
const EF: usize = SearchParams::DEFAULT_EF;

fn saved(index: &VectorIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    index.checkpoint(&mut bytes).unwrap();
    bytes
}

fn load(dim: usize, bytes: &[u8]) -> VectorIndex {
    VectorIndex::load(dim, Kernels::detect(), bytes).unwrap()
}

fn exactly(k: usize) -> SearchParams {
    SearchParams { exact: true, ..SearchParams::new(k) }
}

/// A query with the scores of all rows.
struct Asked {
    vector: Vec<f32>,
    scores: Vec<f64>,
}

/// An index with its rows, and which of them are dead.
struct World {
    index: VectorIndex,
    rows: Rows,
    dead: Vec<bool>,
    mixture: Mixture,
    rng: Rng,
}

impl World {
    fn new(dim: usize, metric: Metric) -> World {
        let index = VectorIndex::with_layout(dim, metric, Layout::Lean, Kernels::detect());
        let (rows, mixture) = (Rows::new(dim), Mixture::new(dim, 100, 0.7, 70));
        World { index, rows, dead: Vec::new(), mixture, rng: Rng(71) }
    }

    /// With so many vectors in its graph.
    fn built(dim: usize, metric: Metric, count: usize) -> World {
        let mut world = World::new(dim, metric);
        world.grow(count);
        world.index.build(2);
        assert_eq!((world.index.graph_len(), world.index.layout()), (count as u32, Layout::Lean));
        world
    }

    /// A vector of the mixture, of length 1 for cosines and of about that for the others.
    fn draw(&self, rng: &mut Rng) -> Vec<f32> {
        let mut row = self.mixture.draw(rng).1;
        if self.index.metric() != Cosine {
            let length = 0.8 + 0.45 * rng.unit() as f32;
            row.iter_mut().for_each(|x| *x *= length);
        }
        row
    }

    fn push(&mut self, row: &[f32]) {
        assert_eq!(self.index.push(row).0 as usize, self.rows.len(), "numbers are dense");
        self.rows.push(row);
        self.dead.push(false);
    }

    fn grow(&mut self, count: usize) {
        let mut rng = Rng(self.rng.next());
        (0..count).for_each(|_| self.push(&self.draw(&mut rng)));
    }

    fn kill(&mut self, n: usize) {
        assert_eq!(self.index.kill(VectorNo(n as u32)), !self.dead[n], "killed once");
        self.dead[n] = true;
    }

    /// Kills a share of those that live, anywhere.
    fn thin(&mut self, share: f64) {
        for n in 0..self.dead.len() {
            if !self.dead[n] && self.rng.unit() < share {
                self.kill(n);
            }
        }
        assert_eq!(self.index.live() as usize, self.dead.iter().filter(|dead| !**dead).count());
    }

    fn ask(&self, vector: &[f32]) -> Asked {
        let score = |row: &[f32]| -> f64 {
            row.iter().zip(vector).map(|(x, y)| -(f64::from(*x) - f64::from(*y)).powi(2)).sum()
        };
        let scores = match self.index.metric() {
            L2 => (0..self.rows.len()).map(|n| score(self.rows.row(n))).collect(),
            _ => self.rows.scores(vector),
        };
        Asked { vector: vector.to_vec(), scores }
    }

    /// Queries that are in no index.
    fn queries(&self, seed: u64, count: usize) -> Vec<Asked> {
        let mut rng = Rng(seed);
        (0..count).map(|_| self.ask(&self.draw(&mut rng))).collect()
    }

    fn search(&self, query: &[f32], params: &SearchParams, accept: Accept<'_>) -> SearchResult {
        let scratch = &mut Scratch::new();
        let Ok(found) = self.index.search(query, params, &self.rows, accept, scratch);
        found
    }

    /// How far a sum in f32 may be from the true one, of products or of squares: each term's rounding may go up or down. (Scores of 16-bit
    /// codes are farther off.)
    fn slack(&self, asked: &Asked, n: u32) -> f64 {
        let (row, query) = (self.rows.row(n as usize), &asked.vector);
        let size = match self.index.metric() {
            L2 => -asked.scores[n as usize],
            _ => (dot(row, row) * dot(query, query)).sqrt(),
        };
        let steps = 4.0 + (row.len() as f64).sqrt();
        size * steps / f64::from(1u32 << 24) + f64::from(f32::MIN_POSITIVE)
    }

    /// Searches, checks what must hold of every answer, and says which part of the true best was found. An exact answer has all.
    fn judge(&self, asked: &Asked, params: &SearchParams, accept: Accept<'_>) -> (f64, SearchPath) {
        let may = |n: u32| !self.dead[n as usize] && accept.accepts(VectorNo(n));
        let truth = Truth::new(&asked.scores, params.k, may);
        let found = self.search(&asked.vector, params, accept);
        let (hits, mut recall) = (oracle::plain(&found), Recall::default());
        let what = format!("{:?}, {:?}", self.index.metric(), found.path);
        let right = check(&hits, &asked.scores, &truth, f64::INFINITY, may);
        recall.add(right.unwrap_or_else(|why| panic!("{what}: {why}")), &truth);
        for ((n, score), (best, ideal)) in hits.iter().zip(&truth.best) {
            let (score, own) = (f64::from(*score), asked.scores[*n as usize]);
            let slack = self.slack(asked, *n);
            assert!((score - own).abs() <= slack, "{what}: {n} has {score}, not {own} ± {slack:e}");
            let slack = slack.max(self.slack(asked, *best));
            let as_good = !params.exact || (score - ideal).abs() <= slack;
            assert!(as_good, "{what}: {n} with {score}, not {best} with {ideal}");
        }
        assert!(!params.exact || found.path == Scan);
        (recall.rate(), found.path)
    }

    /// The recall of searches for `k` that are to take one of the paths.
    fn recall(&self, asked: &[Asked], k: usize, ef: usize, paths: &[SearchPath]) -> f64 {
        let params = SearchParams { ef, ..SearchParams::new(k) };
        mean(asked.iter().map(|one| {
            let (rate, path) = self.judge(one, &params, Accept::All);
            assert!(paths.contains(&path), "{path:?} and none of {paths:?}");
            rate
        }))
    }

    /// The graph is sound and all that lives is in its reach.
    fn is_sound(&self, when: &str) {
        let audit = self.index.audit();
        assert_eq!((audit.problem_count, audit.unreachable), (0, 0), "{when}: {audit:?}");
    }

    /// The graph is sound, and a vector is found by itself, but for a handful: more of them where some are longer, so that few lead
    /// to them. (By products, longer ones come before it.)
    fn is_whole(&self, when: &str) {
        self.is_sound(when);
        let (all, metric) = ((0..self.rows.len()).step_by(2), self.index.metric());
        let tried = all.filter(|n| !self.dead[*n] && metric != Dot);
        let lost = tried.clone().filter(|n| {
            let found = self.search(self.rows.row(*n), &SearchParams::new(1), Accept::All);
            found.hits[0].0.0 as usize != *n
        });
        let (lost, of) = (lost.count(), tried.count());
        let what = format!("{when}: {lost} of {of} are not found by themselves");
        println!("{what}");
        assert!(lost * if metric == Cosine { 500 } else { 100 } <= of, "{what}");
    }
}

fn mean(rates: impl Iterator<Item = f64>) -> f64 {
    let rates: Vec<f64> = rates.collect();
    rates.iter().sum::<f64>() / rates.len() as f64
}

/// Where vectors are few, a wide search costs more than a scan, which then is what runs.
fn walks_at(dim: usize, metric: Metric, count: usize, when_wide: &[SearchPath]) {
    let world = World::built(dim, metric, count);
    let asked = world.queries(72, if dim > 1000 { 30 } else { 60 });
    let efs = [10, 16, 32, EF, 128, 256, 512];
    let paths = |ef| if ef > EF { when_wide } else { &[Graph] };
    let rates = efs.map(|ef| world.recall(&asked, 10, ef, paths(ef)));
    let hundred = world.recall(&asked, 100, EF, &[Graph, Scan]);
    let what = format!("{metric:?}, {count} x {dim}");
    println!("{what}: recall@10 {rates:.3?} at ef {efs:?}; recall@100 {hundred:.3}");
    world.is_whole(&what);
    assert!(rates[3].min(hundred) >= WANTED && rates[6] >= 0.97, "{what}: {rates:?}, {hundred}");
    assert!(rates.is_sorted_by(|narrow, wide| *wide >= narrow - 0.01), "{what}: {rates:?}");
}

#[test]
fn walks_find_the_nearest_at_few_dimensions() {
    for (dim, metric) in [(8, Cosine), (8, L2), (9, Dot), (24, Cosine), (100, L2), (100, Dot)] {
        walks_at(dim, metric, ENOUGH, &[Graph, Scan]);
    }
    walks_at(48, L2, 30_000, &[Graph, Scan]);
}

#[test]
fn walks_find_the_nearest_at_many_dimensions() {
    let more = [(768, Cosine), (1000, L2), (4096, Cosine), (4096, L2)];
    for (dim, metric) in METRICS.map(|metric| (384, metric)).into_iter().chain(more) {
        walks_at(dim, metric, GRAPH_FROM as usize, &[Graph, Scan]);
    }
}

/// With a tail that is in no graph yet, deletes and filters; more hits wanted than there are.
#[test]
fn exact_is_brute_force() {
    for (dim, metric) in METRICS.into_iter().flat_map(|by| [8, 100, 384].map(|dim| (dim, by))) {
        let mut world = World::built(dim, metric, ENOUGH);
        world.grow(400);
        world.thin(0.1);
        for asked in &world.queries(73, 6) {
            for k in [1, 10, 100, 6000] {
                world.judge(asked, &exactly(k), Accept::All);
            }
            for share in [0.001, 0.1, 0.5] {
                let mut rng = Rng(74);
                let matching: Vec<bool> = world.dead.iter().map(|_| rng.unit() < share).collect();
                both_ways(&matching, |_, accept| {
                    world.judge(asked, &exactly(10), accept);
                });
            }
        }
    }
}

#[test]
fn few_vectors_are_scanned() {
    for (count, metric) in METRICS.into_iter().flat_map(|by| [0, 1, 10, ENOUGH].map(|n| (n, by))) {
        let mut world = World::new(100, metric);
        world.grow(count);
        // Those that live are too few for a graph.
        (0..count.saturating_sub(GRAPH_FROM as usize - 1)).for_each(|n| world.kill(n));
        world.index.build(2);
        assert_eq!(world.index.graph_len(), 0);
        let asked = world.queries(75, 60);
        for k in [1, 10, 100] {
            let rate = world.recall(&asked, k, EF, &[Scan]);
            assert!(rate >= 0.99, "{metric:?}, k {k}: {rate}");
        }
    }
}

/// Tight clusters far from each other must not become islands, nor when they are thinned.
#[test]
fn nobody_is_lost_among_clusters_far_from_each_other() {
    for (metric, clusters, spread) in [(Cosine, 30, 0.4), (L2, 100, 0.3)] {
        let mut world = World::new(96, metric);
        world.mixture = Mixture::new(96, clusters, spread, 76);
        world.grow(2 * ENOUGH);
        world.index.build(2);
        world.is_whole("islands");
        world.thin(0.3);
        while world.index.build_step(&mut || true) {}
        world.is_whole("islands, thinned and repaired");
    }
}

#[test]
fn a_kill_takes_effect_at_once_and_recall_survives_replacement() {
    for metric in [Cosine, L2] {
        let mut world = World::built(100, metric, 4 * ENOUGH);
        let rate = |world: &World, paths: &[SearchPath]| {
            world.recall(&world.queries(77, 60), 10, EF, paths)
        };
        let before = rate(&world, &[Graph]);
        for n in (0..world.rows.len()).step_by(97) {
            world.kill(n);
            let own = world.ask(world.rows.row(n));
            world.judge(&own, &exactly(5), Accept::All);
            world.judge(&own, &SearchParams::new(5), Accept::All);
        }
        for round in 0..3 {
            world.thin(0.3);
            let killed = rate(&world, &[Graph, GraphThenScan]);
            world.grow(4 * ENOUGH - world.index.live() as usize);
            let beside = rate(&world, &[GraphAndScan, GraphThenScan]);
            while world.index.build_step(&mut || true) {}
            let rates = [before, killed, beside, rate(&world, &[Graph])];
            println!("{metric:?}, round {round}: before, killed, replaced, built {rates:.3?}");
            assert!(rates.iter().all(|rate| *rate >= WANTED.max(before - 0.02)), "{rates:?}");
            world.is_whole("replaced");
        }
    }
}

#[test]
fn any_number_of_threads_makes_the_same_bytes() {
    for metric in METRICS {
        let built = |build: &dyn Fn(&VectorIndex)| {
            let mut world = World::new(50, metric);
            world.grow(ENOUGH);
            (0..200).for_each(|n| world.kill(n * 5));
            build(&world.index);
            saved(&world.index)
        };
        let one = built(&|index| index.build(1));
        assert!(built(&|index| index.build(3)) == one, "{metric:?}: three threads, another graph");
        let steps = built(&|index| while index.build_step(&mut || false) {});
        assert!(steps == one, "{metric:?}: steps make another graph");
    }
}

/// What is loaded is what was saved, at once and not only after more building; and it goes on growing.
#[test]
fn a_loaded_index_answers_as_the_saved_one_and_grows() {
    for metric in METRICS {
        let mut world = World::built(60, metric, ENOUGH);
        world.thin(0.05);
        let answers = |world: &World| {
            let mut all = Vec::new();
            let matching: Vec<bool> = (0..world.rows.len()).map(|n| n % 3 == 0).collect();
            for one in world.queries(78, 60) {
                for params in [SearchParams::new(10), SearchParams::new(50), exactly(10)] {
                    let mut keep =
                        |to: Accept<'_>| all.push(world.search(&one.vector, &params, to));
                    keep(Accept::All);
                    both_ways(&matching, |_, accept| keep(accept));
                }
            }
            all.into_iter().map(|found| (found.path, found.hits)).collect::<Vec<_>>()
        };
        let (was, bytes) = (answers(&world), saved(&world.index));
        world.index = load(60, &bytes);
        assert!(answers(&world) == was && saved(&world.index) == bytes, "{metric:?} is another");
        assert_eq!((world.index.layout(), world.index.metric()), (Layout::Lean, metric));
        assert!((0..ENOUGH).all(|n| world.index.is_dead(VectorNo(n as u32)) == world.dead[n]));
        world.grow(1000);
        let tail = world.recall(&world.queries(79, 60), 10, EF, &[GraphAndScan]);
        world.index.build(2);
        let grown = world.recall(&world.queries(79, 60), 10, EF, &[Graph]);
        println!("{metric:?}: loaded and with a tail {tail:.3}, built {grown:.3}");
        assert!(tail.min(grown) >= WANTED, "{metric:?}");
        world.is_whole("loaded and grown");
    }
}

#[test]
fn a_checkpoint_is_small_and_keeps_its_layout() {
    let lean = World::built(384, Cosine, GRAPH_FROM as usize);
    let full = VectorIndex::with_layout(384, Cosine, Layout::Full, Kernels::detect());
    (0..lean.rows.len()).for_each(|n| assert_eq!(full.push(lean.rows.row(n)).0 as usize, n));
    full.build(2);
    let sizes = [(&lean.index, Layout::Lean), (&full, Layout::Full)].map(|(index, layout)| {
        let bytes = saved(index);
        let loaded = load(384, &bytes);
        assert_eq!((loaded.layout(), loaded.graph_len()), (layout, GRAPH_FROM));
        bytes.len()
    });
    // By docs/format.md, 192 bytes of codes, 16 of measure and 128 of numbers a vector, and 912 in the full layout.
    assert!(sizes[0] * 5 < sizes[1] * 2, "bytes of lean and full: {sizes:?}");
}

#[test]
fn a_checkpoint_that_is_not_whole_and_sound_is_refused() {
    let refused = |bytes: &[u8]| VectorIndex::load(8, Kernels::detect(), bytes).is_err();
    let mut world = World::new(8, L2);
    world.grow(ENOUGH);
    for covered in [0, ENOUGH] {
        let mut bytes = saved(&world.index);
        let whole = bytes.len();
        assert_eq!(load(8, &bytes).len() as usize, covered);
        assert!(VectorIndex::load(9, Kernels::detect(), &bytes).is_err(), "of other dimensions");
        // All of them at both ends and of what is small, some in the middle.
        for at in (0..whole).filter(|at| *at < 600 || whole - at < 600 || at % 397 == 0) {
            for flip in [0xFF, 1 << (at % 8)] {
                bytes[at] ^= flip;
                assert!(refused(&bytes), "byte {at} of {whole}, flipped by {flip:x}");
                bytes[at] ^= flip;
            }
        }
        for cut in (0..whole).filter(|at| *at < 300 || whole - at < 20 || at % 9973 == 0) {
            assert!(refused(&bytes[..cut]), "cut to {cut} of {whole}");
        }
        world.index.build(2);
    }
}

/// Filters that have nothing to do with the query, go with it, and go against it, over a graph some of which is dead.
#[test]
fn filters_hold_at_every_selectivity() {
    for (dim, metric) in [(64, Cosine), (100, L2)] {
        let mut world = World::built(dim, metric, 12_000);
        world.thin(0.05);
        let asked = world.queries(81, 30);
        let kinds = ["any", "near", "far"];
        for (kind, share) in (0..12).map(|n| (kinds[n / 4], [0.001, 0.01, 0.1, 0.5][n % 4])) {
            let mut rng = Rng(82);
            let rate = mean(asked.iter().flat_map(|one| {
                let mut order = one.scores.clone();
                order.sort_unstable_by(|a, b| b.total_cmp(a));
                let count = (share * order.len() as f64) as usize;
                let (near, far) = (order[count], order[order.len() - count - 1]);
                let matching = one.scores.iter().map(|score| match kind {
                    "near" => *score > near,
                    "far" => *score < far,
                    _ => rng.unit() < share,
                });
                let (matching, mut rates) = (matching.collect::<Vec<_>>(), Vec::new());
                both_ways(&matching, |_, accept| {
                    rates.push(world.judge(one, &SearchParams::new(10), accept).0);
                });
                rates
            }));
            println!("{metric:?}, {kind} {share}: {rate:.3}");
            assert!(rate >= 0.95, "{metric:?}, {kind} {share}: {rate}");
        }
        let unknown: VectorBits = (0..50).map(|n| VectorNo(world.index.len() + n * 7)).collect();
        for params in [SearchParams::new(10), exactly(10)] {
            let found = world.search(&asked[0].vector, &params, Accept::Bits(&unknown));
            assert_eq!(found.hits, [], "of numbers that nobody has pushed yet");
        }
    }
}

/// Copies, zeros and vectors along one axis, in the middle of others.
#[test]
fn odd_vectors_are_found_and_hide_nobody() {
    for metric in METRICS {
        let (dim, mut world) = (48, World::new(48, metric));
        world.grow(1);
        let copied = world.rows.row(0).to_vec();
        let along = |n: usize| {
            let value = if n.is_multiple_of(2) { 1.0 } else { -1.0 };
            (0..dim).map(|at| if at == n % dim { value } else { 0.0 }).collect::<Vec<f32>>()
        };
        for n in 0..1500 {
            world.grow(2);
            world.push(&[copied.clone(), vec![0.0; dim], along(n)][n % 3]);
        }
        let special = [copied, vec![0.0; dim], along(2), along(5)].map(|row| world.ask(&row));
        let others = world.queries(83, 60);
        // Where so many are alike a walk takes many steps, and the scan of so few may be quicker.
        for paths in [&[Scan][..], &[Graph, Scan]] {
            let beside = world.recall(&others, 10, EF, paths);
            let rates = special.each_ref().map(|one| {
                mean([1, 10, 300, 1000].into_iter().map(|k| {
                    world.judge(one, &exactly(k), Accept::All);
                    world.judge(one, &SearchParams::new(k), Accept::All).0
                }))
            });
            println!("{metric:?}, {paths:?}: odd {rates:.3?}, others {beside:.3}");
            assert!(rates.iter().all(|rate| rate.min(beside) >= WANTED), "{metric:?}: {rates:?}");
            world.index.build(3);
        }
        world.is_sound(&format!("{metric:?}"));
    }
}

/// Of lengths that are very different only sound answers are wanted, and exact ones where they are asked for.
#[test]
fn lengths_may_be_very_different() {
    for (metric, decades) in [2.0, 6.0, 30.0].into_iter().flat_map(|d| [(Dot, d), (L2, d)]) {
        let (mut world, mut rng) = (World::new(40, metric), Rng(84));
        let mut draw = |world: &World| {
            let length = 10f64.powf(decades * (rng.unit() - 0.5)) as f32;
            world.draw(&mut rng).iter().map(|x| x * length).collect::<Vec<f32>>()
        };
        (0..ENOUGH).for_each(|_| world.push(&draw(&world)));
        world.index.build(2);
        let rate = mean((0..60).map(|turn| {
            let vector = if turn % 2 == 0 { draw(&world) } else { world.rows.row(turn).to_vec() };
            let asked = world.ask(&vector);
            world.judge(&asked, &exactly(10), Accept::All);
            world.judge(&asked, &SearchParams::new(10), Accept::All).0
        }));
        println!("{metric:?}, lengths of {decades} decades: {rate:.3}");
        world.is_sound(&format!("{metric:?}, {decades}"));
    }
}
