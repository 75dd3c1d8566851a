//! A tube for the hot path: it brings its own buffer, so that neither direction allocates, and it never has to wait.
//!
//! "No allocation" holds for messages without heap of their own (`ArrayVec`, not `Vec`) and from a thread's second
//! message on; the first sets up the thread's list of descriptors.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::AsRawDescriptor;
use crate::Outline;
use crate::Outlined;
use crate::RawDescriptor;
use crate::ReadNotifier;
use crate::Tube;
use crate::TubeResult;
use crate::scm::DescriptorVec;
use crate::scm::Wait;
use crate::tube::MAX_PACKET;
use crate::tube::recv_message;
use crate::tube::recv_outlined;
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

    /// Receives a message of at most `N` descriptors. Those of one that is refused or bare are not closed but left in
    /// `rejected`, which is empty at first: for peers that could make one wait for `close`. A message is bare where not all
    /// of its descriptors got here, since the process may have no more or there were more than `N`.
    ///
    /// # Errors
    /// As [`PacketTube::try_recv`] or [`PacketTube::recv`], as `wait` says.
    pub fn recv_outlined<T: DeserializeOwned, O: Outline, const N: usize>(
        &mut self,
        wait: Wait,
        rejected: &mut DescriptorVec<N>,
    ) -> TubeResult<Outlined<T, O>> {
        let buffer = &mut self.buffer;
        recv_outlined::<T, O, N>(self.tube.as_fd(), buffer, rejected, wait)
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

    use serde::Deserialize;

    use super::*;
    use crate::DescriptorFault;
    use crate::Event;
    use crate::SafeDescriptor;
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

    #[derive(Serialize, Deserialize)]
    struct Message<D> {
        first: Option<D>,
        second: Option<D>,
    }

    impl Outline for Message<u8> {
        fn visit_descriptors(&self, visit: &mut dyn FnMut(u8)) {
            self.first.into_iter().chain(self.second).for_each(visit);
        }
    }

    type Received = Outlined<Message<SafeDescriptor>, Message<u8>>;

    /// Sends `bytes` with `count` descriptors and returns what is received and how many descriptors are left.
    fn outlined(bytes: &[u8], count: usize) -> (TubeResult<Received>, usize) {
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
        let mut rejected = DescriptorVec::<4>::new();
        let received = near.recv_outlined::<_, Message<u8>, 4>(Wait::Never, &mut rejected);
        (received, rejected.len())
    }

    #[test]
    fn outlined_message_gets_its_descriptors() {
        let (received, left) = outlined(&[1, 0, 1, 1], 2);
        let Ok(Outlined::Whole(message)) = received else {
            panic!("no message: {:?}", received.map(|_| ()));
        };
        assert!(message.first.is_some() && message.second.is_some());
        assert_eq!(left, 0);
        let nothing = outlined(&[0, 0], 0);
        assert!(matches!(nothing, (Ok(Outlined::Whole(_)), 0)));
    }

    #[test]
    fn outlined_message_that_is_refused_leaves_its_descriptors() {
        use DescriptorFault::Missing;
        use DescriptorFault::Reused;
        use DescriptorFault::Unused;
        let missing = |index, count| TubeError::Descriptors(Missing { index, count });
        let reused = |index| TubeError::Descriptors(Reused { index });
        let unused = |count| TubeError::Descriptors(Unused { count });
        let refused = [
            (&[1, 0, 1, 2][..], 2, missing(2, 1)),
            (&[1, 0, 1, 255], 2, missing(255, 1)),
            (&[1, 1, 0], 2, missing(1, 0)),
            (&[1, 0, 1, 1], 1, missing(1, 1)),
            (&[1, 0, 1, 0], 2, reused(0)),
            (&[1, 0, 0], 2, unused(1)),
            (&[1, 0, 1, 1, 9], 2, TubeError::TrailingBytes { count: 1 }),
        ];
        for (bytes, count, error) in refused {
            let (received, left) = outlined(bytes, count);
            assert_eq!(received.map(|_| ()), Err(error), "{bytes:?}");
            assert_eq!(left, count);
        }
        let (received, left) = outlined(&[1, 1, 1], 2);
        assert!(matches!(received, Err(TubeError::Decode(_))));
        assert_eq!(left, 2);
    }

    #[test]
    fn outlined_message_with_too_many_descriptors_is_bare() {
        let (received, left) = outlined(&[1, 0, 1, 1], 5);
        let bare = matches!(
            received,
            Ok(Outlined::Bare(Message {
                first: Some(0),
                second: Some(1)
            }))
        );
        assert!(bare && left <= 4);
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
