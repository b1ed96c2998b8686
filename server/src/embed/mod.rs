//! Text to vectors: ONNX Runtime, the tokenizer, splitting, and proof of what ran.
//!
//! Invariants: a text has the same vector in every session of the same fingerprint: on the processor (batch 1, exact
//! length) to the bit, on an accelerator (floats) up to rounding; no text is cut silently; what [`Ran`] says was read
//! from the runtime's profile. It must not know spaces, stores or sockets.

mod calibration;
mod compile;
mod device;
mod error;
mod helper;
mod huge;
mod load;
mod nodes;
mod operator;
#[expect(unsafe_code, reason = "calls that the ort crate does not wrap")]
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

pub use device::{Device, DeviceState, Unavailable};
pub use error::EmbedError;
pub use helper::{Borrowed, Helper};
pub use session::{BATCH_TOKENS, EmbedSession};
pub use tokens::Tokens;
pub use witness::Ran;

use crate::model::{GRAPH_VERSION, ModelSource, ModelSpec};
use crate::provision::{Progress, Provisioned, hex, sha256};
use compile::{Format, Graph};
use device::Accelerator;
use load::{Chosen, INT8, Source};
use tokens::Splitter;

/// The number format of a compiled model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// For a model that Flashbulb compiles int8 on the processor and floats where an accelerator is wanted; for a graph
    /// made by others its float file, else a quantised one.
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
    /// The device.
    pub device: Device,
}

/// A loaded runtime with one model; cheap to clone.
#[derive(Clone)]
pub struct Embedder {
    inner: Arc<Inner>,
}

struct Inner {
    source: Source,
    accelerator: Option<Accelerator>,
    device: DeviceState,
    dim: usize,
    fingerprint: String,
    ran: Ran,
    /// Sessions made ahead, the one of the warm-up run among them, for callers who want one.
    spare: Mutex<Vec<EmbedSession>>,
}

impl Embedder {
    /// Loads the runtime and the model, compiling its graph on first use, and witnesses a warm-up run.
    ///
    /// # Errors
    /// See [`EmbedError`]; each says what to do next. A required device that does not carry the model is one.
    pub fn open(
        provisioned: &Provisioned,
        options: &EmbedOptions,
        progress: &dyn Progress,
    ) -> Result<Self, EmbedError> {
        let library = &provisioned.runtime_library;
        let environment = runtime::load(library)?;
        let mut choice = Choice { wanted: options.device, reason: None };
        // Before the graph is made, which takes seconds.
        let accelerator = choice.settle(accelerator(options, library))?;
        let spec = ModelSpec::read(&provisioned.model_dir)?;
        for decision in &spec.decided {
            tracing::info!(model = spec.name, decision, "left open by the model's files");
        }
        let splitter = Splitter::open(&spec)?;
        let compiled = &provisioned.compiled_dir;
        let chosen = choose(&environment, &spec, &splitter, options, compiled, progress)?;
        // In floats ONNX Runtime packs the matrices anew for each session, and a shared original would come on top.
        let shared = match chosen.precision {
            INT8 => shared::read(&chosen.graph)?,
            _ => Arc::default(),
        };
        let compiled = compiled.clone();
        let source = Source { environment, spec, splitter, chosen, shared, compiled };
        let tried = accelerator.map(|accelerator| source.load_on(accelerator));
        let loaded = match choice.settle(tried.transpose())? {
            Some(loaded) => loaded,
            None => source.load(None)?,
        };
        let ran = source.ran(&loaded, runtime::version(library)?);
        let Choice { wanted, reason } = choice;
        Ok(Self {
            inner: Arc::new(Inner {
                fingerprint: fingerprint(&source.spec, &source.chosen)?,
                accelerator: loaded.accelerator,
                device: DeviceState { wanted, used: ran.device.clone(), reason },
                dim: loaded.session.dim(),
                ran,
                source,
                spare: Mutex::new(vec![loaded.session]),
            }),
        })
    }

    /// The width of a vector.
    pub fn dim(&self) -> usize {
        self.inner.dim
    }

