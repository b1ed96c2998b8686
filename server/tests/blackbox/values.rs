//! What is put in comes out unchanged: texts, ids, names, timestamps, meta.
//!
//! Invariant checked: a value is kept exactly or refused with a clear error; nothing is altered in silence. Numbers in
//! meta are compared by their raw text where JSON readers differ, so that a rounding reader cannot hide behind ours.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::client::{Conn, outcome};
use crate::daemon::shared;
use crate::data::{add, ids, list_all, space, vector};

/// Adds one item; `None` if it was refused as invalid, else what `get` answers for it.
fn round_trip(conn: &mut Conn, space: &str, mut item: Value) -> Option<Value> {
    item["vector"] = json!(vector(1));
    let params = json!({"space": space, "items": [item], "on_conflict": "replace"});
    match conn.call("memory.add", &params) {
        Err(e) => {
            assert!(e.code == -32602 || e.is_own(), "{item}: {e:?}");
            None
        }
        Ok(added) => {
            let id = added["items"][0]["id"].clone();
            Some(conn.ok("memory.get", json!({"space": space, "ids": [id]}))["items"][0].clone())
        }
    }
}

#[test]
fn ids_are_strings_of_up_to_128_bytes() {
    let mut conn = shared().conn();
    let space = space("ids");
    let kept = [
        "x",
        " ",
        "a b",
        "../../etc/passwd",
        "id/with/slashes",
        "日本",
        "🚀",
        "\"quoted\"",
        "%00",
        "A",
        "a",
        "null",
    ];
    let long = ["i".repeat(128), "é".repeat(64), "🚀".repeat(32)];
    for id in kept.iter().map(|s| (*s).to_owned()).chain(long) {
        let got = round_trip(&mut conn, &space, json!({"id": id, "text": "t"}))
            .unwrap_or_else(|| panic!("id {id:?} refused"));
        assert_eq!(got["id"], json!(id));
    }
    for id in ["i".repeat(129), "é".repeat(65), "i".repeat(100_000)] {
        let params =
            json!({"space": space, "items": [{"id": id, "text": "t", "vector": vector(1)}]});
        conn.err("memory.add", params).assert_invalid("id");
    }
    for id in ["", "a\u{0}b", "\n", "\u{7f}"] {
        if let Some(got) = round_trip(&mut conn, &space, json!({"id": id, "text": "t"})) {
            assert_eq!(got["id"], json!(id));
        }
    }
    assert_eq!(
        conn.ok("memory.get", json!({"space": space, "ids": ["a", "A"]}))["items"][1]["id"],
        "A",
        "ids keep their case"
    );
}

#[test]
fn an_id_left_out_is_made_and_in_order() {
    let mut conn = shared().conn();
    let space = space("made");
    let items: Vec<Value> =
        (0..20).map(|i| json!({"text": format!("t{i}"), "vector": vector(i)})).collect();
    let added = add(&mut conn, &space, json!(items));
    let made = ids(&added["items"]);
    assert!(made.is_sorted_by(|a, b| a < b), "UUIDv7 made one after the other sort: {made:?}");
    assert!(made.iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'7'), "UUIDv7: {made:?}");
    assert_eq!(ids(&Value::from(list_all(&mut conn, &space, 7))), made);
}

#[test]
fn space_names_follow_their_pattern() {
    let mut conn = shared().conn();
    let unique = space("n");
    let long = format!("{unique}{}", "z".repeat(128 - unique.len()));
    let item = json!([{"id": "a", "text": "t", "vector": vector(1)}]);
    for name in [
        format!("{unique}._:@-x"),
        format!("9{unique}"),
        format!("{unique}.."),
        format!("{unique}:"),
        long.clone(),
    ] {
        add(&mut conn, &name, item.clone());
        assert_eq!(list_all(&mut conn, &name, 10).len(), 1, "{name}");
    }
    let bad = [
        "", " ", ".", "..", "-a", "_a", ":a", "@a", "a b", "a/b", "../a", "a\\b", "a\u{0}", "a\n",
        "ä", "aé", "a,b", "a*", "a%20", "日本",
    ];
    for name in bad.iter().map(|s| (*s).to_owned()).chain([format!("{long}z"), "a".repeat(70_000)])
    {
        for (method, mut params) in [
            ("memory.add", json!({"items": item})),
            ("memory.list", json!({})),
            ("space.drop", json!({})),
        ] {
            params["space"] = json!(name);
            conn.err(method, params).assert_invalid("space");
        }
    }
}

