//! Graphs as the index builds them, and graphs with one thing wrong.

use super::super::graph::Graph;
use super::super::{Audit, VectorIndex, VectorNo};
use super::data::{Rows, build};
use crate::sync::Links;
use std::sync::Arc;

/// The index of `rows` with this graph in the place of its own.
fn with(rows: &Rows, graph: Graph) -> VectorIndex {
    let index = rows.index();
    index.graph.store(Some(Arc::new(graph)));
    index
}

/// A ring of `n` nodes on the base level, the first also on level 1.
fn ring(n: u32) -> Graph {
    let graph = Graph::default();
    for node in 0..n {
        let next = [(node + 1) % n];
        if node == 0 {
            graph.push(1, &next, &[Vec::new()]);
        } else {
            graph.push(0, &next, &[]);
        }
    }
    graph.entry.store(0, 1);
    graph
}

fn problems(graph: Graph) -> Vec<String> {
    with(&Rows::clustered(8, 8, 1), graph).audit().problems
}

#[test]
fn what_the_index_builds_is_sound() {
    let rows = Rows::clustered(5_000, 32, 46);
    let index = rows.graphed();
    let audit = index.audit();
    assert_eq!((audit.nodes, audit.unreachable, &audit.problems[..]), (5_000, 0, &[][..]));
    assert!(audit.links > 5_000 * 8, "{}", audit.links);
    for n in (0..5_000).filter(|n| n % 3 == 0) {
        index.kill(VectorNo(n));
    }
    assert_eq!(index.audit().problems, [""; 0]);
    build(&index);
    let audit = index.audit();
    assert_eq!((audit.nodes, audit.unreachable, &audit.problems[..]), (5_000, 0, &[][..]));
    assert_eq!(Rows::clustered(10, 8, 1).index().audit(), Audit::default());
}

#[test]
fn vectors_that_were_dead_before_they_joined_are_not_missed() {
    let rows = Rows::clustered(40, 8, 47);
    let index = rows.index();
    (0..40).for_each(|n| assert!(index.kill(VectorNo(n))));
    while index.build_from(0, &mut || true) {}
    let audit = index.audit();
    assert_eq!((audit.nodes, audit.unreachable, &audit.problems[..]), (40, 0, &[][..]));
}

#[test]
fn a_sound_ring_has_no_problem() {
    assert_eq!(problems(ring(8)), [""; 0]);
}

#[test]
fn each_thing_that_is_wrong_is_named() {
    let base = |node: u32, links: &[u32]| {
        let graph = ring(8);
        graph.base.get(node).unwrap().replace(links);
        problems(graph)
    };
    assert_eq!(base(3, &[4, 3]), ["node 3 links to itself on level 0 (3)"]);
    assert_eq!(base(3, &[4, 8]), ["node 3 links to no node on level 0 (8)"]);
    assert_eq!(base(3, &[4, 4]), ["node 3 links to the same node twice on level 0 (4)"]);

    let graph = ring(8);
    graph.upper.get(0).unwrap().replace(&[5]);
    let found = problems(graph);
    assert_eq!(found, ["node 0 links to a node that does not reach this level on level 1 (5)"]);

    let graph = ring(8);
    graph.entry.store(2, 0);
    assert_eq!(problems(graph), ["the entry point 2 is on level 0, the highest is 1"]);
    let graph = ring(8);
    graph.entry.store(9, 1);
    assert_eq!(problems(graph), ["the entry point 9 is not a node"]);

    let graph = Graph::default();
    graph.push(0, &[], &[]);
    assert_eq!(problems(graph), ["there are live nodes and no entry point"]);
    assert_eq!(problems(ring(9)), ["the graph has 9 nodes, there are 8 vectors"]);

    let graph = ring(8);
    graph.heads.push(super::super::graph::NodeHead { first_upper: 7, level: 2 });
    graph.base.push(Links::new(&[]));
    let found = with(&Rows::clustered(9, 8, 1), graph).audit();
    assert_eq!(
        found.problems,
        [
            "node 8 has no list on level 1",
            "node 8 has no list on level 2",
            "the entry point 0 is on level 1, the highest is 2"
        ]
    );
}

#[test]
fn a_live_vector_that_no_link_leads_to_is_counted() {
    let graph = ring(8);
    graph.base.get(3).unwrap().replace(&[0]);
    let index = with(&Rows::clustered(8, 8, 1), graph);
    assert_eq!((index.audit().unreachable, index.audit().problem_count), (4, 0));
    index.kill(VectorNo(7));
    assert_eq!(index.audit().unreachable, 3, "a dead one is not missed");
}
