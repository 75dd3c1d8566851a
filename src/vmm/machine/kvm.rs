//! The KVM side of a machine: the virtual machine, its memslots, and the state that its vCPU starts in.
//!
//! UNSAFETY: KVM is told host addresses and maps what is there into the guest.
#![expect(
    unsafe_code,
    reason = "KVM_SET_USER_MEMORY_REGION takes host addresses"
)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_bindings::KVM_MEM_READONLY;
use kvm_bindings::kvm_regs;
use kvm_bindings::kvm_segment;
use kvm_bindings::kvm_sregs;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;

use super::Error;
use super::GuestMemory;
use super::agent;

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
        let vcpu = vm
            .fd
            .create_vcpu(0)
            .map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        let sregs = long_mode(vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?);
        let vcpu = Vcpu { fd: vcpu, sregs };
        vcpu.reset()?;
        Ok((vm, vcpu))
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

/// The virtual processor and the state that it is reset to.
pub(super) struct Vcpu {
    pub(super) fd: VcpuFd,
    sregs: kvm_sregs,
}

impl Vcpu {
    /// Puts the processor at the agent's first instruction.
    pub(super) fn reset(&self) -> Result<(), Error> {
        self.fd
            .set_sregs(&self.sregs)
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
        // Bit 1 is always set; bits 12 and 13 allow port I/O at level 3.
        let regs = kvm_regs {
            rip: agent::ENTRY,
            rflags: 0x3002,
            ..kvm_regs::default()
        };
        self.fd.set_regs(&regs).map_err(Error::kvm("KVM_SET_REGS"))
    }
}

/// Makes of a processor's state the one of long mode at level 3, with flat segments and the agent's page tables.
fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    let segment = |selector, type_, long: bool| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    };
    let data = segment(0x23, DATA, false);
    sregs.cs = segment(0x1b, CODE, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = agent::PML4;
    sregs.cr4 = 0x20; // PAE
    sregs.cr0 = 0x8001_0033; // PG, WP, NE, ET, MP, PE
    sregs.efer = 0x500; // LMA, LME
    sregs
}
