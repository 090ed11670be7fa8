//! An `HloModuleProto` as a module.
//!
//! Total: any bytes give a module or an error. Memory is in proportion to the input and nothing recurses, because tuples
//! of tuples are refused. Decoding into [`Op`] is where fields are required: an instruction without the dimension numbers
//! of its opcode is no instruction. Fields we do not know are skipped; those that would change what an instruction means
//! are refused by name. What remains to be checked is [`crate::verify`]'s.

mod error;
mod instruction;

pub use error::{DecodeError, Place};

use std::collections::BTreeMap;

use crate::encode::TUPLE;
use crate::module::{Alias, AliasKind, Computation, Id, Module, Signature};
use crate::wire::{Reader, Value, WireError};
use crate::{ArrayShape, DType, Shape, Tensor};
use instruction::Raw;

/// Reads a module.
pub fn decode(bytes: &[u8]) -> Result<Module, DecodeError> {
    let at = Scope(Place::Module);
    let mut module = Module::default();
    let mut signed = false;
    for field in Reader::new(bytes) {
        let (n, value) = at.wire(field)?;
        match n {
            1 => module.name = at.wire(value.text(n))?,
            3 => module.computations.push(read_computation(at.wire(value.bytes(n))?)?),
            4 => {
                module.signature = read_signature(at.wire(value.bytes(n))?, &at)?;
                signed = true;
            }
            6 => module.entry = Id(at.wire(value.int(n))?),
            8 => read_aliases(at.wire(value.bytes(n))?, &at, &mut module.aliases)?,
            19 => read_attributes(at.wire(value.bytes(n))?, &at, &mut module.attributes)?,
            _ => {}
        }
    }
    if !signed {
        return Err(at.missing("host_program_shape"));
    }
    Ok(module)
}

/// What is being read, and its errors.
struct Scope(Place);

impl Scope {
    fn wire<T>(&self, result: Result<T, WireError>) -> Result<T, DecodeError> {
        result.map_err(|source| DecodeError::Wire { place: self.0.clone(), source })
    }

    fn missing(&self, field: &'static str) -> DecodeError {
        DecodeError::Missing { place: self.0.clone(), field }
    }

    fn unsupported(&self, field: &'static str) -> DecodeError {
        DecodeError::Unsupported { place: self.0.clone(), field }
    }

    fn size(&self, value: i64, field: &'static str) -> Result<usize, DecodeError> {
        match usize::try_from(value) {
            Ok(n) if n <= crate::shape::MAX_ELEMENTS => Ok(n),
            _ => Err(DecodeError::Number { place: self.0.clone(), field, value }),
        }
    }

    fn sizes(&self, values: &[i64], field: &'static str) -> Result<Vec<usize>, DecodeError> {
        values.iter().map(|&v| self.size(v, field)).collect()
    }
}

fn read_computation(bytes: &[u8]) -> Result<Computation, DecodeError> {
    let mut at = Scope(Place::Computation(String::new()));
    let mut computation = Computation::default();
    for field in Reader::new(bytes) {
        let (n, value) = at.wire(field)?;
        match n {
            1 => {
                computation.name = at.wire(value.text(n))?;
                at = Scope(Place::Computation(computation.name.clone()));
            }
            2 => computation.instructions.push(Raw::read(at.wire(value.bytes(n))?)?.typed()?),
            5 => computation.id = Id(at.wire(value.int(n))?),
            6 => computation.root = Id(at.wire(value.int(n))?),
            _ => {}
        }
    }
    Ok(computation)
}

fn read_signature(bytes: &[u8], at: &Scope) -> Result<Signature, DecodeError> {
    let mut signature = Signature::default();
    for field in Reader::new(bytes) {
        let (n, value) = at.wire(field)?;
        match n {
            1 => signature.parameters.push(read_shape(at.wire(value.bytes(n))?, at)?.shape),
            2 => signature.result = Some(read_shape(at.wire(value.bytes(n))?, at)?.shape),
            3 => signature.parameter_names.push(at.wire(value.text(n))?),
            _ => {}
        }
    }
    Ok(signature)
}

fn read_aliases(bytes: &[u8], at: &Scope, out: &mut Vec<Alias>) -> Result<(), DecodeError> {
    for field in Reader::new(bytes) {
        let (n, value) = at.wire(field)?;
        if n != 1 {
            continue;
        }
        let (mut output, mut inner, mut parameter, mut kind) = (vec![], vec![], 0, 0);
        for field in Reader::new(at.wire(value.bytes(n))?) {
            let (n, value) = at.wire(field)?;
            match n {
                1 => at.wire(value.ints(&mut output))?,
                2 => parameter = at.wire(value.int(n))?,
                3 => at.wire(value.ints(&mut inner))?,
                4 => kind = at.wire(value.int(n))?,
                _ => {}
            }
        }
        if output.len() > 1 || !inner.is_empty() {
            return Err(at.unsupported("an alias into a nested tuple"));
        }
        let output = output.first().map(|&o| at.size(o, "output_shape_index")).transpose()?;
        let kind = match kind {
            0 => AliasKind::Undefined,
            1 => AliasKind::May,
            2 => AliasKind::Must,
            value => return Err(DecodeError::Number { place: at.0.clone(), field: "alias kind", value }),
        };
        out.push(Alias { output, parameter: at.size(parameter, "parameter_number")?, kind });
    }
    Ok(())
}

