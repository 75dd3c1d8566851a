//! Plugging Portcullis into a VMM: one device, its region, its mappings.
//!
//! ```text
//! portcullis backend files --socket /tmp/backend.sock --dir . &
//! cargo run --example embed -- /tmp/backend.sock
//! ```

use std::env;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use base::Event;
use base::EventWaitResult;
use devices::control::Activation;
use devices::device_process;
use devices::device_process::DeviceArgs;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use jail::Spawner;
use vm_control::Arena;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;

/// How long the backend gets to map what it has.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1);
    let first = arguments
        .next()
        .context("usage: embed SOCKET, the socket of a vhost-user backend")?;
    // The device process is this program, started again: nothing of the VMM's memory is in it.
    if first == "device" {
        exit(device_process::run(DeviceArgs::parse(arguments)?));
    }

    // Once a VMM: the service that maps, and the thread that starts device processes.
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())?;
    let handle = service.handle();
    let spawner = Spawner::start()?;

    // Once a device: its tube to the service, and its jailed process, which gets the backend's socket.
    let backend = UnixStream::connect(&first).context("connect to the backend")?;
    let (id, memory) = handle.add_device(DeviceConfig::new("example"))?;
    let interrupt = Event::new()?;
    let config =
        DeviceProcessConfig::new("example", backend.into(), memory, interrupt.try_clone()?);
    let mut device = DeviceProcess::spawn(&spawner, config)?;

    // Regions first, then the request channel: no request meets a region that is not there yet.
    let info = device.connect()?;
    let mut guest_address = 4 << 30;
    let mut arenas = Vec::new();
    for region in &info.regions {
        // A VMM makes the arena one memslot, at this address, before the guest runs.
        let arena = Arena::new(region.len)?;
        handle.add_region(
            id,
            RegionConfig {
                shmid: region.shmid,
                guest_address,
                len: region.len,
                arena: Some(arena.clone()),
                populate: 0,
            },
        )?;
        arenas.push(arena);
        guest_address += region.len.next_multiple_of(1 << 30);
    }
    device.start()?;
    // When the driver is ready; with its queues, if it has any.
    device.activate(Activation::default())?;

    // The interrupt says that the configuration space has changed: this backend has mapped its files.
    if interrupt.wait_timeout(PATIENCE)? == EventWaitResult::TimedOut {
        println!("no configuration change within {PATIENCE:?}");
    }
    for mapping in handle.mappings() {
        println!(
            "region {} at {:#x}: {} bytes, guest address {:#x}",
            mapping.shmid,
            mapping.offset,
            mapping.len,
            mapping.guest_address + mapping.offset
        );
    }
    println!("{}", device.shutdown()?);
    Ok(())
}
