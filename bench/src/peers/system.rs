//! The systems that are measured: Flashbulb and its peers, filled with the same memories.
//!
//! Invariant: all hold the same memories, numbered alike; every index is made of vectors that were there before, so a
//! filling time has no embedding in it. Must not know loads.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use flashbulb::embed::{EmbedOptions, Embedder, Precision};
use flashbulb::provision::{Drawn, Provisioned};
use flashbulb_engine::{Seq, SpaceName, Store, StoreOptions};
use serde_json::{Value, json};

use super::process::{About, Peer, Start};
use super::result::Filled;
use crate::Failure;
use crate::caller::Target;
use crate::daemon::{self, Daemon};
use crate::data::Corpus;
use crate::feed::{Feed, Mark};
use crate::fill::{self, Place, Wanted};
use crate::recall::Rows;
use crate::run::Memory;
use crate::vectors::Vectors;

/// Which system, as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// As it is shipped
    Flashbulb,
    /// With the graph that the peers embed with
    FlashbulbF32,
    /// Chroma, a persistent client
    Chroma,
    /// LanceDB with an index
    Lancedb,
    /// LanceDB without one
    LancedbFlat,
}

impl Kind {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Flashbulb => "flashbulb",
            Kind::FlashbulbF32 => "flashbulb-f32",
            Kind::Chroma => "chroma",
            Kind::Lancedb => "lancedb",
            Kind::LancedbFlat => "lancedb-flat",
        }
    }

    /// Of Flashbulb's own.
    pub fn precision(self) -> Option<Precision> {
        match self {
            Kind::Flashbulb => Some(Precision::Auto),
            Kind::FlashbulbF32 => Some(Precision::F32),
            Kind::Chroma | Kind::Lancedb | Kind::LancedbFlat => None,
        }
    }
}

/// Which graph of the f32 model a peer embeds with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operators {
    /// Those of `com.microsoft`, as Flashbulb compiles it for itself.
    Fused,
    /// Those of ONNX alone; ONNX Runtime fuses what it recognises.
    Standard,
}

/// How a peer embeds one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedding {
    pub operators: Operators,
    pub threads: u8,
}

impl FromStr for Embedding {
    type Err = String;

    fn from_str(text: &str) -> Result<Embedding, String> {
        let wrong = || {
            format!(
                "`{text}` is no way to embed; write GRAPH:THREADS, such as fused:1 or standard:2"
            )
        };
        let (operators, threads) = text.split_once(':').ok_or_else(wrong)?;
        let operators = match operators {
            "fused" => Operators::Fused,
            "standard" => Operators::Standard,
            _ => return Err(wrong()),
        };
        let threads = threads.parse().ok().filter(|n| (1..=64).contains(n)).ok_or_else(wrong)?;
        Ok(Embedding { operators, threads })
    }
}

impl std::fmt::Display for Embedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operators = match self.operators {
            Operators::Fused => "fused",
            Operators::Standard => "standard",
        };
        write!(f, "{operators}:{}", self.threads)
    }
}

/// The files of the model that peers embed with.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    pub fused: PathBuf,
    pub standard: PathBuf,
    pub tokenizer: PathBuf,
}

impl ModelFiles {
    fn graph(&self, operators: Operators) -> &Path {
        match operators {
            Operators::Fused => &self.fused,
            Operators::Standard => &self.standard,
        }
    }
}

/// A model of Flashbulb with its vectors of all memories.
pub struct Vectored {
    pub embedder: Embedder,
    cache: PathBuf,
    /// One row for each window of each memory; the owner is the memory's number.
    pub rows: Rows,
}

impl Vectored {
    /// Embeds what the cache in `dir` lacks.
    ///
    /// # Errors
    /// What the model or the file system say.
    pub fn new(
        provisioned: &Provisioned,
        precision: Precision,
        dir: &Path,
        corpus: &Corpus,
    ) -> Result<Vectored, Failure> {
        let options = EmbedOptions { precision, ..EmbedOptions::default() };
        let embedder = Embedder::open(provisioned, &options, &Drawn::default())?;
        let cache = dir.join(format!("{precision:?}.vectors").to_lowercase());
        let vectors = Vectors::ensure(&cache, corpus.base(), &corpus.sha256, &embedder)?;
        let (mut rows, mut owners) = (Vec::new(), Vec::new());
        for memory in 0..corpus.len() {
            for row in vectors.of(memory) {
                rows.extend(row);
                owners.push(Seq(memory as u64));
            }
        }
        let rows = Rows::new(embedder.dim(), rows, owners);
        Ok(Vectored { embedder, cache, rows })
    }

