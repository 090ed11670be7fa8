//! Operations that go element by element. Narrow floats are computed in f32 and rounded to their type.

use half::{bf16, f16};

use crate::op::{Binary, Direction, Unary};
use crate::tensor::with_type;
use crate::{DType, Data, Element, F8E4M3, F8E4M3FN, F8E5M2, Tensor};

pub(super) fn unary(op: Unary, mut x: Tensor) -> Tensor {
    if x.shape().dtype().is_integer() {
        with_type!(x.shape().dtype(), T => x.as_mut_slice::<T>().into_iter().flatten().for_each(|v| {
            let negated = T::apply(Binary::Subtract, T::default(), *v);
            *v = if op == Unary::Negate { negated } else { T::apply(Binary::Maximum, *v, negated) };
        }));
        return x;
    }
    match op {
        Unary::Negate => floats(&mut x, |v| -v),
        Unary::Abs => floats(&mut x, f32::abs),
        Unary::Exponential => floats(&mut x, f32::exp),
        Unary::Rsqrt => floats(&mut x, |v| 1.0 / v.sqrt()),
        Unary::Logistic => floats(&mut x, |v| 1.0 / (1.0 + (-v).exp())),
        Unary::Cosine => floats(&mut x, f32::cos),
        Unary::Sine => floats(&mut x, f32::sin),
        Unary::Log => floats(&mut x, f32::ln),
        Unary::Tanh => floats(&mut x, f32::tanh),
        Unary::Sqrt => floats(&mut x, f32::sqrt),
        Unary::Floor => floats(&mut x, f32::floor),
    }
    x
}

pub(super) fn binary(op: Binary, mut a: Tensor, b: &Tensor) -> Tensor {
    // One loop per operation, so that each is a loop over one instruction.
    macro_rules! each {
        ($($op:ident)*) => {
            with_type!(b.shape().dtype(), T => match op {
                $(Binary::$op => pairs::<T>(&mut a, b, |x, y| T::apply(Binary::$op, x, y)),)*
            })
        };
    }
    each!(Add Subtract Multiply Divide Maximum Minimum And);
    a
}

/// One operation on two elements.
pub(super) trait Arithmetic: Element + PartialOrd {
    fn apply(op: Binary, a: Self, b: Self) -> Self;
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Arithmetic for $type {
            #[inline(always)]
            fn apply(op: Binary, a: Self, b: Self) -> Self {
                match op {
                    Binary::Add => a.wrapping_add(b),
                    Binary::Subtract => a.wrapping_sub(b),
                    Binary::Multiply => a.wrapping_mul(b),
                    Binary::Divide => if b == 0 { !0 } else { a.wrapping_div(b) },
                    Binary::Maximum => a.max(b),
                    Binary::Minimum => a.min(b),
                    Binary::And => a & b,
                }
            }
        }
    )*};
}

macro_rules! narrow_floats {
    ($($type:ty)*) => {$(
        impl Arithmetic for $type {
            #[inline(always)]
            fn apply(op: Binary, a: Self, b: Self) -> Self {
                <$type>::from_f32(f32::apply(op, a.to_f32(), b.to_f32()))
            }
        }
    )*};
}

integers!(i8 u8 i32 u32 i64);
// The verifier lets no arithmetic on 8-bit floats pass; the instances are there for the sake of one dispatch.
narrow_floats!(f16 bf16 F8E4M3 F8E4M3FN F8E5M2);

impl Arithmetic for f32 {
    #[inline(always)]
    fn apply(op: Binary, a: Self, b: Self) -> Self {
        match op {
            Binary::Add => a + b,
            Binary::Subtract => a - b,
            Binary::Multiply => a * b,
            Binary::Divide => a / b,
            // NaN if either is.
            Binary::Maximum => {
                if a > b || a.is_nan() {
                    a
                } else {
                    b
                }
            }
            Binary::Minimum => {
                if a < b || a.is_nan() {
                    a
                } else {
                    b
                }
            }
            Binary::And => unreachable!("verified: no floats"),
        }
    }
}

