//! What the daemon says of its own work: metrics, the stage clock, `top`, the log of slow requests.
//!
//! Invariant checked: what is counted is what clients did, every way of asking says the same, and nothing that an agent
//! said, no id and no space's name is ever in it. Counts are compared on daemons that nobody else asks.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{Ran, program};
use crate::client::Conn;
use crate::daemon::{Daemon, PROGRAM};
use crate::data::{Rng, eventually, notes_space, vector};
use crate::load::{StopAtEnd, ask, text};
use crate::openmetrics::{Exposition, Labels};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const STAGES: [&str; 7] = ["queue", "tokenise", "embed", "dense", "lexical", "fuse", "fetch"];
const REQUESTS: &str = "flashbulb_requests_total";
const DURATION: &str = "flashbulb_request_duration_seconds";
const STAGE: &str = "flashbulb_stage_duration_seconds";

/// What no metric, screen or log line may hold.
const SECRETS: [&str; 6] =
    ["secretspace", "platypus", "secret-id-77", "secretrole", "secretsession", "secretmeta"];

#[track_caller]
fn exposition(conn: &mut Conn) -> Exposition {
    let result = conn.ok("admin.metrics", json!({}));
    assert_eq!(result["content_type"], CONTENT_TYPE);
    read(result["text"].as_str().expect("text"))
}

#[track_caller]
fn read(text: &str) -> Exposition {
    match Exposition::parse(text) {
        Ok(exposition) => exposition,
        Err(e) => panic!("not OpenMetrics: {e}\n{text}"),
    }
}

#[track_caller]
fn assert_no_secrets(what: &str, text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{what} gives {secret} away: {text}");
    }
}

/// Runs a command of the program against a daemon.
#[track_caller]
fn at(daemon: &Daemon, args: &[&str]) -> Ran {
    let socket = daemon.socket.to_str().expect("a plain path");
    program(args.iter().copied().chain(["--no-start", "--socket", socket]))
}

/// The tests' own books.
#[derive(Default)]
struct Books {
    searches: u64,
    /// Microseconds by stage, and in total, as the answers told.
    took_us: [u64; 8],
    waited: Duration,
}

impl Books {
    #[track_caller]
    fn search(&mut self, conn: &mut Conn, params: &Value) -> Value {
        let answer = ask(conn, "memory.search", params);
        let result = answer.outcome.expect("a search that works");
        for (stage, sum) in STAGES.iter().chain(["total"].iter()).zip(&mut self.took_us) {
            *sum +=
                result["took_us"][*stage].as_u64().unwrap_or_else(|| panic!("{stage}: {result}"));
        }
        self.searches += 1;
        self.waited += answer.waited;
        result
    }
}

#[test]
fn took_us_has_every_stage_and_no_more_than_the_total() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "stages");
    let mut rng = Rng::new(11);
    let all: BTreeSet<&str> = STAGES.into_iter().chain(["total"]).collect();
    let mut ask = |params: Value| {
        let result = conn.ok("memory.search", params);
        let took = result["took_us"].as_object().expect("took_us");
        assert_eq!(took.keys().map(String::as_str).collect::<BTreeSet<_>>(), all);
        let us = |stage: &str| took[stage].as_u64().expect("whole microseconds");
        let sum: u64 = STAGES.iter().map(|s| us(s)).sum();
        assert!(us("total") > 0 && sum <= us("total"), "stages sum to {sum}: {took:?}");
        (us("tokenise"), us("embed"), result["ran"]["embed"].clone())
    };
    for words in [5, 20, 60] {
        let query = text(&mut rng, words);
        let by_text = json!({"space": space, "query": query, "k": 3});
        let (tokenise, embed, ran) = ask(by_text.clone());
        assert!(tokenise > 0 && embed > 0, "{words} words: {tokenise} and {embed} us");
        assert_eq!(ran["device"], "cpu", "{ran}");
        // Up to 512 bytes the vector is kept.
        if query.len() <= 512 {
            let (tokenise, embed, ran) = ask(by_text);
            assert_eq!(ran["cached"], true, "{ran}");
            assert!(tokenise == 0 && embed >= 1, "kept: {tokenise} and {embed} us");
        }
    }
    let (tokenise, embed, _) = ask(json!({"space": space, "vector": vector(3), "k": 3}));
    assert_eq!((tokenise, embed), (0, 0), "there was nothing to embed");
}

