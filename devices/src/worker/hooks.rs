//! Requests that only the VMM as a whole can answer: translations of addresses, and objects of other devices.
//!
//! They travel one by one on a tube of their own; if the VMM lets it fill up, they are refused with EAGAIN. A translation
//! goes to the backend on the main channel, without an ack and without waiting, before the miss is answered: the worker
//! sends it, since the main thread may be waiting for this very backend.

use std::io::IoSlice;
use std::os::fd::AsFd;

use base::AsRawDescriptor;
use base::RawDescriptor;
use base::TubeError;
use base::packet::PacketTube;
use base::scm;
use vmm_vhost::Ticket;
use vmm_vhost::message::RequestCode;

use super::Worker;
use super::WorkerExit;
use super::requests::place;
use crate::control::HookRequest;
use crate::control::HookResponse;
use crate::control::RefusedRequest;
use crate::iotlb;

/// The most requests that wait for the VMM.
const MAX_HOOKS: usize = 32;

/// The tube to the VMM's hooks, and who waits for its answers.
pub(super) struct Hooks {
    tube: PacketTube,
    waiting: arrayvec::ArrayVec<(Ticket, RefusedRequest), MAX_HOOKS>,
}

impl Hooks {
    pub(super) fn new(tube: PacketTube) -> Self {
        Self {
            tube,
            waiting: arrayvec::ArrayVec::new(),
        }
    }
}

impl AsRawDescriptor for Hooks {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.tube.as_raw_descriptor()
    }
}

impl Worker {
    /// Passes a request on to the VMM.
    pub(super) fn ask_vmm(&mut self, ticket: Ticket, code: u32, request: &HookRequest) {
        let at = match request {
            HookRequest::IotlbMiss { iova, size, .. }
            | HookRequest::IotlbAccessFail { iova, size, .. } => place(code, 0, *iova, *size),
            _ => place(code, 0, 0, 0),
        };
        let Some(hooks) = &mut self.hooks else {
            return self.refuse(Some(ticket), at, libc::ENOTSUP);
        };
        if hooks.waiting.is_full() || hooks.tube.try_send(request).is_err() {
            return self.refuse(Some(ticket), at, libc::EAGAIN);
        }
        hooks.waiting.push((ticket, at));
    }

    /// Takes the VMM's answers that are there.
    pub(super) fn take_hook_answers(&mut self) -> Option<WorkerExit> {
        loop {
            let hooks = self.hooks.as_mut()?;
            let response = match hooks.tube.try_recv() {
                Ok(response) => response,
                Err(TubeError::WouldBlock) => return None,
                Err(error) => {
                    if error != TubeError::Disconnected {
                        base::error!("hook tube: {error}");
                    }
                    return Some(WorkerExit::ServiceGone);
                }
            };
            if hooks.waiting.is_empty() {
                base::error!("the VMM answers a hook that was not asked");
                return Some(WorkerExit::ServiceGone);
            }
            let (ticket, at) = hooks.waiting.remove(0);
            self.answer_hook(ticket, at, response);
        }
    }

    fn answer_hook(&mut self, ticket: Ticket, at: RefusedRequest, response: HookResponse) {
        let is_lookup = at.code == RequestCode::SHARED_OBJECT_LOOKUP.0;
        let is_iotlb = at.code == RequestCode::IOTLB.0;
        match response {
            HookResponse::Refused(errno) => self.refuse(Some(ticket), at, errno.errno()),
            HookResponse::Object(descriptor) if is_lookup => {
                self.stats.hooks += 1;
                if let Some(channel) = &mut self.channel {
                    channel.complete_with_descriptor(ticket, descriptor);
                }
            }
            HookResponse::Translation(entry) if is_iotlb => {
                match self.send_translation(&iotlb::update(&entry)) {
                    Ok(()) => {
                        self.stats.hooks += 1;
                        self.complete(ticket, Ok(0));
                    }
                    Err(errno) => self.refuse(Some(ticket), at, errno.errno()),
                }
            }
            HookResponse::Done if !is_lookup => {
                self.stats.hooks += 1;
                self.complete(ticket, Ok(0));
            }
            // An answer of the wrong kind helps nobody.
            HookResponse::Done | HookResponse::Object(_) | HookResponse::Translation(_) => {
                self.refuse(Some(ticket), at, libc::ENOENT);
            }
        }
    }

    /// Sends one whole message on the main channel, in between those of the main thread.
    fn send_translation(&self, message: &[u8]) -> Result<(), base::Error> {
        let main_channel = self
            .main_channel
            .as_ref()
            .ok_or(base::Error::new(libc::ENOTSUP))?;
        let sent = scm::send(
            main_channel.as_fd(),
            &[IoSlice::new(message)],
            &[],
            scm::Wait::Never,
        )?;
        // A message of this size is one buffer of the socket, which is taken whole or not at all.
        if sent == message.len() {
            Ok(())
        } else {
            Err(base::Error::new(libc::EPIPE))
        }
    }
}
