//! Kernels for x86-64, one module a SIMD level.
//!
//! Invariant: every function carries the `target_feature`s of its level and is called only after
//! the processor was found to have them.

use std::sync::OnceLock;

pub(crate) mod avx2;
pub(crate) mod avx512;
mod avx512_prepare;

/// Whether this processor has AMX-INT8 and the system lets this process use it.
pub(crate) fn tiles_are_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| has_tiles() && ask_for_tiles())
}

/// AMX-TILE and AMX-INT8 (Intel SDM, CPUID leaf 7).
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const FEATURES: u32 = 1 << 24 | 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & FEATURES == FEATURES
}

/// Linux keeps the state of tiles, 8 KiB a thread, only for a process that asked for it (its document "Using XSTATE
/// features in user space applications"). Who has the permission may ask again.
#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call reads two integers and touches no memory of this process.
    let refused =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    refused == 0
}

/// How other systems hand tiles out was not looked at.
#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}
