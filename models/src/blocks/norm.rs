//! Norms as checkpoints have them.

use crate::config::ModelConfig;
use crate::program::*;
use crate::tracer::Tracer;

/// Declares a norm over the residual stream.
pub(crate) type NormOf = fn(&mut Tracer, &ModelConfig, &str) -> Norm;

/// An RMS norm over the residual stream.
pub(crate) fn rms_norm(t: &mut Tracer, c: &ModelConfig, name: &str) -> Norm {
    rms_norm_of(t, c, name, c.hidden)
}

/// An RMS norm of `len` values.
pub(crate) fn rms_norm_of(t: &mut Tracer, c: &ModelConfig, name: &str, len: usize) -> Norm {
    let weight = if c.norm_plus_one { t.vector_plus_one(name, len) } else { t.vector(name, len) };
    Norm::rms(weight, c.norm_eps)
}

/// A layer norm over the residual stream, `{name}.weight` and `{name}.bias`.
pub(crate) fn layer_norm(t: &mut Tracer, c: &ModelConfig, name: &str) -> Norm {
    layer_norm_of(t, c, name, c.hidden)
}

/// The same of `len` values.
pub(crate) fn layer_norm_of(t: &mut Tracer, c: &ModelConfig, name: &str, len: usize) -> Norm {
    let weight = if c.norm_plus_one { t.vector_plus_one(name, len) } else { t.vector(name, len) };
    let bias = t.weight(&format!("{name}.bias"), 1, len, WeightUse::Vector, Parallel::Replicated);
    Norm { kind: NormKind::Layer, weight: Some(weight), bias: Some(bias), eps: c.norm_eps }
}

/// A layer norm over the residual stream that has no bias.
pub(crate) fn layer_norm_unbiased(t: &mut Tracer, c: &ModelConfig, name: &str) -> Norm {
    Norm { kind: NormKind::Layer, ..rms_norm(t, c, name) }
}
