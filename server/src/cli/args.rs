//! The command line's grammar.
//!
//! Keeps: everything that can be checked without a daemon is checked here, as a usage error. Must not act.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

mod serve;

pub use serve::{DurabilityArg, LayoutArg, Serve, Setup};

use super::exit::Exit;
use super::values::{JsonObject, parse_interval, parse_object, parse_time};

/// A memory service for AI agents: text in, memories out, by meaning.
#[derive(Debug, Parser)]
#[command(name = "flashbulb", version, after_help = Exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The daemon's socket [default: $XDG_RUNTIME_DIR/flashbulb/flashbulb.sock]
    #[arg(long, global = true, env = "FLASHBULB_SOCKET", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// The data directory [default: $XDG_DATA_HOME/flashbulb/store]
    #[arg(long, global = true, env = "FLASHBULB_STORE", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
    /// ONNX Runtime's shared library to use instead of the provided one
    #[arg(long, global = true, env = "FLASHBULB_ORT", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub runtime: Option<PathBuf>,
    /// Model folder to use instead of the provided one
    #[arg(long, global = true, env = "FLASHBULB_MODEL", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: Option<PathBuf>,
    /// Python whose pip fetches the runtime and the model [default: python3]
    #[arg(
        long,
        global = true,
        env = "FLASHBULB_PYTHON",
        value_name = "FILE",
        value_hint = ValueHint::ExecutablePath
    )]
    pub python: Option<PathBuf>,
    /// Precision of the model: auto is int8, and f32 where an accelerator is wanted
    #[arg(long, global = true, value_enum, default_value_t)]
    pub precision: PrecisionArg,
    /// Where the model runs: required fails the start where the accelerator (CUDA; CoreML on macOS) does not carry it,
    /// preferred says so in every answer; both make the precision f32 unless it is given
    #[arg(long, global = true, env = "FLASHBULB_DEVICE", value_enum, default_value_t)]
    pub device: DeviceArg,
    /// Never fetch the runtime or the model
    #[arg(long, global = true)]
    pub offline: bool,
    /// Fail where no daemon runs, instead of starting one
    #[arg(long, global = true)]
    pub no_start: bool,
    /// Print one JSON document instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    /// Colours; auto also honours NO_COLOR
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: ColorArg,
}

/// Precision of the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// int8, and f32 where an accelerator is wanted.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 8-bit integers.
    Int8,
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// On the processor.
    #[default]
    Cpu,
    /// On the accelerator where that carries the model, else on the processor, and every answer says so.
    Preferred,
    /// On the accelerator or not at all.
    Required,
}

/// When to print colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorArg {
    /// Where a person reads.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    Serve(Serve),
    /// Fetch the runtime and the model, with --device a runtime for it, or move them between machines
    Setup(Setup),
    /// Import a shipped conversation log into a temporary store and ask it questions
    Demo(Demo),
    /// Add a memory
    Add(Add),
    /// Find memories by meaning
    Search(Search),
    /// Show memories by id
    Get(Get),
    /// List the memories of a space in their order
    List(List),
    /// Show the memories before and after one
    Around(Around),
    /// Change a memory
    Update(Update),
    /// Delete memories by id or by filter
    Delete(Delete),
    /// Read conversations from a file or folder into a space
    Import(Import),
    /// Write a space to a file, one memory a line as JSON
    Export(Export),
    /// List spaces, or look at or drop one
    #[command(subcommand)]
    Space(Space),
    /// Show what the daemon is doing
    Status,
    /// Show live what the daemon is doing: lanes, rates, percentiles, stages
    Top(Top),
    /// Print counters and histograms as OpenMetrics text
    Metrics,
    /// Check this machine, the installation and the daemon
    Doctor,
    /// Check every file of the store against its checksums
    Verify,
    /// Rewrite the store without what was deleted
    Compact,
    /// Wait until everything stored is on the device, where the daemon was started with another durability than sync
    Sync,
    /// Copy the store to a new folder while it runs
    Snapshot(Snapshot),
    /// Check a snapshot and copy it to the folder that --store names; needs no daemon
    Restore(Restore),
    /// Save what can be read of a damaged store as a new store; needs no daemon
    Salvage(Salvage),
    /// Stop the daemon
    Shutdown,
    /// Print a completion script for a shell
    Completions(Completions),
}

/// `demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// How many searches to time
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: u32,
}

/// The space, where one is needed.
#[derive(Debug, Clone, Args)]
pub struct SpaceArg {
    /// The space: one agent's or user's memory
    #[arg(long, short, env = "FLASHBULB_SPACE", value_name = "NAME")]
    pub space: String,
}

