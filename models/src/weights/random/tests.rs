//! Statistics and determinism of random weights; parameter counts of the presets.

use super::*;
use crate::program::{Parallel, View};

fn decl(name: &str, rows: usize, cols: usize) -> WeightDecl {
    let usage = if rows == 1 { WeightUse::Vector } else { WeightUse::Linear };
    let view = View::whole(if usage == WeightUse::Vector { cols } else { rows });
    WeightDecl { name: name.to_owned(), rows, cols, view, experts: None, usage, parallel: Parallel::Replicated }
}

fn read(source: RandomSource, d: &WeightDecl, rows: Range<usize>) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows.len() * d.cols];
    source.get(d).unwrap().read_f32(rows, &mut out);
    out
}

#[test]
fn values_do_not_depend_on_the_chunks_they_are_read_in() {
    for cols in [7, 8] {
        let d = decl("a.weight", 20, cols);
        let whole = read(RandomSource::new(1), &d, 0..20);
        let chunks: Vec<f32> =
            [0..1, 1..4, 4..4, 4..11, 11..20].into_iter().flat_map(|r| read(RandomSource::new(1), &d, r)).collect();
        assert_eq!(whole, chunks);
        let view = WeightDecl { view: View::part(3, 5, d.view.of_rows), rows: 5, ..d };
        assert_eq!(read(RandomSource::new(1), &view, 1..5), whole[4 * cols..8 * cols]);
    }
}

#[test]
fn names_and_seeds_give_different_streams_and_the_same_stream_everywhere() {
    let first = |seed, name: &str| read(RandomSource::new(seed), &decl(name, 2, 4), 0..2);
    assert_ne!(first(0, "a.weight"), first(1, "a.weight"));
    assert_ne!(first(0, "a.weight"), first(0, "b.weight"));
    // By a Python transcription of the definition; another machine must give the same bits.
    let bits: Vec<u16> = first(0, "a.weight").iter().map(|x| u16::try_from(x.to_bits() >> 16).unwrap()).collect();
    assert_eq!(bits, RECORDED);
}

const RECORDED: [u16; 8] = [15299, 47864, 15471, 15008, 48175, 48267, 48120, 48301];

#[test]
fn values_are_about_normal_with_deviation_0_02_and_norms_are_one() {
    let d = decl("model.layers.0.mlp.up_proj.weight", 512, 512);
    let values = read(RandomSource::default(), &d, 0..512);
    let n = values.len() as f64;
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let std = (values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n).sqrt();
    let within = values.iter().filter(|x| x.abs() < 0.02).count() as f64 / n;
    assert!(mean.abs() < 2e-4 && (std - 0.02).abs() < 2e-4, "mean {mean} std {std}");
    assert!((0.62..0.72).contains(&within), "{within} within one deviation");
    assert!(values.iter().all(|x| x.to_bits() & 0xffff == 0), "bf16 values");
    assert_eq!(read(RandomSource::default(), &decl("model.norm.weight", 1, 5), 0..1), [1.0; 5]);
    assert!(read(RandomSource::default(), &decl("x.q_proj.bias", 1, 5), 0..1).iter().all(|x| x.abs() < 0.1));
}

#[test]
fn presets_are_valid_and_have_the_published_number_of_parameters() {
    for p in PRESETS {
        let config = p.config().validated().unwrap();
        assert_eq!(Preset::find(p.name).unwrap().name, p.name);
        let program = config.program();
        if let Some((_, want)) = PARAMETERS.iter().find(|(name, _)| *name == p.name) {
            assert_eq!(program.parameters(), *want, "{}", p.name);
        }
    }
    assert!(Preset::find("gpt-5").is_none());
}

/// From the model cards and the safetensors metadata of the published files.
const PARAMETERS: [(&str, u64); 8] = [
    ("smollm2-135m", 134_515_008),
    ("tinyllama-1.1b", 1_100_048_384),
    ("llama-2-7b", 6_738_415_616),
    ("llama-3.2-1b", 1_235_814_400),
    ("llama-3.1-8b", 8_030_261_248),
    ("mistral-7b-v0.3", 7_248_023_552),
    ("qwen2.5-0.5b", 494_032_768),
    ("qwen3-0.6b", 596_049_920),
];
