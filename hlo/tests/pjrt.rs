//! The recorded modules through a PJRT plugin: what stands in `testdata/hlo` is what real XLA computes, by another binding
//! and another build of XLA than the one that recorded it.
//!
//! Needs `NJOULE_PJRT`, the path of a plugin (docs/neuron-fake.md says where one is had); skipped by name without it.

#[allow(dead_code)] // shared with xla.rs, which uses the rest
#[path = "xla/cases.rs"]
mod cases;
#[allow(dead_code)]
#[path = "xla/idioms.rs"]
mod idioms;
#[path = "xla/inputs.rs"]
mod inputs;
#[allow(dead_code)]
#[path = "xla/step.rs"]
mod step;
#[allow(dead_code)]
#[path = "xla/tensors.rs"]
mod tensors;

use std::path::{Path, PathBuf};

use njoule_hlo::pjrt::{PjrtError, Plugin};
use njoule_hlo::{Builder, DType, Tensor, decode};

#[test]
fn a_plugin_computes_what_was_recorded() {
    let Some(plugin) = plugin("a_plugin_computes_what_was_recorded") else { return };
    let (mut failures, mut outputs) = (vec![], 0);
    let cases = [cases::all(), idioms::all(), step::all()].concat();
    for case in &cases {
        let module = decode(&std::fs::read(directory().join(format!("{}.pb", case.name))).unwrap()).unwrap();
        let file = tensors::read(&directory().join(format!("{}.safetensors", case.name)));
        let one = |r: usize| case.inputs[r].iter().enumerate().map(move |(k, t)| (k, t.shape()));
        let inputs: Vec<Vec<Tensor>> = (0..case.inputs.len())
            .map(|r| one(r).map(|(k, shape)| tensors::take(&file, r, "input", k, shape)).collect())
            .collect();
        eprintln!("{}", case.name); // the last one, where XLA aborts
        let run = plugin.compile(&module, inputs.len()).and_then(|executable| executable.run_replicas(inputs));
        let got = match run {
            Ok(got) => got,
            Err(e) => {
                failures.push(format!("{}: {e}", case.name));
                continue;
            }
        };
        assert_eq!(got.len(), case.inputs.len());
        for (replica, results) in got.iter().enumerate() {
            assert_eq!(results.len(), module.results().len());
            for (k, got) in results.iter().enumerate() {
                outputs += 1;
                let want = tensors::take(&file, replica, "output", k, got.shape());
                if let Err(what) = case.tolerance(k).compare(got, &want) {
                    failures.push(format!("{} replica {replica} output {k} {}: {what}", case.name, got.shape()));
                }
            }
        }
    }
    println!("{} modules, {outputs} results, PJRT C API {:?}", cases.len(), plugin.version());
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn inputs_that_are_not_the_modules_are_refused() {
    let Some(plugin) = plugin("inputs_that_are_not_the_modules_are_refused") else { return };
    let mut b = Builder::new("twice");
    let x = b.parameter("x", DType::F32, &[2]);
    let y = b.add(x, x);
    let module = b.finish(&[y]);
    let twice = plugin.compile(&module, 1).unwrap();
    let x = || Tensor::new(&[2], vec![1.5f32, -2.0]).unwrap();
    assert_eq!(twice.run(vec![x()]).unwrap(), [Tensor::new(&[2], vec![3.0f32, -4.0]).unwrap()]);
    let refused = |inputs| twice.run_replicas(inputs).unwrap_err();
    assert_eq!(refused(vec![]), PjrtError::Replicas { want: 1, got: 0 });
    assert_eq!(refused(vec![vec![]]), PjrtError::Inputs { replica: 0, want: 1, got: 0 });
    let other = Tensor::scalar(1.0f32);
    assert!(matches!(refused(vec![vec![other]]), PjrtError::Input { replica: 0, parameter: 0, .. }));
    assert!(matches!(plugin.compile(&module, 0), Err(PjrtError::Devices { replicas: 0, .. })));
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/hlo")
}

fn plugin(test: &str) -> Option<Plugin> {
    let Some(path) = std::env::var_os("NJOULE_PJRT").filter(|v| !v.is_empty()) else {
        println!("skipped {test}: NJOULE_PJRT is not set");
        return None;
    };
    Some(Plugin::open(Path::new(&path)).unwrap_or_else(|e| panic!("NJOULE_PJRT: {e}")))
}
