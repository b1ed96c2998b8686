//! The machine a measurement ran on, as far as it can be read.
//!
//! Invariant: what cannot be read is absent, never guessed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a reader needs to judge a figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    pub processor: Option<String>,
    pub cores: usize,
    /// Threads a core, where the kernel tells.
    pub smt: Option<String>,
    /// The instruction set of the distance kernels.
    pub simd: String,
    /// Those of the processor's flags that matter for vectors.
    pub flags: Vec<String>,
    pub memory_gib: Option<f64>,
    pub system: Option<String>,
    pub kernel: Option<String>,
    pub hypervisor: Option<String>,
    pub governor: Option<String>,
    pub transparent_huge_pages: Option<String>,
    pub clocksource: Option<String>,
    /// Load average of the last minute before the run.
    pub load_before: Option<f64>,
    pub rustc: Option<String>,
}

/// Flags that say which vector instructions there are.
const FLAGS: &[&str] = &[
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "sve",
];

impl Machine {
    /// Reads this machine.
    pub fn read() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok();
        let field = |name: &str| {
            let line = cpuinfo.as_ref()?.lines().find(|l| l.starts_with(name))?;
            Some(line.split(':').nth(1)?.trim().to_owned())
        };
        let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let has = |flag: &&&str| flags.split_whitespace().any(|f| f == **flag);
        let cpu = "/sys/devices/system/cpu";
        let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        Machine {
            processor: field("model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            smt: line(&format!("{cpu}/smt/control")),
            simd: flashbulb_kernels::Kernels::detect().level().to_string(),
            flags: FLAGS.iter().filter(has).map(|f| (*f).to_owned()).collect(),
            memory_gib: status_kib("/proc/meminfo", "MemTotal").map(|kib| kib as f64 / 1048576.0),
            system: system_name(),
            kernel: line("/proc/sys/kernel/osrelease"),
            hypervisor: line("/sys/hypervisor/type")
                .or_else(|| line("/sys/class/dmi/id/sys_vendor")),
            governor: line(&format!("{cpu}/cpu0/cpufreq/scaling_governor")),
            transparent_huge_pages: line("/sys/kernel/mm/transparent_hugepage/enabled"),
            clocksource: line(clock),
            load_before: load(),
            rustc: output("rustc", &["--version"]),
        }
    }

    /// One line for a report.
    pub fn line(&self) -> String {
        let known = |s: &Option<String>| s.clone().unwrap_or_else(|| "unknown".to_owned());
        let unknown = || "unknown".to_owned();
        format!(
            "{}, {} cores, {}, {} GiB, kernel {}, load before {}, {}",
            known(&self.processor),
            self.cores,
            self.simd,
            self.memory_gib.map_or_else(unknown, |g| format!("{g:.0}")),
            known(&self.kernel),
            self.load_before.map_or_else(unknown, |l| format!("{l:.2}")),
            known(&self.rustc),
        )
    }

    /// Every field as it stands, for a table; what is unknown says so.
    pub fn table(&self) -> BTreeMap<String, String> {
        let json = serde_json::to_value(self).unwrap_or_default();
        let shown = |v: &serde_json::Value| match v {
            serde_json::Value::Null => "not readable here".to_owned(),
            serde_json::Value::String(s) => s.clone(),
            serde_json::Value::Array(a) => {
                a.iter().filter_map(|v| v.as_str()).collect::<Vec<_>>().join(" ")
            }
            serde_json::Value::Number(n) if n.is_f64() => {
                format!("{:.2}", n.as_f64().unwrap_or_default())
            }
            other => other.to_string(),
        };
        let fields = json.as_object().into_iter().flatten();
        fields.map(|(name, v)| (name.replace('_', " "), shown(v))).collect()
    }
}

fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn system_name() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// The load average of the last minute.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// What a program says, if it succeeds and says anything.
pub fn output(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let out = std::process::Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// The commit of the working folder, and whether it differs from it.
pub fn commit() -> (Option<String>, Option<bool>) {
    let Some(commit) = output("git", &["rev-parse", "HEAD"]) else { return (None, None) };
    let status = ["status", "--porcelain", "--untracked-files=no"];
    let clean = std::process::Command::new("git").args(status).output();
    let dirty = clean.ok().filter(|o| o.status.success()).map(|o| !o.stdout.is_empty());
    (Some(commit), dirty)
}

/// Processor time since the machine started, over all processors, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessorTime {
    total: u64,
    stolen: u64,
}

