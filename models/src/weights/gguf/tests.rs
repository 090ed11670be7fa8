//! GGUF files: fixtures, hand-made ones, arbitrary bytes.

use std::io::Write;

mod architectures;

use proptest::prelude::*;

use super::*;
use crate::config::{Family, RopeScaling};
use crate::fixtures;
use crate::program::{Parallel, View, WeightUse};
use crate::weights::{Encoding, GgmlType};

/// Writes GGUF files value by value.
#[derive(Clone)]
struct Writer {
    entries: Vec<u8>,
    n_entries: u64,
    infos: Vec<u8>,
    n_tensors: u64,
    data: Vec<u8>,
    alignment: usize,
}

fn string(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

impl Writer {
    fn new() -> Self {
        Writer { entries: vec![], n_entries: 0, infos: vec![], n_tensors: 0, data: vec![], alignment: 32 }
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.extend([string(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
        self.n_entries += 1;
        self
    }

    fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    fn f32(self, key: &str, value: f32) -> Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &string(value))
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Self {
        let offset = self.data.len() as u64;
        self.infos.extend([string(name), (dims.len() as u32).to_le_bytes().to_vec()].concat());
        dims.iter().for_each(|d| self.infos.extend(d.to_le_bytes()));
        self.infos.extend([kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        self.n_tensors += 1;
        self
    }

    fn f32s(self, name: &str, dims: &[u64], values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensor(name, dims, 0, &bytes)
    }

    fn bytes(self) -> Vec<u8> {
        let head =
            [&b"GGUF"[..], &3u32.to_le_bytes(), &self.n_tensors.to_le_bytes(), &self.n_entries.to_le_bytes()].concat();
        let mut bytes = [head, self.entries, self.infos].concat();
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        [bytes, self.data].concat()
    }
}

/// A file on disk for as long as the value lives.
fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<Gguf, WeightError> {
    Gguf::open(file(bytes).path())
}

/// Metadata of a tiny llama: 8 wide, 2 heads of 4.
fn llama() -> Writer {
    llama_in(Writer::new())
}

fn llama_in(writer: Writer) -> Writer {
    writer
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 16)
        .u32("llama.attention.head_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32s("token_embd.weight", &[8, 3], &[0.0; 24])
}

fn config(w: Writer) -> Result<ModelConfig, ConfigError> {
    open(&w.bytes()).unwrap().config()
}

fn refused(w: Writer) -> String {
    config(w).unwrap_err().to_string()
}

fn decl(name: &str, rows: usize, cols: usize) -> WeightDecl {
    let usage = if rows == 1 { WeightUse::Vector } else { WeightUse::Linear };
    let view = View::whole(if usage == WeightUse::Vector { cols } else { rows });
    WeightDecl { name: name.to_owned(), rows, cols, view, experts: None, usage, parallel: Parallel::Replicated }
}

fn read(source: &dyn WeightSource, decl: &WeightDecl) -> Vec<f32> {
    let view = source.get(decl).unwrap();
    let mut out = vec![f32::NAN; decl.rows * decl.cols];
    view.read_f32(0..decl.rows, &mut out);
    out
}

#[test]
fn fixtures_give_their_config_vocabulary_and_every_weight() {
    for (name, family) in [("gguf_llama", Family::Llama), ("gguf_qwen2", Family::Qwen2)] {
        let gguf = Gguf::open(&fixtures::path(name).join("model.gguf")).unwrap();
        let c = gguf.config().unwrap();
        assert_eq!((c.family, c.vocab, c.hidden, c.layers, c.heads, c.kv_heads), (family, 272, 64, 3, 4, 2));
        assert_eq!((c.head_dim, c.ffn, c.max_len, c.norm_eps), (16, 96, 512, 1e-6));
        assert_eq!((c.tied, c.bias.qkv, c.bias.o), (family == Family::Qwen2, family == Family::Qwen2, false));
        assert_eq!((c.bos, &c.eos[..]), (Some(1), &[2][..]));
        for decl in &c.program().weights {
            assert!(read(&gguf, decl).iter().all(|x| x.is_finite()), "{name} {}", decl.name);
        }
        let vocab = gguf.vocab().unwrap().unwrap();
        assert_eq!((vocab.model, vocab.pre, vocab.tokens.len()), ("gpt2", Some("smollm"), 272));
        assert_eq!((vocab.tokens[1], vocab.merges[2], vocab.token_types[0]), ("<|begin|>", "t he", 3));
        assert!(vocab.chat_template.unwrap().starts_with("{% for m in messages %}"));
    }
}

#[test]
fn embedding_rows_equal_the_first_hidden_state_of_the_golden_run() {
    for name in ["gguf_llama", "gguf_qwen2"] {
        let gguf = Gguf::open(&fixtures::path(name).join("model.gguf")).unwrap();
        let table = gguf.get(&decl("model.embed_tokens.weight", 272, 64)).unwrap();
        let bytes = std::fs::read(fixtures::path(name).join("golden.safetensors")).unwrap();
        let golden = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ids = golden.tensor("prompt.0.input_ids").unwrap().data().to_vec();
        let hidden = golden.tensor("prompt.0.hidden.0").unwrap().data().to_vec();
        let mut row = [f32::NAN; 64];
        for (id, want) in ids.as_chunks::<8>().0.iter().zip(hidden.chunks_exact(256)) {
            let id = usize::try_from(i64::from_le_bytes(*id)).unwrap();
            table.read_f32(id..id + 1, &mut row);
            assert_eq!(row.map(f32::to_le_bytes).concat(), want, "{name} token {id}");
        }
    }
}

#[test]
fn rows_of_llama_queries_and_keys_come_back_in_halves() {
    // What convert_hf_to_gguf.py does: [head, half, i] becomes [head, i, half]. Row r of the original holds r everywhere.
    let permuted: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7].map(|r| r as f32).to_vec();
    let matrix: Vec<f32> = permuted.iter().flat_map(|r| [*r; 8]).collect();
    let w = llama().f32s("blk.0.attn_q.weight", &[8, 8], &matrix).f32s("blk.0.attn_q.bias", &[8], &permuted).f32s(
        "blk.0.attn_v.weight",
        &[8, 8],
        &matrix,
    );
    let gguf = open(&w.bytes()).unwrap();
    let original: Vec<f32> = (0..8).map(|r| r as f32).collect();
    let q = decl("model.layers.0.self_attn.q_proj.weight", 8, 8);
    assert_eq!(read(&gguf, &q), original.iter().flat_map(|r| [*r; 8]).collect::<Vec<_>>());
    assert_eq!(gguf.get(&q).unwrap().raw_row(1).unwrap()[..4], 1f32.to_le_bytes());
    let bias = decl("model.layers.0.self_attn.q_proj.bias", 1, 8);
    assert_eq!(read(&gguf, &bias), original);
    assert!(gguf.get(&bias).unwrap().raw_row(0).is_none());
    assert_eq!(read(&gguf, &decl("model.layers.0.self_attn.v_proj.weight", 8, 8)), matrix);
    assert!(gguf.config().unwrap().bias.qkv);
}

#[test]
fn absent_keys_take_llama_cpp_defaults() {
    let c = config(llama()).unwrap();
    assert_eq!((c.kv_heads, c.head_dim, c.vocab, c.tied), (2, 4, 3, true));
    assert_eq!((c.rope.theta, c.rope.scaling, c.windows[0]), (10_000.0, RopeScaling::None, None));
    let two = [4u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec(), 1u32.to_le_bytes().to_vec()].concat();
    assert_eq!(config(llama().entry("llama.attention.head_count_kv", 9, &two)).unwrap().kv_heads, 1);
    assert_eq!(config(llama().u32("llama.attention.sliding_window", 16)).unwrap().windows, [Some(16)]);
}

#[test]
fn scaled_rotations_are_read() {
    let linear = llama().f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(config(linear.clone()).unwrap().rope.scaling, RopeScaling::Linear { factor: 4.0 });
    assert_eq!(
        config(llama().f32("llama.rope.scale_linear", 2.0)).unwrap().rope.scaling,
        RopeScaling::Linear { factor: 2.0 }
    );
    let yarn = linear.text("llama.rope.scaling.type", "yarn").u32("llama.rope.scaling.original_context_length", 16);
    let RopeScaling::Yarn { factor, original_max_len, attention_factor, .. } =
        config(yarn.clone()).unwrap().rope.scaling
    else {
        panic!("yarn expected")
    };
    assert_eq!((factor, original_max_len, attention_factor), (4.0, 16, None));
    let freqs = llama().f32s("rope_freqs.weight", &[2], &[1.0, 8.0]);
    assert_eq!(config(freqs).unwrap().rope.scaling, RopeScaling::Divisors(vec![1.0, 8.0]));
    assert!(refused(yarn.f32s("rope_freqs.weight", &[2], &[1.0, 8.0])).contains("rope_freqs.weight"));
    assert!(refused(llama().f32s("rope_freqs.weight", &[3], &[1.0; 3])).contains("rope_freqs.weight"));
    assert!(refused(llama().text("llama.rope.scaling.type", "longrope")).contains("longrope"));
}

#[test]
fn what_changes_the_mathematics_is_refused_by_name() {
    assert!(refused(llama().u32("llama.expert_shared_count", 8)).contains("`llama.expert_shared_count` = 8"));
    assert!(config(llama().u32("llama.expert_shared_count", 0)).is_ok());
    assert!(refused(llama().f32("llama.attention.clamp_kqv", 8.0)).contains("clamp_kqv"));
    assert!(refused(llama().u32("llama.rope.dimension_count", 2)).contains("rope.dimension_count"));
    assert!(refused(llama().u32("llama.attention.value_length", 8)).contains("value_length"));
    assert!(refused(llama().f32s("blk.0.attn_sinks.weight", &[2], &[0.0; 2])).contains("blk.0.attn_sinks.weight"));
    assert!(refused(llama().f32s("blk.1.attn_q.weight", &[8, 8], &[0.0; 64])).contains("blk.1.attn_q.weight"));
    let uneven = [
        4u32.to_le_bytes().to_vec(),
        2u64.to_le_bytes().to_vec(),
        1u32.to_le_bytes().to_vec(),
        2u32.to_le_bytes().to_vec(),
    ];
    assert!(refused(llama().entry("llama.attention.head_count_kv", 9, &uneven.concat())).contains("head_count_kv"));
    assert!(refused(Writer::new()).contains("general.architecture"));
}

#[test]
fn unsupported_tensor_types_are_refused_by_name_and_tensor() {
    let gguf = open(&llama().tensor("blk.0.attn_v.weight", &[256, 1], 22, &[0; 82]).bytes()).unwrap();
    let error = gguf.get(&decl("model.layers.0.self_attn.v_proj.weight", 1, 256)).err().unwrap().to_string();
    assert!(error.contains("IQ2_S") && error.contains("blk.0.attn_v.weight") && error.contains("Q6_K"), "{error}");
    let error = gguf.get(&decl("model.norm.weight", 1, 8)).err().unwrap().to_string();
    assert!(error.contains("`output_norm.weight` is missing"), "{error}");
    let error = gguf.get(&decl("model.embed_tokens.weight", 4, 8)).err().unwrap().to_string();
    assert!(error.contains("[3, 8]") && error.contains("[4, 8]"), "{error}");
}

#[test]
fn broken_headers_are_refused_with_the_offset() {
    let whole = llama().bytes();
    let says = |bytes: &[u8], words: &[&str]| {
        let error = open(bytes).err().unwrap().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    };
    says(b"", &["offset 0"]);
    says(b"GGML0000", &["no GGUF file"]);
    says(&[b"GGUF".as_slice(), &3u32.to_be_bytes(), &[0; 16]].concat(), &["big-endian"]);
    says(&[b"GGUF".as_slice(), &1u32.to_le_bytes(), &[0; 16]].concat(), &["version 1"]);
    says(&[b"GGUF".as_slice(), &3u32.to_le_bytes(), &[0xff; 16]].concat(), &["metadata key at offset 24"]);
    says(&whole[..whole.len() - 32], &["`token_embd.weight`", "truncated", &(whole.len() - 32).to_string()]);
    says(&llama().text("general.architecture", "llama").bytes(), &["`general.architecture`", "twice"]);
    says(&Writer::new().entry("k", 7, &[2]).bytes(), &["`k`", "Bool"]);
    says(&Writer::new().entry("k", 13, &[0; 8]).bytes(), &["`k`", "13"]);
    says(&Writer::new().u32("general.alignment", 48).bytes(), &["general.alignment"]);
    says(&Writer::new().u32("general.alignment", 1 << 30).bytes(), &["general.alignment", "1048576"]);
    says(&Writer::new().tensor("t", &[33], 2, &[0; 64]).bytes(), &["`t`", "33", "Q4_0"]);
    says(&Writer::new().tensor("t", &[u64::MAX, u64::MAX], 0, &[]).bytes(), &["`t`"]);
    let huge = [5u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat();
    says(&Writer::new().entry("k", 9, &huge).bytes(), &["`k`", "elements"]);
    let strings = [8u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat();
    says(&Writer::new().entry("k", 9, &strings).bytes(), &["k at offset"]);
}

#[test]
fn parts_of_a_split_model_are_read_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = |i: usize| dir.path().join(format!("m-{i:05}-of-00002.gguf"));
    let head = llama().u32("split.count", 2).u32("split.no", 0);
    std::fs::write(path(1), head.bytes()).unwrap();
    let error = Gguf::open(&path(1)).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    let tail = Writer::new().u32("split.count", 2).u32("split.no", 1).f32s("output_norm.weight", &[8], &[3.0; 8]);
    std::fs::write(path(2), tail.bytes()).unwrap();
    for opened in [path(1), path(2)] {
        let gguf = Gguf::open(&opened).unwrap();
        assert_eq!(read(&gguf, &decl("model.norm.weight", 1, 8)), [3.0; 8]);
        assert_eq!(gguf.config().unwrap().hidden, 8);
    }
    let checkpoint = crate::checkpoint::Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.gguf.unwrap().parts(), 2);
    std::fs::rename(path(1), dir.path().join("renamed.gguf")).unwrap();
    let error = Gguf::open(&dir.path().join("renamed.gguf")).unwrap_err().to_string();
    assert!(error.contains("NAME-00001-of-00002.gguf"), "{error}");
}

#[test]
fn metadata_of_every_type_decodes() {
    let w = Writer::new()
        .entry("u8", 0, &[200])
        .entry("i8", 1, &[0xfe])
        .entry("i16", 3, &(-300i16).to_le_bytes())
        .entry("i32", 5, &(-70_000i32).to_le_bytes())
        .entry("u64", 10, &u64::MAX.to_le_bytes())
        .entry("i64", 11, &i64::MIN.to_le_bytes())
        .entry("f64", 12, &0.5f64.to_le_bytes())
        .entry("no", 5, &(-1i32).to_le_bytes())
        .entry("bool", 7, &[1]);
    let gguf = open(&w.bytes()).unwrap();
    let m = gguf.metadata();
    assert_eq!(m.get("i8"), Some(&Value::Signed(-2)));
    assert_eq!(m.get("i16"), Some(&Value::Signed(-300)));
    assert_eq!(m.get("i32"), Some(&Value::Signed(-70_000)));
    assert_eq!(m.get("i64"), Some(&Value::Signed(i64::MIN)));
    assert_eq!((m.unsigned("u8"), m.unsigned("u64")), (Ok(Some(200)), Ok(Some(u64::MAX))));
    assert_eq!((m.float("f64"), m.bool("bool"), m.token("no")), (Ok(Some(0.5)), Ok(Some(true)), Ok(None)));
    assert!(m.unsigned("i8").unwrap_err().to_string().contains("`i8`"));
    assert!(m.string("u8").is_err());
}

/// Opens bytes and reads whatever they claim to hold.
fn exercise(bytes: &[u8]) {
    let Ok(gguf) = open(bytes) else { return };
    let _ = gguf.vocab();
    let Ok(config) = gguf.config() else { return };
    let Head { bytes, whole } = gguf.head();
    let head = Gguf::open_head(file(&bytes).path(), whole).unwrap();
    // In words: a NaN is no equal of itself.
    assert_eq!(format!("{:?}", head.config().unwrap()), format!("{config:?}"));
    for decl in &config.program().weights {
        let Ok(view) = gguf.get(decl) else { continue };
        let mut row = vec![0.0; view.shape().1];
        for r in 0..view.shape().0 {
            view.read_f32(r..r + 1, &mut row);
            let _ = view.raw_row(r);
        }
        view.release(0..view.shape().0);
    }
}

/// A file of every architecture.
fn fixture_bytes() -> &'static [Vec<u8>] {
    static BYTES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| {
        let dirs = std::fs::read_dir(fixtures::path("gguf")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = dirs.map(|dir| dir.join("model.gguf")).filter(|path| path.is_file()).collect();
        files.sort();
        files.iter().map(|path| std::fs::read(path).unwrap()).collect()
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_after_the_magic_are_a_value_or_an_error(
        tail in prop::collection::vec(any::<u8>(), 0..200),
        counts in (0u64..4, 0u64..4),
    ) {
        exercise(&tail);
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &counts.0.to_le_bytes(), &counts.1.to_le_bytes()].concat();
        exercise(&[head, tail].concat());
    }

    #[test]
    fn mutated_fixtures_are_a_value_or_an_error(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((0usize..6_000, any::<u8>()), 1..6),
        keep in prop_oneof![Just(1.0), 0.0f64..1.0],
    ) {
        let mut bytes = which.get(fixture_bytes()).clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        exercise(&bytes);
    }
}

#[test]
fn encodings_of_all_supported_types_are_named() {
    for id in 0..64 {
        let kind = TensorType(id);
        let listed = TensorType::SUPPORTED.split(", ").any(|name| name == kind.to_string());
        assert_eq!(kind.encoding().is_some(), listed, "{kind}");
    }
    assert_eq!(TensorType(14).encoding(), Some(Encoding::GgufBlock(GgmlType::Q6_K)));
}

/// A head says what the whole model says, and has no weight to give.
#[test]
fn a_head_describes_the_model_and_has_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    let part = |i: usize| dir.path().join(format!("m-{i:05}-of-00002.gguf"));
    let divisors = Writer::new().u32("split.count", 2).u32("split.no", 1).f32s("output_norm.weight", &[8], &[3.0; 8]);
    std::fs::write(part(1), llama().u32("split.count", 2).u32("split.no", 0).bytes()).unwrap();
    std::fs::write(part(2), divisors.f32s("rope_freqs.weight", &[2], &[1.0, 8.0]).bytes()).unwrap();
    let wide = llama_in(Writer { alignment: 4096, ..Writer::new() }).u32("general.alignment", 4096).f32s(
        "rope_freqs.weight",
        &[2],
        &[2.0, 8.0],
    );
    std::fs::write(dir.path().join("wide.gguf"), wide.bytes()).unwrap();
    for path in [fixtures::path("gguf_llama").join("model.gguf"), part(1), dir.path().join("wide.gguf")] {
        let whole = Gguf::open(&path).unwrap();
        let Head { bytes, whole: len } = whole.head();
        let file = file(&bytes);
        let head = Gguf::open_head(file.path(), len).unwrap();
        let program = whole.config().unwrap().program();
        assert_eq!(head.config().unwrap(), whole.config().unwrap());
        let tokens =
            |gguf: &Gguf| gguf.vocab().unwrap().map(|v| v.tokens.iter().map(|t| t.to_string()).collect::<Vec<_>>());
        assert_eq!(tokens(&head), tokens(&whole));
        assert!(program.weights.iter().all(|decl| matches!(head.get(decl), Err(WeightError::Missing { .. }))));
        assert_eq!(head.head(), whole.head(), "a head's head is itself");
        // It is no model of its own, and no head of a shorter file.
        assert!(matches!(Gguf::open(file.path()), Err(WeightError::Truncated { .. })));
        assert!(matches!(Gguf::open_head(file.path(), len / 2), Err(WeightError::Truncated { .. })));
    }
    let whole = Gguf::open(&dir.path().join("wide.gguf")).unwrap().head();
    let cut = file(&whole.bytes[..whole.bytes.len() - 4096]);
    assert!(Gguf::open_head(cut.path(), whole.whole).unwrap().config().is_err(), "the divisors are gone");
}
