//! Kernels for x86-64, one module a SIMD level.
//!
//! Invariant: every function carries the `target_feature`s of its level and is called only after
//! the processor was found to have them.

pub(crate) mod avx2;
pub(crate) mod avx512;
