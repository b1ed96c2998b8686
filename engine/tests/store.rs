//! Behaviour of a store that the model test does not reach: locks, models, damage, large spaces, concurrency.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flashbulb_engine::index::Layout;
use flashbulb_engine::{
    Error, NewMemory, OnConflict, Query, SearchPath, Selection, Seq, SpaceName, Store, StoreOptions,
};

const DIM: usize = 32;

fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(dir, StoreOptions::new(DIM, "m"))
}

fn space() -> SpaceName {
    SpaceName::parse("a").unwrap()
}

/// Pseudo-random vectors around one of 64 centres, as embeddings of related texts lie.
fn vector(n: u64) -> Vec<f32> {
    let noise = |seed: u64| {
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..DIM).map(move |_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
    };
    noise(n % 64 + 1_000_000).zip(noise(n + 1)).map(|(c, e)| c + 0.6 * e).collect()
}

fn items(range: std::ops::Range<u64>) -> Vec<NewMemory> {
    range
        .map(|n| NewMemory {
            id: format!("n{n}"),
            text: format!("note {n}"),
            ts_ms: n as i64,
            vectors: Some(vec![vector(n)]),
            ..NewMemory::default()
        })
        .collect()
}

fn fill(store: &Store, count: u64) {
    for from in (0..count).step_by(500) {
        store.add(&space(), items(from..(from + 500).min(count)), OnConflict::Error).unwrap();
    }
}

fn settle(store: &Store) {
    while store.maintain(Duration::from_millis(50)).unwrap() {}
}

fn recall(store: &Store, live: &[u64], queries: std::ops::Range<u64>) -> f64 {
    let mut found = 0;
    let total = (queries.end - queries.start) * 10;
    for q in queries {
        let q = vector(q);
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let mut all: Vec<(f64, u64)> = live
            .iter()
            .map(|n| {
                let v = vector(*n);
                let dot: f64 = v.iter().zip(&q).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (dot / norm(&v) / norm(&q), n + 1)
            })
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let hits = store.search(&space(), &Query::new(&q, 10)).unwrap().hits;
        found += all[..10].iter().filter(|(_, s)| hits.iter().any(|h| h.seq.0 == *s)).count();
    }
    found as f64 / total as f64
}

#[test]
fn one_process_and_one_model_a_store() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("s");
    let store = open(&dir).unwrap();
    assert!(matches!(open(&dir), Err(Error::Locked { .. })));
    store.close().unwrap();
    assert!(matches!(store.get(&space(), &[]), Err(Error::Closed)));
    assert!(matches!(store.add(&space(), items(0..1), OnConflict::Error), Err(Error::Closed)));
    drop(store);
    let other = Store::open(&dir, StoreOptions::new(DIM, "other"));
    assert!(matches!(other, Err(Error::FingerprintMismatch { .. })));
    let other = Store::open(&dir, StoreOptions::new(DIM * 2, "m"));
    assert!(matches!(other, Err(Error::DimMismatch { .. })));
    let absurd = Store::open(&dir, StoreOptions::new(1, "m"));
    assert!(matches!(absurd, Err(Error::Invalid { .. })));
    open(&dir).unwrap();
}

#[test]
fn a_space_grows_from_scan_to_graph_and_comes_back_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("s");
    let store = open(&dir).unwrap();
    fill(&store, 1000);
    let small = store.search(&space(), &Query::new(&vector(7), 5)).unwrap();
    assert_eq!(small.path, SearchPath::Scan);
    for from in (1000..12_000).step_by(500) {
        store.add(&space(), items(from..from + 500), OnConflict::Error).unwrap();
    }
    settle(&store);
    let live: Vec<u64> = (0..12_000).collect();
    assert_eq!(store.search(&space(), &Query::new(&vector(7), 5)).unwrap().path, SearchPath::Graph);
    let before = recall(&store, &live, 50_000..50_050);
    assert!(before >= 0.97, "recall {before}");
    store.compact().unwrap();
    let gone: Vec<String> = (0..12_000).filter(|n| n % 3 == 0).map(|n| format!("n{n}")).collect();
    store.delete(&space(), &Selection::Ids(gone), false, Some(4000)).unwrap();
    store.close().unwrap();
    drop(store);

    let store = open(&dir).unwrap();
    assert_eq!(store.recovery().graphs_loaded, 1, "{:?}", store.recovery());
    assert_eq!(store.recovery().wal_batches, 0, "a closed store has nothing to replay");
    let live: Vec<u64> = (0..12_000).filter(|n| n % 3 != 0).collect();
    let after = recall(&store, &live, 50_000..50_050);
    assert!(after >= 0.97, "recall after deletes and restart {after}");
    assert!(store.verify().unwrap().problems.is_empty());
    let report = store.compact().unwrap();
    assert!(report.bytes_after < report.bytes_before, "{report:?}");
    assert!(recall(&store, &live, 50_000..50_050) >= 0.97);
}

