//! A module with inputs, and how near its results must be to the evaluator's.

use half::bf16;
use njoule_hlo::{DType, Module, Tensor};

/// One module to try.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The module; its name is the trial's.
    pub module: Module,
    /// Its inputs.
    pub inputs: Vec<Tensor>,
    /// How often it runs; what is aliased carries over.
    pub runs: usize,
    /// Largest |got - want| / max(1, |want|) of a float; integers must be equal, codes of 8 bits may be one off.
    pub tolerance: f64,
    /// Results that are not compared: ids of values so near that rounding may swap them.
    pub near: Vec<usize>,
}

impl Trial {
    /// One run, whose results are the evaluator's bit for bit.
    pub fn exact(module: Module, inputs: Vec<Tensor>) -> Trial {
        Trial { module, inputs, runs: 1, tolerance: 0.0, near: vec![] }
    }
}

/// The largest error, or in words what is too far off.
pub(super) fn compare(wanted: &[Tensor], got: &[Tensor], trial: &Trial) -> Result<f64, String> {
    if wanted.len() != got.len() {
        return Err(format!("{} results instead of {}", got.len(), wanted.len()));
    }
    let mut worst = 0.0f64;
    for (number, (want, got)) in wanted.iter().zip(got).enumerate() {
        if want.shape() != got.shape() {
            return Err(format!("result {number} is {}, not {}", got.shape(), want.shape()));
        }
        if trial.near.contains(&number) {
            continue;
        }
        let codes = want.shape().dtype() == DType::S8;
        let exact = !want.shape().dtype().is_float();
        let (want, got) = (values(want), values(got));
        for (at, (want, got)) in want.iter().zip(&got).enumerate() {
            let off = (got - want).abs();
            let off = if codes { (off - 1.0).max(0.0) } else { off };
            let error = off / want.abs().max(1.0);
            let allowed = if exact { 0.0 } else { trial.tolerance };
            if !(error <= allowed) {
                return Err(format!(
                    "result {number}[{at}] is {got}, not {want}: off by {error:.2e}, allowed {allowed:.0e}"
                ));
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}

/// The elements of the types that the steps' results have.
fn values(tensor: &Tensor) -> Vec<f64> {
    if let Some(values) = tensor.as_slice::<f32>() {
        return values.iter().map(|&v| f64::from(v)).collect();
    }
    if let Some(values) = tensor.as_slice::<bf16>() {
        return values.iter().map(|&v| v.to_f64()).collect();
    }
    if let Some(values) = tensor.as_slice::<i32>() {
        return values.iter().map(|&v| f64::from(v)).collect();
    }
    if let Some(values) = tensor.as_slice::<i8>() {
        return values.iter().map(|&v| f64::from(v)).collect();
    }
    vec![f64::NAN; tensor.shape().elements()] // no step has another: then nothing compares equal
}
