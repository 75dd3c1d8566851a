//! Files behind which there may be a process that does not answer.
//!
//! A file in a user file system (FUSE) stalls whoever touches it for as long as its server likes, and not only readers: to
//! close it waits for the server to flush it, and to unmap a page that was written waits with the address space locked.
//! So it must not even be mapped, and it can't be asked for its file system without the same risk.

use std::fs::read_to_string;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::Statx;
use rustix::fs::StatxFlags;
use rustix::fs::fcntl_get_seals;

use super::Device;
use super::device;
use super::status;

/// `STATX_MNT_ID_UNIQUE`, since Linux 6.8: a mount's number that never means another mount.
pub(super) const MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// File systems without a block device whose code is all in the kernel.
const IN_KERNEL: [&str; 7] = [
    "bcachefs", "btrfs", "overlay", "ramfs", "rootfs", "tmpfs", "zfs",
];

/// Whether an access to `file` may wait for a process: `true` unless the file is known to be on a block device (which
/// takes root to mount), in memory, or in a file system of [`IN_KERNEL`] that is mounted where this process sees it.
///
/// `known` is what `statx` says with [`MOUNT`].
pub(super) fn of_file(file: BorrowedFd<'_>, known: &Statx) -> bool {
    let is_on_block_device = known.stx_dev_major != 0;
    let is_in_memory = || fcntl_get_seals(file).is_ok();
    !is_on_block_device && !is_in_memory() && !is_in_kernel(file, known)
}

fn is_in_kernel(file: BorrowedFd<'_>, known: &Statx) -> bool {
    /// The mount that a file was found on last; no mount has the number 0.
    static IN_KERNEL_MOUNT: AtomicU64 = AtomicU64::new(0);

    let has_unique_number = known.stx_mask & MOUNT.bits() != 0;
    if has_unique_number && known.stx_mnt_id == IN_KERNEL_MOUNT.load(Relaxed) {
        return true;
    }
    // The table of mounts has the other, shorter number.
    let Ok(mount) = status(file, StatxFlags::MNT_ID) else {
        return false;
    };
    let Ok(table) = read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    let is_in_kernel = file_system(&table, mount.stx_mnt_id, device(known))
        .is_some_and(|name| IN_KERNEL.contains(&name));
    if is_in_kernel && has_unique_number {
        IN_KERNEL_MOUNT.store(known.stx_mnt_id, Relaxed);
    }
    is_in_kernel
}

/// Finds in the table of mounts which file system a file is in: by its mount or, since the sender of a descriptor can
/// have another table than we, by its device.
fn file_system(table: &str, mount: u64, (major, minor): Device) -> Option<&str> {
    let (mount, device) = (mount.to_string(), format!("{major}:{minor}"));
    let matches = |line: &&str| {
        let mut fields = line.split(' ');
        fields.next() == Some(&mount) || fields.nth(1) == Some(&device)
    };
    let line = table.lines().find(matches)?;
    // A lone hyphen ends the optional fields; spaces within a field are escaped.
    let (_, source) = line.split_once(" - ")?;
    source.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
24 21 0:22 / /proc rw,nosuid master:2 - proc proc rw
71 45 0:41 / /tmp/a\\040-\\040b rw,relatime - overlay o rw,lowerdir=/l
72 45 0:50 /sub /home rw - btrfs /dev/vdb rw
90 45 0:60 / /mnt rw shared:9 master:3 - fuse.sshfs host rw
";

    #[track_caller]
    fn check(mount: u64, device: Device, expected: Option<&str>) {
        assert_eq!(file_system(TABLE, mount, device), expected);
    }

    #[test]
    fn file_system_is_found_by_mount() {
        check(71, (0, 41), Some("overlay"));
        check(72, (0, 51), Some("btrfs"));
        check(90, (0, 60), Some("fuse.sshfs"));
    }

    #[test]
    fn file_system_is_found_by_device_where_the_mount_is_not_ours() {
        check(500, (0, 41), Some("overlay"));
    }

    #[test]
    fn mount_of_another_table_is_not_found() {
        check(500, (0, 77), None);
        check(2, (4, 0), None);
    }
}
