//! Plans fit, cover and bound, whatever is asked for; a published trace keeps its padding; published rows keep their order.

mod published;

use njoule_models::program::Program;
use njoule_models::weights::random::Preset;
use proptest::prelude::*;

use super::instances::Instances;
use super::*;
use crate::backend::neuron::shard::tests::for_one_core;

fn preset(name: &str) -> Program {
    Preset::find(name).unwrap().config().program()
}

fn on(instance: &str) -> Instance {
    Instances::built_in().find(instance).unwrap().clone()
}

fn lengths(pairs: &[(usize, usize)]) -> Lengths {
    let requests = pairs.iter().map(|(prompt, output)| Request { prompt: *prompt, output: *output }).collect();
    Lengths { requests, source: "test".into() }
}

/// What holds of every plan.
fn check(plan: &Plan, instance: &Instance, wish: &Wish, lengths: &Lengths) {
    assert!(plan.hbm.fits() && plan.hbm.limit == instance.core_bytes(), "{:?}", plan.hbm);
    assert!(plan.replicas >= 1 && plan.replicas * plan.tp <= instance.cores());
    assert!(plan.modules.len() <= wish.max_neffs && plan.module_seconds.len() == plan.modules.len());
    assert!(plan.module_seconds.iter().all(|s| *s > 0.0 && s.is_finite()));
    let lanes: Vec<Lane> = plan.classes.iter().map(|c| plan.lane(*c)).collect();
    assert!(lanes.is_sorted_by_key(|l| l.longest));
    // Every admissible sequence has a class, and every step of it a bucket.
    assert_eq!(lanes.last().unwrap().longest, wish.context);
    for (class, lane) in plan.classes.iter().zip(&lanes) {
        let parts = || plan.modules.iter().filter_map(|m| Some((m, *m.part(*class)?)));
        assert!(class.rows >= 1 && class.positions >= lane.longest + lane.chunks.last().unwrap());
        let whole = |m: &ModuleSpec, part: Part| {
            matches!(m.kind, ModuleKind::Decode { .. }) && part.rows == class.rows && part.len == lane.longest
        };
        assert!(parts().any(|(m, part)| whole(m, part)));
        for chunk in &lane.chunks {
            let prefill = ModuleKind::Prefill { tokens: *chunk };
            assert!(parts().any(|(m, part)| m.kind == prefill && part.len == lane.longest));
        }
        assert!(parts().all(|(m, part)| part.len >= 1 && part.len <= lane.longest && m.kind.tokens() >= 1));
    }
    for limit in [None, Some(64)] {
        let simulation = simulate(plan, &lengths.requests, limit);
        let Useful { decode, prefill, prefix, all } = simulation.useful;
        for share in [decode, prefill, prefix, all, simulation.occupancy] {
            assert!((0.0..=1.0).contains(&share), "{simulation:?}");
        }
        assert_eq!(simulation.served + simulation.refused, lengths.requests.len() as u64);
        let within = |r: &&Request| r.total() <= wish.context;
        if limit.is_none() {
            let tokens: usize = lengths.requests.iter().filter(within).map(|r| r.output).sum();
            assert_eq!(simulation.output_tokens, tokens as u64);
        }
    }
    let json = serde_json::to_string(plan).unwrap();
    let back: Plan = serde_json::from_str(&json).unwrap();
    assert_eq!((back.modules, back.classes, back.target), (plan.modules.clone(), plan.classes.clone(), plan.target));
}

#[test]
fn the_built_in_table_has_every_size_and_names_what_is_wrong_with_others() {
    let table = Instances::built_in();
    assert_eq!(table.all().len(), 9);
    let inf2 = table.find("inf2.xlarge").unwrap();
    assert_eq!((inf2.cores(), inf2.core_bytes(), inf2.target()), (2, 16 << 30, Target::Inf2));
    let trn2 = table.find("trn2.48xlarge").unwrap();
    assert_eq!((trn2.cores(), trn2.core_bytes(), trn2.price_per_hour), (64, 24 << 30, None));
    let mine = r#"{"instances": [{"name": "mine", "chip": "trainium1", "chips": 4, "price_per_hour": 1.5}]}"#;
    let with = Instances::with(mine).unwrap();
    assert_eq!((with.all().len(), with.find("mine").unwrap().cores()), (10, 8));
    let error = |text: &str| Instances::with(text).unwrap_err().to_string();
    assert!(error(&mine.replace("trainium1", "abacus")).contains("chip \"abacus\" is not in the table (inferentia2"));
    assert!(error(&mine.replace("4,", "0,")).contains("mine: chips is 0"));
    assert!(error("nonsense").contains("not a table of instances"));
}

