//! Importing what people have, and exporting it again.
//!
//! Invariant checked: the format is found by itself, twice is once, a dry run changes nothing, what is skipped is
//! counted and never fatal, and an export carries a space to another without loss. The files are written here, in the
//! shapes their programs write.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{cli, reading};
use crate::client::Conn;
use crate::daemon::shared;
use crate::data::{T0, add, found, list_all, space, vector};

/// A file to import and what must come of it.
struct Source {
    label: &'static str,
    path: PathBuf,
    /// The text of each memory in order, with the role where the format has roles.
    want: Vec<(&'static str, Option<&'static str>)>,
}

fn lines(values: &[Value]) -> String {
    values.iter().map(|v| format!("{v}\n")).collect()
}

fn openai(dir: &Path) -> Source {
    let path = dir.join("openai.jsonl");
    let first = json!({"messages": [
        {"role": "system", "content": "You are a gardener."},
        {"role": "user", "content": "When should I prune the roses?"},
        {"role": "assistant", "content": [{"type": "text", "text": "In early spring, above an outward bud."}]},
    ]});
    let second = json!({"messages": [{"role": "user", "content": "My apples have spots"}, {"role": "assistant", "content": "That is scab."}]});
    fs::write(&path, format!("{first}\nthis line is broken\n{second}\n\n")).unwrap();
    let want = vec![
        ("You are a gardener.", Some("system")),
        ("When should I prune the roses?", Some("user")),
        ("In early spring, above an outward bud.", Some("assistant")),
        ("My apples have spots", Some("user")),
        ("That is scab.", Some("assistant")),
    ];
    Source { label: "openai", path, want }
}

