//! Models of the lock-free parts of Flashbulb: `engine::sync`, the very types that the engine runs.
//!
//! Invariant: every atomic field of `engine::sync` names a model in `tests/`, and every
//! ordering that publishes something has a mutant that its model catches. Must not know: vectors,
//! files, sockets.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p flashbulb-loom-tests --release
//! ```
//!
//! Loom runs each model under every interleaving and every value that the memory model lets a load
//! return, within its bounds. Without the flag, `tests/stress.rs` runs the same promises with real
//! threads, which proves less and needs no second build.
