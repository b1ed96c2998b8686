//! Starting, killing and stopping the real daemon on temporary folders.
//!
//! Invariant: no daemon outlives the test process, however that ends: each is watched by a shell that holds the read
//! end of a pipe and kills it when the pipe closes. This module must know nothing of what the tests ask.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Conn, outcome, parse};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_flashbulb");

/// A first start may provision the runtime and the model.
const FIRST_START_LIMIT: Duration = Duration::from_secs(600);
const START_LIMIT: Duration = Duration::from_secs(60);
/// SIGTERM drains; more than this is a hang.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Whether a daemon was healthy once in this process. Also a lock: two first starts must not provision at once.
static WARM: Mutex<bool> = Mutex::new(false);

/// A running process and the shell that kills it if the tests die.
struct Running {
    child: Child,
    watcher: Child,
    leash: ChildStdin,
}

/// One store, one socket, and the daemon on them while it runs.
pub struct Daemon {
    pub store: PathBuf,
    pub socket: PathBuf,
    pub dir: TempDir,
    /// Further arguments and environment of `serve`.
    pub args: Vec<String>,
    pub env: Vec<(&'static str, PathBuf)>,
    running: Option<Running>,
}

impl Daemon {
    /// A daemon on fresh folders, healthy when this returns.
    #[track_caller]
    pub fn start() -> Self {
        let mut daemon = Self::prepared();
        daemon.run();
        daemon
    }

    /// The folders alone.
    pub fn prepared() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("flashbulb-blackbox-")
            // The service refuses to put its socket where others could replace it.
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .expect("a temporary folder");
        let (store, socket) = (dir.path().join("store"), dir.path().join("run").join("s.sock"));
        Self { store, socket, dir, args: Vec::new(), env: Vec::new(), running: None }
    }

    /// Starts the daemon and waits until `admin.health` succeeds.
    #[track_caller]
    pub fn run(&mut self) {
        let mut warm = WARM.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = if *warm { START_LIMIT } else { FIRST_START_LIMIT };
        // Later starts may overlap; only the first holds the lock while it waits.
        if *warm {
            drop(warm);
            self.launch(limit);
        } else {
            self.launch(limit);
            *warm = true;
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Starts the process and leaves it to the caller what becomes of it.
    pub fn spawn(&mut self) {
        assert!(self.running.is_none(), "already running");
        let log =
            File::options().create(true).append(true).open(self.log_path()).expect("the log file");
        let child = Command::new(PROGRAM)
            .arg("serve")
            .arg("--store")
            .arg(&self.store)
            .arg("--socket")
            .arg(&self.socket)
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the program starts");
        self.running = Some(watch(child, self.dir.path()));
    }

    /// Starts the process and waits until it is healthy; its exit status if it ends first.
    #[track_caller]
    pub fn try_run(&mut self, limit: Duration) -> Result<(), ExitStatus> {
        self.spawn();
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_exit() {
                return Err(status);
            }
            if healthy(&self.socket) {
                return Ok(());
            }
            let log = || self.log_tail();
            assert!(
                Instant::now() < end,
                "admin.health did not succeed within {limit:?}:\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn launch(&mut self, limit: Duration) {
        if let Err(status) = self.try_run(limit) {
            panic!("serve ended with {status} before it was healthy:\n{}", self.log_tail());
        }
    }

    /// The last lines the daemon logged.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
    }

    /// A new connection.
    #[track_caller]
    pub fn conn(&self) -> Conn {
        match Conn::try_open(&self.socket) {
            Ok(conn) => conn,
            Err(e) => panic!("cannot connect ({e}); the daemon's log ends:\n{}", self.log_tail()),
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("running").child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let raw = i32::try_from(self.pid()).expect("a process id fits");
        kill_process(Pid::from_raw(raw).expect("not zero"), signal)
            .expect("the daemon can be signalled");
    }

    /// The exit status, if it has ended by itself.
    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        let status = self.running.as_mut()?.child.try_wait().expect("waiting for a child");
        if status.is_some() {
            self.forget();
        }
        status
    }

    /// Waits for the daemon to end.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_exit() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "the daemon did not end within {limit:?}:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9.
    pub fn kill9(&mut self) {
        if let Some(running) = self.running.as_mut() {
            running.child.kill().expect("SIGKILL");
            running.child.wait().expect("a killed child ends");
        }
        self.forget();
    }

    /// SIGTERM, then waits.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit(STOP_LIMIT)
    }

    /// Calls the watcher off; the process is gone and its id may be another's soon.
    fn forget(&mut self) {
        if let Some(mut running) = self.running.take() {
            // A watcher that is gone already has nothing left to do.
            let _ = running.leash.write_all(b"done\n");
            drop(running.leash);
            let _ = running.watcher.wait();
        }
    }

    /// A number from `/proc/PID/status`, such as `VmRSS` (kB) or `Threads`.
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn proc_status(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the daemon's status");
        let line = text.lines().find(|l| l.split(':').next() == Some(key)).expect("a known key");
        line.split_whitespace().nth(1).expect("a value").parse().expect("a number")
    }

    /// Whether a connection, a real embedding and a real search work now.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.try_exit() {
            panic!("the daemon ended with {status}:\n{}", self.log_tail());
        }
        assert!(healthy(&self.socket), "admin.health failed; the log ends:\n{}", self.log_tail());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Whether `admin.health` succeeds on a new connection.
pub fn healthy(socket: &Path) -> bool {
    let Ok(mut conn) = Conn::try_open(socket) else {
        return false;
    };
    // Not `try_call`: a connection that is one too many is refused before it is read, under no id.
    let Ok(line) = conn.try_raw("admin.health", &json!({})) else {
        return false;
    };
    matches!(outcome(&parse(&line)), Ok(Value::Object(_)))
}

/// Deaf to the signals that end a whole process group, or it would die with the tests it watches.
const WATCH: &str =
    r#"trap '' TERM INT HUP; read line && exit 0; kill -9 "$1"; sleep 1; rm -rf -- "$2""#;

fn watch(child: Child, dir: &Path) -> Running {
    let mut watcher = Command::new("sh")
        .args(["-c", WATCH, "watcher"])
        .arg(child.id().to_string())
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    let leash = watcher.stdin.take().expect("a piped stdin");
    Running { child, watcher, leash }
}

/// The daemon most tests share; spaces keep them apart.
pub fn shared() -> &'static Daemon {
    static SHARED: OnceLock<Daemon> = OnceLock::new();
    SHARED.get_or_init(Daemon::start)
}
