//! The i8 codes of an index's vectors, what rounding cost each, and which are dead.
//!
//! Invariant: vector `n`'s codes and measure are both there for every `n < len()`.
//! Must not know: graphs, scans.
//!
//! Codes are of the vectors after a random rotation, which spreads their length over all values: rounding then costs less, and signs
//! say more. Products stay as they were. Short vectors are filled up with zeros first, so that there are enough signs.

use super::VectorNo;
use crate::sync::{RowReader, RowStore, Tombstones};
use flashbulb_kernels::{Coded, Kernels, Rotation, SignTable};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fewest codes of a vector: with fewer signs, estimates are too rough to walk by.
const WIDTH_MIN: usize = 128;
/// Codes come in registers' halves.
const WIDTH_STEP: usize = 16;
/// The rotation is part of what a checkpoint holds, so its seed is for good.
const ROTATION_SEED: u64 = 0x1a5b_0b5e;
/// What four rounds of the rotation may add to a vector's error, as a part of its length: some fifty roundings of f32 in a row.
const ROTATION_ERROR: f32 = 4e-6;

/// Codes of a vector of `dim` values.
pub(super) fn width_of(dim: usize) -> usize {
    dim.next_multiple_of(WIDTH_STEP).max(WIDTH_MIN)
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
}

/// Codes, measures and tombstones of vectors 0, 1, 2, …
#[derive(Debug)]
pub(super) struct Vectors {
    dim: usize,
    rotation: Arc<Rotation>,
    codes: RowStore<i8>,
    /// Pushed last: its length is the length of the index.
    measures: RowStore<Measure>,
    dead: Tombstones,
}

/// The vectors that are there at one moment. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct VectorsView<'a> {
    pub(super) rotation: &'a Rotation,
    pub(super) codes: RowReader<'a, i8>,
    measures: RowReader<'a, Measure>,
    pub(super) dead: &'a Tombstones,
}

