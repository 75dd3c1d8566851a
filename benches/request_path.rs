//! The benchmark of the request path at full length: `portcullis bench --full`, whatever else is asked for behind it.

use std::process::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Cargo says `--bench` to every benchmark.
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let status = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["bench", "--full"])
        .args(arguments)
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("request_path: {error}");
            ExitCode::FAILURE
        }
    }
}
