//! The KVM side of a machine: the virtual machine, its memslots, and the state that its vCPU starts in.
//!
//! Interrupts go from an eventfd through the kernel to the guest's local APIC, as messages: line 0 is vector 0x30. There is
//! no table for a guest to program, since ours would only ever write this one.

// UNSAFETY: KVM is told host addresses and maps what is there into the guest.
#![expect(
    unsafe_code,
    reason = "KVM takes host addresses, EventFd takes a raw descriptor"
)]

use std::collections::BTreeSet;
use std::os::fd::FromRawFd;
use std::sync::Mutex;
use std::sync::PoisonError;

use base::Event;
use base::IntoRawDescriptor;
use kvm_bindings::KVM_CAP_X86_DISABLE_EXITS;
use kvm_bindings::KVM_IRQ_ROUTING_MSI;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_bindings::KVM_MEM_READONLY;
use kvm_bindings::KVM_X86_DISABLE_EXITS_HLT;
use kvm_bindings::KvmIrqRouting;
use kvm_bindings::kvm_enable_cap;
use kvm_bindings::kvm_irq_routing_entry;
use kvm_bindings::kvm_irq_routing_entry__bindgen_ty_1;
use kvm_bindings::kvm_irq_routing_msi;
use kvm_bindings::kvm_lapic_state;
use kvm_bindings::kvm_sregs;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::IoEventAddress;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use super::GuestMemory;
use super::cpu;

/// The version that KVM's interface has had since 2007.
const API_VERSION: i32 = 12;

/// A virtual machine. Whatever its slots are made of must outlive it or its slot.
pub(super) struct VirtualMachine {
    fd: VmFd,
    /// Kept while the machine lives: a guard for the memory of slot 0 and what follows it.
    memory: GuestMemory,
    used: Mutex<BTreeSet<u32>>,
}

