//! A tiny random BERT of another shape than the default model, against a forward pass in f64 written here.
//!
//! The forward pass follows the paper (Devlin et al., 2019; Vaswani et al., 2017), not the compiler.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use flashbulb::embed::Precision;
use flashbulb::model::{CompileOptions, Weighting, Weights, compile};
use safetensors::tensor::{Dtype, TensorView};

use super::support::{cosine, open};

const HIDDEN: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const INNER: usize = 48;
const VOCAB: usize = 30;
const POSITIONS: usize = 40;

type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// SplitMix64 (Steele, Lea, Flood 2014), as uniform numbers in -1..1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn tensors() -> Tensors {
    let mut random = Random(7);
    let mut all = Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: f32, shift: f32| {
        let values = (0..shape.iter().product()).map(|_| random.next() * scale + shift).collect();
        all.insert(name, (shape.to_vec(), values));
    };
    for (table, rows) in [("word", VOCAB), ("position", POSITIONS), ("token_type", 2)] {
        add(format!("embeddings.{table}_embeddings.weight"), &[rows, HIDDEN], 1.0, 0.0);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let at = format!("encoder.layer.{layer}");
        for (name, outputs, inputs) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", INNER, HIDDEN),
            ("output.dense", HIDDEN, INNER),
        ] {
            add(format!("{at}.{name}.weight"), &[outputs, inputs], 0.4, 0.0);
            add(format!("{at}.{name}.bias"), &[outputs], 0.2, 0.0);
        }
        norms.push(format!("{at}.attention.output.LayerNorm"));
        norms.push(format!("{at}.output.LayerNorm"));
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[HIDDEN], 0.3, 1.0);
        add(format!("{norm}.bias"), &[HIDDEN], 0.1, 0.0);
    }
    // One hot channel, as real models have: int8 must cope.
    all.get_mut("encoder.layer.0.attention.output.LayerNorm.weight").unwrap().1[5] = 14.0;
    all
}

