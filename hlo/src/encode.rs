//! A module as the bytes of an `HloModuleProto`.
//!
//! Field numbers are those of openxla's `xla/service/hlo.proto` and `xla/xla_data.proto`; of fields with an old and a new
//! form the old one is written, because neuronx-cc's documentation points at an old schema. Fields come in ascending
//! order and maps sorted by key: the same module always has the same bytes.

use crate::module::{Alias, AliasKind, Computation, Instruction};
use crate::op::{Collective, Op};
use crate::wire::Writer;
use crate::{ArrayShape, Data, Module, Shape, Tensor};

/// The module's bytes.
pub fn encode(module: &Module) -> Vec<u8> {
    let mut w = Writer::default();
    w.text(1, &module.name);
    w.text(2, module.entry().map_or("", |c| &c.name));
    for computation in &module.computations {
        w.message(3, |w| write_computation(w, computation, module));
    }
    w.message(4, |w| write_signature(w, module));
    w.int(6, module.entry.0);
    if !module.aliases.is_empty() {
        w.message(8, |w| {
            for alias in &module.aliases {
                w.message(1, |w| write_alias(w, alias));
            }
        });
    }
    write_attributes(&mut w, 19, &module.attributes);
    w.bytes
}

fn write_computation(w: &mut Writer, computation: &Computation, module: &Module) {
    w.text(1, &computation.name);
    for instruction in &computation.instructions {
        w.message(2, |w| write_instruction(w, instruction));
    }
    if computation.id == module.entry {
        w.message(4, |w| write_signature(w, module));
    }
    w.int(5, computation.id.0);
    w.int(6, computation.root.0);
}

fn write_signature(w: &mut Writer, module: &Module) {
    for shape in &module.signature.parameters {
        w.message(1, |w| write_shape(w, shape));
    }
    if let Some(result) = &module.signature.result {
        w.message(2, |w| write_shape(w, result));
    }
    for name in &module.signature.parameter_names {
        w.text(3, name);
    }
}

fn write_alias(w: &mut Writer, alias: &Alias) {
    w.sizes(1, alias.output);
    w.size(2, alias.parameter);
    let kind = match alias.kind {
        AliasKind::Undefined => 0,
        AliasKind::May => 1,
        AliasKind::Must => 2,
    };
    w.int(4, kind);
}

fn write_instruction(w: &mut Writer, i: &Instruction) {
    let op = &i.op;
    w.text(1, &i.name);
    w.text(2, op.name());
    w.message(3, |w| write_shape(w, &i.shape));
    if !i.scope.is_empty() {
        w.message(7, |w| w.text(2, &i.scope));
    }
    match op {
        Op::Constant(literal) => w.message(8, |w| write_literal(w, literal)),
        Op::Parameter(number) => w.int(9, i64::from(*number)),
        Op::GetTupleElement(index) => w.size(13, *index),
        Op::Iota(dim) | Op::Concatenate(dim) | Op::Sort { dim, .. } => w.sizes(14, [*dim]),
        Op::AllGather { dim, .. } | Op::ReduceScatter { dim, .. } => w.sizes(14, [*dim]),
        Op::Broadcast(dims) | Op::Transpose(dims) | Op::Reduce { dims, .. } => w.sizes(14, dims.iter().copied()),
        Op::Slice(dims) => {
            for d in dims {
                w.message(17, |w| {
                    w.size(1, d.start);
                    w.size(2, d.limit);
                    w.size(3, d.stride);
                });
            }
        }
        Op::DynamicSlice(sizes) => w.sizes(20, sizes.iter().copied()),
        Op::Pad(dims) => w.message(21, |w| {
            for d in dims {
                w.message(1, |w| {
                    w.int(1, d.low);
                    w.int(2, d.high);
                    w.int(3, d.interior);
                });
            }
        }),
        _ => {}
    }
    if let Some(group) = op.collective() {
        w.int(26, group.channel_id);
    }
    if let Op::CustomCall(call) = op {
        w.text(28, &call.target);
    }
    match op {
        Op::Dot(d) => w.message(30, |w| {
            w.sizes(1, d.lhs_contracting.iter().copied());
            w.sizes(2, d.rhs_contracting.iter().copied());
            w.sizes(3, d.lhs_batch.iter().copied());
            w.sizes(4, d.rhs_batch.iter().copied());
        }),
        Op::Gather(d) => {
            w.message(33, |w| {
                w.sizes(1, d.offset_dims.iter().copied());
                w.sizes(2, d.collapsed_slice_dims.iter().copied());
                w.sizes(3, d.start_index_map.iter().copied());
                w.size(4, d.index_vector_dim);
            });
            w.sizes(34, d.slice_sizes.iter().copied());
        }
        _ => {}
    }
    w.int(35, i.id.0);
    w.ints(36, i.operands.iter().map(|id| id.0));
    w.ints(38, op.called().map(|id| id.0));
    if let Op::CustomCall(call) = op {
        w.blob(43, &call.config);
    }
    if let Op::Scatter(d) = op {
        w.message(48, |w| {
            w.sizes(1, d.update_window_dims.iter().copied());
            w.sizes(2, d.inserted_window_dims.iter().copied());
            w.sizes(3, d.scatter_dims_to_operand_dims.iter().copied());
            w.size(4, d.index_vector_dim);
        });
    }
    if let Some(group) = op.collective() {
        write_groups(w, group);
    }
    match op {
        Op::Sort { stable, .. } => w.flag(60, *stable),
        Op::Compare(direction) => w.text(63, direction.name()),
        Op::Gather(d) => w.flag(67, d.indices_are_sorted),
        Op::Scatter(d) => w.flag(67, d.indices_are_sorted),
        _ => {}
    }
    write_attributes(w, 68, &i.attributes);
    match op {
        Op::Scatter(d) => w.flag(69, d.unique_indices),
        Op::CustomCall(call) => w.int(77, i64::from(call.api_version)),
        _ => {}
    }
}

