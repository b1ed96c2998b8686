//! `peers`: Flashbulb and other vector stores in the same harness: the same memories, questions, arrivals and model.
//!
//! Invariant: all systems are asked the same queries at the same moments of each block, none twice of one system; they take
//! turns block by block, and each block begins with another one, so that what drifts hits all alike. All of them run all
//! the time and are idle while it is another's turn.
//!
//! Peers embed with the f32 graph that Flashbulb compiles: ONNX Runtime as it is published runs it. The int8 graph needs an
//! operator of Flashbulb's own and is for Flashbulb alone, so Flashbulb is measured in f32 too.

mod process;
mod result;
mod show;
mod system;
mod turns;

use std::path::{Path, PathBuf};

use flashbulb::embed::Precision;
use flashbulb::provision::{self, Drawn, Provisioned};

use crate::data::{Corpus, QUERY_TOKENS};
use crate::environment::{self, Environment};
use crate::machine::Machine;
use crate::run::Data;
use crate::{Common, Failure, daemon, setup};
use result::{Comparison, Found, SCHEMA, Scenario};
use system::{Embedding, Kind, ModelFiles, Source, System, Vectored};
use turns::Turns;

/// What is installed for the peers.
const PINS: [(&str, &str); 5] = [
    ("chromadb", "1.5.9"),
    ("lancedb", "0.40.0"),
    ("numpy", "2.4.6"),
    ("onnxruntime", "1.32.0"),
    ("tokenizers", "0.23.3"),
];
/// Texts whose vectors are compared before anything is measured.
const MODEL_CHECKS: usize = 20;
/// A peer whose vectors are further from ours than this embeds with another model.
const LEAST_COSINE: f64 = 0.9999;

/// Options of `peers`.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Flashbulb; the program built beside this one if left out
    #[arg(long)]
    program: Option<PathBuf>,
    /// The interpreter that makes the Python environment of the peers
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Keep the Python environment in this folder, and use the one that is there; one in the user's cache if left out
    #[arg(long)]
    env: Option<PathBuf>,
    /// What is measured, in this order
    #[arg(long, value_delimiter = ',', default_values = ["flashbulb", "flashbulb-f32", "chroma", "lancedb", "lancedb-flat"])]
    systems: Vec<Kind>,
    /// How peers embed a text, as GRAPH:THREADS, a process for each: `fused` is the f32 graph that Flashbulb compiles for
    /// itself, `standard` the same model in standard operators
    #[arg(long, value_delimiter = ',', default_values = ["fused:1", "fused:2"])]
    embed: Vec<Embedding>,
    /// Memories of each system
    #[arg(long, default_value_t = 10_000)]
    memories: usize,
    /// Keep the vectors of the texts in this folder, and use those that are there
    #[arg(long)]
    vectors_cache: Option<PathBuf>,
    /// Searches a second, open loop, Poisson
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Seconds of load on each system, beside nothing
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Seconds of load on each system, beside an import; 0 leaves it out
    #[arg(long, default_value_t = 60.0)]
    seconds_import: f64,
    /// Turns that each system has in those seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    blocks: u16,
    /// Hits asked for
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    k: u16,
    /// Connections that share the load
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// What an answer must not take longer than to be in time
    #[arg(long, default_value_t = 10.0)]
    promise_ms: f64,
    /// A request without an answer for so long is a miss
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
    /// Answers of each system compared with brute force
    #[arg(long, default_value_t = 1_000)]
    recall_queries: usize,
    /// Write peers.json and peers.md into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Options {
    fn check(&self) -> Result<(), Failure> {
        let positive = |what: &str, v: f64, least: f64| -> Result<(), Failure> {
            if v.is_finite() && v >= least {
                Ok(())
            } else {
                Err(format!("{what} is {v}, it must be at least {least}").into())
            }
        };
        positive("--rate", self.rate, 0.1)?;
        positive("--seconds", self.seconds, 0.1)?;
        positive("--seconds-import", self.seconds_import, 0.0)?;
        positive("--promise-ms", self.promise_ms, 0.001)?;
        if self.common.precision != crate::Precision::Auto {
            return Err("--precision does not go with peers; name flashbulb, flashbulb-f32 or both with --systems".into());
        }
        if self.memories == 0 {
            return Err("--memories must be at least 1".into());
        }
        let mut twice = self.systems.iter().enumerate();
        if let Some((_, kind)) = twice.find(|(i, kind)| self.systems[..*i].contains(kind)) {
            return Err(format!("--systems names {} twice", kind.name()).into());
        }
        Ok(())
    }
}

