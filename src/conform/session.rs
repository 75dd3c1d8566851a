//! One connected frontend: the main channel on a thread of its own, the request channel in the hands of the cases.

use std::fmt;
use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use base::scm;
use base::scm::DescriptorVec;
use base::scm::Wait;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::poll;
use rustix::net::sockopt;

use super::Peer;
use super::wire;
use super::wire::Mmap;
use super::wire::NEED_REPLY;
use super::wire::REPLY;
use super::wire::VERSION;
use super::wire::code;

/// Protocol features, by their bits in the specification.
pub(super) mod feature {
    pub(in crate::conform) const REPLY_ACK: u64 = 1 << 3;
    pub(in crate::conform) const BACKEND_REQ: u64 = 1 << 5;
    pub(in crate::conform) const CONFIG: u64 = 1 << 9;
    pub(in crate::conform) const BACKEND_SEND_FD: u64 = 1 << 10;
    pub(in crate::conform) const SHMEM: u64 = 1 << 22;
}

/// Bytes of region 0.
pub(super) const REGION: u64 = 64 << 20;
/// Region 3, so that the ids have a gap; its bytes.
pub(super) const SECOND_REGION: u64 = 1 << 20;
pub(super) const SECOND_SHMID: u8 = 3;
pub(super) const PAGE: u64 = 4096;

/// What the suite offers as a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    /// Acknowledgements, configuration and shared memory.
    Full,
    /// The same without acknowledgements.
    WithoutReplyAck,
    /// Acknowledgements only: neither configuration nor shared memory.
    Bare,
}

impl Profile {
    fn protocol_features(self) -> u64 {
        let all = feature::REPLY_ACK
            | feature::BACKEND_REQ
            | feature::CONFIG
            | feature::BACKEND_SEND_FD
            | feature::SHMEM;
        match self {
            Profile::Full => all,
            Profile::WithoutReplyAck => all & !feature::REPLY_ACK,
            Profile::Bare => feature::REPLY_ACK | feature::BACKEND_REQ | feature::BACKEND_SEND_FD,
        }
    }
}

/// A reply of the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u32,
    pub(super) flags: u32,
    pub(super) value: u64,
}

