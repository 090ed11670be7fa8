//! Whole modules as lowering makes them, of models of one layer: what is proven alone works together.
//!
//! Weights and caches are made up so that every activation is about 1: an error of a part shows in the results. Of results
//! the candidates' values, logits and caches are compared; ids are not, since rounding may swap near logits.

use half::bf16;
use njoule_hlo::{DType, Target, Tensor};
use njoule_models::ModelConfig;
use njoule_models::program::{Program, WeightUse};

use crate::backend::neuron::interface::{
    CacheShape, Input, ModelSpec, ModuleKind, ModuleSpec, Output, Port, WeightPart,
};
use crate::backend::neuron::lower::{Lowered, lower};
use crate::backend::neuron::probe::Trial;
use crate::backend::neuron::{Profile, shard};
use crate::backend::{KvType, Quant};

/// SmolLM2-135M's layer, with fewer tokens in its vocabulary.
pub(super) fn layer(profile: &Profile) -> Vec<Trial> {
    let program = program(
        r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
            "num_key_value_heads": 3, "num_hidden_layers": 1, "vocab_size": 2048, "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "max_position_embeddings": 8192, "hidden_act": "silu"}"#,
    );
    all_kinds("probe_layer", &program, Form::bf16(profile))
}

/// Matrices and caches in 8 bits.
pub(super) fn int8(profile: &Profile) -> Vec<Trial> {
    let form = Form { weights: Quant::Int8, kv: KvType::Int8, ..Form::bf16(profile) };
    all_kinds("probe_int8", &program(SMALL), form)
}

/// Sparse biases and masks of allowed tokens.
pub(super) fn constrained(profile: &Profile) -> Vec<Trial> {
    let form = Form { biases: 4, mask: true, ..Form::bf16(profile) };
    vec![trial("probe_constrained", &program(SMALL), form, DECODE)]
}

/// Four experts, two of each token.
pub(super) fn experts(profile: &Profile) -> Vec<Trial> {
    let program = program(
        r#"{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 256, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": false,
            "num_local_experts": 4, "num_experts_per_tok": 2}"#,
    );
    vec![trial("probe_experts", &program, Form::bf16(profile), DECODE)]
}

#[derive(Clone, Copy)]
struct Form {
    weights: Quant,
    kv: KvType,
    biases: usize,
    mask: bool,
    profile: Profile,
}

impl Form {
    fn bf16(profile: &Profile) -> Form {
        Form { weights: Quant::Bf16, kv: KvType::Bf16, biases: 0, mask: false, profile: *profile }
    }
}

fn program(config: &str) -> Program {
    let json = serde_json::from_str(config).expect("JSON of this file");
    ModelConfig::from_hf_json(&json).expect("a config of this file").program()
}

fn all_kinds(name: &str, program: &Program, form: Form) -> Vec<Trial> {
    [DECODE, ModuleKind::Prefill { tokens: 16 }, ModuleKind::Score { tokens: 16 }]
        .map(|kind| trial(name, program, form, kind))
        .to_vec()
}

fn trial(name: &str, program: &Program, form: Form, kind: ModuleKind) -> Trial {
    let Form { weights, kv, biases, mask, profile } = form;
    let spec = ModelSpec { target: TARGET, tp: 1, weights, kv, candidates: 16, profile, shares: false, streams: false };
    let sharded = shard(program, 1).expect("one core has all");
    let module = ModuleSpec { biases, mask, ..ModuleSpec::of(CLASS, kind, LEN) };
    let lowered = lower(&sharded, &spec, &module).expect("models of this file are lowered");
    let Lowered { mut module, inputs, outputs } = lowered;
    let kind = match kind {
        ModuleKind::Decode { .. } => "decode",
        ModuleKind::Prefill { .. } => "prefill",
        ModuleKind::Score { .. } => "score",
    };
    module.name = format!("{name}_{kind}{}", tag(&profile));
    let inputs = inputs.iter().enumerate().map(|(number, port)| input(program, number, port)).collect();
    let is_id = |port: &Port<Output>| matches!(port.role, Output::CandidateIds | Output::Greedy);
    let near = (0..outputs.len()).filter(|i| is_id(&outputs[*i])).collect();
    Trial { module, inputs, runs: 1, tolerance: 2e-2, near }
}

