//! Requests through a plan: continuous batching over classes and buckets, counted, not timed by a clock.
//!
//! Requests wait in order in a bounded window. Each is of the class with the shortest rows that it fits and takes the
//! lowest free row of it, or of a longer class that nobody waits for: such a row is read anyway. A round decodes every class once, in the smallest bucket that holds its highest live row and its
//! longest context, then runs one prefill chunk of each sequence that still needs one. The load is as high as the rows
//! allow: somebody always waits until the trace ends. Padding is what the buckets have beyond what the sequences need.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::buckets::smallest;
use super::lengths::Request;
use super::{ModuleKind, ModuleSpec, Plan};

/// One class of rows, as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Sequences at once.
    pub rows: usize,
    /// Tokens of a sequence at most.
    pub longest: usize,
    /// Prefill chunks, ascending.
    pub chunks: Vec<usize>,
}

/// What a class did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneUse {
    /// Decode steps by rows needed and longest context.
    pub decode: BTreeMap<(usize, usize), u64>,
    /// Contexts of all decoded tokens.
    pub positions: u128,
    /// Tokens decoded.
    pub decoded: u64,
    /// Prefill steps by chunk and tokens before it.
    pub prefill: BTreeMap<(usize, usize), u64>,
    /// Tokens prefilled.
    pub prompt: u64,
    /// Rounds that rows were held, over all rows.
    pub held: u64,
}

/// What all of them did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Rounds.
    pub rounds: u64,
    /// Requests that ended.
    pub served: u64,
    /// Requests that are too long for every class.
    pub refused: u64,
    /// Tokens of answers.
    pub outputs: u64,
    /// Of each class.
    pub lanes: Vec<LaneUse>,
}

#[derive(Clone, Copy)]
struct Row {
    prompt: usize,
    prefilled: usize,
    made: usize,
    output: usize,
}

/// Runs `requests` through `lanes`, ascending in length. With `limit`, every request asks for room for that many tokens
/// (or what the longest lane leaves) and is put by that, as where clients do not know how long answers get. Without
/// `drain`, it ends when nobody waits any more: a steady load.
pub fn replay(lanes: &[Lane], requests: &[Request], limit: Option<usize>, drain: bool) -> Replay {
    let mut replay = Replay { lanes: vec![LaneUse::default(); lanes.len()], ..Replay::default() };
    let mut rows: Vec<Vec<Option<Row>>> = lanes.iter().map(|lane| vec![None; lane.rows]).collect();
    let mut waiting: Vec<VecDeque<Request>> = vec![VecDeque::new(); lanes.len()];
    let longest = lanes.last().map_or(0, |lane| lane.longest);
    let window = WINDOW * lanes.iter().map(|lane| lane.rows).sum::<usize>().max(1);
    let (mut queued, mut next) = (0, 0);
    loop {
        while queued < window && next < requests.len() {
            let request = requests[next];
            next += 1;
            let need = match limit {
                None => request.total(),
                Some(limit) => {
                    request.prompt.saturating_add(limit.max(request.output)).min(longest.max(request.total()))
                }
            };
            match lanes.iter().position(|lane| lane.rows > 0 && need <= lane.longest) {
                Some(lane) => {
                    waiting[lane].push_back(request);
                    queued += 1;
                }
                None => replay.refused += 1,
            }
        }
        queued -= admit(&mut rows, &mut waiting);
        let mut busy = false;
        for (lane, rows) in rows.iter_mut().enumerate() {
            busy |= round(rows, &lanes[lane].chunks, &mut replay.lanes[lane], &mut replay.served, &mut replay.outputs);
        }
        if busy {
            replay.rounds += 1;
        }
        if next >= requests.len() && (!busy || (!drain && queued == 0)) {
            return replay;
        }
    }
}

/// Gives free rows to those that wait, longest lane first; returns how many got one.
fn admit(rows: &mut [Vec<Option<Row>>], waiting: &mut [VecDeque<Request>]) -> usize {
    let mut admitted = 0;
    for lane in (0..rows.len()).rev() {
        let mut free = rows[lane].iter_mut().filter(|row| row.is_none());
        // Its own first; then the longest of the others.
        for from in (0..=lane).rev() {
            while !waiting[from].is_empty() {
                let Some(row) = free.next() else { break };
                let Some(Request { prompt, output }) = waiting[from].pop_front() else { break };
                *row = Some(Row { prompt, prefilled: 0, made: 0, output });
                admitted += 1;
            }
        }
    }
    admitted
}

/// One round of one lane; false if nobody is in it.
fn round(rows: &mut [Option<Row>], chunks: &[usize], done: &mut LaneUse, served: &mut u64, outputs: &mut u64) -> bool {
    let (mut batch, mut len, mut busy) = (0, 0, false);
    for (i, slot) in rows.iter_mut().enumerate() {
        let Some(row) = slot else { continue };
        busy = true;
        done.held += 1;
        if row.prefilled < row.prompt {
            let left = row.prompt - row.prefilled;
            let largest = chunks.last().copied().unwrap_or(left).max(1);
            let chunk = smallest(chunks, left).unwrap_or(largest);
            let tokens = left.min(chunk);
            *done.prefill.entry((chunk, row.prefilled)).or_default() += 1;
            done.prompt += tokens as u64;
            row.prefilled += tokens;
            if row.prefilled == row.prompt {
                row.made = 1;
            }
        } else {
            let context = row.prompt + row.made - 1;
            (batch, len) = (i + 1, len.max(context));
            done.positions += context as u128;
            done.decoded += 1;
            row.made += 1;
        }
        if row.made >= row.output {
            *served += 1;
            *outputs += row.made as u64;
            *slot = None;
        }
    }
    if batch > 0 {
        *done.decode.entry((batch, len)).or_default() += 1;
    }
    busy
}

