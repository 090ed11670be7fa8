//! Forwards a request to a replica, and to another one if that is lost before anything of the answer was sent.
//!
//! Invariant: a client gets one answer, of one replica, or an error; events are passed on whole, so that an error can follow
//! wherever a stream breaks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::client::{self, Ask, Broken, Exchange};
use super::dispatch::Keys;
use super::outline::Outline;
use super::{Claim, Replicas, Seat};
use crate::app::{App, Phase};
use crate::body::{self, Body, Chunks};
use crate::error::ApiError;
use crate::respond::{Dialect, Reply};
use crate::sse;
use crate::tenant::{self, Tenant};

/// Answers a request by a replica; `runs` says that it takes a place in its batch.
pub(crate) async fn answer(
    app: &Arc<App>,
    replicas: &Arc<Replicas>,
    tenant: Tenant,
    dialect: Dialect,
    runs: bool,
    id: &str,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let asks = request.method() == Method::POST;
    let open = || match app.phase() {
        Phase::Draining | Phase::Ending if asks => {
            app.metrics.rejected_draining.add(1);
            Err(ApiError::draining())
        }
        _ => Ok(()),
    };
    open()?;
    let claim = if runs { Claim::Place(Some(tenant)) } else { Claim::Answer };
    if !replicas.has_room(claim) {
        return Err(no_room(app, replicas));
    }
    let headers = passed_on(request.headers(), tenant, id);
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let method = request.method().clone();
    let (body, room) = if asks {
        let (body, room) = body::read(request, app).await?;
        (Bytes::from(body), Some(room))
    } else {
        (Bytes::new(), None)
    };
    open()?;
    let outline = outline(&body).await;
    let keys = replicas.dispatch.keys(tenant.key(), &outline);
    let ask = Ask { method, target, headers, body };
    let job = Job { app: app.clone(), replicas: replicas.clone(), ask, keys, claim, dialect };
    let mut placed = Box::pin(async move {
        let _room = room;
        job.place().await
    });
    if !outline.stream {
        return Ok(placed.await?.reply(app));
    }
    // A client that waits for a stream is told now and then that it is waited for.
    let interval = app.config.ping_interval;
    match timeout(interval, &mut placed).await {
        Ok(placed) => Ok(placed?.reply(app)),
        Err(_) => {
            let stage = Stage::Waiting(placed, Box::pin(sleep(Duration::ZERO)));
            let mut response = Response::new(Body::stream(Box::new(Stream::new(stage, dialect, interval, app))));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
            Ok(Reply::Made(response))
        }
    }
}

/// The headers of a request as a replica gets them.
pub(super) fn passed_on(headers: &HeaderMap, tenant: Tenant, id: &str) -> HeaderMap {
    let mut headers = headers.clone();
    HOP.iter().for_each(|name| drop(headers.remove(name)));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    if let Some(tenant) = tenant.header() {
        headers.insert(tenant::HEADER, tenant);
    }
    headers
}

/// The head of a replica's answer as a client gets it.
pub(super) fn passed_back(mut head: Response<()>, replica: usize) -> Response<()> {
    HOP.iter().chain([&DATE]).for_each(|name| drop(head.headers_mut().remove(name)));
    head.headers_mut().insert(REPLICA, HeaderValue::from(replica));
    head
}

/// Large bodies are looked through where that delays no connection.
async fn outline(body: &Bytes) -> Outline {
    if body.len() < LARGE {
        return Outline::of(body);
    }
    let body = body.clone();
    tokio::task::spawn_blocking(move || Outline::of(&body)).await.unwrap_or_default()
}

fn no_room(app: &App, replicas: &Replicas) -> ApiError {
    if !replicas.is_healthy() {
        return ApiError::loading();
    }
    app.metrics.rejected_requests.add(1);
    let most = replicas.settings.slots.max(1) as f64;
    let waiting = replicas.settings.queue as f64;
    let seconds = app.metrics.service_seconds() * (waiting + 1.0) / most;
    ApiError::overloaded(Duration::from_secs_f64(seconds.clamp(1.0, 60.0)))
}

