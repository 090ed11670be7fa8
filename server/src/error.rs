//! Errors as clients see them: OpenAI's body for every status, or Anthropic's on its own paths.
//!
//! Invariant: a message carries no path, address or prompt, and all four keys of `error` are there.

use std::borrow::Cow;
use std::time::Duration;

use hyper::StatusCode;
use njoule_runtime::request::{RequestError, SubmitError};
use serde_json::{Value, json};

use crate::respond::Dialect;

/// Why a request is refused or failed.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// `error.type`.
    pub kind: &'static str,
    /// `error.code`.
    pub code: &'static str,
    /// `error.param`.
    pub param: Option<Cow<'static, str>>,
    /// `error.message`.
    pub message: String,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// Whether another try may succeed, where the status alone does not say.
    pub should_retry: Option<bool>,
    /// Whether the connection ends with it.
    pub close: bool,
}

impl ApiError {
    /// An error of the client's.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        let kind = match status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            408 => "timeout_error",
            429 => "rate_limit_error",
            503 => "unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        ApiError {
            status,
            kind,
            code,
            param: None,
            message: message.into(),
            retry_after: None,
            should_retry: None,
            close: false,
        }
    }

    /// A value that is out of range, of the wrong type, or in a wrong combination.
    pub fn value(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> ApiError {
        ApiError::coded("invalid_value", param, message)
    }

    /// A bad request with its own code.
    pub fn coded(code: &'static str, param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// Something that this server does not do.
    pub fn unsupported(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> ApiError {
        ApiError::coded("unsupported_parameter", param, message)
    }

    /// The prompt and the answer do not fit.
    pub fn context_length(param: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::coded("context_length_exceeded", param, message)
    }

    /// No room: come back after `retry_after`.
    pub fn overloaded(retry_after: Duration) -> ApiError {
        ApiError {
            retry_after: Some(retry_after),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many requests are waiting; try again")
        }
    }

    /// The model is not there yet.
    pub fn loading() -> ApiError {
        ApiError {
            retry_after: Some(Duration::from_secs(1)),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "loading", "the model is being loaded")
        }
    }

    /// The server goes away.
    pub fn draining() -> ApiError {
        ApiError {
            retry_after: Some(Duration::from_secs(1)),
            close: true,
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "the server is shutting down")
        }
    }

    /// The engine is lost.
    pub fn engine(code: &'static str, message: impl Into<String>, should_retry: bool) -> ApiError {
        ApiError { should_retry: Some(should_retry), ..ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, code, message) }
    }

    /// The body in one shape or the other.
    pub fn in_dialect(&self, dialect: Dialect) -> Value {
        match dialect {
            Dialect::OpenAi => self.body(),
            Dialect::Anthropic => self.anthropic(),
        }
    }

    /// The body in OpenAI's shape.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    /// The body in Anthropic's shape.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            408 => "timeout_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        let message = error.to_string();
        match error {
            SubmitError::Overloaded { .. } => ApiError::overloaded(Duration::from_secs(1)),
            SubmitError::Closed => ApiError::draining(),
            SubmitError::Stopped(error) => error.into(),
            SubmitError::TooLong { .. } | SubmitError::NeverFits { .. } => {
                ApiError::context_length("max_tokens", message)
            }
            SubmitError::EmptyPrompt => ApiError::value("prompt", message),
            SubmitError::TokenId { field, .. } | SubmitError::Logprobs { field, .. } => ApiError::value(field, message),
            SubmitError::EmptyStop | SubmitError::StopWithoutText => ApiError::value("stop", message),
            SubmitError::MinTokens { .. } => ApiError::value("min_tokens", message),
            _ => ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> ApiError {
        match error {
            RequestError::NonFiniteLogits { .. } => {
                ApiError::engine("non_finite_logits", "the model's output is not finite", false)
            }
            RequestError::Mask(error) => {
                let message = format!("the answer cannot go on: {}", grammar_words(&error.to_string()));
                ApiError::new(StatusCode::BAD_REQUEST, "grammar_error", message)
            }
            // Another try would be refused as well, and the replica is sound.
            RequestError::Refused(_) => {
                ApiError::engine("step_refused", "the device refused this request's part of a step", false)
            }
            RequestError::ShutDown => ApiError::draining(),
            // Of the device's own status: what it is called, what it means, what to do.
            RequestError::Device { told, .. } => {
                ApiError::engine("engine_error", format!("the device failed: {told}"), true)
            }
            // What failed inside may name files or addresses: it goes to the log, not to the client.
            _ => ApiError::engine("engine_error", "the engine failed", true),
        }
    }
}

/// What llguidance says of a grammar, in words.
pub fn grammar_words(error: &str) -> String {
    let known = STOPS.iter().find(|(name, _)| error.contains(name));
    let first = error.lines().find(|line| !line.trim().is_empty()).unwrap_or("the grammar cannot be used");
    known.map_or_else(|| first.chars().take(GRAMMAR_MESSAGE).collect(), |(_, words)| (*words).to_owned())
}

/// Names of llguidance's, and what they mean to whoever wrote the grammar.
const STOPS: [(&str, &str); 5] = [
    ("NoExtension", NOTHING),
    ("no token is allowed", NOTHING),
    ("LexerTooComplex", TOO_MUCH),
    ("ParserTooComplex", TOO_MUCH),
    ("Too many items", TOO_MUCH),
];
const NOTHING: &str = "no token of the model fits what is demanded here";
const TOO_MUCH: &str = "to find the tokens that fit takes more work than it may; write a smaller grammar, with fewer alternatives in one place";
const GRAMMAR_MESSAGE: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_keys_are_there_and_the_type_follows_the_status() {
        let error = ApiError::value("top_p", "top_p is 2");
        let body = error.body();
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["param"], "top_p");
        assert_eq!(ApiError::loading().body()["error"]["param"], Value::Null);
        assert_eq!(ApiError::loading().kind, "unavailable_error");
        assert_eq!(body["error"].as_object().map(|o| o.len()), Some(4));
    }

    #[test]
    fn what_failed_inside_stays_inside() {
        let error = ApiError::from(RequestError::Step("/opt/secret/path".into()));
        assert_eq!((error.status.as_u16(), error.should_retry), (500, Some(true)));
        assert!(!error.message.contains("secret"));
        let failure = RequestError::Device { what: "/opt/secret/path".into(), told: "NRT_TIMEOUT (5)".into() };
        let error = ApiError::from(failure);
        assert_eq!((&*error.message, error.status.as_u16()), ("the device failed: NRT_TIMEOUT (5)", 500));
        let error = ApiError::from(RequestError::Refused("/opt/secret/path".into()));
        assert_eq!((error.code, error.should_retry), ("step_refused", Some(false)));
        assert!(!error.message.contains("secret"));
    }
}
