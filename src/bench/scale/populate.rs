//! A region whose pages are filled in ahead of the guest, beside one whose pages are left to the guest.

use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use anyhow::ensure;

use super::GIB;
use super::GUEST_ADDRESS;
use super::Report;
use super::SAMPLES;
use super::backends::Order;
use super::fleet::Fleet;
use super::float;
use super::micros;
use super::workload;
use crate::bench::workload::Mode;
use crate::vmm::machine::Machine;

/// Bytes of one mapping, none of whose pages its file has.
const LEN: u64 = 2 << 20;
/// How long a mapping is left alone before the guest comes to it.
const PAUSE: Duration = Duration::from_millis(5);

/// The cost of a pair and of the guest's first look at a mapping that has been there for a while, both ways in turn.
///
/// # Errors
/// If a process can't be started or ends early, or a request is refused.
pub(super) fn measure(report: &mut Report, machine: &Machine) -> Result<()> {
    let pairs = workload(Mode::OneAtATime, 64 << 10, 4096, 4_096);
    let mut reads = [Vec::new(), Vec::new()];
    let mut ratios = Vec::new();
    for _ in 0..report.rounds {
        let mut took = [0, 0];
        for (place, populate) in [0, u64::MAX].into_iter().enumerate() {
            let base = GUEST_ADDRESS + 2 * GIB;
            let mut fleet = Fleet::start_with(1, GIB, base, populate)?;
            let _slot = fleet.show(machine, base)?;
            for index in 0..SAMPLES {
                let offset = GIB - (index + 1) * LEN;
                fleet.order(Order::Area { offset, len: LEN })?;
                std::thread::sleep(PAUSE);
                let begin = Instant::now();
                let sum = machine.sum(base + offset, LEN)?;
                reads[place].push(micros(begin.elapsed()));
                ensure!(sum.access.faults.is_empty(), "the guest met a hole");
            }
            took[place] = fleet.order(Order::Pairs(pairs))?.median_ns;
        }
        ratios.push(float(took[1]) / float(took[0]));
    }
    let [left, filled] = reads;
    report.add(
        "the guest's first reading of 2 MiB, pages left to it",
        "µs",
        &left,
    );
    report.add(
        "the guest's first reading of 2 MiB, pages filled in",
        "µs",
        &filled,
    );
    report.add(
        "a pair, pages filled in / pages left to the guest",
        "",
        &ratios,
    );
    Ok(())
}
