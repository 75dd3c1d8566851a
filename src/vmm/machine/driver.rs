//! The guest's second program: a virtio driver in 619 bytes.
//!
//! It finds a device behind virtio-mmio registers, resets it, negotiates features, sets up split queues in RAM, puts a
//! request on one, kicks, takes the interrupt, and reads where the shared memory regions are. The host chooses what it
//! does by a block of words and gets the answers in the same block; every access to the device is the guest's own.
//!
//! A request is one buffer for the device to read and one for it to write, and the driver waits for it: one at a time,
//! one on each queue. Reading what is mapped in a region is the agent's affair.

use std::fmt;

use super::Error;
use super::GuestMemory;
use super::IrqLine;
use super::Machine;
use super::listing::assemble;
use super::memory::MemoryError;
use super::vcpu::Order;
use crate::vmm::mmio::SharedMemoryWindow;

/// Where the program is loaded and starts.
pub(super) const ENTRY: u64 = 0x8800;
/// Where the block is.
const BLOCK: u64 = 0x9400;
/// The words of the block.
const WORDS: usize = 16;
/// The queues' memory, one after the other.
const QUEUES: u64 = 0x58_0000;
/// Bytes of a queue: descriptors, available ring, used ring, request, and four pages of response.
const QUEUE_BYTES: u64 = 0x8000;
const REQUEST: u64 = 0x3000;
const RESPONSE: u64 = 0x4000;
/// The most queues that the driver sets up.
pub const MAX_QUEUES: u16 = 16;
/// The most entries of a queue.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// The most bytes of a request.
pub const MAX_REQUEST_BYTES: usize = 0x1000;
/// The most bytes of a response.
pub const MAX_RESPONSE_BYTES: usize = 0x4000;
/// The least RAM in which the guest's programs have room.
pub(super) const MIN_RAM_BYTES: u64 = QUEUES + QUEUE_BYTES * MAX_QUEUES as u64;

