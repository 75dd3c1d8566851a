//! Tests of the jail with real jailed processes.
//!
//! The same program plays both sides: started by a test it is the jailed process (`child`), otherwise it runs the tests (`runner`). The
//! test harness of the standard library can't be used, since it starts threads before a test could go into its jail.

mod attempts;
mod before_main;
mod child;
mod ends;
mod inside;
mod probes;
mod runner;
mod spawned;
mod usage;

use std::env;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: jail::NotingAllocator = jail::NotingAllocator;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == child::MARK) {
        return child::main(&arguments);
    }
    if arguments == [spawned::PARENT] {
        return spawned::parent();
    }
    if arguments == [spawned::FORWARDER] {
        return spawned::forwarder();
    }
    let tests = [
        attempts::TESTS,
        before_main::TESTS,
        ends::TESTS,
        inside::TESTS,
        probes::TESTS,
        spawned::TESTS,
        usage::TESTS,
    ];
    let tests = tests.concat();
    runner::main(&arguments, &tests)
}
