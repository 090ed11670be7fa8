//! One instruction: from the many optional fields of the schema to an [`Op`] with exactly its own.

use std::collections::BTreeMap;

use super::{DecodeError, Place, ReadShape, Scope, read_attributes, read_literal, read_shape};
use crate::Instruction;
use crate::module::Id;
use crate::op::*;
use crate::wire::{Reader, WireError};

/// The fields of an instruction as they stand in the file; messages inside are read once the opcode asks for them.
#[derive(Default)]
pub(super) struct Raw<'a> {
    name: String,
    opcode: String,
    shape: Option<&'a [u8]>,
    metadata: Option<&'a [u8]>,
    literal: Option<&'a [u8]>,
    parameter_number: i64,
    tuple_index: i64,
    dimensions: Vec<i64>,
    slice_dimensions: Vec<&'a [u8]>,
    dynamic_slice_sizes: Vec<i64>,
    padding: Option<&'a [u8]>,
    channel_id: i64,
    target: String,
    dot: Option<&'a [u8]>,
    gather: Option<&'a [u8]>,
    gather_sizes: Vec<i64>,
    id: i64,
    operands: Vec<i64>,
    called: Vec<i64>,
    config: &'a [u8],
    scatter: Option<&'a [u8]>,
    groups: Vec<&'a [u8]>,
    stable: bool,
    direction: String,
    sorted: bool,
    attributes: Option<&'a [u8]>,
    unique: bool,
    operand_aliasing: bool,
    device_list: bool,
    api_version: i64,
}

