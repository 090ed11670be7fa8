//! A model's logits, tokens and times: the cpu backend in the device's place, transformers' logits as the reference.

use std::ops::ControlFlow;

use std::num::NonZero;
use std::path::{Path, PathBuf};

use njoule_models::checkpoint::Checkpoint;
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::{Fake, probe_small, small_steps};
use crate::backend::cpu::CpuBackend;
use crate::backend::neuron::Profile;
use crate::backend::neuron::probe::{
    DecodeBucket, DecodeRows, Fault, Golden, GoldenPrompt, LoadedModel, Outcome, ProbeModel, Stage, State, StepOutcome,
    run,
};
use crate::backend::{Backend, Batch, Capacity, Cost, Executor, MemoryUse, Quant, StepError, StepOutput};

const CAPACITY: Capacity =
    Capacity { blocks: 12, block_len: 32, max_rows: 64, max_seqs: 4, max_outputs: 4, max_len: 96 };

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/llama_tied")
}

/// The fixture's logits after each prompt, and the tokens that follow.
fn golden() -> Golden {
    let bytes = std::fs::read(fixture().join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: String| -> Vec<u32> {
        let data = file.tensor(&name).unwrap().data().to_vec();
        data.chunks_exact(8).map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap()).collect()
    };
    let floats = |name: String| -> Vec<f32> {
        let data = file.tensor(&name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let prompt = |i: usize| {
        let ids_of = ids(format!("prompt.{i}.input_ids"));
        let logits = floats(format!("prompt.{i}.logits"));
        let last = &logits[logits.len() - logits.len() / ids_of.len()..];
        let mut top: Vec<(u32, f32)> = (0..).zip(last.iter().copied()).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        top.truncate(50);
        let greedy = ids(format!("prompt.{i}.greedy_ids")).into_iter().zip(floats(format!("prompt.{i}.greedy_margin")));
        GoldenPrompt { ids: ids_of, top, log_sum_exp: None, greedy: greedy.collect() }
    };
    Golden { reference: "transformers in /home/jane".to_owned(), prompts: (0..3).map(prompt).collect() }
}

/// The fixture on the cpu.
struct OnCpu {
    golden: Option<Golden>,
    stand_in: bool,
    /// Steps after which the executor fails.
    dies_after: usize,
    /// It does not come so far.
    refused: bool,
}

impl Default for OnCpu {
    fn default() -> Self {
        OnCpu { golden: Some(golden()), stand_in: false, dies_after: usize::MAX, refused: false }
    }
}

struct Mortal {
    executor: Box<dyn Executor>,
    left: usize,
}

impl Executor for Mortal {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| StepError::Device("status 1202".to_owned()))?;
        self.executor.submit(batch)
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        self.executor.collect(out)
    }

    fn cost(&self, batch: &Batch) -> Cost {
        self.executor.cost(batch)
    }

    fn memory(&self) -> MemoryUse {
        self.executor.memory()
    }
}

impl ProbeModel for OnCpu {
    fn load(&mut self, _: &Profile) -> Result<LoadedModel, Fault> {
        if self.refused {
            return Err(Fault { stage: Stage::Compile, words: "NCC_EOOM001".to_owned() });
        }
        let checkpoint = Checkpoint::open(&fixture()).unwrap();
        let cpu = CpuBackend::new(NonZero::<usize>::MIN, Quant::None).unwrap();
        let executor = cpu.load(&checkpoint.config.program(), checkpoint.weights.as_ref(), CAPACITY).unwrap();
        Ok(LoadedModel {
            executor: Box::new(Mortal { executor, left: self.dies_after }),
            capacity: CAPACITY,
            chunk: 16,
            row: 1,
            decodes: vec![
                DecodeBucket::of(DecodeRows { first: 0, rows: 1, len: 8 }),
                DecodeBucket::of(DecodeRows { first: 0, rows: 4, len: CAPACITY.max_len }),
            ],
            golden: self.golden.clone(),
            tolerance: 0.02,
            bandwidth: Some(1e12),
            stand_in: self.stand_in,
            words: "llama".to_owned(),
        })
    }
}

