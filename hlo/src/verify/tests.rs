//! Each rule, broken once.

use super::*;
use crate::builder::{Builder, Custom, Options};
use crate::op::{Binary, CustomCall, Unary};
use crate::{ArrayShape, DType, Tensor, Val};

fn module() -> Module {
    let mut b = Builder::new("sample");
    let x = b.parameter("x", DType::F32, &[4, 3]);
    let ids = b.parameter("ids", DType::S32, &[2]);
    let rows = crate::idioms::take_rows(&mut b, x, ids);
    let sum = b.reduce(Binary::Add, rows, &[1]);
    let next = b.add(x, x);
    b.alias(1, x);
    b.finish(&[sum, next])
}

/// The place of an instruction of the entry computation, by opcode.
fn find(module: &Module, opcode: &str) -> usize {
    module.entry().unwrap().instructions.iter().position(|i| i.op.name() == opcode).unwrap()
}

type Breakage = fn(&mut Module);

#[test]
fn each_structural_rule_is_held() {
    let cases: &[(&str, Breakage)] = &[
        ("the module has no name", |m| m.name.clear()),
        ("no computation has the entry's id 9", |m| m.entry = Id(9)),
        ("computation name `` is empty or repeated", |m| m.computations[0].name.clear()),
        ("computation name `main` is empty or repeated", |m| m.computations[0].name = "main".into()),
        ("has an id that another has: 1", |m| m.computations[1].id = Id(1)),
        ("computation `main` has no instruction with its root's id 0", |m| m.computations[1].root = Id(0)),
        ("instruction name `` (id 4)", |m| m.computations[1].instructions[0].name.clear()),
        ("instruction name `x` (id 5)", |m| m.computations[1].instructions[1].name = "x".into()),
        ("instruction `ids` has an id that another has: 4", |m| m.computations[1].instructions[1].id = Id(4)),
        ("instruction `x`: id 2147483648 is not in", |m| m.computations[1].instructions[0].id = Id(1 << 31)),
        ("does not come before it", |m| {
            let n = find(m, "gather");
            m.computations[1].instructions.swap(0, n);
        }),
        ("which does not come before its own", |m| m.computations.swap(0, 1)),
        ("parameter numbers of computation `main`", |m| m.computations[1].instructions[1].op = Op::Parameter(2)),
        ("but it is f32[2]", |m| {
            let n = find(m, "reduce");
            m.computations[1].instructions[n].shape = ArrayShape::new(DType::F32, &[3]).unwrap().into();
        }),
        ("and does not take 1 operands", |m| {
            let n = find(m, "add");
            m.computations[1].instructions[n].op = Op::Binary(Binary::And);
            m.computations[1].instructions[n].operands.pop();
        }),
        ("cannot call `add_f32`: needs two values combined by one operation", |m| {
            m.computations[0].instructions[2].op = Op::Binary(Binary::Add);
            m.computations[0].instructions[2].operands.reverse();
        }),
        ("needs two scalars of the operand's type", |m| {
            for i in &mut m.computations[0].instructions {
                i.shape = ArrayShape::scalar(DType::BF16).into();
            }
        }),
        ("the parameters of host_program_shape", |m| drop(m.signature.parameters.pop())),
        ("1 parameter names for 2 parameters", |m| drop(m.signature.parameter_names.pop())),
        ("the result of host_program_shape", |m| m.signature.result = None),
        ("an alias is of result Some(2)", |m| m.aliases[0].output = Some(2)),
        ("an alias is of result None", |m| m.aliases[0].output = None),
        ("an alias is of parameter 7", |m| m.aliases[0].parameter = 7),
        ("result Some(0) is f32[2], its alias parameter 0 is f32[4,3]", |m| m.aliases[0].output = Some(0)),
        ("aliased twice", |m| m.aliases.push(m.aliases[0].clone())),
    ];
    let mut failures = vec![];
    for (want, breakage) in cases {
        let mut broken = module();
        verify(&broken, Target::Xla).unwrap();
        breakage(&mut broken);
        match verify(&broken, Target::Xla) {
            Err(error) if error.to_string().contains(want) => {}
            other => failures.push(format!("{want}: {other:?}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A module of one computed result.
fn of(options: Options, body: impl FnOnce(&mut Builder, Val) -> Val) -> Module {
    let mut b = Builder::with_options("one", options);
    let x = b.parameter("x", DType::F32, &[4, 16]);
    let y = body(&mut b, x);
    b.finish(&[y])
}

fn plain(body: impl FnOnce(&mut Builder, Val) -> Val) -> Module {
    of(Options::default(), body)
}

#[test]
fn each_documented_rule_of_the_compiler_is_held() {
    let groups = [vec![0, 1]];
    let trn1 = |module: Module| verify(&module, Target::Trn1).unwrap_err();
    let converted = |dtype| plain(|b, x| b.convert(x, dtype));
    for target in [Target::Inf2, Target::Trn1, Target::Trn2] {
        for dtype in [DType::S64, DType::F8E4M3FN] {
            let error = verify(&converted(dtype), target).unwrap_err();
            assert!(matches!(error, VerifyError::Type { .. }), "{error}");
        }
        for dtype in [DType::F8E4M3, DType::F8E5M2, DType::F16, DType::U32, DType::S8, DType::Pred] {
            verify(&converted(dtype), target).unwrap();
        }
    }

    let infinite = || {
        plain(|b, x| {
            let low = b.full_like(x, f32::NEG_INFINITY);
            b.maximum(x, low)
        })
    };
    assert!(matches!(trn1(infinite()), VerifyError::InfiniteConstant { .. }));
    verify(&infinite(), Target::Trn2).unwrap();

    let sum = |dtype| {
        plain(|b, x| {
            let x = b.convert(x, dtype);
            b.all_reduce(x, Binary::Add, &groups)
        })
    };
    assert!(matches!(trn1(sum(DType::S32)), VerifyError::IntegerCollective { .. }));
    verify(&sum(DType::BF16), Target::Trn1).unwrap();

    let gather = |rows| {
        plain(|b, x| {
            let ids = b.iota(DType::S32, &[rows, 1], 0);
            let dims = crate::op::GatherDims {
                offset_dims: vec![1],
                collapsed_slice_dims: vec![0],
                start_index_map: vec![0],
                index_vector_dim: 1,
                slice_sizes: vec![1, 16],
                indices_are_sorted: false,
            };
            b.gather(x, ids, dims)
        })
    };
    assert!(matches!(trn1(gather(5)), VerifyError::Index { index: 4, most: 3, .. }));
    verify(&gather(4), Target::Trn1).unwrap();

    let mut bare = plain(|b, x| b.copy(x));
    let root = bare.computations[0].instructions.last_mut().unwrap();
    root.operands = vec![Id(1)];
    assert!(matches!(trn1(bare), VerifyError::BareParameter { output: 0, parameter: 0 }));

    let mut gap = plain(|b, x| b.copy(x));
    let root = gap.computations[0].instructions.last_mut().unwrap();
    root.id = Id(77);
    gap.computations[0].root = Id(77);
    verify(&gap, Target::Xla).unwrap();
    assert!(matches!(trn1(gap), VerifyError::IdGap { first: Id(1), last: Id(77), count: 3 }));
}

#[test]
fn a_scatter_that_adds_integers_is_refused_for_the_device() {
    let mut b = Builder::new("one");
    let x = b.parameter("x", DType::S32, &[4, 2]);
    let ids = b.parameter("ids", DType::S32, &[1]);
    let row = b.parameter("row", DType::S32, &[1, 2]);
    let y = crate::idioms::write_rows(&mut b, x, ids, row);
    let mut module = b.finish(&[y]);
    verify(&module, Target::Trn2).unwrap();
    let function = &mut module.computations[0];
    let scalar = ArrayShape::scalar(DType::S32);
    let sum = Instruction {
        name: "sum".into(),
        id: Id(1000),
        shape: scalar.into(),
        operands: function.instructions.iter().map(|i| i.id).collect(),
        op: Op::Binary(Binary::Add),
        scope: String::new(),
        attributes: Default::default(),
    };
    function.root = sum.id;
    function.instructions.push(sum);
    verify(&module, Target::Xla).unwrap();
    assert!(matches!(verify(&module, Target::Trn2), Err(VerifyError::IntegerScatter { .. })));
}

#[test]
fn custom_calls_are_known_by_name_and_none_is_xlas() {
    let all = Options { custom_calls: Custom::ALL.into(), ..Options::default() };
    let silu = of(all.clone(), |b, x| crate::idioms::silu(b, x));
    verify(&silu, Target::Inf2).unwrap();
    assert!(matches!(verify(&silu, Target::Xla), Err(VerifyError::CustomCall { .. })));

    let unknown = plain(|b, x| b.custom_call("AwsNeuronMiracle", &[x], "", x.shape()));
    assert!(matches!(verify(&unknown, Target::Inf2), Err(VerifyError::CustomCall { .. })));

    let mut versioned = silu.clone();
    for i in &mut versioned.computations[0].instructions {
        if let Op::CustomCall(call) = &mut i.op {
            call.api_version = 2;
        }
    }
    assert!(matches!(verify(&versioned, Target::Inf2), Err(VerifyError::ApiVersion { version: 2, .. })));

    let mut wrong = silu;
    for i in &mut wrong.computations[0].instructions {
        if let Op::CustomCall(CustomCall { target, .. }) = &mut i.op {
            *target = "AwsNeuronSoftmax".into();
        }
    }
    let error = verify(&wrong, Target::Inf2).unwrap_err().to_string();
    assert!(error.contains("backend_config of AwsNeuronSoftmax"), "{error}");

    let ten = plain(|b, x| {
        let x = b.slice(x, &[0..4, 0..10]);
        b.custom_top_k(x, 2)[0]
    });
    assert!(matches!(verify(&ten, Target::Inf2), Err(VerifyError::TopKLen { len: 10, .. })));
    // The idiom pads.
    let padded = of(all, |b, x| {
        let x = b.slice(x, &[0..4, 0..10]);
        crate::idioms::top_k(b, x, 2)[0]
    });
    verify(&padded, Target::Inf2).unwrap();
}

#[test]
fn groups_of_replicas_are_disjoint_and_equal() {
    for groups in [vec![vec![0, 1], vec![1, 2]], vec![vec![0, 1], vec![2]], vec![vec![]]] {
        let module = plain(|b, x| b.all_reduce(x, Binary::Add, &groups));
        assert!(matches!(verify(&module, Target::Xla), Err(VerifyError::Groups { .. })), "{groups:?}");
    }
    let mut module = plain(|b, x| b.all_reduce(x, Binary::Add, &[]));
    for i in &mut module.computations[1].instructions {
        if let Op::AllReduce { group, .. } = &mut i.op {
            group.channel_id = 1;
        }
    }
    assert!(matches!(verify(&module, Target::Xla), Err(VerifyError::Channel { .. })));
}

#[test]
fn a_sort_needs_an_order() {
    let mut module = plain(|b, x| b.sort(&[x], 1, Direction::Lt, false)[0]);
    verify(&module, Target::Trn1).unwrap();
    for i in &mut module.computations[0].instructions {
        if let Op::Compare(direction) = &mut i.op {
            *direction = Direction::Eq;
        }
    }
    assert!(matches!(verify(&module, Target::Xla), Err(VerifyError::Callee { .. })));
}

#[test]
fn calls_have_a_limited_depth() {
    let mut b = Builder::new("deep");
    let shape = ArrayShape::new(DType::F32, &[2]).unwrap();
    let mut f = b.function("f0", &[shape], |b, p| vec![b.unary(Unary::Negate, p[0])]);
    for n in 1..40 {
        f = b.function(&format!("f{n}"), &[shape], |b, p| b.call(&f, p));
    }
    let x = b.parameter("x", DType::F32, &[2]);
    let y = b.call(&f, &[x])[0];
    assert!(matches!(verify(&b.finish(&[y]), Target::Xla), Err(VerifyError::CallDepth { .. })));
}

#[test]
fn literals_of_two_gigabytes_are_refused() {
    let mut b = Builder::new("large");
    // Shared by all: the memory is that of one.
    let half = Tensor::zeros(ArrayShape::new(DType::S8, &[1 << 29]).unwrap()).unwrap();
    let parts: Vec<Val> = (0..4).map(|_| b.constant(half.clone())).collect();
    let module = b.finish(&parts);
    assert!(matches!(verify(&module, Target::Trn2), Err(VerifyError::Size { .. })));
}
