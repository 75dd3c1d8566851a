//! The command line of `portcullis device`, written and read in one place.
//!
//! Everything that the process works with comes by descriptor number, so that it makes no difference whether the VMM
//! started it, minijail0, or a curious person's shell. What the device is comes later, over the control tube.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use jail::SandboxLevel;
use jail::Violation;
use remain::sorted;
use thiserror::Error;

use super::log_level::LogLevel;

/// How a device process is jailed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxOptions {
    /// How much of the jail.
    pub level: SandboxLevel,
    /// What a violation does.
    pub violation: Violation,
    /// Where the policy files are, instead of those within the program.
    pub policy_dir: Option<PathBuf>,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        Self {
            level: SandboxLevel::Full,
            violation: Violation::Trap,
            policy_dir: None,
        }
    }
}

/// Everything on the command line of a device process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceArgs {
    /// The device's name, for the log.
    pub name: String,
    /// How it is jailed.
    pub sandbox: SandboxOptions,
    /// How much it logs.
    pub log: LogLevel,
    /// The main channel: a connected stream socket.
    pub backend_fd: RawFd,
    /// The control tube.
    pub control_fd: RawFd,
    /// The tube to the mapping service.
    pub memory_fd: RawFd,
    /// The tube for events.
    pub event_fd: RawFd,
    /// The eventfd of the config change interrupt.
    pub interrupt_fd: RawFd,
    /// Where the parent is told how the jail comes up, if it wants to know.
    pub report_fd: Option<RawFd>,
    /// Where the parent takes the listener of log mode.
    pub listener_fd: Option<RawFd>,
    /// The tube for what only the VMM as a whole can answer, if it does.
    pub hook_fd: Option<RawFd>,
}

/// Why a command line was refused.
#[sorted]
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    /// A descriptor is missing.
    #[error("{flag} N is missing; {}", DeviceArgs::USAGE)]
    Missing {
        /// The flag that names it.
        flag: &'static str,
    },
    /// A flag has no value after it.
    #[error("{flag} needs a value")]
    NoValue {
        /// The flag.
        flag: &'static str,
    },
    /// A flag is not one of ours.
    #[error("unknown argument {0:?}; {usage}", usage = DeviceArgs::USAGE)]
    Unknown(OsString),
    /// A flag's value is none that it can have.
    #[error("{flag} {value:?}: expected {want}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: OsString,
        /// What it could have been.
        want: &'static str,
    },
}

impl DeviceArgs {
    /// One line on how to call it.
    pub const USAGE: &'static str = "usage: portcullis device --backend-fd N --control-fd N --memory-fd N --event-fd N \
         --interrupt-fd N [--name NAME] [--sandbox full|seccomp|none] [--seccomp trap|kill|log] \
         [--seccomp-policy-dir DIR] [--log error|warn|info|debug|trace] [--hook-fd N]";

    /// Reads the arguments that follow `device`. A flag and its value may be one argument, with `=` between them.
    ///
    /// # Errors
    /// [`ArgsError`], for the first thing that is wrong.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut name = String::from("device");
        let mut sandbox = SandboxOptions::default();
        let mut log = LogLevel::default();
        let mut slots = [None; DESCRIPTORS.len()];
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (flag, inline) = split_flag(&argument)?;
            let value = inline
                .or_else(|| arguments.next())
                .ok_or(ArgsError::NoValue { flag })?;
            match flag {
                NAME => name = value.to_string_lossy().into_owned(),
                SANDBOX => sandbox.level = parse_word(flag, value, "full, seccomp or none")?,
                SECCOMP => sandbox.violation = parse_word(flag, value, "trap, kill or log")?,
                POLICY_DIR => sandbox.policy_dir = Some(value.into()),
                LOG => log = parse_word(flag, value, LogLevel::NAMES)?,
                _ => {
                    let index = DESCRIPTORS.iter().position(|known| *known == flag);
                    let index = index.expect("every other flag names a descriptor");
                    slots[index] = Some(parse_word(flag, value, "a descriptor's number")?);
                }
            }
        }
        let descriptor = |index: usize| {
            slots[index].ok_or(ArgsError::Missing {
                flag: DESCRIPTORS[index],
            })
        };
        Ok(Self {
            name,
            sandbox,
            log,
            backend_fd: descriptor(0)?,
            control_fd: descriptor(1)?,
            memory_fd: descriptor(2)?,
            event_fd: descriptor(3)?,
            interrupt_fd: descriptor(4)?,
            report_fd: slots[5],
            listener_fd: slots[6],
            hook_fd: slots[7],
        })
    }
}

