//! The graph and its codes as bytes, and back.
//!
//! Invariants: the checksum covers every byte; bytes that pass it but do not make a sound graph are
//! refused, never followed. Must not know: files, or the numbering of memories.
//!
//! Little-endian: magic, version u32, dim u32, nodes u32, upper lists u32, entry u64; then of all
//! nodes the codes (i8), scales (f32), bounds (f32 error, f32 norm), tombstones (u64 words), levels
//! (u8), base lists (32 × u32, `u32::MAX` after the last); then the upper lists (16 × u32); then
//! the XXH3-64 of all of it. What a scan covers is not in it: the caller has those rows.

use super::VectorIndex;
use super::graph::{Graph, M, M_BASE, MAX_LEVEL};
use super::vectors::{Bounds, Vectors};
use crate::sync::shim::Mutex;
use crate::sync::{Links, MAX_ITEMS};
use arc_swap::ArcSwapOption;
use flashbulb_kernels::Kernels;
use std::io::{self, Write};
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

const MAGIC: [u8; 8] = *b"FBINDEX\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 * 4 + 8;
const CHECKSUM_BYTES: usize = 8;
const NO_ENTRY: u64 = u64::MAX;
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
        let graph = self.graph.load_full().unwrap_or_default();
        let view = graph.view();
        let nodes = view.len();
        let vectors = self.vectors.view();
        let mut sink =
            Sink { out, hash: Xxh3Default::new(), buffer: Vec::with_capacity(2 * BUFFER_BYTES) };
        sink.put(&MAGIC)?;
        for number in [VERSION, self.dim() as u32, nodes, graph.upper.len()] {
            sink.put(&number.to_le_bytes())?;
        }
        let entry = view.entry.map_or(NO_ENTRY, |(n, l)| u64::from(l) << 32 | u64::from(n));
        sink.put(&entry.to_le_bytes())?;
        for code in vectors.codes.runs(0, nodes).flat_map(|(_, run)| run.chunks(vectors.dim)) {
            sink.buffer.extend(code.iter().map(|c| c.cast_unsigned()));
            sink.put(&[])?;
        }
        for scale in vectors.scales.runs(0, nodes).flat_map(|(_, run)| run) {
            sink.put(&scale.to_le_bytes())?;
        }
        for bounds in vectors.bounds.runs(0, nodes).flat_map(|(_, run)| run) {
            sink.put(&bounds.error.to_le_bytes())?;
            sink.put(&bounds.norm.to_le_bytes())?;
        }
        for at in 0..nodes.div_ceil(64) {
            let inside = (nodes - at * 64).min(64);
            let mask = u64::MAX >> (64 - inside);
            sink.put(&(vectors.dead.word(at) & mask).to_le_bytes())?;
        }
        for head in (0..nodes).filter_map(|node| graph.heads.get(node)) {
            sink.put(&[head.level])?;
        }
        for links in (0..nodes).filter_map(|node| graph.base.get(node)) {
            put_links(&mut sink, links)?;
        }
        for links in (0..graph.upper.len()).filter_map(|at| graph.upper.get(at)) {
            put_links(&mut sink, links)?;
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
        let nodes = header.nodes as usize;
        let vectors = read_vectors(dim, kernels, nodes, &mut body)?;
        let graph = read_graph(&header, &vectors, &mut body)?;
        let graph = (nodes > 0).then(|| Arc::new(graph));
        Ok(VectorIndex {
            kernels,
            vectors,
            graph: ArcSwapOption::new(graph),
            builder: Mutex::new(None),
        })
    }
}

fn put_links<W: Write, const N: usize>(sink: &mut Sink<'_, W>, links: &Links<N>) -> io::Result<()> {
    let mut ids = [0; N];
    let n = links.read(&mut ids);
    ids[n..].fill(u32::MAX);
    for id in ids {
        sink.put(&id.to_le_bytes())?;
    }
    Ok(())
}

struct Header {
    nodes: u32,
    upper: u32,
    entry: u64,
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

    fn links<const N: usize>(&mut self, nodes: u32) -> Result<Links<N>, LoadError> {
        let mut ids = [0; N];
        let mut n = 0;
        for (at, id) in self.take(N * 4)?.as_chunks().0.iter().enumerate() {
            let id = u32::from_le_bytes(*id);
            if id == u32::MAX {
                continue;
            }
            if n < at {
                return refuse("a neighbour follows the end of its list");
            }
            if id >= nodes {
                return refuse("a neighbour is out of range");
            }
            ids[n] = id;
            n += 1;
        }
        Ok(Links::new(&ids[..n]))
    }
}

