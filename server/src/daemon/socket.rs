//! The socket's place in the file system: who may reach it, and who owns it.
//!
//! Invariant: the socket is reachable for its owner only (0600 in a folder that nobody else can write to), and a socket is
//! removed only by the holder of the lock beside it. The lock file is never removed: two processes that lock different
//! files of one name would both believe they are alone. It must not know what is said over the socket.

use crate::service::lifecycle::{Cause, Lifecycle};
use flashbulb_engine::{Error, Store};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path that fits into `sockaddr_un` with its final zero byte.
#[cfg(not(target_os = "macos"))]
pub const PATH_BYTES: usize = 107;
/// Longest path that fits into `sockaddr_un` with its final zero byte.
#[cfg(target_os = "macos")]
pub const PATH_BYTES: usize = 103;

/// Why a socket or a folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The path does not fit into a socket address.
    #[error(
        "the socket's path {path} has {bytes} bytes, at most {PATH_BYTES} fit; choose a shorter one with --socket"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Another daemon answers there.
    #[error(
        "another daemon has the socket {path}; stop it first, or choose another one with --socket"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error(
        "{path} is there and is not a socket; it was left alone, choose another path with --socket"
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A folder that others can reach into.
    #[error("the folder {dir} {why}; {mend}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        mend: String,
    },
    /// The system refused.
    #[error("cannot {op} {path}: {source}")]
    Io {
        /// What.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SocketError {
    move |source| SocketError::Io { op, path: path.to_owned(), source }
}

/// Makes the socket's folder, or checks the one that is there.
fn prepare_folder(dir: &Path) -> Result<(), SocketError> {
    let there = match dir.symlink_metadata() {
        Ok(there) if there.is_symlink() => dir.metadata().map_err(io("look at", dir))?,
        Ok(there) => there,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(io("make the folder", dir))?;
            dir.metadata().map_err(io("look at", dir))?
        }
        Err(error) => return Err(io("look at", dir)(error)),
    };
    let uid = rustix::process::geteuid().as_raw();
    let of_default = dir.file_name().is_some_and(|name| {
        dir.parent() == Some(Path::new("/tmp")) && name.to_string_lossy().starts_with("flashbulb-")
    });
    match folder_fault(&there, uid, of_default) {
        None => Ok(()),
        Some(why) => Err(SocketError::Folder {
            dir: dir.to_owned(),
            why,
            mend:
                "anybody could put another socket there; choose a folder of your own with --socket"
                    .into(),
        }),
    }
}

/// What makes a folder unfit for the socket. In a sticky folder such as `/tmp` others cannot rename or remove what is not
/// theirs; a folder made by us has to be ours alone.
fn folder_fault(there: &Metadata, uid: u32, made_by_us: bool) -> Option<String> {
    let mode = there.mode();
    if !there.is_dir() {
        return Some("is not a folder".into());
    }
    if there.uid() != uid && (made_by_us || there.uid() != 0) {
        return Some(format!("belongs to user {}", there.uid()));
    }
    if made_by_us && mode & 0o077 != 0 {
        return Some(format!("is open to others (mode {:o})", mode & 0o7777));
    }
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Some(format!("can be written to by others (mode {:o})", mode & 0o7777));
    }
    None
}

/// Makes the store's folder, or checks that nobody else can look into the one that is there.
///
/// # Errors
/// When it is open to others and holds something, or cannot be made.
pub fn prepare_store_dir(dir: &Path) -> Result<(), SocketError> {
    let there = match dir.metadata() {
        Ok(there) => there,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Store::create_dir(dir).map_err(|error| {
                let source = match error {
                    Error::Io { source, .. } => source,
                    other => std::io::Error::other(other),
                };
                io("make the store's folder", dir)(source)
            });
        }
        Err(error) => return Err(io("look at", dir)(error)),
    };
    let fault = |why: String, mend: &str| SocketError::Folder {
        dir: dir.to_owned(),
        why,
        mend: mend.to_owned(),
    };
    if !there.is_dir() {
        return Err(fault("is not a folder".into(), "choose another with --store"));
    }
    if there.uid() != rustix::process::geteuid().as_raw() {
        let why = format!("belongs to user {}", there.uid());
        return Err(fault(why, "choose another with --store"));
    }
    if there.mode() & 0o077 == 0 {
        return Ok(());
    }
    let empty = dir.read_dir().map_err(io("read", dir))?.next().is_none();
    if !empty {
        let why = format!("is open to others (mode {:o})", there.mode() & 0o7777);
        return Err(fault(why, "run chmod 700 on it if it is meant to hold the store"));
    }
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))
        .map_err(io("narrow the permissions of", dir))
}

/// The right to a socket's path, until it is dropped.
#[derive(Debug)]
pub struct SocketLock {
    path: PathBuf,
    /// Closing it gives the lock up.
    _file: File,
}