#[test]
fn an_8b_model_takes_one_chip_and_a_small_one_a_core() {
    let (wish, lengths) = (Wish::default(), Lengths::default());
    let big = plan(&preset("llama-3.1-8b"), &on("inf2.xlarge"), &lengths, &wish).unwrap();
    assert_eq!((big.tp, big.replicas, big.weights, big.kv), (2, 1, Quant::Bf16, KvType::Bf16));
    check(&big, &on("inf2.xlarge"), &wish, &lengths);
    let small = plan(&preset("smollm2-135m"), &on("inf2.xlarge"), &lengths, &wish).unwrap();
    assert_eq!((small.tp, small.replicas), (1, 2));
    check(&small, &on("inf2.xlarge"), &wish, &lengths);
    assert!(small.figures.tokens_per_s > 10.0 * big.figures.tokens_per_s);
    assert_eq!(small.figures.tokens_per_joule, None);
}

#[test]
fn what_does_not_fit_says_how_much_is_missing_and_where_it_would() {
    let (wish, lengths) = (Wish { weights: Some(Quant::Bf16), ..Wish::default() }, Lengths::default());
    let program = published::llama_70b();
    match plan(&program, &on("inf2.xlarge"), &lengths, &wish) {
        // 141 GB on two cores of 17.2 GB.
        Err(PlanError::Memory { tp: 2, missing, .. }) => assert!((50_000_000_000..75_000_000_000).contains(&missing)),
        other => panic!("{other:?}"),
    }
    let table = Instances::built_in();
    let fits = smallest_instance(&program, &table, &lengths, &wish).unwrap();
    assert_eq!(fits.name, "inf2.48xlarge");
}

#[test]
fn a_degree_that_a_build_would_refuse_is_not_planned_and_the_plan_says_why() {
    let (instance, lengths) = (on("trn1.2xlarge"), lengths(&[(20, 10); 4]));
    let wish = Wish { context: 64, max_neffs: 4, ..Wish::default() };
    let program = for_one_core(true);
    let found = plan(&program, &instance, &lengths, &wish).unwrap();
    check(&found, &instance, &wish, &lengths);
    assert_eq!((found.tp, found.tried.len()), (1, 2));
    let refused = found.tried[1].problem.as_deref().unwrap();
    assert!(refused.contains("op 2 (norm) cannot be divided over 2 cores"), "{refused}");
    let error = plan(&program, &instance, &lengths, &Wish { tp: Some(2), ..wish.clone() }).unwrap_err();
    assert!(matches!(&error, PlanError::Divide { tp: 2, what, .. } if what == refused), "{error}");
    let error = plan(&for_one_core(false), &instance, &lengths, &wish).unwrap_err().to_string();
    assert!(error.contains("case cannot be built: op 0 (embed)"), "{error}");
}

/// Of some families' programs, at the degree that the planner chooses or at the largest.
#[test]
fn what_is_planned_can_be_lowered() {
    use crate::backend::neuron::artifact::Layout;
    use crate::backend::neuron::{lower, shard};
    let (instance, lengths) = (on("trn1.2xlarge"), lengths(&[(9, 6), (20, 10)]));
    for (i, (name, program)) in lower::tests::programs().into_iter().step_by(5).enumerate() {
        let (tp, candidates) = ([None, Some(2)][i % 2], 16.min(program.vocab()));
        let wish = Wish { context: 48, max_neffs: 4, candidates, tp, biases: 2, mask: true, ..Wish::default() };
        let plan = plan(&program, &instance, &lengths, &wish).unwrap_or_else(|e| panic!("{name}: {e}"));
        let layout = Layout::of_plan(&plan, Profile::default(), true);
        let sharded = shard(&program, plan.tp).unwrap();
        for module in &layout.modules {
            lower(&sharded, &layout.model_spec(), module)
                .unwrap_or_else(|e| panic!("{name} on {}: {module:?}: {e}", plan.tp));
        }
    }
}

