//! Modules run by the evaluator of `hlo` in this process: what stands for the device where lowering is tested.
//!
//! One class of rows or several, and a few buckets; a module is lowered when it is first needed. Sequences of one row run as
//! one decode step over all their classes, those whose last logits alone are wanted as prefill steps, the others as score
//! steps. Sequences go to classes in turn. Every token is a candidate
//! unless [`Evaluated::spec_mut`] says otherwise, so that all three kinds answer with logits; of what is no candidate the
//! logit is `f32::MIN`.
//!
//! Caches begin with values that would be seen in a result, were they read.

use std::collections::HashMap;

use half::bf16;
use njoule_hlo::{ArrayShape, DType, Executable, Module, Target, Tensor};
use njoule_models::program::{CacheId, Op, Program, WeightId};
use njoule_models::weights::WeightSource;

use super::interface::{
    CachePart, CacheShape, Input, ModelSpec, ModuleKind, ModuleSpec, Output, Part, Port, WeightPart,
};
use super::shard::{Sharded, shard};
use super::{Profile, lower, weights};
use crate::backend::{
    Backend, Batch, BlockId, Capacity, Cost, CostModel, Executor, KvType, Limits, LoadError, MemoryUse, Quant, Routes,
    SeqSpan, StepError, StepOutput, Streams,
};

/// How modules are lowered that the evaluator runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluatedBackend {
    /// Cores.
    pub tp: usize,
    /// Classes of rows, each a little longer than the one before it.
    pub classes: usize,
    /// Stored type of matrices.
    pub weights: Quant,
    /// Stored type of caches.
    pub kv: KvType,
    /// Forms of idioms.
    pub profile: Profile,
    /// Rules that modules keep; [`Target::Xla`] has no custom calls.
    pub target: Target,
}

impl EvaluatedBackend {
    /// In f32 throughout.
    pub fn f32(tp: usize) -> Self {
        let (weights, kv) = (Quant::None, KvType::F32);
        EvaluatedBackend { tp, classes: 1, weights, kv, profile: Profile::default(), target: Target::Trn1 }
    }

    /// Matrices and caches in bf16.
    pub fn bf16(tp: usize) -> Self {
        EvaluatedBackend { weights: Quant::Bf16, kv: KvType::Bf16, ..EvaluatedBackend::f32(tp) }
    }

    /// [`Backend::load`] with the type it returns.
    pub fn load_evaluated(
        &self,
        program: &Program,
        source: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Evaluated, LoadError> {
        let unsupported = |what: String| LoadError::Unsupported { backend: "neuron", what };
        let sharded = shard(program, self.tp).map_err(|e| unsupported(e.to_string()))?;
        let spec = ModelSpec {
            target: self.target,
            tp: self.tp,
            weights: self.weights,
            kv: self.kv,
            candidates: program.vocab(),
            profile: self.profile,
            shares: false,
            streams: false,
        };
        let stored = weights::stored(program, self.weights);
        let mut of_ranks = vec![];
        for rank in 0..self.tp {
            let mut tensors = HashMap::new();
            for (id, dtype) in (0..).map(WeightId).zip(&stored) {
                let mut bytes = [vec![], vec![]];
                weights::write_part(source, &sharded, id, *dtype, rank, &mut |part, more| {
                    bytes[usize::from(part == WeightPart::Scales)].extend_from_slice(more);
                    Ok(())
                })?;
                let [values, scales] = bytes;
                tensors.insert(Input::Weight(id, WeightPart::Values), tensor(*dtype, &sharded.dims(id), &values)?);
                if *dtype == DType::S8 {
                    let scales = tensor(DType::F32, &sharded.scale_dims(id), &scales)?;
                    tensors.insert(Input::Weight(id, WeightPart::Scales), scales);
                }
            }
            of_ranks.push(tensors);
        }
        let class = |i| CacheShape {
            rows: capacity.max_seqs.div_ceil(self.classes.max(1)),
            positions: capacity.max_len + TOKENS[TOKENS.len() - 1] + i * LONGER,
        };
        let memory = MemoryUse {
            weights: of_ranks.iter().flat_map(HashMap::values).map(|t: &Tensor| t.shape().bytes()).sum(),
            ..MemoryUse::default()
        };
        Ok(Evaluated {
            sharded,
            spec,
            classes: (0..self.classes.max(1)).map(class).collect(),
            capacity,
            weights: of_ranks,
            caches: vec![HashMap::new(); self.tp],
            modules: HashMap::new(),
            rows: HashMap::new(),
            logits: vec![],
            routes: Routes::new(),
            streams: Streams::new(),
            memory,
            engine: None,
        })
    }
}

impl Backend for EvaluatedBackend {
    fn limits(&self, _program: &Program) -> Limits {
        Limits { paged: false, ..Limits::paged(32) }
    }