#[test]
fn no_space_waits_for_the_backlog_of_another() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    for (name, count) in [("long", 100u64), ("short", 2), ("middle", 6)] {
        let mut waiting = items(0..count);
        waiting.iter_mut().for_each(|item| item.vectors = None);
        store.add(&SpaceName::parse(name).unwrap(), waiting, OnConflict::Error).unwrap();
    }
    let of = |pending: &[(SpaceName, Seq)], name: &str| -> Vec<u64> {
        pending.iter().filter(|(space, _)| space.as_str() == name).map(|(_, seq)| seq.0).collect()
    };
    let pending = store.pending(12);
    assert_eq!(pending.len(), 12);
    assert_eq!(of(&pending, "short"), [1, 2]);
    assert_eq!(of(&pending, "middle")[..4], [1, 2, 3, 4]);
    assert_eq!(of(&pending, "long")[..4], [1, 2, 3, 4]);
    assert!(of(&pending[..6], "short").len() == 2, "in turn: {pending:?}");
    assert_eq!(store.pending(1000).len(), 108, "all of them where there is room");
    assert!(store.pending(0).is_empty());
    assert_eq!(store.pending(1).len(), 1);
}

/// What is only in the log has no other copy: verifying must read it.
#[test]
fn verify_reads_the_log_of_an_open_store() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    fill(&store, 100);
    let sound = store.verify().unwrap();
    assert!(sound.problems.is_empty() && sound.log_records > 0, "{sound:?}");
    assert_eq!((sound.files, sound.memories), (1, 100), "nothing is sealed yet: only the manifest");

    let written = |path: &Path| std::fs::read(path).unwrap().windows(7).any(|w| w == b"note 50");
    let mut files = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path());
    let log = files.find(|path| written(path)).expect("the texts are in a log file");
    let bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(7).position(|w| w == b"note 50").unwrap();
    let mut flipped = bytes.clone();
    flipped[at] ^= 1;
    std::fs::write(&log, &flipped).unwrap();
    let problems = store.verify().unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(log.file_name().unwrap().to_str().unwrap()), "{problems:?}");

    // The acknowledged end is gone, and what is left is sound in itself.
    let mut cut = bytes.clone();
    cut[at..].fill(0);
    std::fs::write(&log, &cut).unwrap();
    let problems = store.verify().unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("was acknowledged")), "{problems:?}");
    std::fs::write(&log, &bytes).unwrap();
    assert!(store.verify().unwrap().problems.is_empty());
}

/// Rotates the log many times while upkeep prepares the next file: the two once met at one file name.
#[test]
fn upkeep_never_takes_a_log_file_from_under_the_writer() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions { log_file_bytes: 60_000, ..StoreOptions::new(DIM, "m") };
    let store = Arc::new(Store::open(&root.path().join("s"), options).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let upkeep = {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                store.maintain(Duration::from_micros(10)).unwrap();
            }
        })
    };
    for n in 0..600 {
        store.add(&space(), items(n * 60..n * 60 + 60), OnConflict::Error).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    upkeep.join().unwrap();
}

/// A crash after a graph was saved must not bring its vectors back twice.
#[test]
fn a_crash_after_a_saved_graph_holds_every_vector_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("s");
    let store = open(&dir).unwrap();
    fill(&store, 20_000);
    settle(&store);
    let copy = root.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for e in std::fs::read_dir(&dir).unwrap() {
        let e = e.unwrap();
        std::fs::copy(e.path(), copy.join(e.file_name())).unwrap();
    }
    let again = open(&copy).unwrap();
    assert_eq!(again.recovery().graphs_loaded, 1, "{:?}", again.recovery());
    settle(&again);
    let stats = again.space_stats(&space()).unwrap();
    assert_eq!((stats.vectors, stats.graph_vectors), (20_000, 20_000));
}

