//! One session: ids in, one unit vector out, batch 1 at exact length; or many at once, for a GPU.
//!
//! Invariant: at batch 1 the same ids give the same bits in every session with the same graph and device, because nothing
//! is padded and nothing else shares the run. In a batch, which only floats allow, they give the same vector up to
//! rounding. It must not know text or tokenizers.

use std::path::Path;

use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::{Outlet, TensorElementType, TensorRef};

use super::nodes::Nodes;
use super::{EmbedError, Tokens, raw};
use crate::model::{ModelSpec, Pooling};

/// Which ids an input takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Ids,
    Mask,
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
            "attention_mask" => Role::Mask,
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

/// Most ids in one run of [`EmbedSession::embed_batch`], padding included; one window may have more.
pub const BATCH_TOKENS: usize = 16_384;

/// A session of its own: one thread uses it at a time.
pub struct EmbedSession {
    session: Session,
    /// Whether texts may share a run: not where one scale serves a whole tensor of bytes.
    batches: bool,
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
        spec: &ModelSpec,
        batches: bool,
    ) -> Self {
        let ModelSpec { pooling, position_offset, hidden, .. } = *spec;
        let count = interface.inputs.len();
        let dim = interface.dim.unwrap_or(hidden);
        Self {
            session,
            batches,
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

    /// The vectors of many windows, in their order, by runs of up to [`BATCH_TOKENS`] ids each: for devices that are idle
    /// at batch 1. A graph with an attention mask takes windows of about the same length together, padded; one without
    /// takes equal lengths only. Either way a vector is that of [`Self::embed`] up to rounding, which holds for floats.
    ///
    /// # Errors
    /// As [`Self::embed`]; also where the graph computes with bytes, whose vectors would depend on the batch.
    pub fn embed_batch(&mut self, windows: &[Tokens]) -> Result<Vec<Vec<f32>>, EmbedError> {
        if !self.batches {
            return Err(EmbedError::run(
                "a graph that computes with bytes takes one text at a time",
            ));
        }
        let masked = self.interface.inputs.iter().any(|input| input.role == Role::Mask);
        let lengths: Vec<usize> = windows.iter().map(Tokens::len).collect();
        let mut vectors = vec![Vec::new(); windows.len()];
        for bucket in buckets(&lengths, masked, BATCH_TOKENS) {
            let rows: Vec<&Tokens> = bucket.iter().map(|&at| &windows[at]).collect();
            for (&at, vector) in bucket.iter().zip(self.run(&rows, None)?) {
                vectors[at] = vector;
            }
        }
        Ok(vectors)
    }

    pub(super) fn embed_with(
        &mut self,
        tokens: &Tokens,
        options: Option<&RunOptions>,
    ) -> Result<Vec<f32>, EmbedError> {
        let vector = self.run(&[tokens], options)?.pop();
        vector.ok_or_else(|| EmbedError::BadOutput { what: "no vector".into() })
    }

    /// One run over `rows`, padded to the longest.
    fn run(
        &mut self,
        rows: &[&Tokens],
        options: Option<&RunOptions>,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        self.fill(rows, longest);
        let shape = [rows.len(), longest];
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
        if data.is_empty() || !data.len().is_multiple_of(rows.len()) {
            let what = format!("{} numbers for {} texts", data.len(), rows.len());
            return Err(EmbedError::BadOutput { what });
        }
        let texts = data.chunks_exact(data.len() / rows.len()).zip(rows);
        let vectors = texts.map(|(data, row)| {
            let pooled = match self.interface.shape {
                Shape::Sentence => data.to_vec(),
                // What is after the row's own tokens belongs to the padding.
                Shape::Tokens => {
                    let own = data.len().min(row.len() * self.dim);
                    pool(&data[..own], self.dim, self.pooling)
                }
            };
            unit(pooled, self.dim)
        });
        vectors.collect()
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Which provider the runtime placed each node on.
    pub(super) fn placement(&self) -> Result<Nodes, EmbedError> {
        raw::placement(&self.session).map_err(|what| EmbedError::Witness { what })
    }

    /// Peaks of the calibration outputs `names` for one window.
    pub(super) fn peaks(
        &mut self,
        tokens: &Tokens,
        names: &[String],
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.fill(&[tokens], tokens.len());
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

    /// Fills the buffers of the inputs with `rows`, each padded to `longest` ids; what is padded is masked.
    fn fill(&mut self, rows: &[&Tokens], longest: usize) {
        let offset = self.position_offset;
        for (at, input) in self.interface.inputs.iter().enumerate() {
            let id = |row: &Tokens, position: usize| match input.role {
                Role::Ids => row.ids.get(position).map_or(0, |&id| i64::from(id)),
                Role::Mask => i64::from(position < row.len()),
                Role::Zeros => 0,
                Role::Positions => (position + offset) as i64,
            };
            let ids = rows.iter().flat_map(|row| (0..longest).map(|position| id(row, position)));
            if input.wide {
                self.wide[at].clear();
                self.wide[at].extend(ids);
            } else {
                self.narrow[at].clear();
                // Ids are rows of a table, far below 2^31.
                self.narrow[at].extend(ids.map(|id| id as i32));
            }
        }
    }
}

/// Which windows run together, by their places in `lengths`: the longest first, so that a bucket's padding is small and its
/// size known from its first, and no bucket has more than `most` ids unless it is one window. Without padding a bucket
/// holds equal lengths only.
fn buckets(lengths: &[usize], padded: bool, most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(lengths[at]));
    let mut buckets: Vec<Vec<usize>> = Vec::new();
    for at in order {
        let fits = |bucket: &Vec<usize>| {
            let longest = lengths[bucket[0]];
            (padded || longest == lengths[at]) && longest * (bucket.len() + 1) <= most
        };
        match buckets.last_mut().filter(|bucket| fits(bucket)) {
            Some(bucket) => bucket.push(at),
            None => buckets.push(vec![at]),
        }
    }
    buckets
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
    fn buckets_keep_to_the_budget_and_lose_nothing() {
        let lengths = [3, 9, 4, 3, 4, 20, 3, 4];
        for (padded, most) in [(true, 12), (false, 12), (true, 1), (false, 1000), (true, 1000)] {
            let buckets = buckets(&lengths, padded, most);
            let mut seen: Vec<usize> = buckets.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for bucket in &buckets {
                let longest = bucket.iter().map(|&at| lengths[at]).max().unwrap();
                assert!(bucket.len() == 1 || longest * bucket.len() <= most, "{bucket:?}");
                assert!(padded || bucket.iter().all(|&at| lengths[at] == longest), "{bucket:?}");
            }
        }
        assert_eq!(buckets(&lengths, false, 1000).len(), 4);
        assert_eq!(buckets(&lengths, true, 1000).len(), 1);
        assert!(buckets(&[], true, 9).is_empty());
    }

    #[test]
    fn a_vector_without_direction_is_refused() {
        assert_eq!(unit(vec![3.0, 4.0], 2).unwrap(), [0.6, 0.8]);
        for bad in [vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![1.0]] {
            assert!(matches!(unit(bad, 2), Err(EmbedError::BadOutput { .. })));
        }
    }
}