/// A request on its way.
struct Job {
    app: Arc<App>,
    replicas: Arc<Replicas>,
    ask: Ask,
    keys: Keys,
    claim: Claim,
    dialect: Dialect,
}

/// What came of one try.
enum Tried {
    /// It is answered.
    Answered(Placed),
    /// The replica has no room, or is not the one to ask.
    Refused(usize, Placed),
    /// The replica was lost.
    Lost,
    /// There is no connection for it here.
    Unconnected,
}

impl Job {
    /// Forwards until there is an answer.
    async fn place(self) -> Result<Placed, ApiError> {
        let begun = Instant::now();
        let placed = tokio::select! {
            placed = self.try_all() => placed,
            _ = self.app.reached(Phase::Ending) => Err(ApiError::draining()),
        };
        if let Ok(placed) = &placed
            && placed.head.status() == StatusCode::OK
        {
            self.app.metrics.served(begun.elapsed());
        }
        placed
    }

    async fn try_all(&self) -> Result<Placed, ApiError> {
        let (mut refused, mut refusal, mut lost) = (Vec::new(), None, 0);
        let mut changed = self.replicas.changed.subscribe();
        let (patience, loaded) = (Instant::now() + REPLACED, Instant::now() + LOADED_AGAIN);
        let mut waits = None;
        loop {
            changed.mark_unchanged();
            let Some(seat) = self.replicas.seat(&self.keys, self.claim, &refused) else {
                if let Some(placed) = refusal.take() {
                    return Ok(placed);
                }
                let comes = self.replicas.wake();
                if comes && waits.is_none() {
                    waits = self.replicas.wait_for_load();
                }
                if lost == 0 && !(comes && waits.is_some()) {
                    return Err(no_room(&self.app, &self.replicas));
                }
                // It was taken in: a replica will be there again.
                let patience = if comes { loaded } else { patience };
                match tokio::time::timeout_at(patience, changed.changed()).await {
                    Ok(_) => continue,
                    Err(_) => return Err(ApiError::loading()),
                }
            };
            match self.try_one(seat).await {
                Tried::Answered(placed) => return Ok(placed),
                Tried::Refused(replica, placed) => {
                    refused.push(replica);
                    refusal = Some(placed);
                }
                Tried::Unconnected => return Err(no_room(&self.app, &self.replicas)),
                Tried::Lost => {
                    lost += 1;
                    self.replicas.moved.add(1);
                    if lost > MOVES {
                        // It may be what they die of.
                        return Err(lost_replica());
                    }
                }
            }
        }
    }

    async fn try_one(&self, seat: Seat) -> Tried {
        let (exchange, first) = match self.exchange(&seat).await {
            Ok(came) => came,
            Err(Broken::Here) => return Tried::Unconnected,
            Err(Broken::There) => {
                self.replicas.suspect(&seat);
                return Tried::Lost;
            }
        };
        let Exchange { response: head, .. } = &exchange;
        let (status, head) = (head.status(), passed_back(head.clone(), seat.replica));
        let retry = head.headers().get("x-should-retry").is_some_and(|retry| retry == "true");
        let replica = seat.replica;
        if is_stream(&head) {
            if is_loss(&first) {
                self.replicas.suspect(&seat);
                return Tried::Lost;
            }
            return Tried::Answered(Placed {
                head,
                body: Came::Events(first, Box::new(exchange), seat),
                dialect: self.dialect,
            });
        }
        if status == StatusCode::INTERNAL_SERVER_ERROR && retry {
            self.replicas.suspect(&seat);
            return Tried::Lost;
        }
        let placed = Placed { head, body: Came::Whole(first.into()), dialect: self.dialect };
        match status {
            StatusCode::SERVICE_UNAVAILABLE => Tried::Refused(replica, placed),
            _ => Tried::Answered(placed),
        }
    }

