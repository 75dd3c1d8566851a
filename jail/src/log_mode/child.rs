//! The jailed side: puts the filter on and sends the listener to the parent.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::sendmsg;
use seccompiler::sock_filter;

use crate::arch::Arch;
use crate::filter;
use crate::filter::Mode;
use crate::sandbox::Step;
use crate::sandbox::StepError;

/// Puts `program` on all threads and sends its listener over `socket`.
pub(crate) fn install(program: &[sock_filter], socket: BorrowedFd<'_>) -> Result<(), StepError> {
    // Until the parent has the listener nobody answers, so the call that sends it must pass whatever the policy says.
    let program = [&always_send_on(socket), program].concat();
    let listener = filter::install(&program, Mode::AllThreadsWithListener)
        .map_err(|error| Step::Seccomp.failed(error))?;
    if let Some(listener) = &listener {
        send(socket, listener.as_fd()).map_err(|error| Step::Listener.failed(error))?;
    }
    // The calls that close the two descriptors are under the filter already; the parent answers for them.
    Ok(())
}

/// Instructions in front of a program that let `sendmsg` on `socket` pass.
fn always_send_on(socket: BorrowedFd<'_>) -> [sock_filter; 5] {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NUMBER: u32 = 0;
    const ARGUMENT_0: u32 = 16;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let sendmsg = Arch::NATIVE
        .syscall_by_name("sendmsg")
        .map_or(u32::MAX, |syscall| syscall.number);
    [
        instruction(LOAD, 0, 0, NUMBER),
        instruction(JUMP_IF_EQUAL, 0, 3, sendmsg),
        instruction(LOAD, 0, 0, ARGUMENT_0),
        instruction(JUMP_IF_EQUAL, 0, 1, socket.as_raw_fd().unsigned_abs()),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn send(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
