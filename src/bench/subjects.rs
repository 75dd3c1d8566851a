//! What is measured, as real processes: each subject starts its roles by running this program again, joins them by sockets, and
//! is driven over the driver's standard output, a socket.
//!
//! The driver says `warm`, waits for a line, runs, says what it measured, and waits again, so that counters can be read on
//! both sides of the counted pairs while all processes live.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use base::scm;
use clap::ValueEnum;
use serde::Deserialize;
use serde::Serialize;

use super::counters::Counters;
use super::roles::Role;
use super::workload::Measured;
use super::workload::Workload;

/// Something that serves the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Subject {
    /// Two processes and bare system calls.
    Limit1,
    /// Three processes and bare system calls, the middle waits for each answer.
    Limit2,
    /// Three processes and bare system calls, the middle forwards both ways.
    Limit2p,
    /// Two processes: the crate `vhost`, its backend proxy against its frontend handler.
    Vhost,
    /// Three processes: jail, filters and all checks on.
    Portcullis,
}

impl Subject {
    pub(super) fn name(self) -> &'static str {
        match self {
            Subject::Limit1 => "limit1",
            Subject::Limit2 => "limit2",
            Subject::Limit2p => "limit2p",
            Subject::Vhost => "vhost",
            Subject::Portcullis => "portcullis",
        }
    }
}

/// Where the processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Placement {
    /// All on CPU 0, SCHED_FIFO 10.
    OneCore,
    /// Adjacent processes on different CPUs.
    Neighbours,
    /// Wherever the scheduler puts them.
    Unpinned,
}

impl Placement {
    /// Returns the CPU for the process that is `position` steps from the backend.
    fn cpu(self, position: usize) -> Option<usize> {
        match self {
            Placement::OneCore => Some(0),
            Placement::Neighbours => Some(position % 2),
            Placement::Unpinned => None,
        }
    }

    fn realtime(self) -> bool {
        self == Placement::OneCore
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Placement::OneCore => "one core",
            Placement::Neighbours => "neighbours",
            Placement::Unpinned => "unpinned",
        }
    }
}

