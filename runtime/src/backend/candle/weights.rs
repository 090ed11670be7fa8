//! Weights as tensors: matrices `[rows, cols]` in f32 or bf16, vectors in f32, stacks of experts with one more axis in
//! front. A weight that two ops name is held once.

use candle_core::{DType, Device, Tensor, WithDType};
use half::bf16;
use njoule_models::program::{Program, WeightDecl, WeightId, WeightUse};
use njoule_models::weights::{self, Encoding, WeightRows, WeightSource};
use rayon::prelude::*;

use crate::backend::{LoadError, Quant};

/// Every weight of a program.
#[derive(Debug)]
pub struct Weights(Vec<Tensor>);

impl Weights {
    /// Reads all of them, in chunks of rows whose file pages are released.
    pub fn load(
        program: &Program,
        source: &dyn WeightSource,
        quant: Quant,
        device: &Device,
    ) -> Result<Weights, LoadError> {
        let load = |decl: &WeightDecl| {
            let view = source.get(decl)?;
            if stored(decl, view.encoding(), quant) == DType::F32 {
                return tensor(decl, &*view, |x| x.is_finite().then_some(x), device);
            }
            tensor(decl, &*view, |x| Some(bf16::from_f32(x)).filter(|x| x.is_finite()), device)
        };
        Ok(Weights(program.weights.iter().map(load).collect::<Result<_, LoadError>>()?))
    }

    /// One of them.
    pub fn get(&self, id: WeightId) -> &Tensor {
        &self.0[id.0 as usize]
    }

    /// Bytes of one weight.
    pub fn bytes_of(&self, id: WeightId) -> usize {
        bytes(self.get(id))
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(bytes).sum()
    }
}

/// The stored type of a weight.
pub fn stored(decl: &WeightDecl, encoding: Encoding, quant: Quant) -> DType {
    match quant {
        _ if decl.usage == WeightUse::Vector => DType::F32,
        Quant::Auto if encoding == Encoding::Dense(weights::DType::F32) => DType::F32,
        Quant::Bf16 | Quant::Auto => DType::BF16,
        // The other types were refused.
        Quant::None | Quant::Int8 | Quant::Int4 => DType::F32,
    }
}

/// Bytes of a tensor's elements.
pub fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// Memory for `values` elements of `dtype` can be had; candle itself would abort.
pub fn check_room(values: Option<usize>, dtype: DType, what: &'static str) -> Result<usize, LoadError> {
    let bytes = values.and_then(|n| n.checked_mul(dtype.size_in_bytes())).unwrap_or(usize::MAX);
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| LoadError::Memory { bytes, what })?;
    Ok(values.unwrap_or(0))
}

/// Reads a weight; `store` gives nothing for a value that the type cannot hold.
fn tensor<T: WithDType + Default>(
    decl: &WeightDecl,
    view: &dyn WeightRows,
    store: impl Fn(f32) -> Option<T> + Sync,
    device: &Device,
) -> Result<Tensor, LoadError> {
    let (rows, cols) = (decl.all_rows(), decl.cols.max(1));
    let mut values = vec![T::default(); check_room(rows.checked_mul(cols), T::DTYPE, "weights")?];
    let chunk = (CHUNK / cols).max(1);
    values.par_chunks_mut(chunk * cols).enumerate().try_for_each(|(i, values)| {
        let rows = i * chunk..i * chunk + values.len() / cols;
        let mut read = vec![0.0; values.len()];
        view.read_f32(rows.clone(), &mut read);
        for (n, (value, read)) in values.iter_mut().zip(&read).enumerate() {
            *value = store(*read).ok_or_else(|| LoadError::Values {
                name: decl.name.clone(),
                stored: T::DTYPE.as_str(),
                what: format!("row {} holds a value that is not finite or too large", rows.start + n / cols),
            })?;
        }
        view.release(rows);
        Ok::<_, LoadError>(())
    })?;
    let of_one = if decl.usage == WeightUse::Vector { vec![cols] } else { vec![decl.rows, cols] };
    let shape: Vec<usize> = decl.experts.into_iter().chain(of_one).collect();
    Tensor::from_vec(values, shape, device).map_err(|e| LoadError::Device(e.to_string()))
}

/// Values that are read at once.
const CHUNK: usize = 1 << 18;
