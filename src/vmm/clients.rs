//! What the main loop answers to its control clients.

use devices::control::WorkerStats;
use devices::device_process::DeviceProcess;
use vm_control::Generation;
use vm_control::MappingKind;

use super::device;
use super::device_state::errno_name;
use super::device_state::refused_report;
use super::events::Event;
use super::host::seen_by;
use super::machine::FaultKind;
use super::machine::GuestFault;
use super::main_loop::Returned;
use super::main_loop::Vmm;
use crate::cli::size::Size;
use crate::control::message::DeviceState;
use crate::control::message::MAX_TRANSFER;
use crate::control::message::MappingReport;
use crate::control::message::PeekReport;
use crate::control::message::Pids;
use crate::control::message::PokeReport;
use crate::control::message::Refusal;
use crate::control::message::Request;
use crate::control::message::ResetReport;
use crate::control::message::StatsReport;
use crate::control::message::StatusReport;
use crate::control::message::StopReport;
use crate::control::message::decode_hex;
use crate::control::message::encode_hex;
use crate::control::server::ClientId;
use crate::text::causes;

/// How many accesses to guest memory wait at most: more are pending only when one of them hangs.
const MAX_ACCESSES: usize = 16;

/// An access to guest memory that has come back, for a client.
pub(super) struct Accessed {
    client: ClientId,
    result: Result<Seen, Refusal>,
}

/// What an access to guest memory saw or did.
enum Seen {
    Peek(PeekReport),
    Poke(PokeReport),
}

/// A place in a region, as a client names it.
struct Place {
    shmid: u8,
    offset: u64,
    len: u64,
    guest_address: u64,
}

