//! Damage on the disk under a daemon that serves: `verify` finds it when asked, the scrub by itself.
//!
//! Invariant checked: a flipped byte in a file of any kind is reported with the file's name, and a sound store never
//! is; what the scrub found shows in the metrics, in status and in `degraded`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::program;
use crate::daemon::Daemon;
use crate::data::{eventually, vector};

/// Files of the store whose names begin with `kind`, oldest first.
pub fn files(store: &Path, kind: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(store).expect("a store").flatten().map(|e| e.path());
    let mut of_kind: Vec<PathBuf> = all
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(kind)))
        .collect();
    of_kind.sort();
    of_kind
}

/// Changes one byte in place, as a disk does: the file is neither replaced nor cut.
pub fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x04], at).expect("a byte");
}

/// What `flashbulb verify` says of a daemon's store: whether all is well, and its words.
#[track_caller]
pub fn verified(daemon: &Daemon) -> (bool, String) {
    let ran =
        program(["verify", "--json", "--socket", daemon.socket.to_str().expect("a plain path")]);
    let clean = ran.code == Some(0);
    if clean {
        assert_eq!(ran.json()["problems"], json!([]), "problems are a failure: {ran:?}");
    }
    (clean, format!("{ran:?}"))
}

/// Flips a byte, requires that verify names the file, and flips it back.
#[track_caller]
pub fn assert_noticed(daemon: &Daemon, path: &Path, at: u64) {
    flip(path, at);
    let (clean, said) = verified(daemon);
    flip(path, at);
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(!clean, "byte {at} of {name} is flipped and verify is content: {said}");
    assert!(said.contains(&name), "byte {at}: {name} is named: {said}");
}

/// A store with two segments of several blocks, and changes in the log.
fn filled(daemon: &Daemon) {
    let mut conn = daemon.conn();
    for part in 0..2 {
        let item = |i: usize| json!({"id": format!("p{part}-{i}"), "text": format!("scrubbed text {part} {i} {}", "word ".repeat(300)), "vector": vector(i as u64)});
        let items: Vec<Value> = (0..80).map(item).collect();
        conn.ok("memory.add", json!({"space": "scrub", "items": items}));
        conn.ok("admin.compact", json!({}));
    }
    conn.ok("memory.add", json!({"space": "scrub", "items": [{"id": "logged", "text": "a text in the log alone", "vector": vector(1)}]}));
}

#[test]
fn verify_notices_a_flipped_byte_in_every_kind_of_file() {
    let daemon = Daemon::start();
    filled(&daemon);
    assert!(verified(&daemon).0, "a sound store: {}", verified(&daemon).1);
    for segment in files(&daemon.store, "segment-") {
        let len = fs::metadata(&segment).expect("a segment").len();
        // The header, its padding, records, vectors and directories, the checksums, the end.
        for at in [
            0,
            9,
            20,
            2000,
            4200,
            len / 4,
            len / 2,
            len * 3 / 4,
            len - 200,
            len - 60,
            len - 20,
            len - 1,
        ] {
            assert_noticed(&daemon, &segment, at);
        }
    }
    let log = files(&daemon.store, "wal-").into_iter().find_map(|path| {
        let bytes = fs::read(&path).ok()?;
        Some((path, memchr::memmem::find(&bytes, b"a text in the log alone")? as u64))
    });
    let (log, at) = log.expect("a log has the text");
    assert_noticed(&daemon, &log, at);
    let manifest = files(&daemon.store, "manifest-").pop().expect("a manifest");
    assert_noticed(&daemon, &manifest, 60);
    // A segment that is gone from its folder is damage too; the open file would hide it.
    let segment = files(&daemon.store, "segment-").pop().expect("a segment");
    let aside = daemon.dir.path().join("aside");
    fs::rename(&segment, &aside).expect("moved away");
    let (clean, said) = verified(&daemon);
    fs::rename(&aside, &segment).expect("moved back");
    assert!(!clean, "a segment is missing and verify is content: {said}");
    assert!(verified(&daemon).0, "sound again: {}", verified(&daemon).1);
}

/// The value of a metric's line.
fn number(line: &str) -> f64 {
    line.rsplit(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no number: {line}"))
}

#[test]
fn a_sound_store_has_a_scrub_that_found_nothing() {
    let daemon = Daemon::start();
    filled(&daemon);
    let status = daemon.conn().ok("admin.status", json!({}));
    let jobs = status["background"]["jobs"].as_array().expect("jobs");
    assert!(jobs.iter().any(|j| j["name"] == "scrub"), "{status}");
    let metrics =
        daemon.conn().ok("admin.metrics", json!({}))["text"].as_str().expect("text").to_owned();
    let line = metrics
        .lines()
        .find(|l| l.starts_with("flashbulb_scrub_damaged_blocks"))
        .expect("the metric");
    assert_eq!(number(line), 0.0, "{line}");
    assert_eq!(daemon.conn().ok("admin.health", json!({}))["degraded"], json!([]));
}

#[test]
fn the_scrub_finds_damage_by_itself_and_says_so_everywhere() {
    let mut daemon = Daemon::start();
    filled(&daemon);
    // Deleted memories fill some blocks of a segment: nobody asks for those any more, so that only the scrub reads them.
    let mut conn = daemon.conn();
    let text = |i: usize| format!("buried text {i:02} {}", "word ".repeat(3000));
    let item =
        |i: usize| json!({"id": format!("d{i}"), "text": text(i), "vector": vector(i as u64)});
    let items: Vec<Value> = (0..80).map(item).collect();
    conn.ok("memory.add", json!({"space": "buried", "items": items}));
    conn.ok("admin.compact", json!({}));
    let dead: Vec<String> = (30..45).map(|i| format!("d{i}")).collect();
    conn.ok("memory.delete", json!({"space": "buried", "ids": dead}));
    assert!(daemon.terminate().success());
    let found = files(&daemon.store, "segment-").into_iter().find_map(|path| {
        let at = memchr::memmem::find(&fs::read(&path).ok()?, text(37).as_bytes())?;
        Some((path, at + 7000))
    });
    let (segment, at) = found.expect("a segment has the texts");
    flip(&segment, at as u64);
    daemon.run();
    let name = segment.file_name().expect("a name").to_string_lossy().into_owned();
    eventually("the scrub finds the damage", Duration::from_secs(60), || {
        let health = daemon.conn().ok("admin.health", json!({}));
        !health["degraded"].as_array().expect("degraded").is_empty()
    });
    let status = daemon.conn().ok("admin.status", json!({})).to_string();
    assert!(status.contains(&name), "status names the file: {status}");
    let metrics =
        daemon.conn().ok("admin.metrics", json!({}))["text"].as_str().expect("text").to_owned();
    let line = metrics
        .lines()
        .find(|l| l.starts_with("flashbulb_scrub_damaged_blocks"))
        .expect("the metric");
    assert!(number(line) >= 1.0, "{line}");
    assert!(daemon.log_tail().contains(&name), "it is logged: {}", daemon.log_tail());
}
