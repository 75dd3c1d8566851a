//! How the process ends, and that nothing is left of it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use devices::device_process::Error;
use devices::exit::Exit;
use jail::End;
use jail::ExitReport;
use vm_control::ServiceEvent;

use crate::bench::Bench;
use crate::bench::script_with_channel;
use crate::bench::silent_backend;
use crate::requests::map;
use crate::runner::Skip;
use crate::runner::Test;
use crate::testing::NEED_REPLY;
use crate::testing::Script;
use crate::testing::TIMEOUT;
use crate::testing::message;
use crate::testing::mmap;

pub(crate) const TESTS: &[Test] = &[
    ("shutdown_ends_in_good_order", shutdown),
    ("shutdown_while_the_backend_stalls", shutdown_stalled),
    ("silent_backend_meets_the_deadline", deadline),
    ("backend_gone_ends_the_process", backend_gone),
    ("service_gone_ends_the_process", service_gone),
    ("killed_process_leaves_no_mapping", killed),
    ("dropped_handle_leaves_no_process", dropped),
];

#[track_caller]
fn assert_exit(report: &ExitReport, exit: Exit) {
    let End::Exited { code } = report.end else {
        panic!("{report}");
    };
    assert_eq!(Exit::from_code(code), Some(exit), "{report}");
}

fn shutdown() -> Result<(), Skip> {
    let (script, _channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let report = bench.device.shutdown().expect("report");
    assert_exit(&report, Exit::Shutdown);
    assert!(matches!(bench.device.stats(), Err(Error::Ended { .. })));
    bench.backend.join().expect("the backend saw the end");
    Ok(())
}

fn shutdown_stalled() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let mut channel = channels.recv_timeout(TIMEOUT).expect("channel");
    let whole = message(10, NEED_REPLY, &mmap(0, 0, 4096, 0));
    channel.write_all(&whole[..6]).expect("half a header");
    let report = bench.device.shutdown().expect("report");
    assert_exit(&report, Exit::Shutdown);
    Ok(())
}

fn deadline() -> Result<(), Skip> {
    let (main_channel, theirs) = UnixStream::pair().expect("main channel");
    let backend = silent_backend(theirs);
    let mut bench = Bench::with_backend(main_channel, backend, |config| {
        config.deadline = Duration::from_millis(50);
    })?;
    let pid = bench.device.pid();
    let error = bench.device.connect().expect_err("no answer");
    assert!(
        matches!(error, Error::Deadline { pid: p, call: "connect", .. } if p == pid),
        "{error}"
    );
    assert!(error.is_fatal());
    let report = bench.device.exit_report().expect("it was reaped");
    assert!(matches!(report.end, End::Signaled { .. }), "{report}");
    assert!(matches!(bench.device.connect(), Err(Error::Ended { .. })));
    bench.backend.join().expect("the backend saw the end");
    Ok(())
}

fn backend_gone() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(Script {
        hangs_up_at: Some(25),
        ..script
    })?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0, 1), 0);
    let error = bench.device.write_config(0, &[1]).expect_err("it hung up");
    assert!(
        matches!(error, Error::Unsuccessful { .. } | Error::Ended { .. }),
        "{error}"
    );
    assert_exit(&bench.wait_for_exit(), Exit::BackendGone);
    let ServiceEvent::DeviceGone { mappings, .. } = bench.wait_until_gone();
    assert_eq!(mappings, 1);
    assert_eq!(bench.mappings(), 0);
    Ok(())
}

fn service_gone() -> Result<(), Skip> {
    let (main_channel, theirs) = UnixStream::pair().expect("main channel");
    let mut bench = Bench::with_backend(main_channel, silent_backend(theirs), |_| ())?;
    bench
        .service
        .handle()
        .remove_device(bench.device_id)
        .expect("remove");
    assert_exit(&bench.wait_for_exit(), Exit::ServiceGone);
    Ok(())
}

fn killed() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    for page in 0..3 {
        assert_eq!(map(&channel, page * 4096, 1), 0);
    }
    assert_eq!(bench.mappings(), 3);
    let report = bench.device.kill().expect("report");
    assert!(matches!(report.end, End::Signaled { .. }), "{report}");
    let ServiceEvent::DeviceGone { mappings, .. } = bench.wait_until_gone();
    assert_eq!(mappings, 3);
    assert_eq!(bench.mappings(), 0);
    Ok(())
}

fn dropped() -> Result<(), Skip> {
    let (script, _channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let process = format!("/proc/{}", bench.device.pid());
    assert!(Path::new(&process).exists());
    drop(bench.device);
    assert!(!Path::new(&process).exists(), "{process} is left");
    Ok(())
}