fn claude_code(dir: &Path) -> Source {
    let folder = dir.join("projects").join("-home-me-garden");
    fs::create_dir_all(&folder).unwrap();
    let line = |n: u32, kind: &str, content: Value| {
        json!({
            "parentUuid": if n == 0 { Value::Null } else { json!(format!("00000000-0000-4000-8000-{:012}", n - 1)) }, "isSidechain": false,
            "userType": "external", "cwd": "/home/me/garden", "sessionId": "5e551011-0000-4000-8000-000000000001", "version": "2.0.1", "gitBranch": "main",
            "type": kind, "message": {"role": kind, "content": content}, "uuid": format!("00000000-0000-4000-8000-{n:012}"),
            "timestamp": format!("2025-03-04T05:06:{n:02}.000Z"),
        })
    };
    let text = |t: &str| json!([{"type": "text", "text": t}]);
    let log = [
        json!({"type": "summary", "summary": "Greenhouse sensors", "leafUuid": "00000000-0000-4000-8000-000000000004"}),
        line(0, "user", json!("The humidity sensor reads zero since Monday")),
        line(1, "assistant", text("The cable of the sensor is loose at pin four.")),
        line(
            2,
            "assistant",
            json!([{"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}}]),
        ),
        line(
            3,
            "user",
            json!([{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sensor.py"}]),
        ),
        line(4, "assistant", text("I soldered a new connector into the plan.")),
        json!({"type": "brand-new-kind", "payload": 1}),
    ];
    fs::write(
        folder.join("5e551011-0000-4000-8000-000000000001.jsonl"),
        format!("{}{{\"cut off", lines(&log)),
    )
    .unwrap();
    let want = vec![
        ("The humidity sensor reads zero since Monday", Some("user")),
        ("The cable of the sensor is loose at pin four.", Some("assistant")),
        ("I soldered a new connector into the plan.", Some("assistant")),
    ];
    Source { label: "claude code", path: dir.join("projects"), want }
}

/// A node of a ChatGPT conversation's tree.
fn node(
    id: &str,
    parent: &str,
    children: &[&str],
    role: &str,
    text: &str,
    at: f64,
) -> (String, Value) {
    let message = json!({
        "id": id, "author": {"role": role, "name": null, "metadata": {}}, "create_time": at, "update_time": null,
        "content": {"content_type": "text", "parts": [text]}, "status": "finished_successfully", "weight": 1.0, "metadata": {}, "recipient": "all",
    });
    (id.to_owned(), json!({"id": id, "message": message, "parent": parent, "children": children}))
}

fn chatgpt(dir: &Path) -> Source {
    let path = dir.join("conversations.json");
    let mapping: serde_json::Map<String, Value> = [
        (
            "root".to_owned(),
            json!({"id": "root", "message": null, "parent": null, "children": ["q"]}),
        ),
        node("q", "root", &["a"], "user", "Which cheese melts best?", 1_700_000_000.25),
        node("a", "q", &["q2"], "assistant", "Raclette and fontina melt evenly.", 1_700_000_010.5),
        node("q2", "a", &["a2"], "user", "And for a cold platter?", 1_700_000_020.0),
        node("a2", "q2", &[], "assistant", "Take a ripe brie and some pecorino.", 1_700_000_030.0),
    ]
    .into_iter()
    .collect();
    let conversation = json!([{
        "title": "Cheese", "create_time": 1_700_000_000.0, "update_time": 1_700_000_030.0, "mapping": mapping, "current_node": "a2",
        "conversation_id": "c0ffee00-0000-4000-8000-000000000000", "id": "c0ffee00-0000-4000-8000-000000000000", "moderation_results": [],
    }]);
    fs::write(&path, conversation.to_string()).unwrap();
    let want = vec![
        ("Which cheese melts best?", Some("user")),
        ("Raclette and fontina melt evenly.", Some("assistant")),
        ("And for a cold platter?", Some("user")),
        ("Take a ripe brie and some pecorino.", Some("assistant")),
    ];
    Source { label: "chatgpt", path, want }
}

fn plain(dir: &Path) -> Source {
    let path = dir.join("notes.txt");
    fs::write(&path, "The gate code is four seven one\n\nThe spare key hangs behind the ivy\r\nWater the ferns – never the cacti\n").unwrap();
    let want = vec![
        ("The gate code is four seven one", None),
        ("The spare key hangs behind the ivy", None),
        ("Water the ferns – never the cacti", None),
    ];
    Source { label: "plain text", path, want }
}

fn sources(dir: &TempDir) -> [Source; 4] {
    [openai(dir.path()), claude_code(dir.path()), chatgpt(dir.path()), plain(dir.path())]
}

/// Every memory of a space that may not exist yet.
fn held(conn: &mut Conn, space: &str) -> Vec<Value> {
    match conn.call("memory.list", &json!({"space": space, "limit": 1})) {
        Ok(_) => list_all(conn, space, 100),
        Err(_) => Vec::new(),
    }
}

fn import(source: &Source, space: &str, more: &[&str]) -> Value {
    let path = source.path.to_str().expect("a plain path");
    let mut args = vec!["import", "--space", space, path, "--json"];
    args.extend(more);
    cli(&args).succeeded().json()
}

#[test]
fn each_format_is_recognised_and_imported_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = shared().conn();
    for source in sources(&dir) {
        let space = space("import");
        let label = source.label;
        let dry = import(&source, &space, &["--dry-run"]);
        assert_eq!(held(&mut conn, &space).len(), 0, "{label}: a dry run adds nothing");
        let done = import(&source, &space, &[]);
        let all = held(&mut conn, &space);
        let got: Vec<(&str, Option<&str>)> =
            all.iter().map(|m| (m["text"].as_str().unwrap(), m["role"].as_str())).collect();
        let texts = |list: &[(&str, Option<&str>)]| {
            list.iter().map(|(t, _)| (*t).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(texts(&got), texts(&source.want), "{label}");
        for ((text, role), (_, want)) in got.iter().zip(&source.want) {
            assert!(want.is_none() || role == want, "{label}: role of {text:?}");
        }
        let n = source.want.len();
        for (what, counts) in [("dry run", &dry), ("import", &done)] {
            assert!(mentions(counts, n), "{label}: the {what} counts {n}: {counts}");
        }
        let again = import(&source, &space, &[]);
        assert_eq!(
            held(&mut conn, &space),
            all,
            "{label}: importing again changes nothing: {again}"
        );
    }
}

#[test]
fn stdin_is_imported_like_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = shared().conn();
    for source in [openai(dir.path()), plain(dir.path())] {
        let space = space("piped");
        let socket = shared().socket.to_str().unwrap();
        let args = ["import", "--socket", socket, "--space", &space, "-", "--json"];
        let piped = || reading(fs::File::open(&source.path).unwrap().into(), args).succeeded();
        piped();
        let all = held(&mut conn, &space);
        assert_eq!(all.len(), source.want.len(), "{}", source.label);
        piped();
        import(&source, &space, &[]);
        assert_eq!(held(&mut conn, &space), all, "{}: the same ids as from the file", source.label);
    }
}

/// Whether a number stands anywhere in a value.
fn mentions(value: &Value, n: usize) -> bool {
    match value {
        Value::Number(number) => number.as_u64() == Some(n as u64),
        Value::Object(o) => o.values().any(|v| mentions(v, n)),
        Value::Array(a) => a.iter().any(|v| mentions(v, n)),
        _ => false,
    }
}

#[test]
fn what_is_skipped_is_counted_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let done = import(&openai(dir.path()), &space("skipped"), &[]);
    let text = done.to_string();
    assert!(text.contains("skipped") && mentions(&done["skipped"], 1), "one broken line: {text}");
    let done = import(&claude_code(dir.path()), &space("skipped"), &[]);
    assert!(
        done["skipped"].to_string().len() > 4,
        "tool calls, an unknown kind and a cut line: {done}"
    );
}

#[test]
fn sessions_and_times_of_logs_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = shared().conn();
    let space = space("import-time");
    import(&claude_code(dir.path()), &space, &[]);
    let log = held(&mut conn, &space);
    assert_eq!(log[0]["ts"], json!(1_741_064_760_000_i64), "2025-03-04T05:06:00Z");
    assert!(
        log[0]["session"].is_string() && log.iter().all(|m| m["session"] == log[0]["session"]),
        "one log is one session"
    );
    import(&chatgpt(dir.path()), &space, &[]);
    let both = held(&mut conn, &space);
    assert_eq!(both[log.len()]["ts"], json!(T0 + 250), "seconds with a fraction");
    assert_ne!(both[log.len()]["session"], log[0]["session"]);
}

#[test]
fn an_appended_log_adds_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = shared().conn();
    let space = space("append");
    let mut source = plain(dir.path());
    import(&source, &space, &[]);
    let before = held(&mut conn, &space);
    let mut text = fs::read_to_string(&source.path).unwrap();
    text.push_str("The ladder is in the shed\n");
    fs::write(&source.path, text).unwrap();
    import(&source, &space, &[]);
    let after = held(&mut conn, &space);
    assert_eq!((&after[..before.len()], after.len()), (&before[..], before.len() + 1));
    // The same under another name is the same.
    let copy = dir.path().join("copy.txt");
    fs::copy(&source.path, &copy).unwrap();
    source.path = copy;
    import(&source, &space, &["--dry-run"]);
    assert_eq!(held(&mut conn, &space).len(), after.len());
}

#[test]
fn the_protocol_imports_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = shared().conn();
    let (space, source) = (space("rpc-import"), plain(dir.path()));
    let dry =
        conn.ok("memory.import", json!({"space": space, "path": source.path, "dry_run": true}));
    assert!(mentions(&dry, 3), "{dry}");
    assert_eq!(held(&mut conn, &space).len(), 0);
    conn.ok("memory.import", json!({"space": space, "path": source.path}));
    assert_eq!(held(&mut conn, &space).len(), 3);
    conn.err("memory.import", json!({"space": space, "path": dir.path().join("absent.txt")}));
    conn.err(
        "memory.import",
        json!({"space": space, "path": source.path, "format": "no-such-format"}),
    )
    .assert_invalid("format");
}

#[test]
fn what_is_no_file_is_refused_not_read_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    let mut conn = shared().conn();
    conn.limit(std::time::Duration::from_secs(15));
    let space = space("pipe");
    // Writing to it would also wait for a reader that never comes.
    add(&mut conn, &space, json!([{"id": "a", "text": "t", "vector": vector(1)}]));
    conn.err("memory.export", json!({"space": space, "path": pipe})).assert_invalid("path");
    conn.err("memory.import", json!({"space": space, "path": pipe}));
    assert_eq!(held(&mut conn, &space).len(), 1);
}

#[test]
fn export_and_import_carry_a_space_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut conn = shared().conn();
    let (from, to) = (space("carry"), space("carry"));
    let meta = json!({"n": 9_007_199_254_740_993_u64, "f": 0.1, "list": [null, "ü\n", {"a": []}]});
    add(
        &mut conn,
        &from,
        json!([
            {"id": "a", "text": "line\nbreak and \"quotes\" 🚀", "role": "user", "session": "s", "ts": T0 - 5, "meta": meta},
            {"id": "b", "text": "The lighthouse keeper collects stamps"},
            {"id": "ü/ß", "text": "with its own vector", "vector": vector(3), "ts": -1},
        ]),
    );
    let (first, second) = (dir.path().join("first.jsonl"), dir.path().join("second.jsonl"));
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    cli(&["export", "--space", &from, &path(&first), "--json"]).succeeded().json();
    cli(&["import", "--space", &to, &path(&first), "--json"]).succeeded().json();
    cli(&["export", "--space", &to, &path(&second)]).succeeded();
    let bare = |conn: &mut Conn, space: &str| {
        let strip = |mut m: Value| {
            // Order is kept, its numbers are the space's own.
            m.as_object_mut().unwrap().remove("seq");
            m
        };
        held(conn, space).into_iter().map(strip).collect::<Vec<_>>()
    };
    assert_eq!(bare(&mut conn, &to), bare(&mut conn, &from));
    let parsed = |p: &Path| -> Vec<Value> {
        let strip = |line: &str| {
            let mut value: Value = serde_json::from_str(line).expect("JSON lines");
            for own in ["seq", "space"] {
                value.as_object_mut().unwrap().remove(own);
            }
            value
        };
        fs::read_to_string(p)
            .unwrap()
            .lines()
            .map(strip)
            .filter(|v| v.get("text").is_some())
            .collect()
    };
    assert_eq!(parsed(&first).len(), 3);
    assert_eq!(parsed(&second), parsed(&first), "an export of the import is the export");
    assert_eq!(
        found(&mut conn, &to, "philately by the sea", 1),
        ["b"],
        "what was imported is searchable"
    );
    let again = cli(&["import", "--space", &to, &path(&first), "--json"]).succeeded().json();
    assert_eq!(bare(&mut conn, &to).len(), 3, "again: {again}");
}
