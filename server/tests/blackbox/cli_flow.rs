//! The command line's own promises: exit codes, JSON errors, standard streams, starting the daemon by itself.
//!
//! Invariant checked: what `--help` documents. The codes are those listed there.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::cli::{cli, memories, program};
use crate::daemon::{Daemon, PROGRAM, healthy, shared};
use crate::data::{list_all, notes_space, space, vector_space};

#[test]
fn exit_codes_and_json_errors_agree_with_the_help() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "codes");
    let cases: [(&[&str], i32); 9] = [
        (&["search", "--space", "never-made", "cat"], 4),
        (&["list", "--space", "never-made"], 4),
        (&["update", "--space", &space, "absent", "--role", "x"], 4),
        (&["add", "--space", &space, "again", "--id", "n1"], 5),
        (&["delete", "--space", &space, "n1", "n2", "--expect-count", "7"], 5),
        (&["search", "--space", "../bad", "cat"], 6),
        (&["search", "--space", &space, "cat", "--filter", "{\"role\": 5}"], 6),
        (&["import", "--space", &space, "/nonexistent/file"], 6),
        (&["search", "--space", &space], 2),
    ];
    for (args, code) in cases {
        let plain = cli(args).failed();
        assert_eq!(plain.code, Some(code), "{args:?}: {plain:?}");
        assert!(plain.stdout.is_empty(), "{args:?}: {plain:?}");
        let with_json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let told = cli(&with_json);
        assert_eq!(told.code, Some(code), "{told:?}");
        let error: Value = serde_json::from_str(&told.stdout)
            .unwrap_or_else(|e| panic!("{args:?} --json ({e}): {told:?}"));
        assert_eq!(error["error"]["exit"], code, "{error}");
        assert!(error["error"]["message"].as_str().is_some_and(|m| m.len() > 10), "{error}");
    }
    assert_eq!(list_all(&mut conn, &space, 100).len(), 10);
}

#[test]
fn without_a_daemon_and_without_leave_to_start_one_it_says_so() {
    let nowhere = Daemon::prepared();
    let socket = nowhere.socket.to_str().unwrap();
    let ran = program(["list", "--space", "x", "--no-start", "--socket", socket]).failed();
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let ran = program(["status", "--no-start", "--json", "--socket", socket]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
}

/// Stops a daemon that the command line started by itself, however the test ends.
struct Stops(Daemon);

impl Drop for Stops {
    fn drop(&mut self) {
        if healthy(&self.0.socket) {
            program(["shutdown", "--socket", self.0.socket.to_str().unwrap_or_default()]);
        }
    }
}

#[test]
fn add_starts_a_daemon_that_shutdown_ends() {
    let places = Stops(Daemon::prepared());
    let (store, socket) = (places.0.store.to_str().unwrap(), places.0.socket.to_str().unwrap());
    let at = ["--store", store, "--socket", socket, "--json"];
    let run = |args: &[&str]| program(args.iter().copied().chain(at));
    run(&[
        "add",
        "--space",
        "own",
        "--wait",
        "searchable",
        "--id",
        "a",
        "The heron stands in the pond",
    ])
    .succeeded()
    .json();
    assert!(healthy(&places.0.socket), "the daemon stays after the command");
    let hits = run(&["search", "--space", "own", "a bird by the water"]).succeeded().json();
    assert_eq!(memories(&hits)[0]["id"], "a");
    run(&["shutdown"]).succeeded();
    crate::data::eventually("the daemon ends", std::time::Duration::from_secs(20), || {
        !places.0.socket.exists()
    });
    let hits = run(&["search", "--space", "own", "a bird by the water"]).succeeded().json();
    assert_eq!(memories(&hits)[0]["id"], "a", "search starts it again, on the same store");
}

#[test]
fn many_commands_that_start_the_daemon_at_once_share_one() {
    let places = Stops(Daemon::prepared());
    let (store, socket) = (places.0.store.to_str().unwrap(), places.0.socket.to_str().unwrap());
    std::thread::scope(|scope| {
        for i in 0..5 {
            scope.spawn(move || {
                let text = format!("note number {i}");
                program(["add", "--space", "herd", &text, "--store", store, "--socket", socket])
                    .succeeded();
            });
        }
    });
    let listed =
        program(["list", "--space", "herd", "--json", "--socket", socket]).succeeded().json();
    assert_eq!(memories(&listed).len(), 5);
}

#[test]
fn text_comes_from_stdin_and_export_goes_to_stdout() {
    let space = space("streams");
    let mut child = Command::new(PROGRAM)
        .args(["add", "--space", &space, "-", "--json", "--socket"])
        .arg(&shared().socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().unwrap().write_all("two\nlines – ü 🚀".as_bytes()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    let exported = cli(&["export", "--space", &space, "-"]).succeeded();
    let line: Value =
        serde_json::from_str(&exported.stdout).unwrap_or_else(|e| panic!("{e}: {exported:?}"));
    assert_eq!(line["text"].as_str().unwrap().trim_end(), "two\nlines – ü 🚀");
}

#[test]
fn options_reach_the_service() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "options", 20);
    cli(&[
        "add",
        "--space",
        &space,
        "--id",
        "opt",
        "--role",
        "narrator",
        "--session",
        "s-9",
        "--ts",
        "2024-05-06T07:08:09Z",
        "--meta",
        "{\"a\": [1]}",
        "--wait",
        "searchable",
        "--",
        "--text that begins with dashes",
    ])
    .succeeded();
    let got = conn.ok("memory.get", json!({"space": space, "ids": ["opt"]}))["items"][0].clone();
    let want = json!(["--text that begins with dashes", "narrator", "s-9", 1_714_979_289_000_i64, {"a": [1]}]);
    assert_eq!(
        Value::from(["text", "role", "session", "ts", "meta"].map(|f| got[f].clone()).to_vec()),
        want
    );
    let filter = "{\"role\": {\"eq\": \"narrator\"}}";
    let found =
        cli(&["search", "--space", &space, "dashes", "-k", "3", "--filter", filter, "--json"])
            .succeeded()
            .json();
    assert_eq!(memories(&found).len(), 1, "{found}");
    let listed = cli(&["list", "--space", &space, "--limit", "7", "--json"]).succeeded().json();
    assert_eq!(memories(&listed).len(), 7);
    let around =
        cli(&["around", "--space", &space, "v5", "--before", "1", "--after", "2", "--json"])
            .succeeded()
            .json();
    assert_eq!(memories(&around).len(), 4);
    let user = "{\"role\": {\"eq\": \"user\"}}";
    cli(&["delete", "--space", &space, "--filter", user, "--dry-run", "--json"]).succeeded().json();
    assert_eq!(list_all(&mut conn, &space, 100).len(), 21);
    cli(&["delete", "--space", &space, "--filter", user, "--expect-count", "10"]).succeeded();
    assert_eq!(list_all(&mut conn, &space, 100).len(), 11);
    cli(&["update", "--space", &space, "opt", "--text", "other words"]).succeeded();
    assert_eq!(
        conn.ok("memory.get", json!({"space": space, "ids": ["opt"]}))["items"][0]["text"],
        "other words"
    );
}
