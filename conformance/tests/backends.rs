//! The suite on every backend and instruction set of this machine.

use std::num::NonZero;

use njoule_conformance::{Answered, Case, Precision, answer, cases, expect_clean, random, report};
use njoule_kernels::isa::Kernels;
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{KvType, Quant};

/// Random programs of a run.
const PROGRAMS: u64 = 60;

const STORED: [(Quant, Precision); 4] = [
    (Quant::None, Precision::F32),
    (Quant::Bf16, Precision::Bf16),
    (Quant::Int8, Precision::Int8),
    (Quant::Int4, Precision::Int8),
];

fn cases() -> Vec<Answered> {
    answer([cases::all(), random::cases(PROGRAMS)].concat())
}

#[test]
fn cpu_keeps_its_bounds_on_every_instruction_set_and_stored_type() {
    let cases = cases();
    let mut reports = vec![];
    for kernels in Kernels::available() {
        for (quant, precision) in STORED {
            let backend = CpuBackend::new(NonZero::new(2).unwrap(), quant).unwrap().with_isa(kernels.isa).unwrap();
            reports.push(report(&backend, format!("cpu {} {quant:?}", kernels.isa.name()), precision, &cases));
        }
    }
    expect_clean(reports);
}

#[test]
fn cpu_keeps_its_bounds_with_every_type_of_cache() {
    let attends = |case: &Case| !case.program.caches.is_empty();
    let all = [cases::all(), random::cases(PROGRAMS)].concat();
    let cases = answer(all.into_iter().filter(attends).collect());
    let mut reports = vec![];
    for kernels in Kernels::available() {
        for (kv, precision) in [
            (KvType::F32, Precision::F32),
            (KvType::Bf16, Precision::Bf16),
            (KvType::F16, Precision::Bf16),
            (KvType::Int8, Precision::Int8),
        ] {
            let mut backend =
                CpuBackend::new(NonZero::new(1).unwrap(), Quant::None).unwrap().with_isa(kernels.isa).unwrap();
            backend.kv = Some(kv);
            reports.push(report(&backend, format!("cpu {} cache {kv:?}", kernels.isa.name()), precision, &cases));
        }
    }
    expect_clean(reports);
}

#[test]
fn candle_keeps_its_bounds() {
    let cases = cases();
    let run = |quant, precision| report(&CandleBackend::on_cpu(quant), format!("candle {quant:?}"), precision, &cases);
    expect_clean(vec![run(Quant::None, Precision::F32), run(Quant::Bf16, Precision::Bf16)]);
}
