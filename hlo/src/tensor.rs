//! Dense row-major arrays: literals in a module, inputs and results of the evaluator.
//!
//! A tensor's data has as many elements as its shape says, always. Data is shared (`Arc`): a clone copies nothing, and
//! what is written to while shared is copied first.

use std::sync::Arc;

use half::{bf16, f16};

use crate::{ArrayShape, DType, F8E4M3, F8E4M3FN, F8E5M2};

/// An array.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: ArrayShape,
    data: Data,
}

/// Why a tensor could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The dimensions are out of range ([`crate::Dims::new`]).
    #[error("dimensions {0:?} are out of range")]
    Dims(Vec<usize>),
    /// The number of elements or bytes is not the shape's.
    #[error("{shape} needs {want} {unit}, got {got}")]
    Len {
        /// The shape asked for.
        shape: ArrayShape,
        /// How many it takes.
        want: usize,
        /// How many there were.
        got: usize,
        /// "elements" or "bytes".
        unit: &'static str,
    },
    /// No memory for it.
    #[error("no memory for {0}")]
    Memory(ArrayShape),
}

/// A type of Rust that is the element of a tensor.
pub trait Element: Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// Its type in HLO.
    const DTYPE: DType;
    /// Wraps a vector.
    fn wrap(data: Arc<Vec<Self>>) -> Data;
    /// The vector, if the data is of this type.
    fn of(data: &Data) -> Option<&[Self]>;
    /// The vector to write to, if the data is of this type; copied first where it is shared.
    fn of_mut(data: &mut Data) -> Option<&mut [Self]>;
    /// From its little-endian bytes, as many as the type's size.
    fn read(bytes: &[u8]) -> Self;
    /// Appends its little-endian bytes.
    fn write(self, out: &mut Vec<u8>);
}

macro_rules! elements {
    ($($variant:ident $type:ty, $read:expr, $write:expr;)*) => {
        /// Elements of a tensor, by type.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)] // one variant per DType, named alike
        pub enum Data {
            $($variant(Arc<Vec<$type>>),)*
        }

        impl Data {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(Data::$variant(v) => v.len(),)* }
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Element type.
            pub fn dtype(&self) -> DType {
                match self { $(Data::$variant(_) => DType::$variant,)* }
            }
        }

        $(impl Element for $type {
            const DTYPE: DType = DType::$variant;

            fn wrap(data: Arc<Vec<Self>>) -> Data {
                Data::$variant(data)
            }

            fn of(data: &Data) -> Option<&[Self]> {
                match data {
                    Data::$variant(v) => Some(v),
                    _ => None,
                }
            }

            fn of_mut(data: &mut Data) -> Option<&mut [Self]> {
                match data {
                    Data::$variant(v) => Some(Arc::make_mut(v).as_mut_slice()),
                    _ => None,
                }
            }

            fn read(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<Self>()];
                raw.copy_from_slice(bytes);
                let read: fn([u8; size_of::<Self>()]) -> Self = $read;
                read(raw)
            }

            fn write(self, out: &mut Vec<u8>) {
                let write: fn(Self) -> [u8; size_of::<Self>()] = $write;
                out.extend_from_slice(&write(self));
            }
        })*
    };
}

elements! {
    Pred bool, |b| b != [0], |x| [u8::from(x)];
    S8 i8, i8::from_le_bytes, i8::to_le_bytes;
    U8 u8, u8::from_le_bytes, u8::to_le_bytes;
    S32 i32, i32::from_le_bytes, i32::to_le_bytes;
    U32 u32, u32::from_le_bytes, u32::to_le_bytes;
    S64 i64, i64::from_le_bytes, i64::to_le_bytes;
    F16 f16, f16::from_le_bytes, f16::to_le_bytes;
    BF16 bf16, bf16::from_le_bytes, bf16::to_le_bytes;
    F32 f32, f32::from_le_bytes, f32::to_le_bytes;
    F8E4M3 F8E4M3, |b| F8E4M3(b[0]), |x| [x.0];
    F8E4M3FN F8E4M3FN, |b| F8E4M3FN(b[0]), |x| [x.0];
    F8E5M2 F8E5M2, |b| F8E5M2(b[0]), |x| [x.0];
}

/// Runs `$body` with `$t` as the Rust type of a [`DType`].
macro_rules! with_type {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::Pred => with_type!(@ $t = bool, $body),
            $crate::DType::S8 => with_type!(@ $t = i8, $body),
            $crate::DType::U8 => with_type!(@ $t = u8, $body),
            $crate::DType::S32 => with_type!(@ $t = i32, $body),
            $crate::DType::U32 => with_type!(@ $t = u32, $body),
            $crate::DType::S64 => with_type!(@ $t = i64, $body),
            $crate::DType::F16 => with_type!(@ $t = half::f16, $body),
            $crate::DType::BF16 => with_type!(@ $t = half::bf16, $body),
            $crate::DType::F32 => with_type!(@ $t = f32, $body),
            $crate::DType::F8E4M3 => with_type!(@ $t = $crate::F8E4M3, $body),
            $crate::DType::F8E4M3FN => with_type!(@ $t = $crate::F8E4M3FN, $body),
            $crate::DType::F8E5M2 => with_type!(@ $t = $crate::F8E5M2, $body),
        }
    };
    (@ $t:ident = $type:ty, $body:expr) => {{
        type $t = $type;
        $body
    }};
}
pub(crate) use with_type;

