//! `doctor`: one line a finding, each with what to do next.
//!
//! Keeps: it reports what a probe really did (an embedding that ran, a search the daemon carried out), never what
//! was configured; it changes nothing and fetches nothing.

use flashbulb_kernels::{Kernels, available_levels};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::exit::{CliError, Exit};
use super::host::{self, Reach};
use super::memory::what_ran;
use super::output::{BAD, FAINT, GOOD, WARN, micros, safe};
use super::{CALL_TIMEOUT, Context};
use crate::client::{Client, ClientError, MAX_SOCKET_PATH_BYTES};
use crate::embed::{Device, DeviceState, EmbedOptions, Embedder, Ran};
use crate::provision::{self, Places, Provisioned, Wanted};

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Works, but is worth a look.
    Warn,
    /// Does not work.
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at: a fixed word.
    check: &'static str,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(Level::Ok, check, what, None);
    }

    fn warn(&mut self, check: &'static str, what: impl Into<String>, next: &str) {
        self.add(Level::Warn, check, what, Some(next));
    }

    fn fail(&mut self, check: &'static str, what: impl Into<String>, next: &str) {
        self.add(Level::Fail, check, what, Some(next));
    }

    fn add(
        &mut self,
        level: Level,
        check: &'static str,
        what: impl Into<String>,
        next: Option<&str>,
    ) {
        self.0.push(Finding { level, check, what: what.into(), next: next.map(str::to_owned) });
    }

    fn worst(&self) -> Level {
        let has = |level| self.0.iter().any(|finding| finding.level == level);
        match (has(Level::Fail), has(Level::Warn)) {
            (true, _) => Level::Fail,
            (false, true) => Level::Warn,
            (false, false) => Level::Ok,
        }
    }
}

/// `flashbulb doctor`: ends with 1 where a finding is a failure.
pub fn doctor(context: &Context) -> Result<Exit, CliError> {
    let mut findings = Findings::default();
    machine(&mut findings);
    gpus(context.device(), &mut findings);
    let ran = model(context, &mut findings);
    places(context, &mut findings)?;
    let daemon = daemon(context, &mut findings);
    let worst = findings.worst();
    let document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "level": worst,
        "findings": findings.0,
        "ran": ran,
        "daemon": daemon,
    });
    context.out.print(&document, |out| {
        for finding in &findings.0 {
            let (style, word) = match finding.level {
                Level::Ok => (GOOD, "ok  "),
                Level::Warn => (WARN, "warn"),
                Level::Fail => (BAD, "FAIL"),
            };
            write!(out, "{style}{word}{style:#}  {:<10} {}", finding.check, safe(&finding.what))?;
            match &finding.next {
                Some(next) => writeln!(out, "  {FAINT}→ {next}{FAINT:#}")?,
                None => writeln!(out)?,
            }
        }
        Ok(())
    })?;
    Ok(if worst == Level::Fail { Exit::Failed } else { Exit::Ok })
}

fn machine(findings: &mut Findings) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name = host::processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let memory = host::memory_bytes().map_or(String::new(), |bytes| {
        format!(", {:.1} GiB memory", bytes as f64 / (1u64 << 30) as f64)
    });
    let what = format!("{name}, {cores} cores{memory}");
    if cores < 2 {
        findings.warn("processor", what, "searches wait behind imports; use two cores or more");
    } else {
        findings.ok("processor", what);
    }
    let level = Kernels::detect().level();
    match available_levels().last() {
        Some(best) if *best != level => findings.warn(
            "simd",
            format!(
                "kernels run with {level}: those of {best} gave other results than the scalar ones"
            ),
            "everything works, slower; please report this processor",
        ),
        _ => findings.ok("simd", format!("kernels run with {level}")),
    }
}