#[test]
fn a_refused_graph_is_built_anew_and_said_so() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("s");
    let store = open(&dir).unwrap();
    fill(&store, 6000);
    settle(&store);
    drop(store);
    let graph = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "fbg"))
        .unwrap();
    let mut bytes = std::fs::read(&graph).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&graph, bytes).unwrap();
    let store = open(&dir).unwrap();
    assert_eq!(store.recovery().graphs_refused.len(), 1);
    let live: Vec<u64> = (0..6000).collect();
    assert!(recall(&store, &live, 70_000..70_010) >= 0.999, "scanned until the graph is there");
    settle(&store);
    assert_eq!(store.space_stats(&space()).unwrap().graph_vectors, 6000);
}

/// A graph that was saved in one layout is built anew in the other, and each layout's own is loaded.
#[test]
fn a_store_opens_in_either_layout() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("s");
    let open =
        |layout| Store::open(&dir, StoreOptions { layout, ..StoreOptions::new(DIM, "m") }).unwrap();
    let store = open(Layout::Full);
    fill(&store, 6000);
    settle(&store);
    drop(store);
    let live: Vec<u64> = (0..6000).collect();
    for layout in [Layout::Lean, Layout::Full] {
        let store = open(layout);
        assert_eq!(store.status().layout, layout);
        let refused = store.recovery().graphs_refused.clone();
        assert!(refused.len() == 1 && refused[0].contains("layout"), "{refused:?}");
        assert!(recall(&store, &live, 70_000..70_010) >= 0.99, "{layout}: scanned meanwhile");
        settle(&store);
        assert_eq!(store.space_stats(&space()).unwrap().graph_vectors, 6000);
        assert!(recall(&store, &live, 70_000..70_010) >= 0.9, "{layout}");
        drop(store);
        let again = open(layout);
        assert_eq!((again.recovery().graphs_loaded, again.recovery().graphs_refused.len()), (1, 0));
    }
}

#[test]
fn damage_in_the_middle_of_the_log_fails_the_open_and_a_torn_end_does_not() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("s");
    let store = open(&dir).unwrap();
    for n in 0..50 {
        store.add(&space(), items(n..n + 1), OnConflict::Error).unwrap();
    }
    let copy = |name: &str| {
        let to = root.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for e in std::fs::read_dir(&dir).unwrap() {
            let e = e.unwrap();
            std::fs::copy(e.path(), to.join(e.file_name())).unwrap();
        }
        let log = std::fs::read_dir(&to)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "log"))
            .max()
            .unwrap();
        (to, log)
    };
    let (whole, log) = copy("whole");
    let bytes = std::fs::read(log).unwrap();
    let used = bytes.len() - bytes.iter().rev().take_while(|b| **b == 0).count();
    assert_eq!(open(&whole).unwrap().space_stats(&space()).unwrap().memories, 50);

    let (torn, log) = copy("torn");
    let mut cut = bytes.clone();
    cut[used - 40..].fill(0);
    std::fs::write(log, cut).unwrap();
    let recovered = open(&torn).unwrap();
    let memories = recovered.space_stats(&space()).unwrap().memories;
    assert!((48..50).contains(&memories), "{memories}");
    drop(recovered);
    assert_eq!(open(&torn).unwrap().space_stats(&space()).unwrap().memories, memories);

    let (damaged, log) = copy("damaged");
    let mut hole = bytes.clone();
    hole[4096 + (used - 4096) / 2] ^= 0x10;
    std::fs::write(&log, &hole).unwrap();
    match open(&damaged) {
        Err(Error::Corrupt { file, offset, .. }) => {
            assert_eq!(file, log);
            assert!(offset > 4096);
        }
        other => panic!("expected Corrupt, got {other:?}"),
    }
    assert_eq!(std::fs::read(log).unwrap(), hole, "a refused store is left as it was");

    let (missing, log) = copy("missing");
    std::fs::remove_file(log).unwrap();
    assert!(matches!(open(&missing), Err(Error::Corrupt { .. })));
}

