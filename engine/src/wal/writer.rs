//! Writing the log: submitters queue records, one thread writes and syncs whatever has gathered, and wakes them.
//!
//! Invariant: LSNs are given out under the queue's lock, so the order in the file is the order of submission; a batch
//! is acknowledged only after the sync that covers it; the first failure poisons the log for good.
//! No timer makes a batch wait: batches form during the previous sync. Knows nothing of operations.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::format::{
    FILE_HEADER_BYTES, FLAG_FIRST, FLAG_LAST, FileHeader, KIND_MARK, PAYLOAD_MAX_BYTES,
    RecordHeader, file_name, put_record, record_bytes,
};
use super::reader::Batch;
use crate::disk::{Disk, DiskFile};
use crate::error::Error;
use crate::pace::Pace;
use crate::types::Lsn;

/// Bytes written by one call at most, unless one batch is larger.
const GROUP_BYTES: usize = 1 << 20;
/// Bytes that may wait in the queue before submitters are told to come back.
const QUEUE_BYTES: usize = 64 << 20;
/// How long the log must be idle before it writes a mark.
const IDLE_MARK: Duration = Duration::from_millis(50);
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

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
}

/// The log; shared by all writers of a store.
#[derive(Debug)]
pub(crate) struct Wal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    epoch: u64,
    file_bytes: usize,
    state: Mutex<State>,
    /// Something was queued, or the log closes. Waited on by the log's thread.
    work: Condvar,
    /// `durable` grew, or the log was poisoned. Waited on by submitters.
    progress: Condvar,
    /// A file made ready ahead of need, with its path.
    spare: Mutex<Option<Spare>>,
}

#[derive(Debug)]
struct Spare {
    file: Box<dyn DiskFile>,
    path: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    last_lsn: Lsn,
    /// The last LSN that is no mark.
    last_op: Lsn,
    durable: Lsn,
    poisoned: Option<String>,
    closing: bool,
    /// Log files in use, oldest first: number and first LSN.
    files: Vec<(u64, Lsn)>,
    next_file: u64,
    spare_wanted: bool,
    /// Spare files made so far.
    spares: u64,
    /// Whether the last record queued is a mark, so that an idle log writes no second one.
    marked: bool,
}

/// One batch, its records in order.
#[derive(Debug)]
struct Queued {
    first_lsn: Lsn,
    records: Vec<(u16, Vec<u8>)>,
    bytes: usize,
}

/// The file being written.
#[derive(Debug)]
struct Active {
    file: Box<dyn DiskFile>,
    salt: u32,
    offset: u64,
    capacity: u64,
}

