//! Passes on what a jailed process writes to its standard error, line by line.
//!
//! The process may have been taken over, and its lines end on somebody's terminal or in a log: control characters are replaced, each line
//! says whose it is, long ones are cut off, and a process that writes without end is told about and not shown. A pipe also lets the
//! process write where standard error is a file, which the limit on file sizes would forbid.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::record::printable;

/// The longest line that is passed on, in bytes.
const MAX_LINE: usize = 1000;

/// So many lines are passed on at once, and one more for each [`REFILL`].
const BURST: u32 = 200;
const REFILL: Duration = Duration::from_millis(20);

/// How long the end of a process waits for its last lines. They are there already; only a reader of our own standard error that does not
/// read keeps them back.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The thread that passes lines on. It ends with the last holder of the pipe.
#[derive(Debug)]
pub(super) struct Forward {
    done: Mutex<mpsc::Receiver<()>>,
}

impl Forward {
    /// Passes on what comes from `pipe`, which the process called `name` holds the other end of.
    pub(super) fn start(name: &str, pipe: OwnedFd) -> io::Result<Self> {
        let (sender, done) = mpsc::channel();
        let mut lines = Lines::new(name);
        thread::Builder::new()
            .name(format!("stderr {name}"))
            .spawn(move || {
                // An error of the pipe is its end. The sender says so when it is dropped.
                let _sender: mpsc::Sender<()> = sender;
                let _end = pass_on(File::from(pipe), &mut lines);
            })?;
        Ok(Self {
            done: Mutex::new(done),
        })
    }

    /// Waits a little for the last lines of a process that has ended.
    pub(super) fn finish(&self) {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let _done_or_late = done.recv_timeout(LAST_LINES);
    }
}

fn pass_on(mut pipe: File, lines: &mut Lines) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let len = match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        show(&lines.take(&buffer[..len], Instant::now()));
    }
    show(&lines.finish());
    Ok(())
}

fn show(text: &str) {
    if !text.is_empty() {
        // Where standard error is closed there is nobody to tell.
        let _lost = io::stderr().write_all(text.as_bytes());
    }
}

/// Makes lines that may be shown out of bytes that may be anything.
struct Lines {
    name: String,
    /// The start of a line whose end has not come yet, no longer than [`MAX_LINE`].
    partial: Vec<u8>,
    /// How many more lines may be shown now, and when that was last added to.
    credit: u32,
    since: Option<Instant>,
    /// How many were not shown.
    suppressed: u64,
}

impl Lines {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            partial: Vec::new(),
            credit: BURST,
            since: None,
            suppressed: 0,
        }
    }

    /// The whole lines that `bytes` completes, as they are to be shown.
    fn take(&mut self, bytes: &[u8], now: Instant) -> String {
        self.refill(now);
        let mut shown = String::new();
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let line = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = MAX_LINE - self.partial.len();
            self.partial
                .extend_from_slice(&line[..line.len().min(room)]);
            if line.len() < piece.len() {
                self.end_line(&mut shown);
            }
        }
        shown
    }

    /// What is left at the end.
    fn finish(&mut self) -> String {
        let mut shown = String::new();
        if !self.partial.is_empty() {
            self.end_line(&mut shown);
        }
        self.say_suppressed(&mut shown);
        shown
    }

    fn refill(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let periods = now.saturating_duration_since(since).as_nanos() / REFILL.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if periods > 0 {
            self.credit = self.credit.saturating_add(periods).min(BURST);
            self.since = Some(now);
        }
    }

    fn end_line(&mut self, shown: &mut String) {
        if self.credit == 0 {
            self.suppressed += 1;
        } else {
            self.credit -= 1;
            self.say_suppressed(shown);
            let line = printable(&String::from_utf8_lossy(&self.partial));
            self.say(shown, &line);
        }
        self.partial.clear();
    }

    fn say_suppressed(&mut self, shown: &mut String) {
        if self.suppressed > 0 {
            let line = format!("({} lines not shown)", self.suppressed);
            self.suppressed = 0;
            self.say(shown, &line);
        }
    }

    fn say(&self, shown: &mut String, line: &str) {
        shown.push_str("device ");
        shown.push_str(&self.name);
        shown.push_str(": ");
        shown.push_str(line);
        shown.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_and_named() {
        let mut lines = Lines::new("fs0");
        let now = Instant::now();
        assert_eq!(lines.take(b"one\ntw", now), "device fs0: one\n");
        assert_eq!(lines.take(b"o", now), "");
        assert_eq!(
            lines.take(b"\n\nthree", now),
            "device fs0: two\ndevice fs0: \n"
        );
        assert_eq!(lines.finish(), "device fs0: three\n");
        assert_eq!(lines.finish(), "");
    }

    #[test]
    fn control_characters_and_bytes_that_are_no_text_are_replaced() {
        let mut lines = Lines::new("fs0");
        let shown = lines.take(b"\x1b[2Ja\rb\x00\xff\xc3\xa4\n", Instant::now());
        assert_eq!(
            shown,
            "device fs0: \u{fffd}[2Ja\u{fffd}b\u{fffd}\u{fffd}\u{e4}\n"
        );
    }

    #[test]
    fn long_line_is_cut_off_however_it_comes() {
        let mut lines = Lines::new("x");
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(lines.take(&[b'a'; 999], now), "");
        }
        let shown = lines.take(b"\n", now);
        assert_eq!(shown.len(), "device x: ".len() + MAX_LINE + 1);
    }

    #[test]
    fn flood_is_counted_and_not_shown() {
        let mut lines = Lines::new("x");
        let now = Instant::now();
        let shown = lines.take(&b"a\n".repeat(500), now);
        assert_eq!(shown.lines().count(), 200);
        assert_eq!(lines.take(&b"a\n".repeat(5), now + REFILL / 2), "");
        let shown = lines.take(b"b\nc\n", now + REFILL);
        assert_eq!(shown, "device x: (305 lines not shown)\ndevice x: b\n");
        assert_eq!(lines.finish(), "device x: (1 lines not shown)\n");
    }

    #[test]
    fn credit_never_grows_beyond_the_burst() {
        let mut lines = Lines::new("x");
        let now = Instant::now();
        assert_eq!(lines.take(b"a\n", now).lines().count(), 1);
        let later = now + Duration::from_secs(3600);
        assert_eq!(lines.take(&b"a\n".repeat(500), later).lines().count(), 200);
    }
}
