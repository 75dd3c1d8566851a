//! Every system call of the worker and of the mapping service fails once, with every errno that it can have.
//!
//! A program of its own, one test at a time, since descriptors and mappings are counted for the whole process. The threads are the real
//! ones (an in-process device's worker, the service's thread); only the jail is not there, which changes no call.

mod injector;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::BTreeSet;
    use std::io::IoSlice;
    use std::io::Read;
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;
    use std::thread;
    use std::time::Duration;
    use std::time::Instant;

    use base::Event;
    use base::SharedMemory;
    use base::scm;
    use devices::in_process::InProcessDevice;
    use vm_control::ArenaVm;
    use vm_control::DeviceConfig;
    use vm_control::DeviceId;
    use vm_control::MappingService;
    use vm_control::RegionConfig;
    use vm_control::ServiceConfig;

    use crate::injector::Fault;
    use crate::injector::Injector;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const PAGE: u64 = 4096;
    const PAGES: u64 = 64;
    const MAP: u32 = 9;
    const UNMAP: u32 = 10;
    const CONFIG_CHANGE: u32 = 2;

    /// What the two threads call and the errnos that Linux documents for it, besides those that say that the caller is wrong.
    /// `close` is left out: the kernel closes whatever it answers.
    const FAULTS: &[(libc::c_long, &[i32])] = &[
        (libc::SYS_epoll_ctl, &[libc::ENOMEM, libc::ENOSPC]),
        (libc::SYS_epoll_pwait, &[libc::EINTR]),
        (libc::SYS_epoll_pwait2, &[libc::EINTR]),
        (libc::SYS_epoll_wait, &[libc::EINTR]),
        (
            libc::SYS_eventfd2,
            &[libc::EMFILE, libc::ENFILE, libc::ENOMEM],
        ),
        (libc::SYS_fstatfs, &[libc::EINTR, libc::ENOMEM]),
        (
            libc::SYS_mmap,
            &[
                libc::EAGAIN,
                libc::ENFILE,
                libc::ENOMEM,
                libc::ENOSPC,
                libc::EINTR,
            ],
        ),
        (libc::SYS_mremap, &[libc::ENOMEM, libc::EAGAIN]),
        (libc::SYS_read, &[libc::EINTR]),
        (
            libc::SYS_recvmsg,
            &[libc::EINTR, libc::ENOMEM, libc::ENOBUFS],
        ),
        (
            libc::SYS_sendmsg,
            &[
                libc::EINTR,
                libc::ENOMEM,
                libc::ENOBUFS,
                libc::ENOSPC,
                libc::EMFILE,
                libc::ETOOMANYREFS,
            ],
        ),
        (
            libc::SYS_socketpair,
            &[libc::EMFILE, libc::ENFILE, libc::ENOMEM],
        ),
        (libc::SYS_statx, &[libc::EINTR, libc::ENOMEM]),
        (libc::SYS_write, &[libc::EINTR]),
    ];

    /// What is counted is that of the one test that holds it.
    static TURN: Mutex<()> = Mutex::new(());

    /// A service and a device whose threads are under the injector's filter.
    struct Machine {
        service: MappingService,
        id: DeviceId,
        device: InProcessDevice,
        channel: UnixStream,
    }

    /// The backend's view: what is mapped, by offset, or that nobody answers any more.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Backend {
        mapped: BTreeMap<u64, u64>,
        is_over: bool,
        refusals: Vec<i64>,
    }

    impl Machine {
        fn start(injector: &Injector) -> Self {
            let injector = injector.clone();
            thread::spawn(move || {
                let calls: Vec<_> = FAULTS.iter().map(|(call, _)| *call).collect();
                injector.filter_this_thread(&calls).expect("a filter");
                let vm = Box::new(ArenaVm::new());
                let service =
                    MappingService::start(vm, ServiceConfig::default()).expect("a service");
                let (id, device, channel) = add(&service, 0).expect("a device");
                Self {
                    service,
                    id,
                    device,
                    channel,
                }
            })
            .join()
            .expect("it starts")
        }
    }

    fn add(
        service: &MappingService,
        place: u64,
    ) -> Result<(DeviceId, InProcessDevice, UnixStream), String> {
        let handle = service.handle();
        let (id, memory) = handle
            .add_device(DeviceConfig::new("faulty"))
            .map_err(|error| error.to_string())?;
        let region = RegionConfig {
            shmid: 0,
            guest_address: (1 << 32) + place * PAGES * PAGE,
            len: PAGES * PAGE,
            arena: None,
            populate: 0,
        };
        handle
            .add_region(id, region)
            .map_err(|error| error.to_string())?;
        let interrupt = Event::new().expect("an event");
        let (device, channel) =
            InProcessDevice::start(memory, interrupt).map_err(|error| error.to_string())?;
        let channel = UnixStream::from(OwnedFd::from(channel));
        channel
            .set_read_timeout(Some(TIMEOUT))
            .expect("a read timeout");
        Ok((id, device, channel))
    }

    /// Sends one request that wants a reply: its code, and the page that it is about.
    fn send_request(
        channel: &UnixStream,
        (code, page): (u32, u64),
        file: &SharedMemory,
    ) -> base::Result<()> {
        let body: &[u64] = match code {
            CONFIG_CHANGE => &[],
            _ => &[0, 0, page * PAGE, PAGE, u64::from(code == MAP)],
        };
        let len = u32::try_from(8 * body.len()).expect("short");
        let mut bytes = Vec::new();
        for word in [code, 9, len] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for word in body {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        let descriptor = (code == MAP).then(|| file.as_fd());
        let bufs = [IoSlice::new(&bytes)];
        scm::send(
            channel.as_fd(),
            &bufs,
            descriptor.as_slice(),
            scm::Wait::Block,
        )
        .map(drop)
    }

    impl Backend {
        /// Sends requests together and reads what each is answered.
        fn exchange(&mut self, channel: &UnixStream, requests: &[(u32, u64)], file: &SharedMemory) {
            for request in requests {
                if send_request(channel, *request, file).is_err() {
                    self.is_over = true;
                    return;
                }
            }
            for (code, page) in requests {
                let mut reply = [0; 20];
                if let Err(error) = (&*channel).read_exact(&mut reply) {
                    assert_ne!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock,
                        "neither a reply nor an end"
                    );
                    self.is_over = true;
                    return;
                }
                let value = i64::from_ne_bytes(reply[12..].try_into().expect("eight bytes"));
                match (value, *code) {
                    (0, MAP) => drop(self.mapped.insert(page * PAGE, PAGE)),
                    (0, UNMAP) => drop(self.mapped.remove(&(page * PAGE))),
                    (0, _) => {}
                    (value, _) => self.refusals.push(value),
                }
            }
        }
    }

    /// What every round asks of the two threads: requests one by one and together, and what the VMM does.
    fn script(machine: &Machine, file: &SharedMemory) -> Backend {
        let mut backend = Backend::default();
        let channel = &machine.channel;
        backend.exchange(channel, &[(MAP, 0)], file);
        backend.exchange(channel, &[(CONFIG_CHANGE, 0)], file);
        backend.exchange(channel, &[(MAP, 1), (MAP, 2), (MAP, 3), (UNMAP, 1)], file);
        backend.exchange(channel, &[(UNMAP, 0)], file);
        backend.exchange(channel, &[(MAP, 4)], file);
        // Fails where the worker has ended.
        let _ended = machine.device.stats();
        backend
    }

    /// Live mappings of one device, as the service sees them.
    fn recorded(machine: &Machine) -> BTreeMap<u64, u64> {
        let mappings = machine.service.handle().mappings();
        let own = mappings
            .iter()
            .filter(|mapping| mapping.device_id == machine.id);
        own.map(|mapping| (mapping.offset, mapping.len)).collect()
    }

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd")
            .expect("it is there")
            .count()
    }

    fn areas_of(name: &str) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
        maps.matches(name).count()
    }

    /// One machine, one fault: what the backend saw, and the calls that were made.
    fn round(fault: Option<Fault>) -> (Backend, BTreeMap<i32, usize>) {
        let injector = Injector::default();
        let file = SharedMemory::new("faulty", PAGE).expect("a memfd");
        let machine = Machine::start(&injector);
        injector.arm(fault);
        let backend = script(&machine, &file);
        let calls = injector.disarm();

        // The service lives, and what the backend was told is what is there.
        let there = recorded(&machine);
        if !backend.is_over {
            assert_eq!(there, backend.mapped, "{fault:?}");
            assert_eq!(areas_of("/memfd:faulty"), there.len(), "{fault:?}");
        }
        let Machine {
            service,
            id,
            device,
            channel,
        } = machine;
        drop(channel);
        drop(device);
        // It may have been dropped already, for what it could not be answered.
        let _gone = service.handle().remove_device(id);
        assert_eq!(service.handle().mappings(), [], "{fault:?}");
        assert_eq!(areas_of("/memfd:faulty"), 0, "{fault:?}");

        // The next device works.
        let (_, next, channel) = add(&service, 1).expect("another device");
        let mut other = Backend::default();
        other.exchange(&channel, &[(MAP, 5), (MAP, 6), (UNMAP, 5)], &file);
        assert_eq!(
            other.mapped,
            BTreeMap::from([(6 * PAGE, PAGE)]),
            "{fault:?}"
        );
        assert_eq!(
            (other.is_over, other.refusals.len()),
            (false, 0),
            "{fault:?}"
        );
        drop((next, channel, service));
        injector.finish();
        assert_eq!(areas_of("/memfd:faulty"), 0, "{fault:?}");
        (backend, calls)
    }

    #[test]
    fn every_system_call_that_fails_leaves_an_answer_and_nothing_else() {
        let _turn = TURN.lock();
        let (backend, calls) = round(None);
        assert_eq!((backend.is_over, &backend.refusals[..]), (false, &[][..]));
        let before = descriptors();
        let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
        let mut answered = BTreeSet::new();
        for (&call, &count) in &calls {
            let known = FAULTS.iter().find(|(known, _)| *known == i64::from(call));
            let (_, errnos) = known.expect("only these are asked about");
            for (after, &errno) in
                (0..count).flat_map(|after| errnos.iter().map(move |errno| (after, errno)))
            {
                let (backend, _) = round(Some(Fault { call, after, errno }));
                answered.extend(backend.refusals.iter().map(|refusal| (call, -refusal)));
                let outcome = match (backend.is_over, backend.refusals.len()) {
                    (true, _) => "ended the device",
                    (false, 0) => "cost nothing",
                    (false, _) => "was answered",
                };
                *outcomes.entry(outcome).or_default() += 1;
            }
        }
        println!("faults by outcome: {outcomes:?}");
        // What the backend learns of it is the errno itself.
        let send = i32::try_from(libc::SYS_sendmsg).expect("a number");
        let map = i32::try_from(libc::SYS_mmap).expect("a number");
        for (call, errno) in [(send, libc::ETOOMANYREFS), (map, libc::ENOMEM)] {
            assert!(answered.contains(&(call, errno.into())), "{answered:?}");
        }
        assert_eq!(descriptors(), before);
    }

    /// The mappings of a device go with its channel, whichever of the messages then does not get through: with the order to
    /// drop them or, where that fails, with the device.
    #[test]
    fn mappings_go_with_the_channel_whatever_fails() {
        let _turn = TURN.lock();
        let send = i32::try_from(libc::SYS_sendmsg).expect("a number");
        let file = SharedMemory::new("the-last", PAGE).expect("a memfd");
        let errnos = [libc::ETOOMANYREFS, libc::ENOMEM, libc::ENOSPC];
        for (after, errno) in (0..3).flat_map(|after| errnos.map(|errno| (after, errno))) {
            for _ in 0..8 {
                let injector = Injector::default();
                let machine = Machine::start(&injector);
                let mut backend = Backend::default();
                backend.exchange(&machine.channel, &[(MAP, 0)], &file);
                assert_eq!(recorded(&machine), backend.mapped);
                injector.arm(Some(Fault {
                    call: send,
                    after,
                    errno,
                }));
                // While the first request is under way the worker finds the second one and the end together.
                let held = injector.hold();
                for page in 1..3 {
                    send_request(&machine.channel, (MAP, page), &file).expect("sent");
                }
                machine.channel.shutdown(Shutdown::Both).expect("a socket");
                drop(held);
                let begin = Instant::now();
                while !recorded(&machine).is_empty() {
                    assert!(begin.elapsed() < TIMEOUT, "{errno} after {after}");
                    thread::yield_now();
                }
                injector.disarm();
                drop(machine);
                injector.finish();
            }
        }
        assert_eq!(areas_of("/memfd:the-last"), 0);
    }
}
