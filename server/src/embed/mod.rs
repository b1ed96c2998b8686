//! Text to vectors: ONNX Runtime, the tokenizer, splitting, and proof of what ran.
//!
//! Invariants: a text has the same vector in every session of the same fingerprint (batch 1, exact length); no text is
//! cut silently; what [`Ran`] says was read from the runtime's profile. It must not know spaces, stores or sockets.

mod calibration;
mod compile;
mod error;
mod helper;
mod operator;
#[expect(unsafe_code, reason = "one call that the ort crate does not wrap")]
mod raw;
mod runtime;
mod session;
mod shared;
mod tokens;
mod witness;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use sha2::{Digest, Sha256};

pub use error::EmbedError;
pub use helper::{Borrowed, Helper};
pub use session::EmbedSession;
pub use tokens::Tokens;
pub use witness::Ran;

use crate::model::{GRAPH_VERSION, ModelSource, ModelSpec};
use crate::provision::{Progress, Provisioned, hex, sha256};
use session::Interface;
use shared::Shared;
use tokens::Splitter;

/// The number format of a compiled model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Int8 for a model that Flashbulb compiles; for a graph made by others its float file, else a quantised one.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// Eight-bit weights and activations.
    Int8,
}

/// How to open an [`Embedder`].
#[derive(Debug, Clone, Default)]
pub struct EmbedOptions {
    /// The number format.
    pub precision: Precision,
}

/// A loaded runtime with one model; cheap to clone.
#[derive(Clone)]
pub struct Embedder {
    inner: Arc<Inner>,
}

struct Inner {
    environment: Environment,
    spec: ModelSpec,
    splitter: Splitter,
    graph: PathBuf,
    shared: Shared,
    interface: Interface,
    dim: usize,
    fingerprint: String,
    ran: Ran,
    /// The session that made the warm-up run, for the first caller who wants one.
    spare: Mutex<Option<EmbedSession>>,
}

/// The precision of a graph that Flashbulb compiled to signed bytes, as [`Ran`] names it.
const INT8: &str = "int8";

/// A graph file and how it came to be.
struct Chosen {
    graph: PathBuf,
    sha256: String,
    precision: &'static str,
}

impl Embedder {
    /// Loads the runtime and the model, compiling its graph on first use, and witnesses a warm-up run.
    ///
    /// # Errors
    /// See [`EmbedError`]; each says what to do next.
    pub fn open(
        provisioned: &Provisioned,
        options: &EmbedOptions,
        progress: &dyn Progress,
    ) -> Result<Self, EmbedError> {
        let environment = runtime::load(&provisioned.runtime_library)?;
        let spec = ModelSpec::read(&provisioned.model_dir)?;
        for decision in &spec.decided {
            tracing::info!(model = spec.name, decision, "left open by the model's files");
        }
        let splitter = Splitter::open(&spec)?;
        let compiled = &provisioned.compiled_dir;
        let chosen = choose(&environment, &spec, &splitter, options.precision, compiled, progress)?;
        // In floats ONNX Runtime packs the matrices anew for each session, and a shared original would come on top.
        let shared = match chosen.precision {
            INT8 => Shared::read(&chosen.graph)?,
            _ => Shared::default(),
        };
        let session = runtime::session(&environment, &chosen.graph, &shared, 1)?;
        let interface = Interface::of(&session, &chosen.graph)?;
        let dim = interface.dim.unwrap_or(spec.hidden);
        let mut spare =
            EmbedSession::new(session, interface.clone(), spec.pooling, dim, spec.position_offset);
        let version = runtime::version(&provisioned.runtime_library)?;
        let ran = warm_up(&mut spare, &spec, &splitter, &chosen, version, compiled)?;
        Ok(Self {
            inner: Arc::new(Inner {
                fingerprint: fingerprint(&spec, &chosen)?,
                environment,
                splitter,
                graph: chosen.graph,
                shared,
                interface,
                dim,
                ran,
                spec,
                spare: Mutex::new(Some(spare)),
            }),
        })
    }

    /// The width of a vector.
    pub fn dim(&self) -> usize {
        self.inner.dim
    }

