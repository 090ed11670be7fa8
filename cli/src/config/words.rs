//! What clap does not know of a command line of `njoule serve`: short flags of several letters, and a model behind a name.
//!
//! Invariant: a command line that clap reads as it was meant is not changed.

use std::ffi::{OsStr, OsString};

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::SERVE;
use crate::fetch::ModelRef;

/// vLLM's and llama.cpp's short flags of several letters, in the words that clap takes.
pub fn spelled_out(mut args: Vec<OsString>) -> Vec<OsString> {
    let Some(verb) = verb(&args) else { return args };
    for word in args[verb..].iter_mut().take_while(|word| *word != "--") {
        let Some(text) = word.to_str() else { continue };
        for (short, long) in SHORT {
            match text.strip_prefix(short) {
                Some("") => *word = long.into(),
                Some(value) if value.starts_with('=') => *word = format!("{long}{value}").into(),
                _ => continue,
            }
            break;
        }
    }
    args
}

/// The same where the last of several served names is the model: none was named elsewhere on the command line, and it looks like
/// one (a path, org/name, random:preset). vLLM takes several names, and people write the model behind the first.
pub fn model_behind_names(args: &[OsString], serve: &ArgMatches) -> Option<Vec<OsString>> {
    let typed = |id: &str| serve.value_source(id) == Some(ValueSource::CommandLine);
    if !typed("served_model_name") || typed("positional") || typed("model") {
        return None;
    }
    let verb = verb(args)?;
    let is_flag = |word: &OsString| NAMES.iter().any(|name| word == name);
    let flag = args.iter().rposition(is_flag).filter(|at| *at > verb)?;
    let values = args[flag + 1..].iter().take_while(|word| !word.as_encoded_bytes().starts_with(b"-")).count();
    let last = flag + values;
    let model = args.get(last).filter(|_| values > 1)?.to_str()?;
    ModelRef::parse(model).ok()?;
    let mut args = args.to_vec();
    let model = args.remove(last);
    args.insert(verb + 1, model);
    Some(args)
}

/// Where the word `serve` stands, if that is the verb: flags before it take no values.
fn verb(args: &[OsString]) -> Option<usize> {
    let first = (1..args.len()).find(|at| !args[*at].as_encoded_bytes().starts_with(b"-"))?;
    (args[first] == OsStr::new(SERVE)).then_some(first)
}

const SHORT: [(&str, &str); 2] = [("-tp", "--tensor-parallel-size"), ("-np", "--max-num-seqs")];
const NAMES: [&str; 2] = ["--served-model-name", "--alias"];

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(line: &str) -> String {
        let words = spelled_out(line.split(' ').map(Into::into).collect());
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn short_flags_of_several_letters_are_spelled_out_where_something_is_served() {
        for (line, wanted) in [
            ("njoule -q serve m -tp 1 -np=4", "njoule -q serve m --tensor-parallel-size 1 --max-num-seqs=4"),
            ("njoule serve -t 2 -np 3", "njoule serve -t 2 --max-num-seqs 3"),
            ("njoule serve -npx", "njoule serve -npx"),
            ("njoule serve m -- -tp", "njoule serve m -- -tp"),
            ("njoule generate -tp 1", "njoule generate -tp 1"),
            ("njoule", "njoule"),
        ] {
            assert_eq!(spelled(line), wanted);
        }
    }
}
