//! Driving a device without a guest: split virtqueues of the test harness, a jailed device process, and a backend that
//! maps what its driver asks for.
//!
//! ```text
//! portcullis backend blobs --socket /tmp/blobs.sock &
//! cargo run --example drive_device -- /tmp/blobs.sock
//! ```

use std::env;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::process::exit;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use base::Event;
use devices::backend::blobs::protocol::Request;
use devices::backend::blobs::protocol::Response;
use devices::control::Activation;
use devices::control::MemoryRegion;
use devices::control::QueueSetup;
use devices::device_process;
use devices::device_process::DeviceArgs;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use fixture::DriverMemory;
use fixture::DriverQueue;
use jail::Spawner;
use vm_control::Arena;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
const PAGE: u64 = 4096;

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1);
    let first = arguments
        .next()
        .context("usage: drive_device SOCKET, the socket of `portcullis backend blobs`")?;
    if first == "device" {
        exit(device_process::run(DeviceArgs::parse(arguments)?));
    }

    // As in examples/embed.rs: a service, a region, a jailed device process.
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())?;
    let handle = service.handle();
    let spawner = Spawner::start()?;
    let backend = UnixStream::connect(&first).context("connect to the backend")?;
    let (id, memory_tube) = handle.add_device(DeviceConfig::new("blobs"))?;
    let config = DeviceProcessConfig::new("blobs", backend.into(), memory_tube, Event::new()?);
    let mut device = DeviceProcess::spawn(&spawner, config)?;
    let info = device.connect()?;
    let region = info.regions.first().context("the backend has no region")?;
    let arena = Arena::new(region.len)?;
    handle.add_region(
        id,
        RegionConfig {
            shmid: region.shmid,
            guest_address: 4 << 30,
            len: region.len,
            arena: Some(arena.clone()),
            populate: 0,
        },
    )?;
    device.start()?;

    // What a guest's driver would do: memory, a queue in it, and the device told of both.
    let mut memory = DriverMemory::new(1 << 20);
    let mut queue = DriverQueue::new(&mut memory, 16);
    device.activate(activation(&memory, &queue)?)?;

    let mut call = |request: Request| -> Result<Response> {
        let answer = queue.exchange(&mut memory, &request.to_bytes(), 40);
        let answer: &[u8; 40] = answer.as_slice().try_into().context("a short answer")?;
        let response = Response::parse(answer);
        ensure!(
            response.status == 0,
            "{request:?}: errno {}",
            response.status
        );
        Ok(response)
    };
    let blob = call(Request::Allocate { len: 2 * PAGE })?.blob;
    call(Request::Map {
        blob,
        shm_offset: 4 * PAGE,
        blob_offset: 0,
        len: 2 * PAGE,
        writable: false,
    })?;
    call(Request::Fill {
        blob,
        pattern: u32::from_le_bytes(*b"gate"),
        blob_offset: 0,
        len: PAGE,
    })?;
    let mut seen = [0; 12];
    arena.read_at(4 * PAGE, &mut seen)?;
    println!("the region has {:?}", String::from_utf8_lossy(&seen));
    println!("{} mapping(s)", handle.mappings().len());
    call(Request::Unmap { blob })?;
    println!("{} mapping(s) after the unmap", handle.mappings().len());
    println!("{}", device.shutdown()?);
    Ok(())
}

fn activation(memory: &DriverMemory, queue: &DriverQueue) -> Result<Activation> {
    let clone = |fd: BorrowedFd<'_>| -> Result<base::SafeDescriptor> {
        Ok(fd.try_clone_to_owned()?.into())
    };
    Ok(Activation {
        features: VERSION_1,
        memory: vec![MemoryRegion {
            guest_address: 0,
            len: memory.len(),
            offset: 0,
            descriptor: clone(memory.file())?,
        }],
        queues: vec![QueueSetup {
            index: 0,
            size: queue.size(),
            descriptor_table: queue.descriptor_table(),
            available_ring: queue.available_ring(),
            used_ring: queue.used_ring(),
            base: 0,
            call: Some(clone(queue.call())?),
            kick: clone(queue.kick())?,
        }],
    })
}
