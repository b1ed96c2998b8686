//! Exit codes, and errors as the command line reports them.
//!
//! Keeps: one table of exit codes, shown in `--help` and tested against the protocol's error codes. Must not know
//! what a command does.

use std::io;

use serde::Serialize;

use crate::client::{ClientError, EXIT_STORE_HELD, RpcError};
use crate::import::{ImportError, RunError};
use crate::rpc::ErrorCode;

/// How the program ends. Scripts depend on these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The request failed.
    Failed = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// No daemon there, and none could be started.
    NoDaemon = 3,
    /// The space or memory does not exist.
    NotFound = 4,
    /// A conflict, or a condition of the request did not hold.
    Conflict = 5,
    /// The input is wrong: a file, a parameter, a limit.
    Invalid = 6,
    /// Another process holds the store.
    Locked = EXIT_STORE_HELD as u8,
    /// The runtime, the model or the required device could not be provided.
    Provisioning = 8,
    /// The store is damaged, too new, or made with another model.
    Corrupt = 9,
    /// Busy or too slow; trying again later may do.
    Busy = 10,
    /// A write to disk failed; a restart shows what is there.
    OutcomeUnknown = 11,
    /// Stopped from outside.
    Interrupted = 130,
}

impl Exit {
    /// The table shown in `--help`.
    pub const HELP: &'static str = "\
Exit codes:
    0  done
    1  the request failed
    2  the command line is wrong
    3  no daemon there, and none could be started
    4  the space or memory does not exist
    5  conflict: the id exists, or --expect-count did not hold
    6  the input is wrong: a file, a parameter, a limit
    7  another process holds the store
    8  the runtime, the model or a required device could not be provided (see flashbulb setup)
    9  the store is damaged, too new, or made with another model (see flashbulb verify, restore
       and salvage)
   10  busy or too slow; try again
   11  a write to disk failed; a restart shows what is there
  130  stopped from outside

Results go to stdout, everything else to stderr. With --json, stdout is one JSON document,
also for an error: {\"error\": {exit, message, code?, data?}}.";

    /// For an error that the daemon answered.
    pub fn of_rpc(error: &RpcError) -> Self {
        let code = i32::try_from(error.code).ok().and_then(ErrorCode::from_code);
        match code {
            Some(ErrorCode::NoSuchSpace | ErrorCode::NoSuchMemory) => Exit::NotFound,
            Some(ErrorCode::Conflict | ErrorCode::ExpectCount | ErrorCode::SeqMismatch) => {
                Exit::Conflict
            }
            Some(ErrorCode::InvalidParams | ErrorCode::LimitExceeded) => Exit::Invalid,
            Some(ErrorCode::Corrupt) => Exit::Corrupt,
            Some(ErrorCode::Busy | ErrorCode::DeadlineExceeded | ErrorCode::ShuttingDown) => {
                Exit::Busy
            }
            Some(ErrorCode::Forbidden) => Exit::NoDaemon,
            _ => Exit::Failed,
        }
    }

    /// The code of a daemon that ended at once, where it means something here too.
    fn of_daemon(exit: Option<i32>) -> Self {
        [Exit::Locked, Exit::Provisioning, Exit::Corrupt, Exit::Invalid]
            .into_iter()
            .find(|known| Some(*known as i32) == exit)
            .unwrap_or(Exit::NoDaemon)
    }
}

/// An error as it is shown and as the program ends with it.
#[derive(Debug, Serialize)]
pub struct CliError {
    /// The exit code.
    #[serde(serialize_with = "as_number")]
    pub exit: Exit,
    /// What went wrong and what to do next.
    pub message: String,
    /// The protocol's error code, where the daemon answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// The protocol's error data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
    /// Whoever read stdout has gone, so nothing is to be said.
    #[serde(skip)]
    pub silent: bool,
}

fn as_number<S: serde::Serializer>(exit: &Exit, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u8(*exit as u8)
}

impl CliError {
    /// An error found here.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        CliError { exit, message: message.into(), code: None, data: None, silent: false }
    }

