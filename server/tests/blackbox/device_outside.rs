//! The choice of a device, from outside, on a machine whose accelerator cannot carry the model.
//!
//! Invariant checked: a demanded device that is missing fails the start with a code, a reason and a next step; a
//! preferred one is missed aloud in every answer; without a wish nothing is said. The provided runtime is one for
//! processors, so `required` cannot be met by it; with a runtime or a driver of the machine's own these tests do
//! nothing.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::program;
use crate::daemon::Daemon;
use crate::data::notes_space;

const MISSED: &str = "device_unavailable: ";
const REFUSES_WITHIN: Duration = Duration::from_secs(120);

fn has_accelerator() -> bool {
    let there = Path::new("/dev/nvidia0").exists() || std::env::var_os("FLASHBULB_ORT").is_some();
    if there {
        println!("not checked: this machine may have an accelerator");
    }
    there
}

fn asking(args: &[&str]) -> Daemon {
    let mut daemon = Daemon::prepared();
    daemon.args.extend(args.iter().map(|a| (*a).to_owned()));
    daemon
}

/// Fails unless the daemon refuses to start as it should; what it said.
#[track_caller]
fn refuses(mut daemon: Daemon) -> String {
    daemon.spawn();
    let status = daemon.wait_exit(REFUSES_WITHIN);
    let said = daemon.log_tail();
    assert_eq!(status.code(), Some(8), "{said}");
    assert!(!daemon.socket.exists(), "a refused start leaves a socket");
    said
}

/// The one entry of a list that says the device was missed.
#[track_caller]
fn missed(degraded: &Value) -> String {
    let entries = degraded.as_array().unwrap_or_else(|| panic!("a list: {degraded}"));
    let of: Vec<&str> =
        entries.iter().filter_map(Value::as_str).filter(|e| e.starts_with(MISSED)).collect();
    assert_eq!(of.len(), 1, "one entry begins with {MISSED:?}: {degraded}");
    assert!(of[0].len() > MISSED.len() + 10, "the reason is given: {degraded}");
    of[0].to_owned()
}

#[test]
fn a_required_device_that_is_missing_fails_the_start() {
    if has_accelerator() {
        return;
    }
    // A daemon may have been started once without, or the refusal could be one of provisioning.
    drop(Daemon::start());
    let mut by_env = asking(&[]);
    by_env.env.push(("FLASHBULB_DEVICE", "required".into()));
    for daemon in [asking(&["--device", "required"]), by_env] {
        let said = refuses(daemon);
        let lower = said.to_lowercase();
        assert!(lower.contains("cuda"), "the device is named: {said}");
        let next = ["--device", "install", "flashbulb doctor", "flashbulb setup", "--runtime"];
        assert!(next.iter().any(|n| said.contains(n)), "a next step is named: {said}");
        assert!(!lower.contains("panicked"), "{said}");
    }
}

#[test]
fn int8_and_a_required_device_exclude_each_other() {
    if has_accelerator() {
        return;
    }
    let said = refuses(asking(&["--device", "required", "--precision", "int8"]));
    assert!(said.contains("int8"), "int8 is what cannot be: {said}");
}

#[test]
fn a_daemon_that_a_command_starts_obeys_the_demand_too() {
    if has_accelerator() {
        return;
    }
    let places = Daemon::prepared();
    let at =
        ["--store", places.store.to_str().unwrap(), "--socket", places.socket.to_str().unwrap()];
    let args = ["add", "--space", "a", "text", "--device", "required"];
    let ran = program(args.iter().copied().chain(at)).failed();
    assert!(matches!(ran.code, Some(3 | 8)), "{ran:?}");
    assert!(ran.stderr.to_lowercase().contains("cuda"), "the reason reaches the user: {ran:?}");
    assert!(!places.socket.exists(), "no daemon may be left: {ran:?}");
}

#[test]
fn a_preferred_device_that_is_missing_is_missed_aloud() {
    if has_accelerator() {
        return;
    }
    for args in [&["--device", "preferred"][..], &["--device", "preferred", "--precision", "int8"]]
    {
        let mut daemon = asking(args);
        daemon.run();
        let mut conn = daemon.conn();
        let space = notes_space(&mut conn, "preferred");
        let status = conn.ok("admin.status", json!({}));
        let device = &status["embedder"]["device"];
        assert_eq!((&device["wanted"], &device["used"]), (&json!("preferred"), &json!("cpu")));
        let reason = device["reason"].as_str().unwrap_or_else(|| panic!("a reason: {device}"));
        assert!(status.to_string().contains(MISSED), "admin.status says so: {status}");
        let health = conn.ok("admin.health", json!({}));
        assert!(missed(&health["degraded"]).contains(reason), "{health}\n{reason}");
        // The second answer comes from the cache and is no better off.
        for _ in 0..2 {
            let found = conn.ok("memory.search", json!({"space": space, "query": "a cat", "k": 1}));
            assert_eq!(found["hits"][0]["id"], "n3", "it works all the same");
            missed(&found["degraded"]);
            assert_eq!(found["ran"]["embed"]["device"], "cpu", "{}", found["ran"]);
        }
        if args.contains(&"int8") {
            assert!(reason.contains("int8"), "int8 is what cannot be: {reason}");
        }
        let socket = daemon.socket.to_str().unwrap();
        let doctor = ["doctor", "--json", "--no-start", "--socket", socket];
        let ran = program(doctor.iter().copied().chain(args.iter().copied()));
        assert!(ran.stdout.contains("device_unavailable"), "doctor says so: {ran:?}");
    }
}

#[test]
fn without_a_wish_nothing_is_missed() {
    for args in [&[][..], &["--device", "cpu"]] {
        let mut daemon = asking(args);
        daemon.run();
        let mut conn = daemon.conn();
        let space = notes_space(&mut conn, "plain");
        let found = conn.ok("memory.search", json!({"space": space, "query": "a cat", "k": 1}));
        assert_eq!(found["degraded"], json!([]));
        assert_eq!(found["ran"]["embed"]["device"], "cpu");
        let health = conn.ok("admin.health", json!({}));
        assert_eq!(health["degraded"], json!([]), "nothing is amiss: {health}");
        let device = conn.ok("admin.status", json!({}))["embedder"]["device"].clone();
        assert_eq!((&device["wanted"], &device["used"]), (&json!("cpu"), &json!("cpu")));
        assert!(device["reason"].is_null(), "{device}");
    }
}

#[test]
fn a_device_that_is_none_is_a_usage_error() {
    let mut by_env = asking(&[]);
    by_env.env.push(("FLASHBULB_DEVICE", "gpu".into()));
    let by_option = ["gpu", "cuda", "", "CPU "].map(|v| asking(&[&format!("--device={v}")]));
    for mut daemon in by_option.into_iter().chain([by_env]) {
        daemon.spawn();
        let status = daemon.wait_exit(REFUSES_WITHIN);
        let said = daemon.log_tail();
        assert_eq!(status.code(), Some(2), "{:?}: {said}", daemon.args);
        for choice in ["cpu", "preferred", "required"] {
            assert!(said.contains(choice), "the choices are told: {said}");
        }
    }
}
