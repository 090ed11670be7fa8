//! Why a plan is as it is, in words.

use super::{Instance, ModuleKind, Objective, Plan, Wish, name};

/// One sentence per choice.
pub fn of(plan: &Plan, instance: &Instance, wish: &Wish, smaller: bool) -> Vec<String> {
    let mut reasons = vec![tp(plan, wish), types(plan, wish, smaller)];
    let rows = plan.rows();
    reasons.push(match (wish.batch, wish.objective, wish.tpot) {
        (Some(_), _, _) => format!("{rows} rows: as asked"),
        (None, Objective::Latency, _) => format!("{rows} row: each more makes every step longer"),
        (None, _, Some(tpot)) => {
            format!("{rows} rows: as many as memory and {:.1} ms per output token allow", tpot * 1e3)
        }
        (None, _, None) => format!("{rows} rows: as many as fit; each more shares the reading of the weights"),
    });
    let (classes, together) = (plan.classes.len(), plan.modules.iter().filter(|m| m.parts.len() > 1).count());
    reasons.push(match together {
        0 => format!("{classes} class(es): a finer cut pads less, but every class reads the weights once more per token"),
        n => format!(
            "{classes} classes: a finer cut pads less, but each has prefill modules of its own; {n} module(s) decode all together \
             and read the weights once"
        ),
    });
    reasons.push(format!(
        "chunks of at most {} tokens: from {} on, computing takes longer than reading the weights",
        chunk(plan),
        plan.figures.ridge
    ));
    let neffs = plan.modules.len();
    reasons.push(format!("{neffs} modules of at most {}: more would gain less than 1 %", wish.max_neffs));
    if !instance.chip.tp.contains(&plan.tp) {
        reasons.push(format!("tensor parallelism of {} is not among the degrees that AWS's stack offers", plan.tp));
    }
    let idle = instance.chips.saturating_sub(plan.active_chips);
    if idle > 0 {
        reasons.push(format!("{idle} chip(s) idle: {} replica(s) of {} cores", plan.replicas, plan.tp));
    }
    reasons.push(
        "speeds are bounds from bandwidth, peak and hops of all-reduces; nothing here has run on Neuron hardware"
            .into(),
    );
    reasons
}

fn tp(plan: &Plan, wish: &Wish) -> String {
    let tp = plan.tp;
    let least = plan.tried.iter().filter(|t| t.tokens_per_s.is_some()).map(|t| t.tp).min();
    match (wish.tp, wish.objective) {
        (Some(_), _) => format!("tp {tp}: as asked"),
        (None, Objective::Latency) => format!("tp {tp}: the shortest steps"),
        (None, _) if least == Some(tp) => {
            format!("tp {tp}: the smallest that fits; {} replica(s) share nothing and wait for nobody", plan.replicas)
        }
        (None, _) => format!("tp {tp}: smaller ones that fit have too few rows, by a quarter of the speed or more"),
    }
}

fn types(plan: &Plan, wish: &Wish, smaller: bool) -> String {
    let types = format!("{} weights, {} caches", name(&plan.weights), name(&plan.kv));
    match (smaller, wish.weights.is_some() && wish.kv.is_some()) {
        (true, _) => format!("{types}: larger types do not fit"),
        (false, true) => format!("{types}: as asked"),
        (false, false) => format!("{types}: they fit; smaller ones change answers, so they are chosen by a person"),
    }
}

fn chunk(plan: &Plan) -> usize {
    let tokens = |kind| if let ModuleKind::Prefill { tokens } = kind { tokens } else { 0 };
    plan.modules.iter().map(|m| tokens(m.kind)).max().unwrap_or(0)
}
