//! A process whose memory map is nearly full: the kernel allows no more than `vm.max_map_count` areas.
//!
//! A program of its own with one test, since it fills the map of the whole process.

#[cfg(test)]
mod tests {
    use std::fs;

    use base::MemoryMappingArena;
    use base::Protection;
    use base::SharedMemory;
    use vm_control::ArenaVm;
    use vm_control::DeviceConfig;
    use vm_control::Generation;
    use vm_control::Limits;
    use vm_control::MappingService;
    use vm_control::RegionConfig;
    use vm_control::ServiceConfig;
    use vm_control::VmMemoryDestination;
    use vm_control::VmMemorySource;
    use vm_control::api::ClientError;
    use vm_control::api::VmMemoryClient;

    const PAGE: usize = 4096;
    /// Areas that are left for the service, its threads and the allocator.
    const LEFT: usize = 200;

    fn areas() -> usize {
        let maps = fs::read_to_string("/proc/self/maps").expect("a memory map");
        maps.lines().count()
    }

    fn most_areas() -> usize {
        let most = fs::read_to_string("/proc/sys/vm/max_map_count").expect("a limit");
        most.trim().parse().expect("a number")
    }

    /// Maps every other page of an arena, two areas a page, until `LEFT` are left.
    fn fill(file: &SharedMemory) -> MemoryMappingArena {
        let missing = most_areas() - areas() - LEFT;
        let arena = MemoryMappingArena::new((missing + 2) * PAGE).expect("an arena");
        let range: &MemoryMappingArena = &arena;
        for place in (0..missing).step_by(2) {
            range
                .add_fd_mapping(place * PAGE, PAGE, file, 0, Protection::read())
                .expect("an area");
        }
        arena
    }

    #[test]
    fn full_memory_map_is_answered_enomem_and_costs_nothing() {
        let vm = Box::new(ArenaVm::new());
        let service = MappingService::start(vm, ServiceConfig::default()).expect("a service");
        let handle = service.handle();
        let (id, tube) = handle
            .add_device(DeviceConfig {
                limits: Limits {
                    max_mappings: u32::MAX,
                    max_bytes: u64::MAX,
                },
                ..DeviceConfig::new("full")
            })
            .expect("a device");
        let pages = 4 * LEFT;
        let region = RegionConfig {
            shmid: 0,
            guest_address: 1 << 32,
            len: (pages * PAGE) as u64,
            arena: None,
            populate: 0,
        };
        handle.add_region(id, region).expect("a region");
        let mut client = VmMemoryClient::new(tube, Generation::default());
        let file = SharedMemory::new("full", PAGE as u64).expect("a memfd");
        let mut map = |page: usize| {
            let source = VmMemorySource::Descriptor {
                descriptor: SharedMemory::new("piece", PAGE as u64)
                    .expect("a memfd")
                    .into(),
                offset: 0,
            };
            let dest = VmMemoryDestination {
                shmid: 0,
                offset: (page * PAGE) as u64,
            };
            client.register_memory(source, dest, PAGE as u64, Protection::read())
        };

        let filling = fill(&file);
        let mut mapped = 0;
        let refused = loop {
            match map(2 * mapped) {
                Ok(()) => mapped += 1,
                Err(error) => break error,
            }
            assert!(2 * mapped < pages, "the map is never full");
        };
        let errno = match refused {
            ClientError::Refused(error) => error.errno(),
            other => panic!("{other}"),
        };
        assert_eq!(errno, libc::ENOMEM);
        // What was there still is.
        assert_eq!(handle.mappings().len(), mapped);
        let maps = fs::read_to_string("/proc/self/maps").expect("a memory map");
        assert_eq!(maps.matches("/memfd:piece").count(), mapped);

        drop(filling);
        map(2 * mapped).expect("there is room again");
        assert_eq!(handle.mappings().len(), mapped + 1);
        let removed = handle.remove_device(id).expect("it goes");
        assert_eq!(removed.mappings, mapped as u64 + 1);
        let maps = fs::read_to_string("/proc/self/maps").expect("a memory map");
        assert_eq!(maps.matches("/memfd:piece").count(), 0);
    }
}
