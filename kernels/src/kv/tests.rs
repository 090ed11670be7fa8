//! The cache's layout as its head draws it, read back by offsets computed here.

use super::*;
use crate::fixture::{Noise, report};

const STORED: [KvStored; 4] = [KvStored::F32, KvStored::F16, KvStored::Bf16, KvStored::Int8];

fn element(buffer: &Buffer, stored: KvStored, at: usize) -> f32 {
    let bytes = &buffer.as_slice()[at * stored.size()..][..stored.size()];
    match stored {
        KvStored::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        KvStored::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        KvStored::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        KvStored::Int8 => f32::from(bytes[0] as i8),
    }
}

#[test]
fn a_token_is_written_to_its_slot_and_nowhere_else() {
    let (mut cases, mut failures) = (0, vec![]);
    for stored in STORED {
        for (block_len, heads, k_dim, v_dim) in [(16, 1, 1, 1), (16, 2, 20, 20), (32, 3, 64, 64), (48, 2, 7, 33)] {
            let shape = KvShape { blocks: 3, block_len, heads, k_dim, v_dim, stored };
            assert_eq!(
                shape.bytes(),
                3 * block_len
                    * heads
                    * ((k_dim + shape.v_pad()) * stored.size() + if stored == KvStored::Int8 { 8 } else { 0 })
            );
            for slot in [0, 1, 15, block_len - 1, block_len, block_len + 15, 3 * block_len - 1] {
                let cache = KvCache::new(shape).expect("memory");
                let noise = &mut Noise::new(slot as u64);
                // No zeros: what stays zero was not written.
                let mut row =
                    |n: usize| noise.values(n, 3.0).iter().map(|x| x + 0.5_f32.copysign(*x)).collect::<Vec<f32>>();
                let (k, v) = (row(heads * k_dim), row(heads * v_dim));
                // SAFETY: the slot lies in the cache, the rows hold all heads.
                unsafe { cache.write(slot, k.as_ptr(), v.as_ptr()) };
                cases += 1;
                let (block, at) = (slot / block_len, slot % block_len);
                let mut written = 0;
                for head in 0..heads {
                    let start = (block * heads + head) * block_len;
                    let scale = |b: &Buffer| match stored {
                        KvStored::Int8 => element(b, KvStored::F32, start + at),
                        _ => 1.0,
                    };
                    let key = |d: usize| start * k_dim + (at / 16 * k_dim + d) * 16 + at % 16;
                    let value = |d: usize| start * shape.v_pad() + at * shape.v_pad() + d;
                    let mut check =
                        |what: &str, buffer: &Buffer, scale: f32, want: &[f32], at: &dyn Fn(usize) -> usize| {
                            let largest = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                            let bound = |x: f32| match stored {
                                KvStored::F32 => 0.0,
                                KvStored::F16 => x.abs() / 2048.0,
                                KvStored::Bf16 => x.abs() / 256.0,
                                KvStored::Int8 => largest / 254.0 * 1.0001,
                            };
                            for (d, want) in want.iter().enumerate() {
                                let got = element(buffer, stored, at(d)) * scale;
                                written += usize::from(element(buffer, stored, at(d)) != 0.0);
                                if (got - want).abs() > bound(*want) {
                                    failures.push(format!(
                                        "{stored:?} {shape:?} slot {slot} {what} {d}: {got}, not {want}"
                                    ));
                                }
                            }
                        };
                    check("key", &cache.keys, scale(&cache.key_scales), &k[head * k_dim..][..k_dim], &key);
                    check("value", &cache.values, scale(&cache.value_scales), &v[head * v_dim..][..v_dim], &value);
                }
                let all = |b: &Buffer| (0..b.len() / stored.size()).filter(|i| element(b, stored, *i) != 0.0).count();
                if all(&cache.keys) + all(&cache.values) != written {
                    failures.push(format!("{stored:?} {shape:?} slot {slot}: written elsewhere too"));
                }
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn an_int8_cache_keeps_zeros_tiny_values_and_nan() {
    let shape = KvShape { blocks: 1, block_len: 16, heads: 1, k_dim: 4, v_dim: 4, stored: KvStored::Int8 };
    let cache = KvCache::new(shape).expect("memory");
    let zeros = [0.0_f32; 4];
    let tiny = [1e-42_f32, -1e-42, 0.0, 5e-43];
    let nan = [1.0_f32, f32::NAN, 0.0, -1.0];
    for (slot, x) in [zeros, tiny, nan].iter().enumerate() {
        // SAFETY: the slot lies in the cache, the row holds its one head.
        unsafe { cache.write(slot, x.as_ptr(), x.as_ptr()) };
    }
    let value = |slot: usize, d: usize| {
        element(&cache.values, KvStored::Int8, slot * 16 + d) * element(&cache.value_scales, KvStored::F32, slot)
    };
    assert!((0..4).all(|d| value(0, d) == 0.0));
    assert!((0..4).all(|d| value(1, d).abs() < 1e-41), "{:?}", [0, 1, 2, 3].map(|d| value(1, d)));
    assert!((0..4).all(|d| value(2, d).is_nan()), "a value that is not finite shows");
}
