//! The command line's entry; everything behind it is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use jail::NotingAllocator;

// Lets the exit report of a device process tell the lack of memory from other aborts.
#[global_allocator]
static ALLOCATOR: NotingAllocator = NotingAllocator;

fn main() -> ExitCode {
    portcullis::cli::main()
}
