//! Waiting for many descriptors at once: level-triggered epoll with typed tokens.
//!
//! Level-triggered, so that a reader that stops half-way is woken again.

use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll;
use rustix::event::epoll::EventData;
use rustix::event::epoll::EventFlags;
use rustix::io::retry_on_intr;
use smallvec::SmallVec;

use crate::AsRawDescriptor;
use crate::Deadline;
use crate::EventToken;
use crate::RawDescriptor;
use crate::Result;
use crate::descriptor::borrow;

/// How many events one wait returns at most; the others come with the next one.
const EVENTS_PER_WAIT: usize = 16;

/// What to wait for. A hang-up is reported in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Nothing but a hang-up.
    None,
    /// Bytes, a connection or an end of file to read; a peer that stops sending counts as a hang-up, too.
    Read,
    /// Room to write.
    Write,
    /// Both.
    ReadWrite,
}

impl EventType {
    fn flags(self) -> EventFlags {
        match self {
            Self::None => EventFlags::empty(),
            Self::Read => EventFlags::IN | EventFlags::RDHUP,
            Self::Write => EventFlags::OUT,
            Self::ReadWrite => EventFlags::IN | EventFlags::RDHUP | EventFlags::OUT,
        }
    }
}

/// A source that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriggeredEvent<T: EventToken> {
    /// The token that the source was added with.
    pub token: T,
    /// It can be read.
    pub is_readable: bool,
    /// It can be written.
    pub is_writable: bool,
    /// The other end is closed, or stopped sending, or the descriptor is in an error state. What was sent before can
    /// still be read while `is_readable`.
    pub is_hungup: bool,
}

/// A set of descriptors to wait on, each with a token. It does not own them: what is closed elsewhere leaves the set.
#[derive(Debug)]
pub struct WaitContext<T: EventToken> {
    epoll: OwnedFd,
    token: PhantomData<fn(T) -> T>,
}

impl<T: EventToken> WaitContext<T> {
    /// Makes an empty set.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` where there are too many descriptors.
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll,
            token: PhantomData,
        })
    }

    /// Makes a set of descriptors to read from.
    ///
    /// # Errors
    /// As [`WaitContext::new`] and [`WaitContext::add`].
    pub fn build_with(sources: &[(&dyn AsRawDescriptor, T)]) -> Result<Self> {
        let context = Self::new()?;
        for (descriptor, token) in sources {
            context.insert(*descriptor, EventType::Read, token)?;
        }
        Ok(context)
    }

    /// Adds a descriptor to read from.
    ///
    /// # Errors
    /// `EEXIST` if it is in the set, `EPERM` if it is of a kind that is always ready, such as a file, `EBADF` if it
    /// is not open.
    pub fn add(&self, descriptor: &dyn AsRawDescriptor, token: T) -> Result<()> {
        self.add_for_event(descriptor, EventType::Read, token)
    }

    /// Adds a descriptor to wait for what `event_type` says.
    ///
    /// # Errors
    /// As [`WaitContext::add`].
    pub fn add_for_event(
        &self,
        descriptor: &dyn AsRawDescriptor,
        event_type: EventType,
        token: T,
    ) -> Result<()> {
        self.insert(descriptor, event_type, &token)
    }

    /// Changes what is waited for, and the token.
    ///
    /// # Errors
    /// `ENOENT` if the descriptor is not in the set, `EBADF` if it is not open.
    pub fn modify(
        &self,
        descriptor: &dyn AsRawDescriptor,
        event_type: EventType,
        token: T,
    ) -> Result<()> {
        let data = EventData::new_u64(token.as_raw_token());
        epoll::modify(&self.epoll, borrow(descriptor)?, data, event_type.flags())?;
        Ok(())
    }

    /// Removes a descriptor. One that is about to be closed and has duplicates must be removed, or it goes on to report.
    ///
    /// # Errors
    /// `ENOENT` if it is not in the set, `EBADF` if it is not open.
    pub fn delete(&self, descriptor: &dyn AsRawDescriptor) -> Result<()> {
        epoll::delete(&self.epoll, borrow(descriptor)?)?;
        Ok(())
    }

    /// Waits until at least one descriptor is ready and returns up to 16 of those that are, without heap allocation.
    ///
    /// # Errors
    /// The errno of `epoll_pwait`; none is known for a set made here. `EINTR` is retried.
    pub fn wait(&self) -> Result<SmallVec<[TriggeredEvent<T>; EVENTS_PER_WAIT]>> {
        self.wait_until(Deadline::NEVER)
    }

    /// Waits as [`WaitContext::wait`], but at most for `timeout`: then the result is empty.
    ///
    /// The timeout is kept to the millisecond, rounded up; 0 looks and does not wait.
    ///
    /// # Errors
    /// As [`WaitContext::wait`].
    pub fn wait_timeout(
        &self,
        timeout: Duration,
    ) -> Result<SmallVec<[TriggeredEvent<T>; EVENTS_PER_WAIT]>> {
        self.wait_until(Deadline::after(timeout))
    }

    fn insert(
        &self,
        descriptor: &dyn AsRawDescriptor,
        event_type: EventType,
        token: &T,
    ) -> Result<()> {
        let data = EventData::new_u64(token.as_raw_token());
        epoll::add(&self.epoll, borrow(descriptor)?, data, event_type.flags())?;
        Ok(())
    }

    fn wait_until(
        &self,
        deadline: Deadline,
    ) -> Result<SmallVec<[TriggeredEvent<T>; EVENTS_PER_WAIT]>> {
        let mut ready = [epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; EVENTS_PER_WAIT];
        let count =
            retry_on_intr(|| epoll::wait(&self.epoll, &mut ready, deadline.remaining().as_ref()))?;
        Ok(ready.iter().take(count).map(triggered).collect())
    }
}

