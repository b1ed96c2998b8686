//! BERT-family weights to one fused ONNX graph: ids in, one unit vector out.
//!
//! Operators are ONNX Runtime's fused ones (`EmbedLayerNormalization`, `Attention` or `QAttention`,
//! `SkipLayerNormalization`, `BiasGelu`, `DynamicQuantizeMatMul`). The graph takes `input_ids` alone: a text runs by
//! itself at its exact length, so the attention mask is all ones and is left out, and the token type is always 0 and
//! is added to the position table. Invariant: every number comes from the model's own configuration and weights.
//! It must not know ONNX Runtime's API or files other than the weights.

use super::graph::{Attr, Dim, GraphWriter, MICROSOFT, ONNX};
use super::quant::{OutlierPlan, Site, quantise};
use super::{Activation, ModelError, ModelSpec, Pooling, Weights};

/// Counts changes that alter the compiled graph's numbers; part of the fingerprint and of cache names.
pub const GRAPH_VERSION: u32 = 2;

/// The number format of the compiled matrices.
pub enum Weighting<'a> {
    /// 32-bit floats. With `probes`, the graph also gives each site's channel peaks (see [`probe_name`]).
    F32 {
        /// Whether to add the calibration outputs.
        probes: bool,
    },
    /// Signed bytes with the given outlier plans, `plans[layer][site]` in the order of [`Site::ALL`].
    Int8 {
        /// One plan a layer and site.
        plans: &'a [[OutlierPlan; 3]],
    },
}

/// What to compile.
pub struct CompileOptions<'a> {
    /// The number format.
    pub weighting: Weighting<'a>,
}

/// The calibration output that holds the largest absolute value of each input channel of a site, over all tokens.
pub fn probe_name(layer: usize, site: Site) -> String {
    format!("probe_{site:?}_{layer}")
}

/// Compiles `weights` as `spec` describes them; the bytes are an ONNX file with one input `input_ids` (i32,
/// `[batch, tokens]`) and the output `sentence_embedding` (f32, `[batch, hidden]`, unit length).
///
/// # Errors
/// The weights lack a tensor or have another shape than `spec` says.
pub fn compile(
    spec: &ModelSpec,
    weights: &Weights,
    options: &CompileOptions<'_>,
) -> Result<Vec<u8>, ModelError> {
    if !spec.hidden.is_multiple_of(spec.heads) {
        return Err(ModelError::Invalid {
            path: spec.dir.join("config.json"),
            what: format!(
                "hidden_size {} is no multiple of num_attention_heads {}",
                spec.hidden, spec.heads
            ),
        });
    }
    let mut compiler =
        Compiler { spec, weights, weighting: &options.weighting, graph: GraphWriter::default() };
    compiler.embeddings()?;
    for layer in 0..spec.layers {
        compiler.attention(layer)?;
        compiler.feed_forward(layer)?;
    }
    compiler.pool();
    Ok(compiler.graph.finish(&spec.name))
}

struct Compiler<'a> {
    spec: &'a ModelSpec,
    weights: &'a Weights,
    weighting: &'a Weighting<'a>,
    graph: GraphWriter,
}

