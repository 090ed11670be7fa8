//! Which replica gets a request: the one that holds the longest part of its prompt if there is room, else by policy.
//!
//! What a replica holds is guessed from what it was sent. A prompt's text is cut into blocks, each block's key covers all
//! text before it, the API key and the cache salt, so that a key stands for one beginning of a prompt of one owner.
//!
//! Invariant: a replica that is full or not ready is never chosen; a guess that is wrong costs time, never an answer.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, PoisonError};

use super::outline::Outline;

/// Where requests go that no replica has a part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// To the replica with the fewest: least time per token.
    #[default]
    Spread,
    /// To the replica with the most that still has a free place: fewest steps, most tokens per joule.
    Pack,
}

/// What is known of a replica when one is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests that it has.
    pub load: usize,
    /// Counts its starts: what an earlier process held is gone.
    pub life: u64,
    /// Whether it may be chosen at all.
    pub usable: bool,
}

/// Chooses replicas.
#[derive(Debug)]
pub struct Dispatch {
    policy: Policy,
    /// Requests that a replica runs together.
    slots: usize,
    hashes: RandomState,
    known: Mutex<Known>,
}

/// Keys of a prompt's beginnings, the shortest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<u64>);

/// Who was sent which beginnings: two generations of a table, so that what was not seen for long is forgotten.
#[derive(Debug, Default)]
struct Known {
    young: HashMap<u64, (usize, u64)>,
    old: HashMap<u64, (usize, u64)>,
}

impl Dispatch {
    /// Replicas run `slots` requests together.
    pub fn new(policy: Policy, slots: usize) -> Dispatch {
        Dispatch { policy, slots: slots.max(1), hashes: RandomState::new(), known: Mutex::default() }
    }

    /// The keys of a request of `owner`.
    pub fn keys(&self, owner: Option<usize>, outline: &Outline) -> Keys {
        let mut hasher = self.hashes.build_hasher();
        hasher.write_usize(owner.map_or(usize::MAX, |owner| owner));
        hasher.write(&outline.salt);
        hasher.write_u8(0xff);
        let blocks = outline.text.chunks(BLOCK).map(|block| {
            hasher.write(block);
            hasher.finish()
        });
        Keys(blocks.collect())
    }

    /// The replica for a request, if any is usable; it is remembered as the one that has the prompt.
    pub fn choose(&self, keys: &Keys, all: &[Standing]) -> Option<usize> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = keys.0.iter().rev().find_map(|key| {
            let (replica, life) = known.get(*key)?;
            all.get(replica).is_some_and(|standing| standing.life == life && standing.usable).then_some(replica)
        });
        let chosen = match holder.filter(|replica| all[*replica].load < self.bound(all)) {
            Some(holder) => holder,
            None => self.by_policy(keys, all)?,
        };
        let life = all[chosen].life;
        keys.0.iter().for_each(|key| known.put(*key, (chosen, life)));
        Some(chosen)
    }

    /// Requests up to which a replica's part of a prompt counts for more than its load.
    fn bound(&self, all: &[Standing]) -> usize {
        match self.policy {
            Policy::Pack => self.slots,
            // A quarter more than its share, with this request counted.
            Policy::Spread => {
                let usable = all.iter().filter(|standing| standing.usable);
                let (count, load) = usable.fold((0, 0), |(count, load), s| (count + 1, load + s.load));
                (5 * (load + 1)).div_ceil(4 * count.max(1))
            }
        }
    }

    fn by_policy(&self, keys: &Keys, all: &[Standing]) -> Option<usize> {
        let usable = || all.iter().enumerate().filter(|(_, standing)| standing.usable);
        let free = || usable().filter(|(_, standing)| standing.load < self.slots);
        let fullest = match self.policy {
            Policy::Pack => free().max_by_key(|(i, standing)| (standing.load, usize::MAX - i)),
            Policy::Spread => None,
        };
        // Of equals, the one that the beginning of the prompt falls on, whichever the others are.
        let weight = |replica: usize| self.hashes.hash_one((keys.0.first(), replica));
        let chosen = fullest.or_else(|| usable().min_by_key(|(i, standing)| (standing.load, weight(*i))));
        chosen.map(|(replica, _)| replica)
    }
}