/// Writes the model folder; tensor names carry `prefix`.
fn write(dir: &Path, prefix: &str, pooling: &str, activation: &str) {
    let tensors = tensors();
    let bytes: HashMap<String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| {
            (name.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views: HashMap<String, TensorView<'_>> = tensors
        .iter()
        .map(|(name, (shape, _))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap();
            (format!("{prefix}{name}"), view)
        })
        .collect();
    fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let config = serde_json::json!({
        "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": INNER, "vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
        "layer_norm_eps": 1e-5, "hidden_act": activation,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    let pool = serde_json::json!({ format!("pooling_mode_{pooling}"): true });
    fs::write(dir.join("1_Pooling/config.json"), pool.to_string()).unwrap();
    let mut vocab: serde_json::Map<String, serde_json::Value> = serde_json::Map::new();
    for (id, word) in ["[UNK]", "[CLS]", "[SEP]"]
        .iter()
        .map(|w| (*w).to_owned())
        .chain((3..VOCAB).map(|n| format!("t{n}")))
        .enumerate()
    {
        vocab.insert(word, id.into());
    }
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

struct Forward {
    tensors: Tensors,
    relu: bool,
}

impl Forward {
    fn values(&self, name: &str) -> Vec<f64> {
        self.tensors[name].1.iter().map(|v| f64::from(*v)).collect()
    }

    fn linear(&self, rows: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let bias = self.values(&format!("{name}.bias"));
        let weight = self.values(&format!("{name}.weight"));
        let dot = |row: &[f64], output: usize| {
            let column = &weight[output * row.len()..(output + 1) * row.len()];
            bias[output] + row.iter().zip(column).map(|(a, b)| a * b).sum::<f64>()
        };
        rows.iter().map(|row| (0..bias.len()).map(|output| dot(row, output)).collect()).collect()
    }

    fn norm(&self, rows: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let (weight, bias) =
            (self.values(&format!("{name}.weight")), self.values(&format!("{name}.bias")));
        let one = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (variance + 1e-5).sqrt();
            row.iter().enumerate().map(|(i, v)| (v - mean) * scale * weight[i] + bias[i]).collect()
        };
        rows.iter().map(one).collect()
    }

    fn attend(&self, x: &[Vec<f64>], at: &str) -> Vec<Vec<f64>> {
        let [q, k, v] = ["query", "key", "value"]
            .map(|part| self.linear(x, &format!("{at}.attention.self.{part}")));
        let width = HIDDEN / HEADS;
        let mut out = vec![vec![0.0; HIDDEN]; x.len()];
        for head in 0..HEADS {
            let part = head * width..(head + 1) * width;
            for (row, query) in q.iter().enumerate() {
                let score = |key: &Vec<f64>| {
                    let dot: f64 = query[part.clone()]
                        .iter()
                        .zip(&key[part.clone()])
                        .map(|(a, b)| a * b)
                        .sum();
                    (dot / (width as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = k.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(&v) {
                    for i in part.clone() {
                        out[row][i] += score / sum * value[i];
                    }
                }
            }
        }
        out
    }

    fn vector(&self, ids: &[u32], pooling: &str) -> Vec<f32> {
        let table = |name: &str, row: usize| {
            self.values(&format!("embeddings.{name}_embeddings.weight"))
                [row * HIDDEN..(row + 1) * HIDDEN]
                .to_vec()
        };
        let types = table("token_type", 0);
        let start: Vec<Vec<f64>> = ids
            .iter()
            .enumerate()
            .map(|(at, &id)| {
                let (word, position) = (table("word", id as usize), table("position", at));
                (0..HIDDEN).map(|i| word[i] + position[i] + types[i]).collect()
            })
            .collect();
        let mut x = self.norm(&start, "embeddings.LayerNorm");
        for layer in 0..LAYERS {
            let at = format!("encoder.layer.{layer}");
            let attended =
                self.linear(&self.attend(&x, &at), &format!("{at}.attention.output.dense"));
            let y = self.norm(&add(&attended, &x), &format!("{at}.attention.output.LayerNorm"));
            let mut wide = self.linear(&y, &format!("{at}.intermediate.dense"));
            wide.iter_mut()
                .flatten()
                .for_each(|v| *v = if self.relu { v.max(0.0) } else { gelu(*v) });
            let narrow = self.linear(&wide, &format!("{at}.output.dense"));
            x = self.norm(&add(&narrow, &y), &format!("{at}.output.LayerNorm"));
        }
        let pooled: Vec<f64> = match pooling {
            "cls_token" => x[0].clone(),
            "lasttoken" => x[x.len() - 1].clone(),
            _ => (0..HIDDEN)
                .map(|i| x.iter().map(|row| row[i]).sum::<f64>() / x.len() as f64)
                .collect(),
        };
        let norm = pooled.iter().map(|v| v * v).sum::<f64>().sqrt();
        pooled.iter().map(|v| (v / norm) as f32).collect()
    }
}

fn add(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
    a.iter().zip(b).map(row).collect()
}

/// x Φ(x), with erf summed from its Maclaurin series: exact enough for |x| < 6, and 0 or x beyond.
fn gelu(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.max(0.0);
    }
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -z * z / n;
        sum += term / (2.0 * n + 1.0);
    }
    0.5 * x * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * sum)
}

#[test]
fn another_shape_is_compiled_from_its_own_configuration() {
    for (prefix, pooling, activation) in
        [("", "cls_token", "gelu"), ("bert.", "mean_tokens", "relu"), ("", "lasttoken", "gelu")]
    {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), prefix, pooling, activation);
        let forward = Forward { tensors: tensors(), relu: activation == "relu" };
        let float = open(dir.path().to_owned(), Precision::F32);
        let int8 = open(dir.path().to_owned(), Precision::Int8);
        assert_eq!((float.dim(), float.max_tokens()), (HIDDEN, POSITIONS));
        let (mut float_session, mut int8_session) =
            (float.session().unwrap(), int8.session().unwrap());
        for text in ["t3", "t4 t9 t21 nothing t7", &"t5 t6 t29 t11 ".repeat(9)] {
            let window = &float.document_windows(text).unwrap()[0];
            let expected = forward.vector(window.ids(), pooling);
            let found = float_session.embed(window).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 2e-5,
                    "{pooling} {text}: {found} instead of {expected}"
                );
            }
            let quantised = cosine(&int8_session.embed(window).unwrap(), &expected);
            assert!(quantised > 0.99, "{pooling} {text}: int8 cosine {quantised}");
        }
        let many = ["t3", "t4 t9 t21 nothing t7", "t8 t9", "t5 t6 t29 t11 t12 t13", "t20"];
        super::batch::is_as_one_by_one(&float, &many, 1e-5);
    }
}

#[test]
fn weights_of_another_shape_than_the_configuration_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "", "cls_token", "gelu");
    let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
    fs::write(
        dir.path().join("config.json"),
        config.replace("\"vocab_size\":30", "\"vocab_size\":31"),
    )
    .unwrap();
    let provisioned = flashbulb::provision::Provisioned {
        model_dir: dir.path().to_owned(),
        ..super::support::provisioned().clone()
    };
    let options = flashbulb::embed::EmbedOptions::default();
    let error =
        flashbulb::embed::Embedder::open(&provisioned, &options, &flashbulb::provision::Quiet);
    let message = error.err().unwrap().to_string();
    assert!(message.contains("word_embeddings") && message.contains("[30, 32]"), "{message}");
}

