use super::*;

const ROUTING: Routing =
    Routing { score: RouteScore::Softmax, bias: None, groups: None, top_k: 2, normalise: true, factor: 1.0 };

#[test]
fn of_equal_scores_the_lower_number_wins() {
    assert_eq!(shares(&[1.0, 3.0, 3.0, 3.0], &ROUTING, None), [0.0, 0.5, 0.5, 0.0]);
    // Far apart, the small scores are all zero and equal.
    assert_eq!(shares(&[-500.0, -400.0, 0.0], &Routing { top_k: 2, ..ROUTING }, None), [0.0, 0.0, 1.0]);
    let sigmoid = Routing { score: RouteScore::Sigmoid, top_k: 1, normalise: false, factor: 3.0, ..ROUTING };
    assert_eq!(shares(&[0.0, 0.0], &sigmoid, None), [1.5, 0.0]);
}

#[test]
fn normalised_shares_are_the_softmax_of_the_kept_logits() {
    let got = shares(&[0.5, -1.0, 2.0, 1.0], &ROUTING, None);
    let kept = 1.0_f32 / (1.0 + (-1.0_f32).exp());
    assert!((got[2] - kept).abs() < 1e-6 && (got[3] - (1.0 - kept)).abs() < 1e-6 && got[0] == 0.0, "{got:?}");
}

/// A product in parts is the whole product, also where the last part is short.
#[test]
fn product_in_parts_is_that_of_the_rounded_values() {
    let (rows, cols) = (3 * PART / 4096 / 2, 4096);
    let value = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) / 700.0;
    let weight = Tensor::from_iter((0..rows * cols).map(value), &Device::Cpu).unwrap();
    let weight = weight.reshape((rows, cols)).unwrap().to_dtype(DType::BF16).unwrap();
    // Unlike the weights, so that sums do not pile up: the bound holds in whatever order a machine adds.
    let input = |i: usize| ((i * 104_729 % 997) as f32 - 498.0) / 700.0;
    let x = Tensor::from_iter((0..2 * cols).map(input), &Device::Cpu).unwrap().reshape((2, cols)).unwrap();
    let got: Vec<Vec<f32>> = linear(&x, &weight, None).unwrap().to_vec2().unwrap();
    let bf16 = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
    for (r, row) in got.iter().enumerate() {
        assert_eq!(row.len(), rows);
        for (i, got) in row.iter().enumerate() {
            let want: f64 = (0..cols).map(|k| bf16(input(r * cols + k)) * bf16(value(i * cols + k))).sum();
            assert!((f64::from(*got) - want).abs() < 1e-3, "{r} {i}: {got}, not {want}");
        }
    }
}
