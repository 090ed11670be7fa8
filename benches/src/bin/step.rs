//! Whole steps of the cpu backend, without an engine: `step MODEL QUANT THREADS BATCH,BATCH,... [PROMPT] [GEN]`.
//!
//! For each batch size, that many sequences are prefilled with PROMPT tokens and then decoded GEN steps together; then
//! one prompt of 512 tokens alone. Prints tokens/s and CPU milliseconds per token. Absolute figures move with the
//! machine: compare runs that alternate.

use std::num::NonZero;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use njoule_models::checkpoint::Checkpoint;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{Batch, BlockId, Capacity, Executor, Quant, SeqSpan, StepOutput};

const BLOCK_LEN: usize = 32;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, quant, threads, batches, rest @ ..] = args.as_slice() else {
        bail!("usage: step MODEL QUANT THREADS BATCH,BATCH,... [PROMPT] [GEN]");
    };
    let quant = match quant.as_str() {
        "none" => Quant::None,
        "bf16" => Quant::Bf16,
        "int8" => Quant::Int8,
        "int4" => Quant::Int4,
        "auto" => Quant::Auto,
        other => bail!("unknown stored type `{other}`"),
    };
    let threads: NonZero<usize> = threads.parse().context("THREADS")?;
    let batches: Vec<usize> = batches.split(',').map(str::parse).collect::<Result<_, _>>().context("BATCH")?;
    let number = |i: usize, default: usize| rest.get(i).map_or(Ok(default), |s| s.parse());
    let (prompt, gen_len) = (number(0, 32)?, number(1, 32)?);

    let start = Instant::now();
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let program = checkpoint.config.program();
    let backend = CpuBackend::new(threads, quant)?;
    let max_batch = batches.iter().copied().max().unwrap_or(1);
    let per_seq = (prompt + gen_len).max(512).div_ceil(BLOCK_LEN);
    let capacity = Capacity {
        blocks: max_batch * per_seq,
        block_len: BLOCK_LEN,
        max_rows: 512.max(max_batch),
        max_seqs: max_batch,
        max_outputs: max_batch,
        max_len: per_seq * BLOCK_LEN,
    };
    let mut executor = backend.load_cpu(&program, checkpoint.weights.as_ref(), capacity)?;
    let loaded = start.elapsed().as_secs_f64();
    println!("{} threads {threads}, loaded in {loaded:.3} s, {:?}", backend.isa().name(), executor.memory());
    let vocab = program.vocab() as u32;
    let mut out = StepOutput::default();
    for batch in batches {
        let mut filled = Batch::default();
        for seq in 0..batch {
            fill(&mut filled, &[(seq, 0, prompt)], per_seq, vocab);
            run(&mut executor, &filled, &mut out)?;
        }
        let mut times = vec![];
        let cpu = cpu_seconds()?;
        for i in 0..gen_len {
            let rows: Vec<_> = (0..batch).map(|seq| (seq, prompt + i, 1)).collect();
            fill(&mut filled, &rows, per_seq, vocab);
            let start = Instant::now();
            run(&mut executor, &filled, &mut out)?;
            times.push(start.elapsed().as_secs_f64());
        }
        let cpu = (cpu_seconds()? - cpu) * 1e3 / (gen_len * batch) as f64;
        times.sort_by(f64::total_cmp);
        let (median, best) = (times[times.len() / 2], times[0]);
        let rate = batch as f64 / median;
        println!("decode {batch:3}: {rate:8.1} t/s median, {:8.1} best, {cpu:6.2} CPU-ms/token", batch as f64 / best);
    }
    let mut filled = Batch::default();
    let mut times = vec![];
    let cpu = cpu_seconds()?;
    for _ in 0..5 {
        fill(&mut filled, &[(0, 0, 512)], per_seq, vocab);
        let start = Instant::now();
        run(&mut executor, &filled, &mut out)?;
        times.push(start.elapsed().as_secs_f64());
    }
    let cpu = (cpu_seconds()? - cpu) * 1e3 / (5.0 * 512.0);
    times.sort_by(f64::total_cmp);
    println!("prefill 512: {:8.1} t/s median, {:8.1} best, {cpu:6.3} CPU-ms/token", 512.0 / times[2], 512.0 / times[0]);
    Ok(())
}

/// One step of `(sequence, position, rows)` each, the last row of each wanted.
fn fill(batch: &mut Batch, seqs: &[(usize, usize, usize)], per_seq: usize, vocab: u32) {
    batch.clear();
    for &(seq, position, rows) in seqs {
        let first = batch.rows();
        for p in position..position + rows {
            let block = seq * per_seq + p / BLOCK_LEN;
            batch.tokens.push((p as u32 * 7919 + seq as u32 * 104_729 + 13) % vocab);
            batch.positions.push(p as u32);
            batch.slots.push((block * BLOCK_LEN + p % BLOCK_LEN) as u32);
        }
        let table = batch.tables.len();
        batch.tables.extend((0..per_seq).map(|b| BlockId((seq * per_seq + b) as u32)));
        batch.seqs.push(SeqSpan {
            rows: first..first + rows,
            context: position + rows,
            table: table..table + per_seq,
            rope_len: per_seq * BLOCK_LEN,
        });
        batch.outputs.push((first + rows - 1) as u32);
    }
}

fn run(executor: &mut dyn Executor, batch: &Batch, out: &mut StepOutput) -> Result<()> {
    executor.submit(batch)?;
    executor.collect(out)?;
    Ok(())
}

/// User and system time of this process so far, from /proc/self/stat (fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}
