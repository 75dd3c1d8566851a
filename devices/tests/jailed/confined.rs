//! What the process looks like from outside while it serves.

use std::fs;

use crate::bench::Bench;
use crate::bench::script_with_channel;
use crate::requests::map;
use crate::runner::Skip;
use crate::runner::Test;
use crate::testing::TIMEOUT;

pub(crate) const TESTS: &[Test] = &[
    ("every_thread_is_filtered_and_powerless", filtered),
    ("levels_below_full_serve_the_same", levels),
    ("descriptors_do_not_grow_with_requests", descriptors),
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
