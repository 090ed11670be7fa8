//! Which path does what, and what holds for all of them: ids, keys, limits, the log.

use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::anthropic::{self, Messages};
use crate::app::{App, InFlight, Phase, lost};
use crate::aside::aside;
use crate::body::{self, Body};
use crate::chat::Chat;
use crate::completions::Completions;
use crate::elsewhere;
use crate::energy;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::model::Model;
use crate::openapi;
use crate::replicas::{find, proxy};
use crate::respond::{self, Dialect, Failure, Reply};
use crate::tenant::Tenant;
use crate::{orca, tokenize, trace};

/// Answers a request that came from `peer`.
pub async fn handle(app: Arc<App>, peer: Tenant, request: Request<Incoming>) -> Response<Body> {
    let id = request_id(&app, &request);
    let path = request.uri().path().to_owned();
    let mut access = Access {
        _in_flight: app.enter(),
        start: Instant::now(),
        id: id.clone(),
        trace: trace::id(request.headers()).map(str::to_owned),
        method: request.method().clone(),
        path,
        status: 0,
        failure: None,
    };
    let route = Route::of(&access.path);
    let dialect = route.map_or(Dialect::OpenAi, Route::dialect);
    let report = orca::asked(request.headers()).filter(|_| route.is_some_and(Route::runs));
    let page = app.origins.of(request.headers());
    let preflight = page.as_ref().and_then(|page| page.preflight(request.method(), request.headers()));
    let mut response = match (preflight, refuse_early(&app, peer, &request, route)) {
        // A browser sends no key to ask whether it may.
        (Some(preflight), _) => preflight,
        (None, Err(error)) => respond::response(Err(error), dialect),
        (None, Ok((route, _))) if !route.allows(request.method()) => not_allowed(route, dialect),
        (None, Ok((route, tenant))) => match app.replicas().filter(|_| route.is_forwarded()).cloned() {
            Some(replicas) if route == Route::OneEnergy => {
                respond::response(find::answer(&replicas, tenant, &id, request).await, dialect)
            }
            Some(replicas) => {
                let made = proxy::answer(&app, &replicas, tenant, dialect, route.runs(), &id, request).await;
                respond::response(made, dialect)
            }
            None => respond::response(answer(&app, route, tenant, request).await, dialect),
        },
    };
    let status = response.status().as_u16();
    if let Some(count) = app.metrics.responses.get(usize::from(status / 100)) {
        count.add(1);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        if dialect == Dialect::Anthropic {
            // The name that its clients read.
            response.headers_mut().insert(HeaderName::from_static("request-id"), id.clone());
        }
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
    }
    if let Some(form) = report {
        orca::report(&app, form, response.headers_mut());
    }
    if let Some(page) = page {
        page.mark(response.headers_mut());
    }
    access.status = status;
    access.failure = response.extensions_mut().remove();
    response.map(|body| body.with_guard(Box::new(access)))
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Live,
    Ready,
    Health,
    Replicas,
    Ping,
    Version,
    OpenApi,
    Metrics,
    Models,
    OneModel,
    Energy,
    OneEnergy,
    Chat,
    Completions,
    Tokenize,
    Detokenize,
    Invocations,
    Messages,
    CountTokens,
}

/// Every path; `{model}` is a name, which may hold slashes, `{id}` that of an answer.
pub const PATHS: [(&str, Route); 22] = [
    ("/v1/chat/completions", Route::Chat),
    ("/v1/completions", Route::Completions),
    ("/v1/messages", Route::Messages),
    ("/v1/messages/count_tokens", Route::CountTokens),
    ("/v1/models", Route::Models),
    ("/v1/models/{model}", Route::OneModel),
    ("/v1/energy", Route::Energy),
    ("/v1/energy/requests/{id}", Route::OneEnergy),
    // For who leaves the version out, as llama.cpp's server takes them.
    ("/chat/completions", Route::Chat),
    ("/models", Route::Models),
    ("/tokenize", Route::Tokenize),
    ("/detokenize", Route::Detokenize),
    ("/invocations", Route::Invocations),
    ("/ping", Route::Ping),
    ("/live", Route::Live),
    ("/ready", Route::Ready),
    ("/health", Route::Health),
    ("/v1/health", Route::Health),
    ("/replicas", Route::Replicas),
    ("/metrics", Route::Metrics),
    ("/version", Route::Version),
    ("/openapi.json", Route::OpenApi),
];

