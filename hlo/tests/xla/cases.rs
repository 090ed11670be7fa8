//! One case per family of operations.

use half::{bf16, f16};
use njoule_hlo::op::*;
use njoule_hlo::{ArrayShape, Builder, DType, F8E4M3, F8E4M3FN, F8E5M2, Module, Tensor, Val};

use crate::inputs::{Numbers, vector};
use crate::tensors::{EXACT, Tolerance};

#[derive(Clone)]
pub struct Case {
    pub name: &'static str,
    pub module: Module,
    /// By replica.
    pub inputs: Vec<Vec<Tensor>>,
    pub clamp_indices: bool,
    /// One for all results, or one each.
    pub tolerances: Vec<Tolerance>,
}

impl Case {
    pub fn tolerance(&self, output: usize) -> Tolerance {
        if self.tolerances.len() == 1 { self.tolerances[0] } else { self.tolerances[output] }
    }

    /// Builds a case; `body` gets one value per input.
    pub fn new(
        name: &'static str,
        tolerance: Tolerance,
        inputs: Vec<Tensor>,
        body: impl FnOnce(&mut Builder, &[Val]) -> Vec<Val>,
    ) -> Case {
        Case::replicas(name, tolerance, vec![inputs], body)
    }

    pub fn replicas(
        name: &'static str,
        tolerance: Tolerance,
        inputs: Vec<Vec<Tensor>>,
        body: impl FnOnce(&mut Builder, &[Val]) -> Vec<Val>,
    ) -> Case {
        let mut b = Builder::new(name);
        let parameter =
            |(k, t): (usize, &Tensor)| b.parameter(&format!("input{k}"), t.shape().dtype(), &t.shape().dims().to_vec());
        let vals: Vec<Val> = inputs[0].iter().enumerate().map(parameter).collect();
        let results = body(&mut b, &vals);
        Case { name, module: b.finish(&results), inputs, clamp_indices: false, tolerances: vec![tolerance] }
    }
}

/// XLA's own exp, log, tanh and the like are polynomials within a few units in the last place.
pub const FUNCTIONS: Tolerance = Tolerance { abs: 1e-7, rel: 4e-6 };
/// Sums in another order.
pub const SUMS: Tolerance = Tolerance { abs: 4e-6, rel: 2e-6 };
/// XLA rounds to bf16 after each of up to 555 terms; the evaluator sums in f32 and rounds once.
const BF16_SUMS: Tolerance = Tolerance { abs: 0.25, rel: 0.0 };
/// One unit in the last place of bf16, where an f32 before it differed in its own last places.
pub const BF16: Tolerance = Tolerance { abs: 1e-6, rel: 0.0079 };
/// The same of f16.
pub const F16: Tolerance = Tolerance { abs: 1e-6, rel: 0.001 };

pub fn all() -> Vec<Case> {
    vec![
        unary("unary_f32", DType::F32, FUNCTIONS),
        unary("unary_bf16", DType::BF16, BF16),
        unary("unary_f16", DType::F16, F16),
        unary_integers(),
        binary_floats("binary_f32", DType::F32),
        binary_floats("binary_bf16", DType::BF16),
        binary_floats("binary_f16", DType::F16),
        binary_integers("binary_s32", vec![i32::MIN, -7, 7, 5, 0, i32::MAX], vec![-1, 2, -2, 0, 0, i32::MAX]),
        binary_integers("binary_u32", vec![u32::MAX, 7, 1 << 31, 5, 0], vec![2, 3, u32::MAX, 0, 0]),
        binary_integers("binary_s8", vec![-128i8, -7, 100, 5], vec![-1, 2, 100, 0]),
        binary_integers("binary_u8", vec![255u8, 7, 200, 5], vec![2, 3, 100, 0]),
        logic(),
        compare(),
        convert_floats(),
        convert_integers(),
        convert_fp8(),
        literals(),
        movement("movement_bf16", DType::BF16),
        movement("movement_s8", DType::S8),
        movement("movement_pred", DType::Pred),
        dynamic(),
        reduce_floats("reduce_f32", DType::F32, SUMS),
        reduce_floats("reduce_bf16", DType::BF16, BF16_SUMS),
        reduce_integers(),
        dot("dot_f32", DType::F32, DType::F32, SUMS),
        dot("dot_bf16_f32", DType::BF16, DType::F32, SUMS),
        dot("dot_bf16", DType::BF16, DType::BF16, BF16),
        dot_fp8(),
        gather(),
        scatter(),
        scatter_outside(),
        sort(),
        call(),
        alias(),
        collectives(),
    ]
}