#[test]
fn wishes_that_cannot_be_are_named() {
    let program = preset("smollm2-135m");
    let error = |wish: Wish| plan(&program, &on("inf2.xlarge"), &Lengths::default(), &wish).unwrap_err().to_string();
    let wish = Wish::default;
    assert!(error(Wish { tp: Some(3), ..wish() }).contains("inf2.xlarge has 2 cores"));
    assert!(error(Wish { context: 1, ..wish() }).contains("--context is 1"));
    assert!(error(Wish { batch: Some(0), ..wish() }).contains("--batch is 0"));
    assert!(error(Wish { max_neffs: 1, ..wish() }).contains("--max-neffs is 1"));
    assert!(error(Wish { min_useful: f64::NAN, ..wish() }).contains("--min-useful is NaN"));
    assert!(error(Wish { weights: Some(Quant::Int4), ..wish() }).contains("int4"));
    assert!(error(Wish { kv: Some(KvType::F16), ..wish() }).contains("f16"));
    assert!(error(Wish { tpot: Some(1e-9), ..wish() }).contains("is the least"));
    assert!(error(Wish { context: 8, ..wish() }).contains("none of the 510 requests is within a context of 8"));
    assert!(error(Wish { min_useful: 0.98, max_neffs: 2, ..wish() }).contains("is the most"));
}

#[test]
fn objectives_and_limits_are_kept() {
    let (program, lengths) = (preset("llama-3.1-8b"), Lengths::default());
    let instance = on("inf2.48xlarge");
    let of = |wish: Wish| {
        let made = plan(&program, &instance, &lengths, &wish).unwrap();
        check(&made, &instance, &wish, &lengths);
        made
    };
    let fast = of(Wish { objective: Objective::Latency, ..Wish::default() });
    let many = of(Wish { objective: Objective::Throughput, ..Wish::default() });
    assert!(fast.figures.tpot_s < many.figures.tpot_s && fast.figures.tokens_per_s < many.figures.tokens_per_s);
    assert_eq!(fast.rows(), 1);
    let bounded = of(Wish { tpot: Some(0.03), ..Wish::default() });
    assert!(bounded.figures.tpot_s <= 0.03, "{}", bounded.figures.tpot_s);
    assert_eq!(of(Wish { batch: Some(7), tp: Some(8), ..Wish::default() }).rows(), 7);
}

/// Criterion 4 of the planner: on the Azure conversation trace 2023, whole, with its beginning and end, at a bound of speed
/// that is not far from the fastest plan's.
#[test]
fn a_published_trace_keeps_four_fifths_of_its_positions_useful() {
    let trace = azure();
    assert_eq!(trace.requests.len(), 19366);
    let of = |min_useful| {
        let wish = Wish { min_useful, max_neffs: 32, ..Wish::default() };
        plan(&preset("smollm2-135m"), &on("inf2.xlarge"), &trace, &wish).unwrap()
    };
    let (made, fast) = (of(0.8), of(0.0));
    assert!(made.hbm.fits() && made.modules.len() <= 32);
    let whole = simulate(&made, &trace.requests, None);
    let Useful { decode, prefill, all, .. } = whole.useful;
    assert!(decode >= 0.8 && prefill >= 0.8 && all >= 0.8, "{whole:?}");
    // 1612 of them are longer than 4096 tokens.
    assert_eq!((whole.served, whole.refused), (19366 - 1612, 1612));
    let (useful, fast) = (made.figures.tokens_per_s, fast.figures.tokens_per_s);
    assert!(useful >= 0.7 * fast, "{useful} of {fast} tokens/s");
}

/// Planned for the first half, held against the second, whose answers are shorter and whose mix of lengths is another.
#[test]
fn a_plan_keeps_most_of_its_useful_positions_on_requests_that_it_was_not_made_for() {
    let trace = azure().requests;
    let (seen, unseen) = trace.split_at(trace.len() / 2);
    let seen = Lengths { requests: seen.to_vec(), source: "the first half".into() };
    let wish = Wish { min_useful: 0.8, ..Wish::default() };
    let made = plan(&preset("smollm2-135m"), &on("inf2.xlarge"), &seen, &wish).unwrap();
    let held_out = simulate(&made, unseen, None).useful;
    assert!(held_out.decode >= 0.75 && held_out.prefill >= 0.8, "{held_out:?}");
}

