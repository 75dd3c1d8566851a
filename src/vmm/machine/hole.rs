//! Guest accesses that meet no memory, and what is done about them.
//!
//! A region is a reserved range in which a device's backend maps and unmaps. The guest can touch a part where
//! nothing is mapped, a page beyond the end of a file that its owner truncated, or write to what is mapped
//! read-only. None of that ends the VM: the access is completed by [`HolePolicy`] and told to the [`FaultCallback`].
//!
//! Scratch memory is kept here and not mapped into the region: a hole belongs to the mapping service, which could be
//! mapping a file there at this moment. So a mapping that comes later simply wins.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error as ThisError;

use super::Error;
use super::PAGE_BYTES;
use super::PAGE_LEN;
use super::backing::Slots;

/// The most faults that are told one by one of a single access; the rest is only counted.
pub const MAX_FAULTS: usize = 64;

/// Gets each run of faults. It is called on the vCPU's thread (or the caller's, without KVM), after the access: it
/// must not block and must not call the machine. Limiting the rate of what it prints is its own affair.
pub type FaultCallback = Box<dyn FnMut(&GuestFault) + Send>;

/// What an access to a hole does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HolePolicy {
    /// Reads give all ones, writes are dropped: what a bus without a device does.
    #[default]
    AllOnes,
    /// The page is backed by private zeroed memory, as long as there is some left; then as all ones.
    Scratch {
        /// The most bytes of scratch memory for the whole VM.
        max_bytes: u64,
    },
    /// The VM stops: the access and all later ones are refused.
    Stop,
}

/// Scratch memory of a policy that does not say how much.
const DEFAULT_SCRATCH_BYTES: u64 = 1 << 20;

/// A policy's name that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
#[error("a hole policy is all-ones, scratch, scratch=BYTES or stop")]
pub struct UnknownPolicy;

impl FromStr for HolePolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text.split_once('=') {
            None if text == "all-ones" => Ok(Self::AllOnes),
            None if text == "scratch" => Ok(Self::Scratch {
                max_bytes: DEFAULT_SCRATCH_BYTES,
            }),
            None if text == "stop" => Ok(Self::Stop),
            Some(("scratch", bytes)) => bytes
                .parse()
                .map(|max_bytes| Self::Scratch { max_bytes })
                .map_err(|_| UnknownPolicy),
            _ => Err(UnknownPolicy),
        }
    }
}

impl fmt::Display for HolePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllOnes => write!(f, "all-ones"),
            Self::Scratch { max_bytes } => write!(f, "scratch={max_bytes}"),
            Self::Stop => write!(f, "stop"),
        }
    }
}

/// Why an access met no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A region, but nothing is mapped there, or the file behind the mapping has been truncated.
    Missing,
    /// No region and no RAM at all.
    NoMemory,
    /// A write to what can only be read.
    ReadOnly,
}

/// Where in a region a fault is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region's name, as given with its memslot.
    pub name: String,
    /// The byte in the region.
    pub offset: u64,
}

/// A run of bytes that the guest touched and that no memory is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFault {
    /// Where the run starts.
    pub guest_address: u64,
    /// Its bytes.
    pub len: u64,
    /// Whether the guest wrote.
    pub write: bool,
    /// Why.
    pub kind: FaultKind,
    /// Which region it is, if it is one.
    pub place: Option<Place>,
}

impl fmt::Display for GuestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.write { "write to" } else { "read of" };
        let reason = match self.kind {
            FaultKind::Missing => "nothing is mapped there, or the file has been truncated",
            FaultKind::NoMemory => "there is no memory",
            FaultKind::ReadOnly => "it is mapped read-only",
        };
        write!(
            f,
            "guest {access} {:#x}+{:#x}",
            self.guest_address, self.len
        )?;
        if let Some(place) = &self.place {
            write!(f, " ({} offset {:#x})", place.name, place.offset)?;
        }
        write!(f, ": {reason}")
    }
}

/// What an access met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Bytes that no memory was behind: reads got all ones, writes are lost.
    pub missing: u64,
    /// Bytes that scratch memory was behind.
    pub scratch: u64,
    /// The runs of both, in the order of the access, at most [`MAX_FAULTS`].
    pub faults: Vec<GuestFault>,
}

