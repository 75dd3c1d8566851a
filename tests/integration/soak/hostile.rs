//! A device whose backend is the test: it asks for what is allowed and for what is not, and knows each answer beforehand.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use fixture::Script;
use fixture::TestVm;

use super::Tally;
use super::misbehaviours::ENDINGS;
use super::misbehaviours::MISBEHAVIOURS;
use crate::rig::EEXIST;
use crate::rig::ENOENT;
use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::Rig;
use fixture::Dice;

/// The most operations of one life.
const OPERATIONS: u64 = 60;
/// The pages that the mappings are in: few, so that they meet.
const PAGES: u64 = 64;
/// The longest mapping, in pages.
const LONGEST: u64 = 4;

/// A VMM, its backend, and what must be mapped.
pub(super) struct HostileDevice {
    pub(super) rig: Rig,
    /// [`LONGEST`] pages of the byte that is the index.
    memories: Vec<OwnedFd>,
    /// The first page of each mapping, with its length in pages and its byte.
    mapped: BTreeMap<u64, (u64, u8)>,
}

impl HostileDevice {
    pub(super) fn start() -> Self {
        let rig = Rig::with(Script::one_region(REGION), |vm| {
            vm.arg("--restart").arg("on-failure")
        });
        let len = usize::try_from(LONGEST * PAGE).expect("a length");
        let memories = (0..4).map(|byte| fixture::memfd(&vec![byte; len]));
        Self {
            rig,
            memories: memories.collect(),
            mapped: BTreeMap::new(),
        }
    }

    pub(super) fn vm(&self) -> &TestVm {
        &self.rig.vm
    }

    /// Memory that can be mapped anywhere.
    pub(super) fn memory(&self) -> &OwnedFd {
        &self.memories[1]
    }

    /// The frontend has dropped the mappings.
    pub(super) fn forget_mappings(&mut self) {
        self.mapped.clear();
    }

    /// Lives once, and begins the next life.
    #[track_caller]
    pub(super) fn live(&mut self, dice: &mut Dice, tally: &mut Tally) {
        for _ in 0..dice.below(OPERATIONS) {
            match dice.below(10) {
                0..4 => self.map(dice),
                4..7 => self.unmap(dice),
                7 => self.look(dice),
                _ => {
                    let (name, misbehave) = dice.pick(MISBEHAVIOURS);
                    misbehave(self);
                    tally.fault(name);
                    continue;
                }
            }
            tally.operations += 1;
        }
        self.assert_mappings();
        let (name, end) = dice.pick(ENDINGS);
        end(self);
        tally.fault(name);
        self.rig.vm.process.event("device_ended");
        self.rig.channel.wait_closed();
        self.forget_mappings();
        self.rig.vm.serving();
        self.rig.channel = self.rig.backend.request_socket();
        self.assert_mappings();
        tally.lives += 1;
    }

    fn map(&mut self, dice: &mut Dice) {
        let page = dice.below(PAGES);
        let pages = 1 + dice.below(LONGEST);
        let byte = u8::try_from(dice.below(self.memories.len() as u64)).expect("a byte");
        let is_free = self
            .mapped
            .range(..page + pages)
            .next_back()
            .is_none_or(|(at, (len, _))| at + len <= page);
        let memory = &self.memories[usize::from(byte)];
        let value = self
            .rig
            .channel
            .map(0, page * PAGE, 0, pages * PAGE, 0, memory);
        assert_eq!(value, if is_free { 0 } else { EEXIST }, "a map at {page}");
        if is_free {
            self.mapped.insert(page, (pages, byte));
        }
    }

    fn unmap(&mut self, dice: &mut Dice) {
        let page = dice.below(PAGES);
        let pages = self.mapped.get(&page).map_or(1, |(pages, _)| *pages);
        let value = self.rig.channel.unmap(0, page * PAGE, pages * PAGE);
        let was_mapped = self.mapped.remove(&page).is_some();
        assert_eq!(value, if was_mapped { 0 } else { ENOENT }, "unmap {page}");
    }

    fn look(&self, dice: &mut Dice) {
        let mapped: Vec<_> = self.mapped.iter().collect();
        if mapped.is_empty() {
            return;
        }
        let (page, (pages, byte)) = dice.pick(&mapped);
        let last = (*page + pages) * PAGE - 8;
        assert_eq!(self.rig.vm.peek(0, last, 8), [*byte; 8], "page {page}");
    }

    /// The VMM knows of the mappings that there must be, and of no other.
    #[track_caller]
    pub(super) fn assert_mappings(&self) {
        let want: Vec<_> = self.mapped.keys().map(|page| (0, page * PAGE)).collect();
        assert_eq!(self.rig.vm.maps(), want);
    }
}
