//! The choice among degrees of tensor parallelism and stored types.
//!
//! Types are kept as large as fit, since smaller ones change answers; of degrees, a larger one must be clearly better. What
//! a plan promises is held against all requests, not only the sample that the search replays.

use std::cell::RefCell;

use njoule_models::program::Program;

use super::classes::{CLEARLY, Candidate, Memo, Nothing, Problem, Shared};
use super::{
    Alternative, CacheShape, Figures, Instance, Instances, KvType, Lengths, ModuleSpec, Objective, Plan, PlanError,
    Quant, Request, Roofline, Shard, Stored, Tried, Wish, name, reasons, simulate,
};
use crate::backend::neuron::shard::shard;

/// The best plan for `program` on `instance`, for requests of `lengths`.
pub fn plan(program: &Program, instance: &Instance, lengths: &Lengths, wish: &Wish) -> Result<Plan, PlanError> {
    wish.check(instance)?;
    let admissible = Lengths { requests: admissible(lengths, wish.context), source: lengths.source.clone() };
    if admissible.requests.is_empty() {
        return Err(PlanError::Lengths { requests: lengths.requests.len(), context: wish.context });
    }
    let job = Job::new(program, instance, wish, admissible.sample(SAMPLE))?;
    let mut first = None;
    for (weights, kv) in wish.types() {
        match job.checked(weights, kv, lengths, &admissible.requests) {
            Ok(plan) => return Ok(job.with_words(plan, first.is_some())),
            // Smaller types are tried for memory alone: what they do to answers is not the planner's to decide.
            Err(error @ PlanError::Memory { .. }) => first = first.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    // Of the last types: what is missing when all has been tried.
    let (weights, kv) = wish.types().last().copied().unwrap_or((Quant::Bf16, KvType::Bf16));
    Err(job
        .best((weights, kv), Aim::of(wish), true)
        .err()
        .or(first)
        .unwrap_or(PlanError::Lengths { requests: 0, context: wish.context }))
}

/// The first instance of `table`, smallest first, on which there is a plan for the same wish but `tp`.
pub fn smallest_instance<'a>(
    program: &Program,
    table: &'a Instances,
    lengths: &Lengths,
    wish: &Wish,
) -> Option<&'a Instance> {
    let wish = Wish { tp: None, ..wish.clone() };
    table.all().iter().find(|instance| plan(program, instance, lengths, &wish).is_ok())
}

fn admissible(lengths: &Lengths, context: usize) -> Vec<Request> {
    let within = |r: &&Request| r.prompt >= 1 && r.output >= 1 && r.total() <= context;
    lengths.requests.iter().filter(within).copied().collect()
}

struct Job<'a> {
    program: &'a Program,
    instance: &'a Instance,
    wish: &'a Wish,
    requests: Vec<Request>,
    /// Degrees to try, and why a build would refuse one.
    degrees: Vec<(usize, Option<String>)>,
    /// What searches have found, for those that come after them.
    known: RefCell<Known>,
}

/// What searches have found: of each degree and stored types, and of all.
#[derive(Default)]
struct Known {
    of: Vec<((usize, Quant, KvType), Memo)>,
    shared: Shared,
}

/// A candidate with what it was made for.
struct Chosen {
    shard: Shard,
    weights: Quant,
    kv: KvType,
    replicas: usize,
    candidate: Candidate,
}

/// What the search demands of its sample, so that all requests keep what was asked for.
#[derive(Clone, Copy)]
struct Aim {
    useful: f64,
    tpot: Option<f64>,
}

impl Aim {
    fn of(wish: &Wish) -> Aim {
        Aim { useful: wish.min_useful, tpot: wish.tpot }
    }
}

