//! The graph and its codes as bytes, and back.
//!
//! Invariants: the checksum covers every byte; bytes that pass it but do not make a sound graph are
//! refused, never followed. Must not know: files, or the numbering of memories.
//!
//! Little-endian: magic, version u32, dim u32, nodes u32, nodes when the roots were chosen u32, metric u32, factor f32,
//! roots u32, how far walks go (not in versions 3 and 4): widening f32, steps f32, nodes when that was tried u32; then the roots (u32, at most 2,048); then of all nodes the codes (i8, as many as the dimension fills), the fine codes (the
//! same; in the lean layout, which is version 6 or 4, codes of four bits, two in a byte, and no fine codes), scales (f32), bounds (f32 error, f32 norm, f32 half of the squared length), tombstones (u64 words) and neighbours (32 × u32, `u32::MAX` in empty places); then
//! the XXH3-64 of all of it. Sketches are drawn anew, as they take four times the room; until a node has its own, walks score its
//! neighbours one by one. What a scan covers is not in it: the caller has those rows.

use super::block::{DEGREE, IDS_BYTES, NONE, Pen, ids_of};
use super::fit::Fit;
use super::graph::{Graph, GraphView, Loaded};
use super::roots::{ROOTS_MAX, Roots};
use super::vectors::{Codes, Measure, UNIT_HALF_SQUARE, Vectors, code_bytes, width_of};
use super::{Layout, Metric, VectorIndex};
use crate::sync::MAX_ITEMS;
use crate::sync::shim::Mutex;
use arc_swap::ArcSwapOption;
use flashbulb_kernels::{Kernels, as_bytes, as_codes, unpack_nibbles};
use std::io::{self, Write};
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

const MAGIC: [u8; 8] = *b"FBINDEX\n";
const HEADER_BYTES: usize = 8 + 7 * 4;
/// Bytes of how far walks go.
const FIT_BYTES: usize = 12;
/// Bytes of a node's scale and bounds.
const SCALE_BYTES: usize = 4;
const BOUNDS_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 8;
/// Bytes gathered before they are hashed and written.
const BUFFER_BYTES: usize = 64 << 10;

/// Why a checkpoint was refused. Nothing is lost: build the index again from the f32 rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("index checkpoint: {what}; the index must be rebuilt from the vectors")]
pub struct LoadError {
    /// What is wrong with the bytes.
    pub what: &'static str,
}

fn refuse<T>(what: &'static str) -> Result<T, LoadError> {
    Err(LoadError { what })
}

/// Hashes what it writes.
struct Sink<'a, W: Write> {
    out: &'a mut W,
    hash: Xxh3Default,
    buffer: Vec<u8>,
}

impl<W: Write> Sink<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hash.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.out.write_all(&self.hash.digest().to_le_bytes())
    }
}

impl VectorIndex {
    /// Writes the vectors that the graph covers, and the graph. [`VectorIndex::load`] gives an
    /// index of just those; push the others again. Building waits meanwhile, searches do not.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn checkpoint(&self, out: &mut impl Write) -> io::Result<()> {
        // Holds the builder off, so that the lists belong together.
        let _no_builder = self.builder.lock();
        let graph = self.graph.load_full();
        let view = graph.as_ref().map(|graph| graph.view());
        let nodes = view.as_ref().map_or(0, GraphView::covered);
        let vectors = self.vectors.view();
        let mut sink =
            Sink { out, hash: Xxh3Default::new(), buffer: Vec::with_capacity(2 * BUFFER_BYTES) };
        sink.put(&MAGIC)?;
        let (roots, of) =
            view.as_ref().map_or((Vec::new(), 0), |view| (view.root_ids(), view.roots.of));
        let roots: Vec<u32> = roots.into_iter().filter(|id| *id < nodes).collect();
        let metric = number_of(self.metric());
        let factor = self.vectors.factor().to_bits();
        let [_, version] = versions_of(self.layout());
        for number in [version, self.dim() as u32, nodes, of, metric, factor, roots.len() as u32] {
            sink.put(&number.to_le_bytes())?;
        }
        let fit = view.as_ref().map_or(Fit::default(), |view| view.fit);
        let fitted = graph.as_ref().map_or(0, |graph| graph.fitted());
        for number in [fit.widening.to_bits(), fit.steps.to_bits(), fitted] {
            sink.put(&number.to_le_bytes())?;
        }
        for root in roots {
            sink.put(&root.to_le_bytes())?;
        }
        for (_, run) in vectors.codes.runs(0, nodes).chain(vectors.fine_runs(nodes)) {
            for row in run.chunks(BUFFER_BYTES) {
                sink.buffer.extend(row.iter().map(|code| code.cast_unsigned()));
                sink.put(&[])?;
            }
        }
        for measure in vectors.measures(0, nodes).flat_map(|(_, run)| run) {
            sink.put(&measure.scale.to_le_bytes())?;
        }
        for measure in vectors.measures(0, nodes).flat_map(|(_, run)| run) {
            sink.put(&measure.error.to_le_bytes())?;
            sink.put(&measure.norm.to_le_bytes())?;
            sink.put(&measure.half_square.to_le_bytes())?;
        }
        for at in 0..nodes.div_ceil(64) {
            let inside = (nodes - at * 64).min(64);
            let mask = u64::MAX >> (64 - inside);
            sink.put(&(vectors.dead.word(at) & mask).to_le_bytes())?;
        }
        let mut ids = [NONE; DEGREE];
        for node in 0..nodes {
            if let Some(view) = &view {
                view.neighbours(node, &mut ids);
            }
            for id in ids {
                // Nodes that are not covered yet are not in it.
                let id = if id < nodes { id } else { NONE };
                sink.put(&id.to_le_bytes())?;
            }
        }
        sink.finish()
    }

    /// The index that a checkpoint holds. Its length is the number of vectors the graph covered.
    ///
    /// # Errors
    ///
    /// If the bytes are not a whole, sound checkpoint of vectors of this dimension.
    ///
    /// # Panics
    ///
    /// If `dim` is 0.
    pub fn load(dim: usize, kernels: Kernels, bytes: &[u8]) -> Result<VectorIndex, LoadError> {
        let (header, mut body) = open(dim, bytes)?;
        let Header { nodes, of, .. } = header;
        let vectors = Vectors::new(dim, header.metric, header.layout);
        vectors.set_factor(header.factor);
        let roots = read_roots(&header, &mut body)?;
        read_vectors(&vectors, kernels, nodes as usize, &mut body)?;
        let graph = read_graph(nodes, &vectors, &mut body)?;
        let (fit, fitted) = header.fit;
        graph.set_fit(fit);
        graph.set_fitted(fitted);
        let graph = (nodes > 0).then(|| Arc::new(graph));
        let index = VectorIndex {
            kernels,
            vectors,
            graph: ArcSwapOption::new(graph.clone()),
            builder: Mutex::new(None),
        };
        if let Some(graph) = graph {
            let pen = Pen::new(index.vectors.view(), kernels);
            graph.roots.store(Arc::new(Roots::draw(pen, &roots, of)));
        }
        Ok(index)
    }
}

