//! `run --strict`: what a backend does against the protocol is told once for each rule, counted, and makes the exit code.

use std::os::fd::AsFd;

use fixture::RequestSocket;
use fixture::Script;
use fixture::ScriptedBackend;
use fixture::TestVm;
use rustix::process::Signal;
use serde_json::Value;
use serde_json::json;

use crate::rig::BINARY;
use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::Rig;
use crate::rig::files_backend;

/// The exit code of a run whose backend broke rules.
const DEVIATIONS: i32 = 3;

fn strict(script: Script) -> Rig {
    Rig::with(script, |vm| vm.arg("--strict"))
}

/// Protocol features with `INBAND_NOTIFICATIONS`, too.
fn all_features() -> Script {
    let mut script = Script::one_region(REGION);
    script.protocol_features |= 1 << 14;
    script
}

/// What is told of a rule: message, field, value.
type Seen = (Option<&'static str>, &'static str, u64);

#[track_caller]
fn assert_told(vm: &mut TestVm, rule: &str, source: &str, channel: &str, seen: Seen) {
    let event = vm.process.event("deviation");
    let (message, field, value) = seen;
    let want = json!({
        "event": "deviation", "device": "vhost-user", "rule": rule, "source": source, "channel": channel,
        "message": message, "field": field, "value": value, "text": event["text"],
    });
    assert_eq!(event, want);
}

/// Stops the VMM and returns the rules that it sums up, with their counts.
#[track_caller]
fn sum(vm: &mut TestVm, exit: i32) -> Vec<(String, u64)> {
    vm.done(&json!({"command": "stop"}));
    let event = vm.process.event("deviations");
    vm.process.event("stopped");
    assert_eq!(vm.process.wait().code(), Some(exit));
    let rules: Vec<_> = event["rules"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|rule| {
            let name = rule["rule"].as_str().expect("a name");
            (name.to_owned(), rule["count"].as_u64().expect("a number"))
        })
        .collect();
    let all: u64 = rules.iter().map(|(_, count)| count).sum();
    assert_eq!(event["count"], all);
    rules
}

/// A way to break a rule of the request channel that the channel survives.
type Case = (&'static str, &'static str, Seen, fn(&RequestSocket));

const MAP: Option<&str> = Some("SHMEM_MAP");

/// A request to map or unmap in region `shmid`.
fn mmap(channel: &RequestSocket, code: u32, head: [u8; 8], words: [u64; 4]) {
    let mut payload = head.to_vec();
    for word in words {
        payload.extend(word.to_ne_bytes());
    }
    let memory = fixture::memfd(&[1; 4096]);
    let fds = [memory.as_fd()];
    channel.request(code, &payload, if code == 9 { &fds } else { &[] });
}

/// As [`mmap`], of region 0: offset in the file, offset in the region, length, flags.
fn map(channel: &RequestSocket, words: [u64; 4]) {
    mmap(channel, 9, [0; 8], words);
}

