//! BERT-family weights to one fused ONNX graph: ids in, one unit vector out.
//!
//! In floats the operators are ONNX Runtime's fused ones (`EmbedLayerNormalization`, `Attention`,
//! `SkipLayerNormalization`, `BiasGelu`). In int8 each encoder layer is one operator of Flashbulb's own
//! (`flashbulb.EncoderLayer`, see [`super::int8`]), which ONNX Runtime runs on its CPU provider. The graph takes
//! `input_ids` alone: a text runs by itself at its exact length, so the attention mask is all ones and is left out, and
//! the token type is always 0 and is added to the position table. The graph for many texts at once, in floats, takes an
//! `attention_mask` too. For providers that do not know the fused operators there is the float graph in standard ones
//! (see [`super::standard`]). Invariant: every number comes from the model's own
//! configuration and weights. It must not know ONNX Runtime's API or files other than the weights.

use super::graph::{Attr, Dim, GraphWriter, MICROSOFT, ONNX};
use super::quant::{OutlierPlan, Site};
use super::{Activation, ModelError, ModelSpec, Pooling, Weights};

/// Counts changes that alter the compiled graph's numbers, in its bytes or in the kernels that run it; part of the
/// fingerprint and of cache names.
pub const GRAPH_VERSION: u32 = 3;

/// The number format of the compiled matrices.
pub enum Weighting<'a> {
    /// 32-bit floats. With `probes`, the graph also gives each site's channel peaks (see [`probe_name`]).
    F32 {
        /// Whether to add the calibration outputs.
        probes: bool,
    },
    /// 32-bit floats, for texts of different lengths in one run: ones in the input `attention_mask` (i32,
    /// `[batch, tokens]`) say which tokens are a text's own, the zeros after them are padding.
    MaskedF32,
    /// 32-bit floats, in operators of the ONNX standard alone.
    StandardF32,
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
/// `[batch, tokens]`; see also [`Weighting::MaskedF32`]) and the output `sentence_embedding` (f32, `[batch, hidden]`, unit
/// length).
///
/// # Errors
/// The weights lack a tensor or have another shape than `spec` says; or a mask is wanted where the last token is pooled.
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
    if matches!(options.weighting, Weighting::MaskedF32) && !spec.pooling.bears_padding() {
        return Err(ModelError::Invalid {
            path: spec.dir.clone(),
            what: "the last token of a padded text is not at the end".to_owned(),
        });
    }
    let mut compiler =
        Compiler { spec, weights, weighting: &options.weighting, graph: GraphWriter::default() };
    compiler.embeddings()?;
    for layer in 0..spec.layers {
        match options.weighting {
            Weighting::F32 { .. } | Weighting::MaskedF32 | Weighting::StandardF32 => {
                compiler.attention(layer)?;
                compiler.feed_forward(layer)?;
            }
            Weighting::Int8 { plans } => compiler.int8_layer(layer, &plans[layer])?,
        }
    }
    compiler.pool();
    Ok(compiler.graph.finish(&spec.name))
}

pub(super) struct Compiler<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) weights: &'a Weights,
    weighting: &'a Weighting<'a>,
    pub(super) graph: GraphWriter,
}

