//! The main channel's half of the device: it turns what the frontend says into commands to the worker.

use std::io;

use base::Tube;
use base::TubeError;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::Reporter;
use super::lock;
use super::protocol::Config;
use super::report::Report;
use super::say;
use super::worker::Command;
use super::worker::Slot;
use crate::backend::channel::Channel;
use crate::backend::rings::EVENT_IDX;
use crate::backend::rings::INDIRECT;
use crate::backend::rings::Ring;
use crate::backend::rings::RingDevice;
use crate::backend::rings::VERSION_1;
use crate::backend::serve::Device;
use crate::backend::serve::Profile;
use crate::backend::serve::lacks_for_mapping;

pub(super) struct MainChannel<'a, 'r> {
    /// Dropped with the device, which ends the worker.
    pub(super) orders: Tube,
    pub(super) slot: &'a Slot,
    pub(super) config: Config,
    pub(super) reporter: &'a Reporter<'r>,
}

impl MainChannel<'_, '_> {
    /// What the device offers.
    pub(super) fn profile(&self) -> Profile {
        let mut profile =
            Profile::mapping(vec![(super::frontend::REGION, self.config.region_bytes)]);
        profile.features = VERSION_1 | EVENT_IDX | INDIRECT;
        profile
    }

    /// Gives the worker a command, and waits until it has followed it.
    fn order(&self, command: &Command) -> Result<(), TubeError> {
        self.orders.send(command)?;
        self.orders.recv()
    }
}

impl Device for MainChannel<'_, '_> {
    fn negotiated(&mut self, features: VhostUserProtocolFeatures) {
        if let Some(reason) = lacks_for_mapping(features) {
            say(self.reporter, &Report::NoChannel { reason });
        }
    }

    fn channel(&mut self, channel: Channel) {
        if !channel.has_shmem() {
            return;
        }
        let taken = channel
            .try_clone_socket()
            .map_err(io::Error::from)
            .and_then(|socket| {
                let has_replies = channel.has_replies();
                self.order(&Command::Channel {
                    socket,
                    has_replies,
                })
                .map_err(io::Error::other)
            });
        if let Err(error) = taken {
            base::warn!("the request channel is not used: {error}");
        }
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.config.to_bytes();
        out.fill(0);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in out.iter_mut().zip(bytes.iter().skip(from)) {
            *to = *from;
        }
        Ok(())
    }

    fn write_config(&mut self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn reset(&mut self) {
        if let Err(error) = self.order(&Command::Reset) {
            base::warn!("the device is not reset: {error}");
        }
    }

    fn rings(&mut self) -> Option<&mut dyn RingDevice> {
        Some(self)
    }
}

impl RingDevice for MainChannel<'_, '_> {
    fn start(&mut self, _index: u16, ring: Ring) -> io::Result<()> {
        *lock(self.slot) = Some(ring);
        self.order(&Command::Start).map_err(io::Error::other)
    }

    fn stop(&mut self, _index: u16) -> io::Result<Ring> {
        self.order(&Command::Stop).map_err(io::Error::other)?;
        let ring = lock(self.slot).take();
        ring.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
