//! Runs a module with real XLA, through a plugin of the PJRT C API. Behind the feature `pjrt`; for tests alone.
//!
//! XLA gets the bytes of [`crate::encode`] (`PJRT_Program.format = "hlo"`): its verifier and its numerics see exactly the
//! module that neuronx-cc would be given, but for custom calls, which stand as calls of their plain form, and for scalar
//! bounds of `clamp`, which are broadcast (`pjrt/plain.rs` says why). A pass says nothing of neuronx-cc's operators, limits, precision or speed.
//!
//! * **A plugin may end the process**: XLA aborts on some malformed modules. [`Plugin::compile`] verifies first, which
//!   finds those that are known; where that is not enough, run it in a child process.
//! * **It clamps**: an index out of bounds reads or writes the nearest row (gather, dynamic slices) or nothing (scatter). The
//!   device's error 1006 is found by [`crate::Executable`] alone.
//! * **Everything is copied**: inputs to buffers and results back, in each run, weights and caches included. A result that
//!   takes a parameter's memory is computed right, and copied like the rest.
//! * The library stays mapped until the process ends: it keeps threads, and unmapping their code crashed at exit.
//! * It logs to stderr; `TF_CPP_MIN_LOG_LEVEL=3` in the environment, before the process starts, leaves errors out too.
//!
//! Invariant: a handle is destroyed once, by the drop of the one value that owns it, after everything made with it.

mod error;
mod layout;
mod plain;

pub use error::PjrtError;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::tensor::with_type;
use crate::wire::Writer;
use crate::{ArrayShape, Module, Shape, Target, Tensor, encode, verify};
use layout::*;

/// A loaded plugin. A cheap handle: copies are the same plugin with the same clients.
#[derive(Clone, Debug)]
pub struct Plugin {
    api: Api,
    version: (i32, i32),
    /// By number of devices.
    clients: Arc<Mutex<BTreeMap<usize, Arc<Client>>>>,
}

/// A module that XLA has compiled, ready to run any number of times, from any thread.
#[derive(Debug)]
pub struct PjrtExecutable {
    loaded: Handle,
    parameters: Vec<Shape>,
    results: Vec<ArrayShape>,
    client: Arc<Client>,
}

/// The plugin's functions.
#[derive(Clone, Copy)]
struct Api(&'static [Option<Function>; FUNCTIONS]);

/// Devices that are a process's own.
#[derive(Debug)]
struct Client {
    api: Api,
    handle: Handle,
    devices: Vec<Handle>,
    /// Held by a run of several replicas: two at once could each wait for threads that the other has.
    turn: Mutex<()>,
}

struct Buffer {
    api: Api,
    handle: Handle,
}

// SAFETY: PJRT's clients, and the devices they own, may be used by all threads at once.
unsafe impl Send for Client {}
// SAFETY: likewise.
unsafe impl Sync for Client {}
// SAFETY: so may its executables.
unsafe impl Send for PjrtExecutable {}
// SAFETY: likewise.
unsafe impl Sync for PjrtExecutable {}

impl Plugin {
    /// Loads a plugin, for good: it is never unmapped. The file's code runs in this process, so it must be one that is
    /// trusted; a file that exports `GetPjrtApi` and is something else is not found out.
    pub fn open(path: &Path) -> Result<Plugin, PjrtError> {
        let problem = |problem: &dyn ToString| PjrtError::Open { path: path.to_owned(), problem: problem.to_string() };
        // SAFETY: its initialisers are those of a PJRT plugin, as the caller says by naming it.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| problem(&e))?;
        // SAFETY: the type of this symbol in every version of the API.
        let get = unsafe { library.get::<unsafe extern "C" fn() -> *const Head>(b"GetPjrtApi\0") };
        let get = *get.map_err(|e| problem(&e))?;
        std::mem::forget(library);
        // SAFETY: it takes nothing and gives a pointer to a static.
        let head = unsafe { get() };
        if head.is_null() {
            return Err(problem(&"GetPjrtApi gives nothing"));
        }
        // SAFETY: not null, so it is the head of the API, which lives as long as the library.
        let Head { size, version, .. } = unsafe { &*head };
        let (major, minor) = (version.major, version.minor);
        let functions = size.saturating_sub(size_of::<Head>()) / size_of::<Option<Function>>();
        if (major, functions >= FUNCTIONS) != (0, true) || minor < OLDEST {
            return Err(PjrtError::Version { path: path.to_owned(), major, minor, functions });
        }
        // SAFETY: the API is larger than its head, as was just seen.
        let table = unsafe { head.add(1) };
        // SAFETY: as many functions follow, of this type but for those that `Api::told` knows; null where there is none.
        let api = Api(unsafe { &*table.cast() });
        // SAFETY: it takes nothing.
        unsafe { api.call(Initialize::default()) }?;
        Ok(Plugin { api, version: (major, minor), clients: Arc::default() })
    }

    /// The plugin's version of the C API.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles a module for as many replicas as run together. Takes a third of a second to some seconds.
    pub fn compile(&self, module: &Module, replicas: usize) -> Result<PjrtExecutable, PjrtError> {
        let plain = plain::plain(module)?;
        verify(&plain, Target::Xla).map_err(|e| PjrtError::Verify(Box::new(e)))?;
        let client = self.client(replicas)?;
        let (code, format, options) = (encode(&plain), "hlo", compile_options(replicas));
        let program = Args::new(Program {
            code: code.as_ptr(),
            code_len: code.len(),
            format: format.as_ptr(),
            format_len: format.len(),
        });
        let call = Compile {
            client: client.handle,
            program: &program,
            options: options.as_ptr(),
            options_len: options.len(),
            ..Compile::default()
        };
        // SAFETY: the client is alive, and so are the program and the options.
        let loaded = unsafe { self.api.call(call) }?.loaded;
        let executable = PjrtExecutable {
            loaded,
            parameters: module.signature.parameters.clone(),
            results: module.results().to_vec(),
            client,
        };
        // What a run writes to is made by the module's word: it must be the plugin's too.
        let (want, got) = (executable.results.len(), executable.outputs()?);
        if want == got { Ok(executable) } else { Err(PjrtError::Results { want, got }) }
    }

    /// The client with this many devices.
    fn client(&self, devices: usize) -> Result<Arc<Client>, PjrtError> {
        if !(1..=MAX_REPLICAS).contains(&devices) {
            return Err(PjrtError::Devices { replicas: devices, devices: MAX_REPLICAS });
        }
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&devices) {
            return Ok(client.clone());
        }
        let client = Arc::new(Client::new(self.api, devices)?);
        clients.insert(devices, client.clone());
        Ok(client)
    }
}