/// Runs `peers`.
///
/// # Errors
/// What Python, pip, the peers, Flashbulb, the data or the model say.
pub fn run(options: &Options) -> Result<(), Failure> {
    options.check()?;
    let begun_at = jiff::Timestamp::now();
    let machine = Machine::read();
    println!("{}\n", machine.line());
    let program = daemon::program(options.program.as_deref())?;
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out).map_err(|e| format!("cannot make {}: {e}", out.display()))?;
    }
    let dir = options.env.clone().map_or_else(|| environment::default_dir("peers", "--env"), Ok)?;
    let environment = environment::ensure(&options.python, &dir, &PINS)?;
    show::print_environment(&environment, &dir);
    let common = &options.common;
    let corpus = Corpus::read(common.data.as_deref(), options.memories, common.seed)?;
    if corpus.len() > corpus.real() {
        return Err(format!(
            "{} has {} lines to remember besides those held out for queries; --memories must not be more",
            corpus.source,
            corpus.real()
        )
        .into());
    }
    let provisioned = provision::ensure(&provision::Wanted::default(), &Drawn::default())?;
    let place = Arranged::new(options, &provisioned, &corpus)?;
    let mut systems = place.start(options, &program, &environment, &corpus)?;
    let cosines = check_models(&mut systems, &place.f32, &corpus)?;

    let own = |kind: Kind| place.own(kind);
    let mut turns = Turns::new(options, &corpus, &place.f32.embedder)?;
    let mut found = turns.measure(&mut systems, &own)?;
    let queries = turns.queries();
    for (found, cosine) in found.iter_mut().zip(cosines) {
        found.least_cosine = cosine;
    }
    for system in systems {
        system.running.stop()?;
    }
    let scenario = scenario(options, &place)?;
    let comparison = Comparison {
        schema: SCHEMA,
        begun_at: begun_at.to_string(),
        command: setup::command(),
        seed: common.seed,
        machine,
        program: setup::describe(&program, &[])?,
        environment,
        data: data(&corpus, queries),
        notes: notes(&found, queries),
        scenario,
        systems: found,
    };
    show::print(&comparison);
    match &options.out {
        Some(out) => show::write(&comparison, out),
        None => Ok(()),
    }
}

/// What systems are filled from, and where.
struct Arranged {
    f32: Vectored,
    /// Of Flashbulb as it is shipped, where that is measured.
    shipped: Option<Vectored>,
    model: ModelFiles,
    source: Source,
    dir: tempfile::TempDir,
}

impl Arranged {
    fn new(
        options: &Options,
        provisioned: &Provisioned,
        corpus: &Corpus,
    ) -> Result<Arranged, Failure> {
        let dir = tempfile::tempdir()?;
        let cache = options.vectors_cache.clone().unwrap_or_else(|| dir.path().join("vectors"));
        std::fs::create_dir_all(&cache)
            .map_err(|e| format!("cannot make {}: {e}", cache.display()))?;
        let f32 = Vectored::new(provisioned, Precision::F32, &cache, corpus)?;
        let wanted = options.systems.contains(&Kind::Flashbulb);
        let shipped = wanted
            .then(|| Vectored::new(provisioned, Precision::Auto, &cache, corpus))
            .transpose()?;
        let standard = f32.embedder.standard_graph()?.ok_or("the model has no standard graph")?;
        let fused = f32.embedder.graph().to_owned();
        let tokenizer = provisioned.model_dir.join("tokenizer.json");
        let model = ModelFiles { fused, standard, tokenizer };
        let source = Source::write(dir.path(), corpus, &f32.rows)?;
        Ok(Arranged { f32, shipped, model, source, dir })
    }

    /// The vectors that a system holds.
    fn own(&self, kind: Kind) -> &Vectored {
        match (kind, &self.shipped) {
            (Kind::Flashbulb, Some(shipped)) => shipped,
            _ => &self.f32,
        }
    }

    fn start(
        &self,
        options: &Options,
        program: &Path,
        environment: &Environment,
        corpus: &Corpus,
    ) -> Result<Vec<System>, Failure> {
        let (dir, python) = (self.dir.path(), &environment.python);
        let mut systems = Vec::new();
        for kind in &options.systems {
            eprintln!("filling {}", kind.name());
            if kind.precision().is_some() {
                let own = self.own(*kind);
                systems.push(system::start_flashbulb(*kind, program, dir, corpus, own)?);
            } else {
                let (source, model) = (&self.source, &self.model);
                let embed = &options.embed;
                systems.extend(system::start_peers(*kind, python, dir, source, model, embed)?);
            }
        }
        Ok(systems)
    }
}

