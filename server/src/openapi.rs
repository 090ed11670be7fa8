//! The OpenAPI document of this server, made of the table of its paths and of one table of fields per body.
//!
//! Invariant: every path of the server is in it; a field is in it if and only if the server reads it, or it is marked as
//! ignored (the tests ask every endpoint what it reads); limits are the constants that requests are held to.

mod answers;
mod fields;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::energy::HEADER;
use crate::respond::Dialect;
use crate::routes::{PATHS, Route};

/// The document as JSON text.
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| document().to_string())
}

/// Every field that a body may have, sorted: for those who ask with bad ones.
pub fn request_fields() -> Vec<&'static str> {
    let names: BTreeSet<&str> =
        fields::bodies().into_iter().flat_map(|(_, fields)| fields).map(|field| field.name).collect();
    names.into_iter().collect()
}

fn document() -> Value {
    let paths: Map<String, Value> =
        PATHS.iter().map(|(path, route)| ((*path).to_owned(), operations(path, *route))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {"title": "njoule", "version": env!("CARGO_PKG_VERSION"), "license": {"name": "MIT OR Apache-2.0"},
            "description": "OpenAI's and Anthropic's interfaces over one model. Fields that are not listed are ignored; null counts as absent."},
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"}},
        },
    })
}

fn schemas() -> Value {
    let mut all = answers::schemas();
    for (name, fields) in fields::bodies() {
        all.insert(name.to_owned(), fields::object(&fields));
    }
    all.into()
}

fn operations(path: &str, route: Route) -> Value {
    let mut all = Map::new();
    for method in route.methods().split(", ") {
        let mut operation = operation(route, method);
        operation["operationId"] =
            format!("{}{}", method.to_ascii_lowercase(), path.replace(['/', '.', '{', '}'], "_")).into();
        if !route.is_open() {
            operation["security"] = json!([{}, {"bearer": []}, {"key": []}]);
        }
        all.insert(method.to_ascii_lowercase(), operation);
    }
    let named = match route {
        Route::OneModel => Some("model"),
        Route::OneEnergy => Some("id"),
        _ => None,
    };
    if let Some(name) = named {
        let parameter = json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
        all.insert("parameters".into(), json!([parameter]));
    }
    all.into()
}

/// What a route takes and gives.
fn operation(route: Route, method: &str) -> Value {
    let (summary, body, answer, streamed) = match route {
        Route::Chat => ("Answer messages", Some("ChatRequest"), Answer::Json("Chat"), true),
        Route::Completions => ("Continue a prompt", Some("CompletionRequest"), Answer::Json("Completion"), true),
        Route::Messages => ("Answer messages, Anthropic's way", Some("MessagesRequest"), Answer::Json("Message"), true),
        Route::CountTokens => {
            ("Count the tokens of messages", Some("CountTokensRequest"), Answer::Json("TokenCount"), false)
        }
        Route::Models => ("The model, by each of its names", None, Answer::Json("Models"), false),
        Route::OneModel => ("The model", None, Answer::Json("Model"), false),
        Route::Tokenize => ("Text or messages to ids", Some("TokenizeRequest"), Answer::Json("Tokens"), false),
        Route::Detokenize => ("Ids to text", Some("DetokenizeRequest"), Answer::Json("Text"), false),
        Route::Invocations => (
            "SageMaker's: messages are a chat, a prompt a completion",
            Some("Invocation"),
            Answer::Json("Invoked"),
            true,
        ),
        Route::Ping => ("SageMaker's probe: as /health", None, Answer::Empty, false),
        Route::Live => ("Whether the engine is not lost", None, Answer::Empty, false),
        Route::Ready => ("Whether new requests are taken", None, Answer::Empty, false),
        Route::Health => ("Whether the model is loaded and the engine alive", None, Answer::Empty, false),
        Route::Replicas => {
            ("What is going on with the replicas, where there are any", None, Answer::Json("Replicas"), false)
        }
        Route::Metrics => ("Figures in Prometheus' format", None, Answer::Text, false),
        Route::Energy => ("Energy and CPU time so far, by which meters", None, Answer::Json("Energy"), false),
        Route::OneEnergy => (
            "usage.energy of an answer that had it, with what meters have told since",
            None,
            Answer::Json("UsedEnergy"),
            false,
        ),
        Route::Version => ("The version of the server", None, Answer::Json("Version"), false),
        Route::OpenApi => ("This document", None, Answer::Json("OpenApi"), false),
    };
    let mut content = Map::new();
    match answer {
        _ if method == "HEAD" => {}
        Answer::Json(name) => drop(content.insert("application/json".into(), json!({"schema": reference(name)}))),
        Answer::Text => drop(content.insert("text/plain".into(), json!({"schema": {"type": "string"}}))),
        Answer::Empty => {}
    }
    if streamed {
        content.insert("text/event-stream".into(), json!({"schema": {"type": "string"}}));
    }
    let mut responses = Map::new();
    let mut ok = json!({"description": summary});
    if !content.is_empty() {
        ok["content"] = content.into();
    }
    responses.insert("200".into(), ok);
    for (status, what) in statuses(route) {
        let name = if route.dialect() == Dialect::Anthropic { "AnthropicError" } else { "Error" };
        let mut error = json!({"description": what});
        if method != "HEAD" {
            error["content"] = json!({"application/json": {"schema": reference(name)}});
        }
        responses.insert(status.to_string(), error);
    }
    let mut operation = json!({"summary": summary, "responses": responses});
    if streamed {
        operation["parameters"] = json!([{"name": HEADER, "in": "header", "required": false,
            "description": "true or 1: usage.energy says what the answer has used, and where it is not streamed this header as well",
            "schema": {"type": "string"}},
            {"name": "endpoint-load-metrics-format", "in": "header", "required": false,
            "description": "TEXT or JSON: the header endpoint-load-metrics of the answer says how full the server is (ORCA)",
            "schema": {"type": "string"}}]);
    }
    if let Some(name) = body {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": reference(name)}}});
    }
    operation
}

enum Answer {
    Json(&'static str),
    Text,
    Empty,
}

/// Errors of a route.
fn statuses(route: Route) -> Vec<(u16, &'static str)> {
    let mut all = vec![(400, "the request is not HTTP"), (403, "the Host header"), (431, "headers are too large")];
    if !route.is_open() {
        all.push((401, "no API key, or a wrong one"));
    }
    let posts = !matches!(route, Route::Ping) && route.methods() == "POST";
    if posts {
        all[0].1 = "a field, by its name in error.param";
        all.extend([(404, "the model is not served here"), (408, "the request took too long")]);
        all.extend([(413, "the body is too large"), (415, "the body is no JSON"), (500, "the engine failed")]);
    }
    if route == Route::OneModel {
        all.push((404, "the model is not served here"));
    }
    if route == Route::OneEnergy {
        all.push((404, "no such answer of yours is kept: the id, no usage.energy, or too long ago"));
    }
    if !matches!(route, Route::Version | Route::Replicas | Route::Metrics | Route::OpenApi) {
        all.push((503, "loading, draining, or full: come back after retry-after"));
    }
    all.sort_unstable();
    all
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}
