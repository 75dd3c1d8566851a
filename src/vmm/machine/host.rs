//! The same accesses without a guest: the host reads and writes what the guest would.

use super::Access;
use super::Error;
use super::hole::rest_of_page;
use super::machine::Shared;

/// Reads guest physical memory.
pub(super) fn peek(shared: &Shared, guest_address: u64, out: &mut [u8]) -> Result<Access, Error> {
    let mut access = Access::default();
    let mut address = guest_address;
    let mut rest = out;
    let mut outcome = Ok(());
    while !rest.is_empty() && outcome.is_ok() {
        let (piece, later) = rest.split_at_mut(piece_len(address, rest.len()));
        outcome = peek_page(shared, address, piece, &mut access);
        address += piece.len() as u64;
        rest = later;
    }
    shared.holes().report(&access);
    outcome.map(|()| access)
}

fn peek_page(
    shared: &Shared,
    address: u64,
    piece: &mut [u8],
    access: &mut Access,
) -> Result<(), Error> {
    if shared.memory.overlaps(address, piece.len() as u64) {
        return Ok(shared.memory.read(address, piece)?);
    }
    let found = shared.slots.find(address);
    if found.is_some_and(|(slot, offset)| slot.backing.read_at(offset, piece).is_ok()) {
        return Ok(());
    }
    if shared.bus.read(address, piece) {
        return Ok(());
    }
    shared.holes().read(address, piece, access)
}

/// Writes guest physical memory.
pub(super) fn poke(shared: &Shared, guest_address: u64, bytes: &[u8]) -> Result<Access, Error> {
    let mut access = Access::default();
    let mut address = guest_address;
    let mut rest = bytes;
    let mut outcome = Ok(());
    while !rest.is_empty() && outcome.is_ok() {
        let (piece, later) = rest.split_at(piece_len(address, rest.len()));
        outcome = poke_page(shared, address, piece, &mut access);
        address += piece.len() as u64;
        rest = later;
    }
    shared.holes().report(&access);
    outcome.map(|()| access)
}

fn poke_page(
    shared: &Shared,
    address: u64,
    piece: &[u8],
    access: &mut Access,
) -> Result<(), Error> {
    if shared.memory.overlaps(address, piece.len() as u64) {
        return Ok(shared.memory.write(address, piece)?);
    }
    let found = shared
        .slots
        .find(address)
        .filter(|(slot, _)| !slot.read_only);
    if found.is_some_and(|(slot, offset)| slot.backing.write_at(offset, piece).is_ok()) {
        return Ok(());
    }
    if shared.bus.write(address, piece) {
        return Ok(());
    }
    shared.holes().write(address, piece, access)
}

/// Returns how much of an access lies in its first page.
fn piece_len(address: u64, len: usize) -> usize {
    usize::try_from(rest_of_page(address, len as u64)).expect("not more than len")
}
