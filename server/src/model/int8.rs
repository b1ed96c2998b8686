//! One encoder layer in int8: quantised, packed for the kernels, and written as one operator of the graph.
//!
//! Invariant: what [`attributes`] writes, [`shape`] reads back. It must not know how the operator is run.

use flashbulb_kernels::encoder::{self, LayerParts, LayerShape, Matrix, Norm};

use super::bert::Compiler;
use super::graph::{Attr, FLASHBULB};
use super::quant::{OutlierPlan, QuantisedMatrix, Site, quantise};
use super::{Activation, ModelError, ModelSpec};

/// The operator's name: one encoder layer of a text, `[1, tokens, hidden]` in and out, with its packed weights as
/// second (bytes) and third (floats) input.
pub const ENCODER_LAYER: &str = "EncoderLayer";

/// The integer attributes of the operator that every layer has.
const SIZES: [&str; 4] = ["hidden", "heads", "wide", "activation"];
/// Lists of channels; absent where they would be empty.
const COPIES: [&str; 2] = ["attention_copies", "widen_copies"];
const EPSILON: &str = "epsilon";

/// The activations as the attribute counts them.
const ACTIVATIONS: [encoder::Activation; 3] =
    [encoder::Activation::Gelu, encoder::Activation::GeluTanh, encoder::Activation::Relu];

fn attributes(shape: &LayerShape, lists: &[Vec<i64>; 2], write: impl FnOnce(&[Attr<'_>])) {
    let activation = ACTIVATIONS.iter().position(|known| *known == shape.activation);
    let sizes = [shape.hidden, shape.heads, shape.wide, activation.unwrap_or_default()];
    let mut attributes = vec![Attr::Float(EPSILON, shape.epsilon)];
    attributes.extend(SIZES.iter().zip(sizes).map(|(name, size)| Attr::Int(name, size as i64)));
    let lists = COPIES.iter().zip(lists).filter(|(_, list)| !list.is_empty());
    attributes.extend(lists.map(|(name, list)| Attr::Ints(name, list)));
    write(&attributes);
}

/// The shape that an operator's attributes say.
///
/// # Errors
/// Which of them is missing or wrong.
pub fn shape(
    int: impl Fn(&str) -> Option<i64>,
    ints: impl Fn(&str) -> Option<Vec<i64>>,
    float: impl Fn(&str) -> Option<f32>,
) -> Result<LayerShape, String> {
    let size = |name: &str| {
        let size = int(name).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| format!("{ENCODER_LAYER} has no usable attribute `{name}`"))
    };
    let list = |name: &str| -> Result<Vec<usize>, String> {
        let channels = ints(name).unwrap_or_default().into_iter().map(usize::try_from);
        channels
            .collect::<Result<_, _>>()
            .map_err(|_| format!("{ENCODER_LAYER} has a negative channel in `{name}`"))
    };
    let activation = size(SIZES[3])?;
    Ok(LayerShape {
        hidden: size(SIZES[0])?,
        heads: size(SIZES[1])?,
        wide: size(SIZES[2])?,
        activation: *ACTIVATIONS
            .get(activation)
            .ok_or_else(|| format!("{ENCODER_LAYER} has an unknown activation {activation}"))?,
        attention_copies: list(COPIES[0])?,
        widen_copies: list(COPIES[1])?,
        epsilon: float(EPSILON)
            .ok_or_else(|| format!("{ENCODER_LAYER} has no usable attribute `{EPSILON}`"))?,
    })
}

/// A quantised matrix with its bias.
struct Dense {
    matrix: QuantisedMatrix,
    bias: Vec<f32>,
}

impl Dense {
    /// Quantises a row-major matrix whose input channels are prepared as `plan` says.
    fn new(mut rows: Vec<f32>, bias: Vec<f32>, plan: &OutlierPlan) -> Self {
        let columns = bias.len();
        for (row, factor) in rows.chunks_exact_mut(columns).zip(plan.smoothing()) {
            row.iter_mut().for_each(|weight| *weight *= factor);
        }
        for channel in plan.extra() {
            rows.extend_from_within(channel * columns..(channel + 1) * columns);
        }
        Self { matrix: quantise(&rows, columns), bias }
    }

    fn view(&self) -> Matrix<'_> {
        Matrix { codes: &self.matrix.codes, scales: &self.matrix.scales, bias: &self.bias }
    }
}