impl Compiler<'_> {
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
        if self.is_standard() {
            self.standard_embeddings();
            return Ok(());
        }
        let mut inputs =
            vec!["input_ids", "", "words", "positions", "", "norm_x0_weight", "norm_x0_bias"];
        if self.masked() {
            self.graph.input("attention_mask", &[Dim::Named("batch"), Dim::Named("tokens")]);
            inputs.push("attention_mask");
        }
        self.graph.node(
            MICROSOFT,
            "EmbedLayerNormalization",
            &inputs,
            // Of a mask, the second output has how many ones each text has.
            &["x0", "x0_mask"],
            &[Attr::Float("epsilon", self.spec.eps)],
        );
        Ok(())
    }

    fn is_standard(&self) -> bool {
        matches!(self.weighting, Weighting::StandardF32)
    }

    fn masked(&self) -> bool {
        matches!(self.weighting, Weighting::MaskedF32)
    }

    /// Queries, keys and values side by side, `[hidden, 3 · hidden]`, and their biases.
    pub(super) fn qkv(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        let hidden = self.spec.hidden;
        let from = format!("encoder.layer.{layer}.attention.self");
        let mut matrices = Vec::new();
        let mut bias = Vec::new();
        for part in ["query", "key", "value"] {
            let name = format!("{from}.{part}");
            matrices.push(self.weights.transposed(&format!("{name}.weight"), hidden, hidden)?);
            bias.extend(self.weights.tensor(&format!("{name}.bias"), &[hidden])?);
        }
        let mut joined = Vec::with_capacity(3 * hidden * hidden);
        for row in 0..hidden {
            for matrix in &matrices {
                joined.extend_from_slice(&matrix[row * hidden..(row + 1) * hidden]);
            }
        }
        Ok((joined, bias))
    }

    /// The matrix of a `dense` layer as `[inputs, outputs]`, and its bias.
    pub(super) fn dense(
        &self,
        from: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        let matrix = self.weights.transposed(&format!("{from}.dense.weight"), outputs, inputs)?;
        let bias = self.weights.tensor(&format!("{from}.dense.bias"), &[outputs])?;
        Ok((matrix, bias))
    }

    /// Weight and bias of a layer normalisation.
    pub(super) fn norm(&self, from: &str) -> Result<[Vec<f32>; 2], ModelError> {
        let part = |part| self.weights.tensor(&format!("{from}.{part}"), &[self.spec.hidden]);
        Ok([part("weight")?, part("bias")?])
    }

    /// `x{layer}` through self-attention and its normalisation to `y{layer}`.
    fn attention(&mut self, layer: usize) -> Result<(), ModelError> {
        let hidden = self.spec.hidden;
        let (matrix, bias) = self.qkv(layer)?;
        let [x, name, bias_name, out] =
            ["x", "qkv", "qkv_bias", "attention"].map(|part| format!("{part}{layer}"));
        self.probe(layer, Site::Attention, &x);
        self.graph.floats(&name, &[hidden, 3 * hidden], &matrix);
        self.graph.floats(&bias_name, &[3 * hidden], &bias);
        if self.is_standard() {
            self.standard_attention(&x, &name, &bias_name, &out);
        } else {
            let heads = [Attr::Int("num_heads", self.spec.heads as i64)];
            let mut inputs = vec![x.as_str(), &name, &bias_name];
            if self.masked() {
                inputs.push("x0_mask");
            }
            self.graph.node(MICROSOFT, "Attention", &inputs, &[&out], &heads);
        }
        let from = format!("encoder.layer.{layer}.attention.output");
        self.dense_and_norm(&from, &out, hidden, &x, &format!("y{layer}"))
    }

    /// `y{layer}` through the two feed-forward matrices and the normalisation to `x{layer + 1}`.
    fn feed_forward(&mut self, layer: usize) -> Result<(), ModelError> {
        let ModelSpec { hidden, intermediate, .. } = *self.spec;
        let from = format!("encoder.layer.{layer}");
        let (matrix, bias) = self.dense(&format!("{from}.intermediate"), hidden, intermediate)?;
        let [y, wide, bias_name] = ["y", "wide", "wide_bias"].map(|part| format!("{part}{layer}"));
        self.probe(layer, Site::Widen, &y);
        self.multiply(&y, &wide, &matrix, intermediate);
        self.graph.floats(&bias_name, &[intermediate], &bias);
        let active = self.activate(&wide, &bias_name, layer);
        self.probe(layer, Site::Narrow, &active);
        let out = format!("x{}", layer + 1);
        self.dense_and_norm(&format!("{from}.output"), &active, intermediate, &y, &out)
    }

    fn activate(&mut self, input: &str, bias: &str, layer: usize) -> String {
        let out = format!("active{layer}");
        match self.spec.activation {
            Activation::Gelu | Activation::GeluTanh if self.is_standard() => {
                self.standard_gelu(input, bias, &out);
            }
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

    /// `out = input · matrix`.
    fn multiply(&mut self, input: &str, out: &str, matrix: &[f32], columns: usize) {
        let name = format!("{out}_weight");
        self.graph.floats(&name, &[matrix.len() / columns, columns], matrix);
        self.graph.node(ONNX, "MatMul", &[input, &name], &[out], &[]);
    }

    fn norm_constants(&mut self, from: &str, name: &str) -> Result<(), ModelError> {
        let [weight, bias] = self.norm(from)?;
        self.graph.floats(&format!("{name}_weight"), &[self.spec.hidden], &weight);
        self.graph.floats(&format!("{name}_bias"), &[self.spec.hidden], &bias);
        Ok(())
    }

    /// `out = LayerNorm(input · matrix + bias + skip)`.
    fn dense_and_norm(
        &mut self,
        from: &str,
        input: &str,
        width: usize,
        skip: &str,
        out: &str,
    ) -> Result<(), ModelError> {
        let hidden = self.spec.hidden;
        let (matrix, bias) = self.dense(from, width, hidden)?;
        let [product, name] = ["product", "norm"].map(|part| format!("{part}_{out}"));
        self.multiply(input, &product, &matrix, hidden);
        self.norm_constants(&format!("{from}.LayerNorm"), &name)?;
        self.graph.floats(&format!("{name}_dense_bias"), &[hidden], &bias);
        if self.is_standard() {
            self.standard_skip_norm(&product, skip, &name, out);
            return Ok(());
        }
        let [weight, norm_bias, dense_bias] =
            ["weight", "bias", "dense_bias"].map(|part| format!("{name}_{part}"));
        self.graph.node(
            MICROSOFT,
            "SkipLayerNormalization",
            &[&product, skip, &weight, &norm_bias, &dense_bias],
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

    /// `tokens` with zeros for the padding. A mean over them is too short, and is brought to unit length anyhow.
    fn own_tokens(&mut self, tokens: &str) -> String {
        let to_float = [Attr::Int("to", 1)];
        self.graph.node(ONNX, "Cast", &["attention_mask"], &["own"], &to_float);
        // The first two lengths stay, a third of one is added.
        self.graph.ints("own_shape", &[0, 0, 1]);
        self.graph.node(ONNX, "Reshape", &["own", "own_shape"], &["own_column"], &[]);
        self.graph.node(ONNX, "Mul", &[tokens, "own_column"], &["own_tokens"], &[]);
        "own_tokens".to_owned()
    }

    fn pool(&mut self) {
        let last = format!("x{}", self.spec.layers);
        let token = |graph: &mut GraphWriter, at: i64| {
            graph.int("pooled_token", at);
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
                let own = if self.masked() { self.own_tokens(&last) } else { last };
                self.graph.node(ONNX, "ReduceMean", &[&own], &["pooled"], &axes);
            }
        }
        let unit = [Attr::Int("axis", -1), Attr::Int("p", 2)];
        self.graph.node(ONNX, "LpNormalization", &["pooled"], &["sentence_embedding"], &unit);
        let shape = [Dim::Named("batch"), Dim::Fixed(self.spec.hidden)];
        self.graph.output("sentence_embedding", &shape);
    }
}