impl<'a> Raw<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut at = Scope(Place::Instruction(String::new()));
        let mut raw = Raw::default();
        for field in Reader::new(bytes) {
            let (n, value) = at.wire(field)?;
            match n {
                1 => {
                    raw.name = at.wire(value.text(n))?;
                    at = Scope(Place::Instruction(raw.name.clone()));
                }
                2 => raw.opcode = at.wire(value.text(n))?,
                3 => raw.shape = Some(at.wire(value.bytes(n))?),
                7 => raw.metadata = Some(at.wire(value.bytes(n))?),
                8 => raw.literal = Some(at.wire(value.bytes(n))?),
                9 => raw.parameter_number = at.wire(value.int(n))?,
                13 => raw.tuple_index = at.wire(value.int(n))?,
                14 => at.wire(value.ints(&mut raw.dimensions))?,
                17 => raw.slice_dimensions.push(at.wire(value.bytes(n))?),
                20 => at.wire(value.ints(&mut raw.dynamic_slice_sizes))?,
                21 => raw.padding = Some(at.wire(value.bytes(n))?),
                26 => raw.channel_id = at.wire(value.int(n))?,
                28 => raw.target = at.wire(value.text(n))?,
                30 => raw.dot = Some(at.wire(value.bytes(n))?),
                33 => raw.gather = Some(at.wire(value.bytes(n))?),
                34 => at.wire(value.ints(&mut raw.gather_sizes))?,
                35 => raw.id = at.wire(value.int(n))?,
                36 => at.wire(value.ints(&mut raw.operands))?,
                38 => at.wire(value.ints(&mut raw.called))?,
                43 => raw.config = at.wire(value.bytes(n))?,
                48 => raw.scatter = Some(at.wire(value.bytes(n))?),
                49 => raw.groups.push(at.wire(value.bytes(n))?),
                60 => raw.stable = at.wire(value.int(n))? != 0,
                63 => raw.direction = at.wire(value.text(n))?,
                67 => raw.sorted = at.wire(value.int(n))? != 0,
                68 => raw.attributes = Some(at.wire(value.bytes(n))?),
                69 => raw.unique = at.wire(value.int(n))? != 0,
                74 => raw.operand_aliasing = true,
                77 => raw.api_version = at.wire(value.int(n))?,
                87 => raw.device_list = true,
                _ => {}
            }
        }
        Ok(raw)
    }

    pub(super) fn typed(self) -> Result<Instruction, DecodeError> {
        let at = Scope(Place::Instruction(self.name.clone()));
        let op = self.op(&at)?;
        let ReadShape { shape, layout } = read_shape(self.shape.ok_or_else(|| at.missing("shape"))?, &at)?;
        if matches!(op, Op::Constant(_)) && !layout {
            return Err(DecodeError::Layout { place: at.0 });
        }
        let mut scope = String::new();
        for field in Reader::new(self.metadata.unwrap_or_default()) {
            if let (2, value) = at.wire(field)? {
                scope = at.wire(value.text(2))?;
            }
        }
        let mut attributes = BTreeMap::new();
        read_attributes(self.attributes.unwrap_or_default(), &at, &mut attributes)?;
        let operands = self.operands.into_iter().map(Id).collect();
        Ok(Instruction { name: self.name, id: Id(self.id), shape, operands, op, scope, attributes })
    }

    fn op(&self, at: &Scope) -> Result<Op, DecodeError> {
        if let Some(op) = Unary::from_name(&self.opcode) {
            return Ok(Op::Unary(op));
        }
        if let Some(op) = Binary::from_name(&self.opcode) {
            return Ok(Op::Binary(op));
        }
        Ok(match self.opcode.as_str() {
            "parameter" => {
                let number = self.parameter_number;
                let bad = |_| DecodeError::Number { place: at.0.clone(), field: "parameter_number", value: number };
                Op::Parameter(u32::try_from(number).map_err(bad)?)
            }
            "constant" => Op::Constant(read_literal(self.literal.ok_or_else(|| at.missing("literal"))?, at)?),
            "iota" => Op::Iota(self.dimension(at)?),
            "broadcast" => Op::Broadcast(self.dimensions(at)?),
            "reshape" => Op::Reshape,
            "transpose" => Op::Transpose(self.dimensions(at)?),
            "convert" => Op::Convert,
            "copy" => Op::Copy,
            "clamp" => Op::Clamp,
            "compare" => match Direction::from_name(&self.direction) {
                Some(direction) => Op::Compare(direction),
                None => return Err(at.missing("comparison_direction")),
            },
            "select" => Op::Select,
            "reduce" if self.operands.len() != 2 => {
                return Err(DecodeError::VariadicReduce { place: at.0.clone(), operands: self.operands.len() });
            }
            "reduce" => Op::Reduce { dims: self.dimensions(at)?, to_apply: self.called(at)? },
            "dot" => Op::Dot(self.dot(at)?),
            "gather" => Op::Gather(self.gather(at)?),
            "scatter" => Op::Scatter(self.scatter(at)?),
            "slice" => Op::Slice(self.slice(at)?),
            "dynamic-slice" => Op::DynamicSlice(at.sizes(&self.dynamic_slice_sizes, "dynamic_slice_sizes")?),
            "dynamic-update-slice" => Op::DynamicUpdateSlice,
            "concatenate" => Op::Concatenate(self.dimension(at)?),
            "pad" => Op::Pad(self.pad(at)?),
            "tuple" => Op::Tuple,
            "get-tuple-element" => Op::GetTupleElement(at.size(self.tuple_index, "tuple_index")?),
            "sort" => Op::Sort { dim: self.dimension(at)?, stable: self.stable, comparator: self.called(at)? },
            "call" => Op::Call(self.called(at)?),
            "all-reduce" => Op::AllReduce { group: self.group(at)?, to_apply: self.called(at)? },
            "all-gather" => Op::AllGather { group: self.group(at)?, dim: self.dimension(at)? },
            "reduce-scatter" => {
                Op::ReduceScatter { group: self.group(at)?, dim: self.dimension(at)?, to_apply: self.called(at)? }
            }
            "custom-call" => Op::CustomCall(self.custom_call(at)?),
            other => return Err(DecodeError::Opcode { place: at.0.clone(), opcode: other.to_owned() }),
        })
    }

    fn dimensions(&self, at: &Scope) -> Result<Vec<usize>, DecodeError> {
        at.sizes(&self.dimensions, "dimensions")
    }

    fn dimension(&self, at: &Scope) -> Result<usize, DecodeError> {
        match self.dimensions[..] {
            [d] => at.size(d, "dimensions"),
            _ => Err(at.missing("dimensions (exactly one)")),
        }
    }

    fn called(&self, at: &Scope) -> Result<Id, DecodeError> {
        match self.called[..] {
            [id] => Ok(Id(id)),
            _ => Err(at.missing("called_computation_ids (exactly one)")),
        }
    }

    fn dot(&self, at: &Scope) -> Result<DotDims, DecodeError> {
        let bytes = self.dot.ok_or_else(|| at.missing("dot_dimension_numbers"))?;
        let lists = at.wire(lists::<4>(bytes))?;
        let [lc, rc, lb, rb] = &lists;
        let sizes = |v| at.sizes(v, "dot_dimension_numbers");
        Ok(DotDims {
            lhs_contracting: sizes(lc)?,
            rhs_contracting: sizes(rc)?,
            lhs_batch: sizes(lb)?,
            rhs_batch: sizes(rb)?,
        })
    }

    fn gather(&self, at: &Scope) -> Result<GatherDims, DecodeError> {
        let field = "gather_dimension_numbers";
        let [offset, collapsed, map, vector, batch, index_batch] =
            at.wire(lists::<6>(self.gather.ok_or_else(|| at.missing(field))?))?;
        if !batch.is_empty() || !index_batch.is_empty() {
            return Err(at.unsupported("operand_batching_dims"));
        }
        Ok(GatherDims {
            offset_dims: at.sizes(&offset, field)?,
            collapsed_slice_dims: at.sizes(&collapsed, field)?,
            start_index_map: at.sizes(&map, field)?,
            index_vector_dim: at.size(vector.last().copied().unwrap_or(0), "index_vector_dim")?,
            slice_sizes: at.sizes(&self.gather_sizes, "gather_slice_sizes")?,
            indices_are_sorted: self.sorted,
        })
    }

    fn scatter(&self, at: &Scope) -> Result<ScatterDims, DecodeError> {
        let field = "scatter_dimension_numbers";
        let [window, inserted, map, vector, batch, index_batch] =
            at.wire(lists::<6>(self.scatter.ok_or_else(|| at.missing(field))?))?;
        if !batch.is_empty() || !index_batch.is_empty() {
            return Err(at.unsupported("input_batching_dims"));
        }
        Ok(ScatterDims {
            update_window_dims: at.sizes(&window, field)?,
            inserted_window_dims: at.sizes(&inserted, field)?,
            scatter_dims_to_operand_dims: at.sizes(&map, field)?,
            index_vector_dim: at.size(vector.last().copied().unwrap_or(0), "index_vector_dim")?,
            indices_are_sorted: self.sorted,
            unique_indices: self.unique,
            to_apply: self.called(at)?,
        })
    }

    fn slice(&self, at: &Scope) -> Result<Vec<SliceDim>, DecodeError> {
        let read = |&bytes: &&[u8]| {
            let [start, limit, stride] = at.wire(ints::<3>(bytes))?;
            let size = |v| at.size(v, "slice_dimensions");
            Ok(SliceDim { start: size(start)?, limit: size(limit)?, stride: size(stride)? })
        };
        self.slice_dimensions.iter().map(read).collect()
    }

    fn pad(&self, at: &Scope) -> Result<Vec<PadDim>, DecodeError> {
        let mut dims = vec![];
        for field in Reader::new(self.padding.ok_or_else(|| at.missing("padding_config"))?) {
            let (n, value) = at.wire(field)?;
            if n == 1 {
                let [low, high, interior] = at.wire(ints::<3>(at.wire(value.bytes(n))?))?;
                dims.push(PadDim { low, high, interior });
            }
        }
        Ok(dims)
    }

    fn group(&self, at: &Scope) -> Result<Collective, DecodeError> {
        if self.device_list {
            // Skipping it would read as "all replicas".
            return Err(at.unsupported("collective_device_list"));
        }
        let read = |&bytes: &&[u8]| {
            let [replicas] = at.wire(lists::<1>(bytes))?;
            let number = |&value: &i64| {
                let bad = |_| DecodeError::Number { place: at.0.clone(), field: "replica_ids", value };
                u32::try_from(value).map_err(bad)
            };
            replicas.iter().map(number).collect()
        };
        let groups = self.groups.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Collective { groups, channel_id: self.channel_id })
    }

    fn custom_call(&self, at: &Scope) -> Result<CustomCall, DecodeError> {
        if self.operand_aliasing {
            return Err(at.unsupported("output_operand_aliasing"));
        }
        let bad =
            |_| DecodeError::Number { place: at.0.clone(), field: "custom_call_api_version", value: self.api_version };
        let api_version = i32::try_from(self.api_version).map_err(bad)?;
        Ok(CustomCall { target: self.target.clone(), config: self.config.to_vec(), api_version })
    }
}

/// Fields 1 to N, each a list of integers.
fn lists<const N: usize>(bytes: &[u8]) -> Result<[Vec<i64>; N], WireError> {
    let mut lists = std::array::from_fn(|_| vec![]);
    for field in Reader::new(bytes) {
        let (n, value) = field?;
        if let Some(list) = (n as usize).checked_sub(1).and_then(|n| lists.get_mut(n)) {
            value.ints(list)?;
        }
    }
    Ok(lists)
}

/// Fields 1 to N, each an integer.
fn ints<const N: usize>(bytes: &[u8]) -> Result<[i64; N], WireError> {
    let mut ints = [0; N];
    for field in Reader::new(bytes) {
        let (n, value) = field?;
        if let Some(int) = (n as usize).checked_sub(1).and_then(|n| ints.get_mut(n)) {
            *int = value.int(n)?;
        }
    }
    Ok(ints)
}
