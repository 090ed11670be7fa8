//! Quantised checkpoints against the values of the projects that define their forms (testdata/quantized/make.py), and
//! against files that lie.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::config::Quantization;
use crate::fixtures;
use crate::program::{Parallel, View, WeightUse};
use crate::weights::safetensors::SafetensorsSource;
use crate::weights::{Encoding, GgmlType, Holds, WeightRows, WeightSource, dequant};

const FORMS: [&str; 11] = [
    "gptq",
    "gptq_8bit",
    "gptq_desc_act",
    "gptq_v2_asym",
    "awq",
    "ct_int8",
    "ct_fp8",
    "ct_fp8_tensor",
    "ct_int4",
    "ct_int4_asym",
    "fp8_blocks",
];
const K: &str = "model.layers.0.self_attn.k_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn linear(name: &str, rows: usize, cols: usize) -> WeightDecl {
    let (view, usage) = (View::whole(rows), WeightUse::Linear);
    WeightDecl { name: name.to_owned(), rows, cols, view, experts: None, usage, parallel: Parallel::Replicated }
}

fn open(form: &str) -> SafetensorsSource {
    of_dir(&fixtures::path("quantized").join(form), &fixtures::config_json(&format!("quantized/{form}")))
}

fn of_dir(dir: &Path, config: &Value) -> SafetensorsSource {
    SafetensorsSource::open(dir).unwrap().quantized(Quantization::from_hf_json(config).unwrap())
}

fn mxfp4_config() -> Value {
    json!({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}})
}

fn experts(name: &str) -> WeightDecl {
    WeightDecl { experts: Some(2), view: View::whole(6).transposed(), ..linear(name, 6, 64) }
}

