//! Shapes: static, dense, row major.
//!
//! An [`ArrayShape`] is `Copy` and small, so that a builder's value can carry it. Its element count fits a `usize` and
//! its byte count too, because [`ArrayShape::new`] is the only way to make one.

use std::fmt;

use crate::DType;

/// The most dimensions of an array.
pub const MAX_RANK: usize = 8;

/// The most elements of an array: 2^40, so that no byte count or flat index overflows.
pub const MAX_ELEMENTS: usize = 1 << 40;

/// Sizes of the dimensions, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dims {
    rank: u8,
    // u32 keeps a shape at 36 bytes; unused ones are zero, so that the derived comparisons hold.
    sizes: [u32; MAX_RANK],
}

/// An array's shape.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArrayShape {
    dtype: DType,
    dims: Dims,
}

/// An array's shape or a tuple's; tuples hold arrays only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One array.
    Array(ArrayShape),
    /// Several arrays.
    Tuple(Vec<ArrayShape>),
}

impl Dims {
    /// None where there are more than 8 of them, one is 2^31 or more, or their product (zeros left out) exceeds 2^40.
    pub fn new(sizes: &[usize]) -> Option<Dims> {
        let mut dims = Dims { rank: u8::try_from(sizes.len()).ok()?, sizes: [0; MAX_RANK] };
        if sizes.len() > MAX_RANK {
            return None;
        }
        // Over all sizes but zeros: strides are products of some of them.
        let mut product = 1usize;
        for (to, &size) in dims.sizes.iter_mut().zip(sizes) {
            *to = u32::try_from(i32::try_from(size).ok()?).ok()?;
            product = product.checked_mul(size.max(1)).filter(|&n| n <= MAX_ELEMENTS)?;
        }
        Some(dims)
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// The sizes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator + Clone + use<> {
        self.sizes.into_iter().take(self.rank()).map(|n| n as usize)
    }

    /// The sizes.
    pub fn to_vec(&self) -> Vec<usize> {
        self.iter().collect()
    }

    /// Size of dimension `d`. Panics beyond the rank.
    pub fn at(&self, d: usize) -> usize {
        assert!(d < self.rank(), "dimension {d} of {self}");
        self.sizes[d] as usize
    }

    /// Product of all sizes.
    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// Elements between neighbours along each dimension, row major.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.rank()];
        for d in (1..self.rank()).rev() {
            strides[d - 1] = strides[d] * self.at(d).max(1);
        }
        strides
    }
}

impl ArrayShape {
    /// None where [`Dims::new`] says so.
    pub fn new(dtype: DType, dims: &[usize]) -> Option<ArrayShape> {
        Some(ArrayShape { dtype, dims: Dims::new(dims)? })
    }

    /// A shape without dimensions.
    pub fn scalar(dtype: DType) -> ArrayShape {
        ArrayShape { dtype, dims: Dims { rank: 0, sizes: [0; MAX_RANK] } }
    }

    /// The same dimensions, other elements.
    pub fn with_dtype(self, dtype: DType) -> ArrayShape {
        ArrayShape { dtype, ..self }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.rank()
    }

    /// Size of dimension `d`. Panics beyond the rank.
    pub fn dim(&self, d: usize) -> usize {
        self.dims.at(d)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.elements()
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

impl Shape {
    /// The array's shape, if it is one.
    pub fn array(&self) -> Option<ArrayShape> {
        match self {
            Shape::Array(shape) => Some(*shape),
            Shape::Tuple(_) => None,
        }
    }

    /// One array for an array, all parts for a tuple.
    pub fn parts(&self) -> &[ArrayShape] {
        match self {
            Shape::Array(shape) => std::slice::from_ref(shape),
            Shape::Tuple(parts) => parts,
        }
    }

    /// Number of bytes of all arrays in it.
    pub fn bytes(&self) -> usize {
        self.parts().iter().fold(0, |sum, part| sum.saturating_add(part.bytes()))
    }
}

impl From<ArrayShape> for Shape {
    fn from(shape: ArrayShape) -> Self {
        Shape::Array(shape)
    }
}

impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (d, size) in self.iter().enumerate() {
            write!(f, "{}{size}", if d == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ArrayShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.dims)
    }
}

impl fmt::Debug for ArrayShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Array(shape) => write!(f, "{shape}"),
            Shape::Tuple(parts) => {
                f.write_str("(")?;
                for (i, part) in parts.iter().enumerate() {
                    write!(f, "{}{part}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    }
}

const _: () = assert!(size_of::<ArrayShape>() <= 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_could_overflow_cannot_be_made() {
        assert!(ArrayShape::new(DType::F32, &[1 << 31]).is_none());
        assert!(ArrayShape::new(DType::F32, &[1 << 20, 1 << 20]).is_some());
        assert!(ArrayShape::new(DType::F32, &[1 << 20, 1 << 20, 2]).is_none());
        assert!(ArrayShape::new(DType::F32, &[0, 1 << 30, 1 << 30]).is_none(), "its strides would overflow");
        assert!(ArrayShape::new(DType::F32, &[1; 9]).is_none());
        assert_eq!(ArrayShape::new(DType::F32, &[2, 0, 3]).unwrap().elements(), 0);
    }

    #[test]
    fn shapes_print_as_in_hlo_text() {
        let shape = ArrayShape::new(DType::BF16, &[2, 3]).unwrap();
        assert_eq!(shape.to_string(), "bf16[2,3]");
        assert_eq!(ArrayShape::scalar(DType::S32).to_string(), "s32[]");
        assert_eq!(Shape::Tuple(vec![shape, shape]).to_string(), "(bf16[2,3], bf16[2,3])");
        assert_eq!(shape.dims().strides(), [3, 1]);
    }
}