/// What a module's name says of the profile: all but the defaults.
fn tag(profile: &Profile) -> String {
    let fields = |profile: &Profile| match serde_json::to_value(profile) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let usual = fields(&Profile::default());
    let other = fields(profile).into_iter().filter(|(key, form)| usual.get(key) != Some(form));
    other.map(|(key, form)| format!("_{key}_{}", form.as_str().unwrap_or_default())).collect()
}

/// A value for a parameter: positions short of the bucket, everything else made up.
fn input(program: &Program, number: usize, port: &Port<Input>) -> Tensor {
    let n = port.dims.iter().product::<usize>();
    let many = |value: &dyn Fn(usize) -> i32| integers(&port.dims, (0..n).map(value).collect());
    let vocab = program.vocab();
    let at = |i: usize| [LEN - 1, 0, 17, 5][i % 4] as i32;
    match port.role {
        Input::Tokens => many(&|i| ((i * 397 + 11) % vocab) as i32),
        Input::Positions | Input::Slots => many(&at),
        Input::Start => Tensor::scalar(21i32),
        Input::Row => Tensor::scalar(1i32),
        Input::Last => Tensor::scalar(13i32),
        Input::RopeLen => many(&|_| LEN as i32),
        Input::Rank => Tensor::scalar(0i32),
        // The last of each row is unused.
        Input::BiasIds => many(&|i| if i % 4 == 3 { -1 } else { ((i * 61) % vocab) as i32 }),
        Input::Mask => {
            let words = (0..n).map(|i| 0x5a5a_a5a5u32.rotate_left(i as u32 % 32)).collect();
            Tensor::new(&port.dims, words).expect("as many as the dimensions say")
        }
        Input::BiasValues => made_up(number, port, 2.0, 0.0),
        Input::Cache(..) if port.dtype == DType::F32 => made_up(number, port, 1.0 / 127.0, 1.0 / 127.0),
        Input::Cache(..) => made_up(number, port, 1.0, 0.0),
        Input::Weight(_, WeightPart::Scales) => made_up(number, port, 0.0, COLUMN / 127.0),
        Input::Weight(id, WeightPart::Values) => {
            let decl = program.weight(id);
            match decl.usage {
                WeightUse::Vector => made_up(number, port, 0.25, 1.0),
                // Of variance one over the columns.
                _ => made_up(number, port, (3.0 / decl.cols as f32).sqrt(), 0.0),
            }
        }
    }
}

/// Values about `middle`, at most `spread` from it, the same everywhere; integers over their whole range.
fn made_up(number: usize, port: &Port<Input>, spread: f32, middle: f32) -> Tensor {
    let unit = |i: usize| {
        let mut bits = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (number as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03);
        bits = (bits ^ (bits >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((bits >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    };
    let n: usize = port.dims.iter().product();
    let value = |i| middle + spread * unit(i);
    let tensor = match port.dtype {
        DType::S8 => Tensor::new(&port.dims, (0..n).map(|i| (unit(i) * 127.0) as i8).collect()),
        DType::BF16 => Tensor::new(&port.dims, (0..n).map(|i| bf16::from_f32(value(i))).collect()),
        _ => Tensor::new(&port.dims, (0..n).map(value).collect()),
    };
    tensor.expect("as many as the dimensions say")
}

fn integers(dims: &[usize], values: Vec<i32>) -> Tensor {
    if dims.is_empty() {
        Tensor::scalar(values[0])
    } else {
        Tensor::new(dims, values).expect("as many as the dimensions say")
    }
}

const SMALL: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 256, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": true}"#;
const DECODE: ModuleKind = ModuleKind::Decode { batch: 4 };
const CLASS: CacheShape = CacheShape { rows: 4, positions: 96 };
const LEN: usize = 64;
/// Of matrices of 64 columns, about.
const COLUMN: f32 = 0.2;
/// Rules of all chips are the same for these modules; a test holds it.
const TARGET: Target = Target::Trn1;
