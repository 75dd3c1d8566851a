//! What happens in a VMM, as `portcullis run` tells it.
//!
//! `run --json` prints each event as one JSON object on a line of its own. The key `event` names it; the others
//! are the fields below, in this order. Numbers are decimal, sizes and offsets are bytes, an `errno` is a name such as
//! `EEXIST`, and a key may have the value `null` where its text says so. New events and keys can come; the meaning of these
//! does not change.
//!
//! ```text
//! {"event":"started","pid":100,"guest":"kvm","guest_reason":null,"sandbox":"full","control":"/run/vm.ctl"}
//! {"event":"connected","backend":"/run/fs.sock","backend_pid":90}
//! {"event":"serving","device":"fs","device_pid":101,"features":"0x140000000","protocol_features":"0x400020","channel":true,"regions":[…],"jail":{…}}
//! {"event":"refused","device":"fs","request":"SHMEM_MAP","shmid":0,"offset":4096,"len":4096,"errno":"EEXIST","suppressed":0}
//! {"event":"deviation","device":"fs","rule":"map-flags","source":"spec","channel":"request","message":"SHMEM_MAP","field":"flags","value":6,"text":"…"}
//! {"event":"backend_ended","pid":90}
//! {"event":"device_ended","device":"fs","pid":101,"how":"device process 101: backend disconnected","dropped":3}
//! {"event":"stopped","reason":"SIGTERM"}
//! ```

use std::path::PathBuf;

use jail::MissingCall;
use serde::Serialize;

use super::proof::Proof;
use crate::control::message::RegionReport;

/// How often a rule was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviationCount {
    /// The rule's name.
    pub rule: &'static str,
    /// Whose rule it is: `spec` or `portcullis`.
    pub source: &'static str,
    /// How often.
    pub count: u64,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The VMM is up; always the first event.
    Started {
        /// The VMM's process.
        pid: u32,
        /// `kvm` or `none`.
        guest: &'static str,
        /// Why there is no guest although one was wanted if possible; `null` otherwise.
        guest_reason: Option<String>,
        /// `full`, `seccomp` or `none`.
        sandbox: String,
        /// The control socket; `null` without one.
        control: Option<PathBuf>,
    },
    /// The backend's socket is not there; the VMM waits for it.
    Waiting {
        /// The socket.
        backend: PathBuf,
    },
    /// The backend's socket is connected.
    Connected {
        /// The socket.
        backend: PathBuf,
        /// The process that listened; `null` where the system does not say.
        backend_pid: Option<u32>,
    },
    /// The request channel is served from now on.
    Serving {
        /// The device's name.
        device: String,
        /// The device process.
        device_pid: u32,
        /// The virtio features of the backend, hexadecimal.
        features: String,
        /// The negotiated protocol features, hexadecimal.
        protocol_features: String,
        /// Whether the backend took the request channel.
        channel: bool,
        /// The device's regions.
        regions: Vec<RegionReport>,
        /// The device process's jail, read from `/proc`; `null` if it ended before that.
        jail: Option<Proof>,
    },
    /// A request of the backend was refused. Told at a limited rate.
    Refused {
        /// The device's name.
        device: String,
        /// What was asked.
        request: String,
        /// The region that it named.
        shmid: u8,
        /// The offset that it named.
        offset: u64,
        /// The length that it named.
        len: u64,
        /// The answer.
        errno: String,
        /// How many more were refused since the last event of this kind, and not told.
        suppressed: u64,
    },
    /// The backend changed its configuration space.
    ConfigChanged {
        /// The device's name.
        device: String,
    },
    /// The backend met an error on one of its queues.
    QueueError {
        /// The device's name.
        device: String,
        /// The queue.
        index: u32,
    },
    /// The request channel ended while the main channel lives on.
    ChannelClosed {
        /// The device's name.
        device: String,
        /// Why.
        reason: String,
    },
    /// The guest touched memory that is not there, or wrote where it may only read. Told at a limited rate.
    Hole {
        /// Device and region as `fs/0`; `null` if the address is in no region.
        region: Option<String>,
        /// Where in the region; the guest address if it is in no region.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether it was a write.
        write: bool,
        /// Why: `missing`, `read-only` or `no memory`.
        reason: String,
        /// How many more there were since the last event of this kind, and not told.
        suppressed: u64,
    },
    /// With `--strict`: the backend broke a rule of the protocol. Told once for each rule; the end has the count.
    Deviation {
        /// The device's name.
        device: String,
        /// The rule's name.
        rule: &'static str,
        /// Whose rule it is: `spec` or `portcullis`.
        source: &'static str,
        /// `main` or `request`: the channel.
        channel: &'static str,
        /// The message, by its name; `null` where there was none.
        message: Option<String>,
        /// The part of the message that the rule is about.
        field: &'static str,
        /// What was in it.
        value: u64,
        /// What the rule asks for.
        text: &'static str,
    },
    /// With `--strict`: all rules that the backend broke, told before the end, even if there are none.
    Deviations {
        /// The device's name.
        device: String,
        /// The rules, each with how often it was broken.
        rules: Vec<DeviationCount>,
        /// How often in all.
        count: u64,
    },
    /// The device was reset.
    Reset {
        /// The device's name.
        device: String,
        /// How many mappings went.
        dropped: u64,
        /// The device's generation from now on.
        generation: u32,
    },
    /// The process that listened on the backend's socket is gone.
    BackendEnded {
        /// The process.
        pid: u32,
    },
    /// With `--seccomp log`: the system calls that the device process made against its policy, told when it is gone.
    PolicyLacks {
        /// The device's name.
        device: String,
        /// The calls, each with `number`, `name` (or `null`), `count` and the `arguments` of the first time.
        calls: Vec<MissingCall>,
    },
    /// The device process is gone, and everything that it had mapped.
    DeviceEnded {
        /// The device's name.
        device: String,
        /// The process; `null` if it never started.
        pid: Option<u32>,
        /// How it ended.
        how: String,
        /// How many mappings went with it.
        dropped: u64,
    },
    /// The device comes back: the backend is connected again.
    Restarting {
        /// The device's name.
        device: String,
        /// How often it has come back, this time included.
        restarts: u32,
    },
    /// Events that nobody read in time, and that were dropped.
    Missed {
        /// How many.
        count: u64,
    },
    /// The VMM has cleaned up and ends; always the last event.
    Stopped {
        /// `SIGINT`, `SIGTERM`, `ctl`, `once`, or what failed.
        reason: String,
    },
}