/// The steps with a model; the others are tested elsewhere.
fn probe(mut model: OnCpu) -> Outcome {
    let steps: Vec<_> =
        small_steps().into_iter().filter(|s| ["core", "logits", "speed", "power"].contains(&s.name)).collect();
    run(&mut Fake::default(), Ok(&mut model), njoule_hlo::Target::Trn1, &steps, |_| ControlFlow::Continue(()))
}

fn step<'a>(outcome: &'a Outcome, name: &str) -> &'a StepOutcome {
    outcome.steps.iter().find(|step| step.name == name).unwrap()
}

#[test]
fn a_model_that_computes_what_the_reference_does_passes_and_is_timed() {
    let outcome = probe(OnCpu::default());
    assert_eq!(outcome.stopped_at, None, "{outcome:#?}");
    let logits = step(&outcome, "logits").logits.as_ref().unwrap();
    assert!(logits.prompts.len() == 3 && logits.error > 0.0 && logits.error < 1e-3, "{logits:?}");
    // Those whose margin is above what rounding could turn.
    assert!(logits.prompts.iter().all(|p| p.likeliest && p.followed >= 3 && p.parted_at.is_none()), "{logits:?}");
    let speed = step(&outcome, "speed").speed.as_ref().unwrap();
    assert_eq!((speed.of, speed.bandwidth_gb_s), ("device", Some(1000.0)));
    let sizes: Vec<_> = speed.steps.iter().map(|s| (s.batch, s.len)).collect();
    assert_eq!(sizes, [(1, 8), (4, 96)]);
    for time in &speed.steps {
        assert!(time.runs >= 3 && time.least_ms <= time.tpot_ms && time.tpot_ms <= time.most_ms, "{time:?}");
        assert!((time.gb_s - time.bytes / time.tpot_ms / 1e6).abs() < 1e-6 * time.gb_s, "{time:?}");
        assert!((time.mbu.unwrap() - time.gb_s / 1000.0).abs() < 1e-9, "{time:?}");
    }
    // Four rows of 96 positions, keys and values of every layer.
    let cache = 4.0 * 96.0;
    assert!(speed.steps[1].bytes - speed.steps[0].bytes > cache, "{speed:?}");
}

#[test]
fn a_stand_ins_times_are_called_so_and_no_share_of_a_device() {
    let outcome = probe(OnCpu { stand_in: true, ..OnCpu::default() });
    let step = step(&outcome, "speed");
    let speed = step.speed.as_ref().unwrap();
    assert_eq!((speed.of, speed.bandwidth_gb_s), ("stand-in", None));
    assert!(speed.steps.iter().all(|time| time.mbu.is_none()) && step.words.contains("stand-in"), "{step:?}");
}

#[test]
fn a_logit_that_is_off_and_a_token_that_is_another_stop_the_probe_and_name_the_prompt() {
    let spoil = |spoil: fn(&mut GoldenPrompt)| {
        let mut golden = golden();
        spoil(&mut golden.prompts[1]);
        let outcome = probe(OnCpu { golden: Some(golden), ..OnCpu::default() });
        assert_eq!((outcome.stopped_at.as_deref(), outcome.profile), (Some("logits"), None));
        step(&outcome, "logits").words.clone()
    };
    let words = spoil(|prompt| prompt.top[20].1 += 0.1);
    assert!(words.contains("prompt 1 is off: error 0.1"), "{words}");
    let words = spoil(|prompt| prompt.log_sum_exp = Some(1000.0));
    assert!(words.contains("prompt 1 is off"), "{words}");
    let words = spoil(|prompt| prompt.greedy[1].0 += 1);
    assert!(words.contains("token 1 after it is another"), "{words}");
    let words = spoil(|prompt| prompt.top[3].1 = f32::NAN);
    assert!(words.contains("prompt 1 is off: error NaN"), "{words}");
}

