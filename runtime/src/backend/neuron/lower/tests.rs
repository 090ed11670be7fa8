//! Every family lowers to modules that keep the targets' rules and the contract of their interface.

use std::path::Path;

use njoule_hlo::Target;
use njoule_models::ModelConfig;
use njoule_models::program::Program;

use super::*;
use crate::backend::neuron::profile::{CacheWrite, RopeAngles, RowRead};
use crate::backend::neuron::{CacheShape, Profile, Sharded, shard};

/// Programs of the configs in `testdata`.
pub(in crate::backend::neuron) fn programs() -> Vec<(String, Program)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let mut programs = vec![];
    for dir in [root.clone(), root.join("variants")] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let Ok(text) = std::fs::read_to_string(path.join("config.json")) else { continue };
            let config = ModelConfig::from_hf_json(&serde_json::from_str(&text).unwrap()).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            programs.push((name, config.program()));
        }
    }
    programs.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(programs.len() > 20);
    programs
}

/// A program's part of `tp` cores.
pub(in crate::backend::neuron) fn sharded(name: &str, program: &Program, tp: usize) -> Sharded {
    shard(program, tp).unwrap_or_else(|e| panic!("{name} on {tp}: {e}"))
}

const CLASS: CacheShape = CacheShape { rows: 4, positions: 96 };
const LONGER: CacheShape = CacheShape { rows: 2, positions: 128 };

fn spec(tp: usize, weights: Quant, kv: KvType) -> ModelSpec {
    ModelSpec {
        target: Target::Trn1,
        tp,
        weights,
        kv,
        candidates: 20,
        profile: Profile::default(),
        shares: false,
        streams: false,
    }
}

fn modules() -> [ModuleSpec; 4] {
    let module = |kind, len| ModuleSpec::of(CLASS, kind, len);
    let together = [Part { class: CLASS, rows: 3, len: 64 }, Part { class: LONGER, rows: 2, len: 0 }];
    [
        ModuleSpec { biases: 4, mask: true, ..module(ModuleKind::Decode { batch: 3 }, 64) },
        module(ModuleKind::Prefill { tokens: 16 }, 0),
        module(ModuleKind::Score { tokens: 8 }, 64),
        ModuleSpec { biases: 4, mask: true, ..ModuleSpec::decode(together.into()) },
    ]
}

#[test]
fn every_family_lowers_on_every_target_and_degree() {
    for (name, program) in programs() {
        for (tp, weights, kv) in [
            (1, Quant::None, KvType::F32),
            (2, Quant::Bf16, KvType::Bf16),
            (3, Quant::Int8, KvType::Int8),
            (4, Quant::Bf16, KvType::Bf16),
            (7, Quant::Int8, KvType::Bf16),
        ] {
            let sharded = sharded(&name, &program, tp);
            for module in modules() {
                let lowered =
                    lower(&sharded, &spec(tp, weights, kv), &module).unwrap_or_else(|e| panic!("{name}: {e}"));
                for target in Target::ALL {
                    verify(&lowered.module, target).unwrap_or_else(|e| panic!("{name} for {target}: {e}"));
                }
                ports_are_the_modules_own(&lowered);
            }
        }
    }
}

fn ports_are_the_modules_own(lowered: &Lowered) {
    let signature = &lowered.module.signature;
    assert_eq!(signature.parameters.len(), lowered.inputs.len());
    for (shape, port) in signature.parameters.iter().zip(&lowered.inputs) {
        let shape = shape.array().unwrap();
        assert_eq!((shape.dtype(), shape.dims().to_vec()), (port.dtype, port.dims.clone()), "{:?}", port.role);
    }
    let caches: Vec<usize> =
        (0..lowered.inputs.len()).filter(|i| matches!(lowered.inputs[*i].role, Input::Cache(..))).collect();
    let first = lowered.outputs.iter().position(|o| matches!(o.role, Output::Cache(..))).unwrap();
    assert_eq!(caches.len(), lowered.outputs.len() - first);
    for (i, parameter) in caches.into_iter().enumerate() {
        let (Input::Cache(class, a, b), Output::Cache(of, c, d)) =
            (lowered.inputs[parameter].role, lowered.outputs[first + i].role)
        else {
            panic!("caches come last")
        };
        assert_eq!((class, a, b), (of, c, d));
        assert_eq!(lowered.inputs[parameter].dims[..2], [class.rows, class.positions]);
        let alias = lowered.module.aliases.iter().find(|alias| alias.parameter == parameter).unwrap();
        assert_eq!(alias.output, Some(first + i));
    }
}

#[test]
fn collectives_of_a_dense_step_are_two_sums_a_layer_one_of_the_embedding_and_the_choices() {
    for (name, program) in programs() {
        if !(name.starts_with("llama") || name == "gpt2" || name.starts_with("gemma") || name == "olmo2") {
            continue;
        }
        let sharded = sharded(&name, &program, 2);
        // Several classes have as many: between attentions all rows are one product.
        for module in [&modules()[0], &modules()[3]] {
            let lowered = lower(&sharded, &spec(2, Quant::Bf16, KvType::Bf16), module).unwrap();
            let all = || lowered.module.computations.iter().flat_map(|c| &c.instructions);
            let count = |opcode: &str| all().filter(|i| i.op.name() == opcode).count();
            // Norms of whole rows of queries and keys sum once more each.
            let of_norms = if name == "olmo2" { 2 } else { 0 };
            assert_eq!(count("all-reduce"), (2 + of_norms) * program.layers.len() + 1, "{name}");
            // Values and ids of the greedy choice and of the candidates, and log-sum-exp.
            assert_eq!(count("all-gather"), 5, "{name}");
        }
    }
}

