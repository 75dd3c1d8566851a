//! The system calls of the limits and of the driver, as bare as they can be: no checks beyond the return value, no allocation.
//!
//! The limits say what the kernel alone costs, so nothing here goes through `base`.

// UNSAFETY: a limit is the cost of the system calls themselves; a safe wrapper's cost would be counted into what everything
// else is compared with.
#![expect(unsafe_code, reason = "bare system calls are what is measured")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::ptr;

/// Room for one descriptor, aligned as a control message must be.
#[repr(C, align(8))]
struct Control([u8; 24]);

const CONTROL_BYTES: usize = 24;
// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(unsafe { libc::CMSG_SPACE(4) } as usize == CONTROL_BYTES);

fn header(vector: &mut libc::iovec, control: Option<&mut Control>) -> libc::msghdr {
    // SAFETY: a msghdr is a plain C structure; all zeros is an empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vector;
    header.msg_iovlen = 1;
    if let Some(control) = control {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES;
    }
    header
}

/// Sends `bytes` in one `sendmsg`, with `descriptor` on its first byte.
///
/// # Errors
/// The call's errno; a short write is an error, too.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send_number(
        socket,
        bytes,
        descriptor.map(|descriptor| descriptor.as_raw_fd()),
    )
}

/// Sends as [`send`] does, for callers that know a descriptor by its number only.
///
/// # Errors
/// The call's errno; a number that is not open is EBADF.
pub(super) fn send_number(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<RawFd>,
) -> io::Result<()> {
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; CONTROL_BYTES]);
    if let Some(descriptor) = descriptor {
        // The layout of a cmsghdr on 64-bit Linux: length u64, level i32, type i32, then the data.
        control.0[0..8].copy_from_slice(&20u64.to_ne_bytes());
        control.0[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        control.0[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
        control.0[16..20].copy_from_slice(&descriptor.to_ne_bytes());
    }
    let header = header(&mut vector, descriptor.is_some().then_some(&mut control));
    // SAFETY: header points at `vector` and `control`, which live until the call returns, and `vector` at `bytes`, which a
    // send only reads.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(sent) => Err(io::Error::other(format!(
            "sendmsg took {sent} of {} bytes",
            bytes.len()
        ))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receives into `buffer` in one `recvmsg`, with at most one descriptor. No bytes means that the peer is gone.
///
/// # Errors
/// The call's errno.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = Control([0; CONTROL_BYTES]);
    let mut header = header(&mut vector, Some(&mut control));
    // SAFETY: header points at `vector` and `control`, which live until the call returns, and `vector` at `buffer`, which is
    // borrowed mutably.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let Ok(received) = usize::try_from(received) else {
        return Err(io::Error::last_os_error());
    };
    let descriptor = (header.msg_controllen >= 20).then(|| {
        let mut number = [0; 4];
        number.copy_from_slice(&control.0[16..20]);
        // SAFETY: the kernel has just put a new descriptor of ours there: the peers of a limit send SCM_RIGHTS only, and
        // nobody else has seen the number.
        unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(number)) }
    });
    Ok((received, descriptor))
}

/// Receives what the peer of the request channel answers; no room for descriptors.
///
/// # Errors
/// The call's errno, or UnexpectedEof where the peer is gone.
pub(super) fn receive_bytes(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut header = header(&mut vector, None);
    // SAFETY: header points at `vector`, which lives until the call returns, and `vector` at `buffer`, borrowed mutably.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    match usize::try_from(received) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(received) => Ok(received),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// A reserved range of host addresses, never touched, given back on drop.
#[derive(Debug)]
pub(super) struct Range {
    /// Held as a number: the range is never read or written through it.
    address: usize,
    bytes: usize,
}

impl Range {
    /// Reserves `bytes` bytes of private memory that nobody may touch.
    ///
    /// # Errors
    /// The errno of `mmap`.
    pub(super) fn reserve(bytes: usize) -> io::Result<Range> {
        // SAFETY: a new range at an address of the kernel's choice touches no memory that is in use.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Range {
            address: address.expose_provenance(),
            bytes,
        })
    }

    /// Maps `bytes` of `file` at `offset` of the range, shared, for reading and writing.
    ///
    /// # Errors
    /// The errno of `mmap`. The driver's own numbers are not checked.
    pub(super) fn map(
        &self,
        offset: u64,
        bytes: u64,
        file: BorrowedFd<'_>,
        file_offset: u64,
    ) -> io::Result<()> {
        self.map_number(offset, bytes, file.as_raw_fd(), file_offset)
    }

    /// Maps as [`Range::map`] does, for callers that know a descriptor by its number only.
    ///
    /// # Errors
    /// The errno of `mmap`; a number that is not open is EBADF.
    pub(super) fn map_number(
        &self,
        offset: u64,
        bytes: u64,
        file: RawFd,
        file_offset: u64,
    ) -> io::Result<()> {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        self.replace(offset, bytes, protection, flags, file, file_offset)
    }

    /// Puts private memory that nobody may touch back at `offset` of the range.
    ///
    /// # Errors
    /// The errno of `mmap`.
    pub(super) fn unmap(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        self.replace(offset, bytes, libc::PROT_NONE, flags, -1, 0)
    }

    fn replace(
        &self,
        offset: u64,
        bytes: u64,
        protection: i32,
        flags: i32,
        file: i32,
        file_offset: u64,
    ) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        assert!(
            start
                .checked_add(length)
                .is_some_and(|end| end <= self.bytes),
            "the driver asks for {offset:#x}+{bytes:#x} of {:#x}",
            self.bytes
        );
        let file_offset = i64::try_from(file_offset).map_err(io::Error::other)?;
        let address = ptr::with_exposed_provenance_mut(self.address + start);
        // SAFETY: start + length lies inside the range (asserted above), which this object owns and nothing refers to.
        let mapped = unsafe { libc::mmap(address, length, protection, flags, file, file_offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let address = ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the range is this object's own, nothing refers into it, and it is given back once.
        let status = unsafe { libc::munmap(address, self.bytes) };
        debug_assert_eq!(status, 0, "munmap of a range that was mapped");
    }
}

/// Pins every thread of the process `pid` to `cpu`.
///
/// # Errors
/// The errno of `sched_setaffinity`, or of listing the threads.
pub(super) fn place_process(pid: u32, cpu: usize) -> io::Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let thread = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| io::Error::other("a thread without a number"))?;
        pin(thread, cpu)?;
    }
    Ok(())
}

/// Pins the thread `thread`, or the calling one for 0, to `cpu`.
fn pin(thread: libc::pid_t, cpu: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t is a plain C structure; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET checks nothing, and `cpu` is 0 or 1 of the 1024 that a set holds.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` lives until the call returns and is as long as it says.
    let status = unsafe { libc::sched_setaffinity(thread, size_of_val(&set), &raw const set) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Pins this thread (and those that it starts) to `cpu`, and gives it the lowest realtime priorities' 10 where `realtime`.
///
/// # Errors
/// The errno of `sched_setaffinity` or `sched_setscheduler`: the second needs root or CAP_SYS_NICE.
pub(super) fn place(cpu: Option<usize>, realtime: bool) -> io::Result<()> {
    if let Some(cpu) = cpu {
        pin(0, cpu)?;
    }
    if realtime {
        let parameters = libc::sched_param { sched_priority: 10 };
        // SAFETY: `parameters` lives until the call returns.
        let status =
            unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
