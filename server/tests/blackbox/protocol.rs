//! JSON-RPC 2.0, corner by corner, and what the service says of itself.
//!
//! Invariant checked: a request is answered exactly once and with its own id, a notification never, and every error
//! has the code the specification gives it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{clip, outcome};
use crate::daemon::shared;
use crate::data::{add, found, notes_space, space, vector};

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;

/// Long enough for a wrong answer to arrive.
const SILENCE: Duration = Duration::from_millis(400);

#[test]
fn an_id_comes_back_as_it_was_sent() {
    let mut conn = shared().conn();
    let ids = [
        "1",
        "0",
        "-7",
        "9007199254740993",
        "-9223372036854775808",
        "18446744073709551615",
        "\"\"",
        "\"a\"",
        "\"\\u00e9 \\\"quoted\\\" \\n\"",
        "\"00000000-0000-0000-0000-000000000000\"",
        "1.5",
        "-0.25",
    ];
    for id in ids {
        conn.send_line(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"admin.status"}}"#));
        let line = conn.try_line().expect("an answer");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(answer["id"], serde_json::from_str::<Value>(id).unwrap(), "{}", clip(&line));
        assert!(outcome(&answer).is_ok(), "{}", clip(&line));
    }
}

#[test]
fn an_id_beyond_every_integer_is_kept_or_refused_never_changed() {
    let mut conn = shared().conn();
    for id in ["123456789012345678901234567890", "1e400", "-99999999999999999999999"] {
        conn.send_line(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"admin.status"}}"#));
        let line = conn.try_line().expect("an answer");
        let refused = line.contains("-32600") || line.contains("-32700");
        assert!(
            refused || line.replace(": ", ":").contains(&format!("\"id\":{id}")),
            "id {id}: {}",
            clip(&line)
        );
    }
}

#[test]
fn a_null_id_is_a_request_and_is_answered() {
    let mut conn = shared().conn();
    let answer = conn.exchange(r#"{"jsonrpc":"2.0","id":null,"method":"admin.status"}"#);
    assert!(
        answer.as_object().is_some_and(|o| o.contains_key("id")) && answer["id"].is_null(),
        "{answer}"
    );
    // Discouraged by the specification; serving and refusing are both defensible, silence is not.
    if let Err(e) = outcome(&answer) {
        assert_eq!(e.code, INVALID_REQUEST, "{e:?}");
    }
}

/// Frames that are no request, and the code each deserves.
const NO_REQUESTS: [(&str, i64); 22] = [
    ("{nonsense", PARSE_ERROR),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"admin.status\"", PARSE_ERROR),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"admin.status\"} trailing", PARSE_ERROR),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"admin.status\",}", PARSE_ERROR),
    ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"admin.status\"}", PARSE_ERROR),
    ("[]", INVALID_REQUEST),
    ("{}", INVALID_REQUEST),
    ("1", INVALID_REQUEST),
    ("null", INVALID_REQUEST),
    ("\"admin.status\"", INVALID_REQUEST),
    ("{\"jsonrpc\":\"2.0\",\"id\":1}", INVALID_REQUEST),
    ("{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"admin.status\"}", INVALID_REQUEST),
    ("{\"jsonrpc\":2.0,\"id\":1,\"method\":\"admin.status\"}", INVALID_REQUEST),
    ("{\"id\":1,\"method\":\"admin.status\"}", INVALID_REQUEST),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}", INVALID_REQUEST),
    ("{\"jsonrpc\":\"2.0\",\"id\":[1],\"method\":\"admin.status\"}", INVALID_REQUEST),
    ("{\"jsonrpc\":\"2.0\",\"id\":{\"a\":1},\"method\":\"admin.status\"}", INVALID_REQUEST),
    ("{\"jsonrpc\":\"2.0\",\"id\":true,\"method\":\"admin.status\"}", INVALID_REQUEST),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\"}", METHOD_NOT_FOUND),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"memory.Add\"}", METHOD_NOT_FOUND),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rpc.nothing\"}", METHOD_NOT_FOUND),
    ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"memory.add \"}", METHOD_NOT_FOUND),
];

#[test]
fn what_is_no_request_is_refused_with_the_right_code() {
    let mut conn = shared().conn();
    for (frame, code) in NO_REQUESTS {
        let answer = conn.exchange(frame);
        let error = outcome(&answer).expect_err(frame);
        assert_eq!(error.code, code, "{frame}: {error:?}");
    }
    conn.ok("admin.status", json!({}));
}

