//! Prints events on a thread of its own, so that a reader of standard output that stalls never stalls the VMM.

use std::fmt::Write as _;
use std::io;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TrySendError;
use std::thread;
use std::time::Duration;

use jail::MissingCall;

use super::ctl::count;
use super::output::print;
use super::output::print_json;
use super::size::Size;
use super::table::Align;
use super::table::Table;
use super::table::printable;
use crate::vmm::events::DeviationCount;
use crate::vmm::events::Event;
use crate::vmm::events::Observer;
use crate::vmm::proof::Proof;

/// How many events wait to be printed; what comes on top is counted and dropped.
const QUEUE: usize = 1024;
/// How long the end of the process waits for the last events to be printed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The names of the protocol feature bits, by number.
///
/// # Source
/// vhost-user specification, "Protocol features".
const PROTOCOL_FEATURES: [(u32, &str); 22] = [
    (0, "MQ"),
    (1, "LOG_SHMFD"),
    (2, "RARP"),
    (3, "REPLY_ACK"),
    (4, "MTU"),
    (5, "BACKEND_REQ"),
    (6, "CROSS_ENDIAN"),
    (7, "CRYPTO_SESSION"),
    (8, "PAGEFAULT"),
    (9, "CONFIG"),
    (10, "BACKEND_SEND_FD"),
    (11, "HOST_NOTIFIER"),
    (12, "INFLIGHT_SHMFD"),
    (13, "RESET_DEVICE"),
    (14, "INBAND_NOTIFICATIONS"),
    (15, "CONFIGURE_MEM_SLOTS"),
    (16, "STATUS"),
    (17, "XEN_MMAP"),
    (18, "SHARED_OBJECT"),
    (19, "DEVICE_STATE"),
    (20, "GET_VRING_BASE_INFLIGHT"),
    (22, "SHMEM"),
];

/// Takes events, and prints them as fast as standard output lets it.
#[derive(Debug)]
pub struct EventPrinter {
    queue: Option<SyncSender<Event>>,
    finished: Receiver<()>,
    missed: u64,
}

impl EventPrinter {
    /// Starts the thread; with `json` it prints one object a line.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(json: bool) -> io::Result<Self> {
        let (queue, events) = mpsc::sync_channel(QUEUE);
        let (finish, finished) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                for event in events {
                    let result = if json {
                        print_json(&event)
                    } else {
                        print(&text(&event))
                    };
                    if let Err(e) = result {
                        tracing::warn!("{e:#}");
                        break;
                    }
                }
                let _ = finish.send(());
            })?;
        Ok(Self {
            queue: Some(queue),
            finished,
            missed: 0,
        })
    }

    fn offer(&mut self, event: Event) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        match queue.try_send(event) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            // Nobody can read any more: nothing is missed.
            Err(TrySendError::Disconnected(_)) => true,
        }
    }
}

impl Observer for EventPrinter {
    fn event(&mut self, event: Event) {
        if self.missed > 0 {
            let count = self.missed;
            if self.offer(Event::Missed { count }) {
                self.missed = 0;
            }
        }
        if !self.offer(event) {
            self.missed += 1;
        }
    }
}

impl Drop for EventPrinter {
    fn drop(&mut self) {
        // The thread ends when it has printed everything, unless its reader has stopped reading.
        self.queue = None;
        let _ = self.finished.recv_timeout(LAST_WORDS);
    }
}

