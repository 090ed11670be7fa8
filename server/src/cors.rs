//! Pages in browsers that may read answers: those whose origins are listed, and without a list none.
//!
//! Invariant: what a page may read is decided by its origin alone, before its request is looked at; no origin opens what an API key
//! closes, and credentials of a browser's own are never asked for.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, Response, StatusCode};

use crate::body::Body;

/// Origins whose pages may read answers.
#[derive(Debug)]
pub struct Origins(Vec<String>);

/// The origin of a request, whose page may read the answer.
pub struct Allowed(HeaderValue);

impl Origins {
    /// As they were given; `*` is all.
    pub fn new(origins: &[String]) -> Origins {
        Origins(origins.to_vec())
    }

    /// The origin of a request, if its page may read the answer.
    pub fn of(&self, headers: &HeaderMap) -> Option<Allowed> {
        let origin = headers.get(ORIGIN)?;
        let listed = |known: &String| known == "*" || origin.as_bytes().eq_ignore_ascii_case(known.as_bytes());
        self.0.iter().any(listed).then(|| Allowed(origin.clone()))
    }
}

impl Allowed {
    /// The answer to a browser that asks whether it may send a request, if that is what this one is.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response<Body>> {
        if method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        let mut response = Response::new(Body::whole(""));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let out = response.headers_mut();
        out.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST"));
        out.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        // No header of a request does more than its sender may.
        if let Some(asked) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            out.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        Some(response)
    }

    /// Lets the page read an answer.
    pub fn mark(self, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.0);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
}

const EXPOSED: &str = "x-request-id, retry-after, retry-after-ms, x-should-retry, x-njoule-energy, x-njoule-replica";
