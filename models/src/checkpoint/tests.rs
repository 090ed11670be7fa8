//! Checkpoints of the fixtures and broken ones.

use super::*;
use crate::fixtures;

#[test]
fn every_fixture_directory_opens_and_has_every_weight_its_program_names() {
    for name in fixtures::CHECKPOINTS {
        let c = Checkpoint::open(&fixtures::path(name)).unwrap();
        let program = c.config.program();
        for decl in &program.weights {
            let view = c.weights.get(decl).unwrap();
            assert_eq!(view.shape(), (decl.all_rows(), decl.cols), "{name} {}", decl.name);
            let mut out = vec![f32::NAN; decl.all_rows() * decl.cols];
            view.read_f32(0..decl.all_rows(), &mut out);
            assert!(out.iter().all(|x| x.is_finite()), "{name} {}", decl.name);
        }
        assert!(c.file_bytes > 0);
    }
}

#[test]
fn stored_types_are_described_in_one_line() {
    let described = |name| Checkpoint::open(&fixtures::path(name)).unwrap().stored.to_string();
    assert_eq!(described("llama_plain"), "BF16");
    assert_eq!(described("llama_tied"), "F32");
    assert!(described("llama_linear").starts_with("F16"));
}

#[test]
fn end_tokens_of_both_configs_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixtures::path("llama_plain");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    let json = r#"{"eos_token_id": [7, 2], "temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": true}"#;
    std::fs::write(dir.path().join("generation_config.json"), json).unwrap();
    let g = Checkpoint::open(dir.path()).unwrap().generation;
    assert_eq!((g.eos, g.temperature, g.top_p, g.top_k), (vec![2, 7], Some(0.6), Some(0.9), Some(20)));

    std::fs::write(dir.path().join("generation_config.json"), r#"{"temperature": "warm"}"#).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`temperature`") && error.contains("warm"), "{error}");
}

#[test]
fn what_is_no_checkpoint_is_refused_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::NothingThere { .. }), "{error}");
    let error = Checkpoint::open(&dir.path().join("absent")).unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::Json { .. }), "{error}");
    for (json, words) in [
        (r#"{"model_type": "bloom"}"#, ["bloom", "supported are llama, mistral, "]),
        (r#"{"model_type": "llama", "logit_scale": 0.5}"#, ["`logit_scale` = 0.5", "config.json"]),
        (r#"{"model_type": "llama"}"#, ["model.safetensors", "cannot read"]),
    ] {
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    }
}

#[test]
fn gguf_files_open_alone_or_in_their_directory() {
    let dir = fixtures::path("gguf_llama");
    let file = Checkpoint::open(&dir.join("model.gguf")).unwrap();
    assert_eq!(file.origin, Origin::Gguf(dir.join("model.gguf")));
    assert!(file.stored.to_string().contains("F16") && file.stored.to_string().contains("Q8_0"), "{}", file.stored);
    assert_eq!((file.generation.eos, file.file_bytes), (vec![2], 136_768));
    assert_eq!(Checkpoint::open(&dir).unwrap().origin, file.origin);
    let beside = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("model.gguf"), beside.path().join("q8.gguf")).unwrap();
    std::fs::copy(fixtures::path("llama_plain/config.json"), beside.path().join("config.json")).unwrap();
    assert!(Checkpoint::open(beside.path()).unwrap().gguf.is_some(), "a config beside a GGUF file alone");
    let two = tempfile::tempdir().unwrap();
    for name in ["a.gguf", "b.gguf"] {
        std::fs::copy(dir.join("model.gguf"), two.path().join(name)).unwrap();
    }
    let error = Checkpoint::open(two.path()).unwrap_err().to_string();
    assert!(error.contains("2 .gguf files") && error.contains("a.gguf"), "{error}");
}

#[test]
fn presets_open_by_name_and_unknown_ones_list_the_others() {
    let c = Checkpoint::random("synth-1b").unwrap();
    assert_eq!((c.config.layers, c.config.vocab, c.stored.to_string().as_str()), (16, 32000, "BF16"));
    let error = Checkpoint::random("gpt-5").unwrap_err().to_string();
    assert!(error.contains("gpt-5") && error.contains("synth-1b") && error.contains("qwen3-0.6b"), "{error}");
}
