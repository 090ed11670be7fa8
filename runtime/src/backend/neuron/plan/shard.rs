//! What one of `tp` cores holds, reads and computes of a program.
//!
//! Heads are padded, never cut: with `tp` up to the number of KV heads, a core has `ceil(kv / tp)` of them with all of
//! their query heads; beyond, each KV head is on `floor(tp / kv)` cores that share its query heads. Columns of other
//! matrices are `ceil(n / tp)`, rows of the vocabulary are padded to a multiple of `32 * tp`. Of experts all are counted,
//! in bytes and operations: which of them a step needs is not known when it is compiled.

use std::collections::HashMap;

use njoule_models::program::{Op, Parallel, Program, Val, WeightDecl, WeightId, WeightUse};

use crate::backend::{KvType, Quant};

/// Sums over the program, of one core.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// Cores that share the model.
    pub tp: usize,
    /// All matrices.
    pub stored: Matrices,
    /// Those that a step reads: not the tables of which it looks up rows.
    pub streamed: Matrices,
    /// Of those, the ones that only rows with logits go through.
    pub head: Matrices,
    /// Values of norms, biases and the like; f32.
    pub vector_values: u64,
    /// Per layer: KV heads, length of a key, length of a value.
    pub caches: Vec<(usize, usize, usize)>,
    /// Operations of attention for one query token and one position, over all layers.
    pub attention_flops: u64,
    /// Most query heads of a layer.
    pub heads: usize,
    /// All-reduces of a step, of `hidden` values per token.
    pub all_reduces: usize,
    /// Values that an all-reduce adds up, per token.
    pub hidden: usize,
    /// Values per token of all that a layer makes, of the widest layer.
    pub layer_values: u64,
    /// Logits of this core.
    pub vocab: usize,
    /// Layers.
    pub layers: usize,
}

/// Matrices as a sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matrices {
    /// Values.
    pub values: u64,
    /// Output rows: each has a scale in int8.
    pub rows: u64,
}

impl Matrices {
    /// Their bytes in a stored type.
    pub fn bytes(&self, quant: Quant) -> u64 {
        match quant {
            Quant::None => 4 * self.values,
            Quant::Int8 => self.values + 4 * self.rows,
            _ => 2 * self.values,
        }
    }

    fn add(&mut self, (rows, cols): (usize, usize)) {
        self.rows = self.rows.saturating_add(rows as u64);
        self.values = self.values.saturating_add((rows as u64).saturating_mul(cols as u64));
    }
}

impl Shard {
    /// Of `program` on one of `tp` cores, at least 1.
    pub fn new(program: &Program, tp: usize) -> Shard {
        let tp = tp.max(1);
        let roles = Roles::of(program, tp);
        let mut shard = Shard {
            tp,
            stored: Matrices::default(),
            streamed: Matrices::default(),
            head: Matrices::default(),
            vector_values: 0,
            caches: Vec::new(),
            attention_flops: 0,
            heads: 0,
            all_reduces: 0,
            hidden: 0,
            layer_values: 0,
            vocab: padded_vocab(program.vocab(), tp),
            layers: program.layers.len(),
        };
        let streamed = program.streamed_weights();
        let heads_only = roles.after_outputs(program);
        for (i, decl) in program.weights.iter().enumerate() {
            let id = WeightId(i as u32);
            if decl.usage == WeightUse::Vector {
                shard.vector_values += decl.all_rows() as u64 * decl.cols as u64;
                continue;
            }
            let shape = roles.shape(id, decl, tp);
            shard.stored.add(shape);
            if streamed.binary_search(&id).is_ok() {
                shard.streamed.add(shape);
            }
            if heads_only.contains(&id) {
                shard.head.add(shape);
            }
        }
        for op in &program.ops {
            match op {
                Op::Attend { cache, heads, .. } => {
                    let info = program.caches[cache.0 as usize];
                    let (kv, q) = split_heads(info.kv_heads, *heads, tp);
                    shard.caches.push((kv, info.k_dim, info.v_dim));
                    shard.attention_flops += 2 * q as u64 * (info.k_dim + info.v_dim) as u64;
                    shard.heads = shard.heads.max(q);
                }
                Op::LinearN { parts, .. } => {
                    for part in parts.iter().filter(|p| program.weight(p.weight).parallel == Parallel::Row) {
                        shard.all_reduces += 1;
                        shard.hidden = shard.hidden.max(program.info(part.out).cols);
                    }
                }
                Op::MoeMlp { out, .. } => {
                    shard.all_reduces += 1;
                    shard.hidden = shard.hidden.max(program.info(*out).cols);
                }
                _ => {}
            }
        }
        if tp == 1 {
            shard.all_reduces = 0;
        }
        let of_val = |val: &Val| match program.info(*val).cols {
            cols if cols <= shard.hidden.max(1) => cols as u64,
            cols => cols.div_ceil(tp) as u64,
        };
        let of_layer = |ops: &[Op]| ops.iter().flat_map(Op::outputs).map(|v| of_val(&v)).sum::<u64>();
        shard.layer_values =
            program.layers.iter().filter_map(|r| program.ops.get(r.clone())).map(of_layer).max().unwrap_or(0);
        shard
    }

