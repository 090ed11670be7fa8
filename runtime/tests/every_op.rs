//! Every op of the vocabulary, in every form, on small programs with loud random weights: backends against the same
//! mathematics in f64. Sequences run mixed, in chunks, in scattered blocks, and alone.

#[path = "every_op/programs.rs"]
mod programs;
#[path = "every_op/reference.rs"]
mod reference;

use std::num::NonZero;

use njoule_kernels::isa::Kernels;
use njoule_models::program::Program;
#[cfg(feature = "candle")]
use njoule_runtime::backend::candle::CandleBackend;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{
    Backend, Batch, BlockId, Capacity, Executor, LoadError, Quant, SeqSpan, StepError, StepOutput,
};
use programs::{Loud, MAX_LEN, VOCAB};
use reference::Reference;

/// Length and `rope_len` of each: one token, within a block, within a chunk of queries, and beyond all of them.
const SEQUENCES: [(usize, usize); 4] = [(1, 16), (5, 100), (40, 48), (MAX_LEN, 100)];
const BLOCK_LEN: usize = 16;

fn ids(seq: usize) -> Vec<u32> {
    (0..SEQUENCES[seq].0).map(|p| ((p * 7919 + seq * 31 + p * p) % VOCAB) as u32).collect()
}

fn capacity() -> Capacity {
    let blocks = SEQUENCES.len() * MAX_LEN.div_ceil(BLOCK_LEN);
    Capacity { blocks, block_len: BLOCK_LEN, max_rows: 128, max_seqs: 4, max_outputs: 128, max_len: MAX_LEN }
}

/// Logits of the positions that were asked for, per sequence.
type Logits = Vec<Vec<Option<Vec<f32>>>>;

/// Runs `seqs` together to their ends, `chunk(seq, step)` rows at a time; wants logits where `wanted` says so.
fn run(
    executor: &mut dyn Executor,
    seqs: &[usize],
    chunk: impl Fn(usize, usize) -> usize,
    wanted: impl Fn(usize) -> bool,
) -> Logits {
    let mut done = vec![0; SEQUENCES.len()];
    let mut logits: Logits = SEQUENCES.iter().map(|(len, _)| vec![None; *len]).collect();
    let (mut batch, mut out) = (Batch::default(), StepOutput::default());
    for step in 0.. {
        batch.clear();
        let mut places = vec![];
        for &seq in seqs {
            let (ids, first) = (ids(seq), done[seq]);
            let rows = chunk(seq, step).min(ids.len() - first);
            if rows == 0 {
                continue;
            }
            // Blocks of all sequences lie among each other, and backwards.
            let table: Vec<u32> = (0..MAX_LEN.div_ceil(BLOCK_LEN))
                .map(|b| (capacity().blocks - 1 - b * SEQUENCES.len() - seq) as u32)
                .collect();
            let (row, at) = (batch.rows(), batch.tables.len());
            for p in first..first + rows {
                if wanted(p) {
                    batch.outputs.push(batch.tokens.len() as u32);
                    places.push((seq, p));
                }
                batch.tokens.push(ids[p]);
                batch.positions.push(p as u32);
                batch.slots.push(table[p / BLOCK_LEN] * BLOCK_LEN as u32 + (p % BLOCK_LEN) as u32);
            }
            batch.tables.extend(table.into_iter().map(BlockId));
            let (context, table) = (first + rows, at..batch.tables.len());
            batch.seqs.push(SeqSpan { rows: row..row + rows, context, table, rope_len: SEQUENCES[seq].1 });
            done[seq] += rows;
        }
        if batch.rows() == 0 {
            return logits;
        }
        executor.submit(&batch).expect("a valid step");
        executor.collect(&mut out).expect("results");
        assert_eq!(out.rows, places.len());
        for (i, (seq, p)) in places.into_iter().enumerate() {
            logits[seq][p] = Some(out.row(i).to_vec());
        }
    }
    unreachable!("sequences end")
}

/// All sequences together: prefills beside decodes, chunks of many lengths, some steps without any output.
fn mixed(executor: &mut dyn Executor) -> Logits {
    run(executor, &[0, 1, 2, 3], |seq, step| [1, 7, 0, 30][(seq + step) % 4], |p| p % 5 != 3)
}

