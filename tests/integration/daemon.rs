//! A backend on the crate `vhost-user-backend`, with its event loop and queues that nobody uses.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc;

use vhost::vhost_user::Backend;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserShMemConfig;
use vhost_user_backend::VhostUserBackendMut;
use vhost_user_backend::VhostUserDaemon;
use vhost_user_backend::VringRwLock;
use vm_memory::GuestMemoryAtomic;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::EventConsumer;
use vmm_sys_util::event::EventFlag;
use vmm_sys_util::event::EventNotifier;
use vmm_sys_util::event::new_event_consumer_and_notifier;

use crate::rig::REGION;

pub(crate) struct Device {
    proxies: mpsc::Sender<Backend>,
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        1 << 32 | 1 << 30
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::SHMEM
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        Ok(())
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        backend.set_reply_ack_flag(true);
        backend.set_shmem_flag(true);
        // Nobody listens if the test is over.
        let _ = self.proxies.send(backend);
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        _vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        Ok(())
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[REGION]))
    }
}

/// The daemon, listening, and where the request proxy comes.
pub(crate) fn start(
    path: &std::path::Path,
) -> (
    VhostUserDaemon<Arc<Mutex<Device>>>,
    mpsc::Receiver<Backend>,
    Listener,
) {
    let (sender, proxies) = mpsc::channel();
    let device = Arc::new(Mutex::new(Device { proxies: sender }));
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let daemon = VhostUserDaemon::new("peer".to_owned(), device, memory).expect("a daemon");
    let listener = Listener::new(path, true).expect("a socket to listen on");
    (daemon, proxies, listener)
}
