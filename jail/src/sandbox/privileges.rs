//! Giving up every privilege, for good.
// UNSAFETY: PR_SET_MDWE has no safe wrapper.
#![expect(unsafe_code, reason = "calls prctl(2)")]

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::process::Gid;
use rustix::process::Uid;
use rustix::process::geteuid;
use rustix::process::set_dumpable_behavior;
use rustix::thread::CapabilitiesSecureBits;
use rustix::thread::CapabilitySet;
use rustix::thread::CapabilitySets;
use rustix::thread::capabilities;
use rustix::thread::clear_ambient_capability_set;
use rustix::thread::remove_capability_from_bounding_set;
use rustix::thread::set_capabilities;
use rustix::thread::set_capabilities_secure_bits;
use rustix::thread::set_no_new_privs;
use rustix::thread::set_thread_groups;
use rustix::thread::set_thread_res_gid;
use rustix::thread::set_thread_res_uid;

use super::step::At;
use super::step::Step;
use super::step::StepError;

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

/// `PR_MDWE_REFUSE_EXEC_GAIN`: no mapping becomes executable that was not.
const REFUSE_EXEC_GAIN: libc::c_ulong = 1;

/// Root becomes nobody. Others stay who they are, and so does the root of a user namespace that knows no nobody: outside of it, it is an
/// ordinary user.
pub(super) fn become_nobody() -> Result<(), StepError> {
    if !geteuid().is_root() || !has_nobody() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    // The process has one thread, so the calls that change the thread change the process.
    set_thread_groups(&[]).at(Step::BecomeNobody)?;
    set_thread_res_gid(gid, gid, gid).at(Step::BecomeNobody)?;
    set_thread_res_uid(uid, uid, uid).at(Step::BecomeNobody)?;
    // The change made the process's files in /proc root's; it has to write its id maps there.
    set_dumpable_behavior(DumpableBehavior::Dumpable).at(Step::BecomeNobody)
}

/// False if this user namespace has no user or group 65534.
fn has_nobody() -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        // Where there is no map to be read, the attempt to become nobody shows it.
        .all(|map| fs::read_to_string(map).map_or(true, |map| maps_nobody(&map)))
}

/// True if `map` (`id_map` in user_namespaces(7): first inside, first outside, count) has an id 65534 inside.
fn maps_nobody(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => {
                NOBODY.checked_sub(first).is_some_and(|n| n < count)
            }
            _ => false,
        }
    })
}

/// Empties the bounding set, if the process may.
pub(super) fn drop_bounding_set() -> Result<(), StepError> {
    let sets = capabilities(None).at(Step::BoundingSet)?;
    if !sets.effective.contains(CapabilitySet::SETPCAP) {
        // Without CAP_SETPCAP the set can't be changed; it only matters to an execve that gains privileges, which no_new_privs forbids.
        return Ok(());
    }
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel has no more capabilities.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(Step::BoundingSet.failed(errno)),
        }
    }
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).at(Step::SecureBits)
}

/// Drops all capabilities, and all ways to gain any.
pub(super) fn drop_all() -> Result<(), StepError> {
    drop_bounding_set()?;
    clear_ambient_capability_set().at(Step::Capabilities)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).at(Step::Capabilities)?;
    set_no_new_privs(true).at(Step::NoNewPrivileges)?;
    deny_write_execute().at(Step::DenyWriteExecute)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::NotDumpable)
}

/// No memory is ever both writable and executable, or becomes executable. Kernels before 6.3 do not know the call; the policy forbids
/// executable mappings as well.
fn deny_write_execute() -> io::Result<()> {
    // SAFETY: the call takes numbers. It forbids later mappings; the program makes no executable ones.
    let result = unsafe { libc::prctl(libc::PR_SET_MDWE, REFUSE_EXEC_GAIN, 0_u64, 0_u64, 0_u64) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        error => Err(error),
    }
}

/// True if no mapping can become executable, `None` if the kernel does not know that.
pub(super) fn write_execute_is_denied() -> Option<bool> {
    // SAFETY: the call takes numbers and returns one.
    let result = unsafe { libc::prctl(libc::PR_GET_MDWE, 0_u64, 0_u64, 0_u64, 0_u64) };
    (result >= 0).then_some(result == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_nobody_looks_at_all_ranges() {
        assert!(maps_nobody("         0          0 4294967295\n"));
        assert!(maps_nobody("0 1000 1\n65534 1001 1\n"));
        assert!(maps_nobody("0 100000 65535\n"));
        assert!(!maps_nobody("0 100000 65534\n"));
        assert!(!maps_nobody("0 1000 1\n"));
        assert!(!maps_nobody("65535 1 5\n"));
        assert!(!maps_nobody(""));
    }
}
