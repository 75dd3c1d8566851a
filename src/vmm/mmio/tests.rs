//! The registers as a driver sees them. Offsets are typed from the specification, not taken from the constants.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use base::Event;
use base::EventWaitResult;

use super::register::FEATURE_RING_PACKED;
use super::*;

const FEATURES: u64 = 0x1_0001_0005;

/// What a device was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Activate(Activation),
    Notify(u16),
    Reset,
    WriteConfig(u64, Vec<u8>),
}

#[derive(Default)]
struct Probe {
    calls: Vec<Call>,
    offers_packed: bool,
    refuses_features: bool,
    fails_to_activate: bool,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        26
    }

    fn features(&self) -> u64 {
        if self.offers_packed {
            FEATURES | FEATURE_RING_PACKED
        } else {
            FEATURES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 8]
    }

    fn shared_memory(&self, shmid: u32) -> Option<SharedMemoryWindow> {
        (shmid == 3).then_some(SharedMemoryWindow {
            guest_address: 0x1_8000_0000,
            len: 0x2_0000_1000,
        })
    }

    fn read_config(&mut self, offset: u64, out: &mut [u8]) {
        let config = b"\x01\x02\x03\x04\x05\x06\x07\x08";
        for (place, byte) in out
            .iter_mut()
            .zip(config.iter().skip(usize::try_from(offset).unwrap()))
        {
            *place = *byte;
        }
    }

    fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        self.calls.push(Call::WriteConfig(offset, bytes.to_vec()));
    }

    fn accepts(&mut self, _features: u64) -> bool {
        !self.refuses_features
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.calls.push(Call::Activate(activation));
        if self.fails_to_activate {
            Err(ActivateError)
        } else {
            Ok(())
        }
    }

    fn notify(&mut self, queue: u16) {
        self.calls.push(Call::Notify(queue));
    }

    fn reset(&mut self) {
        self.calls.push(Call::Reset);
    }
}

struct Driver {
    registers: VirtioMmio<Probe>,
    interrupt: InterruptLine,
}

impl Driver {
    fn new(device: Probe) -> Self {
        let interrupt = InterruptLine::new(Event::new().unwrap());
        Self {
            registers: VirtioMmio::new(device, interrupt.clone()),
            interrupt,
        }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut bytes = [0x55; 4];
        self.registers.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.registers.write(offset, &value.to_le_bytes());
    }

    fn write_all(&mut self, writes: &[(u64, u32)]) {
        for &(offset, value) in writes {
            self.write(offset, value);
        }
    }

    /// Acknowledges, accepts the features and sets FEATURES_OK.
    fn negotiate(&mut self, features: u64) -> u32 {
        let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
        let (low, high) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        );
        self.write_all(&[
            (0x70, 1),
            (0x70, 3),
            (0x24, 0),
            (0x20, low),
            (0x24, 1),
            (0x20, high),
            (0x70, 11),
        ]);
        self.read(0x70)
    }

    fn set_up_queue(&mut self, index: u32, size: u32) -> u32 {
        self.write_all(&[
            (0x30, index),
            (0x38, size),
            (0x80, 0x1000),
            (0x84, 1),
            (0x90, 0x2002),
            (0xa0, 0x3004),
        ]);
        self.write(0x44, 1);
        self.read(0x44)
    }

    fn calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.registers.device().calls)
    }

    fn interrupted(&self) -> bool {
        self.interrupt.event().wait_timeout(Duration::ZERO).unwrap() == EventWaitResult::Signaled
    }
}

const QUEUE_0: QueueSetup = QueueSetup {
    index: 0,
    size: 128,
    descriptors: 0x1_0000_1000,
    driver_area: 0x2002,
    device_area: 0x3004,
};

#[test]
fn identity_is_that_of_a_modern_device() {
    let mut driver = Driver::new(Probe::default());
    assert_eq!(driver.read(0x0), 0x7472_6976);
    assert_eq!(driver.read(0x4), 2);
    assert_eq!(driver.read(0x8), 26);
    assert_eq!(driver.read(0xc).to_le_bytes(), *b"port");
}

