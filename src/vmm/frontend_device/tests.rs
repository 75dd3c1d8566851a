//! The guest's driver against a device whose process is played by the test.

use std::sync::mpsc;
use std::time::Duration;

use base::EventWaitResult;

use super::*;
use crate::vmm::machine;
use crate::vmm::machine::DriverConfig;
use crate::vmm::machine::DriverStep;
use crate::vmm::machine::GuestDriver;
use crate::vmm::machine::Machine;
use crate::vmm::machine::MachineConfig;
use crate::vmm::machine::Started;
use crate::vmm::machine::tests::driver::serve;
use crate::vmm::machine::tests::open;
use crate::vmm::mmio::QueueSetup;
use crate::vmm::mmio::VirtioMmio;

const REGISTERS: u64 = 0xd000_0000;
const FEATURES: u64 = 1 << 32 | 1 << 5;
const CONFIG: DriverConfig = DriverConfig {
    features: FEATURES,
    queues: 2,
    queue_size: 8,
};
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the process was asked.
#[derive(Debug)]
enum Call {
    Activate(ProcessActivation),
    Reset,
    WriteConfig(u32, Vec<u8>),
}

/// Tells the test what it is asked, and does what the test says.
struct FakeProcess {
    calls: mpsc::Sender<Call>,
    fails: bool,
}

impl ProcessCalls for FakeProcess {
    fn activate(&mut self, activation: ProcessActivation) -> Result<(), device_process::Error> {
        self.calls.send(Call::Activate(activation)).unwrap();
        if self.fails {
            Err(device_process::Error::Ended { pid: 1 })
        } else {
            Ok(())
        }
    }

    fn reset(&mut self) -> Result<(), device_process::Error> {
        self.calls.send(Call::Reset).unwrap();
        Ok(())
    }

    fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, device_process::Error> {
        if offset == 8 {
            return Err(device_process::Error::Ended { pid: 1 });
        }
        Ok((offset..offset + len)
            .map(|byte| byte.to_le_bytes()[0])
            .collect())
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), device_process::Error> {
        self.calls
            .send(Call::WriteConfig(offset, bytes.to_vec()))
            .unwrap();
        Ok(())
    }
}

struct Fixture {
    calls: mpsc::Receiver<Call>,
    config_change: Event,
    machine: Machine,
}

impl Fixture {
    /// Puts a device on the bus of a machine. None: skipped, because there is no KVM.
    fn new(fails: bool) -> Option<(Self, Event)> {
        let machine = open(machine::GuestKind::Kvm, MachineConfig::default())?;
        let event = Event::new().unwrap();
        let config_change = Event::new().unwrap();
        let (sender, calls) = mpsc::channel();
        let interrupt = InterruptLine::new(event.try_clone().unwrap());
        let window = SharedMemoryWindow {
            guest_address: 4 << 30,
            len: 0x10_0000,
        };
        let config = FrontendDeviceConfig {
            device_type: 48,
            features: FEATURES | PROTOCOL_FEATURES,
            queue_sizes: vec![8, 256],
            windows: BTreeMap::from([(1, window)]),
            memory: machine.memory().clone(),
            interrupt: interrupt.clone(),
            config_change: config_change.try_clone().unwrap(),
            doorbells: machine.doorbells(REGISTERS + 0x50),
        };
        let process = Box::new(FakeProcess {
            calls: sender,
            fails,
        });
        let device = FrontendDevice::new(config, process).unwrap();
        let transport = Arc::new(Mutex::new(VirtioMmio::new(device, interrupt)));
        machine.bus().insert(REGISTERS, 0x200, transport).unwrap();
        let fixture = Self {
            calls,
            config_change,
            machine,
        };
        Some((fixture, event))
    }

    fn driver(&self, event: &Event) -> GuestDriver<'_> {
        let line = self.machine.connect_interrupt(event).unwrap();
        self.machine.driver(REGISTERS, line, CONFIG).unwrap()
    }

    #[track_caller]
    fn activation(&self) -> ProcessActivation {
        match self.calls.recv_timeout(TIMEOUT).unwrap() {
            Call::Activate(activation) => activation,
            other => panic!("{other:?}"),
        }
    }
}

