//! Searches with filters over one graph of clustered vectors: recall at every selectivity, where the filter has nothing to do with the
//! query, goes with it, and goes against it.
//!
//! The oracle is `oracle`: brute force over the f32 rows, in f64. The tests print the recalls they measure:
//!
//!     cargo test -p flashbulb-engine --test filters -- --nocapture
//!
//! `FLASHBULB_FILTERS_SCALE=10` makes the graph ten times as large (16,000 vectors without it).
#![allow(clippy::unwrap_used)]

mod oracle;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use flashbulb_engine::index::{
    Accept, GRAPH_FROM, Scratch, SearchParams, SearchPath, SearchResult, VectorBits, VectorIndex,
    VectorNo,
};
use flashbulb_kernels::Kernels;
use oracle::{Mixture, Recall, Rng, Rows, Truth, both_ways, check_exact, judge, plain, rounding};

const DIM: usize = 64;
const CLUSTERS: usize = 300;
const QUERIES: usize = 50;
const SELECTIVITIES: [f64; 7] = [0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0];
const WANTED: f64 = 0.95;

/// The vectors, their clusters, a random order of them, and the graph over all of them.
struct World {
    mixture: Mixture,
    rows: Rows,
    clusters: Vec<usize>,
    shuffled: Vec<usize>,
    index: VectorIndex,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let count = 16_000 * oracle::scale("FLASHBULB_FILTERS_SCALE");
    let mixture = Mixture::new(DIM, CLUSTERS, 0.7, 1);
    let (mut rng, mut rows, mut clusters) = (Rng(2), Rows::new(DIM), Vec::new());
    let index = VectorIndex::new(DIM, Kernels::detect());
    for _ in 0..count {
        let (cluster, row) = mixture.draw(&mut rng);
        index.push(&row);
        rows.push(&row);
        clusters.push(cluster);
    }
    index.build(2);
    let mut shuffled: Vec<usize> = (0..count).collect();
    for at in (1..count).rev() {
        shuffled.swap(at, rng.below(at + 1));
    }
    World { mixture, rows, clusters, shuffled, index }
});

/// A query that is in no index, with the products of all rows and their ranks by these, the best first.
struct Asked {
    number: usize,
    cluster: usize,
    vector: Vec<f32>,
    scores: Vec<f64>,
    ranks: Vec<usize>,
}

impl World {
    fn queries(&self, seed: u64, count: usize) -> Vec<Asked> {
        let mut rng = Rng(seed);
        let asked = (0..count).map(|number| {
            let (cluster, vector) = self.mixture.draw(&mut rng);
            let scores = self.rows.scores(&vector);
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_unstable_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let mut ranks = vec![0; order.len()];
            order.iter().enumerate().for_each(|(rank, n)| ranks[*n] = rank);
            Asked { number, cluster, vector, scores, ranks }
        });
        asked.collect()
    }

    /// The graph with nothing deleted.
    fn whole(&self) -> View<'_> {
        View { index: &self.index, rows: &self.rows, dead: &[] }
    }
}

/// An index as its searches are checked: rows, and which of them are dead (none where the list is empty).
struct View<'a> {
    index: &'a VectorIndex,
    rows: &'a Rows,
    dead: &'a [bool],
}