#[test]
fn offered_features_are_read_by_word_without_packed_rings() {
    let mut driver = Driver::new(Probe {
        offers_packed: true,
        ..Probe::default()
    });
    assert_eq!(driver.read(0x10), 0x1_0005);
    driver.write(0x14, 1);
    assert_eq!(driver.read(0x10), 1, "version 1 and nothing else");
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0);
}

#[test]
fn driver_that_does_all_right_activates_the_device() {
    let mut driver = Driver::new(Probe::default());
    assert_eq!(driver.negotiate(FEATURES), 11);
    assert_eq!(driver.set_up_queue(0, 128), 1);
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 15);
    assert_eq!(
        driver.calls(),
        [Call::Activate(Activation {
            features: FEATURES,
            queues: vec![QUEUE_0]
        })]
    );
    driver.write(0x50, 0);
    assert_eq!(driver.calls(), [Call::Notify(0)]);
}

#[test]
fn features_that_were_not_offered_leave_features_ok_unset() {
    for features in [
        FEATURES | 2,
        FEATURES | FEATURE_RING_PACKED,
        FEATURES & !(1 << 32),
    ] {
        let mut driver = Driver::new(Probe {
            offers_packed: true,
            ..Probe::default()
        });
        assert_eq!(driver.negotiate(features), 3, "{features:#x}");
    }
    let mut driver = Driver::new(Probe::default());
    driver.write_all(&[(0x24, 2), (0x20, 1)]);
    assert_eq!(driver.negotiate(FEATURES), 3, "a feature beyond the 64th");
}

#[test]
fn features_that_the_device_refuses_leave_features_ok_unset() {
    let mut driver = Driver::new(Probe {
        refuses_features: true,
        ..Probe::default()
    });
    assert_eq!(driver.negotiate(FEATURES), 3);
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 3);
    assert_eq!(driver.calls(), []);
}

#[test]
fn driver_ok_before_features_ok_is_ignored() {
    let mut driver = Driver::new(Probe::default());
    driver.write_all(&[(0x70, 1), (0x70, 7)]);
    assert_eq!(driver.read(0x70), 3);
    assert_eq!(driver.calls(), []);
}

#[test]
fn features_after_features_ok_are_ignored() {
    let mut driver = Driver::new(Probe::default());
    driver.negotiate(1 << 32);
    driver.write_all(&[(0x24, 0), (0x20, 5), (0x70, 15)]);
    assert_eq!(
        driver.calls(),
        [Call::Activate(Activation {
            features: 1 << 32,
            queues: vec![]
        })]
    );
}

#[test]
fn status_bits_are_not_taken_back() {
    let mut driver = Driver::new(Probe::default());
    driver.negotiate(FEATURES);
    driver.write(0x70, 3);
    assert_eq!(driver.read(0x70), 11);
    driver.write(0x70, 11 | 128);
    assert_eq!(driver.read(0x70), 11 | 128);
    driver.write(0x70, 11 | 128 | 64);
    assert_eq!(
        driver.read(0x70),
        11 | 128,
        "DEVICE_NEEDS_RESET is the device's to set"
    );
}

#[test]
fn queues_are_bounded_by_the_device() {
    let mut driver = Driver::new(Probe::default());
    driver.negotiate(FEATURES);
    for (queue, max) in [(0, 256), (1, 8), (2, 0), (0x1_0000, 0)] {
        driver.write(0x30, queue);
        assert_eq!(driver.read(0x34), max, "queue {queue}");
    }
    assert_eq!(driver.set_up_queue(1, 16), 0);
    assert_eq!(driver.set_up_queue(1, 6), 0);
    assert_eq!(driver.set_up_queue(1, 0), 0);
    assert_eq!(driver.set_up_queue(1, 0x1_0008), 0);
    assert_eq!(driver.set_up_queue(1, 8), 1);
    assert_eq!(driver.set_up_queue(2, 1), 0);
}

