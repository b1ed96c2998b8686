//! A disk that fails when a test says so, and that notes what was written and synced.
//!
//! Invariant: only what is below the watched folder is touched, and only by processes started with `env`. The library
//! in `faulty_disk/preload.c` does the work; it is built once in a test run, by the C compiler that the build needs anyway.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::daemon::{Daemon, PROGRAM};

pub const EINTR: i32 = 4;
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;

/// Which calls of a kind a rule takes, counted from when the rule was given.
#[derive(Debug, Clone, Copy)]
pub enum When {
    Always,
    /// The n-th alone, from 0.
    Nth(u64),
    /// Every n-th, the first among them.
    Every(u64),
}

/// What happens to such a call.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    Fails(i32),
    /// Half is read or written.
    Short,
    WaitsMs(u64),
}

/// One call on a file: what was done, from where, how much, and where in the notes it began and ended.
#[derive(Debug, Clone)]
pub struct Call {
    pub op: String,
    pub path: String,
    pub offset: u64,
    /// What the call answered: bytes written, or −1.
    pub result: i64,
    pub begun: usize,
    /// `None` while it runs.
    pub ended: Option<usize>,
}

/// The disk below one folder.
pub struct Disk {
    root: PathBuf,
    control: PathBuf,
    trace: PathBuf,
    /// How many rules there ever were, and those that hold.
    rules: Mutex<(usize, String)>,
}

impl Disk {
    /// Puts a daemon that is not running yet on a disk of this kind: its store and all else in its folder.
    pub fn under(daemon: &mut Daemon) -> Self {
        let folder = fs::canonicalize(daemon.dir.path()).expect("the daemon's folder");
        daemon.store = folder.join("store");
        let disk = Self::below(&folder);
        daemon.env.extend(disk.env());
        disk
    }

    /// A disk below a folder.
    pub fn below(folder: &Path) -> Self {
        let root = fs::canonicalize(folder).expect("a folder");
        let (control, trace) = (root.join("disk-control"), root.join("disk-trace"));
        fs::write(&trace, "").expect("the notes");
        Self { root, control, trace, rules: Mutex::default() }
    }

    /// Watches another folder than the one that its own files are in.
    pub fn watch(&mut self, folder: &Path) {
        self.root = fs::canonicalize(folder).expect("a folder");
    }

    /// The environment of a process on this disk.
    pub fn env(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("LD_PRELOAD", library().to_owned()),
            ("FAULTY_DISK_ROOT", self.root.clone()),
            ("FAULTY_DISK_CONTROL", self.control.clone()),
            ("FAULTY_DISK_TRACE", self.trace.clone()),
        ]
    }

    /// Adds a rule: calls of kind `op` on paths that contain `part`, or end with it where a `$` follows, or `*`.
    ///
    /// Kinds: `write`, `grow` (a write or allocation past the end of a file), `allocate`, `sync`, `rename`, `unlink`,
    /// `create` (a file or folder), `openw` (a file that exists, for writing), `read`, and `any` for all but reads.
    pub fn rule(&self, op: &str, part: &str, fate: Fate, when: When) {
        let mut held = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let id = held.0;
        held.0 += 1;
        let fate = match fate {
            Fate::Fails(errno) => errno.to_string(),
            Fate::Short => "short".to_owned(),
            Fate::WaitsMs(ms) => format!("wait:{ms}"),
        };
        let (from, count, every) = match when {
            When::Always => (0, u64::MAX, 1),
            When::Nth(n) => (n, 1, 1),
            When::Every(n) => (0, u64::MAX, n),
        };
        held.1 += &format!("{id} {op} {part} {fate} {from} {count} {every}\n");
        self.put(&held.1);
    }

    /// No rule holds any more.
    pub fn heal(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).1.clear();
        self.put("");
    }

    /// Whole or not at all, since the library may read at any moment.
    fn put(&self, rules: &str) {
        let draft = self.control.with_extension("draft");
        fs::write(&draft, rules).expect("the rules");
        fs::rename(&draft, &self.control).expect("the rules in place");
    }

    /// How much has been noted so far: a place to compare `begun` and `ended` with.
    pub fn now(&self) -> usize {
        fs::metadata(&self.trace).expect("the notes").len() as usize
    }

    /// Every call noted so far, in the order in which they began.
    pub fn calls(&self) -> Vec<Call> {
        let text = fs::read_to_string(&self.trace).expect("the notes");
        let (mut calls, mut open): (Vec<Call>, Vec<(String, usize)>) = (Vec::new(), Vec::new());
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let place = at;
            at += line.len();
            let word: Vec<&str> = line.trim_end().splitn(7, ' ').collect();
            let [phase, op, thread, offset, _, result, path] = word[..] else { continue };
            if phase == "B" {
                open.push((thread.to_owned(), calls.len()));
                let (op, path) = (op.to_owned(), path.to_owned());
                let offset = offset.parse().unwrap_or(0);
                calls.push(Call { op, path, offset, result: 0, begun: place, ended: None });
            } else if let Some(i) = open.iter().rposition(|(t, _)| t == thread) {
                let call = &mut calls[open.remove(i).1];
                (call.result, call.ended) = (result.parse().unwrap_or(-1), Some(place));
            }
        }
        calls
    }

    /// Runs the program on this disk and waits for its end.
    pub fn program(&self, args: &[&str]) -> Output {
        Command::new(PROGRAM)
            .args(args)
            .envs(self.env())
            .stdin(Stdio::null())
            .output()
            .expect("the program starts")
    }
}

/// When `text`, which stands in one of the log files of `store`, was covered by a sync that began after the write of
/// its bytes had ended: the place in the notes where that sync ended.
///
/// # Panics
///
/// Panics if no log file has the text or no write of it was noted: the library then missed the program's writes.
#[track_caller]
pub fn synced_at(calls: &[Call], logs: &[(String, Vec<u8>)], text: &str) -> Option<usize> {
    let held = |(name, bytes): &(String, Vec<u8>)| {
        Some((name.clone(), memchr::memmem::find(bytes, text.as_bytes())? as u64))
    };
    let (name, offset) = logs.iter().find_map(held).expect("a log file has the text");
    let covers = |c: &&Call| {
        c.op == "write"
            && c.path.ends_with(&name)
            && c.result > 0
            && (c.offset..c.offset + c.result as u64).contains(&offset)
    };
    // The file was filled with zeros once, by an earlier write.
    let write = calls.iter().rfind(covers).expect("the write of the text was noted");
    let after = write.ended?;
    let sync =
        |c: &&Call| c.op == "sync" && c.path == write.path && c.begun > after && c.result == 0;
    calls.iter().filter(sync).filter_map(|c| c.ended).min()
}

/// The log files of a store with what they hold.
pub fn logs(store: &Path) -> Vec<(String, Vec<u8>)> {
    let names = fs::read_dir(store).expect("the store").flatten();
    let names = names.map(|e| e.file_name().into_string().expect("a plain name"));
    let logs = names.filter(|n| n.starts_with("wal-") && n.ends_with(".log"));
    logs.filter_map(|n| Some((n.clone(), fs::read(store.join(&n)).ok()?))).collect()
}

/// The library, built at its first use.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let build = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("libfaulty_disk.so");
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blackbox/faulty_disk/preload.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let built = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&file, &source])
            .args(["-ldl", "-lpthread"])
            .output()
            .expect("a C compiler runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        (folder, file)
    };
    &LIBRARY.get_or_init(build).1
}