const CASES: &[Case] = &[
    (
        "unknown-code",
        "spec",
        (Some("message 4711"), "code", 4711),
        |channel| {
            channel.request(4711, &[], &[]);
        },
    ),
    (
        "draft-code",
        "spec",
        (Some("FS_UNMAP"), "code", 1003),
        |channel| {
            channel.request(1003, &[0; 256], &[]);
        },
    ),
    (
        "crosvm-dialect",
        "spec",
        (Some("crosvm SHMEM_UNMAP"), "code", 1001),
        |channel| {
            let memory = fixture::memfd(&[1; 4096]);
            channel.map(0, 0, 0, PAGE, 0, &memory);
            assert_eq!(channel.crosvm_unmap(0, 0, PAGE), 0);
        },
    ),
    (
        "not-negotiated",
        "spec",
        (Some("SHARED_OBJECT_ADD"), "code", 6),
        |channel| {
            channel.request(6, &[0; 16], &[]);
        },
    ),
    (
        "payload-size",
        "spec",
        (Some("CONFIG_CHANGE_MSG"), "size", 3),
        |channel| {
            channel.request(2, &[0; 3], &[]);
        },
    ),
    (
        "descriptor-count",
        "spec",
        (MAP, "descriptors", 0),
        |channel| {
            channel.request(9, &[0; 40], &[]);
        },
    ),
    (
        "descriptor-limit",
        "spec",
        (Some("CONFIG_CHANGE_MSG"), "descriptors", 0),
        |channel| {
            let memory = fixture::memfd(&[1]);
            channel.request(2, &[], &[memory.as_fd(); 32]);
        },
    ),
    (
        "padding",
        "portcullis",
        (Some("SHMEM_UNMAP"), "padding", 0x0102),
        |channel| {
            let memory = fixture::memfd(&[1; 4096]);
            channel.map(0, 0, 0, PAGE, 0, &memory);
            mmap(channel, 10, [0, 0, 0, 0, 0, 0, 1, 2], [0, 0, PAGE, 0]);
        },
    ),
    ("map-flags", "spec", (MAP, "flags", 6), |channel| {
        map(channel, [0, 0, PAGE, 6])
    }),
    ("zero-length", "portcullis", (MAP, "len", 0), |channel| {
        map(channel, [0, 0, 0, 0])
    }),
    (
        "region-alignment",
        "portcullis",
        (MAP, "shm_offset", 1),
        |channel| map(channel, [0, 1, PAGE, 0]),
    ),
    (
        "descriptor-alignment",
        "portcullis",
        (MAP, "fd_offset", 2),
        |channel| map(channel, [2, 0, PAGE, 0]),
    ),
    (
        "vring-number",
        "spec",
        (Some("VRING_CALL"), "num", 3),
        |channel| {
            channel.request(4, &[0, 0, 0, 0, 3, 0, 0, 0], &[]);
        },
    ),
    (
        "queue-index",
        "spec",
        (Some("VRING_CALL"), "index", 7),
        |channel| {
            channel.request(4, &[7, 0, 0, 0, 0, 0, 0, 0], &[]);
        },
    ),
    ("unknown-region", "spec", (MAP, "shmid", 9), |channel| {
        mmap(channel, 9, [9, 0, 0, 0, 0, 0, 0, 0], [0, 0, PAGE, 0]);
    }),
    (
        "outside-region",
        "spec",
        (MAP, "shm_offset", REGION),
        |channel| map(channel, [0, REGION, PAGE, 0]),
    ),
    ("overlap", "spec", (MAP, "shm_offset", 0), |channel| {
        map(channel, [0, 0, PAGE, 0]);
        map(channel, [0, 0, PAGE, 0]);
        assert_eq!(channel.unmap(0, 0, PAGE), 0);
    }),
    (
        "unmap-whole",
        "spec",
        (Some("SHMEM_UNMAP"), "shm_offset", PAGE),
        |channel| {
            channel.unmap(0, PAGE, PAGE);
        },
    ),
    (
        "descriptor-kind",
        "portcullis",
        (MAP, "shm_offset", 0),
        |channel| {
            let (reader, _writer) = std::io::pipe().expect("a pipe");
            channel.map(0, 0, 0, PAGE, 0, &reader);
        },
    ),
    (
        "descriptor-access",
        "portcullis",
        (MAP, "shm_offset", 0),
        |channel| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let file = fixture::file(&dir.path().join("file"), &[1; 4096]);
            channel.map(0, 0, 0, PAGE, 1, &file);
        },
    ),
    (
        "descriptor-length",
        "portcullis",
        (MAP, "len", 2 * PAGE),
        |channel| map(channel, [0, 0, 2 * PAGE, 0]),
    ),
];

#[test]
fn each_broken_rule_is_told_once_and_counted() {
    let mut rig = strict(all_features());
    for (rule, source, seen, break_it) in CASES {
        break_it(&rig.channel);
        assert_told(&mut rig.vm, rule, source, "request", *seen);
    }
    for (.., break_it) in CASES {
        break_it(&rig.channel);
    }
    let stats = rig.vm.done(&json!({"command": "stats"}))["deviations"].clone();
    let counts: Vec<_> = CASES
        .iter()
        .map(|(rule, ..)| stats[rule].as_u64())
        .collect();
    assert_eq!(counts, vec![Some(2); CASES.len()], "{stats}");
    let mut want: Vec<_> = CASES
        .iter()
        .map(|(rule, ..)| ((*rule).to_owned(), 2))
        .collect();
    let mut got = sum(&mut rig.vm, DEVIATIONS);
    want.sort();
    got.sort();
    assert_eq!(got, want);
    let log = rig.vm.process.whole_log();
    let last = log.last().expect("a line");
    let words = format!(
        "portcullis: the backend broke rules of the protocol: {} of them, ",
        CASES.len()
    );
    assert!(last.starts_with(&words), "{last}");
}

