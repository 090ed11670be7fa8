//! How long decode steps take, and what share of the published bandwidth that is.
//!
//! A step is what serving runs: batch in, candidates out, the host's part included. Bytes are what the program's cost says
//! that a step must move: weights once, the caches up to the bucket's length. Where a stand-in ran the steps the figures are
//! its own, and no share of any device's bandwidth is given.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::batch::Feed;
use super::model::{DecodeBucket, LoadedModel};
use super::outcome::{State, StepOutcome};
use super::{Fault, Stage};
use crate::backend::StepError;

/// Decode steps that were timed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpeedFound {
    /// Whose figures they are: `device` or `stand-in`.
    pub of: &'static str,
    /// Published bandwidth of the cores that share the model, 1e9 bytes per second.
    pub bandwidth_gb_s: Option<f64>,
    /// Each kind of step.
    pub steps: Vec<StepTime>,
}

/// A decode step of one bucket.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// Sequences.
    pub batch: usize,
    /// Tokens before the step of those that have most.
    pub len: usize,
    /// Runs that were timed.
    pub runs: usize,
    /// Their median: the time per output token, in milliseconds.
    pub tpot_ms: f64,
    /// The shortest.
    pub least_ms: f64,
    /// The longest.
    pub most_ms: f64,
    /// Bytes that a step must move.
    pub bytes: f64,
    /// Those over the median, 1e9 bytes per second.
    pub gb_s: f64,
    /// Their share of the published bandwidth.
    pub mbu: Option<f64>,
}

/// Times every bucket.
pub(super) fn measure(loaded: &mut LoadedModel, done: &mut StepOutcome) {
    let bandwidth = loaded.bandwidth.filter(|_| !loaded.stand_in);
    let of = if loaded.stand_in { "stand-in" } else { "device" };
    let mut found = SpeedFound { of, bandwidth_gb_s: bandwidth.map(|b| b / 1e9), steps: vec![] };
    let mut feed = Feed { executor: &mut *loaded.executor, capacity: loaded.capacity, chunk: loaded.chunk };
    for bucket in &loaded.decodes {
        match time(&mut feed, bucket, bandwidth) {
            Ok(step) => found.steps.push(step),
            Err(error) => {
                let words = format!("{} sequences of {} tokens: {error}", bucket.batch(), bucket.longest());
                done.says(Err(Fault { stage: Stage::Execute, words }));
                done.speed = Some(found);
                return;
            }
        }
    }
    if found.steps.is_empty() {
        done.left_out("the artifact has no decode module");
        return;
    }
    done.state = State::Passed;
    let times = || found.steps.iter().map(|step| step.tpot_ms);
    let (least, most) = (times().fold(f64::MAX, f64::min), times().fold(0.0, f64::max));
    let whose = if loaded.stand_in { "figures of a stand-in, which say nothing of a device: " } else { "" };
    done.words = format!("{whose}{least:.2} to {most:.2} ms per token in {} kinds of steps", found.steps.len());
    done.speed = Some(found);
}

fn time(feed: &mut Feed<'_>, bucket: &DecodeBucket, bandwidth: Option<f64>) -> Result<StepTime, StepError> {
    let batch = feed.decodes(bucket);
    for _ in 0..WARM_UP {
        feed.step(&batch)?;
    }
    let (mut times, started) = (vec![], Instant::now());
    while times.len() < LEAST || (times.len() < MOST && started.elapsed() < PATIENCE) {
        let begun = Instant::now();
        feed.step(&batch)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = times[times.len() / 2];
    let cost = feed.executor.cost(&batch);
    let bytes = cost.weight_bytes + cost.kv_bytes;
    let rate = bytes / median.as_secs_f64().max(1e-9);
    Ok(StepTime {
        batch: bucket.batch(),
        len: bucket.longest(),
        runs: times.len(),
        tpot_ms: ms(median),
        least_ms: ms(times[0]),
        most_ms: ms(times[times.len() - 1]),
        bytes,
        gb_s: rate / 1e9,
        mbu: bandwidth.map(|bandwidth| rate / bandwidth),
    })
}

const WARM_UP: usize = 2;
const LEAST: usize = 3;
const MOST: usize = 200;
const PATIENCE: Duration = Duration::from_secs(2);
