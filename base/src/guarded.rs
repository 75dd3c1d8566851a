//! A tube whose other end belongs to a process that is not trusted.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Closer;
use crate::DescriptorFault;
use crate::SafeDescriptor;
use crate::Tube;
use crate::TubeError;
use crate::TubeResult;
use crate::packet::Packet;
use crate::packet::PacketTube;
use crate::scm::DescriptorVec;
use crate::scm::MAX_DESCRIPTORS;
use crate::scm::Wait;

/// A [`PacketTube`] whose peer can't make this end wait by what it sends along.
///
/// To close a descriptor can take as long as whoever made it likes: a file of its own file system, an internet socket that lingers.
/// So those that a message should not have, and those that nobody has received when the tube is dropped, are closed on a thread of the
/// tube's own, which starts with the first.
#[derive(Debug)]
pub struct GuardedTube {
    /// Taken by `drop` alone.
    tube: Option<PacketTube>,
    closer: Closer,
}

impl GuardedTube {
    /// Takes over `tube`.
    pub fn new(tube: Tube) -> Self {
        Self {
            tube: Some(PacketTube::new(tube)),
            closer: Closer::default(),
        }
    }

    fn tube(&mut self) -> &mut PacketTube {
        self.tube.as_mut().expect("only drop takes it")
    }

    /// Sends `message` and waits for room; as [`Tube::send`].
    ///
    /// # Errors
    /// As [`Tube::send`].
    pub fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> TubeResult<()> {
        self.tube().send(message)
    }

    /// Sends `message` if there is room.
    ///
    /// # Errors
    /// As [`PacketTube::try_send`].
    pub fn try_send<T: Serialize + ?Sized>(&mut self, message: &T) -> TubeResult<()> {
        self.tube().try_send(message)
    }

    /// Receives a message that has no descriptors, if there is a message.
    ///
    /// # Errors
    /// As [`PacketTube::try_recv`]. One that came with descriptors is dropped, and is [`TubeError::Descriptors`].
    pub fn try_recv<T: DeserializeOwned>(&mut self) -> TubeResult<T> {
        let (message, descriptors) = self.recv_any(Wait::Never)?;
        self.expect_none(descriptors)?;
        Ok(message)
    }

    /// Waits for a message that has no descriptors; as [`Tube::recv`].
    ///
    /// # Errors
    /// As [`Tube::recv`]. One that came with descriptors is dropped, and is [`TubeError::Descriptors`].
    pub fn recv<T: DeserializeOwned>(&mut self) -> TubeResult<T> {
        let (message, descriptors) = self.recv_any(Wait::Block)?;
        self.expect_none(descriptors)?;
        Ok(message)
    }

    /// Waits for a message that may have one descriptor, which is a `u8` in it: 0, its place.
    ///
    /// Whoever receives it has to [`close`](Self::close) it as well.
    ///
    /// # Errors
    /// As [`Self::recv`], but for two descriptors or more.
    pub fn recv_with_descriptor<T: DeserializeOwned>(
        &mut self,
    ) -> TubeResult<(T, Option<SafeDescriptor>)> {
        let (message, mut descriptors) = self.recv_any(Wait::Block)?;
        let first = descriptors.pop_at(0);
        if let Err(error) = self.expect_none(descriptors) {
            self.close(first);
            return Err(error);
        }
        Ok((message, first))
    }

    /// Closes descriptors that came from the peer, without waiting. What can't be handed over stays open, which is reported.
    pub fn close(&mut self, descriptors: impl IntoIterator<Item = SafeDescriptor>) {
        for descriptor in descriptors {
            if let Err(error) = self.closer.close(descriptor) {
                crate::error!("a peer's descriptor stays open: {error}");
            }
        }
    }