const NAME: &str = "--name";
const SANDBOX: &str = "--sandbox";
const SECCOMP: &str = "--seccomp";
pub(super) const POLICY_DIR: &str = "--seccomp-policy-dir";
pub(super) const LOG: &str = "--log";
const DESCRIPTORS: [&str; 8] = [
    "--backend-fd",
    "--control-fd",
    "--memory-fd",
    "--event-fd",
    "--interrupt-fd",
    "--report-fd",
    "--listener-fd",
    "--hook-fd",
];

fn split_flag(argument: &OsString) -> Result<(&'static str, Option<OsString>), ArgsError> {
    let known = [NAME, SANDBOX, SECCOMP, POLICY_DIR, LOG]
        .into_iter()
        .chain(DESCRIPTORS);
    let unknown = || ArgsError::Unknown(argument.clone());
    let (flag, value) = match argument.to_str() {
        Some(text) => match text.split_once('=') {
            Some((flag, value)) => (flag, Some(OsString::from(value))),
            None => (text, None),
        },
        None => return Err(unknown()),
    };
    known
        .into_iter()
        .find(|known| *known == flag)
        .map(|flag| (flag, value))
        .ok_or_else(unknown)
}

fn parse_word<T: FromStr>(
    flag: &'static str,
    value: OsString,
    want: &'static str,
) -> Result<T, ArgsError> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or(ArgsError::Value { flag, value, want })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<DeviceArgs, ArgsError> {
        DeviceArgs::parse(line.split_whitespace().map(OsString::from))
    }

    const DESCRIPTORS_LINE: &str =
        "--backend-fd 3 --control-fd=4 --memory-fd 5 --event-fd 6 --interrupt-fd 7";

    #[test]
    fn parse_reads_flags_with_their_value_beside_or_within() {
        let line = "--name fs0 --sandbox=seccomp --seccomp log --seccomp-policy-dir=/a=b --log error \
                    --report-fd 8 --listener-fd 9 --hook-fd 10";
        assert_eq!(
            parse(&format!("{line} {DESCRIPTORS_LINE}")),
            Ok(DeviceArgs {
                name: "fs0".into(),
                sandbox: SandboxOptions {
                    level: SandboxLevel::Seccomp,
                    violation: Violation::Log,
                    policy_dir: Some("/a=b".into()),
                },
                log: LogLevel::Error,
                backend_fd: 3,
                control_fd: 4,
                memory_fd: 5,
                event_fd: 6,
                interrupt_fd: 7,
                report_fd: Some(8),
                listener_fd: Some(9),
                hook_fd: Some(10),
            })
        );
    }

    #[test]
    fn parse_without_options_is_the_full_jail() {
        let args = parse(DESCRIPTORS_LINE).unwrap();
        assert_eq!(args.sandbox, SandboxOptions::default());
        assert_eq!(args.sandbox.level, SandboxLevel::Full);
    }

    #[test]
    fn parse_without_a_descriptor_names_it() {
        let error = parse("--backend-fd 3 --control-fd 4 --event-fd 6 --interrupt-fd 7");
        assert_eq!(
            error,
            Err(ArgsError::Missing {
                flag: "--memory-fd"
            })
        );
    }

    #[test]
    fn parse_descriptor_that_is_no_number_is_refused() {
        let error = parse("--backend-fd stdin").unwrap_err();
        assert_eq!(
            error,
            ArgsError::Value {
                flag: "--backend-fd",
                value: "stdin".into(),
                want: "a descriptor's number",
            }
        );
    }

    #[test]
    fn parse_unknown_flag_is_refused() {
        let error = parse("--verbose").unwrap_err();
        assert_eq!(error, ArgsError::Unknown("--verbose".into()));
    }

    #[test]
    fn parse_flag_without_value_is_refused() {
        let error = parse("--sandbox").unwrap_err();
        assert_eq!(error, ArgsError::NoValue { flag: "--sandbox" });
    }

    #[test]
    fn parse_unknown_level_lists_the_levels() {
        let error = parse("--sandbox some").unwrap_err();
        assert_eq!(
            error,
            ArgsError::Value {
                flag: "--sandbox",
                value: "some".into(),
                want: "full, seccomp or none",
            }
        );
    }
}
