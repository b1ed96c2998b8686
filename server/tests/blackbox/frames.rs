//! How requests travel: line ends, splits, pipelining, frame and nesting limits, connections.
//!
//! Invariant checked: however the bytes arrive, each request is answered once and no connection disturbs another.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Conn, clip};
use crate::daemon::{Daemon, shared};
use crate::data::{eventually, notes_space, vector_space};

/// The protocol's limit on a frame.
const FRAME_LIMIT: usize = 4 << 20;

fn status_line(id: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "admin.status"}).to_string()
}

#[test]
fn carriage_returns_and_spaces_around_a_frame_are_white_space() {
    let mut conn = shared().conn();
    for frame in
        [format!("{}\r", status_line(&json!(1))), format!("  \t{}  ", status_line(&json!(1)))]
    {
        let answer = conn.exchange(&frame);
        assert_eq!(answer["id"], 1, "{frame:?}: {answer}");
        assert!(answer["result"].is_object(), "{frame:?}: {answer}");
    }
}

#[test]
fn blank_lines_do_not_hide_the_request_after_them() {
    let mut conn = shared().conn();
    conn.send(format!("\n\r\n  \n{}\n", status_line(&json!("after"))).as_bytes()).expect("sent");
    // Whether a blank line is ignored or answered as a parse error is the service's choice.
    for _ in 0..4 {
        let answer = conn.recv();
        if answer["id"] == "after" {
            return;
        }
        assert_eq!(answer["error"]["code"], -32700, "{answer}");
    }
    panic!("the request after the blank lines was not answered");
}

#[test]
fn many_frames_in_one_write_are_each_answered() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "pipeline");
    let get = |i: usize| {
        let params = json!({"space": space, "ids": [format!("n{}", i % 10)]});
        json!({"jsonrpc": "2.0", "id": i, "method": "memory.get", "params": params}).to_string()
    };
    let frames: Vec<String> = (0..25).map(get).collect();
    conn.send(format!("{}\n", frames.join("\n")).as_bytes()).expect("sent");
    let mut seen = BTreeSet::new();
    for _ in 0..25 {
        let answer = conn.recv();
        let id = answer["id"].as_u64().expect("an id");
        assert_eq!(answer["result"]["items"][0]["id"], json!(format!("n{}", id % 10)), "{answer}");
        assert!(seen.insert(id), "{id} answered twice");
    }
}

#[test]
fn a_flood_of_requests_is_answered_or_refused_one_by_one() {
    let mut conn = shared().conn();
    let space = vector_space(&mut conn, "flood", 50);
    let one = |i: usize| {
        let params = json!({"space": space, "query": format!("question number {i}"), "k": 3});
        json!({"jsonrpc": "2.0", "id": i, "method": "memory.search", "params": params}).to_string()
    };
    let total = 400;
    let frames: Vec<String> = (0..total).map(one).collect();
    conn.send(format!("{}\n", frames.join("\n")).as_bytes()).expect("sent");
    let mut seen = BTreeSet::new();
    for _ in 0..total {
        let answer = conn.recv();
        assert!(seen.insert(answer["id"].as_u64().expect("an id")), "answered twice: {answer}");
        match crate::client::outcome(&answer) {
            Ok(result) => assert_eq!(result["hits"].as_array().map(Vec::len), Some(3), "{result}"),
            Err(e) => drop(e.assert_own()),
        }
    }
}

#[test]
fn a_frame_may_arrive_byte_by_byte_and_split_inside_a_character() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "bytes");
    let params = json!({"space": space, "items": [{"id": "ü日🚀", "text": "naïve café 日本 🚀", "role": "ä"}], "wait": "durable"});
    let frame = format!(
        "{}\n",
        json!({"jsonrpc": "2.0", "id": "é", "method": "memory.add", "params": params})
    );
    for byte in frame.as_bytes() {
        conn.send(&[*byte]).expect("sent");
    }
    let answer = conn.recv();
    assert_eq!(answer["id"], "é");
    assert!(answer["result"].is_object(), "{answer}");
    // Once more with pauses inside characters.
    let get = json!({"jsonrpc": "2.0", "id": "ß", "method": "memory.get", "params": {"space": space, "ids": ["ü日🚀"]}});
    let frame = format!("{get}\n");
    for part in frame.as_bytes().chunks(7) {
        conn.send(part).expect("sent");
        thread::sleep(Duration::from_millis(3));
    }
    let answer = conn.recv();
    assert_eq!(answer["result"]["items"][0]["text"], "naïve café 日本 🚀", "{answer}");
}

#[test]
fn a_large_frame_below_the_limit_is_served() {
    let mut conn = shared().conn();
    let padded = format!("{}{}", " ".repeat(FRAME_LIMIT - 4096), status_line(&json!(1)));
    let answer = conn.exchange(&padded);
    assert!(answer["result"].is_object(), "{}", clip(&answer.to_string()));
}

