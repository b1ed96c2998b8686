//! Manifests: one that was written comes back; one with any byte changed is refused; hostile contents with a sound checksum never
//! panic, nor does a store whose manifest they are.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use flashbulb_engine::fuzz::{Disk, Files, manifest_file, read_manifest};
use flashbulb_fuzz::damage::Damage;
use flashbulb_fuzz::{hostile, raw_or_choices};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let Some((raw, rest)) = raw_or_choices(input) else { return };
    if raw {
        // The name's generation is one that JSON can ask for, so that contents can fit it.
        let name = manifest_file(1, b"").0;
        let _ = read_manifest(&Disk::new(Files::from([(name, rest.to_vec())])));
        let (name, framed) = manifest_file(1, rest);
        let _ = read_manifest(&Disk::new(Files::from([(name, framed)])));
    } else if let Ok(plan) = Unstructured::new(rest).arbitrary::<Plan>() {
        plan.run();
    }
});

#[derive(Debug, Arbitrary)]
struct Plan {
    // In front: what stands last gets no choices when they run out.
    damages: Vec<Damage>,
    older: bool,
    manifest: Contents,
}

#[derive(Debug, Arbitrary)]
struct Contents {
    generation: Option<u64>,
    dim: Option<u32>,
    checkpoint_lsn: Option<u64>,
    first_wal: Option<u64>,
    epoch: Option<u64>,
    next_space: Option<u32>,
    next_part: Option<u32>,
    spaces: Vec<(u32, u8, u64)>,
    segments: Vec<(u32, u64)>,
    graphs: Vec<(u32, u32, u64, u32)>,
}

impl Contents {
    fn json(&self) -> Value {
        let space = |(id, name, last_seq): &(u32, u8, u64)| json!({"id": id, "name": format!("s{name}"), "last_seq": last_seq});
        let segment =
            |(part, len): &(u32, u64)| json!({"part": part, "len": len, "checksum": "00"});
        let graph = |(space, number, len, vectors): &(u32, u32, u64, u32)| json!({"space": space, "number": number, "len": len, "vectors": vectors});
        json!({
            // More digits do not fit a file's name.
            "generation": self.generation.unwrap_or(2) % 10_000_000_000_000_000, "store": "s", "dim": self.dim.unwrap_or(hostile::DIM as u32),
            "fingerprint": "m", "checkpoint_lsn": self.checkpoint_lsn.unwrap_or(0), "first_wal": self.first_wal,
            "epoch": self.epoch.unwrap_or(1), "next_space": self.next_space.unwrap_or(4), "next_part": self.next_part.unwrap_or(9),
            "spaces": self.spaces.iter().map(space).collect::<Vec<_>>(),
            "segments": self.segments.iter().take(4).map(segment).collect::<Vec<_>>(),
            "graphs": self.graphs.iter().take(4).map(graph).collect::<Vec<_>>(),
        })
    }
}

impl Plan {
    fn run(&self) {
        let json = self.manifest.json();
        let generation = json["generation"].as_u64().expect("put in above");
        let (name, sound) = manifest_file(generation, json.to_string().as_bytes());
        let mut files = Files::from([(name.clone(), sound.clone())]);
        if self.older && generation > 0 {
            let (name, bytes) = manifest_file(generation - 1, b"{}");
            files.insert(name, bytes);
        }
        // A manifest of numbers that no store can have is refused: then only that it is, whatever the reason.
        if let Ok(read) = read_manifest(&Disk::new(files.clone())) {
            assert_eq!(read, Some(json.clone()), "a sound manifest comes back");
        }
        let mut bytes = sound.clone();
        self.damages.iter().take(8).for_each(|damage| damage.apply(&mut bytes, &[0, 20]));
        if bytes == sound {
            hostile::open_and_ask(Files::new(), &json);
            return;
        }
        files.insert(name, bytes);
        assert!(
            read_manifest(&Disk::new(files)).is_err(),
            "damage was read as if it were contents"
        );
    }
}
