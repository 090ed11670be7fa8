//! Within one NEFF a row's answer depends on no other row: bit for bit, whatever its neighbours are, want or leave behind.

use std::sync::Arc;

use njoule_runtime::{Engine, Event, Request, RequestHandle, SamplingParams};

use super::{SMALL, Some32, backend, build, engine, environment, load, place, small_model};
use crate::child::{child, faults};

/// Tokens, and log-probabilities of candidates to the last bit.
type Answer = (Vec<u32>, Vec<(u32, u32)>);

fn prompt(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 37 + seed * 101 + n) % 250 + 3).collect()
}

fn request(prompt: Vec<u32>, new: usize) -> Request {
    let sampling = SamplingParams { temperature: 0.9, seed: Some(7), ..SamplingParams::default() };
    Request { sampling, logprobs: Some(4), ignore_eos: true, ..Request::new(prompt, new) }
}

/// Adds what a handle's events say, up to and with a token, or to the end.
fn take(handle: &mut RequestHandle, answer: &mut Answer, to_the_end: bool) {
    for event in handle.by_ref() {
        match event {
            Event::Token { id, logprob, .. } => {
                answer.0.push(id);
                let top = logprob.iter().flat_map(|l| l.top.iter().map(|(id, value)| (*id, value.to_bits())));
                answer.1.extend(top);
                if !to_the_end {
                    return;
                }
            }
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// The answer to a request that comes when those `before` decode, and decodes when those `after` come: so its prompt is
/// always run in one piece, which is another matter.
fn answer(engine: &Engine, before: Vec<Request>, request: Request, after: Vec<Request>) -> Answer {
    let (its, mut begun) = (before.len(), vec![]);
    for request in before.into_iter().chain([request]).chain(after) {
        let (mut handle, mut answer) = (engine.submit(request).unwrap(), Answer::default());
        take(&mut handle, &mut answer, false);
        begun.push((handle, answer));
    }
    for (handle, answer) in &mut begun {
        take(handle, answer, true);
    }
    begun.swap_remove(its).1
}

#[test]
fn a_rows_answer_does_not_depend_on_other_rows() {
    let dir = tempfile::tempdir().unwrap();
    build(&small_model().config.program(), SMALL, dir.path());
    child(&environment(dir.path()), || {
        let (model, backend) = (small_model(), backend(&place()));
        let program = model.config.program();
        let engine = engine(&backend, load(&backend, &model), &program);
        let probe = || request(prompt(13, 0), 20);
        let masked = |request: Request, bits: u32| Request { mask: Some(Arc::new(Some32(bits))), ..request };
        let biased = |mut request: Request| {
            request.sampling.logit_bias = vec![(9, 5.0), (40, -100.0)];
            request
        };
        let alone = |request| answer(&engine, vec![], request, vec![]);
        // Beside three idle rows.
        let first = alone(probe());
        assert_eq!((first.0.len(), first.1.len() >= 80), (20, true));
        assert!(engine.stats().padded_rows > 0, "{:?}", engine.stats());
        // Beside longer and shorter ones, masked or biased, that come, end and leave rows behind.
        let neighbours = |seed| {
            vec![
                masked(request(prompt(31, seed), 30), 0x0f0f_ffff),
                biased(request(prompt(5, seed + 1), 9)),
                masked(request(prompt(1, seed + 2), 40), 0x5555_5555),
            ]
        };
        for seed in [1, 5] {
            assert_eq!(answer(&engine, neighbours(seed), probe(), vec![]), first, "as the last");
            assert_eq!(answer(&engine, vec![], probe(), neighbours(seed + 20)), first, "as the first");
        }
        // A mask of its own is its own.
        let own = || masked(probe(), 0xaaaa_aaaa);
        let masked_alone = alone(own());
        assert!(masked_alone != first && masked_alone.0.iter().all(|id| id % 2 == 1));
        assert_eq!(answer(&engine, neighbours(13), own(), vec![]), masked_alone);
        // What an idle row holds is taken up again, and gives the same tokens.
        let (before, long) = (engine.stats().cached_tokens, || request(prompt(33, 3), 12));
        let fresh = alone(long());
        let again = answer(&engine, vec![], long(), neighbours(17));
        assert!(engine.stats().cached_tokens >= before + 16, "{} {before}", engine.stats().cached_tokens);
        assert_eq!(again.0, fresh.0, "from a row that held its prefix");
        engine.shutdown(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(faults(), 0);
    });
}
