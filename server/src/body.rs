//! Bodies: reading a request's within its limits, and what responses are made of.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use hyper::{Request, StatusCode};
use tokio::time::{Instant, timeout_at};

use crate::app::{App, Buffered};
use crate::aside::give_way;
use crate::error::ApiError;
use crate::receipts::Receipts;

/// The body of a response.
pub struct Body {
    content: Content,
    /// Kept until the body has been handed on: what counts and logs the request.
    guard: Option<Box<dyn Send>>,
    /// Of the connection that it goes over.
    pace: Option<Arc<Pace>>,
}

/// What a connection is handed before it has passed on to the system what it was handed before: hyper would take 128 KiB for a
/// client that does not read.
#[derive(Default)]
pub struct Pace {
    /// Bytes since then.
    handed: AtomicUsize,
    /// Of the stream that is written now, if it is one.
    receipts: Mutex<Option<Arc<Receipts>>>,
}

impl Pace {
    /// Whether it has enough for now.
    fn is_full(&self) -> bool {
        self.handed.load(Ordering::Relaxed) >= MOST_HANDED
    }

    fn hand(&self, bytes: usize) {
        self.handed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// There is no more to hand on for now.
    fn waits(&self) {
        // Nothing is written of what was taken out since then, if anything was.
        if self.handed.load(Ordering::Relaxed) == 0
            && let Some(receipts) = self.receipts()
        {
            receipts.passed();
        }
    }

    /// Who is to hear of what is passed on now, if anybody.
    pub fn receipts(&self) -> Option<Arc<Receipts>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|receipts| receipts.is_due())
    }

    /// The system takes nothing for the client.
    pub fn stalled(&self) {
        if let Some(receipts) = &*self.receipts.lock().unwrap_or_else(PoisonError::into_inner) {
            receipts.stalled();
        }
    }

    /// Everything has been passed on.
    pub fn passed(&self, context: &Context<'_>) {
        // Within the connection's own task: whoever was told to wait waits with this waker.
        if self.handed.swap(0, Ordering::Relaxed) >= MOST_HANDED {
            context.waker().wake_by_ref();
        }
    }
}

enum Content {
    Whole(Option<Bytes>),
    Stream(Box<dyn Chunks>),
}

/// A body that comes in pieces. Dropping it before its end says that the client has gone.
pub trait Chunks: Send {
    /// The next piece; `None` after the last.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;

    /// Who wants to hear when pieces have been passed on.
    fn receipts(&self) -> Option<Arc<Receipts>> {
        None
    }
}

impl Body {
    /// A body that is there.
    pub fn whole(bytes: impl Into<Bytes>) -> Body {
        Body {
            content: Content::Whole(Some(bytes.into()).filter(|bytes: &Bytes| !bytes.is_empty())),
            guard: None,
            pace: None,
        }
    }

    /// A body in the making.
    pub fn stream(chunks: Box<dyn Chunks>) -> Body {
        Body { content: Content::Stream(chunks), guard: None, pace: None }
    }

    /// Keeps `guard` until the body has been handed on.
    pub fn with_guard(self, guard: Box<dyn Send>) -> Body {
        Body { guard: Some(guard), ..self }
    }

    /// Hands on no more than `pace` has room for.
    pub fn paced(self, pace: Arc<Pace>) -> Body {
        let receipts = match &self.content {
            Content::Whole(_) => None,
            Content::Stream(chunks) => chunks.receipts(),
        };
        *pace.receipts.lock().unwrap_or_else(PoisonError::into_inner) = receipts;
        Body { pace: Some(pace), ..self }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let chunk = match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take()),
            Content::Stream(chunks) => match &this.pace {
                None => chunks.poll_chunk(context),
                Some(pace) if pace.is_full() => return Poll::Pending,
                Some(pace) => {
                    let chunk = chunks.poll_chunk(context);
                    match &chunk {
                        Poll::Ready(Some(bytes)) => pace.hand(bytes.len()),
                        Poll::Ready(None) => {}
                        Poll::Pending => pace.waits(),
                    }
                    chunk
                }
            },
        };
        if let Poll::Ready(None) = chunk {
            this.guard = None;
        }
        chunk.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Stream(_) => SizeHint::default(),
        }
    }
}

/// Reads the body of a request for JSON, within size, memory and time.
pub async fn read(request: Request<Incoming>, app: &Arc<App>) -> Result<(Vec<u8>, Buffered), ApiError> {
    check_type(request.headers())?;
    let limit = app.config.max_body;
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(too_large(limit));
    }
    let mut room = app.buffer(declared.unwrap_or(0))?;
    let mut incoming = request.into_body();
    let mut bytes = Vec::with_capacity(declared.unwrap_or(0).min(FIRST));
    let start = Instant::now() + app.config.read_timeout;
    loop {
        // A body must come at a least speed, so that nobody holds memory by sending a byte now and then.
        let allowed = Duration::from_secs_f64(bytes.len() as f64 / LEAST_BYTES_PER_SECOND);
        let next = poll_fn(|context| Pin::new(&mut incoming).poll_frame(context));
        let frame = match timeout_at(start + allowed, next).await {
            Err(_) => return Err(too_slow()),
            Ok(None) => return Ok((bytes, room)),
            Ok(Some(Err(_))) => {
                let message = "the body could not be read to its end";
                return Err(ApiError {
                    close: true,
                    ..ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message)
                });
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        if declared.is_none() {
            room.grow(data.len())?;
        }
        bytes.extend_from_slice(&data);
        if bytes.len() > FIRST {
            give_way().await;
        }
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = |message| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", message));
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return refused("the body must be sent as it is: no content-encoding is read");
    }
    let Some(kind) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json")) {
        return Ok(());
    }
    refused("the content type must be application/json")
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is larger than {limit} bytes");
    ApiError { close: true, ..ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message) }
}

fn too_slow() -> ApiError {
    let message = "the body did not arrive in time";
    ApiError { close: true, ..ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message) }
}

/// Bytes of a stream that a connection is handed at once, about.
const MOST_HANDED: usize = 16 << 10;
/// Memory for a body before any of it has arrived.
const FIRST: usize = 64 << 10;
const LEAST_BYTES_PER_SECOND: f64 = 65536.0;

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Wake, Waker};

    struct Endless;

    impl Chunks for Endless {
        fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
            Poll::Ready(Some(Bytes::from_static(&[0; 5000])))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_stream_waits_until_what_it_handed_on_has_been_passed_on() {
        let (pace, woken) = (Arc::<Pace>::default(), Arc::<Woken>::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut body = Body::stream(Box::new(Endless)).paced(pace.clone());
        for round in 0..3 {
            for _ in 0..MOST_HANDED.div_ceil(5000) {
                assert!(Pin::new(&mut body).poll_frame(&mut context).is_ready());
            }
            assert!(Pin::new(&mut body).poll_frame(&mut context).is_pending());
            assert_eq!(woken.0.load(Ordering::Relaxed), round);
            pace.passed(&context);
            pace.passed(&context);
            assert_eq!(woken.0.load(Ordering::Relaxed), round + 1);
        }
    }
}
