//! The coordinator against a real store; the test plays the workers.

#![allow(clippy::unwrap_used)]

use super::coordinator::{Coordinator, Posts, Shared};
use super::workers::{Board, Desk, Done, JOBS, Job, post};
use super::{Bulk, Inbox};
use flashbulb_engine::sync::Call;
use flashbulb_engine::{NewMemory, OnConflict, Seq, SpaceName, Store, StoreOptions};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DIM: usize = 8;

/// The test's places at the ends of the rings.
struct Desks {
    idle: Desk,
    express: Desk,
}

struct Lane {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    desks: Desks,
    bulk: Bulk,
}

/// A coordinator over `store`, with one worker of each kind that the test plays.
fn coordinator(
    store: &Arc<Store>,
    inbox: &Arc<Inbox>,
    board: &Arc<Board>,
) -> (Arc<Call>, Desks, JoinHandle<()>) {
    let shared = Shared {
        store: Arc::clone(store),
        inbox: Arc::clone(inbox),
        board: Arc::clone(board),
        counters: Arc::default(),
        lifecycle: Arc::default(),
    };
    let (told, heard) = sync_channel(1);
    let worker = Arc::new(Call::here());
    let thread = std::thread::spawn(move || {
        let call = Arc::new(Call::here());
        let (idle, idle_desk) = post(JOBS, Arc::clone(&worker), Arc::clone(&call));
        let (express, express_desk) = post(4, worker, Arc::clone(&call));
        told.send((Arc::clone(&call), Desks { idle: idle_desk, express: express_desk })).unwrap();
        let mut posts = Posts { idle: vec![idle], express };
        Coordinator::new(shared, &mut posts).run(&call, &|| {});
    });
    let (call, desks) = heard.recv().unwrap();
    (call, desks, thread)
}

