//! Moving the backend's own state, through the device process: the VMM reads and writes nothing of a backend's itself.
//!
//! The backend gets one end of a pipe, and the process the other; the bytes come and go in pieces on the control tube,
//! each a call with a deadline of its own.

use std::io;
use std::os::fd::OwnedFd;

use base::SafeDescriptor;

use super::calls::Answer;
use super::error::Error;
use super::handle::DeviceProcess;
use super::serve::STATE_PIECE_BYTES;
use crate::control::ControlRequest;
use crate::control::TransferDirection;

/// The most that a backend may have for its own state.
pub const MAX_STATE_BYTES: usize = 64 << 20;

impl DeviceProcess {
    /// Returns the backend's own state. The queues must be stopped.
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if the backend can't; [`Error::StateTooLong`], [`Error::Pipe`]; the fatal ones.
    pub fn save_state(&mut self) -> Result<Vec<u8>, Error> {
        const CALL: &str = "read state";
        self.begin_transfer(TransferDirection::Save)?;
        let mut state = Vec::new();
        loop {
            let piece = match self.call(CALL, &ControlRequest::ReadState)? {
                Answer::State(piece) => piece,
                _ => return Err(self.unexpected(CALL)),
            };
            if piece.is_empty() {
                break;
            }
            if state.len() + piece.len() > MAX_STATE_BYTES {
                // Whether the backend thinks that it went well does not matter any more.
                let _ = self.end_transfer();
                return Err(Error::StateTooLong {
                    limit: MAX_STATE_BYTES,
                });
            }
            state.extend_from_slice(&piece);
        }
        self.end_transfer()?;
        Ok(state)
    }

    /// Gives the backend the state that it had once. The queues must be stopped.
    ///
    /// # Errors
    /// As [`Self::save_state`].
    pub fn load_state(&mut self, state: &[u8]) -> Result<(), Error> {
        self.begin_transfer(TransferDirection::Load)?;
        for piece in state.chunks(STATE_PIECE_BYTES) {
            self.call_done("write state", &ControlRequest::WriteState(piece.to_vec()))?;
        }
        self.end_transfer()
    }

    fn begin_transfer(&mut self, direction: TransferDirection) -> Result<(), Error> {
        let (reader, writer) = io::pipe().map_err(Error::Pipe)?;
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        let (theirs, ours) = match direction {
            TransferDirection::Save => (writer, reader),
            TransferDirection::Load => (reader, writer),
        };
        let request = ControlRequest::BeginTransfer {
            direction,
            theirs: SafeDescriptor::from(theirs),
            ours: SafeDescriptor::from(ours),
        };
        self.call_done("begin transfer", &request)
    }

    fn end_transfer(&mut self) -> Result<(), Error> {
        self.call_done("end transfer", &ControlRequest::EndTransfer)
    }
}
