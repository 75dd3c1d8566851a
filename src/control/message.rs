//! What travels between `portcullis ctl` and a VMM: one JSON object a line, each way.
//!
//! A client writes a [`Request`] and reads one [`Reply`]; it may go on with the next request then. The results
//! are also what `portcullis ctl --json` prints, so their keys are an interface.
//!
//! ```text
//! > {"command":"peek","shmid":0,"offset":4096,"len":4}
//! < {"ok":{"shmid":0,"offset":4096,"hex":"7f454c46","seen_by":"guest"}}
//! > {"command":"reset"}
//! < {"error":"the device has ended","advice":"see portcullis ctl status"}
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

/// The most bytes that one `peek` or `poke` moves.
pub const MAX_TRANSFER: usize = 64 << 10;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Answered with a [`StatusReport`].
    Status,
    /// Answered with a list of [`MappingReport`].
    Maps,
    /// Answered with a [`StatsReport`].
    Stats,
    /// Answered with a [`PeekReport`].
    Peek {
        /// The region.
        shmid: u8,
        /// Where in the region, in bytes.
        offset: u64,
        /// How many bytes, up to [`MAX_TRANSFER`].
        len: u64,
    },
    /// Answered with a [`PokeReport`].
    Poke {
        /// The region.
        shmid: u8,
        /// Where in the region, in bytes.
        offset: u64,
        /// The bytes, two hexadecimal digits each.
        hex: String,
    },
    /// Answered with a [`ResetReport`] once the device is reset.
    Reset,
    /// Answered with a [`StopReport`]; the connection closes when the VMM has cleaned up.
    Stop,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply<T> {
    /// The request was carried out.
    Done {
        /// Its result.
        ok: T,
    },
    /// The request was not carried out.
    Refused(Refusal),
}

/// A request that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What and why, in one line.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            advice: None,
        }
    }

    /// Adds what the user can do about it.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// One live mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingReport {
    /// The device that asked for it.
    pub device: String,
    /// The region.
    pub shmid: u8,
    /// Where in the region, in bytes.
    pub offset: u64,
    /// The length that the backend asked for.
    pub len: u64,
    /// The length in whole pages.
    pub footprint: u64,
    /// `r` or `rw`.
    pub prot: String,
    /// What is mapped: `file`, `memfd`, `dmabuf` and so on.
    pub kind: String,
}

/// Through whose eyes memory was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenBy {
    /// The guest's processor, by guest physical address.
    Guest,
    /// The VMM, by the region's host mapping.
    Host,
}

impl SeenBy {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Host => "host",
        }
    }
}

/// What a `peek` saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeekReport {
    /// The region.
    pub shmid: u8,
    /// Where in the region, in bytes.
    pub offset: u64,
    /// The bytes, two hexadecimal digits each.
    pub hex: String,
    /// Who read them.
    pub seen_by: SeenBy,
}

/// What a `poke` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PokeReport {
    /// The region.
    pub shmid: u8,
    /// Where in the region, in bytes.
    pub offset: u64,
    /// How many bytes were written.
    pub len: u64,
    /// Who wrote them.
    pub seen_by: SeenBy,
}

/// The processes, as far as they are alive and known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// The VMM.
    pub vmm: u32,
    /// The device process.
    pub device: Option<u32>,
    /// The process that listened on the backend's socket.
    pub backend: Option<u32>,
}

/// What a device is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// The backend's socket is not there yet.
    Waiting,
    /// The device process starts and negotiates with the backend.
    #[default]
    Starting,
    /// The request channel is served.
    Serving,
    /// A reset is on its way.
    Resetting,
    /// The device process is gone.
    Ended,
}

impl DeviceState {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Resetting => "resetting",
            Self::Ended => "ended",
        }
    }
}

/// A region of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionReport {
    /// The region's id.
    pub shmid: u8,
    /// Where it is in the guest's address space.
    pub guest_address: u64,
    /// How long it is, in bytes.
    pub len: u64,
}

/// A request of a backend that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedReport {
    /// What was asked: `map` or `unmap`.
    pub request: String,
    /// The region that it named.
    pub shmid: u8,
    /// The offset that it named.
    pub offset: u64,
    /// The length that it named.
    pub len: u64,
    /// The answer, by its name.
    pub errno: String,
}

/// How a VMM and its device are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The processes.
    pub pids: Pids,
    /// The device's name.
    pub device: String,
    /// What the device is doing.
    pub state: DeviceState,
    /// How the last device process or backend ended.
    pub ended: Option<String>,
    /// How often the device came back.
    pub restarts: u32,
    /// The backend's socket.
    pub backend: String,
    /// `kvm` or `none`.
    pub guest: String,
    /// `full`, `seccomp` or `none`.
    pub sandbox: String,
    /// The device's regions.
    pub regions: Vec<RegionReport>,
    /// How many mappings are live.
    pub mappings: u64,
    /// The last request that was refused.
    pub last_refused: Option<RefusedReport>,
}

