//! A driver of one split ring in a memfd, written from the specification: it shares no code with the device's side.
//!
//! Specification: virtio 1.3, 2.7 "Split Virtqueues".

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;
use std::time::Duration;

use base::AsRawDescriptor;
use base::Descriptor;
use base::Event;
use base::EventWaitResult;
use base::SafeDescriptor;
use rustix::fs::MemfdFlags;
use rustix::fs::memfd_create;
use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::VringConfigData;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::Bytes;
use vm_memory::FileOffset;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::Request;
use super::Response;

/// How long an event may take before the test fails.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
const BYTES: u64 = 0x10_000;
const SIZE: u16 = 8;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;
const BUFFER_BYTES: u64 = 0x100;
const INDIRECT_TABLE: u64 = 0x8000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) head: u32,
    pub(super) len: u32,
}

pub(super) struct Driver {
    file: File,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    called: Event,
    event_idx: bool,
    available: u16,
    used: u16,
    next_descriptor: u16,
}

fn at(offset: u64) -> GuestAddress {
    GuestAddress(GUEST + offset)
}

impl Driver {
    pub(super) fn new(event_idx: bool) -> Self {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(BYTES).expect("it grows");
        let mapped = FileOffset::new(file.try_clone().expect("a duplicate"), 0);
        let size = usize::try_from(BYTES).expect("it is small");
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(GUEST), size, Some(mapped))]);
        let call = EventFd::new(0).expect("an event");
        let raw: &dyn AsRawDescriptor = &Descriptor(call.as_raw_fd());
        let called = Event::from(SafeDescriptor::try_from(raw).expect("a duplicate"));
        Self {
            file,
            memory: memory.expect("it is mapped"),
            kick: EventFd::new(0).expect("an event"),
            call,
            called,
            event_idx,
            available: 0,
            used: 0,
            next_descriptor: 0,
        }
    }

    /// Tells the device about the memory.
    pub(super) fn share_memory(&self, frontend: &Frontend) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: BYTES,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).expect("the memory");
    }

    /// Tells the device about the ring, and enables it.
    pub(super) fn start(&self, frontend: &mut Frontend, base: u16) {
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER + DESCRIPTORS,
            used_ring_addr: USER + USED,
            avail_ring_addr: USER + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_num(0, SIZE).expect("the size");
        frontend.set_vring_addr(0, &config).expect("the addresses");
        frontend.set_vring_base(0, base).expect("the base");
        frontend.set_vring_call(0, &self.call).expect("the call");
        frontend.set_vring_kick(0, &self.kick).expect("the kick");
        frontend.set_vring_enable(0, true).expect("it is enabled");
    }

    fn store(&self, offset: u64, value: u16) {
        self.memory
            .store(value.to_le(), at(offset), Ordering::Release)
            .expect("it is memory");
    }

    fn load(&self, offset: u64) -> u16 {
        let value: u16 = self
            .memory
            .load(at(offset), Ordering::Acquire)
            .expect("it is memory");
        u16::from_le(value)
    }

    fn describe(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(GUEST + address).to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let entry = table + 16 * u64::from(index);
        self.memory
            .write_slice(&bytes, at(entry))
            .expect("it is memory");
    }

    /// Makes a chain available: pieces for the device to read, and lengths of pieces for it to write.
    pub(super) fn put(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let head = self.next_descriptor;
        self.chain(DESCRIPTORS, head, readable, writable);
        self.next_descriptor += u16::try_from(readable.len() + writable.len()).expect("few");
        self.offer(head);
        head
    }

    /// The same in a table of its own.
    pub(super) fn put_indirect(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let head = self.next_descriptor;
        self.chain(INDIRECT_TABLE, 0, readable, writable);
        let entries = u32::try_from(readable.len() + writable.len()).expect("few");
        self.describe(DESCRIPTORS, head, INDIRECT_TABLE, 16 * entries, INDIRECT, 0);
        self.next_descriptor += 1;
        self.offer(head);
        head
    }

    fn chain(&self, table: u64, first: u16, readable: &[&[u8]], writable: &[u32]) {
        let pieces = readable.len() + writable.len();
        for place in 0..pieces {
            let index = first + u16::try_from(place).expect("few");
            let buffer = BUFFERS + BUFFER_BYTES * u64::from(index);
            let next = if place + 1 < pieces { NEXT } else { 0 };
            let (len, write) = match readable.get(place) {
                Some(piece) => {
                    self.memory
                        .write_slice(piece, at(buffer))
                        .expect("it is memory");
                    (u32::try_from(piece.len()).expect("small"), 0)
                }
                None => (writable[place - readable.len()], WRITE),
            };
            self.describe(table, index, buffer, len, next | write, index + 1);
        }
    }

    fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % SIZE);
        self.store(AVAILABLE + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        self.store(AVAILABLE + 2, self.available);
    }

    pub(super) fn kick(&self) {
        self.kick.write(1).expect("it signals");
    }

    /// How many chains the device has used that were not waited for.
    pub(super) fn unseen(&self) -> u16 {
        self.load(USED + 2).wrapping_sub(self.used)
    }

    /// Waits for the next used chain.
    #[track_caller]
    pub(super) fn wait(&mut self) -> Used {
        if self.event_idx {
            self.store(AVAILABLE + 4 + 2 * u64::from(SIZE), self.used);
            fence(Ordering::SeqCst);
        }
        while self.unseen() == 0 {
            let called = self.called.wait_timeout(TIMEOUT);
            assert_eq!(called, Ok(EventWaitResult::Signaled));
        }
        let entry = USED + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        if self.used == self.available {
            self.next_descriptor = 0;
        }
        let mut bytes = [0; 8];
        self.memory
            .read_slice(&mut bytes, at(entry))
            .expect("it is memory");
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Used {
            head: word(0),
            len: word(4),
        }
    }

    /// Reads what the device wrote into a piece.
    pub(super) fn buffer(&self, index: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let buffer = BUFFERS + BUFFER_BYTES * u64::from(index);
        self.memory
            .read_slice(&mut bytes, at(buffer))
            .expect("it is memory");
        bytes
    }

    /// Reads a response out of one piece.
    pub(super) fn response(&self, index: u16) -> Response {
        let bytes = self.buffer(index, 40).try_into().expect("40 bytes");
        Response::parse(&bytes)
    }

    /// Makes a request available in two pieces, and returns where the response will be.
    pub(super) fn ask(&mut self, request: Request) -> u16 {
        let head = self.put(&[&request.to_bytes()], &[40]);
        self.kick();
        head + 1
    }

    /// Sends a request and waits for the response.
    #[track_caller]
    pub(super) fn call(&mut self, request: Request) -> Response {
        let place = self.ask(request);
        let used = self.wait();
        let head = u32::from(place) - 1;
        assert_eq!(used, Used { head, len: 40 });
        self.response(place)
    }
}
