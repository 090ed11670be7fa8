//! An index out of bounds ends the sequences that have it, and no other.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use njoule_runtime::request::{Event, MaskError, MaskStream, RequestError, TokenMask};
use njoule_runtime::{Engine, Request, RequestHandle};

use super::{SMALL, Shape, TOGETHER, backend, build, engine, environment, load, place, small_model};
use crate::child::{child, is_child, order};

fn serve() -> Engine {
    let (model, backend) = (small_model(), backend(&place()));
    engine(&backend, load(&backend, &model), &model.config.program())
}

fn request(n: u32, new: usize) -> Request {
    Request { ignore_eos: true, ..Request::new((0..n).map(|i| (i * 7 + n) % 90 + 100).collect(), new) }
}

type End = Result<Vec<u32>, RequestError>;

fn ends(engine: &Engine, requests: impl IntoIterator<Item = Request>) -> Vec<End> {
    let handles: Vec<RequestHandle> = requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    handles.into_iter().map(|handle| handle.wait().map(|done| done.token_ids)).collect()
}

fn one_of_four() {
    let engine = serve();
    let all = || [5, 38, 13, 20].map(|n| request(n, 6));
    let healthy = ends(&engine, all());
    // Where a chunk begins, rows, places and tokens are never 40: it is a position of the second alone.
    assert!(healthy.iter().flatten().flatten().all(|id| *id != 40));
    order("evaluate@1+=oob:40");
    let seen = ends(&engine, all());
    for (i, (seen, healthy)) in seen.iter().zip(&healthy).enumerate() {
        match i {
            1 => assert!(matches!(seen, Err(RequestError::Refused(what)) if what.contains("1006")), "{seen:?}"),
            _ => assert_eq!(seen, healthy, "{i}"),
        }
    }
    assert!(engine.stats().retried_steps >= 1 && engine.failure().is_none());
    let told = engine.figures().device_errors();
    assert!(matches!(told[..], [(1006, count)] if count >= 1), "{told:?}");
    order("");
    assert_eq!(ends(&engine, all()), healthy, "it goes on serving");
}

#[test]
fn of_a_runs_rows_the_one_that_fails_alone_is_refused() {
    let run = |environment: &[(&str, &str)]| child(environment, || one_of_four());
    if is_child() {
        return run(&[]);
    }
    for shape in [SMALL, Shape { tp: 2, ..SMALL }, TOGETHER] {
        let dir = tempfile::tempdir().unwrap();
        build(&small_model().config.program(), shape, dir.path());
        run(&environment(dir.path()));
    }
}

/// Allows every token, and keeps the engine before the fifth till its sender is dropped.
struct Gate(Mutex<Option<Receiver<()>>>);

impl TokenMask for Gate {
    fn start(self: Arc<Self>, _: &[u32]) -> Box<dyn MaskStream> {
        Box::new(GateStream(self.0.lock().unwrap().take().expect("one request")))
    }
}

struct GateStream(Receiver<()>);

impl MaskStream for GateStream {
    fn fill(&mut self, generated: &[u32], allowed: &mut [u32]) -> Result<(), MaskError> {
        allowed.fill(u32::MAX);
        let closed = || self.0.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout);
        if generated.len() >= 4 && closed() { Err(MaskError("the gate stays closed".to_owned())) } else { Ok(()) }
    }
}

/// What becomes of four requests in the middle of their answers when these faults are ordered.
fn interrupted(orders: &str) -> (Vec<Result<usize, RequestError>>, u64) {
    let engine = serve();
    // The last one holds all of them: however slow this thread is, they are in the middle.
    let (gate, closed) = channel();
    let closed = Arc::new(Gate(Mutex::new(Some(closed))));
    let request = |i: u32| Request { mask: (i == 3).then(|| closed.clone() as Arc<_>), ..request(5 + i, 50) };
    let mut handles: Vec<RequestHandle> = (0..4).map(|i| engine.submit(request(i)).unwrap()).collect();
    for handle in &mut handles {
        let first = handle.find(|event| matches!(event, Event::Token { .. }));
        assert!(first.is_some());
    }
    order(orders);
    drop(gate);
    let ends = handles.into_iter().map(|handle| handle.wait().map(|done| 1 + done.token_ids.len())).collect();
    assert!(engine.failure().is_none());
    assert_eq!(ends_after(&engine), Ok(6), "it goes on serving");
    (ends, engine.stats().retried_steps)
}

fn ends_after(engine: &Engine) -> Result<usize, RequestError> {
    ends(engine, [request(9, 6)]).swap_remove(0).map(|ids| ids.len())
}

#[test]
fn what_no_row_has_alone_is_tried_again_once_and_then_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    build(&small_model().config.program(), SMALL, dir.path());
    child(&environment(dir.path()), || {
        // Whole, two halves; the step again.
        let (ends, retried) = interrupted("evaluate@1=oob");
        assert_eq!((ends, retried), (vec![Ok(50); 4], 1));
        // The step again fails too.
        let (ends, _) = interrupted("evaluate@1=oob;evaluate@4=oob");
        assert!(ends.iter().all(|end| matches!(end, Err(RequestError::Refused(_)))), "{ends:?}");
    });
}
