//! One request to a replica on a connection of its own.
//!
//! Invariant: who drops an exchange before its end closes its connection, by which the replica learns that nobody waits.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::body::Body;

/// What is asked of a replica.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// Headers but those of the connection.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The connection broke, or what came over it was no HTTP: the replica is to blame.
    There,
    /// This process has no descriptor, or the machine no port or memory, for a connection: nothing is known of the replica.
    Here,
}

impl Broken {
    /// Of an error of `connect`.
    fn of(error: &io::Error) -> Broken {
        let local = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
        match Errno::from_io_error(error) {
            Some(errno) if local.contains(&errno) => Broken::Here,
            _ => Broken::There,
        }
    }
}

/// An answer whose body is still to come.
pub struct Exchange {
    /// Status and headers.
    pub response: Response<()>,
    body: Incoming,
    _connection: Connection,
}

struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request and waits for the head of its answer.
pub async fn send(address: SocketAddr, ask: Ask) -> Result<Exchange, Broken> {
    let stream = timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| Broken::There)?;
    let stream = stream.map_err(|error| Broken::of(&error))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Broken::There)?;
    let connection = Connection(tokio::spawn(async move {
        // Its end is seen by whoever reads the answer.
        let _ = connection.await;
    }));
    let mut request = Request::new(Body::whole(ask.body));
    *request.method_mut() = ask.method;
    *request.uri_mut() = ask.target.parse().map_err(|_| Broken::There)?;
    *request.headers_mut() = ask.headers;
    let host = HeaderValue::from_str(&address.to_string()).map_err(|_| Broken::There)?;
    request.headers_mut().insert(HOST, host);
    let response = sender.send_request(request).await.map_err(|_| Broken::There)?;
    let (head, body) = response.into_parts();
    Ok(Exchange { response: Response::from_parts(head, ()), body, _connection: connection })
}

impl Exchange {
    /// The next bytes of the body; `None` at its end.
    pub fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => return Poll::Ready(Ok(None)),
                Some(Err(_)) => return Poll::Ready(Err(Broken::There)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
            }
        }
    }

    /// The next bytes of the body; `None` at its end.
    pub async fn data(&mut self) -> Result<Option<Bytes>, Broken> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// All of the body.
    pub async fn whole(&mut self) -> Result<Vec<u8>, Broken> {
        let mut all = Vec::new();
        while let Some(data) = self.data().await? {
            all.extend_from_slice(&data);
        }
        Ok(all)
    }
}

/// Gets a path within `patience`: status and body.
pub async fn get(address: SocketAddr, path: &str, patience: Duration) -> Result<(u16, Vec<u8>), Broken> {
    let ask = Ask { method: Method::GET, target: path.to_owned(), headers: HeaderMap::new(), body: Bytes::new() };
    let exchange = async {
        let mut exchange = send(address, ask).await?;
        let body = exchange.whole().await?;
        Ok((exchange.response.status().as_u16(), body))
    };
    timeout(patience, exchange).await.map_err(|_| Broken::There)?
}

/// A kernel takes connections for a process that is stopped, so this says little; on one machine it is far too long.
const CONNECT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_descriptor_left_does_not_blame_the_replica() {
        for (errno, broken) in [
            (Errno::MFILE, Broken::Here),
            (Errno::NFILE, Broken::Here),
            (Errno::ADDRNOTAVAIL, Broken::Here),
            (Errno::CONNREFUSED, Broken::There),
            (Errno::CONNRESET, Broken::There),
        ] {
            assert_eq!(Broken::of(&errno.into()), broken, "{errno}");
        }
    }
}
