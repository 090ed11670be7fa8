//! The Neuron Runtime (`libnrt.so.1`): its C ABI as this project declares it, for opening at run time.
//!
//! [`bindings`] are made by bindgen from `include/njoule_nrt.h`, which this project wrote; committed, never edited.
//! The runtime exists on 64-bit Linux only, and the layouts here are of that: elsewhere this crate is empty.

#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

// Generated: C's names, no documentation but the header's, unsafe operations without comments.
#[rustfmt::skip]
#[allow(missing_docs, missing_debug_implementations, non_camel_case_types, non_snake_case, rustdoc::all)]
#[allow(clippy::undocumented_unsafe_blocks, clippy::missing_safety_doc, clippy::missing_const_for_fn, clippy::all)]
pub mod bindings;

mod layout;
