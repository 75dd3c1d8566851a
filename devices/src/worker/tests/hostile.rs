//! Backends that send anything: the worker goes on, and no descriptor stays behind.

use std::io::IoSlice;
use std::io::Write;

use base::scm;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prop_oneof;
use proptest::proptest;
use proptest::strategy::Just;
use proptest::strategy::Strategy;
use proptest::test_runner::Config;

use super::*;

/// A message that may be wrong in each of its parts.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![0_u32..14, 1000_u32..1010, any::<u32>()];
    let flags = prop_oneof![6 => Just(1_u32), 6 => Just(9_u32), 1 => any::<u32>()];
    let payload = prop_oneof![
        vec(any::<u8>(), 40),
        (any::<u8>(), 0_u64..40, 0_u64..4, 0_u64..3).prop_map(|(shmid, offset, pages, flags)| {
            mmap(shmid % 4, offset * 2048, pages * PAGE, flags)
        }),
        vec(any::<u8>(), 0..80),
    ];
    (code, flags, payload).prop_map(|(code, flags, payload)| {
        let size = u32::try_from(payload.len()).unwrap();
        let mut bytes = Vec::new();
        for word in [code, flags, size] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&payload);
        bytes
    })
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn anything_in_any_pieces_leaves_the_worker_up(
        messages in vec(anything(), 1..12),
        cuts in vec(1_usize..60, 1..40),
        with_descriptor in any::<bool>(),
    ) {
        let bench = Bench::new();
        let backend = bench.channel();
        let stream = messages.concat();
        let mut rest = stream.as_slice();
        for cut in cuts.iter().cycle() {
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            rest = later;
            if with_descriptor {
                let page = file(PAGE);
                let slices = [IoSlice::new(piece)];
                let _ = scm::send(
                    backend.as_fd(),
                    &slices,
                    &[page.as_fd()],
                    scm::Wait::Never,
                );
            } else {
                // The channel may be closed by now.
                let _ = (&backend).write_all(piece);
            }
            if rest.is_empty() {
                break;
            }
        }
        bench.worker.stats().unwrap();
        assert_eq!(bench.kill(), WorkerExit::Killed);
    }
}
