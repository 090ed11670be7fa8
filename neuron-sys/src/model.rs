//! A compiled model (a NEFF) on its core, and what it says of its inputs and outputs.
//!
//! # Threads
//!
//! A `Model` is `Send` and `Sync`: AWS documents that several threads may execute one model at once, and pipelines them.
//! With tensor parallelism every rank has its own model, tensors and sets, and a thread of its own that enters the
//! collective programs in the same order as every other rank.

use std::ffi::c_char;
use std::fmt;
use std::mem::offset_of;

use crate::bindings as b;
use crate::call::{RawInfo, RawModel};
use crate::error::Error;
use crate::runtime::{Core, Runtime, failed, nonsense};
use crate::tensor_set::TensorSet;
use crate::version::text;

/// A loaded model. Dropping it unloads it; [`Model::unload`] also says whether that worked.
pub struct Model {
    raw: RawModel,
    /// False once unloaded, just before it is gone.
    loaded: bool,
    label: String,
    core: Core,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    runtime: Runtime,
}

// SAFETY: the handle is an address in the library, bound to no thread. It is unloaded once, by its owner.
unsafe impl Send for Model {}
// SAFETY: through a shared reference it is only executed, which AWS documents as allowed from several threads at once.
unsafe impl Sync for Model {}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Under this name it is bound.
    pub name: String,
    /// Bytes: the one thing here to rely on.
    pub size: usize,
    /// As the library says; for some types it says another or none.
    pub dtype: DType,
    /// As the library says.
    pub shape: Vec<u32>,
}

/// An element type. A number: newer libraries have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DType(pub u32);

impl Model {
    /// Loads `neff` onto `core`. Blocks, without a limit: see [`crate::Lane::call`]. The label is for messages.
    pub fn load(runtime: &Runtime, core: Core, neff: &[u8], label: &str) -> Result<Model, Error> {
        const CALL: &str = "nrt_load";
        let subject = || format!("`{label}`, {} bytes on {core}", neff.len());
        // SAFETY: the runtime runs while its handle lives.
        let raw = unsafe { runtime.library().load(neff, core.vnc()) }
            .map_err(|status| failed(CALL, subject(), status))?
            .ok_or_else(|| nonsense(CALL, subject(), "gave no model"))?;
        Model::adopt(runtime, raw, core, label)
    }

    /// Loads one rank's part of a model with collectives. Blocks until the other ranks load theirs, without a limit.
    pub fn load_collective(
        runtime: &Runtime,
        core: Core,
        neff: &[u8],
        (rank, world): (u32, u32),
        label: &str,
    ) -> Result<Model, Error> {
        const CALL: &str = "nrt_load_collectives";
        let subject = || format!("`{label}`, {} bytes on {core} as rank {rank} of {world}", neff.len());
        // SAFETY: the runtime runs while its handle lives.
        let raw = unsafe { runtime.library().load_collectives(neff, core.vnc(), rank, world) }
            .map_err(|status| failed(CALL, subject(), status))?
            .ok_or_else(|| nonsense(CALL, subject(), "gave no model"))?;
        Model::adopt(runtime, raw, core, label)
    }

    /// Its inputs, in the library's order.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// Its outputs, in the library's order.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Its label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The core it is on.
    pub fn core(&self) -> Core {
        self.core
    }

    /// Unloads it and says whether that worked. (libnrt before 2.30 reports success also after a lockup.)
    pub fn unload(self) -> Result<(), Error> {
        let mut model = self;
        model.unload_once()
    }

    /// Refuses sets that do not hold exactly the model's tensors, in words that name the first that is wrong.
    pub(crate) fn check(&self, inputs: &TensorSet, outputs: &TensorSet) -> Result<(), Error> {
        for (side, specs, set) in [("input", &self.inputs, inputs), ("output", &self.outputs, outputs)] {
            let mismatch = |tensor: &str, problem: String| Error::Mismatch {
                model: self.label.clone(),
                side,
                tensor: tensor.to_owned(),
                problem,
            };
            if !set.runtime().is_same(&self.runtime) {
                return Err(Error::OtherRuntime { name: format!("{side}s of {}", self.label) });
            }
            for spec in specs {
                match set.bound().find(|(name, _)| *name == spec.name) {
                    None => return Err(mismatch(&spec.name, format!("({} bytes) is not bound", spec.size))),
                    Some((_, size)) if size != spec.size => {
                        return Err(mismatch(&spec.name, format!("has {} bytes, the tensor bound {size}", spec.size)));
                    }
                    Some(_) => {}
                }
            }
            if let Some((name, _)) = set.bound().find(|(name, _)| specs.iter().all(|spec| spec.name != *name)) {
                return Err(mismatch(name, "is bound, but the model has none of that name".to_owned()));
            }
        }
        Ok(())
    }

