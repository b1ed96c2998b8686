//! Bringing ONNX Runtime and the default model to this machine, once, and knowing that they are whole.
//!
//! Invariants: what is used has its pinned sum or was named by the user; an interrupted run leaves nothing that a
//! later one trips over; two processes never install at once; `offline` never starts a process. It must not know
//! what the files are for.

mod bundle;
mod error;
mod files;
mod pins;
mod pip;
mod progress;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::ProvisionError;
pub use files::{hex, sha256, size_and_time};
pub use progress::{Drawn, Logged, Progress, Quiet};

use pins::{Accelerated, Component};

/// Where Flashbulb keeps what is not the user's own data.
#[derive(Debug, Clone)]
pub struct Places {
    /// `$XDG_DATA_HOME/flashbulb`, or `~/.local/share/flashbulb`.
    pub data_dir: PathBuf,
}

impl Places {
    /// The places of this user.
    ///
    /// # Errors
    /// Neither `XDG_DATA_HOME` (absolute, as its specification demands) nor `HOME` is set.
    pub fn discover() -> Result<Self, ProvisionError> {
        let var =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base =
            var("XDG_DATA_HOME").or_else(|| var("HOME").map(|home| home.join(".local/share")));
        match base {
            Some(base) => Ok(Self { data_dir: base.join("flashbulb") }),
            None => Err(ProvisionError::NoDataDir),
        }
    }

    /// Compiled graphs.
    pub fn compiled_dir(&self) -> PathBuf {
        self.data_dir.join("compiled")
    }

    fn scratch_dir(&self) -> PathBuf {
        self.data_dir.join("tmp")
    }
}

/// Which of the pinned runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Build {
    /// The one for the processor.
    #[default]
    Cpu,
    /// The one for an accelerator if it was installed, else the one for the processor: it is large, so only
    /// [`setup`] fetches it.
    AcceleratedIfInstalled,
    /// The one for an accelerator.
    Accelerated,
}

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A libonnxruntime to use instead of the pinned one.
    pub runtime: Option<PathBuf>,
    /// Which pinned runtime, where none is named.
    pub build: Build,
    /// A model folder to use instead of the default model.
    pub model: Option<PathBuf>,
    /// The interpreter whose pip fetches; `python3`, then `python`, when none is given.
    pub python: Option<PathBuf>,
    /// Never fetch.
    pub offline: bool,
}

/// What is there to use.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// The ONNX Runtime library, an absolute path.
    pub runtime_library: PathBuf,
    /// The model folder, an absolute path.
    pub model_dir: PathBuf,
    /// Where compiled graphs are kept.
    pub compiled_dir: PathBuf,
}

/// The state of one installed file set, for `doctor`.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The folder.
    pub dir: PathBuf,
    /// How many files were hashed.
    pub files: usize,
}

/// Everything that is needed, fetched first if it must be. Does no work when all is there.
///
/// # Errors
/// See [`ProvisionError`]; each says what to do next.
pub fn ensure(wanted: &Wanted, progress: &dyn Progress) -> Result<Provisioned, ProvisionError> {
    ensure_in(&Places::discover()?, wanted, progress)
}

/// [`ensure`] with the places given.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_in(
    places: &Places,
    wanted: &Wanted,
    progress: &dyn Progress,
) -> Result<Provisioned, ProvisionError> {
    install(places, wanted, None, progress)
}

