//! A model folder read into a [`ModelSpec`], and BERT-family weights compiled into one fused ONNX graph.
//!
//! Invariant: everything about a model comes from its own files; what they leave open is decided as
//! sentence-transformers decides it, and listed in [`ModelSpec::decided`].
//! This module must not know ONNX Runtime, sessions, sockets or where the folder came from.

mod bert;
mod error;
mod graph;
mod int8;
mod proto;
mod quant;
mod spec;
mod standard;
mod weights;

pub use bert::{CompileOptions, GRAPH_VERSION, Weighting, compile, probe_name};
pub use error::ModelError;
pub use graph::{Constant, FLASHBULB, Values, large_constants};
pub use int8::{ENCODER_LAYER, shape as encoder_layer_shape};
pub use quant::{OutlierPlan, Site};
pub use spec::{Activation, Architecture, ModelSource, ModelSpec, Pooling};
pub use weights::Weights;
