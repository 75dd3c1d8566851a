//! The end of an executor.

use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use super::event;
use super::for_both_kinds;
use super::pass;
use super::run;
use crate::Error;
use crate::EventAsync;
use crate::TimerAsync;

for_both_kinds! {
    fn last_handle_takes_detached_tasks_with_it(ex) {
        let alive = Arc::new(());
        let event = EventAsync::new(event(), &ex);
        ex.spawn({
            let alive = Arc::clone(&alive);
            async move {
                event.next_val().await.expect("a signal");
                drop(alive);
            }
        })
        .detach();
        let local = Rc::new(());
        ex.spawn_local({
            let local = Rc::clone(&local);
            async move {
                std::future::pending::<()>().await;
                drop(local);
            }
        })
        .detach();
        run(&ex, pass());
        assert_eq!((Arc::strong_count(&alive), Rc::strong_count(&local)), (2, 2));
        drop(ex);
        assert_eq!((Arc::strong_count(&alive), Rc::strong_count(&local)), (1, 1));
    }

    fn shutdown_drops_tasks_that_hold_the_executor(ex) {
        let alive = Arc::new(());
        for _ in 0..10 {
            let (alive, ex2) = (Arc::clone(&alive), ex.clone());
            ex.spawn(async move {
                TimerAsync::sleep(&ex2, super::TIMEOUT * 100).await.expect("it sleeps");
                drop(alive);
            })
            .detach();
        }
        run(&ex, pass());
        assert_eq!(ex.tasks(), 10);
        ex.shutdown();
        assert_eq!(ex.tasks(), 0);
        assert_eq!(Arc::strong_count(&alive), 1);
        let late = ex.spawn(async {});
        assert!(late.is_finished() || ex.tasks() == 0);
        let run = ex.run_until(async {});
        assert!(matches!(run, Err(Error::Ended)), "{run:?}");
    }

    fn shutdown_by_a_task_ends_the_run(ex) {
        let ending = ex.clone();
        ex.spawn(async move { ending.shutdown() }).detach();
        let run = ex.run_until(std::future::pending::<()>());
        assert!(matches!(run, Err(Error::Ended)), "{run:?}");
    }

    fn shutdown_by_another_thread_ends_the_run(ex) {
        let ending = ex.clone();
        let thread = thread::spawn(move || ending.shutdown());
        let run = ex.run_until(std::future::pending::<()>());
        assert!(matches!(run, Err(Error::Ended)), "{run:?}");
        thread.join().expect("the thread ends");
    }

    fn source_that_outlives_the_executor_says_so(ex) {
        let waiting = EventAsync::new(event(), &ex);
        let mut timer = TimerAsync::new(&ex);
        drop(ex);
        let other = crate::Executor::new().expect("an executor");
        let result = run(&other, waiting.next_val());
        assert!(matches!(result, Err(Error::Ended)), "{result:?}");
        timer.reset_oneshot(super::TIMEOUT);
        let result = run(&other, timer.wait());
        assert!(matches!(result, Err(Error::Ended)), "{result:?}");
    }

    fn executor_that_ends_on_another_thread_drops_what_may_be_dropped(ex) {
        let alive = Arc::new(());
        ex.spawn({
            let alive = Arc::clone(&alive);
            async move {
                std::future::pending::<()>().await;
                drop(alive);
            }
        })
        .detach();
        ex.spawn_local(std::future::pending::<()>()).detach();
        run(&ex, pass());
        thread::spawn(move || drop(ex)).join().expect("no panic");
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    fn leaked_local_task_is_not_dropped_by_whoever_wakes_it(ex) {
        let waker = Arc::new(std::sync::Mutex::new(None));
        let noted = Arc::clone(&waker);
        ex.spawn_local(std::future::poll_fn(move |cx| {
            *crate::lock(&noted) = Some(cx.waker().clone());
            std::task::Poll::<()>::Pending
        }))
        .detach();
        run(&ex, pass());
        thread::spawn(move || drop(ex)).join().expect("no panic");
        let waker: Option<std::task::Waker> = crate::lock(&waker).take();
        let waker = waker.expect("the task ran");
        thread::spawn(move || waker.wake()).join().expect("no panic");
    }
}
