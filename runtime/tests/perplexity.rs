//! What quantisation costs in perplexity, on SmolLM2 and a text of 4096 tokens in windows of 512: int8 within 0.5 % and
//! the file's own int4 within 1 % of the unquantised weights.
//!
//! Needs the default model's file (`cargo xtask assets`); skipped by name without it, unless NJOULE_REQUIRE_ASSETS=1.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use njoule_models::checkpoint::Checkpoint;
use njoule_models::tokenizer::Tokenizer;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{Backend, Batch, BlockId, Capacity, Quant, SeqSpan, StepOutput};

const WINDOW: usize = 512;

fn asset() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let assets = std::env::var_os("NJOULE_ASSETS").map_or(root.join("target/assets"), PathBuf::from);
    let path = assets.join("smollm2-135m-instruct.Q4_1.gguf");
    let required = std::env::var_os("NJOULE_REQUIRE_ASSETS").is_some_and(|v| v == "1");
    assert!(path.exists() || !required, "{} is missing: run `cargo xtask assets`", path.display());
    path.exists().then_some(path)
}

/// Mean negative log-probability per token; the first token of a window is not scored.
fn loss(checkpoint: &Checkpoint, tokens: &[u32], quant: Quant) -> f64 {
    let program = checkpoint.config.program();
    let backend = CpuBackend::new(NonZero::new(2).unwrap(), quant).expect("an instruction set");
    let capacity = Capacity {
        blocks: WINDOW / 32,
        block_len: 32,
        max_rows: WINDOW,
        max_seqs: 1,
        max_outputs: WINDOW,
        max_len: WINDOW,
    };
    let mut executor = backend.load(&program, checkpoint.weights.as_ref(), capacity).expect("loads");
    let mut out = StepOutput::default();
    let (mut sum, mut count) = (0.0, 0.0);
    for window in tokens.chunks_exact(WINDOW) {
        let rows = 0..WINDOW as u32;
        let batch = Batch {
            tokens: window.to_vec(),
            positions: rows.clone().collect(),
            slots: rows.clone().collect(),
            seqs: vec![SeqSpan { rows: 0..WINDOW, context: WINDOW, table: 0..WINDOW / 32, rope_len: WINDOW }],
            tables: (0..WINDOW as u32 / 32).map(BlockId).collect(),
            outputs: rows.collect(),
            ..Batch::default()
        };
        executor.submit(&batch).expect("step");
        executor.collect(&mut out).expect("collect");
        for (i, next) in window.iter().enumerate().skip(1) {
            let row = out.row(i - 1);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            sum += total.ln() - f64::from(row[*next as usize] - max);
            count += 1.0;
        }
    }
    sum / count
}

#[test]
fn quantisation_costs_less_perplexity_than_its_bounds() {
    let Some(path) = asset() else {
        eprintln!("skipped quantisation_costs_less_perplexity_than_its_bounds: no smollm2-135m-instruct.Q4_1.gguf");
        return;
    };
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let vocab = checkpoint.gguf.as_ref().expect("a GGUF").vocab().expect("reads").expect("has a vocabulary");
    let tokenizer = Tokenizer::from_gguf(&vocab).expect("builds");
    let text = include_str!("../../testdata/text/prose.txt");
    let mut tokens = tokenizer.encode(text, false).expect("encodes");
    assert!(tokens.len() >= 4096, "the text has {} tokens", tokens.len());
    tokens.truncate(4096);
    let base = loss(&checkpoint, &tokens, Quant::None);
    for (quant, bound) in [(Quant::Int8, 0.005), (Quant::Auto, 0.01)] {
        let rise = (loss(&checkpoint, &tokens, quant) - base).exp() - 1.0;
        assert!(rise <= bound, "{quant:?} raises perplexity by {:.3} %", 100.0 * rise);
    }
}
