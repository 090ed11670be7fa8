//! What the comparison with XLA does not show: bounds, errors, memory in place.

use super::*;
use crate::op::Binary;
use crate::{Builder, DType, Val};

fn module(inputs: &[(DType, &[usize])], body: impl FnOnce(&mut Builder, &[Val]) -> Vec<Val>) -> Module {
    let mut b = Builder::new("test");
    let vals: Vec<Val> =
        inputs.iter().enumerate().map(|(k, (dtype, dims))| b.parameter(&format!("p{k}"), *dtype, dims)).collect();
    let results = body(&mut b, &vals);
    b.finish(&results)
}

fn vector(values: &[f32]) -> Tensor {
    Tensor::new(&[values.len()], values.to_vec()).unwrap()
}

fn rows() -> Module {
    let row = crate::op::GatherDims {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: 1,
        slice_sizes: vec![1, 2],
        indices_are_sorted: false,
    };
    module(&[(DType::F32, &[3, 2]), (DType::S32, &[1, 1])], |b, x| vec![b.gather(x[0], x[1], row)])
}

#[test]
fn an_index_out_of_range_is_an_error_as_on_the_device() {
    let table = Tensor::new(&[3, 2], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let index = |i: i32| Tensor::new(&[1, 1], vec![i]).unwrap();
    let strict = Executable::new(rows(), Target::Xla).unwrap();
    assert_eq!(strict.run(vec![table.clone(), index(2)]).unwrap()[0].as_slice::<f32>(), Some(&[5.0, 6.0][..]));
    for i in [-1, 3, i32::MIN, i32::MAX] {
        let error = strict.run(vec![table.clone(), index(i)]).unwrap_err();
        assert_eq!(error, EvalError::Index { instruction: "gather.3".into(), index: i.into(), most: 2 });
    }
    let options = EvalOptions { clamp_indices: true, ..EvalOptions::default() };
    let clamping = Executable::with_options(rows(), Target::Xla, options).unwrap();
    assert_eq!(clamping.run(vec![table, index(9)]).unwrap()[0].as_slice::<f32>(), Some(&[5.0, 6.0][..]));
}

#[test]
fn memory_and_work_are_bounded() {
    let large = module(&[(DType::F32, &[])], |b, x| {
        let y = b.broadcast(x[0], &[], &[1 << 20, 1 << 10]);
        vec![b.reduce(Binary::Add, y, &[0, 1])]
    });
    let options = EvalOptions { max_bytes: 1 << 20, ..EvalOptions::default() };
    let executable = Executable::with_options(large.clone(), Target::Xla, options).unwrap();
    let error = executable.run(vec![Tensor::scalar(1f32)]).unwrap_err();
    assert!(matches!(error, EvalError::Memory { .. }), "{error}");
    let options = EvalOptions { max_work: 1 << 20, ..EvalOptions::default() };
    let executable = Executable::with_options(large, Target::Xla, options).unwrap();
    assert_eq!(executable.run(vec![Tensor::scalar(1f32)]), Err(EvalError::Work { limit: 1 << 20 }));
}

#[test]
fn what_is_dead_gives_its_memory_back() {
    // A hundred arrays of 4 KB one after the other, three of them alive at a time.
    let chain = module(&[(DType::F32, &[1024])], |b, x| {
        let one = b.full_like(x[0], 1.0);
        vec![(0..100).fold(x[0], |sum, _| b.add(sum, one))]
    });
    let options = EvalOptions { max_bytes: 16_500, ..EvalOptions::default() };
    let executable = Executable::with_options(chain, Target::Xla, options).unwrap();
    let results = executable.run(vec![vector(&[0.0; 1024])]).unwrap();
    assert_eq!(results[0].as_slice::<f32>().unwrap()[7], 100.0);
}

#[test]
fn a_calls_memory_and_work_count_too() {
    let mut b = Builder::new("doubling");
    let shape = ArrayShape::new(DType::F32, &[2]).unwrap();
    let mut f = b.function("f0", &[shape], |b, p| vec![b.add(p[0], p[0])]);
    for n in 1..31 {
        f = b.function(&format!("f{n}"), &[shape], |b, p| {
            let once = b.call(&f, p)[0];
            b.call(&f, &[once])
        });
    }
    let x = b.parameter("x", DType::F32, &[2]);
    let y = b.call(&f, &[x])[0];
    let options = EvalOptions { max_work: 10_000, ..EvalOptions::default() };
    let executable = Executable::with_options(b.finish(&[y]), Target::Xla, options).unwrap();
    assert_eq!(executable.run(vec![vector(&[1.0, 2.0])]), Err(EvalError::Work { limit: 10_000 }));
}

#[test]
fn wrong_inputs_are_named() {
    let sum = module(&[(DType::F32, &[2]), (DType::F32, &[2])], |b, x| vec![b.add(x[0], x[1])]);
    let executable = Executable::new(sum, Target::Xla).unwrap();
    let error = executable.run(vec![vector(&[1.0, 2.0])]).unwrap_err();
    assert_eq!(error, EvalError::Inputs { replica: 0, want: 2, got: 1 });
    let error = executable.run(vec![vector(&[1.0, 2.0]), vector(&[1.0])]).unwrap_err().to_string();
    assert_eq!(error, "replica 0: parameter 1 is f32[2], got f32[1]");
}

#[test]
fn replicas_that_no_group_holds_are_an_error() {
    let gathered = module(&[(DType::F32, &[2])], |b, x| vec![b.all_gather(x[0], 0, &[vec![0, 1]])]);
    let executable = Executable::new(gathered, Target::Xla).unwrap();
    let input = || vec![vector(&[1.0, 2.0])];
    assert_eq!(executable.run_replicas(vec![input(), input()]).unwrap()[1][0].shape().elements(), 4);
    for replicas in [1, 3] {
        let error = executable.run_replicas((0..replicas).map(|_| input()).collect()).unwrap_err();
        assert!(matches!(error, EvalError::Replicas { .. }), "{error}");
    }
}

#[test]
fn an_input_that_is_updated_and_given_away_is_written_in_place() {
    let update = module(&[(DType::F32, &[4, 2]), (DType::S32, &[1]), (DType::F32, &[1, 2])], |b, x| {
        b.alias(0, x[0]);
        vec![crate::idioms::write_rows(b, x[0], x[1], x[2])]
    });
    let executable = Executable::new(update, Target::Trn1).unwrap();
    let cache = Tensor::new(&[4, 2], vec![0f32; 8]).unwrap();
    let before = cache.as_slice::<f32>().unwrap().as_ptr();
    let ids = Tensor::new(&[1], vec![2i32]).unwrap();
    let row = Tensor::new(&[1, 2], vec![7f32, 8.0]).unwrap();
    let results = executable.run(vec![cache, ids.clone(), row.clone()]).unwrap();
    let after = results[0].as_slice::<f32>().unwrap();
    assert_eq!(after, [0.0, 0.0, 0.0, 0.0, 7.0, 8.0, 0.0, 0.0]);
    assert_eq!(after.as_ptr(), before);

    // One that is still held is not touched.
    let kept = results[0].clone();
    let again = executable.run(vec![kept.clone(), Tensor::new(&[1], vec![0i32]).unwrap(), row]).unwrap();
    assert_eq!(kept.as_slice::<f32>().unwrap()[0], 0.0);
    assert_eq!(again[0].as_slice::<f32>().unwrap()[0], 7.0);
}

#[test]
fn sums_of_bf16_are_rounded_once() {
    use half::bf16;
    let sum = module(&[(DType::BF16, &[1000])], |b, x| vec![b.reduce(Binary::Add, x[0], &[0])]);
    let executable = Executable::new(sum, Target::Xla).unwrap();
    let ones = Tensor::new(&[1000], vec![bf16::ONE; 1000]).unwrap();
    // In bf16 the sum would stop at 256.
    assert_eq!(executable.run(vec![ones]).unwrap()[0].as_slice::<bf16>(), Some(&[bf16::from_f32(1000.0)][..]));
}

#[test]
fn sorting_puts_nan_last_and_never_panics() {
    let sort = module(&[(DType::F32, &[6])], |b, x| b.sort(&[x[0]], 0, crate::op::Direction::Gt, true));
    let executable = Executable::new(sort, Target::Xla).unwrap();
    let results = executable.run(vec![vector(&[f32::NAN, 1.0, f32::NAN, 3.0, -0.0, 0.0])]).unwrap();
    let sorted = results[0].as_slice::<f32>().unwrap();
    assert_eq!(sorted[..4], [3.0, 1.0, 0.0, 0.0]);
    assert!(sorted[4].is_nan() && sorted[5].is_nan());
}

#[test]
fn arrays_without_elements_and_extreme_padding_do_no_harm() {
    let empty = module(&[(DType::F32, &[0, 2]), (DType::S32, &[1]), (DType::F32, &[1, 2])], |b, x| {
        let dims = crate::op::ScatterDims::rows();
        vec![b.scatter(x[0], x[1], x[2], dims)]
    });
    let inputs = || {
        vec![
            Tensor::new(&[0, 2], Vec::<f32>::new()).unwrap(),
            Tensor::new(&[1], vec![0i32]).unwrap(),
            Tensor::new(&[1, 2], vec![1f32, 2.0]).unwrap(),
        ]
    };
    let executable = Executable::new(empty.clone(), Target::Xla).unwrap();
    assert!(matches!(executable.run(inputs()), Err(EvalError::Index { index: 0, most: -1, .. })));
    let options = EvalOptions { clamp_indices: true, ..EvalOptions::default() };
    let executable = Executable::with_options(empty, Target::Xla, options).unwrap();
    assert_eq!(executable.run(inputs()).unwrap()[0].shape().elements(), 0);

    let padded = module(&[(DType::F32, &[1])], |b, x| {
        let zero = b.scalar(0f32);
        vec![b.pad(x[0], zero, vec![crate::op::PadDim { low: 1, high: 0, interior: i64::MAX }])]
    });
    let results = Executable::new(padded, Target::Xla).unwrap().run(vec![vector(&[5.0])]).unwrap();
    assert_eq!(results[0].as_slice::<f32>(), Some(&[0.0, 5.0][..]));
}

#[test]
fn no_replicas_have_no_results() {
    let sum = module(&[(DType::F32, &[2])], |b, x| vec![b.all_reduce(x[0], Binary::Add, &[])]);
    assert_eq!(Executable::new(sum, Target::Xla).unwrap().run_replicas(vec![]), Ok(vec![]));
}

#[test]
fn custom_calls_that_are_too_many_are_refused() {
    let mut b = Builder::with_options(
        "many",
        crate::Options { custom_calls: crate::builder::Custom::ALL.into(), ..Default::default() },
    );
    let x = b.parameter("x", DType::F32, &[1, 1024]);
    let picks: Vec<Val> = (900..940).map(|k| crate::idioms::top_k(&mut b, x, k)[1]).collect();
    let error = Executable::new(b.finish(&picks), Target::Trn1).unwrap_err();
    assert_eq!(error, EvalError::Lowered { limit: 1 << 18 });
}

#[test]
fn a_run_that_fails_gives_back_what_it_has_of_its_inputs() {
    let mut b = Builder::new("two");
    let ids = b.parameter("ids", DType::S32, &[1, 1]);
    let rows = b.parameter("rows", DType::F32, &[1, 2]);
    let buffers = [3, 2].map(|n| b.parameter(&format!("buffer{n}"), DType::F32, &[n, 2]));
    let dims = crate::op::ScatterDims::rows();
    let written = buffers.map(|buffer| b.scatter(buffer, ids, rows, dims.clone()));
    let doubled = b.add(written[1], written[1]);
    buffers.iter().enumerate().for_each(|(i, &buffer)| b.alias(i, buffer));
    let executable = Executable::new(b.finish(&[written[0], written[1], doubled]), Target::Xla).unwrap();
    let zeros = |n: usize| Tensor::new(&[n, 2], vec![0f32; 2 * n]).unwrap();
    let row = Tensor::new(&[1, 2], vec![1f32, 2.0]).unwrap();
    // Inside the first buffer, past the second.
    let inputs = vec![Tensor::new(&[1, 1], vec![2i32]).unwrap(), row, zeros(3), zeros(2)];
    let failed = executable.try_replicas(vec![inputs]).unwrap_err();
    assert!(matches!(failed.error, EvalError::Index { index: 2, most: 1, .. }), "{}", failed.error);
    let written = Tensor::new(&[3, 2], vec![0f32, 0.0, 0.0, 0.0, 1.0, 2.0]).unwrap();
    assert_eq!(failed.left[0][2..], [Some(written), Some(zeros(2))]);
    // Before it begins, all is there.
    let failed = executable.try_replicas(vec![vec![zeros(3)]]).unwrap_err();
    assert_eq!(failed.left, [[Some(zeros(3))]]);
}

#[test]
fn a_row_of_a_product_does_not_depend_on_how_many_there_are() {
    for b_rows in [false, true] {
        let dims = if b_rows { [70, 1100] } else { [1100, 70] };
        let product = |m: usize| {
            let mut b = Builder::new("product");
            let x = b.parameter("x", DType::BF16, &[m, 1100]);
            let w = b.parameter("w", DType::BF16, &dims);
            let y = b.matmul(x, w, b_rows, DType::F32);
            let executable = Executable::new(b.finish(&[y]), Target::Xla).unwrap();
            let numbers = |n: usize| (0..n).map(|i| half::bf16::from_f32((i * 37 % 1013) as f32 / 100.0 - 5.0));
            let x = Tensor::new(&[m, 1100], numbers(m * 1100).collect()).unwrap();
            let w = Tensor::new(&dims, numbers(77_000).collect()).unwrap();
            executable.run(vec![x, w]).unwrap()[0].as_slice::<f32>().unwrap().to_vec()
        };
        let of_three = product(3);
        assert_eq!(product(1), of_three[..70]);
        assert_eq!(product(2), of_three[..140]);
        // As many as threads share.
        assert_eq!(product(65)[..210], of_three);
    }
}
