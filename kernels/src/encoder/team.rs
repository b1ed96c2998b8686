//! Who computes a layer: the calling thread alone, or with others that the caller has.
//!
//! Invariant: how rows are shared out changes no bit of the result, for a row's result depends on other rows only
//! through their keys and values, and those are ready before any row goes on. It must not know threads.

use std::fmt;

/// Runs `work(0)` to `work(parts - 1)`, each once, in any order and on any threads, and returns when all are done.
pub type Each<'a> = dyn Fn(usize, &(dyn Fn(usize) + Sync)) + 'a;

/// The threads that may share a layer's rows.
#[derive(Clone, Copy)]
pub struct Team<'a> {
    threads: usize,
    each: Option<&'a Each<'a>>,
}

/// Rows below which a second thread gains nothing: it reads all weights again, as the first does.
const ROWS_A_PART: usize = 3;

impl<'a> Team<'a> {
    /// The calling thread.
    pub const ALONE: Team<'static> = Team { threads: 1, each: None };

    /// `threads` threads, the calling one included, which `each` makes use of.
    pub fn new(threads: usize, each: &'a Each<'a>) -> Self {
        Self { threads: threads.max(1), each: Some(each) }
    }

    /// How many rows of `tokens` make a part.
    pub(super) fn rows_a_part(self, tokens: usize) -> usize {
        tokens.div_ceil(self.threads).max(ROWS_A_PART)
    }

    pub(super) fn each(self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        match self.each {
            Some(each) if parts > 1 => each(parts, work),
            _ => (0..parts).for_each(work),
        }
    }
}

impl fmt::Debug for Team<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads).finish_non_exhaustive()
    }
}
