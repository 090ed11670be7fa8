//! Sequences in rows of their own.

use std::collections::HashMap;

use super::*;
use crate::backend::RowClass;

fn in_rows(limits: StepLimits, classes: &[RowClass]) -> Scheduler<()> {
    let limits_of_rows = Limits { paged: false, classes: classes.to_vec(), ..Limits::paged(100) };
    let blocks = classes.iter().map(|c| c.rows).sum();
    let capacity =
        Capacity { blocks, block_len: 100, max_rows: 64, max_seqs: blocks, max_outputs: blocks, max_len: 100 };
    Scheduler::new(limits, Kv::new(&capacity, &limits_of_rows, true), Speculate::Off)
}

fn rows_of(s: &Scheduler<()>) -> Vec<(u64, u32)> {
    s.running().iter().map(|q| (q.order.1, q.blocks[0].0)).collect()
}

#[test]
fn a_long_sequence_bars_the_long_rows_for_those_behind_it_and_no_others() {
    let classes = [RowClass { rows: 1, max_len: 10 }, RowClass { rows: 1, max_len: 40 }];
    let mut s = in_rows(limits(), &classes);
    add(&mut s, 0, 5, 20);
    step(&mut s);
    assert_eq!(rows_of(&s), [(0, 1)]);
    add(&mut s, 1, 5, 20);
    add(&mut s, 2, 2, 3);
    add(&mut s, 3, 2, 3);
    step(&mut s);
    assert_eq!(rows_of(&s), [(0, 1), (2, 0)], "a short one goes where the long one cannot");
    while s.running().iter().any(|q| q.order.1 == 0) {
        step(&mut s);
    }
    step(&mut s);
    assert!(rows_of(&s).contains(&(1, 1)), "the long one comes before the short ones behind it");
    while !s.is_empty() {
        step(&mut s);
    }
    assert_eq!(s.preemptions(), 0);
}

#[test]
fn a_prompt_starts_behind_what_an_idle_row_holds() {
    let mut s = in_rows(limits(), &[RowClass { rows: 2, max_len: 60 }]);
    add(&mut s, 0, 20, 1);
    while !s.is_empty() {
        step(&mut s);
    }
    add(&mut s, 1, 20, 1);
    add(&mut s, 2, 20, 1);
    assert_eq!(step(&mut s), [(1, 1), (2, 8)], "the row's 20 tokens but one; the other row is empty");
}

#[test]
fn scored_prompts_stand_apart_and_take_turns_with_the_others() {
    let mut s = in_rows(StepLimits { mixed: false, apart: true, ..limits() }, &[RowClass { rows: 4, max_len: 60 }]);
    add(&mut s, 0, 16, 9);
    let mut scored = Sequence::new((0, 1), vec![0; 24], 0, 100, ());
    scored.next_prompt_output = 0;
    s.add(Box::new(scored));
    assert_eq!(step(&mut s), [(0, 8)]);
    assert_eq!(step(&mut s), [(1, 8)]);
    assert_eq!(step(&mut s), [(0, 8)]);
    assert_eq!(step(&mut s), [(1, 8)]);
    assert_eq!(step(&mut s), [(0, 1)]);
    assert_eq!(step(&mut s), [(1, 8)]);
    assert_eq!(step(&mut s), [(0, 1)]);
}

proptest! {
    #[test]
    fn rows_belong_to_one_sequence_prefixes_are_what_was_written_and_everybody_ends(
        // A few texts, so that prompts share beginnings.
        jobs in prop::collection::vec((0u32..3, 1usize..40, 0usize..20, 0i64..3, 0usize..60, any::<bool>()), 1..24),
        short in 1usize..4,
        long in 1usize..3,
        budget in 1usize..24,
        chunk in 1usize..12,
        mixed: bool,
        apart: bool,
    ) {
        let classes = [RowClass { rows: short, max_len: 24 }, RowClass { rows: long, max_len: 60 }];
        let limits = StepLimits { rows: budget, chunk: chunk.min(budget), outputs: 8, running: (short + long).min(budget).min(8), mixed, apart, drafts: false };
        let mut s = in_rows(limits, &classes);
        let mut batch = Batch::default();
        // What a row's slots were last written with: the token and all before it.
        let mut written: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut jobs: Vec<_> = jobs.into_iter().enumerate().collect();
        let work: usize = jobs.iter().map(|(_, j)| j.1 + j.2 + 3).sum();
        let mut now = 0;
        while !jobs.is_empty() || !s.is_empty() {
            jobs.retain(|(id, job)| {
                if job.4 > now {
                    return true;
                }
                let prompt: Vec<u32> = (0..job.1 as u32).map(|i| if i < 17 + job.0 { i } else { 100 * job.0 + i }).collect();
                let mut sequence = Sequence::new((job.3, *id as u64), prompt, job.2, 100, ());
                if job.5 {
                    sequence.next_prompt_output = 0;
                }
                s.add(Box::new(sequence));
                false
            });
            let plan = s.plan(&mut batch, |_| {});
            prop_assert!(plan != Plan::default() || s.is_empty(), "a step without rows although somebody waits");
            let mut rows: Vec<u32> = s.running().iter().map(|q| q.blocks[0].0).collect();
            rows.sort_unstable();
            prop_assert!(rows.windows(2).all(|w| w[0] < w[1]), "a row in two sequences");
            prop_assert_eq!(rows.len(), s.kv().used());
            let scored = s.running().iter().filter(|q| q.chunk > 0 && q.scores()).count();
            prop_assert!(!apart || scored == 0 || scored == batch.seqs.len(), "scored prompts stand apart");
            for q in s.running().iter().filter(|q| q.chunk > 0) {
                let row = q.blocks[0].0;
                let longest = if row < short as u32 { 24 } else { 60 };
                prop_assert!(q.max_tokens <= longest);
                let held = written.entry(row).or_default();
                prop_assert!(held.len() >= q.computed && held[..q.computed] == q.tokens[..q.computed], "not its prefix");
                prop_assert!(q.cached == 0 || (q.cached >= 16 && q.cached < q.prompt_len && !q.scores()));
                held.truncate(q.computed);
                held.extend_from_slice(&q.tokens[q.computed..q.computed + q.chunk]);
            }
            finish_step(&mut s);
            now += 1;
            prop_assert!(now < 100 + work * 30, "too many steps");
        }
        prop_assert_eq!((s.kv().used(), s.preemptions()), (0, 0));
    }
}
