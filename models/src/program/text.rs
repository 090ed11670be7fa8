//! The canonical text of a program: what snapshots record and fingerprints hash.

use std::fmt;

use super::*;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "program {}", self.name)?;
        for (i, w) in self.weights.iter().enumerate() {
            writeln!(f, "w{i} = {w}")?;
        }
        for (i, r) in self.ropes.iter().enumerate() {
            writeln!(f, "rope{i} = {r}")?;
        }
        for (i, c) in self.caches.iter().enumerate() {
            writeln!(f, "cache{i} = {} heads, k {}, v {}", c.kv_heads, c.k_dim, c.v_dim)?;
        }
        for (i, op) in self.ops.iter().enumerate() {
            if let Some(layer) = self.layers.iter().position(|l| l.start == i) {
                writeln!(f, "layer {layer}:")?;
            }
            writeln!(f, "  {}", OpText { op, program: self })?;
        }
        write!(f, "logits = v{}", self.logits.0)
    }
}

/// One op in the canonical text.
struct OpText<'a> {
    op: &'a Op,
    program: &'a Program,
}

impl OpText<'_> {
    fn val(&self, v: Val) -> String {
        let info = self.program.info(v);
        let rows = match info.rows {
            RowSet::Tokens => "t",
            RowSet::Outputs => "o",
        };
        format!("v{}[{rows}, {}]", v.0, info.cols)
    }
}

impl fmt::Display for OpText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bias = |b: &Option<WeightId>| b.map_or(String::new(), |b| format!(" + w{}", b.0));
        let weight = |w: &ExpertWeights| format!("w{}{}", w.weight.0, bias(&w.bias));
        let outs: Vec<_> = self.op.outputs().into_iter().map(|v| self.val(v)).collect();
        write!(f, "{} = ", outs.join(", "))?;
        match self.op {
            Op::Embed { table, index, .. } => match index {
                EmbedIndex::Tokens => write!(f, "embed w{}", table.0),
                EmbedIndex::Positions { offset } => write!(f, "embed w{} by position + {offset}", table.0),
            },
            Op::Norm { x, norm, group, .. } => {
                write!(f, "{} v{}{}", norm_name(norm), x.0, NormText(norm))?;
                match group {
                    NormGroup::Row => Ok(()),
                    NormGroup::Head(n) => write!(f, " per head of {n}"),
                }
            }
            Op::AddNorm { x, delta, norm, .. } => {
                write!(f, "add_{} v{} + v{}{}", norm_name(norm), x.0, delta.0, NormText(norm))
            }
            Op::LinearN { x, parts } => {
                let ws: Vec<_> = parts.iter().map(|p| format!("w{}{}", p.weight.0, bias(&p.bias))).collect();
                write!(f, "linear v{} by {}", x.0, ws.join(", "))
            }
            Op::GatedMlpIn { x, gate, up, gate_bias, up_bias, glu, .. } => {
                write!(f, "gated_mlp_in v{} {} ", x.0, glu_text(glu))?;
                write!(f, "w{}{} times w{}{}", gate.0, bias(gate_bias), up.0, bias(up_bias))
            }
            Op::Act { x, act, .. } => write!(f, "act v{} {act:?}", x.0),
            Op::Rope { x, table, head_dim, pairing, .. } => {
                write!(f, "rope{} v{} heads of {head_dim} {pairing:?}", table.0, x.0)
            }
            Op::Attend { q, k, v, cache, heads, scale, window, softcap, sinks, alibi, .. } => {
                write!(f, "attend cache{} q v{} k v{} v v{}", cache.0, q.0, k.0, v.0)?;
                write!(f, " {heads} heads scale {scale:e}")?;
                window.map_or(Ok(()), |w| write!(f, " window {w}"))?;
                softcap.map_or(Ok(()), |c| write!(f, " softcap {c:e}"))?;
                sinks.map_or(Ok(()), |w| write!(f, " sinks w{}", w.0))?;
                alibi.as_ref().map_or(Ok(()), |slopes| {
                    f.write_str(" alibi")?;
                    slopes.iter().try_for_each(|slope| write!(f, " {slope:e}"))
                })
            }
            Op::Add { x, y, .. } => write!(f, "add v{} v{}", x.0, y.0),
            Op::Mul { x, y, .. } => write!(f, "mul v{} v{}", x.0, y.0),
            Op::Scale { x, factor, .. } => write!(f, "scale v{} by {factor:e}", x.0),
            Op::Softcap { x, cap, .. } => write!(f, "softcap v{} at {cap:e}", x.0),
            Op::Clamp { x, bound, .. } => write!(f, "clamp v{} at {bound:e}", x.0),
            Op::JoinHeads { x, y, lengths: [a, b], .. } => write!(f, "join_heads v{} of {a} with v{} of {b}", x.0, y.0),
            Op::Route { x, routing, .. } => {
                let Routing { score, bias, groups, top_k, normalise, factor } = routing;
                let normalised = if *normalise { " normalised" } else { "" };
                write!(f, "route v{} {score:?} top {top_k}{normalised} times {factor:e}", x.0)?;
                bias.map_or(Ok(()), |w| write!(f, " bias w{}", w.0))?;
                groups.map_or(Ok(()), |RouteGroups { count, kept, best }| {
                    write!(f, " of {kept} of {count} groups by their best {best}")
                })
            }
            Op::MoeMlp { x, shares, gate, up, down, glu, .. } => {
                write!(f, "moe_mlp v{} shares v{} {} ", x.0, shares.0, glu_text(glu))?;
                write!(f, "{} times {} then {}", weight(gate), weight(up), weight(down))
            }
            Op::TakeOutputs { x, .. } => write!(f, "take_outputs v{}", x.0),
        }
    }
}

fn norm_name(norm: &Norm) -> &'static str {
    match norm.kind {
        NormKind::Rms => "rms_norm",
        NormKind::Layer => "layer_norm",
    }
}

fn glu_text(glu: &Glu) -> String {
    match glu {
        Glu::Act(act) => format!("{act:?}"),
        Glu::ClampedSwish { alpha, limit } => format!("ClampedSwish alpha {alpha:e} limit {limit:e}"),
    }
}

/// ` * w1 + w2 eps 1e-6`.
struct NormText<'a>(&'a Norm);

impl fmt::Display for NormText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.weight.map_or(Ok(()), |w| write!(f, " * w{}", w.0))?;
        self.0.bias.map_or(Ok(()), |b| write!(f, " + w{}", b.0))?;
        write!(f, " eps {:e}", self.0.eps)
    }
}
