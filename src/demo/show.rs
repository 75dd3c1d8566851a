//! What the demo does, step by step.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::bail;
use base::Event;
use devices::control::RegionSource;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use devices::device_process::LogLevel;
use devices::device_process::SandboxOptions;
use devices::shmem_config::ShmemRegion;
use jail::SandboxLevel;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::time::Timespec;
use vm_control::DeviceId;

use super::backend::Backend;
use super::backend::Line;
use super::backend::Task;
use super::progress::Progress;
use super::report::FileReport;
use super::report::Latency;
use super::report::Notes;
use super::report::RefusedCase;
use super::report::Report;
use super::scratch::Scratch;
use super::source::Source;
use crate::cli::args::demo::DemoArguments;
use crate::cli::run::guest;
use crate::cli::run::sandbox_level;
use crate::cli::run::warn_of_weak;
use crate::vmm::config::DeviceOptions;
use crate::vmm::host::Host;
use crate::vmm::host::Region;
use crate::vmm::machine::HolePolicy;
use crate::vmm::machine::host_sum;
use crate::vmm::proof::Proof;

/// The guest's own memory, in bytes.
const GUEST_MEMORY: u64 = 16 << 20;
/// How long a device process may take to end after its backend did.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// The second device's only region. The first device has none with this id, and the second asks for the first one's.
const NEIGHBOUR_REGION: ShmemRegion = ShmemRegion {
    shmid: 1,
    len: 1 << 20,
};
/// What a device process logs: its warnings are of the hostile requests, which the report shows.
const LOG: LogLevel = LogLevel::Error;
/// The hostile request that the second backend makes.
const OTHER_REGION: &str = "other-region";

/// A hostile request, and the answer that it should get.
struct Case {
    name: &'static str,
    wanted: &'static str,
    attempt: &'static str,
}

/// The hostile requests that are shown.
const CASES: [Case; 5] = [
    Case {
        name: "overlap",
        wanted: "EEXIST",
        attempt: "map over a live mapping",
    },
    Case {
        name: "range",
        wanted: "ERANGE",
        attempt: "map beyond the end of the region",
    },
    Case {
        name: "short",
        wanted: "EOVERFLOW",
        attempt: "map more than the file has",
    },
    Case {
        name: "external",
        wanted: "EPERM",
        attempt: "map a raw pointer (EXTERNAL_MAP)",
    },
    Case {
        name: OTHER_REGION,
        wanted: "ENXIO",
        attempt: "map into another device's region",
    },
];

/// A device with its backend.
struct Device {
    id: DeviceId,
    process: DeviceProcess,
    backend: Backend,
    regions: Vec<Region>,
}

/// What the files backend reported.
#[derive(Default)]
struct Mapped {
    files: Vec<FileReport>,
    left_out: Vec<(String, String)>,
    answers: Vec<(String, Option<String>)>,
}

