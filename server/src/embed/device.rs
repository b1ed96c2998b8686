//! Which device shall carry the model, how a session is put on it, and the verdict whether it does.
//!
//! Invariant: a device counts as used only if every heavy node was placed on it and ran on it, by ONNX Runtime's own
//! account of a run; where that account is empty, it does not. It must not know texts or files.

use std::fmt;
use std::path::Path;

use ort::ep::{self, ArenaExtendStrategy, ExecutionProvider, ExecutionProviderDispatch};
use serde::Serialize;

use super::nodes::Nodes;

/// The processor's provider.
pub const CPU: &str = "CPUExecutionProvider";

/// The device that is wanted for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The accelerator, and the processor where that does not carry the model; answers then say so.
    Preferred,
    /// The accelerator, or nothing.
    Required,
}

/// What was wanted and what is used, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceState {
    /// What was asked for.
    pub wanted: Device,
    /// What runs the model's heavy nodes: `cpu`, `cuda`, `coreml`, read from a run.
    pub used: String,
    /// Why the accelerator that was preferred is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl DeviceState {
    /// The entry for `degraded`, where the device is less than was wanted.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        self.reason.as_ref().map(|reason| format!("device_unavailable: {reason}"))
    }
}

/// What a device is called in answers, by the provider that runs on it.
pub fn name_of(provider: &str) -> &str {
    match provider {
        CPU => "cpu",
        "CUDAExecutionProvider" => "cuda",
        "CoreMLExecutionProvider" => "coreml",
        other => other,
    }
}

/// Why the accelerator cannot carry the model, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    device: &'static str,
    what: String,
    next: &'static str,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.device, self.what, self.next)
    }
}

/// A device with a provider of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// NVIDIA GPUs.
    Cuda,
    /// Apple's GPU and neural engine.
    CoreMl,
}

impl Accelerator {
    /// The one that this platform may have.
    ///
    /// # Errors
    /// There is none for this platform.
    pub fn of_platform() -> Result<Self, Unavailable> {
        match std::env::consts::OS {
            "linux" | "windows" => Ok(Self::Cuda),
            "macos" => Ok(Self::CoreMl),
            other => Err(Unavailable {
                device: "accelerator",
                what: format!("Flashbulb knows none for {other}"),
                next: "use --device cpu",
            }),
        }
    }

