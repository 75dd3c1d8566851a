//! The files backend's configuration space: what a driver, or a person with a `ctl`, reads and writes.
//!
//! 256 bytes, little endian whatever the host:
//!
//! | offset | size | field | access | meaning |
//! |---|---|---|---|---|
//! | 0 | 4 | `state` | read | 0 waiting for a channel, 1 busy, 2 ready, 3 no channel will come |
//! | 4 | 4 | `files` | read | how many files there are |
//! | 8 | 4 | `mapped` | read | how many of them are mapped now |
//! | 12 | 4 | `refused` | read | how many requests the frontend has refused |
//! | 16 | 4 | `order` | write | 1 unmap the file `argument`, 2 unmap all, 3 map what is not mapped, 4 map the file `argument` |
//! | 20 | 4 | `argument` | write | a file's index, from 0, for the orders 1 and 4 |
//! | 24 | 4 | `done` | read | how many orders have been carried out |
//! | 28 | 4 | `errno` | read | of the request refused last, 0 if none was |
//! | 32 | 8 | `region_size` | read | bytes of region 0 |
//! | 40 | 4 | `select` | write | the file whose description follows |
//! | 44 | 4 | `name_len` | read | bytes of `name`; 0 if there is no such file |
//! | 48 | 8 | `offset` | read | its offset in region 0 |
//! | 56 | 8 | `len` | read | its length in bytes |
//! | 64 | 192 | `name` | read | its path from the directory, cut at 192 bytes, padded with zeros |
//!
//! A write of `order` starts the order; a write of `argument` and `order` in one goes as expected. An
//! order is carried out after the write is acknowledged; a config change message follows when it is
//! done, and `done` has counted on. Fields that can only be read refuse a write.

use remain::sorted;
use thiserror::Error;

/// The length of the configuration space in bytes.
pub const CONFIG_SIZE: usize = 256;

const ORDER: usize = 16;
const ARGUMENT: usize = 20;
const SELECT: usize = 40;
const NAME: usize = 64;

/// An access that the configuration space does not take.
#[sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// It goes beyond the end.
    #[error("{len} bytes at {offset:#x} of a configuration space of {CONFIG_SIZE} bytes")]
    Bounds {
        /// The access' start.
        offset: u32,
        /// Its length.
        len: usize,
    },
    /// It writes what can only be read.
    #[error("{len} bytes at {offset:#x} of the configuration space are not writable as one")]
    ReadOnly {
        /// The write's start.
        offset: u32,
        /// Its length.
        len: usize,
    },
    /// There is no such order.
    #[error("unknown order {0}")]
    UnknownOrder(u32),
}

/// What a write orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Unmap one file.
    Unmap(u32),
    /// Unmap every file.
    UnmapAll,
    /// Map every file that is not mapped.
    MapAll,
    /// Map one file.
    Map(u32),
}

impl Order {
    fn new(order: u32, argument: u32) -> Result<Self, Error> {
        match order {
            1 => Ok(Self::Unmap(argument)),
            2 => Ok(Self::UnmapAll),
            3 => Ok(Self::MapAll),
            4 => Ok(Self::Map(argument)),
            _ => Err(Error::UnknownOrder(order)),
        }
    }
}

/// How far the backend is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It has no request channel yet.
    #[default]
    Waiting,
    /// It maps or unmaps.
    Busy,
    /// It has nothing to do.
    Ready,
    /// The frontend has no channel for it.
    NoChannel,
}

/// The counters and numbers that can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// How far the backend is.
    pub state: State,
    /// Files that are mapped now.
    pub mapped: u32,
    /// Requests that were refused.
    pub refused: u32,
    /// Orders that were carried out.
    pub done: u32,
    /// The errno of the request refused last.
    pub errno: i32,
}

/// A file's description, as a driver asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileDescription<'a> {
    /// Its path from the directory.
    pub name: &'a [u8],
    /// Its offset in the region.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// The part that a driver writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigSpace {
    order: u32,
    argument: u32,
    select: u32,
}

impl ConfigSpace {
    /// The index of the selected file.
    pub fn selected(&self) -> u32 {
        self.select
    }

    /// Writes `bytes` at `offset`, and returns the order that this gives, if it gives one.
    ///
    /// On an error nothing has changed.
    ///
    /// # Errors
    /// [`Error::Bounds`] or [`Error::ReadOnly`] for a range that can't be written,
    /// [`Error::UnknownOrder`] for an order that is none.
    pub fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<Option<Order>, Error> {
        let len = bytes.len();
        range(offset, len)?;
        let word = |at: usize| {
            let field = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes(field.try_into().ok()?))
        };
        let mut new = *self;
        match (offset as usize, len) {
            (ORDER, 4) => new.order = word(0).unwrap_or(0),
            (ORDER, 8) => {
                new.order = word(0).unwrap_or(0);
                new.argument = word(4).unwrap_or(0);
            }
            (ARGUMENT, 4) => new.argument = word(0).unwrap_or(0),
            (SELECT, 4) => new.select = word(0).unwrap_or(0),
            _ => return Err(Error::ReadOnly { offset, len }),
        }
        let order = match offset as usize {
            ORDER => Some(Order::new(new.order, new.argument)?),
            _ => None,
        };
        *self = new;
        Ok(order)
    }

    /// Copies the configuration space's bytes from `offset` on to `out`.
    ///
    /// # Errors
    /// [`Error::Bounds`] beyond the end.
    pub fn read(&self, offset: u32, out: &mut [u8], contents: &Contents<'_>) -> Result<(), Error> {
        let range = range(offset, out.len())?;
        out.copy_from_slice(&self.bytes(contents)[range]);
        Ok(())
    }

    fn bytes(&self, contents: &Contents<'_>) -> [u8; CONFIG_SIZE] {
        let status = &contents.status;
        let state = match status.state {
            State::Waiting => 0,
            State::Busy => 1,
            State::Ready => 2,
            State::NoChannel => 3_u32,
        };
        let mut bytes = [0; CONFIG_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &state.to_le_bytes());
        put(4, &contents.files.to_le_bytes());
        put(8, &status.mapped.to_le_bytes());
        put(12, &status.refused.to_le_bytes());
        put(ORDER, &self.order.to_le_bytes());
        put(ARGUMENT, &self.argument.to_le_bytes());
        put(24, &status.done.to_le_bytes());
        put(28, &status.errno.to_le_bytes());
        put(32, &contents.region_size.to_le_bytes());
        put(SELECT, &self.select.to_le_bytes());
        if let Some(file) = contents.selected {
            let name = &file.name[..file.name.len().min(CONFIG_SIZE - NAME)];
            put(44, &u32::try_from(name.len()).unwrap_or(0).to_le_bytes());
            put(48, &file.offset.to_le_bytes());
            put(56, &file.len.to_le_bytes());
            put(NAME, name);
        }
        bytes
    }
}

