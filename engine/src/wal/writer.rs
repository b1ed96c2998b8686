//! Writing the log: submitters queue batches; one of them, or the log's thread, writes whatever has gathered, syncs it as the
//! level says, and wakes the others.
//!
//! Invariant: the order in the file is the order of submission; a batch is acknowledged only after the write or sync that its
//! level promises; the first failure poisons the log for good. No timer makes a batch wait. Knows nothing of operations.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::files::{Active, Files, NewFile};
use super::format::{KIND_MARK, PAYLOAD_MAX_BYTES, record_bytes};
use super::records::{self, Records};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::Error;
use crate::pace::Pace;
use crate::sync::{CommitQueue, Group, Refused, Task, Until};
use crate::types::{BUFFERED_SYNC_MS, Durability, Lsn};

/// Bytes written by one call at most, unless one batch is larger.
const GROUP_BYTES: usize = 1 << 20;
/// Bytes that may wait in the queue before submitters are told to come back.
const QUEUE_BYTES: usize = 64 << 20;
/// When those may come back.
const RETRY_AFTER_MS: u64 = 20;
/// How long the log must be idle before it writes a mark.
const IDLE_MARK: Duration = Duration::from_millis(50);
const BUFFERED_SYNC: Duration = Duration::from_millis(BUFFERED_SYNC_MS);

/// Where a log starts.
#[derive(Debug)]
pub(crate) struct WalStart {
    pub(crate) dir: PathBuf,
    /// The epoch its files belong to.
    pub(crate) epoch: u64,
    /// Length a file is preallocated with.
    pub(crate) file_bytes: usize,
    /// Number of the next file to be made.
    pub(crate) next_file: u64,
    /// The last LSN given out before.
    pub(crate) last_lsn: Lsn,
    /// The last LSN before that is no mark.
    pub(crate) last_op: Lsn,
    pub(crate) level: Durability,
}

/// The log; shared by all writers of a store.
pub(crate) struct Wal {
    shared: Arc<Shared>,
    /// The last operation before this log was started.
    op_before: Lsn,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: CommitQueue<Submitted>,
    files: Files,
    /// What is being written; only who has the queue's turn locks it. `None` where nothing is ever written.
    writing: Mutex<Option<Writing>>,
    clock: Arc<dyn Clock>,
    level: Durability,
    /// Who is to be told of a failure.
    tell: Mutex<Option<Tell>>,
}

/// What is called with the cause of a failure.
type Tell = Box<dyn FnOnce(String) + Send>;

/// One batch, its records in order.
#[derive(Debug)]
struct Submitted {
    records: Records,
    /// The file that begins with it.
    fresh: Option<NewFile>,
}

/// A log whose first file has its place on the disk, and no name yet.
pub(crate) struct PreparedWal {
    shared: Arc<Shared>,
    start: WalStart,
}

impl PreparedWal {
    /// Begins the first file and starts the log's thread.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn begin(self) -> Result<Wal, Error> {
        let PreparedWal { shared, start } = self;
        let active = shared.files.first(Lsn(start.last_lsn.0 + 1))?;
        *shared.writing.lock() = Some(Writing { active, unsynced: None });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fb-wal".into())
            .spawn(move || of_thread.run())
            .map_err(Error::io("start the log's thread for", shared.files.dir()))?;
        Ok(Wal { shared, op_before: start.last_op, thread: Mutex::new(Some(thread)) })
    }
}

impl Wal {
    /// Makes the first file of a log.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`] if it cannot be made.
    pub(crate) fn prepare(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        start: WalStart,
    ) -> Result<PreparedWal, Error> {
        let shared = Arc::new(Shared::new(disk, clock, &start));
        shared.files.make_first()?;
        Ok(PreparedWal { shared, start })
    }

    /// A log that takes nothing in and writes nothing, for a store that is only read.
    pub(crate) fn unwritten(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, start: &WalStart) -> Wal {
        let shared = Arc::new(Shared::new(disk, clock, start));
        shared.queue.close();
        Wal { shared, op_before: start.last_op, thread: Mutex::new(None) }
    }

