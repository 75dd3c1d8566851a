//! The thread of the files backend that maps and unmaps, in the order in which it is told to.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use base::Error as Errno;

use super::Service;
use super::lock;
use super::say;
use crate::backend::channel::Answer;
use crate::backend::channel::Channel;
use crate::backend::channel::Error;
use crate::backend::channel::Mapping;
use crate::backend::config_space::Order;
use crate::backend::config_space::State;
use crate::backend::config_space::Status;
use crate::backend::probe::Target;
use crate::backend::report::Report;

/// How long to leave a frontend that is resetting the device alone before asking again.
const RESET_PAUSE: Duration = Duration::from_millis(5);
/// How often to ask again.
const RESET_TRIES: u32 = 400;

/// Something to do.
#[derive(Debug)]
pub(super) enum Task {
    /// A request channel has come: nothing is mapped through it yet; map everything.
    ///
    /// The flag is set before the channel is closed from this side.
    Channel(Channel, Arc<AtomicBool>),
    /// The configuration space was written.
    Order(Order),
    /// The frontend has dropped every mapping; map everything again.
    Reset,
}

pub(super) struct Mapper<'a, 'r> {
    service: Service<'a, 'r>,
    status: &'a Mutex<Status>,
    channel: Option<Channel>,
    ended: Arc<AtomicBool>,
    /// Whether each file of the layout is mapped.
    mapped: Vec<bool>,
    /// A task that arrived during a pause.
    next: Option<Task>,
}

impl<'a, 'r> Mapper<'a, 'r> {
    pub(super) fn new(service: Service<'a, 'r>, status: &'a Mutex<Status>) -> Self {
        Self {
            service,
            status,
            channel: None,
            ended: Arc::default(),
            mapped: vec![false; service.layout.files.len()],
            next: None,
        }
    }

    /// Works until the sender of tasks is gone.
    pub(super) fn run(mut self, queue: &Receiver<Task>) {
        while let Some(task) = self.next.take().or_else(|| queue.recv().ok()) {
            if let Err(error) = self.carry_out(task, queue) {
                self.channel = None;
                if self.ended.load(Ordering::Acquire) {
                    continue;
                }
                self.forget_mappings();
                lock(self.status).state = State::Waiting;
                let reason = &error;
                say(self.service.reporter, &Report::ChannelClosed { reason });
            }
        }
    }

    fn carry_out(&mut self, task: Task, queue: &Receiver<Task>) -> Result<(), Error> {
        let start = Instant::now();
        let is_order = matches!(task, Task::Order(_));
        match task {
            Task::Channel(channel, ended) => {
                self.channel = Some(channel);
                self.ended = ended;
                self.forget_mappings();
                self.map_all(queue)?;
                self.probe()?;
            }
            Task::Reset => {
                say(self.service.reporter, &Report::Reset);
                self.forget_mappings();
                self.map_all(queue)?;
            }
            Task::Order(Order::MapAll) => self.map_all(queue)?,
            Task::Order(Order::Map(index)) => self.map(index as usize, queue)?,
            Task::Order(Order::Unmap(index)) => self.unmap(index as usize)?,
            Task::Order(Order::UnmapAll) => {
                for index in 0..self.mapped.len() {
                    self.unmap(index)?;
                }
            }
        }
        let Some(channel) = &mut self.channel else {
            // An order without a channel: there is nobody to map for, and nobody to tell.
            lock(self.status).state = State::Waiting;
            return Ok(());
        };
        let status = {
            let mut status = lock(self.status);
            status.state = State::Ready;
            status.done = status.done.wrapping_add(u32::from(is_order));
            *status
        };
        say(
            self.service.reporter,
            &Report::Ready {
                mapped: status.mapped,
                refused: status.refused,
                micros: micros(start),
            },
        );
        // Whether the frontend can do something with the news is its own affair.
        channel.config_changed().map(|_| ())
    }

    fn forget_mappings(&mut self) {
        self.mapped.fill(false);
        lock(self.status).mapped = 0;
    }

