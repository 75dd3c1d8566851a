//! The vCPU's thread: takes orders, lets the agent carry them out, and completes what faults on the way.
//!
//! What a fault looks like depends on the KVM. A hole or a read-only mapping in a slot can be a memory exit, EFAULT
//! with the address (`KVM_EXIT_MEMORY_FAULT`), or EFAULT with nothing, which is what both the nested KVM and those on
//! hardware give for a host page that can't be had; no slot at all is always a memory exit. In each case the agent's
//! registers tell the byte at which its copy stands, so the host completes the copy up to the end of the page and
//! moves the registers on.
//!
//! Nothing here waits for the guest: a caller that loses its patience cancels its order and kicks this thread out of
//! KVM by a signal until it has answered.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use kvm_ioctls::VcpuExit;

use super::Access;
use super::Error;
use super::PAGE_BYTES;
use super::PAGE_LEN;
use super::agent;
use super::agent::BUFFER;
use super::agent::MAX_ORDER_BYTES;
use super::cpu;
use super::driver;
use super::driver::Block;
use super::hole::rest_of_page;
use super::kvm::Vcpu;
use super::machine::Shared;

/// What the guest is to do, with at most [`MAX_ORDER_BYTES`].
#[derive(Debug)]
pub(super) enum Order {
    Peek {
        guest_address: u64,
        len: u64,
    },
    Poke {
        guest_address: u64,
        bytes: Vec<u8>,
    },
    Sum {
        guest_address: u64,
        len: u64,
        total: u64,
    },
    Drive {
        block: Block,
    },
}

/// What the guest did.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The bytes of a peek.
    pub(super) bytes: Vec<u8>,
    /// The total of a sum.
    pub(super) total: u64,
    /// What the driver filled in.
    pub(super) block: Block,
    /// What the order met.
    pub(super) access: Access,
}

/// An order on its way.
pub(super) struct Command {
    /// Counts up; see [`Cancelled`].
    pub(super) id: u64,
    pub(super) order: Order,
    /// How long the caller waits, for the message.
    pub(super) deadline: Duration,
    pub(super) reply: SyncSender<Result<Answer, Error>>,
}

/// All orders up to this number have been given up by their callers.
pub(super) type Cancelled = AtomicU64;

/// The order that the agent is carrying out.
struct Running {
    command: Command,
    access: Access,
}

impl Running {
    /// Tells whether the agent's copy goes to guest memory.
    fn is_write(&self) -> bool {
        matches!(self.command.order, Order::Poke { .. })
    }
}

/// What KVM_RUN came back with, without the borrow.
enum Exit {
    /// The agent is ready.
    Ready,
    /// An access to this address was completed here; KVM still has to take the result.
    Completed(u64),
    /// A device answered; KVM still has to take the result.
    Served,
    /// The agent's copy stands at a byte that can't be had.
    Fault,
    /// A signal, or nothing of importance.
    Nothing,
    /// The guest can't go on.
    Dead(&'static str),
}

/// The thread's state.
pub(super) struct VcpuThread {
    vcpu: Vcpu,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    cancelled: Arc<Cancelled>,
    running: Option<Running>,
}

impl VcpuThread {
    pub(super) fn new(
        vcpu: Vcpu,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        cancelled: Arc<Cancelled>,
    ) -> Self {
        Self {
            vcpu,
            shared,
            commands,
            cancelled,
            running: None,
        }
    }

    /// Carries out orders until the sender is dropped or the vCPU is beyond help.
    pub(super) fn run(mut self) {
        loop {
            let step = match self.enter() {
                Ok(Exit::Ready) => {
                    if !self.next_order() {
                        return;
                    }
                    Ok(())
                }
                Ok(Exit::Completed(address)) => self.after_memory_exit(address),
                Ok(Exit::Fault) => self.complete_page(),
                Ok(Exit::Served | Exit::Nothing) => Ok(()),
                Ok(Exit::Dead(exit)) => Err(Error::GuestStopped {
                    exit,
                    instruction: self.instruction(),
                }),
                Err(error) => Err(error),
            };
            let step = step.and_then(|()| self.check_cancelled());
            if let Err(error) = step {
                // Without an order nothing but the agent's own start has run: it would only fail again.
                let hopeless = self.running.is_none();
                self.finish(Err(error));
                if hopeless || self.reset().is_err() {
                    return;
                }
            }
        }
    }