/// What a device has done in its present life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReport {
    /// The device's name.
    pub device: String,
    /// Live mappings.
    pub mappings: u64,
    /// Bytes of the live mappings, in whole pages.
    pub mapped_bytes: u64,
    /// Well-formed requests that the device process has read.
    pub requests: u64,
    /// Mappings that were made.
    pub maps: u64,
    /// Mappings that were removed on request.
    pub unmaps: u64,
    /// Requests that were refused, by the device process or by the mapping service.
    pub refused: u64,
    /// Those that the mapping service refused, by the answer's name.
    pub refused_by_service: BTreeMap<String, u64>,
    /// Messages from the device process to the service; each carries one request or several.
    pub batches: u64,
    /// Requests that wait for an answer now.
    pub in_flight: u32,
    /// With `--strict`: the rules that the backend broke in all of the device's lives, each with how often.
    #[serde(default)]
    pub deviations: BTreeMap<String, u64>,
}

/// What a reset did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// How many mappings it removed.
    pub dropped: u64,
    /// The device's generation from now on.
    pub generation: u32,
}

/// The VMM is about to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReport {
    /// The process that ends.
    pub pid: u32,
}

/// Encodes bytes as two hexadecimal digits each.
pub fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Decodes two hexadecimal digits a byte; `None` where the text is not that.
pub fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_request(line: &str, want: &Request) {
        let got: Request = serde_json::from_str(line).expect("a request");
        assert_eq!(got, *want);
        assert_eq!(serde_json::to_string(want).expect("encodes"), line);
    }

    #[test]
    fn each_request_has_its_line() {
        check_request(r#"{"command":"status"}"#, &Request::Status);
        check_request(r#"{"command":"maps"}"#, &Request::Maps);
        check_request(r#"{"command":"stats"}"#, &Request::Stats);
        check_request(
            r#"{"command":"peek","shmid":1,"offset":4096,"len":16}"#,
            &Request::Peek {
                shmid: 1,
                offset: 4096,
                len: 16,
            },
        );
        check_request(
            r#"{"command":"poke","shmid":1,"offset":4096,"hex":"00ff"}"#,
            &Request::Poke {
                shmid: 1,
                offset: 4096,
                hex: "00ff".into(),
            },
        );
        check_request(r#"{"command":"reset"}"#, &Request::Reset);
        check_request(r#"{"command":"stop"}"#, &Request::Stop);
    }

    #[test]
    fn request_with_a_key_too_many_is_refused() {
        let line = r#"{"command":"peek","shmid":1,"offset":0,"len":1,"more":2}"#;
        let error = serde_json::from_str::<Request>(line).expect_err("refused");
        assert!(
            error.to_string().contains("unknown field `more`"),
            "{error}"
        );
    }

    #[test]
    fn peek_report_has_the_documented_keys_in_order() {
        let report = PeekReport {
            shmid: 0,
            offset: 4096,
            hex: encode_hex(b"\x7fELF"),
            seen_by: SeenBy::Guest,
        };
        assert_eq!(
            serde_json::to_string(&Reply::Done { ok: report }).expect("encodes"),
            r#"{"ok":{"shmid":0,"offset":4096,"hex":"7f454c46","seen_by":"guest"}}"#
        );
    }

    #[test]
    fn mapping_report_has_the_documented_keys_in_order() {
        let report = MappingReport {
            device: "fs".into(),
            shmid: 0,
            offset: 4096,
            len: 100,
            footprint: 4096,
            prot: "r".into(),
            kind: "file".into(),
        };
        assert_eq!(
            serde_json::to_string(&report).expect("encodes"),
            r#"{"device":"fs","shmid":0,"offset":4096,"len":100,"footprint":4096,"prot":"r","kind":"file"}"#
        );
    }

    #[test]
    fn refusal_decodes_as_refused_whatever_the_result_type() {
        let line = r#"{"error":"no such region"}"#;
        let reply: Reply<Vec<MappingReport>> = serde_json::from_str(line).expect("a reply");
        assert_eq!(reply, Reply::Refused(Refusal::new("no such region")));
    }

    #[test]
    fn hex_round_trips_and_refuses_what_is_none() {
        assert_eq!(encode_hex(&[0, 0x1f, 0xff]), "001fff");
        assert_eq!(decode_hex("001fFF"), Some(vec![0, 0x1f, 0xff]));
        assert_eq!(decode_hex(""), Some(vec![]));
        assert_eq!(decode_hex("0"), None);
        assert_eq!(decode_hex("0g"), None);
        assert_eq!(decode_hex("\u{663}\u{663}"), None);
    }
}
