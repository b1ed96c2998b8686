//! The fused operators of the float graph, written out in those of the ONNX standard.
//!
//! Why: providers that take a graph apart themselves, such as CoreML, know only these. Invariant: the numbers are those of
//! the fused operators up to rounding. It must not know any provider.

use super::Activation;
use super::bert::Compiler;
use super::graph::{Attr, ONNX};

/// Shapes of the attention's heads, side by side and apart; 0 keeps a length.
const APART: &str = "heads_apart";
const JOINED: &str = "heads_joined";
const SCALE: &str = "attention_scale";

impl Compiler<'_> {
    /// A node of the standard; the first of `outputs` names it.
    fn standard(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[Attr<'_>]) {
        self.graph.node(ONNX, op, inputs, &[output], attributes);
    }

    fn layer_norm(&mut self, input: &str, weight: &str, bias: &str, output: &str) {
        let attributes = [Attr::Int("axis", -1), Attr::Float("epsilon", self.spec.eps)];
        self.standard("LayerNormalization", &[input, weight, bias], output, &attributes);
    }

    /// `input_ids` by the tables `words` and `positions`, normalised, to `x0`.
    pub(super) fn standard_embeddings(&mut self) {
        self.standard("Gather", &["words", "input_ids"], "words_of", &[Attr::Int("axis", 0)]);
        let second = [Attr::Int("start", 1), Attr::Int("end", 2)];
        self.standard("Shape", &["input_ids"], "token_count", &second);
        self.graph.ints("zero", &[0]);
        let rows = ["positions", "zero", "token_count", "zero"];
        self.standard("Slice", &rows, "positions_of", &[]);
        self.standard("Add", &["words_of", "positions_of"], "embedded", &[]);
        self.layer_norm("embedded", "norm_x0_weight", "norm_x0_bias", "x0");
        let (heads, width) = (self.spec.heads, self.spec.hidden / self.spec.heads);
        self.graph.ints(APART, &[0, 0, heads as i64, width as i64]);
        self.graph.ints(JOINED, &[0, 0, self.spec.hidden as i64]);
        self.graph.floats(SCALE, &[], &[1.0 / (width as f32).sqrt()]);
    }

    /// `input` by the matrix and bias of queries, keys and values through self-attention to `output`.
    pub(super) fn standard_attention(
        &mut self,
        input: &str,
        matrix: &str,
        bias: &str,
        output: &str,
    ) {
        let named = |part: &str| format!("{part}_{output}");
        let [product, joined] = ["qkv", "qkv_biased"].map(named);
        self.standard("MatMul", &[input, matrix], &product, &[]);
        self.standard("Add", &[&product, bias], &joined, &[]);
        let parts = ["q", "k", "v"].map(named);
        let split = [parts[0].as_str(), &parts[1], &parts[2]];
        self.graph.node(ONNX, "Split", &[&joined], &split, &[Attr::Int("axis", -1)]);
        // Heads before tokens; the keys lie down, to be multiplied with.
        let orders: [&[i64]; 3] = [&[0, 2, 1, 3], &[0, 2, 3, 1], &[0, 2, 1, 3]];
        for (part, order) in parts.iter().zip(orders) {
            let apart = format!("{part}_apart");
            self.standard("Reshape", &[part, APART], &apart, &[]);
            let heads = format!("{part}_heads");
            self.standard("Transpose", &[&apart], &heads, &[Attr::Ints("perm", order)]);
        }
        let [q, k, v] = parts.map(|part| format!("{part}_heads"));
        let [raw, scores, shares, mixed, back] =
            ["raw", "scores", "shares", "mixed", "back"].map(named);
        self.standard("MatMul", &[&q, &k], &raw, &[]);
        self.standard("Mul", &[&raw, SCALE], &scores, &[]);
        self.standard("Softmax", &[&scores], &shares, &[Attr::Int("axis", -1)]);
        self.standard("MatMul", &[&shares, &v], &mixed, &[]);
        self.standard("Transpose", &[&mixed], &back, &[Attr::Ints("perm", &[0, 2, 1, 3])]);
        self.standard("Reshape", &[&back, JOINED], output, &[]);
    }

    /// `output = LayerNorm(input + bias + skip)`, with the constants of the normalisation `name`.
    pub(super) fn standard_skip_norm(&mut self, input: &str, skip: &str, name: &str, output: &str) {
        let [weight, norm_bias, dense_bias, biased, sum] =
            ["weight", "bias", "dense_bias", "biased", "sum"].map(|part| format!("{name}_{part}"));
        self.standard("Add", &[input, &dense_bias], &biased, &[]);
        self.standard("Add", &[&biased, skip], &sum, &[]);
        self.layer_norm(&sum, &weight, &norm_bias, output);
    }

    /// `output = GELU(input + bias)`, exact or by the tanh approximation, as the model has it.
    pub(super) fn standard_gelu(&mut self, input: &str, bias: &str, output: &str) {
        let named = |part: &str| format!("{part}_{output}");
        let [biased, inner, bent, shifted, half] =
            ["biased", "inner", "bent", "shifted", "half"].map(named);
        self.standard("Add", &[input, bias], &biased, &[]);
        let op = if self.spec.activation == Activation::GeluTanh {
            // √(2/π) · (x + 0.044715 x³), as x · (c + c · 0.044715 x²).
            let c = (2.0 / std::f32::consts::PI).sqrt();
            let [slope, cubic, square, curved, factor] =
                ["slope", "cubic", "square", "curved", "factor"].map(named);
            self.graph.floats(&slope, &[], &[c]);
            self.graph.floats(&cubic, &[], &[c * 0.044_715]);
            self.standard("Mul", &[&biased, &biased], &square, &[]);
            self.standard("Mul", &[&square, &cubic], &curved, &[]);
            self.standard("Add", &[&curved, &slope], &factor, &[]);
            self.standard("Mul", &[&biased, &factor], &inner, &[]);
            "Tanh"
        } else {
            let slope = named("slope");
            self.graph.floats(&slope, &[], &[std::f32::consts::FRAC_1_SQRT_2]);
            self.standard("Mul", &[&biased, &slope], &inner, &[]);
            "Erf"
        };
        self.standard(op, &[&inner], &bent, &[]);
        let [one, one_half] = ["one", "one_half"].map(named);
        self.graph.floats(&one, &[], &[1.0]);
        self.graph.floats(&one_half, &[], &[0.5]);
        self.standard("Add", &[&bent, &one], &shifted, &[]);
        self.standard("Mul", &[&biased, &one_half], &half, &[]);
        self.standard("Mul", &[&half, &shifted], output, &[]);
    }
}
