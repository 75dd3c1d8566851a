//! A VMM that has as many descriptors as it may have: those of a device's requests do not get here.
//!
//! A program of its own with one test, since it fills the table of the whole process.

#[cfg(test)]
mod tests {
    use std::fs::File;

    use base::Protection;
    use base::SafeDescriptor;
    use base::SharedMemory;
    use vm_control::ArenaVm;
    use vm_control::DeviceConfig;
    use vm_control::Generation;
    use vm_control::MappingService;
    use vm_control::RegionConfig;
    use vm_control::RequestBatch;
    use vm_control::ResponseBatch;
    use vm_control::ServiceConfig;
    use vm_control::VmMemoryDestination;
    use vm_control::VmMemoryRequest;
    use vm_control::VmMemoryResponse;
    use vm_control::VmMemorySource;

    const PAGE: u64 = 4096;

    fn map(page: u64) -> VmMemoryRequest {
        let descriptor: SafeDescriptor = SharedMemory::new("page", PAGE).expect("a memfd").into();
        VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Descriptor {
                descriptor,
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

    #[test]
    fn batch_whose_descriptors_did_not_get_here_is_answered_and_the_device_stays() {
        let vm = Box::new(ArenaVm::new());
        let service = MappingService::start(vm, ServiceConfig::default()).expect("a service");
        let handle = service.handle();
        let (id, tube) = handle
            .add_device(DeviceConfig::new("full"))
            .expect("a device");
        let region = RegionConfig {
            shmid: 0,
            guest_address: 1 << 32,
            len: 16 * PAGE,
            arena: None,
            populate: 0,
        };
        handle.add_region(id, region).expect("a region");
        let two = |first| RequestBatch {
            generation: Generation::default(),
            requests: [map(first), map(first + 1)].into_iter().collect(),
        };
        let batches = [two(0), two(2)];
        let mut table = Vec::new();
        let full = loop {
            match File::open("/dev/null") {
                Ok(file) => table.push(file),
                Err(error) => break error,
            }
        };
        assert_eq!(full.raw_os_error(), Some(libc::EMFILE));
        let ask = |batch: &RequestBatch| {
            tube.send(batch).expect("sent");
            let answers: ResponseBatch = tube.recv().expect("answered");
            answers.responses.to_vec()
        };
        let missing = VmMemoryResponse::Err(base::Error::new(libc::EMFILE));
        // Room for one of two: which one got here is nothing to rely on.
        table.pop();
        assert_eq!(ask(&batches[0]), [missing; 2]);
        assert_eq!(handle.mappings().len(), 0);
        let stats = handle.stats();
        let last = stats[0].counters.last_refused.as_ref().expect("one");
        assert_eq!((last.offset, last.len), (PAGE, PAGE));
        drop(table);
        assert_eq!(ask(&batches[1]), [VmMemoryResponse::Ok; 2]);
        assert_eq!(handle.mappings().len(), 2);
    }
}