    /// Runs the guest until it exits and completes a memory exit.
    fn enter(&mut self) -> Result<Exit, Error> {
        let Self {
            vcpu,
            shared,
            running,
            ..
        } = self;
        let mut unasked = Access::default();
        let access = running
            .as_mut()
            .map_or(&mut unasked, |running| &mut running.access);
        let exit = match vcpu.fd.run() {
            Ok(VcpuExit::IoOut(agent::PORT, _)) => Exit::Ready,
            Ok(VcpuExit::MmioRead(address, data)) => {
                if shared.bus.read(address, data) {
                    return Ok(Exit::Served);
                }
                shared.holes().read(address, data, access)?;
                Exit::Completed(address)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if shared.bus.write(address, data) {
                    return Ok(Exit::Served);
                }
                shared.holes().write(address, data, access)?;
                Exit::Completed(address)
            }
            Ok(VcpuExit::MemoryFault { .. }) => Exit::Fault,
            Ok(VcpuExit::Intr) => Exit::Nothing,
            Ok(VcpuExit::Shutdown) => Exit::Dead("shutdown"),
            Ok(VcpuExit::Hlt) => Exit::Dead("halt"),
            Ok(VcpuExit::InternalError) => Exit::Dead("internal error of KVM"),
            Ok(VcpuExit::FailEntry(..)) => Exit::Dead("entry refused"),
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Exit::Dead("unknown port"),
            Ok(_) => Exit::Dead("unexpected exit"),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Exit::Nothing,
            Err(error) if error.errno() == libc::EFAULT => Exit::Fault,
            Err(source) => {
                return Err(Error::Kvm {
                    operation: "KVM_RUN",
                    source,
                });
            }
        };
        Ok(exit)
    }

    /// Lets KVM take the result of a memory exit, so that the registers are up to date, without running the guest.
    ///
    /// KVM goes on with a repeated instruction for up to 1024 rounds, each with its own exit.
    fn settle(&mut self) -> Result<(), Error> {
        self.vcpu.fd.set_kvm_immediate_exit(1);
        let outcome = loop {
            match self.enter() {
                Ok(Exit::Completed(_) | Exit::Served) => (),
                Ok(Exit::Nothing) => break Ok(()),
                Ok(_) => {
                    break Err(Error::GuestStopped {
                        exit: "unexpected exit",
                        instruction: self.instruction(),
                    });
                }
                Err(error) => break Err(error),
            }
        };
        self.vcpu.fd.set_kvm_immediate_exit(0);
        outcome
    }

