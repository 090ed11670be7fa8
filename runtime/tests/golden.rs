//! Logits of the backends against the reference implementation's (`testdata/*/golden.safetensors`, made by transformers;
//! `testdata/README.md` says how): cpu on every instruction set of this machine, and candle.

use std::error::Error as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use njoule_kernels::isa::Kernels;
use njoule_models::checkpoint::Checkpoint;
use njoule_models::config::gguf_architectures;
#[cfg(feature = "candle")]
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{Backend, Batch, BlockId, Capacity, Executor, Quant, SeqSpan, StepOutput};
use safetensors::SafeTensors;

const FIXTURES: [&str; 41] = [
    "llama_plain",
    "llama_tied",
    "llama3_rope",
    "llama_linear",
    "llama_yarn",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "phi3",
    "phi3_longrope",
    "gpt_oss",
    "gpt_oss_mxfp4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "smollm3",
    "olmo",
    "olmo2",
    "gpt2",
    "starcoder2",
    "gpt_neox",
    "stablelm",
    "phi",
    "glm4",
    "cohere",
    "cohere2",
    "exaone4",
    "nemotron",
    "gpt_bigcode",
    "opt",
    "granitemoe",
    "olmoe",
    "falcon",
    "deepseek_v2",
    "deepseek_v3",
    "gguf_llama",
    "gguf_qwen2",
];

/// Options that no fixture has (`testdata/variants`).
const VARIANTS: [&str; 30] = [
    "variants/mixtral_window",
    "variants/qwen2_moe_step",
    "variants/qwen3_moe_window",
    "variants/gpt_oss_plain",
    "variants/phi3_partial",
    "variants/gemma3_scaled",
    "variants/gemma3_images",
    "variants/smollm3_sliding",
    "variants/olmo_plain",
    "variants/olmo2_biased",
    "variants/gpt2_by_layer",
    "variants/starcoder2_plain",
    "variants/gpt_neox_sequential",
    "variants/stablelm_parallel",
    "variants/phi_normed",
    "variants/glm4_plain",
    "variants/cohere_normed",
    "variants/cohere2_listed",
    "variants/exaone4_full",
    "variants/nemotron_plain",
    "variants/gpt_bigcode_multi_head",
    "variants/opt_behind",
    "variants/opt_bare",
    "variants/granitemoe_plain",
    "variants/olmoe_plain",
    "variants/falcon_alibi",
    "variants/falcon_groups",
    "variants/falcon_groups_one_norm",
    "variants/deepseek_v2_lite",
    "variants/deepseek_v3_plain",
];

struct Golden {
    name: String,
    checkpoint: Checkpoint,
    prompts: Vec<Prompt>,
    bf16_mean: Option<f64>,
    bf16_max: Option<f64>,
}

struct Prompt {
    ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

fn golden(name: &str) -> Golden {
    let dir = testdata().join(name);
    let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{name}: {e}"));
    let bytes = std::fs::read(dir.join("golden.safetensors")).expect("golden file");
    let file = SafeTensors::deserialize(&bytes).expect("golden safetensors");
    let ids = |t: &str| -> Vec<u32> {
        let data = file.tensor(t).expect("tensor").data().to_vec();
        data.chunks_exact(8).map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap()).collect()
    };
    let prompts = (0..file.names().iter().filter(|name| name.ends_with(".input_ids")).count())
        .map(|i| Prompt {
            ids: ids(&format!("prompt.{i}.input_ids")),
            greedy: ids(&format!("prompt.{i}.greedy_ids")),
            logits: file
                .tensor(&format!("prompt.{i}.logits"))
                .expect("logits")
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
        })
        .collect();
    let json: serde_json::Value = match ["variants/", "gguf/"].iter().any(|dir| name.starts_with(dir)) {
        true => serde_json::Value::Null,
        false => serde_json::from_slice(&std::fs::read(dir.join("golden.json")).expect("golden.json")).expect("json"),
    };
    let conditioning = |key: &str| json["conditioning"][key].as_f64();
    Golden {
        name: name.to_owned(),
        checkpoint,
        prompts,
        bf16_mean: conditioning("bf16_logit_meandiff"),
        bf16_max: conditioning("bf16_logit_maxdiff"),
    }
}

/// Every backend that stores weights so, with its name.
fn backends(quant: Quant, threads: usize) -> Vec<(String, Box<dyn Backend>)> {
    let threads = NonZero::new(threads).unwrap();
    let cpu = |kernels: &Kernels| {
        let backend = CpuBackend::new(threads, quant).unwrap().with_isa(kernels.isa).unwrap();
        (format!("cpu {}", kernels.isa.name()), Box::new(backend) as Box<dyn Backend>)
    };
    let all = Kernels::available().map(cpu);
    #[cfg(feature = "candle")]
    let all = all.chain(
        matches!(quant, Quant::None | Quant::Bf16)
            .then(|| ("candle".to_owned(), Box::new(CandleBackend::on_cpu(quant)) as Box<dyn Backend>)),
    );
    all.collect()
}

fn load(golden: &Golden, backend: &dyn Backend) -> Box<dyn Executor> {
    let program = golden.checkpoint.config.program();
    let capacity = Capacity { blocks: 8, block_len: 32, max_rows: 64, max_seqs: 4, max_outputs: 64, max_len: 128 };
    backend
        .load(&program, golden.checkpoint.weights.as_ref(), capacity)
        .unwrap_or_else(|e| panic!("{}: {e}", golden.name))
}

impl Prompt {
    /// Tokens of the whole run, which decides between the two sets of frequencies of LongRoPE.
    fn rope_len(&self) -> usize {
        self.ids.len() + self.greedy.len()
    }
}

