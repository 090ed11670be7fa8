//! Every op with every option, at sizes around the boundaries of kernels: lanes of 8 and 16, panels of 16 rows, groups of 32
//! columns, key tiles of 64.

use njoule_models::program::*;
use njoule_models::rope::{LongRope, RopeTable};
use njoule_models::tracer::{Attention, Tracer};

use super::{case, matrix};
use crate::Case;

/// Columns around lanes, panels and groups.
const WIDTHS: [usize; 9] = [1, 7, 8, 15, 16, 17, 31, 33, 100];

/// All of them.
pub fn cases() -> Vec<Case> {
    [embeddings(), norms(), products(), gates(), elementwise(), ropes(), attention(), experts(), joins(), outputs()]
        .concat()
}

fn embeddings() -> Vec<Case> {
    let learned = |offset: usize| {
        case(format!("embed by position + {offset}"), 40, move |t, x| {
            let table = t.weight("positions", 128 + offset, 40, WeightUse::Vocabulary, Parallel::Replicated);
            let p = t.embed_by(table, EmbedIndex::Positions { offset });
            t.add(x, p)
        })
    };
    let by_token = WIDTHS.map(|cols| case(format!("embed {cols}"), cols, |_, x| x));
    [by_token.to_vec(), vec![learned(0), learned(2)]].concat()
}

fn norm(t: &mut Tracer, kind: NormKind, len: usize, weight: bool, bias: bool) -> Norm {
    Norm { kind, weight: weight.then(|| t.vector("norm", len)), bias: bias.then(|| t.vector("bias", len)), eps: 1e-5 }
}

fn norms() -> Vec<Case> {
    let mut cases = vec![];
    for kind in [NormKind::Rms, NormKind::Layer] {
        for cols in WIDTHS.into_iter().filter(|cols| *cols > 1) {
            for (weight, bias) in [(true, false), (true, true), (false, false)] {
                cases.push(case(format!("{kind:?} norm {cols} weight {weight} bias {bias}"), cols, |t, x| {
                    let norm = norm(t, kind, cols, weight, bias);
                    t.norm(x, norm, NormGroup::Row)
                }));
                cases.push(case(format!("add and {kind:?} norm {cols} weight {weight} bias {bias}"), cols, |t, x| {
                    let w = matrix(t, "delta", (cols, cols), true);
                    let delta = t.linear(x, w);
                    let norm = norm(t, kind, cols, weight, bias);
                    let (sum, out) = t.add_norm(x, Some(delta), norm);
                    t.add(sum, out)
                }));
            }
        }
        for (heads, head, own) in [(3, 16, false), (4, 20, false), (2, 64, true), (5, 7, true)] {
            cases.push(case(
                format!("{kind:?} norm of {heads} heads of {head}, own weights {own}"),
                heads * head,
                |t, x| {
                    let norm = norm(t, kind, if own { heads * head } else { head }, true, kind == NormKind::Layer);
                    t.norm(x, norm, NormGroup::Head(head))
                },
            ));
        }
    }
    cases
}

fn products() -> Vec<Case> {
    let mut cases = vec![];
    for inp in [1, 31, 32, 33, 64, 100, 576] {
        for out in [1, 15, 16, 17, 48, 100] {
            cases.push(case(format!("linear {inp} to {out}"), inp, |t, x| {
                let w = matrix(t, "w", (out, inp), out % 2 == 0);
                t.linear(x, w)
            }));
        }
    }
    cases.push(case("siblings of one input".into(), 72, |t, x| {
        let ws = [("a", 24), ("b", 72), ("c", 24)].map(|(name, out)| matrix(t, name, (out, 72), name != "b"));
        let [a, b, c] = t.linear_n(x, ws);
        let w = matrix(t, "d", (72, 24), false);
        let a = t.mul(a, c);
        let a = t.linear(a, w);
        t.add(a, b)
    }));
    cases
}

const GLUS: [Glu; 4] =
    [Glu::Act(Act::Silu), Glu::Act(Act::GeluTanh), Glu::Act(Act::Relu), Glu::ClampedSwish { alpha: 1.702, limit: 1.5 }];

fn gates() -> Vec<Case> {
    let mut cases = vec![];
    for glu in GLUS {
        for (cols, ffn, bias) in [(40, 96, false), (33, 17, true)] {
            cases.push(case(format!("gated {glu:?} {cols} by {ffn} bias {bias}"), cols, |t, x| {
                let [gate, up] = ["gate", "up"].map(|name| matrix(t, name, (ffn, cols), bias));
                t.gated_mlp_in(x, gate, up, glu)
            }));
        }
    }
    cases
}