/// Serves the next request of a queue as a backend does, on a thread of its own.
fn answer_one(memory: GuestMemory, queue: ProcessQueue) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let kick = Event::from(queue.kick);
        assert_eq!(
            kick.wait_timeout(TIMEOUT).unwrap(),
            EventWaitResult::Signaled
        );
        let setup = QueueSetup {
            index: queue.index,
            size: queue.size,
            descriptors: queue.descriptor_table,
            driver_area: queue.available_ring,
            device_area: queue.used_ring,
        };
        serve(&memory, &setup, 0);
        Event::from(queue.call.unwrap()).signal().unwrap();
    })
}

#[test]
fn guest_reaches_a_backend_and_is_interrupted_by_it() {
    let Some((fixture, event)) = Fixture::new(false) else {
        return;
    };
    let driver = fixture.driver(&event);
    let started = driver.start().unwrap();
    assert_eq!(
        started,
        Started {
            device_type: 48,
            features: FEATURES
        }
    );
    let activation = fixture.activation();
    assert_eq!(activation.features, FEATURES);
    assert_eq!(activation.memory.len(), 1);
    let region = &activation.memory[0];
    assert_eq!(
        (region.guest_address, region.len, region.offset),
        (0, 16 << 20, 0)
    );
    let indices: Vec<u16> = activation.queues.iter().map(|queue| queue.index).collect();
    assert_eq!(indices, [0, 1]);
    for (queue, setup) in (0..).zip(activation.queues) {
        let backend = answer_one(fixture.machine.memory().clone(), setup);
        assert_eq!(driver.request(queue, b"gate", 4).unwrap(), b"etag");
        backend.join().unwrap();
    }
}

#[test]
fn reset_reaches_the_process_once_it_was_active() {
    let Some((fixture, event)) = Fixture::new(false) else {
        return;
    };
    let driver = fixture.driver(&event);
    driver.reset().unwrap();
    driver.start().unwrap();
    fixture.activation();
    driver.reset().unwrap();
    driver.reset().unwrap();
    assert!(matches!(
        fixture.calls.recv_timeout(TIMEOUT).unwrap(),
        Call::Reset
    ));
    assert_eq!(
        fixture.calls.try_recv().unwrap_err(),
        mpsc::TryRecvError::Empty
    );
    driver.start().unwrap();
    fixture.activation();
}

#[test]
fn process_that_fails_to_activate_makes_the_device_need_a_reset() {
    let Some((fixture, event)) = Fixture::new(true) else {
        return;
    };
    let error = fixture.driver(&event).start().unwrap_err();
    assert!(
        matches!(
            error,
            machine::Error::Driver {
                step: DriverStep::Start,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn configuration_and_regions_are_those_of_the_process() {
    let Some((fixture, event)) = Fixture::new(false) else {
        return;
    };
    let driver = fixture.driver(&event);
    assert_eq!(
        driver.read_register(0x104).unwrap().to_le_bytes(),
        [4, 5, 6, 7]
    );
    assert_eq!(
        driver.read_register(0x108).unwrap(),
        0,
        "what can't be read is zero"
    );
    fixture.machine.poke(REGISTERS + 0x102, &[9]).unwrap();
    let call = fixture.calls.recv_timeout(TIMEOUT).unwrap();
    assert!(
        matches!(call, Call::WriteConfig(2, ref bytes) if *bytes == [9]),
        "{call:?}"
    );
    let window = driver.shared_memory(1).unwrap().unwrap();
    assert_eq!((window.guest_address, window.len), (4 << 30, 0x10_0000));
    assert_eq!(driver.shared_memory(257).unwrap(), None);
}

#[test]
fn config_change_interrupts_the_guest() {
    let Some((fixture, event)) = Fixture::new(false) else {
        return;
    };
    // Nobody but the test listens to the interrupt, so that it can wait for it.
    let line = fixture
        .machine
        .connect_interrupt(&Event::new().unwrap())
        .unwrap();
    let driver = fixture.machine.driver(REGISTERS, line, CONFIG).unwrap();
    let generation = driver.read_register(0xfc).unwrap();
    fixture.config_change.signal().unwrap();
    assert_eq!(
        event.wait_timeout(TIMEOUT).unwrap(),
        EventWaitResult::Signaled
    );
    assert_eq!(driver.read_register(0xfc).unwrap(), generation + 1);
    assert_eq!(driver.read_register(0x60).unwrap(), 2);
}
