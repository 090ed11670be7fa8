//! Shared blocks, guesses and turns, by hand: nothing leaks, whoever leaves and however he does.

use super::*;

/// A scheduler whose blocks are found again, and who guesses.
fn scheduler(capacity: &Capacity, rows: usize, chunk: usize) -> Scheduler<()> {
    let limits = Limits::paged(capacity.block_len);
    Scheduler::new(
        StepLimits::new(capacity, rows, chunk, &limits),
        Kv::new(capacity, &limits, true),
        Speculate::UpTo(4),
    )
}

/// Ends the step: tokens go round in threes, so that guesses are right until somebody's sequence is a multiple of seven long.
fn finish(s: &mut Scheduler<()>) {
    for q in s.running_mut() {
        if q.chunk == 0 {
            continue;
        }
        if q.scores() {
            q.next_prompt_output = (q.computed + q.chunk).clamp(q.next_prompt_output, q.prompt_len);
        }
        if !q.samples_now() {
            continue;
        }
        for i in 0..=q.drafts.len() {
            let n = q.tokens.len() as u32;
            let token = if n.is_multiple_of(7) { 50 + n } else { n % 3 };
            q.tokens.push(token);
            if q.drafts.get(i) != Some(&token) || q.tokens.len() == q.max_tokens {
                break;
            }
        }
    }
    s.commit();
    for i in (0..s.running().len()).rev() {
        let q = &s.running()[i];
        if q.tokens.len() == q.max_tokens && (q.generated() > 0 || q.computed == q.prompt_len) {
            s.remove_running(i);
        }
    }
}

fn assert_sound(s: &Scheduler<()>) {
    let Kv::Blocks(pool) = &s.kv else { return };
    pool.assert_sound(s.running().iter().map(|q| &q.blocks));
    assert!(s.waiting().all(|q| q.blocks.is_empty() && q.computed == 0));
}

#[test]
fn who_was_preempted_finds_its_own_blocks_again() {
    let capacity = Capacity { blocks: 8, block_len: 2, max_rows: 16, max_seqs: 4, max_outputs: 16, max_len: 16 };
    let limits = Limits::paged(2);
    let kv = Kv::new(&capacity, &limits, true);
    let mut s = Scheduler::new(StepLimits::new(&capacity, 16, 16, &limits), kv, Speculate::Off);
    for id in 0..2 {
        let prompt = vec![10 * id as u32; 4];
        s.add(Box::new(Sequence::new((0, id), prompt, 9, 2, ())));
    }
    let mut rows = 0;
    while !s.is_empty() {
        s.plan(&mut Batch::default(), |_| {});
        rows += s.running().iter().map(|q| q.chunk).sum::<usize>();
        assert_sound(&s);
        finish_step(&mut s);
    }
    assert_eq!(s.preemptions(), 1);
    // Both prompts and all tokens but the last ones, and less than a whole sequence again.
    assert!((24..24 + 6).contains(&rows), "{rows}");
}

