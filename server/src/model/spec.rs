//! What a model folder says about itself.
//!
//! Reads `config.json`, `modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`,
//! `config_sentence_transformers.json` and `tokenizer_config.json`. Invariant: a setting that changes vectors is
//! either obeyed or refused, never skipped; a default is the one sentence-transformers takes, and is listed in
//! [`ModelSpec::decided`]. It must not know weights or graphs.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ModelError;

/// Which encoder the weights belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// BERT: positions count from 0.
    Bert,
    /// RoBERTa and its kin: positions count from the padding id + 1.
    Roberta,
    /// Something else, which only an ONNX file can run.
    Other,
}

/// The activation between the two feed-forward matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU by the error function.
    Gelu,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// max(0, x).
    Relu,
}

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The mean of all tokens.
    Mean,
    /// The last token.
    LastToken,
}

impl Pooling {
    /// Whether tokens may follow a text's own without changing what is pooled from a graph that masks them.
    pub fn bears_padding(self) -> bool {
        self != Self::LastToken
    }
}

/// Where the numbers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// Weights that Flashbulb compiles.
    Safetensors(PathBuf),
    /// A graph made by others, run as it is.
    Onnx(PathBuf),
}

/// A model as its folder describes it.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// The folder.
    pub dir: PathBuf,
    /// The model's name: the folder's, without a version at its end.
    pub name: String,
    /// The encoder.
    pub architecture: Architecture,
    /// Width of a token vector.
    pub hidden: usize,
    /// Width between the feed-forward matrices.
    pub intermediate: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Added to the variance in layer normalisation.
    pub eps: f32,
    /// Feed-forward activation.
    pub activation: Activation,
    /// Rows of the word table.
    pub vocab: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token type table.
    pub token_types: usize,
    /// Rows of the position table before position 0.
    pub position_offset: usize,
    /// The most tokens in one window, special tokens included.
    pub max_tokens: usize,
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Whether the folder asks for unit length. Flashbulb's vectors have it either way.
    pub normalise: bool,
    /// Put before a query.
    pub query_prefix: String,
    /// Put before a memory.
    pub passage_prefix: String,
    /// Whether text is lower-cased before the tokenizer sees it.
    pub lower_case: bool,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// What the files leave open and how it was decided.
    pub decided: Vec<String>,
}

impl ModelSpec {
    /// Reads the folder.
    ///
    /// # Errors
    /// A needed file is missing or malformed, or asks for something unsupported.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let config = Json::need(dir.join("config.json"))?;
        let tokenizer = dir.join("tokenizer.json");
        if !tokenizer.is_file() {
            return Err(ModelError::Missing {
                path: tokenizer,
                hint: "save the model with a fast tokenizer, or take its repository's tokenizer.json",
            });
        }
        let mut decided = Vec::new();
        let architecture = architecture(&config);
        let normalise = modules(dir, &mut decided)?;
        let pooling = pooling(dir, &mut decided)?;
        let (query_prefix, passage_prefix) = prefixes(dir)?;
        let positions = config.size("max_position_embeddings").unwrap_or(512);
        let padding = config.size("pad_token_id").unwrap_or(1);
        let position_offset = if architecture == Architecture::Roberta { padding + 1 } else { 0 };
        let usable = positions.saturating_sub(position_offset);
        let bert = Json::maybe(dir.join("sentence_bert_config.json"))?;
        let max_tokens = max_tokens(dir, bert.as_ref(), usable, &mut decided)?;
        let hidden = config.need_size("hidden_size")?;
        Ok(Self {
            name: name(dir),
            dir: dir.to_owned(),
            architecture,
            hidden,
            intermediate: config.size("intermediate_size").unwrap_or(4 * hidden),
            layers: config.need_size("num_hidden_layers")?,
            heads: config.need_size("num_attention_heads")?,
            eps: config.value["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32,
            activation: activation(&config, architecture)?,
            vocab: config.need_size("vocab_size")?,
            positions,
            token_types: config.size("type_vocab_size").unwrap_or(2),
            position_offset,
            max_tokens,
            pooling,
            normalise,
            query_prefix,
            passage_prefix,
            lower_case: bert.is_some_and(|json| json.value["do_lower_case"] == true),
            tokenizer,
            decided,
        })
    }