fn triggered<T: EventToken>(event: &epoll::Event) -> TriggeredEvent<T> {
    // The kernel's structure is packed: its fields are copied out before they are used.
    let (flags, data) = (event.flags, event.data);
    TriggeredEvent {
        token: T::from_raw_token(data.u64()),
        is_readable: flags.contains(EventFlags::IN),
        is_writable: flags.contains(EventFlags::OUT),
        is_hungup: flags.intersects(EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR),
    }
}

impl<T: EventToken> AsRawDescriptor for WaitContext<T> {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.epoll.as_raw_descriptor()
    }
}

impl<T: EventToken> AsFd for WaitContext<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::Error;
    use crate::Event;
    use crate::scm;

    #[derive(Clone, Copy, Debug, PartialEq, EventToken)]
    enum Token {
        Kill,
        Device(u32),
    }

    fn event() -> Event {
        Event::new().expect("an eventfd is made")
    }

    #[test]
    fn signalled_event_is_reported_until_it_is_taken() {
        let (kill, device) = (event(), event());
        let context = WaitContext::build_with(&[(&kill, Token::Kill), (&device, Token::Device(7))])
            .expect("a set is made");
        device.signal().expect("signals");
        let expected = TriggeredEvent {
            token: Token::Device(7),
            is_readable: true,
            is_writable: false,
            is_hungup: false,
        };
        assert_eq!(context.wait().expect("waits").as_slice(), &[expected]);
        assert_eq!(context.wait().expect("waits").as_slice(), &[expected]);
        device.wait().expect("takes the signal");
        assert!(
            context
                .wait_timeout(Duration::ZERO)
                .expect("waits")
                .is_empty()
        );
    }

    #[test]
    fn second_add_of_a_descriptor_is_eexist() {
        let event = event();
        let context = WaitContext::new().expect("a set is made");
        context.add(&event, 1u32).expect("added");
        assert_eq!(context.add(&event, 2), Err(Error::new(libc::EEXIST)));
    }

    #[test]
    fn modify_changes_interest_and_token() {
        let event = event();
        let context = WaitContext::new().expect("a set is made");
        context
            .add_for_event(&event, EventType::None, 1u32)
            .expect("added");
        event.signal().expect("signals");
        let idle = context.wait_timeout(Duration::ZERO).expect("waits");
        assert!(idle.is_empty());
        context
            .modify(&event, EventType::ReadWrite, 2)
            .expect("modified");
        let ready = context.wait().expect("waits");
        assert_eq!(
            ready.as_slice(),
            &[TriggeredEvent {
                token: 2,
                is_readable: true,
                is_writable: true,
                is_hungup: false
            }]
        );
    }

    #[test]
    fn deleted_descriptor_is_not_reported_and_not_found_again() {
        let event = event();
        let context = WaitContext::build_with(&[(&event, ())]).expect("a set is made");
        event.signal().expect("signals");
        context.delete(&event).expect("deleted");
        let ready = context.wait_timeout(Duration::ZERO).expect("waits");
        assert!(ready.is_empty());
        assert_eq!(context.delete(&event), Err(Error::new(libc::ENOENT)));
    }

    #[test]
    fn closed_peer_is_a_hangup_whatever_is_waited_for() {
        for event_type in [EventType::None, EventType::Read, EventType::Write] {
            let (near, far) = scm::stream_pair().expect("a pair is made");
            let context = WaitContext::new().expect("a set is made");
            context.add_for_event(&near, event_type, ()).expect("added");
            drop(far);
            let ready = context.wait().expect("waits");
            assert!(ready[0].is_hungup, "{event_type:?}");
        }
    }

    #[test]
    fn more_ready_sources_than_fit_come_with_the_next_wait() {
        let events: Vec<Event> = (0..40).map(|_| event()).collect();
        let context = WaitContext::new().expect("a set is made");
        for (event, token) in events.iter().zip(0u32..) {
            context.add(event, token).expect("added");
            event.signal().expect("signals");
        }
        let mut seen = Vec::new();
        while seen.len() < events.len() {
            let ready = context.wait().expect("waits");
            assert!(!ready.spilled());
            for triggered in ready {
                let index = usize::try_from(triggered.token).expect("a small index");
                events[index].wait().expect("takes the signal");
                seen.push(triggered.token);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..40).collect::<Vec<u32>>());
    }

    #[test]
    fn regular_file_is_eperm() {
        let file = tempfile::tempfile().expect("a file is made");
        let context = WaitContext::new().expect("a set is made");
        assert_eq!(context.add(&file, ()), Err(Error::new(libc::EPERM)));
    }
}
