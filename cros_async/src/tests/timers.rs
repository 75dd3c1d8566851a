//! Timers.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use super::for_both_kinds;
use super::pass;
use super::run;
use crate::Error;
use crate::TimerAsync;

const SHORT: Duration = Duration::from_millis(5);
const LONG: Duration = Duration::from_millis(20);

for_both_kinds! {
    fn sleep_ends_no_earlier_than_asked(ex) {
        let start = Instant::now();
        run(&ex, TimerAsync::sleep(&ex, SHORT)).expect("it sleeps");
        assert!(start.elapsed() >= SHORT);
    }

    fn sleeps_end_in_the_order_of_their_ends(ex) {
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, duration) in [("long", LONG), ("none", Duration::ZERO), ("short", SHORT)] {
            let (order, spawner) = (Rc::clone(&order), ex.clone());
            tasks.push(ex.spawn_local(async move {
                TimerAsync::sleep(&spawner, duration).await.expect("it sleeps");
                order.borrow_mut().push(name);
            }));
        }
        run(&ex, async {
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(*order.borrow(), ["none", "short", "long"]);
    }

    fn interval_counts_the_periods_that_have_passed(ex) {
        let start = Instant::now();
        let mut timer = TimerAsync::interval(&ex, SHORT).expect("a period");
        let mut periods = 0;
        run(&ex, async {
            for _ in 0..4 {
                let passed = timer.wait().await.expect("it expires");
                assert_ne!(passed, 0);
                periods += u32::try_from(passed).expect("few");
            }
        });
        assert!(periods >= 4);
        assert!(start.elapsed() >= SHORT * periods);
    }

    fn timer_that_is_not_set_never_expires(ex) {
        let mut timer = TimerAsync::new(&ex);
        let task = ex.spawn(async move { timer.wait().await });
        run(&ex, TimerAsync::sleep(&ex, SHORT)).expect("it sleeps");
        assert!(!task.is_finished());
    }

    fn timer_of_an_unreachable_instant_never_expires(ex) {
        let sleeper = ex.clone();
        let task = ex.spawn(async move { TimerAsync::sleep(&sleeper, Duration::MAX).await });
        run(&ex, TimerAsync::sleep(&ex, SHORT)).expect("it sleeps");
        assert!(!task.is_finished());
        drop(task);
        run(&ex, pass());
    }

    fn oneshot_expires_once_and_can_be_set_again(ex) {
        let mut timer = TimerAsync::new(&ex);
        run(&ex, async {
            timer.reset_oneshot(SHORT);
            assert_eq!(timer.wait().await.expect("it expires"), 1);
            timer.reset_oneshot(Duration::ZERO);
            assert_eq!(timer.wait().await.expect("it expires"), 1);
            timer.reset_oneshot(SHORT);
            timer.clear();
        });
        let task = ex.spawn(async move { timer.wait().await });
        run(&ex, TimerAsync::sleep(&ex, LONG)).expect("it sleeps");
        assert!(!task.is_finished());
    }

    fn cancelled_sleep_leaves_no_timer(ex) {
        let sleeper = ex.clone();
        let task = ex.spawn(async move { TimerAsync::sleep(&sleeper, LONG * 1000).await });
        run(&ex, pass());
        run(&ex, async { assert!(task.cancel().await.is_none()) });
        assert_eq!(ex.reactor().timers(), 0);
    }

    fn period_of_zero_is_refused(ex) {
        let refused = TimerAsync::interval(&ex, Duration::ZERO);
        assert!(matches!(refused, Err(Error::NoPeriod)), "{refused:?}");
    }
}
