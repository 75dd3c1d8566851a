//! An empty root that nothing can be written to.

use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::FsMountFlags;
use rustix::mount::FsOpenFlags;
use rustix::mount::MountAttrFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::MoveMountFlags;
use rustix::mount::UnmountFlags;
use rustix::mount::fsconfig_create;
use rustix::mount::fsconfig_set_flag;
use rustix::mount::fsconfig_set_string;
use rustix::mount::fsmount;
use rustix::mount::fsopen;
use rustix::mount::mount_change;
use rustix::mount::move_mount;
use rustix::mount::unmount;
use rustix::process::chdir;
use rustix::process::fchdir;
use rustix::process::pivot_root;

use super::step::At;
use super::step::Step;
use super::step::StepError;

/// Replaces all that the process sees of the file system by one empty, read-only directory.
///
/// No directory of the old root is needed for it: the new one is mounted over `/`, becomes the root, and the old one goes.
pub(super) fn replace() -> Result<(), StepError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(Path::new("/"), private).at(Step::PrivateMounts)?;

    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).at(Step::EmptyRoot)?;
    for (key, value) in [("size", "4096"), ("nr_inodes", "1"), ("mode", "0555")] {
        fsconfig_set_string(&tmpfs, key, value).at(Step::EmptyRoot)?;
    }
    fsconfig_set_flag(&tmpfs, "ro").at(Step::EmptyRoot)?;
    fsconfig_create(&tmpfs).at(Step::EmptyRoot)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).at(Step::EmptyRoot)?;
    let from_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, "", CWD, "/", from_descriptor).at(Step::EmptyRoot)?;

    fchdir(&root).at(Step::PivotRoot)?;
    pivot_root(".", ".").at(Step::PivotRoot)?;
    // The old root now lies over the new one, at the same place.
    unmount(".", UnmountFlags::DETACH).at(Step::OldRoot)?;
    chdir("/").at(Step::OldRoot)
}
