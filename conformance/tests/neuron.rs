//! The suite on modules for Neuron, run by `hlo`'s evaluator: decode, prefill and score steps, on one core and several.

use njoule_conformance::{Answered, Case, Precision, Report, Subject, answer, cases, check, random};
use njoule_models::program::Program;
use njoule_models::weights::WeightSource;
use njoule_runtime::backend::neuron::evaluated::EvaluatedBackend;
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
    let load =
        |program: &Program, weights: &dyn WeightSource, capacity: Capacity| backend.load(program, weights, capacity);
    let report = check(&Subject { name: name.clone(), precision, load: &load }, cases);
    println!("{name}: {} cases, at most {:.2} of the bound", report.compared, report.closest);
    report
}

fn expect_clean(reports: Vec<Report>) {
    let problems: Vec<String> = reports.into_iter().flat_map(|r| [r.failures, r.refused].concat()).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
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