/// The next text at a desk.
fn take(desk: &mut Desk) -> Job {
    let end = Instant::now() + SOON;
    loop {
        if let Some(job) = desk.jobs.pop() {
            return job;
        }
        assert!(Instant::now() < end, "nothing was handed out");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Lane {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(DIM, "test");
        let store = Arc::new(Store::open(&dir.path().join("store"), options).unwrap());
        let inbox = Arc::new(Inbox::default());
        let board = Arc::new(Board::default());
        let (call, desks, thread) = coordinator(&store, &inbox, &board);
        let bulk = Bulk {
            inbox,
            board,
            coordinator: call,
            workers: Vec::new(),
            priority: Vec::new(),
            threads: parking_lot::Mutex::new(vec![thread]),
        };
        Self { _dir: dir, store, desks, bulk }
    }

    fn add(&self, name: &str, texts: &[&str], express: bool) -> Vec<Seq> {
        let space = space(name);
        let items = texts
            .iter()
            .map(|text| NewMemory {
                id: uuid::Uuid::now_v7().to_string(),
                text: (*text).to_owned(),
                ..NewMemory::default()
            })
            .collect();
        let added = self.store.add(&space, items, OnConflict::Error).unwrap();
        let seqs: Vec<Seq> = added.items.iter().map(|item| item.seq).collect();
        self.bulk.added(&space, &seqs, express);
        seqs
    }

    /// The next text handed to the worker at idle priority.
    fn take(&mut self) -> Job {
        take(&mut self.desks.idle)
    }

    /// Gives a text back as that worker would.
    fn give(&mut self, job: Job, outcome: Result<Vec<Vec<f32>>, String>) {
        self.bulk.board.idle_windows.fetch_add(1, Ordering::Relaxed);
        self.desks.idle.give_back(Done { job, outcome }, false);
    }

    fn nothing_waits(&self) {
        std::thread::sleep(Duration::from_millis(50));
        assert!(self.desks.idle.jobs.is_empty());
    }

    fn is_searchable(&self, name: &str, seq: Seq, within: Duration) -> bool {
        self.store.wait_searchable(&space(name), seq, within).unwrap()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.bulk.stop();
        self.store.close().unwrap();
    }
}

fn space(name: &str) -> SpaceName {
    SpaceName::parse(name).unwrap()
}

fn vector() -> Vec<Vec<f32>> {
    vec![vec![1.0; DIM]]
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_text_is_embedded_once_in_a_space_and_again_in_another() {
    let mut lane = Lane::start();
    let first = lane.add("a", &["same", "same"], false);
    let job = lane.take();
    assert_eq!(&*job.text, "same");
    lane.nothing_waits();
    lane.give(job, Ok(vector()));
    assert!(lane.is_searchable("a", first[1], SOON));
    let later = lane.add("a", &["same"], false);
    assert!(lane.is_searchable("a", later[0], SOON), "its vectors are at hand");
    lane.add("b", &["same"], false);
    let other = lane.take();
    assert_eq!(other.space, space("b"));
    lane.give(other, Ok(vector()));
    assert!(lane.is_searchable("b", Seq(1), SOON));
    // A memory can be found a moment before it stops being counted.
    let end = Instant::now() + SOON;
    while lane.bulk.pending() > 0 {
        assert!(Instant::now() < end, "{} still counted", lane.bulk.pending());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_text_that_fails_is_tried_again_and_stops_no_other() {
    let mut lane = Lane::start();
    let seqs = lane.add("a", &["bad", "good"], false);
    for _ in 0..2 {
        let job = lane.take();
        let outcome = match &*job.text {
            "bad" => Err("no".to_owned()),
            _ => Ok(vector()),
        };
        lane.give(job, outcome);
    }
    assert!(!lane.is_searchable("a", seqs[1], Duration::from_millis(100)));
    let stats = lane.store.space_stats(&space("a")).unwrap();
    assert_eq!((stats.searchable, stats.pending), (1, 1));
    assert_eq!(lane.bulk.status().last_failure.as_deref(), Some("no"));
    assert_eq!(lane.bulk.failed(&space("a")), 0, "not given up yet");
    let again = lane.take();
    assert_eq!(&*again.text, "bad");
    lane.give(again, Ok(vector()));
    assert!(lane.is_searchable("a", seqs[1], SOON));
}

#[test]
fn vectors_that_the_store_refuses_do_not_take_their_group_with_them() {
    let mut lane = Lane::start();
    let seqs = lane.add("a", &["wide", "fits"], false);
    let (first, second) = (lane.take(), lane.take());
    for job in [first, second] {
        let outcome = match &*job.text {
            "wide" => vec![vec![1.0; DIM + 1]],
            _ => vector(),
        };
        lane.give(job, Ok(outcome));
    }
    let end = Instant::now() + SOON;
    while lane.store.space_stats(&space("a")).unwrap().searchable == 0 {
        assert!(Instant::now() < end, "the memory that fits became searchable");
        std::thread::sleep(Duration::from_millis(5));
    }
    let found = lane.store.fetch(&space("a"), &seqs).unwrap();
    let searchable: Vec<bool> = found.iter().flatten().map(|m| m.searchable).collect();
    assert_eq!(searchable, [false, true]);
}

#[test]
fn what_is_urgent_overtakes_and_what_is_deleted_is_let_go() {
    let mut lane = Lane::start();
    let texts: Vec<String> = (0..2 * JOBS).map(|n| format!("bulk {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    lane.add("a", &texts, false);
    let under_way = lane.take();
    let urgent = lane.add("b", &["urgent"], true);
    let job = take(&mut lane.desks.express);
    assert_eq!(&*job.text, "urgent");
    lane.desks.express.give_back(Done { job, outcome: Ok(vector()) }, true);
    assert!(lane.is_searchable("b", urgent[0], SOON));
    lane.store.drop_space(&space("a")).unwrap();
    lane.give(under_way, Ok(vector()));
    let end = Instant::now() + SOON;
    while lane.bulk.inbox.pending.load(Ordering::Relaxed) > 0 {
        assert!(Instant::now() < end, "{} are still counted", lane.bulk.pending());
        if let Some(job) = lane.desks.idle.jobs.pop() {
            lane.give(job, Ok(vector()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The worker at idle priority takes texts and never comes to embed one: the express worker gets them, oldest first and
/// one at a time; what the first worker brings in the end is not stored twice.
#[test]
fn what_idle_workers_do_not_get_to_is_aged() {
    let mut lane = Lane::start();
    let seqs = lane.add("a", &["first", "second", "third"], false);
    let stuck: Vec<Job> = (0..3).map(|_| lane.take()).collect();
    for (at, text) in ["first", "second"].into_iter().enumerate() {
        let job = take(&mut lane.desks.express);
        assert_eq!(&*job.text, text);
        std::thread::sleep(Duration::from_millis(300));
        assert!(lane.desks.express.jobs.is_empty(), "one at a time");
        lane.desks.express.give_back(Done { job, outcome: Ok(vector()) }, true);
        assert!(lane.is_searchable("a", seqs[at], SOON));
    }
    assert!(lane.bulk.status().aged >= 2);
    for job in stuck {
        lane.give(job, Ok(vector()));
    }
    assert!(lane.is_searchable("a", seqs[2], SOON));
    let stats = lane.store.space_stats(&space("a")).unwrap();
    assert_eq!((stats.searchable, stats.vectors), (3, 3));
}

#[test]
fn what_a_former_run_left_is_found_in_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let store = Store::open(&path, StoreOptions::new(DIM, "test")).unwrap();
        let left =
            NewMemory { id: "left".into(), text: "left over".into(), ..NewMemory::default() };
        store.add(&space("a"), vec![left], OnConflict::Error).unwrap();
        store.close().unwrap();
    }
    let store = Arc::new(Store::open(&path, StoreOptions::new(DIM, "test")).unwrap());
    let inbox = Arc::new(Inbox::default());
    inbox.more.store(true, Ordering::Release);
    let board = Arc::new(Board::default());
    let (call, mut desks, thread) = coordinator(&store, &inbox, &board);
    assert_eq!(&*take(&mut desks.idle).text, "left over");
    board.close();
    call.call();
    thread.join().unwrap();
    store.close().unwrap();
}
