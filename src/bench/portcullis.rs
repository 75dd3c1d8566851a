//! Portcullis as a subject: the backend and the VMM around a jailed device process, filters and all checks on.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use base::Event;
use devices::backend::channel::Channel;
use devices::backend::serve;
use devices::backend::serve::Device;
use devices::backend::serve::Profile;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use jail::Spawner;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::poll;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::Limits;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;

use super::bare;

/// Serves the main channel of a device with one region on a thread, and returns the request channel that the frontend hands over.
pub(super) fn request_channel(main: OwnedFd, region: u64) -> Result<OwnedFd> {
    let (sender, receiver) = mpsc::channel();
    let mut backend = Backend {
        sender,
        channel: None,
    };
    thread::Builder::new()
        .name("main-channel".to_owned())
        .spawn(move || {
            let profile = Profile::mapping(vec![(0, region)]);
            if let Err(error) = serve::serve(UnixStream::from(main), &profile, &mut backend) {
                eprintln!("main channel: {error}");
            }
        })?;
    receiver.recv().context("the frontend sent no channel")
}

struct Backend {
    sender: mpsc::Sender<OwnedFd>,
    /// Kept, since the driver works on a duplicate of its socket.
    channel: Option<Channel>,
}

impl Device for Backend {
    fn channel(&mut self, channel: Channel) {
        match channel.try_clone_socket() {
            // Nobody waits for a second channel.
            Ok(socket) => drop(self.sender.send(socket.into())),
            Err(error) => eprintln!("request channel: {error}"),
        }
        self.channel = Some(channel);
    }

    fn read_config(&mut self, _offset: u32, out: &mut [u8]) -> io::Result<()> {
        out.fill(0);
        Ok(())
    }

    fn write_config(&mut self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) {}
}

/// Serves one backend as a VMM does, without a guest, until the device process ends.
pub(super) fn vmm(main: OwnedFd, cpu: Option<usize>) -> Result<()> {
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())?;
    let handle = service.handle();
    let spawner = Spawner::start()?;
    let (id, memory) = handle.add_device(DeviceConfig {
        limits: Limits {
            max_mappings: u32::MAX,
            max_bytes: u64::MAX,
        },
        ..DeviceConfig::new("bench")
    })?;
    let config = DeviceProcessConfig::new("bench", main, memory, Event::new()?);
    let mut process = DeviceProcess::spawn(&spawner, config)?;
    // In its own place: the neighbour of both.
    if let Some(cpu) = cpu {
        bare::place_process(process.pid(), if cpu == 0 { 1 } else { 0 })
            .context("placing the device process")?;
    }
    let info = process.connect()?;
    for (index, region) in info.regions.iter().enumerate() {
        handle.add_region(
            id,
            RegionConfig {
                shmid: region.shmid,
                guest_address: (index as u64 + 1) << 40,
                len: region.len,
                arena: None,
                populate: 0,
            },
        )?;
    }
    process.start()?;
    poll(&mut [PollFd::new(&process.pidfd(), PollFlags::IN)], None)?;
    let report = process.exit_report().context("no exit report")?;
    let how = report.to_string();
    ensure!(handle.mappings().is_empty(), "{how}: mappings are left");
    Ok(())
}