    /// Where the numbers are: safetensors of an encoder that Flashbulb compiles, else an ONNX file. `int8` prefers a
    /// quantised ONNX file.
    ///
    /// # Errors
    /// There is neither, or the weights' encoder is not one that Flashbulb compiles.
    pub fn source(&self, int8: bool) -> Result<ModelSource, ModelError> {
        let weights = self.dir.join("model.safetensors");
        let compiles = self.architecture != Architecture::Other;
        if compiles && weights.is_file() {
            return Ok(ModelSource::Safetensors(weights));
        }
        let float =
            ["onnx/model.onnx", "model.onnx", "onnx/model_optimized.onnx", "model_optimized.onnx"];
        let quantised = quantised_files();
        let order: &[&str] = if int8 { &quantised } else { &float };
        let found = order.iter().map(|file| self.dir.join(file)).find(|path| path.is_file());
        if let Some(path) = found {
            return Ok(ModelSource::Onnx(path));
        }
        if weights.is_file() {
            return Err(ModelError::Unsupported {
                path: self.dir.join("config.json"),
                what: "this model_type".into(),
                hint: "bert, roberta, xlm-roberta and camembert are compiled from safetensors; give a folder with an \
                       ONNX file for any other",
            });
        }
        Err(ModelError::Missing {
            path: if int8 { self.dir.join("onnx/model_quantized.onnx") } else { weights },
            hint: "give a folder with model.safetensors of a BERT-family model, or with model.onnx or onnx/model.onnx",
        })
    }
}

/// Names of quantised files in the order in which this CPU runs them best.
fn quantised_files() -> Vec<&'static str> {
    let mut names = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512vnni") {
            names.extend(["onnx/model_qint8_avx512_vnni.onnx", "onnx/model_qint8_avx512.onnx"]);
        }
        names.push("onnx/model_quint8_avx2.onnx");
    }
    #[cfg(target_arch = "aarch64")]
    names.push("onnx/model_qint8_arm64.onnx");
    names.extend([
        "onnx/model_uint8.onnx",
        "onnx/model_quantized.onnx",
        "model_quantized.onnx",
        "onnx/model_int8.onnx",
    ]);
    names
}

/// One JSON file and where it lies, for messages.
struct Json {
    path: PathBuf,
    value: Value,
}

impl Json {
    fn maybe(path: PathBuf) -> Result<Option<Self>, ModelError> {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ModelError::Io { path, source }),
        };
        match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(Self { path, value })),
            Err(error) => {
                Err(ModelError::Invalid { path, what: format!("is not valid JSON ({error})") })
            }
        }
    }

    fn need(path: PathBuf) -> Result<Self, ModelError> {
        Self::maybe(path.clone())?.ok_or(ModelError::Missing {
            path,
            hint: "point to the folder that holds the model's config.json",
        })
    }

    fn size(&self, key: &str) -> Option<usize> {
        self.value[key].as_u64().and_then(|n| usize::try_from(n).ok())
    }

    fn need_size(&self, key: &str) -> Result<usize, ModelError> {
        match self.size(key) {
            Some(size) if size > 0 => Ok(size),
            _ => Err(ModelError::Invalid {
                path: self.path.clone(),
                what: format!("lacks a positive `{key}`"),
            }),
        }
    }

    fn unsupported(&self, what: String, hint: &'static str) -> ModelError {
        ModelError::Unsupported { path: self.path.clone(), what, hint }
    }
}

/// The folder's name without a version such as `-0.1.0` at its end.
fn name(dir: &Path) -> String {
    let whole = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let folder = whole.file_name().map(|name| name.to_string_lossy().into_owned());
    let folder = folder.unwrap_or_default();
    match folder.rsplit_once('-') {
        Some((name, version))
            if version.contains('.')
                && version.bytes().all(|b| b == b'.' || b.is_ascii_digit()) =>
        {
            name.to_owned()
        }
        _ => folder,
    }
}

fn architecture(config: &Json) -> Architecture {
    let absolute =
        config.value["position_embedding_type"].as_str().unwrap_or("absolute") == "absolute";
    match config.value["model_type"].as_str() {
        Some("bert") if absolute => Architecture::Bert,
        Some("roberta" | "xlm-roberta" | "camembert") if absolute => Architecture::Roberta,
        _ => Architecture::Other,
    }
}

fn activation(config: &Json, architecture: Architecture) -> Result<Activation, ModelError> {
    match config.value["hidden_act"].as_str() {
        Some("gelu") | None => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(_) if architecture == Architecture::Other => Ok(Activation::Gelu),
        Some(other) => Err(config.unsupported(
            format!("hidden_act `{other}`"),
            "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast and relu are",
        )),
    }
}

/// Whether `modules.json` ends in a normalisation; refuses modules that would change the vectors.
fn modules(dir: &Path, decided: &mut Vec<String>) -> Result<bool, ModelError> {
    let Some(json) = Json::maybe(dir.join("modules.json"))? else {
        decided.push("no modules.json: mean pooling, as sentence-transformers decides".into());
        return Ok(false);
    };
    let mut normalise = false;
    for module in json.value.as_array().into_iter().flatten() {
        let kind = module["type"].as_str().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Pooling" => {}
            "Normalize" => normalise = true,
            other => {
                return Err(json.unsupported(
                    format!("module `{other}`"),
                    "Transformer, Pooling and Normalize are; export the whole model to ONNX with a sentence_embedding \
                     output and drop the module from modules.json",
                ));
            }
        }
    }
    if !normalise {
        decided.push(
            "modules.json has no Normalize: vectors are brought to unit length all the same".into(),
        );
    }
    Ok(normalise)
}

