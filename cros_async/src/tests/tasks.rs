//! Tasks: spawned, cancelled, many.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::event;
use super::for_both_kinds;
use super::pass;
use super::run;
use crate::Error;
use crate::EventAsync;
use crate::TimerAsync;

const MANY: u64 = 5_000;
const CHAIN: usize = 200;

for_both_kinds! {
    fn local_task_gives_its_result(ex) {
        let local = Rc::new(Cell::new(1));
        let task = ex.spawn_local({
            let local = Rc::clone(&local);
            async move {
                pass().await;
                local.set(local.get() + 1);
                local
            }
        });
        assert_eq!(run(&ex, task).get(), 2);
        assert_eq!(local.get(), 2);
    }

    fn thousands_of_tasks_all_end(ex) {
        let tasks: Vec<_> = (0..MANY)
            .map(|number| {
                let sleeper = ex.clone();
                ex.spawn(async move {
                    pass().await;
                    let duration = Duration::from_micros(number % 97);
                    TimerAsync::sleep(&sleeper, duration).await.expect("it sleeps");
                    number
                })
            })
            .collect();
        let total = run(&ex, async {
            let mut total = 0;
            for task in tasks {
                total += task.await;
            }
            total
        });
        assert_eq!(total, MANY * (MANY - 1) / 2);
    }

    fn chain_of_tasks_passes_a_signal_on(ex) {
        let events: Vec<_> = (0..=CHAIN).map(|_| event()).collect();
        for pair in events.windows(2) {
            let [from, to] = pair else { unreachable!("windows of two") };
            let from = EventAsync::new(from.try_clone().expect("a clone"), &ex);
            let to = to.try_clone().expect("a clone");
            ex.spawn(async move {
                from.next_val().await.expect("a signal");
                to.signal().expect("signals");
            })
            .detach();
        }
        let last = EventAsync::new(events[CHAIN].try_clone().expect("a clone"), &ex);
        events[0].signal().expect("signals");
        assert_eq!(run(&ex, last.next_val()).expect("a signal"), 1);
    }

    fn task_whose_handle_is_dropped_is_dropped(ex) {
        let alive = Arc::new(());
        let task = ex.spawn({
            let (alive, event) = (Arc::clone(&alive), EventAsync::new(event(), &ex));
            async move {
                let _alive = alive;
                event.next_val().await
            }
        });
        run(&ex, pass());
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(task);
        run(&ex, pass());
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    fn cancelled_wait_takes_no_signal(ex) {
        let signals = event();
        let source = Arc::new(EventAsync::new(signals.try_clone().expect("a clone"), &ex));
        let task = ex.spawn({
            let source = Arc::clone(&source);
            async move { source.next_val().await }
        });
        run(&ex, pass());
        signals.signal().expect("signals");
        assert!(run(&ex, task.cancel()).is_none_or(|taken| taken.is_ok()));
        signals.signal().expect("signals");
        assert_ne!(run(&ex, source.next_val()).expect("a signal"), 0);
    }

    fn cancel_of_an_ended_task_gives_its_result(ex) {
        let task = ex.spawn(async { 7 });
        run(&ex, pass());
        run(&ex, pass());
        assert!(task.is_finished());
        assert_eq!(run(&ex, task.cancel()), Some(7));
    }

    fn task_spawned_by_another_thread_wakes_the_executor(ex) {
        let done = EventAsync::new(event(), &ex);
        let signal = done.event().try_clone().expect("a clone");
        let spawner = ex.clone();
        let thread = thread::spawn(move || {
            spawner.spawn(async move { signal.signal() }).detach();
        });
        assert_eq!(run(&ex, done.next_val()).expect("a signal"), 1);
        thread.join().expect("the thread ends");
    }

    fn run_of_another_thread_is_refused(ex) {
        run(&ex, pass());
        let other = ex.clone();
        let result = thread::spawn(move || other.run_until(async {})).join();
        let result = result.expect("the thread ends");
        assert!(matches!(result, Err(Error::WrongThread)), "{result:?}");
    }

    fn local_spawn_of_another_thread_panics(ex) {
        run(&ex, pass());
        let other = ex.clone();
        let panicked = thread::spawn(move || other.spawn_local(async {}).detach()).join();
        let message = panicked.expect_err("a panic");
        assert_eq!(
            message.downcast_ref::<&str>(),
            Some(&"a local task is spawned by the executor's own thread")
        );
    }

    fn run_within_a_run_is_refused(ex) {
        let inner = ex.clone();
        let result = run(&ex, async move { inner.run_until(async {}) });
        assert!(matches!(result, Err(Error::Running)), "{result:?}");
    }

    fn panic_of_a_task_ends_the_run_and_not_the_executor(ex) {
        let task = ex.spawn(async { std::panic::panic_any("on purpose") });
        let caught = catch_unwind(AssertUnwindSafe(|| ex.run_until(std::future::pending::<()>())));
        let message = caught.expect_err("a panic");
        assert_eq!(message.downcast_ref::<&str>(), Some(&"on purpose"));
        drop(task);
        run(&ex, pass());
        assert_eq!(ex.tasks(), 0);
    }
}