    fn load(
        &self,
        program: &Program,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Executor>, LoadError> {
        Ok(Box::new(self.load_evaluated(program, weights, capacity)?))
    }
}

/// A model whose modules are evaluated.
#[derive(Debug)]
pub struct Evaluated {
    sharded: Sharded,
    spec: ModelSpec,
    classes: Vec<CacheShape>,
    capacity: Capacity,
    /// By core.
    weights: Vec<HashMap<Input, Tensor>>,
    /// By core.
    caches: Vec<HashMap<Input, Tensor>>,
    modules: HashMap<ModuleSpec, Runnable>,
    /// Which class's cache row a sequence has, by its first block.
    rows: HashMap<BlockId, (usize, usize)>,
    logits: Vec<f32>,
    routes: Routes,
    streams: Streams,
    memory: MemoryUse,
    /// What runs modules in the evaluator's place.
    engine: Option<Box<dyn Engine>>,
}

/// Something else that runs modules, such as XLA.
pub trait Engine: Send + std::fmt::Debug {
    /// Results of each replica, from its inputs; what is wrong, in words.
    fn run(&mut self, module: &Module, inputs: Vec<Vec<Tensor>>) -> Result<Vec<Vec<Tensor>>, String>;
}

#[derive(Debug)]
struct Runnable {
    executable: Executable,
    inputs: Vec<Port<Input>>,
    outputs: Vec<Port<Output>>,
}

/// A column of keys or values, as [`Evaluated::cached`] gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its number among the columns of the whole program's cache.
    pub whole: usize,
    /// By position.
    pub values: Vec<f32>,
}

/// What a step gives beside its caches, as every core has it.
pub type Outputs = HashMap<Output, Tensor>;

impl Evaluated {
    /// Lets `engine` run all modules from here on.
    pub fn run_by(&mut self, engine: Box<dyn Engine>) {
        self.engine = Some(engine);
    }

    /// The shortest class of rows.
    pub fn class(&self) -> CacheShape {
        self.classes[0]
    }

    /// What all modules have in common; a change takes effect in modules that were not lowered before.
    pub fn spec_mut(&mut self) -> &mut ModelSpec {
        self.modules.clear();
        &mut self.spec
    }

    /// Runs a step; `given` are the step's inputs, of every core alike but for [`Input::Rank`], which is filled in.
    /// [`Input::Mask`] is of the whole vocabulary.
    pub fn step(&mut self, module: &ModuleSpec, given: &HashMap<Input, Tensor>) -> Result<Outputs, StepError> {
        let failed = |e: &dyn std::fmt::Display| StepError::Device(e.to_string());
        if !self.modules.contains_key(module) {
            let lowered = lower(&self.sharded, &self.spec, module).map_err(|e| failed(&e))?;
            let executable = Executable::new(lowered.module, self.spec.target).map_err(|e| failed(&e))?;
            let runnable = Runnable { executable, inputs: lowered.inputs, outputs: lowered.outputs };
            self.modules.insert(module.clone(), runnable);
        }
        let Runnable { executable, inputs, outputs } = &self.modules[module];
        let mut of_ranks = vec![];
        for (rank, caches) in self.caches.iter_mut().enumerate() {
            let mut tensors = vec![];
            for port in inputs {
                let found = match port.role {
                    Input::Cache(..) => Some(caches.remove(&port.role).unwrap_or_else(|| poison(port))),
                    Input::Weight(..) => self.weights[rank].get(&port.role).cloned(),
                    Input::Rank => Some(Tensor::scalar(rank as i32)),
                    Input::Mask => given.get(&port.role).map(|mask| words_of(mask, port, rank)),
                    _ => given.get(&port.role).cloned(),
                };
                tensors.push(found.ok_or_else(|| failed(&format!("{:?} is not given", port.role)))?);
            }
            of_ranks.push(tensors);
        }
        let results = match &mut self.engine {
            None => executable.run_replicas(of_ranks).map_err(|e| failed(&e))?,
            Some(engine) => engine.run(executable.module(), of_ranks).map_err(|e| failed(&e))?,
        };
        let mut given_back: Option<Outputs> = None;
        for (caches, results) in self.caches.iter_mut().zip(results) {
            let mut found = HashMap::new();
            for (port, tensor) in outputs.iter().zip(results) {
                match port.role {
                    Output::Cache(class, cache, part) => {
                        caches.insert(Input::Cache(class, cache, part), tensor);
                    }
                    role => drop(found.insert(role, tensor)),
                }
            }
            // All cores come to the same results.
            match &given_back {
                None => given_back = Some(found),
                Some(first) if *first == found => {}
                Some(_) => return Err(failed(&"cores came to different results")),
            }
        }
        Ok(given_back.unwrap_or_default())
    }