impl<'a> Job<'a> {
    /// An error where no degree can be built.
    fn new(
        program: &'a Program,
        instance: &'a Instance,
        wish: &'a Wish,
        requests: Vec<Request>,
    ) -> Result<Job<'a>, PlanError> {
        let cores = instance.cores();
        let mut degrees = match wish.tp {
            Some(tp) => vec![tp],
            None => instance.chip.tp.iter().copied().filter(|tp| *tp <= cores).chain([1]).collect(),
        };
        degrees.sort_unstable();
        degrees.dedup();
        let refusal = |tp| (tp, shard(program, tp).err().map(|error| error.to_string()));
        let degrees: Vec<_> = degrees.into_iter().map(refusal).collect();
        if let Some((tp, Some(what))) = degrees.iter().find(|_| degrees.iter().all(|(_, why)| why.is_some())) {
            return Err(PlanError::Divide { model: program.name.clone(), tp: *tp, what: what.clone() });
        }
        Ok(Job { program, instance, wish, requests, degrees, known: RefCell::default() })
    }

    /// The best plan for these types. Where a share of useful positions is asked for, what holds in the sample need not hold in
    /// all requests, and for classes that decode together less so: plans without are searched by themselves.
    fn checked(
        &self,
        weights: Quant,
        kv: KvType,
        lengths: &Lengths,
        admissible: &[Request],
    ) -> Result<Plan, PlanError> {
        let found = self.aimed((weights, kv), true, lengths, admissible);
        let joins = |plan: &Plan| plan.modules.iter().any(|m| m.parts.len() > 1);
        if self.wish.min_useful == 0.0 {
            return found;
        }
        match (found, self.aimed((weights, kv), false, lengths, admissible)) {
            (Ok(together), Ok(alone)) => {
                let least = if joins(&together) { CLEARLY } else { 1.0 };
                Ok(if self.worth(&together) > least * self.worth(&alone) { together } else { alone })
            }
            (found, alone) => found.or(alone),
        }
    }

    /// What a plan is worth by its objective.
    fn worth(&self, plan: &Plan) -> f64 {
        match self.wish.objective {
            Objective::TokensPerJoule => plan.figures.tokens_per_s / plan.active_chips.max(1) as f64,
            Objective::Throughput => plan.figures.tokens_per_s,
            Objective::Latency => 1.0 / plan.figures.tpot_s.max(f64::MIN_POSITIVE),
        }
    }

    /// The best plan in which classes decode `together` or not. The search replays a sample; what it promises holds for all
    /// requests.
    fn aimed(
        &self,
        (weights, kv): (Quant, KvType),
        together: bool,
        lengths: &Lengths,
        admissible: &[Request],
    ) -> Result<Plan, PlanError> {
        let wanted = Aim::of(self.wish);
        let (mut aim, mut missed) = (wanted, None);
        for _ in 0..AIMS {
            let found = self.best((weights, kv), aim, together);
            let (chosen, tried) = match (found, missed) {
                // An aim beyond what was asked for may be too high without anything being wrong.
                (Err(PlanError::Useful { .. } | PlanError::Tpot { .. }), Some(missed)) => return Err(missed),
                (found, _) => found?,
            };
            let plan = self.finish(chosen, tried, lengths, admissible);
            let useful = plan.figures.useful.decode.min(plan.figures.useful.prefill);
            let late = wanted.tpot.filter(|wanted| plan.figures.tpot_s > *wanted);
            if useful >= wanted.useful && late.is_none() {
                return Ok(plan);
            }
            if useful < wanted.useful {
                aim.useful = (aim.useful + (wanted.useful - useful) + AIM_STEP).min(0.99);
            }
            missed = Some(match late {
                Some(wanted) => {
                    aim.tpot = aim.tpot.map(|aim| aim * (wanted / plan.figures.tpot_s) * (1.0 - AIM_STEP));
                    let (model, instance) = (self.program.name.clone(), self.instance.name.clone());
                    PlanError::Tpot { model, instance, wanted, best: plan.figures.tpot_s }
                }
                None => PlanError::Useful { wanted: wanted.useful, best: useful, max_neffs: self.wish.max_neffs },
            });
        }
        Err(missed.unwrap_or(PlanError::Useful { wanted: wanted.useful, best: 0.0, max_neffs: self.wish.max_neffs }))
    }

    /// The best degree for these types, and all that were tried.
    fn best(
        &self,
        (weights, kv): (Quant, KvType),
        aim: Aim,
        together: bool,
    ) -> Result<(Chosen, Vec<Tried>), PlanError> {
        let (mut tried, mut best) = (Vec::new(), None::<Chosen>);
        let mut nothing: Option<(usize, Nothing)> = None;
        for (tp, refusal) in &self.degrees {
            let (tp, replicas) = (*tp, self.instance.cores() / tp);
            let mut entry =
                Tried { tp, replicas, rows: None, tokens_per_s: None, tpot_s: None, problem: refusal.clone() };
            if refusal.is_some() {
                tried.push(entry);
                continue;
            }
            match self.solve(tp, (weights, kv), aim, together) {
                Ok(chosen) => {
                    let simulation = &chosen.candidate.simulation;
                    entry.rows = Some(chosen.rows());
                    entry.tokens_per_s = Some(simulation.tokens_per_s() * replicas as f64);
                    entry.tpot_s = Some(simulation.round_s());
                    let margin = if self.wish.objective == Objective::Latency { 1.0 } else { MARGIN };
                    if best.as_ref().is_none_or(|b| self.score(&chosen) > margin * self.score(b)) {
                        best = Some(chosen);
                    }
                }
                Err(why) => {
                    entry.problem = Some(why.to_string());
                    let nearer = match (nothing, why) {
                        (Some((_, Nothing::Memory(a))), Nothing::Memory(b)) => b < a,
                        (Some((_, Nothing::Memory(_))) | None, _) => true,
                        (Some((_, Nothing::Tpot(a))), Nothing::Tpot(b)) => b < a,
                        (Some((_, Nothing::Useful(a))), Nothing::Useful(b)) => b > a,
                        _ => false,
                    };
                    if nearer {
                        nothing = Some((tp, why));
                    }
                }
            }
            tried.push(entry);
        }
        let (model, instance) = (self.program.name.clone(), self.instance.name.clone());
        match (best, nothing) {
            (Some(best), _) => Ok((best, tried)),
            (None, Some((_, Nothing::Tpot(best)))) => {
                Err(PlanError::Tpot { model, instance, wanted: self.wish.tpot.unwrap_or(0.0), best })
            }
            (None, Some((_, Nothing::Useful(best)))) => {
                Err(PlanError::Useful { wanted: self.wish.min_useful, best, max_neffs: self.wish.max_neffs })
            }
            (None, why) => {
                let (tp, missing) = match why {
                    Some((tp, Nothing::Memory(missing))) => (tp, missing),
                    _ => (1, 0),
                };
                let what = format!("{} weights and {} caches", name(&weights), name(&kv));
                let limit = self.instance.core_bytes();
                Err(PlanError::Memory { model, instance, what, tp, missing, limit })
            }
        }
    }

    fn solve(&self, tp: usize, (weights, kv): (Quant, KvType), aim: Aim, together: bool) -> Result<Chosen, Nothing> {
        let (wish, shard) = (self.wish, Shard::new(self.program, tp));
        let problem = Problem {
            instance: self.instance,
            stored: Stored { shard: &shard, weights, kv },
            assumed: &wish.assumptions,
            requests: &self.requests,
            context: wish.context,
            batch: wish.batch,
            tpot: aim.tpot,
            max_neffs: wish.max_neffs,
            min_useful: aim.useful,
            latency: wish.objective == Objective::Latency,
            together,
            inputs: (wish.biases, wish.mask),
        };
        let Known { of, shared } = &mut *self.known.borrow_mut();
        let place = of.iter().position(|(of, _)| *of == (tp, weights, kv)).unwrap_or_else(|| {
            of.push(((tp, weights, kv), Memo::default()));
            of.len() - 1
        });
        let candidate = problem.solve(&mut of[place].1, shared)?;
        Ok(Chosen { shard, weights, kv, replicas: self.instance.cores() / tp, candidate })
    }

    fn score(&self, chosen: &Chosen) -> f64 {
        let simulation = &chosen.candidate.simulation;
        let tokens = simulation.tokens_per_s() * chosen.replicas as f64;
        match self.wish.objective {
            Objective::TokensPerJoule => tokens / self.chips(chosen) as f64,
            Objective::Throughput => tokens,
            Objective::Latency => 1.0 / simulation.round_s().max(f64::MIN_POSITIVE),
        }
    }

    fn chips(&self, chosen: &Chosen) -> usize {
        (chosen.replicas * chosen.shard.tp).div_ceil(self.instance.chip.cores).max(1)
    }

    fn finish(&self, chosen: Chosen, tried: Vec<Tried>, lengths: &Lengths, admissible: &[Request]) -> Plan {
        let (instance, wish) = (self.instance, self.wish);
        let Chosen { shard, weights, kv, replicas, candidate } = &chosen;
        let (modules, module_seconds): (Vec<ModuleSpec>, Vec<f64>) = candidate.modules.iter().cloned().unzip();
        let mut classes: Vec<CacheShape> = modules.iter().flat_map(|m| &m.parts).map(|part| part.class).collect();
        classes.sort_unstable_by_key(|c| c.positions);
        classes.dedup();
        let mut plan = Plan {
            model: self.program.name.clone(),
            fingerprint: self.program.fingerprint(),
            instance: instance.name.clone(),
            target: instance.target(),
            lnc: instance.lnc,
            objective: wish.objective,
            tp: shard.tp,
            replicas: *replicas,
            active_chips: self.chips(&chosen),
            weights: *weights,
            kv: *kv,
            candidates: wish.candidates,
            context: wish.context,
            classes,
            modules,
            module_seconds,
            hbm: candidate.hbm,
            assumptions: wish.assumptions,
            figures: Figures::default(),
            tried,
            alternatives: Vec::new(),
            reasons: Vec::new(),
        };
        // A short list is a distribution, not a trace: enough of it that beginning and end do not weigh.
        let rows = plan.rows();
        let times = (TURNS * rows).div_ceil(admissible.len().max(1)).max(1);
        let simulation = simulate(&plan, &admissible.repeat(times), None);
        let tokens_per_s = simulation.tokens_per_s() * *replicas as f64;
        let (ttft_s, ttft_prompt) = first_token(&plan, admissible);
        plan.figures = Figures {
            lengths: lengths.source.clone(),
            refused: 1.0 - admissible.len() as f64 / lengths.requests.len().max(1) as f64,
            tokens_per_s,
            prompt_tokens_per_s: tokens_per_s * simulation.prompt_tokens as f64
                / simulation.output_tokens.max(1) as f64,
            tpot_s: simulation.round_s(),
            decode_tpot_s: (simulation.seconds - simulation.prefill_seconds) / simulation.rounds.max(1) as f64,
            ttft_s,
            ttft_prompt,
            all_reduces: shard.all_reduces,
            all_reduce_s: self.roofline(shard, *weights, *kv).all_reduce(),
            ridge: self.roofline(shard, *weights, *kv).ridge(),
            useful: simulation.useful,
            occupancy: simulation.occupancy,
            usd_per_million: instance.price_per_hour.map(|usd| usd / 3600.0 / tokens_per_s.max(1e-9) * 1e6),
            tokens_per_joule: None,
            watts_at_one_token_per_joule: tokens_per_s,
        };
        plan
    }

    fn roofline(&self, shard: &Shard, weights: Quant, kv: KvType) -> Roofline {
        Roofline::new(&Stored { shard, weights, kv }, self.instance, &self.wish.assumptions)
    }

    /// With what other types would give, and reasons.
    fn with_words(&self, mut plan: Plan, smaller: bool) -> Plan {
        plan.alternatives = self.alternatives(&plan);
        plan.reasons = reasons::of(&plan, self.instance, self.wish, smaller);
        plan
    }

    /// What smaller types would give, where the wish leaves them open.
    fn alternatives(&self, plan: &Plan) -> Vec<Alternative> {
        let types = self.wish.types().into_iter();
        let other = types.filter(|types| *types != (plan.weights, plan.kv)).filter_map(|(weights, kv)| {
            let other = self.solve(plan.tp, (weights, kv), Aim::of(self.wish), true).ok()?;
            let tokens_per_s = other.candidate.simulation.tokens_per_s() * other.replicas as f64;
            Some(Alternative { weights, kv, rows: other.rows(), tokens_per_s })
        });
        other.collect()
    }
}

