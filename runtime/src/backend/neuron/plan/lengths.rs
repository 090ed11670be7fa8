//! How long requests are: tokens of prompts and answers, as traces and datasets have them.
//!
//! Read from text that is a JSON array, JSON lines or CSV, with the column names of published traces. Any text gives
//! requests or an error. Without a file, a sample of a published trace stands in ([`Lengths::default`]).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One request's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    /// Tokens of the prompt, at least 1.
    pub prompt: usize,
    /// Tokens of the answer, at least 1.
    pub output: usize,
}

impl Request {
    /// Tokens of both.
    pub fn total(self) -> usize {
        self.prompt.saturating_add(self.output)
    }
}

/// Requests in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// The requests.
    pub requests: Vec<Request>,
    /// Where they are from, for reports.
    pub source: String,
}

/// Why a file of lengths was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LengthsError {
    /// Neither JSON, JSON lines nor CSV.
    #[error("line {line}: {reason}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// No column of a known name.
    #[error("no {what} column: looked for {known}; there is {found}")]
    Column {
        /// Which one.
        what: &'static str,
        /// Names that are known.
        known: String,
        /// Names that there are.
        found: String,
    },
    /// Text in place of counts.
    #[error("line {line}: {column} is text; its tokens must be counted first, by the model's tokenizer")]
    Text {
        /// From 1.
        line: usize,
        /// Its column.
        column: String,
    },
    /// Nothing in it.
    #[error("no request in it")]
    Empty,
}

impl Default for Lengths {
    /// Every 38th request of the Azure conversation trace of 2023 (CC-BY-4.0; Patel et al., Splitwise, ISCA 2024).
    fn default() -> Self {
        // A test reads it.
        Lengths::parse(DEFAULT, "510 requests of the Azure conversation trace 2023")
            .unwrap_or_else(|error| unreachable!("the built-in lengths: {error}"))
    }
}

impl Lengths {
    /// The built-in sample; where none of it is within `context` tokens, one request that fills them, half of it prompt: a
    /// model that was made for so few is no conversation's, and is to run all the same.
    pub fn built_in(context: usize) -> Lengths {
        let sample = Lengths::default();
        if context < 2 || sample.requests.iter().any(|request| request.total() <= context) {
            return sample;
        }
        let prompt = context / 2;
        let source = format!("a request of {context} tokens, since {} are all longer", sample.source);
        Lengths { requests: vec![Request { prompt, output: context - prompt }], source }
    }

    /// Reads `text`; `source` names it in reports. A request with an empty prompt or answer counts as of one token.
    pub fn parse(text: &str, source: &str) -> Result<Lengths, LengthsError> {
        let start = text.trim_start();
        let requests = match start.bytes().next() {
            Some(b'[') => match serde_json::from_str::<Vec<Value>>(start) {
                Ok(entries) => entries.iter().enumerate().map(|(i, v)| object(v, i + 1)).collect(),
                // Lines of pairs.
                Err(_) => lines(text),
            },
            Some(b'{') => lines(text),
            _ => csv(text),
        }?;
        match requests.is_empty() {
            true => Err(LengthsError::Empty),
            false => Ok(Lengths { requests, source: source.to_owned() }),
        }
    }

    /// At most `n` of them, evenly spaced.
    pub fn sample(&self, n: usize) -> Vec<Request> {
        let len = self.requests.len();
        if len <= n {
            return self.requests.clone();
        }
        (0..n).map(|i| self.requests[i * len / n]).collect()
    }
}

fn lines(text: &str) -> Result<Vec<Request>, LengthsError> {
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    numbered
        .map(|(i, line)| match serde_json::from_str::<Value>(line) {
            Ok(value) => object(&value, i + 1),
            Err(error) => Err(LengthsError::Line { line: i + 1, reason: format!("not JSON: {error}") }),
        })
        .collect()
}

