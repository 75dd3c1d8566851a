//! What `/proc` says about a device process's jail, read from outside.

use std::io;
use std::path::Path;

use devices::device_process::DeviceProcess;
use serde::Serialize;

/// The namespaces that a jailed process has to itself.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// Seccomp's filter mode.
const SECCOMP_FILTER: u32 = 2;

/// The jail of a process, as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// 2 where filters are on.
    pub seccomp: u32,
    /// 1 where no program can give the process new privileges.
    pub no_new_privs: u32,
    /// The effective capabilities, hexadecimal.
    pub cap_eff: String,
    /// The namespaces that are not the VMM's; `null` if this user may not look.
    pub namespaces_differ: Option<Vec<String>>,
    /// How many descriptors are open; `null` if this user may not look.
    pub fds: Option<usize>,
}

impl Proof {
    /// Reads the proof of a device process. What `/proc` does not show to this user, the process has said itself.
    ///
    /// # Errors
    /// As [`Proof::read`].
    pub fn of(process: &DeviceProcess) -> io::Result<Self> {
        let mut proof = Self::read(process.pid())?;
        let said = || {
            process
                .own_namespaces()
                .iter()
                .map(|name| (*name).to_owned())
        };
        proof
            .namespaces_differ
            .get_or_insert_with(|| said().collect());
        Ok(proof)
    }

    /// Reads the proof of the process `pid`.
    ///
    /// # Errors
    /// There is no such process, or `/proc` is not what it should be.
    pub fn read(pid: u32) -> io::Result<Self> {
        let folder = Path::new("/proc").join(pid.to_string());
        let status = std::fs::read_to_string(folder.join("status"))?;
        Ok(Self {
            seccomp: number(&status, "Seccomp")?,
            no_new_privs: number(&status, "NoNewPrivs")?,
            cap_eff: field(&status, "CapEff")?.to_owned(),
            namespaces_differ: allowed(namespaces_that_differ(&folder))?,
            fds: allowed(count_entries(&folder.join("fd")))?,
        })
    }

    /// Whether everything that can be seen is as a full jail makes it.
    pub fn is_full(&self) -> bool {
        let no_capabilities = self.cap_eff.bytes().all(|digit| digit == b'0');
        let own_namespaces = self
            .namespaces_differ
            .as_ref()
            .is_none_or(|names| names.len() == NAMESPACES.len());
        self.is_filtered() && no_capabilities && own_namespaces
    }

    /// Whether seccomp filters are on for good.
    pub fn is_filtered(&self) -> bool {
        self.seccomp == SECCOMP_FILTER && self.no_new_privs == 1
    }
}

/// `None` in place of a refusal of the system to show something.
fn allowed<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(e) => Err(e),
    }
}

fn namespaces_that_differ(folder: &Path) -> io::Result<Vec<String>> {
    let mut differing = Vec::new();
    for name in NAMESPACES {
        let theirs = std::fs::read_link(folder.join("ns").join(name))?;
        let ours = std::fs::read_link(Path::new("/proc/self/ns").join(name))?;
        if theirs != ours {
            differing.push(name.to_owned());
        }
    }
    Ok(differing)
}

fn count_entries(folder: &Path) -> io::Result<usize> {
    std::fs::read_dir(folder)?.try_fold(0, |count, entry| entry.map(|_| count + 1))
}

/// The value of a line `Name:<blank>value`.
fn field<'a>(status: &'a str, name: &str) -> io::Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {name} in status")))
}

fn number(status: &str, name: &str) -> io::Result<u32> {
    field(status, name)?
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_without_a_jail_proves_none() {
        let proof = Proof::read(std::process::id()).expect("our own process can be read");
        assert_eq!(proof.namespaces_differ, Some(vec![]));
        assert!(!proof.is_full());
        let fds = proof.fds.expect("our own descriptors can be counted");
        assert!(fds >= 3, "{fds}");
    }

    #[test]
    fn full_jail_needs_each_part() {
        let full = Proof {
            seccomp: 2,
            no_new_privs: 1,
            cap_eff: "0000000000000000".into(),
            namespaces_differ: Some(NAMESPACES.map(str::to_owned).to_vec()),
            fds: Some(9),
        };
        assert!(full.is_full());
        let weakened = [
            Proof {
                seccomp: 0,
                ..full.clone()
            },
            Proof {
                no_new_privs: 0,
                ..full.clone()
            },
            Proof {
                cap_eff: "0000000000000400".into(),
                ..full.clone()
            },
            Proof {
                namespaces_differ: Some(vec!["mnt".into()]),
                ..full.clone()
            },
        ];
        for proof in weakened {
            assert!(!proof.is_full(), "{proof:?}");
        }
    }

    #[test]
    fn field_of_a_status_is_found_by_its_whole_name() {
        let status = "Name:\tx\nSeccomp_filters:\t3\nSeccomp:\t2\n";
        assert_eq!(number(status, "Seccomp").expect("found"), 2);
        assert!(matches!(field(status, "Sec"), Err(e) if e.kind() == io::ErrorKind::InvalidData));
    }
}