/// The program. A device's registers are at %rbp, the block at %rbx, the queue's memory at %rdi.
const LISTING: &str = "
    bb 00 94 00 00                |          mov $0x9400, %ebx              # the block
    48 8b 6b 08                   |          mov 8(%rbx), %rbp              # the registers
    48 8b 7b 28                   |          mov 0x28(%rbx), %rdi           # the queue's memory
    48 c7 43 50 01 00 00 00       |          movq $1, 0x50(%rbx)            # step 1: the operation
    8b 03                         |          mov (%rbx), %eax
    83 f8 01                      |          cmp $1, %eax
    74 7e                         |          je start
    83 f8 02                      |          cmp $2, %eax
    0f 84 b0 01 00 00             |          je request
    83 f8 03                      |          cmp $3, %eax
    74 37                         |          je region
    83 f8 04                      |          cmp $4, %eax
    74 23                         |          je reset
    83 f8 05                      |          cmp $5, %eax
    74 11                         |          je read
    b8 00 80 00 00                | out:     mov $0x8000, %eax              # back to the agent
    ff e0                         |          jmp *%rax
    48 c7 43 50 00 00 00 00       | done:    movq $0, 0x50(%rbx)            # no step failed
    eb ef                         |          jmp out
    8b 43 48                      | read:    mov 0x48(%rbx), %eax           # READ: which register
    8b 44 05 00                   |          mov (%rbp, %rax), %eax
    48 89 43 58                   |          mov %rax, 0x58(%rbx)
    eb e9                         |          jmp done
    c7 45 70 00 00 00 00          | reset:   movl $0, 0x70(%rbp)            # RESET
    83 7d 70 00                   | 1:       cmpl $0, 0x70(%rbp)
    75 fa                         |          jne 1b
    eb da                         |          jmp done
    8b 43 48                      | region:  mov 0x48(%rbx), %eax           # REGION: which id
    89 85 ac 00 00 00             |          mov %eax, 0xac(%rbp)
    8b 85 b4 00 00 00             |          mov 0xb4(%rbp), %eax
    48 c1 e0 20                   |          shl $32, %rax
    8b 8d b0 00 00 00             |          mov 0xb0(%rbp), %ecx
    48 09 c8                      |          or %rcx, %rax
    48 89 43 70                   |          mov %rax, 0x70(%rbx)           # its length
    8b 85 bc 00 00 00             |          mov 0xbc(%rbp), %eax
    48 c1 e0 20                   |          shl $32, %rax
    8b 8d b8 00 00 00             |          mov 0xb8(%rbp), %ecx
    48 09 c8                      |          or %rcx, %rax
    48 89 43 78                   |          mov %rax, 0x78(%rbx)           # its base
    eb a1                         |          jmp done
    48 ff 43 50                   | start:   incq 0x50(%rbx)                # START, step 2: is there a device
    81 7d 00 76 69 72 74          |          cmpl $0x74726976, (%rbp)
    75 8d                         |          jne out
    83 7d 04 02                   |          cmpl $2, 4(%rbp)
    75 87                         |          jne out
    8b 45 08                      |          mov 8(%rbp), %eax
    48 89 43 58                   |          mov %rax, 0x58(%rbx)           # its type
    85 c0                         |          test %eax, %eax
    0f 84 78 ff ff ff             |          je out
    c7 45 70 00 00 00 00          |          movl $0, 0x70(%rbp)            # reset
    83 7d 70 00                   | 1:       cmpl $0, 0x70(%rbp)
    75 fa                         |          jne 1b
    c7 45 70 01 00 00 00          |          movl $1, 0x70(%rbp)            # ACKNOWLEDGE
    c7 45 70 03 00 00 00          |          movl $3, 0x70(%rbp)            # DRIVER
    48 ff 43 50                   |          incq 0x50(%rbx)                # step 3: features
    c7 45 14 01 00 00 00          |          movl $1, 0x14(%rbp)
    8b 45 10                      |          mov 0x10(%rbp), %eax
    48 c1 e0 20                   |          shl $32, %rax
    c7 45 14 00 00 00 00          |          movl $0, 0x14(%rbp)
    8b 4d 10                      |          mov 0x10(%rbp), %ecx
    48 09 c8                      |          or %rcx, %rax                  # what is offered
    48 23 43 10                   |          and 0x10(%rbx), %rax           # what is wanted of it
    48 89 43 60                   |          mov %rax, 0x60(%rbx)
    c7 45 24 00 00 00 00          |          movl $0, 0x24(%rbp)
    89 45 20                      |          mov %eax, 0x20(%rbp)
    48 c1 e8 20                   |          shr $32, %rax
    c7 45 24 01 00 00 00          |          movl $1, 0x24(%rbp)
    89 45 20                      |          mov %eax, 0x20(%rbp)
    c7 45 70 0b 00 00 00          |          movl $11, 0x70(%rbp)           # FEATURES_OK
    f7 45 70 08 00 00 00          |          testl $8, 0x70(%rbp)
    0f 84 0a ff ff ff             |          je out
    48 ff 43 50                   |          incq 0x50(%rbx)                # step 4: queues
    8b 4b 20                      |          mov 0x20(%rbx), %ecx           # their size
    31 f6                         |          xor %esi, %esi                 # the first
    48 3b 73 18                   | queue:   cmp 0x18(%rbx), %rsi           # as many as wanted
    74 7f                         |          je ready
    89 75 30                      |          mov %esi, 0x30(%rbp)
    39 4d 34                      |          cmp %ecx, 0x34(%rbp)
    0f 82 ef fe ff ff             |          jb out                         # larger than the device allows
    89 4d 38                      |          mov %ecx, 0x38(%rbp)
    c7 87 00 10 00 00 00 00 00 00 |          movl $0, 0x1000(%rdi)          # nothing available
    c7 87 00 20 00 00 00 00 00 00 |          movl $0, 0x2000(%rdi)          # nothing used
    89 bd 80 00 00 00             |          mov %edi, 0x80(%rbp)
    c7 85 84 00 00 00 00 00 00 00 |          movl $0, 0x84(%rbp)
    8d 87 00 10 00 00             |          lea 0x1000(%rdi), %eax
    89 85 90 00 00 00             |          mov %eax, 0x90(%rbp)
    c7 85 94 00 00 00 00 00 00 00 |          movl $0, 0x94(%rbp)
    8d 87 00 20 00 00             |          lea 0x2000(%rdi), %eax
    89 85 a0 00 00 00             |          mov %eax, 0xa0(%rbp)
    c7 85 a4 00 00 00 00 00 00 00 |          movl $0, 0xa4(%rbp)
    c7 45 44 01 00 00 00          |          movl $1, 0x44(%rbp)
    83 7d 44 01                   |          cmpl $1, 0x44(%rbp)
    0f 85 8b fe ff ff             |          jne out
    48 ff c6                      |          inc %rsi
    48 81 c7 00 80 00 00          |          add $0x8000, %rdi              # the next
    e9 7b ff ff ff                |          jmp queue
    48 ff 43 50                   | ready:   incq 0x50(%rbx)                # step 5: go
    c7 45 70 0f 00 00 00          |          movl $15, 0x70(%rbp)           # DRIVER_OK
    f7 45 70 40 00 00 00          |          testl $0x40, 0x70(%rbp)
    0f 85 64 fe ff ff             |          jne out                        # the device needs a reset
    e9 66 fe ff ff                |          jmp done
    48 8d 87 00 30 00 00          | request: lea 0x3000(%rdi), %rax         # REQUEST: descriptor 0, the device reads
    48 89 07                      |          mov %rax, (%rdi)
    8b 43 30                      |          mov 0x30(%rbx), %eax
    89 47 08                      |          mov %eax, 8(%rdi)
    c7 47 0c 01 00 01 00          |          movl $0x10001, 12(%rdi)        # and 1 follows
    48 8d 87 00 40 00 00          |          lea 0x4000(%rdi), %rax         # descriptor 1, the device writes
    48 89 47 10                   |          mov %rax, 16(%rdi)
    8b 43 38                      |          mov 0x38(%rbx), %eax
    89 47 18                      |          mov %eax, 24(%rdi)
    c7 47 1c 02 00 00 00          |          movl $2, 28(%rdi)
    8b 53 20                      |          mov 0x20(%rbx), %edx
    ff ca                         |          dec %edx                       # the mask of the rings
    0f b7 87 02 10 00 00          |          movzwl 0x1002(%rdi), %eax
    89 c1                         |          mov %eax, %ecx
    21 d1                         |          and %edx, %ecx
    66 c7 84 4f 04 10 00 00 00 00 |          movw $0, 0x1004(%rdi, %rcx, 2) # the chain of descriptor 0
    4c 8b 43 40                   |          mov 0x40(%rbx), %r8
    45 8b 08                      |          mov (%r8), %r9d                # interrupts so far
    ff c0                         |          inc %eax
    66 89 87 02 10 00 00          |          mov %ax, 0x1002(%rdi)          # is available
    8b 43 48                      |          mov 0x48(%rbx), %eax
    89 45 50                      |          mov %eax, 0x50(%rbp)           # kick
    f3 90                         | 1:       pause
    41 8b 00                      |          mov (%r8), %eax
    41 39 c1                      |          cmp %eax, %r9d
    74 f6                         |          je 1b                          # until there is another
    41 89 c1                      |          mov %eax, %r9d
    8b 45 60                      |          mov 0x60(%rbp), %eax           # whatever it was for
    89 45 64                      |          mov %eax, 0x64(%rbp)           # acknowledged
    0f b7 8f 02 20 00 00          |          movzwl 0x2002(%rdi), %ecx
    66 39 8f 02 10 00 00          |          cmp %cx, 0x1002(%rdi)
    75 dd                         |          jne 1b                         # not used yet
    ff c9                         |          dec %ecx
    21 d1                         |          and %edx, %ecx
    8b 84 cf 08 20 00 00          |          mov 0x2008(%rdi, %rcx, 8), %eax
    48 89 43 68                   |          mov %rax, 0x68(%rbx)           # the bytes that the device wrote
    e9 d0 fd ff ff                |          jmp done