impl Route {
    /// The route of a path, with a slash at its end or without.
    pub fn of(path: &str) -> Option<Route> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let named = |start: &str| path.strip_prefix(start).is_some_and(|name| !name.is_empty());
        let known = || PATHS.iter().find(|(known, _)| *known == path).map(|(_, route)| *route);
        match () {
            () if named(MODELS) => Some(Route::OneModel),
            () if named(ANSWERS) => Some(Route::OneEnergy),
            () => known(),
        }
    }

    /// Whose shape its errors have.
    pub fn dialect(self) -> Dialect {
        match self {
            Route::Messages | Route::CountTokens => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        }
    }

    /// Whether it is open to everybody.
    pub fn is_open(self) -> bool {
        use Route::*;
        matches!(self, Live | Ready | Health | Replicas | Ping | Version | OpenApi | Metrics)
    }

    /// Whether the engine runs it.
    fn runs(self) -> bool {
        matches!(self, Route::Chat | Route::Completions | Route::Invocations | Route::Messages)
    }

    /// Whether a replica answers it, where there are any.
    fn is_forwarded(self) -> bool {
        !self.is_open()
    }

    /// What it may be asked by.
    pub fn methods(self) -> &'static str {
        use Route::*;
        match self {
            Live | Ready | Health | Replicas | Version | OpenApi | Metrics | Models | OneModel | Energy | OneEnergy => {
                "GET, HEAD"
            }
            Ping => "GET, HEAD, POST",
            _ => "POST",
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// What is refused whatever else a request says; what is left has a route, and somebody whom it counts for.
fn refuse_early(
    app: &App,
    peer: Tenant,
    request: &Request<Incoming>,
    route: Option<Route>,
) -> Result<(Route, Tenant), ApiError> {
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if bytes > app.config.max_headers {
        let message = format!("the headers are larger than {} bytes", app.config.max_headers);
        let error = ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", message);
        return Err(ApiError { close: true, ..error });
    }
    app.hosts.check(headers, request.uri())?;
    let owner = if route.is_some_and(Route::is_open) { None } else { app.keys.check(headers)? };
    let tenant = match owner {
        Some(key) => Tenant::of_key(key),
        None => Tenant::of_header(headers).filter(|_| app.config.is_replica).unwrap_or(peer),
    };
    route
        .map(|route| (route, tenant))
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "unknown_url", elsewhere::nothing_at(request.uri().path())))
}

fn not_allowed(route: Route, dialect: Dialect) -> Response<Body> {
    let message = format!("the method must be one of {}", route.methods());
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method", message);
    let mut response = respond::refusal(&error, dialect);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(route.methods()));
    response
}

async fn answer(app: &Arc<App>, route: Route, tenant: Tenant, request: Request<Incoming>) -> Result<Reply, ApiError> {
    match route {
        Route::Live if app.phase() == Phase::Dead => Err(unavailable("dead", "the engine is lost")),
        Route::Live => Ok(Reply::Empty),
        Route::Ready if app.is_ready() => Ok(Reply::Empty),
        Route::Ready => Err(match app.phase() {
            Phase::Loading => ApiError::loading(),
            Phase::Draining | Phase::Ending => ApiError { close: false, ..ApiError::draining() },
            Phase::Dead => unavailable("dead", "the engine is lost"),
            Phase::Ready => unavailable("overloaded", "the queue is full"),
        }),
        Route::Health | Route::Ping if app.is_healthy() => Ok(Reply::Empty),
        Route::Replicas => match app.replicas() {
            Some(replicas) => Ok(Reply::json(&replicas.describe())),
            None => Ok(Reply::json(&json!({"status": "ok", "replicas": []}))),
        },
        Route::Health | Route::Ping if app.phase() == Phase::Loading => Err(ApiError::loading()),
        Route::Health | Route::Ping => Err(unavailable("dead", "the engine is lost")),
        Route::Version => Ok(Reply::json(&json!({"version": env!("CARGO_PKG_VERSION")}))),
        Route::OpenApi => Ok(Reply::Json(openapi::text().into())),
        Route::Metrics => {
            if let Some(replicas) = app.replicas() {
                replicas.refresh().await;
            }
            Ok(Reply::Metrics(app.scrape()))
        }
        Route::Models => {
            let model = loaded(app)?;
            let data: Vec<_> = model.names().iter().map(|name| model.describe(name)).collect();
            Ok(Reply::json(&json!({"object": "list", "data": data})))
        }
        Route::Energy => {
            let engine = loaded(app)?.engine();
            Ok(Reply::json(&engine.stats().energy.json(engine.meters().as_deref())))
        }
        Route::OneEnergy => {
            let id = request.uri().path().strip_prefix(ANSWERS).unwrap_or_default();
            Ok(Reply::json(&energy::of_answer(app, id, tenant)?))
        }
        Route::OneModel => {
            let model = loaded(app)?;
            let name = request.uri().path().strip_prefix(MODELS).unwrap_or_default();
            let name = name.strip_suffix('/').unwrap_or(name).replace("%2F", "/").replace("%2f", "/");
            model.check_name(Some(&name))?;
            Ok(Reply::json(&model.describe(&name)))
        }
        Route::Tokenize | Route::Detokenize | Route::CountTokens => {
            let model = loaded(app)?.clone();
            let (body, room) = body::read(request, app).await?;
            let turn = app.turn(body.len()).await;
            let app = app.clone();
            aside(turn, move || {
                let _room = room;
                let fields = Fields::of_body(&body)?;
                match route {
                    Route::Tokenize => tokenize::tokenize(&app, &model, fields),
                    Route::Detokenize => tokenize::detokenize(&model, fields),
                    _ => anthropic::count_tokens(&app, &model, fields),
                }
            })
            .await
        }
        Route::Chat | Route::Completions | Route::Invocations | Route::Messages => {
            // Looked at before the body is read: a server that goes away says so at once.
            app.open()?;
            let metered = app.config.usage_energy || asks_for_energy(&request);
            let (body, room) = body::read(request, app).await?;
            let (model, preparing) = app.admit(tenant)?;
            let turn = app.turn(body.len()).await;
            let work = {
                let app = app.clone();
                aside(turn, move || {
                    let _room = room;
                    prepare(&app, &model, route, Fields::of_body(&body)?.sent_by(tenant).metered(metered))
                })
                .await?
            };
            // From here on the engine counts it.
            let reply = match work {
                Prepared::Chat(chat) => Box::pin(counted(chat.run(app), preparing)).await,
                Prepared::Completions(completions) => Box::pin(counted(completions.run(app), preparing)).await,
                Prepared::Messages(messages) => Box::pin(counted(messages.run(app), preparing)).await,
            };
            // What the engine refuses it refuses without knowing how long the queue will take.
            match reply.map_err(|error| if app.phase() == Phase::Dead { lost() } else { error })? {
                Reply::Events(events) => Ok(Reply::Events(events.late(app.config.is_replica))),
                reply => Ok(reply),
            }
        }
    }
}