    /// Caches of each core, as the steps so far have left them.
    pub fn caches(&self) -> &[HashMap<Input, Tensor>] {
        &self.caches
    }

    /// Of every sequence's tokens so far, what routers chose; of [`ModelSpec::shares`] alone.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Of every sequence's tokens so far, what passed from layer to layer; of [`ModelSpec::streams`] alone.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Keys or values of the first `len` positions of the sequence that begins with this block, as one core has them: for
    /// each column of that core, the column of the whole that it is, and the values. Columns of padding are left out.
    pub fn cached(&self, rank: usize, cache: CacheId, part: CachePart, first: BlockId, len: usize) -> Vec<Column> {
        let of_row = |&(class, row): &(usize, usize)| self.cached_in(rank, (cache, part), (class, row), len);
        self.rows.get(&first).map(of_row).unwrap_or_default()
    }

    /// The same of a row of a class, whoever is in it.
    pub fn cached_in(
        &self,
        rank: usize,
        (cache, part): (CacheId, CachePart),
        (class, row): (usize, usize),
        len: usize,
    ) -> Vec<Column> {
        let attends = |op: &&Op| matches!(op, Op::Attend { cache: c, .. } if *c == cache);
        let Some(Op::Attend { k, v, .. }) = self.sharded.program.ops.iter().find(attends) else { return vec![] };
        let val = if part == CachePart::Keys { *k } else { *v };
        let class = self.classes[class];
        let tensor = self.caches[rank].get(&Input::Cache(class, cache, part));
        let Some(values) = tensor.and_then(widened) else { return vec![] };
        let local = self.sharded.program.info(val).cols;
        let of_row = &values[row * class.positions * local..];
        let whole: Vec<Option<usize>> = match self.sharded.layout(val) {
            None => (0..local).map(Some).collect(),
            Some(split) => {
                let runs = split.of_rank(rank).iter();
                runs.flat_map(|run| (0..run.len).map(move |i| run.from.map(|from| from + i))).collect()
            }
        };
        let column = |(i, whole): (usize, Option<usize>)| {
            let values = of_row.chunks_exact(local).take(len).map(|position| position[i]).collect();
            Some(Column { whole: whole?, values })
        };
        whole.into_iter().enumerate().filter_map(column).collect()
    }

    /// Notes what the step tells of the inside, of tokens of a sequence: row of the step, position.
    fn note(&mut self, results: &Outputs, first: BlockId, tokens: impl Iterator<Item = (usize, u32)> + Clone) {
        if self.spec.shares {
            self.note_routes(results, first, tokens.clone());
        }
        if self.spec.streams {
            let streams = || (0..).map_while(|i| results.get(&Output::Stream(i)));
            for (row, position) in tokens {
                let of_row = |stream: &Tensor| {
                    let columns = *stream.shape().dims().to_vec().last()?;
                    Some(stream.as_slice::<f32>()?.get(row * columns..(row + 1) * columns)?.to_vec())
                };
                self.streams.insert((first, position), streams().filter_map(of_row).collect());
            }
        }
    }