";

/// A word of the block.
#[derive(Clone, Copy)]
enum Word {
    Operation = 0x00,
    Registers = 0x08,
    /// Features that are accepted if they are offered.
    Wanted = 0x10,
    QueueCount = 0x18,
    QueueSize = 0x20,
    QueueMemory = 0x28,
    RequestLen = 0x30,
    ResponseLen = 0x38,
    /// The address of the line's counter of interrupts.
    Counter = 0x40,
    /// A queue, a region's id, or a register's offset.
    Which = 0x48,
    /// 0, or the step that failed.
    Step = 0x50,
    /// The device's type, or a register's content.
    Value = 0x58,
    Accepted = 0x60,
    /// What the device says that it wrote.
    Written = 0x68,
    RegionLen = 0x70,
    RegionBase = 0x78,
}

/// What the driver is to do; the numbers are the program's.
#[derive(Clone, Copy)]
enum Operation {
    Start = 1,
    Request = 2,
    Region = 3,
    Reset = 4,
    Read = 5,
}

/// What the host and the driver tell each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Block([u64; WORDS]);

impl Block {
    fn get(&self, word: Word) -> u64 {
        self.0[word as usize / 8]
    }

    fn set(mut self, word: Word, value: u64) -> Self {
        self.0[word as usize / 8] = value;
        self
    }

