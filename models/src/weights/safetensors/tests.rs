//! Safetensors sources over fixtures, broken files and arbitrary bytes.
