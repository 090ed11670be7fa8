//! Classes of rows and their buckets, for one way to store a model on some cores.
//!
//! A class is a range of sequence lengths; cutting finer wastes fewer positions, but every class has chunks of its own, and
//! decodes either by itself, which reads the weights again, or at the [levels](super::levels) of all. The search tries numbers
//! of classes, chunks and buckets in both forms, fits each to what a replay of the lengths needs, and keeps the ones that fit
//! in memory.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::buckets::{coarse, fit};
use super::lengths::Request;
use super::levels::{Level, levels};
use super::memory::{Assumptions, Hbm, Stored};
use super::replay::{Lane, Replay, replay};
use super::roofline::Roofline;
use super::simulate::{Simulation, cost};
use super::uses::LaneUse;
use super::{CacheShape, Instance, ModuleKind, ModuleSpec, Part};
use crate::backend::neuron::decodes::Need;

/// What the search is given.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    /// Machine.
    pub instance: &'a Instance,
    /// The model on its cores.
    pub stored: Stored<'a>,
    /// Estimates.
    pub assumed: &'a Assumptions,
    /// Admissible requests, not empty.
    pub requests: &'a [Request],
    /// Longest sequence.
    pub context: usize,
    /// Rows, if they are given.
    pub batch: Option<usize>,
    /// Seconds per output token at most.
    pub tpot: Option<f64>,
    /// Modules at most.
    pub max_neffs: usize,
    /// Useful over padded at least, of decode and of prefill.
    pub min_useful: f64,
    /// One class, for the shortest steps.
    pub latency: bool,
    /// Whether classes may decode together.
    pub together: bool,
    /// Biases and mask of every module.
    pub inputs: (usize, bool),
}

/// Modules that fit.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Modules with the seconds of a step, class by class.
    pub modules: Vec<(ModuleSpec, f64)>,
    /// A core's memory.
    pub hbm: Hbm,
    /// What the lengths cost.
    pub simulation: Simulation,
}

impl Candidate {
    fn decodes_together(&self) -> bool {
        self.modules.iter().any(|(m, _)| m.parts.len() > 1)
    }
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Nothing {
    /// Bytes that lack on a core for the smallest set of modules.
    Memory(u64),
    /// The shortest time per output token that was found.
    Tpot(f64),
    /// The best share of useful positions that was found.
    Useful(f64),
}

impl Problem<'_> {
    /// The best candidate. What `memo` holds is of problems that differ in their bounds and in `together` alone, what
    /// `shared` holds of those that differ in the machine and in what is stored too.
    pub fn solve(&self, memo: &mut Memo, shared: &mut Shared) -> Result<Candidate, Nothing> {
        let roofline = Roofline::new(&self.stored, self.instance, self.assumed);
        let grain = self.context.div_ceil(STEPS);
        let cap = self.batch.unwrap_or(if self.latency { 1 } else { MAX_ROWS });
        let requests = spread(self.requests, LOOK);
        let mut search = Search {
            problem: self,
            roofline,
            grain,
            cap,
            requests,
            turns: LOOK_TURNS,
            replays: Replays::new(),
            shared,
        };
        if memo.looks.is_none() {
            memo.looks = Some(self.looks(&mut search));
        }
        let Memo { looks, settled } = memo;
        let (mut found_looks, mut nothing) = (Vec::new(), Nothing::Memory(u64::MAX));
        for (i, (joins, look)) in looks.iter().flatten().enumerate().filter(|(_, (joins, _))| self.together || !joins) {
            match look {
                Ok(look) => found_looks.push((i, *joins, self.promise(&look.candidate), look)),
                Err(why) => nothing = nearer(nothing, *why),
            }
        }
        // Looks are at few requests; those that promise most are held against all of them.
        found_looks.sort_by(|a, b| b.2.total_cmp(&a.2));
        (search.requests, search.turns) = (self.requests.to_vec(), TURNS);
        search.replays.clear();
        let mut found: Vec<Candidate> = Vec::new();
        let (together, alone): (Vec<_>, Vec<_>) = found_looks.into_iter().partition(|(_, joins, ..)| *joins);
        for (i, _, _, look) in together.into_iter().take(FINALISTS).chain(alone.into_iter().take(FINALISTS)) {
            let best = found.iter().map(|c| self.score(c)).fold(0.0, f64::max);
            // Beginning and end weigh more in a look; fewer rows will not make it faster.
            if self.score(&look.candidate) * LOOKS_SLOWER < best {
                continue;
            }
            match search.settle(look, best, settled.entry(i).or_default()) {
                Ok(candidate) => found.push(candidate),
                Err(why) => nothing = nearer(nothing, why),
            }
        }
        // A step of all classes reads the rows of those that nobody is in, which a steady load hardly shows: it must be clearly
        // better.
        let worth = |c: &Candidate| self.score(c) / if c.decodes_together() { CLEARLY } else { 1.0 };
        let best = found.iter().map(worth).fold(0.0, f64::max);
        // A module more is a compilation and memory more: it must be worth something.
        let good = found.into_iter().filter(|c| worth(c) >= best * WORTH);
        good.min_by_key(|c| c.modules.len()).ok_or(nothing)
    }

