//! What is written, and what is refused at the call.

use super::*;
use crate::{Target, decode, encode, verify};

fn sample(options: Options) -> Module {
    let mut b = Builder::with_options("sample", options);
    let x = b.parameter("x", DType::F32, &[2, 3]);
    let state = b.parameter("state", DType::F32, &[2, 3]);
    let sum = b.scope("layer", |b| {
        b.scope("sum", |b| {
            let one = b.full_like(x, 1.0);
            let same = b.full_like(x, 1.0);
            let x = b.add(x, one);
            b.add(x, same)
        })
    });
    let most = b.reduce(Binary::Maximum, sum, &[1]);
    let also = b.reduce(Binary::Maximum, sum, &[0]);
    let next = b.add(state, sum);
    b.alias(2, state);
    b.finish(&[most, also, next])
}

#[test]
fn the_text_of_a_module_is_as_reviewed() {
    let want = "\
HloModule sample, input_output_alias={ {2}: (1, {}, must-alias) }

maximum_f32 {
  parameter.1 = f32[] parameter(0)
  parameter.2 = f32[] parameter(1)
  ROOT maximum.3 = f32[] maximum(parameter.1, parameter.2)
}

ENTRY main {
  x = f32[2,3] parameter(0)
  state = f32[2,3] parameter(1)
  constant.6 = f32[] constant(1.0), metadata={op_name=\"layer/sum\"}
  broadcast.7 = f32[2,3] broadcast(constant.6), dimensions={}, metadata={op_name=\"layer/sum\"}
  broadcast.8 = f32[2,3] broadcast(constant.6), dimensions={}, metadata={op_name=\"layer/sum\"}
  add.9 = f32[2,3] add(x, broadcast.7), metadata={op_name=\"layer/sum\"}
  add.10 = f32[2,3] add(add.9, broadcast.8), metadata={op_name=\"layer/sum\"}
  constant.11 = f32[] constant(-3.4028235e38)
  reduce.12 = f32[2] reduce(add.10, constant.11), dimensions={1}, to_apply=maximum_f32
  reduce.13 = f32[3] reduce(add.10, constant.11), dimensions={0}, to_apply=maximum_f32
  add.14 = f32[2,3] add(state, add.10)
  ROOT tuple.15 = (f32[2], f32[3], f32[2,3]) tuple(reduce.12, reduce.13, add.14)
}
";
    assert_eq!(sample(Options::default()).to_string(), want);
}

#[test]
fn the_same_calls_give_the_same_bytes_and_they_decode_to_the_same_module() {
    let module = sample(Options::default());
    assert_eq!(encode(&module), encode(&sample(Options::default())));
    assert_eq!(decode(&encode(&module)).unwrap(), module);
    for target in Target::ALL {
        verify(&module, target).unwrap();
    }
}

#[test]
fn a_mistake_panics_with_the_scope_and_the_shapes() {
    let broken = || {
        let mut b = Builder::new("broken");
        let x = b.parameter("x", DType::F32, &[2, 3]);
        let y = b.parameter("y", DType::F32, &[3, 2]);
        b.scope("layers.3", |b| b.scope("mlp", |b| b.add(x, y)))
    };
    let panic = std::panic::catch_unwind(broken).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    let want =
        "lowering error in `layers.3/mlp` of module `broken`: add(f32[2,3], f32[3,2]): f32[2,3] and f32[3,2] differ";
    assert_eq!(message, want);
}

#[test]
fn mistakes_of_every_kind_panic() {
    type Mistake = fn(&mut Builder, Val, Val);
    let mistakes: [(&str, Mistake); 14] = [
        ("and(f32[2,3], f32[2,3])", |b, x, _| {
            b.and(x, x);
        }),
        ("not a float", |b, _, _| {
            b.float(DType::S32, 1.0);
        }),
        ("does not broadcast", |b, x, _| {
            b.broadcast(x, &[1, 0], &[3, 2]);
        }),
        ("has not as many elements", |b, x, _| {
            b.reshape(x, &[5]);
        }),
        ("dimensions [2147483648] are out of range", |b, x, _| {
            b.reshape(x, &[1 << 31]);
        }),
        ("do not fit", |b, x, _| {
            b.transpose(x, &[0, 0]);
        }),
        ("do not fit", |b, x, _| {
            b.reduce(Binary::Add, x, &[2]);
        }),
        ("dot of", |b, x, _| {
            b.matmul(x, x, false, DType::F32);
        }),
        ("slice", |b, x, _| {
            b.slice(x, &[0..3, 0..1]);
        }),
        ("not defined on s32", |b, _, i| {
            b.exponential(i);
        }),
        ("no reduction by and", |b, x, _| {
            b.reduce(Binary::And, x, &[0]);
        }),
        ("names its groups", |b, x, _| {
            b.all_gather(x, 0, &[]);
        }),
        ("no name of a parameter", |b, _, _| {
            b.parameter("a b", DType::F32, &[]);
        }),
        ("of another computation", |b, x, _| {
            b.function("f", &[x.shape()], |b, p| vec![b.add(p[0], x)]);
        }),
    ];
    for (want, mistake) in mistakes {
        let run = || {
            let mut b = Builder::new("mistake");
            let x = b.parameter("x", DType::F32, &[2, 3]);
            let i = b.parameter("i", DType::S32, &[2]);
            mistake(&mut b, x, i);
        };
        let panic = std::panic::catch_unwind(run).expect_err(want);
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.contains(want), "{message}\n{want}");
    }
}

#[test]
#[should_panic(expected = "two instructions `x`")]
fn two_parameters_of_one_name_panic() {
    let mut b = Builder::new("twice");
    let x = b.parameter("x", DType::F32, &[]);
    b.parameter("x", DType::F32, &[]);
    b.finish(&[x]);
}

#[test]
#[should_panic(expected = "is not of the shape of its alias")]
fn an_alias_of_another_shape_panics() {
    let mut b = Builder::new("alias");
    let x = b.parameter("x", DType::F32, &[2]);
    let half = b.slice_dim(x, 0, 0..1);
    b.alias(0, x);
    b.finish(&[half]);
}

#[test]
fn a_result_that_is_a_parameter_is_copied_unless_aliased() {
    let mut b = Builder::new("through");
    let x = b.parameter("x", DType::F32, &[2]);
    let y = b.parameter("y", DType::F32, &[2]);
    b.alias(1, y);
    let module = b.finish(&[x, y]);
    let names: Vec<&str> = module.entry().unwrap().instructions.iter().map(|i| i.op.name()).collect();
    assert_eq!(names, ["parameter", "parameter", "copy", "tuple"]);
    verify(&module, Target::Trn1).unwrap();
}

#[test]
fn ids_are_dense_in_file_order() {
    let module = sample(Options::default());
    let ids: Vec<i64> = module.computations.iter().flat_map(|c| c.instructions.iter().map(|i| i.id.0)).collect();
    assert_eq!(ids, (1..=15).collect::<Vec<_>>());
}
