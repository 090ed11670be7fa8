//! Attention against a plain softmax in f64 over keys and values as the cache rounded them.
//!
//! Every slot that no key was written to holds NaN: reading one shows. Blocks are scattered, and so is what a case
//! combines: head size, group, window, position and number of rows run through their lists at different paces.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // `!(error <= bound)`: NaN must fail

use half::{bf16, f16};

use super::*;
use crate::fixture::{Noise, bits, report};
use crate::isa::Kernels;
use crate::kv::KvShape;

const DIMS: [(usize, usize); 8] = [(16, 16), (20, 20), (64, 64), (80, 80), (96, 96), (128, 128), (24, 40), (1, 3)];
const WINDOWS: [usize; 8] = [1, 2, 15, 16, 17, 64, 1000, usize::MAX];
const GROUPS: [usize; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 16];
const POSITIONS: [usize; 14] = [0, 1, 14, 15, 16, 31, 32, 33, 62, 63, 64, 65, 127, 130];
const ROWS: [usize; 7] = [1, 1, 2, 3, 5, 17, 33];
const STORED: [KvStored; 4] = [KvStored::F32, KvStored::F16, KvStored::Bf16, KvStored::Int8];
/// Values between the rows of queries and results, to show a write past a row.
const GAP: usize = 3;

struct Case {
    name: String,
    cache: KvCache,
    table: Vec<u32>,
    group: usize,
    window: usize,
    position: usize,
    rows: usize,
    scale: f32,
    softcap: Option<f32>,
    sinks: Option<Vec<f32>>,
    alibi: Option<Vec<f32>>,
    q: Vec<f32>,
    /// Per position and head, as the cache holds them.
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

fn rounded(stored: KvStored, x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let one = |x: &f32| match stored {
        KvStored::F32 => f64::from(*x),
        KvStored::F16 => f16::from_f32(*x).to_f64(),
        KvStored::Bf16 => bf16::from_f32(*x).to_f64(),
        KvStored::Int8 => f64::from((x * inverse).round_ties_even()) * f64::from(scale),
    };
    x.iter().map(one).collect()
}

fn cases(stored: KvStored) -> impl Iterator<Item = Case> {
    let all = DIMS.into_iter().flat_map(|d| WINDOWS.map(|w| (d, w)));
    all.enumerate().map(move |(i, (dims, window))| case(stored, i, dims, window))
}

fn case(stored: KvStored, i: usize, (k_dim, v_dim): (usize, usize), window: usize) -> Case {
    let noise = &mut Noise::new(i as u64);
    let (group, position, rows) = (GROUPS[i % 9], POSITIONS[i * 5 % 14], ROWS[i * 3 % 7]);
    let (heads, block_len) = (1 + i % 3, [16, 32, 48][i / 3 % 3]);
    let context = position + rows;
    let used = context.div_ceil(block_len);
    let blocks = used + 3;
    let shape = KvShape { blocks, block_len, heads, k_dim, v_dim, stored };
    let mut cache = KvCache::new(shape).expect("memory");
    for buffer in [&mut cache.keys, &mut cache.values, &mut cache.key_scales, &mut cache.value_scales] {
        buffer.as_mut_slice().fill(0xff);
    }
    let table: Vec<u32> = noise.shuffled(blocks).into_iter().take(used).map(|b| b as u32).collect();
    let (mut keys, mut values) = (vec![], vec![]);
    for p in 0..context {
        // Larger and larger keys, so that the running maximum moves from tile to tile.
        let k = noise.values(heads * k_dim, 1.0 + p as f32 / 32.0);
        let v = noise.values(heads * v_dim, 1.0);
        let slot = table[p / block_len] as usize * block_len + p % block_len;
        // SAFETY: the slot lies in a block of the cache, the rows hold all heads.
        unsafe { cache.write(slot, k.as_ptr(), v.as_ptr()) };
        keys.extend(k.chunks(k_dim).map(|k| rounded(stored, k)));
        values.extend(v.chunks(v_dim).map(|v| rounded(stored, v)));
    }
    let q = noise.values(rows * (heads * group * k_dim + GAP), 4.0);
    let scale = 1.0 / (k_dim as f32).sqrt();
    // Caps around the scores' size, sinks above and below it.
    let softcap = [None, Some(1.5), None, Some(30.0), None][i % 5];
    let sinks = (i % 3 == 1).then(|| noise.values(heads * group, 6.0));
    let alibi = (i % 4 == 2).then(|| noise.values(heads * group, 0.2));
    let name = format!(
        "{stored:?} dims {k_dim}/{v_dim} heads {heads}x{group} block {block_len} window {window} rows {rows} at {position} \
         softcap {softcap:?} sinks {} alibi {}",
        sinks.is_some(),
        alibi.is_some()
    );
    Case { name, cache, table, group, window, position, rows, scale, softcap, sinks, alibi, q, keys, values }
}

impl Case {
    fn q_stride(&self) -> usize {
        self.cache.shape.heads * self.group * self.cache.shape.k_dim + GAP
    }

    fn out_stride(&self) -> usize {
        self.cache.shape.heads * self.group * self.cache.shape.v_dim + GAP
    }

