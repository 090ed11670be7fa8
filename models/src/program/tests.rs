//! Programs of the families as text, and the invariants that backends rely on.
//!
//! Snapshots lie in `models/tests/snapshots`; `NJOULE_UPDATE_SNAPSHOTS=1 cargo test -p njoule-models` rewrites them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::*;
use crate::config::{Biases, Family, ModelConfig};
use crate::fixtures;

fn config(fixture: &str) -> ModelConfig {
    ModelConfig::from_hf_json(&fixtures::config_json(fixture)).unwrap()
}

fn check_snapshot(name: &str, text: &str) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots")).join(format!("{name}.txt"));
    if std::env::var_os("NJOULE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{text}\n")).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored.trim_end() == text, "{} differs; it is now:\n{text}", path.display());
}

#[test]
fn programs_of_the_families_are_as_recorded() {
    for name in fixtures::CHECKPOINTS {
        check_snapshot(name, &config(name).program().to_string());
    }
    let all_biases = ModelConfig { bias: Biases { qkv: true, o: true, mlp: true }, ..config("llama_tied") };
    check_snapshot("llama_biases", &all_biases.program().to_string());
}

#[test]
fn every_value_is_written_once_before_it_is_read_and_layers_tile_the_middle() {
    for name in fixtures::CHECKPOINTS {
        let p = config(name).program();
        let mut written = HashSet::new();
        for op in &p.ops {
            assert!(op.inputs().iter().all(|v| written.contains(v)), "{name}: {op:?} reads what is not written");
            for out in op.outputs() {
                assert!(written.insert(out), "{name}: {op:?} writes {out:?} again");
            }
            assert!(op.weights().iter().all(|w| (w.0 as usize) < p.weights.len()));
        }
        assert_eq!(written.len(), p.vals.len());
        assert!(written.contains(&p.logits));
        assert_eq!(p.info(p.logits), ValInfo { cols: p.vocab(), rows: RowSet::Outputs });
        let mut read = HashSet::new();
        for w in &p.weights {
            let units = if w.usage == WeightUse::Vector { w.cols } else { w.rows };
            let twice = (0..units).find(|&row| !read.insert((&w.name, w.view.row(row))));
            assert_eq!(twice, None, "{name} reads a row of {w} twice");
        }
        let tensors: HashMap<_, _> = p.weights.iter().map(|w| (&w.name, w.view.of_rows)).collect();
        assert_eq!(read.len(), tensors.values().sum::<usize>(), "{name} leaves rows of a tensor unread");
        assert!(p.layers.windows(2).all(|w| w[0].end == w[1].start));
        assert_eq!(p.caches.len(), p.layers.len());
        let used: HashSet<_> = p.ops.iter().flat_map(Op::weights).collect();
        assert_eq!(used.len(), p.weights.len(), "{name} has unused weights");
    }
}

#[test]
fn only_rows_with_logits_go_beyond_the_last_attention() {
    let p = config("llama_plain").program();
    let attend = p.ops.iter().rposition(|op| matches!(op, Op::Attend { .. })).unwrap();
    let taken = p.ops[attend + 1..].iter().filter(|op| matches!(op, Op::TakeOutputs { .. })).count();
    assert_eq!(taken, 2, "residual stream and attention");
    for op in p.ops[attend + 1..].iter().filter(|op| !matches!(op, Op::TakeOutputs { .. })) {
        assert!(op.outputs().iter().all(|v| p.info(*v).rows == RowSet::Outputs), "{op:?}");
    }
}

#[test]
fn between_layers_passes_what_one_writes_and_the_next_reads() {
    for name in fixtures::CHECKPOINTS {
        let p = config(name).program();
        let streams = p.streams();
        // A layer's input and what is still to be added to it, or their sum.
        let of_layers = streams.len() as f32 / (p.layers.len() - 1) as f32;
        assert!((1.0..=2.0).contains(&of_layers), "{name}: {streams:?} between {} layers", p.layers.len());
        for layer in &p.layers[1..] {
            let ops = &p.ops[layer.clone()];
            let own: HashSet<_> = ops.iter().flat_map(Op::outputs).collect();
            let below = ops.iter().flat_map(Op::inputs).filter(|val| !own.contains(val));
            below.for_each(|val| assert!(streams.contains(&val), "{name}: {val:?} comes from below {layer:?}"));
        }
    }
}

#[test]
fn fingerprints_see_every_number() {
    let base = config("qwen3");
    let mut seen = HashSet::from([base.program().fingerprint()]);
    let mut windows = base.windows.clone();
    windows[1] = Some(7);
    for changed in [
        ModelConfig { norm_eps: 2e-6, ..base.clone() },
        ModelConfig { tied: !base.tied, ..base.clone() },
        ModelConfig { vocab: base.vocab + 1, ..base.clone() },
        ModelConfig { windows, ..base.clone() },
        ModelConfig { head_norms: false, ..base.clone() },
        ModelConfig { family: Family::Llama, ..base.clone() },
        ModelConfig { rope: crate::config::RopeConfig { theta: 1e4, ..base.rope.clone() }, ..base.clone() },
    ] {
        assert!(seen.insert(changed.program().fingerprint()), "{changed:?}");
    }
    assert_eq!(base.program().fingerprint(), config("qwen3").program().fingerprint());
}

#[test]
#[should_panic(expected = "model definition error in `mlp.`: matrix takes the input's columns")]
fn mistakes_in_a_model_file_panic_with_the_scope() {
    let mut t = crate::Tracer::new("x");
    let table = t.weight("e", 4, 8, WeightUse::Vocabulary, Parallel::Column);
    let x = t.embed(table);
    t.scope("mlp", |t| {
        let w = t.linear_weight("w", (8, 9), false, Parallel::Column);
        t.linear(x, w)
    });
}
