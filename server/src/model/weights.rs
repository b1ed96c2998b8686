//! Named f32 tensors out of a safetensors file.
//!
//! Invariant: a tensor is handed out only with the shape the caller expects. It must not know the graph.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::ModelError;

/// The bytes of a safetensors file and the prefix its names carry.
pub struct Weights {
    path: PathBuf,
    bytes: Vec<u8>,
    prefix: String,
}

/// Names that fine-tuned checkpoints put before the encoder's own.
const PREFIXES: [&str; 5] = ["", "bert.", "roberta.", "model.", "0.auto_model."];

impl Weights {
    /// Reads the file and finds the prefix of its names.
    ///
    /// # Errors
    /// The file cannot be read, is no safetensors file, or holds no BERT embeddings.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = std::fs::read(path)
            .map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let mut weights = Self { path: path.to_owned(), bytes, prefix: String::new() };
        let tensors = weights.open()?;
        let names = tensors.names();
        let prefix = PREFIXES.iter().find(|prefix| {
            let wanted = format!("{prefix}embeddings.word_embeddings.weight");
            names.iter().any(|name| **name == wanted)
        });
        let Some(prefix) = prefix else {
            return Err(ModelError::Tensor {
                path: path.to_owned(),
                tensor: "embeddings.word_embeddings.weight".into(),
                what: "is not there under any known prefix".into(),
            });
        };
        weights.prefix = (*prefix).to_owned();
        Ok(weights)
    }

    fn open(&self) -> Result<SafeTensors<'_>, ModelError> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| ModelError::Invalid {
            path: self.path.clone(),
            what: format!("is not a whole safetensors file ({error})"),
        })
    }

    /// The tensor's elements, row-major, as f32.
    ///
    /// # Errors
    /// It is missing, has another shape, or an element type other than f32, f16 and bf16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let full = format!("{}{name}", self.prefix);
        let fail = |what: String| ModelError::Tensor {
            path: self.path.clone(),
            tensor: full.clone(),
            what,
        };
        let tensors = self.open()?;
        let view =
            tensors.tensor(&full).map_err(|error| fail(format!("cannot be read ({error})")))?;
        if view.shape() != shape {
            return Err(fail(format!("has shape {:?}, expected {shape:?}", view.shape())));
        }
        let data = view.data();
        let pairs = || data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match view.dtype() {
            Dtype::F32 => Ok(data
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()),
            Dtype::BF16 => Ok(pairs().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()),
            Dtype::F16 => Ok(pairs().map(half_to_f32).collect()),
            other => Err(fail(format!("has element type {other:?}"))),
        }
    }

    /// A torch `Linear` weight, stored `[outputs, inputs]`, as `[inputs, outputs]`.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn transposed(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let stored = self.tensor(name, &[outputs, inputs])?;
        let mut turned = vec![0.0; stored.len()];
        for (output, row) in stored.chunks_exact(inputs).enumerate() {
            for (input, &value) in row.iter().enumerate() {
                turned[input * outputs + output] = value;
            }
        }
        Ok(turned)
    }
}

/// IEEE 754 binary16 to binary32, exact.
fn half_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((bits >> 10) & 0x1f);
    let fraction = f32::from(bits & 0x3ff);
    match exponent {
        0 => sign * fraction * (-24f32).exp2(),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * ((exponent - 15) as f32).exp2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(half_to_f32(bits), value);
        }
        assert!(half_to_f32(0x7e00).is_nan());
    }
}
