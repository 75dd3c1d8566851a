//! What holds for both flavours: each test runs on an epoll and on an io_uring executor.

mod descriptors;
mod ends;
mod jails;
mod tasks;
mod timers;

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use base::Event;

use crate::Error;
use crate::Executor;
use crate::ExecutorKind;
use crate::TimerAsync;

/// How long a test may take; it is there to fail only.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes an executor, or returns none where the kernel has no io_uring for this process: a failure where CI is set.
fn executor(kind: ExecutorKind) -> Option<Executor> {
    match Executor::with_executor_kind(kind) {
        Ok(ex) => Some(ex),
        Err(error) if kind == ExecutorKind::Uring => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs `future`, but not for longer than [`TIMEOUT`].
#[track_caller]
fn run<F: Future>(ex: &Executor, future: F) -> F::Output {
    let alarm = TimerAsync::new(ex);
    let guard = ex.spawn(async move {
        let mut alarm = alarm;
        alarm.reset_oneshot(TIMEOUT);
        let expired = alarm.wait().await;
        assert!(expired.is_err(), "the test takes more than {TIMEOUT:?}");
    });
    ex.run_until(async {
        let output = future.await;
        guard.cancel().await;
        output
    })
    .expect("it runs")
}

fn event() -> Event {
    Event::new().expect("an event")
}

/// Lets the other tasks run once.
async fn pass() {
    struct Pass(bool);

    impl Future for Pass {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    Pass(false).await;
}

/// Makes a test of each function, for each flavour.
macro_rules! for_both_kinds {
    ($($(#[$attribute:meta])* fn $name:ident($ex:ident) $body:block)+) => {
        $($(#[$attribute])* fn $name($ex: crate::Executor) $body)+

        mod epoll {
            $(#[test]
            fn $name() {
                crate::tests::executor(crate::ExecutorKind::Epoll).map(super::$name);
            })+
        }

        mod uring {
            $(#[test]
            fn $name() {
                crate::tests::executor(crate::ExecutorKind::Uring).map(super::$name);
            })+
        }
    };
}
use for_both_kinds;

#[test]
fn kernel_error_names_the_flavour_and_the_way_out() {
    let error = |kind| Error::Kernel {
        kind,
        source: std::io::ErrorKind::PermissionDenied.into(),
    };
    assert_eq!(
        error(ExecutorKind::Uring).to_string(),
        "the kernel gives no uring executor to this process (see /proc/sys/kernel/io_uring_disabled; the epoll executor \
         does the same)"
    );
    assert_eq!(
        error(ExecutorKind::Epoll).to_string(),
        "the kernel gives no epoll executor to this process"
    );
}