#[test]
fn metrics_count_what_clients_did() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "counted");
    let before = exposition(&mut conn);
    let (mut books, mut rng) = (Books::default(), Rng::new(12));
    let queries: Vec<String> = (0..10).map(|_| text(&mut rng, 9)).collect();
    // The last two come a second time, from the cache.
    for query in queries.iter().chain(&queries[8..]) {
        books.search(&mut conn, &json!({"space": space, "query": query, "k": 2}));
    }
    for i in 0..3 {
        let items = json!([{"id": format!("c{i}"), "text": text(&mut rng, 9)}]);
        conn.ok("memory.add", json!({"space": space, "items": items, "wait": "searchable"}));
    }
    for _ in 0..4 {
        conn.ok("memory.get", json!({"space": space, "ids": ["n1"]}));
    }
    let after = exposition(&mut conn);
    let grew = |sample: &str, labels: &[(&str, &str)]| {
        after.count(sample, labels) - before.count(sample, labels)
    };
    let of = |method: &'static str, outcome: &'static str| {
        grew(REQUESTS, &[("method", method), ("outcome", outcome)])
    };
    let counted = |method: &'static str| grew(&format!("{DURATION}_count"), &[("method", method)]);
    for (method, n) in [("memory.search", books.searches), ("memory.add", 3), ("memory.get", 4)] {
        assert_eq!(of(method, "ok"), n, "{method}");
        assert_eq!(counted(method), n, "{method}: the histogram of requests");
        for outcome in ["busy", "deadline", "error"] {
            assert_eq!(of(method, outcome), 0, "{method}: {outcome}");
        }
    }
    assert_eq!(grew("flashbulb_query_cache_hits_total", &[]), 2);
    assert_eq!(grew("flashbulb_query_cache_misses_total", &[]), 10);
    let lane = |name| grew("flashbulb_embedded_windows_total", &[("lane", name)]);
    let (interactive, bulk) = (lane("interactive"), lane("bulk"));
    assert_eq!(interactive + bulk, 13, "ten queries and three memories, each of one window");
    assert!(interactive >= 10, "queries are embedded in the interactive lane: {interactive}");

    // Failures, each in its own drawer.
    conn.err("memory.search", json!({"space": "never-made", "query": "x"}));
    conn.err("memory.search", json!({"space": space, "query": "x", "k": 0}));
    let late = json!({"space": space, "query": "x", "min_seq": 1_000_000, "deadline_ms": 50});
    assert_eq!(conn.err("memory.search", late).code, 1007);
    let last = exposition(&mut conn);
    let of = |outcome| {
        let labels = [("method", "memory.search"), ("outcome", outcome)];
        last.count(REQUESTS, &labels) - after.count(REQUESTS, &labels)
    };
    assert_eq!((of("error"), of("deadline"), of("ok"), of("busy")), (2, 1, 0, 0));
}

#[test]
fn stage_histograms_add_up_to_what_the_answers_told() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "sums");
    let before = exposition(&mut conn);
    let (mut books, mut rng) = (Books::default(), Rng::new(13));
    for words in 2..22 {
        books.search(&mut conn, &json!({"space": space, "query": text(&mut rng, words), "k": 5}));
    }
    conn.ok("memory.add", json!({"space": space, "items": [{"text": "written"}]}));
    let after = exposition(&mut conn);
    let grew = |sample: &str, labels: &[(&str, &str)]| {
        let of = |e: &Exposition| e.sum(sample, labels).unwrap_or(0.0);
        of(&after) - of(&before)
    };
    let (n, count, sum) = (books.searches, format!("{STAGE}_count"), format!("{STAGE}_sum"));
    for (stage, told_us) in STAGES.iter().zip(books.took_us) {
        let labels = [("method", "memory.search"), ("stage", *stage)];
        let counted = grew(&count, &labels) as u64;
        let ran = !["lexical", "fuse"].contains(stage);
        assert!(
            counted == n || (!ran && counted == 0),
            "{stage}: {counted} counted in {n} searches"
        );
        let us = grew(&sum, &labels) * 1e6;
        let slack = 2.0 * n as f64 + 0.02 * told_us as f64;
        assert!((us - told_us as f64).abs() <= slack, "{stage}: {us} us, answers told {told_us}");
    }
    let labels = [("method", "memory.search")];
    let total = grew(&format!("{DURATION}_sum"), &labels);
    // The way of the answer into the socket comes after the request's own time.
    let answer = [("method", "memory.search"), ("stage", "write")];
    let stages = grew(&sum, &labels) - grew(&sum, &answer);
    let waited = books.waited.as_secs_f64();
    assert!(total <= waited, "the requests took {total} s, the client waited {waited} s");
    let told = books.took_us[7] as f64 / 1e6;
    assert!(total >= 0.8 * told, "the requests took {total} s, the answers told {told} s");
    assert_eq!(grew(&count, &answer) as u64, n, "every answer was written");
    let store = [("method", "memory.add"), ("stage", "store")];
    assert_eq!(grew(&count, &store), 1.0, "an add has a store stage");
    assert!(grew(&sum, &store) > 0.0, "a sync takes time");
    assert!(stages <= total * 1.001, "the stages took {stages} s, the requests {total} s");
}

