//! NVIDIA's management library, found and opened at run time: six of its functions.
//!
//! An opened library stays mapped until the process ends.

#[cfg(not(unix))]
use std::path::Path;

/// Why NVML gives nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NvmlError {
    /// No library, or one without the functions.
    #[error("libnvidia-ml: {0}")]
    Load(String),
    /// This board does not have it.
    #[error("not supported by this board")]
    NotSupported,
    /// May not.
    #[error("no permission")]
    Permission,
    /// Any other status.
    #[error("{call}: status {status}")]
    Status {
        /// The function.
        call: &'static str,
        /// Its status.
        status: i32,
    },
}

/// A board.
#[derive(Clone, Debug)]
pub struct Device(Handle);

#[cfg(unix)]
use unix::Handle;
#[cfg(unix)]
pub use unix::Nvml;

#[cfg(unix)]
mod unix {
    use std::ffi::{c_int, c_longlong, c_uint, c_ulonglong, c_void};
    use std::path::Path;
    use std::ptr::null_mut;

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

    use super::{Device, NvmlError};

    /// nvmlDevice_t.
    #[derive(Clone, Copy, Debug)]
    pub struct Handle(*mut c_void);
    // SAFETY: NVML documents its functions as thread-safe and its handles as valid on every thread.
    unsafe impl Send for Handle {}
    // SAFETY: as above; the handle itself is never written.
    unsafe impl Sync for Handle {}

    type Init = unsafe extern "C" fn() -> c_int;
    type Count = unsafe extern "C" fn(*mut c_uint) -> c_int;
    type ByIndex = unsafe extern "C" fn(c_uint, *mut *mut c_void) -> c_int;
    type Energy = unsafe extern "C" fn(*mut c_void, *mut c_ulonglong) -> c_int;
    type Power = unsafe extern "C" fn(*mut c_void, *mut c_uint) -> c_int;
    type Fields = unsafe extern "C" fn(*mut c_void, c_int, *mut FieldValue) -> c_int;

    /// nvmlFieldValue_t.
    #[repr(C)]
    struct FieldValue {
        field: c_uint,
        scope: c_uint,
        /// Microseconds since 1970 of the sample.
        timestamp: c_longlong,
        latency: c_longlong,
        kind: c_uint,
        status: c_int,
        /// A union of eight bytes, of which an unsigned int is the first four.
        value: [u8; 8],
    }

    /// An opened and initialised library.
    pub struct Nvml {
        count: Count,
        by_index: ByIndex,
        energy: Option<Energy>,
        fields: Option<Fields>,
        power: Power,
    }

    impl Nvml {
        /// The loader's library.
        pub fn open() -> Result<Nvml, NvmlError> {
            Nvml::open_at(Path::new("libnvidia-ml.so.1"))
        }

        /// This file.
        pub fn open_at(path: &Path) -> Result<Nvml, NvmlError> {
            let load = |e: libloading::Error| {
                // The loader's own words are behind the crate's.
                let words = std::error::Error::source(&e).map_or_else(String::new, |source| format!(": {source}"));
                NvmlError::Load(format!("{e}{words}"))
            };
            // SAFETY: the user's NJOULE_NVML and the system's loader path are trusted to be NVML, as any shared library
            // that a program uses is; its constructors run here.
            let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(load)?;
            // SAFETY: these are the signatures of nvml.h, unchanged since NVML 5 (the counter since 9).
            let nvml = unsafe {
                let init: Symbol<Init> = library.get(b"nvmlInit_v2\0").map_err(load)?;
                let nvml = Nvml {
                    count: *library.get(b"nvmlDeviceGetCount_v2\0").map_err(load)?,
                    by_index: *library.get(b"nvmlDeviceGetHandleByIndex_v2\0").map_err(load)?,
                    energy: library.get(b"nvmlDeviceGetTotalEnergyConsumption\0").ok().map(|s: Symbol<Energy>| *s),
                    fields: library.get(b"nvmlDeviceGetFieldValues\0").ok().map(|s: Symbol<Fields>| *s),
                    power: *library.get(b"nvmlDeviceGetPowerUsage\0").map_err(load)?,
                };
                check("nvmlInit_v2", init())?;
                nvml
            };
            // The function pointers need the mapping for as long as the process lives.
            std::mem::forget(library);
            Ok(nvml)
        }

