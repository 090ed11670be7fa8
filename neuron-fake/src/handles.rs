//! Handles that are no pointers: place in a table and its generation, so that a handle that was freed is known for good.

use std::sync::Arc;

/// Objects of one kind by handle.
#[derive(Debug)]
pub(crate) struct Table<T> {
    /// Tells handles of this kind from others.
    kind: u64,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u64,
    object: Option<Arc<T>>,
}

/// What a handle turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    /// Null.
    Null,
    /// It was freed.
    Freed,
    /// Nothing that this table ever gave.
    Foreign,
}

impl<T> Table<T> {
    pub(crate) fn new(kind: u64) -> Table<T> {
        Table { kind, slots: vec![], free: vec![] }
    }

    pub(crate) fn insert(&mut self, object: T) -> usize {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, object: None });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[place];
        slot.generation += 1;
        slot.object = Some(Arc::new(object));
        // A table of 2^24 live objects or a slot used 2^36 times is past anything that tests do.
        ((slot.generation << (4 + PLACE_BITS)) | ((place as u64) << 4) | self.kind) as usize
    }

    pub(crate) fn get(&self, handle: usize) -> Result<&Arc<T>, Stale> {
        let (place, generation) = self.place(handle)?;
        let slot = &self.slots[place];
        match &slot.object {
            Some(object) if slot.generation == generation => Ok(object),
            _ => Err(Stale::Freed),
        }
    }

    pub(crate) fn remove(&mut self, handle: usize) -> Result<Arc<T>, Stale> {
        let (place, generation) = self.place(handle)?;
        let slot = &mut self.slots[place];
        match slot.object.take() {
            Some(object) if slot.generation == generation => {
                self.free.push(place);
                Ok(object)
            }
            other => {
                slot.object = other;
                Err(Stale::Freed)
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.iter().filter(|s| s.object.is_some()).count()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.slots.iter().filter_map(|s| s.object.as_ref())
    }

    fn place(&self, handle: usize) -> Result<(usize, u64), Stale> {
        if handle == 0 {
            return Err(Stale::Null);
        }
        let raw = handle as u64;
        let (place, generation) = ((raw >> 4) as usize & PLACES, raw >> (4 + PLACE_BITS));
        let known = raw & 0xF == self.kind && self.slots.get(place).is_some_and(|s| s.generation >= generation);
        if known && generation > 0 { Ok((place, generation)) } else { Err(Stale::Foreign) }
    }
}

const PLACE_BITS: u32 = 24;
const PLACES: usize = (1 << PLACE_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_handle_stays_freed_when_its_place_is_used_again() {
        let mut table = Table::new(3);
        let a = table.insert("a");
        assert_eq!(*table.remove(a).unwrap(), "a");
        let b = table.insert("b");
        assert_ne!(a, b);
        assert_eq!(table.get(a), Err(Stale::Freed));
        assert_eq!(table.remove(a), Err(Stale::Freed));
        assert_eq!(**table.get(b).unwrap(), "b");
        assert_eq!(
            (table.get(0), table.get(b ^ 1), table.get(b + (1 << 40))),
            (Err(Stale::Null), Err(Stale::Foreign), Err(Stale::Foreign))
        );
        assert_eq!(table.len(), 1);
    }
}
