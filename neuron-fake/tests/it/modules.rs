//! Small modules, their NEFFs, and tensors bound to them.

use std::sync::Arc;

use neuron_fake::neff::{self, Packing, Sidecar};
use njoule_hlo::op::{Binary, GatherDims, ScatterDims};
use njoule_hlo::{Builder, DType, Module, Target, Val};
use njoule_neuron_sys::{Core, Error, Model, Run, Runtime, Tensor, TensorSet};

/// Rows of a table are added to rows of a cache, in place: inputs are ids s32[2], cache f32[4,3], table f32[5,3]; outputs
/// are the rows f32[2,3] and the cache. Ids are not clamped, as njoule's own modules clamp them.
pub fn step() -> Module {
    let mut b = Builder::new("step");
    let ids = b.parameter("ids", DType::S32, &[2]);
    let cache = b.parameter("cache", DType::F32, &[4, 3]);
    let table = b.parameter("table", DType::F32, &[5, 3]);
    let ids = b.reshape(ids, &[2, 1]);
    let rows = take_rows(&mut b, table, ids);
    let old = take_rows(&mut b, cache, ids);
    let sum = b.add(rows, old);
    let written = write_rows(&mut b, cache, ids, sum);
    b.alias(1, cache);
    b.finish(&[rows, written])
}

fn take_rows(b: &mut Builder, table: Val, ids: Val) -> Val {
    let dims = GatherDims {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: 1,
        slice_sizes: vec![1, table.dim(1)],
        indices_are_sorted: false,
    };
    b.gather(table, ids, dims)
}

fn write_rows(b: &mut Builder, buffer: Val, ids: Val, rows: Val) -> Val {
    let dims = ScatterDims::rows();
    b.scatter(buffer, ids, rows, dims)
}

/// The sum of f32[2] over all ranks, and a count f32[2] in place that grows by it.
pub fn sum(ranks: u32) -> Module {
    let mut b = Builder::new("sum");
    let x = b.parameter("x", DType::F32, &[2]);
    let total = b.parameter("total", DType::F32, &[2]);
    let sum = b.all_reduce(x, Binary::Add, &[(0..ranks).collect()]);
    let grown = b.add(total, sum);
    b.alias(1, total);
    b.finish(&[sum, grown])
}

/// The NEFF that the compiler would make.
pub fn neff(module: &Module, target: Target) -> Vec<u8> {
    let sidecar = Sidecar::of(module, target, if target == Target::Trn2 { 2 } else { 1 }).unwrap();
    neff::write(module, &sidecar, Packing::default()).unwrap()
}

/// [`step`] on a core, bound to tensors of its own.
pub struct Bound {
    pub model: Arc<Model>,
    pub ids: Tensor,
    pub cache: Tensor,
    pub table: Tensor,
    pub rows: Tensor,
    pub run: Run,
}

impl Bound {
    /// The cache is zero, the table counts up from 0, ids are 1 and 3.
    pub fn new(runtime: &Runtime, core: Core) -> Bound {
        let model = Model::load(runtime, core, &neff(&step(), Target::Inf2), "step").unwrap();
        Bound::of(runtime, core, Arc::new(model))
    }

    pub fn of(runtime: &Runtime, core: Core, model: Arc<Model>) -> Bound {
        let on = |size, name| Tensor::on_core(runtime, core, size, name).unwrap();
        let (ids, cache, table, rows) = (on(8, "ids"), on(48, "cache"), on(60, "table"), on(24, "rows"));
        ids.write(0, &bytes(&[1i32, 3])).unwrap();
        cache.fill(0, 48, 0).unwrap();
        table.write(0, &bytes(&(0..15).map(|i| i as f32).collect::<Vec<_>>())).unwrap();
        let run = bind(runtime, &model, &[&ids, &cache, &table], &[&rows, &cache]).unwrap();
        Bound { model, ids, cache, table, rows, run }
    }
}

/// Sets of `input{i}` and `output{j}`, made a run.
pub fn bind(runtime: &Runtime, model: &Arc<Model>, inputs: &[&Tensor], outputs: &[&Tensor]) -> Result<Run, Error> {
    let set = |prefix: &str, tensors: &[&Tensor]| {
        let mut set = TensorSet::new(runtime).unwrap();
        for (i, tensor) in tensors.iter().enumerate() {
            set.bind(&format!("{prefix}{i}"), tensor).unwrap();
        }
        set
    };
    Run::new(Arc::clone(model), set("input", inputs), set("output", outputs))
}

/// Little-endian bytes.
pub fn bytes<T: njoule_hlo::Element>(values: &[T]) -> Vec<u8> {
    let mut out = vec![];
    values.iter().for_each(|v| v.write(&mut out));
    out
}

/// A tensor's elements.
pub fn read<T: njoule_hlo::Element>(tensor: &Tensor) -> Vec<T> {
    let mut bytes = vec![0; tensor.size()];
    tensor.read(0, &mut bytes).unwrap();
    bytes.chunks_exact(size_of::<T>()).map(T::read).collect()
}
