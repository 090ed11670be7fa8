//! The sequences that wait, and whose turn it is: priority first, then those that ran before, then fairly over clients, then
//! arrival.
//!
//! Fair is what the virtual token counter of "Fairness in Serving Large Language Models" (OSDI 2024) makes so: a client is
//! charged a prompt token once and a generated one twice, and the turn is the least charged client's. Who comes back after
//! having had nothing to do is lifted to the least of those that have, so that idling saves nothing up. Prompt tokens that
//! the cache held and tokens that are computed again after a preemption cost a client nothing. Clients whose numbers differ in
//! the lower half alone are a group: groups take turns in the same way, and within one its clients.
//!
//! Invariant: an account counts its owner's sequences, waiting and running.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::Sequence;

/// What a waiting sequence is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    priority: i64,
    /// Whether it has never run.
    fresh: bool,
    /// Of fresh ones.
    client: u64,
    arrival: u64,
}

impl Key {
    pub fn of<J>(sequence: &Sequence<J>) -> Key {
        let (priority, arrival) = sequence.order;
        let fresh = sequence.preemptions == 0;
        Key { priority, fresh, client: if fresh { sequence.client } else { 0 }, arrival }
    }

    /// Classes come one after the other.
    fn class(self) -> (i64, bool) {
        (self.priority, self.fresh)
    }
}

/// A place in the order of turns, as long as nobody is charged.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Whose turn.
    pub key: Key,
    /// The client's place in its class: what its group is charged and what it is, then its first sequence's arrival.
    rank: ([u64; 2], u64, u64),
}

/// The queue.
#[derive(Debug)]
pub struct Queue<J> {
    waiting: BTreeMap<Key, Box<Sequence<J>>>,
    preempted: usize,
    pub clients: Clients,
}

impl<J> Queue<J> {
    pub fn new() -> Self {
        Queue { waiting: BTreeMap::new(), preempted: 0, clients: Clients::default() }
    }

    pub fn insert(&mut self, sequence: Box<Sequence<J>>) {
        self.preempted += usize::from(sequence.preemptions > 0);
        self.waiting.insert(Key::of(&sequence), sequence);
    }

