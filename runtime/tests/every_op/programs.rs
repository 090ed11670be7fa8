//! Small programs that together hold every op in every form, and a source of weights that are loud enough for caps,
//! clamps and gates to matter.

use std::ops::Range;

use njoule_models::program::*;
use njoule_models::rope::{LongRope, RopeTable};
use njoule_models::tracer::{Attention, LinearWeight, Tracer};
use njoule_models::weights::random::RandomSource;
use njoule_models::weights::{Container, Encoding, WeightError, WeightRows, WeightSource};

pub const VOCAB: usize = 40;
/// Longest sequence: beyond four blocks and one chunk of queries.
pub const MAX_LEN: usize = 80;
const HIDDEN: usize = 24;
const FFN: usize = 20;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const K_DIM: usize = 8;
const EPS: f32 = 1e-5;

/// Random weights times twenty: a deviation of 0.4.
pub struct Loud;

struct LoudRows(Box<dyn WeightRows>);

impl WeightSource for Loud {
    fn container(&self) -> Container {
        Container::Generated
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        static SOURCE: std::sync::LazyLock<RandomSource> = std::sync::LazyLock::new(|| RandomSource::new(3));
        Ok(Box::new(LoudRows(SOURCE.get(decl)?)))
    }
}

impl WeightRows for LoudRows {
    fn encoding(&self) -> Encoding {
        self.0.encoding()
    }

    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        self.0.read_f32(rows, out);
        out.iter_mut().for_each(|x| *x *= 20.0);
    }

    fn raw_row(&self, _row: usize) -> Option<&[u8]> {
        None
    }

    fn release(&self, _rows: Range<usize>) {}
}

/// All of them.
pub fn all() -> Vec<Program> {
    vec![
        trace("plain", plain),
        trace("learned positions", learned_positions),
        trace("activations", activations),
        trace("gates", gates),
        trace("half of every head turns", |t, x| attention(t, x, &turn_half, PLAIN)),
        trace("neighbours turn", |t, x| attention(t, x, &turn_neighbours, PLAIN)),
        trace("head norms", head_norms),
        trace("window", |t, x| attention(t, x, &turn_half, Options { window: Some(5), ..PLAIN })),
        trace("sinks", |t, x| attention(t, x, &turn_half, Options { sinks: true, v_dim: 6, ..PLAIN })),
        trace("capped scores", |t, x| attention(t, x, &turn_half, Options { softcap: Some(2.0), v_dim: 12, ..PLAIN })),
        trace("sinks in a capped window", |t, x| {
            attention(t, x, &turn_half, Options { window: Some(33), softcap: Some(3.0), sinks: true, v_dim: 8 })
        }),
        trace("clamped experts", clamped_experts),
        trace("sigmoid experts", sigmoid_experts),
        trace("factors and caps", factors_and_caps),
    ]
}

/// Tied embedding, `body` as the only layer, head.
fn trace(name: &str, body: impl FnOnce(&mut Tracer, Val) -> Val) -> Program {
    let mut t = Tracer::new(name);
    let table = t.weight("embed", VOCAB, HIDDEN, WeightUse::Vocabulary, Parallel::Column);
    let x = t.embed(table);
    let x = t.layer("layer", |t| body(t, x));
    let x = rms(&mut t, "last", x);
    let x = t.take_outputs(x);
    let logits = t.linear(x, LinearWeight { weight: table, bias: None });
    t.finish(logits)
}

fn rms(t: &mut Tracer, name: &str, x: Val) -> Val {
    let weight = t.vector(name, HIDDEN);
    t.norm(x, Norm::rms(weight, EPS), NormGroup::Row)
}

fn project(t: &mut Tracer, name: &str, x: Val, (out, inp): (usize, usize)) -> Val {
    let w = t.linear_weight(name, (out, inp), true, Parallel::Column);
    t.linear(x, w)
}