/// One run of a subject: what the driver measured, and what the counters of each process say of the counted pairs.
pub(super) struct Run {
    pub(super) measured: Measured,
    /// By the name of the process: backend, device, VMM.
    pub(super) counters: Vec<(&'static str, Counters)>,
}

/// Starts the roles of `subject`, runs `workload`, and ends them.
///
/// With `count` the system calls of each process are counted by the kernel's tracepoint, which costs time: such a run's times are
/// not to be quoted.
///
/// # Errors
/// If a process can't be started, ends early, or a request is refused.
pub(super) fn run(
    subject: Subject,
    placement: Placement,
    workload: &Workload,
    count: bool,
) -> Result<Run> {
    let program = std::env::current_exe().context("this program's own path")?;
    let start = Start {
        program: &program,
        placement,
    };
    let (backend_socket, other_end) = scm::stream_pair()?;
    let (backend_socket, other_end) = (OwnedFd::from(backend_socket), OwnedFd::from(other_end));
    let mut processes = Vec::new();
    let driver_role = match subject {
        Subject::Limit1 => {
            processes.push(start.role(Role::Mapper, "VMM", 1, other_end, None)?);
            Role::Driver
        }
        Subject::Limit2 | Subject::Limit2p => {
            let (middle_end, mapper_end) = scm::seqpacket_pair()?;
            let (middle_end, mapper_end) = (OwnedFd::from(middle_end), OwnedFd::from(mapper_end));
            let middle = if subject == Subject::Limit2 {
                Role::Middle
            } else {
                Role::ForwardingMiddle
            };
            processes.push(start.role(middle, "device", 1, other_end, Some(middle_end.into()))?);
            processes.push(start.role(Role::Mapper, "VMM", 2, mapper_end, None)?);
            Role::Driver
        }
        Subject::Vhost => {
            processes.push(start.role(Role::VhostHandler, "VMM", 1, other_end, None)?);
            Role::VhostDriver
        }
        Subject::Portcullis => {
            processes.push(start.portcullis(other_end)?);
            Role::BackendDriver
        }
    };
    let (ours, theirs) = UnixStream::pair().context("the driver's control socket")?;
    let driver = start.role_with(
        driver_role,
        "backend",
        0,
        backend_socket,
        Some(OwnedFd::from(theirs).into()),
        Some(workload),
    )?;
    processes.push(driver);
    drive(ours, processes, count).with_context(|| subject.name())
}

/// Talks to the driver and reads the counters around the counted pairs.
fn drive(control: UnixStream, mut processes: Vec<Process>, count: bool) -> Result<Run> {
    let mut lines = BufReader::new(control.try_clone()?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    if line != "warm\n" {
        bail!("the driver ended before it was warm: {line:?}");
    }
    let mut before = Vec::new();
    for (name, pid) in pids(&processes)? {
        before.push((name, pid, Counters::start(pid, count)?));
    }
    (&control).write_all(b"go\n")?;
    line.clear();
    lines.read_line(&mut line)?;
    let measured: Measured =
        serde_json::from_str(&line).with_context(|| format!("the driver ended: {line:?}"))?;
    let mut counters = Vec::new();
    for (name, _, started) in before {
        counters.push((name, started.stop()?));
    }
    (&control).write_all(b"end\n")?;
    for process in &mut processes {
        let status = process.child.wait()?;
        if !status.success() {
            bail!("{} ended with {status}", process.name);
        }
    }
    Ok(Run { measured, counters })
}

/// Returns the name and pid of every process, the device process of Portcullis included.
fn pids(processes: &[Process]) -> Result<Vec<(&'static str, u32)>> {
    let mut pids = Vec::new();
    for process in processes {
        pids.push((process.name, process.child.id()));
        if process.has_device {
            let pid = process.child.id();
            let device = child_of(pid).context("the VMM has no device process")?;
            pids.push(("device", device));
        }
    }
    Ok(pids)
}

/// Finds the child of any thread of `pid`.
fn child_of(pid: u32) -> Option<u32> {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .ok()?
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
        .find_map(|children| children.split_whitespace().next()?.parse().ok())
}

/// A role that runs; killed when it is dropped before its end.
struct Process {
    name: &'static str,
    child: Child,
    has_device: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail where the process has ended already, which is the usual case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Start<'a> {
    program: &'a Path,
    placement: Placement,
}

impl Start<'_> {
    fn role(
        &self,
        role: Role,
        name: &'static str,
        position: usize,
        input: OwnedFd,
        output: Option<Stdio>,
    ) -> Result<Process> {
        self.role_with(role, name, position, input, output, None)
    }

    fn role_with(
        &self,
        role: Role,
        name: &'static str,
        position: usize,
        input: OwnedFd,
        output: Option<Stdio>,
        workload: Option<&Workload>,
    ) -> Result<Process> {
        let mut command = Command::new(self.program);
        command.arg("bench-role").arg(role.name());
        if let Some(cpu) = self.placement.cpu(position) {
            command.arg("--cpu").arg(cpu.to_string());
        }
        if self.placement.realtime() {
            command.arg("--realtime");
        }
        if let Some(workload) = workload {
            command
                .arg("--workload")
                .arg(serde_json::to_string(workload)?);
        }
        let child = command
            .stdin(input)
            .stdout(output.unwrap_or_else(Stdio::null))
            .spawn()
            .with_context(|| format!("{}: start", role.name()))?;
        Ok(Process {
            name,
            child,
            has_device: false,
        })
    }

    /// Starts the VMM, which starts the device process itself.
    fn portcullis(&self, main_channel: OwnedFd) -> Result<Process> {
        let mut process = self.role(Role::Vmm, "VMM", 2, main_channel, None)?;
        process.has_device = true;
        Ok(process)
    }
}
