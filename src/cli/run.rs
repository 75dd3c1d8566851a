//! `portcullis run`: serves one backend, and tells what happens.

use std::io::ErrorKind;

use anyhow::anyhow;
use base::SignalFd;
use devices::device_process::SandboxOptions;
use devices::shmem_config::ShmemRegion;
use jail::SandboxLevel;
use jail::Violation;

use super::args::run::GuestChoice;
use super::args::run::JailArguments;
use super::args::run::RestartChoice;
use super::args::run::RunArguments;
use super::args::run::SandboxChoice;
use super::args::run::SeccompChoice;
use super::event_printer::EventPrinter;
use super::failure::Failure;
use super::log;
use super::warn;
use crate::vmm;
use crate::vmm::config::Config;
use crate::vmm::config::DeviceOptions;
use crate::vmm::config::Guest;
use crate::vmm::config::Restart;

/// The longest name that a device can have.
const MAX_NAME: usize = 32;

/// Virtio device ids that have a name.
///
/// # Source
/// virtio 1.3, section 5; 63 is crosvm's.
const DEVICE_IDS: [(&str, &str); 5] = [
    ("16", "gpu"),
    ("26", "fs"),
    ("27", "pmem"),
    ("48", "media"),
    ("63", "wl"),
];

/// Runs `portcullis run`.
///
/// # Errors
/// The VMM could not start, with `--once` its device did not end well, or with `--strict` the backend broke rules.
pub fn run(arguments: &RunArguments, verbose: u8) -> Result<(), Failure> {
    let mut config = config(arguments)?;
    config.device.log = log::device_level(verbose);
    warn_of_weak(config.device.sandbox.level);
    if config.device.sandbox.violation == Violation::Log {
        warn("seccomp only logs: forbidden system calls are let through");
    }
    // Before any thread starts, so that all of them leave the signals alone.
    let signals = vmm::signals().map_err(Failure::new)?;
    serve(&config, signals, arguments.json)
}

fn serve(config: &Config, signals: SignalFd, json: bool) -> Result<(), Failure> {
    let mut printer = EventPrinter::start(json).map_err(Failure::new)?;
    vmm::run(config, signals, &mut printer).map_err(failure)
}

fn config(arguments: &RunArguments) -> Result<Config, Failure> {
    let name = device_name(&arguments.device_type)?;
    let mut device = DeviceOptions::new(&name);
    device.sandbox = sandbox(&arguments.jail);
    device.max_mappings = arguments.max_mappings;
    device.max_bytes = arguments.max_bytes.map(|size| size.0);
    device.require_seals = arguments.require_seals;
    device.populate = arguments.populate.0;
    device.offset_only_unmap = arguments.offset_only_unmap;
    device.strict = arguments.strict;
    device.legacy_shmem_bit = arguments.legacy_shmem_bit;
    device.regions = regions(arguments)?;
    Ok(Config {
        backend: arguments.backend.clone(),
        wait: arguments.wait,
        device,
        guest: guest(arguments.guest),
        memory: arguments.memory.0,
        holes: arguments.holes,
        control: arguments.control.clone(),
        restart: match arguments.restart {
            RestartChoice::Never => Restart::Never,
            RestartChoice::OnFailure => Restart::OnFailure,
        },
        once: arguments.once,
    })
}

/// The regions that were named, each id once.
fn regions(arguments: &RunArguments) -> Result<Vec<ShmemRegion>, Failure> {
    let mut regions: Vec<ShmemRegion> = arguments
        .region
        .iter()
        .map(|region| ShmemRegion {
            shmid: region.shmid,
            len: region.len,
        })
        .collect();
    regions.sort_by_key(|region| region.shmid);
    match regions
        .windows(2)
        .find(|pair| pair[0].shmid == pair[1].shmid)
    {
        Some(pair) => Err(
            Failure::usage(anyhow!("region {} is there twice", pair[0].shmid))
                .advise("name each --region once"),
        ),
        None => Ok(regions),
    }
}

