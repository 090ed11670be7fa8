//! The bytes of an allocation as the host sees them, for who asks for their address.
//!
//! The content of an allocation moves ([`crate::memory`]), so an address is that of a copy: what is about to be read or
//! changed takes in what the host has written there, and what has changed is shown. The host's own accesses beside a call that
//! uses the same bytes are a race, as on a device.

use crate::memory::Memory;

/// The copy; its address stays until it is dropped.
#[derive(Debug)]
pub(crate) struct Window {
    at: *mut u8,
    len: usize,
}

// SAFETY: this side reads and writes it under the allocation's lock; what the host does is the host's word.
unsafe impl Send for Window {}
// SAFETY: likewise.
unsafe impl Sync for Window {}

impl Window {
    /// Of all of an allocation, as far as no run has it.
    pub(crate) fn of(memory: &Memory, len: usize) -> Window {
        let mut bytes = vec![0; len].into_boxed_slice();
        let _ = memory.read(0, &mut bytes); // away: shown when it comes back
        Window { at: Box::into_raw(bytes).cast(), len }
    }

    /// Its address at an offset.
    pub(crate) fn address(&self, offset: usize) -> *mut u8 {
        self.at.wrapping_add(offset.min(self.len))
    }

    /// Takes in what the host has written in a range, unless a run has it.
    pub(crate) fn take_in(&self, memory: &mut Memory, offset: usize, len: usize) {
        let mut bytes = vec![0; len];
        // SAFETY: the range is inside the allocation, which whoever reads or changes it has checked.
        unsafe { std::ptr::copy_nonoverlapping(self.address(offset), bytes.as_mut_ptr(), len) };
        let _ = memory.write(offset, &bytes);
    }

    /// Shows a range, unless a run has it.
    pub(crate) fn show(&self, memory: &Memory, offset: usize, len: usize) {
        let mut bytes = vec![0; len];
        if memory.read(offset, &mut bytes).is_ok() {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address(offset), len) };
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: made by `into_raw` of a box of as many bytes.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.at, self.len)) });
    }
}
