//! For this crate's own tests: a backend's main channel as a script, and a backend's requests by hand.
//!
//! Deliberately not built on `vhost` or `vmm_vhost`, so that an error of theirs is not made twice.

use std::fs::File;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use base::SafeDescriptor;
use base::scm;
use base::scm::DescriptorVec;

/// How long a test waits for what should come at once, before it fails.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) const NEED_REPLY: u32 = 8;

/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, BACKEND_SEND_FD, HOST_NOTIFIER, RESET_DEVICE, SHARED_OBJECT, DEVICE_STATE and
/// SHMEM, by their bits.
pub(crate) const PROTOCOL_FEATURES: u64 =
    1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 18 | 1 << 19 | 1 << 22;

/// What a scripted backend says of itself.
pub(crate) struct Script {
    pub(crate) features: u64,
    pub(crate) protocol_features: u64,
    pub(crate) queues: u64,
    /// The answer to GET_SHMEM_CONFIG: the count, then id and size of the regions.
    pub(crate) shmem: (u32, Vec<(u8, u64)>),
    /// The answer to crosvm's query 1004.
    pub(crate) legacy_shmem: Vec<u8>,
    /// The codes that are answered with failure.
    pub(crate) nacks: Vec<u32>,
    /// The code after which the socket is closed without an answer.
    pub(crate) hangs_up_at: Option<u32>,
    /// What it does with a request channel, before it acks the message that brought it.
    pub(crate) on_channel: Box<dyn FnMut(UnixStream) + Send>,
    /// The state that it saves, and where the state goes that it loads.
    pub(crate) state: Vec<u8>,
    pub(crate) loads: Option<mpsc::Sender<Vec<u8>>>,
    /// The object that it shares under every name.
    pub(crate) object: Option<SafeDescriptor>,
    /// What it does when RESET_DEVICE comes, before it acks.
    pub(crate) on_reset: Box<dyn FnMut() + Send>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            // VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
            features: 1 << 32 | 1 << 30,
            protocol_features: PROTOCOL_FEATURES,
            queues: 2,
            shmem: (1, vec![(0, 1 << 20)]),
            legacy_shmem: Vec::new(),
            nacks: Vec::new(),
            hangs_up_at: None,
            on_channel: Box::new(drop),
            state: Vec::new(),
            loads: None,
            object: None,
            on_reset: Box::new(|| ()),
        }
    }
}

/// A message of the frontend, as the backend saw it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) code: u32,
    pub(crate) need_reply: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) descriptors: usize,
}

impl Script {
    /// Serves `socket` on a thread until the frontend closes it, and returns what came.
    pub(crate) fn serve(mut self, socket: UnixStream) -> JoinHandle<Vec<Seen>> {
        thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some((message, mut descriptors)) = receive(&socket) {
                let code = message.code;
                if self.hangs_up_at == Some(code) {
                    return seen;
                }
                match code {
                    21 => {
                        let channel = descriptors.pop().expect("a channel's descriptor");
                        (self.on_channel)(UnixStream::from(channel));
                    }
                    34 => (self.on_reset)(),
                    41 => {
                        let object = self.object.as_ref().map(AsFd::as_fd);
                        send(&socket, code, 4, &[], object);
                    }
                    42 => self.move_state(&message, descriptors.pop()),
                    _ => {}
                }
                if let Some(reply) = self.reply(&message) {
                    send(&socket, code, 4, &reply, None);
                }
                seen.push(message);
            }
            seen
        })
    }

    /// Saves or loads on a thread of its own, as the specification asks.
    fn move_state(&self, message: &Seen, pipe: Option<SafeDescriptor>) {
        let mut pipe = File::from(pipe.expect("a pipe's descriptor"));
        if message.payload[0] == 0 {
            let state = self.state.clone();
            thread::spawn(move || pipe.write_all(&state));
        } else {
            let loads = self.loads.clone().expect("somebody who looks");
            thread::spawn(move || {
                let mut state = Vec::new();
                pipe.read_to_end(&mut state).expect("a state");
                loads.send(state)
            });
        }
    }

    fn reply(&self, message: &Seen) -> Option<Vec<u8>> {
        let value = match message.code {
            1 => self.features,
            15 => self.protocol_features,
            17 => self.queues,
            // The pipe is taken; then, it went well.
            42 => 0x100,
            43 => 0,
            41 => return None,
            11 => {
                // The ring goes on at 7.
                let mut state = message.payload.clone();
                state[4] = 7;
                return Some(state);
            }
            24 => {
                let mut config = message.payload.clone();
                for (at, byte) in config[12..].iter_mut().enumerate() {
                    *byte = u8::try_from(at).unwrap();
                }
                return Some(config);
            }
            44 => return Some(self.shmem_config()),
            1004 => return Some(self.legacy_shmem.clone()),
            code if message.need_reply => u64::from(self.nacks.contains(&code)),
            _ => return None,
        };
        Some(value.to_ne_bytes().to_vec())
    }

    fn shmem_config(&self) -> Vec<u8> {
        let mut answer = vec![0; 8 + 256 * 8];
        answer[..4].copy_from_slice(&self.shmem.0.to_ne_bytes());
        for (shmid, len) in &self.shmem.1 {
            let at = 8 + usize::from(*shmid) * 8;
            answer[at..at + 8].copy_from_slice(&len.to_ne_bytes());
        }
        answer
    }
}