    /// A look at each form that is tried, and whether classes decode together in it.
    fn looks(&self, search: &mut Search<'_>) -> Vec<(bool, Result<Look, Nothing>)> {
        let chunk = search.roofline.ridge().div_ceil(CHUNK_GRAIN).saturating_mul(CHUNK_GRAIN);
        let totals: Vec<(usize, u64)> =
            self.requests.iter().map(|r| (coarse(r.total(), search.grain, self.context), r.output as u64)).collect();
        let most = if self.latency { 1 } else { MAX_CLASSES.min(self.batch.unwrap_or(MAX_ROWS)) };
        let mut looks = Vec::new();
        for set in fit(&totals, most.min(self.max_neffs.max(2) - 1).max(1), self.context) {
            for (chunks, starts) in PREFILLS {
                let lanes = self.lanes(&set.buckets, chunk, chunks);
                let shares = self.shares(&lanes);
                let room = self.max_neffs.max(2).saturating_sub(lanes.len() * chunks * starts);
                for decodes in decodes(lanes.len(), starts == 1, room) {
                    let joins = matches!(decodes, Decoding::Together(_));
                    looks.push((joins, search.look(&lanes, &shares, Counts { chunks, starts, decodes })));
                }
            }
        }
        looks
    }

    fn score(&self, c: &Candidate) -> f64 {
        match self.latency {
            true => 1.0 / c.simulation.round_s().max(f64::MIN_POSITIVE),
            false => c.simulation.tokens_per_s(),
        }
    }

    /// What a candidate may come to, less the further it is from what is asked for.
    fn promise(&self, c: &Candidate) -> f64 {
        let (round, useful) = (c.simulation.round_s(), c.simulation.useful);
        let late = self.tpot.map_or(1.0, |tpot| (tpot / round.max(f64::MIN_POSITIVE)).min(1.0));
        let padded = (useful.decode.min(useful.prefill) / self.min_useful.max(f64::MIN_POSITIVE)).min(1.0);
        self.score(c) * late * padded.powi(8)
    }

    /// What is wrong with a candidate, memory aside.
    fn flaw(&self, c: &Candidate) -> Option<Nothing> {
        let (round, useful) = (c.simulation.round_s(), c.simulation.useful);
        let useful = useful.decode.min(useful.prefill);
        match self.tpot {
            Some(tpot) if round > tpot => Some(Nothing::Tpot(round)),
            _ if useful < self.min_useful => Some(Nothing::Useful(useful)),
            _ => None,
        }
    }

