//! No descriptor outlives an executor. This is a program of its own, since it counts those of the process.

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::Event;
    use base::Tube;
    use cros_async::AsyncTube;
    use cros_async::EventAsync;
    use cros_async::Executor;
    use cros_async::ExecutorKind;
    use cros_async::TimerAsync;

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("/proc").count()
    }

    /// Leaves tasks of every kind behind: waiting, cancelled, never run.
    fn use_executor(ex: &Executor) {
        let (near, far) = Tube::pair().expect("a pair");
        let near = AsyncTube::new(ex, near).expect("a tube");
        let far = AsyncTube::new(ex, far).expect("a tube");
        ex.spawn(async move { far.next::<u32>().await }).detach();
        let cancelled = ex.spawn(async move { near.next::<u32>().await });
        for _ in 0..50 {
            let event = EventAsync::new(Event::new().expect("an event"), ex);
            ex.spawn(async move { event.next_val().await }).detach();
        }
        ex.run_until(TimerAsync::sleep(ex, Duration::from_millis(1)))
            .expect("it runs")
            .expect("it sleeps");
        drop(cancelled);
        let event = EventAsync::new(Event::new().expect("an event"), ex);
        ex.spawn(async move { event.next_val().await }).detach();
    }

    #[test]
    fn executors_that_end_leave_no_descriptor() {
        let before = descriptors();
        for kind in [ExecutorKind::Epoll, ExecutorKind::Uring] {
            for _ in 0..20 {
                match Executor::with_executor_kind(kind) {
                    Ok(ex) => use_executor(&ex),
                    Err(error) => {
                        assert_eq!(kind, ExecutorKind::Uring, "{error}");
                        assert!(std::env::var_os("CI").is_none(), "{error}");
                        eprintln!("skipped: {error}");
                    }
                }
                assert_eq!(descriptors(), before, "{kind}");
            }
        }
    }
}
