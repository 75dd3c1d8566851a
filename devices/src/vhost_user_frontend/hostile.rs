//! Backends that answer with anything: the main channel may fail, and does nothing else.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prop_oneof;
use proptest::proptest;
use proptest::strategy::Just;
use proptest::strategy::Strategy;

use super::*;
use crate::shmem_config::ShmemLimits;

/// A reply that may be of any length, for any request, with flags that are mostly right.
fn reply() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![
        Just(1_u32),
        Just(15),
        Just(16),
        Just(17),
        Just(44),
        Just(1004),
        any::<u32>()
    ];
    let flags = prop_oneof![4 => Just(5_u32), 1 => any::<u32>()];
    let payload = prop_oneof![vec(any::<u8>(), 8), vec(any::<u8>(), 0..64)];
    (code, flags, payload, any::<Option<u32>>()).prop_map(|(code, flags, payload, size)| {
        let len = u32::try_from(payload.len()).unwrap();
        let mut bytes = Vec::new();
        for word in [code, flags, size.unwrap_or(len)] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&payload);
        bytes
    })
}

/// Sets up the main channel with a backend that has said everything already.
fn connect(answers: &[Vec<u8>], legacy_shmem_bit: Option<u8>) -> Result<BackendInfo, Error> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    for answer in answers {
        theirs.write_all(answer).unwrap();
    }
    theirs.shutdown(Shutdown::Write).unwrap();
    let mut frontend = VhostUserFrontend::new(ours).unwrap();
    let info = frontend.connect(&ConnectOptions {
        legacy_shmem_bit,
        ..ConnectOptions::default()
    })?;
    // Whatever it was, these come to an end.
    let _ = frontend.read_config(0, 8);
    let _ = frontend.reset();
    Ok(info)
}

/// A correct answer to a query for a number.
fn number(code: u32, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [code, 5, 8] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(&value.to_ne_bytes());
    bytes
}

proptest! {
    #[test]
    fn connect_to_a_backend_that_answers_anything_ends(
        answers in vec(reply(), 0..6),
        legacy in any::<bool>(),
    ) {
        let _ = connect(&answers, legacy.then_some(31));
    }

    #[test]
    fn connect_reports_no_region_over_the_limits(
        features in any::<u64>(),
        list in vec(any::<u64>(), 0..12),
    ) {
        let mut legacy = Vec::new();
        let words: Vec<u64> = list;
        for word in [1004_u32, 5, u32::try_from(words.len() * 8).unwrap()] {
            legacy.extend_from_slice(&word.to_ne_bytes());
        }
        for word in &words {
            legacy.extend_from_slice(&word.to_ne_bytes());
        }
        let answers = [
            number(1, 1 << 30),
            number(15, (features & !(MQ | SHMEM)) | 1 << 31),
            legacy,
        ];
        if let Ok(info) = connect(&answers, Some(31)) {
            let limits = ShmemLimits::default();
            for region in info.regions {
                assert!(region.len <= limits.max_region_bytes);
                assert!(region.len > 0);
            }
        }
    }
}