    /// Lanes without rows, with `chunks` sizes of chunks fitted to the prompts of each.
    fn lanes(&self, bounds: &[usize], largest: usize, chunks: usize) -> Vec<Lane> {
        let mut below = 0;
        let lane = |longest: &usize| {
            let largest = largest.min(*longest).max(1);
            let own = self.requests.iter().filter(|r| r.total() > below && r.total() <= *longest);
            let tails: Vec<_> = own.map(|r| (coarse((r.prompt - 1) % largest + 1, TAIL_GRAIN, largest), 1)).collect();
            below = *longest;
            let chunks = fit(&tails, chunks, largest).pop().map_or(vec![largest], |set| set.buckets);
            Lane { rows: 0, longest: *longest, chunks }
        };
        bounds.iter().map(lane).collect()
    }

    /// Shares of rows: how long each lane's requests hold one, and more for the longer ones. Mixes drift, and a long row
    /// serves anybody, a short one not.
    fn shares(&self, lanes: &[Lane]) -> Vec<f64> {
        let mut rounds = vec![0.0; lanes.len()];
        for request in self.requests {
            if let Some(i) = lanes.iter().position(|lane| request.total() <= lane.longest) {
                let chunk = lanes[i].chunks.last().copied().unwrap_or(1);
                rounds[i] += (request.prompt.div_ceil(chunk) + request.output - 1) as f64;
            }
        }
        let steps = lanes.len().saturating_sub(1).max(1) as f64;
        for (i, rounds) in rounds.iter_mut().enumerate().skip(1) {
            *rounds *= 1.0 + SLACK * (i as f64 / steps).powi(2);
        }
        let all: f64 = rounds.iter().sum();
        rounds.iter().map(|r| r / all.max(1.0)).collect()
    }
}

/// The more telling of two failures: useful before time before memory, then the one nearer to success.
fn nearer(a: Nothing, b: Nothing) -> Nothing {
    match (a, b) {
        (Nothing::Memory(a), Nothing::Memory(b)) => Nothing::Memory(a.min(b)),
        (Nothing::Tpot(a), Nothing::Tpot(b)) => Nothing::Tpot(a.min(b)),
        (Nothing::Useful(a), Nothing::Useful(b)) => Nothing::Useful(a.max(b)),
        (Nothing::Useful(_), _) | (Nothing::Tpot(_), Nothing::Memory(_)) => a,
        _ => b,
    }
}

/// Modules of a candidate.
#[derive(Clone, Copy)]
struct Counts {
    /// Sizes of chunks of each class.
    chunks: usize,
    /// Lengths before them.
    starts: usize,
    decodes: Decoding,
}

/// How classes decode.
#[derive(Clone, Copy)]
enum Decoding {
    /// Each by itself, with so many modules in all.
    Alone(usize),
    /// Together, at so many levels.
    Together(usize),
}

/// What is tried for so many classes, where there is room for so many modules.
fn decodes(classes: usize, may_join: bool, room: usize) -> Vec<Decoding> {
    let tried = |counts: &[usize], each: usize, most: usize| {
        let mut totals: Vec<usize> = counts.iter().map(|n| n * each).collect();
        totals.push(room.min(most * each));
        totals.sort_unstable();
        totals.dedup();
        totals.retain(|n| (each..=room).contains(n));
        totals
    };
    let alone = tried(&DECODES, classes, MAX_DECODES).into_iter().map(Decoding::Alone);
    let together = if classes > 1 && may_join { tried(&LEVELS_TRIED, 1, MAX_LEVELS) } else { vec![] };
    alone.chain(together.into_iter().map(Decoding::Together)).collect()
}

/// What was found for one way to store a model.
#[derive(Default)]
pub struct Memo {
    looks: Option<Vec<(bool, Result<Look, Nothing>)>>,
    /// By look and rows: its candidate for all requests.
    settled: BTreeMap<usize, Settled>,
}

type Settled = BTreeMap<usize, Candidate>;

/// What requests did in as many rows as there may be, in looks and for all requests: there memory does not matter.
#[derive(Default)]
pub struct Shared {
    looks: Replays,
    all: Replays,
}

