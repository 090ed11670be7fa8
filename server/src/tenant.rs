//! Whom a request counts for: the owner of its API key or, where there are no keys, the address that it comes from.
//!
//! Invariant: nothing that a client sends makes it another tenant. The field `user` splits a tenant's turns, never its room in
//! the queue; a header names a tenant to a replica alone, which only the process before it can reach.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// Whom a request counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenant {
    key: Option<usize>,
    number: u32,
}

impl Tenant {
    /// The owner of an API key.
    pub fn of_key(key: usize) -> Tenant {
        Tenant { key: Some(key), number: u32::try_from(key).unwrap_or(u32::MAX) }
    }

    /// Who asks from an address. Of IPv6 the first 64 bits count: who has one such address has all of its network.
    pub fn of_peer(peer: IpAddr) -> Tenant {
        let number = match peer.to_canonical() {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => folded(address.to_bits() >> 64),
        };
        Tenant { key: None, number }
    }

    /// Whom the process that forwards to a replica names.
    pub fn of_header(headers: &HeaderMap) -> Option<Tenant> {
        let number = headers.get(HEADER)?.to_str().ok()?.parse().ok()?;
        Some(Tenant { key: None, number })
    }

    /// That name, where no API key says it.
    pub fn header(self) -> Option<HeaderValue> {
        self.key.is_none().then(|| HeaderValue::from(self.number))
    }

    /// The API key, where there are keys.
    pub fn key(self) -> Option<usize> {
        self.key
    }

    /// Differs from that of any other tenant.
    pub fn number(self) -> u32 {
        self.number
    }

    /// Who takes turns: without a key each `user` of an address. Two users of one number take turns as one.
    pub fn client(self, user: Option<&str>) -> u64 {
        let user = user.filter(|_| self.key.is_none()).map_or(0, folded);
        (u64::from(self.number) << 32) | u64::from(user)
    }

    /// All of its [`Tenant::client`]s.
    pub fn clients(self) -> RangeInclusive<u64> {
        let first = u64::from(self.number) << 32;
        first..=(first | u64::from(u32::MAX))
    }

    /// How full a queue of `most` may get for a tenant that has nothing in it: keys are few, addresses are not.
    pub fn most(self, most: usize) -> usize {
        if self.key.is_some() { usize::MAX } else { most.saturating_mul(2) }
    }
}

/// How many each tenant has of something.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<u32, usize>>);

impl Counts {
    /// Counts one more, and says how many that makes.
    pub fn add(&self, tenant: Tenant) -> usize {
        let mut all = self.all();
        let own = all.entry(tenant.number).or_default();
        *own += 1;
        *own
    }

    /// Counts one less.
    pub fn remove(&self, tenant: Tenant) {
        let mut all = self.all();
        if let Some(own) = all.get_mut(&tenant.number) {
            *own -= 1;
            if *own == 0 {
                all.remove(&tenant.number);
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folded(value: impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    // The lower half is as good as any.
    (hasher.finish() & u64::from(u32::MAX)) as u32
}

/// From the process that owns the port to a replica.
pub const HEADER: HeaderName = HeaderName::from_static("x-njoule-tenant");

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Tenant {
        Tenant::of_peer(address.parse().unwrap())
    }

    #[test]
    fn addresses_are_tenants_and_a_network_of_ipv6_is_one() {
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
    }

    #[test]
    fn users_split_the_turns_of_an_address_within_its_clients_and_not_those_of_a_key() {
        let (one, other) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let turns = [None, Some("ann"), Some("bob")].map(|user| one.client(user));
        assert!(turns[0] != turns[1] && turns[1] != turns[2] && turns[0] != turns[2], "{turns:?}");
        assert!(turns.iter().all(|turn| one.clients().contains(turn) && !other.clients().contains(turn)));
        assert_ne!(one.client(Some("ann")), other.client(Some("ann")));
        let key = Tenant::of_key(3);
        assert_eq!(key.client(Some("ann")), key.client(None));
        assert!(key.clients().contains(&key.client(None)));
    }

    #[test]
    fn a_replica_takes_an_address_by_its_header_and_a_key_by_the_key() {
        let one = peer("10.0.0.1");
        let headers: HeaderMap = [(HEADER, one.header().unwrap())].into_iter().collect();
        assert_eq!(Tenant::of_header(&headers), Some(one));
        assert_eq!(Tenant::of_key(0).header(), None);
        let bad: HeaderMap = [(HEADER, HeaderValue::from_static("-1"))].into_iter().collect();
        assert_eq!(Tenant::of_header(&bad), None);
    }
}
