//! Same answer whatever the load: on the cpu backend a request's tokens and logits are bit-identical whatever runs beside
//! it, however its prompt is cut, with any number of threads, when its cache is given up and recomputed, behind a cached prefix,
//! and where tokens were guessed.

use std::num::NonZero;
use std::path::Path;
use std::sync::OnceLock;

use njoule_models::checkpoint::Checkpoint;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{Backend, Capacity, Quant};
use njoule_runtime::request::Completion;
use njoule_runtime::{Engine, EngineConfig, Request, SamplingParams, Speculate};
use proptest::prelude::*;

const QUANTS: [Quant; 4] = [Quant::None, Quant::Bf16, Quant::Int8, Quant::Int4];

fn checkpoint() -> Checkpoint {
    Checkpoint::open(Path::new("../testdata/llama_plain")).unwrap()
}

fn engine(quant: Quant, threads: usize, capacity: Capacity, config: impl FnOnce(&mut EngineConfig)) -> Engine {
    let checkpoint = checkpoint();
    let program = checkpoint.config.program();
    let backend = CpuBackend::new(NonZero::new(threads).unwrap(), quant).unwrap();
    assert_eq!(backend.limits(&program).block_len, capacity.block_len);
    let executor = backend.load(&program, &*checkpoint.weights, capacity).unwrap();
    let mut settings = EngineConfig::new(capacity);
    config(&mut settings);
    Engine::start(executor, program.vocab(), settings).unwrap()
}

fn block_len() -> usize {
    let backend = CpuBackend::new(NonZero::<usize>::MIN, Quant::None).unwrap();
    backend.limits(&checkpoint().config.program()).block_len
}

/// Requests of several lengths, greedy and not, with the logits of every prompt position.
fn requests() -> Vec<Request> {
    let lengths = [(1, 40), (5, 20), (33, 8), (64, 3), (70, 60), (100, 30)];
    let request = |(i, (len, max_new)): (usize, (u32, usize))| {
        let ids = (0..len).map(|p| (p * 37 + i as u32 * 11) % 272).collect();
        let sampling = SamplingParams {
            temperature: if i % 2 == 0 { 0.0 } else { 1.0 },
            seed: Some(i as u64),
            ..SamplingParams::default()
        };
        Request { sampling, prompt_logits: true, logprobs: Some(2), ..Request::new(ids, max_new) }
    };
    lengths.into_iter().enumerate().map(request).collect()
}

