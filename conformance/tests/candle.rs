//! What the candle backend promises beyond its logits: rounding where its table says, refusals, and a checked contract.

use njoule_conformance::cases::{self, VOCAB};
use njoule_conformance::steps::CAPACITY;
use njoule_conformance::weights::CaseWeights;
use njoule_conformance::{Case, answers, distance, random, run};
use njoule_models::program::Program;
use njoule_models::weights::WeightSource;
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::{
    Backend, Batch, BlockId, Capacity, KvType, LoadError, Quant, SeqSpan, StepError, StepOutput,
};

fn load_bf16(
    program: &Program,
    weights: &dyn WeightSource,
    capacity: Capacity,
) -> Result<Box<dyn njoule_runtime::backend::Executor>, LoadError> {
    CandleBackend::on_cpu(Quant::Bf16).load(program, weights, capacity)
}

/// Distance that a third of the rows keep: one value that lies between two bf16s may round either way, and then all that
/// depends on it is off as if nothing were rounded where the table says.
fn third(got: &njoule_conformance::steps::Logits, want: &[Vec<f64>]) -> f32 {
    let mut rows: Vec<f32> = got.rows().zip(want).map(|(got, want)| distance(got, want)).collect();
    rows.sort_by(f32::total_cmp);
    rows[rows.len() / 3]
}

/// Rounding in f64 where the table says so leaves f32's own error; a rounding point more or less leaves bf16's.
#[test]
fn candle_rounds_to_bf16_where_its_table_says() {
    let deep = |case: &Case| case.program.ops.len() > 8;
    let cases = [cases::ops::cases(), random::cases(20)].concat();
    let (mut compared, mut failures) = (0, vec![]);
    for Case { name, program } in cases.into_iter().filter(deep) {
        let got = run(&load_bf16, &program).expect("candle runs every op");
        let from_exact = third(&got, &answers(&program, false));
        let from_rounded = third(&got, &answers(&program, true));
        compared += 1;
        println!("{name}: {from_rounded:.1e} from the table, {from_exact:.1e} from unrounded arithmetic");
        if !(from_exact > 0.0 && from_rounded < 0.01 * from_exact) {
            failures.push(format!("{name}: {from_rounded} from the table, {from_exact} from unrounded arithmetic"));
        }
    }
    assert!(compared > 10 && failures.is_empty(), "{compared} compared\n{}", failures.join("\n"));
}

#[test]
fn candle_refuses_other_stored_types_by_name() {
    let attends = cases::ops::cases().into_iter().find(|case| !case.program.caches.is_empty());
    let program = attends.expect("a case with a cache").program;
    let refusal = |quant, kv| {
        let mut backend = CandleBackend::on_cpu(quant);
        backend.kv = kv;
        backend.load(&program, &CaseWeights, CAPACITY).err().expect("a refusal").to_string()
    };
    assert!(refusal(Quant::Int8, None).contains("int8"));
    assert!(refusal(Quant::Int4, None).contains("int4"));
    assert!(refusal(Quant::None, Some(KvType::F16)).contains("f16"));
    assert!(refusal(Quant::Bf16, Some(KvType::Int8)).contains("int8"));
    let huge = Capacity { blocks: usize::MAX / 64, ..CAPACITY };
    let refused = CandleBackend::on_cpu(Quant::None).load(&program, &CaseWeights, huge).err();
    assert!(matches!(refused, Some(LoadError::Memory { .. })), "{refused:?}");
}

/// A batch that breaks the contract is an error that says how, and the executor goes on.
#[test]
fn candle_refuses_a_batch_that_breaks_the_contract() {
    let learned = cases::ops::cases().into_iter().find(|case| case.name == "embed by position + 0");
    let program = learned.expect("a case of learned positions").program;
    let mut executor = CandleBackend::on_cpu(Quant::None).load(&program, &CaseWeights, CAPACITY).unwrap();
    let good = Batch {
        tokens: vec![1, 2, 3],
        positions: vec![0, 1, 2],
        slots: vec![64, 65, 66],
        seqs: vec![SeqSpan { rows: 0..3, context: 3, table: 0..1, rope_len: 8 }],
        tables: vec![BlockId(2)],
        outputs: vec![2],
        ..Batch::default()
    };
    type Break = fn(&mut Batch);
    let breaks: [(Break, &str); 13] = [
        (|b| b.tokens[1] = VOCAB as u32, "token 97"),
        (|b| b.tokens.push(1), "one per row"),
        (|b| b.positions[1] = 7, "consecutive"),
        (|b| b.slots[2] = 67, "slot of row 2"),
        (|b| b.tables[0] = BlockId(1000), "block 1000"),
        (|b| b.outputs[0] = 3, "output row 3"),
        (|b| b.seqs.clear(), "cover 0 of 3"),
        (|b| b.seqs[0].rows = 0..4, "cover the rows"),
        (|b| b.seqs[0].rows = 1..3, "cover the rows"),
        (|b| b.seqs[0].context = 2, "rows of a sequence"),
        (|b| b.seqs[0].context = 33, "do not hold 33"),
        (|b| b.seqs[0].table = 0..2, "block tables"),
        (|b| b.outputs = vec![0; 129], "exceed"),
    ];
    let mut out = StepOutput::default();
    for (damage, says) in breaks {
        let mut batch = good.clone();
        damage(&mut batch);
        match executor.submit(&batch) {
            Err(StepError::Batch(what)) => assert!(what.contains(says), "{says}: {what}"),
            other => panic!("{says}: {other:?}"),
        }
        executor.submit(&good).unwrap();
        executor.collect(&mut out).unwrap();
        assert!(out.rows == 1 && out.row(0).iter().all(|x| x.is_finite()), "{says}");
    }
    // Learned positions end where their table ends.
    let far = Batch {
        tokens: vec![0],
        positions: vec![128],
        slots: vec![4 * 32],
        seqs: vec![SeqSpan { rows: 0..1, context: 129, table: 0..5, rope_len: 8 }],
        tables: (0..5).map(BlockId).collect(),
        outputs: vec![],
        ..Batch::default()
    };
    assert!(matches!(executor.submit(&far), Err(StepError::Batch(what)) if what.contains("position")));
    executor.submit(&Batch::default()).unwrap();
    executor.collect(&mut out).unwrap();
    assert_eq!(out.rows, 0);
}