/// The bytes that were not read yet. Its length was checked, so running out is damage too.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], LoadError> {
        let Some((taken, rest)) = self.0.split_at_checked(bytes) else {
            return refuse("cut short");
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        self.take(N)?.try_into().or(refuse("cut short"))
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

/// What comes first.
struct Header {
    layout: Layout,
    nodes: u32,
    of: u32,
    metric: Metric,
    factor: f32,
    roots: u32,
    /// How far walks go, and how many nodes there were when that was tried.
    fit: (Fit, u32),
}

/// Checks magic, version, length and checksum.
fn open(dim: usize, bytes: &[u8]) -> Result<(Header, Body<'_>), LoadError> {
    let mut body = Body(bytes);
    if body.array()? != MAGIC {
        return refuse("not an index checkpoint");
    }
    let version = body.u32()?;
    let mut layouts = [Layout::Full, Layout::Lean].into_iter();
    let Some(layout) = layouts.find(|layout| versions_of(*layout).contains(&version)) else {
        return refuse("written by another version");
    };
    let fit_bytes = if versions_of(layout)[0] == version { 0 } else { FIT_BYTES };
    if body.u32()? as usize != dim {
        return refuse("another dimension");
    }
    let (nodes, of) = (body.u32()?, body.u32()?);
    let (metric, factor, roots) = (body.u32()?, f32::from_bits(body.u32()?), body.u32()?);
    let (codes, fine) = code_bytes(width_of(dim, layout), layout);
    let node_bytes = (codes + fine + SCALE_BYTES + BOUNDS_BYTES + IDS_BYTES) as u128;
    let whole = (HEADER_BYTES + fit_bytes + CHECKSUM_BYTES) as u128
        + u128::from(roots) * 4
        + u128::from(nodes) * node_bytes
        + u128::from(nodes.div_ceil(64)) * 8;
    if whole != bytes.len() as u128 || nodes > MAX_ITEMS {
        return refuse("another length than its header says");
    }
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if xxh3_64(content).to_le_bytes() != checksum {
        return refuse("the checksum does not match");
    }
    if !(factor.is_normal() && factor > 0.0) {
        return refuse("a factor that no index has");
    }
    if roots > ROOTS_MAX {
        return refuse("more roots than an index has");
    }
    let fit = if fit_bytes == 0 { (Fit::default(), 0) } else { read_fit(&mut body)? };
    Ok((Header { layout, nodes, of, metric: metric_of(metric)?, factor, roots, fit }, body))
}

fn read_fit(body: &mut Body<'_>) -> Result<(Fit, u32), LoadError> {
    let (widening, steps) = (f32::from_bits(body.u32()?), f32::from_bits(body.u32()?));
    let Some(fit) = Fit::read(widening, steps) else {
        return refuse("walks that go as far as none do");
    };
    Ok((fit, body.u32()?))
}

fn read_roots(header: &Header, body: &mut Body<'_>) -> Result<Vec<u32>, LoadError> {
    let roots = body.take(4 * header.roots as usize)?.as_chunks::<4>().0;
    let roots: Vec<u32> = ids_of(roots).collect();
    if roots.iter().any(|id| *id >= header.nodes) {
        return refuse("a root is out of range");
    }
    Ok(roots)
}

/// The versions of checkpoints of a layout: without and with how far walks go.
fn versions_of(layout: Layout) -> [u32; 2] {
    match layout {
        Layout::Full => [3, 5],
        Layout::Lean => [4, 6],
    }
}

/// A metric as a number.
fn number_of(metric: Metric) -> u32 {
    match metric {
        Metric::Cosine => 0,
        Metric::Dot => 1,
        Metric::L2 => 2,
    }
}

fn metric_of(number: u32) -> Result<Metric, LoadError> {
    let known = [Metric::Cosine, Metric::Dot, Metric::L2];
    match known.into_iter().find(|metric| number_of(*metric) == number) {
        Some(metric) => Ok(metric),
        None => refuse("an unknown metric"),
    }
}

fn read_vectors(
    vectors: &Vectors,
    kernels: Kernels,
    nodes: usize,
    body: &mut Body<'_>,
) -> Result<(), LoadError> {
    let (stride, fine_stride) = code_bytes(vectors.width(), vectors.layout());
    let codes = as_codes(body.take(nodes * stride)?).chunks_exact(stride);
    let mut all_fine = as_codes(body.take(nodes * fine_stride)?);
    let mut room = Vec::new();
    let scales = body.take(nodes * SCALE_BYTES)?.as_chunks::<SCALE_BYTES>().0;
    let bounds = body.take(nodes * BOUNDS_BYTES)?.as_chunks::<4>().0.as_chunks::<3>().0;
    let dead = body.take(nodes.div_ceil(64) * 8)?.as_chunks::<8>().0;
    for (codes, (scale, bounds)) in codes.zip(scales.iter().zip(bounds)) {
        let fine = all_fine.split_off(..fine_stride).unwrap_or_default();
        let scale = f32::from_le_bytes(*scale);
        let [error, norm, half_square] = bounds.map(f32::from_le_bytes);
        let whole = match vectors.layout() {
            Layout::Full => codes,
            Layout::Lean => {
                room.clear();
                unpack_nibbles(as_bytes(codes), &mut room);
                &room
            }
        };
        let code_norm = (kernels.dot_i8(whole, whole) as f32).sqrt() * scale;
        let halved = match vectors.metric() {
            Metric::Cosine => half_square == UNIT_HALF_SQUARE,
            Metric::Dot | Metric::L2 => {
                (half_square * 2.0 - norm * norm).abs() <= norm * norm * 1e-2 + 1e-12
            }
        };
        // The triangle inequality. Written so that it refuses what is not a number.
        let sound = scale > 0.0
            && error >= 0.0
            && (code_norm - norm).abs() <= error + norm * 1e-3
            && halved;
        if !sound {
            return refuse("codes and norm of a vector disagree");
        }
        vectors.push_codes(Codes { codes, fine }, Measure { scale, error, norm, half_square });
    }
    for (at, word) in dead.iter().enumerate() {
        let mut bits = u64::from_le_bytes(*word);
        while bits != 0 {
            let number = at as u32 * 64 + bits.trailing_zeros();
            if number as usize >= nodes {
                return refuse("a tombstone is out of range");
            }
            vectors.dead().kill(number);
            bits &= bits - 1;
        }
    }
    Ok(())
}

fn read_graph(nodes: u32, vectors: &Vectors, body: &mut Body<'_>) -> Result<Graph, LoadError> {
    let lists = body.take(nodes as usize * IDS_BYTES)?;
    let is_lean = vectors.layout() == Layout::Lean;
    let mut loaded: Vec<[[u8; 4]; DEGREE]> = Vec::new();
    loaded.reserve_exact(if is_lean { 0 } else { nodes as usize });
    let graph = Graph::new(vectors.width(), vectors.layout());
    for (node, list) in (0..).zip(lists.as_chunks::<4>().0.as_chunks::<DEGREE>().0) {
        let ids = list.map(u32::from_le_bytes);
        if ids.iter().any(|id| *id != NONE && *id >= nodes) {
            return refuse("a neighbour is out of range");
        }
        let alone = ids.iter().all(|id| *id == NONE);
        let is_vacant = alone && vectors.dead().is_dead(node);
        if is_vacant {
            graph.add_vacant(1);
        }
        if is_lean && !is_vacant {
            // There is no more to a block than this.
            let mut slot = graph.blocks.reserve();
            slot.bytes_mut().copy_from_slice(list.as_flattened());
            graph.blocks.push(slot);
        } else {
            graph.blocks.push_vacant();
        }
        if !is_lean {
            loaded.push(*list);
        }
    }
    if !is_lean {
        graph.loaded.store(Some(Arc::new(Loaded(loaded))));
    }
    graph.cover(nodes);
    Ok(graph)
}