impl Vmm<'_> {
    /// Carries out a client's request, now or aside.
    pub(super) fn request(&mut self, client: ClientId, request: Request) {
        match request {
            Request::Maps => {
                let maps = self.maps();
                self.answer(client, Ok(maps));
            }
            Request::Status | Request::Stats => self.ask_worker(client, request),
            Request::Peek { shmid, offset, len } => self.peek(client, shmid, offset, len),
            Request::Poke { shmid, offset, hex } => self.poke(client, shmid, offset, &hex),
            Request::Reset => self.reset(client),
            Request::Stop => {
                let pid = std::process::id();
                self.answer(client, Ok(StopReport { pid }));
                self.end("ctl");
            }
        }
    }

    /// Carries out what had to wait for the device process.
    pub(super) fn serve_waiting(&mut self) {
        let is_out = self.device.state == DeviceState::Serving && self.device.process.is_none();
        if !is_out && let Some((client, request)) = self.waiting.pop_front() {
            self.request(client, request);
        }
    }

    /// Asks the worker for its counters first, where there is one that can answer at once.
    fn ask_worker(&mut self, client: ClientId, request: Request) {
        match self.device.process.take() {
            Some(process) => self.calls.run(move || Returned::Stats {
                client,
                request,
                result: device::call(process, DeviceProcess::stats),
            }),
            None => self.report(client, &request, None),
        }
    }

    /// Answers a request for status or counters.
    pub(super) fn report(
        &mut self,
        client: ClientId,
        request: &Request,
        worker: Option<&WorkerStats>,
    ) {
        if let Some(refused) = worker.and_then(|stats| stats.last_refused.as_ref()) {
            self.device.last_refused = Some(refused_report(refused));
        }
        match request {
            Request::Stats => {
                let stats = self.stats(worker);
                self.answer(client, Ok(stats));
            }
            _ => {
                let status = self.status();
                self.answer(client, Ok(status));
            }
        }
    }

    fn maps(&self) -> Vec<MappingReport> {
        self.host
            .mappings()
            .iter()
            .map(|mapping| MappingReport {
                device: mapping.device.clone(),
                shmid: mapping.shmid,
                offset: mapping.offset,
                len: mapping.len,
                footprint: mapping.footprint,
                prot: if mapping.protection.allows(&base::Protection::write()) {
                    "rw"
                } else {
                    "r"
                }
                .to_owned(),
                kind: kind_name(mapping.kind).to_owned(),
            })
            .collect()
    }

    fn stats(&self, worker: Option<&WorkerStats>) -> StatsReport {
        let mut report = StatsReport {
            device: self.config.device.name.clone(),
            deviations: self
                .device
                .deviations
                .iter()
                .map(|(rule, count)| (rule.info().name.to_owned(), *count))
                .collect(),
            ..StatsReport::default()
        };
        let all = self.host.service().stats();
        if let Some(stats) = all
            .iter()
            .find(|stats| Some(stats.device_id) == self.device.id)
        {
            report.mappings = u64::from(stats.live);
            report.mapped_bytes = stats.live_bytes;
            report.maps = stats.counters.maps;
            report.unmaps = stats.counters.unmaps;
            report.batches = stats.counters.batches;
            report.refused_by_service = stats
                .counters
                .refused
                .iter()
                .map(|(errno, count)| (errno_name(base::Error::new(*errno)), *count))
                .collect();
        }
        if let Some(worker) = worker {
            report.requests = worker.requests;
            report.refused = worker.refused;
            report.in_flight = worker.in_flight;
        }
        report
    }

    fn status(&self) -> StatusReport {
        StatusReport {
            pids: Pids {
                vmm: std::process::id(),
                device: self.device.watch.as_ref().map(|watch| watch.pid),
                backend: self.device.backend.as_ref().map(|backend| backend.pid),
            },
            device: self.config.device.name.clone(),
            state: self.device.state,
            ended: self.device.ended.clone(),
            restarts: self.device.restarts,
            backend: self.config.backend.display().to_string(),
            guest: self.host.guest().to_owned(),
            sandbox: self.config.device.sandbox.level.to_string(),
            regions: self.device.region_reports(),
            mappings: self.host.mappings().len() as u64,
            last_refused: self.device.last_refused.clone(),
        }
    }

    fn peek(&mut self, client: ClientId, shmid: u8, offset: u64, len: u64) {
        let place = match self.place(shmid, offset, len) {
            Ok(place) => place,
            Err(refusal) => return self.answer::<PeekReport>(client, Err(refusal)),
        };
        let machine = self.host.machine();
        self.accesses.run(move || {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(MAX_TRANSFER)];
            let result = machine.peek(place.guest_address, &mut bytes);
            Accessed {
                client,
                result: place.check(result).map(|()| {
                    Seen::Peek(PeekReport {
                        shmid,
                        offset,
                        hex: encode_hex(&bytes),
                        seen_by: seen_by(&machine),
                    })
                }),
            }
        });
    }

    fn poke(&mut self, client: ClientId, shmid: u8, offset: u64, hex: &str) {
        let Some(bytes) = decode_hex(hex) else {
            let refusal = Refusal::new("the bytes to poke are not hexadecimal")
                .advise("write two digits a byte, such as 7f454c46");
            return self.answer::<PokeReport>(client, Err(refusal));
        };
        let len = bytes.len() as u64;
        let place = match self.place(shmid, offset, len) {
            Ok(place) => place,
            Err(refusal) => return self.answer::<PokeReport>(client, Err(refusal)),
        };
        let machine = self.host.machine();
        self.accesses.run(move || {
            let result = machine.poke(place.guest_address, &bytes);
            Accessed {
                client,
                result: place.check(result).map(|()| {
                    Seen::Poke(PokeReport {
                        shmid,
                        offset,
                        len,
                        seen_by: seen_by(&machine),
                    })
                }),
            }
        });
    }

    /// Finds the guest address of a place, and refuses one that is not inside a region.
    fn place(&self, shmid: u8, offset: u64, len: u64) -> Result<Place, Refusal> {
        if len == 0 || len > MAX_TRANSFER as u64 {
            return Err(Refusal::new(format!("a length of {len} bytes can't be"))
                .advise(format!("ask for 1 to {MAX_TRANSFER} bytes at once")));
        }
        if self.accesses.pending() >= MAX_ACCESSES {
            return Err(
                Refusal::new("earlier accesses to guest memory have not come back")
                    .advise("a mapped file may be on a file system that does not answer"),
            );
        }
        let region = self
            .device
            .regions
            .iter()
            .find(|region| region.shmid() == shmid)
            .ok_or_else(|| {
                Refusal::new(format!("the device has no region {shmid}"))
                    .advise("portcullis ctl status lists its regions")
            })?;
        let is_inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= region.len());
        if !is_inside {
            return Err(Refusal::new(format!(
                "{} at {offset:#x} is not inside region {shmid}, which has {}",
                Size(len),
                Size(region.len())
            )));
        }
        Ok(Place {
            shmid,
            offset,
            len,
            guest_address: region.guest_address() + offset,
        })
    }

    /// Answers the clients whose accesses have come back.
    pub(super) fn returned_accesses(&mut self) {
        while let Some(Accessed { client, result }) = self.accesses.take() {
            match result {
                Ok(Seen::Peek(report)) => self.answer(client, Ok(report)),
                Ok(Seen::Poke(report)) => self.answer(client, Ok(report)),
                Err(refusal) => self.answer::<PeekReport>(client, Err(refusal)),
            }
        }
    }

    fn reset(&mut self, client: ClientId) {
        let (Some(id), DeviceState::Serving) = (self.device.id, self.device.state) else {
            let refusal = Refusal::new(format!(
                "there is no device to reset: it is {}",
                self.device.state.name()
            ))
            .advise("portcullis ctl status says more");
            return self.answer::<ResetReport>(client, Err(refusal));
        };
        let Some(process) = self.device.process.take() else {
            // Another client's call has it, and gives it back soon.
            self.waiting.push_back((client, Request::Reset));
            return;
        };
        self.device.state = DeviceState::Resetting;
        let dropped = self.host.mappings().len() as u64;
        let service = self.host.service();
        self.calls.run(move || Returned::Reset {
            client,
            dropped,
            result: device::call(process, |process| device::reset(process, &service, id)),
        });
    }

    /// Answers the client that asked for a reset.
    pub(super) fn was_reset(
        &mut self,
        client: ClientId,
        dropped: u64,
        result: device::Returned<Generation>,
    ) {
        self.device.state = DeviceState::Serving;
        let reason = match self.keep(result) {
            Some(Ok(generation)) => return self.tell_reset(client, dropped, generation),
            Some(Err(reason)) => reason,
            None => self.device.ended.clone().unwrap_or_default(),
        };
        let refusal = Refusal::new(format!("the reset failed: {reason}"));
        self.answer::<ResetReport>(client, Err(refusal));
    }

    fn tell_reset(&mut self, client: ClientId, dropped: u64, generation: Generation) {
        let Generation(generation) = generation;
        self.observer.event(Event::Reset {
            device: self.config.device.name.clone(),
            dropped,
            generation,
        });
        self.answer(
            client,
            Ok(ResetReport {
                dropped,
                generation,
            }),
        );
    }
}

impl Place {
    /// Turns what the machine says of an access into what a client gets to read.
    fn check(
        &self,
        result: Result<super::machine::Access, super::machine::Error>,
    ) -> Result<(), Refusal> {
        let Self {
            shmid, offset, len, ..
        } = self;
        match result {
            Ok(access) if access.missing == 0 => Ok(()),
            Ok(access) => {
                let is_read_only = |fault: &GuestFault| fault.kind == FaultKind::ReadOnly;
                let what = if access.faults.iter().any(is_read_only) {
                    "is mapped read-only"
                } else {
                    "has no memory"
                };
                let refusal = Refusal::new(format!(
                    "region {shmid} {what} at {} of the {len} bytes from {offset:#x} on",
                    access.missing
                ));
                Err(refusal.advise("portcullis ctl maps lists what is mapped"))
            }
            Err(error) => Err(Refusal::new(causes(&error))),
        }
    }
}

/// The name of what a mapping shows.
fn kind_name(kind: MappingKind) -> &'static str {
    match kind {
        MappingKind::DmaBuf => "dma-buf",
        MappingKind::External => "external",
        MappingKind::File => "file",
        MappingKind::Memfd => "memfd",
        MappingKind::Vulkan => "vulkan",
    }
}