fn unary(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(1);
    let x = numbers.floats(dtype, &[4, 9], 8.0);
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-3, -2.5, 3.5, 60.0];
    let special = match dtype {
        DType::F32 => vector(&special),
        DType::BF16 => vector(&special.map(bf16::from_f32)),
        _ => vector(&special.map(f16::from_f32)),
    };
    let mut case = Case::new(name, tolerance, vec![x, special], |b, x| {
        let mut results = vec![];
        for &op in Unary::ALL {
            results.push(b.unary(op, x[0]));
            results.push(b.unary(op, x[1]));
        }
        results
    });
    let exact = |op: &Unary| matches!(op, Unary::Negate | Unary::Abs | Unary::Floor | Unary::Sqrt);
    case.tolerances = Unary::ALL.iter().flat_map(|op| [if exact(op) { EXACT } else { tolerance }; 2]).collect();
    case
}

fn unary_integers() -> Case {
    let inputs = vec![vector(&[i32::MIN, -1, 0, 7]), vector(&[-128i8, -1, 0, 127]), vector(&[i64::MIN, -5, 1 << 40])];
    Case::new("unary_integers", EXACT, inputs, |b, x| x.iter().flat_map(|&x| [b.negate(x), b.abs(x)]).collect())
}

fn binary_floats(name: &'static str, dtype: DType) -> Case {
    let mut numbers = Numbers::new(2);
    let [a, c] = [0, 1].map(|_| numbers.floats(dtype, &[5, 7], 3.0));
    let left = [0.0, f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY, 1.0];
    let right = [0.0, 1.0, f32::NAN, f32::INFINITY, 2.0, 0.0];
    let [left, right] = [left, right].map(|v| match dtype {
        DType::F32 => vector(&v),
        DType::BF16 => vector(&v.map(bf16::from_f32)),
        _ => vector(&v.map(f16::from_f32)),
    });
    Case::new(name, EXACT, vec![a, c, left, right], |b, x| {
        let ops = Binary::ALL.iter().filter(|&&op| op != Binary::And);
        ops.flat_map(|&op| [b.binary(op, x[0], x[1]), b.binary(op, x[2], x[3])]).collect()
    })
}

fn binary_integers<T: njoule_hlo::Element>(name: &'static str, a: Vec<T>, c: Vec<T>) -> Case {
    Case::new(name, EXACT, vec![vector(&a), vector(&c)], |b, x| {
        Binary::ALL.iter().map(|&op| b.binary(op, x[0], x[1])).collect()
    })
}

fn logic() -> Case {
    let inputs = vec![
        vector(&[true, true, false, false]),
        vector(&[true, false, true, false]),
        vector(&[1f32, 2.0, f32::NAN, -0.0]),
        vector(&[5f32, 6.0, 7.0, 8.0]),
    ];
    Case::new("logic", EXACT, inputs, |b, x| {
        let (lo, hi) = (b.scalar(0.5f32), b.scalar(1.5f32));
        let (low, high) = (b.scalar(2i32), b.scalar(3i32));
        let ids = b.iota(DType::S32, &[6], 0);
        let less = b.full_like(x[2], -1.0);
        let each = [b.add(x[2], less), b.multiply(x[3], x[3])];
        vec![
            b.and(x[0], x[1]),
            b.maximum(x[0], x[1]),
            b.minimum(x[0], x[1]),
            b.select(x[0], x[2], x[3]),
            b.clamp(lo, x[2], hi),
            b.clamp(each[0], x[2], each[1]),
            b.clamp(low, ids, high),
        ]
    })
}

fn compare() -> Case {
    let floats = [0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, -1.0];
    let others = [-0.0, 0.0, 2.0, f32::NAN, f32::INFINITY, -3.0];
    let inputs = vec![
        vector(&floats),
        vector(&others),
        vector(&floats.map(bf16::from_f32)),
        vector(&others.map(bf16::from_f32)),
        vector(&[1i32, -1, 3]),
        vector(&[1i32, 1, -3]),
        vector(&[1u32, u32::MAX, 3]),
        vector(&[1u32, 1, 4]),
        vector(&[-1i8, 5]),
        vector(&[1i8, 5]),
    ];
    Case::new("compare", EXACT, inputs, |b, x| {
        let pairs = x.chunks_exact(2);
        pairs.flat_map(|p| Direction::ALL.iter().map(|&d| b.compare(d, p[0], p[1])).collect::<Vec<_>>()).collect()
    })
}