    /// Queues one batch; returns the LSN of its last record. Not yet acknowledged, and perhaps not even begun: see
    /// [`Wal::wait_acknowledged`].
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Busy`], [`Error::DiskFull`], [`Error::Poisoned`], [`Error::Closed`]; nothing is queued then.
    pub(crate) fn submit(&self, records: Records) -> Result<Lsn, Error> {
        if let Some((_, payload)) = records.iter().find(|(_, p)| p.len() > PAYLOAD_MAX_BYTES) {
            return Err(Error::TooLarge {
                what: "one write to the log, in bytes,",
                size: payload.len() as u64,
                limit: PAYLOAD_MAX_BYTES as u64,
            });
        }
        let (count, bytes) = (records.len() as u64, records::bytes_of(&records));
        // Room for a mark behind each batch, so that the log's thread never needs a file for one.
        let with_mark = (bytes + record_bytes(0)) as u64;
        let last = self.shared.files.place(with_mark, |fresh| {
            let batch = Submitted { records, fresh };
            self.shared
                .queue
                .submit(batch, count, bytes)
                .map_err(|(refused, batch)| (refused.into(), batch.fresh))
        })?;
        Ok(Lsn(last))
    }

    /// Returns once everything up to `lsn` is as safe as the level promises.
    ///
    /// # Errors
    /// [`Error::Poisoned`]: the outcome is unknown.
    pub(crate) fn wait_acknowledged(&self, lsn: Lsn) -> Result<(), Error> {
        let until = match self.shared.level {
            Durability::Sync => Until::Durable,
            Durability::Buffered | Durability::Manual => Until::Written,
        };
        while let Some(group) = self.shared.queue.wait(lsn.0, until, GROUP_BYTES)? {
            self.shared.attempt(|writing| self.shared.write_group(writing, group));
        }
        Ok(())
    }

    /// Returns once everything up to `lsn` is on the device, whatever the level. Leaves the work to the log's thread.
    ///
    /// # Errors
    /// [`Error::Poisoned`]: the outcome is unknown.
    pub(crate) fn wait_durable(&self, lsn: Lsn) -> Result<(), Error> {
        Ok(self.shared.queue.wait_idly(lsn.0, Until::Durable)?)
    }

    /// The last LSN given out.
    pub(crate) fn last_lsn(&self) -> Lsn {
        Lsn(self.shared.queue.last())
    }

    /// The last LSN given out that is an operation, not a mark.
    pub(crate) fn last_op(&self) -> Lsn {
        Lsn(self.shared.queue.last_item().unwrap_or(self.op_before.0))
    }

    /// The last LSN known to be on the device.
    pub(crate) fn durable_lsn(&self) -> Lsn {
        Lsn(self.shared.queue.durable())
    }

    /// The first failure, if there was one.
    pub(crate) fn poisoned(&self) -> Option<String> {
        self.shared.queue.poisoned().map(|cause| cause.to_string())
    }

    /// Ends the log: something else that it rests on failed in a way that leaves the outcome unknown.
    pub(crate) fn poison(&self, cause: &str) {
        self.shared.fail(cause);
    }

    /// Calls `tell` when the log fails; at once if it has.
    pub(crate) fn on_failure(&self, tell: Tell) {
        *self.shared.tell.lock() = Some(tell);
        self.shared.tell_if_failed();
    }

    /// Number of the first file that is needed when everything up to `checkpoint` is in segments.
    pub(crate) fn first_needed(&self, checkpoint: Lsn) -> u64 {
        self.shared.files.first_needed(checkpoint)
    }

    /// Tells the log of the file that [`write_tail`](super::write_tail) made before it started.
    pub(crate) fn adopt(&self, number: u64, first_lsn: Lsn) {
        self.shared.files.adopt(number, first_lsn);
    }

    /// Removes the files below `number`. The caller has made a manifest durable that does not need them.
    ///
    /// # Errors
    /// [`Error::Io`]; a file left behind is removed at the next open.
    pub(crate) fn remove_below(&self, number: u64) -> Result<(), Error> {
        self.shared.files.remove_below(number)
    }

    /// Makes the next file ready so that no writer need wait for it; called by upkeep.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`]; the log itself is not harmed by it.
    pub(crate) fn prepare_spare(&self, pace: &Pace<'_>) -> Result<bool, Error> {
        self.shared.files.prepare_spare(pace)
    }

    /// Writes what is queued, a mark, and ends the thread. Later submissions are refused.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if the log had failed.
    pub(crate) fn close(&self) -> Result<(), Error> {
        self.shared.queue.close();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        match self.shared.queue.poisoned() {
            Some(cause) => Err(Refused::Poisoned(cause).into()),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("files", &self.shared.files).finish_non_exhaustive()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        // Errors were reported to whoever waited for them.
        let _ = self.close();
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::Full => Error::Busy { retry_after_ms: RETRY_AFTER_MS },
            Refused::Closed => Error::Closed,
            Refused::Poisoned(cause) => Error::Poisoned { cause: cause.to_string() },
        }
    }
}

/// The file that is being written.
struct Writing {
    active: Active,
    /// When the oldest write that is not synced was made.
    unsynced: Option<Duration>,
}

/// Whoever has the turn and panics would leave all others waiting: the log ends with it.
struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the thread that wrote it panicked");
        }
    }
}