#[test]
fn rules_whose_breach_ends_the_channel_are_told() {
    let change = Some("CONFIG_CHANGE_MSG");
    let cases: [(&str, &str, Seen, [u32; 3]); 4] = [
        ("header-version", "spec", (change, "flags", 2), [2, 2, 0]),
        (
            "header-reserved",
            "spec",
            (change, "flags", 0x11),
            [2, 0x11, 0],
        ),
        ("header-reply", "spec", (change, "flags", 5), [2, 5, 8]),
        (
            "header-size",
            "portcullis",
            (change, "size", 257),
            [2, 1, 257],
        ),
    ];
    for (rule, source, seen, header) in cases {
        let mut rig = strict(Script::one_region(REGION));
        rig.channel
            .send(header.map(u32::to_ne_bytes).as_flattened(), &[]);
        assert_told(&mut rig.vm, rule, source, "request", seen);
        rig.vm.process.event("channel_closed");
        assert_eq!(sum(&mut rig.vm, DEVIATIONS), [(rule.to_owned(), 1)]);
    }
    let mut rig = strict(Script::one_region(REGION));
    rig.channel.send(&[2, 0, 0], &[]);
    rustix::net::shutdown(&rig.channel, rustix::net::Shutdown::Write).expect("a socket");
    assert_told(
        &mut rig.vm,
        "unfinished",
        "portcullis",
        "request",
        (None, "bytes", 3),
    );
}

#[test]
fn need_reply_is_told_where_acks_were_not_negotiated() {
    let mut script = Script::one_region(REGION);
    script.protocol_features &= !(1 << 3);
    let mut rig = strict(script);
    rig.channel.send_message(2, 9, &[], &[]);
    let seen = (Some("CONFIG_CHANGE_MSG"), "flags", 9);
    assert_told(&mut rig.vm, "need-reply", "spec", "request", seen);
}

#[test]
fn descriptors_on_a_body_are_told() {
    let mut rig = strict(Script::one_region(REGION));
    let memory = fixture::memfd(&[1; 4096]);
    let map = fixture::Message::bytes(9, 9, &[0; 40]);
    let change = fixture::Message::bytes(2, 9, &[]);
    // The answer to the first says that the header of the second has been read.
    rig.channel.send(&[&change, &map[..12]].concat(), &[]);
    assert_eq!(rig.channel.reply(2), 0);
    rig.channel.send(&map[12..], &[memory.as_fd()]);
    let seen = (MAP, "descriptors", 0);
    assert_told(
        &mut rig.vm,
        "descriptor-place",
        "portcullis",
        "request",
        seen,
    );
}

/// A backend that breaks a rule while the main channel is set up: it is told although the device never serves.
#[track_caller]
fn check_main(script: Script, legacy: bool, rule: &str, seen: Seen) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let backend = ScriptedBackend::listen(dir.path(), "backend", script);
    let mut vm = TestVm::without_guest(BINARY, backend.path()).arg("--strict");
    if legacy {
        vm = vm.arg("--legacy-shmem-bit").arg("31");
    }
    let mut vm = vm.start();
    assert_told(&mut vm, rule, "spec", "main", seen);
    vm.process.event("device_ended");
    assert_eq!(sum(&mut vm, DEVIATIONS), [(rule.to_owned(), 1)]);
}