fn convert_floats() -> Case {
    let mut values =
        vec![0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 127.5, 128.0, -129.0, 255.9, 256.0, 300.0, 448.0, 465.0];
    values.extend([
        239.0,
        247.9,
        248.0,
        65504.0,
        65519.9,
        65520.0,
        1e10,
        -1e10,
        3e9,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1e-3,
    ]);
    values.extend([0.0009765625, 0.001953125, 0.0029296875, 6e-8, 1e-7, 61440.0, 57344.0, 1.0 / 3.0]);
    let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).filter(|v| v.is_finite()).collect();
    let brains: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
    let inputs = vec![vector(&values), vector(&halves), vector(&brains)];
    let to = [DType::F32, DType::BF16, DType::F16, DType::S8, DType::U8, DType::S32, DType::U32, DType::Pred];
    Case::new("convert_floats", EXACT, inputs, |b, x| {
        let mut results = vec![];
        for &x in x {
            results.extend(to.iter().filter(|&&t| t != x.dtype()).map(|&t| b.convert(x, t)));
        }
        results
    })
}

fn convert_integers() -> Case {
    let inputs = vec![
        vector(&[0i32, 1, -1, 255, 256, -129, i32::MAX, i32::MIN, 16_777_217]),
        vector(&[0u32, 1, 255, 256, u32::MAX, 1 << 31]),
        vector(&[0i8, 1, -1, 127, -128]),
        vector(&[0u8, 1, 127, 128, 255]),
        vector(&[true, false]),
        vector(&[0i64, -1, 1 << 40, i64::MAX]),
    ];
    let to =
        [DType::F32, DType::BF16, DType::F16, DType::S8, DType::U8, DType::S32, DType::U32, DType::S64, DType::Pred];
    Case::new("convert_integers", EXACT, inputs, |b, x| {
        let mut results = vec![];
        for &x in x {
            results.extend(to.iter().filter(|&&t| t != x.dtype()).map(|&t| b.convert(x, t)));
        }
        results
    })
}

/// Every code to f32, and f32 to every code.
fn convert_fp8() -> Case {
    let codes: Vec<u8> = (0..=255).collect();
    let mut values =
        vec![0.0, -0.0, 239.0, 247.9, 248.0, -248.0, 448.0, 463.9, 464.0, 465.0, 57344.0, 61439.0, 61440.0];
    values.extend([f32::INFINITY, 0.0009765625, 0.0009766, 0.001953125, 0.0029296875, 7.6e-6, 1.0 / 65536.0, 2.3e-5]);
    let mut numbers = Numbers::new(3);
    values.extend((0..200).map(|_| numbers.f32(3.0)));
    values.extend((0..200).map(|_| numbers.f32(0.05)));
    let inputs = vec![
        vector(&codes.iter().map(|&c| F8E4M3(c)).collect::<Vec<_>>()),
        vector(&codes.iter().map(|&c| F8E4M3FN(c)).collect::<Vec<_>>()),
        vector(&codes.iter().map(|&c| F8E5M2(c)).collect::<Vec<_>>()),
        vector(&values),
    ];
    Case::new("convert_fp8", EXACT, inputs, |b, x| {
        let mut results: Vec<Val> =
            x[..3].iter().flat_map(|&x| [b.convert(x, DType::F32), b.convert(x, DType::BF16)]).collect();
        results.extend([DType::F8E4M3, DType::F8E4M3FN, DType::F8E5M2].map(|t| b.convert(x[3], t)));
        results
    })
}

fn literals() -> Case {
    let mut numbers = Numbers::new(4);
    let literals: Vec<Tensor> = DType::ALL.iter().map(|&t| numbers.bits(t, &[2, 3])).collect();
    let one = vector(&[1f32]);
    Case::new("literals", EXACT, vec![one], |b, x| {
        let mut results: Vec<Val> = literals.into_iter().map(|l| b.constant(l)).collect();
        results.push(x[0]);
        results.push(b.iota(DType::S32, &[3, 4], 1));
        results.push(b.iota(DType::F32, &[3, 4], 0));
        let value = b.scalar(bf16::from_f32(0.1));
        results.push(b.broadcast(value, &[], &[2, 2]));
        results
    })
}

