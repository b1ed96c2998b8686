//! The log: a log that was written comes back whole; a damaged one is refused or comes back as a prefix in whole batches, and
//! never without a batch that a sound record behind it says was synced; hostile ones never panic.
#![no_main]

use std::ops::Range;

use arbitrary::{Arbitrary, Unstructured};
use flashbulb_engine::NewMemory;
use flashbulb_engine::fuzz::{self, Disk, Files, LogBatch, LogFile, LogOp, LogRecord, read_log};
use flashbulb_fuzz::damage::Damage;
use flashbulb_fuzz::{hostile, raw_or_choices};
use libfuzzer_sys::fuzz_target;

const EPOCH: u64 = 1;
const MARK: u16 = 1;

fuzz_target!(|input: &[u8]| {
    let Some((raw, rest)) = raw_or_choices(input) else { return };
    let mut choices = Unstructured::new(rest);
    if raw {
        any_bytes(rest);
    } else if choices.ratio(1, 3).unwrap_or(false) {
        let _ = choices.arbitrary().map(|plan: Hostile| plan.run());
    } else {
        let _ = choices.arbitrary().map(|plan: Plan| plan.run());
    }
});

fn any_bytes(bytes: &[u8]) {
    let name =
        LogFile { number: 1, salt: 0, epoch: 0, first_lsn: 0, records: vec![], unused_bytes: 0 }
            .name();
    if let Ok(log) = read_log(&Disk::new(Files::from([(name, bytes.to_vec())])), u64::MAX, 0) {
        let held: usize =
            log.batches.iter().flat_map(|b| &b.1).map(|(_, payload)| payload.len()).sum();
        assert!(held <= bytes.len(), "more than the file has");
    }
    for kind in 0..8 {
        if let Some(again) = fuzz::op_again(kind, bytes, hostile::DIM) {
            assert_eq!(again, bytes, "an operation has one encoding");
        }
    }
    if let Some(again) = fuzz::record_again(bytes) {
        assert_eq!(again, bytes, "a record has one encoding");
    }
}

/// A log as the writer makes them, and what happens to it.
#[derive(Debug, Arbitrary)]
struct Plan {
    // In front: what stands last gets no choices when they run out.
    damages: Vec<(u8, Damage)>,
    base: u8,
    files: Vec<Vec<BatchPlan>>,
    unused: u8,
    /// Which batch is the checkpoint, counted from one before the first.
    checkpoint: u8,
    /// A file that a recovery of a later epoch left.
    left_over: bool,
    missing: Option<u8>,
}

#[derive(Debug, Arbitrary)]
struct BatchPlan {
    /// None is a mark.
    records: Vec<(u8, Vec<u8>)>,
    /// How many batches behind the last one the durable one was.
    lag: u8,
}

/// What a plan makes.
struct Made {
    files: Vec<LogFile>,
    batches: Vec<LogBatch>,
    /// The last LSN of every batch, marks included, the one before the first in front.
    ends: Vec<u64>,
}

impl Plan {
    fn make(&self) -> Made {
        let base = u64::from(self.base);
        let mut made = Made { files: Vec::new(), batches: Vec::new(), ends: vec![base] };
        let mut lsn = base;
        for (at, plans) in self.files.iter().take(3).enumerate() {
            let number = 4 + at as u64;
            let (salt, unused_bytes) = (77 + at as u32, usize::from(self.unused) * 8);
            let mut file = LogFile {
                number,
                salt,
                epoch: EPOCH,
                first_lsn: lsn + 1,
                records: vec![],
                unused_bytes,
            };
            for plan in plans.iter().take(8) {
                let durable_lsn = made.ends[(made.ends.len() - 1).saturating_sub(plan.lag.into())];
                let mut records: Vec<(u16, Vec<u8>)> = plan
                    .records
                    .iter()
                    .take(4)
                    .map(|(kind, p)| (2 + u16::from(*kind), p.clone()))
                    .collect();
                let is_mark = records.is_empty();
                if is_mark {
                    records.push((MARK, Vec::new()));
                }
                for (i, (kind, payload)) in records.iter().enumerate() {
                    lsn += 1;
                    let flags = u16::from(i == 0) | u16::from(i + 1 == records.len()) * 2;
                    file.records.push(LogRecord {
                        lsn,
                        kind: *kind,
                        flags,
                        durable_lsn,
                        payload: payload.clone(),
                    });
                }
                made.ends.push(lsn);
                if !is_mark {
                    made.batches.push((lsn, records));
                }
            }
            made.files.push(file);
        }
        made
    }