#[test]
fn rings_that_are_not_aligned_do_not_become_ready() {
    for (register, value) in [(0x80, 0x1008), (0x90, 0x2001), (0xa0, 0x3002)] {
        let mut driver = Driver::new(Probe::default());
        driver.negotiate(FEATURES);
        driver.write(register, value);
        driver.write_all(&[(0x38, 8), (0x44, 1)]);
        assert_eq!(driver.read(0x44), 0, "register {register:#x}");
        driver.write_all(&[(register, 0), (0x44, 1)]);
        assert_eq!(driver.read(0x44), 1, "register {register:#x}");
    }
}

#[test]
fn ready_queue_is_fixed_until_it_is_not_ready() {
    let mut driver = Driver::new(Probe::default());
    driver.negotiate(FEATURES);
    driver.set_up_queue(0, 64);
    driver.write_all(&[
        (0x38, 32),
        (0x44, 0),
        (0x38, 128),
        (0x44, 1),
        (0x80, 0),
        (0x70, 15),
        (0x44, 0),
    ]);
    assert_eq!(driver.read(0x44), 1, "an active queue stays ready");
    assert_eq!(
        driver.calls(),
        [Call::Activate(Activation {
            features: FEATURES,
            queues: vec![QUEUE_0]
        })]
    );
}

#[test]
fn queue_before_features_ok_is_ignored() {
    let mut driver = Driver::new(Probe::default());
    assert_eq!(driver.set_up_queue(0, 128), 0);
}

#[test]
fn notification_of_a_queue_that_is_not_active_is_ignored() {
    let mut driver = Driver::new(Probe::default());
    driver.write(0x50, 0);
    driver.negotiate(FEATURES);
    driver.set_up_queue(0, 128);
    driver.write_all(&[(0x50, 0), (0x70, 15)]);
    driver.calls();
    driver.write_all(&[(0x50, 1), (0x50, 2), (0x50, 0x1_0000)]);
    assert_eq!(driver.calls(), []);
}

#[test]
fn reset_forgets_everything() {
    let mut driver = Driver::new(Probe::default());
    driver.negotiate(FEATURES);
    driver.set_up_queue(0, 128);
    driver.write(0x70, 15);
    driver.interrupt.used_buffers().unwrap();
    driver.calls();
    driver.write(0x70, 0);
    assert_eq!(driver.calls(), [Call::Reset]);
    assert_eq!(
        [0x70, 0x60, 0x44].map(|register| driver.read(register)),
        [0, 0, 0]
    );
    driver.write(0x50, 0);
    assert_eq!(driver.calls(), []);
    driver.negotiate(1 << 32);
    driver.write(0x70, 15);
    assert_eq!(
        driver.calls(),
        [Call::Activate(Activation {
            features: 1 << 32,
            queues: vec![]
        })]
    );
}

#[test]
fn device_that_fails_to_activate_needs_a_reset() {
    let mut driver = Driver::new(Probe {
        fails_to_activate: true,
        ..Probe::default()
    });
    driver.negotiate(FEATURES);
    driver.write(0x70, 15);
    assert_eq!(driver.read(0x70), 15 | 64);
    assert!(driver.interrupted());
    assert_eq!(driver.read(0x60), 2);
    assert_eq!(driver.calls()[1], Call::Reset);
    driver.write(0x50, 0);
    driver.write(0x70, 15);
    assert_eq!(driver.calls(), []);
    driver.write(0x70, 0);
    assert_eq!(driver.read(0x70), 0);
}

#[test]
fn interrupt_status_says_why_until_acknowledged() {
    let mut driver = Driver::new(Probe::default());
    assert!(!driver.interrupted());
    driver.interrupt.used_buffers().unwrap();
    assert!(driver.interrupted());
    assert_eq!(driver.read(0x60), 1);
    driver.interrupt.config_changed().unwrap();
    assert_eq!(driver.read(0x60), 3);
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 2);
    driver.write(0x64, 2);
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn config_change_is_another_generation() {
    let mut driver = Driver::new(Probe::default());
    let before = driver.read(0xfc);
    driver.interrupt.used_buffers().unwrap();
    assert_eq!(driver.read(0xfc), before);
    driver.interrupt.config_changed().unwrap();
    assert_eq!(driver.read(0xfc), before + 1);
}

