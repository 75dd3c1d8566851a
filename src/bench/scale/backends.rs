//! Many backends in one process, a thread each while they run together.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use serde::Deserialize;
use serde::Serialize;

use crate::bench::bare;
use crate::bench::portcullis::request_channel;
use crate::bench::roles::memfd;
use crate::bench::workload::Driver;
use crate::bench::workload::Workload;

/// What the process is told first, before the main channels: how many they are, and the bytes of each device's region.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) devices: u32,
    pub(super) region: u64,
}

/// What the backends do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first one makes these of the mappings that stay.
    Keep { from: u64, to: u64 },
    /// The first one makes one mapping that stays.
    Area { offset: u64, len: u64 },
    /// The first one runs the workload's counted pairs.
    Pairs(Workload),
    /// All run pairs of the workload for so long, but for the first one if it is up to something else.
    Together {
        workload: Workload,
        millis: u64,
        mischief: Option<Mischief>,
    },
}

/// What one backend does while the others work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mischief {
    /// Nothing, for comparison.
    Idle,
    /// It stops within a header.
    HalfHeader,
    /// It sends requests that must be refused, and never reads an answer.
    BadRequests,
    /// It has as many good requests under way as there is room for, and never reads an answer.
    NeverReads,
}

/// What came of an order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Of each device.
    pub(super) pairs: Vec<u64>,
    /// Nanoseconds of one pair: the median over all, over the first hundredth and over the last.
    pub(super) median_ns: u64,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
}

/// Pairs between two looks at the clock.
const PAIRS_A_LOOK: u32 = 16;
const WARM_UP: u32 = 256;

/// Carries out orders until there are no more.
///
/// # Errors
/// If a frontend does not do its part, or refuses a request.
pub(in crate::bench) fn run(input: OwnedFd) -> Result<()> {
    let mut stream = UnixStream::from(input);
    let mut plan = String::new();
    // A byte at a time: the descriptors come with the bytes behind the line.
    while !plan.ends_with('\n') {
        let mut byte = [0];
        let (count, _) = bare::receive(stream.as_fd(), &mut byte)?;
        anyhow::ensure!(count == 1, "no plan");
        plan.push(char::from(byte[0]));
    }
    let plan: Plan = serde_json::from_str(&plan).context("plan")?;
    let mut drivers = Vec::new();
    for _ in 0..plan.devices {
        let (_, main) = bare::receive(stream.as_fd(), &mut [0])?;
        let channel = request_channel(main.context("no main channel")?, plan.region)?;
        drivers.push(Driver::new(channel, memfd(plan.region)?, plan.region));
    }
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let outcome = obey(&mut drivers, serde_json::from_str(&line)?)?;
        writeln!(stream, "{}", serde_json::to_string(&outcome)?)?;
        line.clear();
    }
    Ok(())
}

fn obey(drivers: &mut [Driver], order: Order) -> Result<Outcome> {
    let first = drivers.first_mut().context("no device")?;
    match order {
        Order::Keep { from, to } => {
            first.keep(from..to)?;
            Ok(Outcome::default())
        }
        Order::Area { offset, len } => {
            first.area(offset, len)?;
            Ok(Outcome::default())
        }
        Order::Pairs(workload) => {
            first.pairs(&workload, workload.warm_up, |_| ())?;
            let mut took = Vec::with_capacity(workload.pairs as usize);
            let width = workload.mode.width();
            let pairs = first.pairs(&workload, workload.pairs, |group| took.push(group / width))?;
            let part = took.len().div_ceil(100);
            Ok(Outcome {
                pairs: vec![pairs.into()],
                median_ns: median(&took),
                first_ns: median(&took[..part]),
                last_ns: median(&took[took.len() - part..]),
            })
        }
        Order::Together {
            workload,
            millis,
            mischief,
        } => {
            let ready = Barrier::new(drivers.len());
            let counts: Result<Vec<u64>> = thread::scope(|scope| {
                let threads: Vec<_> = drivers
                    .iter_mut()
                    .enumerate()
                    .map(|(place, driver)| {
                        let ready = &ready;
                        let mischief = mischief.filter(|_| place == 0);
                        scope.spawn(move || match mischief {
                            Some(mischief) => misbehave(driver, mischief, millis, ready),
                            None => count(driver, &workload, millis, ready),
                        })
                    })
                    .collect();
                let joined = threads.into_iter().map(|thread| {
                    let outcome = thread.join();
                    outcome.map_err(|_| anyhow::anyhow!("a backend panicked"))?
                });
                joined.collect()
            });
            Ok(Outcome {
                pairs: counts?,
                ..Outcome::default()
            })
        }
    }
}

/// Runs pairs for so long and counts them.
fn count(driver: &mut Driver, workload: &Workload, millis: u64, ready: &Barrier) -> Result<u64> {
    let warmed = driver.pairs(workload, WARM_UP, |_| ());
    // Whoever fails must not leave the others waiting.
    ready.wait();
    warmed?;
    let deadline = Instant::now() + Duration::from_millis(millis);
    let mut count = 0;
    while Instant::now() < deadline {
        count += u64::from(driver.pairs(workload, PAIRS_A_LOOK, |_| ())?);
    }
    Ok(count)
}

/// Does something else for so long; no pairs come of it.
fn misbehave(driver: &mut Driver, mischief: Mischief, millis: u64, ready: &Barrier) -> Result<u64> {
    ready.wait();
    let deadline = Instant::now() + Duration::from_millis(millis);
    match mischief {
        Mischief::Idle => {}
        Mischief::HalfHeader => driver.send_some(&[9, 0, 0, 0, 9])?,
        Mischief::BadRequests => driver.flood(false, deadline)?,
        Mischief::NeverReads => driver.flood(true, deadline)?,
    }
    thread::sleep(deadline.saturating_duration_since(Instant::now()));
    Ok(0)
}

fn median(took: &[Duration]) -> u64 {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    u64::try_from(middle.as_nanos()).unwrap_or(u64::MAX)
}
