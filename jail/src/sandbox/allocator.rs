//! The C library's allocator, kept to calls that a policy can have.
// UNSAFETY: mallopt(3) has no safe wrapper.
#![expect(unsafe_code, reason = "calls mallopt(3)")]

/// Makes all threads share one arena.
///
/// When a further arena shrinks, glibc opens `/proc/sys/vm/overcommit_memory`, which would be a violation at an unforeseeable moment; and
/// such arenas grow by `mprotect`, which no policy needs otherwise. A jailed process does not allocate where it has to be fast.
pub(super) fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes numbers, and there is one thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