    fn note_routes(&mut self, results: &Outputs, first: BlockId, tokens: impl Iterator<Item = (usize, u32)>) {
        let routers = (0..).map_while(|i| results.get(&Output::Shares(i)));
        let routers: Vec<(&[f32], usize)> =
            routers.filter_map(|t| Some((t.as_slice::<f32>()?, *t.shape().dims().to_vec().last()?))).collect();
        let tokens: Vec<(usize, u32)> = tokens.collect();
        let last = tokens.last().map_or(0, |token| token.0);
        for (row, position) in tokens {
            let chosen = routers.iter().flat_map(|(shares, experts)| {
                // In the last layer there may be one row alone, of the last token.
                let at = if shares.len() == *experts && row == last { 0 } else { row };
                let shares = shares.get(at * experts..(at + 1) * experts).unwrap_or_default();
                shares.iter().enumerate().filter(|(_, share)| **share != 0.0).map(|(expert, _)| expert)
            });
            self.routes.insert((first, position), chosen.collect());
        }
    }

    fn run(&mut self, batch: &Batch) -> Result<(), StepError> {
        let vocab = self.sharded.whole.vocab();
        let wanted = |rows: &std::ops::Range<usize>| {
            let rows = rows.clone();
            move |o: &u32| rows.contains(&(*o as usize))
        };
        let mut logits: HashMap<usize, Vec<f32>> = HashMap::new();
        let (single, several): (Vec<&SeqSpan>, Vec<&SeqSpan>) = batch.seqs.iter().partition(|s| s.rows.len() == 1);
        if !single.is_empty() {
            for (row, values) in self.decode(batch, &single)? {
                logits.insert(row, values);
            }
        }
        for seq in several {
            let outputs = batch.outputs.iter().filter(|o| wanted(&seq.rows)(o)).count();
            let only_last = outputs == 0 || (outputs == 1 && batch.outputs.contains(&(seq.rows.end as u32 - 1)));
            let (class, row) = self.row_of(batch, seq)?;
            let class = self.classes[class];
            let mut at = seq.rows.start;
            while at < seq.rows.end {
                let tokens = *TOKENS.iter().find(|t| **t >= seq.rows.end - at).unwrap_or(&TOKENS[TOKENS.len() - 1]);
                let end = (at + tokens).min(seq.rows.end);
                let last = only_last && end == seq.rows.end;
                let kind = if last { ModuleKind::Prefill { tokens } } else { ModuleKind::Score { tokens } };
                let mut ids: Vec<i32> = batch.tokens[at..end].iter().map(|t| *t as i32).collect();
                ids.resize(tokens, 0);
                let start = batch.positions[at] as i32;
                let given = HashMap::from([
                    (Input::Tokens, vector(ids)?),
                    (Input::Start, Tensor::scalar(start)),
                    (Input::Row, Tensor::scalar(row as i32)),
                    (Input::Last, Tensor::scalar((end - at - 1) as i32)),
                    (Input::RopeLen, Tensor::scalar(seq.rope_len as i32)),
                ]);
                let module = ModuleSpec::of(class, kind, bucket(class, start as usize));
                let results = self.step(&module, &given)?;
                let first = batch.tables[seq.table.start];
                self.note(&results, first, (at..end).map(|i| (i - at, batch.positions[i])));
                match results.get(&Output::Logits) {
                    Some(all) => {
                        let rows = floats(all)?.chunks_exact(vocab).map(<[f32]>::to_vec);
                        (at..end).zip(rows).for_each(|(row, values)| drop(logits.insert(row, values)));
                    }
                    None => drop(logits.insert(end - 1, candidates(&results, vocab)?.swap_remove(0))),
                }
                at = end;
            }
        }
        self.logits.clear();
        for output in &batch.outputs {
            let values = logits.get(&(*output as usize));
            self.logits.extend(values.ok_or_else(|| StepError::Device(format!("no logits of row {output}")))?);
        }
        Ok(())
    }