impl View<'_> {
    fn search(&self, asked: &Asked, params: &SearchParams, accept: Accept<'_>) -> SearchResult {
        let scratch = &mut Scratch::new();
        let Ok(found) = self.index.search(&asked.vector, params, self.rows, accept, scratch);
        found
    }

    fn may(&self, matching: &[bool], n: u32) -> bool {
        matching[n as usize] && !self.dead.get(n as usize).copied().unwrap_or(false)
    }

    /// Searches with one filter, as a set and as a test, and adds both to the table.
    fn try_filter(
        &self,
        table: &mut Table,
        name: &str,
        asked: &Asked,
        matching: &[bool],
        k: usize,
    ) {
        let may = |n: u32| self.may(matching, n);
        let truth = Truth::new(&asked.scores, k, may);
        both_ways(matching, |form, accept| {
            let found = self.search(asked, &SearchParams::new(k), accept);
            let right = judge(&found, &asked.scores, &truth, rounding(DIM), may);
            let right =
                right.unwrap_or_else(|why| panic!("{name}, {form}, query {}: {why}", asked.number));
            table.add(&format!("{name}, {form}"), &found, right, &truth);
        });
    }

    /// The same on demand of an exact answer.
    fn check_exact(&self, asked: &Asked, matching: &[bool], k: usize) {
        let may = |n: u32| self.may(matching, n);
        let truth = Truth::new(&asked.scores, k, may);
        both_ways(matching, |form, accept| {
            let params = SearchParams { exact: true, ..SearchParams::new(k) };
            let found = self.search(asked, &params, accept);
            assert_eq!(found.path, SearchPath::Scan);
            check_exact(&plain(&found), &asked.scores, &truth, rounding(DIM), may).unwrap_or_else(
                |why| panic!("{form} of {} matches, query {}: {why}", truth.matches, asked.number),
            );
        });
    }
}

/// How the vectors that match lie to the query.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Anywhere.
    Independent,
    /// The nearest ones.
    Nearest,
    /// The farthest ones.
    Farthest,
    /// Anywhere, but for the query's own cluster.
    OtherClusters,
    /// All of the query's own cluster, whatever the selectivity.
    OwnCluster,
    /// The nearest of those behind the nearest tenth, which does not match.
    Ring,
}

impl Kind {
    const SIZED: [Kind; 4] =
        [Kind::Independent, Kind::Nearest, Kind::Farthest, Kind::OtherClusters];
    const ALL: [Kind; 6] = [
        Kind::Independent,
        Kind::Nearest,
        Kind::Farthest,
        Kind::OtherClusters,
        Kind::OwnCluster,
        Kind::Ring,
    ];

    /// Which vectors match, `selectivity` of them, at least one.
    fn matching(self, world: &World, asked: &Asked, selectivity: f64) -> Vec<bool> {
        let count = world.rows.len();
        let wanted = ((selectivity * count as f64).round() as usize).clamp(1, count);
        let in_cluster = |n: &usize| world.clusters[*n] == asked.cluster;
        let mut matching = vec![false; count];
        // Another part of the same order for each query.
        let shuffled = world.shuffled.iter().cycle().skip(asked.number * 997).take(count).copied();
        let mut mark =
            |chosen: &mut dyn Iterator<Item = usize>| chosen.for_each(|n| matching[n] = true);
        let ranked = |from: usize, to: usize| {
            (0..count).filter(move |n| (from..to).contains(&asked.ranks[*n]))
        };
        match self {
            Kind::Independent => mark(&mut shuffled.take(wanted)),
            Kind::Nearest => mark(&mut ranked(0, wanted)),
            Kind::Farthest => mark(&mut ranked(count - wanted, count)),
            Kind::OtherClusters => mark(&mut shuffled.filter(|n| !in_cluster(n)).take(wanted)),
            Kind::OwnCluster => mark(&mut (0..count).filter(in_cluster)),
            Kind::Ring => mark(&mut ranked(count / 10, count / 10 + wanted)),
        }
        matching
    }
}

/// One cell of the table: what was found, by which paths, at which cost.
#[derive(Default)]
struct Cell {
    recall: Recall,
    worst: Option<f64>,
    matches: usize,
    paths: BTreeMap<String, usize>,
    visited: u64,
    scanned: u64,
    searches: usize,
}

impl Cell {
    fn add(&mut self, found: &SearchResult, right: usize, truth: &Truth) {
        self.recall.add(right, truth);
        let own = if truth.best.is_empty() { 1.0 } else { right as f64 / truth.best.len() as f64 };
        self.worst = Some(self.worst.map_or(own, |worst| worst.min(own)));
        self.matches += truth.matches;
        *self.paths.entry(format!("{:?}", found.path)).or_default() += 1;
        self.visited += found.visited;
        self.scanned += found.scanned;
        self.searches += 1;
    }