    /// For each query, the memories whose vectors are nearest.
    ///
    /// # Errors
    /// What the model says.
    pub fn truth(&self, queries: &[String], k: usize) -> Result<Vec<HashSet<Seq>>, Failure> {
        Ok(self.rows.nearest(&self.embed(queries)?, k))
    }

    /// The vectors of queries.
    ///
    /// # Errors
    /// What the model says, or that a query has several windows.
    pub fn embed(&self, queries: &[String]) -> Result<Vec<Vec<f32>>, Failure> {
        let mut session = self.embedder.session()?;
        let one = |query: &String| match self.embedder.query_windows(query)?.as_slice() {
            [window] => Ok(session.embed(window)?),
            windows => Err(format!("a query has {} windows", windows.len()).into()),
        };
        queries.iter().map(one).collect()
    }
}

/// A system that runs.
pub enum Running {
    Flashbulb(Daemon),
    Peer(Peer),
}

impl Running {
    /// Where requests go.
    pub fn target(&self) -> Target {
        match self {
            Running::Flashbulb(daemon) => daemon.target(),
            Running::Peer(peer) => peer.target(),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        match self {
            Running::Flashbulb(daemon) => daemon.pid(),
            Running::Peer(peer) => peer.pid(),
        }
    }

    /// Memory in use now.
    pub fn memory(&self) -> Option<Memory> {
        match self {
            Running::Flashbulb(daemon) => daemon.memory(),
            Running::Peer(peer) => peer.memory(),
        }
    }

    /// Begins an import of `texts` that does not end by itself.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin_import(&mut self, texts: &Arc<Vec<String>>) -> Result<Importing<'_>, Failure> {
        match self {
            Running::Flashbulb(daemon) => {
                let feed = Feed::start(&daemon.target(), daemon.scratch(), Arc::clone(texts))?;
                Ok(Importing::Flashbulb(Box::new(feed)))
            }
            Running::Peer(peer) => {
                let file = peer.scratch().join("feed.txt");
                crate::space::write_lines(&file, texts.iter().cloned())?;
                peer.call::<Value>("feed.start", &json!({"texts": file}))?;
                Ok(Importing::Peer(peer))
            }
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not end cleanly.
    pub fn stop(self) -> Result<(), Failure> {
        match self {
            Running::Flashbulb(daemon) => daemon.stop().map(drop),
            Running::Peer(peer) => peer.stop(),
        }
    }
}

/// An import beside a load.
pub enum Importing<'a> {
    Flashbulb(Box<Feed>),
    Peer(&'a mut Peer),
}

/// How far an import was, and when.
pub enum At {
    Flashbulb(Mark),
    Peer(u64, Instant),
}

impl Importing<'_> {
    /// Where it is now.
    ///
    /// # Errors
    /// What the system says, or why the import ended.
    pub fn mark(&mut self) -> Result<At, Failure> {
        match self {
            Importing::Flashbulb(feed) => Ok(At::Flashbulb(feed.mark()?)),
            Importing::Peer(peer) => Ok(At::Peer(count(peer)?, Instant::now())),
        }
    }

    /// Texts a second since `at`.
    ///
    /// # Errors
    /// As [`Self::mark`].
    pub fn rate_since(&mut self, at: &At) -> Result<f64, Failure> {
        match (self, at) {
            (Importing::Flashbulb(feed), At::Flashbulb(mark)) => feed.rate_since(mark),
            (Importing::Peer(peer), At::Peer(before, then)) => {
                let added = count(peer)?.saturating_sub(*before);
                Ok(added as f64 / then.elapsed().as_secs_f64())
            }
            _ => Err("a mark of another import".into()),
        }
    }

    /// Ends it and removes what it added.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(self) -> Result<(), Failure> {
        match self {
            Importing::Flashbulb(feed) => feed.finish(),
            Importing::Peer(peer) => peer.call::<Value>("feed.stop", &json!({})).map(drop),
        }
    }
}

