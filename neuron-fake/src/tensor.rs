//! Tensors: views of allocations that count their references, and what runs in flight do with them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use njoule_hlo::{ArrayShape, Tensor as Array};

use crate::core::{Charge, Core};
use crate::memory::{Away, Memory};
use crate::misuse;
use crate::status::{self, Answer, refuse};
use crate::window::Window;

/// A tensor: bytes `offset .. offset + size` of an allocation.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub name: String,
    pub offset: usize,
    pub size: usize,
    pub storage: Arc<Storage>,
    /// Runs in flight that read it, and that write it.
    readers: AtomicU32,
    writers: AtomicU32,
}

/// An allocation.
#[derive(Debug)]
pub(crate) struct Storage {
    /// None in host memory.
    pub core: Option<Arc<Core>>,
    pub address: u64,
    pub size: usize,
    memory: Mutex<Memory>,
    back: Condvar,
    /// Where the host sees it, if it has asked.
    window: OnceLock<Window>,
    /// Given back with the last view.
    _charge: Option<Charge>,
}

/// How a run uses a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// Keeps a tensor marked as in flight.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Tensor>, Use);

impl Tensor {
    pub(crate) fn allocate(core: Option<&Arc<Core>>, size: usize, name: String) -> Answer<Tensor> {
        let charge = core.map(|core| core.charge(size, &format!("tensor `{name}`"))).transpose()?;
        let storage = Storage {
            core: core.cloned(),
            address: core.map_or(0, |core| core.place(size)),
            size,
            memory: Mutex::new(Memory::new(size)),
            back: Condvar::new(),
            window: OnceLock::new(),
            _charge: charge,
        };
        Ok(Tensor::view(Arc::new(storage), 0, size, name))
    }

    pub(crate) fn slice(&self, offset: usize, size: usize, name: String) -> Answer<Tensor> {
        self.check(offset, size)?;
        Ok(Tensor::view(self.storage.clone(), self.offset + offset, size, name))
    }

    fn view(storage: Arc<Storage>, offset: usize, size: usize, name: String) -> Tensor {
        Tensor { name, offset, size, storage, readers: AtomicU32::new(0), writers: AtomicU32::new(0) }
    }

    /// The host reads: it waits for a run that writes it, which a correct program never makes necessary.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> Answer {
        self.check(offset, to.len())?;
        if self.is_used(Use::Write) {
            misuse::record(format!("{self} is read while a run that writes it is in flight"));
        }
        self.when_back(offset, to.len(), |memory| memory.read(self.offset + offset, to));
        Ok(())
    }

    /// The host writes, likewise.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Answer {
        self.change(offset, from.len(), |memory, at| memory.write(at, from))
    }

    pub(crate) fn fill(&self, offset: usize, size: usize, value: u8) -> Answer {
        self.change(offset, size, |memory, at| memory.fill(at, size, value))
    }

    fn change(&self, offset: usize, size: usize, f: impl Fn(&mut Memory, usize) -> Result<(), Away>) -> Answer {
        self.check(offset, size)?;
        if self.is_used(Use::Read) || self.is_used(Use::Write) {
            misuse::record(format!("{self} is written while a run that uses it is in flight"));
        }
        self.when_back(offset, size, |memory| f(memory, self.offset + offset));
        Ok(())
    }

    fn check(&self, offset: usize, size: usize) -> Answer {
        match offset.checked_add(size) {
            Some(end) if end <= self.size => Ok(()),
            _ => refuse(status::INVALID, format!("bytes {offset} to {offset}+{size} reach beyond {self}")),
        }
    }

    /// A run's input of this shape; shared.
    pub(crate) fn share(&self, shape: ArrayShape) -> Array {
        self.when_back(0, shape.bytes(), |memory| memory.share(self.offset, shape))
    }

    /// A run's in-place tensor; away until [`Tensor::put`] or [`Tensor::lose`].
    pub(crate) fn take(&self, shape: ArrayShape) -> Array {
        self.when_back(0, shape.bytes(), |memory| memory.take(self.offset, shape))
    }

    /// A run's result.
    pub(crate) fn put(&self, array: Array) {
        let (mut memory, len) = (self.storage.lock(), array.shape().bytes());
        memory.put(self.offset, array);
        self.storage.show(&memory, self.offset, len);
        drop(memory);
        self.storage.back.notify_all();
    }

    /// A run's result that was not computed.
    pub(crate) fn put_zeros(&self) {
        self.when_back(0, self.size, |memory| memory.fill(self.offset, self.size, 0));
    }

    /// What a run took and lost.
    pub(crate) fn lose(&self) {
        let mut memory = self.storage.lock();
        memory.lose(self.offset, self.size);
        self.storage.show(&memory, self.offset, self.size);
        drop(memory);
        self.storage.back.notify_all();
    }

    /// Where the host sees its first byte.
    pub(crate) fn address(&self) -> *mut u8 {
        let memory = self.storage.lock();
        self.storage.window.get_or_init(|| Window::of(&memory, self.storage.size)).address(self.offset)
    }

    /// Does something to bytes of it as soon as no run has them.
    fn when_back<T>(&self, offset: usize, len: usize, mut f: impl FnMut(&mut Memory) -> Result<T, Away>) -> T {
        let (mut memory, at) = (self.storage.lock(), self.offset + offset);
        loop {
            if let Some(window) = self.storage.window.get() {
                window.take_in(&mut memory, at, len);
            }
            match f(&mut memory) {
                Ok(done) => {
                    self.storage.show(&memory, at, len);
                    return done;
                }
                Err(Away) => memory = self.storage.back.wait(memory).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Whether runs in flight use it so.
    pub(crate) fn is_used(&self, how: Use) -> bool {
        self.users(how).load(Ordering::Acquire) > 0
    }

    fn users(&self, how: Use) -> &AtomicU32 {
        match how {
            Use::Read => &self.readers,
            Use::Write => &self.writers,
        }
    }
}

impl std::fmt::Display for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tensor `{}` of {} bytes", self.name, self.size)
    }
}

impl Storage {
    fn show(&self, memory: &Memory, offset: usize, len: usize) {
        if let Some(window) = self.window.get() {
            window.show(memory, offset, len);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    pub(crate) fn new(tensor: &Arc<Tensor>, how: Use) -> InFlight {
        tensor.users(how).fetch_add(1, Ordering::AcqRel);
        InFlight(tensor.clone(), how)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.users(self.1).fetch_sub(1, Ordering::AcqRel);
    }
}
