//! A Python environment with others' programs in it, by their package names and pinned versions.
//!
//! Invariant: an environment is used only if its marker names exactly the wanted packages; the marker is written last, so
//! an interrupted installation is never taken for a whole one. Must not know what the packages are for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Failure;

/// Packages by name and version. What they need besides is chosen by pip, and stands in the report.
pub type Pins = [(&'static str, &'static str)];

/// The file that says what an environment holds.
const MARKER: &str = "flashbulb-bench-environment.json";
/// How many of pip's last lines an error shows.
const LINES_SHOWN: usize = 8;

/// An environment that is there.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// Its interpreter.
    #[serde(skip)]
    pub python: PathBuf,
    /// `Python 3.x.y`.
    pub version: String,
    /// Every package in it, as `pip freeze` writes them.
    pub packages: Vec<String>,
    /// How long it took to make; none if it was there.
    pub made_in_s: Option<f64>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Marker {
    pins: Vec<String>,
    made_with: PathBuf,
}

fn written(pins: &Pins) -> Vec<String> {
    pins.iter().map(|(name, version)| format!("{name}=={version}")).collect()
}

/// The folder that is used where an option names none: `$XDG_CACHE_HOME/flashbulb-bench/NAME`, or the same under `~/.cache`.
///
/// # Errors
/// If neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
pub fn default_dir(name: &str, option: &str) -> Result<PathBuf, Failure> {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    let base = base.ok_or_else(|| {
        format!("neither XDG_CACHE_HOME nor HOME is set; name a folder with {option}")
    })?;
    Ok(base.join("flashbulb-bench").join(name))
}

/// The environment in `dir` with `pins`, made with `python` if it is not there.
///
/// # Errors
/// If `dir` holds something else, or what Python and pip say.
pub fn ensure(python: &Path, dir: &Path, pins: &Pins) -> Result<Environment, Failure> {
    let inside = dir.join("bin/python");
    let marker = dir.join(MARKER);
    let wanted = Marker { pins: written(pins), made_with: python.to_owned() };
    let made_in_s = if is_there(dir, &marker, &wanted)? {
        None
    } else {
        let begun = Instant::now();
        make(python, dir, &inside, &wanted.pins)?;
        std::fs::write(&marker, serde_json::to_vec_pretty(&wanted)?)?;
        Some(begun.elapsed().as_secs_f64())
    };
    let version = said(Command::new(&inside).arg("--version"), "python --version")?;
    let freeze = ["-m", "pip", "--disable-pip-version-check", "freeze"];
    let packages = said(Command::new(&inside).args(freeze), "pip freeze")?;
    let packages = packages.lines().map(str::to_owned).collect();
    Ok(Environment { python: inside, version: version.trim().to_owned(), packages, made_in_s })
}

/// Whether the wanted environment is there.
fn is_there(dir: &Path, marker: &Path, wanted: &Marker) -> Result<bool, Failure> {
    let shown = dir.display();
    if !dir.exists() || std::fs::read_dir(dir)?.next().is_none() {
        return Ok(false);
    }
    if !dir.join("pyvenv.cfg").exists() {
        return Err(format!(
            "{shown} is no Python environment of this program; name another folder with --env"
        )
        .into());
    }
    let Ok(text) = std::fs::read(marker) else {
        eprintln!("{shown} was not finished, it is made again");
        return Ok(false);
    };
    let found: Marker = serde_json::from_slice(&text)
        .map_err(|e| format!("{} is damaged: {e}; remove the folder", marker.display()))?;
    if found != *wanted {
        eprintln!("{shown} holds other versions, they are replaced");
    }
    Ok(found == *wanted)
}

fn make(python: &Path, dir: &Path, inside: &Path, pins: &[String]) -> Result<(), Failure> {
    eprintln!("making a Python environment in {} with {}", dir.display(), pins.join(" "));
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|e| format!("cannot make {}: {e}", parent.display()))?;
    }
    // A marker of other versions must not outlive them.
    match std::fs::remove_file(dir.join(MARKER)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    said(Command::new(python).args(["-m", "venv"]).arg(dir), "python -m venv")?;
    let options = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ];
    said(Command::new(inside).args(options).args(pins), "pip install").map(drop)
}

/// What a command says, if it succeeds.
///
/// # Errors
/// If it cannot be started, or the end of what it said instead.
pub fn said(command: &mut Command, what: &str) -> Result<String, Failure> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot run {}: {e}", command.get_program().to_string_lossy()))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
    Err(format!("`{what}` ended with {}:\n{tail}", out.status).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PINS: [(&str, &str); 2] = [("numpy", "2.4.6"), ("tokenizers", "0.23.3")];

    #[test]
    fn only_a_finished_environment_of_these_versions_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join(MARKER);
        let wanted = Marker { pins: written(&PINS), made_with: "python3".into() };
        let there = || is_there(dir.path(), &marker, &wanted);
        assert!(!there().unwrap(), "an empty folder");
        std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
        assert!(there().unwrap_err().to_string().contains("no Python environment"));
        std::fs::write(dir.path().join("pyvenv.cfg"), "").unwrap();
        assert!(!there().unwrap(), "interrupted");
        let other = Marker { pins: vec!["chromadb==0.1".into()], made_with: "python3".into() };
        std::fs::write(&marker, serde_json::to_vec(&other).unwrap()).unwrap();
        assert!(!there().unwrap(), "other versions");
        std::fs::write(&marker, serde_json::to_vec(&wanted).unwrap()).unwrap();
        assert!(there().unwrap());
    }

    #[test]
    fn a_python_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            ensure(Path::new("/nowhere/python3"), &dir.path().join("env"), &PINS).unwrap_err();
        assert!(error.to_string().contains("cannot run /nowhere/python3"), "{error}");
    }
}
