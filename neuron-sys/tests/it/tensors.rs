//! Bytes go where they should and nowhere else.

use njoule_neuron_sys::{Error, Runtime, Tensor, TensorSet};
use proptest::prelude::*;

use crate::standin::{Standin, bytes};

fn tensor(runtime: &Runtime, size: usize, name: &str) -> Tensor {
    Tensor::on_core(runtime, runtime.core(0).unwrap(), size, name).unwrap()
}

#[test]
fn what_is_written_is_read_and_the_rest_is_untouched() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let t = tensor(&runtime, 8, "t");
    t.fill(0, 8, 9).unwrap();
    t.write(2, &[1, 2, 3]).unwrap();
    assert_eq!(bytes(&t), [9, 9, 1, 2, 3, 9, 9, 9]);
    let slice = t.slice(3, 4, "part").unwrap();
    slice.fill(1, 2, 7).unwrap();
    assert_eq!(bytes(&t), [9, 9, 1, 2, 7, 7, 9, 9]);
    let inner = slice.slice(1, 2, "part of the part").unwrap();
    drop(slice);
    drop(t);
    assert_eq!(bytes(&inner), [7, 7], "the memory stays as long as a slice does");
    drop((inner, runtime));
    standin.assert_clean();
}

#[test]
fn a_copy_stays_on_one_core() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let (a, b) = (tensor(&runtime, 4, "a"), tensor(&runtime, 4, "b"));
    a.write(0, &[1, 2, 3, 4]).unwrap();
    b.fill(0, 4, 0).unwrap();
    b.copy_from(1, &a, 2, 2).unwrap();
    assert_eq!(bytes(&b), [0, 3, 4, 0]);
    let far = Tensor::on_core(&runtime, runtime.core(1).unwrap(), 4, "far").unwrap();
    let text = far.copy_from(0, &a, 0, 4).unwrap_err().to_string();
    assert!(text.contains("`a` (4 bytes on core 0)") && text.contains("`far` (4 bytes on core 1)"), "{text}");
    drop((a, b, far, runtime));
    standin.assert_clean();
}

#[test]
fn ranges_beyond_the_tensor_are_refused_before_the_library_sees_them() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let (t, other) = (tensor(&runtime, 8, "kv"), tensor(&runtime, 16, "other"));
    let max = usize::MAX;
    for (offset, len) in [(0, 9), (8, 1), (9, 0), (max, 1), (1, max), (max, max)] {
        let beyond = Err(Error::OutOfBounds { tensor: "kv".into(), offset, len, size: 8 });
        if len <= 16 {
            assert_eq!(t.write(offset, &vec![0; len]), beyond);
            assert_eq!(t.read(offset, &mut vec![0; len]), beyond);
        }
        assert_eq!(t.fill(offset, len, 0), beyond);
        assert_eq!(t.slice(offset, len, "s").map(drop), beyond);
        assert_eq!(t.copy_from(offset, &other, 0, len), beyond);
        assert!(other.copy_from(0, &t, offset, len).is_err());
    }
    let text = t.write(4, &[0; 5]).unwrap_err().to_string();
    assert_eq!(text, "bytes 4 to 4+5 reach beyond tensor `kv` of 8 bytes");
    drop((t, other, runtime));
    standin.assert_clean();
}

proptest! {
    #[test]
    fn a_range_is_accepted_just_when_it_lies_within(offset in 0usize..40, len in 0usize..40) {
        let within = offset + len <= 32;
        let result = RANGES.with(|t| (t.write(offset, &vec![1; len]), t.fill(offset, len, 2), t.slice(offset, len, "s").map(|s| s.size())));
        prop_assert_eq!(result.0.is_ok(), within);
        prop_assert_eq!(result.1.is_ok(), within);
        prop_assert_eq!(result.2.ok(), (within && len > 0).then_some(len));
    }
}

thread_local! {
    /// The stand-in aborts on any range beyond it.
    static RANGES: Tensor = tensor(&Standin::new(&[]).start(), 32, "ranges");
}