fn elementwise() -> Vec<Case> {
    let mut cases = vec![];
    for cols in [1, 17, 48] {
        for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Relu2, Act::Sigmoid] {
            cases.push(case(format!("{act:?} {cols}"), cols, |t, x| {
                // Beyond where functions saturate.
                let x = t.scale(x, 8.0);
                t.act(x, act)
            }));
        }
        cases.push(case(format!("softcap {cols}"), cols, |t, x| t.softcap(x, Some(0.75))));
        for bound in [0.0, 0.5, 100.0] {
            cases.push(case(format!("clamp {cols} at {bound}"), cols, |t, x| t.clamp(x, Some(bound))));
        }
        cases.push(case(format!("mul {cols}"), cols, |t, x| {
            let y = t.scale(x, 0.5);
            t.mul(x, y)
        }));
        cases.push(case(format!("mul by one column {cols}"), cols, |t, x| {
            let w = matrix(t, "w", (1, cols), true);
            let y = t.linear(x, w);
            let y = t.act(y, Act::Sigmoid);
            t.mul(x, y)
        }));
    }
    cases
}

/// Frequencies of `width / 2` pairs.
pub fn rope(width: usize, amplitude: f32, long: Option<usize>) -> RopeTable {
    let freq = |base: f64| (0..width / 2).map(|i| base.powf(-2.0 * i as f64 / width as f64) as f32).collect::<Vec<_>>();
    let long = long.map(|beyond| LongRope { beyond, inv_freq: freq(900.0) });
    RopeTable { inv_freq: freq(10_000.0), amplitude, long }
}

fn ropes() -> Vec<Case> {
    let mut cases = vec![];
    for pairing in [Pairing::Half, Pairing::Neighbours] {
        for (heads, head, width) in [(3, 64, 64), (2, 20, 20), (4, 32, 8), (1, 10, 6), (2, 33, 32)] {
            for long in [None, Some(43), Some(44)] {
                let name = format!("rope {pairing:?} {heads} heads of {head}, {width} rotated, long {long:?}");
                cases.push(case(name, heads * head, |t, x| {
                    let table = t.rope_table(rope(width, if long.is_some() { 1.2 } else { 1.0 }, long));
                    t.rope(x, table, head, pairing)
                }));
            }
        }
    }
    cases
}

fn attention() -> Vec<Case> {
    let mut cases = vec![];
    for (heads, kv_heads, k_dim, v_dim) in
        [(1, 1, 16, 16), (9, 3, 64, 64), (4, 2, 20, 20), (6, 1, 24, 40), (2, 2, 8, 7)]
    {
        for (window, softcap, sinks) in [
            (None, None, false),
            (Some(1), None, false),
            (Some(16), None, true),
            (Some(33), Some(2.0), false),
            (Some(64), None, false),
            (None, Some(5.0), true),
        ] {
            // With windows of whole blocks as well as without any.
            let alibi = window.is_none_or(|w| w == 33);
            let name = format!(
                "attend {heads}/{kv_heads} heads k {k_dim} v {v_dim} window {window:?} cap {softcap:?} sinks {sinks} alibi {alibi}"
            );
            cases.push(case(name, 48, |t, x| {
                let shapes = [("q", heads * k_dim), ("k", kv_heads * k_dim), ("v", kv_heads * v_dim)];
                let ws = shapes.map(|(name, out)| matrix(t, name, (out, 48), false));
                let qkv = t.linear_n(x, ws);
                let sinks = sinks.then(|| t.vector("sinks", heads));
                let alibi = alibi.then(|| (1..=heads).map(|h| 0.3 / h as f32).collect());
                let scale = 1.5 / (k_dim as f32).sqrt();
                t.attend(qkv, Attention { heads, kv_heads, scale, window, softcap, sinks, alibi })
            }));
        }
    }
    cases
}