#[test]
fn metrics_hold_every_name_that_the_protocol_names() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "named");
    conn.ok("memory.search", json!({"space": space, "query": "a question"}));
    let text = exposition(&mut conn);
    for (name, kind) in [
        (DURATION, "histogram"),
        (STAGE, "histogram"),
        ("flashbulb_requests", "counter"),
        ("flashbulb_embedded_windows", "counter"),
        ("flashbulb_query_cache_hits", "counter"),
        ("flashbulb_query_cache_misses", "counter"),
        ("flashbulb_cancelled", "counter"),
        ("flashbulb_pending_memories", "gauge"),
        ("flashbulb_connections", "gauge"),
        ("flashbulb_requests_in_flight", "gauge"),
    ] {
        let family = text.family(name).unwrap_or_else(|| panic!("{name} is not there"));
        assert_eq!(family.kind, kind, "{name}");
        assert!(family.help.as_ref().is_some_and(|h| h.len() > 10), "{name} explains itself");
    }
    for why in ["deadline", "gone"] {
        let sum = text.sum("flashbulb_cancelled_total", &[("why", why)]);
        assert_eq!(sum, Some(0.0), "a counter is there before it counts");
    }
    // Who asked whether the daemon was there may not be gone yet.
    let connections = text.sum("flashbulb_connections", &[]).expect("there");
    assert!((1.0..=2.0).contains(&connections), "{connections} connections");
    assert_eq!(text.sum("flashbulb_pending_memories", &[]), Some(0.0));
    assert!(text.0.iter().all(|f| f.name.starts_with("flashbulb_")), "one prefix for all");
}

#[test]
fn json_and_text_say_the_same() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "both");
    for i in 0..6 {
        conn.ok("memory.search", json!({"space": space, "query": format!("question {i}")}));
    }
    let text = exposition(&mut conn);
    let explicit = conn.ok("admin.metrics", json!({"format": "openmetrics"}));
    assert_eq!(explicit["content_type"], CONTENT_TYPE);
    let json = conn.ok("admin.metrics", json!({"format": "json"}));
    conn.err("admin.metrics", json!({"format": "xml"})).assert_invalid("format");
    conn.err("admin.metrics", json!({"colour": 1})).assert_invalid("colour");

    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let at_ms = json["at_ms"].as_u64().expect("at_ms");
    assert!(now.abs_diff(at_ms) < 60_000, "{at_ms} is not now, {now}");
    for part in ["counters", "gauges"] {
        let numbers = json[part].as_object().unwrap_or_else(|| panic!("{part}: {json}"));
        assert!(numbers.values().all(Value::is_number), "{part}: {numbers:?}");
    }
    let histograms = json["histograms"].as_array().expect("histograms");
    let mut searches = 0;
    for histogram in histograms {
        let (name, labels, count) = checked(histogram);
        let of: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        // What is not asked meanwhile does not change between the two answers.
        if of.contains(&("method", "memory.search")) {
            assert_eq!(text.count(&format!("{name}_count"), &of), count, "{name} {of:?}");
            searches += u64::from(name == DURATION) * count;
        }
    }
    assert_eq!(searches, 6);
}

/// A histogram in JSON: its name, labels and count; fails unless its numbers can be true.
#[track_caller]
fn checked(histogram: &Value) -> (String, Labels, u64) {
    let name = histogram["name"].as_str().expect("name").to_owned();
    let labels = serde_json::from_value(histogram["labels"].clone()).expect("labels are texts");
    let count = histogram["count"].as_u64().expect("count");
    let buckets: Vec<(f64, u64)> = histogram["buckets"]
        .as_array()
        .expect("buckets")
        .iter()
        .map(|b| (b[0].as_f64().unwrap_or(f64::INFINITY), b[1].as_u64().expect("a count")))
        .collect();
    assert_eq!(buckets.iter().map(|b| b.1).sum::<u64>(), count, "{histogram}");
    assert!(buckets.iter().all(|b| b.1 > 0), "buckets without a count are left out: {histogram}");
    assert!(buckets.is_sorted_by(|a, b| a.0 < b.0), "{histogram}");
    let sum_us = histogram["sum_us"].as_f64().expect("sum_us");
    let most: f64 = buckets.iter().map(|b| b.0 * b.1 as f64).sum();
    assert!(sum_us <= most * 1.01 + count as f64, "{sum_us} us in buckets up to {most} us");
    (name, labels, count)
}