/// Shows everything, and says what it saw.
pub(super) fn show(arguments: &DemoArguments, scratch: &Scratch) -> anyhow::Result<Report> {
    let started = Instant::now();
    warn_of_weak(sandbox_level(arguments.sandbox));
    let progress = Progress::new(!arguments.json);
    let source = Source::find(
        arguments.directory.as_deref(),
        arguments.limit.0,
        scratch.path(),
    )
    .with_context(|| match &arguments.directory {
        Some(directory) => format!("cannot read the folder {}", directory.display()),
        None => "cannot find files to show".to_owned(),
    })?;
    let mut host = Host::new(
        guest(arguments.guest),
        GUEST_MEMORY,
        HolePolicy::AllOnes,
        |_| (),
    )?;

    progress.say("starting the backend and its device process");
    let sandbox = SandboxOptions {
        level: sandbox_level(arguments.sandbox),
        ..SandboxOptions::default()
    };
    let mut device = Device::start(
        &host,
        &sandbox,
        "files",
        Backend::start(Task {
            socket: scratch.join("files.sock"),
            directory: &source.served,
            probes: &own_probes(),
        })?,
    )?;
    let mut mapped = device.follow(&progress)?;
    let latency = Latency::of(mapped.files.iter().map(|file| file.map_us).collect());

    progress.say("summing each file");
    for file in &mut mapped.files {
        sum(&host, &device.regions, &source.directory, file)?;
        progress.step();
    }

    progress.say("making hostile requests");
    let before = host.mappings();
    let mut neighbour = Device::start_neighbour(&host, &sandbox, scratch)?;
    let answer = neighbour.first_refusal()?;
    mapped.answers.push((OTHER_REGION.to_owned(), answer));
    let refused = cases(&mapped.answers);

    let mut wrong = Vec::new();
    if before.len() != mapped.files.len() || host.mappings() != before {
        wrong.push("a hostile request changed the mappings".to_owned());
    }
    let jail = Proof::of(&device.process).context("cannot read the device process's jail")?;
    let device_pid = device.process.pid();

    progress.say("killing the backends");
    device.end(&mut host)?;
    neighbour.end(&mut host)?;
    let mappings_left = host.mappings().len() as u64;
    drop(progress);

    let mut left_out = source.left_out;
    left_out.append(&mut mapped.left_out);
    let mut report = Report {
        ok: true,
        files: mapped.files,
        jail,
        refused,
        guest: host.guest(),
        latency_us: latency,
        mappings_left,
        notes: Notes {
            source: source.name,
            device_pid,
            sandbox: sandbox.level.to_string(),
            guest_reason: host.guest_reason().map(str::to_owned),
            left_out,
            wrong,
            took: started.elapsed(),
        },
    };
    judge(&mut report, sandbox.level);
    Ok(report)
}

/// The hostile requests that the files backend makes itself.
fn own_probes() -> Vec<&'static str> {
    CASES
        .iter()
        .map(|case| case.name)
        .filter(|name| *name != OTHER_REGION)
        .collect()
}

/// The cases with the answers that they got.
fn cases(answers: &[(String, Option<String>)]) -> Vec<RefusedCase> {
    CASES
        .iter()
        .map(|case| RefusedCase {
            case: case.name.to_owned(),
            errno: answers
                .iter()
                .find(|(name, _)| name == case.name)
                .and_then(|(_, errno)| errno.clone()),
            wanted: case.wanted,
            attempt: case.attempt,
        })
        .collect()
}

/// Finds what is not as it should be.
fn judge(report: &mut Report, level: SandboxLevel) {
    let mut wrong = std::mem::take(&mut report.notes.wrong);
    if report.files.is_empty() {
        wrong.push("there is no file to map".to_owned());
    }
    let unequal = report
        .files
        .iter()
        .filter(|file| !file.guest_sum_ok)
        .count();
    if unequal > 0 {
        wrong.push(format!("{unequal} sums differ from the host's"));
    }
    let is_jailed = match level {
        SandboxLevel::Full => report.jail.is_full(),
        SandboxLevel::Seccomp => report.jail.is_filtered(),
        SandboxLevel::None => true,
    };
    if !is_jailed {
        wrong.push("the device process is not in its jail".to_owned());
    }
    if !report.refused.iter().all(RefusedCase::is_right) {
        wrong.push("a hostile request did not get its answer".to_owned());
    }
    if report.mappings_left > 0 {
        wrong.push("mappings are left".to_owned());
    }
    report.ok = wrong.is_empty();
    report.notes.wrong = wrong;
}

/// Sums a file in the guest and on the host.
fn sum(
    host: &Host,
    regions: &[Region],
    directory: &Path,
    file: &mut FileReport,
) -> anyhow::Result<()> {
    let region = regions.first().context("the device has no region")?;
    let began = Instant::now();
    let sum = host
        .machine()
        .sum(region.guest_address() + file.offset, file.len)
        .with_context(|| format!("cannot sum {}", file.path))?;
    file.sum_took = began.elapsed();
    file.sum = sum.total;
    let bytes = std::fs::read(directory.join(&file.path))
        .with_context(|| format!("cannot read {}", file.path))?;
    file.guest_sum_ok =
        sum.access.missing == 0 && bytes.len() as u64 == file.len && host_sum(&bytes) == sum.total;
    Ok(())
}

impl Device {
    /// Starts the device process of a backend that listens, and serves its request channel.
    fn start(
        host: &Host,
        sandbox: &SandboxOptions,
        name: &str,
        backend: Backend,
    ) -> anyhow::Result<Self> {
        Self::start_with(host, sandbox, name, backend, RegionSource::Backend)
    }

