//! Chat templates: messages to text, and to token ids.
//!
//! Templates are Jinja as transformers' `apply_chat_template` runs it (version 4.57); minijinja is the engine and
//! [`python`] holds what it does differently. A template comes from a model file, messages come from a client:
//! instructions and output are bounded, and no string of a message becomes a special token ([`guard`]).

pub mod guard;
mod json;
pub mod python;
#[cfg(test)]
mod tests;
mod time;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value, json};

use crate::tokenizer::{Tokenizer, TokenizerError};
use guard::Guard;

/// Why a chat cannot be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is not one.
    #[error("chat template `{name}` is not understood: {source}")]
    Syntax {
        /// Which of the model's templates.
        name: String,
        /// What is wrong with it.
        source: minijinja::Error,
    },
    /// The template refuses these messages.
    #[error("the chat template refuses the messages: {0}")]
    Raised(String),
    /// The template fails on these messages.
    #[error("the chat template fails on these messages: {0}")]
    Render(minijinja::Error),
    /// The output is out of proportion.
    #[error("the chat template writes more than {limit} bytes")]
    TooLong {
        /// How much it may write.
        limit: usize,
    },
    /// `continue_final_message` cannot be done.
    #[error("the final message cannot be continued: {0}")]
    Continue(&'static str),
    /// The text cannot be encoded.
    #[error(transparent)]
    Encode(#[from] TokenizerError),
}

/// What is rendered.
#[derive(Clone, Debug, Default)]
pub struct ChatInput {
    /// The messages: objects with `role`, `content`, ...
    pub messages: Vec<Value>,
    /// Tools that the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Documents for retrieval-augmented templates.
    pub documents: Option<Vec<Value>>,
    /// Whether the text ends with the beginning of an assistant message.
    pub add_generation_prompt: bool,
    /// Whether the text ends within the last message.
    pub continue_final_message: bool,
    /// Further variables of the template (`enable_thinking`, ...).
    pub variables: Map<String, Value>,
    /// What `strftime_now` calls now; the system's clock where absent. Always in UTC.
    pub now: Option<SystemTime>,
}

impl ChatInput {
    /// Messages to which the model shall answer.
    pub fn new(messages: Vec<Value>) -> ChatInput {
        ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() }
    }
}

