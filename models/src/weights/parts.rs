//! Quantised matrices whose codes, scales and zero points are tensors of their own: which tensors make up a weight.
//!
//! ```text
//! gptq            qweight i32 [in / 8, out]      qzeros i32 [groups, out / 8]   scales [groups, out]   g_idx i32 [in]
//! awq             qweight i32 [in, out / 8]      qzeros i32 [groups, out / 8]   scales [groups, out]   nibbles interleaved
//! pack-quantized  weight_packed i32 [out, in / 8]  weight_zero_point i32 [out / 8, groups]  weight_scale [out, groups]
//! int-quantized   weight i8 [out, in]            weight_zero_point i8           weight_scale [1], [out, 1], [out, groups]
//! fp8             weight f8_e4m3 [out, in]       weight_scale, weight_scale_inv  as above, or one per block of both
//! mxfp4           _blocks u8 [experts, out, in / 32, 16]   _scales u8 [experts, out, in / 32]
//! ```
//! Invariant: what [`resolve`] returns has parts of the shapes above, groups that exist, and zero points that mean one
//! thing. Nothing is copied: memory is the file's own pages.

mod codes;
mod methods;
mod part;
mod rows;
mod scales;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use safetensors::tensor::Dtype;

use self::methods::{MX_BLOCK, Sizes};
use self::part::Named;
pub use self::part::{Find, Tensor};
use self::rows::PartRows;
use super::WeightError;
use crate::config::{Group, Method, ScaleOf};
use crate::program::{WeightDecl, WeightUse};

/// How a quantised matrix is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parts {
    /// Its codes.
    pub codes: Codes,
    /// Which of them share a scale.
    pub scale: ScaleOf,
}

/// What the codes of a quantised matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// Integers of 4 bits.
    Int4,
    /// Integers of 8 bits.
    Int8,
    /// FP8 E4M3 (OCP OFP8: no infinity).
    Fp8,
    /// FP4 E2M1 with power-of-two scales.
    Mxfp4,
}

impl Parts {
    /// What `method` stores.
    pub fn of(method: Method) -> Parts {
        let int = |bits: u32| if bits == 4 { Codes::Int4 } else { Codes::Int8 };
        let (codes, scale) = match method {
            Method::Gptq { bits, group, .. } => (int(bits), ScaleOf::Row(group)),
            Method::Awq { group } => (Codes::Int4, ScaleOf::Row(group)),
            Method::Packed { bits, scale, .. } => (int(bits), scale),
            Method::Int8 { scale, .. } => (Codes::Int8, scale),
            Method::Fp8 { scale, .. } => (Codes::Fp8, scale),
            Method::Mxfp4 => (Codes::Mxfp4, ScaleOf::Row(Group::Of(MX_BLOCK))),
        };
        Parts { codes, scale }
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.codes, self.scale) {
            (Codes::Mxfp4, _) => return f.write_str("mxfp4"),
            (Codes::Int4, _) => f.write_str("int4")?,
            (Codes::Int8, _) => f.write_str("int8")?,
            (Codes::Fp8, _) => f.write_str("fp8")?,
        }
        match self.scale {
            ScaleOf::Tensor => f.write_str("-tensor"),
            ScaleOf::Row(Group::Row) => f.write_str("-channel"),
            ScaleOf::Row(Group::Of(n)) => write!(f, "-g{n}"),
            ScaleOf::Block(rows, cols) => write!(f, "-b{rows}x{cols}"),
        }
    }
}

/// The quantised matrix that `decl` names; `None` where it is no such matrix (it may be a plain tensor).
///
/// `dir` is where `find` looks, for errors.
pub fn resolve<'a>(
    method: Method,
    decl: &WeightDecl,
    dir: &Path,
    find: Find<'a, '_>,
) -> Result<Option<PartRows<'a>>, WeightError> {
    let tensor = Named { base: &decl.name, dir, find };
    let weight = Named { base: decl.name.strip_suffix("weight").unwrap_or(&decl.name), ..tensor };
    let codes = match method {
        Method::Mxfp4 => tensor.get("_blocks"),
        _ if !decl.name.ends_with(".weight") => None,
        Method::Gptq { .. } | Method::Awq { .. } => weight.get("qweight").filter(|_| weight.get("weight").is_none()),
        Method::Packed { .. } => weight.get("weight_packed").filter(|_| weight.get("weight").is_none()),
        Method::Int8 { .. } => weight.get("weight").filter(|t| t.dtype() == Dtype::I8),
        Method::Fp8 { .. } => weight.get("weight").filter(|t| t.dtype() == Dtype::F8_E4M3),
    };
    let Some(codes) = codes else { return Ok(None) };
    let (view, is_mx) = (decl.view, method == Method::Mxfp4);
    if decl.usage == WeightUse::Vector || view.plus_one || !decl.view_is_within() {
        return Err(codes.broken("is quantised, but the model needs a vector or another view there".to_owned()));
    }
    if decl.experts.is_some() != is_mx {
        return Err(codes.broken(format!("is {} stack of experts", if is_mx { "a" } else { "no" })));
    }
    if decl.cols == 0 {
        return Err(codes.broken("has no columns".to_owned()));
    }
    // The others store `[out, in]`, or its words, whatever way round the plain tensor would be.
    let keeps_order = matches!(method, Method::Packed { .. } | Method::Int8 { .. } | Method::Fp8 { .. });
    if view.transposed && keeps_order {
        return Err(codes.broken("is quantised, but the model has it transposed".to_owned()));
    }
    let sizes = Sizes { planes: decl.experts.unwrap_or(1), rows: view.of_rows, cols: decl.cols };
    let resolved = match method {
        Method::Gptq { bits, group, zeros_less_one } => {
            methods::gptq(&codes, weight, sizes, (bits, group), zeros_less_one)
        }
        Method::Awq { group } => methods::awq(&codes, weight, sizes, group),
        Method::Packed { bits, scale, symmetric, reordered } => {
            methods::packed(&codes, weight, sizes, (bits, scale), (symmetric, reordered))
        }
        Method::Int8 { scale, symmetric } => methods::int8(&codes, weight, sizes, scale, symmetric),
        Method::Fp8 { scale, .. } => methods::fp8(&codes, weight, sizes, scale),
        Method::Mxfp4 => methods::mxfp4(&codes, tensor, sizes),
    };
    resolved.map(|r| Some(PartRows::new(Parts::of(method), r, decl, codes.tensor)))
}

/// Whether `name` is a tensor of a quantised matrix of `method`, given the tensor's type.
pub fn is_part(method: Method, name: &str, dtype: Dtype) -> bool {
    let ends = |suffixes: &[&str]| suffixes.iter().any(|s| name.ends_with(s));
    match method {
        Method::Gptq { .. } | Method::Awq { .. } => ends(&[".qweight", ".qzeros", ".scales", ".g_idx"]),
        Method::Packed { .. } => {
            ends(&[".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx"])
        }
        Method::Int8 { .. } => dtype == Dtype::I8 || ends(&[".weight_scale"]),
        Method::Fp8 { .. } => dtype == Dtype::F8_E4M3 || ends(&[".weight_scale", ".weight_scale_inv"]),
        Method::Mxfp4 => ends(&["_blocks", "_scales"]),
    }
}

/// Tensors that would be `name` if the config said how to read them.
pub fn unexplained(name: &str, find: Find<'_, '_>) -> Option<String> {
    let base = name.strip_suffix("weight").unwrap_or(name);
    let names = [format!("{base}qweight"), format!("{base}weight_packed"), format!("{name}_blocks")];
    names.into_iter().find(|name| find(name).is_some())
}
