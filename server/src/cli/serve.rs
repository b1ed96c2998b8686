//! `serve` and `setup`: the two commands that do the service's own work in this process.
//!
//! Must not know how either works.

use serde_json::json;

use super::args;
use super::exit::{CliError, Exit};
use super::{Context, absolute};
use crate::daemon::{self, ServeError, ServeOptions, logging};
use crate::provision::{self, Build};
use crate::service::Threads;
use flashbulb_engine::Durability;
use flashbulb_engine::index::Layout;

/// `flashbulb serve`: returns when the daemon was told to stop.
pub fn serve(context: &Context, args: &args::Serve) -> Result<Exit, CliError> {
    if args.detached {
        // Fails only for a process that leads its group already, which then has what it wants.
        let _ = rustix::process::setsid();
    }
    #[cfg(target_os = "linux")]
    if args.with_parent {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal).map_err(|error| {
            CliError::new(Exit::Failed, format!("cannot watch the parent: {error}"))
        })?;
    }
    let filter = args.log.as_deref();
    logging::init(filter, context.out.json)
        .map_err(|error| CliError::invalid(error.to_string()))?;
    let mut options = ServeOptions::new(
        absolute(context.store()?)?,
        absolute(context.socket())?,
        context.wanted(),
    );
    options.precision = context.precision();
    options.slow_ms = args.slow_ms;
    options.device = context.device();
    options.durability = match args.durability {
        args::DurabilityArg::Sync => Durability::Sync,
        args::DurabilityArg::Buffered => Durability::Buffered,
        args::DurabilityArg::Manual => Durability::Manual,
    };
    options.layout = match args.layout {
        args::LayoutArg::Full => Layout::Full,
        args::LayoutArg::Lean => Layout::Lean,
    };
    options.read_only = args.read_only;
    if let Some(threads) = args.query_threads {
        options.threads = Threads::with_query_threads(usize::from(threads));
    }
    if let Some(promise_ms) = args.promise_ms {
        options.limits.promise_ms = promise_ms;
    }
    daemon::serve(options).map_err(ended)?;
    Ok(Exit::Ok)
}

/// The daemon's reason, as the exit code that `--help` lists.
fn ended(error: ServeError) -> CliError {
    let exit = match error.exit_code() {
        daemon::exit::FOLDER => Exit::Invalid,
        daemon::exit::MODEL => Exit::Provisioning,
        daemon::exit::IN_USE => Exit::Locked,
        daemon::exit::STORE => Exit::Corrupt,
        daemon::exit::OUTCOME_UNKNOWN => Exit::OutcomeUnknown,
        _ => Exit::Failed,
    };
    CliError::new(exit, error.to_string())
}

/// `flashbulb setup`
pub fn setup(context: &Context, args: &args::Setup) -> Result<Exit, CliError> {
    let progress = provision::Drawn::default();
    let mut wanted = context.wanted();
    if wanted.build == Build::AcceleratedIfInstalled {
        wanted.build = Build::Accelerated;
    }
    let provisioned =
        provision::setup(&wanted, args.from.as_deref(), args.bundle.as_deref(), &progress)?;
    let document = json!({
        "runtime_library": provisioned.runtime_library,
        "model_dir": provisioned.model_dir,
        "bundle": args.bundle,
    });
    context.out.print(&document, |out| {
        writeln!(out, "runtime  {}", provisioned.runtime_library.display())?;
        writeln!(out, "model    {}", provisioned.model_dir.display())?;
        match &args.bundle {
            Some(bundle) => writeln!(
                out,
                "bundle   {}; on the other machine: flashbulb setup --from DIR",
                bundle.display()
            ),
            None => writeln!(out, "ready: flashbulb add --space NAME \"a first note\""),
        }
    })?;
    Ok(Exit::Ok)
}