fn write_groups(w: &mut Writer, group: &Collective) {
    for replicas in &group.groups {
        w.message(49, |w| w.ints(1, replicas.iter().map(|&r| i64::from(r))));
    }
}

fn write_attributes(w: &mut Writer, field: u32, attributes: &std::collections::BTreeMap<String, String>) {
    if !attributes.is_empty() {
        w.message(field, |w| {
            for (key, value) in attributes {
                w.entry(1, key, value);
            }
        });
    }
}

fn write_shape(w: &mut Writer, shape: &Shape) {
    match shape {
        Shape::Array(shape) => write_array_shape(w, shape),
        Shape::Tuple(parts) => {
            w.int(2, TUPLE);
            for part in parts {
                w.message(4, |w| write_array_shape(w, part));
            }
        }
    }
}

fn write_array_shape(w: &mut Writer, shape: &ArrayShape) {
    w.int(2, i64::from(shape.dtype().number()));
    w.sizes(3, shape.dims().iter());
    // Present even for a scalar, where it is empty: XLA wants a constant's shape to equal its literal's.
    w.message(5, |w| w.sizes(1, (0..shape.rank()).rev()));
}

fn write_literal(w: &mut Writer, literal: &Tensor) {
    w.message(1, |w| write_array_shape(w, &literal.shape()));
    match literal.data() {
        Data::Pred(v) => w.ints(2, v.iter().map(|&x| i64::from(x))),
        Data::S32(v) => w.ints(4, v.iter().map(|&x| i64::from(x))),
        Data::S64(v) => w.ints(5, v.iter().copied()),
        Data::U32(v) => w.ints(6, v.iter().map(|&x| i64::from(x))),
        Data::U8(v) => w.blob(3, v),
        Data::F32(_) => w.blob(8, &literal.to_bytes()),
        Data::F16(_) => w.blob(11, &literal.to_bytes()),
        Data::BF16(_) => w.blob(13, &literal.to_bytes()),
        Data::S8(_) => w.blob(15, &literal.to_bytes()),
        Data::F8E5M2(_) => w.blob(19, &literal.to_bytes()),
        Data::F8E4M3FN(_) => w.blob(20, &literal.to_bytes()),
        Data::F8E4M3(_) => w.blob(28, &literal.to_bytes()),
    }
}

pub(crate) const TUPLE: i64 = 13;
