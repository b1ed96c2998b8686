//! How models are run, and what they watch.
//!
//! Invariant: a mutant that no model catches fails its test. Must not know: what is modelled.
#![allow(dead_code, clippy::unwrap_used)]

use loom::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a model that must hold under every interleaving.
pub fn holds(model: impl Fn() + Sync + Send + 'static) {
    loom::model(model);
}

/// Runs a model with a mutant in it, which loom must catch.
pub fn is_caught(model: impl Fn() + Sync + Send + 'static) {
    let run = catch_unwind(AssertUnwindSafe(|| loom::model(model)));
    assert!(run.is_err(), "loom found nothing wrong with a mutant: the model tests too little");
}

/// As [`holds_within`] three interruptions.
pub fn holds_within_bounds(model: impl Fn() + Sync + Send + 'static) {
    holds_within(3, model);
}

/// As [`holds`], for models too large to be run whole: all interleavings in which threads are interrupted at most so many
/// times, and any number of times where they wait.
pub fn holds_within(interruptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(model);
}

/// As [`is_caught`], in a process of its own: loom's finding may come out of a destructor, which ends the process. `test`
/// is the name of the test that calls this, `finding` a word of what loom says.
pub fn is_caught_alone(test: &str, finding: &str, model: impl Fn() + Sync + Send + 'static) {
    const CHILD: &str = "FLASHBULB_MUTANT";
    if std::env::var_os(CHILD).is_some_and(|name| name == test) {
        return loom::model(model);
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, test)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success() && told.contains(finding), "loom found no {finding}: {told}");
}

/// As [`is_caught_alone`], for a mutant that makes a thread sleep for ever.
pub fn sleeps_forever(test: &str, model: impl Fn() + Sync + Send + 'static) {
    is_caught_alone(test, "deadlock", model);
}

/// A number that one thread writes and another reads, which loom watches for races.
pub struct Note(pub UnsafeCell<u32>);
// SAFETY: the models order all access to it, and loom fails them if they do not.
unsafe impl Sync for Note {}
// SAFETY: a number can be sent.
unsafe impl Send for Note {}