    /// The provider's name in ONNX Runtime.
    pub fn provider(self) -> &'static str {
        match self {
            Self::Cuda => ep::CUDA::NAME,
            Self::CoreMl => ep::CoreML::NAME,
        }
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "CUDA",
            Self::CoreMl => "CoreML",
        }
    }

    /// Whether it has the operators that ONNX Runtime fuses for BERT.
    pub fn has_fused_operators(self) -> bool {
        self == Self::Cuda
    }

    /// Whether its nodes run fused into few, under names of the provider's own, so that a profile shows no operators.
    fn compiles(self) -> bool {
        self == Self::CoreMl
    }

    /// The provider for a session; an error, not a silent step to the processor, where it cannot be registered.
    pub fn dispatch(self) -> ExecutionProviderDispatch {
        let dispatch = match self {
            Self::Cuda => ep::CUDA::default()
                // The runtime's own default; ten bits of mantissa would make vectors differ from the processor's.
                .with_tf32(false)
                // The default doubles at each step and keeps it, in every session.
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .build(),
            Self::CoreMl => {
                ep::CoreML::default().with_model_format(ep::coreml::ModelFormat::MLProgram).build()
            }
        };
        dispatch.error_on_failure()
    }

    /// Whether the loaded runtime was built with this provider, which says nothing of the device.
    ///
    /// # Errors
    /// It was not; `runtime` is its library.
    pub fn check_build(self, runtime: &Path) -> Result<(), Unavailable> {
        let built = match self {
            Self::Cuda => ep::CUDA::is_available(),
            Self::CoreMl => ep::CoreML::is_available(),
        };
        match built {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.unavailable(
                format!(
                    "the ONNX Runtime {} has no {} provider: it is not built for it",
                    runtime.display(),
                    self.name()
                ),
                self.where_from(),
            )),
            Err(error) => Err(self.refused(&error.to_string())),
        }
    }

    fn where_from(self) -> &'static str {
        match self {
            Self::Cuda => {
                "run `flashbulb setup --device required`, which fetches 256 MB, or point --runtime (FLASHBULB_ORT) to the \
                 libonnxruntime of a GPU build (package onnxruntime-gpu), its provider libraries beside it"
            }
            Self::CoreMl => {
                "point --runtime (FLASHBULB_ORT) to a libonnxruntime that was built with CoreML"
            }
        }
    }

    /// The runtime has the provider but could not make a session with it, or not run it.
    pub fn refused(self, what: &str) -> Unavailable {
        let next = match self {
            Self::Cuda => {
                "it needs an NVIDIA driver, and the CUDA and cuDNN libraries of its build where the loader finds them \
                 (LD_LIBRARY_PATH); docs/gpu.md has the steps"
            }
            Self::CoreMl => "see the runtime's own message",
        };
        self.unavailable(message(what), next)
    }

    /// There is no kernel for bytes.
    pub fn refuses_int8(self) -> Unavailable {
        self.unavailable(
            "int8 models run on the processor only: their operators have no kernels here".into(),
            "leave --precision out, or give f32",
        )
    }

    /// Whether every heavy node is placed on this device.
    ///
    /// # Errors
    /// Some are not, or the account is empty.
    pub fn judge_placement(self, placed: &Nodes) -> Result<(), Unavailable> {
        self.judge_one(placed, "was placed", "placement")
    }

    /// Whether this device carried a run: every heavy node was placed on it and ran on it.
    ///
    /// # Errors
    /// It did not, or there is no proof.
    pub fn judge(self, placed: &Nodes, executed: &Nodes) -> Result<(), Unavailable> {
        self.judge_placement(placed)?;
        if !self.compiles() {
            return self.judge_one(executed, "ran", "profile");
        }
        let strays = executed.strays(self.provider());
        if executed.on(self.provider()) == 0 {
            return Err(self.not_carried("no node ran on it by the runtime's profile".into()));
        }
        match strays.is_empty() {
            true => Ok(()),
            false => Err(self.not_carried(format!("not all of the model ran on it: {strays}"))),
        }
    }

    fn judge_one(self, nodes: &Nodes, verb: &str, source: &str) -> Result<(), Unavailable> {
        if nodes.is_empty() {
            let what = format!("the runtime's {source} is empty, so there is no proof of a device");
            return Err(self.not_carried(what));
        }
        let strays = nodes.strays(self.provider());
        if !strays.is_empty() {
            return Err(self.not_carried(format!("not all of the model {verb} on it: {strays}")));
        }
        match nodes.heavy() {
            0 => Err(self.not_carried(format!("the runtime's {source} has no heavy operator"))),
            _ => Ok(()),
        }
    }

    /// How many heavy nodes a run had and how many of them this device.
    pub fn heavy(self, placed: &Nodes, executed: &Nodes) -> (usize, usize) {
        let of = if self.compiles() { placed } else { executed };
        (of.heavy(), of.heavy_on(self.provider()))
    }

    fn not_carried(self, what: String) -> Unavailable {
        self.unavailable(what, "use a float model whose operators this provider has")
    }

    /// Its vectors are not those of the processor.
    pub fn computes_wrongly(self, cosine: f32) -> Unavailable {
        self.unavailable(
            format!("its vector of a text has a cosine of {cosine:.4} to the processor's"),
            "use another version of the runtime or of the driver",
        )
    }

    fn unavailable(self, what: String, next: &'static str) -> Unavailable {
        Unavailable { device: self.name(), what, next }
    }
}

/// The longest message of the runtime that is passed on; it stands in every answer.
const MESSAGE_CHARS: usize = 300;

