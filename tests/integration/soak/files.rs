//! A device of the real reference backend, a process of its own that is started anew for each life.

use std::path::PathBuf;

use fixture::TestVm;
use rustix::process::Signal;
use tempfile::TempDir;

use super::Tally;
use crate::rig::BINARY;
use crate::rig::device_pid;
use crate::rig::files_backend;
use fixture::Dice;

/// How many files the backend maps.
const FILES: usize = 3;

/// A way in which a life ends.
type Ending = (&'static str, fn(&TestVm, &fixture::Process));

const ENDINGS: &[Ending] = &[
    ("backend process killed", |_, backend| {
        backend.signal(Signal::KILL);
    }),
    ("backend process terminated", |_, backend| {
        backend.signal(Signal::TERM);
    }),
    ("backend process stopped, then killed", |vm, backend| {
        backend.signal(Signal::STOP);
        assert_eq!(vm.maps().len(), FILES, "while the backend is stopped");
        backend.signal(Signal::KILL);
    }),
    ("device and backend process killed", |vm, backend| {
        fixture::signal_pid(device_pid(&vm.status()), Signal::KILL);
        backend.signal(Signal::KILL);
    }),
];

/// A VMM that waits for its backend in between.
pub(super) struct FilesDevice {
    vm: TestVm,
    socket: PathBuf,
    files: PathBuf,
    _dir: TempDir,
}

impl FilesDevice {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = dir.path().join("files");
        std::fs::create_dir(&files).expect("a directory");
        for index in 0..FILES {
            let name = files.join(index.to_string());
            std::fs::write(name, vec![1; 4096]).expect("a file");
        }
        let socket = dir.path().join("socket");
        let mut vm = TestVm::without_guest(BINARY, &socket)
            .arg("--wait")
            .arg("--restart")
            .arg("on-failure")
            .start();
        vm.process.event("waiting");
        Self {
            vm,
            socket,
            files,
            _dir: dir,
        }
    }

    pub(super) fn vm(&self) -> &TestVm {
        &self.vm
    }

    /// Lives once, and waits for the next backend.
    #[track_caller]
    pub(super) fn live(&mut self, dice: &mut Dice, tally: &mut Tally) {
        let mut backend = files_backend(&self.socket, &self.files, &[]);
        self.vm.serving();
        assert_eq!(backend.event("ready")["mapped"], FILES);
        assert_eq!(self.vm.maps().len(), FILES);
        tally.operations += FILES as u64;
        let (name, end) = dice.pick(ENDINGS);
        end(&self.vm, &backend);
        tally.fault(name);
        backend.wait();
        self.vm.process.event("device_ended");
        assert_eq!(self.vm.maps(), []);
        // A backend that was asked to end has removed it.
        let _ = std::fs::remove_file(&self.socket);
        self.vm.process.event("waiting");
        tally.lives += 1;
    }
}