/// Each on its own, whole.
fn alone(executor: &mut dyn Executor) -> Logits {
    let one = |seq: usize| run(executor, &[seq], |_, _| usize::MAX, |_| true).swap_remove(seq);
    (0..SEQUENCES.len()).map(one).collect()
}

fn reference(program: &Program, bf16: bool) -> Vec<Vec<Vec<f64>>> {
    let reference = Reference::new(program, &Loud, bf16);
    (0..SEQUENCES.len()).map(|seq| reference.logits(&ids(seq), SEQUENCES[seq].1)).collect()
}

/// Largest and mean distance over all logits that were asked for.
fn distance(got: &Logits, want: &[Vec<Vec<f64>>]) -> (f64, f64) {
    let rows = got.iter().flatten().zip(want.iter().flatten());
    let pairs = rows.filter_map(|(got, want)| Some(got.as_ref()?.iter().zip(want)));
    let all: Vec<f64> = pairs.flatten().map(|(got, want)| (f64::from(*got) - want).abs()).collect();
    assert!(all.len() > VOCAB * 80, "most logits are compared");
    let max = all.iter().fold(0.0, |a: f64, b| if b.is_nan() { f64::NAN } else { a.max(*b) });
    (max, all.iter().sum::<f64>() / all.len() as f64)
}

fn check(backend: &dyn Backend, program: &Program) -> Result<(), LoadError> {
    let mut executor = backend.load(program, &Loud, capacity())?;
    let want = reference(program, false);
    let largest = want.iter().flatten().flatten().fold(0.0, |a: f64, b| a.max(b.abs()));
    assert!(largest > 0.5, "{}: the weights are loud: {largest}", program.name);
    for (how, got) in [("alone", alone(&mut *executor)), ("mixed", mixed(&mut *executor))] {
        let (worst, _) = distance(&got, &want);
        assert!(worst < 2e-5 * largest.max(1.0), "{} {how}: off by {worst}, the largest is {largest}", program.name);
    }
    Ok(())
}

#[cfg(feature = "candle")]
#[test]
fn candle_computes_every_op_as_it_is_defined() {
    for program in programs::all() {
        check(&CandleBackend::on_cpu(Quant::None), &program).unwrap_or_else(|e| panic!("{}: {e}", program.name));
    }
}

#[test]
fn cpu_computes_what_it_does_not_refuse_as_it_is_defined() {
    let mut run = 0;
    for (program, kernels) in programs::all().iter().flat_map(|p| Kernels::available().map(move |k| (p, k))) {
        let backend = CpuBackend::new(NonZero::new(2).unwrap(), Quant::None).unwrap().with_isa(kernels.isa).unwrap();
        match check(&backend, program) {
            Ok(()) => run += 1,
            Err(LoadError::Unsupported { what, .. }) => println!("{}: refused, {what}", program.name),
            Err(e) => panic!("{}: {e}", program.name),
        }
    }
    assert!(run > 0, "the plain decoder is not refused");
}

/// What a sequence gets does not depend on what runs beside it.
#[cfg(feature = "candle")]
#[test]
fn candle_gives_a_sequence_in_a_mixed_batch_what_it_gets_alone() {
    for program in programs::all() {
        let mut executor = CandleBackend::on_cpu(Quant::None).load(&program, &Loud, capacity()).unwrap();
        let widened: Vec<Vec<Vec<f64>>> = alone(&mut *executor)
            .into_iter()
            .map(|seq| seq.into_iter().map(|row| row.unwrap().into_iter().map(f64::from).collect()).collect())
            .collect();
        let largest = widened.iter().flatten().flatten().fold(1.0, |a: f64, b| a.max(b.abs()));
        let (worst, _) = distance(&mixed(&mut *executor), &widened);
        assert!(worst < 1e-5 * largest, "{}: off by {worst}, the largest is {largest}", program.name);
    }
}

