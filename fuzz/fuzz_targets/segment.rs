//! Segments: one that was written comes back whole; one with any byte changed is refused when it is read, or reads the same and
//! `verify` says it is damaged; hostile ones never panic, alone or in a store.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use flashbulb_engine::NewMemory;
use flashbulb_engine::fuzz::{
    self, Disk, Files, Sealed, read_segment, reseal_segment, verify_segment, write_segment,
};
use flashbulb_fuzz::damage::Damage;
use flashbulb_fuzz::{hostile, raw_or_choices};
use libfuzzer_sys::fuzz_target;

const PART: u32 = 3;

fuzz_target!(|input: &[u8]| {
    let Some((raw, rest)) = raw_or_choices(input) else { return };
    if raw {
        let mut bytes = rest.to_vec();
        read_any(bytes.clone());
        reseal_segment(&mut bytes);
        read_any(bytes);
    } else if let Ok(plan) = Unstructured::new(rest).arbitrary::<Plan>() {
        plan.run();
    }
});

fn read_any(bytes: Vec<u8>) {
    let len = bytes.len() as u64;
    let disk = Disk::new(Files::from([(name(), bytes)]));
    let _ = read_segment(&disk, PART, len);
    let _ = verify_segment(&disk, PART, len, 0);
}

fn name() -> String {
    let nothing = Sealed {
        part: PART,
        dim: 8,
        last_lsn: 0,
        records: vec![],
        vectors: vec![],
        tombstones: vec![],
    };
    write_segment(&Disk::new(Files::new()), &nothing).expect("memory has room").0
}

#[derive(Debug, Arbitrary)]
struct Plan {
    // In front: what stands last gets no choices when they run out.
    damages: Vec<Damage>,
    /// Whether the checksums are made right again.
    reseal: bool,
    last_lsn: u64,
    memories: Vec<MemoryPlan>,
    tombstones: Vec<(u8, u8)>,
}

#[derive(Debug, Arbitrary)]
struct MemoryPlan {
    space: u8,
    id: u8,
    /// So many bytes of text; some reach over a block's end.
    text: u16,
    role: bool,
    vectors: u8,
}

impl Plan {
    fn make(&self) -> Sealed {
        let mut sealed = Sealed {
            part: PART,
            dim: hostile::DIM as u32,
            last_lsn: self.last_lsn,
            records: Vec::new(),
            vectors: Vec::new(),
            tombstones: self
                .tombstones
                .iter()
                .take(8)
                .map(|(space, seq)| ((*space).into(), (*seq).into()))
                .collect(),
        };
        for (plan, seq) in self.memories.iter().take(6).zip(1..) {
            let memory = NewMemory {
                id: format!("m{}", plan.id),
                text: "x".repeat(usize::from(plan.text) + 1),
                role: plan.role.then(|| "user".into()),
                ..NewMemory::default()
            };
            let space = u32::from(plan.space % 3);
            sealed.records.push((space, seq, fuzz::record(seq, &memory)));
            if plan.vectors % 4 > 0 {
                let rows =
                    vec![f32::from(plan.vectors); usize::from(plan.vectors % 4) * hostile::DIM];
                sealed.vectors.push((space, seq, rows));
            }
        }
        sealed
    }

    fn run(&self) {
        let disk = Disk::new(Files::new());
        let sealed = self.make();
        let (name, len, sum) = write_segment(&disk, &sealed).expect("memory has room");
        assert_eq!(read_segment(&disk, PART, len).expect("a sound segment is read"), sealed);
        assert_eq!(verify_segment(&disk, PART, len, sum).expect("it opens"), [""; 0]);
        let sound = disk.files().remove(&name).expect("it was written");
        let mut bytes = sound.clone();
        let parts = parts_of(&sealed, sound.len());
        self.damages.iter().take(8).for_each(|damage| damage.apply(&mut bytes, &parts));
        if self.reseal {
            reseal_segment(&mut bytes);
            let len = bytes.len() as u64;
            read_any(bytes.clone());
            hostile::open_and_ask(
                Files::from([(name, bytes)]),
                &hostile::manifest(&[(PART, len, sum)], None),
            );
            return;
        }
        if bytes == sound {
            return;
        }
        let disk = Disk::new(Files::from([(name, bytes.clone())]));
        for len in [len, bytes.len() as u64] {
            if let Ok(read) = read_segment(&disk, PART, len) {
                assert_eq!(read, sealed, "damage was read as if it were contents");
            }
            if let Ok(problems) = verify_segment(&disk, PART, len, sum) {
                assert!(!problems.is_empty(), "damage was passed over");
            }
        }
    }
}

/// Where header, records, directories, tombstones and footer begin; lengths are those of docs/format.md.
fn parts_of(sealed: &Sealed, len: usize) -> Vec<usize> {
    let footer = len.saturating_sub(88 + len.div_ceil(64 << 10) * 8);
    let tombstones = footer.saturating_sub(sealed.tombstones.len() * 16);
    let vectors = tombstones.saturating_sub(sealed.vectors.len() * 24);
    let records = vectors.saturating_sub(sealed.records.len() * 48);
    vec![0, 4096, records, vectors, tombstones, footer, len.saturating_sub(88)]
}