/// `add`.
#[derive(Debug, Args)]
pub struct Add {
    /// The text; `-`, or nothing where stdin is not a terminal, reads stdin
    pub text: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
    /// The id [default: made by the service]
    #[arg(long)]
    pub id: Option<String>,
    /// Who said it: user, assistant, tool, a name
    #[arg(long)]
    pub role: Option<String>,
    /// The conversation it belongs to
    #[arg(long)]
    pub session: Option<String>,
    /// When it was said: milliseconds since 1970, RFC 3339, or a date [default: now]
    #[arg(long, value_parser = parse_time, allow_negative_numbers = true)]
    pub ts: Option<i64>,
    /// Anything else, as a JSON object
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    pub meta: Option<JsonObject>,
    /// What to do where the id exists
    #[arg(long, value_enum, default_value_t)]
    pub on_conflict: OnConflict,
    /// When to return: when it is safe on disk, or when it can be found by meaning
    #[arg(long, value_enum, default_value_t)]
    pub wait: Wait,
}

/// What to do where an id exists.
#[derive(Debug, Clone, Copy, Default, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// Add nothing.
    #[default]
    Error,
    /// Keep the old memory.
    Skip,
    /// Put the new memory in its place.
    Replace,
}

/// When an add returns.
#[derive(Debug, Clone, Copy, Default, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// When it is safe on disk.
    #[default]
    Durable,
    /// When it can be found by meaning.
    Searchable,
}

/// How to search.
#[derive(Debug, Clone, Copy, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By meaning and by words.
    Hybrid,
    /// By meaning.
    Dense,
    /// By words.
    Lexical,
}

/// `search`.
#[derive(Debug, Args)]
pub struct Search {
    /// What to look for
    #[arg(required = true, value_name = "QUERY")]
    pub query: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
    /// Most hits
    #[arg(long, short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub k: u32,
    /// How to search [default: the service's]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// Condition over role, session and meta.*, such as {"role": {"eq": "user"}}
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    pub filter: Option<JsonObject>,
    /// Only memories at or after this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_negative_numbers = true)]
    pub from: Option<i64>,
    /// Only memories before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_negative_numbers = true)]
    pub to: Option<i64>,
    /// Show this many memories before and after each hit
    #[arg(long, value_name = "N")]
    pub neighbors: Option<u32>,
    /// Compare every memory, however long it takes
    #[arg(long)]
    pub exact: bool,
    /// Show how each hit came about
    #[arg(long)]
    pub explain: bool,
}

/// `get`.
#[derive(Debug, Args)]
pub struct Get {
    /// The ids
    #[arg(required = true)]
    pub ids: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
}

/// `list`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
    /// Condition over role, session and meta.*
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    pub filter: Option<JsonObject>,
    /// Most memories
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Go on where the last list ended
    #[arg(long)]
    pub cursor: Option<String>,
}

/// `around`.
#[derive(Debug, Args)]
pub struct Around {
    /// The memory in the middle
    pub id: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
    /// How many before it
    #[arg(long, default_value_t = 5)]
    pub before: u32,
    /// How many after it
    #[arg(long, default_value_t = 5)]
    pub after: u32,
}

/// `update`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct Update {
    /// The memory
    pub id: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
    /// New text; `-` reads stdin
    #[arg(long, group = "change")]
    pub text: Option<String>,
    /// New role
    #[arg(long, group = "change")]
    pub role: Option<String>,
    /// New conversation
    #[arg(long, group = "change")]
    pub session: Option<String>,
    /// New time
    #[arg(long, group = "change", value_parser = parse_time, allow_negative_numbers = true)]
    pub ts: Option<i64>,
    /// New JSON object in place of the old one
    #[arg(long, group = "change", value_name = "JSON", value_parser = parse_object)]
    pub meta: Option<JsonObject>,
    /// Only where the memory still has this seq
    #[arg(long, value_name = "SEQ")]
    pub if_seq: Option<u64>,
}

/// `delete`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct Delete {
    /// The ids
    #[arg(group = "which")]
    pub ids: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
    /// Everything that meets this condition
    #[arg(long, group = "which", value_name = "JSON", value_parser = parse_object)]
    pub filter: Option<JsonObject>,
    /// Say how many, and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Delete only where exactly so many are found
    #[arg(long, value_name = "N")]
    pub expect_count: Option<u64>,
}

/// `import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The file, or a folder of Claude Code logs; `-` reads stdin
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
    /// The format; auto finds it from the content
    #[arg(long, value_enum, default_value_t)]
    pub format: FormatArg,
    /// Say what would be added, and add nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Return when everything is safe on disk, before it can be found by meaning
    #[arg(long)]
    pub no_wait: bool,
}

