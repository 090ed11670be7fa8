//! A connection's stream that does not wait for ever, and that speaks JSON where hyper would say nothing.
//!
//! Invariant: a write that makes no progress for the write timeout fails, which ends the connection and what it asked for.
//! What hyper itself answers to bytes that are no request has no body; it is replaced by an error in OpenAI's shape.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::body::Pace;
use crate::error::ApiError;
use crate::respond;
use crate::tls::Transport;

/// A connection's bytes.
pub struct Wire {
    stream: Transport,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Stands in for what hyper wrote, and how much of it is written.
    replacement: Vec<u8>,
    written: usize,
    /// Whether bytes came that no request has been made of yet.
    partial: Arc<AtomicBool>,
    /// Told whenever everything has been written.
    pace: Arc<Pace>,
}

impl Wire {
    /// Over `stream`. `partial` tells whether a request has begun to arrive; whoever gets the request takes it back. `pace` is
    /// that of the bodies.
    pub fn new(stream: Transport, write_timeout: Duration, partial: Arc<AtomicBool>, pace: Arc<Pace>) -> Wire {
        Wire { stream, write_timeout, stalled: None, replacement: Vec::new(), written: 0, partial, pace }
    }

    /// Drops what has been received, when there is anything, and says how much that was; 0 at the end.
    pub async fn discard(&self) -> io::Result<usize> {
        self.stream.discard().await
    }

    fn poll_replacement(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.replacement.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.replacement[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        Poll::Ready(Ok(()))
    }

    /// `polled`, unless it has been pending for too long.
    fn in_time<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        self.pace.stalled();
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buf);
        if buf.filled().len() > before {
            self.partial.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(error) = hypers_own(buf) {
            self.replacement = respond::bytes(&error);
            self.written = 0;
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = match self.poll_replacement(context) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_write(context, buf),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.in_time(polled, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = match self.poll_replacement(context) {
            // TLS has records to write here.
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_flush(context),
            other => other,
        };
        if polled.is_ready() {
            // hyper flushes when it has written all that it had.
            self.pace.passed(context);
            if let Some(receipts) = self.pace.receipts() {
                // The system takes bytes for a client that has gone; nothing more is to be made for him.
                if self.stream.is_closed() {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                receipts.passed();
            }
        }
        self.in_time(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_replacement(context);
        ready!(self.in_time(polled, context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The error that hyper answers by itself with these bytes. No response of ours is a 4xx or 5xx without a body.
fn hypers_own(buf: &[u8]) -> Option<ApiError> {
    if !buf.starts_with(b"HTTP/1.") || buf.len() > 1024 {
        return None;
    }
    let text = std::str::from_utf8(buf).ok()?;
    let status: u16 = text.get(9..12)?.parse().ok()?;
    if !(400..600).contains(&status) || !text.to_ascii_lowercase().contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let (code, message) = match status {
        414 => ("uri_too_long", "the URL is too long"),
        431 => ("headers_too_large", "the headers are too large"),
        _ => ("malformed_request", "the request is not HTTP/1.1"),
    };
    Some(ApiError { close: true, ..ApiError::new(StatusCode::from_u16(status).ok()?, code, message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_without_a_body_are_hypers_own() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(hypers_own(own).map(|e| e.code), Some("headers_too_large"));
        assert_eq!(hypers_own(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), None);
        assert_eq!(hypers_own(b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello"), None);
        assert_eq!(hypers_own(b"data: HTTP/1.1 400"), None);
    }
}