/// Checks magic, version, length and checksum.
fn open(dim: usize, bytes: &[u8]) -> Result<(Header, Body<'_>), LoadError> {
    let mut body = Body(bytes);
    if body.array()? != MAGIC {
        return refuse("not an index checkpoint");
    }
    if body.u32()? != VERSION {
        return refuse("unknown version");
    }
    if body.u32()? as usize != dim {
        return refuse("another dimension");
    }
    let header =
        Header { nodes: body.u32()?, upper: body.u32()?, entry: u64::from_le_bytes(body.array()?) };
    let node_bytes = dim as u128 + 4 + 8 + 1 + 4 * M_BASE as u128;
    let whole = (HEADER_BYTES + CHECKSUM_BYTES) as u128
        + u128::from(header.nodes) * node_bytes
        + u128::from(header.nodes.div_ceil(64)) * 8
        + u128::from(header.upper) * 4 * M as u128;
    if whole != bytes.len() as u128 || header.nodes > MAX_ITEMS {
        return refuse("another length than its header says");
    }
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if xxh3_64(content).to_le_bytes() != checksum {
        return refuse("the checksum does not match");
    }
    Ok((header, body))
}

fn read_vectors(
    dim: usize,
    kernels: Kernels,
    nodes: usize,
    body: &mut Body<'_>,
) -> Result<Vectors, LoadError> {
    let codes = body.take(nodes * dim)?;
    let scales = body.take(nodes * 4)?.as_chunks::<4>().0;
    let bounds = body.take(nodes * 8)?.as_chunks::<8>().0;
    let dead = body.take(nodes.div_ceil(64) * 8)?.as_chunks::<8>().0;
    let vectors = Vectors::new(dim);
    let mut row = Vec::with_capacity(dim);
    for ((codes, scale), bounds) in codes.chunks_exact(dim).zip(scales).zip(bounds) {
        row.clear();
        row.extend(codes.iter().map(|c| c.cast_signed()));
        let (error, norm) = bounds.split_at(4);
        let float = |b: &[u8]| b.try_into().map_or(f32::NAN, f32::from_le_bytes);
        let (scale, error, norm) = (f32::from_le_bytes(*scale), float(error), float(norm));
        let code_norm = (kernels.dot_i8(&row, &row) as f32).sqrt() * scale;
        // The triangle inequality. Written so that it refuses what is not a number.
        let sound = scale > 0.0 && error >= 0.0 && (code_norm - norm).abs() <= error + norm * 1e-3;
        if !sound {
            return refuse("codes and norm of a vector disagree");
        }
        vectors.push_codes(&row, scale, Bounds { error, norm });
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
    Ok(vectors)
}

fn read_graph(header: &Header, vectors: &Vectors, body: &mut Body<'_>) -> Result<Graph, LoadError> {
    let nodes = header.nodes;
    let levels = body.take(nodes as usize)?;
    if levels.iter().any(|&level| level > MAX_LEVEL) {
        return refuse("a node's level is out of range");
    }
    if levels.iter().map(|&level| u64::from(level)).sum::<u64>() != u64::from(header.upper) {
        return refuse("levels and upper lists disagree");
    }
    let base = body.take(nodes as usize * 4 * M_BASE)?;
    let mut base = Body(base);
    let entry = (header.entry as u32, (header.entry >> 32) as u8);
    let graph = Graph::default();
    let mut empty = [0; M_BASE];
    for (node, &level) in (0..nodes).zip(levels) {
        let links = base.links::<M_BASE>(nodes)?;
        let linked = links.read(&mut empty) > 0 || (header.entry != NO_ENTRY && entry.0 == node);
        if !linked && vectors.dead().is_dead(node) {
            graph.push_skipped();
            continue;
        }
        let upper = (0..level).map(|_| body.links::<M>(nodes)).collect::<Result<Vec<_>, _>>()?;
        graph.push_links(level, links, upper);
    }
    if header.entry != NO_ENTRY {
        if header.entry >> 40 != 0 || levels.get(entry.0 as usize) != Some(&entry.1) {
            return refuse("the entry point is not a node of its level");
        }
        graph.entry.store(entry.0, entry.1);
    }
    if body.0.len() != CHECKSUM_BYTES {
        return refuse("levels and upper lists disagree");
    }
    Ok(graph)
}
