//! The guest's agent: a program of 62 bytes that copies and sums guest physical memory for the host.
//!
//! The agent says that it is ready by an `out` to [`PORT`]. The host then fills the [`Order`] and lets it go on; the
//! next `out` says that the order has been carried out. An order is a copy between RAM and anywhere, and for a sum
//! the words of the copy are added up. All that is not RAM is touched by one instruction, at [`COPY`], whose registers
//! tell how far it came: a fault there can be completed by the host, with nothing to decode.

use super::GuestMemory;
use super::listing::assemble;
use super::memory::MemoryError;

/// The port that the agent reports to.
pub(super) const PORT: u16 = 0x50;
/// Where the agent is loaded and starts.
pub(super) const ENTRY: u64 = 0x8000;
/// The address of the only instruction that touches what is not RAM.
pub(super) const COPY: u64 = ENTRY + 0x12;
/// Where the order is.
pub(super) const ORDER: u64 = 0x9000;
/// Where the bytes of an order are.
pub(super) const BUFFER: u64 = 0x40_0000;
/// The most bytes of one order. The buffer has a page more, for the zeros behind a sum's last bytes.
pub(super) const MAX_ORDER_BYTES: u64 = 1 << 20;
/// The program.
const LISTING: &str = "
    bb 00 90 00 00 | mov $0x9000, %ebx    # the order
    e7 50          | out %eax, $0x50      # done, and ready for the next
    48 8b 33       | mov (%rbx), %rsi     # source
    48 8b 7b 08    | mov 8(%rbx), %rdi    # target
    48 8b 4b 10    | mov 16(%rbx), %rcx   # bytes
    f3 a4          | rep movsb            # the copy, at COPY
    48 8b 4b 18    | mov 24(%rbx), %rcx   # words to sum, none for a copy
    48 85 c9       | test %rcx, %rcx
    74 e8          | je . - 22            # to the out
    31 c0          | xor %eax, %eax
    48 ab          | stosq                # zeros behind the last bytes
    48 8b 73 08    | mov 8(%rbx), %rsi    # the copy
    48 8b 53 20    | mov 32(%rbx), %rdx   # total so far
    48 d1 c2       | rol $1, %rdx
    48 03 16       | add (%rsi), %rdx
    48 83 c6 08    | add $8, %rsi
    48 ff c9       | dec %rcx
    75 f1          | jne . - 13           # to the rol
    48 89 53 20    | mov %rdx, 32(%rbx)   # the total
    eb c7          | jmp . - 55           # to the out
";

/// What the agent is told and, in `total`, what it answers: five little-endian words at [`ORDER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) bytes: u64,
    pub(super) words: u64,
    pub(super) total: u64,
}

impl Order {
    /// An order that copies guest memory into the buffer.
    pub(super) fn peek(guest_address: u64, bytes: u64) -> Self {
        Self {
            source: guest_address,
            target: BUFFER,
            bytes,
            words: 0,
            total: 0,
        }
    }

    /// An order that copies the buffer to guest memory.
    pub(super) fn poke(guest_address: u64, bytes: u64) -> Self {
        Self {
            source: BUFFER,
            target: guest_address,
            bytes,
            words: 0,
            total: 0,
        }
    }

    /// An order that goes on with the sum `total`.
    pub(super) fn sum(guest_address: u64, bytes: u64, total: u64) -> Self {
        Self {
            words: bytes.div_ceil(8),
            total,
            ..Self::peek(guest_address, bytes)
        }
    }

    /// Puts the order where the agent reads it.
    pub(super) fn store(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        let mut block = [0; 40];
        let words = [self.source, self.target, self.bytes, self.words, self.total];
        for (bytes, word) in block.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        memory.write(ORDER, &block)
    }

    /// Reads the total that the agent left.
    pub(super) fn load_total(memory: &GuestMemory) -> Result<u64, MemoryError> {
        let mut total = [0; 8];
        memory.read(ORDER + 32, &mut total)?;
        Ok(u64::from_le_bytes(total))
    }
}

/// Puts the program into RAM.
pub(super) fn load(memory: &GuestMemory) -> Result<(), MemoryError> {
    memory.write(ENTRY, &assemble(LISTING))
}

/// Sums bytes as the guest does: little-endian words of 8 bytes, the last one filled up with zeros; for each word
/// the total is rotated left by one bit and the word is added, without regard to overflow. Swapped pages give
/// another sum.
pub fn host_sum(bytes: &[u8]) -> u64 {
    continue_sum(0, bytes)
}

/// Goes on with a sum. All parts but the last must be made of whole words.
pub(super) fn continue_sum(total: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let add =
        |total: u64, word: [u8; 8]| total.rotate_left(1).wrapping_add(u64::from_le_bytes(word));
    let mut total = words.by_ref().fold(total, |total, word| {
        add(total, word.try_into().expect("8 bytes"))
    });
    if !words.remainder().is_empty() {
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        total = add(total, last);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_of_a_few_words_is_as_computed_by_hand() {
        assert_eq!(host_sum(&[]), 0);
        assert_eq!(host_sum(&[5]), 5);
        assert_eq!(
            host_sum(&[1, 0, 0, 0, 0, 0, 0, 0x80]),
            0x8000_0000_0000_0001
        );
        // 0x8000000000000001 rotated is 3; plus 0x0201.
        assert_eq!(host_sum(&[1, 0, 0, 0, 0, 0, 0, 0x80, 1, 2]), 0x0204);
    }

    #[test]
    fn sum_continues_over_whole_words() {
        let bytes: Vec<u8> = (0..=250).collect();
        assert_eq!(
            continue_sum(host_sum(&bytes[..160]), &bytes[160..]),
            host_sum(&bytes)
        );
    }

    #[test]
    fn copy_instruction_is_where_the_host_expects_it() {
        let at = usize::try_from(COPY - ENTRY).unwrap();
        assert_eq!(assemble(LISTING)[at..at + 2], [0xf3, 0xa4]);
        assert_eq!(assemble(LISTING).len(), 62);
    }

    #[test]
    fn bytes_are_what_an_assembler_makes_of_the_text() {
        super::super::listing::check(LISTING);
    }
}