impl Tensor {
    /// `data` in these dimensions.
    pub fn new<T: Element>(dims: &[usize], data: Vec<T>) -> Result<Tensor, TensorError> {
        let shape = ArrayShape::new(T::DTYPE, dims).ok_or_else(|| TensorError::Dims(dims.to_vec()))?;
        let (want, got) = (shape.elements(), data.len());
        if want != got {
            return Err(TensorError::Len { shape, want, got, unit: "elements" });
        }
        Ok(Tensor::from_vec(shape, data))
    }

    /// A scalar.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor { shape: ArrayShape::scalar(T::DTYPE), data: T::wrap(Arc::new(vec![value])) }
    }

    /// From little-endian elements, as safetensors files and device memory hold them. A `pred` byte other than 0 is true.
    pub fn from_bytes(shape: ArrayShape, bytes: &[u8]) -> Result<Tensor, TensorError> {
        if shape.bytes() != bytes.len() {
            return Err(TensorError::Len { shape, want: shape.bytes(), got: bytes.len(), unit: "bytes" });
        }
        with_type!(shape.dtype(), T => {
            let data: Vec<T> = bytes.chunks_exact(size_of::<T>()).map(T::read).collect();
            Ok(Tensor::from_vec(shape, data))
        })
    }

    /// All zero (false).
    pub fn zeros(shape: ArrayShape) -> Result<Tensor, TensorError> {
        with_type!(shape.dtype(), T => Tensor::filled(shape, T::default()))
    }

    /// Every element `value`.
    pub(crate) fn filled<T: Element>(shape: ArrayShape, value: T) -> Result<Tensor, TensorError> {
        let mut data: Vec<T> = Vec::new();
        data.try_reserve_exact(shape.elements()).map_err(|_| TensorError::Memory(shape))?;
        data.resize(shape.elements(), value);
        Ok(Tensor::from_vec(shape, data))
    }

    /// `data` must be as long and of the type that `shape` says; the caller has just made it so.
    pub(crate) fn from_vec<T: Element>(shape: ArrayShape, data: Vec<T>) -> Tensor {
        assert!(shape.dtype() == T::DTYPE && shape.elements() == data.len(), "{} elements for {shape}", data.len());
        Tensor { shape, data: T::wrap(Arc::new(data)) }
    }

    /// Its shape.
    pub fn shape(&self) -> ArrayShape {
        self.shape
    }

    /// Its elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Its elements, if they are of this type.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        T::of(&self.data)
    }

    /// Its elements to write to, if they are of this type; copied first where shared.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        T::of_mut(&mut self.data)
    }

    /// The same elements in other dimensions; nothing is copied.
    pub fn reshape(self, shape: ArrayShape) -> Result<Tensor, TensorError> {
        if shape.dtype() != self.shape.dtype() || shape.elements() != self.shape.elements() {
            return Err(TensorError::Len { shape, want: shape.bytes(), got: self.shape.bytes(), unit: "bytes" });
        }
        Ok(self.reshaped(shape))
    }

    /// The same elements in other dimensions. Panics if there are not as many.
    pub(crate) fn reshaped(self, shape: ArrayShape) -> Tensor {
        assert!(shape.dtype() == self.shape.dtype() && shape.elements() == self.shape.elements());
        Tensor { shape, data: self.data }
    }

    /// Little-endian elements.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.shape.bytes());
        with_type!(self.shape.dtype(), T => {
            // The data is of the shape's type.
            for &x in self.as_slice::<T>().unwrap_or_default() {
                x.write(&mut out);
            }
        });
        out
    }
}

impl From<f32> for Tensor {
    fn from(value: f32) -> Self {
        Tensor::scalar(value)
    }
}

impl From<i32> for Tensor {
    fn from(value: i32) -> Self {
        Tensor::scalar(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_round_trip_in_every_type() {
        for dtype in DType::ALL {
            let shape = ArrayShape::new(dtype, &[3, 2]).unwrap();
            let bytes: Vec<u8> =
                (0..shape.bytes()).map(|i| if dtype == DType::Pred { i % 2 } else { i * 7 } as u8).collect();
            let tensor = Tensor::from_bytes(shape, &bytes).unwrap();
            assert_eq!(tensor.to_bytes(), bytes, "{dtype}");
            assert_eq!(tensor.data().dtype(), dtype);
            assert!(Tensor::from_bytes(shape, &bytes[1..]).is_err());
        }
    }

    #[test]
    fn writing_to_a_clone_leaves_the_original() {
        let a = Tensor::new(&[2], vec![1i32, 2]).unwrap();
        let mut b = a.clone();
        b.as_mut_slice::<i32>().unwrap()[0] = 9;
        assert_eq!(a.as_slice::<i32>(), Some(&[1, 2][..]));
        assert!(a.as_slice::<f32>().is_none());
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        assert!(matches!(Tensor::new(&[2, 2], vec![0f32; 3]), Err(TensorError::Len { want: 4, got: 3, .. })));
    }
}
