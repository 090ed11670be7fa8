//! What a plan makes of single ops: which entry, which frequencies, which weights, where the logits are.

use super::*;

const HIDDEN: usize = 36;
const ENTRIES: usize = 60;

/// A plan of `body` between an embedding of tokens and the logits of all rows; and the table.
fn around(kernels: &'static Kernels, body: impl FnOnce(&mut PlanBuilder, Val) -> Val) -> (Plan, Vec<Vec<f32>>) {
    let table = Matrix::random(ENTRIES, HIDDEN, 1).pack(Stored::F32);
    let rows = crate::fixture::decoded(&table);
    let mut b = PlanBuilder::new();
    let x = b.val(HIDDEN, RowSet::Tokens);
    b.embed(Arc::new(table), Embedding::Token, x);
    let y = body(&mut b, x);
    let cols = b.cols(y);
    let last = b.val(cols, RowSet::Outputs);
    b.take(y, last);
    b.logits(last);
    (b.finish(kernels, PlanLimits { max_outputs: 40, ..LIMITS }).expect("memory"), rows)
}

/// The rows of a step's logits; everything the step does not write is NaN.
pub fn rows(plan: &mut Plan, step: &Step) -> Vec<Vec<f32>> {
    fill(plan, 0xff);
    let mut logits = vec![f32::NAN; step.outputs.len() * plan.logits_stride()];
    plan.run(&mut team(2), &step.input(), &mut logits).expect("a valid step");
    logits.chunks(plan.logits_stride()).map(|row| row[..plan.vocab].to_vec()).collect()
}

/// The step of the other tests with all rows wanted.
pub fn all_rows() -> Step {
    let mut step = step();
    step.outputs = (0..step.tokens.len() as u32).collect();
    step
}

#[test]
fn positions_are_looked_up_beside_tokens() {
    for kernels in Kernels::available() {
        let (plan, tokens) = &mut around(kernels, |b, x| {
            let (at, sum) = (b.val(HIDDEN, RowSet::Tokens), b.val(HIDDEN, RowSet::Tokens));
            b.embed(Arc::new(Matrix::random(22, HIDDEN, 2).pack(Stored::F32)), Embedding::Position(2), at);
            b.add(x, at, sum);
            sum
        });
        let positions = crate::fixture::decoded(&Matrix::random(22, HIDDEN, 2).pack(Stored::F32));
        let step = all_rows();
        for (row, got) in rows(plan, &step).iter().enumerate() {
            let (token, at) = (&tokens[step.tokens[row] as usize], &positions[step.positions[row] as usize + 2]);
            assert!(got.iter().zip(token.iter().zip(at)).all(|(got, (t, p))| *got == t + p), "row {row}");
        }
        let mut beyond = Step::default();
        beyond.add(0..1, 20, &[0, 1]);
        let error = plan.run(&mut team(1), &beyond.input(), &mut []).expect_err("22 entries");
        assert!(error.0.contains("position 20 plus 2 of a table of 22"), "{error}");
    }
}

#[test]
fn the_length_of_a_sequence_chooses_its_frequencies() {
    let (head, amplitude) = (12, 1.25);
    let (short, long) = (vec![1.0, 0.3, 0.05], vec![0.4, 0.07, 0.001]);
    for (kernels, pairing) in Kernels::available().flat_map(|k| [Pairing::Half, Pairing::Neighbours].map(|p| (k, p))) {
        let (plan, tokens) = &mut around(kernels, |b, x| {
            let (inv_freq, long) = (short.clone(), Some((50, long.clone())));
            let table = b.rope_table(RopeTable { inv_freq, amplitude, long });
            let out = b.val(HIDDEN, RowSet::Tokens);
            b.rope(x, table, head, pairing, out);
            out
        });
        let mut step = all_rows();
        (step.spans[0].rope_len, step.spans[1].rope_len) = (50, 51);
        for (row, got) in rows(plan, &step).iter().enumerate() {
            let mut want: Vec<f64> = tokens[step.tokens[row] as usize].iter().map(|x| f64::from(*x)).collect();
            let inv_freq = if row < 20 { &short } else { &long };
            for (start, i) in (0..HIDDEN).step_by(head).flat_map(|s| [(s, 0), (s, 1), (s, 2)]) {
                let (a, b) = match pairing {
                    Pairing::Half => (start + i, start + 3 + i),
                    Pairing::Neighbours => (start + 2 * i, start + 2 * i + 1),
                };
                let (sin, cos) = (f64::from(step.positions[row]) * f64::from(inv_freq[i])).sin_cos();
                let (x, y) = (want[a], want[b]);
                want[a] = (x * cos - y * sin) * f64::from(amplitude);
                want[b] = (x * sin + y * cos) * f64::from(amplitude);
            }
            let near = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() <= 3e-6;
            assert!(got.iter().zip(&want).all(near), "{} {pairing:?} row {row}", kernels.isa.name());
        }
    }
}

#[test]
fn norm_weights_are_each_groups_or_one_for_all_or_none() {
    let head = 12;
    let own = Noise::new(3).values(HIDDEN, 2.0);
    for kernels in Kernels::available() {
        let run = |weight: Option<&[f32]>, group: NormGroup, kind: NormKind| {
            let norm = Norm { kind, weight: weight.map(Into::into), bias: None, eps: 1e-5 };
            let (mut plan, _) = around(kernels, |b, x| {
                let out = b.val(HIDDEN, RowSet::Tokens);
                b.norm(x, norm, group, out);
                out
            });
            bits(&rows(&mut plan, &all_rows()).concat())
        };
        for kind in [NormKind::Rms, NormKind::Layer] {
            let by_head = |w: Option<&[f32]>| run(w, NormGroup::Head(head), kind);
            assert_eq!(by_head(Some(&own[..head])), by_head(Some(&own[..head].repeat(3))));
            assert_ne!(by_head(Some(&own[..head])), by_head(Some(&own)));
            assert_eq!(by_head(None), by_head(Some(&[1.0; 12])));
            let by_row = |w: Option<&[f32]>| run(w, NormGroup::Row, kind);
            assert_eq!(by_row(None), by_row(Some(&[1.0; HIDDEN])));
            assert_ne!(by_row(None), by_row(Some(&own)));
        }
    }
}

