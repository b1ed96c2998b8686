//! Provisioning that fails, is cut off, finds damage, and works from a bundle.
//!
//! Fake interpreters are shell scripts that answer the version question and then misbehave as pip might.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flashbulb::provision::{
    Build, Places, ProvisionError, Quiet, Wanted, ensure_in, setup_in, verify_files,
};

use super::support::{places, provisioned};

/// A script that passes for Python 3 and does `pip` when it is asked to download.
fn fake_python(dir: &Path, pip: &str) -> PathBuf {
    let path = dir.join("python3");
    let script = format!("#!/bin/sh\ncase \"$1\" in -c) echo 3; exit 0;; esac\n{pip}\n");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// An empty data folder.
fn empty() -> (tempfile::TempDir, Places) {
    let dir = tempfile::tempdir().unwrap();
    let places = Places { data_dir: dir.path().join("data/flashbulb") };
    (dir, places)
}

/// What `ensure` says with an interpreter whose pip does `pip`.
fn failure(pip: &str) -> ProvisionError {
    let (dir, places) = empty();
    let wanted = Wanted { python: Some(fake_python(dir.path(), pip)), ..Wanted::default() };
    let error = ensure_in(&places, &wanted, &Quiet).unwrap_err();
    assert!(!places.data_dir.join("runtime").exists(), "nothing half-made may stay");
    error
}

/// A copy of the shared installation, to damage.
fn copy_of_shared() -> (tempfile::TempDir, Places) {
    provisioned();
    let (dir, copy) = empty();
    for entry in walk(&places().data_dir) {
        let below = entry.strip_prefix(places().data_dir).unwrap().to_owned();
        if below.starts_with("runtime") || below.starts_with("models") {
            let target = copy.data_dir.join(below);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(&entry, target).unwrap();
        }
    }
    (dir, copy)
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(walk(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

fn offline() -> Wanted {
    Wanted { offline: true, python: Some("/nonexistent/python".into()), ..Wanted::default() }
}

/// The package is large, so that nothing here fetches it.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn a_runtime_for_gpus_is_used_once_it_is_installed_and_fetched_by_setup_only() {
    let (_dir, copy) = copy_of_shared();
    let if_installed = Wanted { build: Build::AcceleratedIfInstalled, ..offline() };
    let provisioned = ensure_in(&copy, &if_installed, &Quiet).unwrap();
    assert!(!provisioned.runtime_library.to_str().unwrap().contains("gpu"), "{provisioned:?}");
    let now = Wanted { build: Build::Accelerated, ..offline() };
    match setup_in(&copy, &now, None, None, &Quiet).unwrap_err() {
        ProvisionError::Offline { what, .. } => {
            assert!(what.starts_with("onnxruntime-gpu "), "{what}")
        }
        other => panic!("{other}"),
    }
    // One that is there but damaged is an error, not a reason to take the other.
    let installed = copy.data_dir.join("runtime/onnxruntime-gpu-1.31.1");
    fs::create_dir_all(&installed).unwrap();
    fs::write(installed.join("libonnxruntime.so"), "half").unwrap();
    let error = ensure_in(&copy, &if_installed, &Quiet).unwrap_err();
    assert!(matches!(error, ProvisionError::DamagedOffline { .. }), "{error}");
    assert!(ensure_in(&copy, &offline(), &Quiet).is_ok());
}

#[test]
fn each_failure_of_pip_has_its_own_error() {
    let error = failure("echo 'No module named pip' >&2; exit 1");
    assert!(matches!(error, ProvisionError::NoPip { .. }), "{error}");
    assert!(error.to_string().contains("ensurepip"));
    let error = failure("echo 'Temporary failure in name resolution' >&2; exit 1");
    assert!(matches!(error, ProvisionError::NoNetwork { .. }), "{error}");
    let error = failure("echo 'something odd' >&2; exit 7");
    assert!(
        error.to_string().contains("something odd") && error.to_string().contains('7'),
        "{error}"
    );
    let error = failure("exit 0");
    assert!(matches!(error, ProvisionError::Package { .. }), "no file: {error}");
}

#[test]
fn a_corrupt_package_is_refused_and_removed() {
    let pip = "while [ \"$1\" != -d ]; do shift; done; echo rubbish > \"$2/onnxruntime.whl\"";
    let error = failure(pip);
    let ProvisionError::Checksum { path, expected, found } = error else {
        panic!("{error}");
    };
    assert!(!path.exists());
    assert_eq!((expected.len(), found.len()), (64, 64));
}

#[test]
fn without_python_the_error_names_what_was_tried() {
    let (dir, places) = empty();
    let missing = dir.path().join("python9");
    let wanted = Wanted { python: Some(missing.clone()), ..Wanted::default() };
    let error = ensure_in(&places, &wanted, &Quiet).unwrap_err();
    assert!(matches!(error, ProvisionError::NoPython { .. }));
    assert!(error.to_string().contains(&*missing.to_string_lossy()), "{error}");
    // A Python 2 is none.
    let old = fake_python(dir.path(), "exit 1");
    fs::write(&old, "#!/bin/sh\necho 2\n").unwrap();
    let wanted = Wanted { python: Some(old), ..Wanted::default() };
    assert!(matches!(ensure_in(&places, &wanted, &Quiet), Err(ProvisionError::NoPython { .. })));
}

#[test]
fn offline_never_runs_anything() {
    let (dir, places) = empty();
    let ran = dir.path().join("ran");
    let python = fake_python(dir.path(), "exit 1");
    fs::write(&python, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
    let wanted = Wanted { offline: true, python: Some(python), ..Wanted::default() };
    let error = ensure_in(&places, &wanted, &Quiet).unwrap_err();
    assert!(matches!(error, ProvisionError::Offline { .. }), "{error}");
    assert!(!ran.exists());
}

#[test]
fn an_unwritable_folder_is_said_to_be_one() {
    let dir = tempfile::tempdir().unwrap();
    // A file where a folder should be stops root too, whom permissions do not.
    fs::write(dir.path().join("data"), "").unwrap();
    let places = Places { data_dir: dir.path().join("data/flashbulb") };
    let error = ensure_in(&places, &Wanted::default(), &Quiet).unwrap_err().to_string();
    assert!(error.contains(&*places.data_dir.to_string_lossy()), "{error}");
}

#[test]
fn what_a_killed_run_left_is_cleaned_away() {
    let (_dir, places) = copy_of_shared();
    let leftover = places.data_dir.join("tmp/all-MiniLM-L6-v2-download/pip/half.whl");
    fs::create_dir_all(leftover.parent().unwrap()).unwrap();
    fs::write(&leftover, "half").unwrap();
    // The copies have new times, so the first run checks every file and stamps it anew; it needs no pip.
    ensure_in(&places, &offline(), &Quiet).unwrap();
    assert!(!places.data_dir.join("tmp").exists());
}

#[test]
fn a_second_process_waits_for_the_first_and_survives_its_death() {
    let (dir, places) = empty();
    fs::create_dir_all(&places.data_dir).unwrap();
    let lock = places.data_dir.join("provision.lock");
    // Another process holds the lock, as one that hangs in pip does, and is then killed.
    let script = "import fcntl,sys,time; f=open(sys.argv[1],'a'); fcntl.flock(f,fcntl.LOCK_EX); print(1,flush=True); time.sleep(600)";
    let mut holder = Command::new("python3")
        .args(["-c", script])
        .arg(&lock)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0u8; 1];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    let wanted = Wanted { python: Some(fake_python(dir.path(), "exit 3")), ..Wanted::default() };
    let started = Instant::now();
    let waiting = std::thread::spawn(move || ensure_in(&places, &wanted, &Quiet).unwrap_err());
    std::thread::sleep(Duration::from_millis(400));
    assert!(!waiting.is_finished(), "it must wait for the holder");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let error = waiting.join().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(400));
    assert!(matches!(error, ProvisionError::PipFailed { .. }), "{error}");
}

#[test]
fn damage_is_found_and_a_bundle_mends_it() {
    let (dir, places) = copy_of_shared();
    ensure_in(&places, &offline(), &Quiet).unwrap();
    assert_eq!(verify_files(&places, &Wanted::default()).unwrap().len(), 2);
    // A bundle from the whole installation.
    let bundle = dir.path().join("bundle");
    setup_in(&places, &offline(), None, Some(&bundle), &Quiet).unwrap();
    // One flipped byte in the model.
    let tokenizer = places.data_dir.join("models/all-MiniLM-L6-v2-0.1.0/tokenizer.json");
    let mut bytes = fs::read(&tokenizer).unwrap();
    bytes[1000] ^= 1;
    fs::write(&tokenizer, &bytes).unwrap();
    assert!(verify_files(&places, &Wanted::default()).is_err());
    let error = ensure_in(&places, &offline(), &Quiet).unwrap_err();
    let ProvisionError::DamagedOffline { path, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(path, &tokenizer);
    setup_in(&places, &offline(), Some(&bundle), None, &Quiet).unwrap();
    verify_files(&places, &Wanted::default()).unwrap();
    // An empty machine.
    let (_other, fresh) = empty();
    let made = setup_in(&fresh, &offline(), Some(&bundle), None, &Quiet).unwrap();
    assert!(made.runtime_library.is_absolute() && made.runtime_library.is_file());
    verify_files(&fresh, &Wanted::default()).unwrap();
    // A damaged bundle is refused and leaves nothing.
    fs::write(bundle.join("models/all-MiniLM-L6-v2-0.1.0/config.json"), "{}").unwrap();
    let (_third, third) = empty();
    let error = setup_in(&third, &offline(), Some(&bundle), None, &Quiet).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    assert!(!third.data_dir.join("models").exists());
    fs::remove_file(bundle.join("manifest.json")).unwrap();
    assert!(matches!(
        setup_in(&third, &offline(), Some(&bundle), None, &Quiet),
        Err(ProvisionError::Bundle { .. })
    ));
}

#[test]
fn paths_of_the_user_are_checked() {
    let (_dir, places) = empty();
    for (runtime, model) in [("/nonexistent/lib.so", "/tmp"), ("/bin/sh", "/nonexistent/model")] {
        let wanted =
            Wanted { runtime: Some(runtime.into()), model: Some(model.into()), ..offline() };
        let error = ensure_in(&places, &wanted, &Quiet).unwrap_err();
        assert!(matches!(error, ProvisionError::BadPath { .. }), "{error}");
    }
}