#[test]
fn a_changed_or_damaged_compiled_graph_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "", "cls_token", "gelu");
    let compiled = tempfile::tempdir().unwrap();
    let provisioned = flashbulb::provision::Provisioned {
        model_dir: dir.path().to_owned(),
        compiled_dir: compiled.path().join("compiled"),
        ..super::support::provisioned().clone()
    };
    let open = || {
        let options = flashbulb::embed::EmbedOptions::default();
        flashbulb::embed::Embedder::open(&provisioned, &options, &flashbulb::provision::Quiet)
            .unwrap()
    };
    let first = open().fingerprint();
    let mut files =
        fs::read_dir(&provisioned.compiled_dir).unwrap().flatten().map(|entry| entry.path());
    let graph = files.find(|path| path.extension().is_some_and(|e| e == "onnx")).unwrap();
    let bytes = fs::read(&graph).unwrap();
    fs::write(&graph, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(open().fingerprint(), first);
    assert_eq!(fs::read(&graph).unwrap(), bytes);
    // Another pooling is another graph under the same name.
    write(dir.path(), "", "mean_tokens", "gelu");
    assert_ne!(open().fingerprint(), first);
}

/// `token-vectors.onnx` gives each id a row of a table: row r, column c is cos((7 r + 3 c) mod 11). Its inputs are i64
/// `input_ids`, `attention_mask` (multiplied in) and `token_type_ids` (added), its output is `last_hidden_state`.
#[test]
fn a_graph_made_by_others_is_fed_pooled_and_normalised() {
    for (pooling, rows) in
        [("mean_tokens", vec![0, 1, 2, 3]), ("cls_token", vec![0]), ("lasttoken", vec![3])]
    {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "", pooling, "gelu");
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        fs::create_dir(dir.path().join("onnx")).unwrap();
        let graph = include_bytes!("token-vectors.onnx");
        fs::write(dir.path().join("onnx/model.onnx"), graph).unwrap();
        let embedder = open(dir.path().to_owned(), Precision::Auto);
        assert_eq!((embedder.ran().precision.as_str(), embedder.dim()), ("onnx", HIDDEN));
        let window = &embedder.query_windows("t9 t20").unwrap()[0];
        assert_eq!(window.ids(), [1, 9, 20, 2]);
        let cell =
            |row: u32, column: usize| f64::from((row as usize * 7 + column * 3) as u32 % 11).cos();
        let sums: Vec<f64> =
            (0..HIDDEN).map(|c| rows.iter().map(|&r| cell(window.ids()[r], c)).sum()).collect();
        let norm = sums.iter().map(|v| v * v).sum::<f64>().sqrt();
        let found = embedder.session().unwrap().embed(window).unwrap();
        for (found, sum) in found.iter().zip(&sums) {
            assert!((f64::from(*found) - sum / norm).abs() < 1e-5, "{pooling}");
        }
        // Together with longer and shorter texts, padded and masked.
        let texts = ["t9 t20", "t5 t6 t7 t8 t9 t10 t11", "t3", "t4 t20 t21"];
        super::batch::is_as_one_by_one(&embedder, &texts, 1e-6);
    }
}

/// The graph for providers without fused operators, run as a graph made by others.
#[test]
fn standard_operators_give_the_same_vectors() {
    for activation in ["gelu", "gelu_new", "relu"] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "", "mean_tokens", activation);
        let fused = open(dir.path().to_owned(), Precision::F32);
        let weights = Weights::read(&dir.path().join("model.safetensors")).unwrap();
        let options = CompileOptions { weighting: Weighting::StandardF32 };
        let graph = compile(fused.spec(), &weights, &options).unwrap();
        for fused in [&b"EmbedLayer"[..], b"SkipLayer", b"Attention", b"BiasGelu", b"FastGelu"] {
            assert!(!graph.windows(fused.len()).any(|bytes| bytes == fused));
        }
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        fs::create_dir(dir.path().join("onnx")).unwrap();
        fs::write(dir.path().join("onnx/model.onnx"), graph).unwrap();
        let standard = open(dir.path().to_owned(), Precision::F32);
        assert_eq!(standard.ran().precision, "onnx");
        let (mut fused_session, mut session) =
            (fused.session().unwrap(), standard.session().unwrap());
        for text in ["t3", "t4 t9 t21 nothing t7", &"t5 t6 t29 t11 ".repeat(9)] {
            let window = &fused.document_windows(text).unwrap()[0];
            let expected = fused_session.embed(window).unwrap();
            for (found, expected) in session.embed(window).unwrap().iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{activation} {text}");
            }
        }
    }
}

#[test]
fn a_folder_with_neither_weights_nor_graph_says_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "", "cls_token", "gelu");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let provisioned = flashbulb::provision::Provisioned {
        model_dir: dir.path().to_owned(),
        ..super::support::provisioned().clone()
    };
    let options = flashbulb::embed::EmbedOptions::default();
    let error =
        flashbulb::embed::Embedder::open(&provisioned, &options, &flashbulb::provision::Quiet);
    let message = error.err().unwrap().to_string();
    assert!(message.contains("model.onnx"), "{message}");
}