    fn print(&self, name: &str) {
        let mean = |sum: f64| sum / self.searches as f64;
        println!(
            "{name:<44} recall {:.4} (worst query {:.2})  matches {:>8.1}  visited {:>6.1}  scanned {:>8.1}  {:?}",
            self.recall.rate(),
            self.worst.unwrap_or(1.0),
            mean(self.matches as f64),
            mean(self.visited as f64),
            mean(self.scanned as f64),
            self.paths
        );
    }
}

/// Cells by name; those with too little recall are named together, so that one run shows all of them.
#[derive(Default)]
struct Table(BTreeMap<String, Cell>);

impl Table {
    fn add(&mut self, name: &str, found: &SearchResult, right: usize, truth: &Truth) {
        self.0.entry(name.into()).or_default().add(found, right, truth);
    }

    fn judge(&self) {
        self.0.iter().for_each(|(name, cell)| cell.print(name));
        let low: Vec<String> = self
            .0
            .iter()
            .filter(|(_, cell)| cell.recall.rate() < WANTED)
            .map(|(name, cell)| format!("{name}: {:.4}", cell.recall.rate()))
            .collect();
        assert!(low.is_empty(), "recall below {WANTED}: {low:#?}");
    }
}

#[test]
fn recall_holds_at_every_selectivity_with_and_against_the_query() {
    let world = &*WORLD;
    let mut table = Table::default();
    for asked in world.queries(3, QUERIES) {
        for kind in Kind::SIZED {
            for selectivity in SELECTIVITIES {
                let matching = kind.matching(world, &asked, selectivity);
                let name = format!("{kind:?} {:6.2} %", selectivity * 100.0);
                world.whole().try_filter(&mut table, &name, &asked, &matching, 10);
            }
        }
        let own = Kind::OwnCluster.matching(world, &asked, 1.0);
        world.whole().try_filter(&mut table, "OwnCluster", &asked, &own, 10);
        let truth = Truth::new(&asked.scores, 10, |_| true);
        let found = world.whole().search(&asked, &SearchParams::new(10), Accept::All);
        let right = judge(&found, &asked.scores, &truth, rounding(DIM), |_| true).unwrap();
        table.add("no filter", &found, right, &truth);
        assert_eq!(found.path, SearchPath::Graph, "the graph covers all of {}", world.index.len());
    }
    table.judge();
}

/// Filters that many vectors pass, but not those that a walk meets first.
#[test]
fn recall_holds_where_the_nearest_do_not_match() {
    let world = &*WORLD;
    let mut table = Table::default();
    for asked in world.queries(3, QUERIES) {
        for (kind, shares) in
            [(Kind::Ring, &SELECTIVITIES[..]), (Kind::Farthest, &[0.3, 0.7, 0.9, 0.99])]
        {
            for selectivity in shares {
                let matching = kind.matching(world, &asked, *selectivity);
                for k in [1, 10, 100] {
                    let name = format!("{kind:?} {:6.2} %, k {k:3}", selectivity * 100.0);
                    world.whole().try_filter(&mut table, &name, &asked, &matching, k);
                }
            }
        }
    }
    table.judge();
}

#[test]
fn recall_holds_for_one_hit_and_for_a_hundred() {
    let world = &*WORLD;
    let mut table = Table::default();
    for asked in world.queries(4, QUERIES) {
        for kind in Kind::SIZED {
            for selectivity in [0.001, 0.05, 0.5] {
                let matching = kind.matching(world, &asked, selectivity);
                for k in [1, 100] {
                    let name = format!("{kind:?} {:6.2} %, k {k:3}", selectivity * 100.0);
                    world.whole().try_filter(&mut table, &name, &asked, &matching, k);
                }
            }
        }
    }
    table.judge();
}