fn golden(form: &str, name: &str) -> Vec<f32> {
    let bytes = fs::read(fixtures::path("quantized").join(form).join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (values, _) = tensors.tensor(name).unwrap().data().as_chunks::<4>();
    values.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn read(view: &dyn WeightRows) -> Vec<f32> {
    let (rows, cols) = view.shape();
    let mut out = vec![f32::NAN; rows * cols];
    view.read_f32(0..rows, &mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_form_is_read_bit_for_bit_as_its_own_project_reads_it() {
    let mut failures = vec![];
    for form in FORMS {
        let source = open(form);
        for (name, rows, cols) in [(K, 32, 32), (DOWN, 32, 64)] {
            let view = source.get(&linear(name, rows, cols)).unwrap();
            if bits(&read(&*view)) != bits(&golden(form, name)) {
                failures.push(format!("{form} {name}"));
            }
        }
    }
    let source = of_dir(&fixtures::path("quantized/mxfp4"), &mxfp4_config());
    for name in ["usual", "every"] {
        if bits(&read(&*source.get(&experts(name)).unwrap())) != bits(&golden("mxfp4", name)) {
            failures.push(name.to_owned());
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn blocks_hold_what_they_say_they_hold() {
    use Holds::{Exactly, Not, Rounded};
    let (varies, wide) = (Not("its zero points vary"), Not("its codes have more than 4 bits"));
    let (floats, reordered) = (Not("its codes are floats"), Not("its columns are reordered"));
    for (form, q4_0, q4_1, q8_0) in [
        ("gptq", Exactly, Rounded, Exactly),
        ("gptq_8bit", wide, wide, Exactly),
        ("gptq_desc_act", reordered, reordered, reordered),
        ("gptq_v2_asym", varies, Rounded, Exactly),
        ("awq", varies, Rounded, Exactly),
        ("ct_int8", wide, wide, Exactly),
        ("ct_fp8", floats, floats, floats),
        ("ct_int4", Exactly, Rounded, Exactly),
        // Scales of f32 bits.
        ("ct_int4_asym", varies, Rounded, Rounded),
    ] {
        let source = open(form);
        let view = source.get(&linear(DOWN, 32, 64)).unwrap();
        let values = read(&*view);
        for (kind, want) in [(GgmlType::Q4_0, q4_0), (GgmlType::Q4_1, q4_1), (GgmlType::Q8_0, q8_0)] {
            assert_eq!(view.holds(kind), want, "{form} {kind:?}");
            let mut blocks = vec![];
            let tolerance = match want {
                Not(_) => continue,
                Exactly => 0.0,
                // A unit in the last place of f16, of the minimum for Q4_1.
                Rounded => 2f32.powi(-10),
            };
            view.read_blocks(0..32, kind, &mut blocks);
            let mut decoded = vec![f32::NAN; values.len()];
            dequant::decode(Encoding::GgufBlock(kind), &blocks, &mut decoded);
            let largest = values.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
            for (i, (got, want)) in decoded.iter().zip(&values).enumerate() {
                assert!((got - want).abs() <= tolerance * largest, "{form} {kind:?} value {i}: {got}, not {want}");
            }
            // Any part of the rows is the same part of the blocks.
            let per_row = blocks.len() / 32;
            let mut some = vec![];
            view.read_blocks(5..23, kind, &mut some);
            assert!(some == blocks[5 * per_row..23 * per_row], "{form} {kind:?}");
        }
    }
    let source = of_dir(&fixtures::path("quantized/mxfp4"), &mxfp4_config());
    for (name, want) in [("usual", Exactly), ("every", Rounded)] {
        assert_eq!(source.get(&experts(name)).unwrap().holds(GgmlType::Q8_0), want, "{name}");
    }
}

#[test]
fn views_pick_rows_of_quantised_matrices() {
    for form in FORMS {
        let (source, all) = (open(form), golden(form, DOWN));
        let rows = |view: View, n: usize| WeightDecl { view, ..linear(DOWN, n, 64) };
        for (view, n) in [(View::part(3, 7, 32), 7), (View::every(1, (2, 5), 32), 12)] {
            let picked = source.get(&rows(view, n)).unwrap();
            let want: Vec<f32> = (0..n).flat_map(|r| all[view.row(r) * 64..][..64].to_vec()).collect();
            assert_eq!(bits(&read(&*picked)), bits(&want), "{form} {view:?}");
            let mut chunk = vec![f32::NAN; 3 * 64];
            picked.read_f32(2..5, &mut chunk);
            assert_eq!(bits(&chunk), bits(&want[2 * 64..5 * 64]), "{form} {view:?}");
            picked.release(0..n);
        }
        assert!(source.get(&rows(View::part(30, 7, 32), 7)).is_err(), "{form}: beyond the end");
    }
}

#[test]
fn forms_of_linear_maps_alone_are_not_taken_for_transposed_tensors() {
    // Square: no shape would tell.
    let transposed = WeightDecl { view: View::whole(32).transposed(), ..linear(K, 32, 32) };
    for form in FORMS {
        let error = open(form).get(&transposed).err().map(|e| e.to_string());
        match form.starts_with("gptq") || form == "awq" {
            true => assert_eq!(error, None, "{form}"),
            false => assert!(error.is_some_and(|e| e.contains("transposed") && e.contains("k_proj")), "{form}"),
        }
    }
}

#[test]
fn views_pick_rows_of_every_expert() {
    // As gpt-oss has gate and up: interleaved, in a tensor that would be transposed were it plain.
    let source = of_dir(&fixtures::path("quantized/mxfp4"), &mxfp4_config());
    let all = golden("mxfp4", "usual");
    let ups = WeightDecl { rows: 3, view: View::every(1, (1, 2), 6).transposed(), ..experts("usual") };
    let want: Vec<f32> = [1, 3, 5, 7, 9, 11].iter().flat_map(|r| all[r * 64..][..64].to_vec()).collect();
    let view = source.get(&ups).unwrap();
    assert_eq!((view.shape(), bits(&read(&*view))), ((6, 64), bits(&want)));
    let (mut blocks, mut decoded) = (vec![], vec![f32::NAN; want.len()]);
    view.read_blocks(0..6, GgmlType::Q8_0, &mut blocks);
    dequant::decode(Encoding::GgufBlock(GgmlType::Q8_0), &blocks, &mut decoded);
    assert_eq!(decoded, want);
}

#[test]
fn experts_of_their_own_tensors_stack() {
    for form in FORMS {
        let source = open(form);
        let name = "model.layers.0.mlp.{}_proj.weight";
        // gate, up: named as if they were numbers.
        let dir = renamed(form, &[("gate_proj", "0_proj"), ("up_proj", "1_proj")]);
        let stacked = of_dir(dir.path(), &fixtures::config_json(&format!("quantized/{form}")));
        let stack = stacked.get(&WeightDecl { experts: Some(2), ..linear(name, 64, 32) }).unwrap();
        let one = |n: &str| source.get(&linear(&name.replace("{}", n), 64, 32)).map(|v| read(&*v)).unwrap();
        let want = [one("gate"), one("up")].concat();
        assert_eq!(bits(&read(&*stack)), bits(&want), "{form}");
        if stack.holds(GgmlType::Q8_0) == Holds::Exactly {
            let (mut blocks, mut decoded) = (vec![], vec![f32::NAN; want.len()]);
            stack.read_blocks(0..128, GgmlType::Q8_0, &mut blocks);
            dequant::decode(Encoding::GgufBlock(GgmlType::Q8_0), &blocks, &mut decoded);
            assert_eq!(decoded, want, "{form}");
        }
    }
}

#[test]
fn stored_types_count_all_parts() {
    let mut failures = vec![];
    for (form, want) in [
        ("gptq", "int4-g32"),
        ("gptq_8bit", "int8-channel"),
        ("awq", "int4-g32"),
        ("ct_int8", "int8-channel"),
        ("ct_fp8", "fp8-channel"),
        ("ct_fp8_tensor", "fp8-tensor"),
        ("ct_int4_asym", "int4-g32"),
        ("fp8_blocks", "fp8-b24x48"),
    ] {
        let checkpoint = Checkpoint::open(&fixtures::path("quantized").join(form)).unwrap();
        let types: Vec<_> = checkpoint.stored.iter().map(|(e, n)| (e.to_string(), n)).collect();
        // Embedding and norms are plain, and all there is beside the parts.
        let plain: u64 = types.iter().filter(|(e, _)| e != want).map(|(_, n)| n).sum();
        if types.first().is_none_or(|(e, _)| e != want) || plain != 2 * 32 * (64 + 3) {
            failures.push(format!("{form}: {types:?}"));
        }
        assert_eq!(
            checkpoint.weights.quantization().map(Quantization::name),
            Some(if form.starts_with("ct") { "compressed-tensors" } else { form.split('_').next().unwrap() })
        );
    }
    assert!(failures.is_empty(), "{failures:?}");
}

/// The tensors of a fixture, to be changed.
fn tensors(form: &str) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(fixtures::path("quantized").join(form).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let owned = |(name, t): (String, TensorView<'_>)| (name, t.dtype(), t.shape().to_vec(), t.data().to_vec());
    tensors.tensors().into_iter().map(owned).collect()
}

fn dir_of(tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(n, t, s, b)| (n.as_str(), TensorView::new(*t, s.clone(), b).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

fn renamed(form: &str, names: &[(&str, &str)]) -> tempfile::TempDir {
    let mut tensors = tensors(form);
    for (name, ..) in &mut tensors {
        names.iter().for_each(|(from, to)| *name = name.replace(from, to));
    }
    dir_of(&tensors)
}

/// The error of [`DOWN`] in a fixture where `change` was made to the tensor with this ending.
fn error(form: &str, ending: &str, change: impl Fn(&mut Dtype, &mut Vec<usize>, &mut Vec<u8>)) -> String {
    let mut tensors = tensors(form);
    let base = DOWN.strip_suffix("weight").unwrap();
    let found = tensors.iter_mut().find(|(name, ..)| *name == format!("{base}{ending}"));
    let (_, dtype, shape, bytes) = found.unwrap();
    change(dtype, shape, bytes);
    let dir = dir_of(&tensors);
    let source = of_dir(dir.path(), &fixtures::config_json(&format!("quantized/{form}")));
    source.get(&linear(DOWN, 32, 64)).err().map_or_else(String::new, |e| e.to_string())
}

#[test]
fn parts_that_disagree_are_named_with_what_is_expected() {
    for (form, ending, expected) in [
        ("gptq", "qweight", "[8, 32]"),
        ("gptq", "qzeros", "[2, 4]"),
        ("gptq", "scales", "[2, 32]"),
        ("gptq", "g_idx", "[64]"),
        ("gptq_8bit", "qweight", "[16, 32]"),
        ("awq", "qweight", "[64, 4]"),
        ("awq", "qzeros", "[2, 4]"),
        ("awq", "scales", "[2, 32]"),
        ("ct_int8", "weight", "[32, 64]"),
        ("ct_int8", "weight_scale", "[32, 1]"),
        ("ct_int4_asym", "weight_packed", "[32, 8]"),
        ("ct_int4_asym", "weight_scale", "[32, 2]"),
        ("ct_int4_asym", "weight_zero_point", "[4, 2]"),
        ("ct_fp8", "weight", "[32, 64]"),
        ("fp8_blocks", "weight_scale_inv", "[2, 2]"),
    ] {
        // A row less, and another type of the same width.
        let cut = error(form, ending, |_, shape, bytes| {
            bytes.truncate(bytes.len() / shape[0] * (shape[0] - 1));
            shape[0] -= 1;
        });
        assert!(cut.contains(ending) && cut.contains(expected), "{form} {ending}: {cut}");
        let other = error(form, ending, |dtype, shape, bytes| {
            *dtype = Dtype::BOOL;
            *bytes = vec![0; shape.iter().product()];
        });
        // A `weight` of another type is looked at as a plain tensor.
        assert!(other.contains(ending) && other.contains("BOOL"), "{form} {ending}: {other}");
    }
}

#[test]
fn missing_parts_are_named() {
    for (form, ending) in [
        ("gptq", "qzeros"),
        ("gptq", "scales"),
        ("awq", "qzeros"),
        ("awq", "scales"),
        ("ct_int8", "weight_scale"),
        ("ct_int4_asym", "weight_zero_point"),
        ("fp8_blocks", "weight_scale_inv"),
    ] {
        let dir = renamed(form, &[(&format!(".{ending}"), ".gone")]);
        let source = of_dir(dir.path(), &fixtures::config_json(&format!("quantized/{form}")));
        let error = source.get(&linear(DOWN, 32, 64)).err().unwrap().to_string();
        let stem = ending.strip_suffix("_inv").unwrap_or(ending);
        assert!(error.contains(stem) && error.contains("missing"), "{form} {ending}: {error}");
    }
    // Without a config that says how to read them.
    let dir = fixtures::path("quantized/gptq");
    let error = of_dir(&dir, &json!({})).get(&linear(DOWN, 32, 64)).err().unwrap().to_string();
    assert!(error.contains("down_proj.qweight") && error.contains("quantization_config"), "{error}");
}

#[test]
fn groups_and_zero_points_that_mean_nothing_are_refused() {
    let set = |at: usize, value: i32| {
        move |_: &mut Dtype, _: &mut Vec<usize>, b: &mut Vec<u8>| {
            b[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes())
        }
    };
    for group in [2, -1, i32::MAX] {
        let error = error("gptq", "g_idx", set(37, group));
        assert!(
            error.contains("g_idx") && error.contains("column 37") && error.contains(&group.to_string()),
            "{error}"
        );
    }
    // Zero point 0, less one: with or without a borrow from the next.
    let ambiguous = error("gptq", "qzeros", set(5, 0x7777_f777));
    assert!(ambiguous.contains("qzeros") && ambiguous.contains("group 1, column 11"), "{ambiguous}");
    // Of the other form it is one of sixteen.
    assert_eq!(error("gptq_v2_asym", "qzeros", set(5, 0x7777_f777)), "");
    let shape = error("ct_int4", "weight_shape", |_, _, b| b[0] = 31);
    assert!(shape.contains("weight_shape") && shape.contains("(31, 64)") && shape.contains("(32, 64)"), "{shape}");

    let with_group = |form: &str, key: &str, n: i64| {
        let mut config = fixtures::config_json(&format!("quantized/{form}"));
        config["quantization_config"][key] = n.into();
        let source = of_dir(&fixtures::path("quantized").join(form), &config);
        source.get(&linear(DOWN, 32, 64)).err().unwrap().to_string()
    };
    let error = with_group("awq", "group_size", 48);
    assert!(error.contains("groups of 48") && error.contains("64 columns"), "{error}");
    assert!(with_group("gptq", "group_size", 24).contains("[3, 4]"));
}

/// Reads every matrix of a checkpoint in every way.
fn exercise(source: &SafetensorsSource, decls: &[WeightDecl]) {
    for decl in decls {
        let Ok(view) = source.get(decl) else { continue };
        read(&*view);
        for kind in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q8_0] {
            if !matches!(view.holds(kind), Holds::Not(_)) {
                let mut blocks = vec![];
                view.read_blocks(0..view.shape().0, kind, &mut blocks);
                let row = Encoding::GgufBlock(kind).row_bytes(decl.cols.next_multiple_of(32)).unwrap();
                assert_eq!(blocks.len(), view.shape().0 * row);
            }
        }
        view.release(0..view.shape().0);
    }
}

fn decls() -> Vec<WeightDecl> {
    let picked = WeightDecl { view: View::every(1, (2, 5), 32), ..linear(DOWN, 12, 64) };
    let (mut vector, mut stack) = (linear(DOWN, 1, 64), linear(DOWN, 32, 64));
    (vector.usage, stack.experts) = (WeightUse::Vector, Some(2));
    let odd = [(31, 64), (32, 63), (32, 0), (1, 1), (64, 32)].map(|(rows, cols)| linear(DOWN, rows, cols));
    [linear(K, 32, 32), linear(DOWN, 32, 64), picked, vector, stack].into_iter().chain(odd).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any shapes, types and data under any method's names are a value or an error.
    #[test]
    fn mutated_parts_are_a_value_or_an_error(
        form in prop::sample::select(FORMS.to_vec()),
        method in prop::sample::select(FORMS.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<[u8; 4]>()), 0..8),
        shapes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..5, 0usize..70, 0usize..70), 0..3),
        group in prop_oneof![Just(None), (-1i64..100).prop_map(Some)],
    ) {
        let mut tensors = tensors(form);
        for (tensor, at, value) in changes {
            let n = tensors.len();
            let bytes = &mut tensors[tensor.index(n)].3;
            if bytes.len() >= 4 {
                let at = at.index(bytes.len() / 4) * 4;
                bytes[at..at + 4].copy_from_slice(&value);
            }
        }
        for (tensor, dtype, rows, cols) in shapes {
            let n = tensors.len();
            let types = [(Dtype::I32, 4), (Dtype::F16, 2), (Dtype::I8, 1), (Dtype::F8_E4M3, 1), (Dtype::F32, 4)];
            let tensor = &mut tensors[tensor.index(n)];
            let (dtype, width) = types[dtype];
            (tensor.1, tensor.2, tensor.3) = (dtype, vec![rows, cols], vec![7; rows * cols * width]);
        }
        let mut config = fixtures::config_json(&format!("quantized/{method}"));
        if let Some(group) = group && config["quantization_config"].get("group_size").is_some() {
            config["quantization_config"]["group_size"] = group.into();
        }
        let Ok(quantization) = Quantization::from_hf_json(&config) else { return Ok(()) };
        let dir = dir_of(&tensors);
        let source = SafetensorsSource::open(dir.path()).unwrap().quantized(quantization);
        exercise(&source, &decls());
        source.stored_types();
    }

    #[test]
    fn mutated_mxfp4_is_a_value_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 16),
        shape in prop::collection::vec(0usize..9, 0..5),
    ) {
        let n: usize = shape.iter().product();
        let mut tensors = tensors("mxfp4");
        let blocks = tensors.iter_mut().find(|(name, ..)| name == "usual_blocks").unwrap();
        if bytes[0] % 2 == 0 {
            (blocks.2, blocks.3) = (shape, vec![bytes[1]; n]);
        }
        let scales = tensors.iter_mut().find(|(name, ..)| name == "usual_scales").unwrap();
        scales.3[..16].copy_from_slice(&bytes);
        let dir = dir_of(&tensors);
        exercise(&of_dir(dir.path(), &mxfp4_config()), &[experts("usual"), linear("usual", 6, 64), linear("usual", 6, 0)]);
    }
}
