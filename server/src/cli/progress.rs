//! Progress on stderr: bars where a person watches, nothing where none does.
//!
//! Keeps: bars never reach stdout and leave nothing behind. Must not know what makes progress.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const BYTES: &str = "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {eta}";
const COUNT: &str = "{spinner} {msg} [{bar:30}] {human_pos}/{human_len} {eta}";
const SPINNER: &str = "{spinner} {wide_msg}";

/// A bar over bytes.
pub fn bytes(total: u64, message: &'static str) -> ProgressBar {
    bar(Some(total), BYTES, message)
}

/// A bar over things.
pub fn count(total: u64, message: &'static str) -> ProgressBar {
    bar(Some(total), COUNT, message)
}

/// A sign that something is going on.
pub fn spinner(message: &'static str) -> ProgressBar {
    let bar = bar(None, SPINNER, message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn bar(total: Option<u64>, template: &str, message: &'static str) -> ProgressBar {
    // The target hides itself where stderr is no terminal.
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr())
        .with_style(style(template))
        .with_message(message)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates above are constants, and a test parses them")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_parse() {
        for template in [BYTES, COUNT, SPINNER] {
            style(template);
        }
    }
}
