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

#[cfg(target_os = "linux")]
#[test]
fn shared_weights_are_the_private_ones_and_are_packed_once() {
    use njoule_kernels::shared::Shared;

    /// A source whose matrices nobody may read again.
    struct Spent<'a>(&'a RandomSource);
    impl WeightSource for Spent<'_> {
        fn container(&self) -> Container {
            self.0.container()
        }
        fn version(&self) -> u64 {
            self.0.version()
        }
        fn get(&self, decl: &WeightDecl) -> Result<Box<dyn WeightRows + '_>, WeightError> {
            let rows = self.0.get(decl)?;
            Ok(if decl.usage == WeightUse::Vector { rows } else { Box::new(Unread(rows)) })
        }
    }
    struct Unread<'a>(Box<dyn WeightRows + 'a>);
    impl WeightRows for Unread<'_> {
        fn shape(&self) -> (usize, usize) {
            self.0.shape()
        }
        fn encoding(&self) -> Encoding {
            self.0.encoding()
        }
        fn read_f32(&self, _: Range<usize>, _: &mut [f32]) {
            panic!("it is packed");
        }
        fn raw_row(&self, _: usize) -> Option<&[u8]> {
            panic!("it is packed");
        }
        fn release(&self, _: Range<usize>) {}
    }

    let (program, source) = (every_op::program(), RandomSource::new(1));
    for quant in QUANTS {
        let private = StoredWeights::load(&program, &source, quant).expect("memory");
        let (shared, path) = Shared::create().expect("a memory file");
        let first = StoredWeights::load_shared(&program, &source, quant, &shared).expect("memory");
        let other = Shared::open(&path).expect("the same file");
        let second = StoredWeights::load_shared(&program, &Spent(&source), quant, &other).expect("memory");
        // Files that have changed since do not get what was packed before.
        let changed = StoredWeights::load_shared(&program, &RandomSource::new(2), quant, &other).expect_err("others");
        assert!(matches!(&changed, LoadError::Shared(what) if what.contains("start the server anew")), "{changed}");
        for (i, decl) in program.weights.iter().enumerate() {
            let id = WeightId(i as u32);
            if decl.usage == WeightUse::Vector {
                assert_eq!(private.vector(id), second.vector(id));
                continue;
            }
            let [a, b, c] = [&private, &first, &second].map(|stored| stored.matrix(id));
            let (mut x, mut y) = (vec![0.0; decl.cols], vec![1.0; decl.cols]);
            for row in 0..decl.all_rows() {
                a.row_f32(row, &mut x);
                for shared in [&b, &c] {
                    shared.row_f32(row, &mut y);
                    assert_eq!(x, y, "{quant:?} {} row {row}", decl.name);
                }
            }
        }
    }
}