#[test]
fn readers_never_see_a_half_written_or_deleted_memory() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions { seal_bytes: 200_000, ..StoreOptions::new(DIM, "m") };
    let store = Arc::new(Store::open(&root.path().join("s"), options).unwrap());
    fill(&store, 500);
    let stop = Arc::new(AtomicBool::new(false));
    let background = |work: fn(&Store, u64)| {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                work(&store, n);
                n += 1;
            }
        })
    };
    let threads = [
        background(|s, n| {
            s.add(&space(), items(500 + n * 50..550 + n * 50), OnConflict::Error).unwrap();
        }),
        background(|s, n| {
            let ids = (n * 40..n * 40 + 40).map(|i| format!("n{i}")).collect();
            s.delete(&space(), &Selection::Ids(ids), false, None).unwrap();
        }),
        background(|s, n| {
            if n % 5 == 4 {
                s.compact().unwrap();
            } else {
                s.maintain(Duration::from_millis(2)).unwrap();
            }
        }),
        background(|s, n| {
            let found = s.search(&space(), &Query::new(&vector(n), 10)).unwrap();
            let seqs: Vec<Seq> = found.hits.iter().map(|h| h.seq).collect();
            for (m, seq) in s.fetch(&space(), &seqs).unwrap().into_iter().zip(seqs) {
                let Some(m) = m else { continue };
                assert_eq!((m.seq, m.text), (seq, format!("note {}", seq.0 - 1)));
            }
        }),
    ];
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let report = store.verify().unwrap();
        assert!(report.problems.is_empty(), "while written: {:?}", report.problems);
    }
    stop.store(true, Ordering::Relaxed);
    for t in threads {
        t.join().unwrap();
    }
    let report = store.verify().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn thousands_of_small_spaces_are_cheap_and_come_back() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("s");
    let store = Arc::new(open(&dir).unwrap());
    let name = |n: u64| SpaceName::parse(&format!("agent-{n}")).unwrap();
    let threads: Vec<_> = (0..8)
        .map(|t| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                for n in (t..2000).step_by(8) {
                    store.add(&name(n), items(n..n + 1), OnConflict::Error).unwrap();
                }
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
    store.close().unwrap();
    drop(store);
    let started = Instant::now();
    let store = open(&dir).unwrap();
    assert_eq!(store.spaces().len(), 2000);
    for n in (0..2000).step_by(97) {
        let found = store.search(&name(n), &Query::new(&vector(n), 5)).unwrap();
        assert_eq!(found.hits.len(), 1);
        assert!(found.hits[0].score > 0.999);
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    let files = std::fs::read_dir(&dir).unwrap().count();
    assert!(files < 12, "{files} files for 2,000 spaces");
}

#[test]
fn wait_searchable_ends_when_vectors_come() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&root.path().join("s")).unwrap());
    let mut item = items(1..2);
    item[0].vectors = None;
    let added = store.add(&space(), item, OnConflict::Error).unwrap();
    assert!(added.items[0].needs_vectors);
    let soon = Duration::from_millis(30);
    assert!(!store.wait_searchable(&space(), added.seq, soon).unwrap());
    let waiter = {
        let store = Arc::clone(&store);
        let late = Duration::from_secs(30);
        std::thread::spawn(move || store.wait_searchable(&space(), added.seq, late).unwrap())
    };
    assert_eq!(store.vectors_of_text(&space(), "note 1").unwrap(), None);
    assert_eq!(store.vectors_of(&space(), added.seq).unwrap(), None);
    assert_eq!(store.set_vectors(&space(), vec![(added.seq, vec![vector(1)])]).unwrap(), 1);
    assert!(waiter.join().unwrap());
    assert_eq!(store.vectors_of_text(&space(), "note 1").unwrap().unwrap().len(), 1);
    assert_eq!(store.vectors_of_text(&space(), "note 2").unwrap(), None);
    store.add(&space(), items(2..3), OnConflict::Error).unwrap();
    assert_eq!(
        store.vectors_of_text(&space(), "note 2").unwrap(),
        None,
        "a caller's own vector says nothing of what the model would make of the text"
    );
    // Of unit length, as it is kept.
    let is = |seq: Seq, n: u64| {
        let kept = store.vectors_of(&space(), seq).unwrap().unwrap();
        let (given, dot) =
            (vector(n), |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>());
        kept.len() == 1 && (dot(&kept[0], &given) / dot(&given, &given).sqrt() - 1.0).abs() < 1e-5
    };
    let own = Seq(added.seq.0 + 1);
    assert!(is(added.seq, 1) && is(own, 2) && !is(own, 1));
    assert_eq!(store.vectors_of(&space(), Seq(99)).unwrap(), None);
    store.delete(&space(), &Selection::Ids(vec!["n2".into()]), false, None).unwrap();
    assert_eq!(store.vectors_of(&space(), own).unwrap(), None, "deleted");
}