    pub(crate) fn raw(&self) -> RawModel {
        self.raw
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// At most once: what comes after finds nothing to do.
    fn unload_once(&mut self) -> Result<(), Error> {
        if !std::mem::replace(&mut self.loaded, false) {
            return Ok(());
        }
        // SAFETY: it is live: the flag was just taken down and never is up again. A run in flight holds the model.
        unsafe { self.runtime.library().unload(self.raw) }
            .map_err(|status| failed("nrt_unload", format_args!("`{}` on {}", self.label, self.core), status))
    }

    fn adopt(runtime: &Runtime, raw: RawModel, core: Core, label: &str) -> Result<Model, Error> {
        const CALL: &str = "nrt_get_model_tensor_info";
        let mut model = Model {
            raw,
            loaded: true,
            label: label.to_owned(),
            core,
            inputs: Vec::new(),
            outputs: Vec::new(),
            runtime: runtime.clone(),
        };
        let library = runtime.library();
        // SAFETY: the model is live; the answer is freed below.
        let info = unsafe { library.model_tensor_info(raw) }
            .map_err(|status| failed(CALL, format_args!("`{label}`"), status))?
            .ok_or_else(|| nonsense(CALL, format_args!("`{label}`"), "gave nothing"))?;
        // SAFETY: the library just gave it.
        let specs = unsafe { read_info(info) };
        // SAFETY: the library gave it; what was read of it is copied.
        let freed = unsafe { library.free_model_tensor_info(info) };
        for (usage, spec) in specs.map_err(|problem| nonsense(CALL, format_args!("`{label}`"), problem))? {
            if usage == b::NRT_TENSOR_USAGE_INPUT { model.inputs.push(spec) } else { model.outputs.push(spec) }
        }
        freed.map_err(|status| failed("nrt_free_model_tensor_info", format_args!("`{label}`"), status))?;
        Ok(model)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("label", &self.label)
            .field("core", &self.core)
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        if let Err(error) = self.unload_once() {
            self.runtime.note_drop_failure(error);
        }
    }
}

impl DType {
    /// njoule's name of it; none for a number that we do not know, and for the library's "unknown".
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            b::NRT_DTYPE_UINT64 => "u64",
            b::NRT_DTYPE_INT8 => "i8",
            b::NRT_DTYPE_UINT8 => "u8",
            b::NRT_DTYPE_INT16 => "i16",
            b::NRT_DTYPE_UINT16 => "u16",
            b::NRT_DTYPE_BFLOAT16 => "bf16",
            b::NRT_DTYPE_FLOAT16 => "f16",
            b::NRT_DTYPE_INT32 => "i32",
            b::NRT_DTYPE_UINT32 => "u32",
            b::NRT_DTYPE_FLOAT32 => "f32",
            b::NRT_DTYPE_FP32R => "fp32r",
            b::NRT_DTYPE_INT64 => "i64",
            b::NRT_DTYPE_FP8_E3 => "f8e3",
            b::NRT_DTYPE_FP8_E4 => "f8e4",
            b::NRT_DTYPE_FP8_E5 => "f8e5",
            _ => return None,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "dtype {:#x}", self.0),
        }
    }
}

/// Copies what the library says, or says what is wrong with it.
///
/// # Safety
///
/// `info` is the library's answer: its count is that of the entries behind it, and each shape has `ndim` numbers.
unsafe fn read_info(info: RawInfo) -> Result<Vec<(u32, TensorSpec)>, String> {
    // SAFETY: the caller's promise.
    let count = unsafe { (*info.as_ptr()).tensor_count };
    if count > MOST_TENSORS {
        return Err(format!("says that it has {count} tensors"));
    }
    // SAFETY: the entries stand right behind the count.
    let first = unsafe { info.as_ptr().byte_add(offset_of!(b::nrt_tensor_info_array_t, tensor_array)) };
    let first = first.cast::<b::nrt_tensor_info_t>();
    let mut specs = Vec::new();
    // At most MOST_TENSORS: it fits.
    for i in 0..count as usize {
        // SAFETY: the caller's promise: there are `count` entries.
        let entry = unsafe { &*first.add(i) };
        let name = entry_name(&entry.name).ok_or_else(|| format!("gave tensor {i} no name that ends or is UTF-8"))?;
        if !matches!(entry.usage, b::NRT_TENSOR_USAGE_INPUT | b::NRT_TENSOR_USAGE_OUTPUT) {
            return Err(format!("says that `{name}` is neither input nor output but {}", entry.usage));
        }
        if entry.ndim > MOST_DIMS || (entry.ndim > 0 && entry.shape.is_null()) {
            return Err(format!("gave `{name}` {} dimensions at {:p}", entry.ndim, entry.shape));
        }
        let mut shape = Vec::new();
        for d in 0..entry.ndim as usize {
            // SAFETY: the caller's promise: the shape is not null and has `ndim` numbers.
            shape.push(unsafe { *entry.shape.add(d) });
        }
        specs.push((entry.usage, TensorSpec { name, size: entry.size, dtype: DType(entry.dtype), shape }));
    }
    Ok(specs)
}

fn entry_name(name: &[c_char]) -> Option<String> {
    let whole = name.contains(&0).then(|| text(name))?;
    (!whole.is_empty() && !whole.contains(char::REPLACEMENT_CHARACTER)).then_some(whole)
}

/// Far above any model's (a weight each), to notice a struct of another layout before walking it.
const MOST_TENSORS: u64 = 1 << 16;
const MOST_DIMS: u32 = 32;
