//! The suite on modules for Neuron, run by `hlo`'s evaluator: decode, prefill and score steps, on one core and several.

use njoule_conformance::{
    Answered, Case, Precision, Report, answer, answers, cases, expect_clean, random, root_mean_square, steps,
};
use njoule_models::program::{Op, Program};
use njoule_models::weights::WeightSource;
use njoule_runtime::backend::neuron::Profile;
use njoule_runtime::backend::neuron::evaluated::EvaluatedBackend;
use njoule_runtime::backend::neuron::profile::{CacheWrite, DotResult, Lookup, RopeAngles, RowRead, TopK};
use njoule_runtime::backend::{Backend, Capacity, KvType, Quant};

/// Random programs of a run.
const PROGRAMS: u64 = 30;

fn cases() -> Vec<Case> {
    [cases::all(), random::cases(PROGRAMS)].concat()
}

/// Every `n`th case.
fn some(n: usize) -> Vec<Case> {
    cases().into_iter().step_by(n).collect()
}

fn report(backend: EvaluatedBackend, precision: Precision, cases: &[Answered]) -> Report {
    let name = format!("neuron {:?} {:?} on {}", backend.weights, backend.kv, backend.tp);
    njoule_conformance::report(&backend, name, precision, cases)
}

#[test]
fn modules_in_f32_keep_their_bound() {
    let cases = answer(cases());
    expect_clean([1, 2].map(|tp| report(EvaluatedBackend::f32(tp), Precision::F32, &cases)).into());
}

#[test]
fn modules_in_bf16_keep_their_bound() {
    let cases = answer(some(2));
    expect_clean([1, 2].map(|tp| report(EvaluatedBackend::bf16(tp), Precision::Bf16, &cases)).into());
}

#[test]
fn modules_of_int8_weights_and_caches_keep_their_bound() {
    let cases = answer(some(3));
    let int8 = |tp| EvaluatedBackend { weights: Quant::Int8, ..EvaluatedBackend::bf16(tp) };
    let all = |tp| EvaluatedBackend { kv: KvType::Int8, ..int8(tp) };
    let caches = EvaluatedBackend { kv: KvType::Int8, ..EvaluatedBackend::f32(1) };
    expect_clean([int8(1), int8(2), all(1), all(3), caches].map(|b| report(b, Precision::Int8Rows, &cases)).into());
}

/// Sequences of two classes decode in one module, which reads each class as far as its own are long.
#[test]
fn decodes_of_two_classes_together_keep_their_bounds() {
    let together = |backend| EvaluatedBackend { classes: 2, ..backend };
    let run = |backend, precision, cases: &[Answered]| report(together(backend), precision, cases);
    let cases = answer(some(2));
    let mut reports: Vec<Report> =
        [1, 2].map(|tp| run(EvaluatedBackend::f32(tp), Precision::F32, &cases)).into_iter().collect();
    let cases = answer(some(5));
    reports.extend([1, 2].map(|tp| run(EvaluatedBackend::bf16(tp), Precision::Bf16, &cases)));
    let int8 = |tp| EvaluatedBackend { weights: Quant::Int8, kv: KvType::Int8, ..EvaluatedBackend::bf16(tp) };
    let caches = EvaluatedBackend { kv: KvType::Int8, ..EvaluatedBackend::f32(2) };
    reports.extend([int8(1), int8(2), caches].map(|backend| run(backend, Precision::Int8Rows, &cases)));
    expect_clean(reports);
}

/// The largest difference of rows.
fn difference(a: &steps::Logits, b: &steps::Logits) -> f32 {
    let each = a.rows().flatten().zip(b.rows().flatten()).map(|(a, b)| (a - b).abs());
    each.fold(0.0, |worst, d| if d <= worst { worst } else { d })
}

#[test]
fn each_form_of_an_idiom_gives_what_the_default_gives() {
    let plain = Profile::default();
    let exact = [
        Profile { cache_write: CacheWrite::UpdateSlice, ..plain },
        Profile { cache_write: CacheWrite::Select, ..plain },
        Profile { row_read: RowRead::Gather, ..plain },
        Profile { lookup: Lookup::OneHot, ..plain },
        Profile { top_k: TopK::Custom, ..plain },
        Profile { rope: RopeAngles::Table, ..plain },
    ];
    let rounded = Profile { dot_result: DotResult::Operand, ..plain };
    let attends = |case: &Case| !case.program.caches.is_empty() && !case.program.ropes.is_empty();
    let cases: Vec<Case> = cases().into_iter().filter(attends).step_by(6).collect();
    assert!(cases.len() > 5);
    for Case { name, program } in &cases {
        for (backend, moves_bits) in [
            (EvaluatedBackend::f32(2), false),
            (EvaluatedBackend::bf16(1), true),
            (EvaluatedBackend { weights: Quant::Int8, kv: KvType::Int8, ..EvaluatedBackend::bf16(2) }, false),
        ] {
            let run_in = |classes, profile: Profile| {
                let backend = EvaluatedBackend { classes, profile, ..backend };
                let load =
                    |p: &Program, w: &dyn WeightSource, capacity: Capacity| Backend::load(&backend, p, w, capacity);
                njoule_conformance::run(&load, program).unwrap_or_else(|e| panic!("{name}: {e}"))
            };
            let run = |profile| run_in(1, profile);
            let want = run(plain);
            // What a class gives does not depend on those that decode beside it.
            assert_eq!(difference(&run_in(2, plain), &want), 0.0, "{name}: two classes");
            for profile in exact {
                assert_eq!(difference(&run(profile), &want), 0.0, "{name}: {profile:?}");
                assert_eq!(difference(&run_in(2, profile), &want), 0.0, "{name}: two classes, {profile:?}");
            }
            if moves_bits {
                let narrow = run(rounded);
                let off = difference(&narrow, &want);
                assert!(off > 0.0, "{name}: nothing was rounded");
                let rms = root_mean_square(&answers(program, true));
                let bound = 0.1 * (program.layers.len().max(1) as f32).sqrt();
                let experts = program.ops.iter().any(|op| matches!(op, Op::Route { .. }));
                assert!(experts || off / rms < bound, "{name}: {}", off / rms);
            }
        }
    }
}
