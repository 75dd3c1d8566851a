//! The device process on threads of the test: everything but the jail and the process itself.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use base::Event;
use base::EventWaitResult;
use base::Tube;
use vm_control::Generation;
use vm_control::RequestBatch;
use vm_control::ResponseBatch;
use vm_control::VmMemoryResponse;

use super::child::Descriptors;
use super::child::prepare;
use super::*;
use crate::control::Activation;
use crate::control::BackendInfo;
use crate::control::ConnectOptions;
use crate::control::ControlRequest;
use crate::control::ControlResponse;
use crate::control::WorkerStats;
use crate::exit::Exit;
use crate::testing::NEED_REPLY;
use crate::testing::Script;
use crate::testing::Seen;
use crate::testing::TIMEOUT;
use crate::testing::file;
use crate::testing::mmap;
use crate::testing::read_reply;
use crate::testing::send;

const MAP: u32 = 9;
const CONFIG_CHANGE: u32 = 2;
const PAGE: u64 = 4096;

/// A mapping service that grants everything, on a thread; it returns the batches that it got.
fn granting_service(tube: Tube) -> JoinHandle<Vec<RequestBatch>> {
    thread::spawn(move || {
        let mut batches = Vec::new();
        while let Ok(batch) = tube.recv::<RequestBatch>() {
            let responses = batch.requests.iter().map(|_| VmMemoryResponse::Ok);
            let sent = tube.send(&ResponseBatch {
                responses: responses.collect(),
            });
            batches.push(batch);
            if sent.is_err() {
                break;
            }
        }
        batches
    })
}

/// A device process without process and jail.
struct Device {
    control: Tube,
    interrupt: Event,
    _events: Tube,
    exits: mpsc::Receiver<Exit>,
    backend: JoinHandle<Vec<Seen>>,
}

impl Device {
    fn new(script: Script) -> Self {
        let (main_channel, theirs) = UnixStream::pair().unwrap();
        let backend = script.serve(theirs);
        let (control, their_control) = Tube::pair().unwrap();
        let (memory, their_memory) = Tube::pair().unwrap();
        let (events, their_events) = Tube::pair().unwrap();
        let interrupt = Event::new().unwrap();
        control.set_recv_timeout(Some(TIMEOUT)).unwrap();
        granting_service(memory);
        let process = prepare(Descriptors {
            backend: main_channel,
            control: their_control,
            memory: their_memory,
            events: their_events,
            interrupt: interrupt.try_clone().unwrap(),
            hooks: None,
        })
        .unwrap();
        let (exit, exits) = mpsc::channel();
        thread::spawn(move || exit.send(process.serve()));
        Self {
            control,
            interrupt,
            _events: events,
            exits,
            backend,
        }
    }

    fn ask(&self, request: &ControlRequest) -> ControlResponse {
        self.control.send(request).unwrap();
        self.control.recv().expect("an answer")
    }

    #[track_caller]
    fn done(&self, request: &ControlRequest) {
        let response = self.ask(request);
        assert!(matches!(response, ControlResponse::Done), "{response:?}");
    }

    #[track_caller]
    fn fails(&self, request: &ControlRequest) -> String {
        match self.ask(request) {
            ControlResponse::Failed(failure) => failure.message,
            response => panic!("{response:?}"),
        }
    }

    #[track_caller]
    fn connect(&self) -> BackendInfo {
        match self.ask(&ControlRequest::Connect(ConnectOptions::default())) {
            ControlResponse::Connected(info) => info,
            response => panic!("{response:?}"),
        }
    }

    fn stats(&self) -> WorkerStats {
        match self.ask(&ControlRequest::Stats) {
            ControlResponse::Stats(stats) => stats,
            response => panic!("{response:?}"),
        }
    }

    fn exit(&self) -> Exit {
        self.exits.recv_timeout(TIMEOUT).expect("the process's end")
    }
}

/// Maps a page and waits for the answer, as a backend does that has nothing else to do.
fn map(channel: &UnixStream, offset: u64) -> i64 {
    channel.set_read_timeout(Some(TIMEOUT)).unwrap();
    let page = file(PAGE);
    send(
        channel,
        MAP,
        NEED_REPLY,
        &mmap(0, offset, PAGE, 1),
        Some(page.as_fd()),
    );
    let (code, value) = read_reply(channel);
    assert_eq!(code, MAP);
    value
}

/// A script that hands the request channel out of the backend's thread.
fn with_channel() -> (Script, mpsc::Receiver<UnixStream>) {
    let (sender, channels) = mpsc::channel();
    let script = Script {
        on_channel: Box::new(move |channel| sender.send(channel).unwrap()),
        ..Script::default()
    };
    (script, channels)
}

#[test]
fn map_within_the_handler_of_the_channel_message_does_not_deadlock() {
    let (sender, results) = mpsc::channel();
    let device = Device::new(Script {
        // The main channel is not answered before the map is.
        on_channel: Box::new(move |channel| sender.send((map(&channel, 0), channel)).unwrap()),
        ..Script::default()
    });
    device.connect();
    device.done(&ControlRequest::Start);
    let (value, _channel) = results.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(value, 0);
    assert_eq!(device.stats().maps, 1);
}

#[test]
fn map_within_the_reset_handler_is_cancelled_and_does_not_deadlock() {
    let (channel_sender, channels) = mpsc::channel::<UnixStream>();
    let (result_sender, results) = mpsc::channel();
    let device = Device::new(Script {
        on_channel: Box::new(move |channel| channel_sender.send(channel).unwrap()),
        on_reset: Box::new(move || {
            let channel = channels.recv_timeout(TIMEOUT).unwrap();
            result_sender.send((map(&channel, 0), channel)).unwrap();
        }),
        ..Script::default()
    });
    device.connect();
    device.done(&ControlRequest::Start);
    device.done(&ControlRequest::Reset);
    let (value, channel) = results.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(value, -i64::from(libc::ECANCELED));
    device.done(&ControlRequest::Resume {
        generation: Generation(1),
    });
    assert_eq!(map(&channel, 0), 0);
}

