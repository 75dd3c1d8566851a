//! A process whose table of descriptors is full refuses what it can't hold, and goes on.
//!
//! One test alone in its process, since it lowers the limit of the whole process.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use base::AsRawDescriptor;
    use base::Error as Errno;
    use base::scm;
    use rustix::process::Resource;
    use rustix::process::Rlimit;
    use rustix::process::getrlimit;
    use rustix::process::setrlimit;
    use vmm_vhost::Ack;
    use vmm_vhost::ChannelConfig;
    use vmm_vhost::FrontendClient;
    use vmm_vhost::FrontendHandler;
    use vmm_vhost::FrontendServer;
    use vmm_vhost::HandlerResult;
    use vmm_vhost::Negotiated;
    use vmm_vhost::Refusal;
    use vmm_vhost::ShmemMap;
    use vmm_vhost::message::MmapPayload;
    use vmm_vhost::message::ProtocolFeatures;

    struct Maps;

    impl FrontendHandler for Maps {
        fn shmem_map(&mut self, _map: ShmemMap) -> HandlerResult<u64> {
            Ok(0)
        }
    }

    /// Lowers the limit so that no descriptor more than those up to the highest fits.
    fn fill_table(highest: &File) -> Rlimit {
        let before = getrlimit(Resource::Nofile);
        let number = highest.as_raw_descriptor() + 1;
        let full = Rlimit {
            current: Some(u64::try_from(number).expect("descriptors are not negative")),
            ..before
        };
        setrlimit(Resource::Nofile, full).expect("a limit can be lowered");
        before
    }

    #[test]
    fn map_that_finds_the_table_full_is_refused_and_the_next_one_is_served() {
        let (ours, theirs) = scm::stream_pair().expect("socket pair");
        let config = ChannelConfig {
            negotiated: Negotiated {
                protocol_features: ProtocolFeatures::SHMEM | ProtocolFeatures::REPLY_ACK,
                ..Negotiated::default()
            },
            ..ChannelConfig::default()
        };
        let mut server = FrontendServer::new(ours, config, Maps).expect("a valid configuration");
        let mut client = FrontendClient::new(theirs, true);
        let map = MmapPayload {
            len: 0x1000,
            ..MmapPayload::default()
        };
        let file = File::open("/proc/self/exe").expect("this program");
        let mut send = || {
            client
                .shmem_map_nowait(&map, file.as_fd(), Ack::Wanted)
                .expect("the channel is there");
            server.handle_readable().expect("the client is there");
            let refusal = server.channel().last_refused().map(|last| last.refusal);
            (client.read_replies(1), refusal)
        };

        let before = fill_table(&file);
        let (answer, refusal) = send();
        setrlimit(Resource::Nofile, before).expect("a limit can be raised again");
        let errno = answer.expect_err("no room for the descriptor").errno();
        assert_eq!(errno, Some(Errno::new(libc::EINVAL)));
        assert_eq!(refusal, Some(Refusal::DescriptorsTruncated));

        let (answer, _) = send();
        answer.expect("there is room again");
    }
}
