//! A graph put on a device, and the proof that it runs there.
//!
//! Invariant: what [`Ran`] says of a device was read from the runtime after a run; an accelerator is taken only with that
//! proof and with vectors that are those of the processor. It must not know options or where files came from.

use std::path::PathBuf;
use std::sync::Arc;

use ort::environment::Environment;

use super::compile::{self, Format};
use super::device::{Accelerator, Unavailable, name_of};
use super::nodes::Nodes;
use super::raw::Lasting;
use super::session::{EmbedSession, Interface};
use super::tokens::Splitter;
use super::witness::{self, Ran};
use super::{EmbedError, Tokens, calibration, runtime};
use crate::model::ModelSpec;
use crate::provision::Logged;

/// The precision of a graph that Flashbulb compiled to signed bytes, as [`Ran`] names it.
pub const INT8: &str = "int8";

/// The least cosine of an accelerator's vector to the processor's. Floats in another order of summation differ by less
/// than a millionth; half precision by less than this.
const LEAST_COSINE: f32 = 0.999;

/// A graph file and how it came to be.
pub struct Chosen {
    /// The file.
    pub graph: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// As [`Ran`] names it.
    pub precision: &'static str,
    /// What it was compiled from, if Flashbulb made it.
    pub weights: Option<PathBuf>,
}

impl Chosen {
    /// Whether it computes with floats.
    pub fn is_float(&self) -> bool {
        matches!(self.precision, "f32" | "onnx")
    }
}

/// Everything that a session is made of.
pub struct Source {
    /// The process's own.
    pub environment: Environment,
    /// The model.
    pub spec: ModelSpec,
    /// Its tokenizer.
    pub splitter: Splitter,
    /// Its graph.
    pub chosen: Chosen,
    /// The graph's large constants, where sessions share them.
    pub shared: Arc<Lasting>,
    /// Where compiled graphs are, and where profiles pass through.
    pub compiled: PathBuf,
}

/// A session after its first runs.
pub struct Loaded {
    /// The session.
    pub session: EmbedSession,
    /// Where the runtime placed the graph's nodes.
    placed: Nodes,
    /// Where they ran.
    executed: Nodes,
    /// What it was put on, if not the processor.
    pub accelerator: Option<Accelerator>,
}

impl Source {
    /// A session, on the processor where no accelerator is given; on one, with every heavy node placed there.
    pub fn session(&self, accelerator: Option<Accelerator>) -> Result<EmbedSession, EmbedError> {
        match accelerator {
            Some(device) if !device.has_fused_operators() => {
                self.session_over(self.compiled_as(Format::StandardF32)?, accelerator)
            }
            _ => self.session_over(None, accelerator),
        }
    }

    /// A session for many texts at once, over a graph that takes a mask where Flashbulb can make one.
    pub fn for_batches(
        &self,
        accelerator: Option<Accelerator>,
    ) -> Result<EmbedSession, EmbedError> {
        let fused = accelerator.is_none_or(Accelerator::has_fused_operators);
        if !fused || !self.spec.pooling.bears_padding() {
            return self.session(accelerator);
        }
        self.session_over(self.compiled_as(Format::MaskedF32)?, accelerator)
    }

    /// Another graph of the same model in floats, made now if it is not there; none for a graph made by others, nor for
    /// one of bytes.
    pub fn compiled_as(&self, format: Format) -> Result<Option<PathBuf>, EmbedError> {
        let Self { environment, spec, splitter, compiled, chosen, .. } = self;
        let Some(weights) = chosen.weights.as_ref().filter(|_| chosen.is_float()) else {
            return Ok(None);
        };
        let made = compile::graph(environment, spec, splitter, weights, format, compiled, &Logged)?;
        Ok(Some(made.path))
    }

    /// A session over `graph`, or the chosen one where there is none.
    fn session_over(
        &self,
        graph: Option<PathBuf>,
        accelerator: Option<Accelerator>,
    ) -> Result<EmbedSession, EmbedError> {
        let graph = graph.as_ref().unwrap_or(&self.chosen.graph);
        let session = runtime::session(&self.environment, graph, &self.shared, accelerator, 1)?;
        let interface = Interface::of(&session, graph)?;
        let session = EmbedSession::new(session, interface, &self.spec, self.chosen.is_float());
        if let Some(accelerator) = accelerator {
            accelerator.judge_placement(&session.placement()?).map_err(EmbedError::Device)?;
        }
        Ok(session)
    }