impl ProcessorTime {
    /// Reads it, where the kernel tells.
    pub fn read() -> Option<ProcessorTime> {
        ProcessorTime::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line is `cpu user nice system idle iowait irq softirq steal guest guest_nice`; the guests' share is in
    /// user and nice already (proc(5)).
    fn parse(stat: &str) -> Option<ProcessorTime> {
        let mut fields = stat.lines().next()?.split_whitespace();
        (fields.next()? == "cpu").then_some(())?;
        let ticks: Vec<u64> = fields.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(ProcessorTime { total: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// The stolen share since an earlier reading.
    pub fn stolen_since(&self, earlier: &ProcessorTime) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|total| *total > 0)?;
        Some(self.stolen.checked_sub(earlier.stolen)? as f64 / total as f64)
    }
}

/// Processor time that one process has used.
#[derive(Debug, Clone, Copy)]
pub struct ProcessTime {
    used: Duration,
    at: Instant,
}

impl ProcessTime {
    /// Of a process by its id.
    pub fn read(pid: u32) -> Option<ProcessTime> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks = ProcessTime::ticks(&stat)?;
        let used =
            Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64);
        Some(ProcessTime { used, at: Instant::now() })
    }

    /// Fields 14 and 15 are the ticks in user and system mode; the second is a name that may hold anything (proc(5)).
    fn ticks(stat: &str) -> Option<u64> {
        let mut behind = stat.rsplit(')').next()?.split_whitespace().skip(11);
        let user: u64 = behind.next()?.parse().ok()?;
        let system: u64 = behind.next()?.parse().ok()?;
        Some(user + system)
    }

    /// The share of one processor that it used since an earlier reading; above 1 with several.
    pub fn share_since(&self, earlier: &ProcessTime) -> Option<f64> {
        let passed = self.at.duration_since(earlier.at).as_secs_f64();
        (passed > 0.0).then(|| self.used.saturating_sub(earlier.used).as_secs_f64() / passed)
    }
}

/// Asks the kernel to forget the pages of files; how it went, in words.
pub fn drop_page_cache() -> String {
    // Only clean pages can be dropped.
    rustix::fs::sync();
    match fs::write(Path::new("/proc/sys/vm/drop_caches"), "3") {
        Ok(()) => "dropped".to_owned(),
        Err(e) => format!("not dropped: {e}"),
    }
}

/// A `Name: N kB` line of a file such as `/proc/PID/status`.
pub fn status_kib(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.split(':').next() == Some(name))?;
    line.split(':').nth(1)?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stolen_time_is_a_share_of_all() {
        let stat = |steal: u64| format!("cpu  100 0 50 800 10 0 5 {steal} 7 0\ncpu0 1 2\n");
        let earlier = ProcessorTime::parse(&stat(35)).unwrap();
        assert_eq!(earlier, ProcessorTime { total: 1000, stolen: 35 });
        let later = ProcessorTime { total: 2000, stolen: 85 };
        assert_eq!(later.stolen_since(&earlier), Some(0.05));
        assert_eq!(earlier.stolen_since(&earlier), None);
        for bad in ["", "intr 1 2", "cpu 1 2 3", "cpu a b c d e f g h"] {
            assert_eq!(ProcessorTime::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_time_of_a_process_is_read_behind_its_name() {
        let stat = "7 (a ) name) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 100";
        assert_eq!(ProcessTime::ticks(stat), Some(300));
        assert_eq!(ProcessTime::ticks("7 (x) S 1"), None);
        let at = Instant::now();
        let earlier = ProcessTime { used: Duration::from_secs(3), at };
        let later = ProcessTime { used: Duration::from_secs(6), at: at + Duration::from_secs(2) };
        assert_eq!(later.share_since(&earlier), Some(1.5));
    }
}