fn movement(name: &'static str, dtype: DType) -> Case {
    let mut numbers = Numbers::new(5);
    let x = numbers.bits(dtype, &[3, 4, 5]);
    let y = numbers.bits(dtype, &[3, 2, 5]);
    let fill = numbers.bits(dtype, &[]);
    let dim = |low, high, interior| PadDim { low, high, interior };
    Case::new(name, EXACT, vec![x, y, fill], |b, x| {
        let slice = |start, limit, stride| SliceDim { start, limit, stride };
        vec![
            b.reshape(x[0], &[12, 5]),
            b.transpose(x[0], &[2, 0, 1]),
            b.transpose(x[0], &[1, 0, 2]),
            b.broadcast(x[0], &[0, 2, 3], &[3, 2, 4, 5]),
            b.broadcast(x[0], &[1, 2, 3], &[2, 3, 4, 5]),
            b.broadcast(x[0], &[0, 1, 2], &[3, 4, 5, 2]),
            b.slice_strided(x[0], vec![slice(1, 3, 1), slice(0, 4, 3), slice(1, 5, 2)]),
            b.slice(x[0], &[0..3, 2..2, 0..5]),
            b.concatenate(&[x[0], x[1], x[0]], 1),
            b.pad(x[0], x[2], vec![dim(1, 0, 0), dim(0, 2, 1), dim(-1, -2, 0)]),
            b.pad(x[1], x[2], vec![dim(-1, 3, 2), dim(0, 0, 0), dim(2, -3, 1)]),
            b.copy(x[0]),
        ]
    })
}

fn dynamic() -> Case {
    let mut numbers = Numbers::new(6);
    let inputs = vec![
        numbers.bits(DType::BF16, &[4, 6]),
        numbers.bits(DType::BF16, &[2, 3]),
        Tensor::scalar(1i32),
        Tensor::scalar(2i32),
        Tensor::scalar(-5i32),
        Tensor::scalar(99i32),
    ];
    Case::new("dynamic", EXACT, inputs, |b, x| {
        let mut results = vec![];
        for starts in [[x[2], x[3]], [x[4], x[5]], [x[5], x[2]]] {
            results.push(b.dynamic_slice(x[0], &starts, &[2, 3]));
            results.push(b.dynamic_update_slice(x[0], x[1], &starts));
        }
        results
    })
}

fn reduce_floats(name: &'static str, dtype: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(7);
    let inputs = vec![numbers.floats(dtype, &[3, 5, 37], 1.0), numbers.floats(dtype, &[2], 1.0)];
    let mut case = Case::new(name, tolerance, inputs, |b, x| {
        let mut results = vec![];
        for dims in [&[2][..], &[0], &[1], &[0, 2], &[0, 1, 2], &[]] {
            for op in [Binary::Add, Binary::Maximum, Binary::Minimum] {
                results.push(b.reduce(op, x[0], dims));
            }
        }
        results.push(b.reduce(Binary::Add, x[1], &[0]));
        results
    });
    case.tolerances = (0..19).map(|i| if i % 3 == 0 { tolerance } else { EXACT }).collect();
    case
}

fn reduce_integers() -> Case {
    let mut numbers = Numbers::new(8);
    let inputs = vec![
        numbers.bits(DType::S32, &[3, 20]),
        numbers.bits(DType::U32, &[3, 20]),
        Tensor::new(&[2, 3], vec![true, true, true, false, true, true]).unwrap(),
    ];
    Case::new("reduce_integers", EXACT, inputs, |b, x| {
        let mut results = vec![];
        for dims in [&[1][..], &[0], &[0, 1]] {
            for op in [Binary::Add, Binary::Maximum, Binary::Minimum] {
                results.push(b.reduce(op, x[0], dims));
                results.push(b.reduce(op, x[1], dims));
            }
            results.push(b.reduce(Binary::And, x[2], dims));
            results.push(b.reduce(Binary::Maximum, x[2], dims));
        }
        results
    })
}

