//! Memory of the VMM's own process, mapped by its address.

use base::MappedRegion;
use base::MemoryMapping;
use base::MemoryMappingBuilder;
use base::Protection;

use super::fixture::*;
use crate::DeviceConfig;
use crate::MappingKind;
use crate::VmMemorySource;

fn in_process() -> DeviceConfig {
    DeviceConfig {
        allow_external: true,
        ..named("gpu")
    }
}

/// Shared memory of this process, and its address.
fn memory(pages: u64, prot: Protection) -> (MemoryMapping, u64) {
    let size = usize::try_from(pages * PAGE).expect("small");
    let builder = MemoryMappingBuilder::new(size).protection(prot);
    let memory = builder.build().expect("it maps");
    let address = memory.as_ptr().addr() as u64;
    (memory, address)
}

#[test]
fn pointer_of_a_device_that_may_not_pass_any_is_eperm() {
    let (fixture, mut device) = one(named("gpu"));
    let (_memory, ptr) = memory(1, BOTH);
    // Whatever else is wrong with it.
    for (ptr, offset, len) in [(ptr, 0, PAGE), (1, 1, 0), (0, REGION_LEN, PAGE)] {
        let source = VmMemorySource::ExternalMapping { ptr };
        assert_eq!(
            device.register(source, at(offset), len, READ),
            Err(libc::EPERM)
        );
    }
    assert_eq!(fixture.mappings(), []);
}

#[test]
fn shared_memory_is_seen_through_the_arena_until_it_is_unmapped() {
    let (fixture, mut device) = one(in_process());
    let (memory, ptr) = memory(4, BOTH);
    let source = VmMemorySource::ExternalMapping { ptr: ptr + PAGE };
    assert_eq!(
        device.register(source, at(8 * PAGE), 2 * PAGE, BOTH),
        Ok(())
    );
    assert_eq!(fixture.mappings()[0].kind, MappingKind::External);
    let page = usize::try_from(PAGE).expect("small");
    assert_eq!(memory.write_at(page, &[11]), Ok(()));
    assert_eq!(device.byte(8 * PAGE), Ok(11));
    assert_eq!(device.arena.write_at(9 * PAGE, &[12]), Ok(()));
    let mut byte = [0];
    assert_eq!(memory.read_at(2 * page, &mut byte), Ok(()));
    assert_eq!(byte, [12]);
    // The backend lets go of it: the guest's view stays what it was until it is unmapped.
    drop(memory);
    assert_eq!(device.byte(8 * PAGE), Ok(11));
    assert_eq!(device.unmap(8 * PAGE, 2 * PAGE), Ok(()));
    assert_eq!(device.byte(8 * PAGE), Err(libc::EFAULT));
    assert_eq!(areas(&device.arena), 1);
}

#[test]
fn read_only_view_of_writable_memory_cannot_be_written() {
    let (_fixture, mut device) = one(in_process());
    let (_memory, ptr) = memory(1, BOTH);
    let source = VmMemorySource::ExternalMapping { ptr };
    assert_eq!(device.register(source, at(0), PAGE, READ), Ok(()));
    let written = device.arena.write_at(0, &[1]).map_err(base::Error::errno);
    assert_eq!(written, Err(libc::EFAULT));
}

#[test]
fn range_that_is_not_all_memory_of_this_process_is_refused() {
    let (fixture, mut device) = one(in_process());
    let (_memory, read_only) = memory(1, READ);
    let bytes = vec![1u8; 4 * 4096];
    let private = (bytes.as_ptr().addr() as u64).next_multiple_of(PAGE);
    let mut map = |ptr, len, prot| {
        let source = VmMemorySource::ExternalMapping { ptr };
        device.register(source, at(0), len, prot)
    };
    assert_eq!(map(0, PAGE, READ), Err(libc::EFAULT));
    assert_eq!(map(1 << 62, PAGE, READ), Err(libc::EFAULT));
    assert_eq!(map(u64::MAX - PAGE + 1, PAGE, READ), Err(libc::EFAULT));
    assert_eq!(map(read_only, PAGE, BOTH), Err(libc::EFAULT));
    assert_eq!(map(read_only + 1, PAGE, READ), Err(libc::EINVAL));
    // It is memory, but the kernel gives private memory no second address.
    assert_eq!(map(private, PAGE, READ), Err(libc::ENOTSUP));
    assert_eq!(map(read_only, PAGE, READ), Ok(()));
    assert_eq!(fixture.mappings().len(), 1);
}