    /// The most tokens in one window, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.inner.source.spec.max_tokens
    }

    /// The model as its folder describes it.
    pub fn spec(&self) -> &ModelSpec {
        &self.inner.source.spec
    }

    /// What makes vectors comparable: the graph's sum, the tokenizer's, prefixes and window, and the precision.
    pub fn fingerprint(&self) -> String {
        self.inner.fingerprint.clone()
    }

    /// Whether a second thread makes a run shorter: ours are the only operators that share their rows out.
    pub fn shares_rows(&self) -> bool {
        self.inner.ran.precision == INT8
    }

    /// A session of its own for [`EmbedSession::embed_batch`]. Its vectors are those of [`Self::session`] up to rounding.
    ///
    /// # Errors
    /// As [`Self::session`]; also, when it is used, where the model computes with bytes.
    pub fn batch_session(&self) -> Result<EmbedSession, EmbedError> {
        self.inner.source.for_batches(self.inner.accelerator)
    }

    /// Whether texts are embedded faster together than one by one, with [`Self::batch_session`]: on an accelerator.
    pub fn batches(&self) -> bool {
        self.inner.accelerator.is_some()
    }

    /// Which device was wanted, which is used, and why not the wanted one.
    pub fn device(&self) -> &DeviceState {
        &self.inner.device
    }

    /// The file of the graph that sessions load.
    pub fn graph(&self) -> &Path {
        &self.inner.source.chosen.graph
    }

    /// The file of the same model without fused operators, for other programs, made now if it is not there; none for a
    /// graph made by others, nor for one of bytes.
    ///
    /// # Errors
    /// The graph cannot be made or written.
    pub fn standard_graph(&self) -> Result<Option<PathBuf>, EmbedError> {
        self.inner.source.compiled_as(compile::Format::StandardF32)
    }

    /// A session of its own. On the processor it computes on the caller's thread, at the caller's priority.
    ///
    /// # Errors
    /// The runtime cannot load the graph, or does not put it on the device that was proven.
    pub fn session(&self) -> Result<EmbedSession, EmbedError> {
        let inner = &*self.inner;
        let mut spare = inner.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = spare.pop() {
            return Ok(session);
        }
        drop(spare);
        inner.source.session(inner.accelerator)
    }

    /// Makes sessions until `count` are at hand for those who will want them, while there is something else to wait for. One that
    /// cannot be made is tried again, and the reason told, when it is wanted.
    pub fn prepare_sessions(&self, count: usize) {
        let inner = &*self.inner;
        let spare = || inner.spare.lock().unwrap_or_else(PoisonError::into_inner);
        while spare().len() < count {
            match inner.source.session(inner.accelerator) {
                Ok(session) => spare().push(session),
                Err(_) => return,
            }
        }
    }

    /// The windows of a memory's text, with overlap; the passage prefix opens each.
    ///
    /// # Errors
    /// The text is empty or white space, or the tokenizer fails.
    pub fn document_windows(&self, text: &str) -> Result<Vec<Tokens>, EmbedError> {
        let Source { splitter, spec, .. } = &self.inner.source;
        splitter.windows(&spec.passage_prefix, text)
    }

    /// The windows of a query, usually one; the query prefix opens each.
    ///
    /// # Errors
    /// The text is empty or white space, or the tokenizer fails.
    pub fn query_windows(&self, text: &str) -> Result<Vec<Tokens>, EmbedError> {
        let Source { splitter, spec, .. } = &self.inner.source;
        splitter.windows(&spec.query_prefix, text)
    }

    /// What executed the warm-up run.
    pub fn ran(&self) -> Ran {
        self.inner.ran.clone()
    }
}

/// The device that is wanted, and why it is not used where it is only preferred.
struct Choice {
    wanted: Device,
    reason: Option<String>,
}

impl Choice {
    /// What was tried; nothing, with the reason kept, where it failed and the processor will do.
    fn settle<T>(
        &mut self,
        tried: Result<Option<T>, Unavailable>,
    ) -> Result<Option<T>, EmbedError> {
        match tried {
            Ok(found) => Ok(found),
            Err(why) if self.wanted == Device::Preferred => {
                let why = why.to_string();
                tracing::warn!(reason = why, "the preferred device is not used");
                self.reason = Some(why);
                Ok(None)
            }
            Err(why) => Err(EmbedError::Device(why)),
        }
    }
}

/// The accelerator to try; none where the processor is wanted.
fn accelerator(options: &EmbedOptions, library: &Path) -> Result<Option<Accelerator>, Unavailable> {
    if options.device == Device::Cpu {
        return Ok(None);
    }
    let accelerator = Accelerator::of_platform()?;
    if options.precision == Precision::Int8 {
        return Err(accelerator.refuses_int8());
    }
    accelerator.check_build(library)?;
    Ok(Some(accelerator))
}

fn choose(
    environment: &Environment,
    spec: &ModelSpec,
    splitter: &Splitter,
    options: &EmbedOptions,
    compiled: &Path,
    progress: &dyn Progress,
) -> Result<Chosen, EmbedError> {
    let precision = options.precision;
    let source = match (spec.source(precision == Precision::Int8), precision) {
        (Err(_), Precision::Auto) => spec.source(true)?,
        (source, _) => source?,
    };
    match source {
        ModelSource::Safetensors(weights) => {
            let (format, precision) = match (precision, options.device) {
                // Whatever becomes of the accelerator: a store must not need another model when it is missing one day.
                (Precision::Int8, _) | (Precision::Auto, Device::Cpu) => (Format::Int8, INT8),
                (Precision::F32 | Precision::Auto, _) => (Format::F32, "f32"),
            };
            let made =
                compile::graph(environment, spec, splitter, &weights, format, compiled, progress)?;
            let Graph { path: graph, sha256 } = made;
            Ok(Chosen { graph, sha256, precision, weights: Some(weights) })
        }
        ModelSource::Onnx(graph) => {
            let io = |source| EmbedError::Cache { path: graph.clone(), source };
            std::fs::create_dir_all(compiled).map_err(io)?;
            let (sha256, _) = sha256(&graph).map_err(io)?;
            let quantised = graph.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.contains("int8") || name.contains("quantized")
            });
            let precision = if quantised { "onnx-int8" } else { "onnx" };
            Ok(Chosen { graph, sha256, precision, weights: None })
        }
    }
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