/// The device's name from its type.
fn device_name(device_type: &str) -> Result<String, Failure> {
    if let Some((_, name)) = DEVICE_IDS.iter().find(|(id, _)| *id == device_type) {
        return Ok((*name).to_owned());
    }
    let is_name = device_type.len() <= MAX_NAME
        && !device_type.is_empty()
        && !device_type.starts_with('-')
        && device_type
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if !is_name {
        return Err(
            Failure::usage(anyhow!("'{device_type}' can't be a device type"))
                .advise("use fs, gpu, media, pmem, wl, or a word of letters, digits and dashes"),
        );
    }
    if device_type.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(format!("virtio-{device_type}"));
    }
    Ok(device_type.to_owned())
}

/// The jail that was asked for.
fn sandbox(arguments: &JailArguments) -> SandboxOptions {
    SandboxOptions {
        level: sandbox_level(arguments.sandbox),
        violation: match arguments.seccomp {
            SeccompChoice::Trap => Violation::Trap,
            SeccompChoice::Kill => Violation::Kill,
            SeccompChoice::Log => Violation::Log,
        },
        policy_dir: arguments.seccomp_policy_dir.clone(),
    }
}

/// Says loudly that a device process is not in the full jail.
pub(crate) fn warn_of_weak(level: SandboxLevel) {
    match level {
        SandboxLevel::Full => {}
        SandboxLevel::Seccomp => {
            warn("the sandbox is weak: seccomp filters, and no namespaces of its own");
        }
        SandboxLevel::None => {
            warn("there is NO SANDBOX: who takes over a device process has all that this user has");
        }
    }
}

/// How much of the jail was asked for.
pub(crate) fn sandbox_level(choice: SandboxChoice) -> SandboxLevel {
    match choice {
        SandboxChoice::Full => SandboxLevel::Full,
        SandboxChoice::Seccomp => SandboxLevel::Seccomp,
        SandboxChoice::None => SandboxLevel::None,
    }
}

/// The guest that was asked for.
pub(crate) fn guest(choice: GuestChoice) -> Guest {
    match choice {
        GuestChoice::Auto => Guest::Auto,
        GuestChoice::Kvm => Guest::Kvm,
        GuestChoice::None => Guest::None,
    }
}

/// A failure with what the user can do about it.
fn failure(error: vmm::Error) -> Failure {
    let advice = match &error {
        vmm::Error::Backend { source, .. }
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::WouldBlock
            ) =>
        {
            Some("start the backend first, or wait for it with --wait")
        }
        vmm::Error::Backend { .. } => Some("choose another path for --backend"),
        vmm::Error::Control { .. } => Some("choose another path for --control"),
        vmm::Error::Stopped(_) => Some("choose another policy for --holes to go on"),
        vmm::Error::Deviations { .. } => return Failure::deviations(error),
        vmm::Error::Device { .. } | vmm::Error::Host(_) | vmm::Error::Loop(_) => None,
    };
    let failure = Failure::new(error);
    match advice {
        Some(advice) => failure.advise(advice),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::Arguments;
    use crate::cli::args::Command;

    #[test]
    fn device_type_names_the_device() {
        assert_eq!(device_name("fs").expect("a name"), "fs");
        assert_eq!(device_name("26").expect("a name"), "fs");
        assert_eq!(device_name("99").expect("a name"), "virtio-99");
        assert_eq!(device_name("my-dev_1").expect("a name"), "my-dev_1");
    }

    #[test]
    fn device_type_that_can_be_no_name_is_wrong_usage() {
        for text in ["", "a b", "-x", "a/b", "é", &"x".repeat(33)] {
            let failure = device_name(text).expect_err("refused");
            assert!(failure.advice().is_some(), "{text}");
        }
    }

    #[test]
    fn pages_are_left_to_the_guest_unless_asked_otherwise() {
        let populate = |more: &[&str]| {
            let start = ["portcullis", "run", "--backend", "socket"];
            let arguments = Arguments::try_parse_from(start.iter().chain(more));
            let Command::Run(run) = arguments.expect("complete").command else {
                panic!("another command");
            };
            config(&run).expect("it fits").device.populate
        };
        assert_eq!(populate(&[]), 0);
        assert_eq!(populate(&["--populate", "1G"]), 1 << 30);
    }
}
