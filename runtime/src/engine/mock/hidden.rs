//! What a mock's steps cost in truth, and a meter that shows no more than their sum.
//!
//! Work is counted as the model's mathematics has it; its prices, by class, are the test's alone. The classes are more than those
//! that the engine fits: products and attention, reading and writing the cache, and a step itself cost what they like.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use njoule_energy::{Joules, Method};
use njoule_models::ModelConfig;
use njoule_models::cost::Span;
use njoule_models::program::Program;
use serde_json::{Value, json};

use crate::backend::{CostModel, KvType};
use crate::engine::{EnergySource, Metered, Reading};

/// A sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Whose: its first token.
    pub first: u32,
    pub rows: usize,
    /// Tokens before them.
    pub context: usize,
    pub outputs: usize,
}

/// Joules: of an operation of a product and of attention, of a cached value read and written, of a step; and watts that always
/// flow.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    pub product: f64,
    pub attention: f64,
    pub read: f64,
    pub written: f64,
    pub step: f64,
    pub idle_w: f64,
}

/// The device.
pub struct Hidden {
    prices: Prices,
    program: Program,
    state: Mutex<State>,
}

struct State {
    /// Beside the idle power.
    joules: f64,
    /// End of the last step.
    ended: Instant,
    /// By first token, shares of the idle power included.
    truth: HashMap<u32, f64>,
    /// Of the meter's noise.
    seed: u64,
}

impl Hidden {
    /// With these prices.
    pub fn new(prices: Prices) -> Hidden {
        let config = json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 61, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": true,
        });
        let program = ModelConfig::from_hf_json(&config).expect("a config of this file").program();
        let state = State { joules: 0.0, ended: Instant::now(), truth: HashMap::new(), seed: 7 };
        Hidden { prices, program, state: Mutex::new(state) }
    }

    /// What the engine is told of the work.
    pub fn cost_model(&self) -> CostModel {
        CostModel::new(&self.program, self.program.streamed_bytes(|_| 2.0), KvType::F16)
    }

    /// Joules by first token so far, which are forgotten.
    pub fn take_truth(&self) -> HashMap<u32, f64> {
        std::mem::take(&mut self.state.lock().unwrap().truth)
    }

    /// Runs a step: its joules are spent evenly over its time.
    pub fn run(&self, work: &[Work], takes: Duration) {
        let Prices { product, attention, read, written, step, idle_w } = self.prices;
        let began = Instant::now();
        let own = work.iter().map(|w| {
            let cost = Span { rows: w.rows, context: w.context, outputs: w.outputs }.cost(&self.program);
            product * cost.linear_flops as f64
                + attention * cost.attention_flops as f64
                + read * cost.kv_values_read as f64
                + written * cost.kv_values_written as f64
        });
        let shares: Vec<f64> = own.map(|own| own + step / work.len() as f64).collect();
        let joules = {
            let mut state = self.state.lock().unwrap();
            state.seed = state.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Half a percent of noise.
            let noise = (state.seed >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
            shares.iter().sum::<f64>() * (1.0 + 0.01 * noise)
        };
        for _ in 0..SLICES {
            std::thread::sleep(takes / SLICES);
            self.state.lock().unwrap().joules += joules / f64::from(SLICES);
        }
        let mut state = self.state.lock().unwrap();
        // What lies between steps is theirs who run, unless nobody did.
        let between = began.saturating_duration_since(state.ended);
        let from = if between < BETWEEN { state.ended } else { began };
        state.ended = Instant::now();
        let idle = idle_w * (state.ended - from).as_secs_f64() / work.len() as f64;
        for (w, share) in work.iter().zip(&shares) {
            *state.truth.entry(w.first).or_default() += share + idle;
        }
    }
}

/// A meter of the whole device.
pub struct HiddenMeter {
    pub device: std::sync::Arc<Hidden>,
    /// All that it has told.
    pub told: std::sync::Arc<Mutex<f64>>,
    last: (Instant, f64),
}

impl HiddenMeter {
    /// From now on.
    pub fn new(device: std::sync::Arc<Hidden>, told: std::sync::Arc<Mutex<f64>>) -> HiddenMeter {
        HiddenMeter { device, told, last: (Instant::now(), 0.0) }
    }
}

impl EnergySource for HiddenMeter {
    fn read(&mut self) -> Reading {
        let joules = self.device.state.lock().unwrap().joules;
        let now = Instant::now();
        let used = joules - self.last.1 + self.device.prices.idle_w * (now - self.last.0).as_secs_f64();
        self.last = (now, joules);
        *self.told.lock().unwrap() += used;
        let energy = Joules::new(used).map_or(Metered::Unknown, |joules| Metered::Known(joules, Method::Measured));
        Reading { energy, ..Reading::default() }
    }

    fn describe(&self) -> Value {
        json!({"meters": ["hidden"]})
    }
}

/// Parts of a step's time.
const SLICES: u32 = 8;

/// Longest time between two steps of a busy engine.
const BETWEEN: Duration = Duration::from_millis(5);