    /// Bytes of weights in memory.
    pub fn stored_bytes(&self, quant: Quant) -> u64 {
        self.stored.bytes(quant) + 4 * self.vector_values
    }

    /// Bytes of weights that a step reads.
    pub fn streamed_bytes(&self, quant: Quant) -> u64 {
        self.streamed.bytes(quant) + 4 * self.vector_values
    }

    /// Bytes of one position of one sequence, all layers.
    pub fn position_bytes(&self, kv: KvType) -> u64 {
        self.caches.iter().map(|(heads, k, v)| (*heads * (kv.bytes(*k) + kv.bytes(*v))) as u64).sum()
    }
}

/// KV heads and query heads of a core.
pub fn split_heads(kv_heads: usize, heads: usize, tp: usize) -> (usize, usize) {
    let kv_heads = kv_heads.max(1);
    let group = heads.div_ceil(kv_heads);
    match tp <= kv_heads {
        true => (kv_heads.div_ceil(tp), kv_heads.div_ceil(tp) * group),
        false => (1, group.div_ceil(tp / kv_heads)),
    }
}

fn padded_vocab(rows: usize, tp: usize) -> usize {
    rows.div_ceil(32 * tp) * 32
}

/// Which matrices belong to heads.
struct Roles {
    /// Rows of a core, of weights that make queries, keys and values.
    rows: HashMap<WeightId, usize>,
    /// Columns of a core, of weights that take attention's result.
    cols: HashMap<WeightId, usize>,
}

impl Roles {
    fn of(program: &Program, tp: usize) -> Roles {
        let mut maker = HashMap::new();
        for (i, op) in program.ops.iter().enumerate() {
            maker.extend(op.outputs().into_iter().map(|out| (out, i)));
        }
        // Through ops of one input that keep columns where they are.
        let source = |mut val: Val| loop {
            match maker.get(&val).map(|i| &program.ops[*i]) {
                Some(
                    Op::Norm { x, .. }
                    | Op::Rope { x, .. }
                    | Op::Scale { x, .. }
                    | Op::Clamp { x, .. }
                    | Op::Softcap { x, .. }
                    | Op::Act { x, .. },
                ) => val = *x,
                // Attention's gate, where there is one, is of its columns too.
                Some(Op::Mul { x, .. }) => val = *x,
                _ => return val,
            }
        };
        let (mut made, mut attended) = (HashMap::new(), HashMap::new());
        for op in &program.ops {
            if let Op::Attend { q, k, v, cache, heads, out, .. } = op {
                let info = program.caches[cache.0 as usize];
                let (kv, queries) = split_heads(info.kv_heads, *heads, tp);
                made.insert(source(*q), queries * info.k_dim);
                made.insert(source(*k), kv * info.k_dim);
                made.insert(source(*v), kv * info.v_dim);
                attended.insert(*out, queries * info.v_dim);
            }
        }
        let mut roles = Roles { rows: HashMap::new(), cols: HashMap::new() };
        for op in &program.ops {
            let Op::LinearN { x, parts } = op else { continue };
            let cols = attended.get(&source(*x));
            for part in parts {
                if let Some(rows) = made.get(&part.out) {
                    roles.rows.insert(part.weight, *rows);
                }
                if let Some(cols) = cols {
                    roles.cols.insert(part.weight, *cols);
                }
            }
        }
        roles
    }

    /// Rows and columns of a core's part.
    fn shape(&self, id: WeightId, decl: &WeightDecl, tp: usize) -> (usize, usize) {
        let experts = decl.experts.unwrap_or(1);
        let (rows, cols) = match (decl.parallel, decl.usage) {
            (Parallel::Replicated, _) => (decl.rows, decl.cols),
            (Parallel::Column, WeightUse::Vocabulary) => (padded_vocab(decl.rows, tp), decl.cols),
            (Parallel::Column, _) => (self.rows.get(&id).copied().unwrap_or_else(|| decl.rows.div_ceil(tp)), decl.cols),
            (Parallel::Row, _) => (decl.rows, self.cols.get(&id).copied().unwrap_or_else(|| decl.cols.div_ceil(tp))),
        };
        (rows.saturating_mul(experts), cols)
    }

    /// Weights that only rows with logits go through.
    fn after_outputs(&self, program: &Program) -> Vec<WeightId> {
        let taken = program.ops.iter().position(|op| matches!(op, Op::TakeOutputs { .. })).unwrap_or(program.ops.len());
        program.ops[taken..].iter().flat_map(Op::weights).collect()
    }
}
