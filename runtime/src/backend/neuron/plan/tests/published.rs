//! Published measurements beside the roofline: each configuration that ran fits, and the order of the bounds is the order
//! of the times, but for the pairs that are named. No constant is tuned to a row.
//!
//! Rows: aws-neuron-sdk about-neuron/benchmarks/{inf2,trn1}/*_data_decoder.csv (transformers-neuronx, Neuron 2.18), optimum-neuron
//! docs/source/benchmarks (2025-07) and its documentation. Both stacks read the cache up to a bucket: the first one's
//! double from 128 on, the second reads the whole length.

use njoule_models::config::ModelConfig;

use super::*;

pub fn llama_70b() -> Program {
    // Meta-Llama-3-70B's config.json.
    let config = ModelConfig {
        hidden: 8192,
        layers: 80,
        heads: 64,
        kv_heads: 8,
        ffn: 28672,
        max_len: 8192,
        windows: vec![None; 80],
        rope_layers: vec![true; 80],
        ..Preset::find("llama-3.1-8b").unwrap().config()
    };
    config.program()
}

struct Row {
    name: &'static str,
    program: Program,
    instance: &'static str,
    tp: usize,
    weights: Quant,
    batch: usize,
    /// Tokens before the answer, and after it.
    lengths: (usize, usize),
    /// Whether all of the cache is read at each step.
    whole: bool,
    /// Milliseconds.
    tpot: f64,
}

fn rows() -> Vec<Row> {
    let (l2, l3, mistral) = ("llama-2-7b", "llama-3.1-8b", "mistral-7b-v0.3");
    let (inf2, trn1) = ("inf2.48xlarge", "trn1.32xlarge");
    let row = |name, program, instance, tp, weights, batch, (start, end), tpot| Row {
        name,
        program,
        instance,
        tp,
        weights,
        batch,
        lengths: (start, end),
        whole: false,
        tpot,
    };
    let (bf16, int8) = (Quant::Bf16, Quant::Int8);
    let mut rows = vec![
        row("Llama-2-7b b1", preset(l2), inf2, 24, bf16, 1, (128, 4096), 6.47),
        row("Llama-2-7b b8", preset(l2), inf2, 24, bf16, 8, (128, 4096), 12.1),
        row("Llama-3-8B int8 b1", preset(l3), inf2, 24, int8, 1, (128, 4096), 6.42),
        row("Llama-3-8B int8 b8", preset(l3), inf2, 24, int8, 8, (128, 4096), 10.45),
        row("Llama-3-8B int8 b8 long", preset(l3), inf2, 24, int8, 8, (4096, 8192), 15.3),
        row("Llama-3-8B int8 b1 trn1", preset(l3), trn1, 32, int8, 1, (128, 4096), 5.86),
        row("Llama-3-8B int8 b8 trn1", preset(l3), trn1, 32, int8, 8, (128, 4096), 7.65),
        row("Llama-3-70B b1", llama_70b(), inf2, 24, bf16, 1, (128, 1152), 32.5),
        row("Llama-3-70B b4 trn1", llama_70b(), trn1, 32, bf16, 4, (128, 1152), 28.4),
        row("Mistral-7B b8", preset(mistral), inf2, 24, bf16, 8, (128, 4096), 11.6),
    ];
    for (batch, tpot) in [(1, 10.0), (4, 11.0), (8, 14.0), (16, 20.0), (32, 25.0), (48, 31.0)] {
        let row = row("Llama-3.1-8B optimum", preset(l3), inf2, 8, bf16, batch, (256, 4096), tpot);
        rows.push(Row { whole: true, ..row });
    }
    for (batch, tpot) in [(1, 29.0), (4, 36.5), (8, 44.0)] {
        let row = row("Llama-3.3-70B optimum", llama_70b(), inf2, 24, bf16, batch, (256, 4096), tpot);
        rows.push(Row { whole: true, ..row });
    }
    rows
}

impl Row {
    /// A core's memory: one class, and as many modules as the stack makes of these lengths at most.
    fn hbm(&self) -> Hbm {
        let instance = on(self.instance);
        let shard = Shard::new(&self.program, self.tp);
        let class = CacheShape { rows: self.batch, positions: self.lengths.1 };
        let spec = |kind, len| ModuleSpec::of(class, kind, len);
        let decodes =
            if self.whole { 1 } else { (self.lengths.1.div_ceil(128)).next_power_of_two().ilog2() as usize + 1 };
        let mut modules = vec![spec(ModuleKind::Decode { batch: self.batch }, self.lengths.1); decodes];
        modules.push(spec(ModuleKind::Prefill { tokens: self.lengths.0 }, self.lengths.1));
        Stored { shard: &shard, weights: self.weights, kv: KvType::Bf16 }.hbm(
            &instance,
            &modules,
            &Assumptions::default(),
        )
    }

    /// Mean milliseconds of a decode step at the roofline.
    fn bound(&self) -> f64 {
        let instance = on(self.instance);
        let shard = Shard::new(&self.program, self.tp);
        let stored = Stored { shard: &shard, weights: self.weights, kv: KvType::Bf16 };
        let roofline = Roofline::new(&stored, &instance, &Assumptions::default());
        let (start, end) = self.lengths;
        let bucket = |context: usize| if self.whole { end } else { context.next_power_of_two().max(128) };
        let all: f64 = (start..end).map(|c| roofline.decode(self.batch as f64, bucket(c) as f64)).sum();
        all / (end - start) as f64 * 1e3
    }
}

#[test]
fn what_ran_fits() {
    for row in rows() {
        let hbm = row.hbm();
        assert!(hbm.fits(), "{} at batch {}: {hbm:?}", row.name, row.batch);
    }
}

#[test]
fn bounds_are_below_what_was_measured_and_in_its_order() {
    let rows = rows();
    let bounds: Vec<f64> = rows.iter().map(Row::bound).collect();
    for (row, bound) in rows.iter().zip(&bounds) {
        eprintln!(
            "{:<26} tp {:>2} b {:>2}: measured {:>5.1} ms, bound {bound:>5.2}",
            row.name, row.tp, row.batch, row.tpot
        );
        assert!(*bound < row.tpot && *bound > row.tpot / 12.0, "{}: {bound} of {}", row.name, row.tpot);
    }
    let mut wrong = Vec::new();
    let mut pairs = 0;
    for stack in [0..10, 10..rows.len()] {
        for i in stack.clone() {
            for j in i + 1..stack.end {
                pairs += 1;
                if (rows[i].tpot < rows[j].tpot) != (bounds[i] < bounds[j]) {
                    wrong.push((rows[i].name, rows[j].name));
                }
            }
        }
    }
    assert_eq!(pairs, 45 + 36);
    assert_eq!(wrong, EXCEPTIONS, "of {pairs} pairs");
}

/// Pairs, each of one stack, whose bounds are in the other order. Three set a larger batch or Trainium's flat collectives
/// against a bf16 model at batch 1 on the ring, where the real all-reduces and the host weigh more than their bounds; in the
/// last, 8B at batch 48 against 70B at batch 1, the former is 2.3 times and the latter 1.3 times its bound.
const EXCEPTIONS: [(&str, &str); 4] = [
    ("Llama-2-7b b1", "Llama-3-8B int8 b8"),
    ("Llama-2-7b b1", "Llama-3-8B int8 b8 trn1"),
    ("Llama-3-8B int8 b1", "Llama-3-8B int8 b8 trn1"),
    ("Llama-3.1-8B optimum", "Llama-3.3-70B optimum"),
];