impl SocketLock {
    /// Prepares the folder and takes the lock beside the socket.
    ///
    /// # Errors
    /// `InUse` where another daemon has it; otherwise what is wrong with path or folder.
    pub fn take(path: &Path) -> Result<Self, SocketError> {
        let path = std::path::absolute(path).map_err(io("find", path))?;
        let bytes = path.as_os_str().len();
        if bytes > PATH_BYTES {
            return Err(SocketError::TooLong { path, bytes });
        }
        prepare_folder(path.parent().unwrap_or(Path::new("/")))?;
        let mut name = path.clone().into_os_string();
        name.push(".lock");
        let name = PathBuf::from(name);
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&name)
            .map_err(io("open the lock", &name))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(SocketError::InUse { path }),
            Err(error) => Err(io("lock", &name)(error.into())),
        }
    }

    /// Removes a socket that a daemon left behind, and listens.
    ///
    /// # Errors
    /// When something else is there, or the system refuses.
    pub fn bind(&self) -> Result<Bound, SocketError> {
        match self.path.symlink_metadata() {
            Ok(there) if there.file_type().is_socket() => {
                // The lock keeps out other daemons; another program's socket may be alive all the same.
                if UnixStream::connect(&self.path).is_ok() {
                    return Err(SocketError::InUse { path: self.path.clone() });
                }
                std::fs::remove_file(&self.path).map_err(io("remove the old", &self.path))?;
            }
            Ok(_) => {
                return Err(SocketError::NotASocket { path: self.path.clone() });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io("look at", &self.path)(error)),
        }
        let before = rustix::process::umask(Mode::from_raw_mode(0o077));
        let listener = UnixListener::bind(&self.path);
        rustix::process::umask(before);
        let listener = listener.map_err(io("listen on", &self.path))?;
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o600))
            .map_err(io("narrow the permissions of", &self.path))?;
        let there = self.path.symlink_metadata().map_err(io("look at", &self.path))?;
        Ok(Bound { listener, inode: (there.dev(), there.ino()), path: self.path.clone() })
    }
}

/// A listening socket; the lock that it was bound under must outlive it.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    inode: (u64, u64),
    path: PathBuf,
}

/// Ends a blocked `accept` by connecting once.
#[derive(Debug, Clone)]
pub struct AcceptWaker(PathBuf);

impl AcceptWaker {
    /// Wakes the accept loop; a full backlog means that it is awake already.
    pub fn wake(&self) {
        if let Err(error) = UnixStream::connect(&self.0) {
            tracing::debug!(%error, "the accept loop was not woken by a connection");
        }
    }
}

/// Wait after a failed `accept`, so that a lack of file descriptors is no busy loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Failed `accept`s in a row after which the daemon gives up.
const ACCEPT_TRIES: u32 = 600;

impl Bound {
    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What ends a blocked `accept`.
    #[must_use]
    pub fn waker(&self) -> AcceptWaker {
        AcceptWaker(self.path.clone())
    }

    /// Hands every connection on until the service stops.
    pub fn accept_until_stopped(&self, lifecycle: &Lifecycle, mut admit: impl FnMut(UnixStream)) {
        let mut failed = 0;
        while !lifecycle.is_stopping() {
            match self.listener.accept() {
                Ok((stream, _)) if !lifecycle.is_stopping() => {
                    failed = 0;
                    admit(stream);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    failed += 1;
                    tracing::error!(%error, "a connection could not be accepted");
                    if failed >= ACCEPT_TRIES {
                        lifecycle.stop(Cause::Listener(error.to_string()));
                    }
                    std::thread::sleep(ACCEPT_RETRY);
                }
            }
        }
    }

    /// Stops listening and takes the socket away if it is still the one that was bound.
    pub fn remove(self) {
        let ours = self
            .path
            .symlink_metadata()
            .is_ok_and(|there| (there.dev(), there.ino()) == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, socket = %self.path.display(), "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dir_with_mode(mode: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        dir
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused_unless_sticky() {
        for (mode, made_by_us, fit) in [
            (0o700, false, true),
            (0o755, false, true),
            (0o777, false, false),
            (0o770, false, false),
            (0o1777, false, true),
            (0o755, true, false),
            (0o1777, true, false),
            (0o700, true, true),
        ] {
            let dir = dir_with_mode(mode);
            let there = dir.path().metadata().unwrap();
            let uid = rustix::process::geteuid().as_raw();
            let fault = folder_fault(&there, uid, made_by_us);
            assert_eq!(fault.is_none(), fit, "{mode:o} {made_by_us}: {fault:?}");
            let foreign = folder_fault(&there, uid + 1, true);
            assert!(foreign.unwrap().contains("belongs"));
        }
    }

    #[test]
    fn one_holder_a_socket_and_a_stale_one_is_taken_over() {
        let dir = dir_with_mode(0o700);
        let path = dir.path().join("run").join("s.sock");
        let lock = SocketLock::take(&path).unwrap();
        assert!(matches!(SocketLock::take(&path), Err(SocketError::InUse { .. })));
        // Dropping the listener leaves the file behind, as a killed daemon does.
        drop(lock.bind().unwrap());
        drop(lock);
        assert!(path.exists());
        let lock = SocketLock::take(&path).unwrap();
        let bound = lock.bind().unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        UnixStream::connect(&path).unwrap();
        bound.remove();
        assert!(!path.exists());
        assert!(dir.path().join("run/s.sock.lock").exists());
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = dir_with_mode(0o700);
        let path = dir.path().join("s.sock");
        std::fs::write(&path, "precious").unwrap();
        let refused = SocketLock::take(&path).unwrap().bind();
        assert!(matches!(refused, Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(SocketLock::take(&long), Err(SocketError::TooLong { .. })));
    }

    #[test]
    fn the_stores_folder_is_private() {
        let dir = dir_with_mode(0o755);
        prepare_store_dir(dir.path()).unwrap();
        assert_eq!(dir.path().metadata().unwrap().mode() & 0o777, 0o700);
        let open = dir_with_mode(0o755);
        std::fs::write(open.path().join("other"), "x").unwrap();
        let error = prepare_store_dir(open.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        let new = dir.path().join("a/b");
        prepare_store_dir(&new).unwrap();
        assert_eq!(new.metadata().unwrap().mode() & 0o777, 0o700);
    }
}
