//! Reading the log after a stop: whole batches in order, a torn tail told from damage.
//!
//! Invariant: what is returned is a gapless prefix of what was submitted, in whole batches; a hole behind which
//! something was known to be synced is [`Error::Corrupt`], never skipped. Writes nothing.

use std::path::{Path, PathBuf};

use super::format::{
    FILE_HEADER_BYTES, FLAG_FIRST, FLAG_LAST, FileHeader, HeaderError, KIND_MARK, VERSION,
    file_name, parse_record, record_bytes,
};
use crate::codec::NUMBER_LIMIT;
use crate::disk::Disk;
use crate::error::Error;
use crate::types::Lsn;

/// The records of one batch: kind and payload.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Batch {
    pub(crate) last_lsn: Lsn,
    pub(crate) records: Vec<(u16, Vec<u8>)>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Whole batches behind the checkpoint.
    pub(crate) batches: Vec<Batch>,
    /// The last LSN of the last whole batch, or the checkpoint.
    pub(crate) last_lsn: Lsn,
    /// Bytes cut off at the torn end.
    pub(crate) torn_bytes: u64,
    /// Records read, marks included.
    pub(crate) records: u64,
}

/// The log files of `dir`, ascending, that are from `first` on and of `epoch` or of an earlier one.
///
/// # Errors
/// [`Error::Corrupt`] for a header that is damaged; [`Error::VersionTooNew`]; [`Error::Io`].
pub(crate) fn files_of(
    disk: &dyn Disk,
    dir: &Path,
    numbers: &[u64],
    first: u64,
    epoch: u64,
) -> Result<Vec<u64>, Error> {
    let mut out = Vec::new();
    for &number in numbers.iter().filter(|n| **n >= first) {
        let path = dir.join(file_name(number));
        let bytes = disk.read_start(&path, FILE_HEADER_BYTES).map_err(Error::io("read", &path))?;
        if read_header(&path, &bytes, number)?.epoch <= epoch {
            out.push(number);
        }
    }
    Ok(out)
}

/// Reads the log files `numbers` (ascending) of `dir`, returning the batches behind `checkpoint`.
///
/// # Errors
/// [`Error::Corrupt`] where acknowledged records are missing or damaged; [`Error::VersionTooNew`]; [`Error::Io`].
pub(crate) fn scan(
    disk: &dyn Disk,
    dir: &Path,
    numbers: &[u64],
    checkpoint: Lsn,
) -> Result<Scan, Error> {
    let mut scan = Scan { last_lsn: checkpoint, ..Scan::default() };
    let mut open_batch: Vec<(u16, Vec<u8>)> = Vec::new();
    let mut expected: Option<Lsn> = None;
    for (at, &number) in numbers.iter().enumerate() {
        let path = dir.join(file_name(number));
        let bytes = disk.read(&path).map_err(Error::io("read", &path))?;
        let header = read_header(&path, &bytes, number)?;
        if (bytes.len() as u64) < header.len {
            let what = format!("the file was begun with {} bytes and has fewer", header.len);
            return Err(Error::corrupt(&path, bytes.len() as u64, what));
        }
        check_first(&path, header.first_lsn, expected, checkpoint)?;
        let last_file = at + 1 == numbers.len();
        let file = OneFile { path: &path, bytes: &bytes, header, last_file };
        expected = Some(file.read_into(&mut scan, &mut open_batch, checkpoint)?);
    }
    // The file that is begun behind it would be refused when it is read.
    if scan.last_lsn.0 + 1 >= NUMBER_LIMIT {
        let what = format!("manifest and log reach LSN {}: no log comes that far", scan.last_lsn.0);
        return Err(Error::corrupt(dir, 0, what));
    }
    Ok(scan)
}

fn read_header(path: &Path, bytes: &[u8], number: u64) -> Result<FileHeader, Error> {
    let header = FileHeader::parse(bytes).map_err(|e| match e {
        HeaderError::TooNew(found) => {
            Error::VersionTooNew { file: path.into(), found, known: VERSION }
        }
        HeaderError::Damaged(what) => Error::corrupt(path, 0, what),
    })?;
    if header.number != number {
        let what = format!("the header says file number {}, the name {number}", header.number);
        return Err(Error::corrupt(path, 0, what));
    }
    if !(1..NUMBER_LIMIT).contains(&header.first_lsn.0) {
        let what = format!("the header says first LSN {}: LSNs count from 1", header.first_lsn.0);
        return Err(Error::corrupt(path, 0, what));
    }
    Ok(header)
}

