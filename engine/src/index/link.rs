//! Linking nodes: a node's own choice, the links back to it, and nodes that nothing leads to.
//!
//! Invariants: a block is published after all nodes it leads to; on return of [`Linker::adopt`] no node of which it was told is
//! without a link to it, if another can be made. Must not know: batches' sizes, deletes, checkpoints.

use super::block::{Block, DEGREE, NONE, Pen};
use super::choose::{Choice, Scale, Scored, order};
use super::graph::Graph;
use super::occlusion::{Neighbourhood, Occlusions};
use super::repair::{Mend, Repair};
use super::vectors::{QueryCodes, Sought};
use super::walk::{Reach, Trail, Walk};
use super::{SearchParams, VectorIndex, VectorNo};
use crate::sync::shim::{AtomicU32, Ordering};
use std::ops::Range;
use std::sync::Arc;

/// Steps to a node's place: what they expand it chooses its neighbours from. Measured on 100,000 × 384: 200 instead of 128 takes a fifth off the steps to
/// recall@10 0.98, for a half more building.
pub(super) const EF_CONSTRUCTION: usize = 200;

/// The graph and what only its builder knows of it.
#[derive(Debug)]
pub(super) struct Linker {
    pub(super) graph: Arc<Graph>,
    /// Links that lead to each node.
    in_degree: Vec<u32>,
    /// Occlusions of each node's neighbours, as far as they are known.
    occlusions: Vec<Occlusions>,
    /// Nodes that lost the last link to them, or never had one.
    orphans: Vec<u32>,
    scratches: Vec<Scratch>,
}

/// What one thread builds with.
#[derive(Debug, Default)]
struct Scratch {
    query: QueryCodes,
    /// Room for the codes of the node.
    room: Vec<i8>,
    trail: Trail,
    candidates: Vec<Scored>,
    choice: Choice,
    mend: Mend,
    neighbourhood: Neighbourhood,
}

/// A node that chose its neighbours.
#[derive(Debug)]
pub(super) struct Joined {
    neighbours: Vec<u32>,
    /// The first so many of them are to lead back.
    diverse: usize,
    /// Its block; none if it was dead when its turn came.
    block: Option<Vec<u8>>,
}

/// Nodes that are to be linked from one.
#[derive(Debug)]
pub(super) struct LinkBack {
    target: u32,
    nodes: Vec<u32>,
}

/// What a node's block lost and gained.
#[derive(Debug)]
pub(super) struct Change {
    node: u32,
    removed: Vec<u32>,
    added: Vec<u32>,
    /// What is known of its neighbours now.
    occlusions: Occlusions,
}

impl Change {
    fn none(node: u32) -> Change {
        let occlusions = Occlusions::default();
        Change { node, removed: Vec::new(), added: Vec::new(), occlusions }
    }
}

/// The links back that a batch from `first` on asks for, by the nodes they go out from.
pub(super) fn group_by_target(first: u32, joined: &[Joined]) -> Vec<LinkBack> {
    let mut pairs: Vec<(u32, u32)> = (first..)
        .zip(joined)
        .flat_map(|(node, joined)| {
            joined.neighbours[..joined.diverse].iter().map(move |t| (*t, node))
        })
        .collect();
    pairs.sort_unstable();
    pairs
        .chunk_by(|a, b| a.0 == b.0)
        .map(|pairs| LinkBack { target: pairs[0].0, nodes: pairs.iter().map(|p| p.1).collect() })
        .collect()
}

impl Linker {
    /// Takes over the building of a graph.
    pub(super) fn new(graph: Arc<Graph>) -> Linker {
        let mut in_degree = vec![0; graph.len() as usize];
        let view = graph.view();
        let mut ids = [NONE; DEGREE];
        for node in 0..view.len() {
            let n = view.neighbours(node, &mut ids);
            for id in &ids[..n] {
                if let Some(degree) = in_degree.get_mut(*id as usize) {
                    *degree += 1;
                }
            }
        }
        drop(view);
        let occlusions = vec![Occlusions::default(); in_degree.len()];
        Linker { graph, in_degree, occlusions, orphans: Vec::new(), scratches: Vec::new() }
    }

