//! Runs: computed, in place, scheduled; what does not fit is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use njoule_hlo::{Builder, DType, Target};
use njoule_neuron_sys::{Model, Status, Tensor};

use crate::child::{EVALUATOR, child, faults, spawn, start};
use crate::modules::{Bound, bind, bytes, neff, read, step};

/// Long enough for any machine.
const AMPLE: Duration = Duration::from_secs(60);

#[test]
fn a_run_computes_and_updates_in_place() {
    child(&[], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(1).unwrap());
        let spec = |i: usize| (b.model.inputs()[i].name.clone(), b.model.inputs()[i].size);
        assert_eq!([spec(0), spec(1)], [("input0".to_owned(), 8), ("input1".to_owned(), 48)]);
        assert_eq!((b.model.outputs()[1].dtype.name(), &b.model.outputs()[1].shape), (Some("f32"), &vec![4, 3]));
        for n in 1..=3 {
            b.run.execute().unwrap();
            assert_eq!(read::<f32>(&b.rows), [3.0, 4.0, 5.0, 9.0, 10.0, 11.0]);
            let row = |r: i32| (0..3).map(|i| (3 * r + i) as f32 * n as f32).collect::<Vec<_>>();
            assert_eq!(read::<f32>(&b.cache), [vec![0.0; 3], row(1), vec![0.0; 3], row(3)].concat());
        }
        // The host writes a part of what runs have made theirs.
        b.cache.write(12, &bytes(&[100.0f32])).unwrap();
        b.table.write(4, &bytes(&[0.5f32])).unwrap();
        b.ids.write(4, &bytes(&[0i32])).unwrap();
        b.run.execute().unwrap();
        assert_eq!(read::<f32>(&b.rows), [3.0, 4.0, 5.0, 0.0, 0.5, 2.0]);
        assert_eq!(read::<f32>(&b.cache)[..6], [0.0, 0.5, 2.0, 103.0, 16.0, 20.0]);
        drop((b, runtime));
        assert_eq!(faults(), 0);
    });
}

#[test]
fn one_tensor_serves_models_that_see_it_in_other_shapes() {
    child(EVALUATOR, || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let double = |dims: &[usize], dtype| {
            let mut b = Builder::new("double");
            let x = b.parameter("x", dtype, dims);
            let y = b.add(x, x);
            let neff = neff(&b.finish(&[y]), Target::Inf2);
            Arc::new(Model::load(&runtime, core, &neff, "double").unwrap())
        };
        let shared = Tensor::on_core(&runtime, core, 16, "shared").unwrap();
        let out = Tensor::on_core(&runtime, core, 16, "out").unwrap();
        shared.write(0, &bytes(&[1i32, 2, 3, 4])).unwrap();
        for _ in 0..2 {
            for model in [double(&[4], DType::S32), double(&[2, 2], DType::S32), double(&[8], DType::BF16)] {
                bind(&runtime, &model, &[&shared], &[&out]).unwrap().execute().unwrap();
                // Doubling a subnormal bf16 doubles its bits.
                assert_eq!(read::<i32>(&out), [2, 4, 6, 8]);
            }
        }
        // And as a slice of it, beside another.
        let half = shared.slice(8, 8, "half").unwrap();
        let small = out.slice(0, 8, "small").unwrap();
        bind(&runtime, &double(&[2], DType::S32), &[&half], &[&small]).unwrap().execute().unwrap();
        assert_eq!((read::<i32>(&out), read::<i32>(&shared)), (vec![6, 8, 6, 8], vec![1, 2, 3, 4]));
    });
}

#[test]
fn an_index_out_of_bounds_is_1006_and_other_rows_survive() {
    child(EVALUATOR, || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        b.run.execute().unwrap();
        let before = read::<f32>(&b.cache);
        // 4 is a row of the table and none of the cache; 5 is none of either.
        for id in [4, 5, -1] {
            b.ids.write(0, &bytes(&[1, id])).unwrap();
            let error = b.run.execute().unwrap_err();
            assert_eq!((error.status(), error.ends_process()), (Some(Status(1006)), false));
            assert_eq!(read::<f32>(&b.cache), before);
        }
        b.ids.write(0, &bytes(&[1i32, 3])).unwrap();
        b.run.execute().unwrap();
    });
}

#[test]
fn tensors_that_break_the_alias_rule_are_refused() {
    child(&[], || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let b = Bound::new(&runtime, core);
        let other = Tensor::on_core(&runtime, core, 48, "other").unwrap();
        let there = Tensor::on_core(&runtime, runtime.core(1).unwrap(), 60, "there").unwrap();
        let inside = b.table.slice(0, 24, "inside").unwrap();
        let same = b.cache.slice(0, 48, "the same bytes").unwrap();
        let cases: [([&Tensor; 3], [&Tensor; 2]); 4] = [
            ([&b.ids, &b.cache, &b.table], [&b.rows, &other]),
            ([&b.ids, &b.cache, &b.table], [&b.rows, &same]),
            ([&b.ids, &b.cache, &b.table], [&inside, &b.cache]),
            ([&b.ids, &b.cache, &there], [&b.rows, &b.cache]),
        ];
        for (inputs, outputs) in cases {
            let mut run = match bind(&runtime, &b.model, &inputs, &outputs) {
                Ok(run) => run,
                Err(_) => continue, // neuron-sys saw it first
            };
            assert_eq!(run.execute().unwrap_err().status(), Some(Status(2)));
        }
        // Inputs may lie where they like.
        let (a, c) = (b.table.slice(0, 60, "a").unwrap(), Tensor::on_core(&runtime, core, 48, "c").unwrap());
        c.fill(0, 48, 0).unwrap();
        bind(&runtime, &b.model, &[&b.ids, &c, &a], &[&b.rows, &c]).unwrap().execute().unwrap();
    });
}