#[test]
fn a_model_that_cannot_be_built_or_dies_ends_the_probe_in_words() {
    let outcome = probe(OnCpu { refused: true, ..OnCpu::default() });
    assert_eq!(outcome.stopped_at.as_deref(), Some("logits"));
    assert!(step(&outcome, "logits").words.contains("compile: NCC_EOOM001"));
    let outcome = probe(OnCpu { dies_after: 1, ..OnCpu::default() });
    assert_eq!(outcome.stopped_at.as_deref(), Some("logits"));
    assert!(step(&outcome, "logits").words.contains("prompt 0: device failure: status 1202"), "{outcome:?}");
    let outcome = probe(OnCpu { golden: None, dies_after: 4, ..OnCpu::default() });
    assert_eq!(outcome.stopped_at.as_deref(), Some("speed"));
    assert!(step(&outcome, "speed").words.contains("1 sequences of 8 tokens"), "{outcome:?}");
}

#[test]
fn without_a_reference_nothing_is_known_of_the_logits_and_the_speed_is_measured() {
    let outcome = probe(OnCpu { golden: None, ..OnCpu::default() });
    assert_eq!([step(&outcome, "logits").state, step(&outcome, "speed").state], [State::Unknown, State::Passed]);
    assert!(step(&outcome, "logits").words.contains("--golden"));
    let without = probe_small(Fake::default());
    assert!(step(&without, "logits").words.contains("left out: none"));
}

#[test]
fn an_executor_is_a_reference_for_another() {
    let prompts: Vec<Vec<u32>> = golden().prompts.into_iter().map(|prompt| prompt.ids).collect();
    let mut loaded = OnCpu::default().load(&Profile::default()).unwrap();
    let by_cpu = Golden::by("cpu", &mut *loaded.executor, CAPACITY, &prompts).unwrap();
    for (cpu, transformers) in by_cpu.prompts.iter().zip(golden().prompts) {
        assert_eq!(cpu.top[0].0, transformers.top[0].0);
        assert!(cpu.greedy.iter().zip(&transformers.greedy).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-3));
        assert_eq!(cpu.greedy.len(), 8);
    }
    let outcome = probe(OnCpu { golden: Some(by_cpu), ..OnCpu::default() });
    assert_eq!(step(&outcome, "logits").logits.as_ref().unwrap().error, 0.0);
}

#[test]
fn a_reports_reference_names_no_machine() {
    let outcome = probe(OnCpu::default()).redacted(&Default::default());
    let text = serde_json::to_string(&outcome).unwrap();
    assert!(text.contains("transformers in <path>") && !text.contains("jane"), "{text}");
}

proptest! {
    #[test]
    fn any_text_is_a_reference_or_an_error(text in "\\PC{0,80}") {
        let _ = Golden::parse(&text);
    }

    #[test]
    fn a_reference_of_any_shape_is_read_or_refused(
        prompts in prop::collection::vec(prop::collection::vec(0u32..9, 0..4), 0..4),
        results in prop::collection::vec((prop::collection::vec(0u32..9, 0..4), prop::collection::vec(-9f32..9.0, 0..4)), 0..4),
    ) {
        let json = serde_json::json!({
            "prompts": prompts.iter().map(|ids| serde_json::json!({"ids": ids})).collect::<Vec<_>>(),
            "results": results.iter()
                .map(|(ids, logits)| serde_json::json!({"last_top50_ids": ids, "last_top50_logits": logits}))
                .collect::<Vec<_>>(),
        });
        let descend = |logits: &[f32]| logits.windows(2).all(|pair| pair[0] >= pair[1]);
        let fits = !prompts.is_empty() && prompts.len() == results.len() && prompts.iter().all(|ids| !ids.is_empty())
            && results.iter().all(|(ids, logits)| !ids.is_empty() && ids.len() == logits.len() && descend(logits));
        prop_assert_eq!(Golden::parse(&json.to_string()).is_ok(), fits);
    }
}
