//! The i8 codes of an index's vectors, what rounding cost each, and which are dead.
//!
//! Invariant: vector `n`'s codes and measure are both there for every `n < len()`.
//! Must not know: graphs, scans.
//!
//! Codes are of the vectors after a random rotation, which spreads their length over all values: rounding then costs less, and signs
//! say more. Products stay as they were. Short vectors are filled up with zeros first, so that there are enough signs. Vectors
//! that need not be of unit length are brought near it, so that all that is computed within the index has about the same size.
//! What the codes left over is kept as codes again, which nothing reads before the last few candidates are scored anew.

use super::{Layout, Metric, VectorNo};
use crate::sync::shim::{AtomicU32, Ordering};
use crate::sync::{RowReader, RowStore, Tombstones};
use flashbulb_kernels::{
    FINE_STEPS, I8Params, Kernels, NIBBLES_TOGETHER, Rotation, SignTable, as_bytes, as_codes,
    nibble_bytes, pack_nibbles, unpack_nibbles,
};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Fewest codes of a vector: with fewer signs, estimates are too rough to walk by.
const WIDTH_MIN: usize = 128;
/// Codes come in registers' halves.
const WIDTH_STEP: usize = 16;
/// The rotation is part of what a checkpoint holds, so its seed is for good.
const ROTATION_SEED: u64 = 0x1a5b_0b5e;
/// Half of the squared length of vectors that are brought to unit length by the caller.
pub(super) const UNIT_HALF_SQUARE: f32 = 0.5;
/// What four rounds of the rotation may add to a vector's error, as a part of its length: some fifty roundings of f32 in a row.
const ROTATION_ERROR: f32 = 4e-6;

/// Codes of a vector of `dim` values.
pub(super) fn width_of(dim: usize, layout: Layout) -> usize {
    match layout {
        Layout::Full => dim.next_multiple_of(WIDTH_STEP).max(WIDTH_MIN),
        Layout::Lean => dim.next_multiple_of(NIBBLES_TOGETHER),
    }
}

/// Bytes of a vector's codes, and of its fine codes.
pub(super) fn code_bytes(width: usize, layout: Layout) -> (usize, usize) {
    match layout {
        Layout::Full => (width, width),
        Layout::Lean => (nibble_bytes(width), 0),
    }
}

/// The rotation of vectors with so many codes: one for all indexes.
fn rotation_of(width: usize) -> Arc<Rotation> {
    static KNOWN: Mutex<BTreeMap<usize, Arc<Rotation>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock();
    let rotation =
        known.entry(width).or_insert_with(|| Arc::new(Rotation::new(width, ROTATION_SEED)));
    Arc::clone(rotation)
}

/// What a vector's codes stand for, and how far they may be from it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(16))]
pub(super) struct Measure {
    /// What one step of a code is.
    pub(super) scale: f32,
    /// ‖v − scale · codes‖, rounded up.
    pub(super) error: f32,
    /// ‖v‖, rounded up.
    pub(super) norm: f32,
    /// ‖v‖² / 2.
    pub(super) half_square: f32,
}

/// Codes, measures and tombstones of vectors 0, 1, 2, …
#[derive(Debug)]
pub(super) struct Vectors {
    dim: usize,
    metric: Metric,
    layout: Layout,
    /// What vectors are multiplied with before all else. The first that is not zero decides: its writer is the writer of vectors, and
    /// whoever sees a vector's measure sees it.
    factor: OnceLock<f32>,
    /// The largest half of a squared length, as bits of an f32. Written by the writer of vectors, read by views: Relaxed, as any that
    /// was the largest once will do. No model: a number that grows.
    longest: AtomicU32,
    rotation: Arc<Rotation>,
    /// Codes as they are kept: of eight bits, or two in a byte.
    codes: RowStore<i8>,
    /// Empty where codes are of four bits.
    fine: RowStore<i8>,
    /// Pushed last: its length is the length of the index.
    measures: RowStore<Measure>,
    dead: Tombstones,
}

/// The vectors that are there at one moment. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct VectorsView<'a> {
    metric: Metric,
    layout: Layout,
    factor: f32,
    /// Half of the largest squared length.
    longest: f32,
    rotation: &'a Rotation,
    fine: RowReader<'a, i8>,
    pub(super) codes: RowReader<'a, i8>,
    measures: RowReader<'a, Measure>,
    pub(super) dead: &'a Tombstones,
}

