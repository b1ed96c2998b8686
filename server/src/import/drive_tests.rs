//! Tests of the driver, of the round trip through an export, and of readers against arbitrary bytes.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::json;

use super::tests::{file_of, read};
use super::*;

/// Remembers what it was given, like a space.
#[derive(Default)]
struct Remember {
    ids: std::collections::HashSet<String>,
    batches: Vec<usize>,
}

impl Sink for Remember {
    type Error = String;

    fn add(&mut self, items: Vec<Item>) -> Result<BatchCounts, String> {
        self.batches.push(items.len());
        let mut counts = BatchCounts::default();
        let mut in_batch = std::collections::HashSet::new();
        for item in items {
            assert!(in_batch.insert(item.id.clone()), "an id twice in one batch");
            match self.ids.insert(item.id) {
                true => counts.added += 1,
                false => counts.already_there += 1,
            }
        }
        Ok(counts)
    }
}

#[test]
fn the_driver_batches_counts_and_adds_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = String::new();
    for n in 0..600 {
        writeln!(content, r#"{{"id":"{}","text":"note {n}"}}"#, n % 590).unwrap();
    }
    writeln!(content, r#"{{"id":"{}","text":"long id"}}"#, "i".repeat(129)).unwrap();
    writeln!(content, r#"{{"text":"{}"}}"#, "t".repeat((1 << 20) + 1)).unwrap();
    writeln!(content, r#"{{"text":"{}"}}"#, "\\u0001".repeat(1 << 20)).unwrap();
    writeln!(content, r#"{{"text":"deep","meta":{{"a":{}{}}}}}"#, "[".repeat(40), "]".repeat(40))
        .unwrap();
    content += "broken\n";
    let path = file_of(&folder, content.as_bytes());
    let mut sink = Remember::default();
    let import = |sink: &mut Remember| {
        let mut calls = 0;
        let counts =
            run(&mut open(&path, None).unwrap(), sink, &Limits::default(), &mut |progress| {
                calls += 1;
                assert!(progress.bytes_done <= progress.bytes_total);
            });
        assert!(calls > 0);
        counts.unwrap()
    };
    let first = import(&mut sink);
    assert_eq!((first.added, first.already_there, first.skipped_total()), (590, 10, 5));
    assert_eq!(first.read, first.added + first.already_there + first.skipped_total());
    assert_eq!(first.skipped[&SkipReason::TextTooLong], 2);
    assert_eq!(first.skipped[&SkipReason::FieldTooLong], 2);
    assert_eq!(first.skipped_at[&SkipReason::BrokenJson], [SkipPlace { file: None, line: 605 }]);
    assert!(sink.batches.iter().all(|size| *size <= 256));
    let second = import(&mut sink);
    assert_eq!((second.added, second.already_there), (0, 600));
}

#[test]
fn batches_stay_small_on_the_wire() {
    let folder = tempfile::tempdir().unwrap();
    let content = format!("{{\"text\":\"{}\"}}\n", "\\\"x".repeat(100_000)).repeat(20);
    let mut sink = Remember::default();
    let path = file_of(&folder, content.as_bytes());
    run(&mut open(&path, None).unwrap(), &mut sink, &Limits::default(), &mut |_| {}).unwrap();
    // 300 kB each on the wire: three fit into a mebibyte.
    assert_eq!(sink.batches, [3, 3, 3, 3, 3, 3, 2]);
}

#[derive(Debug, Clone, PartialEq)]
struct Fields(String, String, Option<String>, Option<String>, i64, Option<String>);

prop_compose! {
    fn fields()(
        id in "\\PC{1,32}",
        text in any::<String>().prop_filter("blank", |text| !text.trim().is_empty()),
        role in proptest::option::of(any::<String>()),
        session in proptest::option::of(any::<String>()),
        ts in -1_000_000_000_000_i64..100_000_000_000_000,
        meta in proptest::option::of((any::<String>(), any::<i64>(), any::<f64>().prop_filter("finite", |n| n.is_finite()))),
    ) -> Fields {
        let meta = meta.map(|(key, whole, real)| json!({key: [whole, real, null]}).to_string());
        Fields(id, text, role, session, ts, meta)
    }
}

proptest! {
    #[test]
    fn what_is_exported_is_imported_unchanged(memories in proptest::collection::vec(fields(), 1..20)) {
        let folder = tempfile::tempdir().unwrap();
        let mut content = String::new();
        for Fields(id, text, role, session, ts, meta) in &memories {
            let item = Item {
                id: id.clone(), text: text.clone(), role: role.clone(), session: session.clone(), ts_ms: Some(*ts),
                meta: meta.clone().map(|meta| RawValue::from_string(meta).unwrap()),
            };
            content += &serde_json::to_string(&item).unwrap();
            content.push('\n');
        }
        let path = file_of(&folder, content.as_bytes());
        let (items, skipped) = read(&path, None);
        prop_assert!(skipped.is_empty());
        let got: Vec<Fields> = items.into_iter().map(|item| Fields(
            item.id, item.text, item.role, item.session, item.ts_ms.unwrap(), item.meta.map(|meta| meta.get().to_owned()),
        )).collect();
        prop_assert_eq!(got, memories);
    }

    #[test]
    fn no_content_makes_a_reader_panic(content in proptest::collection::vec(any::<u8>(), 0..400), piece in 0usize..6) {
        let starts: [&[u8]; 6] = [b"", b"[{\"mapping\":", b"{\"messages\":[", b"{\"type\":\"user\",\"uuid\":", b"{\"text\":\"", b"[{\"role\":\"user\",\"content\":"];
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(&folder, &[starts[piece], &content].concat());
        for format in Format::ALL.into_iter().map(Some).chain([None]) {
            if let Ok(source) = open(&path, format) {
                for found in source {
                    prop_assert!(found.is_ok());
                }
            }
        }
    }
}