impl Reply {
    /// Returns the errno that a failure carries; 0 for success, and nothing for a value that is no negative errno.
    pub(super) fn errno(&self) -> Option<i32> {
        let value = i64::from_ne_bytes(self.value.to_ne_bytes());
        if (-4095..=0).contains(&value) {
            i32::try_from(-value).ok()
        } else {
            None
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno() {
            Some(0) => write!(f, "success for {}", self.code),
            Some(errno) => write!(
                f,
                "{} for {}",
                rustix::io::Errno::from_raw_os_error(errno),
                self.code
            ),
            None => write!(f, "value {:#x} for {}", self.value, self.code),
        }
    }
}

/// A connected frontend.
pub(super) struct Session {
    pub(super) profile: Profile,
    pub(super) peer: Peer,
    channel: UnixStream,
    main: UnixStream,
    thread: Option<JoinHandle<()>>,
    open: bool,
    /// Ranges that a case mapped and has not unmapped, to be cleaned up after it.
    mapped: Vec<(u8, u64, u64)>,
}

impl Session {
    /// Waits for a frontend and negotiates with it until it hands over the request channel.
    ///
    /// # Errors
    /// If none connects in time, or it closes or says nothing sensible before that.
    pub(super) fn accept(
        listener: &UnixListener,
        profile: Profile,
        wait: Duration,
        patience: Duration,
    ) -> io::Result<Session> {
        if !readable(listener.as_fd(), wait)? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no frontend connected within {} s", wait.as_secs()),
            ));
        }
        let (main, _) = listener.accept()?;
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::new(Mutex::new(Peer::default()));
        let server = MainChannel {
            socket: main.try_clone()?,
            profile,
            peer: Arc::clone(&shared),
            channel: sender,
        };
        let thread = std::thread::Builder::new()
            .name("main-channel".to_owned())
            .spawn(move || server.run())?;
        let channel = receiver.recv_timeout(wait).map_err(|_| {
            io::Error::other("the frontend sent no SET_BACKEND_REQ_FD on the main channel")
        });
        let peer = shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let channel = match channel {
            Ok(channel) => UnixStream::from(channel),
            Err(error) => {
                main.shutdown(std::net::Shutdown::Both)?;
                return Err(error);
            }
        };
        sockopt::set_socket_timeout(&channel, sockopt::Timeout::Recv, Some(patience))?;
        sockopt::set_socket_timeout(&channel, sockopt::Timeout::Send, Some(patience))?;
        Ok(Session {
            profile,
            peer,
            channel,
            main,
            thread: Some(thread),
            open: true,
            mapped: Vec::new(),
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Says which of `needs` the frontend did not acknowledge.
    pub(super) fn lacks(&self, needs: u64) -> Option<String> {
        let missing = needs & !self.peer.protocol_features;
        (missing != 0).then(|| format!("protocol features {missing:#x}"))
    }

    /// Sends bytes with descriptors on the first of them.
    pub(super) fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut sent = 0;
        while sent < bytes.len() {
            let with = if sent == 0 { descriptors } else { &[] };
            let piece = [IoSlice::new(&bytes[sent..])];
            match scm::send(self.channel.as_fd(), &piece, with, Wait::Block) {
                Ok(count) => sent += count,
                Err(error) => {
                    self.open = false;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Waits for the next reply.
    pub(super) fn reply(&mut self) -> io::Result<Reply> {
        let (reply, _) = self.reply_with_descriptors()?;
        Ok(reply)
    }

    /// Waits for the next reply and returns the number of descriptors that came with it.
    pub(super) fn reply_with_descriptors(&mut self) -> io::Result<(Reply, usize)> {
        let mut bytes = [0; 20];
        let mut descriptors = DescriptorVec::<8>::new();
        let mut filled = 0;
        while filled < bytes.len() {
            let mut piece = [IoSliceMut::new(&mut bytes[filled..])];
            let received = match scm::recv(
                self.channel.as_fd(),
                &mut piece,
                &mut descriptors,
                Wait::Block,
            ) {
                Ok(received) => received,
                Err(error) if error.errno() == libc::EAGAIN => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no reply came"));
                }
                Err(error) => {
                    self.open = false;
                    return Err(error.into());
                }
            };
            if received.bytes == 0 {
                self.open = false;
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the frontend closed the channel",
                ));
            }
            filled += received.bytes;
        }
        let u32_at = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if u32_at(8) != 8 {
            return Err(io::Error::other(format!(
                "a reply of {} bytes instead of 8",
                u32_at(8)
            )));
        }
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[12..]);
        let reply = Reply {
            code: u32_at(0),
            flags: u32_at(4),
            value: u64::from_ne_bytes(value),
        };
        if reply.flags != VERSION | REPLY {
            return Err(io::Error::other(format!(
                "a reply with flags {:#x} instead of 0x5",
                reply.flags
            )));
        }
        Ok((reply, descriptors.len()))
    }

    /// Sends a request that asks for a reply, and waits for it.
    pub(super) fn ask(
        &mut self,
        code: u32,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<Reply> {
        self.send(
            &wire::message(code, VERSION | NEED_REPLY, payload),
            descriptors,
        )?;
        let reply = self.reply()?;
        if reply.code != code {
            return Err(io::Error::other(format!("a reply for {}", reply.code)));
        }
        self.note(code, payload, &reply);
        Ok(reply)
    }

    /// Maps, in the dialect of the specification.
    pub(super) fn map(&mut self, mmap: &Mmap, descriptor: BorrowedFd<'_>) -> io::Result<Reply> {
        self.ask(code::MAP, &mmap.bytes(), &[descriptor])
    }

    /// Unmaps, in the dialect of the specification.
    pub(super) fn unmap(&mut self, mmap: &Mmap) -> io::Result<Reply> {
        self.ask(code::UNMAP, &mmap.bytes(), &[])
    }

    /// Remembers what a case has mapped, so that nothing stays for the next one.
    pub(super) fn note(&mut self, code: u32, payload: &[u8], reply: &Reply) {
        if reply.value != 0 {
            return;
        }
        let u64_at = |at: usize| {
            payload
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_ne_bytes)
        };
        let byte = |at: usize| payload.get(at).copied().unwrap_or(0);
        match code {
            code::MAP => self.mapped.push((byte(0), u64_at(16), u64_at(24))),
            code::OLD_MAP => self.mapped.push((byte(1), u64_at(8), u64_at(24))),
            code::GPU_MAP | code::EXTERNAL_MAP => {
                self.mapped.push((byte(0), u64_at(8), u64_at(16)));
            }
            code::UNMAP => self.forget(byte(0), u64_at(16)),
            code::OLD_UNMAP => self.forget(byte(0), u64_at(8)),
            _ => {}
        }
    }

    fn forget(&mut self, shmid: u8, offset: u64) {
        self.mapped
            .retain(|(id, at, _)| (*id, *at) != (shmid, offset));
    }

    /// Unmaps what the last case left, and returns whether the channel is fit for the next one.
    pub(super) fn clean_up(&mut self) -> bool {
        for (shmid, offset, len) in std::mem::take(&mut self.mapped) {
            if !self.open {
                return false;
            }
            let mmap = Mmap {
                shmid,
                ..Mmap::at(offset, len)
            };
            if !self.unmap(&mmap).is_ok_and(|reply| reply.value == 0) {
                return false;
            }
        }
        self.open
    }

    /// Waits until the frontend closes the channel.
    pub(super) fn expect_close(&mut self) -> io::Result<()> {
        match self.reply() {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
            Ok(reply) => Err(io::Error::other(format!("a reply: {reply}"))),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail where the frontend has gone already.
        let _ = self.channel.shutdown(std::net::Shutdown::Both);
        let _ = self.main.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns whether there is something to read (or an end) within `wait`.
pub(super) fn readable(descriptor: BorrowedFd<'_>, wait: Duration) -> io::Result<bool> {
    let timeout = rustix::event::Timespec::try_from(wait).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&timeout))? > 0)
}

