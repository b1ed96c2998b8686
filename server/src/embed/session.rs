//! One session: ids in, one unit vector out, batch 1 at exact length.
//!
//! Invariant: the same ids give the same bits in every session with the same graph, because nothing is padded and
//! nothing else shares the run. It must not know text or tokenizers.

use std::path::Path;

use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{Outlet, TensorElementType, TensorRef};

use super::{EmbedError, Tokens};
use crate::model::Pooling;

/// Which ids an input takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Ids,
    Ones,
    Zeros,
    Positions,
}

#[derive(Debug, Clone)]
struct Input {
    name: String,
    role: Role,
    wide: bool,
}

impl Input {
    fn of(outlet: &Outlet) -> Result<Self, String> {
        let role = match outlet.name() {
            "input_ids" => Role::Ids,
            "attention_mask" => Role::Ones,
            "token_type_ids" => Role::Zeros,
            "position_ids" => Role::Positions,
            other => return Err(format!("input `{other}` is none of a text model")),
        };
        let name = outlet.name().to_owned();
        let wide = match outlet.dtype().tensor_type() {
            Some(TensorElementType::Int64) => true,
            Some(TensorElementType::Int32) => false,
            other => {
                return Err(format!("input `{name}` has type {other:?}, not int32 or int64"));
            }
        };
        Ok(Self { name, role, wide })
    }
}

/// What the chosen output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One vector a text.
    Sentence,
    /// One vector a token, still to be pooled.
    Tokens,
}

/// The inputs and the output of a graph, found by name and type.
#[derive(Debug, Clone)]
pub struct Interface {
    inputs: Vec<Input>,
    output: String,
    shape: Shape,
    /// The width of a vector where the graph says it.
    pub dim: Option<usize>,
}

impl Interface {
    /// Reads the interface of `session`, whose graph lies at `path`.
    ///
    /// # Errors
    /// An input is unknown or of another type than i32 and i64, or no output is an embedding.
    pub fn of(session: &Session, path: &Path) -> Result<Self, EmbedError> {
        let fail = |what: String| EmbedError::Interface { path: path.to_owned(), what };
        let inputs = session.inputs().iter().map(Input::of).collect::<Result<Vec<_>, _>>();
        let inputs = inputs.map_err(fail)?;
        if !inputs.iter().any(|input| input.role == Role::Ids) {
            return Err(fail("there is no input `input_ids`".into()));
        }
        let rank = |outlet: &Outlet| outlet.dtype().tensor_shape().map_or(0, |shape| shape.len());
        let float =
            |outlet: &&Outlet| outlet.dtype().tensor_type() == Some(TensorElementType::Float32);
        let named = |name: &str| session.outputs().iter().find(|o| o.name() == name).filter(float);
        let chosen = named("sentence_embedding")
            .or_else(|| named("last_hidden_state"))
            .or_else(|| named("token_embeddings"))
            .or_else(|| session.outputs().iter().filter(float).find(|outlet| rank(outlet) == 2))
            .ok_or_else(|| fail("no float output is sentence_embedding, last_hidden_state or token_embeddings, or has two dimensions".into()))?;
        let shape = match rank(chosen) {
            2 => Shape::Sentence,
            3 => Shape::Tokens,
            other => {
                return Err(fail(format!(
                    "output `{}` has {other} dimensions, not 2 or 3",
                    chosen.name()
                )));
            }
        };
        let last = chosen.dtype().tensor_shape().and_then(|shape| shape.last().copied());
        Ok(Self {
            inputs,
            output: chosen.name().to_owned(),
            shape,
            dim: last.and_then(|d| usize::try_from(d).ok()).filter(|&d| d > 0),
        })
    }
}

/// A session of its own: one thread uses it at a time.
pub struct EmbedSession {
    session: Session,
    interface: Interface,
    pooling: Pooling,
    dim: usize,
    position_offset: usize,
    /// Reused between runs: one buffer an input.
    narrow: Vec<Vec<i32>>,
    wide: Vec<Vec<i64>>,
}

impl EmbedSession {
    pub(super) fn new(
        session: Session,
        interface: Interface,
        pooling: Pooling,
        dim: usize,
        position_offset: usize,
    ) -> Self {
        let count = interface.inputs.len();
        Self {
            session,
            interface,
            pooling,
            dim,
            position_offset,
            narrow: vec![Vec::new(); count],
            wide: vec![Vec::new(); count],
        }
    }

    /// The vector of one window: `dim` floats of unit length.
    ///
    /// # Errors
    /// The runtime fails, or what comes out is not a finite vector of the model's width.
    pub fn embed(&mut self, tokens: &Tokens) -> Result<Vec<f32>, EmbedError> {
        self.embed_with(tokens, None)
    }

