//! Where the daemon is, and starting one where none runs.
//!
//! Keeps: the daemon and its clients find the same socket; a daemon that is started outlives the terminal it was
//! started from; one that dies is reported with the end of its log. Must not know what the daemon does.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Client, ClientError};

/// A daemon's log is set aside at a start when it is bigger than this.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// How much of the log is looked at for its last lines.
const LOG_TAIL_BYTES: u64 = 16 << 10;
const LOG_TAIL_LINES: usize = 12;
/// A first start may have to fetch and compile the model.
const START_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How long to wait for another daemon that holds the store but does not answer.
const OTHER_DAEMON_TIMEOUT: Duration = Duration::from_secs(30);
const RESPAWN_PAUSE: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(20);
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// The daemon's exit code for a store that another process holds.
pub const EXIT_STORE_HELD: i32 = 7;

/// The variables and folders that decide where things are.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `$XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// The user's number.
    pub uid: u32,
}

impl Places {
    /// As this process finds them. Relative paths are ignored, as the XDG base directory specification says.
    pub fn discover() -> Self {
        let variable = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        Places {
            runtime_dir: variable("XDG_RUNTIME_DIR"),
            data_home: variable("XDG_DATA_HOME"),
            state_home: variable("XDG_STATE_HOME"),
            home: variable("HOME"),
            uid: rustix::process::geteuid().as_raw(),
        }
    }

    /// `$XDG_RUNTIME_DIR/flashbulb/flashbulb.sock`; without that variable a folder of the user's own in `/tmp`.
    pub fn socket(&self) -> PathBuf {
        match &self.runtime_dir {
            Some(dir) => dir.join("flashbulb/flashbulb.sock"),
            None => PathBuf::from(format!("/tmp/flashbulb-{}/flashbulb.sock", self.uid)),
        }
    }

    /// `$XDG_DATA_HOME/flashbulb/store`, by default under `~/.local/share`.
    ///
    /// # Errors
    ///
    /// When neither variable is set.
    pub fn store(&self) -> Result<PathBuf, ClientError> {
        self.below(&self.data_home, ".local/share", "store").ok_or_else(|| ClientError::NoPlace {
            what: "neither XDG_DATA_HOME nor HOME is set; name the store with --store DIR".into(),
        })
    }

    /// `$XDG_STATE_HOME/flashbulb/daemon.log`, by default under `~/.local/state`.
    ///
    /// # Errors
    ///
    /// When neither variable is set.
    pub fn log(&self) -> Result<PathBuf, ClientError> {
        self.below(&self.state_home, ".local/state", "daemon.log").ok_or_else(|| {
            ClientError::NoPlace {
                what: "neither XDG_STATE_HOME nor HOME is set, so the daemon has no log; start it \
                       with `flashbulb serve`"
                    .into(),
            }
        })
    }

    fn below(&self, base: &Option<PathBuf>, default: &str, name: &str) -> Option<PathBuf> {
        let base = match (base, &self.home) {
            (Some(base), _) => base.clone(),
            (None, Some(home)) => home.join(default),
            (None, None) => return None,
        };
        Some(base.join("flashbulb").join(name))
    }
}

/// The socket used when none is named; the daemon and every client call this.
pub fn default_socket() -> PathBuf {
    Places::discover().socket()
}

/// The store used when none is named.
///
/// # Errors
///
/// When the environment names no home.
pub fn default_store() -> Result<PathBuf, ClientError> {
    Places::discover().store()
}

/// The log of a daemon that a command started.
///
/// # Errors
///
/// When the environment names no home.
pub fn log_path() -> Result<PathBuf, ClientError> {
    Places::discover().log()
}

/// How to start a daemon.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Where it listens.
    pub socket: PathBuf,
    /// The program; the running one where left out.
    pub program: Option<PathBuf>,
    /// Arguments of `serve` besides the socket.
    pub arguments: Vec<std::ffi::OsString>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// Connects, and where nothing listens starts a daemon and waits until it answers `admin.status`.
///
/// `on_wait` is told what the daemon wrote last, while it starts.
///
/// # Errors
///
/// When the daemon ends, or does not answer in time; with the last lines of its log.
pub fn connect_or_start(
    options: &StartOptions,
    on_wait: &mut dyn FnMut(&str),
) -> Result<Client, ClientError> {
    match Client::connect(&options.socket) {
        Err(ClientError::NoDaemon { .. }) => {}
        other => return other,
    }
    // Only what this start writes is shown; the log keeps those before.
    let log_from = fs::metadata(&options.log).map_or(0, |metadata| metadata.len());
    let mut child = spawn(options)?;
    let started = Instant::now();
    let mut held_since = None;
    loop {
        if let Some(client) = answering(&options.socket)? {
            return Ok(client);
        }
        if let Some(status) = child.try_wait().map_err(|error| failed(options, error))? {
            // Another daemon has the socket or the store: one about to listen, or one about to end.
            let since: Instant = *held_since.get_or_insert_with(Instant::now);
            if status.code() != Some(EXIT_STORE_HELD) || since.elapsed() > OTHER_DAEMON_TIMEOUT {
                return Err(ended(options, log_from, status));
            }
            std::thread::sleep(RESPAWN_PAUSE);
            if let Some(client) = answering(&options.socket)? {
                return Ok(client);
            }
            child = spawn(options)?;
        }
        if started.elapsed() > START_TIMEOUT {
            return Err(start_error(options, log_from, "it does not answer".to_owned(), None));
        }
        on_wait(tail(&options.log, log_from).lines().last().unwrap_or_default());
        std::thread::sleep(POLL);
    }
}

