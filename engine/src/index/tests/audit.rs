//! Graphs as the index builds them, and graphs with one thing wrong.

use super::super::block::{IDS_BYTES, Pen};
use super::super::graph::Graph;
use super::super::link::Linker;
use super::super::roots::Roots;
use super::super::survey::Survey;
use super::super::{Audit, VectorIndex, VectorNo};
use super::data::{Rows, build};
use std::sync::Arc;

/// An index of 8 vectors with a graph of as many nodes as there are lists, whose walks begin at `root`.
fn with(root: u32, lists: &[&[u32]]) -> VectorIndex {
    let index = Rows::clustered(8, 8, 1).index();
    let graph = Graph::new(index.vectors.width(), index.layout());
    let pen = Pen::new(index.vectors.view(), index.kernels);
    for (node, links) in (0..).zip(lists) {
        let mut slot = graph.blocks.reserve();
        pen.draw(Some(node), links, slot.bytes_mut());
        // Numbers that are no vector's are not drawn, so they are written by hand.
        for (at, id) in links.iter().enumerate() {
            put_id(slot.bytes_mut(), at, *id);
        }
        graph.blocks.push(slot);
    }
    let pen = pen.for_roots();
    let mut bytes = vec![0; pen.block_bytes()];
    pen.draw(None, &[root], &mut bytes);
    put_id(&mut bytes, 0, root);
    graph.roots.store(Arc::new(Roots { bytes, count: 1, of: 8, ..Roots::default() }));
    graph.cover(graph.len());
    index.graph.store(Some(Arc::new(graph)));
    index
}

/// Writes a number into a slot, which the end of a block holds.
fn put_id(block: &mut [u8], slot: usize, id: u32) {
    let ids = block.len() - IDS_BYTES;
    block[ids + 4 * slot..ids + 4 * slot + 4].copy_from_slice(&id.to_le_bytes());
}

/// A ring of 8 nodes, one of which leads elsewhere.
fn ring(but: u32, links: &[u32]) -> VectorIndex {
    let next: Vec<[u32; 1]> = (0..8).map(|node| [(node + 1) % 8]).collect();
    let mut lists: Vec<&[u32]> = next.iter().map(<[u32; 1]>::as_slice).collect();
    lists[but as usize] = links;
    with(0, &lists)
}

fn problems(index: &VectorIndex) -> Vec<String> {
    index.audit().problems
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
    while index.build_from(0, 1, &mut || true) {}
    let audit = index.audit();
    assert_eq!((audit.nodes, audit.unreachable, &audit.problems[..]), (40, 0, &[][..]));
}

#[test]
fn a_sound_ring_has_no_problem() {
    let audit = ring(0, &[1]).audit();
    assert_eq!((audit.links, audit.unreachable, &audit.problems[..]), (8, 0, &[][..]));
}

#[test]
fn each_thing_that_is_wrong_is_named() {
    assert_eq!(problems(&ring(3, &[4, 3])), ["node 3 links to itself (3)"]);
    assert_eq!(problems(&ring(3, &[4, 8])), ["node 3 links to no node (8)"]);
    assert_eq!(problems(&ring(3, &[4, 4])), ["node 3 links to the same node twice (4)"]);
    let lists: Vec<&[u32]> = vec![&[1], &[0]];
    assert_eq!(problems(&with(2, &lists)), ["the root 2 is not a node"]);
    let lists: Vec<&[u32]> = vec![&[1]; 9];
    assert_eq!(
        problems(&with(0, &lists)),
        ["the graph has 9 nodes, there are 8 vectors", "node 1 links to itself (1)"]
    );
    let index = ring(0, &[1]);
    index.graph.load_full().unwrap().blocks.vacate(5);
    assert_eq!(problems(&index), ["node 5 is live and has no block"]);
    index.kill(VectorNo(5));
    assert_eq!(problems(&index), [""; 0]);
}

#[test]
fn a_live_vector_that_no_link_leads_to_is_counted() {
    let index = ring(3, &[0]);
    assert_eq!((index.audit().unreachable, index.audit().problem_count), (4, 0));
    index.kill(VectorNo(7));
    assert_eq!(index.audit().unreachable, 3, "a dead one is not missed");
}

#[test]
fn a_survey_links_who_was_not_reached_and_says_how_many() {
    // Nobody leads to 5, and only 5 to 6 and 7.
    let index = with(0, &[&[1], &[2], &[3], &[4], &[0], &[6], &[7], &[0]]);
    assert_eq!(index.audit().unreachable, 3);
    let graph = index.graph.load_full().unwrap();
    let mut linker = Linker::new(Arc::clone(&graph));
    let mut survey = Some(Survey::new(&graph));
    while let Some(one) = survey {
        survey = one.advance(&mut linker, &index);
    }
    assert_eq!((index.audit().unreachable, index.linked_by_survey()), (0, 1));
}
