//! Nodes of a graph by the execution provider that has them: as placed, or as they ran.
//!
//! Invariant: which operators are heavy is said here and nowhere else. It must not know where the counts come from.

use std::collections::BTreeMap;

/// Operators that a model spends its time in; a device that does not run all of them does not carry the model. What is
/// not here (shapes, gathers of small integers, the last normalisation) may run anywhere.
const HEAVY: [&str; 33] = [
    "Attention",
    "BiasGelu",
    "Conv",
    "DynamicQuantizeMatMul",
    "Einsum",
    "EmbedLayerNormalization",
    "EncoderLayer",
    "FastGelu",
    "FusedGemm",
    "FusedMatMul",
    "Gelu",
    "Gemm",
    "GemmFastGelu",
    "GroupQueryAttention",
    "LayerNormalization",
    "MatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MultiHeadAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
    "QLinearMatMul",
    "QuickGelu",
    "RMSNormalization",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Softmax",
];

/// How ONNX Runtime names the copies between devices that it inserts.
const COPY: &str = "Memcpy";

/// Counts of nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// By provider, then by operator.
    counts: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Nodes {
    /// One more node.
    pub fn add(&mut self, provider: &str, operator: &str) {
        let operators = self.counts.entry(provider.to_owned()).or_default();
        *operators.entry(operator.to_owned()).or_default() += 1;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many there are.
    pub fn total(&self) -> usize {
        self.each().map(|(_, _, count)| count).sum()
    }

    /// How many each provider has.
    pub fn by_provider(&self) -> BTreeMap<String, usize> {
        let sum = |operators: &BTreeMap<String, usize>| operators.values().sum();
        self.counts.iter().map(|(provider, of)| (provider.clone(), sum(of))).collect()
    }

    /// How many each operator has.
    pub fn by_operator(&self) -> BTreeMap<String, usize> {
        let mut operators = BTreeMap::new();
        for (_, operator, count) in self.each() {
            *operators.entry(operator.to_owned()).or_default() += count;
        }
        operators
    }

    /// How many `provider` has.
    pub fn on(&self, provider: &str) -> usize {
        self.counts.get(provider).map_or(0, |operators| operators.values().sum())
    }

    /// How many are heavy.
    pub fn heavy(&self) -> usize {
        self.each().filter(|(_, operator, _)| is_heavy(operator)).map(|(_, _, count)| count).sum()
    }

    /// How many heavy ones `provider` has.
    pub fn heavy_on(&self, provider: &str) -> usize {
        self.each()
            .filter(|(on, operator, _)| *on == provider && is_heavy(operator))
            .map(|(_, _, count)| count)
            .sum()
    }

    /// The heavy nodes that others than `provider` have, in words; empty when there are none.
    pub fn strays(&self, provider: &str) -> String {
        let words: Vec<String> = self
            .each()
            .filter(|(on, operator, _)| *on != provider && is_heavy(operator))
            .map(|(on, operator, count)| format!("{count} {operator} on {on}"))
            .collect();
        words.join(", ")
    }

    /// How many copies between devices there are.
    pub fn copies(&self) -> usize {
        let is_copy = |operator: &str| operator.starts_with(COPY);
        self.each().filter(|(_, operator, _)| is_copy(operator)).map(|(_, _, count)| count).sum()
    }

    /// The provider with the most heavy nodes, or, where none is heavy, with the most of all.
    pub fn carrier(&self) -> Option<&str> {
        let providers = self.counts.keys().map(String::as_str);
        providers.max_by_key(|provider| (self.heavy_on(provider), self.on(provider)))
    }

    fn each(&self) -> impl Iterator<Item = (&str, &str, usize)> {
        self.counts.iter().flat_map(|(provider, operators)| {
            operators.iter().map(|(operator, count)| (provider.as_str(), operator.as_str(), *count))
        })
    }
}

fn is_heavy(operator: &str) -> bool {
    HEAVY.contains(&operator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let mut nodes = Nodes::default();
        assert!(nodes.is_empty() && nodes.carrier().is_none());
        for (provider, operator) in [
            ("G", "MatMul"),
            ("G", "MatMul"),
            ("C", "Shape"),
            ("C", "MatMul"),
            ("G", "MemcpyToHost"),
        ] {
            nodes.add(provider, operator);
        }
        assert_eq!(
            (nodes.total(), nodes.heavy(), nodes.heavy_on("G"), nodes.copies()),
            (5, 3, 2, 1)
        );
        assert_eq!((nodes.by_provider()["G"], nodes.by_operator()["MatMul"]), (3, 3));
        assert_eq!(nodes.strays("G"), "1 MatMul on C");
        assert_eq!(nodes.carrier(), Some("G"));
    }

    #[test]
    fn the_carrier_is_who_has_the_heavy_nodes() {
        let mut nodes = Nodes::default();
        for operator in ["Shape", "Concat", "Gather"] {
            nodes.add("C", operator);
        }
        assert_eq!(nodes.carrier(), Some("C"));
        nodes.add("G", "Gemm");
        assert_eq!(nodes.carrier(), Some("G"));
    }
}