    /// The most tokens in one window, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.inner.spec.max_tokens
    }

    /// The model as its folder describes it.
    pub fn spec(&self) -> &ModelSpec {
        &self.inner.spec
    }

    /// What makes vectors comparable: the graph's sum, the tokenizer's, prefixes and window, and the precision.
    pub fn fingerprint(&self) -> String {
        self.inner.fingerprint.clone()
    }

    /// Whether a second thread makes a run shorter: ours are the only operators that share their rows out.
    pub fn shares_rows(&self) -> bool {
        self.inner.ran.precision == INT8
    }

    /// A session of its own. It computes on the caller's thread, at the caller's priority.
    ///
    /// # Errors
    /// The runtime cannot load the graph.
    pub fn session(&self) -> Result<EmbedSession, EmbedError> {
        let inner = &*self.inner;
        let mut spare = inner.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = spare.take() {
            return Ok(session);
        }
        drop(spare);
        let session = runtime::session(&inner.environment, &inner.graph, &inner.shared, 1)?;
        let ModelSpec { pooling, position_offset, .. } = inner.spec;
        Ok(EmbedSession::new(session, inner.interface.clone(), pooling, inner.dim, position_offset))
    }

    /// The windows of a memory's text, with overlap; the passage prefix opens each.
    ///
    /// # Errors
    /// The text is empty or white space, or the tokenizer fails.
    pub fn document_windows(&self, text: &str) -> Result<Vec<Tokens>, EmbedError> {
        self.inner.splitter.windows(&self.inner.spec.passage_prefix, text)
    }

    /// The windows of a query, usually one; the query prefix opens each.
    ///
    /// # Errors
    /// The text is empty or white space, or the tokenizer fails.
    pub fn query_windows(&self, text: &str) -> Result<Vec<Tokens>, EmbedError> {
        self.inner.splitter.windows(&self.inner.spec.query_prefix, text)
    }

    /// What executed the warm-up run.
    pub fn ran(&self) -> Ran {
        self.inner.ran.clone()
    }
}

fn choose(
    environment: &Environment,
    spec: &ModelSpec,
    splitter: &Splitter,
    precision: Precision,
    compiled: &Path,
    progress: &dyn Progress,
) -> Result<Chosen, EmbedError> {
    let source = match (spec.source(precision == Precision::Int8), precision) {
        (Err(_), Precision::Auto) => spec.source(true)?,
        (source, _) => source?,
    };
    match source {
        ModelSource::Safetensors(weights) => {
            let int8 = precision != Precision::F32;
            let made =
                compile::graph(environment, spec, splitter, &weights, int8, compiled, progress)?;
            Ok(Chosen {
                graph: made.path,
                sha256: made.sha256,
                precision: if int8 { INT8 } else { "f32" },
            })
        }
        ModelSource::Onnx(graph) => {
            let io = |source| EmbedError::Cache { path: graph.clone(), source };
            std::fs::create_dir_all(compiled).map_err(io)?;
            let (sha256, _) = sha256(&graph).map_err(io)?;
            let quantised = graph.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.contains("int8") || name.contains("quantized")
            });
            Ok(Chosen { graph, sha256, precision: if quantised { "onnx-int8" } else { "onnx" } })
        }
    }
}

/// One witnessed run, then one of a usual query's length to size the buffers.
fn warm_up(
    session: &mut EmbedSession,
    spec: &ModelSpec,
    splitter: &Splitter,
    chosen: &Chosen,
    version: String,
    scratch: &Path,
) -> Result<Ran, EmbedError> {
    let text = "Where did we leave the spare key to the summer house by the lake, and who has been there since?";
    for window in splitter.windows(&spec.query_prefix, text)? {
        session.embed(&window)?;
    }
    let windows = splitter.windows("", "ready")?;
    let window = windows.first().ok_or(EmbedError::EmptyText)?;
    let (nodes_by_provider, nodes_by_operator) = witness::witness(session, window, scratch)?;
    let most = nodes_by_provider.iter().max_by_key(|(_, count)| **count);
    Ok(Ran {
        runtime: version,
        provider: most.map(|(provider, _)| provider.clone()).unwrap_or_default(),
        precision: chosen.precision.to_owned(),
        model: spec.name.clone(),
        dim: session.dim(),
        nodes_total: nodes_by_provider.values().sum(),
        nodes_by_provider,
        nodes_by_operator,
    })
}

fn fingerprint(spec: &ModelSpec, chosen: &Chosen) -> Result<String, EmbedError> {
    let (tokenizer, _) = sha256(&spec.tokenizer).map_err(|error| EmbedError::Tokenizer {
        path: spec.tokenizer.clone(),
        what: error.to_string(),
    })?;
    // Our kernels quantise while they run, so the graph's bytes alone do not fix its numbers.
    let kernels = if chosen.precision == INT8 { GRAPH_VERSION } else { 0 };
    let settings = format!(
        "{} {kernels} {tokenizer} {:?} {} {} {:?} {:?}",
        chosen.sha256,
        spec.pooling,
        spec.max_tokens,
        spec.lower_case,
        spec.query_prefix,
        spec.passage_prefix
    );
    let sum = Sha256::digest(settings.as_bytes());
    Ok(format!("{}/{}/{}", spec.name, chosen.precision, hex(&sum[..8])))
}
