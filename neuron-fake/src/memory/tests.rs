//! Segments against a plain vector of bytes.

use proptest::prelude::*;

use super::*;

const SIZE: usize = 64;

fn shape(dtype: DType, n: usize) -> ArrayShape {
    ArrayShape::new(dtype, &[n]).unwrap()
}

fn all(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn memory_that_nobody_wrote_reads_as_nan() {
    let mut memory = Memory::new(SIZE);
    let f32s = memory.share(0, shape(DType::F32, 16)).unwrap();
    assert!(f32s.as_slice::<f32>().unwrap().iter().all(|v| v.is_nan()));
    let bf16s = memory.share(0, shape(DType::BF16, 32)).unwrap();
    assert!(bf16s.as_slice::<half::bf16>().unwrap().iter().all(|v| v.is_nan()));
    assert_eq!(all(&memory), [POISON; SIZE]);
}

#[test]
fn what_is_shared_twice_is_the_same_memory() {
    let mut memory = Memory::new(SIZE);
    memory.write(0, &[1; SIZE]).unwrap();
    let a = memory.share(0, shape(DType::F32, 16)).unwrap();
    let b = memory.share(0, ArrayShape::new(DType::F32, &[4, 4]).unwrap()).unwrap();
    assert_eq!(a.as_slice::<f32>().unwrap().as_ptr(), b.as_slice::<f32>().unwrap().as_ptr());
}

#[test]
fn what_is_taken_moves_and_is_away_until_it_is_put_back() {
    let mut memory = Memory::new(SIZE);
    memory.fill(0, SIZE, 0).unwrap();
    let mut tensor = memory.take(16, shape(DType::S32, 4)).unwrap();
    assert_eq!(memory.read(0, &mut [0; 20]), Err(Away));
    assert_eq!(memory.write(31, &[1, 2]), Err(Away));
    assert_eq!(memory.share(16, shape(DType::S32, 4)), Err(Away));
    memory.write(32, &[9]).unwrap();
    let at = tensor.as_slice::<i32>().unwrap().as_ptr();
    tensor.as_mut_slice::<i32>().unwrap()[0] = 5;
    memory.put(16, tensor);
    let again = memory.take(16, shape(DType::S32, 4)).unwrap();
    assert_eq!((again.as_slice::<i32>().unwrap()[0], again.as_slice::<i32>().unwrap().as_ptr()), (5, at));
    memory.lose(16, 16);
    assert_eq!(&all(&memory)[15..33], &[&[0][..], &[POISON; 16], &[9]].concat()[..]);
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, Vec<u8>),
    Fill(usize, usize, u8),
    Share(DType, usize, usize),
    Take(DType, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let types = prop::sample::select(DType::ALL.to_vec());
    let at = 0..SIZE;
    prop_oneof![
        (at.clone(), prop::collection::vec(any::<u8>(), 0..24)).prop_map(|(at, bytes)| Step::Write(at, bytes)),
        (at.clone(), 0..SIZE, any::<u8>()).prop_map(|(at, len, byte)| Step::Fill(at, len, byte)),
        (types.clone(), at.clone(), 0usize..16).prop_map(|(t, at, n)| Step::Share(t, at, n)),
        (types, at, 0usize..16).prop_map(|(t, at, n)| Step::Take(t, at, n)),
    ]
}

proptest! {
    #[test]
    fn whatever_is_done_it_holds_what_a_vector_would(steps in prop::collection::vec(step(), 1..30)) {
        let (mut memory, mut plain) = (Memory::new(SIZE), vec![POISON; SIZE]);
        for step in steps {
            match step {
                Step::Write(at, bytes) => {
                    let len = bytes.len().min(SIZE - at);
                    memory.write(at, &bytes[..len]).unwrap();
                    plain[at..at + len].copy_from_slice(&bytes[..len]);
                }
                Step::Fill(at, len, byte) => {
                    let len = len.min(SIZE - at);
                    memory.fill(at, len, byte).unwrap();
                    plain[at..at + len].fill(byte);
                }
                Step::Share(dtype, at, n) | Step::Take(dtype, at, n) if at + n * dtype.size() <= SIZE => {
                    let range = at..at + n * dtype.size();
                    let want = Tensor::from_bytes(shape(dtype, n), &plain[range.clone()]).unwrap();
                    let got = if matches!(step, Step::Share(..)) {
                        memory.share(at, shape(dtype, n)).unwrap()
                    } else {
                        let tensor = memory.take(at, shape(dtype, n)).unwrap();
                        memory.put(at, tensor.clone());
                        tensor
                    };
                    prop_assert_eq!(got.to_bytes(), want.to_bytes());
                    // A pred byte that is neither 0 nor 1 becomes 1 once it is looked at as pred.
                    plain[range].copy_from_slice(&want.to_bytes());
                }
                _ => {}
            }
            prop_assert_eq!(&all(&memory), &plain);
        }
    }
}
