//! The evaluator against real XLA.
//!
//! Each case is a module, its inputs, and what XLA on CPU computed from them: `testdata/hlo/NAME.pb` and
//! `NAME.safetensors`, recorded by `xla/record.py`. The module is built anew and must still have the recorded bytes, so
//! that what XLA was asked is what is emitted today. Integers and moved data must be equal bit by bit; the tolerance of
//! computed floats stands with each case.
//!
//! To record: `cargo test -p njoule-hlo --test xla -- --ignored write`, then `hlo/tests/xla/record.py`.

#[path = "xla/cases.rs"]
mod cases;
#[path = "xla/idioms.rs"]
mod idioms;
#[path = "xla/inputs.rs"]
mod inputs;
#[path = "xla/step.rs"]
mod step;
#[path = "xla/tensors.rs"]
mod tensors;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use njoule_hlo::op::OPCODES;
use njoule_hlo::{EvalOptions, Executable, Id, Target, Tensor, decode, encode, verify};

use cases::Case;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/hlo")
}

fn all() -> Vec<Case> {
    [cases::all(), idioms::all(), step::all()].concat()
}

#[test]
fn modules_still_have_the_bytes_that_xla_took() {
    let mut failures = vec![];
    for case in all() {
        let recorded = std::fs::read(directory().join(format!("{}.pb", case.name))).unwrap();
        let bytes = encode(&case.module);
        if bytes != recorded {
            failures.push(format!("{}: record it again\n{}", case.name, case.module));
        }
        assert_eq!(decode(&recorded).map(|m| encode(&m)), Ok(recorded), "{} does not survive decoding", case.name);
        verify(&case.module, Target::Xla).unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_recorded_module_has_a_case() {
    let names: Vec<String> = all().into_iter().map(|c| c.name.to_owned()).collect();
    for file in std::fs::read_dir(directory()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "pb") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(names.contains(&name), "{name} has no case");
        }
    }
}

#[test]
fn every_opcode_that_is_emitted_has_a_case() {
    let seen: BTreeSet<&str> = all()
        .iter()
        .flat_map(|c| c.module.computations.iter().flat_map(|c| c.instructions.iter().map(|i| i.op.name())))
        .collect();
    // XLA knows none of Neuron's custom calls.
    let known: BTreeSet<&str> = OPCODES.into_iter().filter(|opcode| *opcode != "custom-call").collect();
    assert_eq!(seen, known);
}

#[test]
fn results_equal_those_of_xla() {
    let mut failures = vec![];
    for case in all() {
        let path = directory().join(format!("{}.safetensors", case.name));
        let file = tensors::read(&path);
        let inputs: Vec<Vec<Tensor>> = (0..case.inputs.len())
            .map(|r| {
                case.inputs[r].iter().enumerate().map(|(k, t)| tensors::take(&file, r, "input", k, t.shape())).collect()
            })
            .collect();
        let options = EvalOptions { clamp_indices: case.clamp_indices, ..EvalOptions::default() };
        let executable = Executable::with_options(case.module.clone(), Target::Xla, options).unwrap();
        let got = executable.run_replicas(inputs).unwrap();
        for (replica, results) in got.iter().enumerate() {
            for (k, got) in results.iter().enumerate() {
                let want = tensors::take(&file, replica, "output", k, got.shape());
                if let Err(what) = case.tolerance(k).compare(got, &want) {
                    failures.push(format!("{} replica {replica} output {k} {}: {what}", case.name, got.shape()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn emitted_steps_follow_the_compilers_documented_rules() {
    for case in [idioms::all(), step::all()].concat() {
        for target in Target::ALL {
            verify(&case.module, target).unwrap_or_else(|e| panic!("{} for {target}: {e}", case.name));
        }
    }
}

#[test]
fn a_module_in_xlas_own_writing_decodes() {
    let mut module = decode(&std::fs::read(directory().join("foreign.hlo")).unwrap()).unwrap();
    // XLA numbers instructions by computation, in the upper half of the id: what neuronx-cc died on.
    let error = verify(&module, Target::Xla).unwrap_err();
    assert_eq!(error.to_string(), "instruction `Arg_0.1`: id 4294967297 is not in 0..2^31");

    let all = module.computations.iter().flat_map(|c| &c.instructions);
    let dense: HashMap<Id, Id> = all.enumerate().map(|(n, i)| (i.id, Id(n as i64 + 1))).collect();
    for computation in &mut module.computations {
        computation.root = dense[&computation.root];
        for i in &mut computation.instructions {
            i.id = dense[&i.id];
            i.operands.iter_mut().for_each(|id| *id = dense[id]);
        }
    }
    let executable = Executable::new(module, Target::Xla).unwrap();
    // One of the queries is one of the rows: its weight is nearly all.
    let x = Tensor::new(&[2, 8], (0..16).map(|i| if i == 3 { 20.0 } else { 0.0 }).collect::<Vec<f32>>()).unwrap();
    let table = Tensor::new(&[5, 8], (0..40).map(|i| if i == 11 { 1.0 } else { 0.0 }).collect::<Vec<f32>>()).unwrap();
    let results = executable.run(vec![x, table, inputs::vector(&[4i32, 1, 0])]).unwrap();
    let chosen: Vec<f32> = results[0].as_slice::<half::bf16>().unwrap().iter().map(|v| v.to_f32()).collect();
    assert_eq!(chosen, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    let sums = results[1].as_slice::<f32>().unwrap();
    assert!((sums[1] - 4.0 / 3.0).abs() < 1e-6 && (sums.iter().sum::<f32>() - 2.0).abs() < 1e-6, "{sums:?}");
}

#[test]
#[ignore = "writes testdata/hlo, to be followed by record.py"]
fn write_modules_and_inputs() {
    for case in all() {
        std::fs::write(directory().join(format!("{}.pb", case.name)), encode(&case.module)).unwrap();
        tensors::write_inputs(&directory().join(format!("{}.safetensors", case.name)), &case.inputs);
    }
}