/// Searches, adds, lists and errors full of what must not be told.
fn speak_of_secrets(conn: &mut Conn) {
    let [space, word, id, role, session, meta] = SECRETS;
    let item = json!({"id": id, "text": format!("the {word} is ill"), "role": role, "session": session, "meta": {meta: meta}});
    conn.ok("memory.add", json!({"space": space, "items": [item], "wait": "searchable"}));
    conn.ok("memory.search", json!({"space": space, "query": format!("how is the {word}")}));
    conn.ok("memory.get", json!({"space": space, "ids": [id]}));
    conn.err("memory.search", json!({"space": format!("{space}-2"), "query": word}));
    conn.err("memory.search", json!({"space": space, "query": word, meta: 1}));
    // A method's name is the client's own text until it is known.
    conn.err(&format!("memory.{word}"), json!({"space": space}));
}

#[test]
fn nothing_that_was_said_is_in_metrics_or_top() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    speak_of_secrets(&mut conn);
    let text = conn.ok("admin.metrics", json!({}))["text"].as_str().expect("text").to_owned();
    let seen = read(&text);
    assert!(seen.count(REQUESTS, &[("method", "memory.add")]) == 1, "{text}");
    assert_no_secrets("admin.metrics", &text);
    assert_no_secrets("json", &conn.ok("admin.metrics", json!({"format": "json"})).to_string());
    let ran = at(&daemon, &["metrics"]).succeeded();
    assert_no_secrets("flashbulb metrics", &ran.stdout);
    let ran = at(&daemon, &["top", "--once", "--interval", "1"]).succeeded();
    assert_no_secrets("flashbulb top", &ran.stdout);
}

#[test]
fn the_metrics_command_prints_the_text_and_nothing_else() {
    let daemon = Daemon::start();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "printed");
    for i in 0..5 {
        conn.ok("memory.search", json!({"space": space, "query": format!("printed {i}")}));
    }
    let ran = at(&daemon, &["metrics"]).succeeded();
    let printed = read(&ran.stdout);
    let labels = [("method", "memory.search"), ("outcome", "ok")];
    assert_eq!(printed.count(REQUESTS, &labels), 5);
    let json = at(&daemon, &["metrics", "--json"]).succeeded();
    assert!(serde_json::from_str::<Value>(&json.stdout).is_ok_and(|v| v.is_object()), "{json:?}");
    let nowhere = Daemon::prepared();
    for args in [&["metrics"][..], &["top", "--once", "--interval", "1"]] {
        let ran = at(&nowhere, args).failed();
        assert_eq!(ran.code, Some(3), "{args:?}: {ran:?}");
        assert!(ran.stdout.is_empty(), "{args:?}: {ran:?}");
    }
}

#[test]
fn top_shows_one_screen_without_escape_codes() {
    let daemon = Daemon::start();
    let space = notes_space(&mut daemon.conn(), "top");
    let stop = AtomicBool::new(false);
    let (text, json) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut conn = daemon.conn();
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                conn.ok("memory.search", json!({"space": space, "query": format!("top {i}")}));
                thread::sleep(Duration::from_millis(20));
            }
        });
        let searching = StopAtEnd(&stop);
        let started = Instant::now();
        let text = at(&daemon, &["top", "--once", "--interval", "1"]);
        let took = started.elapsed();
        let json = at(&daemon, &["top", "--once", "--interval", "1", "--json"]);
        drop(searching);
        assert!(took >= Duration::from_secs(1), "one screen comes after one interval: {took:?}");
        (text.succeeded(), json.succeeded())
    });
    assert!(!text.stdout.contains('\u{1b}'), "escape codes in a pipe: {text:?}");
    let lower = text.stdout.to_lowercase();
    let words = [
        "interactive",
        "bulk",
        "p50",
        "p99",
        "memory.search",
        "embed",
        "graph",
        "seal",
        "merge",
        "checkpoint",
    ];
    for word in words {
        assert!(lower.contains(word), "top speaks of {word}:\n{}", text.stdout);
    }
    let one: Value = serde_json::from_str(&json.stdout).unwrap_or_else(|e| panic!("{e}: {json:?}"));
    assert!(one.is_object(), "{one}");
    for word in ["memory.search", "p99", "graph"] {
        assert!(one.to_string().contains(word), "top --json speaks of {word}: {one}");
    }
    for interval in ["0", "-1", "soon"] {
        let ran = at(&daemon, &["top", "--once", &format!("--interval={interval}")]).failed();
        assert_eq!(ran.code, Some(2), "--interval={interval}: {ran:?}");
    }
}