impl Known {
    fn get(&self, key: u64) -> Option<(usize, u64)> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn put(&mut self, key: u64, replica: (usize, u64)) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, replica);
    }
}

/// Bytes of text that share a key: some tokens, and few keys.
const BLOCK: usize = 64;
/// Keys of a generation: some megabytes.
const GENERATION: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing(load: usize) -> Standing {
        Standing { load, life: 1, usable: true }
    }

    fn keys(dispatch: &Dispatch, owner: Option<usize>, salt: &str, text: &str) -> Keys {
        dispatch.keys(owner, &Outline { text: text.into(), salt: salt.into(), stream: false })
    }

    #[test]
    fn packing_fills_one_before_the_next_and_spreading_the_emptiest() {
        let none = Keys::default();
        let choose = |policy, loads: &[usize]| {
            let all: Vec<Standing> = loads.iter().map(|load| standing(*load)).collect();
            Dispatch::new(policy, 4).choose(&none, &all)
        };
        assert_eq!(choose(Policy::Pack, &[0, 0, 0]), Some(0));
        assert_eq!(choose(Policy::Pack, &[1, 3, 2]), Some(1));
        assert_eq!(choose(Policy::Pack, &[4, 4, 2]), Some(2));
        assert_eq!(choose(Policy::Pack, &[6, 5, 7]), Some(1), "all full: the shortest queue");
        assert_eq!(choose(Policy::Spread, &[3, 1, 2]), Some(1));
        assert_eq!(choose(Policy::Spread, &[]), None);
    }

    #[test]
    fn a_prompt_goes_where_the_longest_part_of_it_went() {
        for policy in [Policy::Pack, Policy::Spread] {
            let dispatch = Dispatch::new(policy, 8);
            let text = "x".repeat(300);
            let loads = |loads: [usize; 3]| loads.map(standing);
            let first = dispatch.choose(&keys(&dispatch, None, "", &text), &loads([1, 0, 0])).unwrap();
            let longer = format!("{text}{}", "y".repeat(200));
            let mut all = loads([0, 0, 0]);
            assert_eq!(dispatch.choose(&keys(&dispatch, None, "", &longer), &all), Some(first), "{policy:?}");
            // Overloaded, gone, or started anew: its part does not count.
            all[first].load = 9;
            assert_ne!(dispatch.choose(&keys(&dispatch, None, "", &longer), &all), Some(first));
            all[first] = Standing { load: 0, life: 1, usable: false };
            assert_ne!(dispatch.choose(&keys(&dispatch, None, "", &longer), &all), Some(first));
        }
    }

    #[test]
    fn keys_differ_by_owner_and_salt_and_agree_on_common_beginnings() {
        let dispatch = Dispatch::new(Policy::Spread, 1);
        let long = "a".repeat(3 * BLOCK);
        let of = |owner, salt, text: &str| keys(&dispatch, owner, salt, text).0;
        let base = of(Some(0), "s", &long);
        assert_eq!(base.len(), 3);
        assert_eq!(of(Some(0), "s", &format!("{}b", &long[..2 * BLOCK]))[..2], base[..2]);
        for other in [of(Some(1), "s", &long), of(None, "s", &long), of(Some(0), "t", &long), of(Some(0), "", &long)] {
            assert!(base.iter().zip(&other).all(|(a, b)| a != b));
        }
    }

    proptest! {
        #[test]
        fn nobody_is_chosen_who_is_not_usable(
            rows in prop::collection::vec((0..9_usize, any::<bool>()), 0..6), pack in any::<bool>(), text in "[ab]{0,200}",
        ) {
            let all: Vec<Standing> =
                rows.iter().map(|(load, usable)| Standing { load: *load, life: 0, usable: *usable }).collect();
            let dispatch = Dispatch::new(if pack { Policy::Pack } else { Policy::Spread }, 3);
            let keys = keys(&dispatch, None, "", &text);
            for _ in 0..3 {
                let chosen = dispatch.choose(&keys, &all);
                prop_assert_eq!(chosen.is_some(), all.iter().any(|s| s.usable));
                prop_assert!(chosen.is_none_or(|chosen| all[chosen].usable));
            }
        }
    }
}