/// The backend's end of the main channel: answers what a frontend asks before and while the cases run.
struct MainChannel {
    socket: UnixStream,
    profile: Profile,
    peer: Arc<Mutex<Peer>>,
    channel: mpsc::Sender<OwnedFd>,
}

/// Longest payload that a frontend sends here: SET_CONFIG with 256 bytes, or a memory table.
const MAX_PAYLOAD: usize = 4096;

impl MainChannel {
    fn run(self) {
        // The end of the connection ends the thread, whatever the reason.
        while let Ok(Some(())) = self.serve() {}
    }

    fn serve(&self) -> io::Result<Option<()>> {
        let mut header = [0; wire::HEADER_BYTES];
        let mut descriptors = DescriptorVec::<8>::new();
        if !self.fill(&mut header, &mut descriptors)? {
            return Ok(None);
        }
        let u32_at = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (request, flags) = (u32_at(0), u32_at(4));
        let size = usize::try_from(u32_at(8)).map_err(io::Error::other)?;
        if size > MAX_PAYLOAD {
            return Err(io::Error::other("a payload that no frontend sends"));
        }
        let mut payload = vec![0; size];
        if size > 0 && !self.fill(&mut payload, &mut descriptors)? {
            return Ok(None);
        }
        self.answer(request, flags, &payload, descriptors)?;
        Ok(Some(()))
    }

    fn fill(&self, buffer: &mut [u8], descriptors: &mut DescriptorVec<8>) -> io::Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut piece = [IoSliceMut::new(&mut buffer[filled..])];
            let received = scm::recv(self.socket.as_fd(), &mut piece, descriptors, Wait::Block)?;
            if received.bytes == 0 {
                return Ok(false);
            }
            filled += received.bytes;
        }
        Ok(true)
    }

    fn answer(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        descriptors: DescriptorVec<8>,
    ) -> io::Result<()> {
        let number = payload
            .first_chunk()
            .map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        {
            let mut peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
            peer.opening.push(request);
            match request {
                2 => peer.virtio_features = Some(number),
                16 => peer.protocol_features = number,
                _ => {}
            }
        }
        match request {
            // GET_FEATURES: VERSION_1 and the protocol features' own bit.
            1 => self.reply(request, &(1u64 << 32 | 1 << 30).to_ne_bytes()),
            // GET_VRING_BASE
            11 => self.reply(request, payload),
            // GET_PROTOCOL_FEATURES
            15 => self.reply(request, &self.profile.protocol_features().to_ne_bytes()),
            // GET_QUEUE_NUM
            17 => self.reply(request, &1u64.to_ne_bytes()),
            // SET_BACKEND_REQ_FD
            21 => {
                self.acknowledge(request, flags)?;
                if let Some(channel) = descriptors.into_iter().next() {
                    // Nobody waits for a second channel.
                    let _ = self.channel.send(OwnedFd::from(channel));
                }
                Ok(())
            }
            // GET_CONFIG: the payload comes back, its bytes being zeros.
            24 => self.reply(request, payload),
            // GET_STATUS
            40 => self.reply(request, &0u64.to_ne_bytes()),
            // GET_SHMEM_CONFIG
            44 => self.reply(request, &shmem_config()),
            _ => self.acknowledge(request, flags),
        }
    }

    /// Acknowledges a request that has no reply of its own, where that was asked for.
    fn acknowledge(&self, request: u32, flags: u32) -> io::Result<()> {
        if flags & NEED_REPLY != 0 {
            self.reply(request, &0u64.to_ne_bytes())?;
        }
        Ok(())
    }

    fn reply(&self, request: u32, payload: &[u8]) -> io::Result<()> {
        let bytes = wire::message(request, VERSION | REPLY, payload);
        let mut sent = 0;
        while sent < bytes.len() {
            let piece = [IoSlice::new(&bytes[sent..])];
            sent += scm::send(self.socket.as_fd(), &piece, &[], Wait::Block)?;
        }
        Ok(())
    }
}

/// The reply of GET_SHMEM_CONFIG: two regions with a gap between their ids.
fn shmem_config() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2056);
    bytes.extend_from_slice(&2u32.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    for shmid in 0..=255u8 {
        let size = match shmid {
            0 => REGION,
            SECOND_SHMID => SECOND_REGION,
            _ => 0,
        };
        bytes.extend_from_slice(&size.to_ne_bytes());
    }
    bytes
}
