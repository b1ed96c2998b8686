//! Diagnostics on stderr.
//!
//! Invariant: nothing is written to stdout, which belongs to data. No text of a memory is logged. It must not know what is
//! worth logging.

use tracing_subscriber::EnvFilter;

/// What is logged when neither `--log` nor `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "warn,flashbulb=info,flashbulb_engine=info";

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the log filter `{filter}` cannot be read: {reason}; an example is `info,flashbulb=debug`")]
pub struct LogError {
    filter: String,
    reason: String,
}

/// Starts logging to stderr, as lines for people or as JSON. The filter comes from the argument, else from `RUST_LOG`.
///
/// # Errors
/// When the filter cannot be read. Starting twice is no error; the first stays.
pub fn init(filter: Option<&str>, json: bool) -> Result<(), LogError> {
    let text = match filter {
        Some(filter) => filter.to_owned(),
        None => std::env::var("RUST_LOG")
            .ok()
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| DEFAULT_FILTER.to_owned()),
    };
    let filter = EnvFilter::try_new(&text)
        .map_err(|error| LogError { filter: text, reason: error.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if json {
        builder.json().try_init()
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error_that_shows_it() {
        let error = init(Some("flashbulb=loud"), false).expect_err("`loud` is no level");
        assert!(error.to_string().contains("flashbulb=loud"), "{error}");
    }
}
