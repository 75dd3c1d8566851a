//! The handle's calls: a request and its answer, or the process's end.

use base::SafeDescriptor;
use base::TubeError;

use super::error::Error;
use super::handle::DeviceProcess;
use crate::control::ControlRequest;
use crate::control::ControlResponse;

/// An answer as it is received: a descriptor in it is the place of the one that came along.
pub(super) type Answer = ControlResponse<u8>;

impl DeviceProcess {
    pub(super) fn call_done(
        &mut self,
        call: &'static str,
        request: &ControlRequest,
    ) -> Result<(), Error> {
        match self.call(call, request)? {
            Answer::Done => Ok(()),
            _ => Err(self.unexpected(call)),
        }
    }

    /// A descriptor in the answer is refused.
    pub(super) fn call(
        &mut self,
        call: &'static str,
        request: &ControlRequest,
    ) -> Result<Answer, Error> {
        let (answer, descriptor) = self.call_for_descriptor(call, request)?;
        if descriptor.is_some() {
            self.control.close(descriptor);
            return Err(self.unexpected(call));
        }
        Ok(answer)
    }

    /// Returns the answer, and the descriptor that came with it.
    pub(super) fn call_for_descriptor(
        &mut self,
        call: &'static str,
        request: &ControlRequest,
    ) -> Result<(Answer, Option<SafeDescriptor>), Error> {
        let pid = self.pid();
        if self.exit_report().is_some() {
            return Err(Error::Ended { pid });
        }
        let answer = self
            .control
            .send(request)
            .and_then(|()| self.control.recv_with_descriptor());
        match answer {
            Ok((Answer::Failed(failure), None)) => Err(Error::Unsuccessful {
                call,
                message: failure.message,
                deviation: failure.deviation,
            }),
            Ok(answer) => Ok(answer),
            Err(TubeError::Disconnected) => Err(Error::Ended { pid }),
            Err(TubeError::TimedOut) => {
                self.kill_for_cause();
                Err(Error::Deadline {
                    pid,
                    call,
                    deadline: self.deadline,
                })
            }
            Err(_) => Err(self.unexpected(call)),
        }
    }

    pub(super) fn unexpected(&mut self, call: &'static str) -> Error {
        let pid = self.pid();
        self.kill_for_cause();
        Error::Unexpected { pid, call }
    }

    pub(super) fn kill_for_cause(&mut self) {
        if let Err(error) = self.kill() {
            base::error!("device process {}: cannot be killed: {error}", self.pid());
        }
    }

    /// Kills the process, which sends what it never would if it were itself, or does not read, and does not wait for its end.
    pub(super) fn break_off(&mut self, source: TubeError) -> Error {
        let pid = self.pid();
        if self.exit_report().is_none()
            && let Err(error) = self.child().kill()
        {
            base::error!("device process {pid}: cannot be killed: {error}");
        }
        Error::Events { pid, source }
    }
}
