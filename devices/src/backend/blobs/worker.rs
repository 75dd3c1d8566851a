//! The thread that serves the queue: one future on an executor, which takes commands from the main channel's thread and
//! requests from the driver.
//!
//! Requests are executed one after the other. A request that waits for the frontend holds up no command but the one that
//! stops the queue, which must not leave it half done, and not for longer than the frontend's deadline; a reset gives it up.

use std::cell::Cell;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use base::Error as Errno;
use base::Event;
use base::RateLimit;
use base::SafeDescriptor;
use base::Tube;
use base::TubeError;
use cros_async::AsyncTube;
use cros_async::EventAsync;
use cros_async::Executor;
use cros_async::First;
use cros_async::first;
use remain::sorted;
use serde::Deserialize;
use serde::Serialize;
use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_queue::QueueT;
use virtio_queue::Reader;
use virtio_queue::Writer;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryLoadGuard;
use vm_memory::GuestMemoryMmap;

use super::Reporter;
use super::frontend::FrontendChannel;
use super::frontend::Part;
use super::lock;
use super::protocol::BlobId;
use super::protocol::REQUEST_BYTES;
use super::protocol::RESPONSE_BYTES;
use super::protocol::Request;
use super::protocol::Response;
use super::report::Report;
use super::say;
use super::table::Mapped;
use super::table::Table;
use super::table::write_all;
use crate::backend::rings::Ring;

/// How much of a blob is filled before commands are looked at.
const FILL_BYTES: usize = 64 * 1024;

/// What the used ring says of an answered request.
const RESPONSE_WRITTEN: u32 = 40;
const _: () = assert!(RESPONSE_WRITTEN as usize == RESPONSE_BYTES);

/// What the main channel's thread asks for; each is answered by `()`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// The ring in the slot runs from now on.
    Start,
    /// The ring runs no longer, and is in the slot.
    Stop,
    /// There are no blobs, and the ring is lost.
    Reset,
    /// The frontend maps over this socket from now on.
    Channel {
        socket: SafeDescriptor,
        has_replies: bool,
    },
}