fn check_first(
    path: &PathBuf,
    first: Lsn,
    expected: Option<Lsn>,
    checkpoint: Lsn,
) -> Result<(), Error> {
    let gap = match expected {
        Some(expected) => first != expected,
        None => first.0 > checkpoint.0 + 1,
    };
    if gap {
        let want = expected.unwrap_or(Lsn(checkpoint.0 + 1)).0;
        let what =
            format!("the log goes on at LSN {} where {want} is needed: a file is missing", first.0);
        return Err(Error::corrupt(path, 0, what));
    }
    Ok(())
}

struct OneFile<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    header: FileHeader,
    last_file: bool,
}

impl OneFile<'_> {
    /// Reads to the end or the first bad record; returns the LSN that would come next.
    fn read_into(
        &self,
        scan: &mut Scan,
        open_batch: &mut Vec<(u16, Vec<u8>)>,
        checkpoint: Lsn,
    ) -> Result<Lsn, Error> {
        let mut offset = FILE_HEADER_BYTES;
        let mut next = self.header.first_lsn;
        let mut batch_start = offset;
        while let Some((header, payload)) = parse_record(self.bytes, offset, self.header.salt) {
            if header.lsn != next {
                let what = format!("record {} stands where {} belongs", header.lsn.0, next.0);
                return Err(Error::corrupt(self.path, offset as u64, what));
            }
            if header.flags & FLAG_FIRST != 0 {
                open_batch.clear();
                batch_start = offset;
            }
            if header.kind != KIND_MARK {
                open_batch.push((header.kind, payload.to_vec()));
            }
            scan.records += 1;
            offset += record_bytes(payload.len());
            next = Lsn(next.0 + 1);
            if header.flags & FLAG_LAST != 0 {
                let records = std::mem::take(open_batch);
                batch_start = offset;
                if header.lsn > checkpoint {
                    scan.last_lsn = header.lsn;
                    if !records.is_empty() {
                        scan.batches.push(Batch { last_lsn: header.lsn, records });
                    }
                }
            }
        }
        self.check_end(scan, offset, batch_start, next)?;
        Ok(next)
    }

    /// Decides whether the log may end at `offset`, where no valid record `missing` stands.
    fn check_end(
        &self,
        scan: &mut Scan,
        offset: usize,
        batch_start: usize,
        missing: Lsn,
    ) -> Result<(), Error> {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        let clean = rest.iter().all(|b| *b == 0);
        if !self.last_file {
            // The next file's first LSN is checked against `missing` by the caller; here the rest must be unused.
            return if clean {
                Ok(())
            } else {
                Err(self.damage(offset, missing, "a later file follows"))
            };
        }
        let known_synced = (offset..self.bytes.len())
            .step_by(8)
            .filter_map(|at| parse_record(self.bytes, at, self.header.salt))
            .any(|(header, _)| header.durable_lsn >= missing);
        if known_synced {
            return Err(self.damage(offset, missing, "a later record says it was synced"));
        }
        let used = self.bytes.len() - rest.iter().rev().take_while(|b| **b == 0).count();
        scan.torn_bytes = used.max(offset).saturating_sub(batch_start) as u64;
        Ok(())
    }

    fn damage(&self, offset: usize, missing: Lsn, why: &str) -> Error {
        let what = format!("log record {} is missing or damaged, and {why}", missing.0);
        Error::corrupt(self.path, offset as u64, what)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::RealDisk;

    fn scanned(header: FileHeader, bytes: usize) -> Result<Scan, Error> {
        let dir = tempfile::tempdir().unwrap();
        let mut file = header.encode();
        file.resize(bytes, 0);
        std::fs::write(dir.path().join(file_name(1)), file).unwrap();
        scan(&RealDisk, dir.path(), &[1], Lsn(0))
    }

    #[test]
    fn a_file_that_was_cut_short_is_damage_and_so_is_an_impossible_lsn() {
        let header = FileHeader { salt: 1, number: 1, epoch: 1, first_lsn: Lsn(1), len: 8192 };
        assert_eq!(scanned(header, 8192).unwrap().last_lsn, Lsn(0));
        assert!(matches!(scanned(header, 8191), Err(Error::Corrupt { offset: 8191, .. })));
        for first_lsn in [Lsn(0), Lsn(NUMBER_LIMIT)] {
            let refused = scanned(FileHeader { first_lsn, ..header }, 8192);
            assert!(matches!(refused, Err(Error::Corrupt { offset: 0, .. })), "{first_lsn:?}");
        }
    }

    #[test]
    fn an_end_behind_which_no_file_could_be_begun_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let scanned = |checkpoint| scan(&RealDisk, dir.path(), &[], Lsn(checkpoint));
        assert!(matches!(scanned(NUMBER_LIMIT - 1), Err(Error::Corrupt { .. })));
        assert_eq!(scanned(NUMBER_LIMIT - 2).unwrap().last_lsn, Lsn(NUMBER_LIMIT - 2));
    }
}