/// By lanes: chunks and rows.
type Replays = BTreeMap<Vec<(usize, Vec<usize>)>, Rc<Replayed>>;

struct Search<'a> {
    problem: &'a Problem<'a>,
    roofline: Roofline,
    grain: usize,
    /// Rows at most.
    cap: usize,
    /// What is replayed, and how often each row is taken at least.
    requests: Vec<Request>,
    turns: usize,
    replays: Replays,
    shared: &'a mut Shared,
}

/// What requests did, and levels of 1, 2, ... modules for their decode steps, where they were asked for.
struct Replayed {
    replay: Replay,
    levels: OnceCell<Vec<Vec<Level>>>,
}

/// A candidate with as many rows as fit.
struct Look {
    /// Lanes without rows.
    lanes: Vec<Lane>,
    counts: Counts,
    shares: Vec<f64>,
    rows: usize,
    candidate: Candidate,
}

impl Search<'_> {
    /// As many rows as fit in memory, and buckets for them.
    fn look(&mut self, lanes: &[Lane], shares: &[f64], counts: Counts) -> Result<Look, Nothing> {
        let problem = self.problem;
        let least = lanes.len();
        let fits = |rows: usize| self.bound(&with_rows(lanes, shares, rows), counts).fits();
        let mut rows = match problem.batch.or(problem.latency.then_some(1)) {
            Some(batch) => batch.max(least),
            None => largest(least, MAX_ROWS, fits),
        };
        if !fits(rows) {
            let hbm = self.bound(&with_rows(lanes, shares, rows), counts);
            return Err(Nothing::Memory(hbm.total() - hbm.limit));
        }
        let mut candidate = self.build(&with_rows(lanes, shares, rows), counts);
        // The bound takes every class for one of its share of modules; some get more.
        while !candidate.hbm.fits() && problem.batch.is_none() && rows > least {
            rows = (rows - rows.div_ceil(16)).max(least);
            candidate = self.build(&with_rows(lanes, shares, rows), counts);
        }
        match candidate.hbm.fits() {
            true => Ok(Look { lanes: lanes.to_vec(), counts, shares: shares.to_vec(), rows, candidate }),
            false => Err(Nothing::Memory(candidate.hbm.total() - candidate.hbm.limit)),
        }
    }

    /// A look's candidate with as many rows as leave steps short enough and padding small enough: fewer rows make shorter
    /// steps, and maxima nearer to the mean.
    fn settle(&mut self, look: &Look, best: f64, settled: &mut Settled) -> Result<Candidate, Nothing> {
        let problem = self.problem;
        let mut of = |search: &mut Self, rows| {
            let build = || search.build(&with_rows(&look.lanes, &look.shares, rows), look.counts);
            settled.entry(rows).or_insert_with(build).clone()
        };
        let mut candidate = of(self, look.rows);
        let together = matches!(look.counts.decodes, Decoding::Together(_));
        if let (true, Some(Nothing::Useful(_))) = (together, problem.flaw(&candidate)) {
            // Fewer rows of many classes need not pad less: a step reads all of them, and few are taken less evenly.
            let mut rows = look.rows;
            for _ in 0..TRIED {
                if problem.flaw(&candidate).is_none() || problem.batch.is_some() || rows <= look.lanes.len() {
                    break;
                }
                rows = (rows - rows.div_ceil(FEWER)).max(look.lanes.len());
                candidate = of(self, rows);
                if problem.score(&candidate) <= best {
                    break;
                }
            }
        } else if problem.flaw(&candidate).is_some() && problem.batch.is_none() && !problem.latency {
            let (mut good, mut bad) = (look.lanes.len(), look.rows);
            let mut best = None;
            while bad - good > bad / 8 + 1 {
                let middle = good.midpoint(bad);
                let candidate = of(self, middle);
                match problem.flaw(&candidate) {
                    Some(_) => bad = middle,
                    None => (good, best) = (middle, Some(candidate)),
                }
            }
            candidate = best.unwrap_or_else(|| of(self, good));
        }
        match problem.flaw(&candidate) {
            _ if !candidate.hbm.fits() => Err(Nothing::Memory(candidate.hbm.total() - candidate.hbm.limit)),
            Some(why) => Err(why),
            None => Ok(candidate),
        }
    }

    /// Memory of the largest modules that these counts can give.
    fn bound(&self, lanes: &[Lane], Counts { chunks, starts, decodes }: Counts) -> Hbm {
        let mut modules = Vec::new();
        if let Decoding::Together(levels) = decodes {
            let whole: Level = lanes.iter().map(|lane| Need { rows: lane.rows, len: lane.longest }).collect();
            modules.extend(std::iter::repeat_n(self.level(lanes, &whole), levels));
        }
        for lane in lanes {
            let chunk = lane.chunks.last().copied().unwrap_or(1);
            let prefill = self.spec(lane, ModuleKind::Prefill { tokens: chunk }, lane.longest);
            let decode = self.spec(lane, ModuleKind::Decode { batch: lane.rows }, lane.longest);
            modules.extend(std::iter::repeat_n(prefill, chunks * starts));
            if let Decoding::Alone(all) = decodes {
                modules.extend(std::iter::repeat_n(decode, all.div_ceil(lanes.len().max(1))));
            }
        }
        self.problem.stored.hbm(self.problem.instance, &modules, self.problem.assumed)
    }

    fn spec(&self, lane: &Lane, kind: ModuleKind, len: usize) -> ModuleSpec {
        let (biases, mask) = self.problem.inputs;
        ModuleSpec { biases, mask, ..ModuleSpec::of(class(lane), kind, len) }
    }

    /// The decode module of a level.
    fn level(&self, lanes: &[Lane], level: &[Need]) -> ModuleSpec {
        let needed = lanes.iter().zip(level).filter(|(_, need)| need.rows > 0);
        let part = |(lane, need): (&Lane, &Need)| Part { class: class(lane), rows: need.rows, len: need.len };
        let (biases, mask) = self.problem.inputs;
        ModuleSpec { biases, mask, ..ModuleSpec::decode(needed.map(part).collect()) }
    }

    fn replayed(&mut self, lanes: &[Lane]) -> Rc<Replayed> {
        let key: Vec<_> = lanes.iter().map(|l| (l.rows, [&[l.longest], l.chunks.as_slice()].concat())).collect();
        let rows: usize = lanes.iter().map(|l| l.rows).sum();
        let known = match (rows == self.cap, self.turns == TURNS) {
            (false, _) => &mut self.replays,
            (true, false) => &mut self.shared.looks,
            (true, true) => &mut self.shared.all,
        };
        let done = known.entry(key).or_insert_with(|| {
            let times = (self.turns * rows).div_ceil(self.requests.len().max(1)).max(1);
            let replay = replay(lanes, &self.requests.repeat(times), None, true, self.grain);
            Rc::new(Replayed { replay, levels: OnceCell::new() })
        });
        Rc::clone(done)
    }

    fn build(&mut self, lanes: &[Lane], Counts { starts, decodes, .. }: Counts) -> Candidate {
        let done = self.replayed(lanes);
        let replay = &done.replay;
        // Of each class its own, then those of all.
        let (grids, together) = match decodes {
            Decoding::Alone(all) => (decode_grids(lanes, &replay.lanes, all), vec![]),
            Decoding::Together(most) => {
                let sets = done.levels.get_or_init(|| levels(lanes, replay, MAX_LEVELS));
                let levels = sets[most.min(sets.len()) - 1].iter().map(|level| self.level(lanes, level));
                (vec![Grid::default(); lanes.len()], levels.collect())
            }
        };
        let mut specs: Vec<ModuleSpec> = Vec::new();
        for ((lane, done), (batches, lens)) in lanes.iter().zip(&replay.lanes).zip(grids) {
            let before: Vec<_> = done
                .prefill
                .iter()
                .map(|((_, start), n)| (coarse((*start).max(1), self.grain, lane.longest), *n))
                .collect();
            let starts = fit(&before, starts, lane.longest).pop().map_or(vec![lane.longest], |set| set.buckets);
            let prefills = lane.chunks.iter().flat_map(|tokens| {
                let spec = |len: &usize| self.spec(lane, ModuleKind::Prefill { tokens: *tokens }, *len);
                starts.iter().map(spec).collect::<Vec<_>>()
            });
            let decodes = batches.iter().flat_map(|batch| {
                lens.iter().map(|len| self.spec(lane, ModuleKind::Decode { batch: *batch }, *len)).collect::<Vec<_>>()
            });
            specs.extend(prefills.chain(decodes));
        }
        specs.extend(together);
        let hbm = self.problem.stored.hbm(self.problem.instance, &specs, self.problem.assumed);
        let timed = |spec: ModuleSpec| {
            let seconds = self.roofline.step(&spec);
            (spec, seconds)
        };
        let modules: Vec<(ModuleSpec, f64)> = specs.into_iter().map(timed).collect();
        let classes: Vec<CacheShape> = lanes.iter().map(class).collect();
        let simulation = cost(lanes, replay, &classes, &modules);
        Candidate { modules, hbm, simulation }
    }
}

