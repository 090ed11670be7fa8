//! The text side of a model: tokenizer and chat template, built on a thread of their own while weights are packed.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use njoule_models::chat::{ChatInput, ChatTemplate};
use njoule_models::tokenizer::Tokenizer;
use njoule_models::weights::gguf::Gguf;
use njoule_runtime::request::{TokenText, TokenizerText};
use serde_json::Value;

use super::timing;

/// Where a tokenizer comes from.
pub enum Source {
    /// A directory in Hugging Face's layout.
    Directory(PathBuf),
    /// GGUF metadata.
    Gguf(Option<Arc<Gguf>>),
    /// Nowhere.
    None,
}

/// Tokenizer and chat template of a model.
pub struct Text {
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's template, if it has one.
    pub template: Option<ChatTemplate>,
}

impl Text {
    fn build(source: Source) -> anyhow::Result<Option<Text>> {
        let tokenizer = match source {
            Source::Directory(dir) if dir.join("tokenizer.json").is_file() => {
                Tokenizer::from_files(&dir).with_context(|| format!("cannot use the tokenizer in {}", dir.display()))?
            }
            Source::Gguf(Some(gguf)) => match gguf.vocab()? {
                Some(vocab) => Tokenizer::from_gguf(&vocab)
                    .with_context(|| format!("cannot use the tokenizer in {}", gguf.path().display()))?,
                None => return Ok(None),
            },
            Source::Directory(_) | Source::Gguf(None) | Source::None => return Ok(None),
        };
        let template = ChatTemplate::of(&tokenizer)?;
        timing::mark("tokenizer built (own thread)");
        Ok(Some(Text { tokenizer: Arc::new(tokenizer), template }))
    }

    /// Ids of a chat that the model shall answer.
    pub fn encode_chat(&self, template: &ChatTemplate, messages: Vec<Value>) -> anyhow::Result<Vec<u32>> {
        Ok(template.encode(&self.tokenizer, &ChatInput::new(messages))?)
    }

    /// Ids of a text as it stands, special tokens recognised, with what the model wants before it.
    pub fn encode_raw(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, true)?)
    }

    /// Source of an answer's text. Where the answer continues the prompt's own text its first token may begin with a
    /// space, and a character may have begun in the prompt.
    pub fn answers(&self, continues: bool) -> Arc<dyn TokenText> {
        Arc::new(TokenizerText::new(Arc::clone(&self.tokenizer), true).continuing(continues))
    }
}

/// A [`Text`] in the making.
pub struct TextLoader(JoinHandle<anyhow::Result<Option<Text>>>);

impl TextLoader {
    pub(super) fn start(source: Source) -> TextLoader {
        TextLoader(std::thread::spawn(move || Text::build(source)))
    }

    /// Waits for it; `None` where the model has no tokenizer.
    pub fn wait(self) -> anyhow::Result<Option<Text>> {
        self.0.join().map_err(|_| anyhow!("the tokenizer's thread panicked"))?
    }

    /// Waits for it; a model without a tokenizer is an error that says what to do instead.
    pub fn require(self, instead: &str) -> anyhow::Result<Text> {
        self.wait()?
            .ok_or_else(|| anyhow!("the model has no tokenizer (tokenizer.json, or a GGUF's vocabulary); {instead}"))
    }
}
