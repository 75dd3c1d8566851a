//! The backend's proxy of rust-vmm's crate `vhost`, which others wrote, against our server.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use base::Error as Errno;
    use base::SafeDescriptor;
    use vhost::vhost_user::Backend;
    use vhost::vhost_user::VhostUserFrontendReqHandler;
    use vhost::vhost_user::message::VhostUserMMap;
    use vhost::vhost_user::message::VhostUserSharedMsg;
    use vm_memory::ByteValued;
    use vmm_vhost::ChannelConfig;
    use vmm_vhost::ChannelError;
    use vmm_vhost::FrontendHandler;
    use vmm_vhost::FrontendServer;
    use vmm_vhost::HandlerResult;
    use vmm_vhost::Negotiated;
    use vmm_vhost::Peer;
    use vmm_vhost::ShmemMap;
    use vmm_vhost::ShmemUnmap;
    use vmm_vhost::Uuid;
    use vmm_vhost::message::ProtocolFeatures;

    /// What the crate says when a reply is not 0.
    const REFUSED: &str = "Frontend internal error";

    /// Writes down what it is asked; knows no object, and no region but 1.
    #[derive(Default)]
    struct Notes(Vec<String>);

    impl FrontendHandler for Notes {
        fn shared_object_add(&mut self, uuid: Uuid) -> HandlerResult<u64> {
            self.0.push(format!("add {}", uuid.0[0]));
            Ok(0)
        }
        fn shared_object_remove(&mut self, uuid: Uuid) -> HandlerResult<u64> {
            self.0.push(format!("remove {}", uuid.0[0]));
            Ok(0)
        }
        fn shared_object_lookup(&mut self, uuid: Uuid) -> HandlerResult<SafeDescriptor> {
            self.0.push(format!("lookup {}", uuid.0[0]));
            Err(Errno::new(libc::ENOENT))
        }
        fn shmem_map(&mut self, map: ShmemMap) -> HandlerResult<u64> {
            self.0.push(format!(
                "map {} {:#x} {:#x} {:#x}",
                map.shmid, map.shm_offset, map.fd_offset, map.len
            ));
            match map.shmid {
                1 => Ok(0),
                _ => Err(Errno::new(libc::ENXIO)),
            }
        }
        fn shmem_unmap(&mut self, unmap: ShmemUnmap) -> HandlerResult<u64> {
            self.0
                .push(format!("unmap {} {:#x}", unmap.shmid, unmap.shm_offset));
            Ok(0)
        }
    }

    /// Serves until the backend closes, and returns what the handler was asked.
    fn serve(socket: UnixStream, protocol_features: ProtocolFeatures) -> Vec<String> {
        let config = ChannelConfig {
            negotiated: Negotiated {
                protocol_features,
                ..Negotiated::default()
            },
            max_in_flight: 4,
            peer: Peer::Remote,
            has_timeout: false,
            strict: false,
        };
        let socket = OwnedFd::from(socket).into();
        let mut server =
            FrontendServer::new(socket, config, Notes::default()).expect("a valid configuration");
        let context = base::WaitContext::build_with(&[(&server, 0_u64)]).expect("a wait context");
        loop {
            context.wait().expect("a wake-up");
            match server.handle_readable() {
                Ok(_) => {}
                Err(ChannelError::Closed { unfinished: 0 }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        server.handler().0.clone()
    }

    /// Runs a backend against the server and returns what the handler was asked.
    fn with_backend(acks: bool, run: impl FnOnce(&Backend)) -> Vec<String> {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let mut features = ProtocolFeatures::SHMEM | ProtocolFeatures::SHARED_OBJECT;
        features.set(ProtocolFeatures::REPLY_ACK, acks);
        let server = thread::spawn(move || serve(ours, features));
        let backend = Backend::from_stream(theirs);
        backend.set_reply_ack_flag(acks);
        backend.set_shared_object_flag(true);
        backend.set_shmem_flag(true);
        run(&backend);
        drop(backend);
        server.join().expect("the server ends well")
    }

    fn mmap(shmid: u8) -> VhostUserMMap {
        VhostUserMMap {
            shmid,
            fd_offset: 0x1000,
            shm_offset: 0x2000,
            len: 0x800,
            flags: 1,
            ..VhostUserMMap::default()
        }
    }

    #[test]
    fn vhost_crate_maps_and_unmaps_and_learns_of_refusals() {
        let file = File::open("/proc/self/exe").expect("this program");
        let seen = with_backend(true, |backend| {
            assert!(matches!(backend.shmem_map(&mmap(1), &file), Ok(0)));
            let refused = backend.shmem_map(&mmap(2), &file);
            assert_eq!(refused.expect_err("no such region").to_string(), REFUSED);
            assert!(matches!(backend.shmem_unmap(&mmap(1)), Ok(0)));
        });
        assert_eq!(
            seen,
            [
                "map 1 0x2000 0x1000 0x800",
                "map 2 0x2000 0x1000 0x800",
                "unmap 1 0x2000"
            ]
        );
    }

    #[test]
    fn vhost_crate_without_acks_is_served_all_the_same() {
        let file = File::open("/proc/self/exe").expect("this program");
        let seen = with_backend(false, |backend| {
            for _ in 0..10 {
                assert!(matches!(backend.shmem_map(&mmap(1), &file), Ok(0)));
                assert!(matches!(backend.shmem_unmap(&mmap(1)), Ok(0)));
            }
        });
        assert_eq!(
            seen,
            ["map 1 0x2000 0x1000 0x800", "unmap 1 0x2000"].repeat(10)
        );
    }

    #[test]
    fn vhost_crates_lookup_reaches_the_handler_with_its_needless_descriptor() {
        let file = File::open("/proc/self/exe").expect("this program");
        let uuid =
            |byte| *VhostUserSharedMsg::from_slice(&[byte; 16]).expect("a UUID has sixteen bytes");
        let seen = with_backend(true, |backend| {
            assert!(matches!(backend.shared_object_add(&uuid(6)), Ok(0)));
            let refused = backend.shared_object_lookup(&uuid(8), &file);
            assert_eq!(refused.expect_err("no such object").to_string(), REFUSED);
            assert!(matches!(backend.shared_object_remove(&uuid(7)), Ok(0)));
        });
        assert_eq!(seen, ["add 6", "lookup 8", "remove 7"]);
    }
}