impl Compiler<'_> {
    /// `x{layer}` through the whole layer to `x{layer + 1}`.
    pub(super) fn int8_layer(
        &mut self,
        layer: usize,
        plans: &[OutlierPlan; 3],
    ) -> Result<(), ModelError> {
        let ModelSpec { hidden, intermediate, heads, eps, .. } = *self.spec;
        let from = format!("encoder.layer.{layer}");
        let plan = |site: Site| &plans[site as usize];
        let (attention, widen, narrow) =
            (plan(Site::Attention), plan(Site::Widen), plan(Site::Narrow));
        let [attention_copies, widen_copies, neurons] =
            [attention, widen, narrow].map(|p| p.extra());

        let (matrix, bias) = self.qkv(layer)?;
        let qkv = Dense::new(matrix, bias, attention);
        let (matrix, bias) = self.dense(&format!("{from}.attention.output"), hidden, hidden)?;
        let out = Dense::new(matrix, bias, &OutlierPlan::identity(hidden));
        // A neuron is repeated by repeating its column: the copy needs no gathering.
        let (matrix, mut bias) =
            self.dense(&format!("{from}.intermediate"), hidden, intermediate)?;
        let matrix = repeat_columns(&matrix, intermediate, &neurons);
        bias.extend(neurons.iter().map(|&neuron| bias[neuron]).collect::<Vec<_>>());
        let wide = bias.len();
        let widened = Dense::new(matrix, bias, widen);
        let (matrix, bias) = self.dense(&format!("{from}.output"), intermediate, hidden)?;
        let narrowed = Dense::new(matrix, bias, narrow);
        let mut narrow_factors = narrow.factors();
        narrow_factors.extend(neurons.iter().map(|&n| narrow_factors[n]).collect::<Vec<_>>());

        let norms = [".attention.output.LayerNorm", ".output.LayerNorm"];
        let [attention_norm, output_norm] = norms.map(|norm| self.norm(&format!("{from}{norm}")));
        let (attention_norm, output_norm) = (attention_norm?, output_norm?);
        let shape = LayerShape {
            hidden,
            heads,
            wide,
            attention_copies,
            widen_copies,
            activation: match self.spec.activation {
                Activation::Gelu => encoder::Activation::Gelu,
                Activation::GeluTanh => encoder::Activation::GeluTanh,
                Activation::Relu => encoder::Activation::Relu,
            },
            epsilon: eps,
        };
        let parts = LayerParts {
            attention_factors: &attention.factors(),
            qkv: qkv.view(),
            out: out.view(),
            attention_norm: Norm { weight: &attention_norm[0], bias: &attention_norm[1] },
            widen_factors: &widen.factors(),
            widen: widened.view(),
            narrow_factors: &narrow_factors,
            narrow: narrowed.view(),
            output_norm: Norm { weight: &output_norm[0], bias: &output_norm[1] },
        };
        self.write_layer(layer, &shape, &parts)
    }

    fn write_layer(
        &mut self,
        layer: usize,
        shape: &LayerShape,
        parts: &LayerParts<'_>,
    ) -> Result<(), ModelError> {
        let packed = encoder::pack(shape, parts).map_err(|error| ModelError::Invalid {
            path: self.spec.dir.clone(),
            what: format!("layer {layer}: {error}"),
        })?;
        let [codes, params] = ["codes", "params"].map(|part| format!("layer{layer}_{part}"));
        self.graph.bytes(&codes, &[packed.codes.len()], &packed.codes);
        self.graph.floats(&params, &[packed.params.len()], &packed.params);
        let lists = [&shape.attention_copies, &shape.widen_copies]
            .map(|list| list.iter().map(|&channel| channel as i64).collect());
        let (input, out) = (format!("x{layer}"), format!("x{}", layer + 1));
        attributes(shape, &lists, |attributes| {
            let inputs = [input.as_str(), &codes, &params];
            self.graph.node(FLASHBULB, ENCODER_LAYER, &inputs, &[&out], attributes);
        });
        Ok(())
    }
}

/// A row-major matrix with the given columns repeated at its end.
fn repeat_columns(matrix: &[f32], columns: usize, extra: &[usize]) -> Vec<f32> {
    let mut wide = Vec::with_capacity(matrix.len() / columns * (columns + extra.len()));
    for row in matrix.chunks_exact(columns) {
        wide.extend_from_slice(row);
        wide.extend(extra.iter().map(|&column| row[column]));
    }
    wide
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn repeated_columns_follow_the_row() {
        assert_eq!(repeat_columns(&[1., 2., 3., 4.], 2, &[1, 1]), [1., 2., 2., 2., 3., 4., 4., 4.]);
    }

    fn read_back(
        attributes: &[(String, i64)],
        lists: &[(String, Vec<i64>)],
    ) -> Result<LayerShape, String> {
        let find = |name: &str| attributes.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        let list = |name: &str| lists.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        shape(find, list, |name| (name == "epsilon").then_some(1e-5))
    }

    #[test]
    fn attributes_are_read_back_as_they_were_written() {
        let written = LayerShape {
            hidden: 32,
            heads: 4,
            wide: 70,
            attention_copies: vec![3, 3],
            widen_copies: vec![],
            activation: encoder::Activation::Relu,
            epsilon: 1e-5,
        };
        let (mut sizes, mut lists) = (Vec::new(), Vec::new());
        attributes(&written, &[vec![3, 3], vec![]], |all| {
            for attribute in all {
                match *attribute {
                    Attr::Int(name, value) => sizes.push((name.to_owned(), value)),
                    Attr::Ints(name, value) => lists.push((name.to_owned(), value.to_vec())),
                    Attr::Float(name, value) => assert_eq!((name, value), ("epsilon", 1e-5)),
                }
            }
        });
        assert_eq!(read_back(&sizes, &lists).unwrap(), written);
        assert_eq!(lists.len(), 1, "an empty list is left out");
        for at in 0..sizes.len() {
            let mut without = sizes.clone();
            let (name, _) = without.remove(at);
            assert!(read_back(&without, &lists).unwrap_err().contains(&name));
        }
        sizes[3].1 = 9;
        assert!(read_back(&sizes, &lists).unwrap_err().contains("activation 9"));
        lists[0].1[0] = -1;
        sizes[3].1 = 0;
        assert!(read_back(&sizes, &lists).unwrap_err().contains("negative channel"));
    }
}
