//! Safetensors sources over fixtures, broken files and arbitrary bytes.

use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::fixtures;
use crate::program::{EmbedIndex, Op, Parallel, View, WeightUse};
use crate::{ModelConfig, WeightId};

fn decl(name: &str, rows: usize, cols: usize) -> WeightDecl {
    let usage = if rows == 1 { WeightUse::Vector } else { WeightUse::Linear };
    let view = View::whole(if usage == WeightUse::Vector { cols } else { rows });
    WeightDecl { name: name.to_owned(), rows, cols, view, experts: None, usage, parallel: Parallel::Replicated }
}

fn header(json: &serde_json::Value) -> Vec<u8> {
    let text = json.to_string();
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A directory with one file of these bytes.
fn dir_of(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(SINGLE), bytes).unwrap();
    dir
}

fn error(bytes: &[u8]) -> String {
    SafetensorsSource::open(dir_of(bytes).path()).unwrap_err().to_string()
}

fn read(source: &SafetensorsSource, decl: &WeightDecl) -> Vec<f32> {
    let view = source.get(decl).unwrap();
    let mut out = vec![f32::NAN; decl.rows * decl.cols];
    view.read_f32(0..decl.rows, &mut out);
    out
}

/// Four rows of two f32: 0, 1, .. 7.
fn small(names: &[&str]) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    for (i, name) in names.iter().enumerate() {
        entries.insert(
            (*name).to_owned(),
            json!({"dtype": "F32", "shape": [4, 2], "data_offsets": [32 * i, 32 * i + 32]}),
        );
    }
    let data = (0..8 * names.len()).flat_map(|i| ((i % 8) as f32).to_le_bytes()).collect();
    [header(&entries.into()), data].concat()
}

#[test]
fn a_file_that_was_written_to_or_replaced_has_another_version() {
    let dir = dir_of(&small(&["a"]));
    let path = dir.path().join(SINGLE);
    let version = || SafetensorsSource::open(dir.path()).unwrap().version();
    let first = version();
    assert_eq!(first, version());
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let touched = version();
    assert_ne!(first, touched);
    // The same bytes and times in another file.
    let other = dir.path().join("other");
    fs::copy(&path, &other).unwrap();
    fs::File::options().write(true).open(&other).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fs::rename(&other, &path).unwrap();
    assert_ne!(version(), touched);
}

#[test]
fn chunks_rows_and_raw_bytes_agree() {
    let source = SafetensorsSource::open(&fixtures::path("llama_plain")).unwrap();
    let d = decl("model.layers.1.mlp.up_proj.weight", 96, 64);
    let whole = read(&source, &d);
    let view = source.get(&d).unwrap();
    assert_eq!(view.encoding(), Encoding::Dense(DType::BF16));
    let mut chunk = vec![f32::NAN; 10 * 64];
    view.read_f32(33..43, &mut chunk);
    assert_eq!(chunk, whole[33 * 64..43 * 64]);
    for row in [0, 95] {
        let raw = view.raw_row(row).unwrap();
        let first = half::bf16::from_le_bytes([raw[0], raw[1]]).to_f32();
        assert_eq!((raw.len(), first), (128, whole[row * 64]));
    }
    view.release(0..96);
    assert_eq!(read(&source, &d), whole, "released pages come back");
}