#[test]
fn config_is_read_and_written_at_any_width() {
    let mut driver = Driver::new(Probe::default());
    let mut byte = [0];
    driver.registers.read(0x101, &mut byte);
    assert_eq!(byte, [2]);
    let mut long = [0x55; 8];
    driver.registers.read(0x104, &mut long);
    assert_eq!(long, [5, 6, 7, 8, 0, 0, 0, 0]);
    driver.registers.write(0x102, &[7, 9]);
    assert_eq!(driver.calls(), [Call::WriteConfig(2, vec![7, 9])]);
}

#[test]
fn shared_memory_window_is_64_bit_wide() {
    let mut driver = Driver::new(Probe::default());
    driver.write(0xac, 3);
    let window = [0xb0, 0xb4, 0xb8, 0xbc].map(|register| driver.read(register));
    assert_eq!(window, [0x1000, 2, 0x8000_0000, 1]);
}

#[test]
fn unknown_shared_memory_id_reads_as_all_ones() {
    let mut driver = Driver::new(Probe::default());
    for shmid in [0, 256 + 3, u32::MAX] {
        driver.write(0xac, shmid);
        let window = [0xb0, 0xb4, 0xb8, 0xbc].map(|register| driver.read(register));
        assert_eq!(window, [u32::MAX; 4], "shmid {shmid}");
    }
}

#[test]
fn register_access_of_another_width_does_nothing() {
    let mut driver = Driver::new(Probe::default());
    let mut long = [0x55; 8];
    driver.registers.read(0, &mut long);
    assert_eq!(long, [0; 8]);
    let mut odd = [0x55; 4];
    driver.registers.read(2, &mut odd);
    assert_eq!(odd, [0; 4]);
    driver.registers.write(0x70, &[1]);
    driver.registers.write(0x70, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.read(0x70), 0);
}

#[test]
fn registers_that_are_not_there_read_as_zero() {
    let mut driver = Driver::new(Probe::default());
    for register in [0x18, 0x28, 0x40, 0x48, 0xc0, 0xf8] {
        driver.write(register, 1);
        assert_eq!(driver.read(register), 0, "register {register:#x}");
    }
}

#[test]
fn bus_finds_the_device_of_the_whole_access() {
    let bus = Bus::new();
    let interrupt = InterruptLine::new(Event::new().unwrap());
    let device = Arc::new(Mutex::new(VirtioMmio::new(Probe::default(), interrupt)));
    bus.insert(0x1000, 0x200, device).unwrap();
    let mut bytes = [0; 4];
    assert!(bus.read(0x1000, &mut bytes));
    assert_eq!(bytes, *b"virt");
    for address in [0xffc, 0xffe, 0x11fe, 0x1200, u64::MAX - 1] {
        assert!(!bus.read(address, &mut bytes), "{address:#x}");
        assert!(!bus.write(address, &bytes), "{address:#x}");
    }
    assert!(bus.write(0x1070, &[1, 0, 0, 0]));
    assert!(bus.read(0x1070, &mut bytes));
    assert_eq!(bytes, [1, 0, 0, 0]);
    assert!(bus.remove(0x1000));
    assert!(!bus.remove(0x1000));
    assert!(!bus.read(0x1000, &mut bytes));
}

#[test]
fn bus_refuses_ranges_that_overlap_or_are_none() {
    let bus = Bus::new();
    let device = || {
        let interrupt = InterruptLine::new(Event::new().unwrap());
        Arc::new(Mutex::new(VirtioMmio::new(Probe::default(), interrupt)))
    };
    bus.insert(0x1000, 0x200, device()).unwrap();
    for (address, len) in [(0x1000, 0x200), (0xf00, 0x101), (0x11ff, 1), (0, 0x2000)] {
        let error = bus.insert(address, len, device()).unwrap_err();
        assert_eq!(
            error,
            BusError::Overlap {
                address,
                len,
                taken: 0x1000
            }
        );
    }
    for (address, len) in [(0x2000, 0), (u64::MAX, 2)] {
        assert_eq!(
            bus.insert(address, len, device()).unwrap_err(),
            BusError::BadRange { address, len }
        );
    }
    bus.insert(0x1200, 0x200, device()).unwrap();
    bus.insert(0xe00, 0x200, device()).unwrap();
}