/// Runs what submits at its first poll, and lets `preparing` go when it has.
async fn counted<T>(run: impl Future<Output = T>, preparing: crate::app::Preparing) -> T {
    let mut run = std::pin::pin!(run);
    let mut preparing = Some(preparing);
    std::future::poll_fn(|context| {
        let polled = run.as_mut().poll(context);
        preparing = None;
        polled
    })
    .await
}

/// Whether the client wants to know what its answer uses.
fn asks_for_energy(request: &Request<Incoming>) -> bool {
    let asked = request.headers().get(energy::HEADER).and_then(|value| value.to_str().ok());
    asked.is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
}

/// A request that is ready to run.
pub enum Prepared {
    Chat(Box<Chat>),
    Completions(Box<Completions>),
    Messages(Box<Messages>),
}

/// Reads the fields of a request for an answer.
pub fn prepare(app: &Arc<App>, model: &Arc<Model>, route: Route, mut fields: Fields) -> Result<Prepared, ApiError> {
    let route = match route {
        Route::Invocations if fields.has("messages") => Route::Chat,
        Route::Invocations if fields.has("prompt") => Route::Completions,
        Route::Invocations if fields.take("input").is_some() => {
            return Err(ApiError::unsupported("input", "embeddings are not supported"));
        }
        Route::Invocations => return Err(ApiError::value("messages", "messages or a prompt are needed")),
        other => other,
    };
    Ok(match route {
        Route::Chat => Prepared::Chat(Box::new(Chat::prepare(app, model, fields)?)),
        Route::Messages => Prepared::Messages(Box::new(Messages::prepare(app, model, fields)?)),
        _ => Prepared::Completions(Box::new(Completions::prepare(app, model, fields)?)),
    })
}

fn loaded(app: &App) -> Result<&Arc<Model>, ApiError> {
    app.model().ok_or_else(ApiError::loading)
}

fn unavailable(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
}

/// The client's id for a request, if it can stand in a header and a log, else a new one.
fn request_id(app: &App, request: &Request<Incoming>) -> String {
    let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let sound = |id: &&str| !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|b| b.is_ascii_graphic());
    given.filter(sound).map_or_else(|| app.unique(), str::to_owned)
}

/// A line of the log, written when the response has been handed on or given up.
struct Access {
    _in_flight: InFlight,
    start: Instant,
    id: String,
    trace: Option<String>,
    method: Method,
    path: String,
    status: u16,
    /// Why it was not answered, or what has ended its stream.
    failure: Option<Failure>,
}

impl Drop for Access {
    fn drop(&mut self) {
        let milliseconds = self.start.elapsed().as_secs_f64() * 1e3;
        let (id, method, path, status) = (&*self.id, self.method.as_str(), &*self.path, self.status);
        let trace_id = self.trace.as_deref();
        let failure = self.failure.as_ref().and_then(|failure| failure.get().copied());
        match (status, failure) {
            (0, _) => {
                tracing::info!(request_id = id, trace_id, method, path, milliseconds, "client gone before the response")
            }
            (_, None) => tracing::info!(request_id = id, trace_id, method, path, status, milliseconds, "request"),
            (_, Some(error)) => {
                tracing::info!(request_id = id, trace_id, method, path, status, error, milliseconds, "request")
            }
        }
    }
}

const MODELS: &str = "/v1/models/";
const ANSWERS: &str = "/v1/energy/requests/";
const MAX_ID: usize = 128;
