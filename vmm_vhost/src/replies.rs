//! The queue that lets requests be completed in any order while replies leave in request order.
//!
//! A request holds a slot from the moment that it is taken until its reply has gone out whole, so
//! the number of slots bounds what a peer that never reads can make us keep. Made once, never
//! grown.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use base::SafeDescriptor;
use zerocopy::IntoBytes;

use crate::message::Header;
use crate::message::REPLY_SIZE;
use crate::message::RequestCode;

/// The most requests that can be in flight on one channel.
pub(crate) const MAX_SLOTS: usize = 256;

/// Replies that go out together, and no heap for them.
pub(crate) type ReplyBytes = ArrayVec<u8, { MAX_SLOTS * REPLY_SIZE }>;

#[derive(Debug)]
enum State {
    Waiting,
    Done {
        value: u64,
        descriptor: Option<SafeDescriptor>,
    },
}

#[derive(Debug)]
struct Slot {
    code: RequestCode,
    /// Whether the peer gets a reply.
    due: bool,
    state: State,
}

/// What a request of a slot was, for whoever completes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) code: RequestCode,
    pub(crate) due: bool,
}

#[derive(Debug)]
pub(crate) struct ReplyQueue {
    slots: VecDeque<Slot>,
    max: usize,
    /// The number of the slot at the front.
    first: u64,
    /// How many slots wait for their completion.
    waiting: usize,
    /// How many bytes of the front slot's reply have gone out; its descriptor goes with the first.
    sent: usize,
}