fn gpus(wanted: Device, findings: &mut Findings) {
    let adapters = flashbulb_kernels::gpu::adapters();
    if adapters.is_empty() {
        findings.ok("gpu", "none found; everything runs on the processor");
    }
    for adapter in adapters {
        let kind = if adapter.is_software {
            "a software adapter, never used"
        } else if wanted == Device::Cpu {
            "found; vectors are searched on the processor, --device preferred embeds on it where it can"
        } else {
            "found; vectors are searched on the processor"
        };
        findings.ok(
            "gpu",
            format!("{} ({}, {}): {kind}", adapter.name, adapter.backend, adapter.device_type),
        );
    }
}

/// Checks what is provided, then loads it and embeds a text.
fn model(context: &Context, findings: &mut Findings) -> Option<Ran> {
    let wanted = Wanted { offline: true, ..context.wanted() };
    let progress = provision::Quiet;
    let provisioned = match provision::ensure(&wanted, &progress) {
        Ok(provisioned) => provisioned,
        Err(error) => {
            findings.fail("setup", error.to_string(), "flashbulb setup");
            return None;
        }
    };
    findings.ok("runtime", provisioned.runtime_library.display().to_string());
    findings.ok("model", provisioned.model_dir.display().to_string());
    match Places::discover().and_then(|places| provision::verify_files(&places, &wanted)) {
        Ok(verified) => {
            let files: usize = verified.iter().map(|folder| folder.files).sum();
            findings.ok("files", format!("{files} provided files have their pinned sums"));
        }
        Err(error) => findings.fail("files", error.to_string(), "flashbulb setup"),
    }
    match probe(context, &provisioned, &progress) {
        Ok((ran, device, took_us)) => {
            let what = json!({ "embed": ran });
            findings.ok("probe", format!("one text in {}; {}", micros(took_us), what_ran(&what)));
            on_device(&ran, &device, findings);
            Some(ran)
        }
        Err(error) => {
            findings.fail(
                "probe",
                error,
                "flashbulb setup mends what it provided; otherwise check --runtime, --model and --device",
            );
            None
        }
    }
}

fn probe(
    context: &Context,
    provisioned: &Provisioned,
    progress: &dyn provision::Progress,
) -> Result<(Ran, DeviceState, u64), String> {
    let options = EmbedOptions { precision: context.precision(), device: context.device() };
    let embedder =
        Embedder::open(provisioned, &options, progress).map_err(|error| error.to_string())?;
    let mut session = embedder.session().map_err(|error| error.to_string())?;
    let windows = embedder
        .query_windows("Is everything all right in here?")
        .map_err(|error| error.to_string())?;
    let started = Instant::now();
    for window in &windows {
        let vector = session.embed(window).map_err(|error| error.to_string())?;
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if vector.len() != embedder.dim() || !(0.99..=1.01).contains(&norm) {
            return Err(format!(
                "the probe's vector has {} numbers and length {norm}; {} and 1 are right",
                vector.len(),
                embedder.dim()
            ));
        }
    }
    let took_us = started.elapsed().as_micros() as u64;
    Ok((embedder.ran(), embedder.device().clone(), took_us))
}

/// Where the model's heavy nodes ran, and whether that was wanted.
fn on_device(ran: &Ran, device: &DeviceState, findings: &mut Findings) {
    let what = format!(
        "{} of {} heavy nodes ran on {}, {} copies between devices",
        ran.heavy_nodes_on_device, ran.heavy_nodes, ran.device, ran.memcpy_nodes
    );
    match device.degraded() {
        None => findings.ok("device", what),
        // What to do is part of the reason.
        Some(degraded) => findings.warn("device", format!("{degraded}; {what}"), "see docs/gpu.md"),
    }
}