#[test]
fn a_frame_over_the_limit_gets_a_clear_error() {
    for size in [FRAME_LIMIT + 4096, 4 * FRAME_LIMIT] {
        let mut conn = shared().conn();
        conn.limit(Duration::from_secs(20));
        // The service may stop reading and close before it has taken everything.
        let _ = conn.send(format!("{}{}\n", " ".repeat(size), status_line(&json!(1))).as_bytes());
        let line = conn.try_line().unwrap_or_else(|e| {
            panic!("an over-long frame of {size} bytes deserves an answer: {e}")
        });
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        let error = crate::client::outcome(&answer).expect_err("too long");
        assert!(answer["id"].is_null(), "the id of a frame that was not read is null: {answer}");
        assert!(error.message.contains("frame") || error.message.contains("byte"), "{error:?}");
    }
    shared().conn().ok("admin.status", json!({}));
}

#[cfg(target_os = "linux")]
#[test]
fn a_frame_without_an_end_is_not_collected_for_ever() {
    let mut daemon = Daemon::start();
    let before = daemon.proc_status("VmRSS");
    let mut conn = daemon.conn();
    conn.limit(Duration::from_secs(10));
    let chunk = vec![b'x'; 1 << 20];
    let sent = (0..256).take_while(|_| conn.send(&chunk).is_ok()).count();
    let grown = daemon.proc_status("VmRSS").saturating_sub(before);
    assert!(grown < 64 * 1024, "{sent} MiB without a line end made the daemon grow by {grown} kB");
    daemon.assert_alive();
}

#[test]
fn too_many_connections_are_refused_clearly_and_the_rest_served() {
    let daemon = Daemon::start();
    let mut held: Vec<Conn> = Vec::new();
    let mut refused = None;
    for _ in 0..300 {
        let Ok(mut conn) = Conn::try_open(&daemon.socket) else {
            break;
        };
        conn.limit(Duration::from_secs(10));
        // The service may close before it reads; what it said first can still be read.
        let _ = conn.post("admin.status", &json!({}));
        match conn.try_line() {
            Ok(line) if line.contains("\"result\"") => held.push(conn),
            other => {
                refused = Some(other);
                break;
            }
        }
    }
    assert!(held.len() >= 16, "only {} connections were served", held.len());
    if let Some(refusal) = refused {
        let line = refusal.expect("a refused connection is told why");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        let error = crate::client::outcome(&answer).expect_err("a refusal");
        assert!(error.assert_own().message.contains("connection"), "{error:?}");
        held[0].ok("admin.status", json!({}));
        held.truncate(held.len() / 2);
        crate::data::eventually(
            "closed connections free their places",
            Duration::from_secs(10),
            || crate::daemon::healthy(&daemon.socket),
        );
    } else {
        panic!("300 connections were served: the protocol promises a limit");
    }
}

#[test]
fn slow_senders_do_not_hold_up_others_and_free_their_places() {
    let mut daemon = Daemon::start();
    let mut slow: Vec<Conn> = (0..20).map(|_| daemon.conn()).collect();
    for conn in &mut slow {
        conn.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,").expect("sent");
    }
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "slow");
    let started = Instant::now();
    for i in 0..20 {
        conn.ok("memory.search", json!({"space": space, "query": format!("question {i}"), "k": 2}));
    }
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "20 searches beside slow senders took {:?}",
        started.elapsed()
    );
    drop(slow);
    for _ in 0..3 {
        eventually("closed connections give their places back", Duration::from_secs(10), || {
            conn.ok("admin.status", json!({}))["connections"] == 1
        });
        let again: Vec<Conn> = (0..20).map(|_| daemon.conn()).collect();
        drop(again);
    }
    daemon.assert_alive();
}

#[cfg(target_os = "linux")]
#[test]
fn clients_that_never_read_do_not_hold_up_others() {
    let mut daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = vector_space(&mut conn, "deaf", 1000);
    let before = daemon.proc_status("VmRSS");
    let list = json!({"space": space, "limit": 1000});
    let deaf: Vec<Conn> = (0..4)
        .map(|_| {
            let mut deaf = daemon.conn();
            deaf.limit(Duration::from_secs(1));
            let sent = (0..2000).take_while(|_| deaf.post("memory.list", &list).is_ok()).count();
            assert!(sent > 10, "only {sent} requests were taken");
            deaf
        })
        .collect();
    let started = Instant::now();
    for i in 0..20 {
        conn.ok("memory.search", json!({"space": space, "query": format!("question {i}"), "k": 2}));
    }
    conn.ok("memory.add", json!({"space": space, "items": [{"text": "still writable"}]}));
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "beside deaf clients: {:?}",
        started.elapsed()
    );
    let grown = daemon.proc_status("VmRSS").saturating_sub(before);
    assert!(grown < 96 * 1024, "four clients that never read made the daemon grow by {grown} kB");
    drop(deaf);
    daemon.assert_alive();
}