fn dot(name: &'static str, dtype: DType, to: DType, tolerance: Tolerance) -> Case {
    let mut numbers = Numbers::new(9);
    let inputs = vec![
        numbers.floats(dtype, &[3, 70], 1.0),
        numbers.floats(dtype, &[70, 33], 1.0),
        numbers.floats(dtype, &[33, 70], 1.0),
        numbers.floats(dtype, &[2, 3, 5, 8], 1.0),
        numbers.floats(dtype, &[7, 2, 3, 8], 1.0),
        numbers.floats(dtype, &[2, 3, 5], 1.0),
        numbers.floats(dtype, &[2, 3, 5], 1.0),
    ];
    Case::new(name, tolerance, inputs, |b, x| {
        let dims = |lb: &[usize], rb: &[usize], lc: &[usize], rc: &[usize]| DotDims {
            lhs_batch: lb.to_vec(),
            rhs_batch: rb.to_vec(),
            lhs_contracting: lc.to_vec(),
            rhs_contracting: rc.to_vec(),
        };
        vec![
            b.matmul(x[0], x[1], false, to),
            b.matmul(x[0], x[2], true, to),
            b.dot(x[3], x[4], dims(&[0, 1], &[1, 2], &[3], &[3]), to),
            b.dot(x[3], x[4], dims(&[1], &[2], &[0, 3], &[1, 3]), to),
            b.dot(x[5], x[6], dims(&[], &[], &[2, 0], &[2, 0]), to),
            b.dot(x[5], x[6], dims(&[0], &[0], &[1, 2], &[1, 2]), to),
            b.dot(x[5], x[6], dims(&[2], &[2], &[1], &[1]), to),
        ]
    })
}

fn dot_fp8() -> Case {
    // Codes of moderate size: 0x20..0x40 and their negatives.
    let codes =
        |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed) % 32 + 32 + i % 2 * 128) as u8).collect::<Vec<_>>();
    let ieee = |dims: &[usize], seed| {
        let n = dims.iter().product();
        Tensor::new(dims, codes(n, seed).into_iter().map(F8E4M3).collect()).unwrap()
    };
    let ocp = |dims: &[usize], seed| {
        let n = dims.iter().product();
        Tensor::new(dims, codes(n, seed).into_iter().map(F8E4M3FN).collect()).unwrap()
    };
    let inputs = vec![ieee(&[2, 24], 1), ieee(&[24, 5], 3), ocp(&[2, 24], 5), ocp(&[5, 24], 7)];
    Case::new("dot_fp8", SUMS, inputs, |b, x| {
        vec![b.matmul(x[0], x[1], false, DType::F32), b.matmul(x[2], x[3], true, DType::F32)]
    })
}

fn gather() -> Case {
    let mut numbers = Numbers::new(10);
    let inputs = vec![
        numbers.bits(DType::BF16, &[6, 5]),
        vector(&[5i32, 0, 3, 3]),
        numbers.bits(DType::S32, &[4, 5, 3]),
        Tensor::new(&[2, 3], vec![0i32, 2, 1, 1, 0, 0]).unwrap(),
        vector(&[-3i32, 7, 2]),
    ];
    let mut case = Case::new("gather", EXACT, inputs, |b, x| {
        let row = GatherDims {
            offset_dims: vec![1],
            collapsed_slice_dims: vec![0],
            start_index_map: vec![0],
            index_vector_dim: 1,
            slice_sizes: vec![1, 5],
            indices_are_sorted: false,
        };
        let ids = b.reshape(x[1], &[4, 1]);
        let outside = b.reshape(x[4], &[3, 1]);
        // Two components along the first dimension of the indices; windows of [2, 2, 3].
        let window = GatherDims {
            offset_dims: vec![0, 2, 3],
            collapsed_slice_dims: vec![],
            start_index_map: vec![1, 0],
            index_vector_dim: 0,
            slice_sizes: vec![2, 2, 3],
            indices_are_sorted: false,
        };
        let column = GatherDims {
            offset_dims: vec![0],
            collapsed_slice_dims: vec![1],
            start_index_map: vec![1],
            index_vector_dim: 1,
            slice_sizes: vec![6, 1],
            indices_are_sorted: false,
        };
        vec![
            b.gather(x[0], ids, row.clone()),
            b.gather(x[0], x[1], row.clone()),
            b.gather(x[2], x[3], window),
            b.gather(x[0], x[1], column),
            b.gather(x[0], outside, row),
        ]
    });
    case.clamp_indices = true;
    case
}