/// `flashbulb setup`: as [`ensure`], from a bundle when `from` is given; then writes a bundle when `bundle` is.
///
/// # Errors
/// See [`ProvisionError`]; each says what to do next.
pub fn setup(
    wanted: &Wanted,
    from: Option<&Path>,
    bundle: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Provisioned, ProvisionError> {
    setup_in(&Places::discover()?, wanted, from, bundle, progress)
}

/// [`setup`] with the places given.
///
/// # Errors
/// As [`setup`].
pub fn setup_in(
    places: &Places,
    wanted: &Wanted,
    from: Option<&Path>,
    bundle: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Provisioned, ProvisionError> {
    let components = needed(places, wanted)?;
    let provisioned = install(places, wanted, from, progress)?;
    if let Some(to) = bundle {
        let custom = wanted.runtime.as_deref().or(wanted.model.as_deref());
        if let Some(path) = custom {
            return Err(ProvisionError::BadPath {
                path: path.to_owned(),
                what: "a bundle holds the pinned runtime and model only; set up without it",
            });
        }
        let step = format!("writing the bundle {}", to.display());
        progress.step(&step);
        bundle::write(&components, &places.data_dir, to)?;
        progress.done(&step);
    }
    Ok(provisioned)
}

/// Hashes every installed file; for `doctor`.
///
/// # Errors
/// A file is missing or damaged.
pub fn verify_files(places: &Places, wanted: &Wanted) -> Result<Vec<Verified>, ProvisionError> {
    let mut verified = Vec::new();
    for component in needed(places, wanted)? {
        let dir = places.data_dir.join(folder_name(component));
        let expected = expected_sums(component);
        if let Some(damage) = files::damage(&dir, &expected) {
            return Err(ProvisionError::Package {
                what: format!("SHA-256 is {}, expected {}", damage.found, damage.expected),
                path: damage.path,
            });
        }
        verified.push(Verified { dir, files: expected.len() });
    }
    Ok(verified)
}

/// `<kind>/<name>-<version>`, under the data folder and in bundles.
fn folder_name(component: &Component) -> String {
    format!("{}/{}-{}", component.kind, component.folder, component.version)
}

fn expected_sums(component: &Component) -> Vec<(&'static str, &'static str)> {
    component.files.iter().map(|file| (file.path, file.sha256)).collect()
}

/// The pinned runtime that `wanted` means, and its library's name in it.
fn runtime(
    places: &Places,
    wanted: &Wanted,
) -> Result<(&'static Component, &'static str), ProvisionError> {
    let here = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    let platform = pins::platform().ok_or_else(|| {
        let list = pins::PLATFORMS.iter().map(|p| format!("{}-{}", p.os, p.arch));
        let supported = list.collect::<Vec<_>>().join(", ");
        ProvisionError::UnsupportedPlatform { platform: here.clone(), supported }
    })?;
    let component = match (wanted.build, &platform.accelerated) {
        (Build::Accelerated, Accelerated::None) => {
            return Err(ProvisionError::NoAccelerated { platform: here });
        }
        (Build::Accelerated, Accelerated::Apart(apart)) => apart,
        // A damaged one is mended or refused like any other, not passed over.
        (Build::AcceleratedIfInstalled, Accelerated::Apart(apart))
            if places.data_dir.join(folder_name(apart)).is_dir() =>
        {
            apart
        }
        _ => &platform.runtime,
    };
    Ok((component, platform.library))
}

/// The components that the user did not replace by his own.
fn needed(places: &Places, wanted: &Wanted) -> Result<Vec<&'static Component>, ProvisionError> {
    let mut components = Vec::new();
    if wanted.runtime.is_none() {
        components.push(runtime(places, wanted)?.0);
    }
    if wanted.model.is_none() {
        components.push(&pins::MODEL);
    }
    Ok(components)
}

fn install(
    places: &Places,
    wanted: &Wanted,
    from: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Provisioned, ProvisionError> {
    let components = needed(places, wanted)?;
    let is_whole = |component: &&&Component| {
        files::is_untouched(
            &places.data_dir.join(folder_name(component)),
            &expected_sums(component),
        )
    };
    if !components.iter().all(|component| is_whole(&component)) {
        files::make_dir(&places.data_dir)?;
        let lock = Lock::take(&places.data_dir.join("provision.lock"), progress)?;
        // Under the lock nobody else writes here: whatever lies around is of a run that was cut off.
        let scratch = places.scratch_dir();
        remove_dir(&scratch)?;
        for component in &components {
            if !is_whole(&component) {
                files::make_dir(&scratch)?;
                install_one(places, component, wanted, from, progress)?;
            }
        }
        remove_dir(&scratch)?;
        drop(lock);
    }
    provisioned(places, wanted)
}

fn provisioned(places: &Places, wanted: &Wanted) -> Result<Provisioned, ProvisionError> {
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|error| ProvisionError::io(path, error));
    let runtime_library = match &wanted.runtime {
        Some(path) if path.is_file() => absolute(path)?,
        Some(path) => {
            return Err(ProvisionError::BadPath {
                path: path.clone(),
                what: "FLASHBULB_ORT (or --runtime) must name the libonnxruntime file itself",
            });
        }
        None => {
            let (component, library) = runtime(places, wanted)?;
            places.data_dir.join(folder_name(component)).join(library)
        }
    };
    let model_dir = match &wanted.model {
        Some(path) if path.is_dir() => absolute(path)?,
        Some(path) => {
            return Err(ProvisionError::BadPath {
                path: path.clone(),
                what: "FLASHBULB_MODEL (or --model) must name a model folder",
            });
        }
        None => places.data_dir.join(folder_name(&pins::MODEL)),
    };
    Ok(Provisioned { runtime_library, model_dir, compiled_dir: places.compiled_dir() })
}

fn install_one(
    places: &Places,
    component: &Component,
    wanted: &Wanted,
    from: Option<&Path>,
    progress: &dyn Progress,
) -> Result<(), ProvisionError> {
    let target = places.data_dir.join(folder_name(component));
    let expected = expected_sums(component);
    if target.is_dir() {
        let step = format!("checking {}", target.display());
        progress.step(&step);
        let damage = files::damage(&target, &expected);
        progress.done(&step);
        match damage {
            // Touched but whole, for example copied or restored: a new stamp is enough.
            None => return files::stamp(&target, &expected),
            Some(damage) if wanted.offline && from.is_none() => {
                return Err(ProvisionError::DamagedOffline {
                    path: damage.path,
                    expected: damage.expected,
                    found: damage.found,
                });
            }
            Some(damage) => {
                let note = format!(
                    "{} is damaged: installing {} again",
                    damage.path.display(),
                    component.package
                );
                tracing::warn!(path = %damage.path.display(), found = damage.found, "damaged file; installing again");
                progress.step(&note);
                progress.done(&note);
            }
        }
    }
    let staged = places.scratch_dir().join(component.folder);
    files::make_dir(&staged)?;
    match from {
        Some(from) => bundle::read(component, from, &staged)?,
        None if wanted.offline => {
            return Err(ProvisionError::Offline {
                what: format!("{} {}", component.package, component.version),
                dir: places.data_dir.clone(),
            });
        }
        None => {
            let scratch = places.scratch_dir().join(format!("{}-download", component.folder));
            files::make_dir(&scratch)?;
            pip::fetch(component, wanted.python.as_deref(), &scratch, &staged, progress)?;
        }
    }
    files::stamp(&staged, &expected)?;
    files::publish(&staged, &target)
}

fn remove_dir(dir: &Path) -> Result<(), ProvisionError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ProvisionError::io(dir, error))
        }
        _ => Ok(()),
    }
}

/// An exclusive lock that the kernel lets go when its process ends, however it ends.
struct Lock {
    _file: File,
}

impl Lock {
    fn take(path: &Path, progress: &dyn Progress) -> Result<Self, ProvisionError> {
        let open = File::options().create(true).append(true).open(path);
        let file = open.map_err(|error| ProvisionError::io(path, error))?;
        let step = "waiting for another flashbulb that is setting up";
        let mut waiting = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if !waiting {
                        progress.step(step);
                        waiting = true;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::Error(error)) => return Err(ProvisionError::io(path, error)),
            }
        }
        if waiting {
            progress.done(step);
        }
        Ok(Self { _file: file })
    }
}
