//! The epoll flavour: one-shot registrations, armed anew for each wait.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use base::Event;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::event::epoll::EventData;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::Armed;
use super::Interest;
use super::Poller;
use super::Ready;
use super::SourceId;
use crate::lock;

/// The wake event's data; no source has this id.
const WAKE: u64 = u64::MAX;

/// How many reports one wait takes; the others come with the next one.
const REPORTS_PER_WAIT: usize = 128;

/// A set of descriptors.
#[derive(Debug)]
pub(crate) struct Epoll {
    epoll: OwnedFd,
    wake: Event,
    /// The sources in the set, each with the duplicate that is in it where another source has the same number.
    registered: Mutex<HashMap<SourceId, Option<OwnedFd>>>,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Event::new()?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            registered: Mutex::default(),
        })
    }

    /// Puts a new source into the set, and returns the duplicate that it took, if it took one.
    fn add(
        &self,
        descriptor: BorrowedFd<'_>,
        data: EventData,
        flags: EventFlags,
    ) -> io::Result<Option<OwnedFd>> {
        match epoll::add(&self.epoll, descriptor, data, flags) {
            // The set tells its members apart by number and file.
            Err(Errno::EXIST) => {
                let duplicate = descriptor.try_clone_to_owned()?;
                epoll::add(&self.epoll, &duplicate, data, flags)?;
                Ok(Some(duplicate))
            }
            result => Ok(result.map(|()| None)?),
        }
    }
}

impl Poller for Epoll {
    fn arm(
        &self,
        source: SourceId,
        descriptor: BorrowedFd<'_>,
        interest: Interest,
    ) -> io::Result<Armed> {
        let data = EventData::new_u64(source);
        let flags = flags(interest);
        let mut registered = lock(&self.registered);
        if let Some(duplicate) = registered.get(&source) {
            let descriptor = duplicate.as_ref().map_or(descriptor, OwnedFd::as_fd);
            epoll::modify(&self.epoll, descriptor, data, flags)?;
            return Ok(Armed::Waiting);
        }
        match self.add(descriptor, data, flags) {
            Ok(duplicate) => {
                registered.insert(source, duplicate);
                Ok(Armed::Waiting)
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                Ok(Armed::AlwaysReady)
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, source: SourceId, descriptor: BorrowedFd<'_>) {
        let Some(duplicate) = lock(&self.registered).remove(&source) else {
            return;
        };
        let descriptor = duplicate.as_ref().map_or(descriptor, OwnedFd::as_fd);
        // It is in the set; a report of it would find no source.
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut space = [const { MaybeUninit::uninit() }; REPORTS_PER_WAIT];
        let timeout = timeout
            .map(Timespec::try_from)
            .transpose()
            .map_err(|_| Errno::INVAL)?;
        let reports = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
            Ok((reports, _)) => reports,
            // Whoever waits looks at its clock and its tasks, and waits again.
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for report in reports {
            let (source, flags) = (report.data.u64(), report.flags);
            if source == WAKE {
                self.wake.reset()?;
                continue;
            }
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            let interest = Interest {
                read: broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                write: broken || flags.contains(EventFlags::OUT),
            };
            ready.push(Ready { source, interest });
        }
        Ok(())
    }

    fn notify(&self) {
        self.wake
            .signal()
            .expect("an eventfd of one's own takes a signal");
    }
}

fn flags(interest: Interest) -> EventFlags {
    let mut flags = EventFlags::ONESHOT;
    flags.set(EventFlags::IN | EventFlags::RDHUP, interest.read);
    flags.set(EventFlags::OUT, interest.write);
    flags
}
