//! How provisioning and compiling tell what they do.
//!
//! Invariant: nothing is written to standard output, which belongs to a command's answer. It must not know what is
//! being done.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A listener to long work.
pub trait Progress: Sync {
    /// A new step begins.
    fn step(&self, what: &str);
    /// So many bytes of the step are done.
    fn bytes(&self, done: u64, total: Option<u64>);
    /// The step is over.
    fn done(&self, what: &str);
}

/// Says nothing.
pub struct Quiet;

impl Progress for Quiet {
    fn step(&self, _: &str) {}
    fn bytes(&self, _: u64, _: Option<u64>) {}
    fn done(&self, _: &str) {}
}

/// Writes steps to the log; for the daemon.
pub struct Logged;

impl Progress for Logged {
    fn step(&self, what: &str) {
        tracing::info!(step = what, "started");
    }
    fn bytes(&self, _: u64, _: Option<u64>) {}
    fn done(&self, what: &str) {
        tracing::info!(step = what, "done");
    }
}

/// Draws a bar on standard error; plain lines where that is no terminal.
#[derive(Default)]
pub struct Drawn {
    bar: Mutex<Option<ProgressBar>>,
}

impl Drawn {
    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        // A poisoned lock only means that a drawing thread died; the bar itself is still whole.
        act(&mut self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Drawn {
    fn step(&self, what: &str) {
        self.with_bar(|slot| {
            let bar = ProgressBar::new_spinner().with_message(what.to_owned());
            if bar.is_hidden() {
                eprintln!("{what} ...");
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            *slot = Some(bar);
        });
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.with_bar(|slot| {
            let Some(bar) = slot else { return };
            if let Some(total) = total
                && bar.length() != Some(total)
            {
                bar.set_length(total);
                let style = "{spinner} {msg} {wide_bar} {bytes}/{total_bytes}";
                bar.set_style(
                    ProgressStyle::with_template(style)
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
            }
            bar.set_position(done);
        });
    }

    fn done(&self, what: &str) {
        self.with_bar(|slot| {
            if let Some(bar) = slot.take() {
                let hidden = bar.is_hidden();
                bar.finish_and_clear();
                if !hidden {
                    eprintln!("✓ {what}");
                }
            }
        });
    }
}