/// The runtime's message in one line, without the places in its source.
fn message(what: &str) -> String {
    let what = match (what.rfind("CUDA failure "), what.split_once("[ONNXRuntimeError] : ")) {
        // What follows the reason names the machine and the call.
        (Some(at), _) => what[at..].split(" ; ").next().unwrap_or_default(),
        // A number, a word, and what matters.
        (None, Some((_, rest))) => rest.splitn(3, " : ").last().unwrap_or_default(),
        (None, None) => what,
    };
    let words: Vec<&str> = what.split_whitespace().collect();
    words.join(" ").chars().take(MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn nodes(of: &[(&str, &str)]) -> Nodes {
        let mut nodes = Nodes::default();
        of.iter().for_each(|(provider, operator)| nodes.add(provider, operator));
        nodes
    }

    const GPU: &str = "CUDAExecutionProvider";

    #[test]
    fn all_heavy_nodes_on_the_device_and_shapes_elsewhere_pass() {
        let carried = nodes(&[
            (GPU, "EmbedLayerNormalization"),
            (GPU, "Attention"),
            (GPU, "MatMul"),
            (GPU, "MemcpyToHost"),
            (CPU, "Shape"),
            (CPU, "Gather"),
            (CPU, "LpNormalization"),
        ]);
        assert_eq!(Accelerator::Cuda.judge(&carried, &carried), Ok(()));
        assert_eq!(Accelerator::Cuda.heavy(&carried, &carried), (3, 3));
    }

    #[test]
    fn one_heavy_node_elsewhere_fails_wherever_it_shows() {
        let good = nodes(&[(GPU, "Attention"), (GPU, "MatMul")]);
        let stray = nodes(&[(GPU, "Attention"), (GPU, "MatMul"), (CPU, "MatMul")]);
        for (placed, executed) in [(&good, &stray), (&stray, &good)] {
            let error = Accelerator::Cuda.judge(placed, executed).unwrap_err().to_string();
            assert!(error.contains("1 MatMul on CPUExecutionProvider"), "{error}");
        }
    }

    #[test]
    fn no_account_is_no_proof() {
        let good = nodes(&[(GPU, "MatMul")]);
        let light = nodes(&[(GPU, "Shape")]);
        for (placed, executed) in [
            (&Nodes::default(), &good),
            (&good, &Nodes::default()),
            (&good, &light),
            (&light, &good),
        ] {
            assert!(Accelerator::Cuda.judge(placed, executed).is_err(), "{placed:?} {executed:?}");
        }
    }

    #[test]
    fn a_message_of_the_runtime_is_one_line_without_its_source() {
        let said = "/src/bridge.cc:2043 Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load x with error: y : z\n";
        let shown = Accelerator::Cuda.refused(said).to_string();
        assert!(shown.starts_with("CUDA: Failed to load x with error: y : z; it needs"), "{shown}");
        assert_eq!(message("two\n  lines "), "two lines");
        assert_eq!(
            message("/src/a.cc:1 f() CUDA failure 100: no device ; GPU=-1 ; x"),
            "CUDA failure 100: no device"
        );
        assert_eq!(message(&"ü".repeat(999)).chars().count(), MESSAGE_CHARS);
    }

    /// CoreML runs what it took as nodes of its own.
    #[test]
    fn a_compiled_graph_is_judged_by_its_placement_and_by_what_is_left() {
        let provider = Accelerator::CoreMl.provider();
        let placed = nodes(&[(provider, "MatMul"), (provider, "LayerNormalization")]);
        let fused = nodes(&[(provider, "CoreML_7_0"), (CPU, "Gather")]);
        assert_eq!(Accelerator::CoreMl.judge(&placed, &fused), Ok(()));
        assert_eq!(Accelerator::CoreMl.heavy(&placed, &fused), (2, 2));
        let left = nodes(&[(provider, "CoreML_7_0"), (CPU, "MatMul")]);
        let elsewhere = nodes(&[(CPU, "Gather")]);
        for executed in [left, elsewhere, Nodes::default()] {
            assert!(Accelerator::CoreMl.judge(&placed, &executed).is_err(), "{executed:?}");
        }
    }

    #[test]
    fn devices_have_the_names_of_the_protocol() {
        assert_eq!(name_of(Accelerator::Cuda.provider()), "cuda");
        assert_eq!(name_of(Accelerator::CoreMl.provider()), "coreml");
        assert_eq!(name_of(CPU), "cpu");
        assert_eq!(name_of("OtherProvider"), "OtherProvider");
        let state = DeviceState { wanted: Device::Preferred, used: "cpu".into(), reason: None };
        assert_eq!(state.degraded(), None);
        let state = DeviceState { reason: Some("CUDA: no".into()), ..state };
        assert_eq!(state.degraded().unwrap(), "device_unavailable: CUDA: no");
        assert_eq!(serde_json::to_value(&state).unwrap()["wanted"], "preferred");
    }
}