    fn run(&self) {
        let made = self.make();
        let checkpoint = made.ends[usize::from(self.checkpoint) % made.ends.len()];
        let expected: Vec<_> = made.batches.iter().filter(|b| b.0 > checkpoint).cloned().collect();
        let mut files: Vec<(String, Vec<u8>, Vec<Range<usize>>)> = made
            .files
            .iter()
            .map(|file| {
                let (bytes, places) = file.encode();
                (file.name(), bytes, places)
            })
            .collect();
        let sound = |files: &[(String, Vec<u8>, Vec<Range<usize>>)]| {
            let mut all: Files = files.iter().map(|f| (f.0.clone(), f.1.clone())).collect();
            if self.left_over {
                let records =
                    vec![LogRecord { lsn: 1, kind: 2, flags: 3, durable_lsn: 9, payload: vec![1] }];
                let later = LogFile {
                    number: 9,
                    salt: 1,
                    epoch: EPOCH + 1,
                    first_lsn: 1,
                    records,
                    unused_bytes: 0,
                };
                all.insert(later.name(), later.encode().0);
            }
            Disk::new(all)
        };
        let log = read_log(&sound(&files), EPOCH, checkpoint).expect("a sound log is read");
        assert_eq!(log.batches, expected, "a sound log comes back whole");
        assert_eq!(log.last_lsn, *made.ends.last().expect("never empty"));
        assert_eq!(log.torn_bytes, 0);
        if files.is_empty() {
            return;
        }
        let before = files.clone();
        for (at, damage) in self.damages.iter().take(8) {
            let at = usize::from(*at) % files.len();
            let parts: Vec<usize> = files[at].2.iter().map(|place| place.start).collect();
            damage.apply(&mut files[at].1, &parts);
        }
        let missing = self.missing.map(|at| usize::from(at) % files.len());
        if let Some(at) = missing {
            files.remove(at);
        }
        let Ok(log) = read_log(&sound(&files), EPOCH, checkpoint) else { return };
        assert!(expected.starts_with(&log.batches), "not a prefix of what was written");
        assert!(log.last_lsn == checkpoint || made.ends.contains(&log.last_lsn), "half a batch");
        let of_last = log.batches.last().map_or(0, |b| b.0);
        assert!(of_last <= log.last_lsn);
        assert_eq!(
            expected.iter().filter(|b| b.0 <= log.last_lsn).count(),
            log.batches.len(),
            "a batch was passed over"
        );
        let known = self.known_synced(&made, &before, &files);
        assert!(
            log.last_lsn >= known,
            "record {known} was known to be synced, and the log ends at {}",
            log.last_lsn
        );
    }

    /// The highest LSN that a record says was synced whose bytes are all in place.
    fn known_synced(
        &self,
        made: &Made,
        before: &[(String, Vec<u8>, Vec<Range<usize>>)],
        after: &[(String, Vec<u8>, Vec<Range<usize>>)],
    ) -> u64 {
        let mut known = 0;
        for (file, (name, old, places)) in made.files.iter().zip(before) {
            let Some((_, new, _)) = after.iter().find(|f| f.0 == *name) else { continue };
            for (record, place) in file.records.iter().zip(places) {
                if new.get(place.clone()) == Some(&old[place.clone()]) {
                    known = known.max(record.durable_lsn);
                }
            }
        }
        known
    }
}

/// A log of sound records that no writer would make.
#[derive(Debug, Arbitrary)]
struct Hostile {
    first_lsn: Option<u64>,
    checkpoint: Option<u64>,
    records: Vec<HostileRecord>,
}

#[derive(Debug, Arbitrary)]
struct HostileRecord {
    content: Content,
    flags: u8,
    lsn: Option<u64>,
    durable_lsn: u8,
}

#[derive(Debug, Arbitrary)]
enum Content {
    Create { space: u8, name: bool },
    Write { space: u8, last_seq: u64, removed: Vec<u8>, added: Vec<Added> },
    Vectors { space: u8, entries: Vec<(u8, u8)> },
    Drop { space: u8 },
    Bytes(u8, Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Added {
    Memory { seq: u8, id: u8, vectors: u8 },
    Far { seq: u64 },
    Bytes(Vec<u8>),
}

impl Added {
    fn bytes(&self) -> (Vec<u8>, Vec<f32>) {
        let memory = |seq: u64, id: u8| {
            fuzz::record(
                seq,
                &NewMemory {
                    id: format!("m{}", id % 4),
                    text: format!("text {}", id % 4),
                    ..NewMemory::default()
                },
            )
        };
        match self {
            Added::Memory { seq, id, vectors } => {
                (memory((*seq).into(), *id), vec![0.25; usize::from(vectors % 4) * hostile::DIM])
            }
            Added::Far { seq } => (memory(*seq, 1), Vec::new()),
            Added::Bytes(bytes) => (bytes.clone(), Vec::new()),
        }
    }
}

impl Content {
    fn encode(&self) -> (u16, Vec<u8>) {
        let op = match self {
            Content::Create { space, name } => LogOp::Create {
                space: (space % 4).into(),
                name: if *name { "a" } else { "c" }.into(),
            },
            Content::Write { space, last_seq, removed, added } => LogOp::Write {
                space: (space % 4).into(),
                last_seq: *last_seq,
                removed: removed.iter().map(|seq| (*seq).into()).collect(),
                added: added.iter().take(8).map(Added::bytes).collect(),
            },
            Content::Vectors { space, entries } => LogOp::Vectors {
                space: (space % 4).into(),
                entries: entries
                    .iter()
                    .map(|(seq, n)| ((*seq).into(), vec![0.5; usize::from(n % 4) * hostile::DIM]))
                    .collect(),
            },
            Content::Drop { space } => LogOp::Drop { space: (space % 4).into() },
            Content::Bytes(kind, bytes) => return ((*kind).into(), bytes.clone()),
        };
        op.encode(hostile::DIM)
    }
}

impl Hostile {
    fn run(&self) {
        let first_lsn = self.first_lsn.unwrap_or(1);
        let mut lsn = first_lsn;
        let mut records = Vec::new();
        for plan in self.records.iter().take(16) {
            let (kind, payload) = plan.content.encode();
            let flags = if plan.flags < 200 { 3 } else { u16::from(plan.flags % 4) };
            let durable_lsn = plan.durable_lsn.into();
            records.push(LogRecord {
                lsn: plan.lsn.unwrap_or(lsn),
                kind,
                flags,
                durable_lsn,
                payload,
            });
            lsn = lsn.wrapping_add(1);
        }
        let file =
            LogFile { number: 1, salt: 7, epoch: EPOCH, first_lsn, records, unused_bytes: 64 };
        let mut manifest = hostile::manifest(&[], Some(1));
        manifest["checkpoint_lsn"] = self.checkpoint.unwrap_or(first_lsn.saturating_sub(1)).into();
        hostile::open_and_ask(Files::from([(file.name(), file.encode().0)]), &manifest);
    }
}
