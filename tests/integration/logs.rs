//! A peer's mistakes in the log: said once, then at a limited rate, whatever the peer sends.

use std::time::Duration;
use std::time::Instant;

use fixture::Message;
use serde_json::Value;
use serde_json::json;

use crate::rig::PAGE;
use crate::rig::Rig;
use crate::rig::device_pid;

/// How many bad requests a flood has.
const FLOOD: usize = 1_000_000;
/// How many of them are sent at once.
const AT_ONCE: usize = 1000;
/// Lines that one source may log at once, and what it may log a second then.
const BURST: u64 = 10;
const A_SECOND: u64 = 1;
/// Events that are told at once, and a second.
const EVENT_BURST: u64 = 20;
const EVENTS_A_SECOND: u64 = 5;
/// By how much a process's own memory may differ: what its allocator keeps back differs.
const SLACK_KIB: u64 = 512;

/// Sends the same bad request `count` times without asking for an answer, and asserts that this costs few lines, few events
/// and no memory. `sources` of the log see each of them.
#[track_caller]
fn assert_flood_is_said_in_few_lines(bad: &[u8], count: usize, sources: u64) {
    let mut rig = Rig::new();
    let pids = (rig.vm.process.pid(), device_pid(&rig.vm.status()));
    let begin = Instant::now();
    let chunk = bad.repeat(AT_ONCE);
    let flood = |rig: &Rig, count: usize| {
        for _ in 0..count / AT_ONCE {
            rig.channel.send(&chunk, &[]);
        }
        // What came before it has been dealt with.
        assert_eq!(rig.channel.request(2, &[], &[]), 0);
    };
    // What a tenth has not filled, the rest will not.
    flood(&rig, count / 10);
    let memory = |(vmm, device)| {
        let of = fixture::anonymous_memory_kib;
        (of(vmm), of(device))
    };
    let before = memory(pids);
    flood(&rig, count - count / 10);
    let after = memory(pids);
    let stats = rig.vm.done(&json!({"command": "stats"}));
    assert_eq!(stats["refused"], count, "all of them were refused");
    assert!(
        after.0 <= before.0 + SLACK_KIB && after.1 <= before.1 + SLACK_KIB,
        "VMM and device process: {before:?} KiB, then {after:?} KiB"
    );
    rig.vm.done(&json!({"command": "stop"}));
    let events = rig.vm.process.rest();
    let log = rig.vm.process.whole_log();
    // A second that has begun counts.
    let seconds = (begin.elapsed() + Duration::from_secs(1)).as_secs();

    let lines = log.iter().filter(|line| line.contains("refused")).count() as u64;
    let most = sources * (BURST + A_SECOND * seconds);
    assert!((1..=most).contains(&lines), "{lines} lines, {most} at most");
    let told: Vec<Value> = events
        .iter()
        .map(|line| serde_json::from_str(line).expect("an event"))
        .filter(|event: &Value| event["event"] == "refused")
        .collect();
    let most = EVENT_BURST + EVENTS_A_SECOND * seconds;
    assert!(
        (1..=most).contains(&(told.len() as u64)),
        "{} events, {most} at most",
        told.len()
    );
    println!(
        "{count} bad requests in {:?}: {lines} lines, {} events; VMM and device process {before:?} KiB, then {after:?} KiB",
        begin.elapsed(),
        told.len()
    );
}

#[test]
fn million_of_malformed_requests_is_said_in_a_few_lines_a_second() {
    assert_flood_is_said_in_few_lines(&Message::bytes(4711, 1, &[]), FLOOD, 1);
}

#[test]
fn requests_that_the_service_refuses_are_said_in_a_few_lines_a_second() {
    let mut unmap = [0; 40];
    unmap[24..32].copy_from_slice(&PAGE.to_ne_bytes());
    // Fewer of them: each goes to the service and back.
    assert_flood_is_said_in_few_lines(&Message::bytes(10, 1, &unmap), FLOOD / 20, 2);
}