fn receive(socket: &UnixStream) -> Option<(Seen, DescriptorVec<8>)> {
    let mut header = [[0_u8; 4]; 3];
    let mut descriptors = DescriptorVec::new();
    let received = scm::recv(
        socket.as_fd(),
        &mut [IoSliceMut::new(header.as_flattened_mut())],
        &mut descriptors,
        scm::Wait::Block,
    )
    .ok()?;
    if received.bytes == 0 {
        return None;
    }
    assert_eq!(received.bytes, 12, "the frontend sends whole headers");
    let [code, flags, size] = header.map(u32::from_ne_bytes);
    let mut payload = vec![0; usize::try_from(size).unwrap()];
    (&*socket).read_exact(&mut payload).ok()?;
    let message = Seen {
        code,
        need_reply: flags & NEED_REPLY != 0,
        payload,
        descriptors: descriptors.len(),
    };
    Some((message, descriptors))
}

/// Sends one message of the vhost-user protocol; `flags` beside the version.
pub(crate) fn send(
    socket: &UnixStream,
    code: u32,
    flags: u32,
    payload: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) {
    let message = message(code, flags, payload);
    let sent = scm::send(
        socket.as_fd(),
        &[IoSlice::new(&message)],
        descriptor.as_slice(),
        scm::Wait::Block,
    );
    assert_eq!(sent, Ok(message.len()));
}

/// The bytes of one message.
pub(crate) fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let mut bytes = Vec::new();
    for word in [code, flags | 1, size] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads one reply on a request channel and returns its code and value.
pub(crate) fn read_reply(socket: &UnixStream) -> (u32, i64) {
    let mut reply = [0; 20];
    (&*socket).read_exact(&mut reply).expect("a reply");
    let word = |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().unwrap());
    assert_eq!((word(4), word(8)), (5, 8), "flags and size of a reply");
    (word(0), i64::from_ne_bytes(reply[12..].try_into().unwrap()))
}

/// The payload of SHMEM_MAP and SHMEM_UNMAP.
pub(crate) fn mmap(shmid: u8, shm_offset: u64, len: u64, flags: u64) -> Vec<u8> {
    let mut payload = vec![shmid, 0, 0, 0, 0, 0, 0, 0];
    for word in [0, shm_offset, len, flags] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    payload
}

/// The payload of crosvm's old SHMEM_MAP.
pub(crate) fn crosvm_map(shmid: u8, shm_offset: u64, len: u64, flags: u8) -> Vec<u8> {
    let mut payload = vec![flags, shmid, 0, 0, 0, 0, 0, 0];
    for word in [shm_offset, 0, len] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    payload
}

/// The payload of crosvm's old SHMEM_UNMAP.
pub(crate) fn crosvm_unmap(shmid: u8, shm_offset: u64, len: u64) -> Vec<u8> {
    let mut payload = vec![shmid, 0, 0, 0, 0, 0, 0, 0];
    for word in [shm_offset, len] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    payload
}

/// A file of `len` bytes that can be mapped.
pub(crate) fn file(len: u64) -> SafeDescriptor {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(len).expect("room for the file");
    SafeDescriptor::from(file)
}
