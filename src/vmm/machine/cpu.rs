//! The processor as the guest's programs find it: page tables, segments, interrupt handlers, and where each of them is.
//!
//! Programs run in long mode at privilege level 3, with interrupts on and all of the first 512 GiB mapped one to one.
//! Level 3 matters: a nested KVM without hardware help emulates level 0, at half a million instructions a second, and
//! runs level 3 on the processor itself. Only the interrupt handlers are at level 0; they count and return.

use kvm_bindings::kvm_regs;
use kvm_bindings::kvm_segment;
use kvm_bindings::kvm_sregs;

use super::Error;
use super::GuestMemory;
use super::agent;
use super::layout::ADDRESS_LIMIT;
use super::memory::MemoryError;

/// How many interrupts the guest tells apart.
pub(super) const LINES: u8 = 8;
/// The vector of the first.
pub(super) const FIRST_VECTOR: u8 = 0x30;
/// The end of the stack of programs.
pub(super) const STACK: u64 = 0xff00;

/// The top-level page table; CR3.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
/// The end of the handlers' stack.
const HANDLER_STACK: u64 = 0x7000;
const HANDLERS: u64 = 0x7000;
const HANDLER_STRIDE: u64 = 32;
/// A counter of 32 bits for each line.
const COUNTERS: u64 = 0x9800;
/// The task state: stack of level 0, and a bitmap that allows all ports.
const TSS: u64 = 0xa000;
/// The page directories, one a GiB.
const DIRECTORIES: u64 = 0x20_0000;

const KERNEL_CODE: u16 = 0x08;
const USER_CODE: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const TASK: u16 = 0x28;
/// Null, code and data of level 0, code and data of level 3, and the task state in two entries.
const DESCRIPTORS: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x0000_8b00_0000_0000 | TSS << 16 | TASK_LIMIT,
    0,
];
/// Where the bitmap of ports starts in the task state, and where it ends.
const PORTS: u16 = 0x68;
const TASK_LIMIT: u64 = 0x2068;

/// Puts the tables and the handlers into RAM.
pub(super) fn load(memory: &GuestMemory) -> Result<(), Error> {
    load_page_tables(memory)?;
    memory.write(GDT, &bytes_of(&DESCRIPTORS))?;
    memory.write(TSS + 4, &HANDLER_STACK.to_le_bytes())?;
    memory.write(TSS + 0x66, &PORTS.to_le_bytes())?;
    // A byte of ones has to follow the bitmap.
    memory.write(TSS + TASK_LIMIT, &[0xff])?;
    for line in 0..LINES {
        let handler = HANDLERS + u64::from(line) * HANDLER_STRIDE;
        memory.write(handler, &handler_of(line))?;
        // An interrupt gate; the handler is below 64 KiB.
        let gate = handler | u64::from(KERNEL_CODE) << 16 | 0x8e << 40;
        memory.write(
            IDT + 16 * u64::from(FIRST_VECTOR + line),
            &bytes_of(&[gate, 0]),
        )?;
    }
    Ok(())
}

/// Returns how many interrupts of a line the guest has taken.
pub(super) fn count(memory: &GuestMemory, line: u8) -> Result<u32, MemoryError> {
    let mut count = [0; 4];
    memory.read(counter(line), &mut count)?;
    Ok(u32::from_le_bytes(count))
}

/// Returns where a line's counter is.
pub(super) fn counter(line: u8) -> u64 {
    COUNTERS + 4 * u64::from(line)
}

/// Returns the program that counts an interrupt and tells the local APIC that it has been served.
fn handler_of(line: u8) -> Vec<u8> {
    let counter = u32::try_from(counter(line)).expect("counters are in the first MiB");
    let mut code = vec![0x50]; //                                            push %rax
    code.extend_from_slice(&[0xff, 0x04, 0x25]); //                          incl (counter)
    code.extend_from_slice(&counter.to_le_bytes());
    code.extend_from_slice(&[0xb8, 0xb0, 0x00, 0xe0, 0xfe]); //              mov $0xfee000b0, %eax
    code.extend_from_slice(&[0xc7, 0x00, 0x00, 0x00, 0x00, 0x00]); //        movl $0, (%rax)
    code.extend_from_slice(&[0x58, 0x48, 0xcf]); //                          pop %rax; iretq
    code
}

fn load_page_tables(memory: &GuestMemory) -> Result<(), MemoryError> {
    // Present, writable, for level 3; in a directory also: a page of 2 MiB. Pages of 1 GiB would need no
    // directories, but the nested KVM shuts the guest down on them.
    const TABLE: u64 = 7;
    const LARGE_PAGE: u64 = TABLE | 0x80;
    let directories = ADDRESS_LIMIT >> 30;
    memory.write(PML4, &(PDPT | TABLE).to_le_bytes())?;
    let pointers: Vec<u64> = (0..directories)
        .map(|gib| (DIRECTORIES + gib * 0x1000) | TABLE)
        .collect();
    memory.write(PDPT, &bytes_of(&pointers))?;
    for gib in 0..directories {
        let pages: Vec<u64> = (0..512)
            .map(|page| (gib << 30) | (page << 21) | LARGE_PAGE)
            .collect();
        memory.write(DIRECTORIES + gib * 0x1000, &bytes_of(&pages))?;
    }
    Ok(())
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Returns the registers that a program starts with.
pub(super) fn registers(entry: u64) -> kvm_regs {
    // Bit 1 is always set, 9 lets interrupts in, 12 and 13 allow port I/O at level 3.
    kvm_regs {
        rip: entry,
        rsp: STACK,
        rflags: 0x3202,
        ..kvm_regs::default()
    }
}

/// Returns the registers of the agent.
pub(super) fn agent_registers() -> kvm_regs {
    registers(agent::ENTRY)
}

/// Makes of a processor's state the one of long mode at level 3, with flat segments and the tables of [`load`].
pub(super) fn long_mode(mut sregs: kvm_sregs) -> kvm_sregs {
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    const BUSY_TASK: u8 = 0xb;
    let segment = |selector, type_, long: bool| kvm_segment {
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
    let data = segment(USER_DATA, DATA, false);
    sregs.cs = segment(USER_CODE, CODE, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // The nested KVM asks the bitmap for each port, whatever the flags allow.
    sregs.tr = kvm_segment {
        base: TSS,
        limit: u32::try_from(TASK_LIMIT).expect("three pages"),
        selector: TASK,
        type_: BUSY_TASK,
        present: 1,
        ..kvm_segment::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 8 * 7 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20; // PAE
    sregs.cr0 = 0x8001_0033; // PG, WP, NE, ET, MP, PE
    sregs.efer = 0x500; // LMA, LME
    sregs
}