fn pooling(dir: &Path, decided: &mut Vec<String>) -> Result<Pooling, ModelError> {
    let Some(json) = Json::maybe(dir.join("1_Pooling/config.json"))? else {
        decided.push("no 1_Pooling/config.json: mean pooling".into());
        return Ok(Pooling::Mean);
    };
    if json.value["include_prompt"] == false {
        return Err(
            json.unsupported("include_prompt = false".into(), "pooling over the whole input is")
        );
    }
    let mut modes: Vec<String> = Vec::new();
    for (key, value) in json.value.as_object().into_iter().flatten() {
        if let (Some(mode), Some(true)) = (key.strip_prefix("pooling_mode_"), value.as_bool()) {
            modes.push(mode.to_owned());
        }
        if let ("pooling_mode", Some(mode)) = (key.as_str(), value.as_str()) {
            modes = vec![mode.to_owned()];
        }
    }
    match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["cls_token" | "cls"] => Ok(Pooling::Cls),
        ["lasttoken"] => Ok(Pooling::LastToken),
        other => {
            Err(json.unsupported(format!("pooling {other:?}"), "one of mean, cls and lasttoken is"))
        }
    }
}

/// The prompts that sentence-transformers' `encode_query` and `encode_document` put before a text.
fn prefixes(dir: &Path) -> Result<(String, String), ModelError> {
    let Some(json) = Json::maybe(dir.join("config_sentence_transformers.json"))? else {
        return Ok((String::new(), String::new()));
    };
    let prompts = &json.value["prompts"];
    let default = json.value["default_prompt_name"].as_str().unwrap_or_default();
    let first = |names: &[&str]| {
        names.iter().find_map(|name| prompts[*name].as_str()).unwrap_or_default().to_owned()
    };
    Ok((first(&["query", default]), first(&["document", "passage", "corpus", default])))
}

fn max_tokens(
    dir: &Path,
    bert: Option<&Json>,
    usable: usize,
    decided: &mut Vec<String>,
) -> Result<usize, ModelError> {
    if let Some(length) = bert.and_then(|json| json.size("max_seq_length")) {
        return Ok(length.clamp(3, usable.max(3)));
    }
    let tokenizer = Json::maybe(dir.join("tokenizer_config.json"))?;
    // Some tokenizers say "no limit" with 1e30, which is no integer of ours.
    let limit = tokenizer.and_then(|json| json.size("model_max_length"));
    let length = limit.map_or(usable, |limit| limit.min(usable)).max(3);
    decided.push(format!(
        "no max_seq_length: {length} tokens, the lesser of positions and tokenizer limit"
    ));
    Ok(length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        let config = r#"{"model_type":"bert","hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4,
            "vocab_size":100,"max_position_embeddings":64,"hidden_act":"gelu"}"#;
        for (name, text) in [("config.json", config), ("tokenizer.json", "{}")].iter().chain(files)
        {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn what_the_files_leave_open_is_decided_and_said() {
        let dir = folder(&[]);
        let spec = ModelSpec::read(dir.path()).unwrap();
        assert_eq!(spec.pooling, Pooling::Mean);
        assert_eq!(spec.max_tokens, 64);
        assert_eq!(spec.intermediate, 128);
        assert_eq!(spec.decided.len(), 3, "{:?}", spec.decided);
    }

    #[test]
    fn settings_are_obeyed() {
        let dir = folder(&[
            (
                "1_Pooling/config.json",
                r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#,
            ),
            ("modules.json", r#"[{"type":"sentence_transformers.models.Normalize"}]"#),
            ("sentence_bert_config.json", r#"{"max_seq_length":48,"do_lower_case":true}"#),
            (
                "config_sentence_transformers.json",
                r#"{"prompts":{"query":"query: ","passage":"passage: "}}"#,
            ),
        ]);
        let spec = ModelSpec::read(dir.path()).unwrap();
        assert_eq!((spec.pooling, spec.max_tokens), (Pooling::Cls, 48));
        assert!(spec.lower_case && spec.normalise);
        assert_eq!(
            (spec.query_prefix.as_str(), spec.passage_prefix.as_str()),
            ("query: ", "passage: ")
        );
    }

    #[test]
    fn what_would_change_vectors_is_refused() {
        for (file, text) in [
            ("modules.json", r#"[{"type":"sentence_transformers.models.Dense"}]"#),
            ("1_Pooling/config.json", r#"{"pooling_mode_max_tokens":true}"#),
            (
                "1_Pooling/config.json",
                r#"{"pooling_mode_mean_tokens":true,"pooling_mode_cls_token":true}"#,
            ),
            ("config.json", "{not json"),
            ("config.json", r#"{"model_type":"bert","hidden_size":0}"#),
        ] {
            let dir = folder(&[(file, text)]);
            let error = ModelSpec::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
    }
}
