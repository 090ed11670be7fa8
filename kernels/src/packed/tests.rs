//! Packing: what was put in comes out, as exactly as the type says; blocks bit for bit; bad values named by their row.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // `!(error <= bound)`: NaN must fail

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::fixture::{Matrix, Noise, decoded, report};

const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (1, 32),
    (15, 2),
    (16, 31),
    (17, 33),
    (31, 20),
    (32, 100),
    (33, 64),
    (48, 1),
    (65, 257),
    (200, 32),
    // More rows than one chunk of the parallel loop packs.
    (2100, 3),
];

/// How far a value may come out from where it went in; `group` are the values that share its scale.
fn bound(stored: Stored, x: f32, group: &[f32]) -> f32 {
    let peak = |values: &[f32]| values.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let reach = |values: &[f32]| {
        let (lo, hi) = values.iter().fold((0.0_f32, 0.0_f32), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
        hi - lo
    };
    match stored {
        Stored::F32 => 0.0,
        // Half a unit in the last place.
        Stored::F16 => x.abs() / 2048.0 + 3e-8,
        Stored::Bf16 => x.abs() / 256.0,
        // Half a step; a scale rounded down to f16 clips the largest by 1/2048, or where f16 is denormal, by its step.
        Stored::Int8 => peak(group) / 254.0 * 1.002 + peak(group) / 2048.0 + 127.0 * 3e-8,
        // Half a step of peak / 8, but a whole one where the range ends: codes reach 7 on the far side.
        Stored::Int4 => peak(group) / 8.0 * 1.01,
        // Half a step, or what the smallest range considered clips.
        Stored::Int4Min => reach(group) * 0.2 + 1e-3 * peak(group),
    }
}

#[test]
fn rows_decode_to_what_was_packed_within_the_bound_of_their_type() {
    let (mut cases, mut failures) = (0, vec![]);
    for (stored, (rows, cols)) in Stored::ALL.into_iter().flat_map(|s| SHAPES.map(|sh| (s, sh))) {
        let mut matrix = Matrix::random(rows, cols, (rows * 1000 + cols) as u64);
        // Rows of different sizes, one of zeros.
        for (r, row) in matrix.values.chunks_mut(cols).enumerate() {
            row.iter_mut().for_each(|x| *x *= [1.0, 50.0, 0.0, 0.01][r % 4]);
        }
        let packed = matrix.pack(stored);
        for (r, (got, want)) in decoded(&packed).iter().zip(matrix.values.chunks(cols)).enumerate() {
            cases += 1;
            let bad = (0..cols).find(|c| {
                let group = &want[c / GROUP * GROUP..cols.min(c / GROUP * GROUP + GROUP)];
                !((got[*c] - want[*c]).abs() <= bound(stored, want[*c], group))
            });
            if let Some(c) = bad {
                failures.push(format!("{} {rows}x{cols} [{r}, {c}]: {}, not {}", stored.name(), got[c], want[c]));
            }
        }
        let exact = |x: f32| match stored {
            Stored::F16 => f16::from_f32(x).to_f32(),
            Stored::Bf16 => bf16::from_f32(x).to_f32(),
            _ => x,
        };
        if !stored.is_int() && decoded(&packed).concat() != matrix.values.iter().map(|x| exact(*x)).collect::<Vec<_>>()
        {
            failures.push(format!("{} {rows}x{cols}: not the nearest value", stored.name()));
        }
    }
    report(cases, &failures);
}

#[test]
fn a_stack_is_its_matrices_one_after_the_other() {
    for (stored, (rows, cols)) in Stored::ALL.into_iter().flat_map(|s| SHAPES.map(|sh| (s, sh))) {
        let count = 3;
        let all = Matrix::random(count * rows, cols, 5);
        let stack = Packed::pack_stack(&all, count, stored, &mut Arena::default()).expect("finite values");
        let name = format!("{} {rows}x{cols}", stored.name());
        assert_eq!((stack.count(), stack.rows(), stack.cols()), (count, rows, cols), "{name}");
        assert_eq!(stack.bytes(), count * Packed::bytes_of(rows, cols, stored), "{name}");
        for i in 0..count {
            let values = all.values[i * rows * cols..][..rows * cols].to_vec();
            let own = Matrix { rows, cols, values, blocks: None }.pack(stored);
            let part = &stack.data.as_slice()[i * own.bytes()..][..own.bytes()];
            assert!(part == own.data.as_slice(), "{name}: matrix {i}");
            let mut row = vec![f32::NAN; cols];
            stack.row_f32(i * rows + rows - 1, &mut row);
            assert_eq!(row, decoded(&own)[rows - 1], "{name}: last row of {i}");
        }
    }
}

/// Random blocks of the stored type's GGUF kind and their values, decoded here from ggml's definition.
fn block(stored: Stored, noise: &mut Noise) -> (Vec<u8>, Vec<f32>) {
    let scale = f16::from_f32(noise.value());
    let min = f16::from_f32(noise.value());
    let d = scale.to_f32();
    let mut bytes = scale.to_le_bytes().to_vec();
    match stored {
        Stored::Int8 => {
            let codes: Vec<u8> = (0..32).map(|_| noise.bits() as u8).collect();
            bytes.extend(&codes);
            (bytes, codes.iter().map(|q| d * f32::from(*q as i8)).collect())
        }
        _ => {
            let minimum = stored == Stored::Int4Min;
            if minimum {
                bytes.extend(min.to_le_bytes());
            }
            let codes: Vec<u8> = (0..16).map(|_| noise.bits() as u8).collect();
            bytes.extend(&codes);
            let value = |q: u8| {
                if minimum { d * f32::from(q) + min.to_f32() } else { d * (f32::from(q) - 8.0) }
            };
            (bytes, (0..32).map(|i| value(if i < 16 { codes[i] & 15 } else { codes[i - 16] >> 4 })).collect())
        }
    }
}

#[test]
fn gguf_blocks_are_held_bit_for_bit() {
    let mut failures = vec![];
    for stored in [Stored::Int8, Stored::Int4, Stored::Int4Min] {
        for (rows, groups) in [(1, 1), (15, 2), (16, 3), (17, 1), (33, 5), (64, 2)] {
            let noise = &mut Noise::new((rows * groups) as u64);
            let mut values = vec![];
            let blocks: Vec<Vec<u8>> = (0..rows)
                .map(|_| {
                    (0..groups)
                        .flat_map(|_| {
                            let (bytes, decoded) = block(stored, noise);
                            values.extend(decoded);
                            bytes
                        })
                        .collect()
                })
                .collect();
            let cols = groups * 32;
            // Packing must not look at the values where blocks are given.
            let matrix = Matrix { rows, cols, values: vec![f32::NAN; rows * cols], blocks: Some(blocks) };
            if decoded(&matrix.pack(stored)).concat() != values {
                failures.push(format!("{} {rows} rows of {groups} blocks", stored.name()));
            }
        }
    }
    report(18, &failures);
}

#[test]
fn a_value_that_cannot_be_stored_is_refused_and_its_row_named() {
    let mut failures = vec![];
    let mut cases = 0;
    for stored in Stored::ALL {
        let bad: &[f32] = match stored {
            // Whole floats hold everything.
            Stored::F32 | Stored::Bf16 => &[],
            // A float's own infinity is held; what only rounding would make infinite is not.
            Stored::F16 => &[65536.0, -1e9, f32::MAX],
            Stored::Int8 => &[f32::NAN, f32::INFINITY, 1e8],
            Stored::Int4 | Stored::Int4Min => &[f32::NAN, f32::NEG_INFINITY, 1e8, -1e8],
        };
        for (value, row) in bad.iter().flat_map(|v| [0, 1, 15, 16, 31, 39].map(|r| (*v, r))) {
            for col in [0, 31, 32, 69] {
                let mut matrix = Matrix::random(40, 70, 1);
                matrix.values[row * 70 + col] = value;
                cases += 1;
                match Packed::pack(&matrix, stored) {
                    Err(PackError::Value { row: named, stored: kind }) if named == row && kind == stored.name() => {}
                    Err(e) => failures.push(format!("{} {value} in row {row}: {e}", stored.name())),
                    Ok(_) => failures.push(format!("{} {value} in row {row}, column {col}: taken", stored.name())),
                }
            }
        }
    }
    report(cases, &failures);
}

#[test]
fn the_largest_values_that_fit_are_taken() {
    for (stored, largest) in [
        (Stored::F32, f32::MAX),
        (Stored::F16, 65504.0),
        (Stored::Bf16, 3e38),
        (Stored::Int8, 65504.0 * 127.0),
        (Stored::Int4, 65504.0 * 8.0),
        (Stored::Int4Min, 65504.0),
    ] {
        for sign in [1.0, -1.0] {
            let mut matrix = Matrix::random(3, 40, 2);
            matrix.values[50] = sign * largest;
            let packed = Packed::pack(&matrix, stored).unwrap_or_else(|e| panic!("{} {largest}: {e}", stored.name()));
            let got = decoded(&packed)[1][10];
            assert!((got / largest * sign - 1.0).abs() < 0.21, "{} {largest}: {got}", stored.name());
        }
    }
}

#[test]
fn blocks_whose_scale_is_not_finite_are_refused_by_their_row() {
    for stored in [Stored::Int8, Stored::Int4, Stored::Int4Min] {
        let noise = &mut Noise::new(5);
        let mut blocks: Vec<Vec<u8>> = (0..20).map(|_| block(stored, noise).0).collect();
        blocks[17][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
        let matrix = Matrix { rows: 20, cols: 32, values: vec![0.0; 640], blocks: Some(blocks) };
        let error = Packed::pack(&matrix, stored).err().map(|e| e.to_string());
        assert!(error.as_ref().is_some_and(|e| e.contains("row 17")), "{}: {error:?}", stored.name());
    }
}

#[test]
fn rows_too_small_for_a_scale_are_zero() {
    for (stored, size) in Stored::ALL.into_iter().flat_map(|s| [1e-45, 1e-41, 1e-38, 4e-37].map(|x: f32| (s, x))) {
        let matrix = Matrix { rows: 2, cols: 33, values: [size, -size, 0.0].repeat(22), blocks: None };
        let packed = Packed::pack(&matrix, stored).unwrap_or_else(|e| panic!("{} {size}: {e}", stored.name()));
        for (got, want) in decoded(&packed).concat().iter().zip(&matrix.values) {
            assert!((got - want).abs() <= size, "{} {want}: {got}", stored.name());
        }
    }
}

#[test]
fn a_matrix_takes_the_bytes_it_announces() {
    for (stored, (rows, cols)) in Stored::ALL.into_iter().flat_map(|s| SHAPES.map(|sh| (s, sh))) {
        let packed = Matrix::random(rows, cols, 3).pack(stored);
        let name = format!("{} {rows}x{cols}", stored.name());
        assert_eq!(packed.bytes(), Packed::bytes_of(rows, cols, stored), "{name}");
        assert_eq!(packed.bytes(), packed.panels() * packed.panel_bytes(), "{name}");
        assert_eq!(packed.panels(), rows.next_multiple_of(GROUP) / PANEL, "{name}");
        assert_eq!((packed.rows(), packed.cols(), packed.stored()), (rows, cols, stored), "{name}");
        assert!(packed.panel_bytes().is_multiple_of(64) || !stored.is_int(), "{name}: panels start on cache lines");
    }
    // Bytes per weight of a large matrix: what each type's name promises.
    for (stored, bits) in Stored::ALL.into_iter().zip([32.0, 16.0, 16.0, 8.5, 4.5, 5.0]) {
        let per_weight = Packed::bytes_of(4096, 4096, stored) as f64 * 8.0 / (4096.0 * 4096.0);
        assert!((per_weight - bits).abs() < 0.01, "{}: {per_weight} bits", stored.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the values, packing gives a matrix that decodes to finite values near them, or an error.
    #[test]
    fn packing_never_makes_a_number_of_none(
        bits in proptest::collection::vec(any::<u32>(), 1..140),
        at in 0..Stored::ALL.len(),
    ) {
        let stored = Stored::ALL[at];
        let values: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let all_finite = values.iter().all(|x| x.is_finite());
        let matrix = Matrix { rows: 1, cols: values.len(), values: values.clone(), blocks: None };
        if let Ok(packed) = Packed::pack(&matrix, stored) {
            let row = &decoded(&packed)[0];
            if stored.is_int() {
                prop_assert!(all_finite);
                prop_assert!(row.iter().all(|x| x.is_finite()), "{row:?}");
            } else {
                for (got, x) in row.iter().zip(&values) {
                    let want = match stored {
                        Stored::F16 => f16::from_f32(*x).to_f32(),
                        Stored::Bf16 => bf16::from_f32(*x).to_f32(),
                        _ => *x,
                    };
                    prop_assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan());
                }
            }
        }
    }
}
