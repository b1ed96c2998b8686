//! `flashbulb-bench`: measures the real program from outside, and says with what load, on which machine, by which command.
//!
//! Invariant: nothing is measured that did not run; a run whose generator fell behind is marked void; percentiles with
//! too few samples behind them are not printed. Must not know the daemon's insides: it speaks to the socket, or to the
//! service's frames in its own process, and opens a store only while no daemon has it.

mod analysis;
mod ann;
mod bare;
mod caller;
mod churn;
mod compare;
mod daemon;
mod data;
mod durable;
mod environment;
mod feed;
mod fill;
mod load;
mod machine;
mod metric;
mod peers;
mod recall;
mod recover;
mod report;
mod run;
mod service;
mod setup;
mod space;
mod stats;
mod table;
mod vectors;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// What can go wrong in a measurement, in words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(version, about = "Measures Flashbulb from outside")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Search latency at stated rates and at the knee, alone and beside a saturating import, with recall
    Load(Box<load::Options>),
    /// An HTML page and a Markdown summary of runs of `load`
    Report(report::Options),
    /// Two builds against each other, in turns on copies of the same store
    Compare(compare::Options),
    /// Flashbulb and other vector stores, in turns over the same memories, questions and model
    Peers(Box<peers::Options>),
    /// Acknowledged adds a second and their latency, beside SQLite and redb writing the same bytes in turns
    Durable(Box<durable::Options>),
    /// From kill -9 in the middle of adds to the first answer of the next daemon
    Recover(recover::Options),
    /// Recall against queries a second of the vector index and of libraries, side by side
    Ann(Box<ann::Options>),
    /// Recall of the vector index while vectors come and go, and searches beside inserts
    Churn(Box<churn::Options>),
    /// A process with one index in it, which `ann` speaks to
    #[command(hide = true)]
    AnnWorker,
    /// Import, search, recall, start-up and memory of the daemon, at each size
    Service(service::Options),
    /// The embedding model alone: one thread in a loop, and at the rate of a user
    Bare(bare::Options),
}

/// Options that every measurement takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Texts to remember, one a line, plain or gzip; generated sentences if left out
    #[arg(long)]
    data: Option<PathBuf>,
    /// Seed of arrivals and of generated texts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Precision of the model, here and in the daemon; a daemon on an accelerator uses f32
    #[arg(long, value_enum, default_value = "auto")]
    precision: Precision,
}

/// The number format of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// What the service chooses by itself.
    Auto,
    /// 32-bit floats.
    F32,
    /// Eight-bit weights and activations.
    Int8,
}

impl Common {
    /// What makes a daemon use the same model as this process.
    fn arguments(&self) -> Vec<String> {
        match self.precision {
            Precision::Auto => Vec::new(),
            Precision::F32 => vec!["--precision=f32".to_owned()],
            Precision::Int8 => vec!["--precision=int8".to_owned()],
        }
    }
}

fn main() -> std::process::ExitCode {
    let outcome = match Args::parse().command {
        Command::Load(options) => load::run(&options),
        Command::Report(options) => report::run(&options),
        Command::Compare(options) => match compare::run(&options) {
            Ok(slower) if slower => return std::process::ExitCode::from(2),
            outcome => outcome.map(drop),
        },
        Command::Peers(options) => peers::run(&options),
        Command::Durable(options) => durable::run(&options),
        Command::Recover(options) => recover::run(&options),
        Command::Ann(options) => ann::run(&options),
        Command::Churn(options) => churn::run(&options),
        Command::AnnWorker => ann::worker::run(),
        Command::Service(options) => service::run(&options),
        Command::Bare(options) => bare::run(&options),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("flashbulb-bench: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_its_defaults_are_read() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        for line in [
            "load",
            "service",
            "bare",
            "report a",
            "compare a b",
            "peers",
            "durable",
            "recover",
            "ann",
            "churn",
        ] {
            let words = ["flashbulb-bench"].into_iter().chain(line.split(' '));
            assert!(Args::try_parse_from(words).is_ok(), "{line}");
        }
        let wrong = ["flashbulb-bench", "load", "--mix", "search=0.5"];
        assert!(Args::try_parse_from(wrong).is_err());
    }
}