impl Access {
    /// Adds a fault; one that continues the last becomes part of it.
    fn add(&mut self, fault: GuestFault) {
        if let Some(last) = self
            .faults
            .last_mut()
            .filter(|last| continues(last, &fault))
        {
            last.len += fault.len;
        } else if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    /// Appends what a later part of the same access met.
    pub(super) fn append(&mut self, later: Self) {
        self.missing += later.missing;
        self.scratch += later.scratch;
        for fault in later.faults {
            self.add(fault);
        }
    }
}

/// Tells whether `next` begins where `last` ends, in the same region and for the same reason.
fn continues(last: &GuestFault, next: &GuestFault) -> bool {
    let same_name = match (&last.place, &next.place) {
        (Some(last), Some(next)) => last.name == next.name,
        (None, None) => true,
        _ => false,
    };
    last.guest_address.checked_add(last.len) == Some(next.guest_address)
        && (last.write, last.kind) == (next.write, next.kind)
        && same_name
}

type Page = Box<[u8; PAGE_LEN]>;

/// Completes accesses that met no memory.
pub(super) struct Holes {
    policy: HolePolicy,
    slots: Arc<Slots>,
    scratch: BTreeMap<u64, Page>,
    on_fault: FaultCallback,
    stopped: Option<GuestFault>,
}

impl Holes {
    pub(super) fn new(policy: HolePolicy, slots: Arc<Slots>, on_fault: FaultCallback) -> Self {
        Self {
            policy,
            slots,
            scratch: BTreeMap::new(),
            on_fault,
            stopped: None,
        }
    }

    /// Returns the fault that stopped the VM.
    pub(super) fn stopped(&self) -> Option<&GuestFault> {
        self.stopped.as_ref()
    }

    /// Completes a read of bytes of one page.
    pub(super) fn read(
        &mut self,
        address: u64,
        out: &mut [u8],
        access: &mut Access,
    ) -> Result<(), Error> {
        let len = out.len() as u64;
        let kind = self.note(address, len, false, access)?;
        let (page, at) = split(address);
        match self.scratch.get(&page) {
            Some(scratch) => out.copy_from_slice(&scratch[at..at + out.len()]),
            None if kind == FaultKind::Missing && self.has_room() => out.fill(0),
            None => {
                out.fill(0xff);
                access.missing += len;
                return Ok(());
            }
        }
        access.scratch += len;
        Ok(())
    }

    /// Completes a write of bytes of one page.
    pub(super) fn write(
        &mut self,
        address: u64,
        bytes: &[u8],
        access: &mut Access,
    ) -> Result<(), Error> {
        let len = bytes.len() as u64;
        let kind = self.note(address, len, true, access)?;
        let (page, at) = split(address);
        let fits = self.scratch.contains_key(&page) || self.has_room();
        if kind != FaultKind::Missing || !fits {
            access.missing += len;
            return Ok(());
        }
        let scratch = self
            .scratch
            .entry(page)
            .or_insert_with(|| Box::new([0; PAGE_LEN]));
        scratch[at..at + bytes.len()].copy_from_slice(bytes);
        access.scratch += len;
        Ok(())
    }

    /// Lets go of the scratch pages of a range: whatever comes there next is something else.
    pub(super) fn forget(&mut self, guest_address: u64, len: u64) {
        let end = guest_address.saturating_add(len);
        self.scratch
            .retain(|page, _| !(guest_address..end).contains(page));
    }

    /// Tells the callback what an access met.
    pub(super) fn report(&mut self, access: &Access) {
        for fault in &access.faults {
            (self.on_fault)(fault);
        }
    }

    /// Tells whether the policy allows another scratch page.
    fn has_room(&self) -> bool {
        let HolePolicy::Scratch { max_bytes } = self.policy else {
            return false;
        };
        (self.scratch.len() as u64 + 1) * PAGE_BYTES <= max_bytes
    }

