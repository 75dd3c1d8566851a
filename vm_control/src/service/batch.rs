//! A device's packet, decoded request by request where it lies.
//!
//! A [`RequestBatch`](crate::RequestBatch) has room for 32 requests, and decoding one copies all of that room several times, which
//! costs more than the usual packet's one request.

use base::DescriptorFault;
use base::TubeError;
use base::TubeResult;
use base::packet::Packet;

use crate::Generation;
use crate::MAX_BATCH;
use crate::VmMemoryRequest;

/// The requests of a packet that is known to be in order; yields those that are left.
///
/// It decodes what a [`RequestBatch`](crate::RequestBatch) encodes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    generation: Generation,
    left: usize,
    packet: Packet<'a>,
}

impl<'a> Batch<'a> {
    /// Looks at all of a packet, which came with `count` descriptors.
    ///
    /// # Errors
    /// It is not one whole batch, or does not number its descriptors from 0 without a gap or a repetition, as a sender does.
    pub(super) fn parse(mut packet: Packet<'a>, count: usize) -> TubeResult<Self> {
        let generation = packet.take()?;
        let left = packet.take()?;
        if left > MAX_BATCH {
            return Err(TubeError::TooLong);
        }
        let batch = Self {
            generation,
            left,
            packet,
        };
        let mut used = 0;
        for _ in 0..left {
            let request: VmMemoryRequest<u8> = packet.take()?;
            let Some(&index) = request.descriptor() else {
                continue;
            };
            let index = usize::from(index);
            if index < used {
                return Err(TubeError::Descriptors(DescriptorFault::Reused { index }));
            }
            if index > used || (index >= count && !packet.is_bare()) {
                let fault = DescriptorFault::Missing { index, count };
                return Err(TubeError::Descriptors(fault));
            }
            used += 1;
        }
        if used < count && !packet.is_bare() {
            let count = count - used;
            return Err(TubeError::Descriptors(DescriptorFault::Unused { count }));
        }
        packet.finish()?;
        Ok(batch)
    }

    /// The activation of the device that the requests belong to.
    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether not all of its descriptors got here.
    pub(super) fn is_bare(&self) -> bool {
        self.packet.is_bare()
    }
}

impl Iterator for Batch<'_> {
    type Item = VmMemoryRequest<u8>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // It was decoded before, with success.
        self.packet.take().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use base::Event;
    use base::Tube;
    use base::packet::PacketTube;
    use base::scm;
    use base::scm::Wait;

    use super::*;
    use crate::VmMemoryDestination;
    use crate::VmMemorySource;
    use base::scm::DescriptorVec;

    const GENERATION: u8 = 5;
    /// Variant 1, source variant 0; after the descriptor's place: file offset 0, region 2, offset 0x80, 1 byte, readable.
    const fn map(place: u8) -> [u8; 10] {
        [1, 0, place, 0, 2, 0x80, 1, 1, 1, 0]
    }
    const UNMAP_ALL: u8 = 3;

    /// What a packet of these bytes and descriptors is, and its requests.
    fn parse(bytes: &[u8], count: usize) -> TubeResult<(u32, Vec<VmMemoryRequest<u8>>)> {
        let (near, far) = Tube::pair().expect("a pair is made");
        let mut near = PacketTube::new(near);
        let events: Vec<Event> = (0..count).map(|_| Event::new().expect("one")).collect();
        let sent: Vec<_> = events.iter().map(AsFd::as_fd).collect();
        scm::send(far.as_fd(), &[IoSlice::new(bytes)], &sent, Wait::Never).expect("sends");
        let mut descriptors = DescriptorVec::<MAX_BATCH>::new();
        let packet = near.recv_packet(Wait::Never, &mut descriptors)?;
        let batch = Batch::parse(packet, descriptors.len())?;
        Ok((batch.generation().0, batch.collect()))
    }

    #[test]
    fn batch_is_read_in_its_order() {
        let bytes = [&[GENERATION, 3][..], &map(0), &[UNMAP_ALL], &map(1)].concat();
        let map = |descriptor| VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Descriptor {
                descriptor,
                offset: 0,
            },
            dest: VmMemoryDestination {
                shmid: 2,
                offset: 0x80,
            },
            len: 1,
            prot: base::Protection::read(),
        };
        let requests = vec![map(0), VmMemoryRequest::UnregisterAll, map(1)];
        assert_eq!(parse(&bytes, 2), Ok((5, requests)));
        assert_eq!(parse(&[GENERATION, 0], 0), Ok((5, vec![])));
    }

    #[test]
    fn bytes_that_are_no_batch_are_refused() {
        for bytes in [&[GENERATION][..], &[GENERATION, 1], &[GENERATION, 1, 4]] {
            let refused = parse(bytes, 0);
            assert!(
                matches!(refused, Err(TubeError::Decode(_))),
                "{bytes:?}: {refused:?}"
            );
        }
        let longer = parse(&[GENERATION, 1, UNMAP_ALL, 0], 0);
        assert_eq!(longer, Err(TubeError::TrailingBytes { count: 1 }));
        let many = [&[GENERATION, 33][..], &[UNMAP_ALL; 33]].concat();
        assert_eq!(parse(&many, 0), Err(TubeError::TooLong));
    }

    #[test]
    fn descriptors_that_are_not_numbered_in_order_are_refused() {
        use DescriptorFault::Missing;
        use DescriptorFault::Reused;
        use DescriptorFault::Unused;
        for (first, second, count, fault) in [
            (0, 2, 2, Missing { index: 2, count: 2 }),
            (
                0,
                255,
                2,
                Missing {
                    index: 255,
                    count: 2,
                },
            ),
            (1, 0, 2, Missing { index: 1, count: 2 }),
            (0, 1, 1, Missing { index: 1, count: 1 }),
            (0, 0, 2, Reused { index: 0 }),
            (0, 1, 3, Unused { count: 1 }),
        ] {
            let bytes = [&[GENERATION, 2][..], &map(first), &map(second)].concat();
            let expected = Err(TubeError::Descriptors(fault));
            assert_eq!(
                parse(&bytes, count),
                expected,
                "{first} {second} of {count}"
            );
        }
    }

    #[test]
    fn batch_whose_descriptors_did_not_all_get_here_is_read() {
        let (generation, requests) =
            parse(&[&[GENERATION, 1][..], &map(0)].concat(), 33).expect("a batch");
        assert_eq!((generation, requests.len()), (5, 1));
    }
}