/// The worker can't go on.
#[sorted]
#[derive(Debug, Error)]
pub(super) enum Error {
    /// The executor failed.
    #[error(transparent)]
    Executor(#[from] cros_async::Error),
    /// The system refused a descriptor.
    #[error(transparent)]
    System(#[from] Errno),
    /// The tube to the main channel's thread failed.
    #[error("commands")]
    Tube(#[from] TubeError),
}

/// Where a ring is while it passes from one thread to the other.
pub(super) type Slot = Mutex<Option<Ring>>;

/// A ring that runs; it gives the ring back when it is told to stop or can't go on.
type Running<'a> = Pin<Box<dyn Future<Output = Ring> + 'a>>;

type Memory = GuestMemoryLoadGuard<GuestMemoryMmap>;

pub(super) struct Worker<'a, 'r> {
    pub(super) ex: Executor,
    pub(super) slot: &'a Slot,
    pub(super) reporter: &'a Reporter<'r>,
    pub(super) table: RefCell<Table>,
    pub(super) reply_deadline: Duration,
    pub(super) frontend: RefCell<Option<Rc<FrontendChannel>>>,
    pub(super) stopping: Cell<bool>,
    pub(super) requests: Cell<u64>,
    pub(super) complaints: RefCell<RateLimit>,
}

impl Worker<'_, '_> {
    /// Serves until the other end of `tube` is closed, and returns how many requests there were.
    ///
    /// # Errors
    /// [`Error`] if it can't go on.
    pub(super) fn run(self, tube: Tube) -> Result<u64, Error> {
        let commands = AsyncTube::new(&self.ex, tube)?;
        match self.ex.run_until(self.serve(&commands))? {
            Ok(()) | Err(Error::Tube(TubeError::Disconnected)) => Ok(self.requests.get()),
            Err(error) => Err(error),
        }
    }

    async fn serve(&self, commands: &AsyncTube) -> Result<(), Error> {
        let mut running: Option<Running<'_>> = None;
        loop {
            let command = match &mut running {
                None => commands.next().await?,
                Some(ring) => match first(commands.next(), ring).await {
                    First::One(command) => command?,
                    First::Other(ring) => {
                        // It can't go on; there it waits until it is stopped.
                        *lock(self.slot) = Some(ring);
                        running = None;
                        continue;
                    }
                },
            };
            match command {
                Command::Start => {
                    let ring = lock(self.slot).take();
                    running = ring.map(|ring| Box::pin(self.run_ring(ring)) as _);
                    say(self.reporter, &Report::QueueStarted);
                }
                Command::Stop => {
                    if let Some(ring) = running.take() {
                        self.stopping.set(true);
                        let ring = ring.await;
                        self.stopping.set(false);
                        *lock(self.slot) = Some(ring);
                    }
                    say(self.reporter, &Report::QueueStopped);
                }
                Command::Reset => {
                    running = None;
                    lock(self.slot).take();
                    self.table.borrow_mut().clear();
                    say(self.reporter, &Report::Reset);
                }
                Command::Channel {
                    socket,
                    has_replies,
                } => self.take_channel(socket, has_replies)?,
            }
            commands.send(()).await?;
        }
    }

    /// Exchanges the channel. What was mapped over the old one goes with it.
    fn take_channel(&self, socket: SafeDescriptor, has_replies: bool) -> Result<(), Error> {
        let channel = FrontendChannel::new(&self.ex, socket, has_replies, self.reply_deadline)?;
        if let Some(old) = self.frontend.replace(Some(Rc::new(channel))) {
            old.close();
            self.table.borrow_mut().forget_mappings();
        }
        say(self.reporter, &Report::Channel);
        Ok(())
    }

    /// Processes requests until it is to stop, or the ring is broken.
    async fn run_ring(&self, ring: Ring) -> Ring {
        let Ring {
            mut queue,
            memory,
            kick,
            call,
        } = ring;
        let kick = EventAsync::new(kick, &self.ex);
        loop {
            let served = self.serve_available(&mut queue, &memory, &call).await;
            if let Err(error) = served {
                base::warn!("the queue is broken: {error}");
                break;
            }
            if self.stopping.get() {
                break;
            }
            match first(kick.next_val(), self.stop()).await {
                First::One(Ok(_)) => {}
                First::One(Err(error)) => {
                    base::warn!("the queue's kick is broken: {error}");
                    break;
                }
                First::Other(()) => break,
            }
        }
        Ring {
            queue,
            memory,
            kick: Event::from(kick),
            call,
        }
    }

    /// Is done once the queue is to stop. Nobody is woken for that: who sets the flag then waits for the queue.
    async fn stop(&self) {
        poll_fn(|_| match self.stopping.get() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// Processes what is available, until the driver will kick for the next request.
    async fn serve_available(
        &self,
        queue: &mut virtio_queue::Queue,
        memory: &crate::backend::rings::SharedMemory,
        call: &crate::backend::rings::Call,
    ) -> Result<(), virtio_queue::Error> {
        loop {
            queue.disable_notification(&*memory.memory())?;
            while !self.stopping.get() {
                let view = memory.memory();
                let Some(chain) = queue.pop_descriptor_chain(view.clone()) else {
                    break;
                };
                let head = chain.head_index();
                let written = self.serve_chain(&view, chain).await;
                queue.add_used(&*view, head, written)?;
                if queue.needs_notification(&*view)?
                    && let Err(error) = call.signal()
                {
                    self.complain(format_args!("the driver is not interrupted: {error}"));
                }
            }
            let more = queue.enable_notification(&*memory.memory())?;
            if !more || self.stopping.get() {
                return Ok(());
            }
        }
    }

    /// Serves one request, and returns how many bytes were written for the driver.
    async fn serve_chain(&self, memory: &Memory, chain: DescriptorChain<Memory>) -> u32 {
        self.requests.set(self.requests.get() + 1);
        let (request, mut writer) = match take_request(memory, chain) {
            Ok(taken) => taken,
            Err(error) => {
                self.complain(format_args!("a request is not answered: {error}"));
                return 0;
            }
        };
        let response = match request {
            Ok(request) => self.serve_request(request).await,
            Err(errno) => self.refuse("request", 0, errno),
        };
        match writer.write_all(&response.to_bytes()) {
            Ok(()) => RESPONSE_WRITTEN,
            Err(error) => {
                self.complain(format_args!("an answer is lost: {error}"));
                0
            }
        }
    }

    /// Logs what a driver can cause as often as it likes.
    fn complain(&self, what: fmt::Arguments<'_>) {
        match self.complaints.borrow_mut().permit() {
            Some(0) => base::warn!("{what}"),
            Some(suppressed) => base::warn!("{what} ({suppressed} lines before it left out)"),
            None => {}
        }
    }

    async fn serve_request(&self, request: Request) -> Response {
        let (blob, done) = match request {
            Request::Allocate { len } => self.allocate(len),
            Request::Free { blob } => (blob, self.free(blob)),
            Request::Map {
                blob,
                shm_offset,
                blob_offset,
                len,
                writable,
            } => {
                let mapped = Mapped {
                    shm_offset,
                    blob_offset,
                    len,
                    writable,
                };
                (blob, self.map(blob, mapped).await)
            }
            Request::Unmap { blob } => (blob, self.unmap(blob).await),
            Request::Resize { blob, len } => (blob, self.resize(blob, len).await),
            Request::Fill {
                blob,
                blob_offset,
                len,
                pattern,
            } => (blob, self.fill(blob, blob_offset, len, pattern).await),
            Request::Info { blob } => (blob, Ok(())),
        };
        let described = done.and_then(|()| self.table.borrow().describe(blob));
        // What was just given up is no more to be described than what never was.
        match (described, request) {
            (Err(_), Request::Free { .. }) if done.is_ok() => Response {
                status: 0,
                ..Response::refusal(Errno::new(0), blob)
            },
            (Ok(response), _) => response,
            (Err(errno), _) => self.refuse(request.name(), blob, errno),
        }
    }

    fn refuse(&self, request: &str, blob: BlobId, errno: Errno) -> Response {
        say(
            self.reporter,
            &Report::Refused {
                request,
                blob,
                errno,
            },
        );
        Response::refusal(errno, blob)
    }

    fn allocate(&self, bytes: u64) -> (BlobId, Result<(), Errno>) {
        match self.table.borrow_mut().allocate(bytes) {
            Ok(blob) => {
                say(self.reporter, &Report::Allocated { blob, bytes });
                (blob, Ok(()))
            }
            Err(errno) => (0, Err(errno)),
        }
    }

    fn free(&self, blob: BlobId) -> Result<(), Errno> {
        self.table.borrow_mut().free(blob)?;
        say(self.reporter, &Report::Freed { blob });
        Ok(())
    }

    fn frontend(&self) -> Result<Rc<FrontendChannel>, Errno> {
        let frontend = self.frontend.borrow();
        frontend.clone().ok_or(Errno::new(libc::ENOTCONN))
    }

    async fn map(&self, blob: BlobId, mapped: Mapped) -> Result<(), Errno> {
        self.table.borrow().check_map(blob, &mapped)?;
        self.place(blob, mapped).await
    }

    /// Maps a part of a blob that is there and not mapped.
    async fn place(&self, blob: BlobId, mapped: Mapped) -> Result<(), Errno> {
        let frontend = self.frontend()?;
        let file = self.table.borrow().get(blob)?.file();
        let part = Part {
            shm_offset: mapped.shm_offset,
            fd_offset: mapped.blob_offset,
            len: mapped.len,
            writable: mapped.writable,
        };
        frontend.map(&self.ex, file.as_fd(), part).await?;
        self.table.borrow_mut().note(blob, Some(mapped));
        let Mapped {
            shm_offset,
            len,
            writable,
            ..
        } = mapped;
        say(
            self.reporter,
            &Report::Mapped {
                blob,
                shm_offset,
                len,
                writable,
            },
        );
        Ok(())
    }

    async fn unmap(&self, blob: BlobId) -> Result<(), Errno> {
        let mapped = self.table.borrow().mapping(blob)?;
        let frontend = self.frontend()?;
        frontend
            .unmap(&self.ex, mapped.shm_offset, mapped.len)
            .await?;
        self.table.borrow_mut().note(blob, None);
        say(self.reporter, &Report::Unmapped { blob });
        Ok(())
    }

    /// Maps the blob anew with another length; if that is refused, as it was.
    async fn resize(&self, blob: BlobId, len: u64) -> Result<(), Errno> {
        let present = self.table.borrow().mapping(blob)?;
        if len == 0 {
            return Err(Errno::new(libc::EINVAL));
        }
        let end = present
            .blob_offset
            .checked_add(len)
            .ok_or(Errno::new(libc::ERANGE))?;
        self.table.borrow_mut().grow(blob, end)?;
        self.unmap(blob).await?;
        let resized = self.place(blob, Mapped { len, ..present }).await;
        if resized.is_err() {
            self.place(blob, present).await?;
        }
        resized
    }

    async fn fill(&self, blob: BlobId, offset: u64, len: u64, pattern: u32) -> Result<(), Errno> {
        let file = self.table.borrow().part(blob, offset, len)?;
        let words = pattern.to_le_bytes().repeat(FILL_BYTES / 4);
        let mut done = 0;
        while done < len {
            let rest = usize::try_from(len - done).unwrap_or(usize::MAX);
            let piece = words.get(..rest).unwrap_or(&words);
            write_all(file.as_fd(), offset + done, piece)?;
            done += piece.len() as u64;
            pass().await;
        }
        say(self.reporter, &Report::Filled { blob, bytes: len });
        Ok(())
    }
}

/// Lets commands be looked at.
async fn pass() {
    let mut passed = false;
    poll_fn(|cx| match std::mem::replace(&mut passed, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// Reads a request, and returns where its answer goes. The request itself can be refused.
fn take_request(
    memory: &Memory,
    chain: DescriptorChain<Memory>,
) -> Result<(Result<Request, Errno>, Writer<'_>), virtio_queue::Error> {
    let mut reader: Reader<'_> = chain.clone().reader(memory)?;
    let writer: Writer<'_> = chain.writer(memory)?;
    if writer.available_bytes() < RESPONSE_BYTES {
        return Err(virtio_queue::Error::InvalidChain);
    }
    let mut bytes = [0; REQUEST_BYTES];
    let request = match reader.available_bytes() == REQUEST_BYTES {
        true => reader
            .read_exact(&mut bytes)
            .map_err(|_| Errno::new(libc::EFAULT))
            .and_then(|()| Request::parse(&bytes)),
        false => Err(Errno::new(libc::EINVAL)),
    };
    Ok((request, writer))
}
