//! The scheduler driven by hand: a sampled token is its sequence's length.

use proptest::prelude::*;

use super::*;
use crate::kv::BlockPool;

mod prefix;
mod rows;

fn scheduler(limits: StepLimits, blocks: usize, block_len: usize) -> Scheduler<()> {
    Scheduler::new(limits, Kv::Blocks(BlockPool::new(blocks, block_len)), Speculate::Off)
}

fn limits() -> StepLimits {
    StepLimits { rows: 16, chunk: 8, outputs: 8, running: 8, mixed: true, apart: false, drafts: false }
}

#[test]
fn nothing_is_guessed_where_a_step_could_not_check_it() {
    let capacity = Capacity { blocks: 4, block_len: 4, max_rows: 4, max_seqs: 4, max_outputs: 4, max_len: 16 };
    let paged = Limits::paged(4);
    let drafts = |limits: Limits| StepLimits::new(&capacity, 4, 4, &limits).drafts;
    assert!(drafts(paged.clone()));
    assert!(!drafts(Limits { drafts: false, ..paged.clone() }));
    assert!(!drafts(Limits { mixed_batches: false, ..paged.clone() }));
    assert!(!drafts(Limits { candidates: Some(4), ..paged.clone() }));
    assert!(!drafts(Limits { overlaps: true, ..paged }));
}

fn add(scheduler: &mut Scheduler<()>, id: u64, prompt: usize, max_new: usize) {
    let block_len = scheduler.kv().block_len();
    let tokens = vec![0; prompt];
    scheduler.add(Box::new(Sequence::new((0, id), tokens, max_new, block_len, ())));
}

/// Rows per sequence of a step, by arrival; then the step is done and what is finished leaves.
fn step(scheduler: &mut Scheduler<()>) -> Vec<(u64, usize)> {
    scheduler.plan(&mut Batch::default(), |_| {});
    let rows = scheduler.running().iter().filter(|s| s.chunk > 0);
    let rows = rows.map(|s| (s.order.1, s.chunk)).collect();
    finish_step(scheduler);
    rows
}

fn finish_step(scheduler: &mut Scheduler<()>) {
    for sequence in scheduler.running_mut() {
        if sequence.chunk == 0 {
            continue;
        }
        let done = sequence.computed + sequence.chunk;
        if sequence.next_prompt_output < sequence.prompt_len {
            sequence.next_prompt_output = done.clamp(sequence.next_prompt_output, sequence.prompt_len);
        }
        if sequence.samples_now() {
            let token = sequence.tokens.len() as u32;
            sequence.tokens.push(token);
        }
    }
    scheduler.commit();
    for i in (0..scheduler.running().len()).rev() {
        let s = &scheduler.running()[i];
        if s.tokens.len() == s.max_tokens && (s.generated() > 0 || s.computed == s.prompt_len) {
            scheduler.remove_running(i);
        }
    }
}

#[test]
fn decodes_come_first_and_chunks_share_what_is_left_of_the_budget() {
    let mut s = scheduler(limits(), 100, 4);
    add(&mut s, 0, 3, 50);
    add(&mut s, 1, 2, 50);
    assert_eq!(step(&mut s), [(0, 3), (1, 2)]);
    add(&mut s, 2, 20, 5);
    add(&mut s, 3, 20, 5);
    assert_eq!(step(&mut s), [(0, 1), (1, 1), (2, 8), (3, 6)]);
    assert_eq!(step(&mut s), [(0, 1), (1, 1), (2, 8), (3, 6)]);
    assert_eq!(step(&mut s), [(0, 1), (1, 1), (2, 4), (3, 8)]);
    assert_eq!(step(&mut s), [(0, 1), (1, 1), (2, 1), (3, 1)]);
}

#[test]
fn a_full_cache_takes_the_blocks_of_the_last_sequence_and_gives_it_its_place_back() {
    let mut s = scheduler(limits(), 3, 2);
    add(&mut s, 0, 2, 5);
    assert_eq!(step(&mut s), [(0, 2)]);
    add(&mut s, 1, 2, 5);
    // It needs a block more than it will get for a while, so it waits.
    assert_eq!(step(&mut s), [(0, 1)]);
    add(&mut s, 2, 1, 1);
    let mut order = Vec::new();
    while !s.is_empty() {
        order.extend(step(&mut s).into_iter().filter(|(id, _)| *id > 0));
    }
    assert_eq!(order.first(), Some(&(1, 2)), "nobody overtakes");
    assert_eq!(s.kv().used(), 0);

    let mut s = scheduler(limits(), 6, 2);
    for id in 0..2 {
        add(&mut s, id, 2, 9);
    }
    let mut last = Vec::new();
    while !s.is_empty() {
        let rows = step(&mut s);
        last = rows;
    }
    assert_eq!(s.preemptions(), 1);
    assert_eq!(last, [(1, 1)], "the later one ends last");
}

