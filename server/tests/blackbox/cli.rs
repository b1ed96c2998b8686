//! The command line as a user runs it, against the shared daemon.
//!
//! Invariant checked: with `--json`, stdout is JSON and nothing else; a failure has a non-zero exit code and a message
//! on stderr; the command line shows what the protocol holds.

use std::ffi::OsStr;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon::{PROGRAM, shared};
use crate::data::{NOTES, add, list_all, notes_space, space, vector};

const LIMIT: Duration = Duration::from_secs(120);

/// What a command left.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    #[track_caller]
    pub fn failed(self) -> Self {
        assert!(self.code.is_some_and(|c| c != 0), "it must fail with a code: {self:?}");
        assert!(self.stderr.trim().len() > 10, "a failure says why on stderr: {self:?}");
        self
    }

    /// Stdout as JSON: one value, or one a line.
    #[track_caller]
    pub fn json(&self) -> Value {
        if let Ok(value) = serde_json::from_str(&self.stdout) {
            return value;
        }
        let line = |l: &str| {
            serde_json::from_str(l).unwrap_or_else(|e| panic!("stdout is not JSON ({e}): {self:?}"))
        };
        let lines: Vec<Value> = self.stdout.lines().map(line).collect();
        assert!(!lines.is_empty(), "--json printed nothing: {self:?}");
        Value::from(lines)
    }
}

/// Runs the program with arguments, without a terminal and with a limit.
#[track_caller]
pub fn program<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Ran {
    reading(Stdio::null(), args)
}

/// As [`program`], with something on stdin.
#[track_caller]
pub fn reading<I: AsRef<OsStr>>(stdin: Stdio, args: impl IntoIterator<Item = I>) -> Ran {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let open = |name: &str| File::create(dir.path().join(name)).expect("a file");
    let mut child = Command::new(PROGRAM)
        .args(args)
        .stdin(stdin)
        .stdout(open("out"))
        .stderr(open("err"))
        .spawn()
        .expect("the program starts");
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting") {
            break status;
        }
        if Instant::now() > end {
            child.kill().expect("SIGKILL");
            panic!("the command did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let read = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(dir.path().join(name)).expect("its output"))
            .into_owned()
    };
    Ran { code: status.code(), stdout: read("out"), stderr: read("err") }
}

/// Runs a command of the program against the shared daemon.
#[track_caller]
pub fn cli(args: &[&str]) -> Ran {
    let socket = shared().socket.to_str().expect("a plain path");
    let (command, rest) = args.split_first().expect("a command");
    // In front, because a `--` may follow.
    program([*command, "--socket", socket].iter().chain(rest))
}

/// Every memory-like object (it has an `id` and a `text`) anywhere in a value.
pub fn memories(value: &Value) -> Vec<&Value> {
    match value {
        Value::Object(o) if o.contains_key("id") && o.contains_key("text") => vec![value],
        Value::Object(o) => o.values().flat_map(memories).collect(),
        Value::Array(a) => a.iter().flat_map(memories).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn add_search_get_list_delete_speak_json() {
    let space = space("cli");
    for note in &NOTES[..4] {
        let added = cli(&["add", "--space", &space, note, "--json"]).succeeded();
        assert!(added.json().to_string().contains("\"id\""), "add answers the id: {added:?}");
    }
    let mut conn = shared().conn();
    let held = list_all(&mut conn, &space, 100);
    assert_eq!(held.iter().map(|m| m["text"].as_str().unwrap()).collect::<Vec<_>>(), NOTES[..4]);
    let id = held[3]["id"].as_str().unwrap();
    crate::data::eventually("what was added is searchable", Duration::from_secs(10), || {
        let ran = cli(&["search", "--space", &space, "an animal that fears the hoover", "--json"])
            .succeeded();
        let json = ran.json();
        memories(&json).first().is_some_and(|m| m["id"] == id)
    });
    let got = cli(&["get", "--space", &space, id, "--json"]).succeeded().json();
    assert_eq!(memories(&got)[0]["text"], NOTES[3]);
    let listed = cli(&["list", "--space", &space, "--json"]).succeeded().json();
    assert_eq!(memories(&listed).len(), 4);
    cli(&["delete", "--space", &space, id, "--json"]).succeeded().json();
    assert_eq!(list_all(&mut conn, &space, 100).len(), 3);
}

#[test]
fn without_json_a_person_can_read_it() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "cli-text");
    for args in [
        vec!["search", "--space", &space, "cat"],
        vec!["list", "--space", &space],
        vec!["get", "--space", &space, "n3"],
    ] {
        let ran = cli(&args).succeeded();
        assert!(ran.stdout.contains("Marzipan"), "{args:?}: {ran:?}");
        assert!(!ran.stdout.contains('\u{1b}'), "no colours off a terminal: {ran:?}");
    }
}

#[test]
fn failures_have_codes_and_messages() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "cli-fail");
    let nowhere = "/nonexistent/folder/file.jsonl";
    let cases: [&[&str]; 9] = [
        &["search", "--space", "never-made", "cat", "--json"],
        &["list", "--space", "never-made"],
        &["get", "--space", "never-made", "x"],
        &["export", "--space", "never-made", "/tmp/flashbulb-never.jsonl"],
        &["import", "--space", &space, nowhere, "--json"],
        &["add", "--space", "../bad", "text"],
        &["no-such-command"],
        &["search", "--space", &space],
        &["list", "--space", &space, "--no-such-flag"],
    ];
    for args in cases {
        let ran = cli(args).failed();
        // With --json an error may be JSON on stdout too, but never anything else.
        assert!(
            ran.stdout.trim().is_empty() || serde_json::from_str::<Value>(&ran.stdout).is_ok(),
            "{args:?}: {ran:?}"
        );
    }
    assert_eq!(list_all(&mut conn, &space, 100).len(), 10);
}

#[test]
fn status_doctor_and_verify_answer() {
    add(&mut shared().conn(), "cli-status", json!([{"text": "t", "vector": vector(1)}]));
    for args in [["status", "--json"], ["verify", "--json"]] {
        let ran = cli(&args).succeeded();
        assert!(ran.json().is_object(), "{args:?}: {ran:?}");
    }
    assert!(!cli(&["status"]).succeeded().stdout.is_empty());
    let doctor = cli(&["doctor", "--json"]).succeeded().json();
    let text = doctor.to_string().to_lowercase();
    for part in ["simd", "cpu", "gpu"] {
        assert!(text.contains(part), "doctor --json speaks of {part}: {text}");
    }
}

#[test]
fn help_version_and_completions_need_no_daemon() {
    let version = program(["--version"]).succeeded();
    assert!(version.stdout.contains("flashbulb"), "{version:?}");
    let help = program(["--help"]).succeeded();
    let commands = [
        "serve",
        "setup",
        "demo",
        "add",
        "search",
        "get",
        "list",
        "delete",
        "import",
        "export",
        "status",
        "doctor",
        "verify",
        "completions",
    ];
    for command in commands {
        assert!(help.stdout.contains(command), "--help names {command}");
        let own = program([command, "--help"]).succeeded();
        assert!(own.stdout.len() > 50, "{command} --help: {own:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = program(["completions", shell]).succeeded();
        assert!(
            script.stdout.contains("flashbulb") && script.stdout.len() > 500,
            "{shell}: {} bytes",
            script.stdout.len()
        );
    }
    program(["completions", "no-such-shell"]).failed();
}