/// A client whose daemon answers; nothing while it is still starting.
fn answering(socket: &Path) -> Result<Option<Client>, ClientError> {
    match Client::connect(socket) {
        Err(ClientError::NoDaemon { .. }) => Ok(None),
        Err(error) => Err(error),
        Ok(mut client) => {
            let no_parameters = serde_json::Map::new();
            match client.call_raw("admin.status", no_parameters, STATUS_TIMEOUT) {
                Ok(_) => Ok(Some(client)),
                Err(ClientError::Stranger { path, owner, me }) => {
                    Err(ClientError::Stranger { path, owner, me })
                }
                Err(_) => Ok(None),
            }
        }
    }
}

fn spawn(options: &StartOptions) -> Result<Child, ClientError> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(|error| failed(options, error))?,
    };
    let log = open_log(&options.log).map_err(|error| failed(options, error))?;
    let also_log = log.try_clone().map_err(|error| failed(options, error))?;
    Command::new(program)
        .arg("serve")
        .arg("--detached")
        .arg("--socket")
        .arg(&options.socket)
        .args(&options.arguments)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(also_log)
        .spawn()
        .map_err(|error| failed(options, error))
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    // Texts never go into the log, but names of spaces do.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The last lines of a log after this many bytes; empty where it cannot be read.
fn tail(path: &Path, from: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        // A log that was set aside meanwhile begins anew.
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES).max(from)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

fn failed(options: &StartOptions, error: std::io::Error) -> ClientError {
    start_error(options, u64::MAX, error.to_string(), None)
}

fn ended(options: &StartOptions, log_from: u64, status: std::process::ExitStatus) -> ClientError {
    start_error(options, log_from, format!("it ended with {status}"), status.code())
}

fn start_error(
    options: &StartOptions,
    log_from: u64,
    what: String,
    exit: Option<i32>,
) -> ClientError {
    let tail = match log_from {
        // It was never started, so nothing in the log is its own.
        u64::MAX => String::new(),
        from => tail(&options.log, from),
    };
    ClientError::Start { what, exit, log: options.log.clone(), tail }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn places_follow_the_xdg_variables() {
        let home = Places { home: Some("/home/a".into()), uid: 7, ..Places::default() };
        assert_eq!(home.socket(), Path::new("/tmp/flashbulb-7/flashbulb.sock"));
        assert_eq!(home.store().unwrap(), Path::new("/home/a/.local/share/flashbulb/store"));
        assert_eq!(home.log().unwrap(), Path::new("/home/a/.local/state/flashbulb/daemon.log"));
        let all = Places {
            runtime_dir: Some("/run/user/7".into()),
            data_home: Some("/data".into()),
            state_home: Some("/state".into()),
            ..home
        };
        assert_eq!(all.socket(), Path::new("/run/user/7/flashbulb/flashbulb.sock"));
        assert_eq!(all.store().unwrap(), Path::new("/data/flashbulb/store"));
        assert_eq!(all.log().unwrap(), Path::new("/state/flashbulb/daemon.log"));
        assert!(Places::default().store().unwrap_err().to_string().contains("--store"));
    }

    #[test]
    fn another_daemon_about_to_listen_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let options = StartOptions {
            socket: folder.path().join("s"),
            program: Some(script(folder.path(), "echo it is held; exit 7")),
            arguments: Vec::new(),
            log: folder.path().join("daemon.log"),
        };
        let socket = options.socket.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {}
            std::io::Write::write_all(&mut stream, b"{\"id\":1,\"result\":{}}\n").unwrap();
        });
        assert!(connect_or_start(&options, &mut |_| {}).is_ok());
        other.join().unwrap();
        assert_eq!(tail(&options.log, 0), "it is held");
    }

    /// A program that does this instead of serving.
    fn script(folder: &Path, body: &str) -> PathBuf {
        let program = folder.join("program");
        fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&program, mode).unwrap();
        program
    }

    #[test]
    fn a_daemon_that_dies_is_reported_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let body = "echo line 1; echo no model >&2; exit 8";
        let program = script(folder.path(), body);
        let options = StartOptions {
            socket: folder.path().join("s"),
            program: Some(program),
            arguments: Vec::new(),
            log: folder.path().join("state/daemon.log"),
        };
        fs::create_dir(folder.path().join("state")).unwrap();
        fs::write(&options.log, "of an earlier run\n").unwrap();
        match connect_or_start(&options, &mut |_| {}) {
            Err(ClientError::Start { exit, tail, .. }) => {
                assert_eq!(exit, Some(8));
                assert_eq!(tail, "line 1\nno model");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_big_log_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.log");
        fs::write(&path, vec![b'x'; LOG_BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
        assert!(folder.path().join("daemon.log.1").exists());
    }
}
