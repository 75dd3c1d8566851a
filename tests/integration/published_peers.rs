//! Published vhost-user programs, as `tests/peers/install.sh` installs them.
//!
//! `PORTCULLIS_PEERS` names the folder of the programs; without it these tests are left out.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use devices::control::Activation;
use devices::control::MemoryRegion;
use devices::control::QueueSetup;
use fixture::DriverMemory;
use fixture::DriverQueue;
use fixture::Process;
use vm_control::MappingInfo;

use crate::bare::Bare;
use crate::bare::BareDevice;

/// The commands of virtio-media, and the ioctls of V4L2 that they carry.
const OPEN: u32 = 1;
const IOCTL: u32 = 3;
const MMAP: u32 = 4;
const MUNMAP: u32 = 5;
const REQBUFS: u32 = 8;
const QBUF: u32 = 15;
const STREAMON: u32 = 18;

/// `V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE` and `V4L2_MEMORY_MMAP`.
const CAPTURE: u32 = 9;
const MMAPPED: u32 = 1;

/// A frame of 640 by 480 in planes Y, U and V.
const PIXELS: usize = 640 * 480;
const FRAME: u64 = 0x70800;

fn program(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("PORTCULLIS_PEERS") else {
        // No failure under CI, unlike other skips: who sets the variable decides whether there are such programs.
        eprintln!("left out: {name}: PORTCULLIS_PEERS is not set, see tests/peers/install.sh");
        return None;
    };
    let path = PathBuf::from(folder).join(name);
    assert!(path.is_file(), "{}: not installed", path.display());
    Some(path)
}

/// The driver of a media device: queue 0 takes commands, queue 1 brings events.
struct Driver {
    memory: DriverMemory,
    commands: DriverQueue,
    events: DriverQueue,
}

impl Driver {
    fn new() -> Self {
        let mut memory = DriverMemory::new(1 << 20);
        let commands = DriverQueue::new(&mut memory, 16);
        let events = DriverQueue::new(&mut memory, 16);
        Self {
            memory,
            commands,
            events,
        }
    }

    fn activate(&self, device: &mut BareDevice) {
        let clone =
            |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().expect("a descriptor").into();
        let queue = |index, queue: &DriverQueue| QueueSetup {
            index,
            size: queue.size(),
            descriptor_table: queue.descriptor_table(),
            available_ring: queue.available_ring(),
            used_ring: queue.used_ring(),
            base: 0,
            call: Some(clone(queue.call())),
            kick: clone(queue.kick()),
        };
        let activation = Activation {
            // VIRTIO_F_VERSION_1 alone: no indirect descriptors, no event indexes.
            features: 1 << 32,
            memory: vec![MemoryRegion {
                guest_address: 0,
                len: self.memory.len(),
                offset: 0,
                descriptor: clone(self.memory.file()),
            }],
            queues: vec![queue(0, &self.commands), queue(1, &self.events)],
        };
        device
            .process
            .activate(activation)
            .expect("an active device");
    }

    /// Sends a command, asserts that it succeeds, and returns what follows the response's header.
    #[track_caller]
    fn command(&mut self, code: u32, words: &[u32], payload: &[u8], room: u32) -> Vec<u8> {
        let mut request = Vec::new();
        for word in [code, 0].iter().chain(words) {
            request.extend(word.to_le_bytes());
        }
        request.extend(payload);
        let response = self.commands.exchange(&mut self.memory, &request, 8 + room);
        assert_eq!(response[..4], [0; 4], "the errno of command {code}");
        response[8..].to_vec()
    }

    /// Maps the buffer at `offset` and returns where it is in the region.
    #[track_caller]
    fn map(&mut self, session: u32, offset: u32) -> u64 {
        let response = self.command(MMAP, &[session, 1, offset], &[], 16);
        let word =
            |at: usize| u64::from_le_bytes(response[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(word(8), FRAME, "the buffer's length");
        word(0)
    }
}

fn words(of: &[u32]) -> Vec<u8> {
    of.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn frames(mappings: &[MappingInfo]) -> Vec<(u64, u64)> {
    mappings
        .iter()
        .map(|mapping| (mapping.offset, mapping.len))
        .collect()
}

#[test]
fn vhost_device_media_maps_its_frames() {
    let Some(program) = program("vhost-device-media") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("media");
    // It gets the listening socket, so that nobody has to wait until it listens.
    let listener = UnixListener::bind(&socket).expect("a socket to listen on");
    let mut command = Command::new(program);
    command.args(["--backend", "simple-capture", "--socket-fd", "0"]);
    let _peer = Process::spawn_with_input(command, OwnedFd::from(listener));

    let mut bare = Bare::start();
    let mut device = bare.device(&socket, "media");
    // The `card` of its configuration space is at offset 8.
    let card = device.process.read_config(8, 16).expect("configuration");
    assert!(card.iter().any(|byte| *byte != 0), "{card:?}");
    let mut driver = Driver::new();
    driver.activate(&mut device);

    let opened = driver.command(OPEN, &[], &[], 8);
    let session = u32::from_le_bytes(opened[..4].try_into().expect("4 bytes"));
    let request = words(&[2, CAPTURE, MMAPPED, 0, 0]);
    let buffers = driver.command(IOCTL, &[session, REQBUFS], &request, 20);
    assert_eq!(buffers[0], 2, "two buffers");

    let first = driver.map(session, 0);
    let second = driver.map(session, 0x1000);
    let mut want = [(first, FRAME), (second, FRAME)];
    want.sort_unstable();
    assert_eq!(frames(&bare.handle.mappings()), want);

    // The first buffer is filled: plane Y with 0, U with 64, V with 128.
    driver.events.offer(&mut driver.memory, 4096);
    let mut buffer = vec![0; 88 + 64];
    buffer[4..8].copy_from_slice(&CAPTURE.to_le_bytes());
    buffer[60..64].copy_from_slice(&MMAPPED.to_le_bytes());
    // One plane follows.
    buffer[72..76].copy_from_slice(&1_u32.to_le_bytes());
    driver.command(IOCTL, &[session, QBUF], &buffer, 88 + 64);
    driver.command(IOCTL, &[session, STREAMON], &words(&[CAPTURE]), 0);
    driver.events.wait_used(&driver.memory);
    let mut frame = vec![0xff; PIXELS * 3 / 2];
    device.arenas[0]
        .read_at(first, &mut frame)
        .expect("mapped memory");
    assert!(frame[..PIXELS].iter().all(|y| *y == 0));
    assert!(frame[PIXELS..PIXELS * 5 / 4].iter().all(|u| *u == 64));
    assert!(frame[PIXELS * 5 / 4..].iter().all(|v| *v == 128));

    driver.command(MUNMAP, &[], &first.to_le_bytes(), 0);
    assert_eq!(frames(&bare.handle.mappings()), [(second, FRAME)]);
    driver.command(MUNMAP, &[], &second.to_le_bytes(), 0);
    assert_eq!(bare.handle.mappings(), []);
    let report = device.process.shutdown().expect("an exit report");
    assert_eq!(report.end, jail::End::Exited { code: 0 }, "{report}");
}
