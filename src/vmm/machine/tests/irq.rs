//! Interrupts of the guest, and devices on its bus.

use base::Event;

use super::*;
use crate::vmm::mmio::BusDevice;

/// Runs the guest for a moment: it takes the interrupts that are pending.
fn run(machine: &Machine) {
    machine.peek(0, &mut [0]).unwrap();
}

#[test]
fn event_interrupts_the_guest() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let events = [Event::new().unwrap(), Event::new().unwrap()];
    let lines = [0, 1].map(|index: usize| machine.connect_interrupt(&events[index]).unwrap());
    run(&machine);
    assert_eq!(
        [&lines[0], &lines[1]].map(|line| line.taken().unwrap()),
        [0, 0]
    );
    for round in 1..=3 {
        events[1].signal().unwrap();
        run(&machine);
        assert_eq!(
            [&lines[0], &lines[1]].map(|line| line.taken().unwrap()),
            [0, round]
        );
    }
    events[0].signal().unwrap();
    run(&machine);
    assert_eq!(
        [&lines[0], &lines[1]].map(|line| line.taken().unwrap()),
        [1, 3]
    );
}

#[test]
fn interrupts_between_two_runs_are_one() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let event = Event::new().unwrap();
    let line = machine.connect_interrupt(&event).unwrap();
    for _ in 0..5 {
        event.signal().unwrap();
    }
    run(&machine);
    assert_eq!(line.taken().unwrap(), 1);
}

#[test]
fn dropped_line_is_free_and_silent() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let event = Event::new().unwrap();
    let lines: Vec<_> = (0..8)
        .map(|_| machine.connect_interrupt(&Event::new().unwrap()).unwrap())
        .collect();
    let error = machine.connect_interrupt(&event).err().unwrap();
    assert!(matches!(error, Error::NoLine { lines: 8 }), "{error}");
    drop(lines);
    let line = machine.connect_interrupt(&event).unwrap();
    event.signal().unwrap();
    run(&machine);
    assert_eq!(line.taken().unwrap(), 1);
    drop(line);
    event.signal().unwrap();
    run(&machine);
    let line = machine.connect_interrupt(&Event::new().unwrap()).unwrap();
    assert_eq!(line.taken().unwrap(), 1);
}

#[test]
fn line_without_a_guest_takes_nothing() {
    let machine = Machine::without_guest(MachineConfig::default()).unwrap();
    let event = Event::new().unwrap();
    let line = machine.connect_interrupt(&event).unwrap();
    event.signal().unwrap();
    assert_eq!(line.taken().unwrap(), 0);
}

/// Remembers the last byte written; reads as its offset.
#[derive(Default)]
struct Register {
    last: Option<(u64, u8)>,
}

impl BusDevice for Register {
    fn read(&mut self, offset: u64, out: &mut [u8]) {
        for (place, byte) in out.iter_mut().zip(offset..) {
            *place = byte.to_le_bytes()[0];
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.last = bytes
            .last()
            .map(|byte| (offset + bytes.len() as u64 - 1, *byte));
    }
}

#[test]
fn device_on_the_bus_answers_in_place_of_memory() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 1) else {
            return;
        };
        let address = 0xd000_0000;
        let device = Arc::new(Mutex::new(Register::default()));
        vm.machine
            .bus()
            .insert(address, 0x100, Arc::<Mutex<Register>>::clone(&device))
            .unwrap();
        let mut bytes = [0; 4];
        let access = vm.machine.peek(address + 0x10, &mut bytes).unwrap();
        assert_eq!((bytes, access.missing), ([0x10, 0x11, 0x12, 0x13], 0));
        vm.machine.poke(address + 0x20, &[7, 8]).unwrap();
        assert_eq!(device.lock().unwrap().last, Some((0x21, 8)));
    });
}

#[test]
fn copy_over_the_end_of_a_device_is_half_hole() {
    let Some(vm) = Fixture::new(GuestKind::Kvm, HolePolicy::AllOnes, 1) else {
        return;
    };
    let address = 0xd000_0000;
    vm.machine
        .bus()
        .insert(address, 4, Arc::new(Mutex::new(Register::default())))
        .unwrap();
    let mut bytes = [0; 12];
    let access = vm.machine.peek(address - 4, &mut bytes).unwrap();
    assert_eq!(access.missing, 8);
    assert_eq!(bytes, [255, 255, 255, 255, 0, 1, 2, 3, 255, 255, 255, 255]);
}

#[test]
fn doorbell_takes_its_value_and_leaves_others_to_the_bus() {
    let Some(vm) = Fixture::new(GuestKind::Kvm, HolePolicy::AllOnes, 1) else {
        return;
    };
    let address = 0xd000_0000;
    let device = Arc::new(Mutex::new(Register::default()));
    let bus_device = Arc::<Mutex<Register>>::clone(&device);
    vm.machine.bus().insert(address, 0x100, bus_device).unwrap();
    let event = Event::new().unwrap();
    let doorbells = vm.machine.doorbells(address + 0x50);
    let doorbell = doorbells.connect(7, &event).unwrap().unwrap();
    let error = doorbells.connect(7, &event).err().unwrap();
    assert!(
        matches!(
            error,
            Error::Kvm {
                operation: "KVM_IOEVENTFD",
                ..
            }
        ),
        "{error}"
    );

    // The guest's agent writes bytes, so the doorbell of 32 bits is for the driver's tests; a byte goes to the bus.
    vm.machine.poke(address + 0x50, &[7]).unwrap();
    assert_eq!(device.lock().unwrap().last, Some((0x50, 7)));
    let timed_out = event.wait_timeout(Duration::ZERO).unwrap();
    assert_eq!(timed_out, base::EventWaitResult::TimedOut);
    drop(doorbell);
    let _again = doorbells.connect(7, &event).unwrap().unwrap();
}

#[test]
fn doorbell_does_not_keep_the_machine() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let event = Event::new().unwrap();
    let doorbells = machine.doorbells(0xd000_0050);
    let doorbell = doorbells.connect(0, &event).unwrap();
    assert!(doorbell.is_some());
    drop(machine);
    assert!(doorbells.connect(1, &event).unwrap().is_none());
}
