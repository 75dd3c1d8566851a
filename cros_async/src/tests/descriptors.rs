//! Events, tubes and other descriptors.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use base::Event;
use base::Tube;
use base::TubeError;
use serde::Deserialize;
use serde::Serialize;

use super::event;
use super::for_both_kinds;
use super::pass;
use super::run;
use crate::AsyncTube;
use crate::Error;
use crate::EventAsync;
use crate::IoSource;

/// Too many for a socket's buffer.
const PACKETS: u32 = 2_000;

#[derive(Serialize, Deserialize)]
struct Message {
    number: u32,
    event: Event,
}

fn sockets() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a pair");
    near.set_nonblocking(true).expect("non-blocking");
    far.set_nonblocking(true).expect("non-blocking");
    (near, far)
}

/// Writes until there is no room, and returns how much that was.
fn fill(socket: &UnixStream) -> usize {
    let mut socket = socket;
    let mut filled = 0;
    loop {
        match socket.write(&[0; 4096]) {
            Ok(written) => filled += written,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return filled;
            }
        }
    }
}

/// Reads `count` bytes that are there.
fn drain(socket: &UnixStream, count: usize) {
    let mut socket = socket;
    let mut bytes = vec![0; count];
    socket.read_exact(&mut bytes).expect("the bytes are there");
}

