//! One TCP connection: requests in, responses out, and when it ends.

use std::future::{Future, poll_fn};
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
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::app::{App, Phase};
use crate::body::Body;
use crate::error::ApiError;
use crate::respond;
use crate::routes;
use crate::tls::Transport;
use crate::wire::Wire;

/// Serves a connection until it ends.
pub async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, app: Arc<App>) {
    // Tokens are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let stream = match tls {
        None => Transport::Plain(stream),
        Some(tls) => tokio::select! {
            shaken = timeout(app.config.read_timeout, tls.accept(stream)) => match shaken {
                Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
                Ok(Err(error)) => return tracing::debug!(%error, "no TLS handshake"),
                Err(_) => return tracing::debug!("no TLS handshake in time"),
            },
            _ = app.reached(Phase::Ending) => return,
        },
    };
    let partial = Arc::new(AtomicBool::new(false));
    let wire = Wire::new(stream, app.config.write_timeout, partial.clone());
    let service = {
        let (app, partial) = (app.clone(), partial.clone());
        service_fn(move |request: Request<Incoming>| {
            partial.store(false, Ordering::Relaxed);
            let app = app.clone();
            let answer: Pin<Box<dyn Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send>> =
                Box::pin(async move { Ok(routes::handle(app, request).await) });
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
    if ended.is_err_and(|error| error.is_timeout()) && partial.load(Ordering::Relaxed) {
        let error = ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the headers did not arrive in time");
        let _ = timeout(LAST_WORDS, wire.write_all(&respond::bytes(&error))).await;
    }
    let _ = timeout(LAST_WORDS, wire.shutdown()).await;
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
/// How long an end may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