fn read_attributes(bytes: &[u8], at: &Scope, out: &mut BTreeMap<String, String>) -> Result<(), DecodeError> {
    for field in Reader::new(bytes) {
        let (n, value) = at.wire(field)?;
        if n != 1 {
            continue;
        }
        let (mut key, mut text) = (String::new(), String::new());
        for field in Reader::new(at.wire(value.bytes(n))?) {
            let (n, value) = at.wire(field)?;
            match n {
                1 => key = at.wire(value.text(n))?,
                2 => text = at.wire(value.text(n))?,
                _ => {}
            }
        }
        out.insert(key, text);
    }
    Ok(())
}

struct ReadShape {
    shape: Shape,
    /// Of an array: whether it was written.
    layout: bool,
}

fn read_shape(bytes: &[u8], at: &Scope) -> Result<ReadShape, DecodeError> {
    let (mut kind, mut dims, mut parts, mut layout) = (0, vec![], vec![], None);
    for field in Reader::new(bytes) {
        let (n, value) = at.wire(field)?;
        match n {
            2 => kind = at.wire(value.int(n))?,
            3 => at.wire(value.ints(&mut dims))?,
            4 => {
                let part = at.wire(value.bytes(n))?;
                // Before it is read: a hostile file nests as deep as it is long.
                if element_type(part, at)? == TUPLE {
                    return Err(DecodeError::NestedTuple { place: at.0.clone() });
                }
                parts.push(part);
            }
            5 => layout = Some(at.wire(value.bytes(n))?),
            6 => {
                let mut dynamic = vec![];
                at.wire(value.ints(&mut dynamic))?;
                if dynamic.iter().any(|&d| d != 0) {
                    return Err(DecodeError::Dynamic { place: at.0.clone() });
                }
            }
            _ => {}
        }
    }
    if kind == TUPLE {
        let array = |part: &[u8]| match read_shape(part, at)?.shape {
            Shape::Array(shape) => Ok(shape),
            Shape::Tuple(_) => Err(DecodeError::NestedTuple { place: at.0.clone() }),
        };
        let parts = parts.into_iter().map(array).collect::<Result<_, _>>()?;
        return Ok(ReadShape { shape: Shape::Tuple(parts), layout: true });
    }
    if !parts.is_empty() {
        return Err(at.unsupported("tuple_shapes of an array"));
    }
    let dtype = DType::from_number(kind);
    let dtype = dtype.ok_or_else(|| DecodeError::ElementType { place: at.0.clone(), number: kind })?;
    let sizes: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let Some(shape) = sizes.and_then(|sizes| ArrayShape::new(dtype, &sizes)) else {
        return Err(DecodeError::Dims { place: at.0.clone(), dims });
    };
    if let Some(bytes) = layout {
        let mut order = vec![];
        for field in Reader::new(bytes) {
            let (n, value) = at.wire(field)?;
            if n == 1 {
                at.wire(value.ints(&mut order))?;
            }
        }
        if !order.iter().copied().eq((0..shape.rank() as i64).rev()) {
            return Err(DecodeError::Layout { place: at.0.clone() });
        }
    }
    Ok(ReadShape { shape: Shape::Array(shape), layout: layout.is_some() })
}

fn element_type(bytes: &[u8], at: &Scope) -> Result<i64, DecodeError> {
    let mut kind = 0;
    for field in Reader::new(bytes) {
        if let (2, value) = at.wire(field)? {
            kind = at.wire(value.int(2))?;
        }
    }
    Ok(kind)
}

fn read_literal(bytes: &[u8], at: &Scope) -> Result<Tensor, DecodeError> {
    let mut shape = None;
    for field in Reader::new(bytes) {
        if let (1, value) = at.wire(field)? {
            shape = Some(read_shape(at.wire(value.bytes(1))?, at)?);
        }
    }
    let ReadShape { shape, layout } = shape.ok_or_else(|| at.missing("literal.shape"))?;
    let shape = shape.array().ok_or_else(|| at.unsupported("a tuple literal"))?;
    if !layout {
        return Err(DecodeError::Layout { place: at.0.clone() });
    }
    let payload = match shape.dtype() {
        DType::Pred => 2,
        DType::U8 => 3,
        DType::S32 => 4,
        DType::S64 => 5,
        DType::U32 => 6,
        DType::F32 => 8,
        DType::F16 => 11,
        DType::BF16 => 13,
        DType::S8 => 15,
        DType::F8E5M2 => 19,
        DType::F8E4M3FN => 20,
        DType::F8E4M3 => 28,
    };
    let (mut raw, mut numbers) = (vec![], vec![]);
    for field in Reader::new(bytes) {
        let (n, value) = at.wire(field)?;
        if n != payload {
            continue;
        }
        match (shape.dtype(), value) {
            (DType::Pred | DType::S32 | DType::S64 | DType::U32, value) => at.wire(value.ints(&mut numbers))?,
            (DType::F32, Value::Number(bits)) => raw.extend_from_slice(&bits.to_le_bytes()[..4]),
            (_, value) => raw.extend_from_slice(at.wire(value.bytes(n))?),
        }
    }
    // Numbers are cut to their type's width, as protobuf readers do.
    let dims = shape.dims().to_vec();
    let literal = match shape.dtype() {
        DType::Pred => Tensor::new(&dims, numbers.iter().map(|&n| n != 0).collect()),
        DType::S32 => Tensor::new(&dims, numbers.iter().map(|&n| n as i32).collect()),
        DType::U32 => Tensor::new(&dims, numbers.iter().map(|&n| n as u32).collect()),
        DType::S64 => Tensor::new(&dims, numbers),
        _ => Tensor::from_bytes(shape, &raw),
    };
    literal.map_err(|source| DecodeError::Literal { place: at.0.clone(), source })
}

#[cfg(test)]
mod tests;
