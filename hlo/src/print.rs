//! A module as HLO text, one instruction per line.
//!
//! For people and for reviewed snapshots: stable, close to what XLA prints, and without layouts, which are all row major.
//! Long literals are cut.

use std::fmt::{self, Display, Formatter};

use crate::module::{AliasKind, Computation, Instruction};
use crate::op::{Collective, CustomCall, Op, PadDim, SliceDim};
use crate::tensor::with_type;
use crate::{Element, Id, Module, Tensor};

impl Display for Module {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "HloModule {}", self.name)?;
        if !self.aliases.is_empty() {
            f.write_str(", input_output_alias={ ")?;
            for (i, alias) in self.aliases.iter().enumerate() {
                let kind = match alias.kind {
                    AliasKind::Undefined => "undefined-alias",
                    AliasKind::May => "may-alias",
                    AliasKind::Must => "must-alias",
                };
                let comma = if i == 0 { "" } else { ", " };
                write!(f, "{comma}{}: ({}, {{}}, {kind})", Braces(alias.output.as_slice()), alias.parameter)?;
            }
            f.write_str(" }")?;
        }
        write_attributes(f, &self.attributes)?;
        f.write_str("\n")?;
        for computation in &self.computations {
            f.write_str("\n")?;
            write_computation(f, computation, self)?;
        }
        Ok(())
    }
}

fn write_computation(f: &mut Formatter<'_>, computation: &Computation, module: &Module) -> fmt::Result {
    let entry = if computation.id == module.entry { "ENTRY " } else { "" };
    writeln!(f, "{entry}{} {{", computation.name)?;
    // Names of operands by id; a module that was not verified may lack some.
    let names: std::collections::HashMap<Id, &str> =
        computation.instructions.iter().map(|i| (i.id, i.name.as_str())).collect();
    for i in &computation.instructions {
        let root = if i.id == computation.root { "ROOT " } else { "" };
        write!(f, "  {root}{} = {} {}(", i.name, i.shape, i.op.name())?;
        match &i.op {
            Op::Parameter(number) => write!(f, "{number}")?,
            Op::Constant(literal) => write_literal(f, literal)?,
            _ => {
                for (n, id) in i.operands.iter().enumerate() {
                    let comma = if n == 0 { "" } else { ", " };
                    match names.get(id) {
                        Some(name) => write!(f, "{comma}{name}")?,
                        None => write!(f, "{comma}?{id}")?,
                    }
                }
            }
        }
        f.write_str(")")?;
        write_fields(f, i, module)?;
        write_attributes(f, &i.attributes)?;
        if !i.scope.is_empty() {
            write!(f, ", metadata={{op_name={:?}}}", i.scope)?;
        }
        f.write_str("\n")?;
    }
    f.write_str("}\n")
}

fn write_fields(f: &mut Formatter<'_>, i: &Instruction, module: &Module) -> fmt::Result {
    match &i.op {
        Op::Iota(dim) => write!(f, ", iota_dimension={dim}")?,
        Op::Broadcast(dims) | Op::Transpose(dims) | Op::Reduce { dims, .. } => {
            write!(f, ", dimensions={}", Braces(dims))?
        }
        Op::Concatenate(dim) | Op::AllGather { dim, .. } | Op::ReduceScatter { dim, .. } | Op::Sort { dim, .. } => {
            write!(f, ", dimensions={{{dim}}}")?;
        }
        Op::Compare(direction) => write!(f, ", direction={direction}")?,
        Op::Dot(d) => {
            for (name, dims) in [
                ("lhs_batch_dims", &d.lhs_batch),
                ("lhs_contracting_dims", &d.lhs_contracting),
                ("rhs_batch_dims", &d.rhs_batch),
                ("rhs_contracting_dims", &d.rhs_contracting),
            ] {
                if !dims.is_empty() {
                    write!(f, ", {name}={}", Braces(dims))?;
                }
            }
        }
        Op::Gather(d) => {
            write!(f, ", offset_dims={}", Braces(&d.offset_dims))?;
            write!(f, ", collapsed_slice_dims={}", Braces(&d.collapsed_slice_dims))?;
            write!(f, ", start_index_map={}", Braces(&d.start_index_map))?;
            write!(f, ", index_vector_dim={}, slice_sizes={}", d.index_vector_dim, Braces(&d.slice_sizes))?;
            write_flags(f, &[("indices_are_sorted", d.indices_are_sorted)])?;
        }
        Op::Scatter(d) => {
            write!(f, ", update_window_dims={}", Braces(&d.update_window_dims))?;
            write!(f, ", inserted_window_dims={}", Braces(&d.inserted_window_dims))?;
            write!(f, ", scatter_dims_to_operand_dims={}", Braces(&d.scatter_dims_to_operand_dims))?;
            write!(f, ", index_vector_dim={}", d.index_vector_dim)?;
            write_flags(f, &[("indices_are_sorted", d.indices_are_sorted), ("unique_indices", d.unique_indices)])?;
        }
        Op::Slice(dims) => write!(f, ", slice={}", Braces(dims))?,
        Op::DynamicSlice(sizes) => write!(f, ", dynamic_slice_sizes={}", Braces(sizes))?,
        Op::Pad(dims) => {
            for (n, d) in dims.iter().enumerate() {
                write!(f, "{}{d}", if n == 0 { ", padding=" } else { "x" })?;
            }
        }
        Op::GetTupleElement(index) => write!(f, ", index={index}")?,
        Op::CustomCall(call) => write_custom_call(f, call)?,
        _ => {}
    }
    if let Op::Sort { stable, .. } = i.op {
        write_flags(f, &[("is_stable", stable)])?;
    }
    if let Some(group) = i.op.collective() {
        write_groups(f, group)?;
    }
    if let Some(id) = i.op.called() {
        let name = module.computations.iter().find(|c| c.id == id).map_or("?", |c| c.name.as_str());
        write!(f, ", to_apply={name}")?;
    }
    Ok(())
}

