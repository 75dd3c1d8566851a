//! The cases of the benchmark: which subjects, where, under which workload, and the ratio that the case is for.

use serde::Serialize;

use super::subjects::Placement;
use super::subjects::Subject;
use super::workload::Mode;
use super::workload::Workload;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) placement: Placement,
    pub(super) workload: Workload,
    /// Run in turn, round by round.
    pub(super) subjects: &'static [Subject],
    /// What the ratios are relative to: one of the subjects.
    pub(super) limit: Subject,
    /// The highest ratio of Portcullis to the limit that the project wants to see; nothing where none is set.
    pub(super) target: Option<f64>,
}

impl Case {
    /// Returns the name and the placement, as they are printed.
    pub(super) fn title(&self) -> String {
        format!("{}, {}", self.name, self.placement.name())
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// 10,000 pairs of warm-up, 50,000 counted.
    Full,
    /// A fifth of that: what a user's machine is shown by default.
    Short,
}

const ALL: &[Subject] = &[
    Subject::Limit1,
    Subject::Limit2,
    Subject::Vhost,
    Subject::Portcullis,
];
const THREE: &[Subject] = &[Subject::Limit2, Subject::Portcullis];
/// The middle of `limit2` waits for each answer, so that it cannot take part where most requests have none.
const UNACKED: &[Subject] = &[Subject::Limit2p, Subject::Portcullis];
const PIPELINED: &[Subject] = &[Subject::Limit2, Subject::Limit2p, Subject::Portcullis];

/// Returns the cases in the order in which they run.
pub(super) fn all(length: Length) -> Vec<Case> {
    let (warm_up, pairs) = match length {
        Length::Full => (10_000, 50_000),
        Length::Short => (2_000, 10_000),
    };
    let workload = |mode, len: u64| Workload {
        mode,
        len,
        slots: if len > 1 << 20 { 256 } else { 4096 },
        warm_up,
        pairs,
        live: 0,
    };
    let case = |name, placement, workload, subjects, limit, target| Case {
        name,
        placement,
        workload,
        subjects,
        limit,
        target,
    };
    let one = workload(Mode::OneAtATime, 64 << 10);
    let piped = workload(Mode::Pipelined(64), 64 << 10);
    let unacked = workload(Mode::Unacked(64), 64 << 10);
    let core = Placement::OneCore;
    let neighbours = Placement::Neighbours;
    vec![
        case("one at a time", core, one, ALL, Subject::Limit2, Some(1.10)),
        case(
            "one at a time",
            neighbours,
            one,
            ALL,
            Subject::Limit2,
            Some(1.05),
        ),
        case(
            "one at a time",
            Placement::Unpinned,
            one,
            THREE,
            Subject::Limit2,
            None,
        ),
        case(
            "one at a time, 4 KiB",
            core,
            workload(Mode::OneAtATime, 4 << 10),
            THREE,
            Subject::Limit2,
            None,
        ),
        case(
            "one at a time, 2 MiB",
            core,
            workload(Mode::OneAtATime, 2 << 20),
            THREE,
            Subject::Limit2,
            None,
        ),
        case(
            "one at a time, 30,000 live",
            core,
            Workload {
                live: 30_000,
                ..one
            },
            THREE,
            Subject::Limit2,
            None,
        ),
        case(
            "pipelined 64",
            core,
            piped,
            PIPELINED,
            Subject::Limit2p,
            Some(0.6),
        ),
        case(
            "pipelined 64",
            neighbours,
            piped,
            PIPELINED,
            Subject::Limit2p,
            Some(0.9),
        ),
        case(
            "pipelined 16",
            core,
            workload(Mode::Pipelined(16), 64 << 10),
            PIPELINED,
            Subject::Limit2p,
            None,
        ),
        case(
            "pipelined 16",
            neighbours,
            workload(Mode::Pipelined(16), 64 << 10),
            PIPELINED,
            Subject::Limit2p,
            None,
        ),
        case("unacked 64", core, unacked, UNACKED, Subject::Limit2p, None),
        case(
            "unacked 64",
            neighbours,
            unacked,
            UNACKED,
            Subject::Limit2p,
            None,
        ),
    ]
}