    /// An input that cannot be used.
    pub fn invalid(message: impl Into<String>) -> Self {
        CliError::new(Exit::Invalid, message)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::PathTooLong { .. } => Exit::Invalid,
            ClientError::NoDaemon { .. }
            | ClientError::Stranger { .. }
            | ClientError::NoPlace { .. } => Exit::NoDaemon,
            ClientError::Timeout { .. } => Exit::Busy,
            ClientError::Rpc(rpc) => Exit::of_rpc(rpc),
            ClientError::Start { exit, .. } => Exit::of_daemon(*exit),
            _ => Exit::Failed,
        };
        let mut shown = CliError::new(exit, error.to_string());
        if let ClientError::Rpc(rpc) = error {
            if let Some(next) = next_step(exit) {
                shown.message = format!("{}; {next}", shown.message);
            }
            shown.code = Some(rpc.code);
            shown.data = rpc.data;
        }
        shown
    }
}

/// What a person does next; the daemon's own message knows the protocol, not this command line.
fn next_step(exit: Exit) -> Option<&'static str> {
    match exit {
        Exit::NotFound => Some("`flashbulb space list` and `flashbulb list` show what there is"),
        Exit::Corrupt => Some("run `flashbulb verify`"),
        _ => None,
    }
}

impl From<ImportError> for CliError {
    fn from(error: ImportError) -> Self {
        CliError::new(Exit::Invalid, error.to_string())
    }
}

impl<E: Into<CliError>> From<RunError<E>> for CliError {
    fn from(error: RunError<E>) -> Self {
        match error {
            RunError::Source(error) => error.into(),
            RunError::Sink(error) => {
                let mut error = error.into();
                error.message +=
                    "\nwhat was imported before stays; run the same command again to go on";
                error
            }
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        let silent = error.kind() == io::ErrorKind::BrokenPipe;
        CliError {
            silent,
            ..CliError::new(
                if silent { Exit::Ok } else { Exit::Failed },
                format!("cannot write the result: {error}"),
            )
        }
    }
}

impl From<crate::provision::ProvisionError> for CliError {
    fn from(error: crate::provision::ProvisionError) -> Self {
        CliError::new(Exit::Provisioning, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_error_has_its_exit_code() {
        let exit = |code: ErrorCode| {
            Exit::of_rpc(&RpcError { code: code.code().into(), message: String::new(), data: None })
        };
        for (code, want) in [
            (ErrorCode::NoSuchSpace, 4),
            (ErrorCode::NoSuchMemory, 4),
            (ErrorCode::Conflict, 5),
            (ErrorCode::ExpectCount, 5),
            (ErrorCode::SeqMismatch, 5),
            (ErrorCode::InvalidParams, 6),
            (ErrorCode::LimitExceeded, 6),
            (ErrorCode::Corrupt, 9),
            (ErrorCode::Busy, 10),
            (ErrorCode::DeadlineExceeded, 10),
            (ErrorCode::InternalError, 1),
            (ErrorCode::NotYet, 1),
            (ErrorCode::MethodNotFound, 1),
        ] {
            assert_eq!(exit(code) as u8, want, "{code:?}");
        }
    }

    #[test]
    fn a_daemon_that_ends_passes_its_reason_on() {
        for (daemon, want) in
            [(Some(7), 7), (Some(8), 8), (Some(9), 9), (Some(1), 3), (Some(101), 3), (None, 3)]
        {
            assert_eq!(Exit::of_daemon(daemon) as u8, want, "{daemon:?}");
        }
    }

    #[test]
    fn the_help_lists_every_code() {
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::NoDaemon,
            Exit::NotFound,
            Exit::Conflict,
            Exit::Invalid,
            Exit::Locked,
            Exit::Provisioning,
            Exit::Corrupt,
            Exit::Busy,
            Exit::Interrupted,
        ] {
            let line = format!("\n{:>5}  ", exit as u8);
            assert!(Exit::HELP.contains(&line), "{exit:?}");
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let gone = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(gone.silent && gone.exit == Exit::Ok);
        let full = CliError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(!full.silent && full.exit == Exit::Failed);
    }
}
