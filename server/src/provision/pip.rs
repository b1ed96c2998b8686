//! Fetching one pinned package with the user's own pip, and unpacking what is kept of it.
//!
//! Invariant: a file reaches the staging folder only with its pinned sum. It must not know where folders end up.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::files::{make_dir, sha256, write_synced};
use super::pins::Component;
use super::{Progress, ProvisionError};

/// How long one package may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// How many of pip's last lines an error shows.
const LINES_SHOWN: usize = 8;

/// Finds Python, runs `pip download` for `component` into `scratch` and unpacks its files into `staged`.
pub fn fetch(
    component: &Component,
    python: Option<&Path>,
    scratch: &Path,
    staged: &Path,
    progress: &dyn Progress,
) -> Result<(), ProvisionError> {
    let what = format!("{} {}", component.package, component.version);
    let python = find_python(python, &what)?;
    let downloads = scratch.join("pip");
    make_dir(&downloads)?;
    let step = format!("fetching {what}");
    progress.step(&step);
    download(component, &python, &downloads, &what, progress)?;
    progress.done(&step);
    let archive = single_file(&downloads)?;
    check(&archive, component.archive_sha256)?;
    let step = format!("unpacking {what}");
    progress.step(&step);
    unpack(component, &archive, staged)?;
    progress.done(&step);
    fs::remove_file(&archive).map_err(|error| ProvisionError::io(&archive, error))
}

/// The first interpreter that runs and is Python 3.
fn find_python(wanted: Option<&Path>, what: &str) -> Result<OsString, ProvisionError> {
    let candidates: Vec<OsString> = match wanted {
        Some(path) => vec![path.into()],
        None => vec!["python3".into(), "python".into()],
    };
    let mut tried = Vec::new();
    for candidate in &candidates {
        let name = candidate.to_string_lossy();
        let out = Command::new(candidate)
            .args(["-c", "import sys; print(sys.version_info[0])"])
            .stdin(Stdio::null())
            .output();
        match out {
            Ok(out) if out.status.success() && out.stdout.starts_with(b"3") => {
                return Ok(candidate.clone());
            }
            Ok(out) => tried.push(format!("{name}: no working Python 3, {}", out.status)),
            Err(error) => tried.push(format!("{name}: {error}")),
        }
    }
    Err(ProvisionError::NoPython { tried: tried.join("; "), what: what.to_owned() })
}

fn download(
    component: &Component,
    python: &OsString,
    downloads: &Path,
    what: &str,
    progress: &dyn Progress,
) -> Result<(), ProvisionError> {
    let errors = downloads.with_extension("stderr");
    let log = fs::File::create(&errors).map_err(|error| ProvisionError::io(&errors, error))?;
    let mut command = pip_command(component, python, downloads);
    command.stderr(log);
    let mut child =
        Running(command.spawn().map_err(|error| ProvisionError::io(Path::new(python), error))?);
    let started = Instant::now();
    let status = loop {
        let ended =
            child.0.try_wait().map_err(|error| ProvisionError::io(Path::new(python), error))?;
        if let Some(status) = ended {
            break status;
        }
        if started.elapsed() > LIMIT {
            return Err(ProvisionError::PipTimeout {
                what: what.to_owned(),
                limit_s: LIMIT.as_secs(),
            });
        }
        let done =
            bytes_under(downloads.parent().unwrap_or(downloads)).min(component.archive_bytes);
        progress.bytes(done, Some(component.archive_bytes));
        std::thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(());
    }
    let said = fs::read(&errors).unwrap_or_default();
    Err(explain(&String::from_utf8_lossy(&said), &status.to_string(), python, what))
}

