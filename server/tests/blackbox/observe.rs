//! Batches and notifications in the metrics, and the live screen of `top` on a terminal.
//!
//! Invariant checked: what a frame held is counted once each, and the terminal is given back as it was, however `top` ends.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::{Daemon, PROGRAM};
use crate::data::notes_space;

const LIMIT: Duration = Duration::from_secs(30);

/// How many durations a histogram of `memory.get` holds.
#[track_caller]
fn timed(conn: &mut Conn, stage: Option<&str>) -> u64 {
    let reading = conn.ok("admin.metrics", json!({"format": "json"}));
    let wanted = match stage {
        Some(stage) => json!({"method": "memory.get", "stage": stage}),
        None => json!({"method": "memory.get"}),
    };
    let histograms = reading["histograms"].as_array().expect("histograms");
    let of = histograms.iter().find(|one| one["labels"] == wanted);
    of.map_or(0, |one| one["count"].as_u64().expect("a count"))
}

#[test]
fn every_request_of_a_batch_is_timed_and_a_notification_is_not_written() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "batched");
    let get = |id: Option<u32>| {
        let params = json!({"space": space, "ids": ["n1"]});
        let mut request = json!({"jsonrpc": "2.0", "method": "memory.get", "params": params});
        if let Some(id) = id {
            request["id"] = id.into();
        }
        request
    };
    let batch: Vec<Value> = (0..3).map(|id| get(Some(id))).collect();
    let answers = conn.exchange(&Value::from(batch).to_string());
    assert_eq!(answers.as_array().map(Vec::len), Some(3), "{answers}");
    for stage in [None, Some("queue"), Some("fetch"), Some("write")] {
        assert_eq!(timed(&mut conn, stage), 3, "{stage:?}");
    }
    conn.send_line(&get(None).to_string());
    assert_eq!(timed(&mut conn, None), 4, "a notification is a request");
    assert_eq!(timed(&mut conn, Some("write")), 3, "and has no answer");
}

/// A terminal of our own: the program's end, and what it was sent.
fn terminal() -> (File, mpsc::Receiver<Vec<u8>>) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("granted");
    unlockpt(&ours).expect("unlocked");
    let name = ptsname(&ours, Vec::new()).expect("a name");
    let path = name.to_str().expect("a plain path");
    let theirs = File::options().read(true).write(true).open(path).expect("the other end");
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut ours = File::from(ours);
        let mut bytes = [0; 4096];
        // The last holder of the other end leaves with an error on Linux, with an end elsewhere.
        while let Ok(read @ 1..) = ours.read(&mut bytes) {
            if send.send(bytes[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    (theirs, receive)
}

/// Reads until the text holds something.
#[track_caller]
fn read_until(screen: &mpsc::Receiver<Vec<u8>>, shown: &mut String, what: &str) {
    let end = Instant::now() + LIMIT;
    while !shown.contains(what) {
        let left = end.saturating_duration_since(Instant::now());
        match screen.recv_timeout(left) {
            Ok(bytes) => shown.push_str(&String::from_utf8_lossy(&bytes)),
            Err(error) => panic!("{what:?} was not shown ({error}): {shown:?}"),
        }
    }
}

#[test]
fn the_live_screen_gives_the_terminal_back() {
    const ENTER: &str = "\u{1b}[?1049h";
    const LEAVE: &str = "\u{1b}[?1049l";
    const CURSOR: &str = "\u{1b}[?25h";
    for ending in ["a signal", "the daemon's end"] {
        let mut daemon = Daemon::start();
        let (theirs, screen) = terminal();
        let mut top = Command::new(PROGRAM)
            .args(["top", "--interval", "0.2", "--no-start", "--socket"])
            .arg(&daemon.socket)
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut shown = String::new();
        read_until(&screen, &mut shown, "requests of the last");
        assert!(shown.contains(ENTER) && !shown.contains(LEAVE), "{shown:?}");
        match ending {
            "a signal" => {
                let pid = i32::try_from(top.id()).expect("a process id fits");
                kill_process(Pid::from_raw(pid).expect("not zero"), Signal::INT).expect("told");
            }
            _ => daemon.kill9(),
        }
        read_until(&screen, &mut shown, LEAVE);
        let code = top.wait().expect("it ends").code();
        assert!(shown.contains(CURSOR), "the cursor is back: {shown:?}");
        let mut said = String::new();
        top.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        match ending {
            "a signal" => assert_eq!((code, said.as_str()), (Some(0), "")),
            _ => assert!(code != Some(0) && said.contains("error"), "{code:?}: {said}"),
        }
    }
}