    pub(super) fn embed_with(
        &mut self,
        tokens: &Tokens,
        options: Option<&RunOptions>,
    ) -> Result<Vec<f32>, EmbedError> {
        self.fill(tokens);
        let shape = [1usize, tokens.len()];
        let mut feed: Vec<(&str, SessionInputValue<'_>)> =
            Vec::with_capacity(self.interface.inputs.len());
        for (at, input) in self.interface.inputs.iter().enumerate() {
            let value: SessionInputValue<'_> = if input.wide {
                let tensor = TensorRef::from_array_view((shape, self.wide[at].as_slice()));
                tensor.map_err(EmbedError::run)?.into()
            } else {
                let tensor = TensorRef::from_array_view((shape, self.narrow[at].as_slice()));
                tensor.map_err(EmbedError::run)?.into()
            };
            feed.push((&input.name, value));
        }
        let outputs = match options {
            Some(options) => self.session.run_with_options(feed, options),
            None => self.session.run(feed),
        };
        let outputs = outputs.map_err(EmbedError::run)?;
        let value = outputs.get(&self.interface.output).ok_or_else(|| EmbedError::BadOutput {
            what: format!("no output `{}`", self.interface.output),
        })?;
        let (_, data) = value.try_extract_tensor::<f32>().map_err(EmbedError::run)?;
        let pooled = match self.interface.shape {
            Shape::Sentence => data.to_vec(),
            Shape::Tokens => pool(data, self.dim, self.pooling),
        };
        unit(pooled, self.dim)
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Peaks of the calibration outputs `names` for one window.
    pub(super) fn peaks(
        &mut self,
        tokens: &Tokens,
        names: &[String],
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.fill(tokens);
        let view = TensorRef::from_array_view(([1usize, tokens.len()], self.narrow[0].as_slice()));
        let feed: Vec<(&str, SessionInputValue<'_>)> =
            vec![("input_ids", view.map_err(EmbedError::run)?.into())];
        let outputs = self.session.run(feed).map_err(EmbedError::run)?;
        let mut peaks = Vec::with_capacity(names.len());
        for name in names {
            let value = outputs
                .get(name)
                .ok_or_else(|| EmbedError::BadOutput { what: format!("no output `{name}`") })?;
            peaks.push(value.try_extract_tensor::<f32>().map_err(EmbedError::run)?.1.to_vec());
        }
        Ok(peaks)
    }

    fn fill(&mut self, tokens: &Tokens) {
        let offset = self.position_offset;
        for (at, input) in self.interface.inputs.iter().enumerate() {
            let id = |position: usize| match input.role {
                Role::Ids => i64::from(tokens.ids[position]),
                Role::Ones => 1,
                Role::Zeros => 0,
                Role::Positions => (position + offset) as i64,
            };
            if input.wide {
                self.wide[at].clear();
                self.wide[at].extend((0..tokens.len()).map(id));
            } else {
                self.narrow[at].clear();
                // Ids are rows of a table, far below 2^31.
                self.narrow[at].extend((0..tokens.len()).map(|position| id(position) as i32));
            }
        }
    }
}

/// One vector from the token vectors of a window, as the graph would pool them.
fn pool(data: &[f32], dim: usize, pooling: Pooling) -> Vec<f32> {
    let mut rows = data.chunks_exact(dim.max(1));
    match pooling {
        Pooling::Cls => rows.next().unwrap_or_default().to_vec(),
        Pooling::LastToken => rows.next_back().unwrap_or_default().to_vec(),
        Pooling::Mean => {
            let mut sum = vec![0.0f32; dim];
            let count = rows.len().max(1) as f32;
            for row in rows {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            sum.iter_mut().for_each(|value| *value /= count);
            sum
        }
    }
}

/// Brings a vector to unit length, refusing what has none.
fn unit(mut vector: Vec<f32>, dim: usize) -> Result<Vec<f32>, EmbedError> {
    if vector.len() != dim {
        return Err(EmbedError::BadOutput {
            what: format!("{} numbers instead of {dim}", vector.len()),
        });
    }
    let norm = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    if !norm.is_finite() || norm < 1e-12 {
        return Err(EmbedError::BadOutput { what: format!("a vector of length {norm}") });
    }
    vector.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    Ok(vector)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pooling_takes_the_right_rows() {
        let data = [1.0, 2.0, 3.0, 4.0, 8.0, 0.0];
        assert_eq!(pool(&data, 2, Pooling::Cls), [1.0, 2.0]);
        assert_eq!(pool(&data, 2, Pooling::LastToken), [8.0, 0.0]);
        assert_eq!(pool(&data, 2, Pooling::Mean), [4.0, 2.0]);
    }

    #[test]
    fn a_vector_without_direction_is_refused() {
        assert_eq!(unit(vec![3.0, 4.0], 2).unwrap(), [0.6, 0.8]);
        for bad in [vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![1.0]] {
            assert!(matches!(unit(bad, 2), Err(EmbedError::BadOutput { .. })));
        }
    }
}
