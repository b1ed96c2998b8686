//! Loading ONNX Runtime, and making sessions that neither spin nor share.
//!
//! Invariant: a process loads one library, by absolute path, with telemetry off. It must not know any model.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};

use super::EmbedError;
use super::device::Accelerator;
use super::raw::{self, Lasting};

/// ONNX Runtime allows one environment a process, and it must outlive every session.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The process's environment, from the library at `path`.
pub fn load(path: &Path) -> Result<Environment, EmbedError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((there, environment)) = loaded.as_ref() {
        if there == path {
            return Ok(environment.clone());
        }
        return Err(EmbedError::OtherRuntime { wanted: path.to_owned(), loaded: there.clone() });
    }
    let fail = |what: String| EmbedError::Runtime { path: path.to_owned(), what };
    let builder = ort::init_from(path).map_err(|error| fail(error.to_string()))?;
    let environment = builder
        .with_name("flashbulb")
        .with_telemetry(false)
        .build()
        .map_err(|error| fail(error.to_string()))?;
    environment.set_log_level(LogLevel::Warning);
    *loaded = Some((path.to_owned(), environment.clone()));
    Ok(environment)
}

/// The loaded runtime's name and version, as it says itself.
pub fn version(path: &Path) -> Result<String, EmbedError> {
    match raw::version(path) {
        Ok(version) => Ok(format!("ONNX Runtime {version}")),
        Err(what) => Err(EmbedError::Runtime { path: path.to_owned(), what }),
    }
}

/// A session over the graph at `path`, on the CPU where no accelerator is given, which takes the `shared` constants.
/// With one thread it runs on the caller's own.
pub fn session(
    environment: &Environment,
    path: &Path,
    shared: &Arc<Lasting>,
    accelerator: Option<Accelerator>,
    intra_threads: usize,
) -> Result<Session, EmbedError> {
    builder(environment, accelerator, shared, intra_threads)
        .and_then(|mut builder| builder.commit_from_file(path).map_err(|error| error.to_string()))
        .map_err(|what| refused(path, what))
}

/// A session over a graph in memory, on all cores; `path` names it in errors.
pub fn session_from_memory(
    environment: &Environment,
    graph: &[u8],
    path: &Path,
) -> Result<Session, EmbedError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    builder(environment, None, &Arc::default(), threads)
        .and_then(|mut builder| {
            builder.commit_from_memory(graph).map_err(|error| error.to_string())
        })
        .map_err(|what| refused(path, what))
}

fn refused(path: &Path, what: String) -> EmbedError {
    EmbedError::Graph { path: path.to_owned(), what }
}

fn builder(
    environment: &Environment,
    accelerator: Option<Accelerator>,
    shared: &Arc<Lasting>,
    intra_threads: usize,
) -> Result<SessionBuilder, String> {
    let text = |error: ort::Error<SessionBuilder>| error.to_string();
    let builder = Session::builder(environment).map_err(|error| error.to_string())?;
    let builder = match accelerator {
        // Our operators compute on the processor; without them a graph that needs one is refused, not run there.
        Some(accelerator) => {
            builder.with_execution_providers([accelerator.dispatch()]).map_err(text)?
        }
        None => shared.give(builder)?,
    };
    let (record, yes) = raw::RECORD_PLACEMENT;
    builder
        .with_config_entry(record, yes)
        .map_err(text)?
        // Where a provider is given, the runtime does not choose.
        .with_auto_device(AutoDevicePolicy::PreferCPU)
        .map_err(text)?
        .with_log_level(LogLevel::Warning)
        .map_err(text)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(text)?
        .with_intra_threads(intra_threads.max(1))
        .map_err(text)?
        .with_inter_threads(1)
        .map_err(text)?
        // A spinning pool holds a core for tens of milliseconds after each run.
        .with_intra_op_spinning(false)
        .map_err(text)?
        // A pattern is remembered for each input length, and lengths vary.
        .with_memory_pattern(false)
        .map_err(text)
}
