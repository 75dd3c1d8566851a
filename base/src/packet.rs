//! A tube for the hot path: it brings its own buffer, so that neither direction allocates, and it never has to wait.
//!
//! "No allocation" holds for messages without heap of their own (`ArrayVec`, not `Vec`) and from a thread's second
//! message on; the first sets up the thread's list of descriptors.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::AsRawDescriptor;
use crate::RawDescriptor;
use crate::ReadNotifier;
use crate::Tube;
use crate::TubeResult;
use crate::scm::DescriptorVec;
use crate::scm::Wait;
use crate::tube::MAX_PACKET;
pub use crate::tube::Packet;
use crate::tube::recv_message;
use crate::tube::recv_packet;
use crate::tube::send_message;

/// A [`Tube`] with a buffer of its own. The other end can be a tube of either kind.
#[derive(Debug)]
pub struct PacketTube {
    tube: Tube,
    buffer: Box<[u8]>,
}

impl PacketTube {
    /// Takes over `tube`.
    pub fn new(tube: Tube) -> Self {
        Self {
            tube,
            buffer: vec![0; MAX_PACKET].into_boxed_slice(),
        }
    }

    /// Gives the tube back.
    pub fn into_tube(self) -> Tube {
        self.tube
    }

    /// Returns the tube, to set its timeouts, say.
    pub fn tube(&self) -> &Tube {
        &self.tube
    }

    /// Sends `message` if there is room.
    ///
    /// # Errors
    /// As [`Tube::send`], but [`TubeError::WouldBlock`](crate::TubeError::WouldBlock) instead of waiting.
    pub fn try_send<T: Serialize + ?Sized>(&mut self, message: &T) -> TubeResult<()> {
        send_message(self.tube.as_fd(), message, &mut self.buffer, Wait::Never)
    }

    /// Receives a message if there is one.
    ///
    /// # Errors
    /// As [`Tube::recv`], but [`TubeError::WouldBlock`](crate::TubeError::WouldBlock) instead of waiting.
    pub fn try_recv<T: DeserializeOwned>(&mut self) -> TubeResult<T> {
        recv_message(self.tube.as_fd(), &mut self.buffer, Wait::Never)
    }

    /// Receives a message of at most `N` descriptors, to be decoded where it lies. They are appended to `descriptors`, and
    /// whatever becomes of the message is the caller's to close: for peers that could make one wait for that.
    ///
    /// # Errors
    /// As [`PacketTube::try_recv`] or [`PacketTube::recv`], as `wait` says.
    pub fn recv_packet<const N: usize>(
        &mut self,
        wait: Wait,
        descriptors: &mut DescriptorVec<N>,
    ) -> TubeResult<Packet<'_>> {
        recv_packet(self.tube.as_fd(), &mut self.buffer, descriptors, wait)
    }

    /// Sends `message` and waits for room; as [`Tube::send`].
    ///
    /// # Errors
    /// As [`Tube::send`].
    pub fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> TubeResult<()> {
        send_message(self.tube.as_fd(), message, &mut self.buffer, Wait::Block)
    }

    /// Waits for a message; as [`Tube::recv`].
    ///
    /// # Errors
    /// As [`Tube::recv`].
    pub fn recv<T: DeserializeOwned>(&mut self) -> TubeResult<T> {
        recv_message(self.tube.as_fd(), &mut self.buffer, Wait::Block)
    }
}

impl AsRawDescriptor for PacketTube {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.tube.as_raw_descriptor()
    }
}

impl AsFd for PacketTube {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tube.as_fd()
    }
}

impl ReadNotifier for PacketTube {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        self.tube.get_read_notifier()
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::Event;
    use crate::TubeError;
    use crate::scm;

    fn pair() -> (PacketTube, Tube) {
        let (near, far) = Tube::pair().expect("a pair is made");
        (PacketTube::new(near), far)
    }

    #[test]
    fn try_recv_without_a_message_would_block() {
        let (mut near, _far) = pair();
        assert!(matches!(near.try_recv::<u32>(), Err(TubeError::WouldBlock)));
    }

    #[test]
    fn try_send_without_room_would_block_and_sends_nothing() {
        let (mut near, far) = pair();
        let mut sent = 0u32;
        let refusal = loop {
            match near.try_send(&sent) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, TubeError::WouldBlock), "{refusal:?}");
        drop(near);
        for expected in 0..sent {
            assert_eq!(far.recv::<u32>().expect("a message"), expected);
        }
        assert!(matches!(far.recv::<u32>(), Err(TubeError::Disconnected)));
    }

    #[test]
    fn messages_of_a_peer_that_closed_come_before_disconnected() {
        let (mut near, far) = pair();
        far.send(&1u32).expect("sends");
        drop(far);
        assert_eq!(near.try_recv::<u32>().expect("a message"), 1);
        assert!(matches!(
            near.try_recv::<u32>(),
            Err(TubeError::Disconnected)
        ));
        assert!(matches!(near.try_send(&2u32), Err(TubeError::Disconnected)));
    }

    #[test]
    fn messages_of_a_peer_that_closed_with_unread_ones_come_before_disconnected() {
        let (mut near, far) = pair();
        far.send(&1u32).expect("sends");
        near.try_send(&2u32).expect("sends");
        drop(far);
        assert_eq!(near.try_recv::<u32>().expect("a message"), 1);
        assert!(matches!(
            near.try_recv::<u32>(),
            Err(TubeError::Disconnected)
        ));
    }

    /// Sends `bytes` with `count` descriptors to a tube that takes at most four.
    fn with_packet(bytes: &[u8], count: usize, look: impl FnOnce(TubeResult<Packet<'_>>, usize)) {
        let (mut near, far) = pair();
        let events: Vec<Event> = (0..count).map(|_| Event::new().expect("one")).collect();
        let descriptors: Vec<_> = events.iter().map(AsFd::as_fd).collect();
        scm::send(
            far.as_fd(),
            &[IoSlice::new(bytes)],
            &descriptors,
            Wait::Never,
        )
        .expect("sends");
        let mut received = DescriptorVec::<4>::new();
        let packet = near.recv_packet(Wait::Never, &mut received);
        look(packet, received.len());
    }

    #[test]
    fn packet_is_decoded_piece_by_piece() {
        with_packet(&[7, 1, 3, 0xff], 2, |packet, came| {
            let mut packet = packet.expect("a packet");
            assert_eq!((packet.is_bare(), came), (false, 2));
            assert_eq!(packet.take::<u8>(), Ok(7));
            assert_eq!(packet.take::<Option<u8>>(), Ok(Some(3)));
            let refused = packet.take::<u16>();
            assert!(matches!(refused, Err(TubeError::Decode(_))), "{refused:?}");
            assert_eq!(packet.finish(), Err(TubeError::TrailingBytes { count: 1 }));
            assert_eq!(packet.take::<u8>(), Ok(0xff));
            assert_eq!(packet.finish(), Ok(()));
        });
    }

    #[test]
    fn packet_with_too_many_descriptors_is_bare() {
        with_packet(&[7], 5, |packet, came| {
            assert!(packet.expect("a packet").is_bare());
            assert!(came <= 4);
        });
    }

    #[test]
    fn blocking_calls_carry_messages_both_ways() {
        let (mut near, far) = pair();
        near.send(&1u32).expect("sends");
        assert_eq!(far.recv::<u32>().expect("a message"), 1);
        far.send(&2u32).expect("sends");
        assert_eq!(near.recv::<u32>().expect("a message"), 2);
    }
}
