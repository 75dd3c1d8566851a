//! What grows: many devices on one service, many live mappings, many offsets, large regions; and what a device costs to start and
//! to keep.
//!
//! All processes run on CPU 0 with SCHED_FIFO where that is allowed, and the guest on CPU 1. The VMM is this process; all
//! backends of a measurement are one other process, with a thread each while they run together.

pub(super) mod backends;
mod fleet;
mod populate;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use rustix::process::Signal;
use rustix::process::pidfd_send_signal;
use serde::Serialize;

use self::backends::Mischief;
use self::backends::Order;
use self::fleet::Fleet;
use super::bare;
use super::counters::areas;
use super::counters::entries;
use super::counters::private_kib;
use super::report::Spread;
use super::workload::Mode;
use super::workload::Workload;
use crate::vmm::machine::Machine;
use crate::vmm::machine::MachineConfig;

/// Where the guest sees the first region.
const GUEST_ADDRESS: u64 = 4 << 30;
const GIB: u64 = 1 << 30;
/// How long devices run together.
const TOGETHER_MS: u64 = 1_500;
/// How often a device is started to time that, and a page read through the guest.
const SAMPLES: u64 = 20;

/// One line of the report.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Median and range over the rounds or samples.
    value: Spread,
    unit: &'static str,
    /// What the project wants to see, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_reach: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    cpus: usize,
    one_core: bool,
    rounds: u16,
    rows: Vec<Row>,
}

impl Report {
    fn add(&mut self, name: impl Into<String>, unit: &'static str, values: &[f64]) -> &mut Row {
        let name = name.into();
        eprintln!("{name}");
        self.rows.push(Row {
            name,
            value: Spread::of(values.iter().copied()),
            unit,
            to_reach: None,
        });
        self.rows.last_mut().expect("just added")
    }
}

/// Measures all of it and prints a table, or one JSON object.
///
/// # Errors
/// If a process can't be started or ends early, or a request is refused.
pub(super) fn run(rounds: u16, json: bool) -> Result<()> {
    let mut report = Report {
        kernel: super::kernel(),
        cpus: thread::available_parallelism()?.get(),
        one_core: false,
        rounds,
        rows: Vec::new(),
    };
    mischief(&mut report)?;
    guest_reads(&mut report)?;
    if !report.one_core {
        report.one_core = bare::place(Some(0), true).is_ok();
    }
    starts(&mut report)?;
    many_devices(&mut report)?;
    live_mappings(&mut report)?;
    new_offsets(&mut report)?;
    large_mappings(&mut report)?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", table(&report)?);
    }
    Ok(())
}

fn table(report: &Report) -> Result<String> {
    let mut text = String::new();
    let placement = if report.one_core {
        "one core"
    } else {
        "unpinned"
    };
    writeln!(
        text,
        "{} rounds, {placement}, Linux {}",
        report.rounds, report.kernel
    )?;
    for row in &report.rows {
        let Spread { median, min, max } = row.value;
        let figure = format!("{median:.2} ({min:.2}–{max:.2}) {}", row.unit);
        let wanted = row.to_reach.map(|wanted| format!("to reach {wanted}"));
        let wanted = wanted.unwrap_or_default();
        writeln!(text, "  {:<60} {figure:<32} {wanted}", row.name)?;
    }
    Ok(text)
}

fn workload(mode: Mode, len: u64, slots: u64, pairs: u32) -> Workload {
    Workload {
        mode,
        len,
        slots,
        warm_up: 1_000.min(pairs),
        pairs,
        live: 0,
    }
}

const fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// From the reply of a map to the guest's first read of it, and what a guest that reads all the time pays while mappings change.
fn guest_reads(report: &mut Report) -> Result<()> {
    // The guest on the other CPU than everything else.
    let is_placed = bare::place(Some(1), false).is_ok();
    let machine = match Machine::open(MachineConfig::default()) {
        Ok(machine) => machine,
        Err(error) => {
            eprintln!("no guest, its reads are not measured: {error}");
            return Ok(());
        }
    };
    thread::scope(|scope| {
        let reader = Reader::start(scope, &machine);
        report.one_core = is_placed && bare::place(Some(0), true).is_ok();
        let mut fleet = Fleet::start(1, GIB, GUEST_ADDRESS)?;
        let _slot = fleet.show(&machine, GUEST_ADDRESS)?;
        let (mut first, mut again) = (Vec::new(), Vec::new());
        for page in 0..SAMPLES {
            fleet.order(Order::Keep {
                from: page,
                to: page + 1,
            })?;
            let address = GUEST_ADDRESS + GIB - (page + 1) * 2 * 4096;
            for times in [&mut first, &mut again] {
                let begin = Instant::now();
                let access = machine.peek(address, &mut [0; 8])?;
                times.push(micros(begin.elapsed()));
                ensure!(access.faults.is_empty(), "the guest met a hole");
            }
        }
        report.add(
            "reply of a map to the guest's first read of it",
            "µs",
            &first,
        );
        report.add("the guest's second read of it", "µs", &again);

        let offset = GIB / 2;
        fleet.order(Order::Area { offset, len: READ })?;
        let pairs = workload(Mode::OneAtATime, 64 << 10, 4096, 5_000);
        let mut ratios = Vec::new();
        for _ in 0..report.rounds {
            let alone = reader.rate(GUEST_ADDRESS + offset, || {
                thread::sleep(Duration::from_millis(300));
                Ok(())
            })?;
            let together = reader.rate(GUEST_ADDRESS + offset, || {
                fleet.order(Order::Pairs(pairs)).map(drop)
            })?;
            ratios.push(together / alone);
        }
        report.add(
            "a guest's reading while mappings change / while they do not",
            "",
            &ratios,
        );
        populate::measure(report, &machine)
    })
}

/// Bytes that the guest reads over and over.
const READ: u64 = 1 << 20;

/// A thread that has the guest read.
struct Reader {
    orders: mpsc::Sender<u64>,
    stop: Arc<AtomicBool>,
    rates: mpsc::Receiver<Result<f64>>,
}

impl Reader {
    fn start<'s>(scope: &'s thread::Scope<'s, '_>, machine: &'s Machine) -> Reader {
        let (orders, addresses) = mpsc::channel();
        let (results, rates) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        scope.spawn(move || {
            while let Ok(address) = addresses.recv() {
                let (begin, mut count) = (Instant::now(), 0);
                let mut outcome = Ok(());
                while outcome.is_ok() && !told.load(Ordering::Relaxed) {
                    outcome = machine.sum(address, READ).map(drop);
                    count += 1;
                }
                let rate = outcome.map(|()| float(count) / begin.elapsed().as_secs_f64());
                // Whoever asked waits for it.
                let _ = results.send(rate.map_err(Into::into));
            }
        });
        Reader {
            orders,
            stop,
            rates,
        }
    }

    /// Returns how often a second the guest reads at `address` for as long as `meanwhile` takes.
    fn rate(&self, address: u64, meanwhile: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.stop.store(false, Ordering::Relaxed);
        self.orders.send(address).context("the reader")?;
        let outcome = meanwhile();
        self.stop.store(true, Ordering::Relaxed);
        let rate = self.rates.recv().context("the reader")?;
        outcome?;
        rate
    }
}

/// From the spawn of a device process to its first request, and what the process keeps to itself.
fn starts(report: &mut Report) -> Result<()> {
    let (mut serving, mut served, mut private) = (Vec::new(), Vec::new(), Vec::new());
    let one = workload(Mode::OneAtATime, 64 << 10, 4096, 1);
    for _ in 0..SAMPLES {
        let mut fleet = Fleet::start(1, GIB, GUEST_ADDRESS)?;
        let started = fleet.start[0];
        let begin = Instant::now();
        fleet.order(Order::Pairs(one))?;
        serving.push(micros(started) / 1e3);
        served.push(micros(started + begin.elapsed()) / 1e3);
        private.push(float(private_kib(fleet.devices[0].pid())?));
    }
    report.add("spawn of a device process until it serves", "ms", &serving);
    report
        .add("spawn to two requests served", "ms", &served)
        .to_reach = Some("10");
    report
        .add("private memory of a device process", "KiB", &private)
        .to_reach = Some("1536");
    let program = std::fs::metadata(std::env::current_exe()?)?.len();
    report.add(
        "the program's file, with line tables",
        "KiB",
        &[float(program / 1024)],
    );
    Ok(())
}