thread_local! {
    /// The vector being pushed and its codes, so that a push allocates nothing of its own.
    static PUSHED: RefCell<(Vec<f32>, Vec<i8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Vectors {
    pub(super) fn new(dim: usize) -> Vectors {
        assert!(dim > 0, "a vector has at least one value");
        let width = width_of(dim);
        Vectors {
            dim,
            rotation: rotation_of(width),
            codes: RowStore::new(width),
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

    /// Quantises a vector and appends it.
    pub(super) fn push(&self, vector: &[f32], kernels: Kernels) -> VectorNo {
        assert_eq!(vector.len(), self.dim, "a vector has the index's dimension");
        PUSHED.with_borrow_mut(|(rotated, codes)| {
            rotate(&self.rotation, vector, kernels, rotated);
            codes.clear();
            codes.resize(rotated.len(), 0);
            let params = kernels.quantize_i8(rotated, codes);
            let norm = kernels.dot_f32(vector, vector).sqrt();
            let error = up(params.error_norm + norm * ROTATION_ERROR);
            self.push_codes(codes, Measure { scale: params.scale, error, norm: up(norm) })
        })
    }

    /// Appends a vector that is quantised already.
    pub(super) fn push_codes(&self, codes: &[i8], measure: Measure) -> VectorNo {
        self.codes.push(codes);
        // Before the vector can be seen, so that whoever sees it can kill it.
        self.dead.grow(self.codes.len());
        VectorNo(self.measures.push(&[measure]))
    }

    pub(super) fn view(&self) -> VectorsView<'_> {
        // Measures first: whoever sees a vector's measure sees its codes.
        let measures = self.measures.reader();
        VectorsView {
            rotation: &self.rotation,
            codes: self.codes.reader(),
            measures,
            dead: &self.dead,
        }
    }
}

impl VectorsView<'_> {
    /// Codes of a vector.
    pub(super) fn width(&self) -> usize {
        self.codes.width()
    }

    pub(super) fn len(&self) -> u32 {
        self.measures.len()
    }

    /// A vector's measure.
    #[inline]
    pub(super) fn measure(&self, vector: u32) -> Option<Measure> {
        self.measures.row(vector)?.first().copied()
    }

    /// A vector's measure and codes.
    #[inline]
    pub(super) fn row(&self, vector: u32) -> Option<(Measure, &[i8])> {
        Some((self.measure(vector)?, self.codes.row(vector)?))
    }

    /// A vector's codes and what one step of them is.
    #[inline]
    pub(super) fn coded(&self, vector: u32) -> Option<Coded<'_>> {
        let scale = self.measure(vector)?.scale;
        Some(Coded { codes: self.codes.row(vector)?, scale })
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

/// Makes `out` the vector, filled up with zeros and rotated.
fn rotate(rotation: &Rotation, vector: &[f32], kernels: Kernels, out: &mut Vec<f32>) {
    out.clear();
    out.extend_from_slice(vector);
    out.resize(rotation.dim(), 0.0);
    rotation.apply(out, kernels);
}

/// A quantised query and what its rounding cost.
#[derive(Debug, Default)]
pub(super) struct QueryCodes {
    pub(super) codes: Vec<i8>,
    pub(super) scale: f32,
    /// Its sums of signs, for estimates; set for walks only.
    pub(super) table: SignTable,
    /// The query, rotated.
    rotated: Vec<f32>,
    /// ‖scale · codes‖, rounded up.
    code_norm: f32,
    /// ‖q − scale · codes‖, rounded up.
    error: f32,
    /// Rounding of the f32 arithmetic on scores, for unit vectors.
    rounding: f32,
}

impl QueryCodes {
    /// Takes a query. For a walk, [`QueryCodes::prepare_walk`] must follow.
    pub(super) fn set(&mut self, query: &[f32], rotation: &Rotation, kernels: Kernels) {
        rotate(rotation, query, kernels, &mut self.rotated);
        self.codes.clear();
        self.codes.resize(self.rotated.len(), 0);
        let params = kernels.quantize_i8(&self.rotated, &mut self.codes);
        self.scale = params.scale;
        let squares = kernels.dot_i8(&self.codes, &self.codes);
        self.code_norm = up((squares as f32).sqrt() * params.scale);
        self.error = up(params.error_norm + self.code_norm * ROTATION_ERROR);
        let width = self.rotated.len() as f32;
        self.rounding = (width + 16.0) * f32::EPSILON * (self.code_norm + self.error);
    }

    /// Takes a vector of the index by its codes, as a query of walks.
    pub(super) fn set_coded(&mut self, vector: Coded<'_>, kernels: Kernels) {
        self.codes.clear();
        self.codes.extend_from_slice(vector.codes);
        self.scale = vector.scale;
        self.rotated.clear();
        self.rotated.extend(vector.codes.iter().map(|code| f32::from(*code) * vector.scale));
        self.prepare_walk(kernels);
    }

    /// Makes what estimates need.
    pub(super) fn prepare_walk(&mut self, kernels: Kernels) {
        self.table.set(&self.rotated, kernels);
    }

    /// How far the score of the codes may be from the true dot product:
    /// `q·v = q̂·v̂ + q̂·(v − v̂) + (q − q̂)·v`, and Cauchy–Schwarz bounds the last two.
    #[inline]
    pub(super) fn slack(&self, v: Measure) -> f32 {
        self.code_norm * v.error + (self.error + self.rounding) * v.norm
    }

    /// How far it is at most but for one case in some ten thousand: rounding errors after a random rotation point anywhere, so each
    /// product with one is its length by a normal variable of deviation `1/√width`, of which four deviations are taken.
    #[inline]
    pub(super) fn likely_slack(&self, v: Measure) -> f32 {
        self.slack(v) * 4.0 / (self.codes.len() as f32).sqrt()
    }
}
