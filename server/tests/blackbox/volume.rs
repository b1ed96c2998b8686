//! Steady writing of several hundred megabytes: the log rolls and is tidied up while writers go on.
//!
//! Invariant checked: no amount of writing ends the daemon or refuses a write, and a crash at the end loses nothing.
//! The texts are large and the vectors the caller's own, so that the bytes are what is tested. The writers pause now
//! and then: rolls that overlap with tidying up need both to get their turn.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::data::{Rng, list_all, vector};

const WRITERS: usize = 4;
const ADDS: usize = 60;
const ITEMS: usize = 10;
/// 200 kB of text an item: 480 MB in all.
const TEXT_REPEATS: usize = 40_000;

#[test]
fn steady_large_writes_neither_end_the_daemon_nor_get_lost() {
    let mut daemon = Daemon::start();
    let text = "word ".repeat(TEXT_REPEATS);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (mut conn, text) = (daemon.conn(), &text);
            scope.spawn(move || {
                let mut rng = Rng::new(600 + writer as u64);
                for add in 0..ADDS {
                    thread::sleep(Duration::from_millis(rng.below(300) as u64));
                    let item = |i: usize| {
                        json!({"id": format!("{writer}-{add:02}-{i}"), "text": text, "vector": vector((add * ITEMS + i) as u64)})
                    };
                    let items: Vec<Value> = (0..ITEMS).map(item).collect();
                    conn.ok("memory.add", json!({"space": format!("volume-{writer}"), "items": items}));
                }
            });
        }
    });
    daemon.assert_alive();
    daemon.kill9();
    daemon.run();
    let mut conn = daemon.conn();
    for writer in 0..WRITERS {
        let space = format!("volume-{writer}");
        // A page of such texts must fit an answer, so the pages are short.
        let all = list_all(&mut conn, &space, 5);
        assert_eq!(all.len(), ADDS * ITEMS, "{space} after the crash");
        assert!(
            all.iter().all(|m| m["text"].as_str().map(str::len) == Some(text.len())),
            "{space}: a text was cut"
        );
        let asked = vector(7);
        let hits =
            conn.ok("memory.search", json!({"space": space, "vector": asked, "k": 1}))["hits"]
                .clone();
        assert_eq!(
            hits[0]["id"],
            json!(format!("{writer}-00-7")),
            "{space} is searchable after the crash"
        );
    }
}
