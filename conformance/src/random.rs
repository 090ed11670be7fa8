//! Valid programs from a seed: layers of attention and feed-forward parts with options drawn at random.
//!
//! The same seed gives the same program everywhere; a test that fails prints it.

use njoule_models::program::*;
use njoule_models::tracer::{Attention, Tracer};

use crate::Case;
use crate::cases::{matrix, ops, program};
use crate::weights::mix;

/// Cases of seeds `0..count`.
pub fn cases(count: u64) -> Vec<Case> {
    (0..count).map(|seed| Case { name: format!("random program {seed}"), program: random(seed) }).collect()
}

struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 33) as usize % n
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Once in `n` times.
    fn rarely(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn random(seed: u64) -> Program {
    let d = &mut Draw(mix(seed));
    let cols = d.of(&[8, 24, 36, 40, 64, 100]);
    let layers = 1 + d.below(3);
    program(cols, |t, mut x| {
        for layer in 0..layers {
            let last = layer + 1 == layers;
            x = t.scope(&format!("layers.{layer}"), |t| {
                let h = norm(t, d, "norm_a", x, cols);
                let mut a = attention(t, d, h, cols);
                if last && d.rarely(2) {
                    (x, a) = (t.take_outputs(x), t.take_outputs(a));
                }
                let shape = (cols, t.cols(a));
                let o = matrix(t, "o", shape, d.rarely(3));
                let a = t.linear(a, o);
                let kind = d.of(&[NormKind::Rms, NormKind::Layer]);
                let weight = Some(t.vector("norm_m", cols));
                let (x, h) = t.add_norm(x, Some(a), Norm { kind, weight, bias: None, eps: 1e-5 });
                let m = feed_forward(t, d, h, cols);
                let m = t.scale(m, d.of(&[1.0, 0.5]));
                t.add(x, m)
            });
        }
        norm(t, d, "norm_f", x, cols)
    })
}

fn norm(t: &mut Tracer, d: &mut Draw, name: &str, x: Val, cols: usize) -> Val {
    let kind = d.of(&[NormKind::Rms, NormKind::Layer]);
    let weight = Some(t.vector(name, cols));
    let bias = d.rarely(3).then(|| t.vector(&format!("{name}.b"), cols));
    t.norm(x, Norm { kind, weight, bias, eps: 1e-5 }, NormGroup::Row)
}

fn attention(t: &mut Tracer, d: &mut Draw, h: Val, cols: usize) -> Val {
    let (kv_heads, group) = (d.of(&[1, 2, 3]), d.of(&[1, 2, 5]));
    let head = d.of(&[8, 12, 16, 20, 32, 64]);
    let heads = kv_heads * group;
    let v_dim = if d.rarely(4) { head / 2 + 1 } else { head };
    let shapes = [("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * v_dim)];
    let bias = d.rarely(3);
    let weights = shapes.map(|(name, out)| matrix(t, name, (out, cols), bias));
    let clip = d.of(&[None, None, Some(0.5)]);
    let [mut q, mut k, v] = t.linear_n(h, weights).map(|x| t.clamp(x, clip));
    if d.rarely(2) {
        let per_head = d.rarely(2);
        [q, k] = [(q, heads, "norm_q"), (k, kv_heads, "norm_k")].map(|(x, n, name)| {
            let weight = Some(t.vector(name, if per_head { n * head } else { head }));
            t.norm(x, Norm { kind: NormKind::Rms, weight, bias: None, eps: 1e-6 }, NormGroup::Head(head))
        });
    }
    if !d.rarely(4) {
        let long = d.rarely(3).then_some(44);
        let table = t.rope_table(ops::rope(if d.rarely(3) { head / 4 * 2 } else { head / 2 * 2 }, 1.0, long));
        let pairing = d.of(&[Pairing::Half, Pairing::Neighbours]);
        [q, k] = [q, k].map(|x| t.rope(x, table, head, pairing));
    }
    let attention = Attention {
        heads,
        kv_heads,
        scale: 1.0 / (head as f32).sqrt(),
        window: d.of(&[None, None, Some(7), Some(32)]),
        softcap: d.of(&[None, None, Some(4.0)]),
        sinks: d.rarely(3).then(|| t.vector("sinks", heads)),
        alibi: None,
    };
    t.attend([q, k, v], attention)
}

fn feed_forward(t: &mut Tracer, d: &mut Draw, h: Val, cols: usize) -> Val {
    let ffn = d.of(&[16, 17, 40, 96]);
    let act = d.of(&[Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Relu2]);
    let glu = if d.rarely(4) { Glu::ClampedSwish { alpha: 1.702, limit: 2.0 } } else { Glu::Act(act) };
    let bias = d.rarely(3);
    match d.below(3) {
        0 => {
            let up = matrix(t, "up", (ffn, cols), bias);
            let m = t.linear(h, up);
            let m = t.act(m, act);
            let down = matrix(t, "down", (cols, ffn), bias);
            t.linear(m, down)
        }
        1 => {
            let [gate, up] = ["gate", "up"].map(|name| matrix(t, name, (ffn, cols), bias));
            let m = t.gated_mlp_in(h, gate, up, glu);
            let down = matrix(t, "down", (cols, ffn), bias);
            t.linear(m, down)
        }
        _ => {
            let experts = d.of(&[2, 5, 8]);
            let router = matrix(t, "router", (experts, cols), false);
            let logits = t.linear(h, router);
            let routing = Routing {
                bias: None,
                groups: None,
                score: d.of(&[RouteScore::Softmax, RouteScore::Sigmoid]),
                top_k: 1 + d.below(experts),
                normalise: d.rarely(2),
                factor: 1.0,
            };
            let shares = t.route(logits, routing);
            let weights = [("gate", ffn, cols), ("up", ffn, cols), ("down", cols, ffn)].map(|(name, out, inp)| {
                let (weight, b) = (format!("experts.{{}}.{name}"), format!("experts.{name}_bias"));
                let names = (weight.as_str(), bias.then_some(b.as_str()));
                t.expert_weights(names, experts, (out, inp), Parallel::Column, View::whole(out))
            });
            t.moe_mlp(h, shares, weights, glu)
        }
    }
}
