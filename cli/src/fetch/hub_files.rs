//! Which files of a repository make a model, and which of several GGUF files is meant.

use super::FetchError;
use super::reference::is_gguf;

/// Whether a file of a checkpoint's directory is one that njoule reads. Python code, other frameworks' weights and
/// pictures are not.
pub fn is_wanted(name: &str) -> bool {
    is_text(name) || name == INDEX || name.ends_with(".safetensors")
}

/// Whether a file belongs to a checkpoint beside its weights.
pub fn is_text(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ];
    NAMES.contains(&name) || (name.starts_with("tokenizer") && !name.contains('/'))
}

/// The list of shards.
pub const INDEX: &str = "model.safetensors.index.json";
/// The weights that are not sharded.
pub const SINGLE: &str = "model.safetensors";

/// The file names in a shard index.
pub fn shards(index: &str) -> Result<Vec<String>, String> {
    let index: serde_json::Value = serde_json::from_str(index).map_err(|error| error.to_string())?;
    let map = index.get("weight_map").and_then(|map| map.as_object()).ok_or("it has no weight_map")?;
    let mut names: Vec<String> = map.values().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    if names.is_empty() { Err("its weight_map is empty".to_owned()) } else { Ok(names) }
}

/// The one file that is meant among those of a repository or wheel: the only one, or the only one that `wanted` names in
/// full, by its last name, or by a part of it such as `Q4_K_M`.
pub fn choose<'a>(what: &str, example: &str, names: &[&'a str], wanted: Option<&str>) -> Result<&'a str, FetchError> {
    let listed = || names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let Some(wanted) = wanted else {
        return match names {
            [only] => Ok(only),
            _ => {
                Err(FetchError::SeveralModels { what: what.to_owned(), example: example.to_owned(), choices: listed() })
            }
        };
    };
    let lower = wanted.to_ascii_lowercase();
    let last = |name: &str| name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let rules: [&dyn Fn(&str) -> bool; 4] =
        [&|name| name == wanted, &|name| last(name) == lower, &|name| has_word(&last(name), &lower), &|name| {
            last(name).contains(&lower)
        }];
    for rule in rules {
        let matching: Vec<_> = names.iter().filter(|name| rule(name)).collect();
        match matching[..] {
            [] => {}
            [only] => return Ok(only),
            _ => {
                let choices = matching.iter().map(|name| (**name).to_owned()).collect();
                return Err(FetchError::SeveralModels { what: what.to_owned(), example: example.to_owned(), choices });
            }
        }
    }
    Err(FetchError::NoSuchChoice { what: what.to_owned(), wanted: wanted.to_owned(), choices: listed() })
}

/// The GGUF files that are models by themselves: not projectors for pictures, not the later parts of a split file.
pub fn gguf_models<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let last = |name: &'a str| name.rsplit('/').next().unwrap_or(name);
    names.into_iter().filter(|name| is_gguf(name) && !last(name).starts_with("mmproj") && !is_split(name)).collect()
}

/// `name-00001-of-00003.gguf`: one model over several files, which njoule does not read.
pub fn is_split(name: &str) -> bool {
    let number = |part: Option<&str>| part.is_some_and(|p| p.len() == 5 && p.bytes().all(|b| b.is_ascii_digit()));
    let Some((stem, _)) = name.rsplit_once('.').filter(|_| is_gguf(name)) else { return false };
    let mut parts = stem.rsplit('-');
    number(parts.next()) && parts.next() == Some("of") && number(parts.next())
}

/// Whether `word` stands in `text` between separators: `q4_k` is not a word of `model-q4_k_m.gguf`.
fn has_word(text: &str, word: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| "-./".contains(c));
    text.match_indices(word)
        .any(|(at, _)| edge(text[..at].chars().next_back()) && edge(text[at + word.len()..].chars().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantisation_names_choose_whole_words_first() {
        let names = ["m-Q4_K.gguf", "m-Q4_K_M.gguf", "sub/m-Q8_0.gguf"];
        let choose = |wanted| choose("org/m", "org/m:FILE", &names, wanted);
        assert_eq!(choose(Some("q4_k")).unwrap(), "m-Q4_K.gguf");
        assert_eq!(choose(Some("Q4_K_M")).unwrap(), "m-Q4_K_M.gguf");
        assert_eq!(choose(Some("m-q8_0.gguf")).unwrap(), "sub/m-Q8_0.gguf");
        assert_eq!(choose(Some("Q8")).unwrap(), "sub/m-Q8_0.gguf");
        assert!(matches!(choose(Some("Q4")), Err(FetchError::SeveralModels { choices, .. }) if choices.len() == 2));
        assert!(matches!(choose(Some("F16")), Err(FetchError::NoSuchChoice { .. })));
        let error = choose(None).unwrap_err().to_string();
        assert!(error.contains("org/m:FILE") && names.iter().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn projectors_and_split_files_are_no_models() {
        let names = ["mmproj-m.gguf", "m-00001-of-00002.gguf", "m-of-1.gguf", "a/mmproj.gguf", "readme.md"];
        assert_eq!(gguf_models(names), ["m-of-1.gguf"]);
    }

    #[test]
    fn code_and_other_weights_are_not_wanted() {
        for name in
            ["config.json", "tokenizer.json", "tokenizer_config.json", "model-00001-of-00002.safetensors", INDEX]
        {
            assert!(is_wanted(name), "{name}");
        }
        for name in ["modeling_x.py", "pytorch_model.bin", "README.md", "onnx/config.json", "tokenizer/x"] {
            assert!(!is_wanted(name), "{name}");
        }
    }

    #[test]
    fn shard_names_come_once_each() {
        let index = r#"{"weight_map":{"a":"s2","b":"s1","c":"s2"}}"#;
        assert_eq!(shards(index).unwrap(), ["s1", "s2"]);
        assert!(shards("{}").is_err() && shards(r#"{"weight_map":{}}"#).is_err());
    }
}
