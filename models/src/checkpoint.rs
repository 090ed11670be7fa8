//! Opens a model: a Hugging Face directory, a GGUF file, or a preset with random weights.
//!
//! A [`Checkpoint`] is everything that is known of a model before a backend loads it. Tokenizers are opened separately,
//! see [`crate::tokenizer`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::config::{ConfigError, ModelConfig, Quantization, token_ids};
use crate::program::WeightDecl;
use crate::weights::gguf::Gguf;
use crate::weights::random::{Preset, RandomSource};
use crate::weights::safetensors::SafetensorsSource;
use crate::weights::{Container, DType, Encoding, StoredTypes, WeightError, WeightRows, WeightSource};

/// What a checkpoint suggests for generation, from `generation_config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end a sequence: those of the config and those of the generation config.
    pub eos: Vec<u32>,
    /// Whether to sample at all; greedy where false.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f32>,
    /// Probability mass kept.
    pub top_p: Option<f32>,
    /// Candidates kept; 0 keeps all.
    pub top_k: Option<u32>,
    /// Factor against repetition.
    pub repetition_penalty: Option<f32>,
}

/// Where a checkpoint's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// Random weights in a published shape.
    Preset(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Directory(path) | Origin::Gguf(path) => path.display().fmt(f),
            Origin::Preset(name) => write!(f, "random:{name}"),
        }
    }
}

/// A model that can be loaded.
pub struct Checkpoint {
    /// Where it is.
    pub origin: Origin,
    /// Architecture and sizes.
    pub config: ModelConfig,
    /// The open file where it is GGUF: its metadata hold the vocabulary.
    pub gguf: Option<Arc<Gguf>>,
    /// Weights.
    pub weights: Box<dyn WeightSource>,
    /// Defaults of generation.
    pub generation: GenerationDefaults,
    /// Types the tensors are stored as.
    pub stored: StoredTypes,
    /// Bytes of the files that hold the weights; 0 for a preset.
    pub file_bytes: u64,
}

impl Checkpoint {
    /// Opens a directory with `config.json` and safetensors, a `.gguf` file, or a directory with exactly one of those.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let meta = std::fs::metadata(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        if meta.is_dir() { Self::open_directory(path) } else { Self::open_gguf(path) }
    }

    /// Random weights in a published shape, see [`crate::weights::random::PRESETS`].
    pub fn random(preset: &str) -> Result<Self, CheckpointError> {
        let found = Preset::find(preset).ok_or_else(|| CheckpointError::UnknownPreset { name: preset.to_owned() })?;
        let config =
            found.config().validated().map_err(|cause| CheckpointError::Config { path: preset.into(), cause })?;
        let mut stored = StoredTypes::default();
        let bytes = config.program().parameters().saturating_mul(2);
        stored.add(Encoding::Dense(DType::BF16), bytes);
        Ok(Checkpoint {
            origin: Origin::Preset(found.name.to_owned()),
            generation: GenerationDefaults::of_config(&config),
            config,
            stored,
            file_bytes: 0,
            weights: Box::new(RandomSource::default()),
            gguf: None,
        })
    }

    /// What a directory says of a model whose weights are elsewhere: config and generation config.
    pub fn described(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join("config.json");
        let wrong = |cause| CheckpointError::Config { path: path.clone(), cause };
        let config = ModelConfig::from_hf_json(&read_json(&path)?).map_err(wrong)?;
        Ok(Checkpoint {
            origin: Origin::Directory(dir.to_owned()),
            generation: GenerationDefaults::read(&dir.join("generation_config.json"), &config)?,
            config,
            stored: StoredTypes::default(),
            file_bytes: 0,
            weights: Box::new(NoWeights { dir: dir.to_owned() }),
            gguf: None,
        })
    }

    /// What the head of a GGUF file of `whole` bytes says of a model whose weights are elsewhere.
    pub fn described_by_head(path: &Path, whole: u64) -> Result<Self, CheckpointError> {
        Self::of_gguf(Gguf::open_head(path, whole)?)
    }

    fn open_directory(dir: &Path) -> Result<Self, CheckpointError> {
        let config_path = dir.join("config.json");
        // A directory of GGUF files may come with the config of the model they were made from.
        if !config_path.is_file() || !SafetensorsSource::is_in(dir) && only_gguf(dir).is_ok() {
            return Self::open_gguf(&only_gguf(dir)?);
        }
        let json = read_json(&config_path)?;
        let wrong = |cause| CheckpointError::Config { path: config_path.clone(), cause };
        let config = ModelConfig::from_hf_json(&json).map_err(wrong)?;
        let source = SafetensorsSource::open(dir)?.quantized(Quantization::from_hf_json(&json).map_err(wrong)?);
        Ok(Checkpoint {
            origin: Origin::Directory(dir.to_owned()),
            generation: GenerationDefaults::read(&dir.join("generation_config.json"), &config)?,
            config,
            stored: source.stored_types(),
            file_bytes: source.file_bytes(),
            weights: Box::new(source),
            gguf: None,
        })
    }

    fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        Self::of_gguf(Gguf::open(path)?)
    }

    fn of_gguf(gguf: Gguf) -> Result<Self, CheckpointError> {
        let gguf = Arc::new(gguf);
        let path = gguf.path().to_owned();
        let config = gguf.config().map_err(|cause| CheckpointError::Config { path: path.clone(), cause })?;
        Ok(Checkpoint {
            generation: GenerationDefaults::of_config(&config),
            config,
            stored: gguf.stored_types(),
            file_bytes: gguf.file_bytes(),
            weights: Box::new(Arc::clone(&gguf)),
            gguf: Some(gguf),
            origin: Origin::Gguf(path),
        })
    }
}

