//! What the worker reads from the request channel, and when it waits for more of it.

use vm_control::MAX_BATCH;
use vmm_vhost::ChannelError;
use vmm_vhost::Received;
use vmm_vhost::RequestChannel;

use super::Intake;
use super::MAX_IN_FLIGHT;
use super::Worker;

/// After so many requests that came alone the next ones are expected to.
const ALONE: u32 = 4;

/// The most that this number grows to where waiting for them was in vain.
const MOST_ALONE: u32 = 1024;

/// Every so many requests that came alone it is tried whether more have been sent meanwhile.
pub(super) const ALONE_PROBE: u32 = 16;

/// Reads of the channel between two looks at the other sources.
const READS_PER_WAKE: usize = MAX_BATCH;

/// Reads after which a channel that is to be held counts as drained, whatever more its peer sends.
const READS_PER_DRAIN: usize = 4096;

/// Whether the backend waits for each answer, and whether it pays to wait for what it sends next.
#[derive(Debug)]
pub(super) struct Pace {
    /// Requests in a row that came while nothing was under way, one at a time.
    alone: u32,
    /// How many of them there must be.
    needed: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            alone: 0,
            needed: ALONE,
        }
    }
}

impl Pace {
    /// Whether what comes next had better be waited for outside the wait context.
    pub(super) fn is_steady(&self) -> bool {
        self.alone >= self.needed
    }

    /// Notes such a wait. One in vain costs a timer and two calls, and on a busy machine all are: it takes twice as
    /// many requests until the next one.
    pub(super) fn waited(&mut self, in_vain: bool) {
        if in_vain {
            self.alone = 0;
            self.needed = MOST_ALONE.min(2 * self.needed);
        } else {
            self.needed = ALONE;
        }
    }

    fn came_alone(&mut self) {
        self.alone = self.alone.saturating_add(1);
    }

    fn came_ahead(&mut self) {
        self.alone = 0;
    }

    /// Whoever always waited so far may have begun to send ahead, which only a further look shows.
    fn is_look_due(&self) -> bool {
        self.alone.is_multiple_of(ALONE_PROBE)
    }
}

impl Worker {
    /// Reads the channel as far as is due in one wake and handles what is complete.
    pub(super) fn read_channel(&mut self) {
        // Whoever sends before the last answer is there sends ahead: look for more before asking the service.
        let sends_ahead = !self.waiting.is_empty();
        let more = if sends_ahead { READS_PER_WAKE } else { 1 };
        let read = self.read_up_to(more);
        self.note_reads(read, sends_ahead);
    }

    /// Waits a little for the next request of a backend that waits for each answer, and returns whether there was one.
    ///
    /// As with [`Worker::await_answer`], the wait context would say the same with one more system call. Everything else is
    /// looked at after [`ANSWER_WAIT`] without a request, or after [`ALONE_IN_A_ROW`] of them.
    pub(super) fn await_request(&mut self) -> bool {
        if !self.pace.is_steady() || self.intake != Intake::Serve || !self.waiting.is_empty() {
            return false;
        }
        let Some(channel) = &mut self.channel else {
            return false;
        };
        if !channel.wants_read() || channel.wants_write() {
            return false;
        }
        let received = channel.receive_within_timeout();
        let read = self.take_received(received);
        self.pace.waited(!read);
        if read {
            self.note_reads(1, false);
        }
        read
    }

    /// Notes how often there was something to read: once is what a backend that waits for each answer leaves.
    fn note_reads(&mut self, read: usize, sends_ahead: bool) {
        if read > usize::from(!sends_ahead) {
            self.pace.came_ahead();
        } else if read == 1 {
            self.pace.came_alone();
            if self.pace.is_look_due() && self.read_up_to(READS_PER_WAKE) > 0 {
                self.pace.came_ahead();
            }
        }
    }

    /// Reads at most `most` times and returns how often there was something.
    fn read_up_to(&mut self, most: usize) -> usize {
        for read in 0..most {
            let Some(channel) = &mut self.channel else {
                return read;
            };
            let received = channel.receive();
            if !self.take_received(received) {
                return read;
            }
        }
        most
    }

    /// Handles what one receive brought, and returns whether that was anything.
    fn take_received(&mut self, received: Result<Received, ChannelError>) -> bool {
        // What was complete before the end still counts.
        self.decode();
        match received {
            Ok(Received::Bytes(_)) => true,
            Ok(Received::WouldBlock | Received::Full) => false,
            Err(error) => {
                self.close_channel(&error);
                false
            }
        }
    }

    /// Cancels everything that the channel's socket holds now.
    pub(super) fn drain(&mut self) {
        for _ in 0..READS_PER_DRAIN {
            let Some(channel) = &mut self.channel else {
                return;
            };
            let received = channel.receive();
            self.decode();
            match received {
                Ok(Received::Bytes(_)) => {}
                Ok(Received::WouldBlock) => return,
                Ok(Received::Full) => {
                    self.flush_replies();
                    if !self
                        .channel
                        .as_ref()
                        .is_some_and(RequestChannel::wants_read)
                    {
                        return;
                    }
                }
                Err(error) => return self.close_channel(&error),
            }
        }
    }

    /// Handles the complete requests that were read, as long as there is room for what they ask.
    pub(super) fn decode(&mut self) {
        while self.has_room() {
            let Some(channel) = &mut self.channel else {
                return;
            };
            let next = channel.next_request();
            self.note_refusals();
            self.note_deviations();
            match next {
                Ok(Some(incoming)) => self.handle(incoming),
                Ok(None) => return,
                Err(error) => return self.close_channel(&error),
            }
        }
    }

    /// Whether one more request can be taken, whatever it is.
    fn has_room(&mut self) -> bool {
        match self.intake {
            Intake::Hold => false,
            Intake::Cancel => true,
            Intake::Serve => {
                self.settle();
                self.is_settled()
                    && self.waiting.len() < MAX_IN_FLIGHT
                    && (!self.service.is_full() || self.send_batch().is_ok_and(|sent| sent))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests_until_steady(pace: &mut Pace) -> u32 {
        let mut count = 0;
        while !pace.is_steady() {
            pace.came_alone();
            count += 1;
        }
        count
    }

    #[test]
    fn waits_in_vain_become_rare_and_one_that_pays_ends_that() {
        let mut pace = Pace::default();
        let mut needed = Vec::new();
        for _ in 0..10 {
            needed.push(requests_until_steady(&mut pace));
            pace.waited(true);
        }
        assert_eq!(needed, [4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
        requests_until_steady(&mut pace);
        pace.waited(false);
        pace.came_ahead();
        assert_eq!(requests_until_steady(&mut pace), 4);
    }

    #[test]
    fn look_for_what_was_sent_ahead_is_due_every_so_often() {
        let mut pace = Pace::default();
        let mut due = Vec::new();
        for count in 1..=2 * ALONE_PROBE {
            pace.came_alone();
            if pace.is_look_due() {
                due.push(count);
            }
        }
        assert_eq!(due, [ALONE_PROBE, 2 * ALONE_PROBE]);
        pace.came_ahead();
        assert!(!pace.is_steady());
    }
}