#[test]
fn broken_rules_of_the_main_channel_are_told() {
    const SHMEM: Option<&str> = Some("GET_SHMEM_CONFIG");
    let with_regions = |payload: Vec<u8>| {
        let mut script = Script::one_region(REGION);
        script.answers.push((44, payload));
        script
    };
    let sizes = |first| {
        let mut sizes = [0; 256];
        sizes[0] = first;
        sizes
    };
    let payload = fixture::shmem_config_payload(3, &sizes(PAGE));
    check_main(
        with_regions(payload),
        false,
        "region-count",
        (SHMEM, "nregions", 3),
    );
    let payload = fixture::shmem_config_payload(1, &sizes(4097));
    check_main(
        with_regions(payload),
        false,
        "region-size",
        (SHMEM, "size", 4097),
    );
    check_main(
        with_regions(vec![0; 2064]),
        false,
        "main-reply-size",
        (SHMEM, "size", 2064),
    );

    // What is too much of one answer is where the next one should begin.
    let mut script = Script::one_region(REGION);
    script.answers.push((17, vec![0; 16]));
    let seen = (SHMEM, "header", 0);
    check_main(script, false, "main-reply", seen);

    let mut script = Script::one_region(REGION);
    script.answers.push((15, vec![0; 4]));
    let seen = (Some("GET_PROTOCOL_FEATURES"), "size", 4);
    check_main(script, false, "main-reply-size", seen);

    let mut script = Script::one_region(REGION);
    script.protocol_features = script.protocol_features & !(1 << 22) | 1 << 31;
    script.answers.push((1004, 5_u64.to_ne_bytes().to_vec()));
    let seen = (Some("GET_SHARED_MEMORY_REGIONS"), "count", 5);
    check_main(script, true, "region-list", seen);
}

#[test]
fn exemplary_backend_breaks_no_rule() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = dir.path().join("files");
    std::fs::create_dir(&files).expect("a directory");
    std::fs::write(files.join("a"), vec![1; 10_000]).expect("a file");
    let socket = dir.path().join("socket");
    let mut backend = files_backend(&socket, &files, &[]);
    let mut vm = TestVm::without_guest(BINARY, &socket)
        .arg("--strict")
        .start();
    vm.serving();
    assert_eq!(backend.event("ready")["mapped"], 1);
    assert_eq!(sum(&mut vm, 0), []);
}

#[test]
fn deviations_of_a_flood_are_counted_and_told_once() {
    const FLOOD: usize = 10_000;
    let mut rig = strict(Script::one_region(REGION));
    let bytes = fixture::Message::bytes(4711, 1, &[]).repeat(FLOOD);
    rig.channel.send(&bytes, &[]);
    assert_eq!(rig.channel.request(2, &[], &[]), 0);
    let seen = (Some("message 4711"), "code", 4711);
    assert_told(&mut rig.vm, "unknown-code", "spec", "request", seen);
    rig.vm.done(&json!({"command": "stop"}));
    let rest = rig.vm.process.rest();
    let events: Vec<Value> = rest
        .iter()
        .map(|line| serde_json::from_str(line).expect("an event"))
        .collect();
    let told = events
        .iter()
        .filter(|event| event["event"] == "deviation")
        .count();
    assert_eq!(told, 0, "{rest:#?}");
    let sum = events
        .iter()
        .find(|event| event["event"] == "deviations")
        .expect("a sum");
    assert_eq!(sum["count"], FLOOD);
}

#[test]
fn device_process_that_is_killed_leaves_what_it_had_told() {
    let mut rig = strict(Script::one_region(REGION));
    rig.channel.request(4711, &[], &[]);
    fixture::signal_pid(crate::rig::device_pid(&rig.vm.status()), Signal::KILL);
    rig.vm.process.event("device_ended");
    assert_eq!(
        sum(&mut rig.vm, DEVIATIONS),
        [("unknown-code".to_owned(), 1)]
    );
}

#[test]
fn run_that_is_not_strict_tells_no_deviation() {
    let mut rig = Rig::new();
    rig.channel.request(4711, &[], &[]);
    rig.vm.done(&json!({"command": "stop"}));
    let rest = rig.vm.process.rest();
    assert!(
        !rest.iter().any(|line| line.contains("deviation")),
        "{rest:#?}"
    );
    assert_eq!(rig.vm.process.wait().code(), Some(0));
}