/// The same graph with a third of its vectors deleted: every sixth cluster whole, and a fifth of the others.
fn with_a_third_deleted(world: &World) -> (VectorIndex, Vec<bool>) {
    let mut bytes = Vec::new();
    world.index.checkpoint(&mut bytes).unwrap();
    let index = VectorIndex::load(DIM, Kernels::detect(), &bytes).unwrap();
    let mut rng = Rng(5);
    let dead: Vec<bool> =
        world.clusters.iter().map(|cluster| cluster % 6 == 0 || rng.unit() < 0.2).collect();
    for n in (0..dead.len()).filter(|n| dead[*n]) {
        assert!(index.kill(VectorNo(n as u32)));
    }
    let live = dead.iter().filter(|dead| !**dead).count();
    assert_eq!(index.live() as usize, live);
    (index, dead)
}

#[test]
fn recall_holds_with_a_third_deleted() {
    let world = &*WORLD;
    let (index, dead) = with_a_third_deleted(world);
    let view = View { index: &index, rows: &world.rows, dead: &dead };
    let mut table = Table::default();
    for stage in ["just deleted", "repaired"] {
        if stage == "repaired" {
            while index.build_step(&mut || true) {}
            let audit = index.audit();
            assert!(audit.problems.is_empty(), "{audit:?}");
            println!("unreachable after the repair: {}", audit.unreachable);
        }
        for asked in world.queries(6, QUERIES) {
            for kind in Kind::SIZED {
                for selectivity in [0.001, 0.05, 0.5, 1.0] {
                    let matching = kind.matching(world, &asked, selectivity);
                    let name = format!("{stage}, {kind:?} {:5.1} %", selectivity * 100.0);
                    view.try_filter(&mut table, &name, &asked, &matching, 10);
                }
            }
            let own = Kind::OwnCluster.matching(world, &asked, 1.0);
            view.try_filter(&mut table, &format!("{stage}, OwnCluster"), &asked, &own, 10);
        }
    }
    table.judge();
}

#[test]
fn exact_is_brute_force() {
    let world = &*WORLD;
    let (thinned, dead) = with_a_third_deleted(world);
    let views = [world.whole(), View { index: &thinned, rows: &world.rows, dead: &dead }];
    for asked in world.queries(7, 20) {
        for view in &views {
            for kind in Kind::ALL {
                for (selectivity, k) in
                    [(0.0001, 10), (0.01, 1), (0.05, 100), (0.5, 10), (1.0, 1000)]
                {
                    let matching = kind.matching(world, &asked, selectivity);
                    view.check_exact(&asked, &matching, k);
                }
            }
        }
    }
}

#[test]
fn a_filter_that_nothing_passes_finds_nothing() {
    let world = &*WORLD;
    let asked = &world.queries(8, 1)[0];
    for exact in [false, true] {
        let params = SearchParams { exact, ..SearchParams::new(10) };
        both_ways(&vec![false; world.rows.len()], |_, accept| {
            assert_eq!(world.whole().search(asked, &params, accept).hits, []);
        });
        // Numbers that nobody has pushed yet, as in a set that is ahead of the index.
        let unknown: VectorBits = (0..50).map(|n| VectorNo(world.index.len() + n * 7)).collect();
        assert_eq!(world.whole().search(asked, &params, Accept::Bits(&unknown)).hits, []);
    }
}

/// An index that grows and shrinks, and which of its vectors are dead.
struct Growing {
    mixture: Mixture,
    rng: Rng,
    rows: Rows,
    dead: Vec<bool>,
    index: VectorIndex,
    recall: Recall,
    paths: BTreeMap<String, usize>,
}

impl Growing {
    fn new() -> Growing {
        Growing {
            mixture: Mixture::new(DIM, 100, 0.7, 10),
            rng: Rng(11),
            rows: Rows::new(DIM),
            dead: Vec::new(),
            index: VectorIndex::new(DIM, Kernels::detect()),
            recall: Recall::default(),
            paths: BTreeMap::new(),
        }
    }

