//! Whatever the bytes are, decoding, verifying, printing and running end with a value or an error.

use njoule_hlo::builder::Custom;
use njoule_hlo::op::{Binary, Direction, PadDim};
use njoule_hlo::{Builder, DType, EvalOptions, Executable, Options, Target, Tensor, decode, encode, idioms, verify};
use proptest::prelude::*;

/// One module with something of most operations, so that its changed bytes reach far.
fn sample() -> Vec<u8> {
    let mut b = Builder::with_options("sample", Options { custom_calls: Custom::ALL.into(), ..Options::default() });
    let x = b.parameter("x", DType::F32, &[2, 8]);
    let ids = b.parameter("ids", DType::S32, &[2]);
    let cache = b.parameter("cache", DType::F32, &[4, 8]);
    b.alias(1, cache);
    let gamma = b.full(&[8], 1f32);
    let y = b.scope("norm", |b| idioms::rms_norm(b, x, gamma, 1e-5));
    let rows = idioms::take_rows(&mut b, cache, ids);
    let y = b.add(y, rows);
    let y = b.matmul(y, y, true, DType::F32);
    let y = idioms::softmax(&mut b, y, 1);
    let wide = b.convert(y, DType::BF16);
    let sorted = b.sort(&[wide], 1, Direction::Gt, true)[0];
    let gathered = b.all_gather(sorted, 0, &[vec![0]]);
    let sum = b.all_reduce(gathered, Binary::Add, &[]);
    let [_, found] = idioms::top_k(&mut b, x, 3);
    let start = b.scalar(1i32);
    let part = b.dynamic_slice(x, &[start, start], &[1, 4]);
    let zero = b.scalar(0f32);
    let padded = b.pad(part, zero, vec![PadDim::default(); 2]);
    let joined = b.concatenate(&[part, padded], 0);
    let turned = b.transpose(joined, &[1, 0]);
    let cache = idioms::write_rows(&mut b, cache, ids, x);
    encode(&b.finish(&[sum, cache, found, turned]))
}

/// Everything that can be done with bytes.
fn exercise(bytes: &[u8]) {
    let Ok(module) = decode(bytes) else { return };
    let again = encode(&module);
    assert_eq!(decode(&again).map(|m| encode(&m)), Ok(again));
    assert!(module.to_string().len() < 1000 * (bytes.len() + 10));
    for target in Target::ALL {
        if verify(&module, target).is_err() {
            continue;
        }
        let options =
            EvalOptions { max_bytes: 1 << 22, max_work: 1 << 22, clamp_indices: bytes.len().is_multiple_of(2) };
        let Ok(executable) = Executable::with_options(module.clone(), target, options) else { continue };
        let inputs: Vec<Tensor> = module
            .signature
            .parameters
            .iter()
            .map_while(|shape| {
                let shape = shape.array().filter(|s| s.bytes() < 1 << 22)?;
                Tensor::zeros(shape).ok()
            })
            .collect();
        let _ = executable.run(inputs);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_a_module_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        exercise(&bytes);
    }

    #[test]
    fn a_changed_module_gives_a_module_or_an_error(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = sample();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        exercise(&bytes);
    }

    #[test]
    fn a_module_with_a_piece_cut_out_or_doubled_gives_a_module_or_an_error(
        from in any::<proptest::sample::Index>(),
        len in 1usize..40,
        double in any::<bool>(),
    ) {
        let mut bytes = sample();
        let from = from.index(bytes.len());
        let to = (from + len).min(bytes.len());
        let piece = bytes[from..to].to_vec();
        bytes.splice(from..if double { from } else { to }, if double { piece } else { vec![] });
        exercise(&bytes);
    }
}

#[test]
fn the_sample_itself_runs() {
    let module = decode(&sample()).unwrap();
    let executable = Executable::new(module.clone(), Target::Trn1).unwrap();
    let inputs = module.signature.parameters.iter().map(|s| Tensor::zeros(s.array().unwrap()).unwrap()).collect();
    assert_eq!(executable.run(inputs).unwrap().len(), 4);
}

#[test]
fn tuples_nested_as_deep_as_the_file_is_long_are_refused() {
    // A signature whose result is a tuple of a tuple of ...
    let mut shape: Vec<u8> = vec![0x10, 13];
    for _ in 0..2000 {
        let mut outer = vec![0x10, 13, 0x22];
        let mut len = shape.len();
        while len >= 0x80 {
            outer.push(len as u8 | 0x80);
            len >>= 7;
        }
        outer.push(len as u8);
        outer.extend(shape);
        shape = outer;
    }
    let wrap = |field: u8, inner: &[u8]| {
        let mut bytes = vec![field << 3 | 2];
        let mut len = inner.len();
        while len >= 0x80 {
            bytes.push(len as u8 | 0x80);
            len >>= 7;
        }
        bytes.push(len as u8);
        bytes.extend(inner);
        bytes
    };
    let error = decode(&wrap(4, &wrap(2, &shape))).unwrap_err().to_string();
    assert_eq!(error, "module: a tuple holds arrays only");
}
