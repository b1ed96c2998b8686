//! A library that stands between the program and its disk: loaded by `LD_PRELOAD` before libc, it notes every change
//! of a file below one folder and fails those that a control file names. `faulty_disk.rs` builds and drives it.
//!
//! Invariant: what no rule names reaches libc as it was called. The library reads the control file at every call, so
//! a test changes the disk's mood at any moment. It calls libc's own functions alone, never those it stands for.
//!
//! A rule is a line: `ID OP PART ACTION FROM COUNT EVERY`. It holds for calls of kind OP (`any` for all but reads) on
//! paths that contain PART (`*` for all; with a `$` at its end, that end so), for the FROM-th such call (from 0) and COUNT after it, every EVERY-th.
//! ACTION is an error number, `short` (half is written) or `wait:MILLISECONDS`. A new ID starts to count anew.
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const NEXT: *mut c_void = -1_isize as *mut c_void;
const CWD: c_int = -100;
const WRONLY: c_int = 1;
const RDWR: c_int = 2;
const CREAT: c_int = 0o100;
const TRUNC: c_int = 0o1000;
const IDS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct IoVec {
    base: *const c_void,
    len: usize,
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
    fn close(fd: c_int) -> c_int;
    fn readlink(path: *const c_char, buf: *mut c_char, len: usize) -> isize;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn gettid() -> c_int;
}

/// Calls the next definition of a function, as if this library were not there.
macro_rules! real {
    ($name:literal, fn($($t:ty),*) -> $r:ty, $($arg:expr),*) => {{
        static AT: AtomicUsize = AtomicUsize::new(0);
        let mut at = AT.load(Ordering::Relaxed);
        if at == 0 {
            // SAFETY: the name ends with a zero byte.
            at = unsafe { dlsym(NEXT, concat!($name, "\0").as_ptr().cast()) } as usize;
            AT.store(at, Ordering::Relaxed);
        }
        // SAFETY: libc's function of this name has this type, and the caller's arguments are passed on.
        unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($t),*) -> $r>(at)($($arg),*) }
    }};
}

struct Setup {
    root: Vec<u8>,
    control: Vec<u8>,
    trace: c_int,
}

fn setup() -> Option<&'static Setup> {
    static SETUP: OnceLock<Option<Setup>> = OnceLock::new();
    let read = || {
        let path = |key: &str| {
            let mut bytes = std::env::var_os(key)?.as_bytes().to_vec();
            bytes.push(0);
            Some(bytes)
        };
        let mut root = path("FAULTY_DISK_ROOT")?;
        root.pop();
        let trace = path("FAULTY_DISK_TRACE")?;
        // Append and close on exec: one line is one write, so lines of several threads never mix.
        let flags = WRONLY | CREAT | 0o2000 | 0o2000000;
        let trace = real!(
            "open64",
            fn(*const c_char, c_int, c_uint) -> c_int,
            trace.as_ptr().cast(),
            flags,
            0o600
        );
        Some(Setup { root, control: path("FAULTY_DISK_CONTROL")?, trace })
    };
    SETUP.get_or_init(read).as_ref()
}

fn control(setup: &Setup) -> String {
    let fd = real!(
        "open64",
        fn(*const c_char, c_int, c_uint) -> c_int,
        setup.control.as_ptr().cast(),
        0o2000000,
        0
    );
    if fd < 0 {
        return String::new();
    }
    let mut buf = [0_u8; 4096];
    let n = real!(
        "read",
        fn(c_int, *mut c_void, usize) -> isize,
        fd,
        buf.as_mut_ptr().cast(),
        buf.len()
    );
    // SAFETY: the file was opened above.
    unsafe { close(fd) };
    String::from_utf8_lossy(&buf[..usize::try_from(n).unwrap_or(0)]).into_owned()
}

fn fd_path(fd: c_int) -> Vec<u8> {
    let link = format!("/proc/self/fd/{fd}\0");
    let mut buf = [0_u8; 1024];
    // SAFETY: both buffers live through the call, the first ends with a zero byte.
    let n = unsafe { readlink(link.as_ptr().cast(), buf.as_mut_ptr().cast(), buf.len()) };
    buf[..usize::try_from(n).unwrap_or(0)].to_vec()
}

/// The path that a call of the `at` family means.
unsafe fn at_path(dir: c_int, path: *const c_char) -> Vec<u8> {
    if path.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller passes a path as libc wants it.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    if dir == CWD || path.starts_with(b"/") {
        return path.to_vec();
    }
    [&fd_path(dir), &b"/"[..], path].concat()
}

