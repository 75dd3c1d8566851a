//! An accepted request costs no heap allocation, in the worker and in the mapping service.
//!
//! A program of its own, since the allocator that counts is the whole program's.

// UNSAFETY: an allocator can't be written without; this one counts and passes everything on.
#![expect(unsafe_code, reason = "implements GlobalAlloc")]

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator with the arguments that came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, so from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use base::Event;
    use base::scm;
    use devices::in_process::InProcessDevice;
    use vm_control::ArenaVm;
    use vm_control::DeviceConfig;
    use vm_control::MappingService;
    use vm_control::RegionConfig;
    use vm_control::ServiceConfig;

    use super::ALLOCATIONS;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const PAGE: u64 = 4096;
    const SLOTS: u64 = 64;

    /// A map or unmap request of one page, with an ack.
    fn message(code: u32, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [code, 9, 40] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [0, 0, offset, PAGE, 0_u64] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn exchange(channel: &UnixStream, requests: &[Vec<u8>], descriptor: Option<&OwnedFd>) {
        let descriptor = descriptor.map(AsFd::as_fd);
        for request in requests {
            let slices = [IoSlice::new(request)];
            let sent = scm::send(
                channel.as_fd(),
                &slices,
                descriptor.as_slice(),
                scm::Wait::Block,
            );
            assert_eq!(sent, Ok(request.len()));
        }
        let mut replies = [[0; 20]; 64];
        let replies = &mut replies[..requests.len()];
        (&*channel)
            .read_exact(replies.as_flattened_mut())
            .expect("replies");
        assert!(replies.iter().all(|reply| reply[12..] == [0; 8]));
    }

    #[test]
    fn accepted_requests_allocate_nothing() {
        let vm = Box::new(ArenaVm::new());
        let service = MappingService::start(vm, ServiceConfig::default()).unwrap();
        let (device, memory) = service
            .handle()
            .add_device(DeviceConfig::new("counted"))
            .unwrap();
        let region = RegionConfig {
            shmid: 0,
            guest_address: 1 << 32,
            len: SLOTS * PAGE,
            arena: None,
            populate: 0,
        };
        service.handle().add_region(device, region).unwrap();
        let (_device, theirs) = InProcessDevice::start(memory, Event::new().unwrap()).unwrap();
        let channel = UnixStream::from(OwnedFd::from(theirs));
        channel.set_read_timeout(Some(TIMEOUT)).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE).unwrap();
        let file = OwnedFd::from(file);
        let maps: Vec<_> = (0..SLOTS).map(|slot| message(9, slot * PAGE)).collect();
        let unmaps: Vec<_> = (0..SLOTS).map(|slot| message(10, slot * PAGE)).collect();
        let round = || {
            // All at once, then one by one.
            exchange(&channel, &maps, Some(&file));
            exchange(&channel, &unmaps, None);
            for (map, unmap) in maps.iter().zip(&unmaps) {
                exchange(&channel, std::slice::from_ref(map), Some(&file));
                exchange(&channel, std::slice::from_ref(unmap), None);
            }
        };
        // The first requests fill what is kept for the later ones.
        round();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..3 {
            round();
        }
        let after = ALLOCATIONS.load(Ordering::Relaxed);
        assert_eq!(after - before, 0, "for {} pairs", 3 * 2 * SLOTS);
    }
}
