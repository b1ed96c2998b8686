//! The manifest: which files make up the store, and up to which operation they hold it.
//!
//! File `manifest-<generation>`: `magic 8 | version u16 | 0 u16 | len u32 | crc32c u32 | JSON of len bytes`; the CRC covers
//! all the rest. A new generation is written beside the old one, synced and renamed; two are kept.
//! Invariant: a manifest names only files that were durable before it. Knows nothing of their contents.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::codec::{NUMBER_LIMIT, Reader};
use crate::disk::{Disk, Halfway, write_durably};
use crate::error::Error;
use crate::pace::Pace;
use crate::parts::PART_LIMIT;

const MAGIC: [u8; 8] = *b"\x89FBMAN\r\n";
const VERSION: u16 = 1;
/// The fingerprint of a store that was salvaged without a manifest: it holds no vector that a model made, and becomes a
/// store of the first model it is opened with.
pub(crate) const UNKNOWN_MODEL: &str = "";

/// A space as the manifest keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpaceEntry {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) last_seq: u64,
}

/// A segment as the manifest keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentEntry {
    pub(crate) part: u32,
    pub(crate) len: u64,
    /// xxh3-128 of the whole file, in hex.
    pub(crate) checksum: String,
}

/// A graph checkpoint as the manifest keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GraphEntry {
    pub(crate) space: u32,
    pub(crate) number: u32,
    pub(crate) len: u64,
    /// Vectors in the checkpoint.
    pub(crate) vectors: u32,
}

/// The contents of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) generation: u64,
    pub(crate) store: String,
    pub(crate) dim: u32,
    pub(crate) fingerprint: String,
    /// Operations up to this one are in the segments.
    pub(crate) checkpoint_lsn: u64,
    /// The first log file that is needed; `None` in a snapshot, which has no log.
    pub(crate) first_wal: Option<u64>,
    /// How often the store was opened; log files of a later epoch were left by a recovery that did not finish.
    pub(crate) epoch: u64,
    pub(crate) next_space: u32,
    /// Number of the next segment, head or graph.
    pub(crate) next_part: u32,
    pub(crate) spaces: Vec<SpaceEntry>,
    /// Oldest first.
    pub(crate) segments: Vec<SegmentEntry>,
    pub(crate) graphs: Vec<GraphEntry>,
}

/// The name of generation `generation`.
pub(crate) fn file_name(generation: u64) -> String {
    format!("manifest-{generation:016}")
}

/// The generation in a manifest's name.
pub(crate) fn file_generation(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("manifest-")?;
    (digits.len() == 16).then(|| digits.parse().ok())?
}

impl Manifest {
    /// Writes this generation durably.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that reading it would refuse, [`Error::DiskFull`], [`Error::Io`], and how far it came:
    /// after [`Halfway::Written`] the former generation stays valid; after [`Halfway::Named`] it is unknown which of the two
    /// a start would find, so nothing that rests on either may go on.
    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), (Halfway, Error)> {
        let refused = |why: String| (Halfway::Written, Error::invalid("the next manifest", why));
        if let Some(what) = self.absurd() {
            return Err(refused(format!("cannot be written: {what}")));
        }
        let name = file_name(self.generation);
        let json = serde_json::to_vec(self)
            .map_err(|e| refused(format!("cannot be written as JSON: {e}")))?;
        write_durably(disk, dir, &name, &framed(&json), &Pace::unpaced())
            .map_err(|(halfway, e)| (halfway, Error::io("write", dir.join(&name))(e)))
    }

    /// Reads the newest manifest of `generations` (ascending).
    ///
    /// A generation appears by a rename after its sync, so a damaged one is damage, not a crash: it is reported, and
    /// never passed over in favour of an older one, which could lack acknowledged writes.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::VersionTooNew`], [`Error::Io`].
    pub(crate) fn read_newest(
        disk: &dyn Disk,
        dir: &Path,
        generations: &[u64],
    ) -> Result<Option<Manifest>, Error> {
        let Some(&generation) = generations.last() else { return Ok(None) };
        let path = dir.join(file_name(generation));
        let bytes = disk.read(&path).map_err(Error::io("read", &path))?;
        let manifest = parse(&path, &bytes)?;
        if manifest.generation == generation {
            Ok(Some(manifest))
        } else {
            let what = format!("it says generation {}", manifest.generation);
            Err(Error::corrupt(path, 0, what))
        }
    }

    /// The first number in it that no store can have.
    fn absurd(&self) -> Option<&'static str> {
        let counted =
            [self.generation, self.checkpoint_lsn, self.epoch, self.first_wal.unwrap_or(0)];
        let seqs = self.spaces.iter().map(|s| s.last_seq);
        let too_far = counted.into_iter().chain(seqs).any(|n| n >= NUMBER_LIMIT);
        let spaces = self.spaces.iter().map(|s| s.id).chain([self.next_space]);
        if too_far {
            Some("a number in it is beyond what a store can count to")
        } else if spaces.max() == Some(u32::MAX) {
            Some("a space in it has a number that none can have")
        } else if self.next_part >= PART_LIMIT
            || self.segments.iter().any(|s| s.part >= self.next_part)
        {
            Some("a segment in it has a number that was not given out")
        } else {
            None
        }
    }
}

