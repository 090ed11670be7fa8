//! Inputs of the cases: a fixed sequence of numbers, no matter which machine.

use njoule_hlo::{ArrayShape, DType, Element, Tensor};

/// A linear congruential generator; the numbers only have to be many and always the same.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In (-limit, limit), on a grid that f32 holds exactly.
    pub fn f32(&mut self, limit: f32) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 * limit - limit
    }

    pub fn floats(&mut self, dtype: DType, dims: &[usize], limit: f32) -> Tensor {
        let shape = ArrayShape::new(dtype, dims).unwrap();
        let values: Vec<f32> = (0..shape.elements()).map(|_| self.f32(limit)).collect();
        match dtype {
            DType::F32 => Tensor::new(dims, values).unwrap(),
            DType::BF16 => Tensor::new(dims, values.into_iter().map(half::bf16::from_f32).collect()).unwrap(),
            DType::F16 => Tensor::new(dims, values.into_iter().map(half::f16::from_f32).collect()).unwrap(),
            other => panic!("{other} is no float"),
        }
    }

    /// Any bits at all.
    pub fn bits(&mut self, dtype: DType, dims: &[usize]) -> Tensor {
        let shape = ArrayShape::new(dtype, dims).unwrap();
        let bytes: Vec<u8> =
            (0..shape.bytes()).map(|_| (self.next() >> 5) as u8 & if dtype == DType::Pred { 1 } else { 255 }).collect();
        Tensor::from_bytes(shape, &bytes).unwrap()
    }
}

pub fn vector<T: Element>(values: &[T]) -> Tensor {
    Tensor::new(&[values.len()], values.to_vec()).unwrap()
}
