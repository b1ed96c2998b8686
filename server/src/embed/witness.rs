//! What really ran: read from the runtime's own profile of a run, never from configuration.
//!
//! Invariant: an empty or unreadable profile is an error. It must not know the model.

use std::collections::BTreeMap;
use std::path::Path;

use ort::session::RunOptions;
use serde::Serialize;
use serde_json::Value;

use super::nodes::Nodes;
use super::session::EmbedSession;
use super::{EmbedError, Tokens};

/// What executed the warm-up run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ran {
    /// The runtime and its version, as it says itself.
    pub runtime: String,
    /// The execution provider that ran the most nodes.
    pub provider: String,
    /// The device of the provider that ran the model's heavy nodes: `cpu`, `cuda`, `coreml`.
    pub device: String,
    /// How many heavy nodes ran: matrix products, attention, normalisations, activations.
    pub heavy_nodes: usize,
    /// How many of them on that device.
    pub heavy_nodes_on_device: usize,
    /// How many copies between devices ran.
    pub memcpy_nodes: usize,
    /// `int8`, `f32`, or `onnx` for a graph made by others.
    pub precision: String,
    /// The model's name.
    pub model: String,
    /// The width of a vector.
    pub dim: usize,
    /// How many nodes ran.
    pub nodes_total: usize,
    /// How many nodes each provider ran.
    pub nodes_by_provider: BTreeMap<String, usize>,
    /// How often each operator ran; fused ones show that the graph was taken as compiled.
    pub nodes_by_operator: BTreeMap<String, usize>,
    /// How many nodes the runtime placed on each provider when it took the graph, before it fused any.
    pub nodes_placed: BTreeMap<String, usize>,
}

/// Runs `tokens` once with profiling and counts the nodes in the profile.
pub fn witness(
    session: &mut EmbedSession,
    tokens: &Tokens,
    scratch: &Path,
) -> Result<Nodes, EmbedError> {
    let fail = |what: String| EmbedError::Witness { what };
    let dir = tempfile::Builder::new()
        .prefix("profile-")
        .tempdir_in(scratch)
        .map_err(|error| fail(format!("{}: {error}", scratch.display())))?;
    let mut options = RunOptions::new().map_err(EmbedError::run)?;
    options.enable_profiling(dir.path().join("run")).map_err(EmbedError::run)?;
    session.embed_with(tokens, Some(&options))?;
    drop(options);
    let entries = std::fs::read_dir(dir.path()).map_err(|error| fail(error.to_string()))?;
    let file =
        entries.flatten().next().ok_or_else(|| fail("the runtime wrote no profile".into()))?;
    let text = std::fs::read(file.path()).map_err(|error| fail(error.to_string()))?;
    count(&text).map_err(fail)
}

fn count(profile: &[u8]) -> Result<Nodes, String> {
    let events: Vec<Value> = serde_json::from_slice(profile)
        .map_err(|error| format!("the profile is no JSON ({error})"))?;
    let mut nodes = Nodes::default();
    for event in &events {
        if !event["name"].as_str().is_some_and(|name| name.ends_with("_kernel_time")) {
            continue;
        }
        let args = &event["args"];
        let (Some(provider), Some(operator)) =
            (args["provider"].as_str(), args["op_name"].as_str())
        else {
            return Err("a node's profile names no provider".into());
        };
        nodes.add(provider, operator);
    }
    match nodes.is_empty() {
        true => Err("the profile holds no nodes".into()),
        false => Ok(nodes),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn nodes_are_counted_and_an_empty_profile_is_refused() {
        let profile = br#"[{"name":"run","args":{}},
            {"name":"a_kernel_time","args":{"provider":"P","op_name":"MatMul"}},
            {"name":"b_kernel_time","args":{"provider":"P","op_name":"Add"}},
            {"name":"b_fence_before","args":{"op_name":"Add"}}]"#;
        let nodes = count(profile).unwrap();
        assert_eq!(nodes.by_provider()["P"], 2);
        assert_eq!(nodes.by_operator()["MatMul"], 1);
        assert!(count(b"[]").is_err());
        assert!(count(b"[{").is_err());
        assert!(count(br#"[{"name":"a_kernel_time","args":{}}]"#).is_err());
    }
}
