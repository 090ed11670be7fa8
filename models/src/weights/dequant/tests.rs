//! Blocks against gguf-py.

use safetensors::SafeTensors;

use super::*;
use crate::fixtures;

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn every_block_type_decodes_as_gguf_py_does() {
    let bytes = std::fs::read(fixtures::path("gguf_dequant/golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    use GgmlType::*;
    for t in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4] {
        let raw = golden.tensor(&format!("{t:?}.raw")).unwrap();
        let expected = f32s(golden.tensor(&format!("{t:?}.f32")).unwrap().data());
        let mut out = vec![f32::NAN; expected.len()];
        decode(Encoding::GgufBlock(t), raw.data(), &mut out);
        assert!(out.len() >= 256);
        for (i, (got, want)) in out.iter().zip(&expected).enumerate() {
            // The golden's scales are random: compare relative to the value.
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-3), "{t:?} value {i}: {got} against {want}");
        }
    }
}

#[test]
fn dense_types_convert_exactly() {
    let values = [0.0f32, -0.0, 1.0, -2.5, 65504.0, 1.0 / 3.0, f32::INFINITY];
    let mut out = [f32::NAN; 7];
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    decode(Encoding::Dense(DType::F32), &bytes, &mut out);
    assert_eq!(out, values);
    let bytes: Vec<u8> = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    decode(Encoding::Dense(DType::F16), &bytes, &mut out);
    assert_eq!(out, values.map(|x| half::f16::from_f32(x).to_f32()));
    let bytes: Vec<u8> = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    decode(Encoding::Dense(DType::BF16), &bytes, &mut out);
    assert_eq!(out, values.map(|x| half::bf16::from_f32(x).to_f32()));
}

#[test]
fn long_rows_of_f16_convert_over_the_run_length() {
    let bytes: Vec<u8> = (0..1001u16).flat_map(|i| half::f16::from_f32(f32::from(i)).to_le_bytes()).collect();
    let mut out = vec![f32::NAN; 1001];
    decode(Encoding::Dense(DType::F16), &bytes, &mut out);
    assert!(out.iter().enumerate().all(|(i, x)| *x == i as f32));
}

#[test]
fn block_sizes_tile_rows() {
    assert_eq!(Encoding::GgufBlock(GgmlType::Q6_K).row_bytes(512), Some(420));
    assert_eq!(Encoding::GgufBlock(GgmlType::Q6_K).row_bytes(320), None);
    assert_eq!(Encoding::Dense(DType::F32).row_bytes(usize::MAX), None);
}
