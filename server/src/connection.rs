//! One TCP connection: its place among others, requests in, responses out, and when it ends.

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::app::{App, Phase};
use crate::body::{Body, Pace};
use crate::error::ApiError;
use crate::respond;
use crate::routes;
use crate::tenant::{Counts, Tenant};
use crate::tls::Transport;
use crate::wire::Wire;

/// Places of connections: so many, and as many again for those who have none.
pub struct Places {
    room: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    taken: Counts,
}

/// The place of one.
pub struct Place {
    places: Arc<Places>,
    tenant: Tenant,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// So many.
    pub fn new(most: usize) -> Arc<Places> {
        let most = most.min(Semaphore::MAX_PERMITS);
        let [room, reserve] = [(); 2].map(|()| Arc::new(Semaphore::new(most)));
        Arc::new(Places { room, reserve, taken: Counts::default() })
    }

    /// One for a connection from there, if there is any.
    pub fn take(self: &Arc<Places>, peer: IpAddr) -> Option<Place> {
        let tenant = Tenant::of_peer(peer);
        let is_first = self.taken.add(tenant) == 1;
        let permit = self.room.clone().try_acquire_owned().ok();
        let permit = permit.or_else(|| self.reserve.clone().try_acquire_owned().ok().filter(|_| is_first));
        let place = permit.map(|_permit| Place { places: self.clone(), tenant, _permit });
        if place.is_none() {
            self.taken.remove(tenant);
        }
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.remove(self.tenant);
    }
}

/// Serves a connection until it ends.
pub async fn serve(stream: TcpStream, place: Place, tls: Option<TlsAcceptor>, app: Arc<App>) {
    // Tokens are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let stream = match tls {
        None => Transport::Plain(stream),
        Some(tls) => tokio::select! {
            shaken = timeout(app.config.read_timeout, tls.accept(stream)) => match shaken {
                Ok(Ok(mut stream)) => {
                    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
                    Transport::Tls(Box::new(stream))
                }
                Ok(Err(error)) => return tracing::debug!(%error, "no TLS handshake"),
                Err(_) => return tracing::debug!("no TLS handshake in time"),
            },
            _ = app.reached(Phase::Ending) => return,
        },
    };
    let partial = Arc::new(AtomicBool::new(false));
    let pace = Arc::<Pace>::default();
    let wire = Wire::new(stream, app.config.write_timeout, partial.clone(), pace.clone());
    let service = {
        let (app, partial, peer) = (app.clone(), partial.clone(), place.tenant);
        service_fn(move |request: Request<Incoming>| {
            partial.store(false, Ordering::Relaxed);
            let (app, pace) = (app.clone(), pace.clone());
            let answer: Pin<Box<dyn Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send>> =
                Box::pin(async move { Ok(routes::handle(app, peer, request).await.map(|body| body.paced(pace))) });
            answer
        })
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.read_timeout)
        // Twice what is allowed, so that our own error comes before hyper's.
        .max_buf_size((2 * app.config.max_headers).max(LEAST_BUFFER))
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(wire), service);
    let ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => ended,
            _ = app.reached(Phase::Ending) => {
                Pin::new(&mut connection).graceful_shutdown();
                // What remains is to write what is there.
                let rest = poll_fn(|context| connection.poll_without_shutdown(context));
                match timeout(LAST_WORDS, rest).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
    };
    let mut wire = connection.into_parts().io.into_inner();
    let failed = ended.is_err();
    if ended.is_err_and(|error| error.is_timeout()) && partial.load(Ordering::Relaxed) {
        let error = ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the headers did not arrive in time");
        let _ = timeout(LAST_WORDS, wire.write_all(&respond::bytes(&error))).await;
    }
    let _ = timeout(LAST_WORDS, wire.shutdown()).await;
    if !failed && app.phase() < Phase::Ending {
        tokio::select! {
            _ = timeout(LINGER, drop_rest(&wire, app.config.max_body + REST)) => {}
            _ = app.reached(Phase::Ending) => {}
        }
    }
}

/// Reads what a client still sends and drops it, up to so many bytes: a connection closed over unread bytes is reset, and a client
/// that sends its whole body before it reads would never see the answer.
async fn drop_rest(wire: &Wire, most: usize) {
    let mut read = 0;
    while read < most {
        match wire.discard().await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => read += bytes,
        }
    }
}

/// Answers a connection for which there is no room.
pub async fn refuse(mut stream: TcpStream) {
    let error = ApiError::overloaded(Duration::from_secs(1));
    let _ = timeout(LAST_WORDS, stream.write_all(&respond::bytes(&error))).await;
    let _ = timeout(LAST_WORDS, stream.shutdown()).await;
}

/// hyper's least buffer.
const LEAST_BUFFER: usize = 8192;
const MAX_HEADERS: usize = 256;
/// Bytes that TLS keeps beyond what the system takes: a record.
const TLS_BUFFER: usize = 16 << 10;
/// What of a body that is too large is read all the same: what is allowed, and so much more, within this time.
const REST: usize = 1 << 20;
const LINGER: Duration = Duration::from_millis(500);
/// How long an end may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