#[test]
fn texts_come_back_as_they_were() {
    let mut conn = shared().conn();
    let space = space("texts");
    let texts = [
        "a",
        " leading and trailing ",
        "\t\n",
        "line\r\nbreak",
        "e\u{301} is not é",
        "\u{feff}mark",
        "👩‍👩‍👧‍👦 family",
        "ﬁ ligature",
        "\u{202e}right to left",
        "{\"json\": [1, 2]}",
        "\\u0041 \\n",
        "</script>",
        "'; DROP TABLE memories; --",
        "\u{10ffff}",
        "\u{fffd}",
    ];
    for text in texts {
        let got = round_trip(&mut conn, &space, json!({"text": text}));
        if let Some(got) = got {
            assert_eq!(got["text"], json!(text));
        } else {
            assert!(text.trim().is_empty(), "{text:?} was refused");
        }
    }
    for text in ["nul\u{0}inside", "\u{1}\u{1f}\u{7f}\u{9f}"] {
        if let Some(got) = round_trip(&mut conn, &space, json!({"text": text})) {
            assert_eq!(got["text"], json!(text));
        }
    }
    conn.err("memory.add", json!({"space": space, "items": [{"text": ""}]})).assert_invalid("text");
}

#[test]
fn lone_surrogates_are_refused_and_the_connection_goes_on() {
    let mut conn = shared().conn();
    let space = space("surrogates");
    add(&mut conn, &space, json!([{"id": "a", "text": "t", "vector": vector(1)}]));
    for text in ["\\ud800", "x\\udfffx", "\\ud83d", "\\ude80\\ud83d"] {
        let frame = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"memory.add","params":{{"space":"{space}","items":[{{"text":"{text}"}}]}}}}"#
        );
        let error = outcome(&conn.exchange(&frame)).expect_err("a lone surrogate is no text");
        assert!([-32700, -32602].contains(&error.code), "{text}: {error:?}");
    }
    let pair = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"memory.get","params":{{"space":"{space}","ids":["\ud83d\ude80"]}}}}"#
    );
    assert!(outcome(&conn.exchange(&pair)).is_ok(), "a pair is a character");
    assert_eq!(list_all(&mut conn, &space, 10).len(), 1);
}

