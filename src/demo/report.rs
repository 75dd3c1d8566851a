//! What the demo found out, as one JSON document and as text.
//!
//! The keys of the document are an interface; the text is not.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde::Serializer;

use crate::cli::ctl::count;
use crate::cli::size::Size;
use crate::cli::table::Align;
use crate::cli::table::Table;
use crate::vmm::proof::Proof;

/// Everything that the demo found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether all of it is as it should be.
    pub ok: bool,
    /// The files that the backend mapped.
    pub files: Vec<FileReport>,
    /// The jail of the device process, seen from outside.
    pub jail: Proof,
    /// The hostile requests, and what each got.
    pub refused: Vec<RefusedCase>,
    /// `kvm` or `none`.
    pub guest: &'static str,
    /// How long a map request takes, measured at the backend.
    pub latency_us: Latency,
    /// Mappings that are left after the backends went.
    pub mappings_left: u64,
    /// What only people get to read.
    #[serde(skip)]
    pub notes: Notes,
}

/// What the text says beyond the document.
#[derive(Debug, Default)]
pub struct Notes {
    /// Where the files come from.
    pub source: String,
    /// The device process whose jail was looked at.
    pub device_pid: u32,
    /// How that process is locked up.
    pub sandbox: String,
    /// Why there is no guest, if there is none.
    pub guest_reason: Option<String>,
    /// Files that were left out, and why.
    pub left_out: Vec<(String, String)>,
    /// What is not as it should be.
    pub wrong: Vec<String>,
    /// How long everything took.
    pub took: Duration,
}

/// One mapped file.
#[derive(Debug, Serialize)]
pub struct FileReport {
    /// Its path in the folder.
    pub path: String,
    /// Where it is in the region, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Whether the sum of its bytes in the guest is the one on the host.
    pub guest_sum_ok: bool,
    /// How long its map request took, in microseconds.
    #[serde(serialize_with = "tenths")]
    pub map_us: f64,
    /// The sum that was computed in the guest.
    #[serde(skip)]
    pub sum: u64,
    /// How long the guest took to sum it.
    #[serde(skip)]
    pub sum_took: Duration,
}

/// One hostile request.
#[derive(Debug, Serialize)]
pub struct RefusedCase {
    /// Its name.
    pub case: String,
    /// The answer's name; `null` if it was granted.
    pub errno: Option<String>,
    /// The answer that it should have got.
    #[serde(skip)]
    pub wanted: &'static str,
    /// What it tried, for people.
    #[serde(skip)]
    pub attempt: &'static str,
}

/// The middle and the tail of a set of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half of them took no longer.
    #[serde(serialize_with = "tenths")]
    pub p50: f64,
    /// All but one of a hundred took no longer.
    #[serde(serialize_with = "tenths")]
    pub p99: f64,
}

impl Latency {
    /// Takes the percentiles by nearest rank; zeros if there is no sample.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let index = (samples.len() * percent).div_ceil(100).saturating_sub(1);
            samples.get(index).copied().unwrap_or_default()
        };
        Self {
            p50: rank(50),
            p99: rank(99),
        }
    }
}

impl RefusedCase {
    /// Whether the request got the answer that it should have got.
    pub fn is_right(&self) -> bool {
        self.errno.as_deref() == Some(self.wanted)
    }
}

