//! The guest's driver against a device of this process: registers, split queue, interrupt, shared memory region.

use std::sync::mpsc;

use base::Event;
use vm_memory::Bytes;
use vm_memory::GuestAddress;

use super::super::DriverConfig;
use super::super::DriverStep;
use super::super::GuestDriver;
use super::super::GuestMemory;
use super::super::Started;
use super::*;
use crate::vmm::mmio::ActivateError;
use crate::vmm::mmio::Activation;
use crate::vmm::mmio::InterruptLine;
use crate::vmm::mmio::QueueSetup;
use crate::vmm::mmio::SharedMemoryWindow;
use crate::vmm::mmio::VirtioDevice;
use crate::vmm::mmio::VirtioMmio;

/// Where the device's registers are.
const REGISTERS: u64 = 0xd000_0000;
const FEATURES: u64 = 1 << 32 | 1 << 5;

/// A device that answers each request with its bytes in reverse order, from a thread of its own.
struct Reverser {
    memory: GuestMemory,
    interrupt: InterruptLine,
    kicks: Option<mpsc::Sender<u16>>,
    fails: bool,
    /// Interrupts without a used buffer before the one with it.
    spurious: u32,
}

impl VirtioDevice for Reverser {
    fn device_type(&self) -> u32 {
        26
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 64]
    }

    fn shared_memory(&self, shmid: u32) -> Option<SharedMemoryWindow> {
        (shmid == 2).then_some(SharedMemoryWindow {
            guest_address: REGION,
            len: 0x4000,
        })
    }

    fn read_config(&mut self, offset: u64, out: &mut [u8]) {
        if offset == 4 {
            out.copy_from_slice(b"conf");
        }
    }

    fn write_config(&mut self, _offset: u64, _bytes: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.fails {
            return Err(ActivateError);
        }
        let (kicks, received) = mpsc::channel();
        let (memory, interrupt, spurious) =
            (self.memory.clone(), self.interrupt.clone(), self.spurious);
        std::thread::spawn(move || {
            let mut used = [0_u16; 2];
            for queue in received {
                for _ in 0..spurious {
                    interrupt.config_changed().unwrap();
                }
                let index = usize::from(queue);
                serve(&memory, &activation.queues[index], used[index]);
                used[index] = used[index].wrapping_add(1);
                interrupt.used_buffers().unwrap();
            }
        });
        self.kicks = Some(kicks);
        Ok(())
    }

    fn notify(&mut self, queue: u16) {
        self.kicks.as_ref().unwrap().send(queue).unwrap();
    }

    fn reset(&mut self) {
        self.kicks = None;
    }
}

/// Takes the request with this number from a queue, with nothing but the specification's structures.
pub(in crate::vmm) fn serve(memory: &GuestMemory, queue: &QueueSetup, number: u16) {
    let memory = memory.inner();
    let slot = u64::from(number % queue.size);
    let available: u16 = memory
        .read_obj(GuestAddress(queue.driver_area + 2))
        .unwrap();
    assert_eq!(available, number.wrapping_add(1));
    let head: u16 = memory
        .read_obj(GuestAddress(queue.driver_area + 4 + 2 * slot))
        .unwrap();
    let descriptor = |index: u16| {
        let at = queue.descriptors + 16 * u64::from(index);
        let address: u64 = memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(at + 8)).unwrap();
        let flags: u16 = memory.read_obj(GuestAddress(at + 12)).unwrap();
        let next: u16 = memory.read_obj(GuestAddress(at + 14)).unwrap();
        (GuestAddress(address), len, flags, next)
    };
    let (request, request_len, flags, next) = descriptor(head);
    assert_eq!(flags, 1, "the request is readable and continued");
    let (response, response_len, flags, _) = descriptor(next);
    assert_eq!(flags, 2, "the response is writable and the last");
    let mut bytes = vec![0; request_len as usize];
    memory.read_slice(&mut bytes, request).unwrap();
    bytes.reverse();
    bytes.truncate(response_len as usize);
    memory.write_slice(&bytes, response).unwrap();
    let written = u32::try_from(bytes.len()).unwrap();
    memory
        .write_obj(
            u32::from(head),
            GuestAddress(queue.device_area + 4 + 8 * slot),
        )
        .unwrap();
    memory
        .write_obj(written, GuestAddress(queue.device_area + 8 + 8 * slot))
        .unwrap();
    memory
        .write_obj(number.wrapping_add(1), GuestAddress(queue.device_area + 2))
        .unwrap();
}

