//! The handle's half of the hooks: what a backend asks that only the VMM as a whole can answer.
//!
//! The VMM waits for [`DeviceProcess::hooks`] to be readable, takes requests, and answers each, in order. None of it
//! waits for the device process: a tube that is full means that the process does not read its answers.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::SafeDescriptor;
use base::TubeError;

use super::calls::Answer;
use super::error::Error;
use super::handle::DeviceProcess;
use crate::control::ControlRequest;
use crate::control::HookRequest;
use crate::control::HookResponse;
use crate::control::ObjectId;

impl DeviceProcess {
    /// Returns a descriptor that becomes readable when there is a request, or when the process is gone.
    ///
    /// There is none if the process was started for neither an IOMMU nor shared objects.
    pub fn hooks(&self) -> Option<BorrowedFd<'_>> {
        self.hooks.as_ref().map(AsFd::as_fd)
    }

    /// Returns the next request, if there is one. Never waits.
    ///
    /// # Errors
    /// [`Error::Ended`] if there will be none any more; [`Error::Events`], upon which the process is killed; [`Error::NoHooks`].
    pub fn try_hook(&mut self) -> Result<Option<HookRequest>, Error> {
        let pid = self.pid();
        let hooks = self.hooks.as_mut().ok_or(Error::NoHooks { pid })?;
        match hooks.try_recv() {
            Ok(request) => Ok(Some(request)),
            Err(TubeError::WouldBlock) => Ok(None),
            Err(TubeError::Disconnected) => Err(Error::Ended { pid }),
            Err(TubeError::Recv(error)) if error.is_shortage() => Ok(None),
            Err(source) => Err(self.break_off(source)),
        }
    }

    /// Answers the oldest request that is not answered. Never waits.
    ///
    /// # Errors
    /// As [`Self::try_hook`].
    pub fn answer_hook(&mut self, response: &HookResponse) -> Result<(), Error> {
        let pid = self.pid();
        let hooks = self.hooks.as_mut().ok_or(Error::NoHooks { pid })?;
        match hooks.try_send(response) {
            Ok(()) => Ok(()),
            Err(TubeError::Disconnected) => Err(Error::Ended { pid }),
            Err(source) => Err(self.break_off(source)),
        }
    }

    /// Takes `size` bytes at `iova` out of the backend's IOTLB; returns when the backend has done so, if it acks.
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if addresses are not translated; the fatal ones.
    pub fn invalidate_iotlb(&mut self, iova: u64, size: u64) -> Result<(), Error> {
        self.call_done(
            "invalidate iotlb",
            &ControlRequest::IotlbInvalidate { iova, size },
        )
    }

    /// Asks the backend for an object that it shares.
    ///
    /// What comes can be anything that the backend has, and to close it can take for ever: use a [`base::Closer`].
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if sharing was not negotiated; the fatal ones.
    pub fn shared_object(&mut self, id: ObjectId) -> Result<Option<SafeDescriptor>, Error> {
        const CALL: &str = "shared object";
        let request = ControlRequest::SharedObject(id);
        match self.call_for_descriptor(CALL, &request)? {
            (Answer::SharedObject(Some(0)), Some(descriptor)) => Ok(Some(descriptor)),
            (Answer::SharedObject(None), None) => Ok(None),
            (_, descriptor) => {
                self.control.close(descriptor);
                Err(self.unexpected(CALL))
            }
        }
    }
}
