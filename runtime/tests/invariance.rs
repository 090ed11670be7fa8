//! Same answer whatever the load: on the cpu backend a request's tokens and logits are bit-identical whatever runs beside
//! it, however its prompt is cut, with any number of threads, and when its cache is given up and recomputed.

use std::num::NonZero;
use std::path::Path;
use std::sync::OnceLock;

use njoule_models::checkpoint::Checkpoint;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{Backend, Capacity, Quant};
use njoule_runtime::request::Completion;
use njoule_runtime::{Engine, EngineConfig, Request, SamplingParams};
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
        let engine = engine(quant, 1, capacity, |_| {});
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
