//! Every parameter of every method: missing, of the wrong type, unknown.
//!
//! Invariant checked: each is `invalid params` (-32602) with a message that names the field, and changes nothing.
//! The table below is the protocol's; a method is tried with one thing wrong at a time.

use serde_json::{Value, json};

use crate::daemon::shared;
use crate::data::{list_all, notes_space, vector};

/// What a parameter must be. Wrong values are drawn from all the others.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Flag,
    List,
    Object,
}

impl Kind {
    fn wrong(self) -> Vec<Value> {
        let all =
            [json!("words"), json!(3), json!(2.5), json!(true), json!(["a"]), json!({"a": 1})];
        let right = |v: &Value| match self {
            Kind::Text => v.is_string(),
            Kind::Integer => v.is_u64(),
            Kind::Flag => v.is_boolean(),
            Kind::List => v.is_array(),
            Kind::Object => v.is_object(),
        };
        all.into_iter().filter(|v| !right(v)).collect()
    }
}

/// Every method with parameters that work (VECTOR and PATH stand for one of each), those it cannot do without, and
/// the kind of each. A method that works on a space takes it too: `space` is added where it is required.
const METHODS: [(&str, &str, &str, &str); 17] = [
    (
        "memory.add",
        r#"{"items": [{"id": "never", "text": "never added", "vector": VECTOR}]}"#,
        "space items",
        "space=text items=list on_conflict=text wait=text",
    ),
    (
        "memory.search",
        r#"{"query": "cat"}"#,
        "space query",
        "space=text query=text k=integer mode=text filter=object time=object neighbors=object min_seq=integer \
         exact=flag explain=flag deadline_ms=integer",
    ),
    ("memory.get", r#"{"ids": ["n1"]}"#, "space ids", "space=text ids=list"),
    ("memory.list", "{}", "space", "space=text filter=object cursor=text limit=integer"),
    (
        "memory.around",
        r#"{"id": "n1", "before": 1, "after": 1}"#,
        "space id",
        "space=text id=text before=integer after=integer",
    ),
    (
        "memory.update",
        r#"{"id": "n1", "patch": {"role": "never"}}"#,
        "space id patch",
        "space=text id=text patch=object if_seq=integer",
    ),
    (
        "memory.delete",
        r#"{"ids": ["n1"], "dry_run": true}"#,
        "space ids",
        "space=text ids=list dry_run=flag expect_count=integer",
    ),
    (
        "memory.import",
        r#"{"path": PATH, "dry_run": true}"#,
        "space path",
        "space=text path=text format=text dry_run=flag",
    ),
    ("memory.export", r#"{"path": PATH}"#, "space path", "space=text path=text"),
    ("space.list", "{}", "", ""),
    ("space.stats", "{}", "space", "space=text"),
    ("space.drop", "{}", "space", "space=text"),
    ("admin.health", "{}", "", ""),
    ("admin.status", "{}", "", ""),
    ("admin.verify", "{}", "", ""),
    ("admin.compact", "{}", "", ""),
    ("admin.snapshot", r#"{"path": PATH}"#, "", ""),
];

struct Method {
    name: &'static str,
    base: Value,
    required: Vec<&'static str>,
    kinds: Vec<(&'static str, Kind)>,
}

fn methods(space: &str) -> Vec<Method> {
    let kind = |word: &'static str| {
        let (name, kind) = word.split_once('=').expect("name=kind");
        let kind = match kind {
            "text" => Kind::Text,
            "integer" => Kind::Integer,
            "flag" => Kind::Flag,
            "list" => Kind::List,
            "object" => Kind::Object,
            other => panic!("no such kind: {other}"),
        };
        (name, kind)
    };
    let method =
        |(name, base, required, kinds): (&'static str, &str, &'static str, &'static str)| {
            let base = base
                .replace("VECTOR", &json!(vector(1)).to_string())
                .replace("PATH", "\"/nonexistent/file\"");
            let mut base: Value = serde_json::from_str(&base).expect("the table is JSON");
            let required: Vec<&str> = required.split_whitespace().collect();
            if required.contains(&"space") {
                base["space"] = json!(space);
            }
            Method { name, base, required, kinds: kinds.split_whitespace().map(kind).collect() }
        };
    METHODS.into_iter().map(method).collect()
}

/// One thing wrong inside a parameter: the method, its parameters without the space, the field to be named.
const INNER: [(&str, &str, &str); 36] = [
    ("memory.add", r#"{"items": [{"id": "never"}]}"#, "text"),
    ("memory.add", r#"{"items": [5]}"#, "items"),
    ("memory.add", r#"{"items": [{"text": "x"}, "y"]}"#, "items"),
    ("memory.add", r#"{"items": [{"text": "x"}], "wait": "forever"}"#, "wait"),
    ("memory.add", r#"{"items": [{"text": "x"}], "on_conflict": "merge"}"#, "on_conflict"),
    ("memory.add", r#"{"items": [{"text": 5}]}"#, "text"),
    ("memory.add", r#"{"items": [{"text": null}]}"#, "text"),
    ("memory.add", r#"{"items": [{"text": ["a"]}]}"#, "text"),
    ("memory.add", r#"{"items": [{"text": "x", "id": 7}]}"#, "id"),
    ("memory.add", r#"{"items": [{"text": "x", "role": 5}]}"#, "role"),
    ("memory.add", r#"{"items": [{"text": "x", "session": {}}]}"#, "session"),
    ("memory.add", r#"{"items": [{"text": "x", "ts": true}]}"#, "ts"),
    ("memory.add", r#"{"items": [{"text": "x", "ts": [1]}]}"#, "ts"),
    ("memory.add", r#"{"items": [{"text": "x", "ts": 1.5}]}"#, "ts"),
    ("memory.add", r#"{"items": [{"text": "x", "meta": [1]}]}"#, "meta"),
    ("memory.add", r#"{"items": [{"text": "x", "meta": "x"}]}"#, "meta"),
    ("memory.add", r#"{"items": [{"text": "x", "vector": "x"}]}"#, "vector"),
    ("memory.add", r#"{"items": [{"text": "x", "vector": [1, 2, 3]}]}"#, "vector"),
    ("memory.add", r#"{"items": [{"text": "x", "vector": ["a", "b"]}]}"#, "vector"),
    ("memory.add", r#"{"items": [{"text": "x", "colour": "red"}]}"#, "colour"),
    ("memory.get", r#"{"ids": [1, 2]}"#, "ids"),
    ("memory.get", r#"{"ids": [null]}"#, "ids"),
    ("memory.delete", r#"{"ids": ["n1", 2]}"#, "ids"),
    ("memory.update", r#"{"id": "n1", "patch": {"colour": 1}}"#, "colour"),
    ("memory.update", r#"{"id": "n1", "patch": {"text": 5}}"#, "text"),
    ("memory.update", r#"{"id": "n1", "patch": {"meta": "x"}}"#, "meta"),
    ("memory.update", r#"{"id": "n1", "patch": {"ts": "soon"}}"#, "ts"),
    ("memory.search", r#"{"query": "cat", "time": {"from": "yesterday"}}"#, "from"),
    ("memory.search", r#"{"query": "cat", "time": {"to": [1]}}"#, "to"),
    ("memory.search", r#"{"query": "cat", "time": {"since": 1}}"#, "since"),
    ("memory.search", r#"{"query": "cat", "neighbors": {"before": "1"}}"#, "before"),
    ("memory.search", r#"{"query": "cat", "neighbors": {"after": -1}}"#, "after"),
    ("memory.search", r#"{"query": "cat", "neighbors": {"beside": 1}}"#, "beside"),
    ("memory.search", r#"{"query": "cat", "mode": "magic"}"#, "mode"),
    ("memory.search", r#"{"query": "cat", "k": -1}"#, "k"),
    ("memory.search", r#"{"query": "cat", "vector": [0.5]}"#, "vector"),
];

/// Collects what is wrong, so that one run shows every gap of the table.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn expect_invalid(
        &mut self,
        conn: &mut crate::client::Conn,
        method: &str,
        params: &Value,
        field: &str,
    ) {
        let shown = params.to_string();
        let shown = if shown.len() > 160 {
            format!("{}…", shown.chars().take(160).collect::<String>())
        } else {
            shown
        };
        match conn.call(method, params) {
            Ok(_) => self.0.push(format!("{method} {shown}: succeeded, `{field}` is wrong")),
            Err(e) if e.code != -32602 => {
                self.0.push(format!("{method} {shown}: not -32602: {e:?}"))
            }
            Err(e) if !e.message.contains(field) => {
                self.0.push(format!("{method} {shown}: does not name `{field}`: {}", e.message));
            }
            Err(_) => {}
        }
    }

    #[track_caller]
    fn report(self) {
        assert!(self.0.is_empty(), "{} findings:\n{}", self.0.len(), self.0.join("\n"));
    }
}

#[test]
fn a_missing_parameter_is_named() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "missing");
    let mut findings = Findings::default();
    for method in methods(&space) {
        for name in &method.required {
            let mut params = method.base.clone();
            params.as_object_mut().unwrap().remove(*name);
            findings.expect_invalid(&mut conn, method.name, &params, name);
        }
    }
    assert_eq!(list_all(&mut conn, &space, 100).len(), 10);
    findings.report();
}

#[test]
fn a_parameter_of_the_wrong_type_is_named() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "types");
    let before = list_all(&mut conn, &space, 100);
    let mut findings = Findings::default();
    for method in methods(&space) {
        for (name, kind) in &method.kinds {
            for wrong in kind.wrong() {
                let mut params = method.base.clone();
                params[*name] = wrong;
                findings.expect_invalid(&mut conn, method.name, &params, name);
            }
        }
    }
    assert_eq!(list_all(&mut conn, &space, 100), before);
    findings.report();
}

#[test]
fn an_unknown_parameter_is_named() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "unknown");
    let mut findings = Findings::default();
    for method in methods(&space) {
        let mut params = method.base.clone();
        params["colour"] = json!("red");
        findings.expect_invalid(&mut conn, method.name, &params, "colour");
    }
    assert_eq!(list_all(&mut conn, &space, 100).len(), 10);
    findings.report();
}

#[test]
fn what_lies_inside_a_parameter_is_checked_and_named() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "inner");
    let before = list_all(&mut conn, &space, 100);
    let mut findings = Findings::default();
    for (method, params, field) in INNER {
        let mut params: Value = serde_json::from_str(params).expect("the table is JSON");
        params["space"] = json!(space);
        findings.expect_invalid(&mut conn, method, &params, field);
    }
    assert_eq!(list_all(&mut conn, &space, 100), before, "wrong input changed something");
    findings.report();
}

#[test]
fn delete_takes_either_ids_or_a_filter() {
    let mut conn = shared().conn();
    let space = notes_space(&mut conn, "either");
    let filter = json!({"meta.x": {"exists": false}});
    conn.err("memory.delete", json!({"space": space, "ids": ["n1"], "filter": filter}))
        .assert_invalid("filter");
    conn.err("memory.delete", json!({"space": space})).assert_invalid("filter");
    assert_eq!(list_all(&mut conn, &space, 100).len(), 10);
}
