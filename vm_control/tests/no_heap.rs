//! An accepted request touches the heap neither in the service nor in its client: counted, for all threads, by the allocator of
//! this program, which has one test only.

// UNSAFETY: an allocator is an implementation of an unsafe trait, and only an allocator sees every allocation.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

fn count() {
    ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
}

// SAFETY: everything is the system's allocator; the counter beside it is a plain number.
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
    use std::time::Duration;

    use base::Protection;
    use base::SafeDescriptor;
    use base::SharedMemory;
    use base::WaitContext;
    use vm_control::ArenaVm;
    use vm_control::DeviceConfig;
    use vm_control::Generation;
    use vm_control::MAX_BATCH;
    use vm_control::MappingService;
    use vm_control::RegionConfig;
    use vm_control::ServiceConfig;
    use vm_control::VmMemoryDestination;
    use vm_control::VmMemoryRequest;
    use vm_control::VmMemoryResponse;
    use vm_control::VmMemorySource;
    use vm_control::api::BatchClient;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const SLOT: u64 = 64 << 10;
    const SLOTS: u64 = 4096;

    struct Driver {
        client: BatchClient,
        answers: WaitContext<u32>,
        memory: SafeDescriptor,
    }

    impl Driver {
        /// Asks for all requests, `at_once` of them a packet, and waits for their answers.
        fn run(&mut self, requests: impl Iterator<Item = VmMemoryRequest>, at_once: usize) {
            let mut waiting = 0;
            for request in requests {
                self.client.push(request).expect("there is room");
                waiting += 1;
                if waiting == at_once {
                    self.exchange(waiting);
                    waiting = 0;
                }
            }
            assert_eq!(waiting, 0, "the requests fill their packets");
        }

        fn exchange(&mut self, expected: usize) {
            assert_eq!(self.client.try_send(), Ok(true));
            let ready = self.answers.wait_timeout(TIMEOUT).expect("it waits");
            assert_eq!(ready.len(), 1, "no answer within {TIMEOUT:?}");
            let batch = self.client.try_recv().expect("answered").expect("a packet");
            assert_eq!(batch.responses.len(), expected);
            let accepted = |response: &VmMemoryResponse| *response == VmMemoryResponse::Ok;
            assert!(batch.responses.iter().all(accepted), "{batch:?}");
        }

        /// Maps a part of the slots, from `first` on, and unmaps them again.
        fn pairs(&mut self, first: u64, count: u64, at_once: usize) {
            let memory = self.memory.try_clone().expect("a duplicate");
            let slots = || (first..first + count).map(|slot| slot % SLOTS * SLOT);
            let map = |offset| VmMemoryRequest::RegisterMemory {
                source: VmMemorySource::Descriptor {
                    descriptor: memory.try_clone().expect("a duplicate"),
                    offset,
                },
                dest: VmMemoryDestination { shmid: 0, offset },
                len: SLOT,
                prot: Protection::read_write(),
            };
            let unmap = |offset| VmMemoryRequest::UnregisterMemory {
                dest: VmMemoryDestination { shmid: 0, offset },
                len: SLOT,
            };
            self.run(slots().map(map), at_once);
            self.run(slots().map(unmap), at_once);
        }

        /// How often anybody allocated during the second of two passes over `slots` slots, with up to `live` mappings.
        fn allocations(&mut self, slots: u64, live: u64, at_once: usize) -> u64 {
            let mut pass = || {
                for first in (0..slots).step_by(usize::try_from(live).expect("small")) {
                    self.pairs(first, live, at_once);
                }
            };
            pass();
            let before = ALLOCATIONS.load(Ordering::SeqCst);
            pass();
            ALLOCATIONS.load(Ordering::SeqCst) - before
        }
    }

    #[test]
    fn accepted_requests_do_not_allocate() {
        let vm = Box::new(ArenaVm::new());
        let service = MappingService::start(vm, ServiceConfig::default()).expect("it starts");
        let handle = service.handle();
        let (id, tube) = handle
            .add_device(DeviceConfig::new("fs0"))
            .expect("a device");
        let region = RegionConfig {
            shmid: 0,
            guest_address: 1 << 32,
            len: SLOTS * SLOT,
            arena: None,
            populate: 0,
        };
        handle.add_region(id, region).expect("a region");
        let client = BatchClient::new(tube, Generation::default());
        let memory = SharedMemory::new("test", SLOTS * SLOT).expect("memory");
        let mut driver = Driver {
            answers: WaitContext::build_with(&[(&client, 0)]).expect("a wait context"),
            client,
            memory: memory.into(),
        };
        assert_eq!(driver.allocations(256, 1, 1), 0, "one at a time");
        assert_eq!(driver.allocations(SLOTS, 512, MAX_BATCH), 0, "in batches");
        let counters = handle.stats().remove(0).counters;
        let pairs = 2 * 256 + 2 * SLOTS;
        assert_eq!((counters.maps, counters.unmaps), (pairs, pairs));
        assert_eq!(counters.refused_total(), 0);
    }
}
