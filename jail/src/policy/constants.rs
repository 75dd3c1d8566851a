//! The constants and errno names that a policy may use.
//!
//! Constants differ between header versions, so the compiler has its own table. It holds what makes sense in the policy of a device, from
//! the headers that minijail reads too, with values that x86_64, aarch64 and riscv64 share. Anything else is written as a number.

/// The value of constant `name`.
pub(super) fn constant(name: &str) -> Option<u64> {
    CONSTANTS
        .binary_search_by_key(&name, |(known, _)| known)
        .ok()
        .map(|index| CONSTANTS[index].1)
}

/// The number of errno `name`.
pub(super) fn errno(name: &str) -> Option<u16> {
    ERRNOS
        .binary_search_by_key(&name, |(known, _)| known)
        .ok()
        .map(|index| ERRNOS[index].1)
}

const CONSTANTS: &[(&str, u64)] = &[
    ("AF_INET", 2),
    ("AF_INET6", 10),
    ("AF_NETLINK", 16),
    ("AF_UNIX", 1),
    ("CLONE_CHILD_CLEARTID", 0x0020_0000),
    ("CLONE_CHILD_SETTID", 0x0100_0000),
    ("CLONE_DETACHED", 0x0040_0000),
    ("CLONE_FILES", 0x0400),
    ("CLONE_FS", 0x0200),
    ("CLONE_NEWUSER", 0x1000_0000),
    ("CLONE_PARENT_SETTID", 0x0010_0000),
    ("CLONE_SETTLS", 0x0008_0000),
    ("CLONE_SIGHAND", 0x0800),
    ("CLONE_SYSVSEM", 0x0004_0000),
    ("CLONE_THREAD", 0x0001_0000),
    ("CLONE_VFORK", 0x4000),
    ("CLONE_VM", 0x0100),
    ("FD_CLOEXEC", 1),
    ("F_DUPFD", 0),
    ("F_DUPFD_CLOEXEC", 1030),
    ("F_GETFD", 1),
    ("F_GETFL", 3),
    ("F_GET_SEALS", 1034),
    ("F_SETFD", 2),
    ("F_SETFL", 4),
    ("MADV_DONTNEED", 4),
    ("MADV_FREE", 8),
    ("MAP_32BIT", 0x40),
    ("MAP_ANONYMOUS", 0x20),
    ("MAP_FIXED", 0x10),
    ("MAP_FIXED_NOREPLACE", 0x0010_0000),
    ("MAP_GROWSDOWN", 0x0100),
    ("MAP_HUGETLB", 0x0004_0000),
    ("MAP_LOCKED", 0x2000),
    ("MAP_NORESERVE", 0x4000),
    ("MAP_POPULATE", 0x8000),
    ("MAP_PRIVATE", 2),
    ("MAP_SHARED", 1),
    ("MAP_STACK", 0x0002_0000),
    ("MREMAP_MAYMOVE", 1),
    ("O_ACCMODE", 3),
    ("O_CLOEXEC", 0x0008_0000),
    ("O_NONBLOCK", 0x0800),
    ("O_RDONLY", 0),
    ("O_RDWR", 2),
    ("O_WRONLY", 1),
    ("PROT_EXEC", 4),
    ("PROT_NONE", 0),
    ("PROT_READ", 1),
    ("PROT_WRITE", 2),
    ("PR_SET_NAME", 15),
    ("PR_SET_PDEATHSIG", 1),
    ("PR_SET_VMA", 0x5356_4d41),
    ("SIGABRT", 6),
    ("SIGKILL", 9),
    ("SIGSEGV", 11),
    ("SIGSYS", 31),
    ("SIGTERM", 15),
    ("SOCK_CLOEXEC", 0x0008_0000),
    ("SOCK_NONBLOCK", 0x0800),
    ("SOCK_SEQPACKET", 5),
    ("SOCK_STREAM", 1),
    ("SOL_SOCKET", 1),
    ("SO_PEERCRED", 17),
    ("SO_TYPE", 3),
];