#[test]
fn without_mixed_batches_chunks_and_decodes_take_turns() {
    let unmixed = StepLimits { mixed: false, ..limits() };
    let mut s = scheduler(unmixed, 100, 4);
    add(&mut s, 0, 3, 5);
    assert_eq!(step(&mut s), [(0, 3)]);
    add(&mut s, 1, 20, 5);
    assert_eq!(step(&mut s), [(0, 1)]);
    assert_eq!(step(&mut s), [(1, 8)]);
    assert_eq!(step(&mut s), [(0, 1)]);
    assert_eq!(step(&mut s), [(1, 8)]);
    assert_eq!(step(&mut s), [(0, 1)]);
    assert_eq!(step(&mut s), [(1, 4)]);
    assert_eq!(step(&mut s), [(0, 1), (1, 1)]);
}

proptest! {
    #[test]
    fn all_sequences_end_within_a_bounded_number_of_steps(
        jobs in prop::collection::vec((1usize..20, 0usize..20, 0i64..3, 0usize..40, any::<bool>()), 1..20),
        block_len in 1usize..6,
        spare in 0usize..12,
        rows in 1usize..20,
        chunk in 1usize..20,
        outputs in 1usize..10,
        running in 1usize..8,
        mixed: bool,
    ) {
        let longest = jobs.iter().map(|j| j.0 + j.1).max().unwrap_or(1);
        let blocks = longest.div_ceil(block_len) + spare;
        let capacity = Capacity {
            blocks, block_len, max_rows: 64, max_seqs: running, max_outputs: outputs, max_len: longest,
        };
        let limits = StepLimits::new(&capacity, rows, chunk, &Limits { mixed_batches: mixed, ..Limits::paged(block_len) });
        let mut s = scheduler(limits, blocks, block_len);
        let mut batch = Batch::default();
        let (mut now, mut idle) = (0, 0);
        let mut jobs: Vec<_> = jobs.into_iter().enumerate().collect();
        let work: usize = jobs.iter().map(|(_, j)| j.0 + j.1).sum();
        while !jobs.is_empty() || !s.is_empty() {
            jobs.retain(|(id, job)| {
                let arrives = job.3 <= now;
                if arrives {
                    let order = (job.2, *id as u64);
                    let mut sequence = Sequence::new(order, vec![0; job.0], job.1, block_len, ());
                    if job.4 {
                        sequence.next_prompt_output = 0;
                    }
                    s.add(Box::new(sequence));
                }
                !arrives
            });
            let decoding: Vec<_> = s.running().iter().filter(|q| q.pending() == 1).map(|q| q.order).collect();
            let plan = s.plan(&mut batch, |_| {});
            let total = plan.decode + plan.prefill;
            prop_assert_eq!(total, batch.rows());
            prop_assert!(total <= rows);
            prop_assert!(batch.outputs.len() <= outputs);
            prop_assert!(s.running().len() <= limits.running);
            prop_assert!(s.running().is_sorted_by_key(|q| q.order));
            let held: usize = s.running().iter().map(|q| q.blocks.len()).sum();
            prop_assert_eq!(held, s.kv().used());
            if mixed {
                // Whoever decodes keeps decoding unless its blocks were taken or are lacking.
                for q in s.running().iter().filter(|q| decoding.contains(&q.order)) {
                    prop_assert!(q.chunk == 1 || s.kv().free() == 0);
                }
            } else {
                prop_assert!(plan.decode == 0 || plan.prefill == 0 || batch.seqs.iter().all(|q| q.rows.len() == 1));
            }
            idle += usize::from(total == 0 && !s.is_empty());
            finish_step(&mut s);
            now += 1;
            // A preempted sequence is recomputed at most once per block that others grow by.
            prop_assert!(now < 100 + work * 60, "too many steps");
        }
        prop_assert_eq!(idle, 0, "steps without rows although somebody waits");
        prop_assert_eq!(s.kv().used(), 0);
        prop_assert_eq!(s.preempted_waiting(), 0);
    }
}
