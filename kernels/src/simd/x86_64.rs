//! x86-64 vectors: AVX2 (256 bits) and AVX-512 (512 bits, with VNNI, optionally BF16).

pub mod avx2;
pub mod avx512;
