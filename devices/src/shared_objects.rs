//! The VM's table of shared objects: which device owns which UUID.
//!
//! Only names are kept. An object's descriptor stays with its owner and is asked for at each look-up, so that nothing here
//! keeps memory of a backend alive. The table is plain data without a thread: the VMM feeds it with the hook requests of its
//! devices.

use std::collections::HashMap;

use base::Error;

use crate::control::ObjectId;

/// The most objects that one device may share.
pub const MAX_OBJECTS: usize = 1024;

/// Who owns what. `O` names a device.
#[derive(Clone, Debug)]
pub struct SharedObjects<O> {
    owners: HashMap<ObjectId, O>,
}

impl<O> Default for SharedObjects<O> {
    fn default() -> Self {
        Self {
            owners: HashMap::new(),
        }
    }
}

impl<O: Clone + Eq> SharedObjects<O> {
    /// Makes an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `owner` shares `id`.
    ///
    /// # Errors
    /// EINVAL for the UUIDs that name nothing (all zeros, all ones); EEXIST if somebody shares it already; EDQUOT past
    /// [`MAX_OBJECTS`].
    pub fn add(&mut self, owner: &O, id: ObjectId) -> Result<(), Error> {
        if id.0 == [0; 16] || id.0 == [u8::MAX; 16] {
            return Err(Error::new(libc::EINVAL));
        }
        if self.owners.contains_key(&id) {
            return Err(Error::new(libc::EEXIST));
        }
        if self.owners.values().filter(|other| *other == owner).count() >= MAX_OBJECTS {
            return Err(Error::new(libc::EDQUOT));
        }
        self.owners.insert(id, owner.clone());
        Ok(())
    }

    /// Notes that `owner` shares `id` no longer.
    ///
    /// # Errors
    /// ENOENT if nobody shares it; EPERM if it is somebody else's.
    pub fn remove(&mut self, owner: &O, id: ObjectId) -> Result<(), Error> {
        match self.owners.get(&id) {
            None => Err(Error::new(libc::ENOENT)),
            Some(other) if other != owner => Err(Error::new(libc::EPERM)),
            Some(_) => {
                self.owners.remove(&id);
                Ok(())
            }
        }
    }

    /// Returns who shares `id`: the device whose backend is to be asked for it.
    pub fn owner(&self, id: ObjectId) -> Option<&O> {
        self.owners.get(&id)
    }

    /// Forgets all objects of a device that is gone, reset, or whose request channel is closed; returns how many.
    pub fn remove_owner(&mut self, owner: &O) -> usize {
        let before = self.owners.len();
        self.owners.retain(|_, other| other != owner);
        before - self.owners.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> ObjectId {
        let mut bytes = [1; 16];
        bytes[..2].copy_from_slice(&number.to_ne_bytes());
        ObjectId(bytes)
    }

    fn errno(result: Result<(), Error>) -> i32 {
        result.expect_err("refused").errno()
    }

    #[test]
    fn object_of_a_device_is_found_until_it_is_removed() {
        let mut table = SharedObjects::new();
        table.add(&"a", id(1)).unwrap();
        assert_eq!(table.owner(id(1)), Some(&"a"));
        table.remove(&"a", id(1)).unwrap();
        assert_eq!(table.owner(id(1)), None);
    }

    #[test]
    fn object_of_another_device_is_neither_taken_nor_removed() {
        let mut table = SharedObjects::new();
        table.add(&"a", id(1)).unwrap();
        assert_eq!(errno(table.add(&"b", id(1))), libc::EEXIST);
        assert_eq!(errno(table.remove(&"b", id(1))), libc::EPERM);
        assert_eq!(errno(table.remove(&"b", id(2))), libc::ENOENT);
        assert_eq!(table.owner(id(1)), Some(&"a"));
    }

    #[test]
    fn objects_go_with_their_owner() {
        let mut table = SharedObjects::new();
        table.add(&"a", id(1)).unwrap();
        table.add(&"a", id(2)).unwrap();
        table.add(&"b", id(3)).unwrap();
        assert_eq!(table.remove_owner(&"a"), 2);
        assert_eq!(table.owner(id(1)), None);
        assert_eq!(table.owner(id(3)), Some(&"b"));
    }

    #[test]
    fn names_of_nothing_are_refused() {
        let mut table = SharedObjects::new();
        for bytes in [[0; 16], [u8::MAX; 16]] {
            assert_eq!(errno(table.add(&"a", ObjectId(bytes))), libc::EINVAL);
        }
    }

    #[test]
    fn objects_of_one_device_are_limited() {
        let mut table = SharedObjects::new();
        let limit = u16::try_from(MAX_OBJECTS).unwrap();
        for number in 0..limit {
            table.add(&"a", id(number)).unwrap();
        }
        assert_eq!(errno(table.add(&"a", id(limit))), libc::EDQUOT);
        table.add(&"b", id(limit)).unwrap();
    }
}
