//! Read-only memory maps of files that are never written again.
//!
//! Invariant: a map is made only of sealed files, which this program creates, never changes and removes only by name.
//! Knows no format.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process could change it")]

use std::fs::File;
use std::io;

use memmap2::Mmap;

use crate::disk::Bytes;

/// A sealed file in memory.
#[derive(Debug)]
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps all of `file`.
    pub(crate) fn open(file: &File) -> io::Result<Map> {
        // SAFETY: sealed files live in a private (0700) folder under an exclusive lock, are never written or
        // truncated after their rename, and unlinking leaves a mapping intact; so the bytes do not change below us.
        let map = unsafe { Mmap::map(file)? };
        Ok(Map(map))
    }
}

impl Bytes for Map {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}