const ERRNOS: &[(&str, u16)] = &[
    ("EACCES", 13),
    ("EAGAIN", 11),
    ("EBADF", 9),
    ("EBUSY", 16),
    ("EEXIST", 17),
    ("EFAULT", 14),
    ("EINVAL", 22),
    ("EIO", 5),
    ("EMFILE", 24),
    ("ENFILE", 23),
    ("ENODEV", 19),
    ("ENOENT", 2),
    ("ENOMEM", 12),
    ("ENOSPC", 28),
    ("ENOSYS", 38),
    ("ENOTDIR", 20),
    ("ENOTSUP", 95),
    ("ENOTTY", 25),
    ("ENXIO", 6),
    ("EOPNOTSUPP", 95),
    ("EPERM", 1),
    ("EPIPE", 32),
    ("EROFS", 30),
    ("ESRCH", 3),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, value: i32) {
        let expected = u64::try_from(value).expect("constants are not negative");
        assert_eq!(constant(name), Some(expected), "{name}");
    }

    #[test]
    fn tables_are_sorted_without_duplicates() {
        assert!(CONSTANTS.is_sorted_by(|a, b| a.0 < b.0));
        assert!(ERRNOS.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn constants_have_the_values_of_the_c_library() {
        check("AF_UNIX", libc::AF_UNIX);
        check("AF_NETLINK", libc::AF_NETLINK);
        check("CLONE_VM", libc::CLONE_VM);
        check("CLONE_THREAD", libc::CLONE_THREAD);
        check("CLONE_CHILD_CLEARTID", libc::CLONE_CHILD_CLEARTID);
        check("CLONE_PARENT_SETTID", libc::CLONE_PARENT_SETTID);
        check("CLONE_SETTLS", libc::CLONE_SETTLS);
        check("CLONE_SYSVSEM", libc::CLONE_SYSVSEM);
        check("CLONE_NEWUSER", libc::CLONE_NEWUSER);
        check("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC);
        check("F_GET_SEALS", libc::F_GET_SEALS);
        check("F_GETFL", libc::F_GETFL);
        check("F_SETFL", libc::F_SETFL);
        check("MADV_DONTNEED", libc::MADV_DONTNEED);
        check("MADV_FREE", libc::MADV_FREE);
        check("MAP_ANONYMOUS", libc::MAP_ANONYMOUS);
        check("MAP_FIXED", libc::MAP_FIXED);
        check("MAP_FIXED_NOREPLACE", libc::MAP_FIXED_NOREPLACE);
        check("MAP_LOCKED", libc::MAP_LOCKED);
        check("MAP_NORESERVE", libc::MAP_NORESERVE);
        check("MAP_POPULATE", libc::MAP_POPULATE);
        check("MAP_STACK", libc::MAP_STACK);
        check("MAP_HUGETLB", libc::MAP_HUGETLB);
        check("O_CLOEXEC", libc::O_CLOEXEC);
        check("O_NONBLOCK", libc::O_NONBLOCK);
        check("PROT_EXEC", libc::PROT_EXEC);
        check("PROT_READ", libc::PROT_READ);
        check("PROT_WRITE", libc::PROT_WRITE);
        check("PR_SET_NAME", libc::PR_SET_NAME);
        check("PR_SET_PDEATHSIG", libc::PR_SET_PDEATHSIG);
        check("PR_SET_VMA", libc::PR_SET_VMA);
        check("SIGABRT", libc::SIGABRT);
        check("SIGSYS", libc::SIGSYS);
        check("SOCK_SEQPACKET", libc::SOCK_SEQPACKET);
        check("SO_TYPE", libc::SO_TYPE);
        check("SO_PEERCRED", libc::SO_PEERCRED);
    }

    #[test]
    fn errnos_have_the_values_of_the_c_library() {
        let check =
            |name, value: i32| assert_eq!(errno(name).map(i32::from), Some(value), "{name}");
        check("ENOSYS", libc::ENOSYS);
        check("EPERM", libc::EPERM);
        check("EACCES", libc::EACCES);
        check("ENOENT", libc::ENOENT);
        check("EINVAL", libc::EINVAL);
        check("ENOTSUP", libc::ENOTSUP);
        check("EOPNOTSUPP", libc::EOPNOTSUPP);
        check("EROFS", libc::EROFS);
        check("EPIPE", libc::EPIPE);
    }

    #[test]
    fn unknown_names_are_none() {
        assert_eq!(constant("NO_SUCH_CONSTANT"), None);
        assert_eq!(errno("ENOSUCH"), None);
    }
}