fn scatter() -> Case {
    let mut numbers = Numbers::new(11);
    let inputs = vec![
        numbers.bits(DType::BF16, &[6, 5]),
        Tensor::new(&[3, 1], vec![4i32, 0, 2]).unwrap(),
        numbers.bits(DType::BF16, &[3, 5]),
        numbers.bits(DType::S32, &[4, 5, 3]),
        Tensor::new(&[2, 2], vec![0i32, 3, 2, 1]).unwrap(),
        numbers.bits(DType::S32, &[2, 2, 2]),
    ];
    Case::new("scatter", EXACT, inputs, |b, x| {
        // Two components: dimension 1, then dimension 0; windows of [1, 2, 2], the first left out.
        let window = ScatterDims {
            update_window_dims: vec![1, 2],
            inserted_window_dims: vec![0],
            scatter_dims_to_operand_dims: vec![1, 0],
            ..ScatterDims::rows()
        };
        vec![b.scatter(x[0], x[1], x[2], ScatterDims::rows()), b.scatter(x[3], x[4], x[5], window)]
    })
}

fn scatter_outside() -> Case {
    let mut numbers = Numbers::new(12);
    let inputs = vec![
        numbers.bits(DType::S32, &[6, 5]),
        Tensor::new(&[3, 1], vec![6i32, 1, -1]).unwrap(),
        numbers.bits(DType::S32, &[3, 5]),
    ];
    let mut case =
        Case::new("scatter_outside", EXACT, inputs, |b, x| vec![b.scatter(x[0], x[1], x[2], ScatterDims::rows())]);
    case.clamp_indices = true;
    case
}

fn sort() -> Case {
    let keys = Tensor::new(&[2, 6], vec![3f32, 1.0, 3.0, -1.0, 0.0, 2.0, 5.0, 5.0, 5.0, -5.0, 9.0, 1.0]).unwrap();
    let mut numbers = Numbers::new(13);
    Case::new("sort", EXACT, vec![keys, numbers.bits(DType::S32, &[5, 3])], |b, x| {
        let ids = b.iota(DType::S32, &[2, 6], 1);
        let mut results = b.sort(&[x[0], ids], 1, Direction::Gt, true);
        results.extend(b.sort(&[x[0], ids], 1, Direction::Lt, true));
        results.extend(b.sort(&[x[1]], 0, Direction::Lt, false));
        results
    })
}

fn call() -> Case {
    let inputs = vec![vector(&[1f32, 2.0]), vector(&[3f32, 5.0])];
    Case::new("call", EXACT, inputs, |b, x| {
        let shape = ArrayShape::new(DType::F32, &[2]).unwrap();
        let twice = b.function("twice", &[shape], |b, p| vec![b.add(p[0], p[0])]);
        let both = b.function("both", &[shape, shape], |b, p| {
            let sum = b.add(p[0], p[1]);
            let sum = b.call(&twice, &[sum])[0];
            vec![sum, b.subtract(p[0], p[1])]
        });
        let mut results = b.call(&both, x);
        results.extend(b.call(&twice, &[x[0]]));
        results
    })
}

fn alias() -> Case {
    let inputs = vec![vector(&[1f32, 2.0]), vector(&[3f32, 5.0])];
    Case::new("alias", EXACT, inputs, |b, x| {
        b.alias(1, x[0]);
        b.attribute("purpose", "test");
        b.attribute_of(x[1], "neff_input_names", "y");
        let sum = b.scope("sum", |b| b.add(x[0], x[1]));
        vec![x[1], sum]
    })
}

fn collectives() -> Case {
    let inputs = [21, 22].map(|seed| {
        let mut numbers = Numbers::new(seed);
        vec![
            numbers.floats(DType::F32, &[4, 6], 1.0),
            numbers.floats(DType::BF16, &[4, 6], 1.0),
            numbers.bits(DType::S32, &[2, 3]),
        ]
    });
    Case::replicas("collectives", EXACT, inputs.to_vec(), |b, x| {
        let groups = [vec![0, 1]];
        let reversed = [vec![1, 0]];
        vec![
            b.all_reduce(x[0], Binary::Add, &groups),
            b.all_reduce(x[1], Binary::Add, &[]),
            b.all_reduce(x[0], Binary::Maximum, &groups),
            b.all_reduce(x[0], Binary::Add, &[vec![0], vec![1]]),
            b.all_gather(x[0], 0, &groups),
            b.all_gather(x[1], 1, &groups),
            b.all_gather(x[2], 0, &reversed),
            b.reduce_scatter(x[0], Binary::Add, 0, &groups),
            b.reduce_scatter(x[1], Binary::Add, 1, &groups),
            b.all_reduce(x[2], Binary::Add, &groups),
        ]
    })
}
