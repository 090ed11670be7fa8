//! The document against what the server does: every endpoint is asked what it reads.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use njoule_models::chat::ChatTemplate;
use njoule_models::checkpoint::Checkpoint;
use njoule_models::tokenizer::Tokenizer;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{Backend, Capacity, Quant};
use njoule_runtime::{Engine, EngineConfig};
use serde_json::{Value, json};

use super::fields::bodies;
use super::text;
use crate::app::App;
use crate::config::ServerConfig;
use crate::fields::{ASKED, Fields};
use crate::model::{Model, ModelParts};
use crate::routes::{PATHS, Route, prepare};
use crate::{anthropic, tokenize};

fn model() -> Arc<Model> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/qwen3");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_files(&dir).unwrap());
    let program = checkpoint.config.program();
    let backend = CpuBackend::new(NonZero::<usize>::MIN, Quant::None).unwrap();
    let block_len = backend.limits(&program).block_len;
    let capacity = Capacity { blocks: 8, block_len, max_rows: 8, max_seqs: 1, max_outputs: 8, max_len: 64 };
    let executor = backend.load(&program, &*checkpoint.weights, capacity).unwrap();
    Arc::new(Model::new(ModelParts {
        engine: Engine::start(executor, program.vocab(), EngineConfig::new(capacity)).unwrap(),
        template: ChatTemplate::of(&tokenizer).unwrap().map(Arc::new),
        tokenizer,
        names: vec!["m".into()],
        eos: vec![2],
        defaults: None,
        load: Duration::ZERO,
        compile: None,
        seed: None,
    }))
}

#[test]
fn a_field_is_documented_if_and_only_if_it_is_read() {
    let (app, model) = (Arc::new(App::new(ServerConfig::default(), true)), model());
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let ask = |name: &str, body: Value| {
        ASKED.with_borrow_mut(BTreeSet::clear);
        let fields = Fields::of_body(body.to_string().as_bytes()).unwrap();
        let read = match name {
            "ChatRequest" => prepare(&app, &model, Route::Chat, fields).map(drop),
            "CompletionRequest" => prepare(&app, &model, Route::Completions, fields).map(drop),
            "MessagesRequest" => prepare(&app, &model, Route::Messages, fields).map(drop),
            "CountTokensRequest" => anthropic::count_tokens(&app, &model, fields).map(drop),
            "TokenizeRequest" => tokenize::tokenize(&app, &model, fields).map(drop),
            "DetokenizeRequest" => tokenize::detokenize(&model, fields).map(drop),
            other => panic!("{other} is not asked"),
        };
        read.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        ASKED.with_borrow(BTreeSet::clone)
    };
    // Fields of objects within.
    let nested = ["include_usage", "continuous_usage_stats", "type", "disable_parallel_tool_use", "format"];
    for (name, fields) in bodies() {
        let body = match name {
            "CompletionRequest" => json!({"prompt": "Hi"}),
            "DetokenizeRequest" => json!({"tokens": [5]}),
            _ => json!({"messages": messages, "max_tokens": 4}),
        };
        let mut read = ask(name, body);
        read.retain(|field| !nested.contains(&field.as_str()));
        let documented: BTreeSet<String> =
            fields.iter().filter(|field| field.is_read()).map(|field| field.name.to_owned()).collect();
        assert_eq!(documented.len(), fields.iter().filter(|field| field.is_read()).count(), "{name} has a field twice");
        assert_eq!(read, documented, "{name}");
    }
}

#[test]
fn every_path_and_every_reference_is_there() {
    let document: Value = serde_json::from_str(text()).unwrap();
    for (path, route) in PATHS {
        let found = Route::of(&path.replace("{model}", "m"));
        assert_eq!(found, Some(route), "{path}");
        for method in route.methods().split(", ") {
            let operation = &document["paths"][path][method.to_ascii_lowercase()];
            assert!(operation["responses"]["200"].is_object(), "{method} {path}");
        }
    }
    for reference in text().split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}