/// A file format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Found from the content.
    #[default]
    Auto,
    /// OpenAI-style {"messages": [...]}, one conversation a line or one JSON file.
    Messages,
    /// Claude Code session logs.
    Claude,
    /// conversations.json of a ChatGPT data export.
    Chatgpt,
    /// Plain text, one memory a line.
    Text,
    /// What `flashbulb export` writes.
    Export,
}

/// `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The file; `-` is stdout
    #[arg(value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub space: SpaceArg,
}

/// `space`.
#[derive(Debug, Subcommand)]
pub enum Space {
    /// List every space
    List,
    /// Show one space's numbers
    Stats(SpaceName),
    /// Delete a space and everything in it
    Drop(DropSpace),
}

/// A space by its name.
#[derive(Debug, Args)]
pub struct SpaceName {
    /// The space
    #[arg(env = "FLASHBULB_SPACE", value_name = "NAME")]
    pub space: String,
}

/// `space drop`: the name has no default from the environment, because nothing brings a space back.
#[derive(Debug, Args)]
pub struct DropSpace {
    /// The space
    #[arg(value_name = "NAME")]
    pub space: String,
}

/// `top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Seconds from one screen to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = parse_interval)]
    pub interval: f64,
    /// Print one screen after one interval and end
    #[arg(long)]
    pub once: bool,
}

/// `snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// The folder to make
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: PathBuf,
}

/// `restore`.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_HELP)]
pub struct Restore {
    /// The folder that `snapshot` made, or a store whose daemon was stopped
    #[arg(value_hint = ValueHint::DirPath)]
    pub snapshot: PathBuf,
}

const RESTORE_HELP: &str = "\
Every file is checked against its checksums before anything is written. The folder that --store
names must not exist or be empty; it is a store once the command has ended well, and not before.";

/// `salvage`.
#[derive(Debug, Args)]
#[command(after_help = SALVAGE_HELP)]
pub struct Salvage {
    /// The damaged store; it is only read
    #[arg(value_hint = ValueHint::DirPath)]
    pub from: PathBuf,
    /// The folder of the new store; must not exist or be empty
    #[arg(value_hint = ValueHint::DirPath)]
    pub to: PathBuf,
    /// Components of a vector where no file of the damaged store says; the provided model has 384
    #[arg(long, value_name = "N", default_value_t = 384, value_parser = clap::value_parser!(u16).range(8..=4096))]
    pub dim: u16,
}

const SALVAGE_HELP: &str = "\
For a store that does not open. Memories keep id, text, role, session, time, meta, vectors and their
order; every loss is listed by file and reason, and so is what may be back although it was deleted.
Memories whose vectors are lost are embedded when a daemon starts on the new store. Where no
manifest can be read, the model is unknown: all texts are embedded again then, but those with
vectors of the caller's own, and spaces whose names are lost are called recovered-N.
On a device that fails, copy the folder to a sound one first: a file that the system cannot read
ends the command.";

/// `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines_parse_or_do_not() {
        let check = |line: &str, good: bool| {
            let words = std::iter::once("flashbulb").chain(line.split(' '));
            let parsed = Cli::try_parse_from(words);
            assert_eq!(
                parsed.is_ok(),
                good,
                "{line}: {:?}",
                parsed.err().map(|error| error.to_string())
            );
        };
        check("search --space a what is this --json", true);
        check("add --space a hello --ts -5 --socket /s", true);
        check("import --space a x.jsonl --socket /s", true);
        check("export --space a out.jsonl", true);
        check("delete --space a x y", true);
        check("delete --space a --filter {} --dry-run", true);
        check("delete --space a", false);
        check("delete --space a x --filter {}", false);
        check("update --space a x", false);
        check("update --space a x --text t --role r", true);
        check("search --space a", false);
        check("search --space a --k 0 x", false);
        check("setup --from a --bundle b", false);
        check("space drop a", true);
        check("completions bash", true);
        check("restore snap --store s --json", true);
        check("restore", false);
        check("salvage old new --json", true);
        check("salvage old", false);
        check("salvage old new --dim 7", false);
        check("top --once --interval 0.5", true);
        check("top --interval 0", false);
        check("top --interval nan", false);
        check("serve --slow-ms 0", true);
        check("serve --slow-ms -1", false);
        check("frobnicate", false);
        if std::env::var_os("FLASHBULB_SPACE").is_none() {
            check("search what", false);
        }
    }
}