fn places(context: &Context, findings: &mut Findings) -> Result<(), CliError> {
    let socket = context.socket();
    let length = socket.as_os_str().len();
    if length > MAX_SOCKET_PATH_BYTES {
        findings.fail(
            "socket",
            format!("{} is {length} bytes long; {MAX_SOCKET_PATH_BYTES} fit", socket.display()),
            "choose a shorter path with --socket or FLASHBULB_SOCKET",
        );
    } else {
        let folder = socket.parent().unwrap_or(&socket);
        place(findings, "socket", &socket, host::reach(&socket));
        if let reach @ (Reach::Foreign { .. } | Reach::Shared { .. }) = host::reach(folder) {
            place(findings, "socket", folder, reach);
        }
    }
    let store = context.store()?;
    place(findings, "store", &store, host::reach(&store));
    Ok(())
}

fn place(findings: &mut Findings, check: &'static str, path: &std::path::Path, reach: Reach) {
    let path = path.display();
    match reach {
        Reach::Missing => findings.ok(check, format!("{path} (made on first use)")),
        Reach::Private => findings.ok(check, format!("{path}, yours alone")),
        Reach::Shared { mode } => findings.warn(
            check,
            format!("{path} has mode {mode:o}: other users may reach it"),
            "chmod go= on it",
        ),
        Reach::Foreign { owner } => findings.fail(
            check,
            format!("{path} belongs to user {owner}"),
            "choose another with --socket or --store",
        ),
        Reach::Unknown => findings.fail(
            check,
            format!("{path} cannot be looked at"),
            "check the permissions of the folders above it",
        ),
    }
}

/// Asks a running daemon to prove itself; a daemon that does not run is no failure.
fn daemon(context: &Context, findings: &mut Findings) -> Option<Value> {
    let mut client = match Client::connect(&context.socket()) {
        Ok(client) => client,
        Err(ClientError::NoDaemon { .. }) => {
            findings.ok("daemon", "none runs; add and search start one");
            return None;
        }
        Err(error) => {
            findings.fail("daemon", error.to_string(), "flashbulb serve");
            return None;
        }
    };
    let health: Result<Value, _> = client.call("admin.health", json!({}), CALL_TIMEOUT);
    let status: Result<Value, _> = client.call("admin.status", json!({}), CALL_TIMEOUT);
    match &health {
        Ok(health) => {
            let us = |name: &str| {
                let took = health.pointer(&format!("/took_us/{name}"));
                micros(took.and_then(Value::as_u64).unwrap_or(0))
            };
            let what = format!(
                "embedded in {}, searched in {}; {}",
                us("embed"),
                us("search"),
                what_ran(health.get("ran").unwrap_or(&Value::Null))
            );
            let degraded: Vec<&str> = health
                .get("degraded")
                .and_then(Value::as_array)
                .map(|list| list.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            if degraded.is_empty() {
                findings.ok("daemon", what);
            } else {
                let what = format!("{what}; degraded: {}", degraded.join(", "));
                findings.warn("daemon", what, "flashbulb status");
            }
        }
        Err(error) => findings.fail("daemon", error.to_string(), "see the daemon's log"),
    }
    if let Err(error) = &status {
        findings.fail("daemon", error.to_string(), "see the daemon's log");
    }
    Some(json!({ "health": health.ok(), "status": status.ok() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let mut findings = Findings::default();
        assert_eq!(findings.worst(), Level::Ok);
        findings.ok("a", "fine");
        assert_eq!(findings.worst(), Level::Ok);
        findings.warn("b", "hm", "look");
        assert_eq!(findings.worst(), Level::Warn);
        findings.fail("c", "no", "mend");
        assert_eq!(findings.worst(), Level::Fail);
    }

    #[test]
    fn a_place_of_somebody_else_is_a_failure() {
        for (reach, want) in [
            (Reach::Missing, Level::Ok),
            (Reach::Private, Level::Ok),
            (Reach::Shared { mode: 0o755 }, Level::Warn),
            (Reach::Foreign { owner: 5 }, Level::Fail),
            (Reach::Unknown, Level::Fail),
        ] {
            let mut findings = Findings::default();
            place(&mut findings, "store", std::path::Path::new("/x"), reach);
            assert_eq!(findings.worst(), want, "{reach:?}");
        }
    }
}
