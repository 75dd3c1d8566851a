//! The hot path does not touch the heap: counted, per thread, by the allocator of this program.

// UNSAFETY: an allocator is an implementation of an unsafe trait.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: everything is the system's allocator; the counter beside it is a plain thread-local number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::io::IoSliceMut;
    use std::os::fd::AsFd;

    use arrayvec::ArrayVec;
    use base::Event;
    use base::EventToken;
    use base::MemoryMappingArena;
    use base::Protection;
    use base::SafeDescriptor;
    use base::SharedMemory;
    use base::Tube;
    use base::TubeError;
    use base::WaitContext;
    use base::packet::PacketTube;
    use base::scm;
    use base::scm::DescriptorVec;
    use base::scm::Wait;
    use serde::Deserialize;
    use serde::Serialize;

    use super::ALLOCATIONS;

    /// Runs `round` twice and returns how often the second one allocated.
    fn allocations(mut round: impl FnMut()) -> u64 {
        round();
        let before = ALLOCATIONS.get();
        round();
        ALLOCATIONS.get() - before
    }

    #[derive(Serialize, Deserialize)]
    struct Batch {
        requests: ArrayVec<Request, 32>,
    }

    #[derive(Serialize, Deserialize)]
    enum Request {
        Map {
            descriptor: SafeDescriptor,
            offset: u64,
        },
        Unmap {
            offset: u64,
        },
    }

    #[test]
    fn counter_sees_an_allocation() {
        let count = allocations(|| drop(std::hint::black_box(Box::new(1))));
        assert_eq!(count, 1);
    }

    #[test]
    fn socket_send_and_recv_do_not_allocate() {
        let (near, far) = scm::stream_pair().expect("a pair is made");
        let event = Event::new().expect("an eventfd is made");
        let count = allocations(|| {
            let bufs = [IoSlice::new(b"hello")];
            scm::send(near.as_fd(), &bufs, &[event.as_fd()], Wait::Never).expect("sends");
            let mut buffer = [0; 64];
            let bufs = &mut [IoSliceMut::new(&mut buffer)];
            let mut descriptors = DescriptorVec::<8>::new();
            scm::recv(far.as_fd(), bufs, &mut descriptors, Wait::Never).expect("receives");
            assert_eq!(descriptors.len(), 1);
        });
        assert_eq!(count, 0);
    }

    /// Calls `round` with the two ends of a tube and a batch to send, and returns how often it allocated.
    fn allocations_with(mut round: impl FnMut(&mut PacketTube, &mut PacketTube, &Batch)) -> u64 {
        let (near, far) = Tube::pair().expect("a pair is made");
        let (mut near, mut far) = (PacketTube::new(near), PacketTube::new(far));
        let event = Event::new().expect("an eventfd is made");
        let mut requests = ArrayVec::new();
        for offset in 0..16 {
            let descriptor = event.try_clone().expect("duplicates").into();
            requests.push(Request::Map { descriptor, offset });
            requests.push(Request::Unmap { offset });
        }
        let batch = Batch { requests };
        allocations(|| round(&mut near, &mut far, &batch))
    }

    #[test]
    fn packet_tube_without_waiting_does_not_allocate() {
        let count = allocations_with(|near, far, batch| {
            near.try_send(batch).expect("sends");
            let received = far.try_recv::<Batch>().expect("a message");
            assert_eq!(received.requests.len(), 32);
            let empty = far.try_recv::<Batch>();
            assert!(matches!(empty, Err(TubeError::WouldBlock)));
        });
        assert_eq!(count, 0);
    }

    #[test]
    fn packet_tube_that_waits_does_not_allocate() {
        let count = allocations_with(|near, far, batch| {
            near.send(batch).expect("sends");
            let received = far.recv::<Batch>().expect("a message");
            assert_eq!(received.requests.len(), 32);
        });
        assert_eq!(count, 0);
    }

    #[test]
    fn tube_does_not_allocate() {
        let (near, far) = Tube::pair().expect("a pair is made");
        let count = allocations(|| {
            near.send(&1u64).expect("sends");
            assert_eq!(far.recv::<u64>().expect("a message"), 1);
        });
        assert_eq!(count, 0);
    }

    #[test]
    fn refused_packet_allocates_no_more_than_its_length() {
        let (near, far) = Tube::pair().expect("a pair is made");
        let mut far = PacketTube::new(far);
        // The length of a list, 2^62, without the list.
        let packet = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
        let count = allocations(|| {
            scm::send(near.as_fd(), &[IoSlice::new(&packet)], &[], Wait::Never).expect("sends");
            let outcome = far.try_recv::<Vec<u64>>();
            assert!(matches!(outcome, Err(TubeError::Decode(_))));
        });
        assert_eq!(count, 0);
    }

    #[derive(EventToken)]
    enum Token {
        One(u32),
    }

    #[test]
    fn wait_does_not_allocate() {
        let events: Vec<Event> = (0..20)
            .map(|_| Event::new().expect("an eventfd is made"))
            .collect();
        let context = WaitContext::new().expect("a set is made");
        for (event, index) in events.iter().zip(0..) {
            context.add(event, Token::One(index)).expect("added");
            event.signal().expect("signals");
        }
        let count = allocations(|| {
            let ready = context.wait().expect("waits");
            assert_eq!(ready.len(), 16);
        });
        assert_eq!(count, 0);
    }

    #[test]
    fn mapping_and_unmapping_do_not_allocate() {
        let memory = SharedMemory::new("test", 4096).expect("memory is made");
        let arena = MemoryMappingArena::new(1 << 16).expect("the range is reserved");
        let count = allocations(|| {
            arena
                .add_fd_mapping(4096, 4096, &memory, 0, Protection::read())
                .expect("maps");
            base::inspect(memory.as_fd()).expect("it is open");
            base::seals(memory.as_fd()).expect("it has seals");
            arena.remove_mapping(4096, 4096).expect("unmaps");
        });
        assert_eq!(count, 0);
    }
}
