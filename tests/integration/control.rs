//! `portcullis ctl`, the real binary against the real socket.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::process::Output;

use serde_json::Value;
use serde_json::json;

use crate::rig::BINARY;
use crate::rig::EEXIST;
use crate::rig::PAGE;
use crate::rig::Rig;

fn ctl(rig: &Rig, arguments: &[&str]) -> Output {
    Command::new(BINARY)
        .arg("ctl")
        .arg("--control")
        .arg(rig.vm.control_socket())
        .args(arguments)
        .output()
        .expect("portcullis ctl")
}

#[track_caller]
fn json_of(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

#[test]
fn each_command_gives_one_json_document() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[0xab; 4096]);
    assert_eq!(rig.channel.map(0, PAGE, 0, PAGE, 1, &memory), 0);
    assert_eq!(rig.channel.map(0, PAGE, 0, PAGE, 1, &memory), EEXIST);

    let status = json_of(&ctl(&rig, &["--json", "status"]));
    assert_eq!(status["pids"]["vmm"], rig.vm.process.pid());
    assert_eq!(status["state"], "serving");
    assert_eq!(status["mappings"], 1);
    assert_eq!(status["last_refused"]["errno"], "EEXIST");
    assert_eq!(status["last_refused"]["offset"], PAGE);

    let maps = json_of(&ctl(&rig, &["--json", "maps"]));
    assert_eq!(maps[0]["offset"], PAGE);
    assert_eq!(maps[0]["prot"], "rw");
    assert_eq!(maps[0]["kind"], "memfd");

    let stats = json_of(&ctl(&rig, &["--json", "stats"]));
    assert_eq!(stats["maps"], 1);
    assert_eq!(stats["refused"], 1);

    let peek = json_of(&ctl(&rig, &["--json", "peek", "0", "4096", "4"]));
    let want = json!({"shmid": 0, "offset": 4096, "hex": "abababab", "seen_by": "host"});
    assert_eq!(peek, want);

    json_of(&ctl(&rig, &["--json", "poke", "0", "0x1000", "0102"]));
    assert_eq!(rig.vm.peek(0, PAGE, 4), [1, 2, 0xab, 0xab]);

    let reset = json_of(&ctl(&rig, &["--json", "reset"]));
    assert_eq!(reset["dropped"], 1);
    rig.backend.expect(34);
    rig.assert_serves(PAGE);
}

#[test]
fn stop_returns_when_the_vmm_has_ended() {
    let mut rig = Rig::new();
    json_of(&ctl(&rig, &["--json", "stop"]));
    assert!(!rig.vm.control_socket().exists());
    assert!(rig.vm.process.wait().success());
}

#[test]
fn what_cannot_be_done_is_one_line_and_code_1() {
    let rig = Rig::new();
    for arguments in [
        ["peek", "9", "0", "4"],
        ["peek", "0", "0xffffffffffffffff", "4"],
        ["peek", "0", "0", "0xffffffff"],
        ["poke", "0", "0", "xyz"],
    ] {
        let output = ctl(&rig, &arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(
            matches!(code, Some(1 | 2)),
            "{arguments:?}: {code:?}: {error}"
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!error.is_empty() && !error.contains("panicked"), "{error}");
    }
    rig.assert_serves(0);
}

#[test]
fn peek_of_a_hole_ends_nothing() {
    let rig = Rig::new();
    rig.vm
        .ask(&json!({"command": "peek", "shmid": 0, "offset": 0, "len": 16}));
    rig.vm
        .ask(&json!({"command": "poke", "shmid": 0, "offset": 0, "hex": "00"}));
    rig.assert_serves(0);
}

#[test]
fn peek_of_a_truncated_file_ends_nothing() {
    let rig = Rig::new();
    let path = rig.dir.path().join("file");
    let file = fixture::file(&path, &[1; 8192]);
    assert_eq!(rig.channel.map(0, 0, 0, 8192, 0, &file), 0);
    std::fs::File::create(&path).expect("the file, emptied");
    rig.vm
        .ask(&json!({"command": "peek", "shmid": 0, "offset": 0, "len": 16}));
    rig.vm
        .ask(&json!({"command": "peek", "shmid": 0, "offset": 4096, "len": 16}));
    assert_eq!(rig.channel.unmap(0, 0, 8192), 0);
    rig.assert_serves(0);
}

#[test]
fn control_client_that_sends_nonsense_or_nothing_stalls_nobody() {
    let rig = Rig::new();
    let connect = || UnixStream::connect(rig.vm.control_socket()).expect("the control socket");
    let silent = connect();
    let mut half = connect();
    half.write_all(b"{\"command\":").expect("the VMM reads");
    let mut nonsense = connect();
    nonsense
        .write_all(b"\xff\xfe not json\n")
        .expect("the VMM reads");
    let mut endless = connect();
    endless
        .set_write_timeout(Some(fixture::TIMEOUT))
        .expect("a time limit");
    // One line without an end: refused or cut off at some length, never kept.
    let _ = endless.write_all(&vec![b'x'; 1 << 20]);
    rig.assert_serves(0);
    drop((silent, half, nonsense, endless));
    rig.assert_serves(0);
}

#[test]
fn ctl_without_a_vmm_says_so() {
    let output = Command::new(BINARY)
        .args(["ctl", "--control", "/nonexistent/socket", "status"])
        .output()
        .expect("portcullis ctl");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/nonexistent/socket"), "{error}");
}
