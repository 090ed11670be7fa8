//! Stored types and bytes of a model that has every kind of weight.

use njoule_models::weights::random::RandomSource;

use super::*;

#[path = "../../../../tests/fixture/every_op.rs"]
mod every_op;

const QUANTS: [Quant; 5] = [Quant::None, Quant::Bf16, Quant::Int8, Quant::Int4, Quant::Auto];

#[test]
fn a_preview_tells_the_types_and_bytes_that_are_loaded() {
    let (program, source) = (every_op::program(), RandomSource::new(1));
    for quant in QUANTS {
        let stored = StoredWeights::load(&program, &source, quant).expect("memory");
        assert_eq!(StoredWeights::preview(&program, &source, quant).expect("weights"), stored.types(), "{quant:?}");
        let vectors = program.weights.iter().filter(|d| d.usage == WeightUse::Vector);
        let vectors: usize = vectors.map(|d| 4 * d.cols * d.experts.unwrap_or(1)).sum();
        assert_eq!(stored.bytes(), stored.types().values().sum::<usize>() + vectors, "{quant:?}");
    }
}

#[test]
fn routers_are_not_rounded_to_codes() {
    let (program, source) = (every_op::program(), RandomSource::new(1));
    for quant in QUANTS {
        let stored = StoredWeights::load(&program, &source, quant).expect("memory");
        let mut routers = 0;
        for (i, decl) in program.weights.iter().enumerate().filter(|(_, d)| d.usage != WeightUse::Vector) {
            let is_router = decl.name.ends_with("router.weight");
            routers += usize::from(is_router);
            let is = stored.matrix(WeightId(i as u32)).stored();
            let expected = if quant == Quant::Bf16 { Stored::Bf16 } else { Stored::F32 };
            let is_float = matches!(quant, Quant::None | Quant::Bf16);
            assert_eq!(is == expected, is_router || is_float, "{quant:?} {}: {}", decl.name, is.name());
        }
        assert_eq!(routers, 2);
    }
}

#[test]
fn a_stack_holds_every_expert_as_the_source_has_it() {
    let (program, source) = (every_op::program(), RandomSource::new(1));
    let stored = StoredWeights::load(&program, &source, Quant::None).expect("memory");
    let mut stacks = 0;
    for (i, decl) in program.weights.iter().enumerate().filter(|(_, d)| d.experts.is_some()) {
        stacks += 1;
        let mut want = vec![0.0; decl.all_rows() * decl.cols];
        source.get(decl).expect("a weight").read_f32(0..decl.all_rows(), &mut want);
        let id = WeightId(i as u32);
        if decl.usage == WeightUse::Vector {
            assert_eq!(*stored.vector(id), want[..], "{}", decl.name);
            continue;
        }
        let matrix = stored.matrix(id);
        let mut row = vec![f32::NAN; decl.cols];
        for (r, want) in want.chunks(decl.cols).enumerate() {
            matrix.row_f32(r, &mut row);
            assert_eq!(row, want, "{} row {r}", decl.name);
        }
    }
    assert_eq!(stacks, 10);
}
