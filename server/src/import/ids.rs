//! Ids for what has none of its own.
//!
//! An id is the XXH3-128 hash (Yann Collet, <https://github.com/Cyan4973/xxHash>) of the format, the
//! conversation, the role, the text and the position among identical ones of that conversation. Keeps: the
//! same content gives the same ids on every run and from every path, and appending to a file changes none.
//! Must not know the file's name or the line's number.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128;

/// The longest id the protocol takes, in bytes.
pub(super) const MAX_ID_BYTES: usize = 128;

/// Makes ids and remembers how often each content was seen: 24 bytes a memory.
#[derive(Default)]
pub(super) struct IdMaker {
    seen: HashMap<u128, u32>,
}

impl IdMaker {
    /// The id of the next memory with these parts.
    pub(super) fn id(&mut self, parts: &[&str]) -> String {
        let base = hash(parts);
        let count = self.seen.entry(base).or_default();
        let id = match *count {
            0 => base,
            n => hash(&[&format!("{base:032x}"), &n.to_string()]),
        };
        *count = count.saturating_add(1);
        format!("{id:032x}")
    }
}

/// The format's own id, hashed where it is longer than the protocol allows.
pub(super) fn own_id(id: &str) -> String {
    if id.len() <= MAX_ID_BYTES { id.to_owned() } else { format!("{:032x}", hash(&["own", id])) }
}

/// A short stable name of these parts.
pub(super) fn name_of(parts: &[&str]) -> String {
    format!("{:032x}", hash(parts))
}

/// Each part goes in with its length, so that no two lists of parts run together.
fn hash(parts: &[&str]) -> u128 {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identical_content_gets_ids_of_its_own_and_the_same_on_every_run() {
        let run = || {
            let mut maker = IdMaker::default();
            [
                maker.id(&["text", "a"]),
                maker.id(&["text", "a"]),
                maker.id(&["text", "b"]),
                maker.id(&["text", "a"]),
            ]
        };
        let ids = run();
        assert_eq!(ids, run());
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), 4);
        assert!(ids.iter().all(|id| id.len() == 32));
    }

    #[test]
    fn ids_never_change_between_versions() {
        // A changed hash would import everything a second time.
        let id = IdMaker::default().id(&["text", "the same line for ever"]);
        assert_eq!(id, PINNED);
    }

    const PINNED: &str = "c9cd168f84aff6ae35a00b0cf57032c2";

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_eq!(own_id(&"x".repeat(200)).len(), 32);
        assert_eq!(own_id("x"), "x");
    }
}