/// Buffers of a push.
struct Pushed {
    rotated: Vec<f32>,
    codes: Vec<i8>,
    fine: Vec<i8>,
    packed: Vec<u8>,
}

/// A vector's codes as they are kept; no fine ones where codes are of four bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes<'a> {
    pub(super) codes: &'a [i8],
    pub(super) fine: &'a [i8],
}

thread_local! {
    /// The vector being pushed and its codes, so that a push allocates nothing of its own.
    static PUSHED: RefCell<Pushed> = const { RefCell::new(Pushed { rotated: Vec::new(), codes: Vec::new(), fine: Vec::new(), packed: Vec::new() }) };
}

impl Vectors {
    pub(super) fn new(dim: usize, metric: Metric, layout: Layout) -> Vectors {
        assert!(dim > 0, "a vector has at least one value");
        let width = width_of(dim, layout);
        Vectors {
            dim,
            metric,
            layout,
            factor: OnceLock::new(),
            longest: AtomicU32::new(0),
            rotation: rotation_of(width),
            codes: RowStore::new(code_bytes(width, layout).0),
            fine: RowStore::new(width),
            measures: RowStore::new(1),
            dead: Tombstones::new(),
        }
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// Codes of a vector.
    pub(super) fn width(&self) -> usize {
        self.rotation.dim()
    }

    pub(super) fn len(&self) -> u32 {
        self.measures.len()
    }

    pub(super) fn dead(&self) -> &Tombstones {
        &self.dead
    }

    pub(super) fn metric(&self) -> Metric {
        self.metric
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// What vectors are multiplied with.
    pub(super) fn factor(&self) -> f32 {
        self.factor.get().copied().unwrap_or(1.0)
    }

    /// Decides on what vectors are multiplied with, unless that is decided.
    pub(super) fn set_factor(&self, factor: f32) {
        self.factor.get_or_init(|| factor);
    }

    /// Quantises a vector and appends it.
    pub(super) fn push(&self, vector: &[f32], kernels: Kernels) -> VectorNo {
        assert_eq!(vector.len(), self.dim, "a vector has the index's dimension");
        let length = kernels.norm_f32(vector);
        if self.metric != Metric::Cosine
            && let Some(factor) = factor_of(length)
        {
            self.set_factor(factor);
        }
        let factor = self.factor();
        PUSHED.with_borrow_mut(|Pushed { rotated, codes, fine, packed }| {
            rotate(&self.rotation, vector, factor, kernels, rotated);
            codes.clear();
            codes.resize(rotated.len(), 0);
            fine.clear();
            let params = match self.layout {
                Layout::Full => {
                    let params = kernels.quantize_i8_along(rotated, codes);
                    fine.resize(rotated.len(), 0);
                    let scale = kernels.quantize_fine(rotated, codes, params.scale, fine);
                    let moved =
                        (scale / params.scale - 1.0).abs() * (length * factor + params.error_norm);
                    I8Params { scale, error_norm: params.error_norm + moved }
                }
                Layout::Lean => {
                    let params = kernels.quantize_i4(rotated, codes);
                    packed.resize(nibble_bytes(codes.len()), 0);
                    pack_nibbles(codes, packed);
                    codes.clear();
                    codes.extend_from_slice(as_codes(packed));
                    params
                }
            };
            let norm = length * factor;
            // The last is what a half of the squared length may be off by.
            let error = up(params.error_norm + norm * (ROTATION_ERROR + 4.0 * f32::EPSILON));
            let half_square = match self.metric {
                Metric::Cosine => UNIT_HALF_SQUARE,
                Metric::Dot | Metric::L2 => norm * norm / 2.0,
            };
            let measure = Measure { scale: params.scale, error, norm: up(norm), half_square };
            self.push_codes(Codes { codes, fine }, measure)
        })
    }

    /// Appends a vector that is quantised already.
    pub(super) fn push_codes(&self, codes: Codes<'_>, measure: Measure) -> VectorNo {
        // Bits of numbers above zero have their order.
        self.longest.fetch_max(measure.half_square.max(0.0).to_bits(), Ordering::Relaxed);
        if self.layout == Layout::Full {
            self.fine.push(codes.fine);
        }
        self.codes.push(codes.codes);
        // Before the vector can be seen, so that whoever sees it can kill it.
        self.dead.grow(self.codes.len());
        VectorNo(self.measures.push(&[measure]))
    }

    pub(super) fn view(&self) -> VectorsView<'_> {
        // Measures first: whoever sees a vector's measure sees its codes.
        let measures = self.measures.reader();
        VectorsView {
            metric: self.metric,
            layout: self.layout,
            factor: self.factor(),
            longest: f32::from_bits(self.longest.load(Ordering::Relaxed)),
            rotation: &self.rotation,
            fine: self.fine.reader(),
            codes: self.codes.reader(),
            measures,
            dead: &self.dead,
        }
    }
}

impl VectorsView<'_> {
    /// Codes of a vector.
    pub(super) fn width(&self) -> usize {
        self.rotation.dim()
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    #[cfg(test)]
    pub(super) fn rotation(&self) -> &Rotation {
        self.rotation
    }

    pub(super) fn len(&self) -> u32 {
        self.measures.len()
    }

    /// A vector's measure.
    #[inline]
    pub(super) fn measure(&self, vector: u32) -> Option<Measure> {
        self.measures.row(vector)?.first().copied()
    }

    /// A vector's measure and codes, which are unpacked into `room` where they are kept packed.
    #[inline]
    pub(super) fn row<'r>(
        &'r self,
        vector: u32,
        room: &'r mut Vec<i8>,
    ) -> Option<(Measure, &'r [i8])> {
        let (measure, codes) = (self.measure(vector)?, self.codes.row(vector)?);
        match self.layout {
            Layout::Full => Some((measure, codes)),
            Layout::Lean => {
                room.clear();
                unpack_nibbles(as_bytes(codes), room);
                Some((measure, room))
            }
        }
    }