/// Where weights are large beside the caches; with so few modules that there is one class, nothing is decoded together.
#[test]
fn classes_decode_together_where_reading_the_weights_again_is_dear() {
    let (trace, instance) = (azure(), on("inf2.xlarge"));
    let of = |max_neffs| {
        let wish = Wish { max_neffs, ..Wish::default() };
        let made = plan(&preset("llama-3.1-8b"), &instance, &trace, &wish).unwrap();
        check(&made, &instance, &wish, &trace);
        made
    };
    let (one, several) = (of(2), of(32));
    assert_eq!((one.classes.len(), one.modules.len()), (1, 2));
    // As a build takes it.
    let read: Plan = serde_json::from_str(&serde_json::to_string(&several).unwrap()).unwrap();
    assert_eq!(read.check(&preset("llama-3.1-8b")), Ok(()));
    let decodes = |m: &&ModuleSpec| matches!(m.kind, ModuleKind::Decode { .. });
    assert!(several.classes.len() > 1);
    assert!(several.modules.iter().filter(decodes).any(|m| m.parts.len() == several.classes.len()));
    let (few, many) = (&one.figures, &several.figures);
    assert!(many.tokens_per_s > 1.4 * few.tokens_per_s, "{} and {}", many.tokens_per_s, few.tokens_per_s);
    assert!(many.useful.decode > 1.8 * few.useful.decode, "{:?} and {:?}", many.useful, few.useful);
    // As a step reads them: the weights once, and each class as far as its rows are long.
    let (module, seconds) =
        several.modules.iter().zip(&several.module_seconds).find(|(m, _)| m.parts.len() > 1).unwrap();
    let alone: Vec<f64> = {
        let shard = Shard::new(&preset("llama-3.1-8b"), several.tp);
        let stored = Stored { shard: &shard, weights: several.weights, kv: several.kv };
        let roofline = Roofline::new(&stored, &instance, &several.assumptions);
        let empty = roofline.decode(0.0, 0.0);
        let of = |part: &Part| roofline.decode(part.rows as f64, part.len as f64) - empty;
        [empty].into_iter().chain(module.parts.iter().map(of)).collect()
    };
    assert!((alone.iter().sum::<f64>() - seconds).abs() < 1e-9 + 1e-3 * seconds, "{alone:?} {seconds}");
}

fn azure() -> Lengths {
    let trace = include_str!("../../../../../testdata/lengths/azure_conv_2023.csv");
    Lengths::parse(trace, "Azure conversation trace 2023").unwrap()
}

/// A plan from a file: what modules cannot be made of is refused by its field.
#[test]
fn a_plan_of_another_model_or_with_impossible_fields_is_refused() {
    let program = preset("smollm2-135m");
    let made =
        plan(&program, &on("inf2.xlarge"), &Lengths::default(), &Wish { max_neffs: 4, ..Wish::default() }).unwrap();
    assert_eq!(made.check(&program), Ok(()));
    assert!(made.check(&preset("llama-3.2-1b")).unwrap_err().contains("another model"));
    let refused = |change: fn(&mut Plan)| {
        let mut changed = made.clone();
        change(&mut changed);
        changed.check(&program).unwrap_err()
    };
    assert!(refused(|p| p.tp = 0).contains("`tp` is 0"));
    assert!(refused(|p| p.replicas = 0).contains("`replicas` is 0"));
    assert!(refused(|p| p.weights = Quant::Int4).contains("`weights` is int4"));
    assert!(refused(|p| p.kv = KvType::F16).contains("`kv` is f16"));
    assert!(refused(|p| p.lnc = Some(2)).contains("`lnc` is 2: inf2 has no such"));
    assert!(refused(|p| p.candidates = 0).contains("`candidates` is 0"));
    assert!(refused(|p| p.context = 1).contains("`context` is 1"));
    assert!(refused(|p| p.classes.clear()).contains("`classes` is a list of 0"));
    assert!(refused(|p| p.classes[0].rows = usize::MAX).contains("`classes[0]`"));
    assert!(refused(|p| p.classes.insert(0, p.classes[0])).contains("`classes[1]`"));
    assert!(refused(|p| p.modules = vec![p.modules[0].clone(); 1025]).contains("`modules` is a list of 1025"));
    assert!(refused(|p| p.modules[0].parts[0].len = usize::MAX).contains("`modules[0]`: field `parts[0]`"));
    assert!(refused(|p| p.modules[0].parts.clear()).contains("`modules[0]`: field `parts` is an empty list"));
    assert!(
        refused(|p| p.modules[0].parts[0].class.rows += 1).contains("`parts[0]`: its class is not among `classes`")
    );
    assert!(refused(|p| p.modules.clear()).contains("`modules`"));
}

