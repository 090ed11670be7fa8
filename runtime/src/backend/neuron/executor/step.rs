//! What goes to a core for a run and what comes back, as bytes.
//!
//! The small inputs of a module lie in one tensor, and so do its results: one write and one read per run. Masks are the
//! only large input and lie behind the others: only those rows are written that have one, or had one in the run before.

use std::ops::Range;

use crate::backend::neuron::artifact::ModuleRecord;
use crate::backend::neuron::interface::{Input, ModuleKind, Output, Part};
use crate::backend::{Batch, Candidates, StepError, StepOutput, Wants};

use super::cut::{Call, Cut, Line};

/// Where a module's small inputs and its results stand in their tensors.
#[derive(Clone, Debug)]
pub struct Io {
    kind: ModuleKind,
    /// Of each row of a decode step, the last position of its cache row, which no sequence reaches.
    last: Vec<u32>,
    biases: usize,
    /// Of the inputs that have one.
    inputs: Vec<(Input, Place)>,
    outputs: Vec<(Output, Place)>,
    /// Bytes of the inputs without the mask.
    pub input_bytes: usize,
    /// The mask behind them, if there is one.
    pub mask: Option<Place>,
    /// Bytes of the results that are no caches.
    pub output_bytes: usize,
}

/// A part of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub bytes: usize,
}

impl Io {
    /// Of a module of a manifest that was checked.
    pub fn new(module: &ModuleRecord) -> Io {
        let (mut inputs, mut outputs, mut input_bytes, mut output_bytes) = (vec![], vec![], 0usize, 0usize);
        let mut mask = None;
        let place = |bytes, end: &mut usize| {
            let offset = end.next_multiple_of(ALIGN);
            *end = offset + bytes;
            Place { offset, bytes }
        };
        for port in &module.inputs {
            match port.role {
                Input::Cache(..) | Input::Weight(..) | Input::Mask => {}
                role => inputs.push((role, place(port.bytes(), &mut input_bytes))),
            }
        }
        if let Some(port) = module.inputs.iter().find(|port| port.role == Input::Mask) {
            let offset = input_bytes.next_multiple_of(ALIGN);
            mask = Some(Place { offset, bytes: port.bytes() });
        }
        for port in &module.outputs {
            if !matches!(port.role, Output::Cache(..)) {
                outputs.push((port.role, place(port.bytes(), &mut output_bytes)));
            }
        }
        let spec = &module.spec;
        let (kind, biases) = (spec.kind, spec.biases);
        let last = match kind {
            ModuleKind::Decode { .. } => {
                let of = |part: &Part| std::iter::repeat_n(to_u32(part.class.positions - 1), part.rows);
                spec.parts.iter().flat_map(of).collect()
            }
            ModuleKind::Prefill { .. } | ModuleKind::Score { .. } => vec![],
        };
        Io { kind, last, biases, inputs, outputs, input_bytes, mask, output_bytes }
    }

    /// Where an input stands.
    pub fn input(&self, role: Input) -> Option<Place> {
        if role == Input::Mask {
            return self.mask;
        }
        self.inputs.iter().find(|(r, _)| *r == role).map(|(_, place)| *place)
    }

    /// Where a result stands.
    pub fn output(&self, role: Output) -> Option<Place> {
        self.outputs.iter().find(|(r, _)| *r == role).map(|(_, place)| *place)
    }

    /// Bytes of the tensor that holds all small inputs and the mask.
    pub fn input_tensor_bytes(&self) -> usize {
        self.mask.map_or(self.input_bytes, |mask| mask.offset + mask.bytes)
    }

    /// Inputs of a run of nobody: every index in range.
    pub fn idle(&self, rank: usize, bytes: &mut Vec<u8>) {
        let start = self.blank(rank, bytes);
        self.idle_rows(&mut bytes[start..]);
    }

    /// Appends the inputs of a run.
    pub fn fill(&self, rank: usize, batch: &Batch, lines: &[Line], bytes: &mut Vec<u8>) -> Result<(), StepError> {
        let start = self.blank(rank, bytes);
        let bytes = &mut bytes[start..];
        match self.kind {
            ModuleKind::Decode { .. } => {
                self.idle_rows(bytes);
                for line in lines {
                    let (row, at) = (line.row, line.tokens.start);
                    self.put(bytes, Input::Tokens, row, batch.tokens[at]);
                    self.put(bytes, Input::Positions, row, batch.positions[at]);
                    self.put(bytes, Input::Slots, row, batch.positions[at]);
                    self.put(bytes, Input::RopeLen, row, to_u32(batch.seqs[line.seq].rope_len));
                }
            }
            ModuleKind::Prefill { .. } | ModuleKind::Score { .. } => {
                // One line per run of these.
                for line in lines {
                    for (i, at) in line.tokens.clone().enumerate() {
                        self.put(bytes, Input::Tokens, i, batch.tokens[at]);
                    }
                    self.put(bytes, Input::Start, 0, batch.positions[line.tokens.start]);
                    self.put(bytes, Input::Row, 0, to_u32(line.row));
                    self.put(bytes, Input::Last, 0, to_u32(line.tokens.len() - 1));
                    self.put(bytes, Input::RopeLen, 0, to_u32(batch.seqs[line.seq].rope_len));
                }
            }
        }
        for line in lines {
            self.put_biases(bytes, batch, line)?;
        }
        Ok(())
    }