    /// Puts the block where the driver reads it.
    pub(super) fn store(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(BLOCK, &bytes)
    }

    /// Reads the block that the driver has filled.
    pub(super) fn load(memory: &GuestMemory) -> Result<Self, MemoryError> {
        let mut block = Self::default();
        for (word, address) in block.0.iter_mut().zip((BLOCK..).step_by(8)) {
            let mut bytes = [0; 8];
            memory.read(address, &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(block)
    }
}

/// Puts the program into RAM.
pub(super) fn load(memory: &GuestMemory) -> Result<(), MemoryError> {
    memory.write(ENTRY, &assemble(LISTING))
}

/// Where the driver gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverStep {
    /// There is no device with these registers.
    Find,
    /// The device does not work with the features.
    Features,
    /// A queue is not there, or too small.
    Queues,
    /// The device could not start, and needs a reset.
    Start,
}

impl fmt::Display for DriverStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Find => "there is no device",
            Self::Features => "the device refuses the features",
            Self::Queues => "a queue is missing or too small",
            Self::Start => "the device needs a reset",
        })
    }
}

/// What the driver wants of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// The features that are accepted where they are offered. Version 1 has to be among them.
    pub features: u64,
    /// How many queues are set up, from the first on; at most [`MAX_QUEUES`].
    pub queues: u16,
    /// Entries of each, a power of two from 2 to [`MAX_QUEUE_SIZE`].
    pub queue_size: u16,
}

/// A device as the driver found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The device's type.
    pub device_type: u32,
    /// The features that both know.
    pub features: u64,
}

/// The driver in the guest, for one device. Each call runs it, within the machine's deadline.
pub struct GuestDriver<'m> {
    machine: &'m Machine,
    registers: u64,
    line: IrqLine,
    config: DriverConfig,
}

impl<'m> GuestDriver<'m> {
    /// Makes a driver for the device with registers at a guest address and an interrupt.
    pub(super) fn new(
        machine: &'m Machine,
        registers: u64,
        line: IrqLine,
        config: DriverConfig,
    ) -> Result<Self, Error> {
        let DriverConfig {
            queues, queue_size, ..
        } = config;
        if queues > MAX_QUEUES
            || !queue_size.is_power_of_two()
            || !(2..=MAX_QUEUE_SIZE).contains(&queue_size)
        {
            return Err(Error::DriverQueues { queues, queue_size });
        }
        Ok(Self {
            machine,
            registers,
            line,
            config,
        })
    }

    /// Resets the device and brings it up.
    ///
    /// # Errors
    /// [`Error::Driver`] with the step that failed; those of an order.
    pub fn start(&self) -> Result<Started, Error> {
        let block = self
            .block(Operation::Start)
            .set(Word::Wanted, self.config.features)
            .set(Word::QueueCount, self.config.queues.into());
        let block = self.run(block)?;
        Ok(Started {
            device_type: low(block.get(Word::Value)),
            features: block.get(Word::Accepted),
        })
    }