#[test]
fn embedding_rows_equal_the_first_hidden_state_of_the_golden_run() {
    for name in fixtures::CHECKPOINTS {
        let source = SafetensorsSource::open(&fixtures::path(name)).unwrap();
        let config = ModelConfig::from_hf_json(&fixtures::config_json(name)).unwrap();
        let program = config.program();
        let table = source.get(program.weight(WeightId(0))).unwrap();
        let bytes = fs::read(fixtures::path(name).join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let ids = golden.tensor("prompt.0.input_ids").unwrap().data().to_vec();
        let hidden = golden.tensor("prompt.0.hidden.0").unwrap().data().to_vec();
        let learned = program.ops.iter().find_map(|op| match op {
            Op::Embed { table, index: EmbedIndex::Positions { offset }, .. } => Some((*table, *offset)),
            _ => None,
        });
        let learned = learned.map(|(table, offset)| (source.get(program.weight(table)).unwrap(), offset));
        let (mut row, mut place) = (vec![f32::NAN; config.hidden], vec![0.0; config.hidden]);
        for (i, (id, want)) in ids.as_chunks::<8>().0.iter().zip(hidden.chunks_exact(4 * config.hidden)).enumerate() {
            let id = usize::try_from(i64::from_le_bytes(*id)).unwrap();
            table.read_f32(id..id + 1, &mut row);
            if let Some((learned, offset)) = &learned {
                learned.read_f32(i + offset..i + offset + 1, &mut place);
            }
            row.iter_mut().zip(&place).for_each(|(x, place)| *x = *x * config.embed_scale + place);
            let got: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(got, want, "{name} token {id}");
        }
    }
}

#[test]
fn views_of_a_fused_tensor_start_at_their_row() {
    let dir = dir_of(&small(&["qkv"]));
    let source = SafetensorsSource::open(dir.path()).unwrap();
    let part = |row_start, rows| WeightDecl {
        view: View::part(row_start, rows, 4),
        usage: WeightUse::Linear,
        ..decl("qkv", rows, 2)
    };
    assert_eq!(read(&source, &part(0, 1)), [0.0, 1.0]);
    assert_eq!(read(&source, &part(1, 3)), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(source.get(&part(2, 2)).unwrap().raw_row(1).unwrap()[..4], 6f32.to_le_bytes());
    assert!(source.get(&part(2, 3)).is_err());
    // A whole tensor of too many rows is not silently cut.
    let error = source.get(&decl("qkv", 3, 2)).err().unwrap().to_string();
    assert!(error.contains("[4, 2]") && error.contains("[3, 2]") && error.contains("`qkv`"), "{error}");
}

#[test]
fn a_language_model_may_be_part_of_a_larger_one() {
    for part in ["language_model.model.", "model.language_model.", "language_model."] {
        let name = format!("{part}embed_tokens.weight");
        let dir = dir_of(&small(&[&name, "vision_tower.embed_tokens.weight"]));
        let source = SafetensorsSource::open(dir.path()).unwrap();
        assert_eq!(read(&source, &decl("model.embed_tokens.weight", 4, 2))[7], 7.0, "{name}");
    }
    let dir = dir_of(&small(&["language_model.lm_head.weight"]));
    let source = SafetensorsSource::open(dir.path()).unwrap();
    assert_eq!(read(&source, &decl("lm_head.weight", 4, 2))[7], 7.0);
    assert!(source.get(&decl("model.embed_tokens.weight", 4, 2)).is_err());
}

#[test]
fn the_prefix_may_be_absent_and_strays_do_not_matter() {
    let dir = dir_of(&small(&["embed_tokens.weight", "rotary_emb.inv_freq"]));
    let source = SafetensorsSource::open(dir.path()).unwrap();
    for base in ["model", "transformer", "gpt_neox"] {
        assert_eq!(read(&source, &decl(&format!("{base}.embed_tokens.weight"), 4, 2))[7], 7.0, "{base}");
    }
    let error = source.get(&decl("lm_head.weight", 4, 2)).err().unwrap().to_string();
    assert!(error.contains("`lm_head.weight` is missing"), "{error}");
}

#[test]
fn types_that_cannot_be_read_are_refused_by_name() {
    let h = header(&json!({"w": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}));
    let dir = dir_of(&[h, vec![0; 4]].concat());
    let source = SafetensorsSource::open(dir.path()).unwrap();
    let error = source.get(&decl("w", 2, 2)).err().unwrap().to_string();
    assert!(error.contains("`w`") && error.contains("F8_E4M3") && error.contains("BF16"), "{error}");
    let h = header(&json!({"w": {"dtype": "Q9", "shape": [2, 2], "data_offsets": [0, 4]}}));
    let error = self::error(&[h, vec![0; 4]].concat());
    assert!(error.contains("`w`") && error.contains("Q9"), "{error}");
}

#[test]
fn truncated_and_inconsistent_files_name_the_tensor_and_the_offset() {
    let whole = small(&["a", "b"]);
    let data = whole.len() - 64;
    let says = |bytes: &[u8], words: &[&str]| {
        let error = error(bytes);
        assert!(words.iter().all(|w| error.contains(w)) && error.contains(SINGLE), "{error}");
    };
    let (start, end, cut) = ((data + 32).to_string(), whole.len().to_string(), (whole.len() - 5).to_string());
    says(&whole[..whole.len() - 5], &["truncated", "`b`", &start, &end, &cut]);
    says(&whole[..data + 3], &["truncated", "`a`", &data.to_string()]);
    says(&whole[..20], &["header at offset 8", "20"]);
    says(&whole[..5], &["5 bytes"]);
    says(&[whole.clone(), vec![0]].concat(), &[&end]);
    says(&[9u64.to_le_bytes().to_vec(), b"not json!".to_vec()].concat(), &["not a JSON object"]);
    says(&[u64::MAX.to_le_bytes().to_vec(), vec![0; 9]].concat(), &[&u64::MAX.to_string()]);
    let overlap = json!({
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    });
    says(&[header(&overlap), vec![0; 12]].concat(), &["`b`", "4..12"]);
    let size = json!({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}});
    says(&[header(&size), vec![0; 8]].concat(), &["`a`", "8 bytes", "[3]"]);
    let overflow = json!({"a": {"dtype": "F32", "shape": [u64::MAX, u64::MAX], "data_offsets": [0, 8]}});
    says(&[header(&overflow), vec![0; 8]].concat(), &["`a`"]);
}

#[test]
fn indexes_of_shards_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let says = |index: serde_json::Value, words: &[&str]| {
        fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
        let error = SafetensorsSource::open(dir.path()).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    };
    fs::write(dir.path().join("one.safetensors"), small(&["a"])).unwrap();
    says(json!({"weight_map": {"a": "two.safetensors"}}), &["two.safetensors"]);
    says(json!({"weight_map": {"b": "one.safetensors"}}), &["`b`", "one.safetensors"]);
    says(json!({"weight_map": {"a": "../one.safetensors"}}), &["../one.safetensors"]);
    says(json!({"weight_map": {}}), &["empty"]);
    says(json!([]), &["index"]);
    fs::write(dir.path().join(INDEX), json!({"weight_map": {"a": "one.safetensors"}}).to_string()).unwrap();
    let source = SafetensorsSource::open(dir.path()).unwrap();
    assert_eq!(read(&source, &decl("a", 4, 2))[3], 3.0);
}

