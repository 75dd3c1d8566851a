//! An accepted request costs no heap allocation, from its bytes to its reply.
//!
//! The allocator of this program counts; one test alone in its process.

#![expect(unsafe_code, reason = "see below")]
// UNSAFETY: an allocator is an unsafe trait, and only an allocator sees every allocation.

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;
use std::cell::Cell;

/// The system's allocator, with a count of each thread's allocations.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count_one() {
    // A thread that is ending has no count any more; it allocates nothing that matters here.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every method passes its arguments on to the system's allocator and returns what that
// returns; counting touches no allocated memory and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_one();
        // SAFETY: the caller's duties for `layout` are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from `alloc` or `realloc` above with this layout, so from the
        // system's allocator.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_one();
        // SAFETY: as for `dealloc`; the caller's duties for `size` are those of the system's
        // allocator.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use base::scm;
    use vmm_vhost::Ack;
    use vmm_vhost::ChannelConfig;
    use vmm_vhost::Flush;
    use vmm_vhost::FrontendClient;
    use vmm_vhost::Negotiated;
    use vmm_vhost::Received;
    use vmm_vhost::RequestChannel;
    use vmm_vhost::Ticket;
    use vmm_vhost::message::MmapPayload;
    use vmm_vhost::message::ProtocolFeatures;

    const BATCH: usize = 32;

    /// Sends a batch of maps and a batch of unmaps, serves them in any order, reads the replies.
    fn round(
        client: &mut FrontendClient,
        channel: &mut RequestChannel,
        tickets: &mut Vec<Ticket>,
        file: &File,
    ) {
        let payload = MmapPayload {
            len: 0x1000,
            ..MmapPayload::default()
        };
        for _ in 0..BATCH {
            client
                .shmem_map_nowait(&payload, file.as_fd(), Ack::Wanted)
                .expect("the channel is there");
        }
        for _ in 0..BATCH {
            client
                .shmem_unmap_nowait(&payload, Ack::Wanted)
                .expect("the channel is there");
        }
        while let Received::Bytes(_) = channel.receive().expect("the client is there") {
            while let Some(incoming) = channel.next_request().expect("framing holds") {
                tickets.push(incoming.ticket);
            }
        }
        assert_eq!(tickets.len(), 2 * BATCH);
        while let Some(ticket) = tickets.pop() {
            channel.complete(ticket, Ok(0));
        }
        assert!(matches!(channel.flush(), Ok(Flush::Done)));
        client.read_replies(2 * BATCH).expect("all succeed");
    }

    #[test]
    fn accepted_requests_and_their_replies_allocate_nothing() {
        let (ours, theirs) = scm::stream_pair().expect("socket pair");
        let config = ChannelConfig {
            negotiated: Negotiated {
                protocol_features: ProtocolFeatures::SHMEM | ProtocolFeatures::REPLY_ACK,
                ..Negotiated::default()
            },
            ..ChannelConfig::default()
        };
        let mut channel = RequestChannel::new(ours, config).expect("a valid configuration");
        let mut client = FrontendClient::new(theirs, true);
        let mut tickets = Vec::with_capacity(2 * BATCH);
        let file = File::open("/proc/self/exe").expect("this program");

        let before = super::COUNT.get();
        assert_ne!(before, 0, "making all this took memory, which must be seen");
        for _ in 0..10 {
            round(&mut client, &mut channel, &mut tickets, &file);
        }
        assert_eq!(super::COUNT.get() - before, 0);
        assert_eq!(channel.stats().succeeded, 640);
    }
}