impl Shared {
    fn new(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, start: &WalStart) -> Shared {
        let dir = start.dir.clone();
        Shared {
            queue: CommitQueue::new(start.last_lsn.0, QUEUE_BYTES),
            files: Files::new(disk, dir, start.epoch, start.file_bytes, start.next_file),
            writing: Mutex::new(None),
            clock,
            level: start.level,
            tell: Mutex::new(None),
        }
    }

    /// Does what falls to the log's thread until the queue is closed and drained, or something fails.
    fn run(&self) {
        loop {
            match self.queue.next(GROUP_BYTES, self.patience()) {
                Task::Group(group) => self.attempt(|writing| self.write_group(writing, group)),
                Task::Sync => self.attempt(|writing| self.sync(writing)),
                Task::Mark { number, durable } => {
                    self.attempt(|writing| self.mark(writing, Lsn(number), Lsn(durable)));
                }
                Task::Closed => return,
            }
        }
    }

    /// Does `step`, which is this thread's turn; a failure ends the log.
    fn attempt(&self, step: impl FnOnce(&mut Writing) -> Result<(), Error>) {
        let _turn = Turn(self);
        let mut writing = self.writing.lock();
        let outcome = match &mut *writing {
            Some(writing) => step(writing),
            None => Err(Error::Closed),
        };
        drop(writing);
        if let Err(e) = outcome {
            self.fail(&e.to_string());
        }
    }

    /// How long the log's thread waits for something to do before it syncs or marks by itself. Only who asks for it, and the
    /// end, make a manual log sync.
    fn patience(&self) -> Option<Duration> {
        match self.level {
            Durability::Sync => self.clock.patience(IDLE_MARK),
            Durability::Buffered => self.clock.patience(BUFFERED_SYNC),
            Durability::Manual => None,
        }
    }

    fn fail(&self, cause: &str) {
        tracing::error!(cause, "the log failed; nothing more is acknowledged");
        self.queue.poison(cause);
        self.tell_if_failed();
    }

    fn tell_if_failed(&self) {
        if let Some(cause) = self.queue.poisoned()
            && let Some(tell) = self.tell.lock().take()
        {
            tell(cause.to_string());
        }
    }

    /// Writes one group with one write and one sync, or with one of each for each file that begins in it.
    fn write_group(&self, writing: &mut Writing, group: Group<Submitted>) -> Result<(), Error> {
        let Group { mut items, last, durable } = group;
        let count: usize = items.iter().map(|batch| batch.records.len()).sum();
        let (mut from, mut lsn) = (0, Lsn(last + 1 - count as u64));
        while from < items.len() {
            if let Some(fresh) = items[from].fresh.take() {
                // A file that another follows must be whole: a hole in it is damage.
                self.sync_file(&writing.active)?;
                writing.active = self.files.begin(fresh, lsn)?;
            }
            let rest = items[from + 1..].iter();
            let to = from + 1 + rest.take_while(|batch| batch.fresh.is_none()).count();
            let run = &items[from..to];
            records::write(&mut writing.active, run.iter().map(|b| &b.records), lsn, Lsn(durable))
                .map_err(Error::io("write the log in", self.files.dir()))?;
            lsn = Lsn(lsn.0 + run.iter().map(|b| b.records.len() as u64).sum::<u64>());
            from = to;
        }
        // Where the log's thread is kept busy with groups it does not come to wait, so the first group after that syncs.
        let now = self.clock.now();
        let since = *writing.unsynced.get_or_insert(now);
        let due = self.level == Durability::Buffered && now >= since + BUFFERED_SYNC;
        if due || self.level == Durability::Sync {
            self.sync_file(&writing.active)?;
            writing.unsynced = None;
            self.queue.committed();
        } else {
            self.queue.written();
        }
        Ok(())
    }

    fn sync_file(&self, active: &Active) -> Result<(), Error> {
        active.file.sync_data().map_err(Error::io("sync the log in", self.files.dir()))
    }

    /// Syncs what is written.
    fn sync(&self, writing: &mut Writing) -> Result<(), Error> {
        self.sync_file(&writing.active)?;
        writing.unsynced = None;
        self.queue.synced();
        Ok(())
    }

    /// Writes a mark and syncs it: what is before it is known to be synced.
    fn mark(&self, writing: &mut Writing, number: Lsn, durable: Lsn) -> Result<(), Error> {
        let mark = vec![(KIND_MARK, Vec::new())];
        records::write(&mut writing.active, [&mark], number, durable)
            .map_err(Error::io("write the log in", self.files.dir()))?;
        self.sync_file(&writing.active)?;
        self.queue.committed();
        Ok(())
    }
}
