//! Every sound batch of every log file, whatever lies between.
//!
//! Invariant: what a recovery cut off as never acknowledged does not come back, where a newer file says so; what lies up to
//! the checkpoint is taken only where the segments lost it, since whatever else is missing from them was deleted.

use std::collections::BTreeSet;
use std::path::Path;

use super::gather::{Gathered, Place};
use super::{Loss, SalvageReport};
use crate::disk::Disk;
use crate::error::Error;
use crate::op::{Op, places_of_added, places_of_rows};
use crate::record::RecordRef;
use crate::store::recover::Listing;
use crate::types::{DIM_RANGE, Lsn, SpaceName};
use crate::wal::{self, LogRemains, SoundBatch};

/// A log file and what is left of it.
struct File {
    name: String,
    source: u32,
    bytes: std::sync::Arc<dyn crate::disk::Bytes>,
    remains: LogRemains,
    epoch: u64,
    /// Its batches from here on were cut off by a later recovery.
    cut: Option<Lsn>,
}

impl Gathered {
    /// Reads all log files; `dim` is used if no other file said how many components a vector has.
    pub(super) fn read_log(
        &mut self,
        disk: &dyn Disk,
        from: &Path,
        files: &Listing,
        dim: usize,
        report: &mut SalvageReport,
    ) -> Result<(), Error> {
        let first = self.manifest.as_ref().and_then(|m| m.first_wal);
        if let Some(first) = first.filter(|first| !files.wals.contains(first)) {
            let what = "the manifest names it, and it is missing";
            report.losses.push(Loss::of(wal::file_name(first), None, what));
        }
        let mut logs = Vec::new();
        for number in &files.wals {
            let name = wal::file_name(*number);
            let path = from.join(&name);
            let bytes = match disk.map(&path) {
                Ok(bytes) => bytes,
                Err(e) => {
                    report.losses.push(Loss::of(name, None, format!("cannot be read: {e}")));
                    continue;
                }
            };
            let remains = LogRemains::of(bytes.bytes());
            if let Some(found) = remains.too_new {
                return Err(Error::VersionTooNew { file: path, found, known: wal::VERSION });
            }
            if remains.header.is_none() {
                let what = "the header is damaged; its records were read without it";
                report.losses.push(Loss::of(&name, Some(0), what));
            }
            let whole = remains.header.map_or(0, |header| header.len);
            if (bytes.bytes().len() as u64) < whole {
                let what = format!("cut short: it was begun with {whole} bytes");
                report.losses.push(Loss::of(&name, Some(bytes.bytes().len() as u64), what));
            }
            let source = self.keep(bytes.clone());
            logs.push(File { name, source, bytes, remains, epoch: 0, cut: None });
        }
        set_epochs(&mut logs);
        if self.dim == 0 {
            self.dim = infer_dim(&logs).unwrap_or(dim);
        }
        self.note_holes(&logs, report);
        for log in &logs {
            self.apply_file(log, report);
        }
        Ok(())
    }

    fn apply_file(&mut self, log: &File, report: &mut SalvageReport) {
        let checkpoint = self.manifest.as_ref().map_or(Lsn(0), |m| Lsn(m.checkpoint_lsn));
        for batch in log.sound_batches() {
            for (kind, range) in &batch.operations {
                let payload = log.bytes.bytes().get(range.clone()).unwrap_or_default();
                let Some(op) = Op::decode(*kind, payload, self.dim) else {
                    let what = format!(
                        "log record {} is sound but not an operation of this store (kind {kind})",
                        batch.last_lsn.0
                    );
                    report.losses.push(Loss::of(&log.name, Some(range.start as u64), what));
                    continue;
                };
                let at = (log.source, range.start as u64);
                self.apply(op, at, batch.last_lsn <= checkpoint);
            }
        }
    }

    /// Adds what an operation says; `sealed` if segments held it once.
    fn apply(&mut self, op: Op, (source, start): (u32, u64), sealed: bool) {
        let place = |at: usize, len: usize| Place {
            source,
            len: u32::try_from(len).unwrap_or(0),
            offset: start + at as u64,
        };
        match op {
            Op::Create { space, name } => {
                // Up to the checkpoint the manifest names every space that was not dropped.
                if let Ok(name) = SpaceName::parse(&name)
                    && !sealed
                {
                    self.names.entry(space).or_insert(name);
                }
            }
            Op::Drop { space } => {
                self.dropped.insert(space);
            }
            Op::Write { space, removed, added, .. } => {
                self.dead.extend(removed.iter().map(|seq| (space, *seq)));
                for (new, (at, rows_at)) in added.iter().zip(places_of_added(removed.len(), &added))
                {
                    let Some(record) = RecordRef::decode(&new.bytes) else { continue };
                    let version = (space, record.seq);
                    if sealed && !self.directory_lost && !self.lost.contains_key(&version) {
                        continue;
                    }
                    self.records.entry(version).or_insert(place(at, new.bytes.len()));
                    if !new.rows.is_empty() {
                        let rows = place(rows_at, new.rows.len() * 4);
                        self.rows.entry(version).or_insert(rows);
                    }
                }
            }
            Op::Vectors { space, entries } => {
                let places = places_of_rows(&entries);
                for ((seq, rows), at) in entries.iter().zip(places) {
                    self.rows.entry((space, *seq)).or_insert(place(at, rows.len() * 4));
                }
            }
        }
    }

