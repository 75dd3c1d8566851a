//! The device process as a real, jailed process, with a real mapping service and a scripted backend.
//!
//! The same program plays both sides: called as `… device …` it is the device process, otherwise it runs the tests. The
//! standard harness can't be used, since it starts threads before the device process could go into its jail.

mod bench;
mod confined;
mod life;
mod requests;
mod runner;
#[path = "../../src/testing.rs"]
mod testing;
mod whole;

use std::env;
use std::io;
use std::process::ExitCode;

use devices::device_process::DeviceArgs;
use devices::device_process::run;

#[global_allocator]
static ALLOCATOR: jail::NotingAllocator = jail::NotingAllocator;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "device").is_some() {
        let args = match DeviceArgs::parse(arguments) {
            Ok(args) => args,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        };
        // The log must work inside the jail, too.
        tracing_subscriber::fmt().with_writer(io::stderr).init();
        return ExitCode::from(u8::try_from(run(args)).unwrap_or(u8::MAX));
    }
    let arguments: Vec<_> = env::args().skip(1).collect();
    runner::main(
        &arguments,
        &[requests::TESTS, life::TESTS, confined::TESTS, whole::TESTS].concat(),
    )
}
