//! Tests of the machine with a real KVM guest, and of the same calls without one.
//!
//! Where KVM is not usable a test says that it was skipped; with `CI` in the environment that is a failure.

mod access;
pub(in crate::vmm) mod driver;
mod holes;
mod irq;
mod lifetime;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use base::MemoryMappingArena;
use base::Protection;

use super::Error;
use super::GuestFault;
use super::GuestKind;
use super::HolePolicy;
use super::Machine;
use super::MachineConfig;
use super::Memslot;
use super::MemslotConfig;

/// Where the tests put their region.
const REGION: u64 = 5 << 30;
/// An order that is not expected to be late.
const GENEROUS: Duration = Duration::from_secs(10);
/// An order that can't be in time.
const SHORT: Duration = Duration::from_millis(50);

/// A machine with one region, and the faults that it told.
struct Fixture {
    slot: Memslot,
    arena: TestArena,
    machine: Machine,
    faults: Arc<Mutex<Vec<GuestFault>>>,
}

impl Fixture {
    /// Makes a machine with a region of `pages` pages. None: skipped, because there is no KVM.
    fn new(kind: GuestKind, holes: HolePolicy, pages: usize) -> Option<Self> {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&faults);
        let config = MachineConfig {
            holes,
            deadline: GENEROUS,
            on_fault: Box::new(move |fault| sink.lock().unwrap().push(fault.clone())),
            ..MachineConfig::default()
        };
        let machine = open(kind, config)?;
        let arena = TestArena::new(pages);
        let slot = machine.add_memslot(slot_config(REGION, &arena)).unwrap();
        Some(Self {
            slot,
            arena,
            machine,
            faults,
        })
    }

    fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0x55; len];
        self.machine.peek(REGION + offset, &mut bytes).unwrap();
        bytes
    }
}

/// A region's range, changed as the mapping service changes it and without any of its checks.
struct TestArena(Arc<MemoryMappingArena>);

impl TestArena {
    fn new(pages: usize) -> Self {
        Self(Arc::new(MemoryMappingArena::new(pages * 0x1000).unwrap()))
    }

    /// Maps the start of a file.
    fn map(&self, offset: usize, len: usize, file: &File, writable: bool) {
        let protection = if writable {
            Protection::read_write()
        } else {
            Protection::read()
        };
        self.0
            .add_fd_mapping(offset, len, file, 0, protection)
            .unwrap();
    }

    /// Makes a hole again.
    fn unmap(&self, offset: usize, len: usize) {
        self.0.remove_mapping(offset, len).unwrap();
    }
}

/// Makes a memfd with these bytes.
fn memfd(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create(c"test", flags).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn slot_config(guest_address: u64, arena: &TestArena) -> MemslotConfig {
    let backing = Arc::<MemoryMappingArena>::clone(&arena.0);
    MemslotConfig {
        name: "fs0/0".into(),
        guest_address,
        backing,
        read_only: false,
    }
}

/// Makes a machine of a kind. None: skipped, because there is no KVM.
pub(in crate::vmm) fn open(kind: GuestKind, config: MachineConfig) -> Option<Machine> {
    match kind {
        GuestKind::None => Some(Machine::without_guest(config).unwrap()),
        GuestKind::Kvm => match Machine::open(config) {
            Ok(machine) => Some(machine),
            Err(error @ (Error::Missing | Error::Permission)) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "CI must not skip: {error}"
                );
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error:?}"),
        },
    }
}

/// Runs a test with a guest and without one.
fn both(test: impl Fn(GuestKind)) {
    test(GuestKind::Kvm);
    test(GuestKind::None);
}

/// Bytes without a pattern of the page's size in them.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        state.to_le_bytes()[7]
    })
    .take(len)
    .collect()
}