/// A message of plain text.
pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// The chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    sources: Vec<(String, String)>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// The template in `source`; `bos_token` and `eos_token` are variables of it.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<ChatTemplate, ChatError> {
        ChatTemplate::named(&[("default".to_owned(), source.to_owned())], bos_token, eos_token)
    }

    /// The templates that came with a tokenizer; `None` where there are none.
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, ChatError> {
        let templates = tokenizer.chat_templates();
        if templates.is_empty() {
            return Ok(None);
        }
        ChatTemplate::named(templates, tokenizer.bos_token(), tokenizer.eos_token()).map(Some)
    }

    fn named(templates: &[(String, String)], bos: Option<&str>, eos: Option<&str>) -> Result<ChatTemplate, ChatError> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_fuel(Some(FUEL));
        python::install(&mut env);
        for (name, source) in templates {
            env.add_template_owned(name.clone(), python::prepare(source))
                .map_err(|source| ChatError::Syntax { name: name.clone(), source })?;
        }
        Ok(ChatTemplate {
            env,
            sources: templates.to_vec(),
            bos_token: bos.map(str::to_owned),
            eos_token: eos.map(str::to_owned),
        })
    }

    /// Their sources, by name.
    pub fn sources(&self) -> &[(String, String)] {
        &self.sources
    }

    /// The text of a chat, as `apply_chat_template(..., tokenize=False)` gives it.
    pub fn render(&self, input: &ChatInput) -> Result<String, ChatError> {
        if input.continue_final_message && input.add_generation_prompt {
            return Err(ChatError::Continue("a generation prompt is asked for as well"));
        }
        let mut context = Map::new();
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                context.insert(name.into(), token.as_str().into());
            }
        }
        context.extend(input.variables.clone());
        context.insert("messages".into(), Value::from(input.messages.clone()));
        context.insert("tools".into(), input.tools.clone().map_or(Value::Null, Value::from));
        context.insert("documents".into(), input.documents.clone().map_or(Value::Null, Value::from));
        context.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        let mut context = minijinja::Value::from_serialize(&context);
        if let Some(now) = input.now {
            let strftime = python::strftime_at(now);
            context = minijinja::context! { strftime_now => strftime, ..context };
        }
        let text = self.run(self.choose(input.tools.is_some()), context)?;
        match input.continue_final_message {
            true => cut_after_final(text, input.messages.last()),
            false => Ok(text),
        }
    }

    /// The ids of a chat. They equal Hugging Face's encoding of the rendered text wherever no string of `input` contains
    /// a special token; where one does, it is spelled out as plain text.
    pub fn encode(&self, tokenizer: &Tokenizer, input: &ChatInput) -> Result<Vec<u32>, ChatError> {
        self.encode_within(tokenizer, input, usize::MAX)
    }

    /// The same; a text that certainly has more than `most` tokens is refused and not encoded.
    pub fn encode_within(&self, tokenizer: &Tokenizer, input: &ChatInput, most: usize) -> Result<Vec<u32>, ChatError> {
        let (_, template) = &self.sources[self.index(input.tools.is_some())];
        match Guard::new(tokenizer, template, input) {
            None => {
                let text = self.render(input)?;
                tokenizer.check_length(&text, most)?;
                Ok(tokenizer.encode(&text, false)?)
            }
            Some(guard) => {
                let text = self.render(guard.input())?;
                Ok(guard.encode(tokenizer, &text, most)?)
            }
        }
    }

    /// As transformers chooses among several templates: `tool_use` where there are tools, else `default`.
    fn index(&self, tools: bool) -> usize {
        let find = |wanted: &str| self.sources.iter().position(|(name, _)| name == wanted);
        tools.then(|| find("tool_use")).flatten().or_else(|| find("default")).unwrap_or(0)
    }

    fn choose(&self, tools: bool) -> &str {
        &self.sources[self.index(tools)].0
    }

    fn run(&self, name: &str, context: minijinja::Value) -> Result<String, ChatError> {
        let template = self.env.get_template(name).map_err(ChatError::Render)?;
        let mut out = Bounded { bytes: Vec::new(), full: false };
        // The engine has slips (such as `[][::-1]`, in 2.24): a panic is the template's failure, not the process's.
        let done = catch_unwind(AssertUnwindSafe(|| template.render_captured_to(context, &mut out).map(drop)));
        match done.unwrap_or_else(|_| Err(python::broken())) {
            Ok(()) => {}
            Err(_) if out.full => return Err(ChatError::TooLong { limit: MAX_OUTPUT }),
            Err(e) => {
                return Err(match python::raised(&e) {
                    Some(message) => ChatError::Raised(message),
                    None => ChatError::Render(e),
                });
            }
        }
        Ok(String::from_utf8(out.bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }
}

/// Instructions that a rendering may take: a chat of 10000 messages takes about a tenth.
const FUEL: u64 = 20_000_000;

/// Bytes that a rendering may write.
const MAX_OUTPUT: usize = 1 << 28;

struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for &mut Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > MAX_OUTPUT {
            self.full = true;
            return Err(io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Ends the text with the last message's content, white space kept where the template kept it.
fn cut_after_final(mut text: String, last: Option<&Value>) -> Result<String, ChatError> {
    let content = last.map(|m| &m["content"]);
    let content = match content {
        Some(Value::Array(parts)) => parts.iter().rev().find_map(|p| p["text"].as_str()),
        other => other.and_then(Value::as_str),
    };
    let content = content.ok_or(ChatError::Continue("it has no text"))?;
    let (stripped, unindented) = (python::strip(content), python::lstrip(content));
    let at = text.rfind(stripped).ok_or(ChatError::Continue("the chat template changes it"))?;
    // transformers compares with the whole message: leading white space always means the shorter cut.
    let whole = unindented.len() == content.len() && text[at..].starts_with(content);
    text.truncate(at + if whole { content.len() } else { stripped.len() });
    Ok(text)
}