impl VirtualMachine {
    /// Opens `/dev/kvm`, makes a VM with this memory and one vCPU that starts in the agent.
    pub(super) fn open(memory: GuestMemory) -> Result<(Self, Vcpu), Error> {
        let kvm = Kvm::new().map_err(|source| match source.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::Missing,
            libc::EACCES | libc::EPERM => Error::Permission,
            _ => Error::Open { source },
        })?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(Error::ApiVersion { version });
        }
        let fd = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let vm = Self {
            fd,
            memory,
            used: Mutex::default(),
        };
        for region in vm.memory.regions() {
            vm.add(region.guest_address, region.host_address, region.len, false)?;
        }
        vm.disable_halt_exits()?;
        vm.fd
            .create_irq_chip()
            .map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
        vm.route_lines()?;
        let vcpu = vm
            .fd
            .create_vcpu(0)
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        let sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
        let mut lapic = vcpu.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?;
        // The spurious interrupt register: enabled, vector 255.
        (lapic.regs[0xf0], lapic.regs[0xf1]) = (-1, 1);
        let vcpu = Vcpu {
            fd: vcpu,
            sregs: cpu::long_mode(sregs),
            lapic,
        };
        vcpu.reset()?;
        Ok((vm, vcpu))
    }

    /// Tells KVM that it can't halt the vCPU by itself.
    ///
    /// With interrupt controllers in the kernel it would halt the vCPU while another thread fetches a page, and take
    /// any page that can't be had for one that takes long: for a file that was truncated, again and again for ever.
    /// Our programs never halt, so nothing else changes. A KVM that can't do this is left as it is.
    fn disable_halt_exits(&self) -> Result<(), Error> {
        let supported = self
            .fd
            .check_extension_raw(u64::from(KVM_CAP_X86_DISABLE_EXITS));
        if !u32::try_from(supported).is_ok_and(|exits| exits & KVM_X86_DISABLE_EXITS_HLT != 0) {
            return Ok(());
        }
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X86_DISABLE_EXITS,
            ..kvm_enable_cap::default()
        };
        cap.args[0] = u64::from(KVM_X86_DISABLE_EXITS_HLT);
        self.fd
            .enable_cap(&cap)
            .map_err(Error::kvm("KVM_ENABLE_CAP"))
    }

    /// Makes of each line a message to the local APIC.
    fn route_lines(&self) -> Result<(), Error> {
        let entries: Vec<_> = (0..cpu::LINES)
            .map(|line| kvm_irq_routing_entry {
                gsi: u32::from(line),
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo: 0xfee0_0000,
                        data: u32::from(cpu::FIRST_VECTOR + line),
                        ..kvm_irq_routing_msi::default()
                    },
                },
                ..kvm_irq_routing_entry::default()
            })
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries).expect("a few entries fit");
        self.fd
            .set_gsi_routing(&routing)
            .map_err(Error::kvm("KVM_SET_GSI_ROUTING"))
    }

    /// Lets an event interrupt the guest; [`Self::disconnect`] takes it back. The result is the kernel's name for it.
    pub(super) fn connect(&self, line: u8, event: &Event) -> Result<EventFd, Error> {
        let event = own(event)?;
        self.fd
            .register_irqfd(&event, u32::from(line))
            .map_err(Error::kvm("KVM_IRQFD"))?;
        Ok(event)
    }

    /// Lets the guest signal an event by writing a value of 32 bits to an address; [`Self::unring`] takes it back. The
    /// result is the kernel's name for it.
    pub(super) fn ring(&self, address: u64, value: u32, event: &Event) -> Result<EventFd, Error> {
        let event = own(event)?;
        self.fd
            .register_ioevent(&event, &IoEventAddress::Mmio(address), value)
            .map_err(Error::kvm("KVM_IOEVENTFD"))?;
        Ok(event)
    }

    /// Undoes [`Self::ring`].
    pub(super) fn unring(&self, address: u64, value: u32, event: &EventFd) -> Result<(), Error> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(Error::kvm("KVM_IOEVENTFD"))
    }

    /// Undoes [`Self::connect`].
    pub(super) fn disconnect(&self, line: u8, event: &EventFd) -> Result<(), Error> {
        self.fd
            .unregister_irqfd(event, u32::from(line))
            .map_err(Error::kvm("KVM_IRQFD"))
    }

    /// Puts a host range under a guest range and returns the slot's number.
    fn add(
        &self,
        guest_address: u64,
        host_address: u64,
        len: u64,
        read_only: bool,
    ) -> Result<u32, Error> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (0..)
            .find(|slot| !used.contains(slot))
            .expect("fewer than 2^32 slots");
        self.set(
            slot,
            guest_address,
            host_address,
            len,
            if read_only { KVM_MEM_READONLY } else { 0 },
        )?;
        used.insert(slot);
        Ok(slot)
    }

    /// Puts a region under its guest address; [`Self::remove`] takes it away.
    pub(super) fn add_slot(&self, slot: &super::MemslotConfig) -> Result<u32, Error> {
        self.add(
            slot.guest_address,
            slot.backing.host_address(),
            slot.backing.len(),
            slot.read_only,
        )
    }

    /// Takes a slot away. After this the guest can't reach what was behind it.
    pub(super) fn remove(&self, slot: u32, guest_address: u64) -> Result<(), Error> {
        self.set(slot, guest_address, 0, 0, 0)?;
        self.used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&slot);
        Ok(())
    }

    fn set(
        &self,
        slot: u32,
        guest_address: u64,
        host_address: u64,
        len: u64,
        flags: u32,
    ) -> Result<(), Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: guest_address,
            memory_size: len,
            userspace_addr: host_address,
        };
        // SAFETY: the call makes KVM give this process's pages at `userspace_addr` to the guest. These are the guest's
        // own RAM, which `self.memory` keeps mapped as long as the VM; or a `Backing`, whose contract is that the range
        // is reserved for it alone, and which the slot's guard keeps until `remove` has taken it from the guest. No
        // Rust reference is ever made to either.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))
    }
}

/// Makes of an event what kvm-ioctls wants.
fn own(event: &Event) -> Result<EventFd, Error> {
    let event = event.try_clone().map_err(Error::Event)?;
    let descriptor = event.into_raw_descriptor();
    // SAFETY: the descriptor was just given up by its owner, so that the EventFd is the only one.
    Ok(unsafe { EventFd::from_raw_fd(descriptor) })
}

/// The virtual processor and the state that it is reset to.
pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
}

impl Vcpu {
    /// Puts the processor at the agent's first instruction.
    pub(super) fn reset(&self) -> Result<(), Error> {
        self.fd
            .set_sregs(&self.sregs)
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
        self.fd
            .set_lapic(&self.lapic)
            .map_err(Error::kvm("KVM_SET_LAPIC"))?;
        let regs = cpu::agent_registers();
        self.fd.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
    }
}
