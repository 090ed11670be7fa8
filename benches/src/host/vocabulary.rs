//! A made-up vocabulary of bytes and words, as large as a model's: a grammar's masks cost what its tokens are, not what they mean.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

/// Writes `tokenizer.json` and its config with `size` tokens.
pub fn write(dir: &Path, size: usize) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let words = words(size);
    let vocab: Map<String, Value> = words.into_iter().enumerate().map(|(id, word)| (word, json!(id))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": END, "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    std::fs::write(dir.join("tokenizer_config.json"), json!({"eos_token": END}).to_string())?;
    Ok(())
}

/// The end, every byte, marks of JSON, then words: about half begin with a space, a tenth are numbers.
fn words(size: usize) -> Vec<String> {
    let mut words = vec![END.to_owned()];
    words.extend(alphabet().map(String::from));
    words.extend(MARKS.map(str::to_owned));
    let mut known: HashSet<String> = words.iter().cloned().collect();
    let mut state = 1u64;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    while words.len() < size {
        let mut word = String::new();
        if next(2) == 0 {
            word.push('Ġ');
        }
        let (first, count) = if next(10) == 0 { (b'0', 10) } else { (b'a', 26) };
        for _ in 0..2 + next(4) + next(5) {
            word.push(char::from(first + next(count) as u8));
        }
        if known.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}

/// The characters that GPT-2's byte-level tokenizers write bytes as: printable ones themselves, the others from 256 on.
fn alphabet() -> impl Iterator<Item = char> {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256).filter(move |byte| !printable(byte)).count() as u32;
    (0..256).filter(printable).chain(256..256 + others).filter_map(char::from_u32)
}

const END: &str = "<|end|>";
const MARKS: [&str; 9] = ["\":", "\",", "\"}", "{\"", "Ġ{", "Ġ\"", "},", "],", "[\""];