#[test]
fn nan_is_no_error_by_default() {
    child(&[], || assert_eq!(run_with_nan(), None));
}

#[test]
fn nan_is_an_error_where_it_is_asked_for() {
    child(&[("NEURON_FAIL_ON_NAN", "1")], || assert_eq!(run_with_nan(), Some(Status(1003))));
}

fn run_with_nan() -> Option<Status> {
    let runtime = start();
    let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
    b.run.execute().unwrap();
    b.table.write(12, &bytes(&[f32::NAN])).unwrap();
    b.run.execute().err().and_then(|e| e.status())
}

#[test]
fn what_the_library_cannot_run_is_not_loaded() {
    child(&[], || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let load = |neff: &[u8]| Model::load(&runtime, core, neff, "m").unwrap_err().status().map(|s| s.0);
        let good = neff(&step(), Target::Inf2);
        assert_eq!(load(b"junk"), Some(2));
        assert_eq!(load(&good[..good.len() - 1]), Some(2), "cut");
        let mut newer = good.clone();
        newer[24] = 3;
        assert_eq!(load(&newer), Some(10), "another format");
        assert_eq!(load(&neff(&step(), Target::Trn2)), Some(2), "another chip");
        let mut lnc2 = good.clone();
        lnc2[552] = 2;
        assert_eq!(load(&lnc2), Some(2), "other logical cores");
        assert_eq!(load(&neff(&crate::modules::sum(2), Target::Inf2)), Some(2), "collectives");
        Model::load(&runtime, core, &neff(&step(), Target::Trn1), "trn1 is the same core").unwrap();
    });
}

#[test]
fn code_that_does_not_fit_is_not_loaded() {
    child(&[("NJOULE_FAKE_HBM_BYTES", "4096")], || {
        let runtime = start();
        let error = Model::load(&runtime, runtime.core(0).unwrap(), &neff(&step(), Target::Inf2), "m").unwrap_err();
        assert_eq!(error.status(), Some(Status(4)));
    });
}

#[test]
fn fp8_is_reported_as_such() {
    child(&[], || assert_eq!(reported_fp8().as_deref(), Some("f8e4")));
}

#[test]
fn fp8_is_reported_as_i8_where_a_switch_says_so() {
    child(&[("NJOULE_FAKE_FP8_AS_I8", "1")], || assert_eq!(reported_fp8().as_deref(), Some("i8")));
}

fn reported_fp8() -> Option<String> {
    let runtime = start();
    let mut b = Builder::new("fp8");
    let x = b.parameter("x", DType::F8E4M3, &[4]);
    let y = b.convert(x, DType::BF16);
    let neff = neff(&b.finish(&[y]), Target::Inf2);
    let model = Model::load(&runtime, runtime.core(0).unwrap(), &neff, "fp8").unwrap();
    assert_eq!(model.inputs()[0].size, 4);
    model.inputs()[0].dtype.name().map(str::to_owned)
}

#[test]
fn scheduled_runs_complete_in_order() {
    child(&[("NJOULE_FAKE_QUEUE_DEPTH", "2"), ("NJOULE_FAKE_FAULTS", "evaluate@1=delay:50ms;evaluate@3=oob")], || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let mut runs: Vec<Bound> = (0..3).map(|_| Bound::new(&runtime, core)).collect();
        runs[0].run.start().unwrap();
        runs[1].run.start().unwrap();
        assert_eq!(runs[2].run.start().unwrap_err().status(), Some(Status::QUEUE_FULL));
        assert_eq!(runs[0].run.is_finished(), Ok(false));
        for b in &mut runs[..2] {
            b.run.wait(AMPLE).unwrap();
            assert_eq!(read::<f32>(&b.cache)[3..6], [3.0, 4.0, 5.0]);
        }
        runs[2].run.start().unwrap();
        assert_eq!(runs[2].run.wait(AMPLE).unwrap_err().status(), Some(Status(1006)));
        runs[2].run.start().unwrap();
        runs[2].run.wait(AMPLE).unwrap();
    });
}

#[test]
fn the_host_that_touches_a_running_tensor_is_recorded() {
    let output = spawn(&[("NJOULE_FAKE_FAULTS", "evaluate@1=delay:100ms")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        b.run.start().unwrap();
        b.table.slice(0, 60, "a view").unwrap();
        assert_eq!(read::<f32>(&b.table).len(), 15, "inputs may be read");
        assert_eq!(faults(), 0);
        b.ids.write(0, &bytes(&[2i32])).unwrap();
        assert_eq!(faults(), 1);
        read::<f32>(&b.rows);
        assert_eq!(faults(), 2);
        b.run.wait(AMPLE).unwrap();
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_fixed_latency_can_stand_for_the_computation() {
    child(&[("NJOULE_FAKE_LATENCY", "20ms"), ("NJOULE_FAKE_EVALUATE", "0")], || {
        let runtime = start();
        let mut b = Bound::new(&runtime, runtime.core(0).unwrap());
        let start = Instant::now();
        b.run.execute().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!((read::<f32>(&b.rows), read::<f32>(&b.cache)), (vec![0.0; 6], vec![0.0; 12]));
    });
}