/// One step of one sequence whose blocks are 3, 1, 0, 5, ...: order must not matter.
fn step(executor: &mut dyn Executor, ids: &[u32], position: usize, rope_len: usize, out: &mut StepOutput) {
    let table = [3, 1, 0, 5].map(BlockId);
    let slot = |p: usize| table[p / 32].0 * 32 + (p % 32) as u32;
    let positions = position..position + ids.len();
    let batch = Batch {
        tokens: ids.to_vec(),
        positions: positions.clone().map(|p| p as u32).collect(),
        slots: positions.clone().map(slot).collect(),
        seqs: vec![SeqSpan { rows: 0..ids.len(), context: positions.end, table: 0..4, rope_len }],
        tables: table.to_vec(),
        outputs: (0..ids.len() as u32).collect(),
        ..Batch::default()
    };
    executor.submit(&batch).expect("step");
    executor.collect(out).expect("collect");
}

fn rows(out: &StepOutput) -> Vec<f32> {
    (0..out.rows).flat_map(|i| out.row(i).to_vec()).collect()
}

fn argmax(row: &[f32]) -> u32 {
    row.iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i as u32, *x) } else { best })
        .0
}

/// What of the logits and the greedy tokens is not the reference's, on these backends.
fn differences(name: &str, backends: Vec<(String, Box<dyn Backend>)>) -> Vec<String> {
    let golden = golden(name);
    let mut failures = vec![];
    for (backend_name, backend) in backends {
        let mut executor = load(&golden, &*backend);
        let mut out = StepOutput::default();
        for (i, prompt) in golden.prompts.iter().enumerate() {
            step(executor.as_mut(), &prompt.ids, 0, prompt.rope_len(), &mut out);
            let got = rows(&out);
            let worst = got.iter().zip(&prompt.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            if !(got.len() == prompt.logits.len() && worst < 1e-3) {
                failures.push(format!("{name} {backend_name} prompt {i}: off by {worst}"));
            }
            let mut next = argmax(out.row(out.rows - 1));
            for (position, (n, want)) in (prompt.ids.len()..).zip(prompt.greedy.iter().enumerate()) {
                if next != *want {
                    failures.push(format!("{name} {backend_name} prompt {i}: token {n} is {next}, not {want}"));
                    break;
                }
                step(executor.as_mut(), &[next], position, prompt.rope_len(), &mut out);
                next = argmax(out.row(0));
            }
        }
    }
    failures
}

#[test]
fn unquantised_logits_equal_the_reference_and_greedy_ids_follow() {
    let names = FIXTURES.into_iter().chain(VARIANTS);
    let failures: Vec<_> = names.flat_map(|name| differences(name, backends(Quant::None, 2))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Files that llama.cpp's own converter made (`testdata/gguf/make.py`) of every architecture that is read.
#[test]
fn gguf_files_of_every_architecture_give_the_reference_logits() {
    let entries = std::fs::read_dir(testdata().join("gguf")).expect("testdata/gguf");
    let entries = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    let mut names: Vec<String> =
        entries.map(|path| format!("gguf/{}", path.file_name().unwrap().to_str().unwrap())).collect();
    names.sort();
    let mut missing: Vec<&str> = gguf_architectures().map(|(name, _)| name).collect();
    let mut failures = vec![];
    for name in &names {
        match Checkpoint::open(&testdata().join(name)) {
            Err(error) => failures.push(format!("{name}: {error}: {}", error.source().unwrap_or(&error))),
            Ok(checkpoint) => {
                let gguf = checkpoint.gguf.expect("a GGUF file");
                let architecture = gguf.metadata().string("general.architecture").unwrap().unwrap().to_owned();
                missing.retain(|name| *name != architecture);
                // Instruction sets differ in nothing that a file decides.
                let two = backends(Quant::None, 2).into_iter().rev().take(2).collect();
                failures.extend(differences(name, two));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(missing.is_empty(), "no file of {missing:?}");
}

#[test]
fn quantised_logits_stay_within_the_bounds_of_bf16() {
    let mut failures = vec![];
    for name in FIXTURES {
        let golden = golden(name);
        let (Some(mean_bound), Some(max_bound)) = (golden.bf16_mean, golden.bf16_max) else { continue };
        for (quant, factor) in [(Quant::Bf16, 2.0), (Quant::Int8, 4.0)] {
            for (backend_name, backend) in backends(quant, 1) {
                let mut executor = load(&golden, &*backend);
                let mut out = StepOutput::default();
                let (mut sum, mut count) = (0.0, 0.0);
                for (i, prompt) in golden.prompts.iter().enumerate() {
                    step(executor.as_mut(), &prompt.ids, 0, prompt.rope_len(), &mut out);
                    let got = rows(&out);
                    sum += got.iter().zip(&prompt.logits).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
                    count += got.len() as f64;
                    let vocab = out.vocab;
                    for (row, (got, want)) in got.chunks(vocab).zip(prompt.logits.chunks(vocab)).enumerate() {
                        let mut sorted = want.to_vec();
                        sorted.sort_by(|a, b| b.total_cmp(a));
                        let margin = f64::from(sorted[0] - sorted[1]);
                        // Rounding may send a token to another expert, and then there is no bound.
                        let is_bounded = golden.checkpoint.config.moe.is_none();
                        if is_bounded && margin > 2.0 * max_bound && argmax(got) != argmax(want) {
                            failures.push(format!(
                                "{name} {quant:?} {backend_name} prompt {i} row {row}: another top token"
                            ));
                        }
                    }
                }
                let mean = sum / count;
                if !(mean <= factor * mean_bound) {
                    failures.push(format!(
                        "{name} {quant:?} {backend_name}: mean {mean:.4} against bf16's {mean_bound:.4}"
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