    fn recv_any<T: DeserializeOwned>(
        &mut self,
        wait: Wait,
    ) -> TubeResult<(T, DescriptorVec<MAX_DESCRIPTORS>)> {
        let mut descriptors = DescriptorVec::new();
        let message = self
            .tube()
            .recv_packet(wait, &mut descriptors)
            .and_then(Packet::into_message);
        match message {
            Ok(message) => Ok((message, descriptors)),
            Err(error) => {
                self.close(descriptors);
                Err(error)
            }
        }
    }

    fn expect_none(&mut self, descriptors: DescriptorVec<MAX_DESCRIPTORS>) -> TubeResult<()> {
        match descriptors.len() {
            0 => Ok(()),
            count => {
                self.close(descriptors);
                Err(TubeError::Descriptors(DescriptorFault::Unused { count }))
            }
        }
    }
}

impl Drop for GuardedTube {
    fn drop(&mut self) {
        if let Some(tube) = self.tube.take()
            && let Err(error) = self.closer.close_tube(tube.into_tube())
        {
            crate::error!("a peer's tube stays open: {error}");
        }
    }
}

impl AsFd for GuardedTube {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tube.as_ref().expect("only drop takes it").as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use super::*;
    use crate::WaitContext;

    fn pair() -> (GuardedTube, Tube) {
        let (near, far) = Tube::pair().expect("a pair is made");
        (GuardedTube::new(near), far)
    }

    fn watched() -> (OwnedFd, SafeDescriptor) {
        let (watch, pipe) = rustix::pipe::pipe().expect("a pipe is made");
        (watch, pipe.into())
    }

    #[track_caller]
    fn wait_closed(watch: &OwnedFd) {
        let context = WaitContext::build_with(&[(watch, 0u32)]).expect("a set is made");
        let ready = context.wait_timeout(Duration::from_secs(10));
        let ready = ready.expect("waits");
        assert!(ready.first().is_some_and(|event| event.is_hungup));
    }

    const fn unused<T>(count: usize) -> TubeResult<T> {
        Err(TubeError::Descriptors(DescriptorFault::Unused { count }))
    }

    #[test]
    fn message_with_descriptors_is_refused_where_none_belongs() {
        let (mut near, far) = pair();
        let (watch, pipe) = watched();
        far.send(&(1u32, &pipe)).expect("sends");
        far.send(&2u32).expect("sends");
        drop(pipe);
        assert_eq!(near.try_recv::<(u32, u8)>(), unused(1));
        wait_closed(&watch);
        assert_eq!(near.recv::<u32>(), Ok(2));
        assert_eq!(near.try_recv::<u32>(), Err(TubeError::WouldBlock));
    }

    #[test]
    fn descriptor_of_a_message_that_is_none_is_closed() {
        let (mut near, far) = pair();
        let (watch, pipe) = watched();
        far.send(&(u64::MAX, &pipe)).expect("sends");
        drop(pipe);
        let refused = near.recv_with_descriptor::<(bool, u8)>();
        assert!(matches!(refused, Err(TubeError::Decode(_))), "{refused:?}");
        wait_closed(&watch);
    }

    #[test]
    fn one_descriptor_is_received_and_more_are_refused() {
        let (mut near, far) = pair();
        let (watch, pipe) = watched();
        far.send(&(1u32, &pipe)).expect("sends");
        far.send(&[&pipe, &pipe]).expect("sends");
        drop(pipe);
        let ((number, place), descriptor) = near
            .recv_with_descriptor::<(u32, u8)>()
            .expect("a message of one");
        assert_eq!((number, place), (1, 0));
        near.close(descriptor);
        assert_eq!(
            near.recv_with_descriptor::<[u8; 2]>().map(|_| ()),
            unused(1)
        );
        wait_closed(&watch);
    }

    #[test]
    fn what_was_not_received_is_closed_with_the_tube() {
        let (near, far) = pair();
        let (watch, pipe) = watched();
        far.send(&1u32).expect("sends");
        far.send(&pipe).expect("sends");
        drop((pipe, near));
        wait_closed(&watch);
        assert_eq!(far.send(&1u32), Err(TubeError::Disconnected));
    }
}