proptest! {
    #[test]
    fn blocks_have_their_owners_counted_and_none_is_lost(
        jobs in prop::collection::vec(
            ((0u32..3, 0u32..16, 1usize..6), 0usize..16, (0i64..2, 0u64..3), 0usize..40, any::<bool>(), 0u32..2), 1..24),
        block_len in 1usize..6,
        spare in 0usize..12,
        rows in 1usize..20,
        chunk in 1usize..20,
        max_outputs in 1usize..10,
        max_seqs in 1usize..8,
        // At which steps who is thrown out, failed or not.
        leaving in prop::collection::vec((1usize..80, 0usize..8, any::<bool>()), 0..8),
    ) {
        let longest = jobs.iter().map(|j| j.0.1 as usize + j.0.2 + j.1).max().unwrap_or(1);
        let blocks = longest.div_ceil(block_len) + spare;
        let capacity = Capacity { blocks, block_len, max_rows: 64, max_seqs, max_outputs, max_len: longest };
        let mut s = scheduler(&capacity, rows, chunk);
        let mut batch = Batch::default();
        let mut jobs: Vec<_> = jobs.into_iter().enumerate().collect();
        let work: usize = jobs.iter().map(|(_, j)| j.0.1 as usize + j.0.2 + j.1).sum();
        let mut now = 0;
        while !jobs.is_empty() || !s.is_empty() {
            jobs.retain(|(id, (text, max_new, (priority, client), at, scored, salt))| {
                if *at > now {
                    return true;
                }
                let mut prompt: Vec<u32> = (0..text.1).map(|i| 20 * text.0 + i).collect();
                prompt.extend((0..text.2 as u32).map(|i| i % 3));
                let mut sequence = Sequence::new((*priority, *id as u64), prompt, *max_new, block_len, ());
                (sequence.client, sequence.salt) = (*client, (*salt > 0).then(|| salt.to_string()));
                if *scored {
                    sequence.next_prompt_output = 0;
                }
                s.add(Box::new(sequence));
                false
            });
            let plan = s.plan(&mut batch, |_| {});
            assert_sound(&s);
            prop_assert_eq!(plan.decode + plan.prefill + plan.drafted, batch.rows());
            prop_assert!(batch.rows() <= rows && batch.outputs.len() <= max_outputs);
            prop_assert!(plan.drafted == 0 || plan.prefill == 0 || batch.seqs.len() == plan.decode + plan.prefill);
            // Nobody writes where another one reads.
            for q in s.running().iter().filter(|q| q.chunk > 0) {
                let written = &q.blocks[q.computed / block_len..(q.computed + q.chunk).div_ceil(block_len)];
                let others = || s.running().iter().filter(|other| other.order != q.order).flat_map(|other| &other.blocks);
                prop_assert!(!others().any(|block| written.contains(block)));
                prop_assert!(q.computed + q.chunk < q.max_tokens || q.generated() == 0);
            }
            finish(&mut s);
            for (_, i, failed) in leaving.iter().filter(|(at, ..)| *at == now) {
                if *i >= s.running().len() {
                    continue;
                }
                if *failed { s.discard_running(*i) } else { s.remove_running(*i) };
            }
            assert_sound(&s);
            now += 1;
            prop_assert!(now < 100 + work * 60, "too many steps");
        }
        prop_assert_eq!((s.kv().used(), s.kv().free(), s.preempted_waiting()), (0, blocks, 0));
    }
}

/// The tokens that each client has had, and the step that its sequences ended in.
#[test]
fn two_clients_that_always_want_more_get_alike_whatever_they_ask() {
    let capacity = Capacity { blocks: 400, block_len: 4, max_rows: 64, max_seqs: 4, max_outputs: 64, max_len: 64 };
    let limits = Limits::paged(4);
    let kv = Kv::new(&capacity, &limits, false);
    let mut s = Scheduler::new(StepLimits::new(&capacity, 64, 64, &limits), kv, Speculate::Off);
    let mut id = 0;
    let mut add = |s: &mut Scheduler<()>, client, prompt: usize, max_new| {
        let mut sequence = Sequence::new((0, id), vec![id as u32; prompt], max_new, 4, ());
        sequence.client = client;
        s.add(Box::new(sequence));
        id += 1;
    };
    // One asks for long texts, the other one for many short ones, all at once.
    (0..200).for_each(|_| add(&mut s, 1, 30, 20));
    (0..2000).for_each(|_| add(&mut s, 2, 4, 3));
    let mut service = [0_usize; 3];
    for _ in 0..600 {
        s.plan(&mut Batch::default(), |_| {});
        for q in s.running() {
            let prompt = if q.computed == 0 { q.prompt_len } else { 0 };
            service[q.client as usize] += prompt + if q.samples_now() { 2 } else { 0 };
        }
        finish_step(&mut s);
    }
    // The bound of the paper: twice what is charged for the longest, here of all that run together.
    let bound = 2 * (30 + 2 * 20 * 4);
    assert!(service[1].abs_diff(service[2]) <= bound, "{service:?}");
    assert!(service[1] > 5 * bound, "{service:?}");
}

#[test]
fn a_newcomer_is_next_whatever_waits_of_another_client() {
    let capacity = Capacity { blocks: 400, block_len: 4, max_rows: 64, max_seqs: 4, max_outputs: 64, max_len: 64 };
    let limits = Limits::paged(4);
    let mut s =
        Scheduler::new(StepLimits::new(&capacity, 64, 64, &limits), Kv::new(&capacity, &limits, true), Speculate::Off);
    let add = |s: &mut Scheduler<()>, client, id| {
        let mut sequence = Sequence::new((0, id), vec![id as u32; 6], 10, 4, ());
        sequence.client = client;
        s.add(Box::new(sequence));
    };
    (0..1000).for_each(|id| add(&mut s, 1, id));
    step(&mut s);
    step(&mut s);
    add(&mut s, 2, 1000);
    let mut admitted = vec![];
    while admitted.is_empty() {
        s.plan(&mut Batch::default(), |q| admitted.push(q.client));
        finish_step(&mut s);
    }
    assert_eq!(admitted[0], 2);
}
