//! The main channel's replies, as a hostile backend could write them.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use base::scm;
use devices::control::ConnectOptions;
use devices::vhost_user_frontend::VhostUserFrontend;

/// The bytes are all that the backend ever says, before it is asked anything.
///
/// The frontend connects or says why not, and never reports more regions than there can be, or two of one id. So it is with what
/// it asks afterwards: configuration, a request channel, a reset.
///
/// # Panics
/// If one of these is not so.
pub fn replies(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let data = &data[..data.len().min(16 << 10)];
    theirs.write_all(data).expect("the socket has room");
    // The end follows, so that nothing waits for more. What is asked stays unread.
    theirs.shutdown(Shutdown::Write).expect("an end");
    let Ok(mut frontend) = VhostUserFrontend::new(ours) else {
        return;
    };
    let Ok(info) = frontend.connect(&ConnectOptions::default()) else {
        return;
    };
    let mut ids: Vec<_> = info.regions.iter().map(|region| region.shmid).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), info.regions.len(), "two regions of one id");
    assert!(info.regions.iter().all(|region| region.len > 0));
    if let Ok(config) = frontend.read_config(0, 8) {
        assert_eq!(config.len(), 8);
    }
    let (channel, _ours) = scm::stream_pair().expect("a pair");
    // Whatever the backend thinks of these.
    let _ = frontend.open_request_channel(&channel);
    let _ = frontend.reset();
}
