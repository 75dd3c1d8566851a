//! What each request of the backend leads to.
//!
//! Requests about the guest's memory go to the mapping service, those that only the VMM can answer to its hooks, both in
//! order and without waiting. Config changes, calls and errors of queues are dealt with on the spot.

use std::sync::Arc;

use base::Protection;
use base::SafeDescriptor;
use rustix::io::write;
use vm_control::VmMemoryDestination;
use vm_control::VmMemoryRequest;
use vm_control::VmMemorySource;
use vmm_vhost::BackendRequest;
use vmm_vhost::Incoming;
use vmm_vhost::Iotlb;
use vmm_vhost::Peer;
use vmm_vhost::Ticket;
use vmm_vhost::VringHostNotifier;
use vmm_vhost::message::Dialect;
use vmm_vhost::message::RequestCode;

use super::Intake;
use super::Waiting;
use super::What;
use super::Worker;
use crate::control::HookRequest;
use crate::control::ObjectId;
use crate::control::RefusedRequest;

/// The eventfd by which the driver is told of used buffers in a queue.
pub(crate) type Call = (u16, Arc<SafeDescriptor>);

impl Worker {
    pub(super) fn handle(&mut self, incoming: Incoming) {
        self.stats.requests += 1;
        let code = code_of(&incoming.request);
        let ticket = incoming.ticket;
        match incoming.request {
            BackendRequest::ConfigChange => self.config_change(ticket),
            BackendRequest::ShmemMap(map) => {
                let source = VmMemorySource::Descriptor {
                    descriptor: map.descriptor,
                    offset: map.fd_offset,
                };
                let at = place(code, map.shmid, map.shm_offset, map.len);
                self.map(ticket, at, source, map.protection);
            }
            BackendRequest::GpuMap(map) => {
                let source = VmMemorySource::Vulkan {
                    descriptor: map.descriptor,
                    handle_type: map.handle_type,
                    memory_idx: map.memory_idx,
                    device_uuid: map.device_uuid,
                    driver_uuid: map.driver_uuid,
                };
                let at = place(code, map.shmid, map.shm_offset, map.len);
                self.map(ticket, at, source, Protection::read_write());
            }
            BackendRequest::ShmemUnmap(unmap) => {
                let at = place(code, unmap.shmid, unmap.shm_offset, unmap.len);
                self.unmap(ticket, at);
            }
            BackendRequest::ExternalMap(map) => {
                let at = place(code, map.shmid, map.shm_offset, map.len);
                let source = VmMemorySource::ExternalMapping { ptr: map.ptr };
                match self.peer {
                    Peer::InProcess => self.map(ticket, at, source, Protection::read_write()),
                    // The pointer would be one of this process, which is not the backend's.
                    Peer::Remote => self.refuse(Some(ticket), at, libc::EPERM),
                }
            }
            BackendRequest::VringHostNotifier(notifier) => self.host_notifier(ticket, notifier),
            BackendRequest::VringCall(index) => self.vring_call(ticket, index),
            BackendRequest::VringErr(index) => {
                self.events.vring_error(index);
                self.complete(ticket, Ok(0));
            }
            BackendRequest::IotlbMiss(Iotlb { iova, size, access }) => {
                self.ask_vmm(ticket, code, &HookRequest::IotlbMiss { iova, size, access });
            }
            BackendRequest::IotlbAccessFail(Iotlb { iova, size, access }) => {
                let request = HookRequest::IotlbAccessFail { iova, size, access };
                self.ask_vmm(ticket, code, &request);
            }
            BackendRequest::SharedObjectAdd(uuid) => {
                self.ask_vmm(ticket, code, &HookRequest::ObjectAdd(ObjectId(uuid.0)));
            }
            BackendRequest::SharedObjectRemove(uuid) => {
                self.ask_vmm(ticket, code, &HookRequest::ObjectRemove(ObjectId(uuid.0)));
            }
            BackendRequest::SharedObjectLookup(uuid) => {
                self.ask_vmm(ticket, code, &HookRequest::ObjectLookup(ObjectId(uuid.0)));
            }
        }
    }

    fn config_change(&mut self, ticket: Ticket) {
        self.stats.config_changes += 1;
        if self.active {
            self.deliver_config_change();
        } else {
            self.config_change_waits = true;
        }
        self.complete(ticket, Ok(0));
    }

    fn map(
        &mut self,
        ticket: Ticket,
        at: RefusedRequest,
        source: VmMemorySource,
        prot: Protection,
    ) {
        // The doorbells' region is not one that the backend may name.
        if Some(at.shmid) == self.notifier_region {
            return self.refuse(Some(ticket), at, libc::ENXIO);
        }
        let request = VmMemoryRequest::RegisterMemory {
            source,
            dest: destination(&at),
            len: at.len,
            prot,
        };
        self.ask(Some(ticket), What::Map, at, request);
    }

    fn unmap(&mut self, ticket: Ticket, at: RefusedRequest) {
        if Some(at.shmid) == self.notifier_region {
            return self.refuse(Some(ticket), at, libc::ENXIO);
        }
        let request = VmMemoryRequest::UnregisterMemory {
            dest: destination(&at),
            len: at.len,
        };
        self.ask(Some(ticket), What::Unmap, at, request);
    }

