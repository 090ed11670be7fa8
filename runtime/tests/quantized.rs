//! Checkpoints that are quantised already (`testdata/quantized`, made by make.py with the projects that define the
//! forms): the logits of their dequantised weights, and what each type of packed weights makes of their codes.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use njoule_kernels::isa::Kernels;
use njoule_models::checkpoint::Checkpoint;
use njoule_models::program::{Program, WeightId, WeightUse};
use njoule_runtime::backend::cpu::{CpuBackend, StoredWeights};
use njoule_runtime::backend::{Backend, Batch, BlockId, Capacity, Quant, SeqSpan, StepOutput};
use safetensors::SafeTensors;

/// Name; what `auto` makes of its down projection; whether that is exact. (The other inputs have one group of columns,
/// in which order does not matter.)
const FORMS: [(&str, &str, bool); 11] = [
    ("gptq", "int4-g32", true),
    ("gptq_8bit", "int8-g32", true),
    ("gptq_desc_act", "int8-g32", false),
    ("gptq_v2_asym", "int8-g32", true),
    ("awq", "int8-g32", true),
    ("ct_int8", "int8-g32", true),
    ("ct_fp8", "bf16", false),
    ("ct_fp8_tensor", "bf16", false),
    ("ct_int4", "int4-g32", true),
    ("ct_int4_asym", "int8-g32", false),
    ("fp8_blocks", "bf16", false),
];

fn dir(form: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/quantized").join(form)
}

fn open(form: &str) -> (Checkpoint, Program) {
    let checkpoint = Checkpoint::open(&dir(form)).unwrap_or_else(|e| panic!("{form}: {e}"));
    let program = checkpoint.config.program();
    (checkpoint, program)
}

fn notes(form: &str, quant: Quant) -> Vec<String> {
    let (checkpoint, program) = open(form);
    StoredWeights::notes(&program, checkpoint.weights.as_ref(), quant).unwrap()
}

/// Logits at every position of the golden prompt, and what they should be.
fn logits(form: &str, kernels: &Kernels, quant: Quant) -> (Vec<f32>, Vec<f32>) {
    let (checkpoint, program) = open(form);
    let bytes = std::fs::read(dir(form).join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let (ids, _) = golden.tensor("input_ids").unwrap().data().as_chunks::<8>();
    let tokens: Vec<u32> = ids.iter().map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap()).collect();
    let (want, _) = golden.tensor("logits").unwrap().data().as_chunks::<4>();
    let want = want.iter().map(|b| f32::from_le_bytes(*b)).collect();

    let n = tokens.len();
    let backend = CpuBackend::new(NonZero::new(2).unwrap(), quant).unwrap().with_isa(kernels.isa).unwrap();
    let capacity = Capacity { blocks: 2, block_len: 32, max_rows: 16, max_seqs: 1, max_outputs: 16, max_len: 64 };
    let mut executor = backend.load(&program, checkpoint.weights.as_ref(), capacity).unwrap();
    let range = || 0..u32::try_from(n).unwrap();
    let batch = Batch {
        tokens,
        positions: range().collect(),
        slots: range().collect(),
        seqs: vec![SeqSpan { rows: 0..n, context: n, table: 0..1, rope_len: 64 }],
        tables: vec![BlockId(0)],
        outputs: range().collect(),
        ..Batch::default()
    };
    let mut out = StepOutput::default();
    executor.submit(&batch).unwrap();
    executor.collect(&mut out).unwrap();
    ((0..out.rows).flat_map(|i| out.row(i).to_vec()).collect(), want)
}

#[test]
fn dequantised_logits_equal_the_reference() {
    let mut failures = vec![];
    for (form, ..) in FORMS {
        for kernels in Kernels::available() {
            let (got, want) = logits(form, kernels, Quant::None);
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            if !(got.len() == want.len() && worst < 1e-3) {
                failures.push(format!("{form} {}: off by {worst}", kernels.isa.name()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn quantised_logits_stay_near_the_reference() {
    // Activations of 8 bits and a cache of 16, on a model of width 32 with random weights. Logits range over 7 and have
    // a deviation of 1.2: that is what a wrong scale or order of codes is off by.
    let mut failures = vec![];
    for (form, ..) in FORMS {
        for (quant, bound) in [(Quant::Auto, 0.06), (Quant::Int8, 0.06), (Quant::Bf16, 0.06), (Quant::Int4, 0.5)] {
            for kernels in Kernels::available() {
                let (got, want) = logits(form, kernels, quant);
                let mean = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).sum::<f32>() / want.len() as f32;
                if !(got.len() == want.len() && mean < bound) {
                    failures.push(format!("{form} {quant:?} {}: off by {mean} on average", kernels.isa.name()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn auto_keeps_every_value_where_it_says_so() {
    let mut failures = vec![];
    for (form, name, exact) in FORMS {
        let (checkpoint, program) = open(form);
        let source = checkpoint.weights.as_ref();
        let stored = StoredWeights::load(&program, source, Quant::Auto).unwrap();
        let mut equal = true;
        for (i, decl) in program.weights.iter().enumerate().filter(|(_, d)| d.usage == WeightUse::Linear) {
            let packed = stored.matrix(WeightId(u32::try_from(i).unwrap()));
            let view = source.get(decl).unwrap();
            let (mut want, mut got) = (vec![f32::NAN; decl.cols], vec![f32::NAN; decl.cols]);
            for row in 0..decl.rows {
                view.read_f32(row..row + 1, &mut want);
                packed.row_f32(row, &mut got);
                equal &= got == want;
            }
            if decl.name.ends_with("down_proj.weight") && packed.stored().name() != name {
                failures.push(format!("{form}: {} is {}", decl.name, packed.stored().name()));
            }
        }
        let says = !notes(form, Quant::Auto).iter().any(|n| n.contains(" weight") && !n.contains("held exactly"));
        if (equal, says) != (exact, exact) {
            failures.push(format!("{form}: all values are kept: {equal}; the note says so: {says}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn notes_say_what_becomes_of_the_codes() {
    let last = |form, quant| notes(form, quant).pop().unwrap();
    assert_eq!(last("gptq", Quant::Auto), "gptq int4-g32: 7 weights held exactly as int4-g32");
    assert_eq!(last("gptq", Quant::None), "gptq int4-g32: 7 weights dequantised to f32");
    assert_eq!(last("gptq", Quant::Int8), "gptq int4-g32: 7 weights held exactly as int8-g32");
    assert_eq!(
        notes("gptq_desc_act", Quant::Auto)[0],
        "gptq int4-g32: 1 weight dequantised and quantised anew to int8-g32: its columns are reordered"
    );
    assert_eq!(
        last("awq", Quant::Int4),
        "awq int4-g32: 7 weights held as int4-g32-min: codes kept, scales and minima (scale times zero point) in f16"
    );
    assert_eq!(
        last("ct_int4_asym", Quant::Auto),
        "compressed-tensors int4-g32: 7 weights held as int8-g32: codes kept, scales rounded to f16"
    );
    assert_eq!(last("fp8_blocks", Quant::Auto), "fp8 fp8-b24x48: 7 weights dequantised and rounded to bf16");
    let activations = notes("ct_int8", Quant::Auto);
    assert!(activations.len() == 2 && activations[0].contains("int8 per token"), "{activations:?}");
}
