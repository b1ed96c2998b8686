//! Tests of every reader: well-formed, broken, hostile and empty input, and ids that stay the same.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;

/// Reads a file whole: its items as one line each, and skips by reason.
pub(super) fn read(
    path: &Path,
    format: Option<Format>,
) -> (Vec<Item>, BTreeMap<&'static str, u64>) {
    let mut items = Vec::new();
    let mut skipped = BTreeMap::new();
    for found in open(path, format).unwrap() {
        match found.unwrap().entry {
            Entry::Item(item) => items.push(item),
            Entry::Skip(reason) => *skipped.entry(reason.as_str()).or_default() += 1,
        }
    }
    (items, skipped)
}

/// A file of this content with a name that says nothing.
pub(super) fn file_of(folder: &tempfile::TempDir, content: &[u8]) -> PathBuf {
    let path = folder.path().join("input.bin");
    std::fs::write(&path, content).unwrap();
    path
}

/// `role|session|ts|text|meta` of every item, and the skips, of a file whose format is found by itself.
fn check(
    want_format: Format,
    content: impl AsRef<[u8]>,
    want: &[&str],
    want_skipped: &[(&str, u64)],
) {
    let folder = tempfile::tempdir().unwrap();
    let path = file_of(&folder, content.as_ref());
    let shown = String::from_utf8_lossy(content.as_ref()).chars().take(200).collect::<String>();
    assert_eq!(open(&path, None).unwrap().format(), want_format, "{shown}");
    let (items, skipped) = read(&path, None);
    let got: Vec<String> = items.iter().map(show).collect();
    assert_eq!(got, want, "{shown}");
    assert_eq!(skipped, want_skipped.iter().copied().collect(), "{shown}");
    let again = read(&path, Some(want_format)).0;
    let ids = |items: &[Item]| items.iter().map(|item| item.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&items), ids(&again), "the same ids when the format is named: {shown}");
    let distinct: std::collections::HashSet<_> = items.iter().map(|item| &item.id).collect();
    assert_eq!(distinct.len(), items.len(), "ids differ: {shown}");
    for item in &items {
        assert!(!item.id.is_empty() && item.id.len() <= 128, "{shown}");
        let wire = serde_json::to_string(item).unwrap();
        assert!(!wire.contains('\n') && wire.len() <= item.wire_bytes(), "{wire}");
    }
}

fn show(item: &Item) -> String {
    let mut line = format!("{}|", item.role.as_deref().unwrap_or("-"));
    let session = item.session.as_deref().unwrap_or("-");
    // Names made by hashing are tested on their own.
    line += if session.starts_with("conversation-") { "*" } else { session };
    match item.ts_ms {
        Some(ts) => write!(line, "|{ts}|{}", item.text).unwrap(),
        None => write!(line, "|-|{}", item.text).unwrap(),
    }
    if let Some(meta) = &item.meta {
        write!(line, "|{}", meta.get()).unwrap();
    }
    line
}

#[test]
fn text_is_one_memory_a_line() {
    check(Format::Text, "one\ntwo\n", &["-|-|-|one", "-|-|-|two"], &[]);
    check(
        Format::Text,
        "\u{feff}one\r\n\r\n  two  \r\n",
        &["-|-|-|one", "-|-|-|two"],
        &[("empty", 1)],
    );
    check(Format::Text, "same\nsame\nsame", &["-|-|-|same"; 3], &[]);
    check(Format::Text, "", &[], &[]);
    check(Format::Text, " \n\t\n", &[], &[("empty", 2)]);
    check(
        Format::Text,
        b"good\n\xff\xfe bad\nfine\n",
        &["-|-|-|good", "-|-|-|fine"],
        &[("invalid_utf8", 1)],
    );
    check(
        Format::Text,
        "[note] buy milk\n{draft} call\n",
        &["-|-|-|[note] buy milk", "-|-|-|{draft} call"],
        &[],
    );
}

