//! Many devices on one mapping service of this process, each with its jailed device process; their backends are one other process.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use base::Event;
use base::scm;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use jail::Spawner;
use vm_control::Arena;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::Limits;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;

use super::backends::Order;
use super::backends::Outcome;
use super::backends::Plan;
use crate::bench::bare;
use crate::vmm::machine::Machine;
use crate::vmm::machine::Memslot;
use crate::vmm::machine::MemslotConfig;

/// The devices, their service and their backends. All end when it is dropped.
pub(super) struct Fleet {
    orders: UnixStream,
    outcomes: BufReader<UnixStream>,
    pub(super) devices: Vec<DeviceProcess>,
    /// Each device's region.
    arenas: Vec<Arena>,
    /// From the spawn of each device process until it served, the handshake with the backend included.
    pub(super) start: Vec<Duration>,
    service: MappingService,
    spawner: Spawner,
    backends: Child,
}

impl Fleet {
    /// Starts `devices` devices with a region of `region` bytes each, which the guest sees at `guest_address` and after.
    ///
    /// # Errors
    /// If a process can't be started or ends early.
    pub(super) fn start(devices: u32, region: u64, guest_address: u64) -> Result<Fleet> {
        Self::start_with(devices, region, guest_address, 0)
    }

    /// Starts such devices, each with regions of which `populate` bytes are filled in ahead of the guest.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub(super) fn start_with(
        devices: u32,
        region: u64,
        guest_address: u64,
        populate: u64,
    ) -> Result<Fleet> {
        let (mut orders, theirs) = UnixStream::pair()?;
        let backends = Command::new(std::env::current_exe()?)
            .args(["bench-role", "backends"])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .context("the backends")?;
        let plan = serde_json::to_string(&Plan { devices, region })?;
        writeln!(orders, "{plan}")?;
        let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())?;
        let spawner = Spawner::start()?;
        let outcomes = BufReader::new(orders.try_clone()?);
        let mut fleet = Fleet {
            orders,
            outcomes,
            devices: Vec::new(),
            arenas: Vec::new(),
            start: Vec::new(),
            service,
            spawner,
            backends,
        };
        for index in 0..u64::from(devices) {
            fleet.add(region, guest_address + index * region, populate)?;
        }
        Ok(fleet)
    }

    fn add(&mut self, region: u64, guest_address: u64, populate: u64) -> Result<()> {
        let (main, theirs) = scm::stream_pair()?;
        let theirs = OwnedFd::from(theirs);
        bare::send(self.orders.as_fd(), &[0], Some(theirs.as_fd()))?;
        let service = self.service.handle();
        let name = format!("bench{}", self.devices.len());
        let (id, memory) = service.add_device(DeviceConfig {
            limits: Limits {
                max_mappings: u32::MAX,
                max_bytes: u64::MAX,
            },
            ..DeviceConfig::new(&name)
        })?;
        let config = DeviceProcessConfig::new(&name, OwnedFd::from(main), memory, Event::new()?);
        let begin = Instant::now();
        let mut process = DeviceProcess::spawn(&self.spawner, config)?;
        let info = process.connect()?;
        ensure!(
            info.regions.len() == 1,
            "{name}: {} regions",
            info.regions.len()
        );
        let arena = Arena::new(region)?;
        service.add_region(
            id,
            RegionConfig {
                shmid: 0,
                guest_address,
                len: region,
                arena: Some(arena.clone()),
                populate,
            },
        )?;
        process.start()?;
        self.start.push(begin.elapsed());
        self.devices.push(process);
        self.arenas.push(arena);
        Ok(())
    }

    /// Shows the first device's region to the guest at `guest_address`, until the slot is dropped.
    ///
    /// # Errors
    /// What keeps the machine from it.
    pub(super) fn show(&self, machine: &Machine, guest_address: u64) -> Result<Memslot> {
        let first = self.arenas.first().context("no device")?;
        Ok(machine.add_memslot(MemslotConfig {
            name: "bench0/0".to_owned(),
            guest_address,
            backing: Arc::new(first.clone()),
            read_only: false,
        })?)
    }

    /// Has the backends do something.
    ///
    /// # Errors
    /// If a request is refused, or a process is gone.
    pub(super) fn order(&mut self, order: Order) -> Result<Outcome> {
        writeln!(self.orders, "{}", serde_json::to_string(&order)?)?;
        let mut line = String::new();
        self.outcomes.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the backends ended at {order:?}"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.backends.kill();
        let _ = self.backends.wait();
    }
}