#[test]
fn a_module_does_not_depend_on_anything_but_its_specs() {
    let (_, program) = programs().into_iter().find(|(name, _)| name == "gpt_oss").unwrap();
    let sharded = shard(&program, 2).unwrap();
    let bytes = |module: &ModuleSpec| {
        let lowered = lower(&sharded, &spec(2, Quant::Bf16, KvType::Int8), module).unwrap();
        njoule_hlo::encode(&lowered.module)
    };
    for module in modules() {
        assert_eq!(bytes(&module), bytes(&module));
    }
}

/// A form is there for what refuses the others: no module may have them all the same.
#[test]
fn modules_of_a_form_have_none_of_the_operations_that_it_does_without() {
    let default = Profile::default();
    let forms: [(Profile, &[&str]); 6] = [
        (Profile { cache_write: CacheWrite::UpdateSlice, ..default }, &["scatter"]),
        (Profile { cache_write: CacheWrite::Select, ..default }, &["scatter", "dynamic-update-slice"]),
        (Profile { row_read: RowRead::Gather, ..default }, &["dynamic-slice"]),
        (Profile { lookup: Lookup::OneHot, ..default }, &["gather"]),
        (Profile { rope: RopeAngles::Table, ..default }, &["cosine", "sine"]),
        (default, &["custom-call"]),
    ];
    for (name, program) in programs() {
        let sharded = sharded(&name, &program, 2);
        for (profile, without) in &forms {
            for kv in [KvType::Bf16, KvType::Int8] {
                let spec = ModelSpec { profile: *profile, ..spec(2, Quant::Bf16, kv) };
                for module in modules() {
                    let lowered = lower(&sharded, &spec, &module).unwrap();
                    let all = lowered.module.computations.iter().flat_map(|c| &c.instructions);
                    let found: Vec<&str> = all.map(|i| i.op.name()).filter(|op| without.contains(op)).collect();
                    assert!(found.is_empty(), "{name}, {:?}: {found:?} in spite of {profile:?}", module.kind);
                }
            }
        }
    }
}

#[test]
fn what_is_not_lowered_is_refused_by_name() {
    let (_, program) = programs().into_iter().find(|(name, _)| name == "llama_plain").unwrap();
    let sharded = shard(&program, 1).unwrap();
    let good = spec(1, Quant::Bf16, KvType::Bf16);
    let refused = |spec: &ModelSpec, module: &ModuleSpec| lower(&sharded, spec, module).unwrap_err();
    let [decode, prefill, _, together] = modules();
    assert_eq!(refused(&ModelSpec { weights: Quant::Int4, ..good.clone() }, &decode), LowerError::Weights(Quant::Int4));
    assert_eq!(refused(&ModelSpec { kv: KvType::F16, ..good.clone() }, &decode), LowerError::Kv(KvType::F16));
    let degree = refused(&ModelSpec { tp: 2, ..good.clone() }, &decode);
    assert_eq!(degree, LowerError::Degree { sharded: 1, spec: 2 });
    for candidates in [0, 273] {
        let refused = refused(&ModelSpec { candidates, ..good.clone() }, &decode);
        assert_eq!(refused, LowerError::Candidates { candidates, vocab: 272 });
    }
    let parts = |module: ModuleSpec| match refused(&good, &module) {
        LowerError::Parts(what) => what,
        other => panic!("{other}"),
    };
    let wide = parts(ModuleSpec::of(CLASS, ModuleKind::Decode { batch: 5 }, 64));
    assert_eq!(wide, "field `parts[0]`: 5 rows of 64 positions are no part of 4 rows of 96");
    let long = parts(ModuleSpec { kind: ModuleKind::Prefill { tokens: 97 }, ..prefill.clone() });
    assert_eq!(long, "field `parts[0]`: a step of 97 tokens does not fit rows of 96 positions");
    let far = parts(ModuleSpec::of(CLASS, ModuleKind::Decode { batch: 3 }, 97));
    assert_eq!(far, "field `parts[0]`: 3 rows of 97 positions are no part of 4 rows of 96");
    let changed = |change: fn(&mut ModuleSpec)| {
        let mut module = together.clone();
        change(&mut module);
        parts(module)
    };
    assert_eq!(changed(|m| m.parts.clear()), "field `parts` is an empty list");
    assert!(changed(|m| m.parts.reverse()).contains("`parts[1]`: its class is no longer"));
    assert!(changed(|m| m.parts[1] = m.parts[0]).contains("`parts[1]`: its class is no longer"));
    assert!(changed(|m| m.parts[1].rows = 0).contains("`parts[1]`: 0 rows"));
    assert_eq!(changed(|m| m.parts[1].rows = 1), "field `kind` has 5 rows, the `parts` have 4");
    let chunk = changed(|m| m.kind = ModuleKind::Prefill { tokens: 5 });
    assert_eq!(chunk, "field `parts`: a chunk is of one row, not of 5");
    let class = CacheShape { rows: 1 << 13, positions: 1 << 12 };
    let large = ModuleSpec::of(class, ModuleKind::Decode { batch: 3 }, 64);
    assert!(matches!(refused(&good, &large), LowerError::Places { .. }));
    // XLA knows no custom calls.
    let mut custom = ModelSpec { target: Target::Xla, ..good };
    custom.profile.top_k = TopK::Custom;
    assert!(matches!(refused(&custom, &decode), LowerError::Verify(_)));
}
