//! GGUF metadata as a model configuration.