/// Writes a number with one digit behind the point: more would be noise.
fn tenths<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 10.0).round() / 10.0)
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write_files(&mut text);
        self.write_jail(&mut text);
        self.write_refused(&mut text);
        self.write_end(&mut text);
        text
    }

    fn write_files(&self, text: &mut String) {
        let reader = self.reader();
        let _ = writeln!(text, "Files of {}, read by the {reader}", self.notes.source);
        if let Some(reason) = &self.notes.guest_reason {
            let _ = writeln!(text, "  no guest: {reason}");
        }
        let mut table = Table::new(&[
            ("file", Align::Left),
            ("offset", Align::Right),
            ("length", Align::Right),
            ("sum", Align::Right),
            ("time", Align::Right),
            ("", Align::Left),
        ])
        .indent(2);
        for file in &self.files {
            table.row([
                file.path.clone(),
                format!("{:#x}", file.offset),
                Size(file.len).to_string(),
                format!("{:#x}", file.sum),
                duration(file.sum_took),
                if file.guest_sum_ok { "ok" } else { "WRONG" }.to_owned(),
            ]);
        }
        let _ = write!(text, "{table}");
        let bytes = self.files.iter().map(|file| file.len).sum();
        let equal = self.files.iter().filter(|file| file.guest_sum_ok).count();
        let _ = writeln!(
            text,
            "  {}, {}: {} with the host's",
            count(self.files.len() as u64, "file"),
            Size(bytes),
            match equal {
                1 => "1 sum agrees".to_owned(),
                _ => format!("{equal} sums agree"),
            }
        );
        self.write_left_out(text);
    }

    fn write_left_out(&self, text: &mut String) {
        const SHOWN: usize = 3;
        let left_out = &self.notes.left_out;
        if left_out.is_empty() {
            return;
        }
        let shown: Vec<String> = left_out
            .iter()
            .take(SHOWN)
            .map(|(path, reason)| format!("{} ({reason})", crate::cli::table::printable(path)))
            .collect();
        let more = match left_out.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let _ = writeln!(text, "  left out: {}{more}", shown.join(", "));
    }

    fn write_jail(&self, text: &mut String) {
        let jail = &self.jail;
        let _ = writeln!(
            text,
            "\nJail of device process {}, sandbox {}",
            self.notes.device_pid, self.notes.sandbox
        );
        let hidden = || "not shown to this user".to_owned();
        let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]).indent(2);
        table.row([
            "Seccomp".into(),
            match jail.seccomp {
                2 => "2, filters on".to_owned(),
                mode => mode.to_string(),
            },
        ]);
        table.row(["NoNewPrivs".into(), jail.no_new_privs.to_string()]);
        table.row(["CapEff".into(), jail.cap_eff.clone()]);
        table.row([
            "own namespaces".into(),
            match &jail.namespaces_differ {
                Some(names) if names.is_empty() => "none".to_owned(),
                Some(names) => names.join(" "),
                None => hidden(),
            },
        ]);
        table.row([
            "descriptors".into(),
            jail.fds.map_or_else(hidden, |fds| format!("{fds} open")),
        ]);
        let _ = write!(text, "{table}");
    }

    fn write_refused(&self, text: &mut String) {
        let _ = writeln!(text, "\nHostile requests");
        let mut table = Table::new(&[("", Align::Left); 3]).indent(2);
        for case in &self.refused {
            let answer = case.errno.as_deref().unwrap_or("granted");
            let verdict = if case.is_right() {
                "refused".to_owned()
            } else {
                format!("WRONG, should be {}", case.wanted)
            };
            table.row([case.attempt.to_owned(), answer.to_owned(), verdict]);
        }
        let _ = write!(text, "{table}");
    }

    fn write_end(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\nMap requests at the backend: median {:.1} µs, p99 {:.1} µs",
            self.latency_us.p50, self.latency_us.p99
        );
        let _ = writeln!(
            text,
            "Mappings left after the backends went: {}",
            self.mappings_left
        );
        for wrong in &self.notes.wrong {
            let _ = writeln!(text, "WRONG: {wrong}");
        }
        let verdict = if self.ok {
            "All is well"
        } else {
            "Not all is well"
        };
        let _ = writeln!(text, "{verdict}, after {}.", duration(self.notes.took));
    }

    fn reader(&self) -> &'static str {
        if self.guest == "kvm" {
            "KVM guest"
        } else {
            "host"
        }
    }
}