/// Opens bytes and reads every weight that the fixture's program wants.
fn exercise(bytes: &[u8], config: &ModelConfig) {
    let dir = dir_of(bytes);
    let Ok(source) = SafetensorsSource::open(dir.path()) else { return };
    for decl in &config.program().weights {
        let Ok(view) = source.get(decl) else { continue };
        let mut out = vec![0.0; decl.rows * decl.cols];
        view.read_f32(0..decl.rows, &mut out);
        view.release(0..decl.rows);
    }
}

fn fixture() -> &'static (Vec<u8>, ModelConfig, usize) {
    static FIXTURE: std::sync::OnceLock<(Vec<u8>, ModelConfig, usize)> = std::sync::OnceLock::new();
    FIXTURE.get_or_init(|| {
        let bytes = fs::read(fixtures::path("llama_plain").join(SINGLE)).unwrap();
        let config = ModelConfig::from_hf_json(&fixtures::config_json("llama_plain")).unwrap();
        let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
        (bytes, config, header + LENGTH_BYTES)
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), n in 0u64..220) {
        exercise(&bytes, &fixture().1);
        exercise(&[&n.to_le_bytes()[..], b"{", &bytes, b"}"].concat(), &fixture().1);
    }

    #[test]
    fn mutated_fixtures_are_a_value_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        digits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 0..5),
        keep in prop_oneof![Just(1.0), 0.0f64..1.0],
    ) {
        let (bytes, config, header) = fixture();
        let mut bytes = bytes.clone();
        for (at, value) in changes {
            let at = at.index(*header);
            bytes[at] = value;
        }
        // Numbers changed to other numbers keep the JSON valid.
        let numbers: Vec<usize> = (8..*header).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for (at, digit) in digits {
            bytes[numbers[at.index(numbers.len())]] = digit;
        }
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        exercise(&bytes, config);
    }
}