/// An event for people: one line, or a few for what comes once.
fn text(event: &Event) -> String {
    let mut text = match event {
        Event::Started {
            pid,
            guest,
            guest_reason,
            sandbox,
            control,
        } => started(
            *pid,
            guest,
            guest_reason.as_deref(),
            sandbox,
            control.as_ref(),
        ),
        Event::Waiting { backend } => format!("waiting for {}", backend.display()),
        Event::Connected {
            backend,
            backend_pid,
        } => match backend_pid {
            Some(pid) => format!("connected to {}, backend process {pid}", backend.display()),
            None => format!("connected to {}", backend.display()),
        },
        Event::Serving { .. } => serving(event),
        Event::Refused { .. } => refused(event),
        Event::ConfigChanged { device } => format!("{device}: configuration changed"),
        Event::QueueError { device, index } => {
            format!("{device}: the backend met an error on queue {index}")
        }
        Event::ChannelClosed { device, reason } => {
            format!("{device}: request channel closed: {}", printable(reason))
        }
        Event::Hole {
            region,
            offset,
            len,
            write,
            reason,
            suppressed,
        } => format!(
            "{}: guest {} of {} at {offset:#x}: {reason}{}",
            region.as_deref().unwrap_or("no region"),
            if *write { "write" } else { "read" },
            Size(*len),
            more(*suppressed),
        ),
        Event::Deviation { .. } => deviation(event),
        Event::Deviations {
            device,
            rules,
            count,
        } => deviations(device, rules, *count),
        Event::Reset {
            device,
            dropped,
            generation,
        } => format!(
            "{device}: reset, {} dropped, generation {generation}",
            count(*dropped, "mapping")
        ),
        Event::BackendEnded { pid } => format!("backend process {pid} has ended"),
        Event::PolicyLacks { device, calls } => policy_lacks(device, calls),
        Event::DeviceEnded {
            device,
            how,
            dropped,
            ..
        } => format!(
            "{device}: {}; {} dropped",
            printable(how),
            count(*dropped, "mapping")
        ),
        Event::Restarting { device, restarts } => format!("{device}: restart {restarts}"),
        Event::Missed { count: missed } => format!("{missed} more events, not printed in time"),
        Event::Stopped { reason } => format!("stopped: {}", printable(reason)),
    };
    text.push('\n');
    text
}

fn started(
    pid: u32,
    guest: &str,
    guest_reason: Option<&str>,
    sandbox: &str,
    control: Option<&std::path::PathBuf>,
) -> String {
    let mut text = format!("VMM {pid}: guest {guest}");
    if let Some(reason) = guest_reason {
        let _ = write!(text, " ({}; the host reads for it)", printable(reason));
    }
    let _ = write!(text, ", sandbox {sandbox}");
    if let Some(control) = control {
        let _ = write!(text, ", control {}", control.display());
    }
    text
}

fn serving(event: &Event) -> String {
    let Event::Serving {
        device,
        device_pid,
        features,
        protocol_features,
        channel,
        regions,
        jail,
    } = event
    else {
        return String::new();
    };
    let mut text = format!("{device}: served by device process {device_pid}\n");
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]).indent(2);
    table.row(["features".into(), features.clone()]);
    table.row([
        "protocol features".into(),
        format!("{protocol_features} {}", feature_names(protocol_features)),
    ]);
    if !channel {
        table.row(["request channel".into(), "the backend takes none".into()]);
    }
    for region in regions {
        table.row([
            format!("region {}", region.shmid),
            format!("{} at {:#x}", Size(region.len), region.guest_address),
        ]);
    }
    if regions.is_empty() {
        table.row(["regions".into(), "none".into()]);
    }
    if let Some(jail) = jail {
        table.row(["jail".into(), jail_text(jail)]);
    }
    let _ = write!(text, "{table}");
    text.trim_end().to_owned()
}

fn jail_text(jail: &Proof) -> String {
    let namespaces = match &jail.namespaces_differ {
        Some(names) if names.is_empty() => "no own namespaces".to_owned(),
        Some(names) => format!("own namespaces {}", names.join(" ")),
        None => "namespaces not shown".to_owned(),
    };
    format!(
        "Seccomp {}, NoNewPrivs {}, CapEff {}, {namespaces}",
        jail.seccomp, jail.no_new_privs, jail.cap_eff
    )
}

fn refused(event: &Event) -> String {
    let Event::Refused {
        device,
        request,
        shmid,
        offset,
        len,
        errno,
        suppressed,
    } = event
    else {
        return String::new();
    };
    let mut text = format!(
        "{device}: refused {request} of {} at {offset:#x} in region {shmid}: {errno}",
        Size(*len)
    );
    text.push_str(&more(*suppressed));
    text
}

fn deviation(event: &Event) -> String {
    let Event::Deviation {
        device,
        rule,
        source,
        channel,
        message,
        field,
        value,
        text,
    } = event
    else {
        return String::new();
    };
    format!(
        "{device}: the backend breaks {rule} ({source}) on the {channel} channel: {} has {field} {value:#x}; the rule: {text}",
        message.as_deref().unwrap_or("it"),
    )
}

/// How often each rule was broken.
fn deviations(device: &str, rules: &[DeviationCount], all: u64) -> String {
    if rules.is_empty() {
        return format!("{device}: the backend broke no rule");
    }
    let mut text = format!(
        "{device}: the backend broke {}, {all} times in all\n",
        count(rules.len() as u64, "rule")
    );
    let mut table =
        Table::new(&[("", Align::Right), ("", Align::Left), ("", Align::Left)]).indent(2);
    for rule in rules {
        table.row([rule.count.to_string(), rule.rule.into(), rule.source.into()]);
    }
    let _ = write!(text, "{table}");
    text.trim_end().to_owned()
}

