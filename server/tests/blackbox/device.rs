//! Devices: what was demanded and is missing ends the start; what was preferred and is missing is said everywhere.
//!
//! Invariant checked: no answer claims a device that did not run the model. The runtime here is the CPU build, named so
//! that it is used where another one is installed too; on every machine the accelerator is then missing.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::program;
use crate::daemon::{Daemon, shared};
use crate::data::{add, notes_space, space};

const ACCELERATOR: &str = if cfg!(target_os = "macos") { "CoreML" } else { "CUDA" };

/// A first start may compile the model.
const LIMIT: Duration = Duration::from_secs(300);

/// `--runtime` with the library of the CPU build.
fn cpu_build() -> [String; 2] {
    // It is there once the shared daemon runs.
    shared();
    let setup = program(["setup", "--json", "--device", "cpu"]).succeeded().json();
    ["--runtime".to_owned(), setup["runtime_library"].as_str().expect("a path").to_owned()]
}

fn prepared(args: &[&str]) -> Daemon {
    let mut daemon = Daemon::prepared();
    daemon.args = args.iter().map(|&arg| arg.to_owned()).chain(cpu_build()).collect();
    daemon
}

/// Starts `serve` with `args`, which must end with 8, and returns what it said.
#[track_caller]
fn refused(args: &[&str]) -> String {
    let mut daemon = prepared(args);
    let Err(status) = daemon.try_run(LIMIT) else {
        panic!("it started without the device: {args:?}");
    };
    assert_eq!(status.code(), Some(8), "{}", daemon.log_tail());
    assert!(!daemon.socket.exists(), "nothing listens after a refused start");
    daemon.log_tail()
}

fn unavailable(degraded: &Value) -> Vec<&str> {
    let entries = degraded.as_array().expect("degraded is a list").iter();
    entries.filter_map(Value::as_str).filter(|e| e.starts_with("device_unavailable: ")).collect()
}

#[test]
fn a_required_device_that_is_missing_ends_the_start() {
    let said = refused(&["--device", "required"]);
    for word in [ACCELERATOR, "--runtime", "--device preferred"] {
        assert!(said.contains(word), "what is missing and what to do, `{word}`: {said}");
    }
}

#[test]
fn bytes_on_a_required_device_end_the_start() {
    let said = refused(&["--device", "required", "--precision", "int8"]);
    assert!(said.contains("int8") && said.contains(ACCELERATOR), "{said}");
}

#[test]
fn a_preferred_device_that_is_missing_is_said_in_every_answer() {
    let mut daemon = prepared(&["--device", "preferred"]);
    daemon.run();
    let mut conn = daemon.conn();
    let space = space("device");
    add(&mut conn, &space, json!([{"id": "a", "text": "The ferry leaves at noon"}]));
    let by_text = json!({"space": space, "query": "When does the boat go?"});
    for _ in 0..2 {
        // The second one's vector is kept from the first.
        let found = conn.ok("memory.search", by_text.clone());
        let said = unavailable(&found["degraded"]);
        assert!(said.len() == 1 && said[0].contains(ACCELERATOR), "{found}");
        let embed = &found["ran"]["embed"];
        assert_eq!(
            (&embed["device"], &embed["precision"]),
            (&json!("cpu"), &json!("f32")),
            "{found}"
        );
        assert_eq!(embed["provider"], "CPUExecutionProvider");
        assert_eq!(found["hits"][0]["id"], "a");
    }
    let health = conn.ok("admin.health", json!({}));
    assert_eq!(health["status"], "degraded");
    assert_eq!(unavailable(&health["degraded"]).len(), 1, "{health}");
    assert_eq!(health["ran"]["embed"]["device"], "cpu");
    let device = conn.ok("admin.status", json!({}))["embedder"]["device"].clone();
    assert_eq!((&device["wanted"], &device["used"]), (&json!("preferred"), &json!("cpu")));
    assert!(device["reason"].as_str().is_some_and(|why| why.contains(ACCELERATOR)), "{device}");
    let socket = daemon.socket.to_str().unwrap();
    let command = ["doctor", "--json", "--device", "preferred", "--socket", socket];
    let doctor = program(command.map(str::to_owned).iter().chain(&cpu_build())).json();
    let finding = |check: &str| {
        let findings = doctor["findings"].as_array().expect("findings");
        findings.iter().find(|finding| finding["check"] == check).expect("a finding").clone()
    };
    for check in ["device", "daemon"] {
        let found = finding(check);
        assert_eq!(found["level"], "warn", "{found}");
        assert!(found["what"].as_str().unwrap().contains("device_unavailable: "), "{found}");
    }
    // Who demands a device is not served by a daemon that has none.
    let socket = ["--socket", socket, "--device", "required"];
    let search = ["search", "--space", &space, "boat"];
    let refused = program(search.iter().chain(&socket)).failed();
    assert_eq!(refused.code, Some(5), "{refused:?}");
}

#[test]
fn without_a_wish_for_a_device_nothing_is_degraded() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "device");
    let found = conn.ok("memory.search", json!({"space": space, "query": "allergy"}));
    assert_eq!(found["degraded"], json!([]), "{found}");
    let embed = &found["ran"]["embed"];
    assert_eq!(embed["device"], "cpu");
    let heavy = embed["heavy_nodes"].as_u64().expect("a count");
    assert!(heavy > 0 && embed["heavy_nodes_on_device"] == heavy, "{embed}");
    assert_eq!(conn.ok("admin.health", json!({}))["degraded"], json!([]));
    let device = conn.ok("admin.status", json!({}))["embedder"]["device"].clone();
    assert_eq!(device, json!({"wanted": "cpu", "used": "cpu"}));
}