    /// The kernel's results with the rows cut into tasks of these lengths.
    fn run(&self, kernels: &Kernels, cuts: &[usize]) -> Vec<f32> {
        let shape = &self.cache.shape;
        let mut out = vec![f32::NAN; self.rows * self.out_stride()];
        let mut scratch = vec![f32::NAN; scratch_len(shape.k_dim, shape.v_pad())];
        let mut first = 0;
        for rows in cuts {
            for head in 0..shape.heads {
                let args = AttendArgs {
                    q: self.q[first * self.q_stride()..].as_ptr(),
                    q_stride: self.q_stride(),
                    out: out[first * self.out_stride()..].as_mut_ptr(),
                    out_stride: self.out_stride(),
                    rows: *rows,
                    position: self.position + first,
                    group: self.group,
                    head,
                    scale: self.scale,
                    window: self.window,
                    softcap: self.softcap,
                    sinks: self.sinks.as_ref().map_or(std::ptr::null(), |s| s.as_ptr()),
                    alibi: self.alibi.as_ref().map_or(std::ptr::null(), |s| s.as_ptr()),
                    cache: &self.cache,
                    table: &self.table,
                    scratch: scratch.as_mut_ptr(),
                };
                // SAFETY: the kernels are available; the task's rows lie in `q` and `out`, its keys in the table.
                unsafe { kernels.attend[shape.stored as usize](&args) };
            }
            first += rows;
        }
        assert_eq!(first, self.rows);
        out
    }

    /// What they should be, and the largest value that each is made of.
    fn reference(&self) -> Vec<f64> {
        let (heads, group) = (self.cache.shape.heads, self.group);
        let (k_dim, v_dim) = (self.cache.shape.k_dim, self.cache.shape.v_dim);
        let mut out = vec![f64::NAN; self.rows * self.out_stride()];
        for (row, column) in (0..self.rows).flat_map(|r| (0..heads * group).map(move |c| (r, c))) {
            let q = &self.q[row * self.q_stride() + column * k_dim..][..k_dim];
            let to = self.position + row + 1;
            let seen: Vec<usize> = (to.saturating_sub(self.window)..to).map(|p| p * heads + column / group).collect();
            let score = |at: &usize| {
                let dot: f64 = q.iter().zip(&self.keys[*at]).map(|(q, k)| f64::from(*q) * k).sum();
                let score = dot * f64::from(self.scale);
                let score = self.softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh());
                let before = (at / heads) as f64 - (to - 1) as f64;
                score + self.alibi.as_ref().map_or(0.0, |slopes| f64::from(slopes[column]) * before)
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let sink = self.sinks.as_ref().map(|s| f64::from(s[column]));
            let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().copied().chain(sink).map(|s| (s - max).exp()).sum();
            for d in 0..v_dim {
                let weighted = scores.iter().zip(&seen).map(|(s, at)| (s - max).exp() / total * self.values[*at][d]);
                out[row * self.out_stride() + column * v_dim + d] = weighted.sum();
            }
        }
        out
    }
}

#[test]
fn attention_equals_a_softmax_in_f64() {
    let (mut count, mut failures, mut worst) = (0, vec![], 0.0_f64);
    for case in STORED.into_iter().flat_map(cases) {
        let want = case.reference();
        for kernels in Kernels::available() {
            let got = case.run(kernels, &[case.rows]);
            count += 1;
            let bad = got.iter().zip(&want).position(|(got, want)| {
                let error = (f64::from(*got) - want).abs();
                worst = worst.max(error);
                // Gaps hold NaN in both. Values are below 1, scores some tens.
                if want.is_nan() { !got.is_nan() } else { !(error <= 1e-5) }
            });
            if let Some(i) = bad {
                let (row, at) = (i / case.out_stride(), i % case.out_stride());
                let (isa, name) = (kernels.isa.name(), &case.name);
                failures.push(format!("{isa} {name}: row {row} value {at} is {}, not {}", got[i], want[i]));
            }
        }
    }
    println!("{count} cases, worst error {worst:.2e}");
    report(count, &failures);
}

#[test]
fn a_row_has_the_same_bits_however_rows_are_cut_into_tasks() {
    let (mut count, mut failures) = (0, vec![]);
    let noise = &mut Noise::new(1);
    for case in STORED.into_iter().flat_map(cases).filter(|c| c.rows > 1) {
        for kernels in Kernels::available() {
            let whole = bits(&case.run(kernels, &[case.rows]));
            for attempt in 0..4 {
                let mut cuts = vec![];
                let mut left = case.rows;
                while left > 0 {
                    let n = if attempt == 0 { 1 } else { 1 + noise.below(left) };
                    cuts.push(n);
                    left -= n;
                }
                count += 1;
                if bits(&case.run(kernels, &cuts)) != whole {
                    failures.push(format!("{} {}: cut {cuts:?}", kernels.isa.name(), case.name));
                }
            }
        }
    }
    println!("{count} cases");
    report(count, &failures);
}

#[test]
fn a_window_of_one_copies_the_newest_value() {
    let mut failures = vec![];
    for case in STORED.into_iter().flat_map(cases).filter(|c| c.window == 1 && c.sinks.is_none()) {
        let (heads, v_dim) = (case.cache.shape.heads, case.cache.shape.v_dim);
        for kernels in Kernels::available() {
            let got = case.run(kernels, &[case.rows]);
            for (row, column) in (0..case.rows).flat_map(|r| (0..heads * case.group).map(move |c| (r, c))) {
                let value = &case.values[(case.position + row) * heads + column / case.group];
                let got = &got[row * case.out_stride() + column * v_dim..][..v_dim];
                if got.iter().zip(value).any(|(got, want)| (f64::from(*got) - want).abs() > 1e-7) {
                    failures.push(format!("{} {}: row {row} head {column}", kernels.isa.name(), case.name));
                }
            }
        }
    }
    report(32, &failures);
}