#[test]
fn sizes_that_the_runtime_cannot_serve_are_refused_in_words() {
    let standin = Standin::new(&["MINOR=29"]);
    let runtime = standin.start();
    let core = runtime.core(0).unwrap();
    assert_eq!(Tensor::on_core(&runtime, core, 0, "none").unwrap_err(), Error::Empty { tensor: "none".into() });
    let text = Tensor::on_core(&runtime, core, 1 << 32, "weights").unwrap_err().to_string();
    assert!(text.contains("`weights` of 4294967296 bytes") && text.contains("before 2.30"), "{text}");
    let error = Tensor::on_core(&runtime, core, (1 << 32) - 1, "weights").unwrap_err();
    assert_eq!(error.status().map(|s| s.0), Some(4), "the library's own answer: out of memory");
    assert!(error.to_string().contains("`weights`, 4294967295 bytes on core 0"), "{error}");
    assert!(error.to_string().contains("smaller batch"), "advice: {error}");
    let text = Tensor::on_host(&runtime, (4 << 20) + 1, "big").unwrap_err().to_string();
    assert!(text.contains("on the host"), "{text}");
    drop(runtime);
    standin.assert_clean();

    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let error = Tensor::on_core(&runtime, runtime.core(0).unwrap(), 1 << 32, "weights").unwrap_err();
    assert_eq!(error.status().map(|s| s.0), Some(4), "since 2.30 the library decides");
}

#[test]
fn a_host_tensor_belongs_to_no_core() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let t = Tensor::on_host(&runtime, 4, "staging").unwrap();
    assert_eq!(t.core(), None);
    t.write(0, &[5; 4]).unwrap();
    assert_eq!(bytes(&t), [5; 4]);
    assert_eq!(t.to_string(), "tensor `staging` (4 bytes on the host)");
    let text = t.allocation().unwrap_err().to_string();
    assert!(text.contains("nrt_tensor_get_device_allocation_info"), "the stand-in has no such symbol: {text}");
    drop((t, runtime));
    standin.assert_clean();
}

#[test]
fn names_that_c_cannot_take_are_refused() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let t = tensor(&runtime, 4, &"n".repeat(255));
    let mut set = TensorSet::new(&runtime).unwrap();
    for name in ["a\0b".to_owned(), "n".repeat(256)] {
        let bad = Error::BadName { name: name.clone() };
        assert_eq!(Tensor::on_core(&runtime, runtime.core(0).unwrap(), 4, &name).unwrap_err(), bad);
        assert_eq!(set.bind(&name, &t).unwrap_err(), bad);
    }
    drop((t, set, runtime));
    standin.assert_clean();
}

#[test]
fn a_set_keeps_its_tensors_and_lets_go_of_what_is_replaced() {
    let standin = Standin::new(&[]);
    let runtime = standin.start();
    let mut set = TensorSet::new(&runtime).unwrap();
    set.bind("input0", &tensor(&runtime, 4, "first")).unwrap();
    assert_eq!(standin.count("standin_live"), 2, "set and tensor, though its handle is gone");
    set.bind("input0", &tensor(&runtime, 8, "second")).unwrap();
    assert_eq!(standin.count("standin_live"), 2, "the first is freed");
    assert_eq!(set.bound().collect::<Vec<_>>(), [("input0", 8)]);
    drop((set, runtime));
    standin.assert_clean();
}

#[test]
fn handles_of_two_libraries_do_not_mix() {
    let standins = [Standin::new(&[]), Standin::new(&[])];
    let [one, two] = [standins[0].start(), standins[1].start()];
    let (a, b) = (tensor(&one, 4, "a"), tensor(&two, 4, "b"));
    assert_eq!(a.copy_from(0, &b, 0, 4).unwrap_err(), Error::OtherRuntime { name: "b".into() });
    assert_eq!(TensorSet::new(&one).unwrap().bind("x", &b).unwrap_err(), Error::OtherRuntime { name: "b".into() });
    drop((a, b, one, two));
    standins.iter().for_each(Standin::assert_clean);
}