    /// Maps a queue's doorbell into its page of the doorbells' region, or takes it away.
    fn host_notifier(&mut self, ticket: Ticket, notifier: VringHostNotifier) {
        let code = RequestCode::VRING_HOST_NOTIFIER.0;
        let page = base::page_size() as u64;
        let offset = u64::from(notifier.queue) * page;
        let at = place(code, self.notifier_region.unwrap_or(0), offset, page);
        if self.notifier_region.is_none() {
            return self.refuse(Some(ticket), at, libc::ENOTSUP);
        }
        let bit = 1_u128.checked_shl(u32::from(notifier.queue)).unwrap_or(0);
        if bit == 0 {
            return self.refuse(Some(ticket), at, libc::ERANGE);
        }
        let removal = VmMemoryRequest::UnregisterMemory {
            dest: destination(&at),
            len: page,
        };
        let is_set = self.notifiers & bit != 0;
        let Some(area) = notifier.area else {
            if !is_set {
                return self.refuse(Some(ticket), at, libc::ENOENT);
            }
            self.notifiers &= !bit;
            return self.ask(Some(ticket), What::NotifierRemoval { bit }, at, removal);
        };
        if is_set {
            // A new doorbell takes the place of the old one; its answer says how that went.
            self.notifiers &= !bit;
            self.ask(None, What::NotifierRemoval { bit }, at, removal);
            if self.service.is_full() && !self.send_batch().is_ok_and(|sent| sent) {
                return self.refuse(Some(ticket), at, libc::EAGAIN);
            }
        }
        let request = VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Descriptor {
                descriptor: area.descriptor,
                offset: area.offset,
            },
            dest: destination(&at),
            len: page,
            prot: Protection::read_write(),
        };
        self.ask(Some(ticket), What::Notifier { bit }, at, request);
    }

    /// Signals the driver in the backend's place.
    fn vring_call(&mut self, ticket: Ticket, index: u32) {
        let call = self
            .calls
            .iter()
            .find(|(queue, _)| u32::from(*queue) == index);
        let Some((_, call)) = call else {
            let at = place(RequestCode::VRING_CALL.0, 0, u64::from(index), 0);
            return self.refuse(Some(ticket), at, libc::ENXIO);
        };
        let written = write(call, &1_u64.to_ne_bytes());
        match written {
            Ok(_) => {
                self.stats.vring_calls += 1;
                self.complete(ticket, Ok(0));
            }
            Err(errno) => {
                let at = place(RequestCode::VRING_CALL.0, 0, u64::from(index), 0);
                self.refuse(Some(ticket), at, errno.raw_os_error());
            }
        }
    }

    /// Passes a request on to the service, with the next batch.
    fn ask(
        &mut self,
        ticket: Option<Ticket>,
        what: What,
        at: RefusedRequest,
        request: VmMemoryRequest,
    ) {
        if self.intake != Intake::Serve {
            return self.refuse(ticket, at, libc::ECANCELED);
        }
        if self.service.push(request).is_err() {
            // `has_room` was asked before the request was taken.
            return self.refuse(ticket, at, libc::EAGAIN);
        }
        self.waiting.push_back(Waiting {
            ticket,
            what,
            request: at,
        });
    }
}

/// The code by which a request came.
fn code_of(request: &BackendRequest) -> u32 {
    let code = match request {
        BackendRequest::IotlbMiss(_) | BackendRequest::IotlbAccessFail(_) => RequestCode::IOTLB,
        BackendRequest::ConfigChange => RequestCode::CONFIG_CHANGE,
        BackendRequest::VringHostNotifier(_) => RequestCode::VRING_HOST_NOTIFIER,
        BackendRequest::VringCall(_) => RequestCode::VRING_CALL,
        BackendRequest::VringErr(_) => RequestCode::VRING_ERR,
        BackendRequest::SharedObjectAdd(_) => RequestCode::SHARED_OBJECT_ADD,
        BackendRequest::SharedObjectRemove(_) => RequestCode::SHARED_OBJECT_REMOVE,
        BackendRequest::SharedObjectLookup(_) => RequestCode::SHARED_OBJECT_LOOKUP,
        BackendRequest::ShmemMap(map) => match map.dialect {
            Dialect::Standard => RequestCode::SHMEM_MAP,
            Dialect::Crosvm => RequestCode::CROSVM_SHMEM_MAP,
        },
        BackendRequest::ShmemUnmap(unmap) => match unmap.dialect {
            Dialect::Standard => RequestCode::SHMEM_UNMAP,
            Dialect::Crosvm => RequestCode::CROSVM_SHMEM_UNMAP,
        },
        BackendRequest::GpuMap(_) => RequestCode::GPU_MAP,
        BackendRequest::ExternalMap(_) => RequestCode::EXTERNAL_MAP,
    };
    code.0
}

pub(super) fn place(code: u32, shmid: u8, offset: u64, len: u64) -> RefusedRequest {
    RefusedRequest {
        code,
        errno: base::Error::new(0),
        shmid,
        offset,
        len,
    }
}

fn destination(at: &RefusedRequest) -> VmMemoryDestination {
    VmMemoryDestination {
        shmid: at.shmid,
        offset: at.offset,
    }
}
