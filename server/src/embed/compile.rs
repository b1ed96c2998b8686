//! Compiled graphs on disk: made once for a model and precision, re-made when the model or the file changed.
//!
//! Invariant: a graph is used only if its record says that it was made from these very weights and settings, and its
//! bytes are those that were written. It must not know sessions beyond the calibration run.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use ort::environment::Environment;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::session::{EmbedSession, Interface};
use super::tokens::Splitter;
use super::{EmbedError, calibration, runtime};
use crate::model::{
    CompileOptions, GRAPH_VERSION, ModelError, ModelSpec, OutlierPlan, Site, Weighting, Weights,
    compile, probe_name,
};
use crate::provision::{Progress, sha256, size_and_time};

/// What a compiled graph was made from, and what it is.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Record {
    weights_bytes: u64,
    weights_modified_ns: u64,
    spec: String,
    graph_bytes: u64,
    graph_modified_ns: u64,
    graph_sha256: String,
}

/// The graphs that are compiled from weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Floats, one text a run.
    F32,
    /// Floats, many texts a run.
    MaskedF32,
    /// Floats, one text a run, without fused operators.
    StandardF32,
    /// Signed bytes, one text a run.
    Int8,
}

impl Format {
    /// In file names and for people.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::MaskedF32 => "f32-masked",
            Self::StandardF32 => "f32-standard",
            Self::Int8 => "int8",
        }
    }
}

/// A graph ready to load.
pub struct Graph {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
}