    /// One decode step of all sequences of one row; idle rows beside them.
    fn decode(&mut self, batch: &Batch, seqs: &[&SeqSpan]) -> Result<Vec<(usize, Vec<f32>)>, StepError> {
        let places: Vec<(usize, usize)> = seqs.iter().map(|seq| self.row_of(batch, seq)).collect::<Result<_, _>>()?;
        // Of each class the rows up to the last that has a sequence, idle ones among them, and the longest of those.
        let (mut parts, mut firsts, mut slots) = (vec![], vec![0; self.classes.len()], vec![]);
        for (number, class) in self.classes.iter().enumerate() {
            let mine = || places.iter().zip(seqs).filter(|((c, _), _)| *c == number);
            let Some(rows) = mine().map(|((_, row), _)| row + 1).max() else { continue };
            let longest = mine().map(|(_, seq)| batch.positions[seq.rows.start]).max().unwrap_or(0);
            firsts[number] = slots.len();
            slots.extend(std::iter::repeat_n(class.positions as i32 - 1, rows));
            parts.push(Part { class: *class, rows, len: bucket(*class, longest as usize) });
        }
        let rows: Vec<usize> = places.iter().map(|(class, row)| firsts[*class] + row).collect();
        let n = slots.len();
        let (mut tokens, mut positions, mut rope_len) = (vec![0; n], vec![0; n], vec![0; n]);
        for (row, seq) in rows.iter().zip(seqs) {
            tokens[*row] = batch.tokens[seq.rows.start] as i32;
            positions[*row] = batch.positions[seq.rows.start] as i32;
            slots[*row] = positions[*row];
            rope_len[*row] = seq.rope_len as i32;
        }
        let given = HashMap::from([
            (Input::Tokens, vector(tokens)?),
            (Input::Positions, vector(positions)?),
            (Input::Slots, vector(slots)?),
            (Input::RopeLen, vector(rope_len)?),
        ]);
        let results = self.step(&ModuleSpec::decode(parts), &given)?;
        for (row, seq) in rows.iter().zip(seqs) {
            self.note(&results, batch.tables[seq.table.start], [(*row, batch.positions[seq.rows.start])].into_iter());
        }
        let mut logits = candidates(&results, self.sharded.whole.vocab())?;
        Ok(rows.iter().zip(seqs).map(|(row, seq)| (seq.rows.start, std::mem::take(&mut logits[*row]))).collect())
    }

    /// Class and row of a sequence.
    fn row_of(&mut self, batch: &Batch, seq: &SeqSpan) -> Result<(usize, usize), StepError> {
        let first = batch.tables[seq.table.start];
        let (next, classes) = (self.rows.len(), self.classes.len());
        let (class, row) = *self.rows.entry(first).or_insert((next % classes, next / classes));
        match row < self.classes[class].rows {
            true => Ok((class, row)),
            false => Err(StepError::Batch(format!("{row} sequences have rows of class {class}"))),
        }
    }
}

impl Executor for Evaluated {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.logits.clear();
        batch.check(&self.sharded.whole, &self.capacity)?;
        self.run(batch)
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        out.vocab = self.sharded.whole.vocab();
        out.stride = out.vocab;
        out.rows = self.logits.len() / out.vocab;
        out.logits.clear();
        out.logits.append(&mut self.logits);
        Ok(())
    }

    fn cost(&self, batch: &Batch) -> Cost {
        Cost::of_step(&self.sharded.whole, batch, self.memory.weights as f64, self.spec.kv)
    }

    fn cost_model(&self) -> CostModel {
        CostModel::new(&self.sharded.whole, self.memory.weights as f64, self.spec.kv)
    }

    fn memory(&self) -> MemoryUse {
        self.memory
    }
}