#[test]
fn params_may_be_missing_or_empty_and_nothing_but_an_object_helps() {
    let mut conn = shared().conn();
    for params in ["", ",\"params\":{}", ",\"params\":[]"] {
        let answer = conn
            .exchange(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"admin.status"{params}}}"#));
        let served = outcome(&answer);
        // By-position parameters are legal JSON-RPC; a service that knows names only refuses them.
        assert!(served.is_ok() || params.contains('['), "{params}: {answer}");
    }
    for params in ["5", "\"x\"", "true", "[\"a\",[\"b\"]]", "null"] {
        let answer = conn.exchange(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"memory.get","params":{params}}}"#
        ));
        let error = outcome(&answer).expect_err(params);
        assert!([INVALID_PARAMS, INVALID_REQUEST].contains(&error.code), "{params}: {error:?}");
        assert_eq!(answer["id"], 1, "{answer}");
    }
}

#[test]
fn further_members_and_duplicate_keys_get_one_answer() {
    let mut conn = shared().conn();
    for frame in [
        r#"{"jsonrpc":"2.0","id":1,"method":"admin.status","trace":"x","params":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"admin.status"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"no.such","method":"admin.status"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"memory.list","params":{"space":"a","space":"b"}}"#,
    ] {
        // Served or refused: both are legal; one well-formed answer is not optional.
        let answer = conn.exchange(frame);
        let _ = outcome(&answer);
        assert!(answer["id"] == 1 || answer["id"].is_null(), "{frame}: {answer}");
    }
    conn.expect_silence(SILENCE);
    conn.ok("admin.status", json!({}));
}

#[test]
fn notifications_are_done_and_never_answered() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "notify");
    let item = json!({"id": "by-notification", "text": "sent without an id", "vector": vector(3)});
    let frames = [
        json!({"jsonrpc": "2.0", "method": "memory.add", "params": {"space": space, "items": [item]}}),
        json!({"jsonrpc": "2.0", "method": "memory.delete", "params": {"space": space, "ids": ["n1"]}}),
        json!({"jsonrpc": "2.0", "method": "no.such"}),
        json!({"jsonrpc": "2.0", "method": "memory.search", "params": {"space": space}}),
        json!({"jsonrpc": "2.0", "method": "memory.search", "params": {"space": "never-made", "query": "x"}}),
    ];
    for frame in frames {
        conn.send_line(&frame.to_string());
    }
    conn.expect_silence(SILENCE);
    let got =
        conn.ok("memory.get", json!({"space": space, "ids": ["by-notification", "n1"]}))["items"]
            .clone();
    assert_eq!((&got[0]["text"], &got[1]), (&json!("sent without an id"), &Value::Null));
}

#[test]
fn a_batch_is_answered_as_one_array_without_its_notifications() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "batch");
    let batch = json!([
        {"jsonrpc": "2.0", "id": "get", "method": "memory.get", "params": {"space": space, "ids": ["n4"]}},
        {"jsonrpc": "2.0", "method": "memory.delete", "params": {"space": space, "ids": ["n5"]}},
        {"jsonrpc": "2.0", "id": 2, "method": "no.such"},
        {"jsonrpc": "2.0", "id": 3, "method": "memory.get", "params": {"space": space}},
        5,
        [],
        {"jsonrpc": "2.0", "id": 4.5, "method": "admin.status"},
        {"foo": "boo"},
    ]);
    let answer = conn.exchange(&batch.to_string());
    let answers = answer.as_array().expect("a batch is answered by an array");
    assert_eq!(answers.len(), 7, "{}", clip(&answer.to_string()));
    let with_id =
        |id: Value| outcome(answers.iter().find(|a| a["id"] == id).expect("each id is answered"));
    assert_eq!(with_id(json!("get")).expect("served")["items"][0]["id"], "n4");
    assert_eq!(with_id(json!(2)).expect_err("unknown").code, METHOD_NOT_FOUND);
    assert_eq!(with_id(json!(3)).expect_err("ids missing").code, INVALID_PARAMS);
    assert!(with_id(json!(4.5)).is_ok());
    let without: Vec<&Value> = answers.iter().filter(|a| a["id"].is_null()).collect();
    assert_eq!(without.len(), 3);
    assert!(without.iter().all(|a| a["error"]["code"] == INVALID_REQUEST), "{without:?}");
    assert_eq!(
        conn.ok("memory.get", json!({"space": space, "ids": ["n5"]}))["items"],
        json!([null])
    );
}

