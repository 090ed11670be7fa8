//! Random weights in the shapes of published models, for benchmarks and tests without a download.
//!
//! Value `i` of a tensor is a pure function of (tensor name, `i`): the same on every machine, in whatever chunks it is
//! read. Values are about normal with standard deviation 0.02, rounded to bf16; norm weights are 1.

use std::ops::Range;

use super::{Container, DType, Encoding, WeightError, WeightRows, WeightSource};
use crate::config::{Biases, Family, ModelConfig, RopeConfig, RopeScaling};
use crate::program::{View, WeightDecl, WeightUse};

/// A source that has every tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomSource {
    seed: u64,
}

impl RandomSource {
    /// Another seed, another model.
    pub fn new(seed: u64) -> Self {
        RandomSource { seed }
    }
}

impl WeightSource for RandomSource {
    fn container(&self) -> Container {
        Container::Generated
    }

    fn version(&self) -> u64 {
        self.seed
    }

    fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
        let is_norm = decl.usage == WeightUse::Vector && decl.name.ends_with("norm.weight");
        // FNV-1a, then mixed so that names of one pattern have unrelated streams.
        let name = decl
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let key = mix(name ^ mix(self.seed));
        let (rows, cols, view) = (decl.rows, decl.cols, decl.view);
        let is_vector = decl.usage == WeightUse::Vector;
        let experts = decl.experts.unwrap_or(1);
        Ok(Box::new(RandomRows { key: (!is_norm).then_some(key), experts, rows, cols, view, is_vector }))
    }
}

/// Rows of a random tensor, or of a stack of them.
struct RandomRows {
    /// Key of the stream; absent for ones.
    key: Option<u64>,
    experts: usize,
    rows: usize,
    cols: usize,
    view: View,
    /// Whether the view picks elements of a row.
    is_vector: bool,
}

impl WeightRows for RandomRows {
    fn encoding(&self) -> Encoding {
        Encoding::Dense(DType::BF16)
    }

    fn shape(&self) -> (usize, usize) {
        (self.experts * self.rows, self.cols)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.cols;
        assert!(rows.end <= self.shape().0 && out.len() == rows.len() * cols, "rows of the view, and room for them");
        let Some(key) = self.key else { return out.fill(1.0) };
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            let (expert, row) = (row / self.rows, row % self.rows);
            if self.is_vector {
                let first = expert * self.view.of_rows;
                out.chunks_mut(1).enumerate().for_each(|(i, x)| values(key, first + self.view.row(i), x));
            } else {
                values(key, (expert * self.view.of_rows + self.view.row(row)) * cols, out);
            }
        }
    }

    fn raw_row(&self, _row: usize) -> Option<&[u8]> {
        None
    }

    fn release(&self, _rows: Range<usize>) {}
}

/// Values `start ..` of the stream of `key`.
fn values(key: u64, start: usize, out: &mut [f32]) {
    let pair = |i: usize| two_values(mix(key.wrapping_add((i as u64).wrapping_mul(GOLDEN))));
    // A draw gives two values; a run may begin or end in the middle of one.
    let (lead, rest) = out.split_at_mut((start % 2).min(out.len()));
    lead.iter_mut().for_each(|x| *x = pair(start / 2)[1]);
    let even = start.div_ceil(2);
    let (whole, tail) = rest.as_chunks_mut::<2>();
    whole.iter_mut().enumerate().for_each(|(i, two)| *two = pair(even + i));
    let last = even + whole.len();
    tail.iter_mut().for_each(|x| *x = pair(last)[0]);
}

/// Splitmix64's increment and finaliser (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Sums of four bytes each: bell-shaped, and no transcendental function in sight.
fn two_values(draw: u64) -> [f32; 2] {
    // Neighbouring bytes added into 16-bit lanes, then neighbouring lanes: two sums of four bytes.
    let pairs = (draw & 0x00ff_00ff_00ff_00ff) + (draw >> 8 & 0x00ff_00ff_00ff_00ff);
    let sums = (pairs & 0x0000_ffff_0000_ffff) + (pairs >> 16 & 0x0000_ffff_0000_ffff);
    [sums & 0xffff_ffff, sums >> 32].map(|sum| to_bf16((sum as f32 - MEAN) * SCALE))
}

/// Mean of a sum of four bytes.
const MEAN: f32 = 4.0 * 127.5;
/// 0.02 over the sum's deviation, `sqrt(4 * (256^2 - 1) / 12)`.
const SCALE: f32 = 0.02 / 147.8005;

/// Rounds to the nearest bf16, ties to even; the values are finite.
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// A published shape.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    family: Family,
    vocab: usize,
    hidden: usize,
    layers: usize,
    heads: (usize, usize),
    head_dim: usize,
    ffn: usize,
    max_len: usize,
    eps: f32,
    theta: f64,
    /// Llama 3's rope factor.
    llama3: Option<f64>,
    tied: bool,
    bos: Option<u32>,
    eos: u32,
}

