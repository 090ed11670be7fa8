//! From what a handler gives to an HTTP response.

use std::sync::{Arc, OnceLock};

use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::body::Body;
use crate::energy::{Energy, HEADER};
use crate::error::ApiError;
use crate::sse::EventStream;

/// The code of the error that a request has ended by, as soon as it has; goes with its response, for the log.
pub type Failure = Arc<OnceLock<&'static str>>;

/// What a handler gives.
pub enum Reply {
    /// Nothing but its status.
    Empty,
    /// JSON text.
    Json(Vec<u8>),
    /// JSON text, and what it has used.
    Metered(Vec<u8>, Energy),
    /// Prometheus' text format.
    Metrics(String),
    /// An answer as it is made.
    Events(EventStream),
    /// What a replica has answered.
    Made(Response<Body>),
}

impl Reply {
    /// `value` as JSON.
    pub fn json(value: &impl Serialize) -> Reply {
        // Our own types have string keys, and a vector takes everything.
        Reply::Json(serde_json::to_vec(value).unwrap_or_default())
    }

    /// `value` as JSON, with a header that says what it has used where that is asked for.
    pub fn metered(value: &impl Serialize, energy: Option<Energy>) -> Reply {
        match (Reply::json(value), energy) {
            (Reply::Json(json), Some(energy)) => Reply::Metered(json, energy),
            (reply, _) => reply,
        }
    }
}

/// Whose shape errors have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's.
    #[default]
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

/// The response to a request.
pub fn response(result: Result<Reply, ApiError>, dialect: Dialect) -> Response<Body> {
    let (kind, body) = match result {
        Err(error) => return refusal(&error, dialect),
        Ok(Reply::Empty) => return Response::new(Body::whole("")),
        Ok(Reply::Made(response)) => return response,
        Ok(Reply::Json(json)) => ("application/json", Body::whole(json)),
        Ok(Reply::Metered(json, energy)) => {
            let mut response = response(Ok(Reply::Json(json)), dialect);
            if let Ok(value) = HeaderValue::from_str(&energy.header()) {
                response.headers_mut().insert(HeaderName::from_static(HEADER), value);
            }
            return response;
        }
        Ok(Reply::Metrics(text)) => ("text/plain; version=0.0.4; charset=utf-8", Body::whole(text)),
        Ok(Reply::Events(events)) => {
            let failure = events.failure();
            let mut response = Response::new(Body::stream(Box::new(events)));
            response.extensions_mut().insert(failure);
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            // Proxies of nginx's kind hold streams back otherwise.
            headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
            return response;
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The response to a request that is refused or has failed.
pub fn refusal(error: &ApiError, dialect: Dialect) -> Response<Body> {
    let mut response = Response::new(Body::whole(error.in_dialect(dialect).to_string()));
    *response.status_mut() = error.status;
    response.extensions_mut().insert(Failure::new(OnceLock::from(error.code)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if error.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(after) = error.retry_after {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from(millis));
    }
    if let Some(retry) = error.should_retry {
        let value = HeaderValue::from_static(if retry { "true" } else { "false" });
        headers.insert(HeaderName::from_static("x-should-retry"), value);
    }
    if error.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A whole response as bytes, for a connection that never became a request.
pub fn bytes(error: &ApiError) -> Vec<u8> {
    let body = error.body().to_string();
    let reason = error.status.canonical_reason().unwrap_or("Error");
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        error.status.as_u16(),
        body.len()
    )
    .into_bytes()
}