    /// Gives each number of a range to one of the threads; the results in the order of the numbers.
    fn each<T: Send>(
        &mut self,
        range: Range<usize>,
        threads: usize,
        work: impl Fn(&mut Scratch, usize) -> T + Sync,
    ) -> Vec<T> {
        let threads = threads.clamp(1, range.len().max(1));
        if self.scratches.len() < threads {
            self.scratches.resize_with(threads, Scratch::default);
        }
        if threads == 1 {
            let scratch = &mut self.scratches[0];
            return range.map(|at| work(scratch, at)).collect();
        }
        // Written by all threads: each takes the next number. Relaxed: the threads' end publishes what they made. No model: a count.
        let next = AtomicU32::new(0);
        let (from, len) = (range.start, range.len());
        let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
            let (next, work) = (&next, &work);
            let running: Vec<_> = self.scratches[..threads]
                .iter_mut()
                .map(|scratch| {
                    scope.spawn(move || {
                        let take = || next.fetch_add(1, Ordering::Relaxed) as usize;
                        std::iter::repeat_with(take)
                            .take_while(|at| *at < len)
                            .map(|at| (from + at, work(scratch, from + at)))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            running
                .into_iter()
                .flat_map(|thread| match thread.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        done.sort_unstable_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, made)| made).collect()
    }

    /// Lets nodes that are not in the graph yet choose their neighbours in it.
    pub(super) fn choose(
        &mut self,
        index: &VectorIndex,
        nodes: Range<u32>,
        threads: usize,
    ) -> Vec<Joined> {
        let graph = Arc::clone(&self.graph);
        let view = graph.view();
        let vectors = index.vectors.view();
        let walk = Walk { graph: &view, vectors, kernels: index.kernels };
        let pen = Pen::new(vectors, index.kernels);
        self.each(nodes.start as usize..nodes.end as usize, threads, |scratch, node| {
            let node = node as u32;
            if vectors.dead.is_dead(node) {
                return Joined { neighbours: Vec::new(), diverse: 0, block: None };
            }
            scratch.find(&walk, node);
            scratch.candidates.retain(|c| !vectors.dead.is_dead(c.0));
            let Scratch { candidates, choice, .. } = scratch;
            let scale = Scale { vectors, kernels: index.kernels, walked: Some(&view) };
            scale.choose(candidates, choice);
            let mut block = vec![0; pen.block_bytes()];
            pen.draw(Some(node), &choice.ids, &mut block);
            Joined { neighbours: choice.ids.clone(), diverse: choice.diverse, block: Some(block) }
        })
    }

    /// Publishes the blocks of nodes that chose, as the next ones of the graph.
    pub(super) fn publish(&mut self, joined: &[Joined]) {
        for one in joined {
            let node = self.graph.len();
            self.in_degree.push(0);
            self.occlusions.push(Occlusions::default());
            let Some(block) = &one.block else {
                self.graph.blocks.push_vacant();
                self.graph.add_vacant(1);
                continue;
            };
            let mut slot = self.graph.blocks.reserve();
            slot.bytes_mut().copy_from_slice(block);
            self.graph.blocks.push(slot);
            one.neighbours.iter().for_each(|id| self.in_degree[*id as usize] += 1);
            self.orphans.push(node);
        }
    }

    /// Makes links back, each group into one new block.
    pub(super) fn link_back(&mut self, index: &VectorIndex, back: &[LinkBack], threads: usize) {
        let graph = Arc::clone(&self.graph);
        let vectors = index.vectors.view();
        let occlusions = std::mem::take(&mut self.occlusions);
        let changes = self.each(0..back.len(), threads, |scratch, at| {
            let known = occlusions[back[at].target as usize];
            let pen = Pen::new(vectors, index.kernels);
            link_one(&graph, pen, &back[at], known, scratch)
        });
        self.occlusions = occlusions;
        self.count(changes.into_iter().flatten());
    }

    /// Keeps account of links that came and went.
    pub(super) fn count(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.occlusions[change.node as usize] = change.occlusions;
            change.added.iter().for_each(|id| self.in_degree[*id as usize] += 1);
            for id in &change.removed {
                let degree = &mut self.in_degree[*id as usize];
                *degree = degree.saturating_sub(1);
                if *degree == 0 {
                    self.orphans.push(*id);
                }
            }
        }
    }

    /// Links nodes that nothing leads to from the closest of their own neighbours, in the place of a neighbour of that one
    /// that others lead to as well.
    pub(super) fn adopt(&mut self, index: &VectorIndex) {
        let pen = Pen::new(index.vectors.view(), index.kernels);
        let mut orphans = std::mem::take(&mut self.orphans);
        orphans.sort_unstable();
        orphans.dedup();
        let mut own = [NONE; DEGREE];
        for orphan in orphans.drain(..) {
            if self.in_degree[orphan as usize] > 0 || pen.vectors.dead.is_dead(orphan) {
                continue;
            }
            let n = self.graph.view().neighbours(orphan, &mut own);
            if !own[..n].iter().any(|parent| self.adopt_by(pen, *parent, orphan)) {
                self.adopt_by_any(index, orphan);
            }
        }
        self.orphans = orphans;
    }

    /// Links a node from the closest that a walk finds and that can.
    pub(super) fn adopt_by_any(&mut self, index: &VectorIndex, orphan: u32) {
        let graph = Arc::clone(&self.graph);
        let vectors = index.vectors.view();
        let mut scratch = self.scratches.pop().unwrap_or_default();
        {
            let view = graph.view();
            scratch.find(&Walk { graph: &view, vectors, kernels: index.kernels }, orphan);
        }
        let pen = Pen::new(vectors, index.kernels);
        let live = scratch.candidates.iter().filter(|c| !vectors.dead.is_dead(c.0));
        let _ = live.into_iter().any(|parent| self.adopt_by(pen, parent.0, orphan));
        self.scratches.push(scratch);
    }

    fn adopt_by(&mut self, pen: Pen<'_>, parent: u32, orphan: u32) -> bool {
        let graph = Arc::clone(&self.graph);
        let view = graph.view();
        let Some(old) = view.block(parent) else { return false };
        let mut neighbours: Vec<u32> = old.ids().collect();
        if let Ok(ids) = <[u32; DEGREE]>::try_from(&neighbours[..]) {
            let mut neighbourhood = Neighbourhood::default();
            let known = self.occlusions[parent as usize];
            if neighbourhood.read(&Scale::of(pen), parent, &ids, known).is_none() {
                return false;
            }
            let has_others = |slot: &usize| self.in_degree[ids[*slot] as usize] > 1;
            let Some(spare) = neighbourhood.most_occluded().into_iter().find(has_others) else {
                return false;
            };
            neighbours[spare] = orphan;
        } else {
            neighbours.push(orphan);
        }
        let change = change(&graph, pen, parent, old, &neighbours);
        self.count(change);
        true
    }

    /// Replaces the dead neighbours of some nodes.
    pub(super) fn mend(
        &mut self,
        index: &VectorIndex,
        repair: &Repair,
        nodes: Range<u32>,
        threads: usize,
    ) {
        let graph = Arc::clone(&self.graph);
        let pen = Pen::new(index.vectors.view(), index.kernels);
        let changes =
            self.each(nodes.start as usize..nodes.end as usize, threads, |scratch, node| {
                repair.mend(&graph, pen, node as u32, &mut scratch.mend)
            });
        self.count(changes.into_iter().flatten());
    }

    /// Gives back the blocks of nodes that nothing needs any more.
    pub(super) fn vacate(&mut self, nodes: &[u32]) {
        let graph = Arc::clone(&self.graph);
        let mut ids = [NONE; DEGREE];
        for node in nodes {
            let view = graph.view();
            if view.block(*node).is_none() {
                continue;
            }
            let n = view.neighbours(*node, &mut ids);
            drop(view);
            graph.blocks.vacate(*node);
            graph.add_vacant(1);
            self.count([Change { removed: ids[..n].to_vec(), ..Change::none(*node) }]);
        }
    }

    /// What a search for a live node's vector would meet if the node were not there. None of others.
    pub(super) fn look_around<T>(
        &mut self,
        index: &VectorIndex,
        node: u32,
        reach: Reach,
        met: impl FnOnce(&Trail) -> T,
    ) -> Option<T> {
        let returnable = |node| !index.is_dead(VectorNo(node));
        let (sought, reach) = (Sought::ByQuery, reach.hiding(node));
        self.walk_to(index, node, sought, &reach, &returnable, |scratch| met(&scratch.trail))
    }

    /// Whether a walk finds a live node by itself; whatever is as close will do. `true` of others.
    pub(super) fn finds(&mut self, index: &VectorIndex, node: u32) -> bool {
        let reach = Reach::of(1, SearchParams::DEFAULT_EF as f32, EF_CONSTRUCTION, true);
        let vectors = index.vectors.view();
        let mut room = Vec::new();
        let Some((measure, codes)) = vectors.row(node, &mut room) else { return true };
        let is_found = |scratch: &Scratch| {
            let own = index.kernels.dot_i8(codes, codes);
            let own = scratch.query.score(&vectors, measure, own);
            scratch.trail.scored.iter().any(|one| one.node == node || one.score >= own)
        };
        let found = self.walk_to(index, node, Sought::Nearest, &reach, &|_| true, is_found);
        found.unwrap_or(true)
    }

    /// Walks to a live node that has a block, by its codes. None of others.
    fn walk_to<T>(
        &mut self,
        index: &VectorIndex,
        node: u32,
        sought: Sought,
        reach: &Reach,
        returnable: &dyn Fn(u32) -> bool,
        met: impl FnOnce(&Scratch) -> T,
    ) -> Option<T> {
        let graph = Arc::clone(&self.graph);
        let vectors = index.vectors.view();
        let view = graph.view();
        if vectors.dead.is_dead(node) || view.block(node).is_none() {
            return None;
        }
        let mut scratch = self.scratches.pop().unwrap_or_default();
        let Scratch { query, room, trail, .. } = &mut scratch;
        query.set_coded(&vectors, vectors.row(node, room)?, sought, index.kernels);
        let walk = Walk { graph: &view, vectors, kernels: index.kernels };
        walk.run(query, reach, returnable, trail);
        let met = met(&scratch);
        self.scratches.push(scratch);
        Some(met)
    }

    /// Gives loaded nodes their blocks, from node `from` on, at most `most`; returns how far it came.
    pub(super) fn draw_loaded(
        &mut self,
        index: &VectorIndex,
        from: u32,
        most: u32,
        threads: usize,
    ) -> u32 {
        let graph = Arc::clone(&self.graph);
        let Some(loaded) = graph.loaded.load_full() else { return graph.len() };
        let to = from.saturating_add(most).min(loaded.0.len() as u32);
        let pen = Pen::new(index.vectors.view(), index.kernels);
        let known = self.each(from as usize..to as usize, threads, |scratch, node| {
            let ids: Vec<u32> = super::block::ids_of(&loaded.0[node]).collect();
            let node = node as u32;
            // A dead one without neighbours leads nowhere, and nothing needs it.
            if !ids.is_empty() || !pen.vectors.dead.is_dead(node) {
                let mut slot = graph.blocks.reserve();
                pen.draw(Some(node), &ids, slot.bytes_mut());
                graph.blocks.replace(node, slot);
            }
            // Now that the neighbours' codes are at hand: else whoever joins next computes it for 32 nodes.
            let full = <[u32; DEGREE]>::try_from(ids).ok()?;
            let neighbourhood = &mut scratch.neighbourhood;
            neighbourhood.read(&Scale::of(pen), node, &full, Occlusions::default())?;
            Some(neighbourhood.occlusions())
        });
        for (occlusions, known) in self.occlusions[from as usize..].iter_mut().zip(known) {
            *occlusions = known.unwrap_or_default();
        }
        if to as usize == loaded.0.len() {
            graph.loaded.store(None);
            return graph.len();
        }
        to
    }
}

impl Scratch {
    /// Makes what a walk to a node expands the candidates, best first.
    fn find(&mut self, walk: &Walk<'_>, node: u32) {
        self.candidates.clear();
        let Some(own) = walk.vectors.row(node, &mut self.room) else {
            return;
        };
        self.query.set_coded(&walk.vectors, own, Sought::Nearest, walk.kernels);
        let all = |_| true;
        walk.run(&self.query, &Reach::steps(EF_CONSTRUCTION), &all, &mut self.trail);
        let found = self.trail.scored.iter().filter(|one| one.node != node);
        self.candidates.extend(found.map(|one| (one.node, -one.half_distance)));
        order(&mut self.candidates);
    }
}

/// Makes the links of one target.
fn link_one(
    graph: &Graph,
    pen: Pen<'_>,
    back: &LinkBack,
    known: Occlusions,
    scratch: &mut Scratch,
) -> Option<Change> {
    let view = graph.view();
    let old = view.block(back.target)?;
    let had: Vec<u32> = old.ids().collect();
    let is_dead = |id: u32| pen.vectors.dead.is_dead(id);
    let has_dead = had.iter().any(|id| is_dead(*id));
    let Scratch { mend, neighbourhood, .. } = scratch;
    if let Ok(full) = <[u32; DEGREE]>::try_from(&had[..])
        && !has_dead
    {
        let scale = Scale::of(pen);
        neighbourhood.read(&scale, back.target, &full, known)?;
        back.nodes.iter().for_each(|node| neighbourhood.offer(&scale, back.target, *node));
        let change = change(graph, pen, back.target, old, neighbourhood.ids());
        let change = change.unwrap_or_else(|| Change::none(back.target));
        return Some(Change { occlusions: neighbourhood.occlusions(), ..change });
    }
    // A dead neighbour keeps nobody out: least of all the vector that was put in its place.
    let wanted = mend.choose(pen, &view, back.target, &back.nodes, &is_dead)?;
    change(graph, pen, back.target, old, wanted)
}

/// Publishes other neighbours of a node, if they are others.
pub(super) fn change(
    graph: &Graph,
    pen: Pen<'_>,
    node: u32,
    old: Block<'_>,
    wanted: &[u32],
) -> Option<Change> {
    let had: Vec<u32> = old.ids().collect();
    let only_in = |a: &[u32], b: &[u32]| a.iter().copied().filter(|id| !b.contains(id)).collect();
    let (removed, added): (Vec<u32>, Vec<u32>) = (only_in(&had, wanted), only_in(wanted, &had));
    if removed.is_empty() && added.is_empty() {
        return None;
    }
    let mut slot = graph.blocks.reserve();
    pen.redraw(node, old, wanted, slot.bytes_mut());
    graph.blocks.replace(node, slot);
    Some(Change { removed, added, ..Change::none(node) })
}