#[test]
fn config_change_before_activation_waits_for_it() {
    let (script, channels) = with_channel();
    let device = Device::new(script);
    device.connect();
    device.done(&ControlRequest::Start);
    let channel = channels.recv_timeout(TIMEOUT).unwrap();
    send(&channel, CONFIG_CHANGE, NEED_REPLY, &[], None);
    assert_eq!(read_reply(&channel), (CONFIG_CHANGE, 0));
    let not_yet = device.interrupt.wait_timeout(Duration::ZERO);
    assert_eq!(not_yet, Ok(EventWaitResult::TimedOut));

    device.done(&ControlRequest::Activate(Activation::default()));
    let signalled = device.interrupt.wait_timeout(TIMEOUT);
    assert_eq!(signalled, Ok(EventWaitResult::Signaled));
}

#[test]
fn start_before_connect_is_refused() {
    let device = Device::new(Script::default());
    let message = device.fails(&ControlRequest::Start);
    assert_eq!(message, "the main channel is not set up");
    device.connect();
    device.done(&ControlRequest::Start);
}

#[test]
fn start_of_a_backend_that_takes_no_channel_costs_none() {
    let device = Device::new(Script {
        protocol_features: 0,
        ..Script::default()
    });
    device.connect();
    let message = device.fails(&ControlRequest::Start);
    assert!(message.contains("BACKEND_REQ"), "{message}");
    assert_eq!(device.stats().channels, 0);
}

#[test]
fn start_more_often_than_there_are_channels_is_refused() {
    let (script, channels) = with_channel();
    let device = Device::new(script);
    device.connect();
    for _ in 0..MAX_CHANNELS {
        device.done(&ControlRequest::Start);
    }
    let message = device.fails(&ControlRequest::Start);
    assert!(message.contains("all 4 request channels"), "{message}");
    // The last of them is served.
    let last = channels.try_iter().last().unwrap();
    assert_eq!(map(&last, 0), 0);
}

#[test]
fn hostile_region_table_fails_connect_and_leaves_the_process_up() {
    let device = Device::new(Script {
        shmem: (7, vec![(0, PAGE)]),
        ..Script::default()
    });
    let message = device.fails(&ControlRequest::Connect(ConnectOptions::default()));
    assert_eq!(
        message,
        "the backend announces 7 shared memory regions and gives 1 sizes"
    );
    assert_eq!(device.stats(), WorkerStats::default());
}

#[test]
fn config_space_is_read_and_written() {
    let device = Device::new(Script::default());
    device.connect();
    let response = device.ask(&ControlRequest::ReadConfig { offset: 4, len: 3 });
    let ControlResponse::Config(bytes) = response else {
        panic!("{response:?}");
    };
    assert_eq!(bytes, [0, 1, 2]);
    device.done(&ControlRequest::WriteConfig {
        offset: 0,
        data: vec![1, 2],
    });
    let message = device.fails(&ControlRequest::ReadConfig {
        offset: 4095,
        len: 2,
    });
    assert!(message.contains("2 bytes at 0xfff"), "{message}");
}

#[test]
fn resume_without_reset_is_refused() {
    let device = Device::new(Script::default());
    device.connect();
    let message = device.fails(&ControlRequest::Resume {
        generation: Generation(1),
    });
    assert_eq!(message, "no reset was begun");
}

#[test]
fn activate_within_a_reset_is_refused() {
    let device = Device::new(Script::default());
    device.connect();
    device.done(&ControlRequest::Reset);
    let message = device.fails(&ControlRequest::Activate(Activation::default()));
    assert_eq!(message, "a reset was begun and not finished");
}

#[test]
fn shutdown_is_answered_and_ends_the_process() {
    let device = Device::new(Script::default());
    device.done(&ControlRequest::Shutdown);
    assert_eq!(device.exit(), Exit::Shutdown);
    assert_eq!(device.backend.join().unwrap(), []);
}

#[test]
fn end_of_the_vmm_ends_the_process() {
    let device = Device::new(Script::default());
    device.connect();
    let Device { control, exits, .. } = device;
    drop(control);
    assert_eq!(exits.recv_timeout(TIMEOUT).unwrap(), Exit::VmmGone);
}

#[test]
fn end_of_the_backend_ends_the_process() {
    let device = Device::new(Script {
        hangs_up_at: Some(25),
        ..Script::default()
    });
    device.connect();
    let message = device.fails(&ControlRequest::WriteConfig {
        offset: 0,
        data: vec![1],
    });
    assert!(message.starts_with("SET_CONFIG failed"), "{message}");
    assert_eq!(device.exit(), Exit::BackendGone);
}

#[test]
fn end_of_an_idle_backend_ends_the_process() {
    let (main_channel, theirs) = UnixStream::pair().unwrap();
    let (_control, their_control) = Tube::pair().unwrap();
    let (_memory, their_memory) = Tube::pair().unwrap();
    let (_events, their_events) = Tube::pair().unwrap();
    let process = prepare(Descriptors {
        backend: main_channel,
        control: their_control,
        memory: their_memory,
        events: their_events,
        interrupt: Event::new().unwrap(),
        hooks: None,
    })
    .unwrap();
    drop(theirs);
    assert_eq!(process.serve(), Exit::BackendGone);
}

#[test]
fn unknown_control_message_ends_the_process() {
    let device = Device::new(Script::default());
    device.control.send(&u64::MAX).unwrap();
    assert_eq!(device.exit(), Exit::ControlProtocol);
}