for_both_kinds! {
    fn event_gives_the_signals_before_the_wait_together(ex) {
        let event = EventAsync::new(event(), &ex);
        event.event().signal().expect("signals");
        event.event().signal().expect("signals");
        assert_eq!(run(&ex, event.next_val()).expect("a signal"), 2);
    }

    fn event_of_another_thread_wakes_the_executor(ex) {
        let (ping, pong) = (EventAsync::new(event(), &ex), event());
        let signal = ping.event().try_clone().expect("a clone");
        let answer = pong.try_clone().expect("a clone");
        let thread = thread::spawn(move || {
            for _ in 0..100 {
                signal.signal().expect("signals");
                answer.wait().expect("waits");
            }
        });
        run(&ex, async {
            for _ in 0..100 {
                assert_eq!(ping.next_val().await.expect("a signal"), 1);
                pong.signal().expect("signals");
            }
        });
        thread.join().expect("the thread ends");
    }

    fn one_signal_is_taken_by_one_of_many_waiters(ex) {
        let event = Arc::new(EventAsync::new(event(), &ex));
        let done = Arc::new(EventAsync::new(super::event(), &ex));
        for _ in 0..10 {
            let (event, done) = (Arc::clone(&event), Arc::clone(&done));
            ex.spawn(async move {
                assert_eq!(event.next_val().await.expect("a signal"), 1);
                done.event().signal().expect("signals");
            })
            .detach();
        }
        run(&ex, async {
            pass().await;
            for _ in 0..10 {
                event.event().signal().expect("signals");
                assert_eq!(done.next_val().await.expect("a signal"), 1);
            }
        });
    }

    fn event_that_is_no_event_is_an_error(ex) {
        let (near, far) = sockets();
        drop(far);
        let event = EventAsync::new(Event::from(base::SafeDescriptor::from(near)), &ex);
        let result = run(&ex, event.next_val());
        assert!(matches!(result, Err(Error::Read(_))), "{result:?}");
    }

    fn tube_carries_messages_with_descriptors_both_ways(ex) {
        let (near, far) = Tube::pair().expect("a pair");
        let near = AsyncTube::new(&ex, near).expect("a tube");
        let far = AsyncTube::new(&ex, far).expect("a tube");
        let server = ex.spawn(async move {
            let mut message: Message = far.next().await?;
            message.event.signal().expect("signals");
            message.number += 1;
            far.send(&message).await
        });
        run(&ex, async {
            let event = event();
            let sent = Message { number: 41, event: event.try_clone().expect("a clone") };
            near.send(sent).await.expect("sends");
            let received: Message = near.next().await.expect("a message");
            server.await.expect("it serves");
            assert_eq!(received.number, 42);
            received.event.signal().expect("signals");
            let event = EventAsync::new(event, &ex);
            assert_eq!(event.next_val().await.expect("a signal"), 2);
        });
    }

    fn tube_without_room_makes_the_sender_wait(ex) {
        let (near, far) = Tube::pair().expect("a pair");
        let near = AsyncTube::new(&ex, near).expect("a tube");
        let far = AsyncTube::new(&ex, far).expect("a tube");
        let sender = ex.spawn(async move {
            for number in 0..PACKETS {
                near.send((number, [number; 30])).await?;
            }
            Ok::<(), TubeError>(())
        });
        run(&ex, async {
            for expected in 0..PACKETS {
                let (number, _): (u32, [u32; 30]) = far.next().await.expect("a message");
                assert_eq!(number, expected);
            }
            sender.await.expect("it sent them all");
            let end = far.next::<u32>().await;
            assert_eq!(end, Err(TubeError::Disconnected));
        });
    }

    fn tube_of_both_kinds_is_given_back(ex) {
        let (near, far) = Tube::pair().expect("a pair");
        let near = Tube::from(AsyncTube::new(&ex, near).expect("a tube"));
        far.send(&1u32).expect("sends");
        assert_eq!(near.recv::<u32>(), Ok(1));
    }

    fn reader_and_writer_of_a_socket_wait_at_once(ex) {
        let (near, far) = sockets();
        let filled = fill(&near);
        let near = Arc::new(ex.async_from(near));
        let reader = ex.spawn({
            let near = Arc::clone(&near);
            async move { near.wait_readable().await }
        });
        let writer = ex.spawn({
            let near = Arc::clone(&near);
            async move { near.wait_writable().await }
        });
        run(&ex, async {
            pass().await;
            pass().await;
            assert!(!reader.is_finished() && !writer.is_finished());
            (&far).write_all(b"x").expect("writes");
            reader.await.expect("readable");
            pass().await;
            assert!(!writer.is_finished());
            drain(&far, filled);
            writer.await.expect("writable");
        });
    }

    fn read_with_waits_for_bytes_and_for_the_end(ex) {
        let (near, far) = sockets();
        let near = ex.async_from(near);
        let read = EventAsync::new(event(), &ex);
        let has_read = read.event().try_clone().expect("a clone");
        let reader = ex.spawn(async move {
            let mut bytes = [0; 8];
            let mut counts = Vec::new();
            loop {
                let count = near.read_with(|mut near| near.read(&mut bytes)).await?;
                counts.push(count);
                has_read.signal().expect("signals");
                if count == 0 {
                    return Ok::<_, io::Error>(counts);
                }
            }
        });
        run(&ex, async {
            pass().await;
            (&far).write_all(b"abc").expect("writes");
            read.next_val().await.expect("a signal");
            drop(far);
            assert_eq!(reader.await.expect("it reads"), [3, 0]);
        });
    }

    fn two_sources_of_one_descriptor_are_both_told(ex) {
        let (near, far) = sockets();
        let (one, other) = (ex.async_from(&near), ex.async_from(&near));
        run(&ex, async {
            let mut first = std::pin::pin!(one.wait_readable());
            let mut second = std::pin::pin!(other.wait_readable());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert!(second.as_mut().poll(&mut context).is_pending());
            (&far).write_all(b"x").expect("writes");
            first.await.expect("readable");
            second.await.expect("readable");
        });
    }

    fn file_is_always_ready(ex) {
        let file = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let file = ex.async_from(file.expect("the manifest"));
        run(&ex, async {
            file.wait_readable().await.expect("ready");
            file.wait_writable().await.expect("ready");
        });
    }

    fn descriptor_is_closed_with_its_source_after_an_abandoned_wait(ex) {
        let (near, far) = sockets();
        let near = ex.async_from(near);
        let waiting = ex.spawn(async move { near.wait_readable().await });
        run(&ex, async {
            pass().await;
            pass().await;
            drop(waiting);
            let far: IoSource<UnixStream> = ex.async_from(far);
            far.wait_readable().await.expect("readable");
            let mut socket = far.as_source();
            assert_eq!(socket.read(&mut [0; 8]).expect("reads"), 0);
        });
    }
}

/// More completions at once than a ring has room for; with epoll each would be a duplicate of the descriptor.
#[test]
fn thousands_of_sources_of_one_descriptor_are_told_by_io_uring() {
    const SOURCES: usize = 3_000;
    let Some(ex) = super::executor(crate::ExecutorKind::Uring) else {
        return;
    };
    let signals = event();
    let sources: Vec<_> = (0..SOURCES).map(|_| ex.async_from(&signals)).collect();
    let told = std::cell::Cell::new(0);
    let mut waits: Vec<_> = sources
        .iter()
        .map(|source| Box::pin(source.wait_readable()))
        .collect();
    run(&ex, async {
        std::future::poll_fn(|cx| {
            waits.retain_mut(|wait| match wait.as_mut().poll(cx) {
                std::task::Poll::Pending => true,
                std::task::Poll::Ready(result) => {
                    result.expect("readable");
                    told.set(told.get() + 1);
                    false
                }
            });
            if waits.len() == SOURCES {
                signals.signal().expect("signals");
            }
            match waits.is_empty() {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
    });
    assert_eq!(told.get(), SOURCES);
}