/// What the cpu backend had first: rms norms, silu, rope over whole heads.
fn plain(t: &mut Tracer, x: Val) -> Val {
    let table = t.rope_table(table(K_DIM / 2, 1.0, None));
    let x = attention(t, x, &|t, x| t.rope(x, table, K_DIM, Pairing::Half), PLAIN);
    let gate = t.linear_weight("gate", (FFN, HIDDEN), false, Parallel::Column);
    let up = t.linear_weight("up", (FFN, HIDDEN), false, Parallel::Column);
    let weight = t.vector("mlp_rms", HIDDEN);
    let h = t.norm(x, Norm::rms(weight, EPS), NormGroup::Row);
    let h = t.gated_mlp_in(h, gate, up, Glu::Act(Act::Silu));
    let h = project(t, "down", h, (HIDDEN, FFN));
    let weight = t.vector("after", HIDDEN);
    let (sum, normed) = t.add_norm(x, Some(h), Norm::rms(weight, EPS));
    t.add(sum, normed)
}

fn learned_positions(t: &mut Tracer, x: Val) -> Val {
    let table = t.weight("positions", MAX_LEN + 2, HIDDEN, WeightUse::Vocabulary, Parallel::Column);
    let p = t.embed_by(table, EmbedIndex::Positions { offset: 2 });
    let layer = |weight, bias| Norm { kind: NormKind::Layer, weight, bias, eps: EPS };
    let [weight, bias] = ["scale", "shift"].map(|name| Some(t.vector(name, HIDDEN)));
    let (sum, normed) = t.add_norm(x, Some(p), layer(weight, bias));
    let bare = t.norm(normed, layer(None, None), NormGroup::Row);
    let scaled = t.norm(bare, layer(weight, None), NormGroup::Row);
    let h = t.add(sum, scaled);
    let bare = t.norm(h, Norm { kind: NormKind::Rms, weight: None, bias: None, eps: EPS }, NormGroup::Row);
    let (_, shifted) = t.add_norm(bare, Some(scaled), Norm { kind: NormKind::Rms, weight, bias, eps: EPS });
    attention(t, shifted, &|_, x| x, PLAIN)
}

fn activations(t: &mut Tracer, x: Val) -> Val {
    ACTS.into_iter().enumerate().fold(x, |x, (i, act)| {
        let h = rms(t, &format!("rms{i}"), x);
        let h = project(t, &format!("up{i}"), h, (FFN, HIDDEN));
        let h = t.act(h, act);
        let h = project(t, &format!("down{i}"), h, (HIDDEN, FFN));
        t.add(x, h)
    })
}

fn gates(t: &mut Tracer, x: Val) -> Val {
    let clamped = Glu::ClampedSwish { alpha: 1.702, limit: 1.5 };
    let glus = ACTS.into_iter().map(Glu::Act).chain([clamped]);
    glus.enumerate().fold(x, |x, (i, glu)| {
        let h = rms(t, &format!("rms{i}"), x);
        let [gate, up] = ["gate", "up"]
            .map(|name| t.linear_weight(&format!("{name}{i}"), (FFN, HIDDEN), i % 2 == 0, Parallel::Column));
        let h = t.gated_mlp_in(h, gate, up, glu);
        let h = project(t, &format!("down{i}"), h, (HIDDEN, FFN));
        t.add(x, h)
    })
}

struct Options {
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    v_dim: usize,
}

const PLAIN: Options = Options { window: None, softcap: None, sinks: false, v_dim: K_DIM };

/// A layer of attention; `turn` is applied to queries and keys.
fn attention(t: &mut Tracer, x: Val, turn: &dyn Fn(&mut Tracer, Val) -> Val, options: Options) -> Val {
    let Options { window, softcap, sinks, v_dim } = options;
    let h = rms(t, "attention_rms", x);
    let shapes = [("q", HEADS * K_DIM), ("k", KV_HEADS * K_DIM), ("v", KV_HEADS * v_dim)];
    let weights = shapes.map(|(name, out)| t.linear_weight(name, (out, HIDDEN), name != "k", Parallel::Column));
    let [q, k, v] = t.linear_n(h, weights);
    let (q, k) = (turn(t, q), turn(t, k));
    let sinks = sinks.then(|| t.vector("sinks", HEADS));
    let attention = Attention { heads: HEADS, kv_heads: KV_HEADS, scale: 0.35, window, softcap, sinks };
    let mixed = t.attend([q, k, v], attention);
    let o = project(t, "o", mixed, (HIDDEN, HEADS * v_dim));
    t.add(x, o)
}

fn table(pairs: usize, amplitude: f32, long: Option<usize>) -> RopeTable {
    let frequencies = |base: f32| (0..pairs).map(|i| base.powf(-(i as f32) / pairs as f32)).collect::<Vec<_>>();
    let long = long.map(|beyond| LongRope { beyond, inv_freq: frequencies(90.0) });
    RopeTable { inv_freq: frequencies(50.0), amplitude, long }
}