    /// A vector's measure, and the product of its codes with others of eight bits.
    #[inline]
    pub(super) fn product(
        &self,
        codes: &[i8],
        vector: u32,
        kernels: Kernels,
    ) -> Option<(Measure, i32)> {
        let (measure, own) = (self.measure(vector)?, self.codes.row(vector)?);
        let dot = match self.layout {
            Layout::Full => kernels.dot_i8(codes, own),
            Layout::Lean => kernels.dot_i4(codes, as_bytes(own)),
        };
        Some((measure, dot))
    }

    /// The products of codes with each of consecutive rows as they are kept.
    pub(super) fn products(&self, codes: &[i8], rows: &[i8], kernels: Kernels, out: &mut [i32]) {
        match self.layout {
            Layout::Full => kernels.dot_i8_rows(codes, rows, out),
            Layout::Lean => kernels.dot_i4_rows(codes, as_bytes(rows), out),
        }
    }

    /// What is added to the product with a query to make a score.
    #[inline]
    pub(super) fn bias(&self, measure: Measure) -> f32 {
        match self.metric {
            Metric::Cosine | Metric::Dot => 0.0,
            Metric::L2 => -measure.half_square,
        }
    }

    /// How close two vectors are by the product of their codes: half of their squared distance, with a minus; of vectors whose products
    /// are looked for, of their lifted selves.
    #[inline]
    pub(super) fn closeness(&self, dot: i32, a: Measure, b: Measure) -> f32 {
        let product = dot as f32 * (a.scale * b.scale);
        match self.metric {
            Metric::Cosine => product - 1.0,
            Metric::L2 => product - (a.half_square + b.half_square),
            Metric::Dot => product + self.height(a) * self.height(b) - 2.0 * self.longest,
        }
    }

    /// The value that is added to a vector to make it as long as the longest: who then is nearest to a query has the largest product
    /// with it (Bachrach et al., *Speeding up the Xbox recommender system*, RecSys 2014). It is not kept, as the longest may change.
    #[inline]
    pub(super) fn height(&self, measure: Measure) -> f32 {
        (2.0 * (self.longest - measure.half_square)).max(0.0).sqrt()
    }

    /// What the caller is told for a score within the index.
    #[inline]
    pub(super) fn told(&self, query: &QueryCodes, score: f32) -> f32 {
        let inverse = 1.0 / self.factor;
        match self.metric {
            Metric::Cosine => score,
            Metric::Dot => score * inverse * inverse,
            Metric::L2 => (score - query.half_square) * 2.0 * inverse * inverse,
        }
    }