    /// Appends the masks of a run for `rank`, if any of its outputs has one.
    pub fn fill_mask(
        &self,
        rank: usize,
        batch: &Batch,
        lines: &[Line],
        bytes: &mut Vec<u8>,
    ) -> Result<Option<MaskBytes>, StepError> {
        let outputs = lines.iter().flat_map(|line| line.outputs.clone().map(move |o| (line, o)));
        if batch.wants != Wants::Tokens || !outputs.clone().any(|(_, o)| batch.masks.of(o).is_some()) {
            return Ok(None);
        }
        let Some(place) = self.mask else {
            return Err(StepError::Batch("a mask for a module that takes none".to_owned()));
        };
        let start = bytes.len();
        let words = place.bytes / self.kind.outputs().max(1) / 4;
        let (mut first, mut end) = (usize::MAX, 0);
        // Row after row, each once: at large batches masks are most of what the host writes.
        for (line, output) in outputs {
            let Some(mask) = batch.masks.of(output) else { continue };
            let row = self.output_row(line);
            debug_assert!(row >= end, "lines of a run are in the order of their rows");
            // Rows without a mask allow all.
            bytes.resize(start + row * words * 4, 0xff);
            let allowed = mask.get(rank * words..).unwrap_or_default();
            extend(bytes, &allowed[..allowed.len().min(words)]);
            // Beyond the vocabulary's words there is nothing to allow.
            bytes.resize(start + (row + 1) * words * 4, 0);
            (first, end) = (first.min(row), row + 1);
        }
        bytes.resize(start + place.bytes, 0xff);
        let masked = first.min(end) * words * 4..end * words * 4;
        Ok(Some(MaskBytes { all: start..bytes.len(), masked }))
    }

    /// What of the results a run of `lines` needs, if anything.
    pub fn wanted(&self, lines: &[Line]) -> Option<Place> {
        if lines.iter().all(|line| line.outputs.is_empty()) {
            return None;
        }
        match (self.kind, self.output(Output::Logits)) {
            (ModuleKind::Score { tokens }, Some(logits)) => {
                let rows = lines.iter().map(|line| line.tokens.len()).max().unwrap_or(0);
                Some(Place { offset: logits.offset, bytes: logits.bytes / tokens.max(1) * rows })
            }
            _ => Some(Place { offset: 0, bytes: self.output_bytes }),
        }
    }

    /// Takes the results of a run over; `outputs` are the batch's.
    pub fn take(&self, outputs: &[u32], lines: &[Line], bytes: &[u8], out: &mut StepOutput) {
        for line in lines {
            for output in line.outputs.clone() {
                match self.output(Output::Logits) {
                    Some(logits) => {
                        let row = outputs[output] as usize - line.tokens.start;
                        let width = logits.bytes / self.kind.tokens().max(1);
                        let values = &bytes[row * width..][..width];
                        let to = &mut out.logits[output * out.stride..][..out.vocab];
                        values.chunks_exact(4).zip(to).for_each(|(from, to)| *to = f32::from_bits(word(from)));
                    }
                    None => self.take_candidates(self.output_row(line), output, bytes, &mut out.candidates),
                }
            }
        }
    }

    fn take_candidates(&self, row: usize, output: usize, bytes: &[u8], out: &mut Candidates) {
        let rows = self.kind.outputs().max(1);
        let part = |role| {
            let place = self.output(role).unwrap_or(Place { offset: 0, bytes: 0 });
            let width = place.bytes / rows;
            bytes[place.offset + row * width..][..width].chunks_exact(4).map(word)
        };
        let span = output * out.count..(output + 1) * out.count;
        part(Output::CandidateValues).zip(&mut out.values[span.clone()]).for_each(|(v, to)| *to = f32::from_bits(v));
        part(Output::CandidateIds).zip(&mut out.ids[span]).for_each(|(v, to)| *to = v);
        part(Output::LogSumExp).zip(&mut out.log_sum_exp[output..]).for_each(|(v, to)| *to = f32::from_bits(v));
        part(Output::Greedy).zip(&mut out.greedy[output..]).for_each(|(v, to)| *to = v);
    }

    /// Which row of the results a line's output is.
    fn output_row(&self, line: &Line) -> usize {
        if matches!(self.kind, ModuleKind::Decode { .. }) { line.row } else { 0 }
    }

    /// Appends zeros, the rank and no biases; returns where they begin.
    fn blank(&self, rank: usize, bytes: &mut Vec<u8>) -> usize {
        let start = bytes.len();
        bytes.resize(start + self.input_bytes, 0);
        self.put(&mut bytes[start..], Input::Rank, 0, to_u32(rank));
        if let Some(ids) = self.input(Input::BiasIds) {
            bytes[start + ids.offset..][..ids.bytes].fill(0xff); // -1
        }
        start
    }