/// Over a part of the head, with an amplitude, and other frequencies for long sequences.
fn turn_half(t: &mut Tracer, x: Val) -> Val {
    let table = t.rope_table(table(3, 1.25, Some(64)));
    t.rope(x, table, K_DIM, Pairing::Half)
}

fn turn_neighbours(t: &mut Tracer, x: Val) -> Val {
    let (part, whole) = (t.rope_table(table(2, 1.0, None)), t.rope_table(table(K_DIM / 2, 0.9, Some(48))));
    let x = t.rope(x, part, K_DIM, Pairing::Neighbours);
    t.rope(x, whole, K_DIM, Pairing::Neighbours)
}

/// Shared by all heads or each its own, of both kinds.
fn head_norms(t: &mut Tracer, x: Val) -> Val {
    let turn = |t: &mut Tracer, x: Val| {
        let shared = t.vector("shared", K_DIM);
        let x = t.norm(x, Norm::rms(shared, EPS), NormGroup::Head(K_DIM));
        let bias = Some(t.vector("shared_bias", K_DIM));
        let norm = Norm { kind: NormKind::Layer, weight: Some(shared), bias, eps: EPS };
        t.norm(x, norm, NormGroup::Head(K_DIM))
    };
    let x = attention(t, x, &turn, PLAIN);
    let (weight, bias) = (Some(t.vector("own", HIDDEN)), Some(t.vector("own_bias", HIDDEN)));
    let y = t.norm(x, Norm { kind: NormKind::Layer, weight, bias, eps: EPS }, NormGroup::Head(6));
    let z = t.norm(x, Norm { kind: NormKind::Rms, weight, bias: None, eps: EPS }, NormGroup::Head(8));
    t.add(y, z)
}

fn experts(t: &mut Tracer, h: Val, routing: Routing, experts: usize, bias: bool, glu: Glu) -> Val {
    let logits = project(t, "router", h, (experts, HIDDEN));
    let shares = t.route(logits, routing);
    let shapes = [("gate", FFN, HIDDEN), ("up", FFN, HIDDEN), ("down", HIDDEN, FFN)];
    let stacks = shapes.map(|(name, out, inp)| {
        let bias = bias.then(|| format!("experts.{name}_bias"));
        let names = (&*format!("experts.{name}"), bias.as_deref());
        t.expert_weights(names, experts, (out, inp), Parallel::Column, View::whole(out))
    });
    t.moe_mlp(h, shares, stacks, glu)
}

fn clamped_experts(t: &mut Tracer, x: Val) -> Val {
    let routing = Routing { score: RouteScore::Softmax, top_k: 2, normalise: true, factor: 1.0 };
    let h = rms(t, "rms", x);
    let y = experts(t, h, routing, 5, true, Glu::ClampedSwish { alpha: 1.702, limit: 1.5 });
    t.add(x, y)
}

/// With an expert for all rows beside them, behind a gate of one column.
fn sigmoid_experts(t: &mut Tracer, x: Val) -> Val {
    let routing = Routing { score: RouteScore::Sigmoid, top_k: 3, normalise: false, factor: 0.75 };
    let h = rms(t, "rms", x);
    let y = experts(t, h, routing, 7, false, Glu::Act(Act::Silu));
    let shared = project(t, "shared", h, (HIDDEN, HIDDEN));
    let gate = project(t, "shared_gate", h, (1, HIDDEN));
    let gate = t.act(gate, Act::Sigmoid);
    let shared = t.mul(shared, gate);
    let y = t.add(y, shared);
    let x = t.add(x, y);
    let softmax = Routing { score: RouteScore::Softmax, top_k: 1, normalise: false, factor: 2.0 };
    t.scope("second", |t| experts(t, x, softmax, 3, false, Glu::Act(Act::Gelu)))
}

fn factors_and_caps(t: &mut Tracer, x: Val) -> Val {
    let x = t.scale(x, 2.5);
    let y = project(t, "y", x, (HIDDEN, HIDDEN));
    let y = t.softcap(y, Some(1.5));
    let z = t.mul(x, y);
    let z = t.scale(z, -0.7);
    t.add(x, z)
}

const ACTS: [Act; 6] = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Relu2, Act::Sigmoid];
