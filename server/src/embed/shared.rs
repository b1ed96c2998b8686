//! The large constants of a graph, held once for all its sessions.
//!
//! Why: each session of ONNX Runtime keeps its own copy of the weights otherwise, 57 MB of the default model. Invariant:
//! the values are those of the graph's file. It must not know what they mean.

use std::path::Path;
use std::sync::Arc;

use super::EmbedError;
use super::raw::Lasting;
use crate::model::{Constant, Values, large_constants};

/// Smaller constants are not worth sharing.
const LEAST_BYTES: usize = 64 << 10;

/// Reads the large constants of the graph that Flashbulb compiled to `path`.
///
/// # Errors
/// The file cannot be read, or is no such graph.
pub fn read(path: &Path) -> Result<Arc<Lasting>, EmbedError> {
    let file = std::fs::read(path)
        .map_err(|source| EmbedError::Cache { path: path.to_owned(), source })?;
    let refused = |what| EmbedError::Graph { path: path.to_owned(), what };
    let constants = large_constants(file.into(), LEAST_BYTES).map_err(refused)?;
    let mut lasting = Lasting::default();
    for Constant { name, shape, values } in constants {
        match values {
            Values::Floats(raw) => lasting.add::<f32>(name, &shape, &raw),
            Values::Bytes(raw) => lasting.add::<i8>(name, &shape, &raw),
        }
        .map_err(refused)?;
    }
    Ok(Arc::new(lasting))
}
