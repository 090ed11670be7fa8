//! Where prompts come from: an argument, stdin, a file of texts or chats, a file of ids.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use njoule_models::chat::message;
use serde_json::Value;

use crate::args::UsageError;
use crate::session::read_token_ids;

/// Everything to answer.
pub enum Input {
    /// Texts and chats, to be encoded.
    Prompts(Vec<Prompt>),
    /// Ids.
    Ids(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Debug, PartialEq)]
pub enum Prompt {
    /// A text: a user's message, or with `--raw` the text itself.
    Text(String),
    /// A chat.
    Messages(Vec<Value>),
}

impl Prompt {
    /// As a chat, after a system message.
    pub fn messages(self, system: Option<&str>) -> Vec<Value> {
        let system = system.map(|text| message("system", text));
        let own = match self {
            Prompt::Text(text) => vec![message("user", &text)],
            Prompt::Messages(messages) => messages,
        };
        system.into_iter().chain(own).collect()
    }
}

impl Input {
    /// Reads what was asked for; stdin where nothing was, if it is no terminal.
    pub fn read(prompt: Option<String>, prompts: Option<&Path>, token_ids: Option<&Path>) -> anyhow::Result<Input> {
        if let Some(path) = token_ids {
            return Ok(Input::Ids(read_token_ids(path)?));
        }
        if let Some(path) = prompts {
            let text = if path == Path::new("-") {
                stdin()?
            } else {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            };
            return parse(&text).with_context(|| format!("cannot use {}", path.display())).map(Input::Prompts);
        }
        let text = match prompt {
            Some(text) if text != "-" => text,
            None if std::io::stdin().is_terminal() => return Err(no_prompt()),
            _ => stdin()?,
        };
        // What a shell or an editor adds to a text is not part of it.
        let text = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
        if text.is_empty() {
            return Err(no_prompt());
        }
        Ok(Input::Prompts(vec![Prompt::Text(text.to_owned())]))
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        match self {
            Input::Prompts(prompts) => prompts.len(),
            Input::Ids(ids) => ids.len(),
        }
    }

    /// Length of the longest prompt, if ids are known.
    pub fn longest_ids(&self) -> Option<usize> {
        match self {
            Input::Prompts(_) => None,
            Input::Ids(ids) => ids.iter().map(Vec::len).max(),
        }
    }
}

fn no_prompt() -> anyhow::Error {
    UsageError("no prompt: give one as an argument, on stdin, with --prompts or with --token-ids".into()).into()
}

fn stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
    Ok(text)
}

/// One prompt per line. If the first line is a JSON object all lines are: `{"prompt": TEXT}` or `{"messages": [...]}`.
fn parse(text: &str) -> anyhow::Result<Vec<Prompt>> {
    let lines: Vec<(usize, &str)> = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    let is_json =
        lines.first().is_some_and(|(_, line)| serde_json::from_str::<Value>(line).is_ok_and(|v| v.is_object()));
    let prompt = |(number, line): &(usize, &str)| match is_json {
        true => from_json(line).with_context(|| format!("line {}", number + 1)),
        false => Ok(Prompt::Text((*line).to_owned())),
    };
    match lines.is_empty() {
        true => Err(anyhow!("it holds no prompt")),
        false => lines.iter().map(prompt).collect(),
    }
}

fn from_json(line: &str) -> anyhow::Result<Prompt> {
    let value: Value = serde_json::from_str(line)?;
    match (value.get("prompt"), value.get("messages")) {
        (Some(Value::String(text)), None) => Ok(Prompt::Text(text.clone())),
        (None, Some(Value::Array(messages))) => Ok(Prompt::Messages(messages.clone())),
        _ => bail!("expected {{\"prompt\": TEXT}} or {{\"messages\": [...]}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_lines_or_json_lines() {
        let text = |s: &str| Prompt::Text(s.into());
        assert_eq!(parse("one\n\ntwo: {}\n").unwrap(), vec![text("one"), text("two: {}")]);
        let chats =
            parse("{\"prompt\": \"a\\nb\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"c\"}]}").unwrap();
        assert_eq!(chats, vec![text("a\nb"), Prompt::Messages(vec![message("user", "c")])]);
        let error = format!("{:#}", parse("{\"prompt\": \"a\"}\n{\"promt\": \"b\"}").unwrap_err());
        assert!(error.contains("line 2"), "{error}");
        assert!(parse("\n \n").is_err());
    }
}
