//! Divisions put together are the whole; what cannot be divided is refused.

use njoule_models::program::{Norm, NormGroup, NormKind, Parallel, WeightUse};
use njoule_models::tracer::{Attention, Tracer};

use super::*;
use crate::backend::neuron::lower::tests::{programs, sharded};

#[test]
fn every_head_and_column_is_on_some_core_and_in_order() {
    for tp in 1..=9 {
        for (kv_heads, group) in [(3, 3), (1, 8), (4, 1), (8, 5), (2, 7)] {
            let heads = Split::heads(kv_heads, group, [6, 5], tp);
            for split in [&heads.queries, &heads.keys, &heads.values, &heads.mixed, &heads.each] {
                let placed: usize = split.places().iter().map(|p| p.len()).sum();
                assert_eq!(placed, split.whole, "{kv_heads} by {group} on {tp}");
                for rank in 0..tp {
                    assert_eq!(split.of_rank(rank).iter().map(|r| r.len).sum::<usize>(), split.local());
                }
            }
            // A query head stands on the core of its keys.
            let [q, kv] = heads.local;
            for rank in 0..tp {
                let units = |split: &Split, dim: usize| -> Vec<Option<usize>> {
                    let of = |r: &Run| {
                        let from = r.from;
                        (0..r.len / dim).map(move |i| from.map(|f| f / dim + i)).collect::<Vec<_>>()
                    };
                    split.of_rank(rank).iter().flat_map(of).collect()
                };
                let (queries, keys) = (units(&heads.queries, 6), units(&heads.keys, 6));
                for (i, head) in queries.iter().enumerate() {
                    let Some(head) = head else { continue };
                    assert_eq!(keys[i / (q / kv)], Some(head / group), "{kv_heads} by {group} on {tp}");
                }
            }
            let seen = |rank: usize| {
                heads.each.of_rank(rank).iter().filter(|r| r.from.is_some()).map(|r| r.len).sum::<usize>()
            };
            assert_eq!((0..tp).map(seen).sum::<usize>(), kv_heads * group);
        }
        for n in [1, 31, 32, 97, 1000] {
            let split = Split::vocabulary(n, tp);
            assert!(split.local().is_multiple_of(32) && split.local() * tp >= n && split.local() * tp < n + 32 * tp);
        }
    }
}

#[test]
fn nine_query_heads_of_three_pairs_divide_over_one_two_and_four_cores() {
    for (tp, local, copies) in [(1, [9, 3], 1), (2, [6, 2], 1), (4, [3, 1], 1), (8, [2, 1], 2)] {
        let heads = Split::heads(3, 3, [64, 64], tp);
        assert_eq!((heads.local, heads.keys.copies), (local, copies), "{tp}");
    }
}

#[test]
fn a_layer_of_a_dense_model_sums_twice_and_the_embedding_once() {
    let mut dense = 0;
    for (name, program) in programs() {
        for tp in [2, 4] {
            let sharded = sharded(&name, &program, tp);
            let [tokens, outputs] = sharded.all_reduces();
            let layers = program.layers.len();
            // Feed-forward layers with experts beside a shared one sum once more.
            let shared = name.contains("qwen2_moe") || name.contains("deepseek");
            if !shared {
                dense += 1;
                assert_eq!(tokens + outputs, 2 * layers + 1, "{name} on {tp}");
            }
            // All of the layers' matrices are divided.
            for (decl, part) in program.weights.iter().zip(&sharded.parts) {
                let whole = part.rows.is_none() && part.cols.is_none();
                let wanted = decl.parallel != Parallel::Replicated && decl.usage != WeightUse::Vector;
                assert!(!(whole && wanted), "{name}: {decl} is whole on every core");
            }
        }
    }
    assert!(dense > 30, "{dense}");
}

#[test]
fn one_core_sums_nothing_and_has_everything() {
    for (name, program) in programs() {
        let sharded = shard(&program, 1).unwrap();
        assert_eq!(sharded.all_reduces(), [0, 0], "{name}");
        assert_eq!(sharded.program.caches, program.caches, "{name}");
    }
}

/// A program of attention over an embedding, which one core can run and several cannot: queries, keys and values are the
/// embedding itself, or queries have a norm over all heads (`layer_norm`).
pub(in crate::backend::neuron) fn for_one_core(layer_norm: bool) -> Program {
    let mut t = Tracer::new("case");
    let table = t.weight("embed", 40, 16, WeightUse::Vocabulary, Parallel::Column);
    let x = t.embed(table);
    let mut qkv = [x, x, x];
    if layer_norm {
        let ws = ["q", "k", "v"].map(|name| t.linear_weight(name, (16, 16), false, Parallel::Column));
        qkv = t.linear_n(x, ws);
        let norm = Norm { kind: NormKind::Layer, weight: None, bias: None, eps: 1e-5 };
        qkv[0] = t.norm(qkv[0], norm, NormGroup::Row);
    }
    let attention =
        Attention { heads: 2, kv_heads: 2, scale: 1.0, window: None, softcap: None, sinks: None, alibi: None };
    let a = t.attend(qkv, attention);
    let a = t.take_outputs(a);
    let head = t.linear_weight("head", (40, 16), false, Parallel::Column);
    let logits = t.linear(a, head);
    t.finish(logits)
}

#[test]
fn what_cannot_be_divided_is_refused_by_name() {
    let direct = shard(&for_one_core(false), 2).unwrap_err();
    assert!(direct.to_string().contains("embed"), "{direct}");
    let normed = shard(&for_one_core(true), 2).unwrap_err();
    assert!(normed.to_string().contains("op 2 (norm)"), "{normed}");
    assert!(shard(&for_one_core(true), 1).is_ok());
    assert_eq!(shard(&for_one_core(true), 0).unwrap_err(), ShardError::Degree(0));
    assert_eq!(shard(&for_one_core(true), 65).unwrap_err(), ShardError::Degree(65));
}
