//! The operator `flashbulb.EncoderLayer` for ONNX Runtime's CPU provider, over the kernels' encoder layer.
//!
//! Why: on a processor without VNNI the default model takes about 0.6 of the time that ONNX Runtime's own quantised
//! operators take for 16 tokens and 0.7 for 32 (as long for 128), a text's vector depends on no other text, and it is the
//! same on every processor. Invariant: it computes on the thread that runs the session, and on the helper if that thread has
//! borrowed it. It must not know any model.

use std::sync::Arc;

use flashbulb_kernels::Kernels;
use flashbulb_kernels::encoder::{Layer, LayerShape, Scratch};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::helper::with_team;
use super::raw::Lasting;
use crate::model::{ENCODER_LAYER, FLASHBULB, encoder_layer_shape};

/// Flashbulb's operators, for one session, which hold `constants` for as long as it lives.
pub fn domain(constants: Arc<Lasting>) -> ort::Result<OperatorDomain> {
    OperatorDomain::new(FLASHBULB)?.add(EncoderLayer { _constants: constants })
}

struct EncoderLayer {
    _constants: Arc<Lasting>,
}

impl Operator for EncoderLayer {
    type Kernel<'attr> = LayerKernel;

    fn name(&self) -> &str {
        ENCODER_LAYER
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::required(TensorElementType::Int8),
            OperatorInput::required(TensorElementType::Float32),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<LayerKernel> {
        let shape = encoder_layer_shape(
            |name| context.get::<i64>(name),
            |name| context.get::<Vec<i64>>(name),
            |name| context.get::<f32>(name),
        );
        Ok(LayerKernel { shape: shape.map_err(ort::Error::new)?, scratch: Scratch::default() })
    }
}

struct LayerKernel {
    shape: LayerShape,
    scratch: Scratch,
}

impl Kernel for LayerKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |at: usize| {
            let found = context.input(at)?;
            found.ok_or_else(|| ort::Error::new(format!("{ENCODER_LAYER} lacks input {at}")))
        };
        let (rows, codes, params) = (input(0)?, input(1)?, input(2)?);
        let (shape, rows) = rows.try_extract_tensor::<f32>()?;
        let (_, codes) = codes.try_extract_tensor::<i8>()?;
        let (_, params) = params.try_extract_tensor::<f32>()?;
        // One text: the layer lets every row see every other.
        let [1, _, width] = shape[..] else {
            return Err(ort::Error::new(format!("{ENCODER_LAYER} takes one text, not {shape:?}")));
        };
        if usize::try_from(width).ok() != Some(self.shape.hidden) {
            let hidden = self.shape.hidden;
            return Err(ort::Error::new(format!("rows of {width} for a layer of {hidden}")));
        }
        let layer = Layer::new(&self.shape, codes, params)
            .map_err(|error| ort::Error::new(error.to_string()))?;
        let output = context.output(0, shape.to_vec())?;
        let mut output =
            output.ok_or_else(|| ort::Error::new(format!("{ENCODER_LAYER} has no output")))?;
        let (_, out) = output.try_extract_tensor_mut::<f32>()?;
        let kernels = Kernels::detect();
        with_team(|team| kernels.encoder_layer(&layer, rows, out, &mut self.scratch, team));
        Ok(())
    }
}