/// What the backend puts into the space for one read.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Its state and counters.
    pub status: Status,
    /// How many files it has.
    pub files: u32,
    /// The region's size in bytes.
    pub region_size: u64,
    /// The file that [`ConfigSpace::selected`] names, if there is one.
    pub selected: Option<FileDescription<'a>>,
}

fn range(offset: u32, len: usize) -> Result<std::ops::Range<usize>, Error> {
    let start = offset as usize;
    match start.checked_add(len) {
        Some(end) if end <= CONFIG_SIZE => Ok(start..end),
        _ => Err(Error::Bounds { offset, len }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents<'static> {
        Contents {
            status: Status {
                state: State::Ready,
                mapped: 2,
                refused: 1,
                done: 3,
                errno: 17,
            },
            files: 0x0102_0304,
            region_size: 64 << 20,
            selected: Some(FileDescription {
                name: b"a/b",
                offset: 0x1000,
                len: 321,
            }),
        }
    }

    #[test]
    fn read_gives_every_field_little_endian() {
        let mut space = ConfigSpace::default();
        assert_eq!(space.write(40, &[7, 0, 0, 0]), Ok(None));
        let mut out = [0; 72];
        space.read(0, &mut out, &contents()).expect("in bounds");
        #[rustfmt::skip]
        let want = [
            2, 0, 0, 0,  4, 3, 2, 1,  2, 0, 0, 0,  1, 0, 0, 0,
            0, 0, 0, 0,  0, 0, 0, 0,  3, 0, 0, 0,  17, 0, 0, 0,
            0, 0, 0, 4, 0, 0, 0, 0,  7, 0, 0, 0,  3, 0, 0, 0,
            0, 0x10, 0, 0, 0, 0, 0, 0,  0x41, 1, 0, 0, 0, 0, 0, 0,
            b'a', b'/', b'b', 0, 0, 0, 0, 0,
        ];
        assert_eq!(out, want);
    }

    #[test]
    fn long_name_is_cut_at_the_end_of_the_space() {
        let name = [b'n'; 300];
        let mut contents = contents();
        contents.selected = Some(FileDescription {
            name: &name,
            offset: 0,
            len: 1,
        });
        let mut out = [0; CONFIG_SIZE];
        ConfigSpace::default()
            .read(0, &mut out, &contents)
            .expect("in bounds");
        assert_eq!(out[44..48], [192, 0, 0, 0]);
        assert_eq!(out[64..], [b'n'; 192]);
    }

    #[test]
    fn write_of_order_and_argument_gives_the_order() {
        let mut space = ConfigSpace::default();
        assert_eq!(
            space.write(16, &[1, 0, 0, 0, 5, 0, 0, 0]),
            Ok(Some(Order::Unmap(5)))
        );
        assert_eq!(space.write(16, &[2, 0, 0, 0]), Ok(Some(Order::UnmapAll)));
        assert_eq!(space.write(16, &[3, 0, 0, 0]), Ok(Some(Order::MapAll)));
        assert_eq!(space.write(20, &[9, 0, 0, 0]), Ok(None));
        assert_eq!(space.write(16, &[4, 0, 0, 0]), Ok(Some(Order::Map(9))));
    }

    #[test]
    fn write_that_is_refused_changes_nothing() {
        let mut space = ConfigSpace::default();
        let before = space;
        let (offset, len) = (0, 4);
        assert_eq!(
            space.write(0, &[1; 4]),
            Err(Error::ReadOnly { offset, len })
        );
        let (offset, len) = (18, 4);
        assert_eq!(
            space.write(18, &[1; 4]),
            Err(Error::ReadOnly { offset, len })
        );
        assert_eq!(space.write(16, &[9, 0, 0, 0]), Err(Error::UnknownOrder(9)));
        assert_eq!(
            space.write(16, &[0, 0, 0, 0, 9, 0, 0, 0]),
            Err(Error::UnknownOrder(0))
        );
        assert_eq!(space, before);
    }

    #[test]
    fn access_beyond_the_end_is_refused() {
        let mut space = ConfigSpace::default();
        let error = |offset, len| Err(Error::Bounds { offset, len });
        let read = |offset, len: usize| space.read(offset, &mut vec![0; len], &contents());
        assert_eq!(read(0, CONFIG_SIZE), Ok(()));
        assert_eq!(read(1, CONFIG_SIZE), error(1, CONFIG_SIZE));
        assert_eq!(read(u32::MAX, 1), error(u32::MAX, 1));
        assert_eq!(space.write(254, &[0; 4]).map(|_| ()), error(254, 4));
    }
}
