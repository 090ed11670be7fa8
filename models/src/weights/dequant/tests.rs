//! Blocks against gguf-py.