    /// Puts a request on a queue, kicks the device, waits for its interrupt, and returns what it wrote.
    ///
    /// # Errors
    /// [`Error::DriverRequest`] for a queue that was not set up and sizes that have no room; those of an order: the
    /// deadline's if the device does not use the request.
    pub fn request(
        &self,
        queue: u16,
        request: &[u8],
        response_len: usize,
    ) -> Result<Vec<u8>, Error> {
        let sizes = (1..=MAX_REQUEST_BYTES).contains(&request.len())
            && (1..=MAX_RESPONSE_BYTES).contains(&response_len);
        if queue >= self.config.queues || !sizes {
            return Err(Error::DriverRequest {
                queue,
                request: request.len(),
                response: response_len,
            });
        }
        let memory = QUEUES + u64::from(queue) * QUEUE_BYTES;
        self.machine.memory().write(memory + REQUEST, request)?;
        let block = self
            .block(Operation::Request)
            .set(Word::QueueMemory, memory)
            .set(Word::RequestLen, request.len() as u64)
            .set(Word::ResponseLen, response_len as u64)
            .set(Word::Which, queue.into());
        let written = self.run(block)?.get(Word::Written);
        let written = usize::try_from(written)
            .unwrap_or(usize::MAX)
            .min(response_len);
        let mut response = vec![0; written];
        self.machine
            .memory()
            .read(memory + RESPONSE, &mut response)?;
        Ok(response)
    }

    /// Reads where a shared memory region is. None if the device has none with this id.
    ///
    /// # Errors
    /// Those of an order.
    pub fn shared_memory(&self, shmid: u32) -> Result<Option<SharedMemoryWindow>, Error> {
        let block = self.run(self.block(Operation::Region).set(Word::Which, shmid.into()))?;
        let (guest_address, len) = (block.get(Word::RegionBase), block.get(Word::RegionLen));
        Ok((len != u64::MAX).then_some(SharedMemoryWindow { guest_address, len }))
    }

    /// Reads a register, or 4 bytes of the configuration.
    ///
    /// # Errors
    /// Those of an order.
    pub fn read_register(&self, offset: u32) -> Result<u32, Error> {
        let block = self.run(self.block(Operation::Read).set(Word::Which, offset.into()))?;
        Ok(low(block.get(Word::Value)))
    }

    /// Resets the device.
    ///
    /// # Errors
    /// Those of an order.
    pub fn reset(&self) -> Result<(), Error> {
        self.run(self.block(Operation::Reset)).map(|_| ())
    }

    /// Returns the line that the device interrupts by.
    pub fn line(&self) -> &IrqLine {
        &self.line
    }

    fn block(&self, operation: Operation) -> Block {
        Block::default()
            .set(Word::Operation, operation as u64)
            .set(Word::Registers, self.registers)
            .set(Word::QueueSize, self.config.queue_size.into())
            .set(Word::QueueMemory, QUEUES)
            .set(Word::Counter, self.line.counter())
    }

    fn run(&self, block: Block) -> Result<Block, Error> {
        let block = self.machine.guest()?.order(Order::Drive { block })?.block;
        let step = match block.get(Word::Step) {
            0 => return Ok(block),
            3 => DriverStep::Features,
            4 => DriverStep::Queues,
            5 => DriverStep::Start,
            _ => DriverStep::Find,
        };
        Err(Error::Driver {
            registers: self.registers,
            step,
        })
    }
}

/// Returns the low half of a word.
fn low(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_what_an_assembler_makes_of_the_text() {
        super::super::listing::check(LISTING);
        assert_eq!(assemble(LISTING).len(), 619);
    }

    #[test]
    fn block_has_its_words_where_the_program_looks() {
        let block = Block::default().set(Word::Operation, 1).set(Word::Step, 2);
        assert_eq!((block.0[0], block.0[10]), (1, 2));
    }
}