#[test]
fn messages_in_every_layout() {
    let want = ["user|s1|5|hi|{\"name\":\"Ann\"}", "assistant|s1|-|yo\nho"];
    let conversation = json!({"session": "s1", "messages": [
        {"role": "user", "name": "Ann", "ts": 5, "content": "hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "yo"}, {"type": "output_text", "text": "ho"}]},
    ]});
    check(Format::Messages, format!("{conversation}\n"), &want, &[]);
    check(Format::Messages, format!("\u{feff}{conversation}\r\n\r\n"), &want, &[]);
    check(Format::Messages, serde_json::to_string_pretty(&conversation).unwrap(), &want, &[]);
    check(Format::Messages, format!("[{conversation}]"), &want, &[]);
    check(
        Format::Messages,
        serde_json::to_string_pretty(&json!([conversation])).unwrap(),
        &want,
        &[],
    );
    check(
        Format::Messages,
        r#"[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]"#,
        &["system|*|-|be kind", "user|*|-|hi", "user|*|-|hi"],
        &[],
    );
    check(
        Format::Messages,
        "{\"role\":\"user\",\"content\":\"hi\",\"session\":\"a\"}\n{\"role\":\"user\",\"content\":\"ho\"}\n",
        &["user|a|-|hi", "user|*|-|ho"],
        &[],
    );
}

#[test]
fn messages_that_are_broken_or_hostile() {
    let good = r#"{"id": "c", "messages": [{"role": "user", "content": "hi", "ts": "2024-05-06T07:08:09Z"}]}"#;
    let want = ["user|c|1714979289000|hi"];
    check(
        Format::Messages,
        format!("not json\n{good}\n{{\"messages\": [\n"),
        &want,
        &[("broken_json", 2)],
    );
    check(Format::Messages, format!("{{\"messages\": [{{\n{good}\n"), &want, &[("broken_json", 1)]);
    check(Format::Messages, format!("[{good},"), &want, &[]);
    check(Format::Messages, format!("[{good}, {{\"messages\": [1,"), &want, &[("broken_json", 1)]);
    check(
        Format::Messages,
        format!("{good}\n{}\n", "[".repeat(100_000)),
        &want,
        &[("broken_json", 1)],
    );
    check(
        Format::Messages,
        [good.as_bytes(), b"\n\"\xff\"\n"].concat(),
        &want,
        &[("invalid_utf8", 1)],
    );
    check(
        Format::Messages,
        json!({"messages": [
            1, {"role": 1}, {"role": "user"}, {"role": "user", "content": 7}, {"role": "user", "content": " "},
            {"role": "assistant", "content": null, "tool_calls": [{}]}, {"role": "user", "content": "x", "ts": "noon"},
            {"role": "user", "content": "x", "ts": i64::MAX},
            {"role": "user", "content": [{"type": "image_url"}]}, {"role": "user", "content": [{"type": "new"}, "kept"]},
            {"role": "tool", "content": "42"},
        ]}).to_string(),
        &["user|*|-|kept", "tool|*|-|42"],
        &[("attachment", 1), ("bad_timestamp", 2), ("empty", 2), ("not_a_message", 3), ("tool_use", 1), ("unknown_block", 1)],
    );
    check(
        Format::Messages,
        "{\"messages\": 5}\n{\"messages\": []}\n{\"x\": 1}\n",
        &[],
        &[("not_a_message", 2)],
    );
}

#[test]
fn conversations_without_a_name_keep_their_ids_when_they_grow() {
    let folder = tempfile::tempdir().unwrap();
    let ids = |messages: serde_json::Value| {
        let path = file_of(&folder, json!({ "messages": messages }).to_string().as_bytes());
        read(&path, None).0.into_iter().map(|item| item.id).collect::<Vec<_>>()
    };
    let short = ids(json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]));
    let long = ids(
        json!([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
    );
    let other = ids(json!([{"role": "system", "content": "s"}, {"role": "user", "content": "c"}]));
    assert_eq!(short, long[..2]);
    assert_ne!(short[0], other[0], "the same prompt of another conversation is another memory");
}

#[test]
fn claude_lines_become_memories_and_the_rest_is_counted() {
    let user = |extra: &str, content: &str| {
        format!(
            r#"{{"type":"user","sessionId":"s","timestamp":"2024-05-06T07:08:09.123Z"{extra},"message":{{"role":"user","content":{content}}}}}"#
        )
    };
    let lines = [
        r#"{"type":"summary","summary":"x","leafUuid":"u0"}"#.to_owned(),
        user(r#","uuid":"u1","cwd":"/w","gitBranch":"""#, r#""hello""#),
        r#"{"type":"assistant","uuid":"u2","sessionId":"s","message":{"content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"a"},{"type":"tool_use","name":"x"},{"type":"text","text":"b"}]}}"#.to_owned(),
        user(r#","uuid":"u3""#, r#"[{"type":"tool_result","content":"y"}]"#),
        user(r#","uuid":"u4","isMeta":true"#, r#""caveat""#),
        user(r#","uuid":"u5","isSidechain":true"#, r#""sub""#),
        user(r#","uuid":"u6","isCompactSummary":true"#, r#""long ago""#),
        user(r#","uuid":"u7""#, r#""<command-name>/clear</command-name>""#),
        r#"{"type":"file-history-snapshot","messageId":"m","snapshot":{}}"#.to_owned(),
        r#"{"type":"user","uuid":"u8"}"#.to_owned(),
        r#"{"type":"user","uuid":"u9","timestamp":"soon","message":{"content":"x"}}"#.to_owned(),
        "{\"type\":\"us".to_owned(),
        user("", r#""no id""#),
        user("", r#""no id""#),
        user("", r#"[{"type":"hologram"}]"#),
        "7".to_owned(),
    ];
    check(
        Format::Claude,
        lines.join("\n"),
        &[
            "user|s|1714979289123|hello|{\"cwd\":\"/w\"}",
            "assistant|s|-|a\n\nb",
            "user|s|1714979289123|no id",
            "user|s|1714979289123|no id",
        ],
        &[
            ("bad_timestamp", 1),
            ("broken_json", 1),
            ("local_command", 1),
            ("meta_line", 1),
            ("not_a_message", 2),
            ("subagent", 1),
            ("summary", 2),
            ("thinking", 1),
            ("tool_result", 1),
            ("tool_use", 1),
            ("unknown_block", 1),
            ("unknown_type", 1),
        ],
    );
}

#[test]
fn claude_folders_are_walked_in_order_without_subagents() {
    let line = |uuid: &str| {
        format!(
            r#"{{"type":"user","uuid":"{uuid}","sessionId":"s","message":{{"content":"{uuid}"}}}}"#
        )
    };
    let build = |folder: &Path| {
        for (name, content) in [
            ("b/2.jsonl", line("two")),
            ("a/1.jsonl", line("one")),
            ("a/subagents/x.jsonl", line("sub")),
            ("a/notes.md", "x".into()),
        ] {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        std::os::unix::fs::symlink(folder, folder.join("loop")).unwrap();
    };
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build(here.path());
    build(there.path());
    let (items, skipped) = read(here.path(), None);
    let ids = |items: &[Item]| items.iter().map(|item| item.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&items), ["one", "two"]);
    assert_eq!(ids(&items), ids(&read(there.path(), None).0));
    assert_eq!(skipped, BTreeMap::from([("other_file", 2), ("subagent", 1)]));
    assert!(matches!(open(here.path(), Some(Format::Text)), Err(ImportError::Folder { .. })));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(open(empty.path(), None), Err(ImportError::NoLogs { .. })));
}

#[test]
fn chatgpt_trees_are_walked_to_the_current_node() {
    let node = |parent: serde_json::Value, role: &str, content: serde_json::Value| json!({"parent": parent, "children": [], "message": {"author": {"role": role}, "create_time": 1.5, "content": content}});
    let text = |text: &str| json!({"content_type": "text", "parts": [text]});
    let conversation = json!({"title": "T", "conversation_id": "c", "current_node": "d", "mapping": {
        "root": {"parent": null, "children": ["a"], "message": null},
        "a": node(json!("root"), "user", text("question")),
        "b": node(json!("a"), "assistant", text("first answer")),
        "c": node(json!("a"), "assistant", json!({"content_type": "multimodal_text", "parts": [{"asset": 1}, "second answer"]})),
        "e": node(json!("c"), "tool", text("42")),
        "f": node(json!("e"), "assistant", json!({"content_type": "thoughts", "thoughts": []})),
        "g": node(json!("f"), "system", text("")),
        "h": node(json!("g"), "user", json!({"content_type": "hologram"})),
        "d": node(json!("h"), "user", text("thanks")),
    }});
    let want = [
        "user|c|1500|question|{\"title\":\"T\"}",
        "assistant|c|1500|second answer|{\"title\":\"T\"}",
        "user|c|1500|thanks|{\"title\":\"T\"}",
    ];
    let skips = [
        ("attachment", 1),
        ("empty", 1),
        ("other_branch", 1),
        ("thinking", 1),
        ("tool_result", 1),
        ("unknown_block", 1),
    ];
    check(Format::ChatGpt, json!([conversation]).to_string(), &want, &skips);
    check(
        Format::ChatGpt,
        serde_json::to_string_pretty(&json!([conversation])).unwrap(),
        &want,
        &skips,
    );
    check(Format::ChatGpt, conversation.to_string(), &want, &skips);
    // A cycle, a missing parent, a wrong current node, no mapping, and a cut-off file.
    let cycle = json!({"id": "k", "current_node": "a", "mapping": {"a": node(json!("b"), "user", text("x")), "b": node(json!("a"), "user", text("y"))}});
    check(Format::ChatGpt, json!([cycle]).to_string(), &["user|k|1500|y", "user|k|1500|x"], &[]);
    let lost = json!({"mapping": {"a": node(json!("gone"), "user", text("x"))}, "id": "l", "current_node": "nowhere"});
    check(
        Format::ChatGpt,
        json!([lost, {"mapping": 3}, 7]).to_string(),
        &["user|l|1500|x"],
        &[("not_a_message", 2)],
    );
    let cut = json!([lost]).to_string();
    check(
        Format::ChatGpt,
        format!("{},{{\"mapping\":{{", &cut[..cut.len() - 1]),
        &["user|l|1500|x"],
        &[("broken_json", 1)],
    );
}

#[test]
fn export_lines_are_taken_as_they_are() {
    check(
        Format::Export,
        "{\"id\":\"a\",\"text\":\" t \",\"role\":\"user\",\"session\":\"s\",\"ts\":7,\"seq\":3,\"meta\":{ \"z\": 1.50, \"a\":[] }}\n{\"text\":\"by hand\"}\n\n",
        &["user|s|7| t |{ \"z\": 1.50, \"a\":[] }", "-|-|-|by hand"],
        &[],
    );
    check(
        Format::Export,
        "{\"text\":\"\"}\n{\"text\":5}\n{\"text\":\"x\",\"meta\":[1]}\n{\"text\":\"x\",\"ts\":true}\n{\"text\":\"cut",
        &[],
        &[("bad_timestamp", 1), ("broken_json", 1), ("empty", 1), ("not_a_message", 2)],
    );
}

#[test]
fn what_fits_no_format_is_an_error_that_lists_them() {
    let folder = tempfile::tempdir().unwrap();
    for (content, want) in [
        (&b"PK\x03\x04rest"[..], "zip"),
        (b"\x1f\x8brest", "gzip"),
        (b"\x00\x01\x02", "cannot tell the format"),
        (b"\xff\xfeh\0i\0", "cannot tell the format"),
        (b"{\"some\": \"thing\"}\n", "cannot tell the format"),
        (b"[{\"some\": \"thing\"}]", "cannot tell the format"),
        (b"{\"mess", "cannot tell the format"),
        (b"[]", "cannot tell the format"),
    ] {
        let error = open(&file_of(&folder, content), None).err().unwrap().to_string();
        assert!(error.contains(want), "{content:?}: {error}");
    }
    let missing = open(&folder.path().join("missing"), None).err().unwrap().to_string();
    assert!(missing.contains("missing") && missing.contains("check the path"), "{missing}");
    assert!("yaml".parse::<Format>().is_err());
    for format in Format::ALL {
        assert_eq!(format.as_str().parse::<Format>().unwrap(), format);
    }
}

#[test]
fn a_huge_line_costs_itself_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = b"before\n".to_vec();
    content.resize(content.len() + super::lines::MAX_LINE_BYTES + 1, b'x');
    content.extend_from_slice(b"\nafter\n");
    let (items, skipped) = read(&file_of(&folder, &content), None);
    let texts: Vec<_> = items.iter().map(|item| item.text.as_str()).collect();
    assert_eq!(texts, ["before", "after"]);
    assert_eq!(skipped, BTreeMap::from([("line_too_long", 1)]));
}