/// Devices that share a service: throughput and fairness, and what they cost.
fn many_devices(report: &mut Report) -> Result<()> {
    const COUNTS: [u32; 4] = [1, 8, 64, 256];
    let pairs = workload(Mode::OneAtATime, 64 << 10, 4096, 1);
    let mut ratios = COUNTS.map(|_| Vec::new());
    let mut fairness = COUNTS.map(|_| Vec::new());
    let mut starts = COUNTS.map(|_| Vec::new());
    let mut memory = COUNTS.map(|_| Vec::new());
    let mut held = COUNTS.map(|_| Vec::new());
    let mut single = Vec::new();
    let this = std::process::id();
    for _ in 0..report.rounds {
        let mut of_one = 0.0;
        for (place, count) in COUNTS.into_iter().enumerate() {
            let before = entries(this, "fd")? + entries(this, "task")?;
            let begin = Instant::now();
            let mut fleet = Fleet::start(count, GIB, GUEST_ADDRESS)?;
            starts[place].push(begin.elapsed().as_secs_f64() * 1e3 / f64::from(count));
            let after = entries(this, "fd")? + entries(this, "task")?;
            held[place].push((float(after) - float(before)) / f64::from(count));
            let outcome = fleet.order(Order::Together {
                workload: pairs,
                millis: TOGETHER_MS,
                mischief: None,
            })?;
            let total: u64 = outcome.pairs.iter().sum();
            let slowest = outcome.pairs.iter().min().copied().unwrap_or_default();
            let fastest = outcome.pairs.iter().max().copied().unwrap_or_default();
            if count == 1 {
                of_one = float(total);
                single.push(float(total) * 1e3 / float(TOGETHER_MS));
            }
            ratios[place].push(float(total) / of_one);
            fairness[place].push(float(slowest) / float(fastest));
            let mut private = 0;
            for device in &fleet.devices {
                private += private_kib(device.pid())?;
            }
            memory[place].push(float(private) / f64::from(count));
        }
    }
    report.add("one device alone", "pairs/s", &single);
    for (place, count) in COUNTS.into_iter().enumerate().skip(1) {
        let wanted = |wanted| (count == 64).then_some(wanted);
        report
            .add(
                format!("{count} devices: total / one device's"),
                "",
                &ratios[place],
            )
            .to_reach = wanted("0.9");
        report
            .add(
                format!("{count} devices: slowest / fastest"),
                "",
                &fairness[place],
            )
            .to_reach = wanted("0.7");
        report.add(
            format!("{count} devices: start of one"),
            "ms",
            &starts[place],
        );
        report.add(
            format!("{count} devices: private memory of one's process"),
            "KiB",
            &memory[place],
        );
        report.add(
            format!("{count} devices: descriptors and threads of the VMM for one"),
            "",
            &held[place],
        );
    }
    Ok(())
}

