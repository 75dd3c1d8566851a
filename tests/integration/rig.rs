//! What most tests begin with: a backend, a VMM that serves it, and the request channel between them.

use std::path::Path;
use std::process::Command;

use fixture::Process;
use fixture::RequestSocket;
use fixture::Script;
use fixture::ScriptedBackend;
use fixture::TestVm;
use fixture::TestVmBuilder;
use tempfile::TempDir;

/// The program that is tested.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");

/// Error values of replies, as the channel carries them.
pub(crate) const EPERM: i64 = -1;
pub(crate) const ENOENT: i64 = -2;
pub(crate) const ENXIO: i64 = -6;
pub(crate) const EBADF: i64 = -9;
pub(crate) const EACCES: i64 = -13;
pub(crate) const EEXIST: i64 = -17;
pub(crate) const EINVAL: i64 = -22;
pub(crate) const ERANGE: i64 = -34;
pub(crate) const EOVERFLOW: i64 = -75;
pub(crate) const ENOTSUP: i64 = -95;
pub(crate) const EDQUOT: i64 = -122;

/// Region 0 of most tests.
pub(crate) const REGION: u64 = 16 << 20;

/// The size of a page.
pub(crate) const PAGE: u64 = 4096;

/// A scripted backend and a VMM without a guest that serves it.
///
/// The VMM goes first, then the backend.
pub(crate) struct Rig {
    pub(crate) vm: TestVm,
    pub(crate) channel: RequestSocket,
    pub(crate) backend: ScriptedBackend,
    pub(crate) dir: TempDir,
}

impl Rig {
    /// With one region.
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self::with(Script::one_region(REGION), |vm| vm)
    }

    /// With this script, and with more arguments for the VMM.
    #[track_caller]
    pub(crate) fn with(
        script: Script,
        arguments: impl FnOnce(TestVmBuilder) -> TestVmBuilder,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let backend = ScriptedBackend::listen(dir.path(), "backend", script);
        let mut vm = arguments(TestVm::without_guest(BINARY, backend.path())).start();
        vm.serving();
        let channel = backend.request_socket();
        Self {
            vm,
            channel,
            backend,
            dir,
        }
    }

    /// Asserts that the channel still serves: maps a page at `offset`, reads it back, unmaps it.
    #[track_caller]
    pub(crate) fn assert_serves(&self, offset: u64) {
        let page = vec![0xa5; 4096];
        let memory = fixture::memfd(&page);
        assert_eq!(self.channel.map(0, offset, 0, PAGE, 0, &memory), 0, "a map");
        assert_eq!(self.vm.peek(0, offset, 16), page[..16], "what was mapped");
        assert_eq!(self.channel.unmap(0, offset, PAGE), 0, "the unmap");
    }
}

/// The pid of the device process in an event or a status.
#[track_caller]
pub(crate) fn device_pid(status: &serde_json::Value) -> u32 {
    let pid = status["pids"]["device"].as_u64().expect("a device process");
    u32::try_from(pid).expect("a pid")
}

/// Starts a files backend and waits until it listens.
#[track_caller]
pub(crate) fn files_backend(socket: &Path, directory: &Path, more: &[&str]) -> Process {
    let mut command = Command::new(BINARY);
    command
        .args(["backend", "files", "--json", "--socket"])
        .arg(socket)
        .arg("--dir")
        .arg(directory)
        .args(more);
    let mut process = Process::spawn(command);
    process.event("listening");
    process
}
