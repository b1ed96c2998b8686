//! `restore` and `salvage`: what is done to folders that no daemon has.
//!
//! Keeps: these start no daemon and speak to none; a store that is in use is refused. Must not know how a store is laid
//! out: the engine does the work.

use std::path::Path;

use flashbulb_engine::{self as engine, Error, Loss};
use serde_json::Value;

use super::args;
use super::exit::{CliError, Exit};
use super::output::{BAD, GOOD, WARN, safe, write_report};
use super::{Context, absolute, progress, show};

/// `flashbulb restore`
pub fn restore(context: &Context, args: &args::Restore) -> Result<Exit, CliError> {
    let (snapshot, to) = (absolute(args.snapshot.clone())?, absolute(context.store()?)?);
    let spinner = progress::spinner("checking and copying the snapshot");
    let restored = engine::restore(&snapshot, &to);
    spinner.finish_and_clear();
    let report = restored.map_err(|error| {
        let mut shown = of_engine(&error);
        if shown.exit == Exit::Corrupt {
            shown.message = format!(
                "{}. Nothing was written; `flashbulb salvage {} NEW` saves what can be read of it",
                shown.message,
                snapshot.display()
            );
        }
        shown
    })?;
    let document = document(&report)?;
    context.out.print(&report, |out| {
        write_report(out, &document)?;
        writeln!(out, "{GOOD}every checksum held{GOOD:#}; {}", next(&to))
    })?;
    Ok(Exit::Ok)
}

/// `flashbulb salvage`: ends with "damaged" only where nothing could be saved.
pub fn salvage(context: &Context, args: &args::Salvage) -> Result<Exit, CliError> {
    let (from, to) = (absolute(args.from.clone())?, absolute(args.to.clone())?);
    let spinner = progress::spinner("reading what can be read");
    let salvaged = engine::salvage(&from, &to, args.dim.into());
    spinner.finish_and_clear();
    let report = salvaged.map_err(|error| {
        let mut shown = of_engine(&error);
        if shown.exit == Exit::Failed {
            shown.message +=
                "; what is in the new folder is not whole: remove it before you try again";
        }
        shown
    })?;
    let mut document = document(&report)?;
    if let Some(members) = document.as_object_mut() {
        // Shown line by line below.
        members.remove("losses");
        members.remove("risks");
    }
    let nothing = report.memories == 0 && !report.losses.is_empty();
    context.out.print(&report, |out| {
        write_report(out, &document)?;
        for loss in &report.losses {
            writeln!(out, "{BAD}lost:{BAD:#} {}", line(loss))?;
        }
        for risk in &report.risks {
            writeln!(out, "{WARN}may be back:{WARN:#} {}", line(risk))?;
        }
        if nothing {
            return writeln!(out, "nothing could be saved");
        }
        let damage = match report.losses.len() {
            0 => format!("{GOOD}nothing was lost{GOOD:#}"),
            _ => "what was lost is listed above".to_owned(),
        };
        writeln!(out, "{} saved; {damage}; {}", show::memories(report.memories), next(&to))
    })?;
    Ok(if nothing { Exit::Corrupt } else { Exit::Ok })
}

fn document(report: &impl serde::Serialize) -> Result<Value, CliError> {
    serde_json::to_value(report)
        .map_err(|error| CliError::new(Exit::Failed, format!("cannot show the report: {error}")))
}

fn line(loss: &Loss) -> String {
    let place = loss.offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
    safe(&format!("{}{place}: {}", loss.file, loss.what))
}

fn next(to: &Path) -> String {
    format!("start a daemon on it with flashbulb serve --store {}", to.display())
}

/// The engine's error with the exit code that `--help` lists.
fn of_engine(error: &Error) -> CliError {
    let exit = match error {
        Error::Invalid { .. } => Exit::Invalid,
        Error::Locked { .. } => Exit::Locked,
        Error::Corrupt { .. } | Error::VersionTooNew { .. } => Exit::Corrupt,
        _ => Exit::Failed,
    };
    CliError::new(exit, error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn engine_errors_end_as_the_table_says() {
        let exit = |error: Error| of_engine(&error).exit;
        let invalid = Error::Invalid { what: "x".into(), why: "y".into() };
        assert_eq!(exit(invalid), Exit::Invalid);
        assert_eq!(exit(Error::Locked { dir: "/s".into() }), Exit::Locked);
        let corrupt = Error::Corrupt { file: "/s/m".into(), offset: 0, what: "w".into() };
        assert_eq!(exit(corrupt), Exit::Corrupt);
        let newer = Error::VersionTooNew { file: "/s/m".into(), found: 2, known: 1 };
        assert_eq!(exit(newer), Exit::Corrupt);
        assert_eq!(exit(Error::DiskFull { path: "/s".into() }), Exit::Failed);
    }

    #[test]
    fn a_loss_is_one_line_with_its_place() {
        let loss = |offset| Loss { file: "wal-1".into(), offset, what: "gone\u{7}".into() };
        assert_eq!(line(&loss(Some(9))), "wal-1 at byte 9: gone\u{fffd}");
        assert_eq!(line(&loss(None)), "wal-1: gone\u{fffd}");
    }
}