    /// What the caller is told for a query and a row of f32 values.
    #[inline]
    pub(super) fn told_by_row(&self, query: &[f32], row: &[f32], kernels: Kernels) -> f32 {
        match self.metric {
            Metric::Cosine | Metric::Dot => kernels.dot_f32(query, row),
            Metric::L2 => -kernels.l2_squared_f32(query, row),
        }
    }

    /// A vector's score with the query by all that is kept of it, given its codes.
    #[inline]
    pub(super) fn fine_score(
        &self,
        query: &QueryCodes,
        vector: u32,
        (measure, codes): (Measure, &[i8]),
        kernels: Kernels,
    ) -> Option<f32> {
        let steps = kernels.dot_fine(&query.rotated, codes, self.fine(vector)?);
        Some(steps * (measure.scale / FINE_STEPS as f32) + self.bias(measure))
    }

    /// What a vector's codes left over.
    #[inline]
    pub(super) fn fine(&self, vector: u32) -> Option<&[i8]> {
        self.fine.row(vector)
    }

    /// Fine codes of the first `to` vectors, in as few slices as they lie in.
    pub(super) fn fine_runs(&self, to: u32) -> impl Iterator<Item = (u32, &[i8])> {
        self.fine.runs(0, to)
    }

    /// Asks the processor for a vector's fine codes.
    #[inline]
    pub(super) fn prefetch_fine(&self, vector: u32) {
        self.fine.prefetch(vector);
    }

    /// Measures in as few slices as they lie in, cut where those of the codes are.
    pub(super) fn measures(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, &[Measure])> {
        self.measures.runs(from, to)
    }

    /// Asks the processor for a vector's codes and measure.
    #[inline]
    pub(super) fn prefetch(&self, vector: u32) {
        self.codes.prefetch(vector);
        self.measures.prefetch(vector);
    }
}

/// A little more than `x`, for the rounding of the f32 sum that made it.
fn up(x: f32) -> f32 {
    x * 1.0001 + 1e-7
}

/// What brings a vector of this length near 1: a power of two, so that nothing is rounded. None for a length of zero.
fn factor_of(length: f32) -> Option<f32> {
    (length > 0.0 && length.is_finite())
        .then(|| (-length.log2().round()).clamp(-126.0, 126.0).exp2())
}

/// Makes `out` the vector by a factor, filled up with zeros and rotated.
fn rotate(rotation: &Rotation, vector: &[f32], factor: f32, kernels: Kernels, out: &mut Vec<f32>) {
    out.clear();
    out.extend(vector.iter().map(|value| value * factor));
    out.resize(rotation.dim(), 0.0);
    rotation.apply(out, kernels);
}

/// What the scores of a query are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
enum Scores {
    /// The product of vectors of unit length.
    #[default]
    Cosine,
    /// The product, with vectors that are at most so long.
    Product { longest: f32 },
    /// Half of the two squared lengths, less half of the squared distance; without the query's.
    Nearness,
    /// The product of lifted vectors: this one's height, and half of their squared length.
    Lifted { height: f32, longest: f32 },
}

impl Scores {
    /// Those of searches.
    fn of(vectors: &VectorsView<'_>) -> Scores {
        match vectors.metric {
            Metric::Cosine => Scores::Cosine,
            Metric::Dot => Scores::Product { longest: (2.0 * vectors.longest).sqrt() },
            Metric::L2 => Scores::Nearness,
        }
    }
}

/// What is sought with a vector of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sought {
    /// What is near it: whose product with it is largest may lie far away.
    Nearest,
    /// What a search for it would be for.
    ByQuery,
}

/// A quantised query and what its rounding cost.
#[derive(Debug, Default)]
pub(super) struct QueryCodes {
    pub(super) codes: Vec<i8>,
    pub(super) scale: f32,
    /// What its scores are.
    scores: Scores,
    /// Its sums of signs, for estimates; set for walks only.
    pub(super) table: SignTable,
    /// The query, rotated.
    rotated: Vec<f32>,
    /// ‖scale · codes‖, rounded up.
    code_norm: f32,
    /// ‖q − scale · codes‖, rounded up.
    error: f32,
    /// Rounding of the f32 arithmetic on scores, as a part of a vector's length.
    rounding: f32,
    /// What a sum of so many products with random signs is divided by: `1/√width`.
    pub(super) per_root: f32,
    /// ‖q‖
    norm: f32,
    /// ‖q‖² / 2, or of vectors of unit length, half.
    half_square: f32,
}

