//! Work that takes a while, where it delays no connection, and where it is large no step either.
//!
//! Invariant: what is done for a large body has a lower priority than what makes tokens, and one body's at a time.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::ApiError;

/// Does `work` on another thread. With `turn`, which [`App::turn`](crate::app::App::turn) gives for a large body and which is given
/// back behind it, on a thread that the system lets run where others leave room.
pub async fn aside<T: Send + 'static>(
    turn: Option<OwnedSemaphorePermit>,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = match turn {
        None => tokio::task::spawn_blocking(work).await.ok(),
        Some(turn) => behind(turn, work).await,
    };
    done.unwrap_or_else(|| Err(ApiError::engine("internal_error", "the request could not be handled", false)))
}

/// Lets others go first for a moment: tasks of this thread, and threads that wait for its core. Whoever makes or writes a token is
/// not to wait until the time of a thread that takes in megabytes is used up.
pub async fn give_way() {
    std::thread::yield_now();
    tokio::task::yield_now().await;
}

/// A thread of its own, as its priority cannot be raised again; `None` where it cannot be or panics.
async fn behind<T: Send + 'static>(turn: OwnedSemaphorePermit, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("njoule-large".into()).spawn(move || {
        let _turn = turn;
        // Of this thread alone, on Linux. Where it fails the work is done as any other.
        let _ = rustix::process::getpriority_process(None)
            .and_then(|now| rustix::process::setpriority_process(None, now + NICE));
        // Who has gone wants nothing.
        let _ = sender.send(work());
    });
    thread.ok()?;
    receiver.await.ok()
}

/// A tenth of a core beside one that computes; what is idle is all for it.
const NICE: i32 = 10;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn what_is_large_gives_way_and_its_turn_ends_with_it() {
        let (before, turns) = (niceness(), Arc::new(Semaphore::new(1)));
        assert_eq!(aside(None, || Ok(niceness())).await, Ok(before));
        for _ in 0..2 {
            let turn = turns.clone().acquire_owned().await.unwrap();
            assert_eq!(aside(Some(turn), || Ok(niceness())).await, Ok((before + NICE).min(19)));
        }
        assert_eq!(niceness(), before);
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_gives_its_turn_back() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = turns.clone().acquire_owned().await.unwrap();
        for turn in [None, Some(turn)] {
            let failed: Result<(), _> = aside(turn, || panic!("as a test")).await;
            assert_eq!(failed.unwrap_err().code, "internal_error");
        }
        let _given_back = turns.acquire().await.unwrap();
    }
}
