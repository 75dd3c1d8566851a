//! `portcullis device`: the device process. Its arguments are read where they are written, in `devices`.

use std::ffi::OsString;
use std::process::ExitCode;

use devices::device_process;
use devices::device_process::DeviceArgs;
use devices::exit::Exit;

use super::complain;
use super::log;
use super::output::print;

/// Runs the device process with the arguments behind `device`.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h")
    {
        // Nothing is left to do if standard output is closed.
        let _ = print(&format!("{}\n", DeviceArgs::USAGE));
        return ExitCode::SUCCESS;
    }
    let code = match DeviceArgs::parse(arguments) {
        Ok(arguments) => {
            log::start_device(arguments.log);
            device_process::run(arguments)
        }
        Err(error) => {
            complain(&error.to_string());
            Exit::Usage.code()
        }
    };
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}