#[test]
fn a_batch_of_notifications_alone_is_not_answered() {
    let mut conn = shared().conn();
    conn.send_line(
        r#"[{"jsonrpc":"2.0","method":"admin.status"},{"jsonrpc":"2.0","method":"no.such"}]"#,
    );
    conn.expect_silence(SILENCE);
    let answer = conn.exchange(r#"[{"jsonrpc":"2.0","id":1,"method":"admin.status"}]"#);
    assert_eq!(
        answer.as_array().map(Vec::len),
        Some(1),
        "a batch of one is answered by an array of one: {answer}"
    );
}

#[test]
fn an_answer_is_one_line_without_raw_line_ends() {
    let mut conn = shared().conn();
    let space = space("lines");
    let text = "first\nsecond\r\nthird\u{2028}fourth";
    add(&mut conn, &space, json!([{"id": "a\nb", "text": text, "vector": vector(1)}]));
    let line =
        conn.try_raw("memory.get", &json!({"space": space, "ids": ["a\nb"]})).expect("an answer");
    let answer: Value =
        serde_json::from_str(line.trim_end()).expect("the whole answer is on the line");
    assert_eq!(answer["result"]["items"][0]["text"], text);
}

#[test]
fn what_is_not_there_yet_says_so_with_one_code_of_its_own() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "later");
    let mut codes: Vec<i64> = ["lexical", "hybrid"]
        .map(|mode| {
            conn.err("memory.search", json!({"space": space, "query": "cat", "mode": mode}))
        })
        .iter()
        .map(|e| e.assert_own().code)
        .collect();
    let context =
        conn.err("memory.context", json!({"space": space, "query": "cat", "budget_tokens": 100}));
    codes.push(context.assert_own().code);
    assert!(codes.iter().all(|c| *c == codes[0]), "one code for what is not there yet: {codes:?}");
    assert!(context.message.contains("not"), "{context:?}");
    let unknown = conn.err("memory.search", json!({"space": "never-made", "query": "cat"}));
    assert_ne!(unknown.code, codes[0], "an unknown space is another matter");
    assert_eq!(found(&mut conn, &space, "cat", 1), ["n3"], "without these, search works");
}

#[test]
fn every_method_refuses_an_unknown_space_with_one_code() {
    let mut conn = shared().conn();
    let calls = [
        ("memory.search", json!({"query": "x"})),
        ("memory.get", json!({"ids": ["a"]})),
        ("memory.list", json!({})),
        ("memory.around", json!({"id": "a", "before": 1, "after": 1})),
        ("memory.update", json!({"id": "a", "patch": {"text": "b"}})),
        ("memory.delete", json!({"ids": ["a"]})),
        ("memory.delete", json!({"filter": {"role": {"eq": "user"}}, "dry_run": true})),
        ("memory.export", json!({"path": shared().dir.path().join("none.jsonl")})),
        ("space.stats", json!({})),
        ("space.drop", json!({})),
    ];
    let mut codes = Vec::new();
    for (method, mut params) in calls {
        params["space"] = json!("never-made");
        let error = conn.err(method, params);
        assert!(
            error.assert_own().message.contains("never-made"),
            "{method} names the space: {error:?}"
        );
        codes.push(error.code);
    }
    assert!(codes.iter().all(|c| *c == codes[0]), "{codes:?}");
    let list = conn.ok("space.list", json!({})).to_string();
    assert!(!list.contains("never-made"), "asking does not make a space");
}

#[test]
fn discover_describes_every_method_and_its_params() {
    let promised: [(&str, &[&str]); 18] = [
        ("memory.add", &["space", "items", "on_conflict", "wait"]),
        (
            "memory.search",
            &[
                "space",
                "query",
                "vector",
                "k",
                "mode",
                "filter",
                "time",
                "neighbors",
                "min_seq",
                "explain",
                "deadline_ms",
            ],
        ),
        ("memory.context", &["space", "query", "budget_tokens"]),
        ("memory.get", &["space", "ids"]),
        ("memory.list", &["space", "filter", "cursor", "limit"]),
        ("memory.around", &["space", "id", "before", "after"]),
        ("memory.update", &["space", "id", "patch", "if_seq"]),
        ("memory.delete", &["space", "ids", "filter", "dry_run", "expect_count"]),
        ("memory.import", &["space", "format", "path", "dry_run"]),
        ("memory.export", &["space", "path"]),
        ("space.list", &[]),
        ("space.stats", &["space"]),
        ("space.drop", &["space"]),
        ("admin.health", &[]),
        ("admin.status", &[]),
        ("admin.verify", &[]),
        ("admin.compact", &[]),
        ("admin.shutdown", &[]),
    ];
    let document = shared().conn().ok("rpc.discover", json!({}));
    assert!(
        document["openrpc"].is_string() && document["info"]["version"].is_string(),
        "an OpenRPC document"
    );
    let methods = document["methods"].as_array().expect("methods");
    for (name, params) in promised {
        let method = methods
            .iter()
            .find(|m| m["name"] == name)
            .unwrap_or_else(|| panic!("{name} is described"));
        let described =
            method["params"].as_array().unwrap_or_else(|| panic!("{name} lists its params"));
        for param in params {
            let found = described.iter().find(|p| p["name"] == *param);
            let found = found.unwrap_or_else(|| panic!("{name} describes {param}"));
            assert!(found["schema"].is_object(), "{name}.{param} has a schema");
        }
        if params.contains(&"space") {
            let space = described.iter().find(|p| p["name"] == "space").unwrap();
            assert_eq!(space["required"], true, "{name} requires its space");
        }
    }
    assert!(methods.iter().any(|m| m["name"] == "admin.snapshot"), "admin.snapshot is described");
}