#[test]
fn timestamps_in_every_legal_form() {
    let mut conn = shared().conn();
    let space = space("ts");
    let forms: [(Value, i64); 16] = [
        (json!(0), 0),
        (json!(-1), -1),
        (json!(-62_135_596_800_000_i64), -62_135_596_800_000),
        (json!(1_714_979_289_000_i64), 1_714_979_289_000),
        (json!(253_402_300_799_999_i64), 253_402_300_799_999),
        (json!("2024-05-06T07:08:09Z"), 1_714_979_289_000),
        (json!("2024-05-06T07:08:09.5Z"), 1_714_979_289_500),
        (json!("2024-05-06T07:08:09.123Z"), 1_714_979_289_123),
        (json!("2024-05-06T07:08:09.123000Z"), 1_714_979_289_123),
        (json!("2024-05-06T09:08:09+02:00"), 1_714_979_289_000),
        (json!("2024-05-05T21:38:09-09:30"), 1_714_979_289_000),
        (json!("2024-02-29T00:00:00Z"), 1_709_164_800_000),
        (json!("1969-12-31T23:59:59Z"), -1000),
        (json!("1969-12-31T23:59:59.999Z"), -1),
        (json!("1900-01-01T00:00:00Z"), -2_208_988_800_000),
        (json!("9999-12-31T23:59:59Z"), 253_402_300_799_000),
    ];
    for (i, (ts, want)) in forms.iter().enumerate() {
        let got =
            round_trip(&mut conn, &space, json!({"id": format!("t{i}"), "text": "t", "ts": ts}));
        let got = got.unwrap_or_else(|| panic!("ts {ts} was refused"));
        assert_eq!(got["ts"], json!(want), "ts {ts}");
    }
    let bad = [
        json!("yesterday"),
        json!(""),
        json!("2024-05-06"),
        json!("2024-05-06T07:08:09"),
        json!("2024-13-01T00:00:00Z"),
        json!("2024-02-30T00:00:00Z"),
        json!("2023-02-29T00:00:00Z"),
        json!("2024-05-06T25:00:00Z"),
        json!("1714979289000"),
        json!("07:08:09Z"),
        json!(1.5),
        json!(true),
        json!([]),
    ];
    for ts in bad {
        conn.err("memory.add", json!({"space": space, "items": [{"text": "t", "ts": ts}]}))
            .assert_invalid("ts");
    }
    for ts in [i64::MAX, i64::MIN, 253_402_300_800_000] {
        if let Some(got) = round_trip(&mut conn, &space, json!({"text": "t", "ts": ts})) {
            assert_eq!(got["ts"], json!(ts));
        }
    }
    assert_eq!(
        list_all(&mut conn, &space, 100).len(),
        conn.ok("memory.list", json!({"space": space, "limit": 100}))["items"]
            .as_array()
            .unwrap()
            .len()
    );
}

#[test]
fn time_ranges_take_both_forms_and_exclude_the_rest() {
    let mut conn = shared().conn();
    let space = space("range");
    let at = |i: i64| json!({"id": format!("t{i}"), "text": format!("t {i}"), "ts": -5_000 + i * 1000, "vector": vector(1)});
    add(&mut conn, &space, json!((0..10).map(at).collect::<Vec<_>>()));
    let mut search = |time: Value| {
        let hits = conn.ok(
            "memory.search",
            json!({"space": space, "vector": vector(1), "k": 100, "time": time}),
        )["hits"]
            .clone();
        let mut hit = ids(&hits);
        hit.sort();
        hit.join(" ")
    };
    assert_eq!(search(json!({"from": -2000, "to": 500})), "t3 t4 t5");
    assert_eq!(
        search(json!({"from": "1969-12-31T23:59:58Z", "to": "1970-01-01T00:00:00.5Z"})),
        "t3 t4 t5"
    );
    assert_eq!(search(json!({"from": 2500})), "t8 t9");
    assert_eq!(search(json!({"to": -3500})), "t0 t1");
    assert_eq!(search(json!({"from": 100_000, "to": 200_000})), "");
}

#[test]
fn meta_comes_back_as_it_was() {
    let mut conn = shared().conn();
    let space = space("meta");
    let nested = (0..20).fold(json!("core"), |inner, i| {
        if i % 2 == 0 { json!([inner, i]) } else { json!({"k": inner}) }
    });
    let metas = [
        json!({}),
        json!({"": "", " ": null, "ü🚀": [true, false, null], "a.b": {"c.d": 1}, "and": {"or": 1}, "meta": {"meta": 2}}),
        json!({"list": [], "object": {}, "mixed": [1, "1", 1.5, [1, [2, [3]]], {"x": null}]}),
        json!({"deep": nested}),
        json!({"long": "y".repeat(3000), "control": "\u{1}\n\t\"\\"}),
    ];
    for meta in metas {
        let got = round_trip(&mut conn, &space, json!({"text": "t", "meta": meta}))
            .unwrap_or_else(|| panic!("{meta} was refused"));
        assert_eq!(got["meta"], meta);
    }
}