/// An object with both lengths, or a pair.
fn object(value: &Value, line: usize) -> Result<Request, LengthsError> {
    match value {
        Value::Array(pair) if pair.len() == 2 => {
            Ok(Request { prompt: tokens(&pair[0], "prompt", line)?, output: tokens(&pair[1], "output", line)? })
        }
        Value::Object(fields) => {
            let find = |what, names: &[&str]| {
                let named = |name: &&str| fields.iter().find(|(key, _)| plain(key) == **name);
                match names.iter().find_map(named) {
                    Some((key, value)) => tokens(value, key, line),
                    None => Err(column(what, names, fields.keys().map(String::as_str))),
                }
            };
            Ok(Request { prompt: find("prompt", PROMPT)?, output: find("output", OUTPUT)? })
        }
        _ => Err(LengthsError::Line { line, reason: "neither an object nor a pair of numbers".into() }),
    }
}

fn tokens(value: &Value, column: &str, line: usize) -> Result<usize, LengthsError> {
    let whole = |x: f64| (x >= 0.0 && x <= MOST as f64 && x.fract() == 0.0).then_some(x as usize);
    match value {
        Value::Number(n) => n.as_f64().and_then(whole).map(|n| n.max(1)).ok_or_else(|| LengthsError::Line {
            line,
            reason: format!("{column} is {n}, which is no count of tokens up to {MOST}"),
        }),
        Value::Array(ids) if ids.iter().all(Value::is_number) => Ok(ids.len().clamp(1, MOST)),
        Value::String(_) | Value::Array(_) | Value::Object(_) => {
            Err(LengthsError::Text { line, column: column.to_owned() })
        }
        Value::Null | Value::Bool(_) => {
            Err(LengthsError::Line { line, reason: format!("{column} is {value}, which is no count of tokens") })
        }
    }
}

fn csv(text: &str) -> Result<Vec<Request>, LengthsError> {
    let mut numbered = text
        .lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim()))
        .filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
    let mut rows = numbered.clone();
    let Some((_, head)) = numbered.next() else { return Ok(vec![]) };
    let head: Vec<&str> = head.split([',', '\t', ';']).map(|c| c.trim().trim_matches('"')).collect();
    let headless = head.len() == 2 && head.iter().all(|c| c.parse::<f64>().is_ok());
    let (prompt, output) = if headless {
        (0, 1)
    } else {
        rows.next();
        let find = |what, names: &[&str]| {
            let at = |name: &&str| head.iter().position(|cell| plain(cell) == **name);
            names.iter().find_map(at).ok_or_else(|| column(what, names, head.iter().copied()))
        };
        (find("prompt", PROMPT)?, find("output", OUTPUT)?)
    };
    rows.map(|(line, row)| {
        let cells: Vec<&str> = row.split([',', '\t', ';']).map(|c| c.trim().trim_matches('"')).collect();
        let cell = |at: usize, what: &str| match cells.get(at).map(|c| (c, serde_json::from_str::<Value>(c))) {
            Some((_, Ok(value @ Value::Number(_)))) => tokens(&value, what, line),
            Some((cell, _)) => {
                Err(LengthsError::Line { line, reason: format!("{what} is {cell:?}, which is no count of tokens") })
            }
            None => Err(LengthsError::Line { line, reason: format!("no {what} in it") }),
        };
        Ok(Request { prompt: cell(prompt, "prompt")?, output: cell(output, "output")? })
    })
    .collect()
}

fn column<'a>(what: &'static str, names: &[&str], found: impl Iterator<Item = &'a str>) -> LengthsError {
    let list = |names: Vec<&str>| names.join(", ");
    LengthsError::Column { what, known: list(names.to_vec()), found: list(found.take(20).collect()) }
}