fn experts() -> Vec<Case> {
    let mut cases = vec![];
    for (experts, top_k, score, normalise, factor, bias) in [
        (4, 2, RouteScore::Softmax, true, 1.0, false),
        (4, 2, RouteScore::Softmax, false, 1.0, true),
        (7, 1, RouteScore::Sigmoid, false, 2.5, false),
        (5, 5, RouteScore::Softmax, false, 1.0, true),
        (60, 4, RouteScore::Sigmoid, true, 1.5, false),
    ] {
        for (cols, ffn) in [(40, 24), (33, 17)] {
            let name =
                format!("{experts} experts top {top_k} {score:?} {normalise} {factor} bias {bias} {cols} by {ffn}");
            let glu = GLUS[(experts + top_k) % GLUS.len()];
            cases.push(case(name, cols, |t, x| {
                let router = matrix(t, "router", (experts, cols), bias);
                let logits = t.linear(x, router);
                let shares = t.route(logits, Routing { score, bias: None, groups: None, top_k, normalise, factor });
                let stack = |t: &mut Tracer, name: &str, (out, inp)| {
                    let (weight, b) = (format!("experts.{{}}.{name}.weight"), format!("experts.{name}_bias"));
                    let names = (weight.as_str(), bias.then_some(b.as_str()));
                    t.expert_weights(names, experts, (out, inp), Parallel::Column, View::whole(out))
                };
                let weights =
                    [stack(t, "gate", (ffn, cols)), stack(t, "up", (ffn, cols)), stack(t, "down", (cols, ffn))];
                let m = t.moe_mlp(x, shares, weights, glu);
                t.add(x, m)
            }));
        }
    }
    for (experts, groups, top_k, score) in [
        (8, Some(RouteGroups { count: 4, kept: 2, best: 2 }), 3, RouteScore::Sigmoid),
        (12, Some(RouteGroups { count: 3, kept: 1, best: 1 }), 4, RouteScore::Softmax),
        (9, None, 3, RouteScore::Sigmoid),
    ] {
        // Of both signs, and as large as the scores: an expert that is out ranks below all others.
        let name = format!("{experts} experts top {top_k} {score:?} chosen by a bias from {groups:?}");
        cases.push(case(name, 33, |t, x| {
            let router = matrix(t, "router", (experts, 33), false);
            let logits = t.linear(x, router);
            let bias = Some(t.weight("choice", 1, experts, WeightUse::Vector, Parallel::Replicated));
            let shares = t.route(logits, Routing { score, bias, groups, top_k, normalise: true, factor: 2.5 });
            let back = matrix(t, "back", (33, experts), false);
            t.linear(shares, back)
        }));
    }
    cases
}

fn joins() -> Vec<Case> {
    let mut cases = vec![];
    for (heads, lengths) in [(1, [8, 8]), (3, [5, 7]), (4, [16, 4]), (2, [33, 1])] {
        for shared in [false, true] {
            cases.push(case(format!("join {heads} heads of {lengths:?}, one second part {shared}"), 40, |t, x| {
                let of_second = if shared { 1 } else { heads };
                let parts = [
                    matrix(t, "first", (heads * lengths[0], 40), true),
                    matrix(t, "second", (of_second * lengths[1], 40), true),
                ];
                let [a, b] = t.linear_n(x, parts);
                t.join_heads(a, b, lengths)
            }));
        }
    }
    cases
}

/// What happens on the rows that need logits, and to the logits themselves.
fn outputs() -> Vec<Case> {
    let mut cases = vec![];
    for (name, factor, cap) in
        [("scaled", 0.125, None), ("capped", 1.0, Some(1.5)), ("scaled and capped", 0.5, Some(1.0))]
    {
        let mut t = Tracer::new("case");
        let table = t.weight("embed", 70, 33, WeightUse::Vocabulary, Parallel::Column);
        let x = t.embed(table);
        let x = t.take_outputs(x);
        let norm = norm(&mut t, NormKind::Rms, 33, true, false);
        let x = t.norm(x, norm, NormGroup::Row);
        // Tied: one weight for both ends.
        let logits = t.linear(x, njoule_models::tracer::LinearWeight { weight: table, bias: None });
        let logits = t.scale(logits, factor);
        let logits = t.softcap(logits, cap);
        cases.push(Case { name: format!("{name} logits of a tied head"), program: t.finish(logits) });
    }
    cases.push(case("experts after the last attention".into(), 40, |t, x| {
        let x = t.take_outputs(x);
        let router = matrix(t, "router", (6, 40), false);
        let logits = t.linear(x, router);
        let routing =
            Routing { score: RouteScore::Softmax, bias: None, groups: None, top_k: 2, normalise: true, factor: 1.0 };
        let shares = t.route(logits, routing);
        let weights = [("gate", 24, 40), ("up", 24, 40), ("down", 40, 24)].map(|(name, out, inp)| {
            let name = format!("experts.{name}");
            t.expert_weights((name.as_str(), None), 6, (out, inp), Parallel::Column, View::whole(out))
        });
        t.moe_mlp(x, shares, weights, Glu::Act(Act::Silu))
    }));
    cases
}
