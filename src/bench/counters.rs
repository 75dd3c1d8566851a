//! What the kernel counts of a process between two points: system calls, CPU time, context switches, memory areas.

use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use serde::Serialize;

/// Differences over the counted pairs; `system_calls` and `allocations` only where they were asked for and `perf` is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counters {
    pub(super) system_calls: Option<u64>,
    pub(super) allocations: Option<u64>,
    /// User and system time, in clock ticks of 10 ms.
    pub(super) cpu_ticks: u64,
    pub(super) context_switches: u64,
    /// Areas in the process's memory map, after minus before.
    pub(super) areas: i64,
}

/// Counters that run.
pub(super) struct Started {
    pid: u32,
    perf: Option<Perf>,
    cpu_ticks: u64,
    context_switches: u64,
    areas: i64,
}

impl Counters {
    /// Begins to count for all threads of `pid`.
    ///
    /// # Errors
    /// If the process is gone.
    pub(super) fn start(pid: u32, count: bool) -> Result<Started> {
        let perf = if count { Perf::attach(pid)? } else { None };
        Ok(Started {
            pid,
            perf,
            cpu_ticks: cpu_ticks(pid)?,
            context_switches: context_switches(pid)?,
            areas: areas(pid)?,
        })
    }
}

impl Started {
    /// Ends the count and returns the differences.
    ///
    /// # Errors
    /// If the process is gone, or `perf` prints what this cannot read.
    pub(super) fn stop(self) -> Result<Counters> {
        let cpu_ticks = cpu_ticks(self.pid)? - self.cpu_ticks;
        let context_switches = context_switches(self.pid)?.saturating_sub(self.context_switches);
        let areas = areas(self.pid)? - self.areas;
        let (system_calls, allocations) = match self.perf {
            Some(perf) => perf.stop()?,
            None => (None, None),
        };
        Ok(Counters {
            system_calls,
            allocations,
            cpu_ticks,
            context_switches,
            areas,
        })
    }
}

const SYSTEM_CALLS: &str = "raw_syscalls:sys_enter";
/// A probe that `perf probe -x …/libc.so.6 malloc` makes; where nobody made it, allocations are not counted.
const ALLOCATIONS: &str = "probe_libc:malloc";

/// A `perf stat` that is attached to a process.
struct Perf {
    child: Child,
}

impl Perf {
    /// Attaches to `pid`; nothing where `perf` is not installed or may not.
    fn attach(pid: u32) -> Result<Option<Perf>> {
        let probed = std::fs::read_to_string("/sys/kernel/tracing/uprobe_events")
            .is_ok_and(|probes| probes.contains("probe_libc/malloc"));
        let events = if probed {
            format!("{SYSTEM_CALLS},{ALLOCATIONS}")
        } else {
            SYSTEM_CALLS.to_owned()
        };
        // With a control descriptor perf says when it counts; it reads commands from its standard input.
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-D", "-1", "--control", "fd:0,1", "-e"])
            .arg(events)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(child) = child else {
            return Ok(None);
        };
        let mut perf = Perf { child };
        Ok(perf.command("enable\n")?.then_some(perf))
    }

    /// Sends a command and returns whether perf acknowledged it; it does not where it has ended.
    fn command(&mut self, command: &str) -> Result<bool> {
        use std::io::Read;
        use std::io::Write;
        let input = self.child.stdin.as_mut().context("perf's input")?;
        if input.write_all(command.as_bytes()).is_err() {
            return Ok(false);
        }
        let output = self.child.stdout.as_mut().context("perf's output")?;
        let mut answer = [0; 5];
        Ok(output.read_exact(&mut answer).is_ok())
    }

    fn stop(mut self) -> Result<(Option<u64>, Option<u64>)> {
        self.command("disable\n")?;
        let pid = i32::try_from(self.child.id()).context("perf's pid")?;
        let pid = rustix::process::Pid::from_raw(pid).context("perf's pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        Ok((field(&text, SYSTEM_CALLS), field(&text, ALLOCATIONS)))
    }
}

/// Returns the count of `event` in the output of `perf stat -x ,`.
fn field(text: &str, event: &str) -> Option<u64> {
    text.lines()
        .find(|line| line.split(',').any(|part| part == event))
        .and_then(|line| line.split(',').next())
        .and_then(|count| count.parse().ok())
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).with_context(|| path)
}

fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = read(pid, "stat")?;
    // The name in brackets may hold spaces; utime and stime are the 14th and 15th fields.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    Ok(rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum())
}

fn context_switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        sum += status
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>();
    }
    Ok(sum)
}

/// Returns how many areas the memory map of `pid` has.
///
/// # Errors
/// If the process is gone.
pub(super) fn areas(pid: u32) -> Result<i64> {
    Ok(i64::try_from(read(pid, "maps")?.lines().count())?)
}

/// Returns the KiB of memory that `pid` has to itself.
///
/// # Errors
/// If the process is gone, or may not be looked at.
pub(super) fn private_kib(pid: u32) -> Result<u64> {
    let rollup = read(pid, "smaps_rollup")?;
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    Ok(private
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum())
}

/// Returns how many entries a folder of `pid` has: `fd`, `task`.
///
/// # Errors
/// If the process is gone.
pub(super) fn entries(pid: u32, folder: &str) -> Result<u64> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/{folder}"))?.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perf_output_is_read() {
        let text =
            "1234,,raw_syscalls:sys_enter,5000,100.00,,\n0,,probe_libc:malloc,5000,100.00,,\n";
        assert_eq!(field(text, SYSTEM_CALLS), Some(1234));
        assert_eq!(field(text, ALLOCATIONS), Some(0));
        assert_eq!(
            field("<not counted>,,raw_syscalls:sys_enter\n", SYSTEM_CALLS),
            None
        );
    }
}
