//! Descriptors inside serde messages: each is serialised as its index in a list that travels beside the bytes.
//!
//! The list belongs to the thread and exists only while a tube encodes or decodes a message. On the way in every
//! descriptor must be used exactly once, and whatever happens each is closed or has an owner in the end.

use std::cell::RefCell;

use arrayvec::ArrayVec;
use remain::sorted;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de;
use serde::ser;

use crate::AsRawDescriptor;
use crate::RawDescriptor;
use crate::SafeDescriptor;
use crate::scm::DescriptorVec;
use crate::scm::MAX_DESCRIPTORS;

/// What is wrong with the descriptors of a tube message.
#[sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorFault {
    /// The message names a descriptor that did not come with it.
    #[error("the message names descriptor {index}, of {count}")]
    Missing {
        /// The index that the message has.
        index: usize,
        /// How many descriptors came.
        count: usize,
    },
    /// A message is encoded or decoded while another one is, on the same thread.
    #[error("one message inside another")]
    Nested,
    /// The message uses a descriptor for the second time.
    #[error("the message uses descriptor {index} twice")]
    Reused {
        /// The index that the message has.
        index: usize,
    },
    /// The message has more descriptors than one packet carries.
    #[error("more than {MAX_DESCRIPTORS} descriptors")]
    TooMany,
    /// Descriptors came that the message does not use.
    #[error("{count} descriptors that the message does not use")]
    Unused {
        /// How many.
        count: usize,
    },
}

/// The descriptors of a message on its way out, as numbers: the message keeps them open.
pub(crate) type OutgoingDescriptors = ArrayVec<RawDescriptor, MAX_DESCRIPTORS>;

struct Outgoing {
    active: bool,
    descriptors: OutgoingDescriptors,
    fault: Option<DescriptorFault>,
}

struct Incoming {
    active: bool,
    count: usize,
    slots: [Option<SafeDescriptor>; MAX_DESCRIPTORS],
    fault: Option<DescriptorFault>,
}

thread_local! {
    static OUTGOING: RefCell<Outgoing> = const {
        RefCell::new(Outgoing { active: false, descriptors: ArrayVec::new_const(), fault: None })
    };
    static INCOMING: RefCell<Incoming> = const {
        RefCell::new(Incoming { active: false, count: 0, slots: [const { None }; MAX_DESCRIPTORS], fault: None })
    };
}

/// This thread encodes a message; until the end of this value descriptors can be serialised.
pub(crate) struct EncodeScope(());

impl EncodeScope {
    pub(crate) fn begin() -> Result<Self, DescriptorFault> {
        OUTGOING.with_borrow_mut(|outgoing| {
            if outgoing.active {
                return Err(DescriptorFault::Nested);
            }
            outgoing.active = true;
            outgoing.fault = None;
            outgoing.descriptors.clear();
            Ok(Self(()))
        })
    }

    /// Calls `f` with the descriptors that were serialised, unless one of them was at fault.
    pub(crate) fn finish<R>(
        self,
        f: impl FnOnce(&OutgoingDescriptors) -> R,
    ) -> Result<R, DescriptorFault> {
        OUTGOING.with_borrow(|outgoing| match outgoing.fault {
            Some(fault) => Err(fault),
            None => Ok(f(&outgoing.descriptors)),
        })
    }
}

impl Drop for EncodeScope {
    fn drop(&mut self) {
        OUTGOING.with_borrow_mut(|outgoing| outgoing.active = false);
    }
}

/// This thread decodes a message; until the end of this value descriptors can be deserialised. Those that are left
/// then are closed.
pub(crate) struct DecodeScope(());

impl DecodeScope {
    /// Begins, and takes over the descriptors that came with the message. On error they stay where they are.
    pub(crate) fn begin<const N: usize>(
        descriptors: &mut DescriptorVec<N>,
    ) -> Result<Self, DescriptorFault> {
        INCOMING.with_borrow_mut(|incoming| {
            if incoming.active {
                return Err(DescriptorFault::Nested);
            }
            incoming.active = true;
            incoming.fault = None;
            incoming.count = descriptors.len();
            for (slot, descriptor) in incoming.slots.iter_mut().zip(descriptors.drain(..)) {
                *slot = Some(descriptor);
            }
            Ok(Self(()))
        })
    }

    /// Returns what went wrong with the descriptors so far, one that was never asked for included.
    pub(crate) fn fault(&self) -> Option<DescriptorFault> {
        INCOMING.with_borrow(|incoming| {
            let unused = || {
                let count = incoming.slots.iter().take(incoming.count).flatten().count();
                (count > 0).then_some(DescriptorFault::Unused { count })
            };
            incoming.fault.or_else(unused)
        })
    }
}

impl Drop for DecodeScope {
    fn drop(&mut self) {
        INCOMING.with_borrow_mut(|incoming| {
            for slot in incoming.slots.iter_mut().take(incoming.count) {
                *slot = None;
            }
            incoming.count = 0;
            incoming.active = false;
        });
    }
}

impl Serialize for SafeDescriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let index = OUTGOING.with_borrow_mut(|outgoing| {
            if !outgoing.active {
                return Err("a descriptor can be serialised within a tube message only");
            }
            let index = outgoing.descriptors.len();
            if outgoing
                .descriptors
                .try_push(self.as_raw_descriptor())
                .is_err()
            {
                outgoing.fault = Some(DescriptorFault::TooMany);
                return Err("too many descriptors");
            }
            Ok(index)
        });
        let index = index.map_err(ser::Error::custom)?;
        serializer.serialize_u8(u8::try_from(index).map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for SafeDescriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = usize::from(u8::deserialize(deserializer)?);
        let descriptor = INCOMING.with_borrow_mut(|incoming| {
            if !incoming.active {
                return Err("a descriptor can be deserialised within a tube message only");
            }
            let count = incoming.count;
            let fault = match incoming.slots.iter_mut().take(count).nth(index) {
                None => DescriptorFault::Missing { index, count },
                Some(slot) => match slot.take() {
                    Some(descriptor) => return Ok(descriptor),
                    None => DescriptorFault::Reused { index },
                },
            };
            incoming.fault = Some(fault);
            Err("no such descriptor")
        });
        descriptor.map_err(de::Error::custom)
    }
}
