//! A fixture through the steps of the conformance suite, on XLA and by candle.
//!
//! Invariant: what passes has keys and values within two units in the last place of bf16 (or the bound of f32) of candle's, after
//! all layers and all steps. In bf16 a sum that lies between two numbers is rounded either way by the last bit of an f32, and
//! layers above make more of it. Tokens of which that is true of candle itself can hold nobody to that bound: they are held to
//! it layer by layer, and the model is held to it as it stands by other tokens, which candle alone chooses.

use std::path::Path;

use anyhow::{Context, ensure};
use njoule_conformance::steps::{CAPACITY, Logits, Script};
use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::{Op, Program};
use njoule_runtime::backend::candle::{CandleBackend, CandleExecutor, Noise};
use njoule_runtime::backend::neuron::evaluated::{Evaluated, EvaluatedBackend};
use njoule_runtime::backend::neuron::shard;
use njoule_runtime::backend::{Backend, BlockId, Quant, Routes};

use super::compare::{self, BF16_ULPS, Bound};
use super::xla::Xla;
use super::{Check, Outcome};

/// Prefill, decode and score.
pub fn check(dir: &Path, check: &Check, xla: &Xla) -> anyhow::Result<Outcome> {
    let checkpoint = Checkpoint::open(dir)?;
    let program = checkpoint.config.program();
    if let Err(refusal) = shard(&program, check.tp) {
        return Ok(Outcome::Refused(refusal.to_string()));
    }
    let max_len = checkpoint.config.max_len;
    let Some(script) = Script::within(max_len) else {
        return Ok(Outcome::LeftOut(format!("it is for {max_len} positions, the steps have more")));
    };
    // A near-tie of a router is decided by the last bit: in bf16 either way.
    let routed = check.bf16 && program.ops.iter().any(|op| matches!(op, Op::Route { .. }));
    let family = Family { dir, check, checkpoint: &checkpoint, program: &program, routed, xla };
    Ok(Outcome::Passed(family.check(script)?))
}

struct Family<'a> {
    dir: &'a Path,
    check: &'a Check,
    checkpoint: &'a Checkpoint,
    program: &'a Program,
    /// Whether what routers choose is noted.
    routed: bool,
    xla: &'a Xla,
}