/// Numbers that a careless reader rounds.
const NUMBERS: [&str; 19] = [
    "0",
    "-1",
    "9007199254740993",
    "-9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "0.1",
    "1.7976931348623157e308",
    "5e-324",
    "2.2250738585072014e-308",
    "0.30000000000000004",
    "123456789.123456789",
    "1e-7",
    "9.109383701528e-31",
    "7.038531e-26",
    "8.533e+68",
    "2.638344616030823e-256",
    "100.0",
];

#[test]
fn numbers_in_meta_are_not_rounded() {
    let mut conn = shared().conn();
    let space = space("numbers");
    let members: Vec<String> =
        NUMBERS.iter().enumerate().map(|(i, n)| format!("\"n{i:02}\":{n}")).collect();
    let params = format!(
        r#"{{"space":"{space}","items":[{{"id":"a","text":"t","meta":{{{}}},"vector":{}}}]}}"#,
        members.join(","),
        json!(vector(1))
    );
    let answer = conn.exchange(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"memory.add","params":{params}}}"#
    ));
    outcome(&answer).unwrap_or_else(|e| panic!("{e:?}"));
    for method in ["memory.get", "memory.list", "memory.search"] {
        let mut ask = json!({"space": space});
        match method {
            "memory.get" => ask["ids"] = json!(["a"]),
            "memory.search" => ask["vector"] = json!(vector(1)),
            _ => {}
        }
        let line = conn.try_raw(method, &ask).expect("an answer");
        let raw = raw_meta(&line);
        for (i, sent) in NUMBERS.iter().enumerate() {
            let got = raw[&format!("n{i:02}")].get();
            let (integer, float) = (sent.parse::<i128>(), sent.parse::<f64>().unwrap());
            match integer {
                Ok(n) => assert_eq!(got.parse::<i128>(), Ok(n), "{method}: {sent} became {got}"),
                Err(_) => assert_eq!(
                    got.parse::<f64>().map(f64::to_bits),
                    Ok(float.to_bits()),
                    "{method}: {sent} became {got}"
                ),
            }
        }
    }
    let filter =
        |n: u64| json!({"space": space, "vector": vector(1), "filter": {"meta.n02": {"eq": n}}});
    assert_eq!(
        conn.ok("memory.search", filter(9_007_199_254_740_992))["hits"],
        json!([]),
        "2^53 is not 2^53 + 1"
    );
    assert_eq!(
        conn.ok("memory.search", filter(9_007_199_254_740_993))["hits"].as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_number_beyond_every_type_is_kept_or_refused() {
    let mut conn = shared().conn();
    let space = space("beyond");
    for number in ["123456789012345678901234567890", "1e400", "0.1234567890123456789012345678901"] {
        let params = format!(
            r#"{{"space":"{space}","items":[{{"id":"a","text":"t","meta":{{"n":{number}}}}}],"on_conflict":"replace"}}"#
        );
        let answer = conn.exchange(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"memory.add","params":{params}}}"#
        ));
        if outcome(&answer).is_err() {
            continue;
        }
        let line =
            conn.try_raw("memory.get", &json!({"space": space, "ids": ["a"]})).expect("an answer");
        let got = raw_meta(&line)["n"].get().to_owned();
        let same =
            got == number || (number.contains('.') && got.parse::<f64>() == number.parse::<f64>());
        assert!(same, "{number} became {got}");
    }
}

/// The members of the first memory's meta, each as its raw text.
fn raw_meta(line: &str) -> BTreeMap<String, Box<RawValue>> {
    type Members = BTreeMap<String, Box<RawValue>>;
    let open = |raw: &RawValue| serde_json::from_str::<Members>(raw.get()).expect("an object");
    let answer: Members = serde_json::from_str(line).expect("JSON");
    let result = open(&answer["result"]);
    let list = result.get("items").or_else(|| result.get("hits")).expect("items or hits");
    let list: Vec<Box<RawValue>> = serde_json::from_str(list.get()).expect("a list");
    open(&open(&list[0])["meta"])
}