impl Compiler<'_> {
    fn plan(&self, layer: usize, site: Site) -> Option<OutlierPlan> {
        match self.weighting {
            Weighting::F32 { .. } => None,
            Weighting::Int8 { plans } => Some(plans[layer][site as usize].clone()),
        }
    }

    fn embeddings(&mut self) -> Result<(), ModelError> {
        let ModelSpec { hidden, vocab, positions, token_types, position_offset, .. } = *self.spec;
        let words = self.weights.tensor("embeddings.word_embeddings.weight", &[vocab, hidden])?;
        let mut table =
            self.weights.tensor("embeddings.position_embeddings.weight", &[positions, hidden])?;
        let types = self
            .weights
            .tensor("embeddings.token_type_embeddings.weight", &[token_types, hidden])?;
        for row in table.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&types[..hidden]).for_each(|(cell, add)| *cell += add);
        }
        let table = &table[position_offset * hidden..];
        self.graph.input("input_ids", &[Dim::Named("batch"), Dim::Named("tokens")]);
        self.graph.floats("words", &[vocab, hidden], &words);
        self.graph.floats("positions", &[positions - position_offset, hidden], table);
        self.norm_constants("embeddings.LayerNorm", "norm_x0")?;
        self.graph.node(
            MICROSOFT,
            "EmbedLayerNormalization",
            &["input_ids", "", "words", "positions", "", "norm_x0_weight", "norm_x0_bias"],
            &["x0", "x0_mask"],
            &[Attr::Float("epsilon", self.spec.eps)],
        );
        Ok(())
    }

    /// `x{layer}` through self-attention and its normalisation to `y{layer}`.
    fn attention(&mut self, layer: usize) -> Result<(), ModelError> {
        let hidden = self.spec.hidden;
        let from = format!("encoder.layer.{layer}.attention");
        let x = format!("x{layer}");
        let parts = ["query", "key", "value"];
        let mut matrices = Vec::new();
        let mut bias = Vec::new();
        for part in parts {
            matrices.push(self.weights.transposed(
                &format!("{from}.self.{part}.weight"),
                hidden,
                hidden,
            )?);
            bias.extend(self.weights.tensor(&format!("{from}.self.{part}.bias"), &[hidden])?);
        }
        let mut joined = Vec::with_capacity(3 * hidden * hidden);
        for row in 0..hidden {
            for matrix in &matrices {
                joined.extend_from_slice(&matrix[row * hidden..(row + 1) * hidden]);
            }
        }
        let bias_name = format!("qkv_bias{layer}");
        self.graph.floats(&bias_name, &[3 * hidden], &bias);
        let out = format!("attention{layer}");
        self.probe(layer, Site::Attention, &x);
        self.attend(layer, &x, &joined, &bias_name, &out);
        let dense =
            self.weights.transposed(&format!("{from}.output.dense.weight"), hidden, hidden)?;
        let projected = format!("projected{layer}");
        self.multiply(&out, &projected, &dense, hidden, None);
        self.skip_norm(&projected, &x, &format!("{from}.output"), &format!("y{layer}"))
    }

    fn attend(&mut self, layer: usize, x: &str, matrix: &[f32], bias: &str, out: &str) {
        let hidden = self.spec.hidden;
        let heads = [Attr::Int("num_heads", self.spec.heads as i64)];
        let name = format!("qkv{layer}");
        let Some(plan) = self.plan(layer, Site::Attention) else {
            self.graph.floats(&name, &[hidden, 3 * hidden], matrix);
            self.graph.node(MICROSOFT, "Attention", &[x, &name, bias], &[out], &heads);
            return;
        };
        let input = self.split_input(x, &plan, &name);
        let rows = self.matrix(&name, matrix, 3 * hidden, &plan);
        debug_assert_eq!(rows, hidden + plan.extra().len());
        let [codes, scale] = ["codes", "scale"].map(|part| format!("{name}_{part}"));
        let [quantised, input_scale, input_zero] =
            ["input", "input_scale", "input_zero"].map(|part| format!("{name}_{part}"));
        self.graph.node(
            ONNX,
            "DynamicQuantizeLinear",
            &[&input],
            &[&quantised, &input_scale, &input_zero],
            &[],
        );
        self.graph.node(
            MICROSOFT,
            "QAttention",
            &[&quantised, &codes, bias, &input_scale, &scale, "", &input_zero],
            &[out],
            &heads,
        );
    }

    /// `y{layer}` through the two feed-forward matrices and the normalisation to `x{layer + 1}`.
    fn feed_forward(&mut self, layer: usize) -> Result<(), ModelError> {
        let ModelSpec { hidden, intermediate, .. } = *self.spec;
        let from = format!("encoder.layer.{layer}");
        let y = format!("y{layer}");
        let mut wide = self.weights.transposed(
            &format!("{from}.intermediate.dense.weight"),
            intermediate,
            hidden,
        )?;
        let mut bias =
            self.weights.tensor(&format!("{from}.intermediate.dense.bias"), &[intermediate])?;
        let narrow = self.weights.transposed(
            &format!("{from}.output.dense.weight"),
            hidden,
            intermediate,
        )?;
        let plan = self.plan(layer, Site::Narrow);
        // A hidden neuron is repeated by repeating its column: no gathering at run time.
        let extra = plan.as_ref().map(OutlierPlan::extra).unwrap_or_default();
        let width = intermediate + extra.len();
        wide = repeat_columns(&wide, intermediate, &extra);
        bias.extend(extra.iter().map(|&neuron| bias[neuron]).collect::<Vec<_>>());
        self.probe(layer, Site::Widen, &y);
        let hidden_name = format!("wide{layer}");
        self.multiply(&y, &hidden_name, &wide, width, self.plan(layer, Site::Widen).as_ref());
        let bias_name = format!("wide_bias{layer}");
        self.graph.floats(&bias_name, &[width], &bias);
        let mut active = self.activate(&hidden_name, &bias_name, layer);
        self.probe(layer, Site::Narrow, &active);
        if let Some(plan) = plan.as_ref().filter(|plan| plan.splits()) {
            let mut factors = plan.factors();
            factors.extend(extra.iter().map(|&neuron| factors[neuron]).collect::<Vec<_>>());
            let (name, scaled) = (format!("narrow_factors{layer}"), format!("scaled{layer}"));
            self.graph.floats(&name, &[width], &factors);
            self.graph.node(ONNX, "Mul", &[&active, &name], &[&scaled], &[]);
            active = scaled;
        }
        let mut rows = narrow;
        for neuron in extra {
            rows.extend_from_within(neuron * hidden..(neuron + 1) * hidden);
        }
        let narrowed = format!("narrow{layer}");
        self.multiply(&active, &narrowed, &rows, hidden, None);
        self.skip_norm(&narrowed, &y, &format!("{from}.output"), &format!("x{}", layer + 1))
    }

    fn activate(&mut self, input: &str, bias: &str, layer: usize) -> String {
        let out = format!("active{layer}");
        match self.spec.activation {
            Activation::Gelu => {
                self.graph.node(MICROSOFT, "BiasGelu", &[input, bias], &[&out], &[])
            }
            Activation::GeluTanh => {
                self.graph.node(MICROSOFT, "FastGelu", &[input, bias], &[&out], &[])
            }
            Activation::Relu => {
                let sum = format!("biased{layer}");
                self.graph.node(ONNX, "Add", &[input, bias], &[&sum], &[]);
                self.graph.node(ONNX, "Relu", &[&sum], &[&out], &[]);
            }
        }
        out
    }

    /// `out = input · matrix`, in the chosen number format. `plan` splits the input's outliers first.
    fn multiply(
        &mut self,
        input: &str,
        out: &str,
        matrix: &[f32],
        columns: usize,
        plan: Option<&OutlierPlan>,
    ) {
        let name = format!("{out}_weight");
        let rows = matrix.len() / columns;
        if matches!(self.weighting, Weighting::F32 { .. }) {
            self.graph.floats(&name, &[rows, columns], matrix);
            self.graph.node(ONNX, "MatMul", &[input, &name], &[out], &[]);
            return;
        }
        let identity = OutlierPlan::identity(rows);
        let plan = plan.unwrap_or(&identity);
        let input = self.split_input(input, plan, &name);
        self.matrix(&name, matrix, columns, plan);
        let [codes, scale] = ["codes", "scale"].map(|part| format!("{name}_{part}"));
        self.graph.node(MICROSOFT, "DynamicQuantizeMatMul", &[&input, &codes, &scale], &[out], &[]);
    }

    /// Divides and repeats the outlier channels of `input`; the name of the result.
    fn split_input(&mut self, input: &str, plan: &OutlierPlan, name: &str) -> String {
        if !plan.splits() {
            return input.to_owned();
        }
        let [factors, channels, scaled, copies, joined] =
            ["factors", "channels", "scaled", "copies", "joined"]
                .map(|part| format!("{name}_{part}"));
        let extra: Vec<i64> = plan.extra().into_iter().map(|channel| channel as i64).collect();
        self.graph.floats(&factors, &[plan.channels()], &plan.factors());
        self.graph.ints(&channels, &extra, false);
        self.graph.node(ONNX, "Mul", &[input, &factors], &[&scaled], &[]);
        self.graph.node(ONNX, "Gather", &[&scaled, &channels], &[&copies], &[Attr::Int("axis", 2)]);
        self.graph.node(ONNX, "Concat", &[&scaled, &copies], &[&joined], &[Attr::Int("axis", 2)]);
        joined
    }

    /// Writes the quantised matrix with its repeated rows; how many rows it has.
    fn matrix(&mut self, name: &str, matrix: &[f32], columns: usize, plan: &OutlierPlan) -> usize {
        let mut rows = matrix.to_vec();
        for channel in plan.extra() {
            rows.extend_from_slice(&matrix[channel * columns..(channel + 1) * columns]);
        }
        let count = rows.len() / columns;
        let quantised = quantise(&rows, columns);
        self.graph.bytes(&format!("{name}_codes"), &[count, columns], quantised.codes);
        self.graph.floats(&format!("{name}_scale"), &[columns], &quantised.scales);
        count
    }

    fn norm_constants(&mut self, from: &str, name: &str) -> Result<(), ModelError> {
        for part in ["weight", "bias"] {
            let values = self.weights.tensor(&format!("{from}.{part}"), &[self.spec.hidden])?;
            self.graph.floats(&format!("{name}_{part}"), &[self.spec.hidden], &values);
        }
        Ok(())
    }

    /// `out = LayerNorm(input + bias + skip)`.
    fn skip_norm(
        &mut self,
        input: &str,
        skip: &str,
        from: &str,
        out: &str,
    ) -> Result<(), ModelError> {
        let name = format!("norm_{out}");
        self.norm_constants(&format!("{from}.LayerNorm"), &name)?;
        let bias = self.weights.tensor(&format!("{from}.dense.bias"), &[self.spec.hidden])?;
        self.graph.floats(&format!("{name}_dense_bias"), &[self.spec.hidden], &bias);
        let [weight, norm_bias, dense_bias] =
            ["weight", "bias", "dense_bias"].map(|part| format!("{name}_{part}"));
        self.graph.node(
            MICROSOFT,
            "SkipLayerNormalization",
            &[input, skip, &weight, &norm_bias, &dense_bias],
            &[out],
            &[Attr::Float("epsilon", self.spec.eps)],
        );
        Ok(())
    }

    fn probe(&mut self, layer: usize, site: Site, value: &str) {
        if !matches!(self.weighting, Weighting::F32 { probes: true }) {
            return;
        }
        let name = probe_name(layer, site);
        let size = format!("{name}_size");
        self.graph.node(ONNX, "Abs", &[value], &[&size], &[]);
        let axes = [Attr::Ints("axes", &[0, 1]), Attr::Int("keepdims", 0)];
        self.graph.node(ONNX, "ReduceMax", &[&size], &[&name], &axes);
        let channels = if site == Site::Narrow { self.spec.intermediate } else { self.spec.hidden };
        self.graph.output(&name, &[Dim::Fixed(channels)]);
    }

    fn pool(&mut self) {
        let last = format!("x{}", self.spec.layers);
        let token = |graph: &mut GraphWriter, at: i64| {
            graph.ints("pooled_token", &[at], true);
            graph.node(
                ONNX,
                "Gather",
                &[&last, "pooled_token"],
                &["pooled"],
                &[Attr::Int("axis", 1)],
            );
        };
        match self.spec.pooling {
            Pooling::Cls => token(&mut self.graph, 0),
            Pooling::LastToken => token(&mut self.graph, -1),
            Pooling::Mean => {
                let axes = [Attr::Ints("axes", &[1]), Attr::Int("keepdims", 0)];
                self.graph.node(ONNX, "ReduceMean", &[&last], &["pooled"], &axes);
            }
        }
        let unit = [Attr::Int("axis", -1), Attr::Int("p", 2)];
        self.graph.node(ONNX, "LpNormalization", &["pooled"], &["sentence_embedding"], &unit);
        let shape = [Dim::Named("batch"), Dim::Fixed(self.spec.hidden)];
        self.graph.output("sentence_embedding", &shape);
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
    use super::*;

    #[test]
    fn repeated_columns_follow_the_row() {
        assert_eq!(repeat_columns(&[1., 2., 3., 4.], 2, &[1, 1]), [1., 2., 2., 2., 3., 4., 4., 4.]);
    }
}
