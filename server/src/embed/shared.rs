//! The large constants of a graph, held once for all its sessions.
//!
//! Why: each session of ONNX Runtime keeps its own copy of the weights otherwise, 57 MB of the default model. Invariant:
//! the values are those of the graph's file. It must not know what they mean.

use std::path::Path;
use std::sync::Arc;

use ort::value::{DynValue, Tensor};

use super::EmbedError;
use crate::model::{Constant, Values, large_constants};

/// Smaller constants are not worth sharing.
const LEAST_BYTES: usize = 64 << 10;

/// Constants by their names in the graph.
#[derive(Default)]
pub struct Shared(Vec<(String, Arc<DynValue>)>);

impl Shared {
    /// Reads the large constants of the graph that Flashbulb compiled to `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is no such graph.
    pub fn read(path: &Path) -> Result<Self, EmbedError> {
        let file = std::fs::read(path)
            .map_err(|source| EmbedError::Cache { path: path.to_owned(), source })?;
        let refused = |what| EmbedError::Graph { path: path.to_owned(), what };
        let constants = large_constants(&file, LEAST_BYTES).map_err(refused)?;
        drop(file);
        let values = constants.into_iter().map(|Constant { name, shape, values }| {
            let value = match values {
                Values::Floats(values) => Tensor::from_array((shape, values))?.into_dyn(),
                Values::Bytes(values) => Tensor::from_array((shape, values))?.into_dyn(),
            };
            Ok((name, Arc::new(value)))
        });
        let values = values.collect::<ort::Result<_>>();
        Ok(Self(values.map_err(|error| refused(error.to_string()))?))
    }

    /// The constants, each with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Arc<DynValue>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), Arc::clone(value)))
    }
}