    /// Puts the vCPU back to the agent's start, whatever it is in the middle of.
    fn reset(&mut self) -> Result<(), Error> {
        self.vcpu.fd.set_kvm_immediate_exit(1);
        while matches!(
            self.vcpu.fd.run(),
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..))
        ) {}
        self.vcpu.fd.set_kvm_immediate_exit(0);
        self.vcpu.reset()
    }

    /// Goes on after a memory exit: what is left of a copy in the same page is completed at once.
    fn after_memory_exit(&mut self, address: u64) -> Result<(), Error> {
        self.settle()?;
        let regs = self
            .vcpu
            .fd
            .get_regs()
            .map_err(Error::kvm("KVM_GET_REGS"))?;
        let Some(running) = &self.running else {
            return Ok(());
        };
        let stands_at = if running.is_write() {
            regs.rdi
        } else {
            regs.rsi
        };
        if regs.rip == agent::COPY && regs.rcx > 0 && stands_at / PAGE_BYTES == address / PAGE_BYTES
        {
            self.complete_page()
        } else {
            Ok(())
        }
    }

    /// Completes the agent's copy up to the end of the page that it stands at.
    fn complete_page(&mut self) -> Result<(), Error> {
        let mut regs = self
            .vcpu
            .fd
            .get_regs()
            .map_err(Error::kvm("KVM_GET_REGS"))?;
        let Some(running) = self.running.as_mut().filter(|_| regs.rip == agent::COPY) else {
            return Err(Error::UnknownFault {
                instruction: regs.rip,
            });
        };
        let write = running.is_write();
        let len = rest_of_page(if write { regs.rdi } else { regs.rsi }, regs.rcx);
        let mut page = [0; PAGE_LEN];
        let bytes = &mut page[..usize::try_from(len).expect("at most a page")];
        if write {
            self.shared.memory.read(regs.rsi, bytes)?;
            self.shared
                .holes()
                .write(regs.rdi, bytes, &mut running.access)?;
        } else {
            self.shared
                .holes()
                .read(regs.rsi, bytes, &mut running.access)?;
            self.shared.memory.write(regs.rdi, bytes)?;
        }
        regs.rsi += len;
        regs.rdi += len;
        regs.rcx -= len;
        self.vcpu
            .fd
            .set_regs(&regs)
            .map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// Answers the order that was carried out and waits for the next. False: there will be none.
    fn next_order(&mut self) -> bool {
        let answer = self
            .running
            .as_ref()
            .map(|running| self.collect(&running.command.order));
        if let Some(answer) = answer {
            self.finish(answer);
        }
        loop {
            let Ok(command) = self.commands.recv() else {
                return false;
            };
            if command.id <= self.cancelled.load(Ordering::Acquire) {
                continue;
            }
            match self.place(&command.order) {
                Ok(()) => {
                    self.running = Some(Running {
                        command,
                        access: Access::default(),
                    });
                    return true;
                }
                // The caller may have gone: then nobody wants to know.
                Err(error) => drop(command.reply.try_send(Err(error))),
            }
        }
    }

    /// Puts an order where the agent finds it, or the vCPU at the driver, which goes back to the agent in the end.
    fn place(&mut self, order: &Order) -> Result<(), Error> {
        let memory = &self.shared.memory;
        let order = match order {
            Order::Peek { guest_address, len } => agent::Order::peek(*guest_address, *len),
            Order::Poke {
                guest_address,
                bytes,
            } => {
                memory.write(BUFFER, bytes)?;
                agent::Order::poke(*guest_address, bytes.len() as u64)
            }
            Order::Sum {
                guest_address,
                len,
                total,
            } => agent::Order::sum(*guest_address, *len, *total),
            Order::Drive { block } => {
                block.store(memory)?;
                return self.go_to_driver();
            }
        };
        debug_assert!(order.bytes <= MAX_ORDER_BYTES, "the caller splits orders");
        Ok(order.store(memory)?)
    }

    fn go_to_driver(&mut self) -> Result<(), Error> {
        self.settle()?;
        self.vcpu
            .fd
            .set_regs(&cpu::registers(driver::ENTRY))
            .map_err(Error::kvm("KVM_SET_REGS"))
    }

    /// Fetches the result of an order.
    fn collect(&self, order: &Order) -> Result<Answer, Error> {
        let mut answer = Answer::default();
        match order {
            Order::Peek { len, .. } => {
                answer.bytes = vec![0; usize::try_from(*len).expect("at most MAX_ORDER_BYTES")];
                self.shared.memory.read(BUFFER, &mut answer.bytes)?;
            }
            Order::Poke { .. } => (),
            Order::Sum { .. } => answer.total = agent::Order::load_total(&self.shared.memory)?,
            Order::Drive { .. } => answer.block = Block::load(&self.shared.memory)?,
        }
        Ok(answer)
    }

    /// Ends the order that is being carried out, if there is one.
    fn finish(&mut self, answer: Result<Answer, Error>) {
        let Some(Running { command, access }) = self.running.take() else {
            return;
        };
        self.shared.holes().report(&access);
        // The caller may have gone: then nobody wants to know.
        drop(
            command
                .reply
                .try_send(answer.map(|answer| Answer { access, ..answer })),
        );
    }

    /// Gives up the order whose caller did.
    fn check_cancelled(&self) -> Result<(), Error> {
        match &self.running {
            Some(Running { command, .. })
                if command.id <= self.cancelled.load(Ordering::Acquire) =>
            {
                Err(Error::Deadline {
                    deadline: command.deadline,
                })
            }
            _ => Ok(()),
        }
    }

    fn instruction(&self) -> u64 {
        self.vcpu.fd.get_regs().map_or(0, |regs| regs.rip)
    }
}