    /// Finds out what a fault is, remembers it, and refuses to go on if the policy says so.
    fn note(
        &mut self,
        guest_address: u64,
        len: u64,
        write: bool,
        access: &mut Access,
    ) -> Result<FaultKind, Error> {
        let found = self.slots.find(guest_address);
        let kind = match &found {
            None => FaultKind::NoMemory,
            Some((slot, offset)) if write && slot.backing.read_at(*offset, &mut [0]).is_ok() => {
                FaultKind::ReadOnly
            }
            Some(_) => FaultKind::Missing,
        };
        let place = found.map(|(slot, offset)| Place {
            name: slot.name.clone(),
            offset,
        });
        let fault = GuestFault {
            guest_address,
            len,
            write,
            kind,
            place,
        };
        access.add(fault.clone());
        if self.policy == HolePolicy::Stop {
            self.stopped = Some(fault.clone());
            return Err(Error::Stopped(fault));
        }
        Ok(kind)
    }
}

/// Returns the bytes from `address` to the end of its page, at most `len`.
pub(super) fn rest_of_page(address: u64, len: u64) -> u64 {
    len.min(PAGE_BYTES - address % PAGE_BYTES)
}

/// Splits an address into its page's address and the offset there.
fn split(address: u64) -> (u64, usize) {
    let at = address % PAGE_BYTES;
    (
        address - at,
        usize::try_from(at).expect("an offset in a page fits"),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn holes(policy: HolePolicy) -> Holes {
        Holes::new(policy, Arc::default(), Box::new(|_| ()))
    }

    fn fault(guest_address: u64, len: u64) -> GuestFault {
        GuestFault {
            guest_address,
            len,
            write: false,
            kind: FaultKind::NoMemory,
            place: None,
        }
    }

    #[test]
    fn read_of_nothing_is_all_ones() {
        let mut bytes = [0; 4];
        let mut access = Access::default();
        holes(HolePolicy::AllOnes)
            .read(0x1000, &mut bytes, &mut access)
            .unwrap();
        assert_eq!(bytes, [0xff; 4]);
        assert_eq!(
            access,
            Access {
                missing: 4,
                scratch: 0,
                faults: vec![fault(0x1000, 4)]
            }
        );
    }

    #[test]
    fn adjacent_pieces_become_one_fault() {
        let mut access = Access::default();
        access.add(fault(0x1000, 0x1000));
        access.add(fault(0x2000, 0x1000));
        access.add(fault(0x4000, 0x10));
        assert_eq!(access.faults, [fault(0x1000, 0x2000), fault(0x4000, 0x10)]);
    }

    #[test]
    fn faults_beyond_the_limit_are_counted_only() {
        let mut holes = holes(HolePolicy::AllOnes);
        let mut access = Access::default();
        for page in 0..100 {
            holes.read(page * 0x2000, &mut [0], &mut access).unwrap();
        }
        assert_eq!((access.missing, access.faults.len()), (100, MAX_FAULTS));
        let mut whole = Access::default();
        whole.append(access);
        assert_eq!((whole.missing, whole.faults.len()), (100, MAX_FAULTS));
    }

    #[test]
    fn stop_refuses_the_access_and_remembers_it() {
        let mut holes = holes(HolePolicy::Stop);
        let error = holes
            .write(0x5000, &[1], &mut Access::default())
            .unwrap_err();
        let expected = GuestFault {
            write: true,
            ..fault(0x5000, 1)
        };
        assert!(
            matches!(error, Error::Stopped(ref met) if *met == expected),
            "{error}"
        );
        assert_eq!(holes.stopped(), Some(&expected));
    }

    #[test]
    fn report_calls_back_once_a_run() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let mut holes = Holes::new(
            HolePolicy::AllOnes,
            Arc::default(),
            Box::new(move |fault| sink.lock().unwrap().push(fault.clone())),
        );
        let mut access = Access::default();
        holes.read(0x1000, &mut [0; 0x1000], &mut access).unwrap();
        holes.read(0x2000, &mut [0; 0x1000], &mut access).unwrap();
        holes.report(&access);
        assert_eq!(*told.lock().unwrap(), [fault(0x1000, 0x2000)]);
    }

    #[test]
    fn policies_are_read_as_they_are_written() {
        for policy in [
            HolePolicy::AllOnes,
            HolePolicy::Scratch { max_bytes: 8192 },
            HolePolicy::Stop,
        ] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!(
            "scratch".parse(),
            Ok(HolePolicy::Scratch { max_bytes: 1 << 20 })
        );
        assert_eq!("scratch=x".parse::<HolePolicy>(), Err(UnknownPolicy));
        assert_eq!("ones".parse::<HolePolicy>(), Err(UnknownPolicy));
    }

    #[test]
    fn fault_says_region_offset_and_reason() {
        let place = Some(Place {
            name: "fs0/0".into(),
            offset: 0x2000,
        });
        let fault = GuestFault {
            guest_address: 0x1_0000_2000,
            len: 0x1000,
            write: true,
            kind: FaultKind::ReadOnly,
            place,
        };
        assert_eq!(
            fault.to_string(),
            "guest write to 0x100002000+0x1000 (fs0/0 offset 0x2000): it is mapped read-only"
        );
    }

    #[test]
    fn rest_of_page_ends_at_the_page_or_the_length() {
        assert_eq!(rest_of_page(0x1ff0, 100), 16);
        assert_eq!(rest_of_page(0x1000, 100), 100);
    }
}
