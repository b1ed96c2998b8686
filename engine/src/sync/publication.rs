//! The memory orderings that publish a value, as a type.
//!
//! Invariant: outside of loom there is one implementation, and it is sound. The mutants exist only
//! where loom can catch them. Must not know: what is published.

use super::shim::Ordering;

/// Orderings of the store that publishes and of the load that finds what was published.
pub trait Publication: sealed::Sealed + Send + Sync + 'static {
    /// Used by the writer, after everything that readers will reach was written.
    const STORE: Ordering;
    /// Used by readers, before they reach for it.
    const LOAD: Ordering;
    /// Used by who both finds and publishes with one read-modify-write.
    const BOTH: Ordering = Ordering::AcqRel;
    /// Epochs that begin between the unlinking of something and its reuse.
    const GRACE: u64 = 2;
    /// Whether who may sleep until a store is woken after it.
    const WAKES: bool = true;
    /// Whether who was woken looks again for what it waits for.
    const CHECKS: bool = true;
}

/// The only sound ones: what happened before the store is seen by whoever sees the store.
#[derive(Debug, Clone, Copy)]
pub struct ReleaseAcquire;

impl Publication for ReleaseAcquire {
    const STORE: Ordering = Ordering::Release;
    const LOAD: Ordering = Ordering::Acquire;
}

/// Publishes without a release: every model must fail with it.
#[cfg(loom)]
#[derive(Debug, Clone, Copy)]
pub struct RelaxedStoreMutant;

#[cfg(loom)]
impl Publication for RelaxedStoreMutant {
    const STORE: Ordering = Ordering::Relaxed;
    const LOAD: Ordering = Ordering::Acquire;
}

/// Reads without an acquire: every model must fail with it.
#[cfg(loom)]
#[derive(Debug, Clone, Copy)]
pub struct RelaxedLoadMutant;

#[cfg(loom)]
impl Publication for RelaxedLoadMutant {
    const STORE: Ordering = Ordering::Release;
    const LOAD: Ordering = Ordering::Relaxed;
}

/// Publishes and wakes nobody: every model in which somebody sleeps must fail with it.
#[cfg(loom)]
#[derive(Debug, Clone, Copy)]
pub struct SilentMutant;

#[cfg(loom)]
impl Publication for SilentMutant {
    const STORE: Ordering = Ordering::Release;
    const LOAD: Ordering = Ordering::Acquire;
    const WAKES: bool = false;
}

/// Takes every wake-up for the one that it waits for: every model in which somebody sleeps must fail with it.
#[cfg(loom)]
#[derive(Debug, Clone, Copy)]
pub struct UncheckedMutant;

#[cfg(loom)]
impl Publication for UncheckedMutant {
    const STORE: Ordering = Ordering::Release;
    const LOAD: Ordering = Ordering::Acquire;
    const CHECKS: bool = false;
}

/// Advances the epoch without an acquire: every model in which something is reused must fail with it.
#[cfg(loom)]
#[derive(Debug, Clone, Copy)]
pub struct BlindAdvanceMutant;

#[cfg(loom)]
impl Publication for BlindAdvanceMutant {
    const STORE: Ordering = Ordering::Release;
    const LOAD: Ordering = Ordering::Acquire;
    const BOTH: Ordering = Ordering::Release;
}

/// Advances the epoch without a release: every model in which something is reused must fail with it.
#[cfg(loom)]
#[derive(Debug, Clone, Copy)]
pub struct MuteAdvanceMutant;

#[cfg(loom)]
impl Publication for MuteAdvanceMutant {
    const STORE: Ordering = Ordering::Release;
    const LOAD: Ordering = Ordering::Acquire;
    const BOTH: Ordering = Ordering::Acquire;
}

/// Reuses what was unlinked an epoch too early: every model in which something is reused must fail with it.
#[cfg(loom)]
#[derive(Debug, Clone, Copy)]
pub struct HastyReuseMutant;

#[cfg(loom)]
impl Publication for HastyReuseMutant {
    const STORE: Ordering = Ordering::Release;
    const LOAD: Ordering = Ordering::Acquire;
    const GRACE: u64 = 1;
}

mod sealed {
    /// Keeps unsound orderings out of other crates.
    pub trait Sealed {}
    impl Sealed for super::ReleaseAcquire {}
    #[cfg(loom)]
    impl Sealed for super::RelaxedStoreMutant {}
    #[cfg(loom)]
    impl Sealed for super::RelaxedLoadMutant {}
    #[cfg(loom)]
    impl Sealed for super::SilentMutant {}
    #[cfg(loom)]
    impl Sealed for super::UncheckedMutant {}
    #[cfg(loom)]
    impl Sealed for super::BlindAdvanceMutant {}
    #[cfg(loom)]
    impl Sealed for super::MuteAdvanceMutant {}
    #[cfg(loom)]
    impl Sealed for super::HastyReuseMutant {}
}
