//! Named tensors for a run. Names are the model's: `input{i}` in parameter order, `output{j}` in result order, unless
//! the module was compiled with others.
//!
//! A cache that is updated in place is one tensor bound in both sets. Weights are one tensor bound in the input sets of
//! every model of their core.
//!
//! # Threads
//!
//! A set may move to another thread (`Send`) and is not shared between threads (not `Sync`): AWS says nothing of
//! concurrent calls on one set.

use std::cell::Cell;
use std::ffi::CString;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::call::RawSet;
use crate::error::Error;
use crate::runtime::{Runtime, failed, nonsense};
use crate::tensor::{Storage, Tensor, c_name};

/// A set of tensors by name. It keeps them alive.
pub struct TensorSet {
    raw: RawSet,
    bound: Vec<(CString, Arc<Storage>)>,
    runtime: Runtime,
    /// Not `Sync`.
    unshared: PhantomData<Cell<()>>,
}

// SAFETY: the handle is an address in the library, bound to no thread; only its one owner uses it, as it is not Sync.
unsafe impl Send for TensorSet {}

impl TensorSet {
    /// An empty set.
    pub fn new(runtime: &Runtime) -> Result<TensorSet, Error> {
        const CALL: &str = "nrt_allocate_tensor_set";
        // SAFETY: the runtime runs while its handle lives.
        let raw = unsafe { runtime.library().set_allocate() }
            .map_err(|status| failed(CALL, "a tensor set", status))?
            .ok_or_else(|| nonsense(CALL, "a tensor set", "gave none"))?;
        Ok(TensorSet { raw, bound: Vec::new(), runtime: runtime.clone(), unshared: PhantomData })
    }

    /// Puts `tensor` under `name`, in the place of what was there.
    pub fn bind(&mut self, name: &str, tensor: &Tensor) -> Result<(), Error> {
        let (name, storage) = (c_name(name)?, tensor.storage());
        storage.check_runtime(&self.runtime)?;
        // SAFETY: both are live and of one library; no run uses the set, since a run owns or borrows its sets; the
        // tensor is kept below, and what it replaces is let go only now that it is replaced.
        unsafe { self.runtime.library().set_bind(self.raw, &name, storage.raw()) }.map_err(|status| {
            failed("nrt_add_tensor_to_tensor_set", format!("{tensor} as `{}`", name.to_string_lossy()), status)
        })?;
        match self.bound.iter_mut().find(|(bound, _)| *bound == name) {
            Some((_, place)) => *place = Arc::clone(storage),
            None => self.bound.push((name, Arc::clone(storage))),
        }
        Ok(())
    }

    /// The names in it and the sizes of their tensors in bytes, in the order of their first binding.
    pub fn bound(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        // Names came from a str.
        self.bound.iter().map(|(name, storage)| (name.to_str().unwrap_or(""), storage.size()))
    }

    pub(crate) fn raw(&self) -> RawSet {
        self.raw
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

impl fmt::Debug for TensorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.bound()).finish()
    }
}

impl Drop for TensorSet {
    fn drop(&mut self) {
        // SAFETY: no run uses it, since a run owns or borrows its sets. Its tensors are let go after this.
        unsafe { self.runtime.library().set_destroy(self.raw) }
    }
}