impl Chosen {
    fn rows(&self) -> usize {
        let parts = self.candidate.modules.iter().flat_map(|(m, _)| &m.parts);
        let mut classes: Vec<CacheShape> = parts.map(|part| part.class).collect();
        classes.sort_unstable();
        classes.dedup();
        classes.iter().map(|c| c.rows).sum()
    }
}

/// Seconds to the first token of the median prompt on an idle replica, and that prompt.
fn first_token(plan: &Plan, requests: &[Request]) -> (f64, usize) {
    let mut prompts: Vec<Request> = requests.to_vec();
    prompts.sort_unstable_by_key(|r| r.prompt);
    let Some(median) = prompts.get(prompts.len() / 2) else { return (0.0, 0) };
    let alone = simulate(plan, &[Request { output: 1, ..*median }], Some(median.output));
    (alone.prefill_seconds, median.prompt)
}

/// Requests that the search replays, in order; figures are of all.
const SAMPLE: usize = 6000;
/// Requests per row in the figures' simulation, at least.
const TURNS: usize = 24;
/// How often the search aims higher than asked when all requests pad more or are slower than the sample, and by how much more.
const AIMS: usize = 4;
const AIM_STEP: f64 = 0.005;
/// A larger degree must be this much better: figures have the least time of all-reduces, and published systems keep less
/// of the roofline the more cores share a model (47 % at 8, 13 to 21 % at 24; docs/neuron.md).
const MARGIN: f64 = 1.25;
