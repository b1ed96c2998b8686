//! Memory on huge pages, where the system gives them.
//!
//! Why: a text reads all weights once, in order, and with pages of 4 KiB a processor that has slept spends a seventh of that
//! time finding pages. Invariant: the bytes never move. It must not know what lies in them.

use std::io;

use memmap2::MmapMut;

/// A huge page on x86-64, and on AArch64 with small pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes that begin on a huge page.
pub struct HugeBytes {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl HugeBytes {
    /// `len` bytes. Without huge pages they are small ones.
    ///
    /// # Errors
    /// The system has not so much memory.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let whole = len.max(1).next_multiple_of(HUGE_PAGE);
        // A page more than needed, so that a huge one begins within.
        let map = MmapMut::map_anon(whole + HUGE_PAGE)?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages for the weights");
        }
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        Ok(Self { map, start, len })
    }

    /// Their address.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.map[self.start..][..self.len].as_mut_ptr()
    }
}
