//! What is asked: prompts made of words, by a seed; the same for every server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use njoule_runtime::backend::neuron::plan::Lengths;
use serde_json::Value;

use crate::verbs::bench::client::Asked;

/// Requests without a time: `shared` words that all begin with, then `own` that no other has.
pub fn closed(seed: u64, count: usize, shared: usize, own: usize, tokens: usize) -> Vec<Asked> {
    let start: Vec<&str> = words(seed, shared).collect();
    let request = |number: usize| {
        let own = words(mix(seed, &[number, 1]), own);
        let prompt = start.iter().copied().chain(own).collect::<Vec<_>>().join(" ");
        Asked { prompt, tokens, at: None }
    };
    (0..count).map(request).collect()
}

/// Requests as the planner's sample of a published conversation trace has them, arriving as a Poisson process of `rate` a second;
/// prompts of at most `most_words`, answers of at most `most_tokens`.
pub fn trace(seed: u64, count: usize, rate: f64, most_words: usize, most_tokens: usize) -> Vec<Asked> {
    let lengths = Lengths::default().requests;
    let mut at = 0.0;
    let request = |number: usize| {
        let length = lengths[number % lengths.len()];
        // Exponential gaps, by inversion.
        let uniform = (mix(seed, &[number, 2]) >> 11) as f64 / (1u64 << 53) as f64;
        at -= (1.0 - uniform).ln() / rate;
        let prompt = words(mix(seed, &[number, 3]), length.prompt.min(most_words)).collect::<Vec<_>>().join(" ");
        Asked { prompt, tokens: length.output.min(most_tokens), at: Some(Duration::from_secs_f64(at)) }
    };
    (0..count).map(request).collect()
}

/// Prompts of a file, with the tokens that each asks for.
pub fn read(path: &Path) -> anyhow::Result<Vec<(String, Option<usize>)>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown}: cannot be read"))?;
    let mut prompts = vec![];
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if !line.starts_with('{') {
            prompts.push((line.to_owned(), None));
            continue;
        }
        let value: Value = serde_json::from_str(line).with_context(|| format!("{shown}: line {}", at + 1))?;
        let Some(prompt) = value["prompt"].as_str() else {
            bail!("{shown}: line {}: no \"prompt\" that is text", at + 1);
        };
        let tokens = match &value["max_tokens"] {
            Value::Null => None,
            given => match given.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) {
                None => bail!("{shown}: line {}: max_tokens is {given}, no positive count", at + 1),
                some => some,
            },
        };
        prompts.push((prompt.to_owned(), tokens));
    }
    if prompts.is_empty() {
        bail!("{shown}: there is no prompt in it");
    }
    Ok(prompts)
}

/// One number of several, by splitmix64's finaliser.
pub fn mix(seed: u64, parts: &[usize]) -> u64 {
    parts.iter().fold(finalise(seed), |mixed, part| finalise(mixed ^ *part as u64))
}

fn finalise(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn words(seed: u64, count: usize) -> impl Iterator<Item = &'static str> {
    (0..count).map(move |at| WORDS[(mix(seed, &[at]) >> 32) as usize % WORDS.len()])
}

/// Each is one token of common vocabularies.
const WORDS: [&str; 32] = [
    "river", "stone", "light", "garden", "window", "paper", "music", "winter", "market", "letter", "bridge", "morning",
    "forest", "silver", "engine", "doctor", "island", "memory", "number", "planet", "school", "summer", "thread",
    "valley", "wonder", "yellow", "animal", "butter", "castle", "dinner", "evening", "father",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn prompts_are_the_same_for_a_seed_and_differ_otherwise() {
        let load = closed(1, 40, 3, 20, 5);
        assert_eq!(load, closed(1, 40, 3, 20, 5));
        let all = load.iter().chain(&closed(2, 40, 3, 20, 5)).map(|a| a.prompt.clone()).collect::<HashSet<_>>();
        assert_eq!(all.len(), 80);
        let begin = |asked: &Asked| asked.prompt.split(' ').take(3).collect::<Vec<_>>().join(" ");
        assert!(load.iter().all(|asked| begin(asked) == begin(&load[0]) && asked.prompt.split(' ').count() == 23));
    }

    #[test]
    fn arrivals_come_in_order_at_the_rate() {
        let load = trace(7, 400, 4.0, 64, 32);
        assert!(load.is_sorted_by_key(|asked| asked.at));
        let last = load[399].at.unwrap().as_secs_f64();
        // 400 gaps of a quarter second: the mean's standard error is 5 %.
        assert!((last / 100.0 - 1.0).abs() < 0.2, "{last}");
        assert!(load.iter().all(|asked| (1..=32).contains(&asked.tokens) && !asked.prompt.is_empty()));
    }

    #[test]
    fn prompts_are_lines_of_text_or_objects() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_of = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            read(file.path()).map_err(|e| format!("{e:#}"))
        };
        let read = read_of("Hello\n\n{\"prompt\": \"a\\nb\", \"max_tokens\": 3}\n").unwrap();
        assert_eq!(read, [("Hello".to_owned(), None), ("a\nb".to_owned(), Some(3))]);
        for (bad, words) in [
            ("", "no prompt"),
            ("{\"prompt\": 1}", "line 1"),
            ("x\n{", "line 2"),
            ("{\"prompt\":\"\",\"max_tokens\":0}", "no positive"),
        ] {
            assert!(read_of(bad).unwrap_err().contains(words), "{bad}");
        }
    }
}
