//! What driver and device say to each other, in bytes; the layout stands in [`super`].

use base::Error as Errno;

/// How long a request is.
pub const REQUEST_BYTES: usize = 40;

/// How long a response is.
pub const RESPONSE_BYTES: usize = 40;

/// How long the configuration space is.
pub const CONFIG_BYTES: usize = 24;

/// The offset of a blob that is not mapped.
pub const NOT_MAPPED: u64 = u64::MAX;

/// [`Request::Map`]'s flag: the driver may write.
const WRITABLE: u32 = 1;

/// A blob's name, from 1 on.
pub type BlobId = u32;

/// What a driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Makes a blob of `len` bytes, all zero.
    Allocate {
        /// How many bytes.
        len: u64,
    },
    /// Gives a blob up that is not mapped.
    Free {
        /// Which.
        blob: BlobId,
    },
    /// Maps a part of a blob into region 0.
    Map {
        /// Which.
        blob: BlobId,
        /// Where in the region.
        shm_offset: u64,
        /// Where in the blob the part begins.
        blob_offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether the driver may write.
        writable: bool,
    },
    /// Unmaps a blob.
    Unmap {
        /// Which.
        blob: BlobId,
    },
    /// Makes a mapped blob use more or less of the region, at the same place. The blob grows where it must.
    Resize {
        /// Which.
        blob: BlobId,
        /// How many bytes of the region from now on.
        len: u64,
    },
    /// Fills a part of a blob with a repeated word.
    Fill {
        /// Which.
        blob: BlobId,
        /// Where in the blob the part begins.
        blob_offset: u64,
        /// How many bytes.
        len: u64,
        /// The word, little endian in the blob.
        pattern: u32,
    },
    /// Asks about a blob, or about all of them.
    Info {
        /// Which; 0 for all.
        blob: BlobId,
    },
}

fn word(bytes: &[u8; REQUEST_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn long(bytes: &[u8; REQUEST_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an unknown operation, `EINVAL` for unknown flags.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Errno> {
        let (operation, flags, blob) = (word(bytes, 0), word(bytes, 4), word(bytes, 8));
        let (shm_offset, blob_offset, len) = (long(bytes, 16), long(bytes, 24), long(bytes, 32));
        if flags & !WRITABLE != 0 || (flags != 0 && operation != 3) {
            return Err(Errno::new(libc::EINVAL));
        }
        Ok(match operation {
            1 => Self::Allocate { len },
            2 => Self::Free { blob },
            3 => Self::Map {
                blob,
                shm_offset,
                blob_offset,
                len,
                writable: flags & WRITABLE != 0,
            },
            4 => Self::Unmap { blob },
            5 => Self::Resize { blob, len },
            6 => Self::Fill {
                blob,
                blob_offset,
                len,
                pattern: word(bytes, 12),
            },
            7 => Self::Info { blob },
            _ => return Err(Errno::new(libc::EOPNOTSUPP)),
        })
    }

    /// Writes the request, as a driver does.
    pub fn to_bytes(&self) -> [u8; REQUEST_BYTES] {
        // Operation, flags, blob, pattern; offset in the region, offset in the blob, length.
        let (words, longs) = match *self {
            Self::Allocate { len } => ([1, 0, 0, 0], [0, 0, len]),
            Self::Free { blob } => ([2, 0, blob, 0], [0; 3]),
            Self::Map {
                blob,
                shm_offset,
                blob_offset,
                len,
                writable,
            } => (
                [3, u32::from(writable), blob, 0],
                [shm_offset, blob_offset, len],
            ),
            Self::Unmap { blob } => ([4, 0, blob, 0], [0; 3]),
            Self::Resize { blob, len } => ([5, 0, blob, 0], [0, 0, len]),
            Self::Fill {
                blob,
                blob_offset,
                len,
                pattern,
            } => ([6, 0, blob, pattern], [0, blob_offset, len]),
            Self::Info { blob } => ([7, 0, blob, 0], [0; 3]),
        };
        join(words, longs)
    }

    /// The operation's name, in words for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Allocate { .. } => "allocate",
            Self::Free { .. } => "free",
            Self::Map { .. } => "map",
            Self::Unmap { .. } => "unmap",
            Self::Resize { .. } => "resize",
            Self::Fill { .. } => "fill",
            Self::Info { .. } => "info",
        }
    }
}

/// What the device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// 0, or the errno of the refusal.
    pub status: u32,
    /// The blob that was asked for or made.
    pub blob: BlobId,
    /// How many blobs there are.
    pub blobs: u32,
    /// 1 if the mapping can be written.
    pub flags: u32,
    /// How many bytes the blob has, or all of them have.
    pub size: u64,
    /// Where the blob is mapped, or [`NOT_MAPPED`].
    pub shm_offset: u64,
    /// How many bytes of the region it uses, or all of them use.
    pub mapped: u64,
}

impl Response {
    /// The answer of nothing but an errno.
    pub fn refusal(errno: Errno, blob: BlobId) -> Self {
        Self {
            status: errno.errno().unsigned_abs(),
            blob,
            blobs: 0,
            flags: 0,
            size: 0,
            shm_offset: NOT_MAPPED,
            mapped: 0,
        }
    }