#[test]
fn a_norm_of_attention_sees_no_padding() {
    // Attention leaves the padding of its rows as it is: whatever was there before.
    for kernels in Kernels::available() {
        let (mut plan, _) = around(kernels, |b, x| {
            let cache = b.cache(KvShape {
                blocks: BLOCKS,
                block_len: BLOCK,
                heads: 3,
                k_dim: 12,
                v_dim: 12,
                stored: KvStored::F32,
            });
            let [attended, out, gated] = [(); 3].map(|()| b.val(HIDDEN, RowSet::Tokens));
            let how = AttendHow { heads: 3, scale: 0.3, window: None, softcap: None, sinks: None, alibi: None };
            b.attend([x, x, x], cache, how, attended);
            let norm = Norm { kind: NormKind::Layer, weight: None, bias: None, eps: 1e-5 };
            b.norm(attended, norm, NormGroup::Row, out);
            b.act(out, Act::Sigmoid, gated);
            gated
        });
        let all = rows(&mut plan, &all_rows());
        assert!(all.iter().flatten().all(|x| x.is_finite()), "{}", kernels.isa.name());
    }
}

#[test]
fn logits_are_scaled_and_capped_where_they_are() {
    let weight = Arc::new(Matrix::random(VOCAB, HIDDEN, 4).pack(Stored::F32));
    for kernels in Kernels::available() {
        let run = |steps: usize| {
            let mut b = PlanBuilder::new();
            let x = b.val(HIDDEN, RowSet::Tokens);
            b.embed(Arc::new(Matrix::random(ENTRIES, HIDDEN, 1).pack(Stored::F32)), Embedding::Token, x);
            let [last, product, scaled, capped] =
                [HIDDEN, VOCAB, VOCAB, VOCAB].map(|cols| b.val(cols, RowSet::Outputs));
            b.take(x, last);
            b.linear(last, vec![(plain(Arc::clone(&weight)), product)]);
            if steps > 0 {
                b.scale(product, 0.25, scaled);
            }
            if steps > 1 {
                b.softcap(scaled, 0.5, capped);
            }
            b.logits([product, scaled, capped][steps]);
            let mut plan = b.finish(kernels, LIMITS).expect("memory");
            rows(&mut plan, &step())
        };
        let [product, scaled, capped] = [0, 1, 2].map(|steps| run(steps).concat());
        for i in 0..product.len() {
            assert_eq!(scaled[i], product[i] * 0.25);
            let want = 0.5 * (f64::from(scaled[i]) / 0.5).tanh();
            assert!((f64::from(capped[i]) - want).abs() <= 1e-6 * want.abs(), "{} {i}", kernels.isa.name());
        }
    }
}

#[test]
fn a_product_that_is_read_twice_keeps_its_values_beside_the_logits() {
    // The product cannot lie in the logits: what is added to its cap is the product itself.
    let weight = Arc::new(Matrix::random(VOCAB, HIDDEN, 4).pack(Stored::F32));
    for kernels in Kernels::available() {
        let mut b = PlanBuilder::new();
        let x = b.val(HIDDEN, RowSet::Tokens);
        b.embed(Arc::new(Matrix::random(ENTRIES, HIDDEN, 1).pack(Stored::F32)), Embedding::Token, x);
        let [last, product, half, sum] = [HIDDEN, VOCAB, VOCAB, VOCAB].map(|cols| b.val(cols, RowSet::Outputs));
        b.take(x, last);
        b.linear(last, vec![(plain(Arc::clone(&weight)), product)]);
        b.scale(product, 0.5, half);
        b.add(half, product, sum);
        b.logits(sum);
        let got = rows(&mut b.finish(kernels, LIMITS).expect("memory"), &step());
        let table = crate::fixture::decoded(&Matrix::random(ENTRIES, HIDDEN, 1).pack(Stored::F32));
        let matrix = crate::fixture::decoded(&weight);
        let step = step();
        for (row, got) in step.outputs.iter().zip(&got) {
            let x = &table[step.tokens[*row as usize] as usize];
            for (w, got) in matrix.iter().zip(got) {
                let dot: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                assert!((f64::from(*got) - 1.5 * dot).abs() <= 1e-5, "{}", kernels.isa.name());
            }
        }
    }
}

#[test]
fn a_factor_of_one_column_is_the_rows() {
    for kernels in Kernels::available() {
        let weight = Arc::new(Matrix::random(1, HIDDEN, 5).pack(Stored::F32));
        let run = |scaled: bool| {
            let (mut plan, tokens) = around(kernels, |b, x| {
                let (factor, out) = (b.val(1, RowSet::Tokens), b.val(HIDDEN, RowSet::Tokens));
                b.linear(x, vec![(plain(Arc::clone(&weight)), factor)]);
                b.mul(x, factor, out);
                if scaled { out } else { factor }
            });
            (rows(&mut plan, &all_rows()), tokens)
        };
        let ((factors, tokens), (scaled, _)) = (run(false), run(true));
        for (row, token) in all_rows().tokens.iter().enumerate() {
            let x = &tokens[*token as usize];
            assert!(scaled[row].iter().zip(x).all(|(got, x)| *got == x * factors[row][0]), "row {row}");
        }
    }
}
