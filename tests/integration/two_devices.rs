//! Two devices of one mapping service, each with a jailed process of its own.

use fixture::Script;
use fixture::ScriptedBackend;
use vm_control::Arena;

use crate::bare::Bare;
use crate::rig::ENXIO;
use crate::rig::PAGE;
use crate::rig::REGION;

fn first_byte(arena: &Arena) -> Result<u8, base::Error> {
    let mut byte = [0];
    arena.read_at(0, &mut byte).map(|()| byte[0])
}

#[test]
fn devices_have_their_own_regions_and_fates() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut bare = Bare::start();
    let listen = |name, shmid| {
        ScriptedBackend::listen(dir.path(), name, Script::regions(&[(shmid, REGION)]))
    };
    let backends = [listen("first", 1), listen("second", 2)];
    let first = bare.device(backends[0].path(), "first");
    let mut second = bare.device(backends[1].path(), "second");
    let channels = [backends[0].request_socket(), backends[1].request_socket()];
    let (ones, twos) = (fixture::memfd(&[1; 4096]), fixture::memfd(&[2; 4096]));

    assert_eq!(channels[0].map(1, 0, 0, PAGE, 0, &ones), 0);
    assert_eq!(channels[1].map(2, 0, 0, PAGE, 0, &twos), 0);
    assert_eq!(channels[0].map(2, PAGE, 0, PAGE, 0, &ones), ENXIO);
    assert_eq!(channels[1].map(1, PAGE, 0, PAGE, 0, &twos), ENXIO);
    assert_eq!(channels[0].unmap(2, 0, PAGE), ENXIO);
    assert_eq!(first_byte(&first.arenas[0]), Ok(1));
    assert_eq!(first_byte(&second.arenas[0]), Ok(2));

    // The first device's backend stops in the middle of a message; the second is served all the same.
    channels[0].send(&[9, 0, 0, 0, 9], &[]);
    for index in 1..50 {
        assert_eq!(channels[1].map(2, index * PAGE, 0, PAGE, 0, &twos), 0);
    }
    second
        .process
        .reset(&bare.handle, second.id)
        .expect("the second is reset");
    let left: Vec<_> = bare
        .handle
        .mappings()
        .iter()
        .map(|mapping| (mapping.device.clone(), mapping.offset))
        .collect();
    assert_eq!(left, [("first".to_owned(), 0)]);

    // The first dies; the second is served.
    drop(first);
    assert_eq!(channels[1].map(2, 0, 0, PAGE, 0, &twos), 0);
    let report = second.process.shutdown().expect("an exit report");
    assert_eq!(report.end, jail::End::Exited { code: 0 }, "{report}");
}