#[test]
fn top_goes_on_until_it_is_stopped() {
    let daemon = Daemon::start();
    let out = daemon.dir.path().join("top.json");
    let mut top = Command::new(PROGRAM)
        .args(["top", "--interval", "1", "--json", "--no-start", "--socket"])
        .arg(&daemon.socket)
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).expect("a file"))
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    thread::sleep(Duration::from_millis(3500));
    let ended = top.try_wait().expect("waiting");
    top.kill().expect("SIGKILL");
    top.wait().expect("a killed child ends");
    assert!(ended.is_none(), "it ended by itself: {ended:?}");
    let shown = fs::read_to_string(&out).expect("its output");
    let screens = serde_json::Deserializer::from_str(&shown).into_iter::<Value>();
    let whole = screens.filter_map(Result::ok).filter(Value::is_object).count();
    assert!((2..=4).contains(&whole), "{whole} documents in 3.5 s: {shown}");
}

/// The lines of a daemon's log that warn of a slow request.
fn slow_lines(daemon: &Daemon, method: &str) -> Vec<String> {
    let log = fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
    let is =
        |line: &&str| line.contains("WARN") && line.contains("slowest") && line.contains(method);
    log.lines().filter(is).map(str::to_owned).collect()
}

#[test]
fn the_slow_log_names_stages_and_never_texts() {
    let mut daemon = Daemon::prepared();
    daemon.args.extend(["--slow-ms".to_owned(), "0".to_owned()]);
    daemon.run();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "slow");
    let before = slow_lines(&daemon, "memory.search").len();
    for i in 0..7 {
        conn.ok("memory.search", json!({"space": space, "query": format!("slow question {i}")}));
    }
    conn.ok(
        "memory.add",
        json!({"space": space, "items": [{"id": "w", "text": "written slowly"}]}),
    );
    eventually("every search is in the log", Duration::from_secs(5), || {
        slow_lines(&daemon, "memory.search").len() - before == 7
    });
    for line in slow_lines(&daemon, "memory.search") {
        assert!(line.contains("took_ms"), "{line}");
        for stage in ["queue", "tokenise", "embed", "dense", "fetch"] {
            assert!(line.contains(stage), "every stage is told, {stage} too: {line}");
        }
        let slowest = line.split("slowest=").nth(1).unwrap_or_default().trim_start_matches('"');
        let named = STAGES.iter().any(|s| slowest.starts_with(s));
        assert!(named || slowest.starts_with("other"), "the slowest is a stage: {line}");
    }
    eventually("the add is in the log", Duration::from_secs(5), || {
        !slow_lines(&daemon, "memory.add").is_empty()
    });
    speak_of_secrets(&mut conn);
    thread::sleep(Duration::from_millis(200));
    let log = fs::read_to_string(daemon.dir.path().join("log")).expect("the log");
    assert_no_secrets("the log", &log);
    for said in [space.as_str(), "slow question", "written slowly"] {
        assert!(!log.contains(said), "the log holds {said:?}");
    }
}

#[test]
fn a_request_that_waits_as_its_client_wished_is_not_slow() {
    let mut daemon = Daemon::prepared();
    daemon.args.extend(["--slow-ms".to_owned(), "400".to_owned()]);
    daemon.run();
    let mut conn = daemon.conn();
    let space = notes_space(&mut conn, "wished");
    let before = slow_lines(&daemon, "memory.search").len();
    let never = json!({"space": space, "query": "x", "min_seq": 1_000_000, "deadline_ms": 800});
    assert_eq!(conn.err("memory.search", never).code, 1007);
    thread::sleep(Duration::from_millis(200));
    let slow = slow_lines(&daemon, "memory.search");
    assert_eq!(slow.len(), before, "it waited for a seq, as it was told: {slow:?}");
}