/// A lane's rows, with room for the padding of its chunks.
fn class(lane: &Lane) -> CacheShape {
    CacheShape { rows: lane.rows, positions: lane.longest + lane.chunks.last().copied().unwrap_or(1) }
}

/// Buckets of a lane's decode steps: batches and lengths, of which every pair is a module.
type Grid = (Vec<usize>, Vec<usize>);

/// Shares `modules` out so that the padded work of all lanes is least: each in turn to whom it saves most.
fn decode_grids(lanes: &[Lane], done: &[LaneUse], modules: usize) -> Vec<Grid> {
    let most = (modules + 1).saturating_sub(lanes.len()).clamp(1, MAX_DECODES);
    let curves: Vec<Vec<(u128, Grid)>> =
        lanes.iter().zip(done).map(|(lane, done)| decode_curve(lane, done, most)).collect();
    let mut given = vec![1; lanes.len()];
    for _ in lanes.len()..modules {
        let saved = |(i, n): (usize, &usize)| curves[i].get(*n).map_or(0, |next| curves[i][n - 1].0 - next.0);
        let gains: Vec<u128> = given.iter().enumerate().map(saved).collect();
        match gains.iter().enumerate().max_by_key(|(_, gain)| **gain) {
            Some((i, gain)) if *gain > 0 => given[i] += 1,
            _ => break,
        }
    }
    curves.into_iter().zip(given).map(|(mut curve, n)| curve.swap_remove(n - 1).1).collect()
}

