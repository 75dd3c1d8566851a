//! What the process looks like from outside while it serves.

use std::env;
use std::fs;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use base::Event;
use base::Tube;
use devices::control::ConnectOptions;
use devices::control::ControlRequest;
use devices::control::ControlResponse;
use devices::exit::Exit;
use rustix::io::FdFlags;
use rustix::io::fcntl_setfd;

use crate::bench::Bench;
use crate::bench::script_with_channel;
use crate::requests::map;
use crate::runner::Skip;
use crate::runner::Test;
use crate::testing::Script;
use crate::testing::TIMEOUT;

pub(crate) const TESTS: &[Test] = &[
    ("every_thread_is_filtered_and_powerless", filtered),
    ("levels_below_full_serve_the_same", levels),
    ("descriptors_do_not_grow_with_requests", descriptors),
    ("process_started_by_hand_needs_only_numbers", by_hand),
    ("descriptor_of_the_wrong_kind_is_named", wrong_kind),
];

fn filtered() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0, 1), 0);
    let tasks = fs::read_dir(format!("/proc/{}/task", bench.device.pid())).expect("tasks");
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task.expect("task").path().join("status")).expect("status");
        for line in [
            "Seccomp:\t2",
            "NoNewPrivs:\t1",
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapBnd:\t0000000000000000",
        ] {
            assert!(status.contains(line), "no {line:?} in\n{status}");
        }
        threads += 1;
    }
    assert_eq!(threads, 2);
    Ok(())
}

fn levels() -> Result<(), Skip> {
    for level in [jail::SandboxLevel::Seccomp, jail::SandboxLevel::None] {
        let (script, channels) = script_with_channel();
        let mut bench = Bench::configured(script, |config| config.sandbox.level = level)?;
        bench.start();
        let channel = channels.recv_timeout(TIMEOUT).expect("channel");
        assert_eq!(map(&channel, 0, 1), 0, "{level}");
    }
    Ok(())
}

fn descriptors() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    let count = |pid: u32| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("descriptors")
            .count()
    };
    // The first request may leave something behind for the next ones.
    assert_eq!(map(&channel, 0, 1), 0);
    let before = count(bench.device.pid());
    for page in 1..100 {
        assert_eq!(map(&channel, page * 4096, 1), 0);
        // The place is taken.
        assert_eq!(map(&channel, 0, 1), -i64::from(libc::EEXIST));
    }
    bench.device.stats().expect("the worker is done with them");
    assert_eq!(count(bench.device.pid()), before);
    Ok(())
}

/// Starts the process as minijail0 does: it inherits descriptors, and its jail is somebody else's business.
fn start_by_hand(descriptors: &[(&str, BorrowedFd<'_>)]) -> Child {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["device", "--sandbox", "none"]);
    for (name, descriptor) in descriptors {
        fcntl_setfd(descriptor, FdFlags::empty()).expect("inherited");
        command.arg(format!("--{name}-fd={}", descriptor.as_raw_fd()));
    }
    command.stderr(Stdio::piped());
    let child = command.spawn().expect("spawn");
    for (_, descriptor) in descriptors {
        fcntl_setfd(descriptor, FdFlags::CLOEXEC).expect("not inherited any further");
    }
    child
}

fn by_hand() -> Result<(), Skip> {
    let (main_channel, theirs) = UnixStream::pair().expect("main channel");
    let backend = Script::default().serve(theirs);
    let (control, their_control) = Tube::pair().expect("tube");
    let (_memory, their_memory) = Tube::pair().expect("tube");
    let (_events, their_events) = Tube::pair().expect("tube");
    let interrupt = Event::new().expect("event");
    let mut child = start_by_hand(&[
        ("backend", main_channel.as_fd()),
        ("control", their_control.as_fd()),
        ("memory", their_memory.as_fd()),
        ("event", their_events.as_fd()),
        ("interrupt", interrupt.as_fd()),
    ]);
    drop((main_channel, their_control, their_memory, their_events));
    control.set_recv_timeout(Some(TIMEOUT)).expect("timeout");
    let options = ConnectOptions::default();
    control
        .send(&ControlRequest::Connect(options))
        .expect("send");
    let response: ControlResponse = control.recv().expect("an answer");
    assert!(matches!(response, ControlResponse::Connected(_)));
    // The VMM goes.
    drop(control);
    let status = child.wait().expect("its end");
    assert_eq!(status.code(), Some(Exit::VmmGone.code()));
    backend.join().expect("the backend saw the end");
    Ok(())
}

fn wrong_kind() -> Result<(), Skip> {
    let (tube, _other) = Tube::pair().expect("tube");
    let event = Event::new().expect("event");
    let (stream, _other) = UnixStream::pair().expect("stream");
    let child = start_by_hand(&[
        ("backend", stream.as_fd()),
        ("control", event.as_fd()),
        ("memory", tube.as_fd()),
        ("event", tube.as_fd()),
        ("interrupt", event.as_fd()),
    ]);
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(Exit::Failed.code()));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        words.contains("--control-fd") && words.contains("is not a tube"),
        "{words}"
    );
    Ok(())
}
