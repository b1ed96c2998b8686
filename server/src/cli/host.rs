//! What this machine is: processor, memory, permissions of files.
//!
//! Reads `/proc` and file modes only; must not know the service.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The processor's name, where the system gives one.
pub fn processor() -> Option<String> {
    processor_in(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn processor_in(cpuinfo: &str) -> Option<String> {
    cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let known = ["model name", "Model", "Processor"].contains(&name.trim());
        (known && !value.trim().is_empty()).then(|| value.trim().to_owned())
    })
}

/// Memory of the machine in bytes, where the system says.
pub fn memory_bytes() -> Option<u64> {
    memory_in(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn memory_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Who can reach a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It is not there.
    Missing,
    /// The user alone.
    Private,
    /// Others too.
    Shared {
        /// The permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    Foreign {
        /// The owner's number.
        owner: u32,
    },
    /// It cannot be looked at.
    Unknown,
}

/// Who can reach this path, by its own bits.
pub fn reach(path: &Path) -> Reach {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Reach::Missing,
        Err(_) => return Reach::Unknown,
    };
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Reach::Foreign { owner: metadata.uid() };
    }
    match metadata.mode() & 0o7777 {
        mode if mode & 0o077 == 0 => Reach::Private,
        mode => Reach::Shared { mode },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(
            processor_in("processor\t: 0\nmodel name\t: AMD EPYC\n").as_deref(),
            Some("AMD EPYC")
        );
        assert_eq!(processor_in("model name\t:\nnothing"), None);
        assert_eq!(memory_in("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(memory_in("MemTotal: lots"), None);
    }

    #[test]
    fn permissions_are_judged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        assert_eq!(reach(&path), Reach::Missing);
        fs::write(&path, "").unwrap();
        for (mode, want) in [
            (0o600, Reach::Private),
            (0o700, Reach::Private),
            (0o640, Reach::Shared { mode: 0o640 }),
            (0o606, Reach::Shared { mode: 0o606 }),
        ] {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(reach(&path), want);
        }
    }
}