/// Is told what happens. Called on the VMM's main loop, so it must not block.
pub trait Observer {
    /// One thing has happened.
    fn event(&mut self, event: Event);
}

impl<F: FnMut(Event)> Observer for F {
    fn event(&mut self, event: Event) {
        self(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(event: &Event, want: &str) {
        assert_eq!(serde_json::to_string(event).expect("encodes"), want);
    }

    #[test]
    fn events_have_the_documented_keys_in_order() {
        check(
            &Event::Connected {
                backend: "/run/fs.sock".into(),
                backend_pid: Some(90),
            },
            r#"{"event":"connected","backend":"/run/fs.sock","backend_pid":90}"#,
        );
        check(
            &Event::Refused {
                device: "fs".into(),
                request: "SHMEM_MAP".into(),
                shmid: 0,
                offset: 4096,
                len: 4096,
                errno: "EEXIST".into(),
                suppressed: 0,
            },
            r#"{"event":"refused","device":"fs","request":"SHMEM_MAP","shmid":0,"offset":4096,"len":4096,"errno":"EEXIST","suppressed":0}"#,
        );
        let count = DeviationCount {
            rule: "map-flags",
            source: "spec",
            count: 2,
        };
        check(
            &Event::Deviations {
                device: "fs".into(),
                rules: vec![count],
                count: 2,
            },
            r#"{"event":"deviations","device":"fs","rules":[{"rule":"map-flags","source":"spec","count":2}],"count":2}"#,
        );
        check(
            &Event::DeviceEnded {
                device: "fs".into(),
                pid: Some(101),
                how: "killed by signal 9".into(),
                dropped: 3,
            },
            r#"{"event":"device_ended","device":"fs","pid":101,"how":"killed by signal 9","dropped":3}"#,
        );
        check(
            &Event::Stopped {
                reason: "ctl".into(),
            },
            r#"{"event":"stopped","reason":"ctl"}"#,
        );
    }
}
