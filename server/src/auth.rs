//! Who may ask: API keys, and the Host header against DNS rebinding.
//!
//! Invariant: keys are compared as hashes, in constant time, and all of them, so that an answer's time says nothing about
//! any key.

use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use hyper::{StatusCode, Uri};
use sha2::{Digest, Sha256};

use crate::error::ApiError;

/// The keys that open the API; with none it is open.
#[derive(Debug)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Keys as they were given.
    pub fn new(keys: &[String]) -> Keys {
        Keys(keys.iter().map(|key| hash(key.as_bytes())).collect())
    }

    /// Refuses a request that carries none of the keys, as `Authorization: Bearer` or as `X-Api-Key`, and says which
    /// one it was.
    pub fn check(&self, headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let bearer = headers.get(AUTHORIZATION).map(|value| value.as_bytes()).and_then(|value| {
            let (scheme, key) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
        let Some(given) = given else {
            return Err(denied("an API key is needed, as `Authorization: Bearer` or `X-Api-Key`"));
        };
        let given = hash(given);
        let looked = self.0.iter().enumerate();
        let found = looked.fold(None, |found, (i, key)| if same(key, &given) { Some(i) } else { found });
        found.map(Some).ok_or_else(|| denied("the API key is not known"))
    }
}

fn denied(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Looks at every byte whatever it finds.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}

/// Names that may stand in the Host header.
#[derive(Debug)]
pub struct Hosts {
    names: Vec<String>,
    open: bool,
}

impl Hosts {
    /// `names` and, on the loopback interface, addresses and `localhost` alone.
    pub fn new(names: &[String], loopback: bool) -> Hosts {
        let open = names.iter().any(|name| name == "*") || (names.is_empty() && !loopback);
        Hosts { names: names.to_vec(), open }
    }

    /// Refuses a page whose name was made to point at this server.
    pub fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
        let header = headers.get(HOST).and_then(|host| host.to_str().ok());
        let Some(host) = uri.host().or_else(|| header.map(without_port)).filter(|_| !self.open) else { return Ok(()) };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let local = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
        let address = bare.parse::<std::net::IpAddr>().is_ok();
        if local || address || self.names.iter().any(|name| name.eq_ignore_ascii_case(host)) {
            return Ok(());
        }
        let message = "the Host header names no address of this server; --allowed-host admits a name";
        Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
    }

    #[test]
    fn either_header_opens_and_a_wrong_key_does_not() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        for good in [("authorization", "Bearer two"), ("authorization", "bearer one"), ("x-api-key", "one")] {
            assert!(matches!(keys.check(&headers(&[good])), Ok(Some(_))), "{good:?}");
        }
        for bad in [("authorization", "Bearer three"), ("authorization", "one"), ("x-api-key", ""), ("x-other", "one")]
        {
            assert_eq!(keys.check(&headers(&[bad])).unwrap_err().status, 401, "{bad:?}");
        }
        assert_eq!(keys.check(&headers(&[("x-api-key", "two")])), Ok(Some(1)));
        assert_eq!(Keys::new(&[]).check(&headers(&[])), Ok(None));
    }

    #[test]
    fn on_the_loopback_interface_only_addresses_and_listed_names_are_taken() {
        let uri = Uri::from_static("/v1/models");
        let check = |hosts: &Hosts, host: &str| hosts.check(&headers(&[("host", host)]), &uri).is_ok();
        let local = Hosts::new(&["box.lan".into()], true);
        for good in ["127.0.0.1:8000", "localhost", "[::1]:80", "10.0.0.3", "box.lan:99", "a.localhost"] {
            assert!(check(&local, good), "{good}");
        }
        assert!(!check(&local, "evil.example:8000") && !check(&local, "localhost.evil.example"));
        assert!(check(&Hosts::new(&[], false), "svc.cluster.local"));
        assert!(!check(&Hosts::new(&["a".into()], false), "b"));
        assert!(check(&Hosts::new(&["*".into()], true), "b"));
    }
}