#[test]
fn heads_are_padded_as_published() {
    use super::shard::split_heads;
    // Llama-3 8B, 32 query and 8 KV heads.
    let stored = |tp: usize| split_heads(8, 32, tp).0 * tp;
    assert_eq!([2, 8, 32].map(stored), [8, 8, 32]);
    assert_eq!(split_heads(8, 32, 24), (1, 2));
    assert_eq!(split_heads(3, 9, 2), (2, 6));
    // What one core holds is the model.
    let program = preset("llama-3.1-8b");
    let one = Shard::new(&program, 1);
    assert_eq!(one.stored.values + one.vector_values, program.parameters());
    assert_eq!(one.position_bytes(KvType::Bf16), 131_072);
    let eight = Shard::new(&program, 8);
    assert_eq!((eight.stored.values * 8, eight.all_reduces), (one.stored.values, 64));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_fits_and_covers(
        model in prop::sample::select(&["smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b", "mistral-7b-v0.3"][..]),
        instance in 0_usize..9,
        pairs in prop::collection::vec((1_usize..3000, 1_usize..600), 1..40),
        context in 2_usize..3000,
        max_neffs in 2_usize..12,
        tp in prop::option::of(1_usize..8),
        batch in prop::option::of(1_usize..20),
        objective in prop::sample::select(&[Objective::TokensPerJoule, Objective::Throughput, Objective::Latency][..]),
    ) {
        let table = Instances::built_in();
        let (instance, lengths) = (&table.all()[instance], lengths(&pairs));
        let wish = Wish { context, max_neffs, tp, batch, objective, ..Wish::default() };
        if let Ok(made) = plan(&preset(model), instance, &lengths, &wish) {
            check(&made, instance, &wish, &lengths);
        }
    }

    #[test]
    fn more_memory_never_fits_less(
        gib in 1.0_f64..40.0,
        more in 0.0_f64..20.0,
        pairs in prop::collection::vec((1_usize..500, 1_usize..100), 1..20),
    ) {
        let (program, lengths) = (preset("llama-3.2-1b"), lengths(&pairs));
        let of = |gib: f64| {
            let mut instance = on("inf2.xlarge");
            instance.chip.hbm_gib = gib;
            let wish = Wish { context: 600, max_neffs: 6, ..Wish::default() };
            plan(&program, &instance, &lengths, &wish)
        };
        let (small, large) = (of(gib), of(gib + more));
        match (small, large) {
            (Ok(_), large) => prop_assert!(large.is_ok(), "{:?}", large.err()),
            (Err(PlanError::Memory { missing: a, .. }), Err(PlanError::Memory { missing: b, .. })) => prop_assert!(b <= a),
            _ => {}
        }
    }

    #[test]
    fn any_table_of_instances_is_read_or_refused(
        cores in 0_usize..70, chips in 0_usize..5000, hbm in -1.0_f64..1e7, tp in prop::collection::vec(0_usize..2000, 0..4),
    ) {
        let text = serde_json::json!({
            "chips": {"c": {"target": "trn2", "cores": cores, "physical_cores": 8, "hbm_gib": hbm, "bandwidth_gb_s": 1.0,
                "tflops_bf16": 1.0, "tflops_f32": 1.0, "topology": "torus", "tp": tp}},
            "instances": [{"name": "i", "chip": "c", "chips": chips}],
        }).to_string();
        if let Ok(table) = Instances::with(&text) {
            let _ = plan(&preset("smollm2-135m"), table.find("i").unwrap(), &lengths(&[(3, 3)]), &Wish {
                context: 16, max_neffs: 2, ..Wish::default()
            });
        }
    }
}