    /// Reports what is missing between the segments and the end of the log, and counts the batches there.
    fn note_holes(&self, logs: &[File], report: &mut SalvageReport) {
        let mut found: Vec<(Lsn, Lsn, &str, u64)> = Vec::new();
        let mut batches = BTreeSet::new();
        for log in logs {
            let mut end = 0;
            for batch in log.sound_batches() {
                found.push((batch.first_lsn, batch.last_lsn, &log.name, end));
                end = batch.place.end;
                if !batch.operations.is_empty() && batch.last_lsn > self.sealed_lsn {
                    batches.insert(batch.last_lsn);
                }
            }
            if let (Some((at, bytes)), None) = (log.remains.rest, log.cut) {
                let what = format!(
                    "{bytes} bytes are not a whole batch of log records: a write that was cut off and never acknowledged, or \
                     damage; what it added is lost, what it deleted or replaced is back"
                );
                report.losses.push(Loss::of(&log.name, Some(at), what));
            }
        }
        report.log_batches = batches.len() as u64;
        found.sort_unstable();
        let mut next = self.sealed_lsn.0 + 1;
        let lines = |missing: std::ops::RangeInclusive<u64>| {
            let (a, b) = (missing.start(), missing.end());
            format!(
                "log records {a} to {b} are missing or damaged: what they added is lost, what they deleted or replaced is back"
            )
        };
        for (first, last, name, end) in found {
            if first.0 > next {
                report.losses.push(Loss::of(name, Some(end), lines(next..=first.0 - 1)));
            }
            next = next.max(last.0 + 1);
        }
        let durable = logs.iter().map(|log| log.remains.durable_lsn.0).max().unwrap_or(0);
        if let Some(log) = logs.last().filter(|_| durable >= next) {
            report.losses.push(Loss::of(&log.name, None, lines(next..=durable)));
        }
    }
}

impl File {
    /// Whole batches that no later recovery cut off.
    fn sound_batches(&self) -> impl Iterator<Item = &SoundBatch> {
        let cut = self.cut;
        self.remains.batches.iter().filter(move |b| cut.is_none_or(|cut| b.first_lsn < cut))
    }
}

/// Finds out which opening of the store wrote each file, and what later ones cut off.
fn set_epochs(logs: &mut [File]) {
    let epoch = |log: &File| log.remains.header.map(|header| header.epoch);
    let mut last = logs.iter().find_map(epoch).unwrap_or(0);
    for log in logs.iter_mut() {
        last = epoch(log).unwrap_or(last);
        log.epoch = last;
    }
    for at in 0..logs.len() {
        let later = logs.iter().filter(|log| log.epoch > logs[at].epoch);
        logs[at].cut = later.filter_map(|log| log.remains.supersedes_from()).min();
    }
}

/// How many components the vectors of the log have: the number with which the payloads make sense.
fn infer_dim(logs: &[File]) -> Option<usize> {
    let mut left: Vec<usize> = DIM_RANGE.collect();
    for log in logs {
        for (kind, range) in log.sound_batches().flat_map(|batch| &batch.operations) {
            let payload = log.bytes.bytes().get(range.clone()).unwrap_or_default();
            let fits = |dim: &usize| match Op::decode(*kind, payload, *dim) {
                Some(Op::Write { added, .. }) => {
                    added.iter().all(|new| RecordRef::decode(&new.bytes).is_some())
                }
                Some(_) => true,
                None => false,
            };
            let fitting: Vec<usize> = left.iter().copied().filter(fits).collect();
            match fitting.len() {
                0 => {}
                1 => return fitting.first().copied(),
                _ => left = fitting,
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wal::FileHeader;

    /// A log file of one batch for each LSN.
    fn file(header: Option<(u64, u64)>, lsns: &[u64], copied_up_to: Option<u64>) -> File {
        let header = header.map(|(epoch, first)| FileHeader {
            salt: 1,
            number: 1,
            epoch,
            first_lsn: Lsn(first),
            len: 0,
        });
        let batch = |lsn: &u64| SoundBatch {
            first_lsn: Lsn(*lsn),
            last_lsn: Lsn(*lsn),
            place: 0..0,
            operations: Vec::new(),
        };
        let remains = LogRemains {
            header,
            batches: lsns.iter().map(batch).collect(),
            durable_lsn: Lsn(copied_up_to.unwrap_or(0)),
            is_copy: copied_up_to.is_some(),
            ..LogRemains::default()
        };
        let bytes = std::sync::Arc::new(Nothing);
        File { name: String::new(), source: 0, bytes, remains, epoch: 0, cut: None }
    }

    #[derive(Debug)]
    struct Nothing;

    impl crate::disk::Bytes for Nothing {
        fn bytes(&self) -> &[u8] {
            &[]
        }
    }

    fn kept(mut logs: Vec<File>) -> Vec<Vec<u64>> {
        set_epochs(&mut logs);
        logs.iter().map(|log| log.sound_batches().map(|b| b.last_lsn.0).collect()).collect()
    }

    #[test]
    fn what_a_recovery_cut_off_stays_away() {
        let old = || file(Some((1, 1)), &[1, 2, 3, 5, 6], None);
        // Record 4 was torn: the recovery went on with another one of that number.
        let new = file(Some((2, 4)), &[4, 5], None);
        assert_eq!(kept(vec![old(), new]), [vec![1, 2, 3], vec![4, 5]]);
        let copy = file(Some((2, 2)), &[2, 3], Some(3));
        assert_eq!(kept(vec![old(), copy]), [vec![1, 2, 3], vec![2, 3]]);
        let without_header = file(None, &[4], None);
        assert_eq!(kept(vec![old(), without_header]), [vec![1, 2, 3, 5, 6], vec![4]]);
        // A recovery that wrote nothing yet has decided nothing.
        let empty = file(Some((2, 4)), &[], None);
        assert_eq!(kept(vec![old(), empty]), [vec![1, 2, 3, 5, 6], vec![]]);
        let same = file(Some((1, 7)), &[7], None);
        assert_eq!(kept(vec![old(), same]), [vec![1, 2, 3, 5, 6], vec![7]]);
    }
}
