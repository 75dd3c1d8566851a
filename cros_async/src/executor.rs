//! The executor: one thread that runs tasks and waits when none can go on.

use std::fmt;
use std::future::Future;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Wake;
use std::task::Waker;
use std::thread;
use std::thread::ThreadId;

use async_task::Builder;
use async_task::Runnable;

use crate::AsyncResult;
use crate::Error;
use crate::ExecutorKind;
use crate::IoSource;
use crate::TaskHandle;
use crate::poller;
use crate::reactor::Reactor;
use crate::task::Alive;
use crate::task::Place;
use crate::task::Queue;

/// Runs tasks. Clones are handles of the same executor; any thread may hold one and spawn on it.
///
/// The first thread that runs the executor or spawns a local task on it is its owner; no other can run it.
///
/// When the last handle goes, every task that is left is dropped. A task that holds a handle itself keeps the executor
/// alive and so itself: end such ones with [`Executor::shutdown`]. Local tasks can be dropped on the owner's thread only;
/// if the executor ends elsewhere they are leaked, and the log says so.
#[derive(Clone)]
pub struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    kind: ExecutorKind,
    reactor: Arc<Reactor>,
    queue: Arc<Queue>,
    owner: OnceLock<ThreadId>,
    running: AtomicBool,
}

impl Executor {
    /// Makes an executor of the default flavour, epoll.
    ///
    /// # Errors
    /// As [`Executor::with_executor_kind`].
    pub fn new() -> AsyncResult<Self> {
        Self::with_executor_kind(ExecutorKind::default())
    }

    /// Makes an executor of a flavour.
    ///
    /// # Errors
    /// [`Error::Kernel`] where the kernel refuses; for io_uring also [`Error::Filtered`] and [`Error::Unknown`], since it
    /// is never used in a jail.
    pub fn with_executor_kind(kind: ExecutorKind) -> AsyncResult<Self> {
        let reactor = Arc::new(Reactor::new(poller::open(kind)?));
        let queue = Arc::new(Queue::new(Arc::clone(&reactor)));
        let shared = Arc::new(Shared {
            kind,
            reactor,
            queue,
            owner: OnceLock::new(),
            running: AtomicBool::new(false),
        });
        Ok(Self { shared })
    }

    /// Tells the flavour.
    pub fn kind(&self) -> ExecutorKind {
        self.shared.kind
    }

    /// Tells how many tasks have not ended.
    pub fn tasks(&self) -> usize {
        self.shared.queue.alive()
    }

    /// Starts a task. It goes on when the executor runs; after the executor's end it is dropped at once.
    pub fn spawn<F>(&self, future: F) -> TaskHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (alive, schedule) = self.shared.prepare();
        let id = alive.id;
        let future = with_guard(future, alive);
        let (runnable, task) = Builder::new()
            .metadata(Place::Anywhere)
            .spawn(move |_| future, schedule);
        self.shared.begin(id, runnable);
        TaskHandle { task }
    }

    /// Starts a task that stays on this thread, which becomes the owner if there is none.
    ///
    /// # Panics
    /// If another thread is the executor's owner.
    pub fn spawn_local<F>(&self, future: F) -> TaskHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        assert!(
            self.shared.own(),
            "a local task is spawned by the executor's own thread"
        );
        let (alive, schedule) = self.shared.prepare();
        let id = alive.id;
        let future = with_guard(future, alive);
        let (runnable, task) = Builder::new()
            .metadata(Place::OwnerOnly)
            .spawn_local(move |_| future, schedule);
        self.shared.begin(id, runnable);
        TaskHandle { task }
    }

    /// Runs tasks until `future` is done, and returns its result. Other tasks stay where they are until the next run.
    ///
    /// A task that panics ends the run with its panic.
    ///
    /// # Errors
    /// [`Error::WrongThread`], [`Error::Running`] if it is called by a task, [`Error::Ended`] after a shutdown,
    /// [`Error::Wait`] if the kernel fails.
    pub fn run_until<F: Future>(&self, future: F) -> AsyncResult<F::Output> {
        let shared = &*self.shared;
        if !shared.own() {
            return Err(Error::WrongThread);
        }
        let _running = Running::begin(&shared.running)?;
        let main = Arc::new(MainTask {
            ready: AtomicBool::new(true),
            reactor: Arc::clone(&shared.reactor),
        });
        let waker = Waker::from(Arc::clone(&main));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            shared.reactor.check()?;
            if main.ready.swap(false, Ordering::SeqCst)
                && let Poll::Ready(output) = future.as_mut().poll(&mut context)
            {
                return Ok(output);
            }
            // Those that become runnable meanwhile wait for the next round, so that descriptors are looked at between.
            for _ in 0..shared.queue.len() {
                let Some(runnable) = shared.queue.pop() else {
                    break;
                };
                runnable.run();
            }
            shared.reactor.about_to_sleep();
            let idle = shared.queue.is_empty()
                && !main.ready.load(Ordering::SeqCst)
                && shared.reactor.check().is_ok();
            let turned = shared.reactor.turn(idle);
            shared.reactor.awake();
            turned?;
        }
    }

    /// Takes anything with a descriptor to wait for it on this executor.
    pub fn async_from<F: AsFd>(&self, inner: F) -> IoSource<F> {
        IoSource::new(inner, self)
    }

    /// Drops every task, and refuses to run or to wait from now on.
    ///
    /// Called by a task, it takes effect on that one when it next waits.
    pub fn shutdown(&self) {
        self.shared.end();
    }

    pub(crate) fn reactor(&self) -> Arc<Reactor> {
        Arc::clone(&self.shared.reactor)
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("kind", &self.shared.kind)
            .field("tasks", &self.tasks())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Makes the calling thread the owner if there is none, and tells whether it is the owner.
    fn own(&self) -> bool {
        let current = thread::current().id();
        *self.owner.get_or_init(|| current) == current
    }

    fn prepare(&self) -> (Alive, impl Fn(Runnable<Place>) + Send + Sync + 'static) {
        let queue = Arc::clone(&self.queue);
        let alive = Alive {
            id: queue.next_id(),
            queue: Arc::clone(&queue),
        };
        (alive, move |runnable| queue.push(runnable))
    }

    fn begin(&self, id: u64, runnable: Runnable<Place>) {
        self.queue.enter(id, *runnable.metadata(), runnable.waker());
        runnable.schedule();
    }

    fn end(&self) {
        self.reactor.end();
        let current = thread::current().id();
        let is_owner = self.owner.get().is_none_or(|owner| *owner == current);
        self.queue.end(is_owner);
        self.reactor.notify();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ties `guard`'s end to the future's.
async fn with_guard<F: Future>(future: F, guard: Alive) -> F::Output {
    let output = future.await;
    drop(guard);
    output
}

/// The executor runs until this is dropped.
struct Running<'a>(&'a AtomicBool);

impl<'a> Running<'a> {
    fn begin(running: &'a AtomicBool) -> AsyncResult<Self> {
        match running.swap(true, Ordering::SeqCst) {
            true => Err(Error::Running),
            false => Ok(Self(running)),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// The future that a run is for.
struct MainTask {
    ready: AtomicBool,
    reactor: Arc<Reactor>,
}

impl Wake for MainTask {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.store(true, Ordering::SeqCst);
        self.reactor.notify();
    }
}