/// Padded positions and buckets with 1, 2, ... `most` modules; never more with more.
fn decode_curve(lane: &Lane, done: &LaneUse, most: usize) -> Vec<(u128, Grid)> {
    let batches = done.by_rows();
    let mut curve: Vec<(u128, Grid)> = Vec::new();
    for (i, set) in fit(&batches, MAX_BATCHES.min(most), lane.rows).into_iter().enumerate() {
        let rounded = |batch: usize| set.buckets.iter().find(|b| **b >= batch).copied().unwrap_or(lane.rows);
        let lens = done.by_len(rounded);
        for (j, lens) in fit(&lens, most / (i + 1), lane.longest).into_iter().enumerate() {
            let at = (i + 1) * (j + 1) - 1;
            let grid = (lens.padded, (set.buckets.clone(), lens.buckets));
            while curve.len() <= at {
                curve.push(curve.last().cloned().unwrap_or_else(|| grid.clone()));
            }
            for entry in curve[at..].iter_mut().filter(|entry| entry.0 > grid.0) {
                *entry = grid.clone();
            }
        }
    }
    curve
}

/// At most `n` of `requests`, evenly spaced.
fn spread(requests: &[Request], n: usize) -> Vec<Request> {
    let len = requests.len();
    if len <= n { requests.to_vec() } else { (0..n).map(|i| requests[i * len / n]).collect() }
}

