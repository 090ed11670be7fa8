//! The structs of the PJRT C API that are used here, and the functions that take them.
//!
//! Source: XLA's `pjrt_c_api.h`, version 0.81 to 0.115; declared anew, as little of it as is needed. Each struct begins
//! with its size and a null pointer ([`Args`]); functions are known by their place in the table behind the API's head.
//! Fields and functions are only ever appended, so what fits 0.81 fits what came later. A struct that is longer than the
//! plugin knows is allowed: the rest is zero.
#![deny(unsafe_code)]

use std::ffi::c_void;

use crate::DType;

/// An object of the plugin.
pub(super) type Handle = *mut c_void;

/// A function of the table; null is success, anything else an error to read and destroy.
pub(super) type Function = unsafe extern "C" fn(*mut c_void) -> Handle;

/// The two functions that cannot fail.
pub(super) type Procedure = unsafe extern "C" fn(*mut c_void);

/// What a call takes: fields that it reads, fields that it fills.
pub(super) trait Call {
    const INDEX: usize;
    const NAME: &'static str;
}

/// A struct with its head.
#[repr(C)]
pub(super) struct Args<T> {
    size: usize,
    extension: Handle,
    pub fields: T,
}

impl<T> Args<T> {
    pub(super) fn new(fields: T) -> Args<T> {
        Args { size: size_of::<Args<T>>(), extension: std::ptr::null_mut(), fields }
    }
}

/// Head of the API; its functions follow.
#[repr(C)]
pub(super) struct Head {
    pub size: usize,
    pub extension: Handle,
    pub version: Version,
}

#[repr(C)]
pub(super) struct Version {
    pub size: usize,
    pub extension: Handle,
    pub major: i32,
    pub minor: i32,
}

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident $(($call:literal $index:literal))? { $($(#[$note:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Default)]
            pub(super) struct $name {
                $($(#[$note])* pub $field: $type,)*
            }

            $(impl Call for $name {
                const INDEX: usize = $index;
                const NAME: &'static str = $call;
            })?
        )*
    };
}

structs! {
    ErrorDestroy("PJRT_Error_Destroy" 0) { error: Handle, }
    ErrorMessage("PJRT_Error_Message" 1) { error: Handle, text: *const u8, len: usize, }
    Initialize("PJRT_Plugin_Initialize" 3) {}
    EventDestroy("PJRT_Event_Destroy" 5) { event: Handle, }
    EventAwait("PJRT_Event_Await" 8) { event: Handle, }
    ClientCreate("PJRT_Client_Create" 10) {
        options: *const Args<NamedValue>,
        options_len: usize,
        get: [Handle; 2],
        put: [Handle; 2],
        client: Handle,
        try_get: [Handle; 2],
    }
    ClientDestroy("PJRT_Client_Destroy" 11) { client: Handle, }
    AddressableDevices("PJRT_Client_AddressableDevices" 16) { client: Handle, devices: *const Handle, len: usize, }
    Compile("PJRT_Client_Compile" 20) {
        client: Handle,
        program: *const Args<Program>,
        options: *const u8,
        options_len: usize,
        loaded: Handle,
    }
    BufferFromHost("PJRT_Client_BufferFromHostBuffer" 22) {
        client: Handle,
        data: *const c_void,
        dtype: i32,
        dims: *const i64,
        rank: usize,
        /// Null: dense, row major.
        strides: *const i64,
        strides_len: usize,
        /// 0: the data is copied during the call.
        semantics: i32,
        device: Handle,
        memory: Handle,
        layout: Handle,
        done: Handle,
        buffer: Handle,
    }
    ExecutableDestroy("PJRT_Executable_Destroy" 40) { executable: Handle, }
    NumOutputs("PJRT_Executable_NumOutputs" 44) { executable: Handle, outputs: usize, }
    LoadedDestroy("PJRT_LoadedExecutable_Destroy" 50) { loaded: Handle, }
    GetExecutable("PJRT_LoadedExecutable_GetExecutable" 51) { loaded: Handle, executable: Handle, }
    Execute("PJRT_LoadedExecutable_Execute" 55) {
        loaded: Handle,
        options: *const Args<ExecuteOptions>,
        /// By device and parameter.
        arguments: *const *const Handle,
        devices: usize,
        arguments_len: usize,
        /// By device and result.
        results: *const *mut Handle,
        /// By device.
        done: *mut Handle,
        device: Handle,
    }
    BufferDestroy("PJRT_Buffer_Destroy" 58) { buffer: Handle, }
    ElementType("PJRT_Buffer_ElementType" 59) { buffer: Handle, dtype: i32, }
    Dimensions("PJRT_Buffer_Dimensions" 60) { buffer: Handle, dims: *const i64, rank: usize, }
    ToHost("PJRT_Buffer_ToHostBuffer" 70) { buffer: Handle, layout: Handle, to: *mut u8, len: usize, done: Handle, }

    /// A client's option.
    NamedValue {
        name: *const u8,
        name_len: usize,
        /// 1: an int64.
        kind: i32,
        value: i64,
        value_len: usize,
    }
    /// What is to be compiled.
    Program { code: *const u8, code_len: usize, format: *const u8, format_len: usize, }
    /// Of a run. Everything but `launch` is empty, and so is what later versions appended.
    ExecuteOptions {
        send: Handle,
        receive: Handle,
        send_len: usize,
        receive_len: usize,
        launch: i32,
        kept: *const i64,
        kept_len: usize,
        context: Handle,
        later: [usize; 8],
    }
}

/// Functions that the table must have.
pub(super) const FUNCTIONS: usize = 71;

/// `PJRT_Buffer_Type`: not the numbers of `xla_data.proto`.
pub(super) fn buffer_type(dtype: DType) -> i32 {
    match dtype {
        DType::Pred => 1,
        DType::S8 => 2,
        DType::S32 => 4,
        DType::S64 => 5,
        DType::U8 => 6,
        DType::U32 => 8,
        DType::F16 => 10,
        DType::F32 => 11,
        DType::BF16 => 13,
        DType::F8E5M2 => 16,
        DType::F8E4M3FN => 17,
        DType::F8E4M3 => 26,
    }
}