/// What 63 devices get done while the 64th misbehaves, beside what they do while it is idle. Unpinned: who sends without end must
/// not keep the others from a CPU that it has for itself.
fn mischief(report: &mut Report) -> Result<()> {
    const KINDS: [(&str, Mischief); 5] = [
        ("is idle", Mischief::Idle),
        ("stops within a header", Mischief::HalfHeader),
        ("sends bad requests and never reads", Mischief::BadRequests),
        ("sends good requests and never reads", Mischief::NeverReads),
        ("has a stopped device process", Mischief::NeverReads),
    ];
    let workload = workload(Mode::OneAtATime, 64 << 10, 4096, 1);
    let mut ratios = KINDS.map(|_| Vec::new());
    let mut fairness = KINDS.map(|_| Vec::new());
    for _ in 0..report.rounds {
        let mut of_idle = 0.0;
        for (place, (name, mischief)) in KINDS.into_iter().enumerate() {
            let mut fleet = Fleet::start(64, GIB, GUEST_ADDRESS)?;
            if name == "has a stopped device process" {
                let stopped = fleet.devices[0].pidfd();
                pidfd_send_signal(stopped, Signal::STOP)?;
            }
            let outcome = fleet.order(Order::Together {
                workload,
                millis: TOGETHER_MS,
                mischief: Some(mischief),
            })?;
            let others = &outcome.pairs[1..];
            let total = float(others.iter().sum());
            if mischief == Mischief::Idle {
                of_idle = total;
            }
            let slowest = others.iter().min().copied().unwrap_or_default();
            let fastest = others.iter().max().copied().unwrap_or_default();
            ensure!(slowest > 0, "a device was not served while one {name}");
            ratios[place].push(total / of_idle);
            fairness[place].push(float(slowest) / float(fastest));
        }
    }
    for (place, (name, _)) in KINDS.into_iter().enumerate() {
        report.add(
            format!("63 devices while one {name}: total"),
            "",
            &ratios[place],
        );
        report.add(
            format!("63 devices while one {name}: slowest / fastest"),
            "",
            &fairness[place],
        );
    }
    Ok(())
}

/// The cost of a pair beside many live mappings.
fn live_mappings(report: &mut Report) -> Result<()> {
    const LIVE: [u64; 3] = [0, 1_000, 30_000];
    let pairs = workload(Mode::OneAtATime, 64 << 10, 4096, 5_000);
    let mut ratios = LIVE.map(|_| Vec::new());
    for _ in 0..report.rounds {
        let mut fleet = Fleet::start(1, GIB, GUEST_ADDRESS)?;
        let (mut made, mut of_none) = (0, 0.0);
        for (place, live) in LIVE.into_iter().enumerate() {
            fleet.order(Order::Keep {
                from: made,
                to: live,
            })?;
            made = live;
            let took = float(fleet.order(Order::Pairs(pairs))?.median_ns);
            if live == 0 {
                of_none = took;
            }
            ratios[place].push(took / of_none);
        }
    }
    report.add("1,000 live mappings: a pair / with none", "", &ratios[1]);
    report
        .add("30,000 live mappings: a pair / with none", "", &ratios[2])
        .to_reach = Some("1.05");
    Ok(())
}

/// A million pairs, each at a new offset.
fn new_offsets(report: &mut Report) -> Result<()> {
    let region = 8 * GIB;
    let mut fleet = Fleet::start(1, region, GUEST_ADDRESS)?;
    let this = std::process::id();
    let before = areas(this)?;
    let pairs = workload(Mode::Pipelined(64), 4096, region / 4096, 1_000_000);
    let outcome = fleet.order(Order::Pairs(pairs))?;
    let more = float(areas(this)?.abs_diff(before));
    let last = float(outcome.last_ns) / float(outcome.first_ns);
    report
        .add(
            "a million pairs at new offsets: areas (VMAs) more or fewer",
            "",
            &[more],
        )
        .to_reach = Some("0");
    report.add("the last hundredth of them / the first", "", &[last]);
    Ok(())
}

/// Mappings of the sizes that need a large region.
fn large_mappings(report: &mut Report) -> Result<()> {
    let region = 8 * GIB;
    let mut fleet = Fleet::start(1, region, GUEST_ADDRESS)?;
    for (name, len) in [("2 MiB", 2 << 20), ("1 GiB", GIB)] {
        let mut took = Vec::new();
        for _ in 0..report.rounds {
            let pairs = workload(Mode::OneAtATime, len, region / len, 2_000);
            took.push(float(fleet.order(Order::Pairs(pairs))?.median_ns) / 1e3);
        }
        report.add(
            format!("a pair of {name} in a region of 8 GiB"),
            "µs",
            &took,
        );
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}