/// The least cosine between each peer's vectors and ours of the same texts.
fn check_models(
    systems: &mut [System],
    f32: &Vectored,
    corpus: &Corpus,
) -> Result<Vec<Option<f64>>, Failure> {
    let one_window = |t: &&String| matches!(f32.embedder.query_windows(t), Ok(w) if w.len() == 1);
    let texts: Vec<String> =
        corpus.held_out().iter().filter(one_window).take(MODEL_CHECKS).cloned().collect();
    let ours = f32.embed(&texts)?;
    let mut cosines = Vec::with_capacity(systems.len());
    for system in systems {
        let system::Running::Peer(peer) = &mut system.running else {
            cosines.push(None);
            continue;
        };
        let mut least = f64::INFINITY;
        for (text, ours) in texts.iter().zip(&ours) {
            let theirs: Embedded = peer.call("peer.embed", &serde_json::json!({"text": text}))?;
            least = least.min(cosine(ours, &theirs.vector));
        }
        if least < LEAST_COSINE {
            return Err(format!(
                "{} embeds with another model: the least cosine to our vectors is {least:.6}",
                system.name
            )
            .into());
        }
        cosines.push(Some(least));
    }
    Ok(cosines)
}

#[derive(serde::Deserialize)]
struct Embedded {
    vector: Vec<f32>,
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    // Vectors of other widths are of other models.
    if a.len() == b.len() { dot(a, b) / (dot(a, a) * dot(b, b)).sqrt() } else { -1.0 }
}

fn scenario(options: &Options, place: &Arranged) -> Result<Scenario, Failure> {
    let sum = |path: &Path| -> Result<String, Failure> {
        let sum = provision::sha256(path);
        Ok(sum.map_err(|e| format!("cannot read {}: {e}", path.display()))?.0)
    };
    Ok(Scenario {
        memories: options.memories,
        vectors: place.f32.rows.len(),
        rate: options.rate,
        seconds: options.seconds,
        seconds_import: options.seconds_import,
        blocks: options.blocks,
        k: options.k.into(),
        connections: options.connections.into(),
        query_tokens: (*QUERY_TOKENS.start(), *QUERY_TOKENS.end()),
        promise_ms: options.promise_ms,
        timeout_ms: options.timeout_ms,
        fused_sha256: sum(&place.model.fused)?,
        standard_sha256: sum(&place.model.standard)?,
        tokenizer_sha256: sum(&place.model.tokenizer)?,
    })
}

fn data(corpus: &Corpus, queries: (usize, usize)) -> Data {
    Data {
        source: corpus.source.clone(),
        sha256: corpus.sha256.clone(),
        lines: corpus.lines(),
        held_out: corpus.held_out().len(),
        memories_real: corpus.real(),
        memories_made: 0,
        noise: None,
        queries_real: queries.0,
        queries_made: queries.1,
    }
}

fn notes(found: &[Found], queries: (usize, usize)) -> Vec<String> {
    let mut notes = vec![
        "Peers embed in their own process, batch 1 at exact length, without spinning threads: `fused` with the f32 graph that Flashbulb compiles for itself (operators of com.microsoft, which ONNX Runtime's published package runs), `standard` with the same model in standard operators; the number is of threads for one text. Flashbulb's int8 graph needs an operator of its own, no peer can run it: `flashbulb-f32` is Flashbulb with the peers' model.".to_owned(),
        "Chroma's own default embedding is the same model, fetched from a host of its own; here it embeds through its interface for a user's function, and a query is `collection.query(query_texts=..)`.".to_owned(),
        "`in its own process` is what the answer says of itself, from the text in memory to the hits in memory: no socket, no JSON, no waiting for a free processor before it began.".to_owned(),
        "Recall is of the answers under load: `own` against exact search over the vectors that the system holds, `f32` against exact search over the f32 vectors.".to_owned(),
        "Filling is from vectors that were there: nothing is embedded in it. Imports beside a load embed, in one ordinary thread of the peer's process with 100 texts a call, and in Flashbulb's bulk lane; they go to another collection than the one that is searched.".to_owned(),
    ];
    if queries.1 > 0 {
        notes.push(format!(
            "{} of {} queries are the first half of one held-out line and the second half of another; no query was asked twice of one system.",
            queries.1,
            queries.0 + queries.1
        ));
    }
    if found.iter().flat_map(|f| &f.rows).any(|r| !r.load.realtime) {
        notes.push("The generator's threads had ordinary priority in some rows: the system refused real-time priority.".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_another_model_are_told() {
        assert!((cosine(&[3.0, 4.0], &[6.0, 8.0]) - 1.0).abs() < 1e-12);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-12);
        assert!(cosine(&[1.0, 0.0], &[1.0, 0.0, 0.0]) < LEAST_COSINE);
    }
}
