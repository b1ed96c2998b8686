//! Which neighbour goes, against every distance computed anew.
//!
//! Invariant: the oracle shares no arithmetic with the engine but the vectors. Must not know: graphs.

use super::super::block::{DEGREE, Pen};
use super::super::choose::Scale;
use super::super::occlusion::{Neighbourhood, Occlusions};
use super::super::{Metric, VectorIndex, VectorNo};
use super::data::{Rng, Rows};
use flashbulb_kernels::Kernels;

/// Squared distance in f64.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// How occluded each of a node's neighbours is.
fn occlusions(rows: &Rows, node: u32, ids: &[u32]) -> Vec<f64> {
    let row = |id: u32| rows.row(VectorNo(id));
    let of = |id: u32| {
        let own = apart(row(node), row(id));
        let closer = ids.iter().filter(|other| apart(row(node), row(**other)) < own);
        closer.map(|other| own / apart(row(id), row(*other))).fold(0.0, f64::max)
    };
    ids.iter().map(|id| of(*id)).collect()
}

/// More than that is as much.
const MOST: f64 = 6.3;
/// Codes of 8 bits make distances a little other than they are, and steps are 1 % each.
const TOLERANCE: f64 = 1.04;

#[test]
fn the_most_occluded_goes_and_what_is_known_stays_true() {
    for (metric, seed) in [(Metric::Cosine, 1), (Metric::L2, 2)] {
        let (n, dim) = (400, 48);
        let rows = Rows::clustered(n, dim, seed);
        let index = VectorIndex::with_metric(dim, metric, Kernels::detect());
        (0..n).for_each(|at| {
            index.push(rows.row(VectorNo(at as u32)));
        });
        let scale = Scale::of(Pen::new(index.vectors.view(), index.kernels));
        let mut rng = Rng(seed);
        let (mut kept, mut fresh) = (Neighbourhood::default(), Neighbourhood::default());
        let mut ids: [u32; DEGREE] = std::array::from_fn(|at| at as u32 + 1);
        let (mut known, mut replaced) = (Occlusions::default(), 0);
        for _ in 0..600 {
            let new = 1 + rng.below(n - 1) as u32;
            kept.read(&scale, 0, &ids, known).unwrap();
            kept.offer(&scale, 0, new);
            let (before, after) = (ids, *kept.ids());
            (ids, known) = (after, kept.occlusions());
            fresh.read(&scale, 0, &ids, Occlusions::default()).unwrap();
            assert_eq!(known, fresh.occlusions(), "as if computed anew");
            if before.contains(&new) {
                assert_eq!(before, after, "it was there");
                continue;
            }
            let all: Vec<u32> = before.iter().copied().chain([new]).collect();
            let occluded = occlusions(&rows, 0, &all);
            let most = occluded.iter().copied().fold(0.0, f64::max).min(MOST);
            let gone = all.iter().position(|id| !after.contains(id)).unwrap();
            assert!(occluded[gone] * TOLERANCE >= most, "{} of {most}", occluded[gone]);
            replaced += u32::from(all[gone] != new);
            let other_slots = (0..DEGREE).filter(|slot| after[*slot] != before[*slot]).count();
            assert_eq!(other_slots, usize::from(all[gone] != new), "one slot at most");
        }
        assert!((20..580).contains(&replaced), "both happen: {replaced}");
    }
}

#[test]
fn copies_are_occluded_most() {
    let (dim, mut rng) = (32, Rng(3));
    let rows = Rows { dim, values: (0..33 * dim).map(|_| rng.normal()).collect() };
    let index = VectorIndex::with_metric(dim, Metric::L2, Kernels::detect());
    // Number 33 is a copy of number 5, and so is 34.
    let order = (0..33).chain([5, 5]).map(|at| rows.row(VectorNo(at)));
    order.for_each(|row| {
        index.push(row);
    });
    let scale = Scale::of(Pen::new(index.vectors.view(), index.kernels));
    let mut neighbourhood = Neighbourhood::default();
    let ids: [u32; DEGREE] = std::array::from_fn(|at| at as u32 + 1);
    neighbourhood.read(&scale, 0, &ids, Occlusions::default()).unwrap();
    neighbourhood.offer(&scale, 0, 33);
    assert_eq!(
        *neighbourhood.ids(),
        ids,
        "the copy of the higher number is the one that is occluded"
    );
    let with_copy = ids.map(|id| if id == 9 { 34 } else { id });
    neighbourhood.read(&scale, 0, &with_copy, Occlusions::default()).unwrap();
    assert_eq!(with_copy[neighbourhood.most_occluded()[0]], 34);
    neighbourhood.offer(&scale, 0, 9);
    assert_eq!(*neighbourhood.ids(), ids, "a copy goes before anything else");
}