/// The file that holds `json`.
pub(crate) fn framed(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + 20);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), json);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(json);
    out
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest, Error> {
    let parts = || {
        let mut r = Reader::new(bytes);
        let magic = r.take(8)? == MAGIC;
        let (version, zero, len) = (r.u16()?, r.u16()?, r.u32()?);
        let covered = crc32c::crc32c(&bytes[..r.position()]);
        let crc = r.u32()?;
        let json = r.take(len as usize)?;
        let sound = crc32c::crc32c_append(covered, json) == crc;
        let whole = zero == 0 && r.remaining() == 0 && sound;
        Some((magic, version, whole, json))
    };
    match parts() {
        Some((true, found, true, _)) if found > VERSION => {
            Err(Error::VersionTooNew { file: path.into(), found, known: VERSION })
        }
        Some((true, _, true, json)) => {
            let manifest: Manifest = serde_json::from_slice(json)
                .map_err(|e| Error::corrupt(path, 20, format!("the contents do not parse: {e}")))?;
            match manifest.absurd() {
                None => Ok(manifest),
                Some(what) => Err(Error::corrupt(path, 20, what)),
            }
        }
        Some((false, ..)) => Err(Error::corrupt(path, 0, "this is not a manifest (wrong magic)")),
        _ => Err(Error::corrupt(path, 0, "the checksum does not match")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::disk::RealDisk;

    fn sample() -> Manifest {
        Manifest {
            generation: 4,
            store: "6f".into(),
            dim: 384,
            fingerprint: "m".into(),
            checkpoint_lsn: 9,
            first_wal: Some(2),
            epoch: 3,
            next_space: 1,
            next_part: 5,
            spaces: vec![SpaceEntry { id: 0, name: "a".into(), last_seq: 7 }],
            segments: vec![SegmentEntry { part: 1, len: 9, checksum: "00".into() }],
            graphs: vec![GraphEntry { space: 0, number: 4, len: 1, vectors: 2 }],
        }
    }

    #[test]
    fn the_newest_is_read_and_damage_is_never_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let old = Manifest { generation: 3, ..sample() };
        old.write(&RealDisk, dir.path()).unwrap();
        sample().write(&RealDisk, dir.path()).unwrap();
        let read = |g: &[u64]| Manifest::read_newest(&RealDisk, dir.path(), g);
        assert_eq!(read(&[3, 4]).unwrap(), Some(sample()));
        assert_eq!(read(&[]).unwrap(), None);

        let path = dir.path().join(file_name(4));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(read(&[3, 4]).is_err(), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(read(&[3, 4]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn numbers_that_no_store_can_have_are_refused() {
        let refused = |change: fn(&mut Manifest)| {
            let mut manifest = sample();
            change(&mut manifest);
            let json = serde_json::to_vec(&manifest).unwrap();
            parse(Path::new("m"), &framed(&json)).is_err()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|m| m.generation = u64::MAX));
        assert!(refused(|m| m.checkpoint_lsn = NUMBER_LIMIT));
        assert!(refused(|m| m.epoch = u64::MAX));
        assert!(refused(|m| m.first_wal = Some(u64::MAX)));
        assert!(refused(|m| m.spaces[0].last_seq = u64::MAX));
        assert!(refused(|m| m.spaces[0].id = u32::MAX));
        assert!(refused(|m| m.next_space = u32::MAX));
        assert!(refused(|m| m.next_part = u32::MAX));
        assert!(refused(|m| m.next_part = 1), "part 1 is in use");
        let dir = tempfile::tempdir().unwrap();
        let unreadable = Manifest { next_part: PART_LIMIT, ..sample() };
        assert!(unreadable.write(&RealDisk, dir.path()).is_err(), "it could not be read again");
    }
}