impl PjrtExecutable {
    /// Runs on one replica: inputs by parameter number to results in tuple order.
    pub fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, PjrtError> {
        let results = self.run_replicas(vec![inputs])?;
        Ok(results.into_iter().next().unwrap_or_default())
    }

    /// Runs on all replicas that it was compiled for; inputs by replica and parameter. Copies every input and result.
    pub fn run_replicas(&self, inputs: Vec<Vec<Tensor>>) -> Result<Vec<Vec<Tensor>>, PjrtError> {
        self.check_inputs(&inputs)?;
        let _turn = (inputs.len() > 1).then(|| self.client.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let mut buffers: Vec<Vec<Buffer>> = vec![];
        for (inputs, &device) in inputs.into_iter().zip(&self.client.devices) {
            buffers.push(inputs.iter().map(|t| self.client.upload(t, device)).collect::<Result<_, _>>()?);
        }
        let results = self.execute(&buffers)?;
        let read = |results: &Vec<Buffer>| results.iter().zip(&self.results).map(|(b, &s)| b.read(s)).collect();
        results.iter().map(read).collect()
    }

    fn check_inputs(&self, inputs: &[Vec<Tensor>]) -> Result<(), PjrtError> {
        let (want, got) = (self.client.devices.len(), inputs.len());
        if want != got {
            return Err(PjrtError::Replicas { want, got });
        }
        for (replica, inputs) in inputs.iter().enumerate() {
            let (want, got) = (self.parameters.len(), inputs.len());
            if want != got {
                return Err(PjrtError::Inputs { replica, want, got });
            }
            for (parameter, (want, got)) in self.parameters.iter().zip(inputs).enumerate() {
                if want.array() != Some(got.shape()) {
                    return Err(PjrtError::Input { replica, parameter, want: want.clone(), got: got.shape() });
                }
            }
        }
        Ok(())
    }

    /// Arguments and results by device; as many and of such shapes as were compiled for.
    fn execute(&self, arguments: &[Vec<Buffer>]) -> Result<Vec<Vec<Buffer>>, PjrtError> {
        let (api, devices) = (self.client.api, arguments.len());
        let arguments: Vec<Vec<Handle>> = arguments.iter().map(|a| a.iter().map(|b| b.handle).collect()).collect();
        let arguments: Vec<*const Handle> = arguments.iter().map(|a| a.as_ptr()).collect();
        let mut results = vec![vec![std::ptr::null_mut(); self.results.len()]; devices];
        let places: Vec<*mut Handle> = results.iter_mut().map(|r| r.as_mut_ptr()).collect();
        let mut done = vec![std::ptr::null_mut(); devices];
        let options = Args::new(ExecuteOptions::default());
        let call = Execute {
            loaded: self.loaded,
            options: &options,
            arguments: arguments.as_ptr(),
            devices,
            arguments_len: self.parameters.len(),
            results: places.as_ptr(),
            done: done.as_mut_ptr(),
            ..Execute::default()
        };
        // SAFETY: the lists are as long as the executable's devices, parameters and results, and outlive the call.
        let started = unsafe { api.call(call) };
        let own = |handles: Vec<Handle>| handles.into_iter().map(|handle| Buffer { api, handle }).collect();
        let results: Vec<Vec<Buffer>> = results.into_iter().map(own).collect();
        // All of them, before any input is given back.
        let ended: Vec<_> = done.into_iter().map(|event| api.wait(event)).collect();
        started?;
        ended.into_iter().collect::<Result<(), _>>()?;
        Ok(results)
    }

    /// How many results the compiled program has.
    fn outputs(&self) -> Result<usize, PjrtError> {
        let api = self.client.api;
        // SAFETY: it is alive.
        let got = unsafe { api.call(GetExecutable { loaded: self.loaded, ..Default::default() }) };
        let executable = got?.executable;
        // SAFETY: it was just given.
        let outputs = unsafe { api.call(NumOutputs { executable, outputs: 0 }) };
        // SAFETY: nobody else has it.
        let destroyed = unsafe { api.call(ExecutableDestroy { executable }) };
        destroyed?;
        Ok(outputs?.outputs)
    }
}

impl Client {
    fn new(api: Api, devices: usize) -> Result<Client, PjrtError> {
        let name = "cpu_device_count";
        // At most MAX_REPLICAS.
        let value = devices as i64;
        let option = Args::new(NamedValue { name: name.as_ptr(), name_len: name.len(), kind: 1, value, value_len: 1 });
        // SAFETY: the option outlives the call.
        let handle = unsafe { api.call(ClientCreate { options: &option, options_len: 1, ..Default::default() }) };
        let mut client = Client { api, handle: handle?.client, devices: vec![], turn: Mutex::default() };
        // SAFETY: the client is alive.
        let found = unsafe { api.call(AddressableDevices { client: client.handle, ..Default::default() }) }?;
        if found.len < devices || found.devices.is_null() {
            return Err(PjrtError::Devices { replicas: devices, devices: found.len });
        }
        // SAFETY: at least as many are there, in an array that lives as long as the client.
        client.devices = unsafe { std::slice::from_raw_parts(found.devices, devices) }.to_vec();
        Ok(client)
    }