    pub fn remove(&mut self, key: Key) -> Option<Box<Sequence<J>>> {
        let sequence = self.waiting.remove(&key)?;
        self.preempted -= usize::from(sequence.preemptions > 0);
        Some(sequence)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut Sequence<J>> {
        self.waiting.get_mut(&key).map(|sequence| &mut **sequence)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Sequence<J>> {
        self.waiting.values().map(|sequence| &**sequence)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence<J>> {
        self.waiting.values_mut().map(|sequence| &mut **sequence)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sequences that ran before.
    pub fn preempted(&self) -> usize {
        self.preempted
    }

    /// Empties it.
    pub fn drain(&mut self) -> impl Iterator<Item = Box<Sequence<J>>> + use<J> {
        self.preempted = 0;
        self.clients = Clients::default();
        std::mem::take(&mut self.waiting).into_values()
    }

    /// Whose turn it is, or is after another's.
    pub fn next(&self, after: Option<Turn>) -> Option<Turn> {
        let Some(turn) = after else {
            let (first, _) = self.waiting.first_key_value()?;
            return self.next_client(first.class(), None);
        };
        let behind =
            |key: Key| self.waiting.range((Bound::Excluded(key), Bound::Unbounded)).next().map(|(key, _)| *key);
        let same = behind(turn.key).filter(|key| key.class() == turn.key.class() && key.client == turn.key.client);
        if let Some(key) = same {
            return Some(Turn { key, ..turn });
        }
        self.next_client(turn.key.class(), Some(turn)).or_else(|| {
            let last = Key { client: u64::MAX, arrival: u64::MAX, ..turn.key };
            self.next_client(behind(last)?.class(), None)
        })
    }

    /// The first sequence of the least charged client of a class, or of the next one after another's turn.
    fn next_client(&self, (priority, fresh): (i64, bool), after: Option<Turn>) -> Option<Turn> {
        let mut best: Option<Turn> = None;
        let mut from = Key { priority, fresh, client: 0, arrival: 0 };
        while let Some((&key, _)) =
            self.waiting.range(from..).next().filter(|(key, _)| key.class() == (priority, fresh))
        {
            let turn = Turn { key, rank: (self.clients.charged(key.client), key.arrival, key.client) };
            let later = after.is_none_or(|after| turn.rank > after.rank);
            if later && best.is_none_or(|best| turn.rank < best.rank) {
                best = Some(turn);
            }
            let Some(client) = key.client.checked_add(1) else {
                break;
            };
            from.client = client;
        }
        best
    }
}

/// What clients and their groups were charged.
#[derive(Debug, Default)]
pub struct Clients {
    groups: Accounts,
    each: Accounts,
}

impl Clients {
    /// A sequence of `client` has come.
    pub fn arrive(&mut self, client: u64) {
        self.groups.arrive(group(client));
        self.each.arrive(client);
    }

    /// One has ended.
    pub fn leave(&mut self, client: u64) {
        self.groups.leave(group(client));
        self.each.leave(client);
    }

    /// Charges `client`.
    pub fn charge(&mut self, client: u64, prompt: usize, generated: usize) {
        let tokens = prompt as u64 + GENERATED * generated as u64;
        self.groups.charge(group(client), tokens);
        self.each.charge(client, tokens);
    }

    fn charged(&self, client: u64) -> [u64; 2] {
        [self.groups.charged(group(client)), self.each.charged(client)]
    }
}

fn group(client: u64) -> u64 {
    client >> 32
}

#[derive(Debug, Default)]
struct Accounts {
    accounts: BTreeMap<u64, Account>,
}

#[derive(Debug, Default)]
struct Account {
    charged: u64,
    sequences: usize,
}

impl Accounts {
    fn arrive(&mut self, owner: u64) {
        let least = self.least_active();
        let account = self.accounts.entry(owner).or_default();
        if account.sequences == 0 {
            account.charged = account.charged.max(least.unwrap_or(0));
        }
        account.sequences += 1;
    }

    fn leave(&mut self, owner: u64) {
        let Some(account) = self.accounts.get_mut(&owner) else { return };
        account.sequences -= 1;
        if account.sequences > 0 {
            return;
        }
        // What would be lifted anyway need not be remembered.
        let least = self.least_active().unwrap_or(u64::MAX);
        self.accounts.retain(|_, account| account.sequences > 0 || account.charged > least);
        while self.accounts.values().filter(|account| account.sequences == 0).count() > MAX_IDLE {
            let idle = self.accounts.iter().filter(|(_, account)| account.sequences == 0);
            let Some(least) = idle.min_by_key(|(_, account)| account.charged).map(|(owner, _)| *owner) else {
                break;
            };
            self.accounts.remove(&least);
        }
    }

    fn charge(&mut self, owner: u64, tokens: u64) {
        if let Some(account) = self.accounts.get_mut(&owner) {
            account.charged = account.charged.saturating_add(tokens);
        }
    }

    fn charged(&self, owner: u64) -> u64 {
        self.accounts.get(&owner).map_or(0, |account| account.charged)
    }

    fn least_active(&self) -> Option<u64> {
        self.accounts.values().filter(|account| account.sequences > 0).map(|account| account.charged).min()
    }
}

/// What a generated token counts beside a prompt's: the weights of the paper's evaluation.
const GENERATED: u64 = 2;
/// Accounts that are kept of those without sequences.
const MAX_IDLE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(entries: &[(i64, u64, u64, bool)]) -> Queue<()> {
        let mut queue = Queue::new();
        for &(priority, client, arrival, ran) in entries {
            let mut sequence = Sequence::new((priority, arrival), vec![0], 1, 4, ());
            (sequence.client, sequence.preemptions) = (client, u32::from(ran));
            queue.clients.arrive(client);
            queue.insert(Box::new(sequence));
        }
        queue
    }

    fn turns(queue: &Queue<()>) -> Vec<u64> {
        let first = queue.next(None);
        std::iter::successors(first, |turn| queue.next(Some(*turn))).map(|turn| turn.key.arrival).collect()
    }

    #[test]
    fn priority_then_who_ran_before_then_the_least_charged_client_then_arrival() {
        let mut queue = queue(&[
            (0, 7, 0, false),
            (0, 7, 1, false),
            (0, 9, 2, false),
            (1, 9, 3, false),
            (0, 7, 4, true),
            (-1, 7, 5, false),
        ]);
        assert_eq!(turns(&queue), [5, 4, 0, 1, 2, 3]);
        queue.clients.charge(7, 10, 0);
        assert_eq!(turns(&queue), [5, 4, 2, 0, 1, 3]);
        queue.clients.charge(9, 0, 6);
        assert_eq!(turns(&queue), [5, 4, 0, 1, 2, 3]);
        assert_eq!(queue.preempted(), 1);
    }

    #[test]
    fn a_group_takes_turns_as_one_however_many_clients_it_has() {
        let [ann, bob, other] = [(1 << 32) + 1, (1 << 32) + 2, 2 << 32];
        let mut queue = queue(&[(0, ann, 0, false), (0, bob, 1, false), (0, bob, 2, false), (0, other, 3, false)]);
        assert_eq!(turns(&queue), [0, 1, 2, 3], "nobody is charged: arrival");
        queue.clients.charge(ann, 1, 0);
        assert_eq!(turns(&queue), [3, 1, 2, 0], "bob pays for ann beside others, and goes before her within the group");
        queue.clients.charge(other, 2, 0);
        assert_eq!(turns(&queue), [1, 2, 0, 3]);
    }

    #[test]
    fn who_was_away_has_saved_nothing_up_and_lost_no_debt() {
        let mut clients = Accounts::default();
        clients.arrive(1);
        clients.arrive(2);
        clients.charge(1, 100);
        clients.charge(2, 300);
        clients.leave(2);
        clients.arrive(2);
        assert_eq!(clients.charged(2), 300, "leaving pays no debt");
        clients.arrive(3);
        assert_eq!(clients.charged(3), 100, "a newcomer stands beside the least charged");
        for client in 1..4 {
            clients.leave(client);
        }
        assert!(clients.accounts.is_empty(), "nobody is left to be unfair to");
    }

    #[test]
    fn accounts_are_bounded() {
        let mut clients = Accounts::default();
        clients.arrive(0);
        for client in 1..5000 {
            clients.arrive(client);
            clients.charge(client, 1 + client);
            clients.leave(client);
        }
        assert_eq!(clients.accounts.len(), 1 + MAX_IDLE);
    }
}
