//! The same answers without HTTP: the body of a request in, the body of its response out.
//!
//! Invariant: what a [`Local`] answers is byte for byte what a server with the same model would send for the same body, but
//! for ids and times; every request is answered exactly once.

use std::sync::Arc;
use std::time::Duration;

use njoule_runtime::{Engine, EngineStats};
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use crate::app::{App, Phase, lost};
use crate::aside::aside;
use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::model::{Model, ModelParts, shorten};
use crate::respond::{Dialect, Reply};
use crate::routes::{Prepared, Route, prepare};
use crate::{ASIDE_THREADS, LAST_TASKS, StartError, THREADS, watchdog};

/// A model that answers bodies of requests.
pub struct Local {
    app: Arc<App>,
    engine: Engine,
    runtime: Runtime,
}

/// What a server would have sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// HTTP status.
    pub status: u16,
    /// A name that no other request of this process has.
    pub request_id: String,
    /// One line of JSON.
    pub body: Vec<u8>,
}

impl Local {
    /// Starts. Limits of a server's queue do not hold: whoever submits bounds what is in flight.
    pub fn start(model: ModelParts, config: ServerConfig) -> Result<Local, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(ASIDE_THREADS)
            .thread_name("njoule-local")
            .enable_time()
            .build()
            .map_err(StartError::Threads)?;
        let unbounded = usize::MAX >> 1;
        let config = ServerConfig { max_queued_requests: unbounded, max_queued_tokens: unbounded, ..config };
        let app = Arc::new(App::new(config, true));
        let engine = model.engine.clone();
        app.serve_model(Model::new(model));
        runtime.spawn(watchdog::watch(app.clone()));
        Ok(Local { app, engine, runtime })
    }

    /// Answers `body` as a POST to `url` would be; `done` gets the answer on another thread.
    pub fn submit(&self, url: String, body: Map<String, Value>, done: impl FnOnce(Answered) + Send + 'static) {
        let app = self.app.clone();
        self.runtime.spawn(async move {
            let request_id = app.unique();
            let dialect = Route::of(&url).map_or(Dialect::OpenAi, Route::dialect);
            // A task of its own, so that a panic is an answer too.
            let result = match tokio::spawn(async move { answer(&app, &url, body).await }).await {
                Ok(result) => result,
                Err(_) => Err(ApiError::engine("internal_error", "the request could not be handled", false)),
            };
            let (status, body) = match result {
                Ok(body) => (200, body),
                Err(error) => (error.status.as_u16(), error.in_dialect(dialect).to_string().into_bytes()),
            };
            done(Answered { status, request_id, body });
        });
    }

    /// Whether the engine hangs or has failed: nothing more will be answered.
    pub fn is_lost(&self) -> bool {
        self.app.phase() == Phase::Dead || self.engine.failure().is_some()
    }

    /// Ends the engine and what it still runs, and returns its figures and why joules of all of it are unknown, if they are.
    pub fn finish(self) -> (EngineStats, Vec<String>) {
        let lost = self.is_lost();
        self.app.advance(Phase::Ending);
        self.runtime.shutdown_timeout(LAST_TASKS);
        if !lost && let Err(error) = self.engine.shutdown(Duration::ZERO) {
            tracing::warn!(%error, "the engine did not end");
        }
        let (stats, meters) = (self.engine.stats(), self.engine.meters());
        let reasons = stats.energy.whole().reasons(meters.as_deref());
        (stats, reasons)
    }
}

async fn answer(app: &Arc<App>, url: &str, body: Map<String, Value>) -> Result<Vec<u8>, ApiError> {
    let route = match Route::of(url) {
        Some(route @ (Route::Chat | Route::Completions | Route::Messages)) => route,
        _ => {
            let message = format!("{:?} is not answered here; {URLS} are", shorten(url));
            return Err(ApiError::new(hyper::StatusCode::NOT_FOUND, "unknown_url", message));
        }
    };
    if body.get("stream").is_some_and(|stream| *stream == Value::Bool(true)) {
        return Err(ApiError::unsupported("stream", "a batch does not stream its answers"));
    }
    let model = app.open()?.clone();
    let work = {
        let app = app.clone();
        aside(None, move || {
            let metered = app.config.usage_energy;
            prepare(&app, &model, route, Fields::of_object(body).metered(metered))
        })
        .await?
    };
    let reply = match work {
        Prepared::Chat(chat) => Box::pin(chat.run(app)).await,
        Prepared::Completions(completions) => Box::pin(completions.run(app)).await,
        Prepared::Messages(messages) => Box::pin(messages.run(app)).await,
    };
    match reply {
        Ok(Reply::Json(body) | Reply::Metered(body, _)) => Ok(body),
        Ok(_) => Err(ApiError::engine("internal_error", "the answer is no JSON", false)),
        Err(_) if app.phase() == Phase::Dead => Err(lost()),
        Err(error) => Err(error),
    }
}

const URLS: &str = "/v1/chat/completions, /v1/completions and /v1/messages";