/// Useful over padded, each in 0..=1; 1 where there was nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Useful {
    /// Cache positions that decode steps needed, over batch times length of their buckets.
    pub decode: f64,
    /// Prompt tokens over the tokens of their chunks.
    pub prefill: f64,
    /// Cache positions before prefill chunks, over the lengths of their buckets.
    pub prefix: f64,
    /// Decode positions and prompt tokens together.
    pub all: f64,
}

/// What a replay costs in a plan's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Simulation {
    /// Requests that ended.
    pub served: u64,
    /// Requests that were too long.
    pub refused: u64,
    /// Rounds.
    pub rounds: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Seconds at the roofline: at least.
    pub seconds: f64,
    /// Seconds of it that are prefill.
    pub prefill_seconds: f64,
    /// Share of rows that were taken.
    pub occupancy: f64,
    /// Useful over padded.
    pub useful: Useful,
}

impl Simulation {
    /// Answer tokens per second of one replica, at most.
    pub fn tokens_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.output_tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Mean seconds of a round, which is the time per output token of a sequence, at least.
    pub fn round_s(&self) -> f64 {
        if self.rounds > 0 { self.seconds / self.rounds as f64 } else { 0.0 }
    }
}

/// Runs `requests` through one replica of `plan`.
pub fn simulate(plan: &Plan, requests: &[Request], limit: Option<usize>) -> Simulation {
    let lanes: Vec<Lane> = plan.classes.iter().map(|class| plan.lane(*class)).collect();
    let of_class = |i: usize| {
        let class = plan.classes[i];
        plan.modules.iter().copied().zip(plan.module_seconds.iter().copied()).filter(move |(m, _)| m.class == class)
    };
    let modules: Vec<Vec<(ModuleSpec, f64)>> = (0..lanes.len()).map(|i| of_class(i).collect()).collect();
    cost(&lanes, &replay(&lanes, requests, limit, true), &modules)
}

/// Costs of `replay`, with each lane's modules and their seconds.
pub fn cost(lanes: &[Lane], replay: &Replay, modules: &[Vec<(ModuleSpec, f64)>]) -> Simulation {
    let (mut decode, mut prefill, mut prefix) = ((0_u128, 0_u128), (0_u128, 0_u128), (0_u128, 0_u128));
    let (mut seconds, mut prefill_seconds, mut held) = (0.0, 0.0, 0);
    for (done, modules) in replay.lanes.iter().zip(modules) {
        decode.0 += done.positions;
        prefill.0 += u128::from(done.prompt);
        held += done.held;
        for ((batch, len), steps) in &done.decode {
            if let Some((padded, time)) = decode_step(modules, *batch, *len) {
                decode.1 += padded as u128 * u128::from(*steps);
                seconds += time * *steps as f64;
            }
        }
        for ((chunk, start), steps) in &done.prefill {
            if let Some((len, time)) = prefill_step(modules, *chunk, *start) {
                prefill.1 += *chunk as u128 * u128::from(*steps);
                prefix.0 += *start as u128 * u128::from(*steps);
                prefix.1 += len as u128 * u128::from(*steps);
                prefill_seconds += time * *steps as f64;
            }
        }
    }
    let share = |(useful, padded): (u128, u128)| if padded > 0 { useful as f64 / padded as f64 } else { 1.0 };
    let rows: usize = lanes.iter().map(|lane| lane.rows).sum();
    Simulation {
        served: replay.served,
        refused: replay.refused,
        rounds: replay.rounds,
        output_tokens: replay.outputs,
        prompt_tokens: replay.lanes.iter().map(|l| l.prompt).sum(),
        seconds: seconds + prefill_seconds,
        prefill_seconds,
        occupancy: held as f64 / (replay.rounds as f64 * rows as f64).max(1.0),
        useful: Useful {
            decode: share(decode),
            prefill: share(prefill),
            prefix: share(prefix),
            all: share((decode.0 + prefill.0, decode.1 + prefill.1)),
        },
    }
}

/// Positions and seconds of the smallest decode module that holds the step.
fn decode_step(modules: &[(ModuleSpec, f64)], rows: usize, len: usize) -> Option<(usize, f64)> {
    let padded = |(m, time): &(ModuleSpec, f64)| match m.kind {
        ModuleKind::Decode { batch } if batch >= rows && m.len >= len => Some((batch * m.len, *time)),
        _ => None,
    };
    modules.iter().filter_map(padded).min_by_key(|(padded, _)| *padded)
}

/// Length and seconds of the shortest prefill module of this chunk.
fn prefill_step(modules: &[(ModuleSpec, f64)], chunk: usize, start: usize) -> Option<(usize, f64)> {
    let padded = |(m, time): &(ModuleSpec, f64)| match m.kind {
        ModuleKind::Prefill { tokens } if tokens == chunk && m.len >= start => Some((m.len, *time)),
        _ => None,
    };
    modules.iter().filter_map(padded).min_by_key(|(len, _)| *len)
}

/// Requests that wait, per row.
const WINDOW: usize = 8;