/// Puts a device on the machine's bus and returns the guest's driver for it.
fn attach(machine: &Machine, fails: bool, spurious: u32, config: DriverConfig) -> GuestDriver<'_> {
    let event = Event::new().unwrap();
    let line = machine.connect_interrupt(&event).unwrap();
    let interrupt = InterruptLine::new(event);
    let device = Reverser {
        memory: machine.memory().clone(),
        interrupt: interrupt.clone(),
        kicks: None,
        fails,
        spurious,
    };
    let transport = Arc::new(Mutex::new(VirtioMmio::new(device, interrupt)));
    machine.bus().insert(REGISTERS, 0x200, transport).unwrap();
    machine.driver(REGISTERS, line, config).unwrap()
}

const CONFIG: DriverConfig = DriverConfig {
    features: FEATURES,
    queues: 2,
    queue_size: 8,
};

#[test]
fn guest_finds_drives_and_resets_a_device() {
    let Some(vm) = Fixture::new(GuestKind::Kvm, HolePolicy::AllOnes, 4) else {
        return;
    };
    let driver = attach(&vm.machine, false, 0, CONFIG);
    assert_eq!(
        driver.start().unwrap(),
        Started {
            device_type: 26,
            features: FEATURES
        }
    );
    assert_eq!(driver.read_register(0x70).unwrap(), 15);
    assert_eq!(driver.request(0, b"gate", 16).unwrap(), b"etag");
    assert_eq!(driver.request(1, b"portcullis", 4).unwrap(), b"sill");
    assert_eq!(driver.line().taken().unwrap(), 2);
    assert_eq!(
        driver.read_register(0x60).unwrap(),
        0,
        "all interrupts were acknowledged"
    );
    driver.reset().unwrap();
    assert_eq!(driver.read_register(0x70).unwrap(), 0);
}

#[test]
fn rings_go_round_and_a_reset_starts_them_anew() {
    let Some(vm) = Fixture::new(GuestKind::Kvm, HolePolicy::AllOnes, 4) else {
        return;
    };
    let driver = attach(&vm.machine, false, 0, CONFIG);
    for _ in 0..2 {
        driver.start().unwrap();
        for number in 0..20_u8 {
            assert_eq!(
                driver.request(1, &[number, 1, 2], 3).unwrap(),
                [2, 1, number]
            );
        }
    }
}

#[test]
fn interrupts_without_a_used_buffer_are_waited_out() {
    let Some(vm) = Fixture::new(GuestKind::Kvm, HolePolicy::AllOnes, 4) else {
        return;
    };
    let driver = attach(&vm.machine, false, 3, CONFIG);
    driver.start().unwrap();
    let generation = driver.read_register(0xfc).unwrap();
    assert_eq!(driver.request(0, b"ab", 2).unwrap(), b"ba");
    assert_eq!(driver.read_register(0xfc).unwrap(), generation + 3);
}