    /// Reads a response, as a driver does.
    pub fn parse(bytes: &[u8; RESPONSE_BYTES]) -> Self {
        Self {
            status: word(bytes, 0),
            blob: word(bytes, 4),
            blobs: word(bytes, 8),
            flags: word(bytes, 12),
            size: long(bytes, 16),
            shm_offset: long(bytes, 24),
            mapped: long(bytes, 32),
        }
    }

    /// Writes the response.
    pub fn to_bytes(&self) -> [u8; RESPONSE_BYTES] {
        join(
            [self.status, self.blob, self.blobs, self.flags],
            [self.size, self.shm_offset, self.mapped],
        )
    }
}

/// What a driver can read in the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The size of region 0.
    pub region_bytes: u64,
    /// What offsets must be multiples of.
    pub page_bytes: u32,
    /// How many blobs there can be.
    pub max_blobs: u32,
    /// How many bytes all blobs together can have.
    pub max_bytes: u64,
}

impl Config {
    /// Writes the configuration space.
    pub fn to_bytes(&self) -> [u8; CONFIG_BYTES] {
        let mut bytes = [0; CONFIG_BYTES];
        bytes[..8].copy_from_slice(&self.region_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.page_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.max_blobs.to_le_bytes());
        bytes[16..].copy_from_slice(&self.max_bytes.to_le_bytes());
        bytes
    }
}

/// Four words and three longs in a row: the shape of both directions.
fn join(words: [u32; 4], longs: [u64; 3]) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    for (at, word) in words.into_iter().enumerate() {
        bytes[4 * at..][..4].copy_from_slice(&word.to_le_bytes());
    }
    for (at, long) in longs.into_iter().enumerate() {
        bytes[16 + 8 * at..][..8].copy_from_slice(&long.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const MAP: [u8; REQUEST_BYTES] = [
        3, 0, 0, 0,  1, 0, 0, 0,  7, 0, 0, 0,  0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0x20, 0, 0, 0, 0, 0, 0,
        0x21, 0x43, 0, 0, 0, 0, 0, 0x80,
    ];
    #[rustfmt::skip]
    const FILL: [u8; REQUEST_BYTES] = [
        6, 0, 0, 0,  0, 0, 0, 0,  7, 0, 0, 0,  0x78, 0x56, 0x34, 0x12,
        0, 0, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
        2, 0, 0, 0, 0, 0, 0, 0,
    ];
    #[rustfmt::skip]
    const RESPONSE: [u8; RESPONSE_BYTES] = [
        17, 0, 0, 0,  7, 0, 0, 0,  2, 0, 0, 0,  1, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        3, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn map_is_read_from_its_bytes() {
        let request = Request::Map {
            blob: 7,
            shm_offset: 0x1000,
            blob_offset: 0x2000,
            len: 0x8000_0000_0000_4321,
            writable: true,
        };
        assert_eq!(Request::parse(&MAP), Ok(request));
        assert_eq!(request.to_bytes(), MAP);
    }

    #[test]
    fn fill_is_read_from_its_bytes() {
        let request = Request::Fill {
            blob: 7,
            blob_offset: 1,
            len: 2,
            pattern: 0x1234_5678,
        };
        assert_eq!(Request::parse(&FILL), Ok(request));
        assert_eq!(request.to_bytes(), FILL);
    }

    #[test]
    fn every_request_is_read_as_it_was_written() {
        let blob = 3;
        for request in [
            Request::Allocate { len: 5 },
            Request::Free { blob },
            Request::Unmap { blob },
            Request::Resize { blob, len: 9 },
            Request::Info { blob: 0 },
        ] {
            assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
        }
    }

    #[test]
    fn unknown_operations_and_flags_are_refused() {
        for operation in [0, 8, 255] {
            let mut bytes = [0; REQUEST_BYTES];
            bytes[0] = operation;
            let refused = Request::parse(&bytes);
            assert_eq!(refused, Err(Errno::new(libc::EOPNOTSUPP)), "{operation}");
        }
        let mut bytes = MAP;
        bytes[4] = 2;
        assert_eq!(Request::parse(&bytes), Err(Errno::new(libc::EINVAL)));
        let mut bytes = FILL;
        bytes[4] = 1;
        assert_eq!(Request::parse(&bytes), Err(Errno::new(libc::EINVAL)));
    }

    #[test]
    fn response_is_written_in_its_bytes() {
        let response = Response {
            status: 17,
            blob: 7,
            blobs: 2,
            flags: 1,
            size: 0x1000,
            shm_offset: NOT_MAPPED,
            mapped: 3,
        };
        assert_eq!(response.to_bytes(), RESPONSE);
        assert_eq!(Response::parse(&RESPONSE), response);
        let refusal = Response::refusal(Errno::new(libc::EEXIST), 4);
        assert_eq!((refusal.status, refusal.blob), (17, 4));
    }

    #[test]
    fn config_is_written_in_its_bytes() {
        let config = Config {
            region_bytes: 0x1000_0000,
            page_bytes: 4096,
            max_blobs: 64,
            max_bytes: 0x2_0000_0000,
        };
        #[rustfmt::skip]
        let bytes = [
            0, 0, 0, 0x10, 0, 0, 0, 0,
            0, 0x10, 0, 0,  64, 0, 0, 0,
            0, 0, 0, 0, 2, 0, 0, 0,
        ];
        assert_eq!(config.to_bytes(), bytes);
    }
}