/// A duration with the unit that suits it.
fn duration(value: Duration) -> String {
    let micros = value.as_secs_f64() * 1e6;
    if micros < 1e3 {
        format!("{micros:.0} µs")
    } else if micros < 1e6 {
        format!("{:.1} ms", micros / 1e3)
    } else {
        format!("{:.1} s", micros / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            ok: true,
            files: vec![FileReport {
                path: "README.md".into(),
                offset: 4096,
                len: 1536,
                guest_sum_ok: true,
                map_us: 17.26,
                sum: 0xabc,
                sum_took: Duration::from_micros(1234),
            }],
            jail: Proof {
                seccomp: 2,
                no_new_privs: 1,
                cap_eff: "0000000000000000".into(),
                namespaces_differ: Some(vec!["mnt".into(), "net".into()]),
                fds: Some(9),
            },
            refused: vec![RefusedCase {
                case: "overlap".into(),
                errno: Some("EEXIST".into()),
                wanted: "EEXIST",
                attempt: "map over a live mapping",
            }],
            guest: "kvm",
            latency_us: Latency {
                p50: 17.26,
                p99: 40.0,
            },
            mappings_left: 0,
            notes: Notes {
                source: "src".into(),
                device_pid: 42,
                sandbox: "full".into(),
                took: Duration::from_millis(1500),
                left_out: vec![("big".into(), "no room".into())],
                ..Notes::default()
            },
        }
    }

    #[test]
    fn document_has_exactly_the_documented_keys() {
        assert_eq!(
            serde_json::to_string(&report()).expect("encodes"),
            concat!(
                r#"{"ok":true,"files":[{"path":"README.md","offset":4096,"len":1536,"guest_sum_ok":true,"map_us":17.3}],"#,
                r#""jail":{"seccomp":2,"no_new_privs":1,"cap_eff":"0000000000000000","namespaces_differ":["mnt","net"],"fds":9},"#,
                r#""refused":[{"case":"overlap","errno":"EEXIST"}],"guest":"kvm","latency_us":{"p50":17.3,"p99":40.0},"mappings_left":0}"#
            )
        );
    }

    #[test]
    fn text_shows_each_part_in_aligned_columns() {
        assert_eq!(
            report().text(),
            "Files of src, read by the KVM guest\n\
             \x20 file       offset   length    sum    time\n\
             \x20 README.md  0x1000  1.5 KiB  0xabc  1.2 ms  ok\n\
             \x20 1 file, 1.5 KiB: 1 sum agrees with the host's\n\
             \x20 left out: big (no room)\n\
             \n\
             Jail of device process 42, sandbox full\n\
             \x20 Seccomp         2, filters on\n\
             \x20 NoNewPrivs      1\n\
             \x20 CapEff          0000000000000000\n\
             \x20 own namespaces  mnt net\n\
             \x20 descriptors     9 open\n\
             \n\
             Hostile requests\n\
             \x20 map over a live mapping  EEXIST  refused\n\
             \n\
             Map requests at the backend: median 17.3 µs, p99 40.0 µs\n\
             Mappings left after the backends went: 0\n\
             All is well, after 1.5 s.\n"
        );
    }

    #[test]
    fn case_that_was_granted_or_got_another_answer_is_not_right() {
        let mut case = report().refused.remove(0);
        assert!(case.is_right());
        case.errno = Some("EINVAL".into());
        assert!(!case.is_right());
        case.errno = None;
        assert!(!case.is_right());
    }

    #[test]
    fn percentiles_are_taken_by_nearest_rank() {
        let samples = (1..=200).map(f64::from).collect();
        assert_eq!(
            Latency::of(samples),
            Latency {
                p50: 100.0,
                p99: 198.0
            }
        );
        assert_eq!(Latency::of(vec![7.0]), Latency { p50: 7.0, p99: 7.0 });
        assert_eq!(Latency::of(vec![]), Latency::default());
    }
}