impl Preset {
    /// The preset of this name.
    pub fn find(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|p| p.name == name)
    }

    /// Names of all presets.
    pub fn names() -> String {
        PRESETS.iter().map(|p| p.name).collect::<Vec<_>>().join(", ")
    }

    /// The model.
    pub fn config(&self) -> ModelConfig {
        let scaling = match self.llama3 {
            None => RopeScaling::None,
            Some(factor) => {
                let (low_freq_factor, high_freq_factor, original_max_len) = (1.0, 4.0, 8192);
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_len }
            }
        };
        let config = ModelConfig {
            vocab: self.vocab,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads.0,
            kv_heads: self.heads.1,
            head_dim: self.head_dim,
            ffn: self.ffn,
            max_len: self.max_len,
            norm_eps: self.eps,
            tied: self.tied,
            rope: RopeConfig { theta: self.theta, scaling },
            bias: Biases { qkv: self.family == Family::Qwen2, ..Default::default() },
            head_norms: self.family == Family::Qwen3,
            bos: self.bos,
            eos: vec![self.eos],
            ..ModelConfig::neutral(self.family)
        };
        config.with_plain_attention()
    }
}

const LLAMA_3: Preset = Preset {
    name: "llama-3.1-8b",
    family: Family::Llama,
    vocab: 128_256,
    hidden: 4096,
    layers: 32,
    heads: (32, 8),
    head_dim: 128,
    ffn: 14336,
    max_len: 131_072,
    eps: 1e-5,
    theta: 500_000.0,
    llama3: Some(8.0),
    tied: false,
    bos: Some(128_000),
    eos: 128_001,
};

/// Llama 2's vocabulary and plain rope.
const LLAMA_2: Preset = Preset {
    name: "llama-2-7b",
    vocab: 32000,
    heads: (32, 32),
    ffn: 11008,
    max_len: 4096,
    theta: 10_000.0,
    llama3: None,
    bos: Some(1),
    eos: 2,
    ..LLAMA_3
};

const SMOLLM_2: Preset = Preset {
    name: "smollm2-135m",
    vocab: 49152,
    hidden: 576,
    layers: 30,
    heads: (9, 3),
    head_dim: 64,
    ffn: 1536,
    max_len: 8192,
    theta: 100_000.0,
    tied: true,
    ..LLAMA_2
};

const QWEN_3: Preset = Preset {
    name: "qwen3-0.6b",
    family: Family::Qwen3,
    vocab: 151_936,
    hidden: 1024,
    layers: 28,
    heads: (16, 8),
    head_dim: 128,
    ffn: 3072,
    max_len: 40960,
    eps: 1e-6,
    theta: 1_000_000.0,
    llama3: None,
    tied: true,
    bos: None,
    eos: 151_645,
};

const QWEN_2: Preset = Preset {
    name: "qwen2.5-0.5b",
    family: Family::Qwen2,
    hidden: 896,
    layers: 24,
    heads: (14, 2),
    head_dim: 64,
    ffn: 4864,
    max_len: 32768,
    ..QWEN_3
};

/// Shapes from the `config.json` of the published checkpoints of these names; `synth-1b` is no published model but the
/// project's benchmark shape.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "synth-1b",
        hidden: 2048,
        layers: 16,
        heads: (32, 8),
        head_dim: 64,
        ffn: 8192,
        max_len: 8192,
        theta: 500_000.0,
        ..LLAMA_2
    },
    SMOLLM_2,
    Preset { name: "smollm2-360m", hidden: 960, layers: 32, heads: (15, 5), ffn: 2560, ..SMOLLM_2 },
    Preset { name: "smollm2-1.7b", hidden: 2048, layers: 24, heads: (32, 32), ffn: 8192, theta: 130_000.0, ..SMOLLM_2 },
    Preset {
        name: "tinyllama-1.1b",
        hidden: 2048,
        layers: 22,
        heads: (32, 4),
        head_dim: 64,
        ffn: 5632,
        max_len: 2048,
        ..LLAMA_2
    },
    LLAMA_2,
    Preset {
        name: "llama-3.2-1b",
        hidden: 2048,
        layers: 16,
        head_dim: 64,
        ffn: 8192,
        llama3: Some(32.0),
        tied: true,
        ..LLAMA_3
    },
    Preset {
        name: "llama-3.2-3b",
        hidden: 3072,
        layers: 28,
        heads: (24, 8),
        ffn: 8192,
        llama3: Some(32.0),
        tied: true,
        ..LLAMA_3
    },
    LLAMA_3,
    Preset {
        name: "mistral-7b-v0.3",
        family: Family::Mistral,
        vocab: 32768,
        max_len: 32768,
        theta: 1_000_000.0,
        llama3: None,
        bos: Some(1),
        eos: 2,
        ..LLAMA_3
    },
    QWEN_2,
    Preset { name: "qwen2.5-1.5b", hidden: 1536, layers: 28, heads: (12, 2), head_dim: 128, ffn: 8960, ..QWEN_2 },
    Preset {
        name: "qwen2.5-7b",
        vocab: 152_064,
        hidden: 3584,
        layers: 28,
        heads: (28, 4),
        head_dim: 128,
        ffn: 18944,
        tied: false,
        ..QWEN_2
    },
    QWEN_3,
    Preset { name: "qwen3-1.7b", hidden: 2048, ffn: 6144, ..QWEN_3 },
    Preset { name: "qwen3-4b", hidden: 2560, layers: 36, heads: (32, 8), ffn: 9728, ..QWEN_3 },
    Preset { name: "qwen3-8b", hidden: 4096, layers: 36, heads: (32, 8), ffn: 12288, tied: false, ..QWEN_3 },
    Preset { name: "qwen3-14b", hidden: 5120, layers: 40, heads: (40, 8), ffn: 17408, tied: false, ..QWEN_3 },
    Preset { name: "qwen3-32b", hidden: 5120, layers: 64, heads: (64, 8), ffn: 25600, tied: false, ..QWEN_3 },
];

#[cfg(test)]
mod tests;
