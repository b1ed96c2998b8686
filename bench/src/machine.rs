//! The machine a measurement ran on, as far as it can be read.
//!
//! Invariant: what cannot be read is absent, never guessed.

use std::fs;

use serde::Serialize;

/// What a reader needs to judge a figure.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub processor: Option<String>,
    pub cores: usize,
    pub simd: String,
    pub memory_gib: Option<f64>,
    pub kernel: Option<String>,
    /// Load average of the last minute before the run.
    pub load_before: Option<f64>,
    pub rustc: Option<String>,
    pub commit: Option<String>,
}

impl Machine {
    /// Reads this machine.
    pub fn read() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok();
        let field = |name: &str| {
            let line = cpuinfo.as_ref()?.lines().find(|l| l.starts_with(name))?;
            Some(line.split(':').nth(1)?.trim().to_owned())
        };
        Machine {
            processor: field("model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            simd: flashbulb_kernels::Kernels::detect().level().to_string(),
            memory_gib: status_kib("/proc/meminfo", "MemTotal").map(|kib| kib as f64 / 1048576.0),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .ok()
                .map(|s| s.trim().to_owned()),
            load_before: load(),
            rustc: output("rustc", &["--version"]),
            commit: output("git", &["describe", "--always", "--dirty"]),
        }
    }

    /// One line for a report.
    pub fn line(&self) -> String {
        let unknown = || "unknown".to_owned();
        format!(
            "{}, {} cores, {}, {} GiB, Linux {}, load before {}, {}, commit {}",
            self.processor.clone().unwrap_or_else(unknown),
            self.cores,
            self.simd,
            self.memory_gib.map_or_else(unknown, |g| format!("{g:.0}")),
            self.kernel.clone().unwrap_or_else(unknown),
            self.load_before.map_or_else(unknown, |l| format!("{l:.2}")),
            self.rustc.clone().unwrap_or_else(unknown),
            self.commit.clone().unwrap_or_else(unknown),
        )
    }
}

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = std::process::Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
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
}