impl Wal {
    /// Starts the log's thread with a new file.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`] if the first file cannot be made.
    pub(crate) fn start(disk: Arc<dyn Disk>, start: WalStart) -> Result<Wal, Error> {
        let state = State {
            last_lsn: start.last_lsn,
            last_op: start.last_op,
            durable: start.last_lsn,
            next_file: start.next_file,
            marked: true,
            ..State::default()
        };
        let shared = Arc::new(Shared {
            disk,
            dir: start.dir,
            epoch: start.epoch,
            file_bytes: start.file_bytes.max(2 * FILE_HEADER_BYTES),
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            spare: Mutex::new(None),
        });
        let active = shared.open_next(Lsn(start.last_lsn.0 + 1), 0)?;
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fb-wal".into())
            .spawn(move || of_thread.run(active))
            .map_err(Error::io("start the log's thread for", &shared.dir))?;
        Ok(Wal { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Queues one batch; returns the LSN of its last record. Not yet durable: see [`Wal::wait_durable`].
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Busy`], [`Error::Poisoned`], [`Error::Closed`]; nothing is queued then.
    pub(crate) fn submit(&self, records: Vec<(u16, Vec<u8>)>) -> Result<Lsn, Error> {
        if let Some((_, payload)) = records.iter().find(|(_, p)| p.len() > PAYLOAD_MAX_BYTES) {
            return Err(Error::TooLarge {
                what: "one write to the log, in bytes,",
                size: payload.len() as u64,
                limit: PAYLOAD_MAX_BYTES as u64,
            });
        }
        let bytes = records.iter().map(|(_, p)| record_bytes(p.len())).sum();
        let mut state = self.shared.state.lock();
        state.check_usable()?;
        if state.closing {
            return Err(Error::Closed);
        }
        if state.queued_bytes > 0 && state.queued_bytes + bytes > QUEUE_BYTES {
            return Err(Error::Busy { retry_after_ms: 20 });
        }
        let first_lsn = Lsn(state.last_lsn.0 + 1);
        state.last_lsn = Lsn(state.last_lsn.0 + records.len() as u64);
        state.queued_bytes += bytes;
        state.marked = false;
        state.last_op = state.last_lsn;
        state.queue.push_back(Queued { first_lsn, records, bytes });
        self.shared.work.notify_one();
        Ok(state.last_lsn)
    }

    /// Returns once everything up to `lsn` is on the device.
    ///
    /// # Errors
    /// [`Error::Poisoned`]: the outcome is unknown.
    pub(crate) fn wait_durable(&self, lsn: Lsn) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        while state.durable < lsn {
            state.check_usable()?;
            self.shared.progress.wait(&mut state);
        }
        Ok(())
    }

    /// The last LSN given out.
    pub(crate) fn last_lsn(&self) -> Lsn {
        self.shared.state.lock().last_lsn
    }

    /// The last LSN given out that is an operation, not a mark.
    pub(crate) fn last_op(&self) -> Lsn {
        self.shared.state.lock().last_op
    }

    /// The last LSN known to be on the device.
    pub(crate) fn durable_lsn(&self) -> Lsn {
        self.shared.state.lock().durable
    }

    /// The first failure, if there was one.
    pub(crate) fn poisoned(&self) -> Option<String> {
        self.shared.state.lock().poisoned.clone()
    }

    /// Number of the first file that is needed when everything up to `checkpoint` is in segments.
    pub(crate) fn first_needed(&self, checkpoint: Lsn) -> u64 {
        let state = self.shared.state.lock();
        let mut needed = state.files.first().map_or(state.next_file, |f| f.0);
        for (number, first_lsn) in &state.files {
            if first_lsn.0 <= checkpoint.0 + 1 {
                needed = *number;
            }
        }
        needed
    }

    /// Tells the log of the file that [`rewrite_tail`] made before it started, so that it is removed in its turn.
    pub(crate) fn adopt(&self, number: u64, first_lsn: Lsn) {
        let mut state = self.shared.state.lock();
        if state.files.first().is_none_or(|f| f.0 > number) {
            state.files.insert(0, (number, first_lsn));
        }
    }

    /// Removes the files below `number`. The caller has made a manifest durable that does not need them.
    ///
    /// # Errors
    /// [`Error::Io`]; a file left behind is removed at the next open.
    pub(crate) fn remove_below(&self, number: u64) -> Result<(), Error> {
        let old: Vec<u64> = {
            let mut state = self.shared.state.lock();
            let old = state.files.iter().map(|f| f.0).filter(|n| *n < number).collect();
            state.files.retain(|f| f.0 >= number);
            old
        };
        for n in old {
            let path = self.shared.dir.join(file_name(n));
            self.shared.disk.remove(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// Makes the next file ready so that the log's thread need not; called by upkeep.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`]; the log itself is not harmed by it.
    pub(crate) fn prepare_spare(&self, pace: &Pace<'_>) -> Result<bool, Error> {
        if !self.shared.state.lock().spare_wanted {
            return Ok(false);
        }
        let mut slot = self.shared.spare.lock();
        if slot.is_none() {
            // A name of its own each: the log's thread may have taken the last spare and not yet renamed it.
            let number = self.shared.state.lock().spare_made();
            let path = self.shared.dir.join(format!("wal-spare-{number}.tmp"));
            let _ = self.shared.disk.remove(&path);
            let file = preallocated(&*self.shared.disk, &path, self.shared.file_bytes, pace)?;
            *slot = Some(Spare { file, path });
        }
        self.shared.state.lock().spare_wanted = false;
        Ok(true)
    }

    /// Writes what is queued, a mark, and ends the thread. Later submissions are refused.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if the log had failed.
    pub(crate) fn close(&self) -> Result<(), Error> {
        self.shared.state.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        self.shared.state.lock().check_usable()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        // Errors were reported to whoever waited for them.
        let _ = self.close();
    }
}

impl State {
    fn check_usable(&self) -> Result<(), Error> {
        match &self.poisoned {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn run(&self, mut active: Active) {
        loop {
            let Some((group, last, durable)) = self.next_group() else { return };
            match self.commit(&mut active, &group, durable) {
                Ok(()) => {
                    self.state.lock().durable = last;
                    self.progress.notify_all();
                }
                Err(e) => {
                    tracing::error!(error = %e, "the log failed; nothing more is acknowledged");
                    self.state.lock().poisoned = Some(e.to_string());
                    self.progress.notify_all();
                    return;
                }
            }
        }
    }

    /// Waits for work, which is a mark when the log falls idle or closes; `None` when closed and drained.
    fn next_group(&self) -> Option<(Vec<Queued>, Lsn, Lsn)> {
        let mut state = self.state.lock();
        while state.queue.is_empty() {
            match (state.closing, state.marked) {
                (true, true) => return None,
                (true, false) => state.queue_mark(),
                (false, true) => self.work.wait(&mut state),
                (false, false) => {
                    let idle = self.work.wait_for(&mut state, IDLE_MARK).timed_out();
                    if idle && state.queue.is_empty() {
                        state.queue_mark();
                    }
                }
            }
        }
        let mut group = Vec::new();
        let mut size = 0;
        let mut last = state.durable;
        while let Some(next) = state.queue.front() {
            if !group.is_empty() && size + next.bytes > GROUP_BYTES {
                break;
            }
            size += next.bytes;
            last = Lsn(next.first_lsn.0 + next.records.len() as u64 - 1);
            group.extend(state.queue.pop_front());
        }
        state.queued_bytes -= size;
        Some((group, last, state.durable))
    }

    /// Writes one group with one write and one sync, in a new file if this one is full.
    fn commit(&self, active: &mut Active, group: &[Queued], durable: Lsn) -> Result<(), Error> {
        let size: usize = group.iter().map(|q| q.bytes).sum();
        if active.offset + size as u64 > active.capacity {
            let first_lsn = group.first().map_or(durable, |q| q.first_lsn);
            *active = self.open_next(first_lsn, size)?;
        }
        let mut out = Vec::with_capacity(size);
        for batch in group {
            put_batch(&mut out, active, batch.first_lsn, &batch.records, durable);
        }
        let write = || {
            active.file.write_all_at(&out, active.offset)?;
            active.file.sync_data()
        };
        write().map_err(Error::io("write the log in", &self.dir))?;
        active.offset += out.len() as u64;
        if active.offset * 2 > active.capacity {
            self.state.lock().spare_wanted = true;
        }
        Ok(())
    }

    /// Makes the next log file, from the spare if one is ready and large enough.
    fn open_next(&self, first_lsn: Lsn, size: usize) -> Result<Active, Error> {
        let number = self.state.lock().next_file;
        let needed = FILE_HEADER_BYTES + size;
        let spare = self.spare.lock().take();
        let (file, tmp, capacity) = match spare {
            Some(spare) if needed <= self.file_bytes => (spare.file, spare.path, self.file_bytes),
            unfit => {
                *self.spare.lock() = unfit;
                let tmp = self.dir.join(format!("{}.tmp", file_name(number)));
                let _ = self.disk.remove(&tmp);
                let capacity = needed.next_multiple_of(4096).max(self.file_bytes);
                (preallocated(&*self.disk, &tmp, capacity, &Pace::unpaced())?, tmp, capacity)
            }
        };
        let salt = new_salt(&*self.disk);
        let header = FileHeader { salt, number, epoch: self.epoch, first_lsn };
        publish(&*self.disk, &*file, &tmp, &self.dir, &header)?;
        let mut state = self.state.lock();
        state.files.push((number, first_lsn));
        state.next_file = number + 1;
        let offset = FILE_HEADER_BYTES as u64;
        Ok(Active { file, salt, offset, capacity: capacity as u64 })
    }
}

impl State {
    /// The number of the next spare file.
    fn spare_made(&mut self) -> u64 {
        self.spares += 1;
        self.spares
    }

    fn queue_mark(&mut self) {
        self.last_lsn = Lsn(self.last_lsn.0 + 1);
        self.marked = true;
        let bytes = record_bytes(0);
        self.queued_bytes += bytes;
        let records = vec![(KIND_MARK, Vec::new())];
        self.queue.push_back(Queued { first_lsn: self.last_lsn, records, bytes });
    }
}

/// Appends the records of one batch as they will stand behind `out` in the file.
fn put_batch(
    out: &mut Vec<u8>,
    active: &Active,
    first_lsn: Lsn,
    records: &[(u16, Vec<u8>)],
    durable_lsn: Lsn,
) {
    for (i, (kind, payload)) in records.iter().enumerate() {
        let mut flags = 0;
        if i == 0 {
            flags |= FLAG_FIRST;
        }
        if i + 1 == records.len() {
            flags |= FLAG_LAST;
        }
        let lsn = Lsn(first_lsn.0 + i as u64);
        let header = RecordHeader { lsn, kind: *kind, flags, durable_lsn };
        let offset = active.offset + out.len() as u64;
        put_record(out, active.salt, offset, header, payload);
    }
}

/// A new file of `len` written and synced zeros, so that later writes need no allocation.
fn preallocated(
    disk: &dyn Disk,
    path: &Path,
    len: usize,
    pace: &Pace<'_>,
) -> Result<Box<dyn DiskFile>, Error> {
    let file = disk.create(path).map_err(Error::io("create", path))?;
    let mut at = 0;
    while at < len {
        let part = ZEROS.len().min(len - at);
        file.write_all_at(&ZEROS[..part], at as u64).map_err(Error::io("preallocate", path))?;
        at += part;
        pace.worked(part);
    }
    file.sync().map_err(Error::io("sync", path))?;
    Ok(file)
}

/// Gives a preallocated file its header and its name, durably.
fn publish(
    disk: &dyn Disk,
    file: &dyn DiskFile,
    tmp: &Path,
    dir: &Path,
    header: &FileHeader,
) -> Result<(), Error> {
    let path = dir.join(file_name(header.number));
    file.write_all_at(&header.encode(), 0).map_err(Error::io("write", &path))?;
    file.sync().map_err(Error::io("sync", &path))?;
    disk.rename(tmp, &path).map_err(Error::io("rename", &path))?;
    disk.sync_dir(dir).map_err(Error::io("sync", dir))
}

fn new_salt(disk: &dyn Disk) -> u32 {
    let [a, b, c, d, ..] = disk.random();
    u32::from_le_bytes([a, b, c, d])
}

/// Writes the batches that survived a stop into a new log file, so that nothing torn is ever appended to.
/// The LSNs of the batches are kept; the log goes on behind the last.
///
/// # Errors
/// [`Error::DiskFull`] or [`Error::Io`]; the old files are untouched.
pub(crate) fn rewrite_tail(
    disk: &dyn Disk,
    dir: &Path,
    (epoch, number): (u64, u64),
    batches: &[Batch],
) -> Result<(), Error> {
    let Some((first, last)) = batches.first().zip(batches.last()) else { return Ok(()) };
    let first_lsn = Lsn(first.last_lsn.0 + 1 - first.records.len() as u64);
    let size: usize =
        batches.iter().flat_map(|b| &b.records).map(|(_, p)| record_bytes(p.len())).sum();
    // Marks between the batches are gone; one in the place of each gap keeps the LSNs dense.
    let gaps = (last.last_lsn.0 + 1 - first_lsn.0) as usize
        - batches.iter().map(|b| b.records.len()).sum::<usize>();
    let capacity = (FILE_HEADER_BYTES + size + gaps * record_bytes(0)).next_multiple_of(4096);
    let tmp = dir.join(format!("{}.tmp", file_name(number)));
    let _ = disk.remove(&tmp);
    let file = preallocated(disk, &tmp, capacity, &Pace::unpaced())?;
    let salt = new_salt(disk);
    let offset = FILE_HEADER_BYTES as u64;
    let mut active = Active { file, salt, offset, capacity: capacity as u64 };
    let mut next = first_lsn;
    for batch in batches {
        let start = Lsn(batch.last_lsn.0 + 1 - batch.records.len() as u64);
        let mut out = Vec::new();
        while next < start {
            put_batch(&mut out, &active, next, &[(KIND_MARK, Vec::new())], last.last_lsn);
            next = Lsn(next.0 + 1);
        }
        put_batch(&mut out, &active, start, &batch.records, last.last_lsn);
        next = Lsn(batch.last_lsn.0 + 1);
        active.file.write_all_at(&out, active.offset).map_err(Error::io("write", &tmp))?;
        active.offset += out.len() as u64;
    }
    let header = FileHeader { salt, number, epoch, first_lsn };
    publish(disk, &*active.file, &tmp, dir, &header)
}
