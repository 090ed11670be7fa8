//! Files of the cases, and comparison. A tensor is called `rREPLICA.KINDNUMBER:TYPE`, such as `r0.input1:bf16`: the type in
//! the name because safetensors has no word for IEEE E4M3, which is stored as bytes.

use std::path::Path;

use njoule_hlo::{ArrayShape, DType, Data, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// How far a float may be from XLA's: |got - want| <= abs + rel · |want|. All zero means equal bit by bit, NaN as NaN.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub abs: f32,
    pub rel: f32,
}

pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0 };

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn take(file: &[u8], replica: usize, kind: &str, number: usize, shape: ArrayShape) -> Tensor {
    let name = format!("r{replica}.{kind}{number}:{}", shape.dtype());
    let file = SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(&name).unwrap_or_else(|e| panic!("{name}: {e} (record it again)"));
    assert_eq!(view.shape(), shape.dims().to_vec(), "{name}");
    Tensor::from_bytes(shape, view.data()).unwrap()
}

pub fn write_inputs(path: &Path, inputs: &[Vec<Tensor>]) {
    let named: Vec<(String, Tensor, Vec<u8>)> = inputs
        .iter()
        .enumerate()
        .flat_map(|(r, inputs)| {
            let name = move |(k, t): (usize, &Tensor)| {
                (format!("r{r}.input{k}:{}", t.shape().dtype()), t.clone(), t.to_bytes())
            };
            inputs.iter().enumerate().map(name)
        })
        .collect();
    let views = named.iter().map(|(name, tensor, bytes)| {
        let shape = tensor.shape();
        (name.as_str(), TensorView::new(stored(shape.dtype()), shape.dims().to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::Pred => Dtype::BOOL,
        DType::S8 => Dtype::I8,
        DType::S32 => Dtype::I32,
        DType::S64 => Dtype::I64,
        DType::U32 => Dtype::U32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        _ => Dtype::U8,
    }
}

impl Tolerance {
    pub fn compare(self, got: &Tensor, want: &Tensor) -> Result<(), String> {
        let (values, wanted) = (floats(got), floats(want));
        let mut worst: Option<(f32, String)> = None;
        let (got_bytes, want_bytes) = (got.to_bytes(), want.to_bytes());
        let size = got.shape().dtype().size();
        for i in 0..got.shape().elements() {
            let bits = i * size..(i + 1) * size;
            if got_bytes[bits.clone()] == want_bytes[bits] {
                continue;
            }
            let (Some(values), Some(wanted)) = (&values, &wanted) else {
                return Err(format!("element {i} differs: {:?} against {:?}", got.data(), want.data()));
            };
            let (x, y) = (values[i], wanted[i]);
            if x.is_nan() && y.is_nan() {
                continue;
            }
            let bound = self.abs + self.rel * y.abs();
            let difference = (x - y).abs();
            if !(difference <= bound) || (self.abs == 0.0 && self.rel == 0.0) {
                let excess = difference / bound.max(f32::MIN_POSITIVE);
                if worst.as_ref().is_none_or(|(e, _)| !(excess <= *e)) {
                    worst = Some((excess, format!("element {i}: {x:e} against {y:e}, bound {bound:e}")));
                }
            }
        }
        worst.map_or(Ok(()), |(_, what)| Err(what))
    }
}

fn floats(x: &Tensor) -> Option<Vec<f32>> {
    Some(match x.data() {
        Data::F32(v) => v.to_vec(),
        Data::BF16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Data::F8E4M3(v) => v.iter().map(|x| x.to_f32()).collect(),
        Data::F8E4M3FN(v) => v.iter().map(|x| x.to_f32()).collect(),
        Data::F8E5M2(v) => v.iter().map(|x| x.to_f32()).collect(),
        _ => return None,
    })
}
