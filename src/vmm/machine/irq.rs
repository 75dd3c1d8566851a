//! Interrupts of the guest: an eventfd that the kernel brings to the vCPU (irqfd).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use base::Event;
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use super::cpu;
use super::machine::Shared;

/// The lines in use, and what the kernel listens to for each.
#[derive(Default)]
pub(super) struct Lines {
    used: Mutex<BTreeMap<u8, Option<EventFd>>>,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Option<EventFd>>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line of the guest that an event raises. Dropping it disconnects the event.
///
/// The guest counts what it takes. Without a guest nobody takes anything, and the count stays 0.
pub struct IrqLine {
    shared: Arc<Shared>,
    line: u8,
}

impl IrqLine {
    /// Connects an event to a free line.
    pub(super) fn connect(shared: &Arc<Shared>, event: &Event) -> Result<Self, Error> {
        let mut used = shared.lines.lock();
        let line = (0..cpu::LINES)
            .find(|line| !used.contains_key(line))
            .ok_or(Error::NoLine { lines: cpu::LINES })?;
        let kernel = shared
            .vm
            .as_ref()
            .map(|vm| vm.connect(line, event))
            .transpose()?;
        used.insert(line, kernel);
        Ok(Self {
            shared: Arc::clone(shared),
            line,
        })
    }

    /// Returns how many interrupts of this line the guest has taken; it wraps around. Interrupts that were raised
    /// while the guest had not yet taken the last are one. A line that was used before goes on counting.
    ///
    /// # Errors
    /// [`Error::Memory`] should the guest have no memory there.
    pub fn taken(&self) -> Result<u32, Error> {
        if self.shared.vm.is_none() {
            return Ok(0);
        }
        Ok(cpu::count(&self.shared.memory, self.line)?)
    }

    /// Returns where the guest counts.
    pub(super) fn counter(&self) -> u64 {
        cpu::counter(self.line)
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        let kernel = self.shared.lines.lock().remove(&self.line).flatten();
        if let (Some(vm), Some(event)) = (&self.shared.vm, kernel)
            && let Err(error) = vm.disconnect(self.line, &event)
        {
            tracing::error!("interrupt line {}: {error:#}", self.line);
        }
    }
}