    /// The head of the answer with its first event, or with all of it.
    async fn exchange(&self, seat: &Seat) -> Result<(Exchange, Vec<u8>), Broken> {
        let mut exchange = client::send(seat.address, self.ask.clone()).await?;
        if !is_stream(&exchange.response) {
            let whole = exchange.whole().await?;
            return Ok((exchange, whole));
        }
        let mut first = Vec::new();
        while let Some(data) = exchange.data().await? {
            first.extend_from_slice(&data);
            // Signs of life are not the answer.
            while let Some(end) = events_end(&first, true).filter(|_| is_ping(&first)) {
                first.drain(..end);
            }
            if events_end(&first, true).is_some() {
                break;
            }
        }
        Ok((exchange, first))
    }
}

fn is_stream<T>(response: &Response<T>) -> bool {
    response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

fn is_ping(event: &[u8]) -> bool {
    event.starts_with(b":") || event.starts_with(b"event: ping\n")
}

/// Whether a stream begins by the error of an engine that is lost or of a server that ends.
fn is_loss(first: &[u8]) -> bool {
    let end = events_end(first, true).unwrap_or(first.len());
    let Ok(event) = std::str::from_utf8(&first[..end]) else { return false };
    let openai = event.starts_with("data: {\"error\":")
        && ["\"code\":\"engine_error\"", "\"code\":\"draining\""].iter().any(|code| event.contains(code));
    let anthropic = event.starts_with("event: error\n") && event.contains("\"type\":\"api_error\"");
    openai || anthropic
}

/// Where the first event ends, or the last whole one.
fn events_end(bytes: &[u8], first: bool) -> Option<usize> {
    let mut pairs = bytes.windows(2);
    let is_end = |pair: &[u8]| pair == b"\n\n";
    let at = if first { pairs.position(is_end) } else { pairs.rposition(is_end) };
    at.map(|at| at + 2)
}

/// The error of a request whose replica was lost.
fn lost_replica() -> ApiError {
    ApiError::engine("engine_error", "the engine has stopped", true)
}

/// An answer of a replica.
struct Placed {
    head: Response<()>,
    body: Came,
    dialect: Dialect,
}

enum Came {
    Whole(Bytes),
    /// What has come, and where the rest comes from.
    Events(Vec<u8>, Box<Exchange>, Seat),
}

impl Placed {
    fn reply(self, app: &Arc<App>) -> Reply {
        let Placed { head, body, dialect } = self;
        Reply::Made(match body {
            Came::Whole(bytes) => head.map(|()| Body::whole(bytes)),
            Came::Events(first, exchange, seat) => {
                let stage = Stage::Flowing(first, exchange, seat);
                head.map(|()| Body::stream(Box::new(Stream::new(stage, dialect, app.config.ping_interval, app))))
            }
        })
    }
}

/// A stream that a replica makes.
struct Stream {
    stage: Stage,
    dialect: Dialect,
    interval: Duration,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
}

enum Stage {
    /// For a replica, or for its first event.
    Waiting(Pin<Box<dyn Future<Output = Result<Placed, ApiError>> + Send>>, Pin<Box<Sleep>>),
    /// What has come and was not passed on.
    Flowing(Vec<u8>, Box<Exchange>, Seat),
    Over,
}

impl Stream {
    fn new(stage: Stage, dialect: Dialect, interval: Duration, app: &Arc<App>) -> Stream {
        let app = app.clone();
        let end = Box::pin(async move {
            app.reached(Phase::Ending).await;
        });
        Stream { stage, dialect, interval, end }
    }

    /// Ends by an error.
    fn fail(&mut self, error: &ApiError) -> Poll<Option<Bytes>> {
        self.stage = Stage::Over;
        let mut out = Vec::new();
        match self.dialect {
            Dialect::OpenAi => sse::failed(&mut out, error),
            Dialect::Anthropic => sse::named(&mut out, "error", &error.anthropic()),
        }
        Poll::Ready(Some(out.into()))
    }
}

impl Chunks for Stream {
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !matches!(self.stage, Stage::Over) && self.end.as_mut().poll(context).is_ready() {
            return self.fail(&ApiError::draining());
        }
        if let Stage::Waiting(placed, ping) = &mut self.stage {
            match placed.as_mut().poll(context) {
                Poll::Pending if ping.as_mut().poll(context).is_ready() => {
                    ping.as_mut().reset(Instant::now() + self.interval);
                    return Poll::Ready(Some(Bytes::from_static(match self.dialect {
                        Dialect::OpenAi => b": ping\n\n",
                        Dialect::Anthropic => b"event: ping\ndata: {\"type\":\"ping\"}\n\n",
                    })));
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return self.fail(&error),
                Poll::Ready(Ok(Placed { body: Came::Events(first, exchange, seat), .. })) => {
                    self.stage = Stage::Flowing(first, exchange, seat);
                }
                // The status has been sent: an error is an event now, its body is one line.
                Poll::Ready(Ok(Placed { body: Came::Whole(error), .. })) => {
                    self.stage = Stage::Over;
                    let (before, after): (&[u8], &[u8]) = match self.dialect {
                        Dialect::OpenAi => (b"data: ", b"\n\ndata: [DONE]\n\n"),
                        Dialect::Anthropic => (b"event: error\ndata: ", b"\n\n"),
                    };
                    return Poll::Ready(Some([before, &error, after].concat().into()));
                }
            }
        }
        let Stage::Flowing(held, exchange, seat) = &mut self.stage else { return Poll::Ready(None) };
        loop {
            if let Some(end) = events_end(held, false) {
                let rest = held.split_off(end);
                return Poll::Ready(Some(std::mem::replace(held, rest).into()));
            }
            match exchange.poll_data(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(data))) => held.extend_from_slice(&data),
                Poll::Ready(Ok(None)) => {
                    self.stage = Stage::Over;
                    return Poll::Ready(None);
                }
                Poll::Ready(Err(_)) => {
                    seat.replicas.suspect(seat);
                    return self.fail(&lost_replica());
                }
            }
        }
    }
}