fn write_custom_call(f: &mut Formatter<'_>, call: &CustomCall) -> fmt::Result {
    write!(f, ", custom_call_target={:?}", call.target)?;
    if !call.config.is_empty() {
        write!(f, ", backend_config={:?}", String::from_utf8_lossy(&call.config))?;
    }
    Ok(())
}

fn write_groups(f: &mut Formatter<'_>, group: &Collective) -> fmt::Result {
    f.write_str(", replica_groups={")?;
    for (i, replicas) in group.groups.iter().enumerate() {
        write!(f, "{}{}", if i == 0 { "" } else { "," }, Braces(replicas))?;
    }
    f.write_str("}")
}

fn write_flags(f: &mut Formatter<'_>, flags: &[(&str, bool)]) -> fmt::Result {
    for (name, set) in flags {
        if *set {
            write!(f, ", {name}=true")?;
        }
    }
    Ok(())
}

fn write_attributes(f: &mut Formatter<'_>, attributes: &std::collections::BTreeMap<String, String>) -> fmt::Result {
    if attributes.is_empty() {
        return Ok(());
    }
    f.write_str(", frontend_attributes={")?;
    for (i, (key, value)) in attributes.iter().enumerate() {
        write!(f, "{}{key}={value:?}", if i == 0 { "" } else { "," })?;
    }
    f.write_str("}")
}

fn write_literal(f: &mut Formatter<'_>, literal: &Tensor) -> fmt::Result {
    with_type!(literal.shape().dtype(), T => {
        let values: &[T] = literal.as_slice().unwrap_or_default();
        match values {
            [one] if literal.shape().rank() == 0 => write_element(f, *one),
            _ => {
                f.write_str("{")?;
                for (i, &value) in values.iter().take(MOST_ELEMENTS).enumerate() {
                    f.write_str(if i == 0 { "" } else { ", " })?;
                    write_element(f, value)?;
                }
                f.write_str(if values.len() > MOST_ELEMENTS { ", ...}" } else { "}" })
            }
        }
    })
}

/// 8-bit floats as their code, in hex; the others as Rust writes them, which is enough digits to read them back.
fn write_element<T: Element>(f: &mut Formatter<'_>, value: T) -> fmt::Result {
    if T::DTYPE.is_fp8() {
        let mut bytes = vec![];
        value.write(&mut bytes);
        return write!(f, "0x{:02x}", bytes[0]);
    }
    write!(f, "{value:?}")
}

struct Braces<'a, T>(&'a [T]);

impl<T: Display> Display for Braces<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, value) in self.0.iter().enumerate() {
            write!(f, "{}{value}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("}")
    }
}

impl Display for SliceDim {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "[{}:{}", self.start, self.limit)?;
        if self.stride != 1 {
            write!(f, ":{}", self.stride)?;
        }
        f.write_str("]")
    }
}

impl Display for PadDim {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.low, self.high)?;
        if self.interior != 0 {
            write!(f, "_{}", self.interior)?;
        }
        Ok(())
    }
}

/// Of a literal in the text.
const MOST_ELEMENTS: usize = 16;