    /// Copies a tensor to a device.
    fn upload(&self, tensor: &Tensor, device: Handle) -> Result<Buffer, PjrtError> {
        let dims: Vec<i64> = tensor.shape().dims().iter().map(|n| n as i64).collect(); // below 2^40
        // Elements lie as the host has them, which is what the plugin reads; a bool is a byte of 0 or 1.
        let data = with_type!(tensor.shape().dtype(), T => tensor.as_slice::<T>().unwrap_or_default().as_ptr().cast());
        let call = BufferFromHost {
            client: self.handle,
            data,
            dtype: buffer_type(tensor.shape().dtype()),
            dims: dims.as_ptr(),
            rank: dims.len(),
            device,
            ..BufferFromHost::default()
        };
        // SAFETY: client and device are alive; the data has the bytes of its type and dimensions, and is copied meanwhile.
        let made = unsafe { self.api.call(call) }?;
        let buffer = Buffer { api: self.api, handle: made.buffer };
        self.api.wait(made.done)?;
        Ok(buffer)
    }
}

impl Buffer {
    /// Copies it to the host; it must be of this shape.
    fn read(&self, want: ArrayShape) -> Result<Tensor, PjrtError> {
        let (api, buffer) = (self.api, self.handle);
        // SAFETY: it is alive.
        let dtype = unsafe { api.call(ElementType { buffer, dtype: 0 }) }?.dtype;
        // SAFETY: likewise.
        let Dimensions { dims, rank, .. } = unsafe { api.call(Dimensions { buffer, ..Default::default() }) }?;
        let dims = if rank == 0 || dims.is_null() {
            &[]
        } else {
            // SAFETY: the plugin's array of this length, which lives as long as the buffer.
            unsafe { std::slice::from_raw_parts(dims, rank) }
        };
        // SAFETY: it is alive; without a place to write to, the call tells the size.
        let len = unsafe { api.call(ToHost { buffer, ..Default::default() }) }?.len;
        let alike = dtype == buffer_type(want.dtype()) && dims.iter().copied().eq(want.dims().iter().map(|n| n as i64));
        if !alike || len != want.bytes() {
            return Err(PjrtError::Result { want, got: format!("type {dtype} of dimensions {dims:?}"), bytes: len });
        }
        let mut bytes = vec![0u8; len];
        // SAFETY: there are `len` bytes to write to, until the event is waited for below.
        let copied = unsafe { api.call(ToHost { buffer, to: bytes.as_mut_ptr(), len, ..Default::default() }) };
        api.wait(copied?.done)?;
        // As long as the shape says, as was just seen.
        Tensor::from_bytes(want, &bytes).map_err(|e| PjrtError::Result { want, got: e.to_string(), bytes: len })
    }
}

impl Api {
    /// Calls the function that takes these fields, and gives them back with what it has filled in.
    ///
    /// # Safety
    /// Handles must be alive, and pointers to as much as the fields beside them say, for as long as the function needs.
    unsafe fn call<T: Call>(self, fields: T) -> Result<T, PjrtError> {
        let function = self.0[T::INDEX].ok_or(PjrtError::Missing { function: T::NAME })?;
        let mut args = Args::new(fields);
        // SAFETY: the struct that this function takes; the caller vouches for what it points to.
        let error = unsafe { function(std::ptr::from_mut(&mut args).cast()) };
        if error.is_null() {
            return Ok(args.fields);
        }
        let said = self.told(ErrorMessage { error, ..Default::default() });
        let text = match said {
            Some(ErrorMessage { text, len, .. }) if !text.is_null() => {
                // SAFETY: the plugin's text, which lives as long as the error.
                let text = unsafe { std::slice::from_raw_parts(text, len) };
                String::from_utf8_lossy(text).into_owned()
            }
            _ => "it failed and does not say why".to_owned(),
        };
        self.told(ErrorDestroy { error });
        Err(PjrtError::Call { function: T::NAME, text })
    }

