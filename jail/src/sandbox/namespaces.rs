//! New namespaces, and the process inside of them.
// UNSAFETY: clone(2) duplicates the process; safe wrappers can't make the child a sibling.
#![expect(unsafe_code, reason = "calls clone(2) and unshare(2)")]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::process;

use rustix::process::Gid;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Uid;
use rustix::process::WaitOptions;
use rustix::process::getgid;
use rustix::process::getpid;
use rustix::process::getuid;
use rustix::process::pidfd_open;
use rustix::process::waitpid;
use rustix::system::sethostname;
use rustix::thread::UnshareFlags;
use rustix::thread::unshare_unsafe;

use super::exit_now;
use super::parent::Parent;
use super::privileges;
use super::step::At;
use super::step::Step;
use super::step::StepError;
use crate::last_words;
use crate::record::NAMESPACES;
use crate::record::Record;

/// What the host is called inside.
pub(super) const HOST_NAME: &[u8] = b"jail";

/// Makes all namespaces and returns in the process that is 1 in the new pid namespace. Its mounts are still those of the old one.
pub(super) fn enter() -> Result<Parent, StepError> {
    privileges::become_nobody()?;
    let (uid, gid) = (getuid(), getgid());
    unshare(UnshareFlags::NEWUSER, Step::UserNamespace)?;
    write_id_maps(uid, gid).at(Step::IdMaps)?;
    for (flag, step) in [
        (UnshareFlags::NEWNS, Step::MountNamespace),
        (UnshareFlags::NEWNET, Step::NetNamespace),
        (UnshareFlags::NEWIPC, Step::IpcNamespace),
        (UnshareFlags::NEWUTS, Step::UtsNamespace),
        (UnshareFlags::NEWCGROUP, Step::CgroupNamespace),
        (UnshareFlags::NEWPID, Step::PidNamespace),
    ] {
        unshare(flag, step)?;
    }
    sethostname(HOST_NAME).at(Step::HostName)?;
    let parent = if last_words::report().is_some() {
        go_on_as_sibling()?
    } else {
        go_on_as_child()?
    };
    // The old /proc is still there; later nobody but root can look, since the process is not dumpable.
    last_words::say(&Record::Namespaces(numbers_of_this_process()));
    Ok(parent)
}

/// The namespaces of this process; 0 for one that the kernel does not show.
pub(crate) fn numbers_of_this_process() -> [u64; NAMESPACES.len()] {
    NAMESPACES.map(|name| {
        let metadata = fs::metadata(format!("/proc/self/ns/{name}"));
        metadata.map_or(0, |metadata| metadata.ino())
    })
}

fn unshare(flag: UnshareFlags, step: Step) -> Result<(), StepError> {
    // SAFETY: none of the flags that this module passes unshares the descriptor table.
    unsafe { unshare_unsafe(flag) }.at(step)
}

/// Maps the process's own user and group to themselves, and nothing else.
fn write_id_maps(uid: Uid, gid: Gid) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
}

/// The child becomes a child of this process's parent, which learns its number; this process ends.
fn go_on_as_sibling() -> Result<Parent, StepError> {
    match clone(libc::CLONE_PARENT).at(Step::Clone)? {
        None => Ok(Parent::of_this_process()),
        Some(pid) => {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            last_words::say(&Record::Process { pid });
            exit_now(0)
        }
    }
}

/// Nobody spawned this process in order to be told of another one, so it stays and ends as the child ends.
fn go_on_as_child() -> Result<Parent, StepError> {
    let this_process = pidfd_open(getpid(), PidfdFlags::empty()).at(Step::ParentDeath)?;
    match clone(libc::SIGCHLD).at(Step::Clone)? {
        None => Ok(Parent::process(this_process)),
        Some(pid) => {
            let status = waitpid(Some(pid), WaitOptions::empty()).at(Step::Clone)?;
            let code = match status {
                Some((_, status)) => status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|signal| 128 + signal)),
                None => None,
            };
            exit_now(code.unwrap_or(1))
        }
    }
}

/// `fork` with flags: `None` in the child.
fn clone(flags: libc::c_int) -> io::Result<Option<Pid>> {
    debug_assert_eq!(
        process::id(),
        rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs()
    );
    // SAFETY: without CLONE_VM the child works on a copy of the memory, on the same stack addresses, so no stack is passed. The process
    // has one thread (a user namespace can't be unshared otherwise), so that no lock is held by a thread that the child lacks. All other
    // arguments are unused with these flags.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(result) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(Pid::from_raw(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}