    fn push(&mut self, count: usize) {
        for _ in 0..count {
            let (_, row) = self.mixture.draw(&mut self.rng);
            assert_eq!(self.index.push(&row).0 as usize, self.rows.len());
            self.rows.push(&row);
            self.dead.push(false);
        }
    }

    fn kill(&mut self, count: usize) {
        let live: Vec<usize> = (0..self.dead.len()).filter(|n| !self.dead[*n]).collect();
        let from = self.rng.below(live.len() - count);
        // Some together, as they were pushed, and the others anywhere.
        let (together, apart) = (count / 2, count - count / 2);
        let mut chosen: Vec<usize> = live[from..from + together].to_vec();
        chosen.extend((0..apart).map(|_| live[self.rng.below(live.len())]));
        for n in chosen {
            assert_eq!(self.index.kill(VectorNo(n as u32)), !self.dead[n]);
            self.dead[n] = true;
        }
    }

    /// Nothing is built, a little, or all there is.
    fn upkeep(&mut self, how: usize) {
        let mut turns = how % 3 * 5;
        match how % 3 {
            2 => self.index.build(1),
            _ => drop(self.index.build_step(&mut || {
                turns = turns.saturating_sub(1);
                turns > 0
            })),
        }
    }

    /// Searches for vectors that are in the index, that are dead, and that are neither.
    fn check(&mut self, when: &str) {
        let view = View { index: &self.index, rows: &self.rows, dead: &self.dead };
        assert_eq!(self.index.live() as usize, self.dead.iter().filter(|dead| !**dead).count());
        for turn in 0..12 {
            let count = self.rows.len();
            let vector = match turn % 4 {
                0 => self.rows.row(count - 1 - self.rng.below(200)).to_vec(),
                1 => self.rows.row(self.rng.below(count)).to_vec(),
                _ => self.mixture.draw(&mut self.rng).1,
            };
            let scores = self.rows.scores(&vector);
            let asked = Asked { number: turn, cluster: 0, vector, scores, ranks: Vec::new() };
            let may = |n: u32| !self.dead[n as usize];
            let truth = Truth::new(&asked.scores, 10, may);
            let found = view.search(&asked, &SearchParams::new(10), Accept::All);
            let right = judge(&found, &asked.scores, &truth, rounding(DIM), may)
                .unwrap_or_else(|why| panic!("{when}: {why}"));
            self.recall.add(right, &truth);
            *self.paths.entry(format!("{:?}", found.path)).or_default() += 1;
            view.check_exact(&asked, &vec![true; count], 10);
        }
    }
}

#[test]
fn crossing_the_border_of_the_graph_loses_and_invents_nothing() {
    let border = GRAPH_FROM as usize;
    let mut growing = Growing::new();
    let mut turn = 0;
    for (from, to) in
        [(0, border + 900), (border + 900, border - 900), (border - 900, border + 1500)]
    {
        let mut live = from;
        while live != to {
            // Small steps next to the border.
            let step = if live.abs_diff(border) <= 300 { 60 } else { 300 }.min(live.abs_diff(to));
            if to > from {
                growing.push(step)
            } else {
                growing.kill(step)
            }
            live = growing.index.live() as usize;
            if to < from && live < to {
                break;
            }
            growing.check(&format!("{live} live, not built"));
            growing.upkeep(turn);
            growing.check(&format!("{live} live, upkeep {}", turn % 3));
            if to > from && from == 0 && live < border {
                assert_eq!(growing.index.graph_len(), 0, "{live} live");
            }
            turn += 1;
        }
    }
    growing.index.build(2);
    growing.check("at the end");
    assert_eq!(growing.index.graph_len(), growing.index.len());
    println!("recall {:.4} of {}, {:?}", growing.recall.rate(), growing.recall.of, growing.paths);
    assert!(growing.recall.rate() >= WANTED, "{:?}", growing.recall);
    for path in ["Scan", "Graph", "GraphAndScan"] {
        assert!(growing.paths.contains_key(path), "{path} never ran: {:?}", growing.paths);
    }
}