/// The compiled graph of `weights_path` in the wanted format, made now if it is not there.
pub fn graph(
    environment: &Environment,
    spec: &ModelSpec,
    splitter: &Splitter,
    weights_path: &Path,
    format: Format,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<Graph, EmbedError> {
    fs::create_dir_all(dir).map_err(|error| cache(dir, error))?;
    let stem = stem(spec, format);
    let file = dir.join(format!("{stem}.onnx"));
    let record = dir.join(format!("{stem}.json"));
    let settings = format!("{spec:?}");
    if let Some(found) = whole(&file, &record, weights_path, &settings) {
        return Ok(found);
    }
    let lock_path = dir.join("lock");
    let lock = File::options()
        .create(true)
        .append(true)
        .open(&lock_path)
        .map_err(|error| cache(&lock_path, error))?;
    lock.lock().map_err(|error| cache(&lock_path, error))?;
    // Another process may have made it while this one waited.
    if let Some(found) = whole(&file, &record, weights_path, &settings) {
        return Ok(found);
    }
    remove_leftovers(dir)?;
    let step = format!("compiling {} ({})", spec.name, format.name());
    progress.step(&step);
    // Looked at before it is read: a later change then makes the record stale.
    let (weights_bytes, weights_modified_ns) =
        size_and_time(weights_path).map_err(|error| cache(weights_path, error))?;
    let weights = Weights::read(weights_path)?;
    let bytes = match format {
        Format::F32 => compile_as(spec, &weights, Weighting::F32 { probes: false })?,
        Format::MaskedF32 => compile_as(spec, &weights, Weighting::MaskedF32)?,
        Format::StandardF32 => compile_as(spec, &weights, Weighting::StandardF32)?,
        Format::Int8 => {
            let plans = plans(environment, spec, splitter, &weights, &file)?;
            compile_as(spec, &weights, Weighting::Int8 { plans: &plans })?
        }
    };
    let graph_sha256 = crate::provision::hex(&Sha256::digest(&bytes));
    replace(dir, &file, &bytes)?;
    let (graph_bytes, graph_modified_ns) =
        size_and_time(&file).map_err(|error| cache(&file, error))?;
    let made = Record {
        weights_bytes,
        weights_modified_ns,
        spec: settings,
        graph_bytes,
        graph_modified_ns,
        graph_sha256,
    };
    let text = serde_json::to_vec(&made).expect("a struct of strings and integers is always JSON");
    replace(dir, &record, &text)?;
    progress.done(&step);
    Ok(Graph { path: file, sha256: made.graph_sha256 })
}

fn compile_as(
    spec: &ModelSpec,
    weights: &Weights,
    weighting: Weighting<'_>,
) -> Result<Vec<u8>, ModelError> {
    compile(spec, weights, &CompileOptions { weighting })
}

fn cache(path: &Path, source: std::io::Error) -> EmbedError {
    EmbedError::Cache { path: path.to_owned(), source }
}

/// A name for this model's folder, format and graph version.
fn stem(spec: &ModelSpec, format: Format) -> String {
    let folder = Sha256::digest(spec.dir.as_os_str().as_encoded_bytes());
    let name: String = spec
        .name
        .chars()
        .map(|c| if c.is_alphanumeric() || "-._".contains(c) { c } else { '_' })
        .collect();
    let (folder, format) = (crate::provision::hex(&folder[..4]), format.name());
    format!("{name}-{folder}-{format}-v{GRAPH_VERSION}")
}

/// The graph, if its record fits the weights, the settings and the file.
fn whole(file: &Path, record: &Path, weights: &Path, settings: &str) -> Option<Graph> {
    let made: Record = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    let source = size_and_time(weights).ok()?;
    if source != (made.weights_bytes, made.weights_modified_ns) || made.spec != settings {
        return None;
    }
    let (bytes, modified_ns) = size_and_time(file).ok()?;
    let untouched = (bytes, modified_ns) == (made.graph_bytes, made.graph_modified_ns);
    if !untouched && sha256(file).ok()?.0 != made.graph_sha256 {
        return None;
    }
    Some(Graph { path: file.to_owned(), sha256: made.graph_sha256 })
}

/// Finds outlier channels by running the float graph over the calibration texts.
fn plans(
    environment: &Environment,
    spec: &ModelSpec,
    splitter: &Splitter,
    weights: &Weights,
    path: &Path,
) -> Result<Vec<[OutlierPlan; 3]>, EmbedError> {
    let probing = compile_as(spec, weights, Weighting::F32 { probes: true })?;
    let session = runtime::session_from_memory(environment, &probing, path)?;
    drop(probing);
    let interface = Interface::of(&session, path)?;
    let mut session = EmbedSession::new(session, interface, spec, false);
    let names: Vec<String> =
        (0..spec.layers).flat_map(|layer| Site::ALL.map(|site| probe_name(layer, site))).collect();
    let mut peaks: Vec<Vec<f32>> = vec![Vec::new(); names.len()];
    for text in calibration::TEXTS {
        for window in splitter.windows(&spec.passage_prefix, text)? {
            for (peak, found) in peaks.iter_mut().zip(session.peaks(&window, &names)?) {
                peak.resize(found.len(), 0.0);
                peak.iter_mut().zip(found).for_each(|(peak, value)| *peak = peak.max(value));
            }
        }
    }
    let (layers, _) = peaks.as_chunks::<3>();
    let plans = |layer: &[Vec<f32>; 3]| {
        Site::ALL.map(|site| OutlierPlan::from_peaks(site, &layer[site as usize]))
    };
    Ok(layers.iter().map(plans).collect())
}

/// Writes `bytes` under a temporary name, syncs, and renames to `target`.
fn replace(dir: &Path, target: &Path, bytes: &[u8]) -> Result<(), EmbedError> {
    let write = || -> std::io::Result<()> {
        let mut staged = tempfile::Builder::new().prefix(LEFTOVER).tempfile_in(dir)?;
        staged.write_all(bytes)?;
        staged.as_file().sync_all()?;
        staged.persist(target).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| cache(target, error))
}

/// How temporary files begin; those of a run that was cut off are removed by the next one.
const LEFTOVER: &str = ".unfinished-";

fn remove_leftovers(dir: &Path) -> Result<(), EmbedError> {
    let entries = fs::read_dir(dir).map_err(|error| cache(dir, error))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(LEFTOVER) {
            fs::remove_file(entry.path()).map_err(|error| cache(&entry.path(), error))?;
        }
    }
    Ok(())
}