    /// An idle row writes the last position of its cache row.
    fn idle_rows(&self, bytes: &mut [u8]) {
        for (row, last) in self.last.iter().enumerate() {
            self.put(bytes, Input::Slots, row, *last);
        }
    }

    /// Makes a row of a decode run idle that had a line.
    fn silence(&self, bytes: &mut [u8], row: usize) {
        for role in [Input::Tokens, Input::Positions, Input::RopeLen] {
            self.put(bytes, role, row, 0);
        }
        self.put(bytes, Input::Slots, row, self.last[row]);
        for at in row * self.biases..(row + 1) * self.biases {
            self.put(bytes, Input::BiasIds, at, u32::MAX);
            self.put(bytes, Input::BiasValues, at, 0);
        }
    }

    fn put_biases(&self, bytes: &mut [u8], batch: &Batch, line: &Line) -> Result<(), StepError> {
        if batch.wants != Wants::Tokens {
            return Ok(());
        }
        for output in line.outputs.clone() {
            let biases = batch.biases_of(output);
            if biases.len() > self.biases {
                let what = format!("output {output} has {} biases, the module takes {}", biases.len(), self.biases);
                return Err(StepError::Batch(what));
            }
            for (i, bias) in biases.iter().enumerate() {
                let at = self.output_row(line) * self.biases + i;
                self.put(bytes, Input::BiasIds, at, bias.id);
                // An infinity times a zero of a one-hot product is no number.
                self.put(bytes, Input::BiasValues, at, bias.value.max(LOWEST_BIAS).to_bits());
            }
        }
        Ok(())
    }

    /// Element `i` of an input, where the module has it.
    fn put(&self, bytes: &mut [u8], role: Input, i: usize, value: u32) {
        if let Some(place) = self.input(role)
            && let Some(to) = bytes[place.offset..][..place.bytes].chunks_exact_mut(4).nth(i)
        {
            to.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// What a rank does in a step; it goes there and comes back with the results.
#[derive(Debug, Default)]
pub struct Work {
    /// Runs in order.
    pub runs: Vec<WorkRun>,
    /// Inputs of all runs.
    pub bytes: Vec<u8>,
    /// Results of all runs.
    pub results: Vec<u8>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct WorkRun {
    /// Module.
    pub module: usize,
    /// Its inputs, in `bytes`.
    pub inputs: Range<usize>,
    /// Its masks; all tokens are allowed without.
    pub mask: Option<MaskBytes>,
    /// What is read of its results, if anything.
    pub read: Option<Place>,
    /// Where that goes, in `results`.
    pub result: Range<usize>,
}

/// Masks of all rows of a run.
#[derive(Clone, Debug)]
pub struct MaskBytes {
    /// Where they are, in [`Work::bytes`].
    pub all: Range<usize>,
    /// A part of them that has every row which does not allow all.
    pub masked: Range<usize>,
}

impl Work {
    /// Fills in what `rank` does; results are asked of rank 0 alone, since all have the same.
    pub fn fill(&mut self, rank: usize, batch: &Batch, cut: &Cut, ios: &[Io]) -> Result<(), StepError> {
        let Work { runs, bytes, results } = self;
        runs.clear();
        bytes.clear();
        let mut end = 0;
        for Call { module, lines } in &cut.calls {
            let (io, lines) = (&ios[*module], &cut.lines[lines.clone()]);
            let start = bytes.len();
            io.fill(rank, batch, lines, bytes)?;
            let inputs = start..bytes.len();
            let mask = io.fill_mask(rank, batch, lines, bytes)?;
            let read = io.wanted(lines).filter(|_| rank == 0);
            let result = end..end + read.map_or(0, |place| place.bytes);
            end = result.end;
            runs.push(WorkRun { module: *module, inputs, mask, read, result });
        }
        if results.len() < end {
            results.resize(end, 0);
        }
        Ok(())
    }
}

impl Work {
    /// Run number `run` of it alone and without results, with these rows idle.
    pub fn probe(&self, run: usize, io: &Io, idle: impl Iterator<Item = usize>) -> Work {
        let WorkRun { module, inputs, mask, .. } = &self.runs[run];
        let mut bytes = self.bytes[inputs.clone()].to_vec();
        idle.for_each(|row| io.silence(&mut bytes, row));
        let inputs = 0..bytes.len();
        let mask = mask.clone().map(|mask| {
            bytes.extend_from_slice(&self.bytes[mask.all]);
            MaskBytes { all: inputs.end..bytes.len(), masked: mask.masked }
        });
        let run = WorkRun { module: *module, inputs, mask, read: None, result: 0..0 };
        Work { runs: vec![run], bytes, results: vec![] }
    }
}

/// Appends words, little endian.
fn extend(bytes: &mut Vec<u8>, words: &[u32]) {
    if cfg!(target_endian = "little") {
        bytes.extend_from_slice(bytemuck::cast_slice(words));
    } else {
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

/// Counts of a batch fit: positions are u32 there.
fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(i32::MAX as u32)
}

/// Of a tensor within the one that holds several: what a DMA descriptor may want is not documented; this is no less than
/// any published figure.
const ALIGN: usize = 512;
/// Below any logit; finite.
const LOWEST_BIAS: f32 = -1e30;