/// Logits of each row from its candidates, `f32::MIN` where a token is none; what else the step says of them must agree.
fn candidates(results: &Outputs, vocab: usize) -> Result<Vec<Vec<f32>>, StepError> {
    let missing = || StepError::Device("a step without candidates".into());
    let get = |role| results.get(&role).ok_or_else(missing);
    let values = floats(get(Output::CandidateValues)?)?;
    let (ids, greedy) = (integers(get(Output::CandidateIds)?)?, integers(get(Output::Greedy)?)?);
    let sums = floats(get(Output::LogSumExp)?)?;
    let k = values.len() / sums.len();
    let row = |(row, values): (usize, &[f32])| {
        let ids = &ids[row * k..][..k];
        let mut logits = vec![f32::MIN; vocab];
        for (id, value) in ids.iter().zip(values) {
            logits[*id as usize] = *value;
        }
        let wrong = |what: &str| Err(StepError::Device(format!("row {row}: {what}")));
        if logits.iter().filter(|x| **x > f32::MIN).count() != k {
            return wrong("a token is twice among the candidates, or is no number");
        }
        if ids.windows(2).zip(values.windows(2)).any(|(i, v)| v[0] < v[1] || (v[0] == v[1] && i[0] > i[1])) {
            return wrong("candidates are out of order");
        }
        if greedy[row] != ids[0] {
            return wrong("the likeliest token is not the first candidate");
        }
        let sum: f64 = values.iter().map(|v| f64::from(v - values[0]).exp()).sum();
        let sum = f64::from(values[0]) + sum.ln();
        // Of all tokens, so at least that of some.
        let off = sum - f64::from(sums[row]);
        if off > 1e-4 * sum.abs().max(1.0) || (k == vocab && -off > 1e-4 * sum.abs().max(1.0)) {
            return wrong("the log-sum-exp is not that of the candidates");
        }
        Ok(logits)
    };
    values.chunks_exact(k).enumerate().map(row).collect()
}

fn tensor(dtype: DType, dims: &[usize], bytes: &[u8]) -> Result<Tensor, LoadError> {
    let broken = |what: String| LoadError::Device(what);
    let shape = ArrayShape::new(dtype, dims).ok_or_else(|| broken(format!("{dims:?} are no dimensions")))?;
    Tensor::from_bytes(shape, bytes).map_err(|e| broken(e.to_string()))
}

fn vector(values: Vec<i32>) -> Result<Tensor, StepError> {
    Tensor::new(&[values.len()], values).map_err(|e| StepError::Device(e.to_string()))
}

fn floats(tensor: &Tensor) -> Result<&[f32], StepError> {
    tensor.as_slice().ok_or_else(|| StepError::Device(format!("{} is not of f32", tensor.shape())))
}

/// Elements of f32 or bf16 as f32.
fn widened(tensor: &Tensor) -> Option<Vec<f32>> {
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect();
    tensor.as_slice::<f32>().map(<[f32]>::to_vec).or_else(|| tensor.as_slice().map(wide))
}

fn integers(tensor: &Tensor) -> Result<&[i32], StepError> {
    tensor.as_slice().ok_or_else(|| StepError::Device(format!("{} is not of s32", tensor.shape())))
}

/// A cache that nobody has written.
fn poison(port: &Port<Input>) -> Tensor {
    let n = port.dims.iter().product();
    let filled = match port.dtype {
        DType::BF16 => Tensor::new(&port.dims, vec![bf16::from_f32(100.0); n]),
        DType::S8 => Tensor::new(&port.dims, vec![77_i8; n]),
        _ => Tensor::new(&port.dims, vec![100_f32; n]),
    };
    filled.expect("as many as the dimensions say")
}

/// A core's words of a mask of the whole vocabulary; zeros beyond it.
fn words_of(mask: &Tensor, port: &Port<Input>, rank: usize) -> Tensor {
    let (rows, words) = (port.dims[0], port.dims[1]);
    let all = mask.as_slice::<u32>().unwrap_or_default();
    let of_row = all.len() / rows;
    let word = |i: usize| {
        let at = rank * words + i % words;
        if at < of_row { all[i / words * of_row + at] } else { 0 }
    };
    Tensor::new(&port.dims, (0..rows * words).map(word).collect()).expect("as many as the dimensions say")
}

/// The bucket of a length.
fn bucket(class: CacheShape, len: usize) -> usize {
    LENS.iter().copied().find(|bucket| *bucket >= len).unwrap_or(class.positions).min(class.positions)
}

/// Buckets of tokens of a chunk.
const TOKENS: [usize; 3] = [2, 8, 40];

/// How much longer than the one before it a class is.
const LONGER: usize = 8;

/// Buckets of cache lengths.
const LENS: [usize; 3] = [0, 40, 80];