fn count(peer: &mut Peer) -> Result<u64, Failure> {
    let count: Value = peer.call("feed.count", &json!({}))?;
    count["added"].as_u64().ok_or_else(|| "feed.count has no `added`".into())
}

/// A system that runs and is filled.
pub struct System {
    pub kind: Kind,
    pub name: String,
    pub setup: String,
    pub versions: BTreeMap<String, String>,
    pub fill: Filled,
    pub running: Running,
    /// From what a hit's `seq` says to the memory's number; none where they are the same.
    memories: Option<HashMap<u64, u64>>,
}

impl System {
    /// The memories' numbers of a list of hits.
    pub fn memories<'a>(&'a self, hits: &'a [u64]) -> impl Iterator<Item = Seq> + 'a {
        hits.iter().map(|seq| match &self.memories {
            // A hit that is none of the memories is never right.
            Some(map) => Seq(map.get(seq).copied().unwrap_or(u64::MAX)),
            None => Seq(*seq),
        })
    }
}

/// Fills a store of Flashbulb and starts it.
///
/// # Errors
/// What the store or the daemon say.
pub fn start_flashbulb(
    kind: Kind,
    program: &Path,
    dir: &Path,
    corpus: &Corpus,
    vectored: &Vectored,
) -> Result<System, Failure> {
    let embedder = &vectored.embedder;
    let place = Place::new(Some(&dir.join(kind.name())))?;
    let wanted = Wanted {
        memories: corpus.len(),
        spaces: 1,
        data_sha256: corpus.sha256.clone(),
        model: embedder.fingerprint(),
        way: "vectors".to_owned(),
        noise: None,
    };
    let filled = fill::with_vectors(&place, &wanted, corpus, embedder, &vectored.cache)?;
    let (seconds, indexed) = filled.seconds.zip(filled.indexed_after_s).ok_or("no filling time")?;
    let memories = numbers(&place.store, embedder)?;
    let arguments = match kind.precision() {
        Some(Precision::F32) => vec!["--precision=f32".to_owned()],
        _ => Vec::new(),
    };
    let status = json!({});
    let first = ("admin.status", &status);
    let start = daemon::Start { program, store: &place.store, arguments: &arguments, first };
    let daemon = Daemon::launch(&start)?;
    let ran = embedder.ran();
    Ok(System {
        kind,
        name: kind.name().to_owned(),
        setup: format!("mode dense, model in {}, otherwise as it is shipped", ran.precision),
        versions: BTreeMap::from([("onnxruntime".to_owned(), ran.runtime)]),
        fill: Filled { seconds, indexed_after_s: indexed },
        running: Running::Flashbulb(daemon),
        memories: Some(memories),
    })
}

/// The number of the memory of each `seq`, from its id.
fn numbers(dir: &Path, embedder: &Embedder) -> Result<HashMap<u64, u64>, Failure> {
    let store = Store::open(dir, StoreOptions::new(embedder.dim(), embedder.fingerprint()))?;
    let name = fill::space_names(1).pop().ok_or("no space")?;
    let space = SpaceName::parse(&name)?;
    let (mut numbers, mut after) = (HashMap::new(), None);
    loop {
        let page = store.list(&space, None, None, after, 1000)?;
        for memory in &page.items {
            let number = memory.id.strip_prefix('m').and_then(|n| n.parse().ok());
            let number = number.ok_or_else(|| format!("memory {} has no number", memory.id))?;
            numbers.insert(memory.seq.0, number);
        }
        after = page.next;
        if after.is_none() {
            store.close()?;
            return Ok(numbers);
        }
    }
}

/// What peers are filled from.
pub struct Source {
    texts: PathBuf,
    vectors: PathBuf,
}

