//! The pre-tokenizers that `tokenizer.ggml.pre` names.
//!
//! The names are llama.cpp's (`src/llama-vocab.cpp`, `convert_hf_to_gguf_update.py`); what each does is what the
//! `tokenizer.json` of the models of that name says, in that file's own form, so that ids equal Hugging Face's. A pattern
//! splits the text at its matches and keeps them; patterns are applied one after another.

use serde_json::{Value, json};

use super::TokenizerError;

/// What a name stands for.
pub(super) struct Pre {
    /// `pretokenizers` of a `Sequence`, ending in the byte-level step.
    pub steps: Vec<Value>,
    /// Whether the text is brought into Unicode's composed form first.
    pub nfc: bool,
    /// Whether a pre-token that is a token is taken whole.
    pub ignore_merges: bool,
    /// Whether a sequence begins with the bos token where the file does not say.
    pub add_bos: bool,
}

/// The pre-tokenizer of a name.
pub(super) fn find(name: &str) -> Result<Pre, TokenizerError> {
    let plain = |steps: Vec<Value>| Pre { steps, nfc: false, ignore_merges: false, add_bos: false };
    let split_only = |patterns: &[&str]| plain(patterns.iter().map(|p| split(p)).chain([bytes(false)]).collect());
    Ok(match name {
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "a.x-4.0" | "mellum"
        | "modern-bert" | "exaone4" | "jais" | "trillion" | "granite-docling" => plain(vec![bytes(true)]),
        "mpt" | "olmo" => Pre { nfc: true, ..plain(vec![bytes(true)]) },
        "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
            plain(vec![digits(), bytes(true)])
        }
        "command-r" => Pre { nfc: true, ..plain(vec![digits(), bytes(true)]) },
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" => Pre { ignore_merges: true, add_bos: true, ..split_only(&[LLAMA3]) },
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => split_only(&[LLAMA3]),
        "glm4" | "glm5" => Pre { ignore_merges: true, ..split_only(&[LLAMA3]) },
        "minicpm5" => Pre { ignore_merges: true, ..split_only(&["\\p{N}{1,3}", MINICPM5]) },
        "qwen2" | "megrez" | "f2llmv2" => Pre { nfc: true, ..split_only(&[QWEN2]) },
        "stablelm2" | "deepseek-r1-qwen" | "kormo" | "hunyuan" | "solar-open" | "grok-2" => split_only(&[QWEN2]),
        "qwen35" => Pre { nfc: true, ..split_only(&[QWEN35]) },
        "seed-coder" => split_only(&[SEED_CODER]),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => split_only(&[BAILING]),
        "exaone-moe" => split_only(&[EXAONE_MOE]),
        "deepseek-llm" => {
            split_only(&["[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, "\\s+$", DEEPSEEK_CJK, "\\p{N}"])
        }
        "deepseek-coder" => split_only(&["[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", DEEPSEEK_CJK, "\\p{N}"]),
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => {
            split_only(&["\\p{N}{1,3}", "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+", DEEPSEEK_V3])
        }
        "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => Pre { ignore_merges: true, ..split_only(&[GPT4O]) },
        "tiny_aya" | "cohere2moe" => split_only(&["\\d{1,3}(?=(?:\\d{3})*\\b)", GPT4O]),
        "tekken" => Pre { ignore_merges: true, add_bos: true, ..split_only(&[TEKKEN]) },
        "falcon" => plain(vec![
            json!({"type": "Punctuation", "behavior": "Contiguous"}),
            bytes(true),
            json!({"type": "Digits", "individual_digits": false}),
            split("[0-9][0-9][0-9]"),
        ]),
        "bloom" | "poro-chat" | "gpt3-finnish" => split_only(&[BLOOM]),
        "viking" => split_only(&[BLOOM, "\\p{N}"]),
        // What llama.cpp does where a file does not say: no model's own pre-tokenizer.
        "default" => split_only(&["[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"]),
        other => return Err(TokenizerError::UnknownPre(other.to_owned())),
    })
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn digits() -> Value {
    json!({"type": "Digits", "individual_digits": true})
}

/// The step to byte-level text; with `words` it first splits as GPT-2 does.
fn bytes(words: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words})
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Cased letters; in escapes because composing normalisation would change some.
const DEEPSEEK_LETTERS: &str = "\\s?[\
    A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}\
    -\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\
    \u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}\
    -\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\
    \u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\
    \u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\
    \u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\
    \u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\
    \u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\
    \u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\
    \u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}\
    -\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\
    \u{1e943}\
    ]+";
const DEEPSEEK_PUNCTUATION: &str = "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK_CJK: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const BLOOM: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::PreTokenizerWrapper;

    #[test]
    fn every_named_pre_tokenizer_compiles() {
        let names = [
            "gpt-2",
            "mpt",
            "olmo",
            "smollm",
            "command-r",
            "llama-bpe",
            "dbrx",
            "glm4",
            "minicpm5",
            "qwen2",
            "stablelm2",
            "qwen35",
            "seed-coder",
            "bailingmoe",
            "exaone-moe",
            "deepseek-llm",
            "deepseek-coder",
            "deepseek-v3",
            "gpt-4o",
            "tiny_aya",
            "tekken",
            "falcon",
            "bloom",
            "viking",
            "default",
        ];
        for name in names {
            let steps = find(name).unwrap().steps;
            let whole = json!({"type": "Sequence", "pretokenizers": steps});
            serde_json::from_value::<PreTokenizerWrapper>(whole).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let refused = find("martian").err().unwrap();
        assert_eq!(refused.to_string(), "pre-tokenizer `martian` (tokenizer.ggml.pre) is not supported");
    }
}