/// Has no tensor.
struct NoWeights {
    dir: PathBuf,
}

impl WeightSource for NoWeights {
    fn container(&self) -> Container {
        Container::Safetensors
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        Err(WeightError::Missing { name: decl.name.clone(), path: self.dir.clone() })
    }
}

/// The GGUF file of a directory; of a split one, the first part.
fn only_gguf(dir: &Path) -> Result<PathBuf, CheckpointError> {
    let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
    let mut found = vec![];
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Err(CheckpointError::NothingThere { path: dir.to_owned() }),
        [one] => Ok(one.clone()),
        [first, ..]
            if first.to_string_lossy().contains("-00001-of-")
                && Gguf::open(first).is_ok_and(|g| g.parts() == found.len()) =>
        {
            Ok(first.clone())
        }
        [first, ..] => {
            Err(CheckpointError::SeveralGguf { path: dir.to_owned(), first: first.clone(), count: found.len() })
        }
    }
}

fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let bytes = std::fs::read(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

impl GenerationDefaults {
    /// Those of a config alone.
    fn of_config(config: &ModelConfig) -> Self {
        GenerationDefaults { eos: config.eos.clone(), ..Default::default() }
    }

    /// Reads `path` where it exists.
    fn read(path: &Path, config: &ModelConfig) -> Result<Self, CheckpointError> {
        let mut defaults = Self::of_config(config);
        if !path.exists() {
            return Ok(defaults);
        }
        let json = read_json(path)?;
        let field = |key: &'static str| json.get(key).filter(|v| !v.is_null());
        let error = |key: &'static str, value: &Value| {
            let value = value.to_string().chars().take(80).collect();
            CheckpointError::Generation { path: path.to_owned(), key, value }
        };
        let number = |key| {
            // f32 is the precision that sampling works in
            let read = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x >= 0.0).map(|x| x as f32);
            field(key).map(|v| read(v).ok_or_else(|| error(key, v))).transpose()
        };
        let whole = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        if let Some(value) = field("eos_token_id") {
            let more = token_ids(value).ok_or_else(|| error("eos_token_id", value))?;
            more.into_iter().for_each(|id| {
                if !defaults.eos.contains(&id) {
                    defaults.eos.push(id)
                }
            });
        }
        defaults.do_sample =
            field("do_sample").map(|v| v.as_bool().ok_or_else(|| error("do_sample", v))).transpose()?;
        defaults.top_k = field("top_k").map(|v| whole(v).ok_or_else(|| error("top_k", v))).transpose()?;
        defaults.temperature = number("temperature")?;
        defaults.top_p = number("top_p")?;
        defaults.repetition_penalty = number("repetition_penalty")?;
        Ok(defaults)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Checkpoint { origin, config, weights: _, gguf: _, generation, stored, file_bytes } = self;
        f.debug_struct("Checkpoint")
            .field("origin", origin)
            .field("config", config)
            .field("generation", generation)
            .field("stored", stored)
            .field("file_bytes", file_bytes)
            .finish_non_exhaustive()
    }
}

/// Why a checkpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or directory could not be read.
    #[error("cannot read {path}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// Neither a checkpoint directory nor a GGUF file.
    #[error("{path} is no checkpoint: expected a directory with config.json and model.safetensors, or a .gguf file")]
    NothingThere {
        /// What was looked at.
        path: PathBuf,
    },
    /// A directory without config.json holds several GGUF files.
    #[error("{path} holds {count} .gguf files, name one of them, for example {first}")]
    SeveralGguf {
        /// Directory.
        path: PathBuf,
        /// First file, by name.
        first: PathBuf,
        /// How many.
        count: usize,
    },
    /// No preset has this name.
    #[error("no preset is called `{name}`, there are {}", Preset::names())]
    UnknownPreset {
        /// What was asked for.
        name: String,
    },
    /// A JSON file does not parse.
    #[error("{path} is not valid JSON")]
    Json {
        /// File.
        path: PathBuf,
        /// Cause, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The model is not supported, or its config makes no sense.
    #[error("{path}: {cause}")]
    Config {
        /// File.
        path: PathBuf,
        /// Cause; no `source`, since chains of causes would say it twice.
        cause: ConfigError,
    },
    /// The generation config has a field that makes no sense.
    #[error("{path}: field `{key}` cannot be {value}")]
    Generation {
        /// File.
        path: PathBuf,
        /// Field.
        key: &'static str,
        /// Its value, shortened.
        value: String,
    },
    /// The weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightError),
}

#[cfg(test)]
mod tests;