/// Headers of a connection, not of what goes over it.
const HOP: [HeaderName; 11] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("x-request-id"),
    tenant::HEADER,
];
/// Says which replica has answered.
pub(super) const REPLICA: HeaderName = HeaderName::from_static("x-njoule-replica");
/// How often a request is moved whose replica was lost.
const MOVES: usize = 2;
/// How long a request whose replica was lost waits for another one.
const REPLACED: Duration = Duration::from_secs(60);
/// The same for one that was unloaded: a device's modules take minutes.
const LOADED_AGAIN: Duration = Duration::from_secs(600);
const LARGE: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_end_where_a_line_is_empty() {
        assert_eq!(events_end(b"data: a\n\ndata: b\n\ndata: c", true), Some(9));
        assert_eq!(events_end(b"data: a\n\ndata: b\n\ndata: c", false), Some(18));
        assert_eq!(events_end(b"data: a\n", true), None);
    }

    #[test]
    fn an_engine_that_is_lost_is_told_from_what_a_request_causes() {
        let event = |error: &ApiError, dialect| {
            let mut out = Vec::new();
            match dialect {
                Dialect::OpenAi => sse::failed(&mut out, error),
                Dialect::Anthropic => sse::named(&mut out, "error", &error.anthropic()),
            }
            out
        };
        for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
            assert!(is_loss(&event(&lost_replica(), dialect)));
            assert!(!is_loss(&event(&ApiError::value("n", "\"code\":\"engine_error\""), dialect)));
        }
        assert!(is_loss(&event(&ApiError::draining(), Dialect::OpenAi)));
        assert!(!is_loss(b"data: {\"choices\":[]}\n\ndata: {\"error\":{\"code\":\"engine_error\"}}\n\n"));
    }
}