    /// A session that has made its warm-up run, with what the runtime says of it.
    pub fn load(&self, accelerator: Option<Accelerator>) -> Result<Loaded, EmbedError> {
        let mut session = self.session(accelerator)?;
        let placed = session.placement()?;
        // A usual query's length first, to size the buffers.
        let text = "Where did we leave the spare key to the summer house by the lake, and who has been there since?";
        for window in self.splitter.windows(&self.spec.query_prefix, text)? {
            session.embed(&window)?;
        }
        let windows = self.splitter.windows("", "ready")?;
        let window = windows.first().ok_or(EmbedError::EmptyText)?;
        let executed = witness::witness(&mut session, window, &self.compiled)?;
        Ok(Loaded { session, placed, executed, accelerator })
    }

    /// A session on `accelerator`, proven.
    pub fn load_on(&self, accelerator: Accelerator) -> Result<Loaded, Unavailable> {
        if !self.chosen.is_float() {
            return Err(accelerator.refuses_int8());
        }
        let refused = |error: EmbedError| match error {
            EmbedError::Device(unavailable) => unavailable,
            other => accelerator.refused(&other.bare()),
        };
        let mut loaded = self.load(Some(accelerator)).map_err(refused)?;
        accelerator.judge(&loaded.placed, &loaded.executed)?;
        let cosine = self.least_cosine(&mut loaded.session, accelerator).map_err(refused)?;
        // Not a number is no proof either.
        if cosine.is_nan() || cosine < LEAST_COSINE {
            return Err(accelerator.computes_wrongly(cosine));
        }
        tracing::info!(device = accelerator.name(), cosine, "the device carries the model");
        Ok(loaded)
    }

    /// The least cosine between the vectors of `accelerator`, alone and in batches, and the processor's.
    fn least_cosine(
        &self,
        session: &mut EmbedSession,
        accelerator: Accelerator,
    ) -> Result<f32, EmbedError> {
        let mut processor = self.session(None)?;
        let mut windows: Vec<Tokens> = Vec::new();
        for text in calibration::TEXTS {
            windows.extend(self.splitter.windows(&self.spec.passage_prefix, text)?);
        }
        let together = self.for_batches(Some(accelerator))?.embed_batch(&windows)?;
        let mut least = f32::INFINITY;
        for (window, together) in windows.iter().zip(together) {
            let reference = processor.embed(window)?;
            for vector in [session.embed(window)?, together] {
                let cosine: f32 = reference.iter().zip(&vector).map(|(a, b)| a * b).sum();
                if cosine.is_nan() {
                    return Ok(cosine);
                }
                least = least.min(cosine);
            }
        }
        Ok(least)
    }

    /// What `loaded` ran on, for every answer; `version` is the runtime's.
    pub fn ran(&self, loaded: &Loaded, version: String) -> Ran {
        let Loaded { session, placed, executed, accelerator } = loaded;
        let (carrier, (heavy_nodes, heavy_nodes_on_device)) = match accelerator {
            Some(accelerator) => (accelerator.provider(), accelerator.heavy(placed, executed)),
            None => {
                let carrier = executed.carrier().unwrap_or_default();
                (carrier, (executed.heavy(), executed.heavy_on(carrier)))
            }
        };
        let nodes_by_provider = executed.by_provider();
        let most = nodes_by_provider.iter().max_by_key(|(_, count)| **count);
        Ran {
            runtime: version,
            provider: most.map(|(provider, _)| provider.clone()).unwrap_or_default(),
            device: name_of(carrier).to_owned(),
            heavy_nodes,
            heavy_nodes_on_device,
            memcpy_nodes: executed.copies(),
            precision: self.chosen.precision.to_owned(),
            model: self.spec.name.clone(),
            dim: session.dim(),
            nodes_total: executed.total(),
            nodes_by_operator: executed.by_operator(),
            nodes_placed: placed.by_provider(),
            nodes_by_provider,
        }
    }
}