/// A call on a path below the root.
struct Call {
    op: &'static str,
    path: Vec<u8>,
    offset: i64,
    len: usize,
    setup: &'static Setup,
}

enum Verdict {
    Pass,
    Fail(c_int),
    Short,
}

impl Call {
    fn below(op: &'static str, path: Vec<u8>, offset: i64, len: usize) -> Option<Self> {
        let setup = setup()?;
        path.starts_with(&setup.root).then_some(Self { op, path, offset, len, setup })
    }

    fn on_fd(op: &'static str, fd: c_int, offset: i64, len: usize) -> Option<Self> {
        Self::below(op, fd_path(fd), offset, len)
    }

    fn note(&self, phase: char, result: i64) {
        // SAFETY: no arguments.
        let tid = unsafe { gettid() };
        let path = String::from_utf8_lossy(&self.path);
        let line =
            format!("{phase} {} {tid} {} {} {result} {path}\n", self.op, self.offset, self.len);
        real!(
            "write",
            fn(c_int, *const c_void, usize) -> isize,
            self.setup.trace,
            line.as_ptr().cast(),
            line.len()
        );
    }

    fn grows(&self) -> bool {
        let size =
            std::fs::metadata(PathBuf::from(OsStr::from_bytes(&self.path))).map_or(0, |m| m.len());
        u64::try_from(self.offset).unwrap_or(0) + self.len as u64 > size
    }

    fn meant(&self, op: &str) -> bool {
        match op {
            "any" => self.op != "read",
            "grow" => matches!(self.op, "write" | "allocate") && self.grows(),
            other => other == self.op,
        }
    }

    fn verdict(&self) -> Verdict {
        static COUNTS: [AtomicU64; IDS] = [const { AtomicU64::new(0) }; IDS];
        let path = String::from_utf8_lossy(&self.path).into_owned();
        for line in control(self.setup).lines() {
            let word: Vec<&str> = line.split_whitespace().collect();
            let [id, op, part, action, from, count, every] = word[..] else { continue };
            let named =
                part.strip_suffix('$').map_or(path.contains(part), |end| path.ends_with(end));
            if !self.meant(op) || !(part == "*" || named) {
                continue;
            }
            let number = |s: &str| s.parse::<u64>().unwrap_or(0);
            let n = COUNTS[number(id) as usize % IDS].fetch_add(1, Ordering::Relaxed);
            let Some(past) = n.checked_sub(number(from)) else { continue };
            if past >= number(count) || past % number(every).max(1) != 0 {
                continue;
            }
            if let Some(ms) = action.strip_prefix("wait:") {
                std::thread::sleep(std::time::Duration::from_millis(number(ms)));
            } else if action == "short" {
                return Verdict::Short;
            } else {
                return Verdict::Fail(action.parse().unwrap_or(5));
            }
        }
        Verdict::Pass
    }

    /// Lets the call happen, in full, in part or not at all, and notes it.
    fn run(&self, whole: impl FnOnce() -> i64, part: impl FnOnce() -> i64) -> i64 {
        if self.op == "read" {
            return match self.verdict() {
                Verdict::Fail(errno) => fail(errno),
                Verdict::Short => part(),
                Verdict::Pass => whole(),
            };
        }
        self.note('B', 0);
        let result = match self.verdict() {
            Verdict::Fail(errno) => fail(errno),
            Verdict::Short => part(),
            Verdict::Pass => whole(),
        };
        // SAFETY: libc's own place for this thread's error number.
        let errno = unsafe { *__errno_location() };
        self.note('E', result);
        // SAFETY: as above; noting must not change what the caller sees.
        unsafe { *__errno_location() = errno };
        result
    }
}

fn fail(errno: c_int) -> i64 {
    // SAFETY: libc's own place for this thread's error number.
    unsafe { *__errno_location() = errno };
    -1
}

/// Runs a call if it is below the root, else passes it on.
fn gate(call: Option<Call>, whole: impl Fn() -> i64, part: impl FnOnce() -> i64) -> i64 {
    match call {
        Some(call) => call.run(&whole, part),
        None => whole(),
    }
}

fn half(n: usize) -> usize {
    (n / 2).max(1).min(n)
}

