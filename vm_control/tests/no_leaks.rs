//! What devices leave behind, whatever they did: no descriptor and no mapping. Counted for the whole process, which has one test
//! only.

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use base::Protection;
    use base::SafeDescriptor;
    use base::SharedMemory;
    use base::Tube;
    use base::WaitContext;
    use vm_control::ArenaVm;
    use vm_control::DeviceConfig;
    use vm_control::DeviceId;
    use vm_control::Generation;
    use vm_control::MappingService;
    use vm_control::RegionConfig;
    use vm_control::RequestBatch;
    use vm_control::ResponseBatch;
    use vm_control::ServiceConfig;
    use vm_control::ServiceHandle;
    use vm_control::VmMemoryDestination;
    use vm_control::VmMemoryRequest;
    use vm_control::VmMemorySource;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const PAGE: u64 = 4096;
    const LEN: u64 = 256 * PAGE;
    const ROUNDS: u64 = 20;

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd")
            .expect("it is there")
            .count()
    }

    /// The areas of address space that show memory of a device.
    fn mappings() -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
        maps.matches("/memfd:leak").count()
    }

    fn map(descriptor: impl Into<SafeDescriptor>, page: u64) -> VmMemoryRequest {
        VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Descriptor {
                descriptor: descriptor.into(),
                offset: 0,
            },
            dest: VmMemoryDestination {
                shmid: 0,
                offset: page * PAGE,
            },
            len: PAGE,
            prot: Protection::read(),
        }
    }

    fn memory() -> SharedMemory {
        SharedMemory::new("leak", PAGE).expect("memory")
    }

    fn send(tube: &Tube, requests: impl IntoIterator<Item = VmMemoryRequest>) {
        let batch = RequestBatch {
            generation: Generation::default(),
            requests: requests.into_iter().collect(),
        };
        tube.send(&batch).expect("sent");
    }

    fn add(handle: &ServiceHandle, round: u64) -> (DeviceId, Tube) {
        let config = DeviceConfig::new("fs0");
        let (id, tube) = handle.add_device(config).expect("a device");
        let region = RegionConfig {
            shmid: 0,
            guest_address: (1 << 32) + round * LEN,
            len: LEN,
            arena: None,
            populate: 0,
        };
        handle.add_region(id, region).expect("a region");
        (id, tube)
    }

    /// Waits until every copy of the other end is closed.
    fn wait_closed(end: &UnixStream) {
        let context = WaitContext::build_with(&[(end, 0u32)]).expect("a wait context");
        let ready = context.wait_timeout(TIMEOUT).expect("it waits");
        let hung_up = ready.first().is_some_and(|event| event.is_hungup);
        assert!(hung_up, "still open after {TIMEOUT:?}");
    }

    #[test]
    fn devices_of_every_kind_leave_nothing() {
        // What the process makes once for itself is there before the first count.
        run();
        let before = (descriptors(), mappings());
        run();
        assert_eq!((descriptors(), mappings()), before);
        assert_eq!(before.1, 0);
    }

    fn run() {
        let vm = Box::new(ArenaVm::new());
        let service = MappingService::start(vm, ServiceConfig::default()).expect("it starts");
        let handle = service.handle();
        let mut watched = Vec::new();
        for round in 0..ROUNDS {
            let (id, tube) = add(&handle, round);
            let (mine, theirs) = UnixStream::pair().expect("a pair");
            watched.push(mine);
            let directory = File::open("/").expect("a directory");
            let refused = [
                map(directory, 200),
                map(memory(), 1),
                map(memory(), 300),
                map(theirs.try_clone().expect("a duplicate"), 3),
            ];
            send(&tube, (0..8).map(|page| map(memory(), page)).chain(refused));
            match round % 5 {
                // It reads its answers and goes.
                0 => {
                    let answers: ResponseBatch = tube.recv().expect("answered");
                    assert_eq!(answers.responses.len(), 12);
                }
                // It dies with requests under way.
                1 => send(&tube, [map(theirs.try_clone().expect("one"), 4)]),
                // It talks nonsense, with a descriptor.
                2 => {
                    let fd: OwnedFd = theirs.as_fd().try_clone_to_owned().expect("one");
                    tube.send(&(1u8, SafeDescriptor::from(fd))).expect("sent");
                }
                // It is reset while it sends.
                3 => {
                    let _may_be_gone = handle.reset_device(id);
                    send(&tube, [map(theirs.try_clone().expect("one"), 4)]);
                }
                // It is removed while it sends.
                _ => {
                    send(&tube, [map(theirs.try_clone().expect("one"), 4)]);
                    handle.remove_device(id).expect("known");
                }
            }
            drop((tube, theirs));
        }
        for end in &watched {
            wait_closed(end);
        }
        drop(service);
        assert!(handle.mappings().is_empty());
        assert!(handle.stats().is_empty());
    }
}