/// The table of rounding points is true: rounding in f64 where it says so leaves only those values apart that lie
/// between two bf16s.
#[cfg(feature = "candle")]
#[test]
fn candle_rounds_to_bf16_where_its_table_says() {
    for program in programs::all() {
        let mut executor = CandleBackend::on_cpu(Quant::Bf16).load(&program, &Loud, capacity()).unwrap();
        let (exact, rounded) = (reference(&program, false), reference(&program, true));
        for got in [alone(&mut *executor), mixed(&mut *executor)] {
            let (_, from_exact) = distance(&got, &exact);
            let (_, from_rounded) = distance(&got, &rounded);
            let name = &program.name;
            println!("{name}: mean {from_rounded:.2e} from the table, {from_exact:.2e} from unrounded arithmetic");
            assert!(from_exact > 0.0 && from_rounded < 0.1 * from_exact, "{name}: {from_rounded} of {from_exact}");
        }
    }
}

#[cfg(feature = "candle")]
#[test]
fn candle_refuses_other_stored_types_by_name() {
    use njoule_runtime::backend::KvType;
    let program = programs::all().swap_remove(0);
    let refusal = |quant, kv| {
        let mut backend = CandleBackend::on_cpu(quant);
        backend.kv = kv;
        backend.load(&program, &Loud, capacity()).err().expect("a refusal").to_string()
    };
    assert!(refusal(Quant::Int8, None).contains("int8"));
    assert!(refusal(Quant::Int4, None).contains("int4"));
    assert!(refusal(Quant::None, Some(KvType::F16)).contains("f16"));
    assert!(refusal(Quant::Bf16, Some(KvType::Int8)).contains("int8"));
    let huge = Capacity { blocks: usize::MAX / 64, ..capacity() };
    let refused = CandleBackend::on_cpu(Quant::None).load(&program, &Loud, huge).err();
    assert!(matches!(refused, Some(LoadError::Memory { .. })), "{refused:?}");
}

/// A batch that breaks the contract is an error that says how, and the executor goes on.
#[cfg(feature = "candle")]
#[test]
fn candle_refuses_a_batch_that_breaks_the_contract() {
    let program = programs::all().into_iter().find(|p| p.name == "learned positions").unwrap();
    let mut executor = CandleBackend::on_cpu(Quant::None).load(&program, &Loud, capacity()).unwrap();
    let good = Batch {
        tokens: vec![1, 2, 3],
        positions: vec![0, 1, 2],
        slots: vec![32, 33, 34],
        seqs: vec![SeqSpan { rows: 0..3, context: 3, table: 0..1, rope_len: 8 }],
        tables: vec![BlockId(2)],
        outputs: vec![2],
    };
    type Break = fn(&mut Batch);
    let breaks: [(Break, &str); 13] = [
        (|b| b.tokens[1] = VOCAB as u32, "token 40"),
        (|b| b.tokens.push(1), "one per row"),
        (|b| b.positions[1] = 7, "consecutive"),
        (|b| b.slots[2] = 35, "slot of row 2"),
        (|b| b.tables[0] = BlockId(1000), "block 1000"),
        (|b| b.outputs[0] = 3, "output row 3"),
        (|b| b.seqs.clear(), "cover 0 of 3"),
        (|b| b.seqs[0].rows = 0..4, "cover the rows"),
        (|b| b.seqs[0].rows = 1..3, "cover the rows"),
        (|b| b.seqs[0].context = 2, "rows of a sequence"),
        (|b| b.seqs[0].context = 17, "do not hold 17"),
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
    let mut far = Batch::default();
    for p in 0..MAX_LEN as u32 + 1 {
        far.tokens.push(0);
        far.positions.push(p);
        far.slots.push(p);
    }
    far.tables.extend((0..8).map(BlockId));
    far.seqs.push(SeqSpan { rows: 0..MAX_LEN + 1, context: MAX_LEN + 1, table: 0..8, rope_len: 8 });
    assert!(matches!(executor.submit(&far), Err(StepError::Batch(what)) if what.contains("position")));
    executor.submit(&Batch::default()).unwrap();
    executor.collect(&mut out).unwrap();
    assert_eq!(out.rows, 0);
}
