//! The i8 codes of an index's vectors, what rounding cost each, and which are dead.
//!
//! Invariant: vector `n`'s codes, scale and bounds are all there for every `n < len()`.
//! Must not know: graphs, scans.

use super::VectorNo;
use crate::sync::{RowReader, RowStore, Tombstones};
use flashbulb_kernels::Kernels;
use std::cell::RefCell;

/// How far a vector's codes may be from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    /// ‖v − scale · codes‖, rounded up.
    pub(super) error: f32,
    /// ‖v‖, rounded up.
    pub(super) norm: f32,
}

/// Codes, scales, bounds and tombstones of vectors 0, 1, 2, …
#[derive(Debug)]
pub(super) struct Vectors {
    dim: usize,
    codes: RowStore<i8>,
    scales: RowStore<f32>,
    /// Pushed last: its length is the length of the index.
    bounds: RowStore<Bounds>,
    dead: Tombstones,
}

/// The vectors that are there at one moment. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct VectorsView<'a> {
    pub(super) dim: usize,
    pub(super) codes: RowReader<'a, i8>,
    pub(super) scales: RowReader<'a, f32>,
    pub(super) bounds: RowReader<'a, Bounds>,
    pub(super) dead: &'a Tombstones,
}

thread_local! {
    /// Codes of the vector being pushed, so that a push allocates nothing of its own.
    static PUSHED: RefCell<Vec<i8>> = const { RefCell::new(Vec::new()) };
}

impl Vectors {
    pub(super) fn new(dim: usize) -> Vectors {
        Vectors {
            dim,
            codes: RowStore::new(dim),
            scales: RowStore::new(1),
            bounds: RowStore::new(1),
            dead: Tombstones::new(),
        }
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn len(&self) -> u32 {
        self.bounds.len()
    }

    pub(super) fn dead(&self) -> &Tombstones {
        &self.dead
    }

    /// Quantises a vector and appends it.
    pub(super) fn push(&self, vector: &[f32], kernels: Kernels) -> VectorNo {
        assert_eq!(vector.len(), self.dim, "a vector has the index's dimension");
        PUSHED.with_borrow_mut(|codes| {
            codes.clear();
            codes.resize(self.dim, 0);
            let params = kernels.quantize_i8(vector, codes);
            let norm = kernels.dot_f32(vector, vector).sqrt();
            let bounds = Bounds { error: up(params.error_norm), norm: up(norm) };
            self.push_codes(codes, params.scale, bounds)
        })
    }

    /// Appends a vector that is quantised already.
    pub(super) fn push_codes(&self, codes: &[i8], scale: f32, bounds: Bounds) -> VectorNo {
        self.codes.push(codes);
        self.scales.push(&[scale]);
        // Before the vector can be seen, so that whoever sees it can kill it.
        self.dead.grow(self.codes.len());
        VectorNo(self.bounds.push(&[bounds]))
    }

    pub(super) fn view(&self) -> VectorsView<'_> {
        // Bounds first: whoever sees a vector's bounds sees its codes and scale.
        let bounds = self.bounds.reader();
        VectorsView {
            dim: self.dim,
            codes: self.codes.reader(),
            scales: self.scales.reader(),
            bounds,
            dead: &self.dead,
        }
    }
}

impl VectorsView<'_> {
    pub(super) fn len(&self) -> u32 {
        self.bounds.len()
    }
}

/// A little more than `x`, for the rounding of the f32 sum that made it.
fn up(x: f32) -> f32 {
    x * 1.0001 + 1e-7
}

/// A quantised query and what its rounding cost.
#[derive(Debug, Default)]
pub(super) struct QueryCodes {
    pub(super) codes: Vec<i8>,
    pub(super) scale: f32,
    /// ‖scale · codes‖, rounded up.
    code_norm: f32,
    /// ‖q − scale · codes‖, rounded up.
    error: f32,
    /// Rounding of the f32 arithmetic on scores, for unit vectors.
    rounding: f32,
}

impl QueryCodes {
    pub(super) fn set(&mut self, query: &[f32], kernels: Kernels) {
        self.codes.clear();
        self.codes.resize(query.len(), 0);
        let params = kernels.quantize_i8(query, &mut self.codes);
        self.scale = params.scale;
        self.error = up(params.error_norm);
        let squares = kernels.dot_i8(&self.codes, &self.codes);
        self.code_norm = up((squares as f32).sqrt() * params.scale);
        self.rounding = (query.len() as f32 + 16.0) * f32::EPSILON * (self.code_norm + self.error);
    }

    /// How far the score of the codes may be from the true dot product:
    /// `q·v = q̂·v̂ + q̂·(v − v̂) + (q − q̂)·v`, and Cauchy–Schwarz bounds the last two.
    #[inline]
    pub(super) fn slack(&self, v: Bounds) -> f32 {
        self.code_norm * v.error + (self.error + self.rounding) * v.norm
    }
}