fn position(fd: c_int) -> i64 {
    // SAFETY: reads a file's position; on a socket it fails and says so.
    unsafe { lseek(fd, 0, 1) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, buf: *const c_void, n: usize) -> isize {
    let go = |n: usize| real!("write", fn(c_int, *const c_void, usize) -> isize, fd, buf, n) as i64;
    gate(Call::on_fd("write", fd, position(fd), n), || go(n), || go(half(n))) as isize
}

fn positioned(fd: c_int, buf: *const c_void, n: usize, offset: i64) -> isize {
    let go = |n: usize| {
        real!("pwrite64", fn(c_int, *const c_void, usize, i64) -> isize, fd, buf, n, offset) as i64
    };
    gate(Call::on_fd("write", fd, offset, n), || go(n), || go(half(n))) as isize
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, buf: *const c_void, n: usize, offset: i64) -> isize {
    positioned(fd, buf, n, offset)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, buf: *const c_void, n: usize, offset: i64) -> isize {
    positioned(fd, buf, n, offset)
}

/// The lengths of a vectored write added up, and its first part that is not empty.
unsafe fn gathered(iov: *const IoVec, count: c_int) -> (usize, IoVec) {
    let parts: &[IoVec] = if count <= 0 {
        &[]
    } else {
        // SAFETY: the caller passes `count` parts.
        unsafe { std::slice::from_raw_parts(iov, count as usize) }
    };
    let none = IoVec { base: std::ptr::null(), len: 0 };
    (parts.iter().map(|p| p.len).sum(), parts.iter().find(|p| p.len > 0).copied().unwrap_or(none))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, iov: *const IoVec, count: c_int) -> isize {
    // SAFETY: as the caller of writev promises.
    let (len, first) = unsafe { gathered(iov, count) };
    let part = || {
        real!("write", fn(c_int, *const c_void, usize) -> isize, fd, first.base, half(first.len))
            as i64
    };
    let whole = || real!("writev", fn(c_int, *const IoVec, c_int) -> isize, fd, iov, count) as i64;
    gate(Call::on_fd("write", fd, position(fd), len), whole, part) as isize
}

fn gathered_at(
    fd: c_int,
    iov: *const IoVec,
    count: c_int,
    offset: i64,
    whole: impl Fn() -> i64,
) -> isize {
    // SAFETY: as the caller of pwritev promises.
    let (len, first) = unsafe { gathered(iov, count) };
    let part = || {
        real!(
            "pwrite64",
            fn(c_int, *const c_void, usize, i64) -> isize,
            fd,
            first.base,
            half(first.len),
            offset
        ) as i64
    };
    gate(Call::on_fd("write", fd, offset, len), whole, part) as isize
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev(fd: c_int, iov: *const IoVec, count: c_int, offset: i64) -> isize {
    gathered_at(fd, iov, count, offset, || {
        real!("pwritev", fn(c_int, *const IoVec, c_int, i64) -> isize, fd, iov, count, offset)
            as i64
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64(
    fd: c_int,
    iov: *const IoVec,
    count: c_int,
    offset: i64,
) -> isize {
    gathered_at(fd, iov, count, offset, || {
        real!("pwritev64", fn(c_int, *const IoVec, c_int, i64) -> isize, fd, iov, count, offset)
            as i64
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_at: *mut i64,
    to: c_int,
    to_at: *mut i64,
    n: usize,
    flags: c_uint,
) -> isize {
    let go = |n: usize| {
        real!(
            "copy_file_range",
            fn(c_int, *mut i64, c_int, *mut i64, usize, c_uint) -> isize,
            from,
            from_at,
            to,
            to_at,
            n,
            flags
        ) as i64
    };
    // SAFETY: the caller passes a place to read the offset from, or none.
    let offset = if to_at.is_null() { position(to) } else { unsafe { *to_at } };
    gate(Call::on_fd("write", to, offset, n), || go(n), || go(half(n))) as isize
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(to: c_int, from: c_int, at: *mut i64, n: usize) -> isize {
    let go = |n: usize| {
        real!("sendfile64", fn(c_int, c_int, *mut i64, usize) -> isize, to, from, at, n) as i64
    };
    gate(Call::on_fd("write", to, position(to), n), || go(n), || go(half(n))) as isize
}

/// Functions that take a file and are wholly done or not at all.
macro_rules! whole_on_fd {
    ($($op:literal $name:ident $text:literal ($fd:ident $(, $arg:ident: $t:ty)*) at $offset:expr, $len:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($fd: c_int $(, $arg: $t)*) -> c_int {
            let whole = || real!($text, fn(c_int $(, $t)*) -> c_int, $fd $(, $arg)*) as i64;
            gate(Call::on_fd($op, $fd, $offset, $len), whole, whole) as c_int
        }
    )*};
}

whole_on_fd! {
    "sync" fsync "fsync" (fd) at 0, 0;
    "sync" fdatasync "fdatasync" (fd) at 0, 0;
    "allocate" ftruncate "ftruncate" (fd, len: i64) at len, 0;
    "allocate" ftruncate64 "ftruncate64" (fd, len: i64) at len, 0;
    "allocate" fallocate "fallocate" (fd, mode: c_int, offset: i64, len: i64) at offset, len as usize;
    "allocate" fallocate64 "fallocate64" (fd, mode: c_int, offset: i64, len: i64) at offset, len as usize;
}

/// Functions that take paths; the last one named is the one that counts.
macro_rules! on_path {
    ($($op:literal $name:ident $text:literal ($($arg:ident: $t:ty),*) at $dir:expr, $path:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $t),*) -> c_int {
            let whole = || real!($text, fn($($t),*) -> c_int, $($arg),*) as i64;
            // SAFETY: the caller passes paths as libc wants them.
            let path = unsafe { at_path($dir, $path) };
            gate(Call::below($op, path, 0, 0), whole, whole) as c_int
        }
    )*};
}

on_path! {
    "rename" rename "rename" (from: *const c_char, to: *const c_char) at CWD, to;
    "rename" renameat "renameat" (a: c_int, from: *const c_char, b: c_int, to: *const c_char) at b, to;
    "rename" renameat2 "renameat2" (a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_uint) at b, to;
    "rename" link "link" (from: *const c_char, to: *const c_char) at CWD, to;
    "rename" linkat "linkat" (a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: c_int) at b, to;
    "unlink" unlink "unlink" (path: *const c_char) at CWD, path;
    "unlink" unlinkat "unlinkat" (dir: c_int, path: *const c_char, flags: c_int) at dir, path;
    "unlink" rmdir "rmdir" (path: *const c_char) at CWD, path;
    "create" mkdir "mkdir" (path: *const c_char, mode: c_uint) at CWD, path;
    "create" mkdirat "mkdirat" (dir: c_int, path: *const c_char, mode: c_uint) at dir, path;
    "attributes" chmod "chmod" (path: *const c_char, mode: c_uint) at CWD, path;
}

fn opening(dir: c_int, path: *const c_char, flags: c_int, whole: impl Fn() -> i64) -> c_int {
    let op = match flags {
        f if f & CREAT != 0 => "create",
        f if f & (WRONLY | RDWR | TRUNC) != 0 => "openw",
        _ => return whole() as c_int,
    };
    // SAFETY: the caller passes a path as libc wants it.
    let path = unsafe { at_path(dir, path) };
    gate(Call::below(op, path, 0, 0), &whole, &whole) as c_int
}

/// The mode is passed on whether it was given or not: libc reads it only where the flags say so.
macro_rules! open {
    ($($name:ident $text:literal ($($dir:ident)?);)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($dir: c_int,)? path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            let at = [CWD, $($dir)?];
            opening(at[at.len() - 1], path, flags, || {
                real!($text, fn($(open!(@type $dir),)? *const c_char, c_int, c_uint) -> c_int, $($dir,)? path, flags, mode)
                    as i64
            })
        }
    )*};
    (@type $dir:ident) => { c_int };
}

open! {
    open "open" ();
    open64 "open64" ();
    openat "openat" (dir);
    openat64 "openat64" (dir);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, buf: *mut c_void, n: usize) -> isize {
    let go = |n: usize| real!("read", fn(c_int, *mut c_void, usize) -> isize, fd, buf, n) as i64;
    gate(Call::on_fd("read", fd, 0, n), || go(n), || go(half(n))) as isize
}

fn read_at(fd: c_int, buf: *mut c_void, n: usize, offset: i64) -> isize {
    let go = |n: usize| {
        real!("pread64", fn(c_int, *mut c_void, usize, i64) -> isize, fd, buf, n, offset) as i64
    };
    gate(Call::on_fd("read", fd, offset, n), || go(n), || go(half(n))) as isize
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread64(fd: c_int, buf: *mut c_void, n: usize, offset: i64) -> isize {
    read_at(fd, buf, n, offset)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread(fd: c_int, buf: *mut c_void, n: usize, offset: i64) -> isize {
    read_at(fd, buf, n, offset)
}