    fn map_all(&mut self, queue: &Receiver<Task>) -> Result<(), Error> {
        for index in 0..self.mapped.len() {
            self.map(index, queue)?;
            if self.next.is_some() {
                // The rest would be overtaken by what has come in.
                break;
            }
        }
        Ok(())
    }

    fn map(&mut self, index: usize, queue: &Receiver<Task>) -> Result<(), Error> {
        let service = self.service;
        let Some(placed) = service.layout.files.get(index) else {
            return Ok(());
        };
        if self.mapped[index] || self.channel.is_none() {
            return Ok(());
        }
        let file = match service.root.open_file(&placed.file, service.writable) {
            Ok(file) => file,
            Err(reason) => {
                let path = &placed.file.path;
                say(service.reporter, &Report::Skipped { path, reason });
                return Ok(());
            }
        };
        let mapping = Mapping {
            shmid: 0,
            shm_offset: placed.offset,
            fd_offset: 0,
            len: placed.file.len,
            flags: service.writable.into(),
        };
        let start = Instant::now();
        match self.map_unless_resetting(&mapping, file.as_fd(), queue)? {
            Some(Answer::Granted) => {
                self.mapped[index] = true;
                lock(self.status).mapped += 1;
                let report = Report::Mapped {
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    path: &placed.file.path,
                    shmid: mapping.shmid,
                    offset: placed.offset,
                    len: placed.file.len,
                    micros: micros(start),
                };
                say(service.reporter, &report);
            }
            Some(Answer::Refused(errno)) => self.refused("map", index, errno),
            None => {}
        }
        Ok(())
    }

    /// Maps, and asks again as long as the frontend says that it resets the device.
    ///
    /// `None` if a task came in meanwhile, which goes first.
    fn map_unless_resetting(
        &mut self,
        mapping: &Mapping,
        file: std::os::fd::BorrowedFd<'_>,
        queue: &Receiver<Task>,
    ) -> Result<Option<Answer>, Error> {
        let canceled = Answer::Refused(Errno::new(libc::ECANCELED));
        let Some(channel) = &mut self.channel else {
            return Ok(None);
        };
        for _ in 0..RESET_TRIES {
            let answer = channel.map(mapping, file)?;
            if answer != canceled {
                return Ok(Some(answer));
            }
            match queue.recv_timeout(RESET_PAUSE) {
                Ok(task) => {
                    self.next = Some(task);
                    return Ok(None);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
        Ok(Some(canceled))
    }

    fn unmap(&mut self, index: usize) -> Result<(), Error> {
        let (Some(placed), Some(channel)) =
            (self.service.layout.files.get(index), &mut self.channel)
        else {
            return Ok(());
        };
        if !self.mapped[index] {
            return Ok(());
        }
        match channel.unmap(0, placed.offset, placed.file.len)? {
            Answer::Granted => {
                self.mapped[index] = false;
                lock(self.status).mapped -= 1;
                let report = Report::Unmapped {
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    path: &placed.file.path,
                };
                say(self.service.reporter, &report);
            }
            Answer::Refused(errno) => self.refused("unmap", index, errno),
        }
        Ok(())
    }

    fn refused(&self, request: &'static str, index: usize, errno: Errno) {
        {
            let mut status = lock(self.status);
            status.refused = status.refused.saturating_add(1);
            status.errno = errno.errno();
        }
        let placed = &self.service.layout.files[index];
        let report = Report::Refused {
            request,
            path: &placed.file.path,
            offset: placed.offset,
            errno,
        };
        say(self.service.reporter, &report);
    }

    fn probe(&mut self) -> Result<(), Error> {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        if !self.service.probes.is_empty() && !channel.has_replies() {
            let reason = "no hostile requests: the frontend has no REPLY_ACK";
            say(self.service.reporter, &Report::NoChannel { reason });
            return Ok(());
        }
        let size = self.service.layout.region_size;
        let target = Target {
            shmid: 0,
            size,
            free: size.saturating_sub(2 * base::page_size() as u64),
            other: 255,
        };
        for &case in self.service.probes {
            let errno = match case.run(channel, &target)? {
                Answer::Granted => None,
                Answer::Refused(errno) => Some(errno),
            };
            say(self.service.reporter, &Report::Probe { case, errno });
        }
        Ok(())
    }
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}