impl Arithmetic for bool {
    #[inline(always)]
    fn apply(op: Binary, a: Self, b: Self) -> Self {
        match op {
            Binary::Maximum => a | b,
            _ => a & b, // verified: minimum or and
        }
    }
}

pub(super) fn clamp(lo: &Tensor, mut x: Tensor, hi: &Tensor) -> Tensor {
    let bound = |bound: &Tensor| {
        let dims: Vec<usize> = (0..bound.shape().rank()).collect();
        if bound.shape() == x.shape() { bound.clone() } else { super::movement::broadcast(bound, &dims, x.shape()) }
    };
    let (lo, hi) = (bound(lo), bound(hi));
    x = binary(Binary::Maximum, x, &lo);
    binary(Binary::Minimum, x, &hi)
}

pub(super) fn compare(direction: Direction, a: &Tensor, b: &Tensor) -> Tensor {
    let shape = a.shape().with_dtype(DType::Pred);
    let data = match (a.data(), b.data()) {
        (Data::Pred(a), Data::Pred(b)) => compared(direction, a, b),
        (Data::S8(a), Data::S8(b)) => compared(direction, a, b),
        (Data::U8(a), Data::U8(b)) => compared(direction, a, b),
        (Data::S32(a), Data::S32(b)) => compared(direction, a, b),
        (Data::U32(a), Data::U32(b)) => compared(direction, a, b),
        (Data::S64(a), Data::S64(b)) => compared(direction, a, b),
        (Data::F16(a), Data::F16(b)) => compared(direction, a, b),
        (Data::BF16(a), Data::BF16(b)) => compared(direction, a, b),
        (Data::F32(a), Data::F32(b)) => compared(direction, a, b),
        _ => unreachable!("verified: one type, not fp8"),
    };
    Tensor::from_vec(shape, data)
}

fn compared<T: PartialOrd>(direction: Direction, a: &[T], b: &[T]) -> Vec<bool> {
    let pairs = a.iter().zip(b);
    match direction {
        Direction::Eq => pairs.map(|(a, b)| a == b).collect(),
        Direction::Ne => pairs.map(|(a, b)| a != b).collect(),
        Direction::Lt => pairs.map(|(a, b)| a < b).collect(),
        Direction::Le => pairs.map(|(a, b)| a <= b).collect(),
        Direction::Gt => pairs.map(|(a, b)| a > b).collect(),
        Direction::Ge => pairs.map(|(a, b)| a >= b).collect(),
    }
}

pub(super) fn select(p: &Tensor, mut a: Tensor, b: &Tensor) -> Tensor {
    let p: &[bool] = p.as_slice().unwrap_or_default();
    with_type!(a.shape().dtype(), T => {
        if let (Some(a), Some(b)) = (a.as_mut_slice::<T>(), b.as_slice::<T>()) {
            for ((a, b), &p) in a.iter_mut().zip(b).zip(p) {
                *a = if p { *a } else { *b };
            }
        }
    });
    a
}

fn floats(x: &mut Tensor, f: impl Fn(f32) -> f32) {
    if let Some(x) = x.as_mut_slice::<f32>() {
        x.iter_mut().for_each(|v| *v = f(*v));
    } else if let Some(x) = x.as_mut_slice::<bf16>() {
        x.iter_mut().for_each(|v| *v = bf16::from_f32(f(v.to_f32())));
    } else if let Some(x) = x.as_mut_slice::<f16>() {
        x.iter_mut().for_each(|v| *v = f16::from_f32(f(v.to_f32())));
    }
}

fn pairs<T: Element>(a: &mut Tensor, b: &Tensor, f: impl Fn(T, T) -> T) {
    if let (Some(a), Some(b)) = (a.as_mut_slice::<T>(), b.as_slice::<T>()) {
        for (a, &b) in a.iter_mut().zip(b) {
            *a = f(*a, b);
        }
    }
}