impl QueryCodes {
    /// Takes a query. For a walk, [`QueryCodes::prepare_walk`] must follow.
    pub(super) fn set(&mut self, query: &[f32], vectors: &VectorsView<'_>, kernels: Kernels) {
        rotate(vectors.rotation, query, vectors.factor, kernels, &mut self.rotated);
        self.codes.clear();
        self.codes.resize(self.rotated.len(), 0);
        let params = kernels.quantize_i8(&self.rotated, &mut self.codes);
        self.scale = params.scale;
        let squares = kernels.dot_i8(&self.codes, &self.codes);
        self.code_norm = up((squares as f32).sqrt() * params.scale);
        self.error = up(params.error_norm + self.code_norm * ROTATION_ERROR);
        self.set_rounding();
        self.norm = self.code_norm;
        self.scores = Scores::of(vectors);
        self.half_square = match vectors.metric {
            Metric::Cosine => UNIT_HALF_SQUARE,
            Metric::Dot | Metric::L2 => kernels.dot_f32(&self.rotated, &self.rotated) / 2.0,
        };
    }

    /// Takes a vector of the index by its codes, as a query of walks.
    pub(super) fn set_coded(
        &mut self,
        vectors: &VectorsView<'_>,
        (measure, codes): (Measure, &[i8]),
        sought: Sought,
        kernels: Kernels,
    ) {
        self.scores = match (vectors.metric, sought) {
            (Metric::Dot, Sought::Nearest) => {
                Scores::Lifted { height: vectors.height(measure), longest: vectors.longest }
            }
            _ => Scores::of(vectors),
        };
        self.codes.clear();
        self.codes.extend_from_slice(codes);
        self.scale = measure.scale;
        self.code_norm = measure.norm + measure.error;
        self.error = measure.error;
        self.set_rounding();
        self.norm = measure.norm;
        self.half_square = measure.half_square;
        self.rotated.clear();
        self.rotated.extend(codes.iter().map(|code| f32::from(*code) * measure.scale));
        self.prepare_walk(kernels);
    }

    /// What follows from the number of codes and from their lengths.
    fn set_rounding(&mut self) {
        let width = self.codes.len() as f32;
        self.rounding = (width + 16.0) * f32::EPSILON * (self.code_norm + self.error);
        self.per_root = 1.0 / width.sqrt();
    }

    /// Makes what estimates need.
    pub(super) fn prepare_walk(&mut self, kernels: Kernels) {
        self.table.set(&self.rotated, kernels);
    }

    /// The score of a vector by its product with the query, as codes.
    #[inline]
    pub(super) fn score(&self, vectors: &VectorsView<'_>, v: Measure, dot: i32) -> f32 {
        let product = dot as f32 * (v.scale * self.scale);
        match self.scores {
            Scores::Cosine | Scores::Product { .. } => product,
            Scores::Nearness => product - v.half_square,
            Scores::Lifted { height, .. } => product + height * vectors.height(v),
        }
    }

    /// Half of the squared distance between the query and a vector of this score. For products, between the lifted ones, as if the
    /// query were as long as they are, in units of the query's own length.
    #[inline]
    pub(super) fn half_distance(&self, score: f32) -> f32 {
        match self.scores {
            Scores::Cosine => 1.0 - score,
            Scores::Product { longest } => self.norm * longest - score,
            Scores::Nearness => self.half_square - score,
            Scores::Lifted { longest, .. } => 2.0 * longest - score,
        }
    }

    /// The query's height where scores are products of lifted vectors, of which sketches know nothing.
    #[inline]
    pub(super) fn lifted(&self) -> Option<f32> {
        match self.scores {
            Scores::Lifted { height, .. } => Some(height),
            _ => None,
        }
    }

    /// How far the score of the codes may be from the true one:
    /// `q·v = q̂·v̂ + q̂·(v − v̂) + (q − q̂)·v`, and Cauchy–Schwarz bounds the last two.
    #[inline]
    pub(super) fn slack(&self, v: Measure) -> f32 {
        self.code_norm * v.error + (self.error + self.rounding) * v.norm
    }

    /// How far it is at most but for one case in some ten thousand: rounding errors after a random rotation point anywhere, so each
    /// product with one is its length by a normal variable of deviation `1/√width`, of which four deviations are taken.
    #[inline]
    pub(super) fn likely_slack(&self, v: Measure) -> f32 {
        self.slack(v) * 4.0 * self.per_root
    }
}
