//! Each way in which a file is not a module of ours.

use super::*;
use crate::wire::Writer;

/// A module of one computation of one instruction.
fn module(instruction: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::default();
    w.text(1, "module");
    w.message(3, |w| {
        w.text(1, "main");
        w.message(2, instruction);
    });
    w.message(4, |_| {});
    w.bytes
}

/// Name, opcode and a shape of f32[2,3] with its layout.
fn start(w: &mut Writer, opcode: &str) {
    w.text(1, "it");
    w.text(2, opcode);
    w.message(3, |w| shape(w, 11, &[2, 3], Some(&[1, 0])));
}

fn shape(w: &mut Writer, dtype: i64, dims: &[i64], layout: Option<&[i64]>) {
    w.int(2, dtype);
    w.ints(3, dims.iter().copied());
    if let Some(order) = layout {
        w.message(5, |w| w.ints(1, order.iter().copied()));
    }
}

#[test]
fn each_error_names_the_instruction_and_the_field() {
    type Fields = fn(&mut Writer);
    let cases: &[(&str, Fields)] = &[
        ("unknown opcode `fft`", |w| start(w, "fft")),
        ("shape is missing", |w| {
            w.text(1, "it");
            w.text(2, "copy");
        }),
        ("literal is missing", |w| start(w, "constant")),
        ("literal.shape is missing", |w| {
            start(w, "constant");
            w.message(8, |_| {});
        }),
        ("a layout is missing or not row major", |w| {
            start(w, "constant");
            w.message(8, |w| w.message(1, |w| shape(w, 11, &[], None)));
        }),
        ("literal: f32[2] needs 8 bytes, got 4", |w| {
            start(w, "constant");
            w.message(8, |w| {
                w.message(1, |w| shape(w, 11, &[2], Some(&[0])));
                w.blob(8, &[0, 0, 0, 1]);
            });
        }),
        ("literal: s32[2] needs 2 elements, got 3", |w| {
            start(w, "constant");
            w.message(8, |w| {
                w.message(1, |w| shape(w, 4, &[2], Some(&[0])));
                w.ints(4, [1, 2, 3]);
            });
        }),
        ("a layout is missing or not row major", |w| {
            w.text(1, "it");
            w.text(2, "copy");
            w.message(3, |w| shape(w, 11, &[2, 3], Some(&[0, 1])));
        }),
        ("dynamic dimensions are not supported", |w| {
            w.text(1, "it");
            w.text(2, "copy");
            w.message(3, |w| {
                shape(w, 11, &[2], Some(&[0]));
                w.ints(6, [1]);
            });
        }),
        ("element type 12 is not supported", |w| {
            w.text(1, "it");
            w.text(2, "copy");
            w.message(3, |w| shape(w, 12, &[], Some(&[])));
        }),
        ("dimensions [-1] are out of range", |w| {
            w.text(1, "it");
            w.text(2, "copy");
            w.message(3, |w| shape(w, 11, &[-1], Some(&[0])));
        }),
        ("dimensions (exactly one) is missing", |w| start(w, "iota")),
        ("dimensions is -3", |w| {
            start(w, "transpose");
            w.ints(14, [-3]);
        }),
        ("comparison_direction is missing", |w| start(w, "compare")),
        ("dot_dimension_numbers is missing", |w| start(w, "dot")),
        ("gather_dimension_numbers is missing", |w| start(w, "gather")),
        ("scatter_dimension_numbers is missing", |w| start(w, "scatter")),
        ("padding_config is missing", |w| start(w, "pad")),
        ("called_computation_ids (exactly one) is missing", |w| start(w, "call")),
        ("a reduce takes one array, this one has 4 operands", |w| {
            start(w, "reduce");
            w.ints(36, [1, 2, 3, 4]);
        }),
        ("operand_batching_dims is not supported", |w| {
            start(w, "gather");
            w.message(33, |w| w.ints(5, [0]));
        }),
        ("collective_device_list is not supported", |w| {
            start(w, "all-reduce");
            w.message(87, |_| {});
        }),
        ("replica_ids is -1", |w| {
            start(w, "all-gather");
            w.message(49, |w| w.ints(1, [-1]));
        }),
        ("parameter_number is 4294967296", |w| {
            start(w, "parameter");
            w.int(9, 1 << 32);
        }),
        ("output_operand_aliasing is not supported", |w| {
            start(w, "custom-call");
            w.message(74, |_| {});
        }),
        ("field 2 has the wrong wire type", |w| {
            w.text(1, "it");
            w.int(2, 5);
        }),
        ("field 28 is not UTF-8", |w| {
            start(w, "custom-call");
            w.blob(28, &[0xff]);
        }),
    ];
    let mut failures = vec![];
    for (want, fields) in cases {
        let want = format!("instruction `it`: {want}");
        match decode(&module(fields)) {
            Err(error) if error.to_string() == want => {}
            other => failures.push(format!("{want}\n    {other:?}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_other_tools_leave_out_or_add_is_taken() {
    let bytes = module(|w| {
        w.text(1, "it");
        w.text(2, "parameter");
        w.message(3, |w| shape(w, 11, &[2, 3], None)); // no layout
        w.text(1000, "unknown");
        w.int(35, 7);
    });
    let module = decode(&bytes).unwrap();
    let it = &module.computations[0].instructions[0];
    assert_eq!((it.id, it.shape.to_string().as_str()), (Id(7), "f32[2,3]"));
}

#[test]
fn a_module_needs_its_program_shape() {
    assert_eq!(decode(&[]).unwrap_err().to_string(), "module: host_program_shape is missing");
    assert_eq!(decode(&[0xff]).unwrap_err().to_string(), "module: the bytes end inside a field");
}