#[test]
fn guest_reads_a_mapping_in_the_region_that_it_found() {
    let Some(vm) = Fixture::new(GuestKind::Kvm, HolePolicy::AllOnes, 4) else {
        return;
    };
    let driver = attach(&vm.machine, false, 0, CONFIG);
    driver.start().unwrap();
    let window = driver.shared_memory(2).unwrap().unwrap();
    assert_eq!(
        window,
        SharedMemoryWindow {
            guest_address: REGION,
            len: 0x4000
        }
    );
    assert_eq!(driver.shared_memory(0).unwrap(), None);
    vm.arena.map(0x1000, 0x1000, &memfd(b"mapped"), false);
    let mut bytes = [0; 6];
    vm.machine
        .peek(window.guest_address + 0x1000, &mut bytes)
        .unwrap();
    assert_eq!(&bytes, b"mapped");
    assert_eq!(driver.read_register(0x104).unwrap().to_le_bytes(), *b"conf");
}

#[test]
fn driver_says_at_which_step_it_gave_up() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let line = || machine.connect_interrupt(&Event::new().unwrap()).unwrap();
    let absent = machine.driver(0xc000_0000, line(), CONFIG).unwrap();
    let fails = |driver: &GuestDriver<'_>, expected: DriverStep| {
        let error = driver.start().unwrap_err();
        assert!(
            matches!(error, Error::Driver { step, .. } if step == expected),
            "{error}"
        );
    };
    fails(&absent, DriverStep::Find);
    let _present = attach(&machine, false, 0, CONFIG);
    let old = machine
        .driver(
            REGISTERS,
            line(),
            DriverConfig {
                features: 1 << 5,
                ..CONFIG
            },
        )
        .unwrap();
    fails(&old, DriverStep::Features);
    let large = machine
        .driver(
            REGISTERS,
            line(),
            DriverConfig {
                queue_size: 16,
                ..CONFIG
            },
        )
        .unwrap();
    fails(&large, DriverStep::Queues);
    let many = machine
        .driver(
            REGISTERS,
            line(),
            DriverConfig {
                queues: 3,
                ..CONFIG
            },
        )
        .unwrap();
    fails(&many, DriverStep::Queues);
}

#[test]
fn device_that_fails_to_start_is_seen_by_the_driver() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let error = attach(&machine, true, 0, CONFIG).start().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Driver {
                registers: REGISTERS,
                step: DriverStep::Start
            }
        ),
        "{error}"
    );
}

#[test]
fn request_that_is_never_used_misses_the_deadline() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let driver = attach(&machine, false, 0, CONFIG);
    // Nothing is started, so the kick goes nowhere.
    machine.set_deadline(SHORT);
    let error = driver.request(0, b"?", 1).unwrap_err();
    assert!(
        matches!(error, Error::Deadline { deadline: SHORT }),
        "{error}"
    );
    machine.set_deadline(GENEROUS);
    driver.start().unwrap();
    assert_eq!(driver.request(0, b"ok", 2).unwrap(), b"ko");
}

#[test]
fn driver_refuses_what_it_has_no_room_for() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let line = || machine.connect_interrupt(&Event::new().unwrap()).unwrap();
    for config in [
        DriverConfig {
            queues: 17,
            ..CONFIG
        },
        DriverConfig {
            queue_size: 512,
            ..CONFIG
        },
        DriverConfig {
            queue_size: 1,
            ..CONFIG
        },
        DriverConfig {
            queue_size: 6,
            ..CONFIG
        },
    ] {
        let error = machine.driver(REGISTERS, line(), config).err().unwrap();
        assert!(matches!(error, Error::DriverQueues { .. }), "{error}");
    }
    let driver = machine.driver(REGISTERS, line(), CONFIG).unwrap();
    for (queue, request, response) in [(2, 1, 1), (0, 0, 1), (0, 1, 0), (0, 4097, 1), (0, 1, 16385)]
    {
        let error = driver
            .request(queue, &vec![0; request], response)
            .unwrap_err();
        assert!(matches!(error, Error::DriverRequest { .. }), "{error}");
    }
    let machine = Machine::without_guest(MachineConfig::default()).unwrap();
    let line = machine.connect_interrupt(&Event::new().unwrap()).unwrap();
    let error = machine.driver(REGISTERS, line, CONFIG).err().unwrap();
    assert!(matches!(error, Error::NoGuest), "{error}");
}