/// `rows` rows shared out, at least one to each lane.
fn with_rows(lanes: &[Lane], shares: &[f64], rows: usize) -> Vec<Lane> {
    let spare = rows.saturating_sub(lanes.len()) as f64;
    let mut lanes: Vec<Lane> = lanes
        .iter()
        .zip(shares)
        .map(|(lane, share)| Lane { rows: 1 + (spare * share) as usize, ..lane.clone() })
        .collect();
    let given: usize = lanes.iter().map(|l| l.rows).sum();
    let mut order: Vec<usize> = (0..lanes.len()).collect();
    let rest = |i: &usize| (spare * shares[*i]).fract();
    order.sort_by(|a, b| rest(b).total_cmp(&rest(a)));
    for i in order.into_iter().cycle().take(rows.saturating_sub(given)) {
        lanes[i].rows += 1;
    }
    lanes
}

/// The largest number in `least..=most` that fits, if smaller ones do; `least` where none does.
fn largest(least: usize, most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut good, mut bad) = (least, most.max(least) + 1);
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        match fits(middle) {
            true => good = middle,
            false => bad = middle,
        }
    }
    good
}

impl std::fmt::Display for Nothing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Nothing::Memory(bytes) => write!(f, "{:.2} GB short on a core", *bytes as f64 / 1e9),
            Nothing::Tpot(seconds) => write!(f, "{:.2} ms per output token", seconds * 1e3),
            Nothing::Useful(share) => write!(f, "{share:.3} of positions useful"),
        }
    }
}

/// Sequences of a replica at most.
pub const MAX_ROWS: usize = 512;
const MAX_CLASSES: usize = 16;
const MAX_BATCHES: usize = 3;
const MAX_DECODES: usize = 16;
/// Sizes of chunks, and lengths before them, that a class may have.
const PREFILLS: [(usize, usize); 3] = [(1, 1), (2, 1), (2, 2)];
/// Decode modules per class that are tried, beside as many as there may be.
const DECODES: [usize; 3] = [1, 2, 4];
/// Levels that are tried, beside as many as there may be.
const LEVELS_TRIED: [usize; 6] = [1, 2, 3, 4, 6, 8];
const MAX_LEVELS: usize = 16;
/// Distinct lengths that buckets are fitted to.
const STEPS: usize = 256;
/// Chunks are multiples of it, TensorE's moving dimension being a multiple of 64 at its fastest.
const CHUNK_GRAIN: usize = 64;
const TAIL_GRAIN: usize = 16;
/// Requests per row in a replay: enough that its beginning and end do not weigh too much.
const TURNS: usize = 16;
/// The same in a first look, and the requests that it replays.
const LOOK_TURNS: usize = 6;
const LOOK: usize = 1000;
/// Candidates of each form that are held against all requests.
const FINALISTS: usize = 8;
/// How much faster than its look a candidate may be.
const LOOKS_SLOWER: f64 = 1.25;
/// How many more rows the longest class gets than its requests need, as a share; classes below it get less. On the halves
/// of the Azure trace, the one planned for and the other, more of it pads more and less of it leaves rows idle.
const SLACK: f64 = 0.1;
/// Of rows, the part that is taken away at a time, and how often.
const FEWER: usize = 3;
const TRIED: usize = 4;
/// How much faster classes must be that decode together: where the mix drifts, they read more rows of nobody than those that
/// decode alone.
pub const CLEARLY: f64 = 1.25;
/// Of two candidates this near, the one with fewer modules.
const WORTH: f64 = 0.99;
