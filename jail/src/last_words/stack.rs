//! A signal stack with room for one handler on top of another.
//!
//! The standard library's handler of memory faults, which finds a stack overflow and aborts, runs on a signal stack of its own, and the
//! handler of SIGABRT then on the same one. The standard library makes it as large as one handler needs: 8 KiB, or what the processor's
//! registers take. Two sets of registers leave nothing of that on a processor with wide ones, and the last words would be lost.

use std::ffi::c_void;
use std::io;
use std::ptr;

use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use rustix::mm::mmap_anonymous;
use rustix::mm::munmap;
use rustix::param::linux_minsigstksz;
use rustix::param::page_size;

/// Bytes for what the two handlers do, without the registers that the kernel puts there for each.
const HANDLERS: usize = 32 << 10;

/// The signal stack of a thread, with a guard page below; it is taken back on drop, which must happen on that thread.
#[derive(Debug)]
pub(super) struct SignalStack {
    _memory: Memory,
}

impl SignalStack {
    /// Makes the calling thread use a new signal stack, in place of what it had.
    pub(super) fn install() -> io::Result<Self> {
        let registers = linux_minsigstksz().max(libc::MINSIGSTKSZ);
        let len = (HANDLERS + 2 * registers).next_multiple_of(page_size());
        let memory = Memory::new(page_size() + len)?;
        let bottom = memory.start.wrapping_byte_add(page_size());
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // MAP_FIXED in place of mprotect, which the policies do not have.
        // SAFETY: the range is the upper part of the one that was just mapped, which nobody else knows.
        unsafe { mmap_anonymous(bottom, len, access, MapFlags::PRIVATE | MapFlags::FIXED) }?;
        set(&libc::stack_t {
            ss_sp: bottom,
            ss_flags: 0,
            ss_size: len,
        })?;
        Ok(Self { _memory: memory })
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // It fails in a handler on that stack, where nothing is dropped.
        let _disabled = set(&libc::stack_t {
            ss_sp: ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        });
    }
}

/// Address space without access.
#[derive(Debug)]
struct Memory {
    start: *mut c_void,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> io::Result<Self> {
        let access = ProtFlags::empty();
        // SAFETY: the kernel chooses an address where nothing is.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
        Ok(Self { start, len })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `new`, and nobody uses it any more.
        let _never_fails = unsafe { munmap(self.start, self.len) };
    }
}

fn set(stack: &libc::stack_t) -> io::Result<()> {
    // SAFETY: `stack` names no memory or memory that stays until the thread has no signal stack any more; what it had is not asked for.
    match unsafe { libc::sigaltstack(stack, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::mem;
    use std::thread;

    use super::*;

    fn current() -> libc::stack_t {
        // SAFETY: all-zero bytes are a valid `stack_t`, which the call fills in.
        let mut stack: libc::stack_t = unsafe { mem::zeroed() };
        // SAFETY: `stack` lives over the call, which changes nothing else.
        let result = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
        assert_eq!(result, 0);
        stack
    }

    #[test]
    fn stack_has_room_for_two_handlers_and_goes_again() {
        let thread = thread::spawn(|| {
            let stack = SignalStack::install().expect("there is memory");
            let registers = linux_minsigstksz();
            assert!(current().ss_size >= (32 << 10) + 2 * registers);
            assert_eq!(current().ss_flags, 0);
            drop(stack);
            assert_eq!(current().ss_flags, libc::SS_DISABLE);
        });
        thread.join().expect("it is so");
    }
}