        /// All boards, each with its handle or why there is none.
        pub fn devices(&self) -> Result<Vec<Result<Device, NvmlError>>, NvmlError> {
            let mut count = 0;
            // SAFETY: the function writes one unsigned int to the place given.
            check("nvmlDeviceGetCount_v2", unsafe { (self.count)(&mut count) })?;
            let handle = |index| {
                let mut handle = null_mut();
                // SAFETY: the function writes one handle to the place given.
                check("nvmlDeviceGetHandleByIndex_v2", unsafe { (self.by_index)(index, &mut handle) })?;
                Ok(Device(Handle(handle)))
            };
            Ok((0..count.min(MAX_BOARDS)).map(handle).collect())
        }

        /// Millijoules since the driver was loaded.
        pub fn energy_mj(&self, device: &Device) -> Result<u64, NvmlError> {
            let energy = self.energy.ok_or(NvmlError::NotSupported)?;
            let mut value = 0;
            // SAFETY: the handle came from this library; the function writes one unsigned long long.
            check("nvmlDeviceGetTotalEnergyConsumption", unsafe { energy(device.0.0, &mut value) })?;
            Ok(value)
        }

        /// Milliwatts of a moment, and its stamp in microseconds.
        pub fn instant_mw(&self, device: &Device) -> Result<(u32, i64), NvmlError> {
            let fields = self.fields.ok_or(NvmlError::NotSupported)?;
            let (timestamp, latency, value) = (0, 0, [0; 8]);
            let mut asked =
                FieldValue { field: POWER_INSTANT, scope: 0, timestamp, latency, kind: 0, status: 0, value };
            // SAFETY: the handle came from this library; the function writes one nvmlFieldValue_t, whose layout this is.
            check("nvmlDeviceGetFieldValues", unsafe { fields(device.0.0, 1, &mut asked) })?;
            check("NVML_FI_DEV_POWER_INSTANT", asked.status)?;
            let FieldValue { kind, timestamp, value: [a, b, c, d, ..], .. } = asked;
            match kind {
                UNSIGNED_INT => Ok((u32::from_ne_bytes([a, b, c, d]), timestamp)),
                _ => Err(NvmlError::NotSupported),
            }
        }

        /// Milliwatts, of a moment or over a second, as the board has it.
        pub fn power_mw(&self, device: &Device) -> Result<u32, NvmlError> {
            let mut value = 0;
            // SAFETY: the handle came from this library; the function writes one unsigned int.
            check("nvmlDeviceGetPowerUsage", unsafe { (self.power)(device.0.0, &mut value) })?;
            Ok(value)
        }
    }

    /// nvmlReturn_t.
    fn check(call: &'static str, status: c_int) -> Result<(), NvmlError> {
        match status {
            0 => Ok(()),
            3 => Err(NvmlError::NotSupported),
            4 => Err(NvmlError::Permission),
            status => Err(NvmlError::Status { call, status }),
        }
    }

    const MAX_BOARDS: c_uint = 256;

    /// NVML_FI_DEV_POWER_INSTANT.
    const POWER_INSTANT: c_uint = 186;

    /// NVML_VALUE_TYPE_UNSIGNED_INT.
    const UNSIGNED_INT: c_uint = 1;
}

#[cfg(not(unix))]
#[derive(Clone, Copy, Debug)]
struct Handle;

/// Where it cannot be opened.
#[cfg(not(unix))]
pub struct Nvml;

#[cfg(not(unix))]
impl Nvml {
    /// Fails.
    pub fn open() -> Result<Nvml, NvmlError> {
        Nvml::open_at(Path::new(""))
    }

    /// Fails.
    pub fn open_at(_: &Path) -> Result<Nvml, NvmlError> {
        Err(NvmlError::Load("not on this system".into()))
    }

    /// None.
    pub fn devices(&self) -> Result<Vec<Result<Device, NvmlError>>, NvmlError> {
        Ok(vec![])
    }

    /// None.
    pub fn instant_mw(&self, _: &Device) -> Result<(u32, i64), NvmlError> {
        Err(NvmlError::NotSupported)
    }

    /// None.
    pub fn energy_mj(&self, _: &Device) -> Result<u64, NvmlError> {
        Err(NvmlError::NotSupported)
    }

    /// None.
    pub fn power_mw(&self, _: &Device) -> Result<u32, NvmlError> {
        Err(NvmlError::NotSupported)
    }
}