impl Family<'_> {
    fn check(&self, script: Script) -> anyhow::Result<String> {
        let (logits, model, mut candle) = self.logits(script)?;
        let alone = match self.caches(&model, &candle, script) {
            Err(alone) if self.check.bf16 => alone,
            caches => return Ok(format!("{logits}, {}", caches?)),
        };
        let moved = self.moved(script)?;
        ensure!(moved > BF16_ULPS, "{alone:#}, where the last bits of f32 move candle's by {moved}");
        let by_layers = self.by_layers(&mut candle, script).with_context(|| format!("{alone:#}; layer by layer"))?;

        let mut variants = (1..=MOST_VARIANTS).map(|variant| (variant, script.variant(variant)));
        let (variant, script) = loop {
            let (variant, script) =
                variants.next().with_context(|| format!("{alone:#}; so it is of candle's with any tokens"))?;
            if self.moved(script)? <= BF16_ULPS {
                break (variant, script);
            }
        };
        let (logits, model, candle) = self.logits(script)?;
        let caches = self.caches(&model, &candle, script).with_context(|| format!("tokens {variant}"))?;
        Ok(format!(
            "{logits}, {caches} with tokens {variant}; with tokens 0, of which the last bits of f32 move candle's by {moved:.1e}, \
             {by_layers} layer by layer, by its own {alone:#}"
        ))
    }

    fn candle(&self) -> anyhow::Result<CandleExecutor> {
        let quant = if self.check.bf16 { Quant::Bf16 } else { Quant::None };
        Ok(CandleBackend::on_cpu(quant).load_candle(self.program, self.checkpoint.weights.as_ref(), CAPACITY)?)
    }

    /// What candle computes, with its caches and routes.
    fn by_candle(&self, candle: &mut CandleExecutor, script: Script) -> Logits {
        if self.routed {
            candle.note_routes();
        }
        script.run(candle, self.program.vocab())
    }

    fn by_xla(&self, script: Script, streams: bool) -> anyhow::Result<(Evaluated, Logits)> {
        let Check { bf16, tp, classes, .. } = *self.check;
        let backend = if bf16 { EvaluatedBackend::bf16(tp) } else { EvaluatedBackend::f32(tp) };
        let backend = EvaluatedBackend { classes, ..backend };
        let mut model = backend.load_evaluated(self.program, self.checkpoint.weights.as_ref(), CAPACITY)?;
        let spec = model.spec_mut();
        (spec.candidates, spec.shares, spec.streams) = (CANDIDATES, self.routed, streams);
        model.run_by(Box::new(self.xla.clone()));
        let logits = script.run(&mut model, self.program.vocab());
        Ok((model, logits))
    }

    /// Both, their logits compared.
    fn logits(&self, script: Script) -> anyhow::Result<(String, Evaluated, CandleExecutor)> {
        let mut candle = self.candle()?;
        let want = self.by_candle(&mut candle, script);
        let want: Vec<&[f32]> = want.rows().collect();
        let (model, got) = self.by_xla(script, false)?;
        let got: Vec<&[f32]> = got.rows().collect();
        let bound = if self.check.bf16 { Bound::Mean(self.bf16_itself(script, &want)?) } else { Bound::Worst(1e-4) };
        let kept: Vec<bool> = script
            .wanted()
            .into_iter()
            .map(|(seq, position)| agree(candle.routes(), Some(model.routes()), script, seq, position))
            .collect();
        let figures = compare::logits(&got, &want, bound, &kept)?;
        Ok((figures, model, candle))
    }

    fn caches(&self, model: &Evaluated, candle: &CandleExecutor, script: Script) -> anyhow::Result<String> {
        let bound = if self.check.bf16 { BF16_ULPS } else { 1e-4 };
        compare::caches(model, candle, (self.program, script), bound, &|seq, position| {
            agree(candle.routes(), Some(model.routes()), script, seq, position)
        })
    }

    /// Each layer's caches over what XLA's layers below have given.
    fn by_layers(&self, candle: &mut CandleExecutor, script: Script) -> anyhow::Result<String> {
        let (model, _) = self.by_xla(script, true)?;
        compare::follow(&model, candle, self.program, script)?;
        self.by_candle(candle, script);
        self.caches(&model, candle, script)
    }

    /// How far candle's own caches are off, at the most, from those that it has with each sum off by [`NOISE`].
    fn moved(&self, script: Script) -> anyhow::Result<f32> {
        let mut candle = self.candle()?;
        self.by_candle(&mut candle, script);
        let (want, routes) = (compare::parts(&candle, self.program)?, candle.routes().cloned());
        let mut most = 0.0_f32;
        for seed in 0..NOISES {
            candle.disturb(Some(Noise::new(seed, NOISE)));
            self.by_candle(&mut candle, script);
            let got = compare::parts(&candle, self.program)?;
            let agrees = |seq: usize, position: usize| agree(routes.as_ref(), candle.routes(), script, seq, position);
            most = most.max(compare::between(&got, &want, script, &agrees)?);
        }
        Ok(most)
    }

    /// How far bf16 is from f32 in the mean: by the reference implementation, else by candle, but no more than [`MOST_MEAN`].
    fn bf16_itself(&self, script: Script, bf16: &[&[f32]]) -> anyhow::Result<f64> {
        let golden = std::fs::read(self.dir.join("golden.json")).context("golden.json")?;
        let golden: serde_json::Value = serde_json::from_slice(&golden)?;
        if let Some(mean) = golden["conditioning"]["bf16_logit_meandiff"].as_f64() {
            return Ok(mean);
        }
        let source = self.checkpoint.weights.as_ref();
        let mut exact = CandleBackend::on_cpu(Quant::None).load(self.program, source, CAPACITY)?;
        let exact = script.run(exact.as_mut(), self.program.vocab());
        let differences =
            exact.rows().zip(bf16).flat_map(|(a, b)| a.iter().zip(*b)).map(|(a, b)| f64::from((a - b).abs()));
        Ok((differences.sum::<f64>() / (bf16.len() * self.program.vocab()) as f64).min(MOST_MEAN))
    }
}

/// Whether both routed a token, and all before it in its sequence, to the same experts: it attends to those.
fn agree(a: Option<&Routes>, b: Option<&Routes>, script: Script, seq: usize, position: usize) -> bool {
    let Some((a, b)) = a.zip(b) else { return true };
    let first: BlockId = script.slots(seq).0;
    let chosen = |routes: &Routes, p: u32| routes.get(&(first, p)).cloned().unwrap_or_default();
    // What the last router chose is known of outputs alone.
    (0..=position as u32).all(|p| chosen(a, p).iter().zip(&chosen(b, p)).all(|(a, b)| a == b))
}

/// What bf16 may cost in the mean where no reference says it: a model that is far off in candle as well is no excuse.
const MOST_MEAN: f64 = 0.03;
/// Of a step that chooses. XLA takes seconds to compile the rounds of some hundred.
const CANDIDATES: usize = 8;
/// The last bit of an f32, of its size: what a sum is off by in another order, at least.
const NOISE: f32 = 1.0 / (1 << 23) as f32;
/// So often candle's sums are off, each time otherwise.
const NOISES: u64 = 16;
/// Tokens that are tried.
const MOST_VARIANTS: usize = 50;
