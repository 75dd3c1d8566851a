//! Looks at the jail from inside: what the steps made is really so.

use std::fs;
use std::io;

use rustix::fs::StatVfsMountFlags;
use rustix::fs::statvfs;
use rustix::process::DumpableBehavior;
use rustix::process::Pid;
use rustix::process::dumpable_behavior;
use rustix::process::getpid;
use rustix::system::uname;
use rustix::thread::CapabilitySet;
use rustix::thread::capabilities;
use rustix::thread::capability_is_in_bounding_set;
use rustix::thread::no_new_privs;

use super::namespaces::HOST_NAME;
use super::privileges::write_execute_is_denied;
use super::step::At;
use super::step::Step;
use super::step::StepError;

/// The process is the first of its pid namespace, in a uts namespace of its own, and the bounding set is empty.
pub(super) fn namespaces() -> Result<(), StepError> {
    let step = Step::VerifyNamespaces;
    let in_bounding_set = |number: u32| {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // An error means that the kernel has no such capability.
        capability_is_in_bounding_set(capability) == Ok(true)
    };
    let problem = if getpid() != Pid::INIT {
        "the process is not number 1"
    } else if uname().nodename().to_bytes() != HOST_NAME {
        "the host has its old name"
    } else if (0..u64::BITS).any(in_bounding_set) {
        "the bounding set has capabilities"
    } else {
        return Ok(());
    };
    Err(step.failed(io::Error::other(problem)))
}

/// The root is empty and read-only, and there is no way up.
pub(super) fn root() -> Result<(), StepError> {
    let step = Step::VerifyRoot;
    for path in ["/", "/..", "."] {
        if fs::read_dir(path).at(step)?.next().is_some() {
            return Err(step.failed(io::Error::other(format!("{path} has entries"))));
        }
    }
    let flags = statvfs("/").at(step)?.f_flag;
    let wanted = StatVfsMountFlags::RDONLY
        | StatVfsMountFlags::NOSUID
        | StatVfsMountFlags::NODEV
        | StatVfsMountFlags::NOEXEC;
    if !flags.contains(wanted) {
        return Err(step.failed(io::Error::other(format!(
            "the root has the flags {flags:?}"
        ))));
    }
    match fs::create_dir("/test") {
        Ok(()) => Err(step.failed(io::Error::other("a directory could be made"))),
        Err(_) => Ok(()),
    }
}

/// No capability, no way to one, not dumpable.
pub(super) fn privileges() -> Result<(), StepError> {
    let step = Step::VerifyPrivileges;
    let sets = capabilities(None).at(step)?;
    let all = sets.effective | sets.permitted | sets.inheritable;
    let problem = if !all.is_empty() {
        "capabilities are left"
    } else if !no_new_privs().at(step)? {
        "no_new_privs is off"
    } else if dumpable_behavior().at(step)? != DumpableBehavior::NotDumpable {
        "the process is dumpable"
    } else if write_execute_is_denied() == Some(false) {
        "memory can become executable"
    } else {
        return Ok(());
    };
    Err(step.failed(io::Error::other(problem)))
}