    /// Starts a second device, whose only region is not the one that its backend asks for: that one is the first's.
    fn start_neighbour(
        host: &Host,
        sandbox: &SandboxOptions,
        scratch: &Scratch,
    ) -> anyhow::Result<Self> {
        let directory = scratch.join("neighbour");
        std::fs::create_dir(&directory)?;
        std::fs::write(directory.join("greeting"), "this must not be mapped\n")?;
        let backend = Backend::start(Task {
            socket: scratch.join("neighbour.sock"),
            directory: &directory,
            probes: &[],
        })?;
        let regions = RegionSource::Given(vec![NEIGHBOUR_REGION]);
        Self::start_with(host, sandbox, "neighbour", backend, regions)
    }

    fn start_with(
        host: &Host,
        sandbox: &SandboxOptions,
        name: &str,
        backend: Backend,
        regions: RegionSource,
    ) -> anyhow::Result<Self> {
        let options = DeviceOptions::new(name);
        let (id, memory) = host.add_device(&options)?;
        let stream = UnixStream::connect(backend.socket())
            .with_context(|| format!("cannot connect to {}", backend.socket().display()))?;
        let mut config =
            DeviceProcessConfig::new(name, OwnedFd::from(stream), memory, Event::new()?);
        config.sandbox = sandbox.clone();
        config.log = LOG;
        config.connect.regions = regions;
        let mut process = DeviceProcess::spawn(&host.spawner(), config)?;
        let info = process.connect()?;
        let regions = host.add_regions(id, &options, &info.regions)?;
        process.start()?;
        Ok(Self {
            id,
            process,
            backend,
            regions,
        })
    }

    /// Follows the backend until it has mapped everything and made its hostile requests.
    fn follow(&mut self, progress: &Progress) -> anyhow::Result<Mapped> {
        let mut mapped = Mapped::default();
        loop {
            match self.backend.next()? {
                Line::Layout { files } => progress.expect(files),
                Line::Skipped { path, reason } => mapped.left_out.push((path, reason)),
                Line::Mapped {
                    path,
                    offset,
                    len,
                    map_us,
                } => mapped.files.push(FileReport {
                    path,
                    offset,
                    len,
                    guest_sum_ok: false,
                    map_us,
                    sum: 0,
                    sum_took: Duration::ZERO,
                }),
                Line::Refused { errno } => bail!("a file was not mapped: {errno}"),
                Line::Probe { case, errno } => mapped.answers.push((case, errno)),
                Line::NoChannel { reason } => bail!("the backend can map nothing: {reason}"),
                Line::ChannelClosed { reason } => bail!(self.channel_closed(&reason)),
                Line::Ready => return Ok(mapped),
                Line::Listening | Line::Other => {}
            }
        }
    }

    /// Follows a backend whose requests must be refused; the answer that the first one got, `None` if it was granted.
    fn first_refusal(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            match self.backend.next()? {
                Line::Refused { errno } => return Ok(Some(errno)),
                Line::Mapped { .. } | Line::Ready => return Ok(None),
                Line::ChannelClosed { reason } => bail!(self.channel_closed(&reason)),
                Line::NoChannel { reason } => bail!("the backend can map nothing: {reason}"),
                _ => {}
            }
        }
    }

    /// What to say when the request channel has ended early: how the device process ended, if that is why.
    fn channel_closed(&mut self, reason: &str) -> String {
        self.await_end();
        match self.process.exit_report() {
            Some(report) => report.to_string(),
            None => format!("the backend's request channel has ended: {reason}"),
        }
    }

    /// Waits for the end of the device process, but not for ever; whether it has ended.
    fn await_end(&self) -> bool {
        let pidfd = self.process.pidfd();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(END_DEADLINE).ok();
        rustix::event::poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Kills the backend, and waits for the end of its device process.
    fn end(mut self, host: &mut Host) -> anyhow::Result<()> {
        self.backend.kill();
        let has_ended = self.await_end();
        host.remove_device(self.id);
        if !has_ended {
            bail!("the device process did not end with its backend");
        }
        Ok(())
    }
}