/// Each request alone, its prompt in one piece, on one thread.
fn alone(quant: Quant) -> &'static [Completion] {
    static ALONE: [OnceLock<Vec<Completion>>; QUANTS.len()] = [const { OnceLock::new() }; QUANTS.len()];
    let at = QUANTS.iter().position(|q| *q == quant).unwrap();
    ALONE[at].get_or_init(|| {
        let capacity =
            Capacity { blocks: 64, block_len: block_len(), max_rows: 128, max_seqs: 1, max_outputs: 128, max_len: 160 };
        let engine = engine(quant, 1, capacity, |config| config.prefix_cache = false);
        let run = |request| engine.submit(request).unwrap().wait().unwrap();
        requests().into_iter().map(run).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn tokens_and_logits_do_not_depend_on_the_load(
        quant in prop::sample::select(QUANTS.to_vec()),
        threads in 1usize..4,
        spare_blocks in 0usize..12,
        max_rows in 1usize..100,
        prefill_chunk in 1usize..100,
        max_seqs in 1usize..7,
        max_outputs in 1usize..40,
        order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let block_len = block_len();
        let capacity = Capacity {
            blocks: 160usize.div_ceil(block_len) + spare_blocks,
            block_len, max_rows, max_seqs, max_outputs,
            max_len: 160,
        };
        let engine = engine(quant, threads, capacity, |config| config.prefill_chunk = prefill_chunk);
        let requests = requests();
        let handles: Vec<_> = order.iter().map(|&i| (i, engine.submit(requests[i].clone()).unwrap())).collect();
        for (i, handle) in handles {
            let (got, wanted) = (handle.wait().unwrap(), &alone(quant)[i]);
            prop_assert_eq!(&got.token_ids, &wanted.token_ids, "request {}", i);
            prop_assert_eq!(&got.logprobs, &wanted.logprobs, "request {}", i);
            let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert!(bits(&got.prompt_logits) == bits(&wanted.prompt_logits), "request {}", i);
        }
    }
}

/// Requests that begin alike: 40 or 70 tokens of one of two texts and a few of their own, long enough to fall into loops.
fn alike() -> Vec<Request> {
    let request = |i: u32| {
        let stem = if i.is_multiple_of(2) { 40 } else { 70 };
        let mut ids: Vec<u32> = (0..stem).map(|p| (p * 37 + i / 2 % 2 * 11) % 272).collect();
        ids.extend((0..1 + i % 5).map(|p| (p * 53 + i * 29) % 272));
        let sampling = SamplingParams {
            temperature: if i.is_multiple_of(3) { 1.0 } else { 0.0 },
            frequency_penalty: if i % 4 == 1 { 0.3 } else { 0.0 },
            // A few tokens, again and again, so that guesses are right now and then.
            logit_bias: (60..63).map(|id| (id, 20.0)).collect(),
            seed: Some(u64::from(i)),
            ..SamplingParams::default()
        };
        Request { sampling, logprobs: Some(2), priority: i64::from(i % 2), ..Request::new(ids, 44 + i as usize) }
    };
    (0..12).map(request).collect()
}

#[test]
fn cached_prefixes_and_guesses_change_no_bit() {
    let capacity =
        Capacity { blocks: 7, block_len: block_len(), max_rows: 96, max_seqs: 4, max_outputs: 40, max_len: 128 };
    for quant in QUANTS {
        let alone =
            engine(quant, 1, Capacity { blocks: 4, max_seqs: 1, ..capacity }, |config| config.prefix_cache = false);
        let wanted: Vec<_> = alike().into_iter().map(|r| alone.submit(r).unwrap().wait().unwrap()).collect();
        let engine = engine(quant, 2, capacity, |config| config.speculate = Speculate::UpTo(6));
        let mut handles: Vec<_> = alike().into_iter().map(|r| Some(engine.submit(r).unwrap())).collect();
        // One more of each arrives when the first has ended, and some leave.
        for (i, wanted) in wanted.iter().enumerate() {
            let got = handles[i].take().map(|handle| handle.wait().unwrap()).unwrap();
            same(&got, wanted, quant, i);
            handles.push(Some(engine.submit(alike().swap_remove(i)).unwrap()));
            drop(engine.submit(alike().swap_remove((i + 5) % 12)).unwrap());
        }
        for (i, handle) in handles.into_iter().flatten().enumerate() {
            same(&handle.wait().unwrap(), &wanted[i], quant, i);
        }
        let stats = engine.stats();
        assert!(
            stats.cached_tokens > 100 && stats.accepted_tokens > 50 && stats.preemptions > 0,
            "{quant:?} {stats:?}"
        );
        assert_eq!(stats.blocks_used, 0);
    }
}

fn same(got: &Completion, wanted: &Completion, quant: Quant, i: usize) {
    assert_eq!(got.token_ids, wanted.token_ids, "{quant:?}, request {i}");
    // Equal as numbers is equal as bits: there is no NaN, and no two zeros that could differ.
    assert_eq!(got.logprobs, wanted.logprobs, "{quant:?}, request {i}");
}

#[test]
fn sequences_on_two_sides_of_a_rotary_border_share_no_keys() {
    let checkpoint = Checkpoint::open(Path::new("../testdata/phi3_longrope")).unwrap();
    let program = checkpoint.config.program();
    let backend = CpuBackend::new(NonZero::<usize>::MIN, Quant::None).unwrap();
    let limits = backend.limits(&program);
    let border = limits.rope_border.expect("LongRoPE has two tables");
    let max_len = checkpoint.config.max_len;
    assert!(border >= 32 && border < max_len, "{border} of {max_len}");
    // Blocks so short that one is full before the border.
    let capacity = Capacity { blocks: 64, block_len: 16, max_rows: 64, max_seqs: 2, max_outputs: 4, max_len };
    let start = |prefix_cache| {
        let executor = backend.load(&program, &*checkpoint.weights, capacity).unwrap();
        let config = EngineConfig { prefix_cache, limits: limits.clone(), ..EngineConfig::new(capacity) };
        Engine::start(executor, program.vocab(), config).unwrap()
    };
    let (with, without) = (start(true), start(false));
    let prompt: Vec<u32> = (0..20).map(|p| p * 7 % program.vocab() as u32).collect();
    for (max_new, cached) in [(4, 0), (border - 19, 0), (border - 20, 16), (border - 19, 16)] {
        let request = Request { logprobs: Some(1), ..Request::new(prompt.clone(), max_new) };
        let run = |engine: &Engine| engine.submit(request.clone()).unwrap().wait().unwrap();
        let (got, wanted) = (run(&with), run(&without));
        assert_eq!((got.token_ids, got.logprobs), (wanted.token_ids, wanted.logprobs), "{max_new}");
        assert_eq!(got.usage.cached_tokens, cached, "{max_new}");
    }
}
