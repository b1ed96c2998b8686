//! Operations, closes, kills and power cuts on a store, beside a map and brute force (see `model`).
#![no_main]

use flashbulb_fuzz::model::{Pair, Step};
use libfuzzer_sys::fuzz_target;

/// Longer sequences find no more and are slow.
const STEPS_MAX: usize = 24;

fuzz_target!(|steps: Vec<Step>| {
    let mut pair = Pair::default();
    steps.iter().take(STEPS_MAX).for_each(|step| pair.step(step));
    pair.end();
});