/// A column's name without case and separators.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// As [`plain`] writes them: Azure's traces (ContextTokens, GeneratedTokens), BurstGPT (Request tokens, Response tokens),
/// OpenAI's usage, vLLM's benchmarks, Vidur (num_prefill_tokens).
const PROMPT: &[&str] = &[
    "contexttokens",
    "prompttokens",
    "promptlen",
    "promptlength",
    "inputtokens",
    "inputlen",
    "inputlength",
    "requesttokens",
    "numprefilltokens",
    "prompttokenids",
    "prompt",
    "input",
    "human",
    "conversations",
];
const OUTPUT: &[&str] = &[
    "generatedtokens",
    "completiontokens",
    "completionlen",
    "outputtokens",
    "outputlen",
    "outputlength",
    "responsetokens",
    "responselen",
    "numdecodetokens",
    "outputtokenids",
    "output",
    "completion",
    "response",
    "gpt",
    "conversations",
];
/// Longest length that is believed.
const MOST: usize = 1 << 24;
const DEFAULT: &str = include_str!("lengths.csv");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(usize, usize)> {
        Lengths::parse(text, "test").unwrap().requests.iter().map(|r| (r.prompt, r.output)).collect()
    }

    #[test]
    fn published_forms_are_read() {
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n\n2023-11-16 18:15:50,396,0\n";
        assert_eq!(pairs(azure), [(374, 44), (396, 1)]);
        assert_eq!(pairs("Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n"), [(472, 18)]);
        assert_eq!(pairs("# no head\n10,20\n30,40\n"), [(10, 20), (30, 40)]);
        assert_eq!(pairs("[[10, 20], [30, 40]]"), [(10, 20), (30, 40)]);
        assert_eq!(pairs("[10, 20]\n[30, 40]\n"), [(10, 20), (30, 40)]);
        assert_eq!(pairs("[{\"prompt_len\": 7, \"output_len\": 9}]"), [(7, 9)]);
        assert_eq!(pairs("{\"prompt_token_ids\": [1, 2, 3], \"completion_tokens\": 4}\n"), [(3, 4)]);
        assert_eq!(pairs("{\"id\": \"a\", \"human\": 30, \"gpt\": 40}\n"), [(30, 40)]);
    }

    #[test]
    fn the_built_in_lengths_are_read_and_sampled_in_order() {
        let lengths = Lengths::default();
        assert_eq!((lengths.requests.len(), lengths.requests[0]), (510, Request { prompt: 374, output: 44 }));
        let sample = lengths.sample(17);
        assert_eq!((sample.len(), sample[0], sample[1]), (17, lengths.requests[0], lengths.requests[30]));
        assert_eq!(lengths.sample(1000), lengths.requests);
    }

    #[test]
    fn where_no_built_in_request_is_short_enough_one_fills_the_context() {
        let shortest = Lengths::default().requests.iter().map(|request| request.total()).min().unwrap();
        assert_eq!(Lengths::built_in(shortest), Lengths::default());
        assert_eq!(Lengths::built_in(shortest - 1).requests.len(), 1);
        assert_eq!(Lengths::built_in(9).requests, [Request { prompt: 4, output: 5 }]);
        assert_eq!(Lengths::built_in(1), Lengths::default(), "too few for a prompt and an answer");
    }

    #[test]
    fn what_is_no_count_of_tokens_is_named() {
        let text = |t: &str| Lengths::parse(t, "test").unwrap_err().to_string();
        assert_eq!(text(""), "no request in it");
        assert!(text("a,b\n1,2\n").contains("no prompt column: looked for contexttokens"), "{}", text("a,b\n1,2\n"));
        assert!(text("prompt,x\n1,2\n").contains("no output column"));
        assert!(text("prompt,output\n1,two\n").contains("line 2: output is \"two\""));
        assert!(text("prompt,output\n1\n").contains("line 2: no output"));
        assert!(text("[{\"prompt\": \"hello\", \"output\": 3}]").contains("prompt is text"));
        assert!(text("{\"conversations\": [{\"from\": \"human\"}]}").contains("conversations is text"));
        assert!(text("[[1, -2]]").contains("output is -2"));
        assert!(text("[[1, 2.5]]").contains("output is 2.5"));
        assert!(text("{\"prompt\": 1").contains("line 1: not JSON"));
    }

    proptest! {
        #[test]
        fn any_text_gives_requests_or_an_error(text in "(?s)([\\[{]|prompt,output\n)?.{0,200}") {
            if let Ok(lengths) = Lengths::parse(&text, "test") {
                prop_assert!(lengths.requests.iter().all(|r| r.prompt >= 1 && r.output >= 1 && r.total() <= 2 * MOST));
            }
        }

        #[test]
        fn numbers_in_any_place_give_requests_or_an_error(cells in prop::collection::vec("[-0-9.e,\n]{1,12}", 0..20)) {
            let _ = Lengths::parse(&format!("prompt,output\n{}", cells.concat()), "test");
        }
    }
}
