//! Ends of a tube that only send or only receive.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ReadNotifier;
use super::Tube;
use super::TubeResult;
use crate::AsRawDescriptor;
use crate::RawDescriptor;

/// An end that only sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SendTube(Tube);

/// An end that only receives.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecvTube(Tube);

impl Tube {
    /// Makes two connected ends for one direction.
    ///
    /// # Errors
    /// As [`Tube::pair`].
    pub fn directional_pair() -> TubeResult<(SendTube, RecvTube)> {
        let (one, other) = Self::pair()?;
        Ok((SendTube(one), RecvTube(other)))
    }

    /// Splits this end into its two directions, so that two threads can have them.
    ///
    /// # Errors
    /// As [`Tube::try_clone`].
    pub fn split_to_send_recv(self) -> TubeResult<(SendTube, RecvTube)> {
        Ok((SendTube(self.try_clone()?), RecvTube(self)))
    }
}

impl SendTube {
    /// Sends a message; as [`Tube::send`].
    ///
    /// # Errors
    /// As [`Tube::send`].
    pub fn send<T: Serialize + ?Sized>(&self, message: &T) -> TubeResult<()> {
        self.0.send(message)
    }

    /// Limits how long a send waits; as [`Tube::set_send_timeout`].
    ///
    /// # Errors
    /// As [`Tube::set_send_timeout`].
    pub fn set_send_timeout(&self, timeout: Option<Duration>) -> TubeResult<()> {
        self.0.set_send_timeout(timeout)
    }

    /// Makes another handle of the same end.
    ///
    /// # Errors
    /// As [`Tube::try_clone`].
    pub fn try_clone(&self) -> TubeResult<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl RecvTube {
    /// Receives a message; as [`Tube::recv`].
    ///
    /// # Errors
    /// As [`Tube::recv`].
    pub fn recv<T: DeserializeOwned>(&self) -> TubeResult<T> {
        self.0.recv()
    }

    /// Limits how long a receive waits; as [`Tube::set_recv_timeout`].
    ///
    /// # Errors
    /// As [`Tube::set_recv_timeout`].
    pub fn set_recv_timeout(&self, timeout: Option<Duration>) -> TubeResult<()> {
        self.0.set_recv_timeout(timeout)
    }
}

impl AsRawDescriptor for SendTube {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.0.as_raw_descriptor()
    }
}

impl AsRawDescriptor for RecvTube {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.0.as_raw_descriptor()
    }
}

impl ReadNotifier for RecvTube {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        self.0.get_read_notifier()
    }
}