impl ReplyQueue {
    /// Makes a queue for `max` requests, which must be in `1..=MAX_SLOTS`.
    pub(crate) fn new(max: usize) -> ReplyQueue {
        ReplyQueue {
            slots: VecDeque::with_capacity(max),
            max,
            first: 0,
            waiting: 0,
            sent: 0,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.slots.len() >= self.max
    }

    /// How many requests wait for their completion.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Tells whether a reply could go out.
    pub(crate) fn is_ready(&self) -> bool {
        // Slots without a reply never stay at the front once they are done.
        self.slots
            .front()
            .is_some_and(|slot| matches!(slot.state, State::Done { .. }))
    }

    /// Takes a slot for a request and returns its number. The queue must not be full.
    pub(crate) fn open(&mut self, code: RequestCode, due: bool) -> u64 {
        let number = self.first + self.slots.len() as u64;
        self.slots.push_back(Slot {
            code,
            due,
            state: State::Waiting,
        });
        self.waiting += 1;
        number
    }

    /// Takes a slot for a request whose reply is known. The queue must not be full.
    pub(crate) fn open_done(&mut self, code: RequestCode, value: u64) {
        self.slots.push_back(Slot {
            code,
            due: true,
            state: State::Done {
                value,
                descriptor: None,
            },
        });
    }

    /// Tells what waits in a slot; `None` for one that is done or gone.
    pub(crate) fn waiting_in(&self, number: u64) -> Option<Opened> {
        let slot = self.slots.get(self.index(number)?)?;
        matches!(slot.state, State::Waiting).then_some(Opened {
            code: slot.code,
            due: slot.due,
        })
    }

    /// Completes the request of a slot. A slot that is done or gone stays as it is.
    pub(crate) fn finish(&mut self, number: u64, value: u64, descriptor: Option<SafeDescriptor>) {
        let Some(slot) = self
            .index(number)
            .and_then(|index| self.slots.get_mut(index))
        else {
            return;
        };
        if matches!(slot.state, State::Waiting) {
            slot.state = State::Done { value, descriptor };
            self.waiting -= 1;
            self.skip_silent();
        }
    }

    /// Writes the replies that can go out in one piece, and names the descriptor for its first
    /// byte. A reply with a descriptor is a piece of its own.
    pub(crate) fn gather(&self, bytes: &mut ReplyBytes) -> Option<BorrowedFd<'_>> {
        bytes.clear();
        let mut skip = self.sent;
        for slot in &self.slots {
            let State::Done { value, descriptor } = &slot.state else {
                break;
            };
            if !slot.due {
                continue;
            }
            if descriptor.is_some() && !bytes.is_empty() {
                break;
            }
            let header = Header::reply(slot.code);
            for part in [header.as_bytes(), value.as_bytes()] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                let rest = part.get(skipped..).unwrap_or_default();
                if bytes.try_extend_from_slice(rest).is_err() {
                    return None;
                }
            }
            if let Some(descriptor) = descriptor {
                return (self.sent == 0).then_some(descriptor.as_fd());
            }
        }
        None
    }

    /// Notes that `count` bytes of what was gathered have gone out.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        while self.sent >= REPLY_SIZE && self.is_ready() {
            self.sent -= REPLY_SIZE;
            self.pop();
            self.skip_silent();
        }
    }

    /// Gives up the descriptor of the front slot: its reply becomes a failure of this value.
    pub(crate) fn fail_front(&mut self, failure: u64) {
        if let Some(Slot {
            state: State::Done { value, descriptor },
            ..
        }) = self.slots.front_mut()
        {
            *value = failure;
            *descriptor = None;
        }
    }

    /// Drops the slots at the front that are done and have no reply.
    fn skip_silent(&mut self) {
        while self
            .slots
            .front()
            .is_some_and(|slot| !slot.due && matches!(slot.state, State::Done { .. }))
        {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if self.slots.pop_front().is_some() {
            self.first += 1;
        }
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.first)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RequestCode = RequestCode(9);
    const B: RequestCode = RequestCode(10);

    fn gathered(queue: &ReplyQueue) -> Vec<u8> {
        let mut bytes = ReplyBytes::new();
        queue.gather(&mut bytes);
        bytes.to_vec()
    }

    fn reply(code: u8, value: u8) -> [u8; 20] {
        [
            code, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, value, 0, 0, 0, 0, 0, 0, 0,
        ]
    }

    #[test]
    fn replies_leave_in_request_order_whatever_the_order_of_completion() {
        let mut queue = ReplyQueue::new(4);
        let first = queue.open(A, true);
        let second = queue.open(B, true);
        queue.finish(second, 2, None);
        assert!(!queue.is_ready());
        assert_eq!(gathered(&queue), [0u8; 0]);
        queue.finish(first, 1, None);
        assert!(queue.is_ready());
        assert_eq!(gathered(&queue), [reply(9, 1), reply(10, 2)].concat());
    }

    #[test]
    fn request_without_reply_frees_its_slot_when_it_is_done() {
        let mut queue = ReplyQueue::new(2);
        let first = queue.open(A, false);
        let second = queue.open(A, false);
        assert!(queue.is_full());
        queue.finish(second, 0, None);
        assert!(queue.is_full());
        queue.finish(first, 0, None);
        assert!(!queue.is_full());
        assert!(!queue.is_ready());
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn silent_slot_between_replies_is_passed_over() {
        let mut queue = ReplyQueue::new(3);
        let first = queue.open(A, true);
        let silent = queue.open(A, false);
        let last = queue.open(B, true);
        for number in [silent, last, first] {
            queue.finish(number, 0, None);
        }
        assert_eq!(gathered(&queue), [reply(9, 0), reply(10, 0)].concat());
        queue.advance(40);
        assert!(!queue.is_ready());
        assert_eq!(gathered(&queue), [0u8; 0]);
        assert_eq!(queue.open(A, true), 3);
    }

    #[test]
    fn partly_sent_reply_goes_on_where_it_stopped() {
        let mut queue = ReplyQueue::new(2);
        let first = queue.open(A, true);
        let second = queue.open(B, true);
        queue.finish(first, 1, None);
        queue.finish(second, 2, None);
        let whole = [reply(9, 1), reply(10, 2)].concat();
        for cut in 0..=whole.len() {
            assert_eq!(gathered(&queue), whole[cut..], "cut at {cut}");
            if cut < whole.len() {
                queue.advance(1);
            }
        }
        assert!(!queue.is_full());
        assert!(!queue.is_ready());
    }

    #[test]
    fn slot_stays_taken_until_its_reply_has_gone_out_whole() {
        let mut queue = ReplyQueue::new(1);
        let number = queue.open(A, true);
        queue.finish(number, 0, None);
        queue.advance(19);
        assert!(queue.is_full());
        queue.advance(1);
        assert!(!queue.is_full());
    }

    #[test]
    fn second_completion_and_stale_number_change_nothing() {
        let mut queue = ReplyQueue::new(2);
        let number = queue.open(A, true);
        queue.finish(number, 1, None);
        queue.finish(number, 2, None);
        queue.finish(number + 1, 3, None);
        assert_eq!(gathered(&queue), reply(9, 1));
        queue.advance(20);
        let next = queue.open(B, true);
        queue.finish(number, 4, None);
        assert_eq!(queue.waiting_in(number), None);
        assert_eq!(queue.waiting_in(next), Some(Opened { code: B, due: true }));
        assert_eq!(queue.waiting(), 1);
    }

    #[test]
    fn reply_with_a_descriptor_is_a_piece_of_its_own() {
        let (descriptor, _other) = base::scm::stream_pair().expect("socket pair");
        let mut queue = ReplyQueue::new(3);
        let numbers = [(); 3].map(|()| queue.open(A, true));
        queue.finish(numbers[0], 1, None);
        queue.finish(numbers[1], 2, Some(descriptor));
        queue.finish(numbers[2], 3, None);

        let mut bytes = ReplyBytes::new();
        assert!(queue.gather(&mut bytes).is_none());
        assert_eq!(bytes[..], reply(9, 1));
        queue.advance(20);
        assert!(queue.gather(&mut bytes).is_some());
        assert_eq!(bytes[..], reply(9, 2));
        queue.advance(1);
        assert!(queue.gather(&mut bytes).is_none());
        assert_eq!(bytes[..], reply(9, 2)[1..]);
        queue.advance(19);
        assert_eq!(gathered(&queue), reply(9, 3));
    }

    #[test]
    fn failed_descriptor_turns_its_reply_into_a_failure() {
        let (descriptor, _other) = base::scm::stream_pair().expect("socket pair");
        let mut queue = ReplyQueue::new(1);
        let number = queue.open(A, true);
        queue.finish(number, 0, Some(descriptor));
        queue.fail_front(7);
        let mut bytes = ReplyBytes::new();
        assert!(queue.gather(&mut bytes).is_none());
        assert_eq!(bytes[..], reply(9, 7));
    }
}