impl Source {
    /// Writes texts, one JSON object a line, and vectors, as NumPy reads them.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(dir: &Path, corpus: &Corpus, rows: &Rows) -> Result<Source, Failure> {
        let source = Source { texts: dir.join("texts.jsonl"), vectors: dir.join("vectors.npy") };
        let mut texts = std::io::BufWriter::new(std::fs::File::create(&source.texts)?);
        let mut last = None;
        let mut window = 0;
        for owner in rows.owners() {
            window = if last == Some(*owner) { window + 1 } else { 0 };
            last = Some(*owner);
            let text = corpus.text(usize::try_from(owner.0)?);
            writeln!(texts, "{}", json!({"id": format!("{}.{window}", owner.0), "text": text}))?;
        }
        texts.flush()?;
        write_npy(&source.vectors, rows.dim(), rows.values())?;
        Ok(source)
    }
}

/// Version 1.0 of the format: magic, length of the header, the header padded to 64 bytes, the numbers
/// (numpy.lib.format).
fn write_npy(path: &Path, dim: usize, values: &[f32]) -> Result<(), Failure> {
    let rows = values.len() / dim;
    let mut head =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    while (10 + head.len() + 1) % 64 != 0 {
        head.push(' ');
    }
    head.push('\n');
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&u16::try_from(head.len())?.to_le_bytes())?;
    out.write_all(head.as_bytes())?;
    for value in values {
        out.write_all(&value.to_le_bytes())?;
    }
    Ok(out.flush()?)
}

/// Fills a peer, and starts one process for each way to embed, each on a copy of its own.
///
/// # Errors
/// What the peer says.
pub fn start_peers(
    kind: Kind,
    python: &Path,
    dir: &Path,
    source: &Source,
    model: &ModelFiles,
    embeddings: &[Embedding],
) -> Result<Vec<System>, Failure> {
    let original = dir.join(kind.name());
    let start = |folder: &Path, embedding: Embedding| {
        Peer::start(&Start {
            python,
            peer: kind.name(),
            folder,
            graph: model.graph(embedding.operators),
            tokenizer: &model.tokenizer,
            threads: embedding.threads,
        })
    };
    let first = embeddings.first().ok_or("no way to embed")?;
    let mut peer = start(&original, *first)?;
    let files = json!({"texts": source.texts, "vectors": source.vectors});
    let filled: Value = peer.call("peer.fill", &files)?;
    let time = |name: &str| filled[name].as_f64().ok_or_else(|| format!("no {name}"));
    let fill = Filled { seconds: time("seconds")?, indexed_after_s: time("indexed_after_s")? };
    peer.stop()?;
    let mut systems = Vec::with_capacity(embeddings.len());
    for (i, embedding) in embeddings.iter().enumerate() {
        let folder = dir.join(format!("{}-{i}", kind.name()));
        fill::copy(&original, &folder)?;
        let mut peer = start(&folder, *embedding)?;
        let about: About = peer.call("peer.about", &json!({}))?;
        let version = about.versions.get(&about.package).cloned().unwrap_or_default();
        let mut versions = about.versions;
        versions.insert("python".to_owned(), about.python);
        systems.push(System {
            kind,
            name: format!("{} {embedding}", kind.name()),
            setup: format!("{} {version}: {}", about.package, about.settings),
            versions,
            fill,
            running: Running::Peer(peer),
            memories: None,
        });
    }
    Ok(systems)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ways_to_embed_are_read_as_they_are_written() {
        for text in ["fused:1", "standard:2"] {
            assert_eq!(text.parse::<Embedding>().unwrap().to_string(), text);
        }
        for bad in ["fused", "fused:0", "fused:x", "int8:1"] {
            assert!(bad.parse::<Embedding>().unwrap_err().contains("GRAPH:THREADS"), "{bad}");
        }
    }

    /// The bytes that `numpy.save` writes for the same array.
    #[test]
    fn vectors_are_written_as_numpy_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.npy");
        write_npy(&path, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let head = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }";
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(&bytes[10..10 + head.len()], head.as_bytes());
        assert_eq!((bytes[127], bytes.len()), (b'\n', 128 + 24));
        assert_eq!(&bytes[128 + 20..], 6.0f32.to_le_bytes());
    }
}