    /// Calls one of the two functions that cannot fail; both take an error that [`Api::call`] was just given.
    fn told<T: Call>(self, fields: T) -> Option<T> {
        let function = self.0[T::INDEX]?;
        // SAFETY: these two return nothing; otherwise they are alike.
        let function = unsafe { std::mem::transmute::<Function, Procedure>(function) };
        let mut args = Args::new(fields);
        // SAFETY: the struct that this function takes, of an error that is not destroyed yet.
        unsafe { function(std::ptr::from_mut(&mut args).cast()) };
        Some(args.fields)
    }

    /// Waits for an event and destroys it.
    fn wait(self, event: Handle) -> Result<(), PjrtError> {
        if event.is_null() {
            return Ok(());
        }
        // SAFETY: the plugin gave it to be awaited.
        let ready = unsafe { self.call(EventAwait { event }) };
        // SAFETY: nobody else has it.
        let destroyed = unsafe { self.call(EventDestroy { event }) };
        ready?;
        destroyed?;
        Ok(())
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: its owner's; runs that used it have ended. A failure leaves nothing to be done.
            let _ = unsafe { self.api.call(BufferDestroy { buffer: self.handle }) };
        }
    }
}

impl Drop for PjrtExecutable {
    fn drop(&mut self) {
        // SAFETY: its owner's; its runs have borrowed it.
        let _ = unsafe { self.client.api.call(LoadedDestroy { loaded: self.loaded }) };
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: its owner's; executables hold the client, buffers do not outlive their runs.
        let _ = unsafe { self.api.call(ClientDestroy { client: self.handle }) };
    }
}

/// `CompileOptionsProto`: one partition, replica k on device k; maximum and minimum give NaN where either is, which XLA on a
/// CPU leaves out unless told.
fn compile_options(replicas: usize) -> Vec<u8> {
    let mut options = Writer::default();
    options.message(3, |build| {
        build.size(4, replicas);
        build.size(5, 1);
        if replicas > 1 {
            build.message(9, |assignment| {
                assignment.size(1, replicas);
                assignment.size(2, 1);
                assignment.message(3, |devices| devices.sizes(1, 0..replicas));
            });
        }
    });
    // env_option_overrides, a map to a oneof whose second field is a bool: written although it is false.
    options.message(7, |entry| {
        entry.text(1, "xla_cpu_enable_fast_min_max");
        entry.message(2, |value| value.bytes.extend([2 << 3, 0]));
    });
    options.bytes
}

/// The oldest minor version that is known to have this layout; 115 is what was tried.
const OLDEST: i32 = 81;

/// XLA has a thread for each; the largest instance has 64 cores.
const MAX_REPLICAS: usize = 128;

#[cfg(test)]
mod tests;
