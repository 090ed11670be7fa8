//! One suite of program cases for every backend.
//!
//! A [`Case`] is a [`Program`](njoule_models::Program); [`check`] feeds all of them to a [`Subject`] as [`steps`] says and compares
//! every logit with the [`definition`] of its ops, computed in f64. A backend that is added gets the whole suite for one [`Subject`].
//!
//! * [`cases::ops`]: each op of the vocabulary, with every option, at sizes around lanes, panels, groups and blocks;
//! * [`cases::models`]: the architectures, from the configs of `testdata/`;
//! * [`random`]: valid programs from a seed.
//!
//! Weights are such that every stored type but int8 holds them exactly ([`weights`]): what is left to differ is arithmetic,
//! and the bounds of [`Precision`] are bounds of that and of int8's rounding. Outputs are filled with NaN before a step writes them.

pub mod cases;
pub mod definition;
pub mod random;
pub mod steps;
pub mod weights;

use njoule_models::program::{Op, Program};
use njoule_models::weights::WeightSource;
use njoule_runtime::backend::{Backend, Capacity, Executor, LoadError};

use crate::definition::{Definition, Rows};
use crate::steps::{Logits, Script};
use crate::weights::CaseWeights;

/// A program to run.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub name: String,
    /// The program.
    pub program: Program,
}

/// How exactly a subject computes, and so how far it may be from the oracle.
///
/// Bounds are on the largest difference of a row's logits over the root mean square of the case's right ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 throughout: sums of up to some thousand terms in another order, and functions to a few units in the last place.
    F32,
    /// Inputs of products rounded to bf16: 2^-9 each, which adds up over the layers like a random walk.
    Bf16,
    /// Inputs of products rounded to 8 bits in groups: 1/254 of a group's largest value, four times bf16's typical error.
    Int8,
    /// Matrices in 8 bits with one scale per row, their inputs in bf16: as many bits, and both errors.
    Int8Rows,
}

impl Precision {
    /// The bound, and the share of rows that must keep it.
    ///
    /// Rounding may turn a router's near-tie: a row that goes to another expert is right and far off. Such rows are few.
    fn bound(self, program: &Program) -> (f32, f32) {
        let chooses = |op: &Op| matches!(op, Op::Route { x, routing, .. } if routing.top_k < program.info(*x).cols);
        let depth = program.layers.len().max(1) as f32;
        let rows = if self != Precision::F32 && program.ops.iter().any(chooses) { 0.6 } else { 1.0 };
        match self {
            Precision::F32 => (3e-5 * depth, rows),
            Precision::Bf16 => (0.05 * depth.sqrt(), rows),
            Precision::Int8 => (0.10 * depth.sqrt(), rows),
            Precision::Int8Rows => (0.12 * depth.sqrt(), rows),
        }
    }
}

/// A backend as the suite sees it.
pub struct Subject<'a> {
    /// For messages.
    pub name: String,
    /// What it promises.
    pub precision: Precision,
    /// Loads a program.
    pub load: &'a Load<'a>,
}

/// How a subject loads a program.
pub type Load<'a> = dyn Fn(&Program, &dyn WeightSource, Capacity) -> Result<Box<dyn Executor>, LoadError> + 'a;

/// What a run of the suite found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases that were compared.
    pub compared: usize,
    /// Cases that the subject refused by name, with its words.
    pub refused: Vec<String>,
    /// What is wrong.
    pub failures: Vec<String>,
    /// Of all rows compared, the largest difference over the bound.
    pub closest: f32,
}

/// A case with the right answers.
pub struct Answered {
    /// The case.
    pub case: Case,
    /// What its logits are.
    pub logits: Rows,
}

/// Computes the right answers.
pub fn answer(cases: Vec<Case>) -> Vec<Answered> {
    let ask = |case: Case| Answered { logits: answers(&case.program, false), case };
    cases.into_iter().map(ask).collect()
}

/// The logits that the script wants, by definition; with `bf16`, rounded as candle's table says.
pub fn answers(program: &Program, bf16: bool) -> Rows {
    let definition = Definition::new(program, &CaseWeights, bf16);
    let all: Vec<Rows> = (0..steps::SEQUENCES)
        .map(|seq| {
            let (ids, rope_len) = Script::FULL.sequence(seq, program.vocab());
            definition.logits(&ids, rope_len)
        })
        .collect();
    Script::FULL.wanted().into_iter().map(|(seq, position)| all[seq][position].clone()).collect()
}

/// Runs every case on `subject` and compares.
pub fn check(subject: &Subject<'_>, cases: &[Answered]) -> Report {
    let mut report = Report::default();
    for Answered { case, logits: want } in cases {
        let got = match run(subject.load, &case.program) {
            Ok(got) => got,
            Err(e @ LoadError::Unsupported { .. }) => {
                report.refused.push(format!("{}: {e}", case.name));
                continue;
            }
            Err(e) => {
                report.failures.push(format!("{} on {}: {e}", case.name, subject.name));
                continue;
            }
        };
        report.compared += 1;
        let (bound, share) = subject.precision.bound(&case.program);
        let scale = root_mean_square(want);
        let errors: Vec<f32> = got.rows().zip(want).map(|(got, want)| distance(got, want) / scale).collect();
        // A NaN is beyond every bound.
        let good = errors.iter().filter(|e| **e <= bound).count();
        if got.rows().len() != want.len() || (good as f32) < share * errors.len() as f32 {
            let worst = errors.iter().copied().fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a });
            let (name, rows) = (&subject.name, errors.len());
            report
                .failures
                .push(format!("{} on {name}: {good} of {rows} rows within {bound}, worst {worst}", case.name));
        }
        if share == 1.0 {
            report.closest = errors.iter().fold(report.closest, |a, b| a.max(b / bound));
        }
    }
    report
}

/// [`check`]s a backend and prints how near its bound it came.
pub fn report(backend: &dyn Backend, name: String, precision: Precision, cases: &[Answered]) -> Report {
    let load =
        |program: &Program, weights: &dyn WeightSource, capacity: Capacity| backend.load(program, weights, capacity);
    let report = check(&Subject { name: name.clone(), precision, load: &load }, cases);
    println!("{name}: {} cases, at most {:.2} of the bound", report.compared, report.closest);
    report
}

/// Panics with all failures and refusals of `reports`, if there is one.
pub fn expect_clean(reports: Vec<Report>) {
    let problems: Vec<String> = reports.into_iter().flat_map(|r| [r.failures, r.refused].concat()).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The largest difference of two rows; NaN where lengths differ.
pub fn distance(got: &[f32], want: &[f64]) -> f32 {
    let differences = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs());
    // `max` would drop a NaN.
    let worst = differences.fold(0.0, |a, b| if b <= a { a } else { b });
    if got.len() == want.len() { worst as f32 } else { f32::NAN }
}

/// Of all values: the size that differences are measured by.
pub fn root_mean_square(rows: &[Vec<f64>]) -> f32 {
    let values = || rows.iter().flatten();
    let mean_square = values().map(|x| x * x).sum::<f64>() / values().count().max(1) as f64;
    mean_square.sqrt().max(1e-6) as f32
}

/// What a backend says to the script.
pub fn run(load: &Load<'_>, program: &Program) -> Result<Logits, LoadError> {
    let mut executor = load(program, &CaseWeights, steps::CAPACITY)?;
    Ok(Script::FULL.run(executor.as_mut(), program.vocab()))
}
