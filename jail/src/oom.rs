//! A global allocator that notes that memory ran out, so that the exit report can tell it from another abort.
// UNSAFETY: `GlobalAlloc` is an unsafe trait; all methods pass their duties on to the system's allocator.
#![expect(unsafe_code, reason = "implements GlobalAlloc")]

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// The size of the last allocation that failed, 0 if none did.
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// The size of the last allocation that failed.
pub(crate) fn failed_allocation() -> Option<usize> {
    match FAILED.load(Ordering::Relaxed) {
        0 => None,
        size => Some(size),
    }
}

/// The system's allocator, with a note of the last allocation that failed.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: jail::NotingAllocator = jail::NotingAllocator;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NotingAllocator;

fn noted(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        FAILED.store(size, Ordering::Relaxed);
    }
    pointer
}

// SAFETY: every method is the system allocator's, with the same arguments and the same result.
unsafe impl GlobalAlloc for NotingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's duties are those of the callee.
        noted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are those of the callee.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's duties are those of the callee.
        noted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's duties are those of the callee.
        noted(
            unsafe { System.realloc(pointer, layout, new_size) },
            new_size,
        )
    }
}
