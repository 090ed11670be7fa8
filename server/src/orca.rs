//! Load reports in answers, for load balancers that ask for them (ORCA, Open Request Cost Aggregation).
//!
//! Invariant: a report has the numbers that `/metrics` has; where they are not known there is none.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use crate::app::App;

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `name=value, ...`
    Text,
    /// An object.
    Json,
}

/// How full a server is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Share of the cache in use.
    pub cache: f64,
    /// Requests that wait.
    pub waiting: f64,
}

/// What a request wants to be told, if anything.
pub fn asked(headers: &HeaderMap) -> Option<Form> {
    let form = headers.get(ASKS)?.to_str().ok()?.trim();
    match () {
        () if form.eq_ignore_ascii_case("TEXT") => Some(Form::Text),
        () if form.eq_ignore_ascii_case("JSON") => Some(Form::Json),
        () => None,
    }
}

/// Puts the report into an answer.
pub fn report(app: &App, form: Form, headers: &mut HeaderMap) {
    let told = app.load().and_then(|load| HeaderValue::from_str(&load.written(form)).ok());
    if let Some(told) = told {
        headers.insert(HeaderName::from_static(TELLS), told);
    }
}

impl Load {
    fn written(self, form: Form) -> String {
        let Load { cache, waiting } = self;
        match form {
            Form::Text => {
                format!(
                    "TEXT named_metrics.kv_cache_usage_perc={cache:?}, named_metrics.num_requests_waiting={waiting:?}"
                )
            }
            Form::Json => {
                let metrics = json!({"kv_cache_usage_perc": cache, "num_requests_waiting": waiting});
                format!("JSON {}", json!({"named_metrics": metrics}))
            }
        }
    }
}

const ASKS: &str = "endpoint-load-metrics-format";
const TELLS: &str = "endpoint-load-metrics";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_written_as_it_was_asked_for() {
        let load = Load { cache: 0.4, waiting: 2.0 };
        let text = "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2.0";
        assert_eq!(load.written(Form::Text), text);
        let json = r#"JSON {"named_metrics":{"kv_cache_usage_perc":0.4,"num_requests_waiting":2.0}}"#;
        assert_eq!(load.written(Form::Json), json);
        for (asks, form) in [("TEXT", Some(Form::Text)), ("json", Some(Form::Json)), ("BIN", None)] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(ASKS), HeaderValue::from_static(asks))]);
            assert_eq!(asked(&headers), form);
        }
        assert_eq!(asked(&HeaderMap::new()), None);
    }
}
