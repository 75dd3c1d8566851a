//! The steps into the jail, and what to do where the system does not allow one.

use std::io;

/// One step into the jail. Displayed as the call that it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the variants are what they display")]
pub enum Step {
    #[error("close_range")]
    CloseDescriptors,
    #[error("sigaction")]
    Handlers,
    #[error("setgroups, setresgid and setresuid to nobody")]
    BecomeNobody,
    #[error("unshare(CLONE_NEWUSER)")]
    UserNamespace,
    #[error("write the id maps of the user namespace")]
    IdMaps,
    #[error("unshare(CLONE_NEWNS)")]
    MountNamespace,
    #[error("unshare(CLONE_NEWPID)")]
    PidNamespace,
    #[error("unshare(CLONE_NEWNET)")]
    NetNamespace,
    #[error("unshare(CLONE_NEWIPC)")]
    IpcNamespace,
    #[error("unshare(CLONE_NEWUTS)")]
    UtsNamespace,
    #[error("unshare(CLONE_NEWCGROUP)")]
    CgroupNamespace,
    #[error("sethostname")]
    HostName,
    #[error("clone into the pid namespace")]
    Clone,
    #[error("make all mounts private")]
    PrivateMounts,
    #[error("mount an empty tmpfs")]
    EmptyRoot,
    #[error("pivot_root")]
    PivotRoot,
    #[error("unmount the old root")]
    OldRoot,
    #[error("setrlimit")]
    Limits,
    #[error("drop the capability bounding set")]
    BoundingSet,
    #[error("set the securebits")]
    SecureBits,
    #[error("drop all capabilities")]
    Capabilities,
    #[error("prctl(PR_SET_NO_NEW_PRIVS)")]
    NoNewPrivileges,
    #[error("prctl(PR_SET_MDWE)")]
    DenyWriteExecute,
    #[error("prctl(PR_SET_DUMPABLE)")]
    NotDumpable,
    #[error("prctl(PR_SET_PDEATHSIG)")]
    ParentDeath,
    #[error("verify the namespaces")]
    VerifyNamespaces,
    #[error("verify that the root is empty and read-only")]
    VerifyRoot,
    #[error("verify that no privilege is left")]
    VerifyPrivileges,
    #[error("send the seccomp listener to the parent")]
    Listener,
    #[error("seccomp")]
    Seccomp,
}

impl Step {
    /// What to do if the step fails.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::UserNamespace => {
                "user namespaces are needed: raise user.max_user_namespaces, allow unprivileged ones \
                 (kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), let the container make them, \
                 or choose a weaker jail with --sandbox seccomp"
            }
            Self::BecomeNobody => {
                "root has to become user and group 65534, which something forbids: start as an ordinary user"
            }
            Self::IdMaps => {
                "/proc has to be there and writable, and the system's policy (security module, seccomp profile of a container) has \
                 to allow id maps: allow it, or choose a weaker jail with --sandbox seccomp"
            }
            Self::MountNamespace
            | Self::PidNamespace
            | Self::NetNamespace
            | Self::IpcNamespace
            | Self::UtsNamespace
            | Self::CgroupNamespace
            | Self::HostName
            | Self::Clone
            | Self::PrivateMounts
            | Self::EmptyRoot
            | Self::PivotRoot
            | Self::OldRoot => {
                "the system's policy forbids it (container, security module such as kernel.apparmor_restrict_unprivileged_userns, \
                 user.max_*_namespaces): allow it, or choose a weaker jail with --sandbox seccomp"
            }
            Self::Seccomp | Self::Listener => {
                "the kernel needs CONFIG_SECCOMP_FILTER; without it, only --sandbox none is possible"
            }
            Self::DenyWriteExecute => {
                "Linux 6.3 has it; older kernels do without, other errors are the system's policy"
            }
            Self::CloseDescriptors => {
                "Linux 5.9 has it; a container's seccomp profile may forbid it"
            }
            Self::Handlers
            | Self::Limits
            | Self::BoundingSet
            | Self::SecureBits
            | Self::Capabilities
            | Self::NoNewPrivileges
            | Self::NotDumpable
            | Self::ParentDeath
            | Self::VerifyNamespaces
            | Self::VerifyRoot
            | Self::VerifyPrivileges => {
                "this should always be possible; if a container's seccomp profile forbids it, relax that"
            }
        }
    }

    pub(crate) fn failed(self, cause: impl Into<io::Error>) -> StepError {
        StepError {
            step: self,
            cause: cause.into(),
        }
    }
}

/// A step into the jail failed; the process must not go on.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {cause}: {}", step.advice())]
pub struct StepError {
    /// The step.
    pub step: Step,
    /// Why it failed.
    pub cause: io::Error,
}

/// Names the step of an error.
pub(super) trait At<T> {
    fn at(self, step: Step) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step) -> Result<T, StepError> {
        self.map_err(|cause| step.failed(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_step_errno_and_advice() {
        let error = Step::NoNewPrivileges.failed(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(
            error.to_string(),
            "prctl(PR_SET_NO_NEW_PRIVS): Operation not permitted (os error 1): this should always be possible; \
             if a container's seccomp profile forbids it, relax that"
        );
    }

    #[test]
    fn advice_for_namespaces_names_the_weaker_jail() {
        assert!(Step::UserNamespace.advice().contains("--sandbox seccomp"));
        assert!(Step::PivotRoot.advice().contains("--sandbox seccomp"));
    }
}