/// `python -m pip download` of exactly the pinned file, whatever Python and machine run it.
fn pip_command(component: &Component, python: &OsString, downloads: &Path) -> Command {
    const OPTIONS: &str = "-m pip download --disable-pip-version-check --no-input --progress-bar off --timeout 30 \
                           --retries 2 --no-deps --only-binary=:all: --python-version 3.13 --implementation cp \
                           --abi cp313 --abi none";
    let mut command = Command::new(python);
    command.args(OPTIONS.split_whitespace());
    if let Some(tag) = component.platform_tag {
        command.args(["--platform", tag]);
    }
    command
        .arg("-d")
        .arg(downloads)
        .arg(format!("{}=={}", component.package, component.version))
        // pip unpacks its download here first: on the same disk, and removed with everything else.
        .env("TMPDIR", downloads.parent().unwrap_or(downloads))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// A child that does not outlive its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What pip's words mean.
fn explain(said: &str, status: &str, python: &OsString, what: &str) -> ProvisionError {
    const NETWORK: [&str; 8] = [
        "Failed to establish a new connection",
        "Temporary failure in name resolution",
        "Name or service not known",
        "Network is unreachable",
        "Connection refused",
        "ConnectTimeoutError",
        "Connection timed out",
        "Cannot connect to proxy",
    ];
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let stderr = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
    let what = what.to_owned();
    if said.contains("No module named pip") {
        let python = python.to_string_lossy().into_owned();
        return ProvisionError::NoPip { python };
    }
    if said.contains("No space left on device") {
        return ProvisionError::DiskFull { path: PathBuf::from("pip's download folder") };
    }
    if NETWORK.iter().any(|sign| said.contains(sign)) {
        return ProvisionError::NoNetwork { what, stderr };
    }
    ProvisionError::PipFailed { what, status: status.to_owned(), stderr }
}

fn bytes_under(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_under(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn single_file(dir: &Path) -> Result<PathBuf, ProvisionError> {
    let entries = fs::read_dir(dir).map_err(|error| ProvisionError::io(dir, error))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        _ => Err(ProvisionError::Package {
            path: dir.to_owned(),
            what: "pip did not leave exactly one file".into(),
        }),
    }
}

/// Refuses a file whose sum is not `expected`, and removes it so that the next run fetches it anew.
fn check(path: &Path, expected: &str) -> Result<(), ProvisionError> {
    let (found, _) = sha256(path).map_err(|error| ProvisionError::io(path, error))?;
    if found == expected {
        return Ok(());
    }
    fs::remove_file(path).map_err(|error| ProvisionError::io(path, error))?;
    Err(ProvisionError::Checksum { path: path.to_owned(), expected: expected.to_owned(), found })
}

fn unpack(component: &Component, archive: &Path, staged: &Path) -> Result<(), ProvisionError> {
    let broken = |what: String| ProvisionError::Package { path: archive.to_owned(), what };
    let file = fs::File::open(archive).map_err(|error| ProvisionError::io(archive, error))?;
    let mut zip = zip::ZipArchive::new(file)
        .map_err(|error| broken(format!("is no zip archive ({error})")))?;
    for pinned in component.files {
        let mut member = zip
            .by_name(pinned.member)
            .map_err(|error| broken(format!("lacks {} ({error})", pinned.member)))?;
        let mut bytes = Vec::new();
        member
            .read_to_end(&mut bytes)
            .map_err(|error| broken(format!("{} cannot be unpacked ({error})", pinned.member)))?;
        let target = staged.join(pinned.path);
        make_dir(target.parent().unwrap_or(staged))?;
        write_synced(&target, &bytes)?;
        // Read back from the disk: the sum then also vouches for the write.
        check(&target, pinned.sha256)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_words_are_understood() {
        let kind =
            |said: &str| explain(said, "exit status: 1", &"python3".into(), "x 1.0").to_string();
        assert!(kind("/usr/bin/python3: No module named pip").contains("ensurepip"));
        assert!(kind("WARNING: Retrying ... [Errno -3] Temporary failure in name resolution\nERROR: No matching distribution")
            .contains("no network"));
        assert!(kind("OSError: [Errno 28] No space left on device").contains("disk is full"));
        let other = kind("one\n\nERROR: No matching distribution found for x==1.0");
        assert!(
            other.contains("No matching distribution") && other.contains("exit status: 1"),
            "{other}"
        );
    }
}
