//! What a benchmark run found: one JSON object for programs, a table for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::cases::Case;
use super::counters::Counters;
use super::subjects::Subject;
use super::workload::Measured;

/// A whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cpus: usize,
    pub(super) kernel: String,
    pub(super) version: &'static str,
    pub(super) rounds: usize,
    pub(super) cases: Vec<CaseReport>,
}

/// One case over all rounds.
#[derive(Debug, Serialize)]
pub(super) struct CaseReport {
    #[serde(flatten)]
    pub(super) case: Case,
    pub(super) subjects_measured: Vec<SubjectReport>,
}

/// One subject of a case over all rounds.
#[derive(Debug, Serialize)]
pub(super) struct SubjectReport {
    pub(super) subject: Subject,
    pub(super) rounds: Vec<Measured>,
    /// Microseconds a pair, the mean of each round: median and range over the rounds.
    pub(super) mean_us: Spread,
    pub(super) median_us: Spread,
    pub(super) p99_us: Spread,
    /// This subject's median by the limit's of the same round: median and range over the rounds.
    pub(super) ratio: Spread,
    /// The same of the means, into which every moment counts that the host was busy elsewhere.
    pub(super) mean_ratio: Spread,
    /// From a run of its own, whose times are not used: counts slow a process down.
    pub(super) counted: Vec<ProcessCount>,
}

/// What one process did in a counted run.
#[derive(Debug, Serialize)]
pub(super) struct ProcessCount {
    pub(super) process: &'static str,
    pub(super) pairs: u32,
    #[serde(flatten)]
    pub(super) counters: Counters,
}

/// A median and the range around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Returns the spread of `values`; zeros where there are none.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            return Spread::default();
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Spread {
            median,
            min: *min,
            max: *max,
        }
    }
}

impl SubjectReport {
    /// Sums up the `rounds` of a subject against those of the limit.
    pub(super) fn new(
        subject: Subject,
        rounds: Vec<Measured>,
        limit: &[Measured],
        counted: Vec<ProcessCount>,
    ) -> SubjectReport {
        SubjectReport {
            subject,
            mean_us: Spread::of(rounds.iter().map(mean_us)),
            median_us: Spread::of(rounds.iter().map(|round| microseconds(round.median_ns))),
            p99_us: Spread::of(rounds.iter().map(|round| microseconds(round.p99_ns))),
            ratio: ratio(&rounds, limit, |round| microseconds(round.median_ns)),
            mean_ratio: ratio(&rounds, limit, mean_us),
            rounds,
            counted,
        }
    }
}

/// Divides round by round.
fn ratio(rounds: &[Measured], limit: &[Measured], figure: impl Fn(&Measured) -> f64) -> Spread {
    let both = rounds.iter().zip(limit);
    Spread::of(both.map(|(round, limit)| figure(round) / figure(limit)))
}

fn mean_us(measured: &Measured) -> f64 {
    microseconds(measured.total_ns) / f64::from(measured.pairs.max(1))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a run is far shorter than 2^53 ns, where a f64 would round"
)]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts are far below 2^53, where a f64 would round"
)]
fn per_pair(count: u64, pairs: u32) -> f64 {
    count as f64 / f64::from(pairs.max(1))
}

impl Report {
    /// Renders the table for people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for report in &self.cases {
            // Writing to a String cannot fail.
            let _ = self.case(&mut text, report);
        }
        text
    }

    fn case(&self, text: &mut String, report: &CaseReport) -> std::fmt::Result {
        let case = &report.case;
        writeln!(
            text,
            "\n{}, {} ({} pairs, {} rounds)",
            case.name,
            case.placement.name(),
            case.workload.pairs,
            self.rounds
        )?;
        writeln!(
            text,
            "  {:<11} {:>9} {:>9} {:>9}  {:>21}  {:>5}  system calls a pair",
            "", "median µs", "p99", "mean", "ratio (range)", "means"
        )?;
        for subject in &report.subjects_measured {
            let ratio = format!(
                "{:.2} ({:.2}–{:.2})",
                subject.ratio.median, subject.ratio.min, subject.ratio.max
            );
            writeln!(
                text,
                "  {:<11} {:>9.2} {:>9.2} {:>9.2}  {ratio:>21}  {:>5.2}  {}",
                subject.subject.name(),
                subject.median_us.median,
                subject.p99_us.median,
                subject.mean_us.median,
                subject.mean_ratio.median,
                calls(&subject.counted),
            )?;
        }
        if let (Some(target), Some(ours)) = (case.target, report.portcullis()) {
            let verdict = if ours.ratio.median <= target {
                "met"
            } else {
                "missed"
            };
            writeln!(
                text,
                "  portcullis / {}: {:.2}, to reach {target:.2}: {verdict}",
                case.limit.name(),
                ours.ratio.median
            )?;
        }
        Ok(())
    }
}

impl CaseReport {
    fn portcullis(&self) -> Option<&SubjectReport> {
        self.subjects_measured
            .iter()
            .find(|report| report.subject == Subject::Portcullis)
    }
}

/// Says the system calls (and allocations, where they were counted) of each process a pair.
fn calls(counted: &[ProcessCount]) -> String {
    counted
        .iter()
        .filter_map(|count| {
            let calls = per_pair(count.counters.system_calls?, count.pairs);
            let allocations = count
                .counters
                .allocations
                .map(|allocations| {
                    format!(", {:.2} allocations", per_pair(allocations, count.pairs))
                })
                .unwrap_or_default();
            Some(format!("{} {calls:.1}{allocations}", count.process))
        })
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_median_and_range() {
        assert_eq!(
            Spread::of([3.0, 1.0, 2.0].into_iter()),
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(
            Spread::of([4.0, 1.0].into_iter()),
            Spread {
                median: 2.5,
                min: 1.0,
                max: 4.0
            }
        );
        assert_eq!(Spread::of(std::iter::empty()), Spread::default());
    }

    #[test]
    fn ratio_is_taken_round_by_round() {
        let measured = |median_ns| Measured {
            pairs: 10,
            total_ns: 20 * median_ns + 10_000,
            median_ns,
            p99_ns: 0,
        };
        let report = SubjectReport::new(
            Subject::Portcullis,
            vec![measured(2_000), measured(9_000)],
            &[measured(1_000), measured(3_000)],
            Vec::new(),
        );
        assert_eq!(report.mean_ratio.max, 19.0 / 7.0);
        assert_eq!(
            report.ratio,
            Spread {
                median: 2.5,
                min: 2.0,
                max: 3.0
            }
        );
    }
}