/// What a policy lacks, as lines that can be put into it.
fn policy_lacks(device: &str, calls: &[MissingCall]) -> String {
    if calls.is_empty() {
        return format!("{device}: its policy lacks nothing");
    }
    let number = count(calls.len() as u64, "system call");
    let mut calls: Vec<_> = calls.iter().collect();
    calls.sort_by_key(|call| call.name);
    let mut text = format!("{device}: its policy lacks {number}");
    for call in calls {
        let times = count(call.count, "time");
        let _ = match call.name {
            Some(name) => write!(text, "\n  # made {times}\n  {name}: 1"),
            None => write!(text, "\n  # number {} made {times}", call.number),
        };
    }
    text
}

/// How many were not told.
fn more(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        _ => format!(" (and {suppressed} more)"),
    }
}

/// The names of the set bits, in parentheses.
fn feature_names(hex: &str) -> String {
    let digits = hex.strip_prefix("0x").unwrap_or(hex);
    let bits = u64::from_str_radix(digits, 16).unwrap_or_default();
    let names: Vec<String> = (0..u64::BITS)
        .filter(|bit| bits & (1 << bit) != 0)
        .map(|bit| {
            PROTOCOL_FEATURES
                .iter()
                .find(|(number, _)| *number == bit)
                .map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
        })
        .collect();
    if names.is_empty() {
        return "(none)".to_owned();
    }
    format!("({})", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::message::RegionReport;

    #[test]
    fn serving_shows_features_regions_and_jail() {
        let event = Event::Serving {
            device: "fs".into(),
            device_pid: 101,
            features: "0x140000000".into(),
            protocol_features: "0x400028".into(),
            channel: true,
            regions: vec![RegionReport {
                shmid: 0,
                guest_address: 0x1_0000_0000,
                len: 1 << 30,
            }],
            jail: Some(Proof {
                seccomp: 2,
                no_new_privs: 1,
                cap_eff: "0000000000000000".into(),
                namespaces_differ: Some(vec!["mnt".into(), "net".into()]),
                fds: Some(9),
            }),
        };
        assert_eq!(
            text(&event),
            "fs: served by device process 101\n\
             \x20 features           0x140000000\n\
             \x20 protocol features  0x400028 (REPLY_ACK, BACKEND_REQ, SHMEM)\n\
             \x20 region 0           1 GiB at 0x100000000\n\
             \x20 jail               Seccomp 2, NoNewPrivs 1, CapEff 0000000000000000, own namespaces mnt net\n"
        );
    }

    #[test]
    fn refused_request_is_one_line_with_the_number_of_those_not_told() {
        let event = Event::Refused {
            device: "fs".into(),
            request: "SHMEM_MAP".into(),
            shmid: 0,
            offset: 4096,
            len: 8192,
            errno: "EEXIST".into(),
            suppressed: 12,
        };
        assert_eq!(
            text(&event),
            "fs: refused SHMEM_MAP of 8 KiB at 0x1000 in region 0: EEXIST (and 12 more)\n"
        );
    }

    #[test]
    fn broken_rule_is_one_line_and_the_sum_is_a_table() {
        let event = Event::Deviation {
            device: "fs".into(),
            rule: "map-flags",
            source: "spec",
            channel: "request",
            message: Some("SHMEM_MAP".into()),
            field: "flags",
            value: 6,
            text: "the flags of a map have no bit but those specified",
        };
        assert_eq!(
            text(&event),
            "fs: the backend breaks map-flags (spec) on the request channel: SHMEM_MAP has flags 0x6; \
             the rule: the flags of a map have no bit but those specified\n"
        );
        let rules = [("map-flags", "spec", 12), ("padding", "portcullis", 1)];
        let rules = rules.map(|(rule, source, count)| DeviationCount {
            rule,
            source,
            count,
        });
        assert_eq!(
            deviations("fs", &rules, 13),
            "fs: the backend broke 2 rules, 13 times in all\n\
             \x20 12  map-flags  spec\n\
             \x20  1  padding    portcullis"
        );
        assert_eq!(deviations("fs", &[], 0), "fs: the backend broke no rule");
    }

    #[test]
    fn feature_bits_without_a_name_are_numbers() {
        assert_eq!(feature_names("0x200008"), "(REPLY_ACK, bit 21)");
        assert_eq!(feature_names("0x0"), "(none)");
    }
}
