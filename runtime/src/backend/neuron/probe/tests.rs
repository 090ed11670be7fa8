//! The runner against a device that is the evaluator with faults: what is refused, what computes wrongly, what hangs on.

mod model;
#[cfg(target_os = "linux")]
mod power;

use std::collections::BTreeSet;

use njoule_hlo::op::Op;
use njoule_hlo::{decode, encode, verify};
use proptest::prelude::*;

use super::super::profile::{CacheWrite, DotResult, Lookup, RopeAngles, RowRead, TopK};
use super::*;

/// Computes as the evaluator does, but for its faults.
#[derive(Default)]
struct Fake {
    /// Operations that its compiler refuses, by HLO's name or a custom call's target.
    refuses: Vec<&'static str>,
    /// Modules whose results it spoils.
    spoils: Vec<&'static str>,
    /// It does not open.
    closed: bool,
    /// It tells no power.
    silent: bool,
    /// It forgets what aliased results were.
    forgets: bool,
    ran: BTreeSet<String>,
}

impl ProbeDevice for Fake {
    fn library(&mut self) -> Result<String, Fault> {
        Ok("fake".into())
    }

    fn core(&mut self) -> Result<String, Fault> {
        let fault = Fault { stage: Stage::Open, words: "status 2 on /dev/neuron0".into() };
        if self.closed { Err(fault) } else { Ok("1 core".into()) }
    }

    fn run(&mut self, module: &Module, inputs: &[Tensor], runs: usize) -> Result<Vec<Tensor>, Fault> {
        if let Some(name) = operations(module).into_iter().find(|name| self.refuses.contains(&name.as_str())) {
            return Err(Fault { stage: Stage::Compile, words: format!("NCC_EUOC002: {name} is not supported") });
        }
        let runs = if self.forgets { 1 } else { runs };
        let trial = Trial { runs, ..Trial::exact(module.clone(), inputs.to_vec()) };
        let mut results =
            evaluate(Target::Trn1, &trial).map_err(|e| Fault { stage: Stage::Execute, words: e.to_string() })?;
        if self.spoils.contains(&module.name.as_str()) {
            let bytes: Vec<u8> = results[0].to_bytes().iter().map(|byte| byte ^ 0x41).collect();
            results[0] = Tensor::from_bytes(results[0].shape(), &bytes).unwrap();
        }
        self.ran.insert(module.name.clone());
        Ok(results)
    }

    fn power(&mut self) -> PowerFound {
        let told = DevicePower {
            device: 0,
            file: PowerFile::Valid,
            words: "mean 12.75 %".into(),
            min_max_mean: Some([0.0, 30.0, 12.75]),
            age_seconds: Some(7),
            live: "absent".into(),
        };
        PowerFound { devices: if self.silent { vec![] } else { vec![told] } }
    }
}

/// Operations of a module by HLO's names, and targets of custom calls.
fn operations(module: &Module) -> BTreeSet<String> {
    let name = |op: &Op| match op {
        Op::CustomCall(call) => call.target.clone(),
        op => op.name().to_owned(),
    };
    module.computations.iter().flat_map(|c| &c.instructions).map(|i| name(&i.op)).collect()
}

fn probe(mut fake: Fake) -> Outcome {
    run(&mut fake, Err("none".to_owned()), Target::Trn1, STEPS, |_| ControlFlow::Continue(()))
}

#[test]
fn whoever_hears_of_a_step_may_end_the_probe_there_and_no_profile_comes_of_it() {
    for (at, steps) in [("begins", 2), ("done", 3)] {
        let outcome = run(&mut Fake::default(), Err("none".to_owned()), Target::Trn1, &small_steps(), |told| {
            let stop = match told {
                Heard::Begins(step, _) => at == "begins" && step.name == STEPS[2].name,
                Heard::Done(step, _) => at == "done" && step.name == STEPS[2].name,
            };
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((outcome.steps.len(), outcome.stopped_at.as_deref()), (steps, Some(STEPS[2].name)), "{at}");
        assert_eq!(outcome.profile, None);
    }
}

/// All but the layer of SmolLM2's sizes, which takes longer than all others together.
fn small_steps() -> Vec<Step> {
    STEPS.iter().filter(|step| step.name != "layer").copied().collect()
}

fn probe_small(mut fake: Fake) -> Outcome {
    run(&mut fake, Err("none".to_owned()), Target::Trn1, &small_steps(), |_| ControlFlow::Continue(()))
}

#[test]
fn every_module_keeps_the_rules_of_every_chip_and_its_name_is_its_own() {
    let all = modules(STEPS, &Profile::default());
    let names: BTreeSet<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), all.len());
    assert!(all.len() >= 18, "{}", all.len());
    for (name, module) in &all {
        for target in [Target::Inf2, Target::Trn1, Target::Trn2] {
            verify(module, target).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert_eq!(decode(&encode(module)).unwrap(), *module, "{name}");
    }
}

#[test]
fn a_device_that_takes_everything_has_the_default_profile() {
    let mut fake = Fake::default();
    let mut heard = vec![];
    let outcome = run(&mut fake, Err("none".to_owned()), Target::Trn1, STEPS, |told| {
        match told {
            Heard::Begins(step, so_far) => {
                assert_eq!((so_far.running.as_deref(), so_far.steps.len()), (Some(step.name), heard.len()));
                heard.push(step.name);
            }
            Heard::Done(step, so_far) => {
                assert_eq!(heard.last(), Some(&step.name.as_str()));
                assert_eq!((&so_far.running, so_far.steps.last()), (&None, Some(step)));
            }
        }
        ControlFlow::Continue(())
    });
    let state = |name: &str| outcome.steps.iter().find(|step| step.name == name).map(|step| step.state);
    assert_eq!([state("layer"), state("int8"), state("experts"), state("power")], [Some(State::Passed); 4]);
    assert_eq!([state("logits"), state("speed")], [Some(State::Unknown); 2], "there is no model");
    assert_eq!(outcome.profile, Some(Profile::default()), "{outcome:#?}");
    assert_eq!((&outcome.stopped_at, &outcome.running), (&None, &None));
    assert_eq!(heard, STEPS.iter().map(|step| step.name).collect::<Vec<_>>());
    let emitted: BTreeSet<String> = modules(STEPS, &Profile::default()).into_iter().map(|(name, _)| name).collect();
    assert!(fake.ran.is_subset(&emitted));
    let other: Vec<_> = emitted.difference(&fake.ran).collect();
    assert_eq!(
        other,
        ["probe_rope_table_one_hot", "probe_top_k_rounds_one_hot"],
        "all forms are tried, not only the chosen"
    );
}

#[test]
fn each_refused_operation_leads_to_the_form_without_it() {
    let of = |refuses: &[&'static str]| {
        let outcome = probe_small(Fake { refuses: refuses.to_vec(), ..Fake::default() });
        outcome.profile.unwrap_or_else(|| panic!("{refuses:?} stopped at {:?}", outcome.stopped_at))
    };
    let default = Profile::default();
    assert_eq!(of(&["scatter"]), Profile { cache_write: CacheWrite::UpdateSlice, ..default });
    assert_eq!(of(&["scatter", "dynamic-update-slice"]), Profile { cache_write: CacheWrite::Select, ..default });
    assert_eq!(of(&["dynamic-slice"]), Profile { row_read: RowRead::Gather, ..default });
    assert_eq!(of(&["gather"]), Profile { lookup: Lookup::OneHot, ..default });
    assert_eq!(of(&["cosine"]), Profile { rope: RopeAngles::Table, ..default });
    assert_eq!(of(&["AwsNeuronTopK"]), default);
}

#[test]
fn a_form_that_computes_wrongly_is_not_chosen() {
    for (module, profile) in [
        ("probe_dot_f32", Profile { dot_result: DotResult::Operand, ..Profile::default() }),
        ("probe_top_k_rounds", Profile { top_k: TopK::Custom, ..Profile::default() }),
        ("probe_write_scatter_chunk", Profile { cache_write: CacheWrite::UpdateSlice, ..Profile::default() }),
        ("probe_rope_computed", Profile { rope: RopeAngles::Table, ..Profile::default() }),
    ] {
        let outcome = probe_small(Fake { spoils: vec![module], ..Fake::default() });
        assert_eq!(outcome.profile, Some(profile), "{module}");
        let failed: Vec<_> = outcome.steps.iter().flat_map(|s| &s.forms).filter(|f| !f.works).collect();
        assert_eq!(failed.iter().map(|f| f.failed).collect::<Vec<_>>(), [Some(Stage::Compare)], "{module}");
        assert!(failed[0].words.starts_with(module), "{}", failed[0].words);
    }
}

#[test]
fn the_first_step_of_which_nothing_works_is_the_last_and_gives_no_profile() {
    for (fake, name, steps) in [
        (Fake { closed: true, ..Fake::default() }, "core", 2),
        (Fake { refuses: vec!["add"], ..Fake::default() }, "add", 3),
        (Fake { forgets: true, ..Fake::default() }, "alias", 4),
        (Fake { refuses: vec!["dynamic-slice", "gather"], ..Fake::default() }, "row_read", 10),
        (Fake { spoils: vec!["probe_layer_prefill"], ..Fake::default() }, "layer", 18),
    ] {
        let outcome = probe(fake);
        assert_eq!(outcome.stopped_at.as_deref(), Some(name));
        assert_eq!((outcome.steps.len(), outcome.profile), (steps, None));
        let last = outcome.steps.last().unwrap();
        assert!(last.state == State::Failed && !last.advice.is_empty());
    }
}

/// Whatever one operation is refused: forms without it are chosen, and where there is none, everything stops if everything
/// needs it.
#[test]
fn each_operation_refused_in_turn_leads_to_another_form_or_to_the_end() {
    let steps = small_steps();
    let all: BTreeSet<String> =
        modules(&steps, &Profile::default()).iter().flat_map(|(_, module)| operations(module)).collect();
    assert!(all.len() > 25, "{all:?}");
    let (mut stopped, mut other) = (0, BTreeSet::new());
    for refused in &all {
        let refused: &'static str = refused.clone().leak();
        let outcome = probe_small(Fake { refuses: vec![refused], ..Fake::default() });
        let has = |trials: Vec<Trial>| trials.iter().any(|trial| operations(&trial.module).contains(refused));
        let mut profile = Profile::default();
        for (number, step) in steps.iter().enumerate() {
            let done = &outcome.steps[number];
            let works = match step.work {
                Work::Forms(forms) => {
                    let works: Vec<bool> = forms.iter().map(|form| !has((form.trials)(&profile))).collect();
                    assert_eq!(done.forms.iter().map(|f| f.works).collect::<Vec<_>>(), works, "{refused}: {done:?}");
                    let chosen = works.iter().position(|works| *works);
                    assert_eq!(done.chosen.as_deref(), chosen.map(|i| forms[i].name), "{refused}");
                    if let Some(i) = chosen {
                        (forms[i].choose)(&mut profile);
                    }
                    chosen.is_some()
                }
                Work::Whole(trials) => !has(trials(&profile)),
                _ => continue,
            };
            assert_eq!(done.state, if works { State::Passed } else { State::Failed }, "{refused}: {done:?}");
            if !works && step.only_for.is_none() {
                assert_eq!(outcome.stopped_at.as_deref(), Some(step.name), "{refused}");
                assert_eq!((outcome.steps.len(), outcome.profile), (number + 1, None), "{refused}");
                stopped += 1;
                break;
            }
        }
        assert_eq!(outcome.chosen, profile, "{refused}");
        if outcome.stopped_at.is_none() {
            assert_eq!(outcome.profile, Some(profile), "{refused}");
            other.insert(refused);
        }
    }
    // Each idiom that has another form is one that can be done without.
    for refused in ["scatter", "gather", "dynamic-slice", "dynamic-update-slice", "cosine", "sine", "AwsNeuronTopK"] {
        assert!(other.contains(refused), "{refused}: {other:?}");
    }
    assert!(stopped > 10, "{other:?}");
}

#[test]
fn what_some_models_alone_need_stops_nothing() {
    // Only experts are transposed by their shares; only int8 is rounded by floor.
    let outcome = probe_small(Fake { refuses: vec!["floor"], ..Fake::default() });
    let int8 = outcome.steps.iter().find(|step| step.name == "int8").unwrap();
    assert!(int8.state == State::Failed && int8.only_for.as_deref().unwrap().contains("int8"), "{int8:?}");
    assert_eq!(outcome.profile, Some(Profile::default()));
}

/// A layer that attends wrongly, or turns by other angles, is seen in the results that are compared.
#[test]
fn a_layer_with_a_wrong_part_is_found_out() {
    let Some(Work::Whole(trials)) = STEPS.iter().find(|step| step.name == "layer").map(|step| step.work) else {
        panic!("there is a layer")
    };
    let trials = trials(&Profile::default());
    for trial in &trials {
        let wanted = evaluate(Target::Trn1, trial).unwrap();
        assert_eq!(trial::compare(&wanted, &wanted, trial), Ok(0.0));
        // What only rotations, attention and products see: positions one further, keys of another row, one weight changed.
        let inputs = trial.inputs.len();
        let is_scalar = |t: &Tensor| t.shape().rank() == 0;
        let spoiled = |at: usize, with: Tensor| {
            let mut other = trial.clone();
            other.inputs[at] = with;
            let got = evaluate(Target::Trn1, &other).unwrap();
            let result = trial::compare(&wanted, &got, trial);
            assert!(result.is_err(), "{}: input {at}: {result:?}", trial.module.name);
        };
        if is_scalar(&trial.inputs[1]) {
            spoiled(1, Tensor::scalar(22i32));
            spoiled(2, Tensor::scalar(2i32));
        } else {
            spoiled(1, Tensor::new(&[4], vec![62, 1, 18, 6]).unwrap());
        }
        let weights = (0..inputs).filter(|i| trial.inputs[*i].shape().rank() == 2);
        let matrix = weights.max_by_key(|i| trial.inputs[*i].shape().elements()).unwrap();
        let halved: Vec<half::bf16> = trial.inputs[matrix]
            .as_slice::<half::bf16>()
            .unwrap()
            .iter()
            .map(|x| half::bf16::from_f32(x.to_f32() * 0.9))
            .collect();
        spoiled(matrix, Tensor::new(&trial.inputs[matrix].shape().dims().to_vec(), halved).unwrap());
    }
}

#[test]
fn a_device_that_tells_no_power_has_a_profile_all_the_same() {
    let outcome = probe_small(Fake { silent: true, ..Fake::default() });
    assert_eq!(outcome.profile, Some(Profile::default()));
    assert_eq!(outcome.steps.last().unwrap().state, State::Unknown);
}

#[test]
fn products_summed_in_bf16_are_found_out() {
    // What a device gives that adds up in bf16: the sum stops growing.
    let trial = &(STEPS.iter().find_map(|s| match s.work {
        Work::Forms(forms) => forms.iter().find(|f| f.name == "f32"),
        _ => None,
    }))
    .map(|form| (form.trials)(&Profile::default()))
    .unwrap()[0];
    let wanted = evaluate(Target::Trn1, trial).unwrap();
    let [x, w] = [0, 1].map(|i| trial.inputs[i].as_slice::<half::bf16>().unwrap());
    let coarse = Tensor::new(
        &[32, 64],
        (0..32 * 64)
            .map(|at| {
                let (row, column) = (at / 64, at % 64);
                let terms = (0..512).map(|k| x[row * 512 + k].to_f32() * w[k * 64 + column].to_f32());
                terms.fold(half::bf16::ZERO, |sum, term| half::bf16::from_f32(sum.to_f32() + term)).to_f32()
            })
            .collect(),
    )
    .unwrap();
    assert!(trial::compare(&wanted, &[coarse], trial).is_err());
    assert_eq!(trial::compare(&wanted, &wanted, trial), Ok(0.0));
    assert!(trial::compare(&wanted, &[], trial).is_err());
    let nan = Tensor::new(&[32, 64], vec![f32::NAN; 2048]).unwrap();
    assert!(trial::compare(&wanted, &[nan], &Trial { tolerance: f64::INFINITY, ..trial.clone() }).is_err());
}

#[test]
fn a_report_names_no_machine() {
    let redaction = Redaction { names: vec!["build-host".into(), "jane".into()] };
    let secret = "cannot read /home/jane/x.neff (build-host:/tmp/a), ip-10-0-0-7, 10.0.0.7: serial 0123456789abcdef of \
                  i-0abc123def4567890, log: /var/log/a.log; jane@example.com";
    let told = redaction.of(secret);
    for word in ["jane", "build-host", "/tmp", "/var", "10.0.0.7", "ip-10", "0123456789abcdef", "0abc123", "example"] {
        assert!(!told.contains(word), "{word} in {told}");
    }
    for kept in ["cannot read <path>", "serial <id> of <id>", "log:"] {
        assert!(told.contains(kept), "{kept} in {told}");
    }
    assert_eq!(
        redaction.of("NCC_EUOC002: scatter is not supported, off by 2.00e-3"),
        "NCC_EUOC002: scatter is not supported, off by 2.00e-3"
    );
    let outcome = probe(Fake { closed: true, ..Fake::default() }).redacted(&redaction);
    assert_eq!(outcome.steps[1].words, "open: status 2 on <path>");
}

proptest! {
    #[test]
    fn any_text_is_redacted_and_its_paths_are_gone(text in "(\\PC{0,6}|/[a-z/.]{1,8}|[0-9a-f]{12,20}| ){0,12}") {
        let told = Redaction::default().of(&text);
        let bare = |word: &str| word.replace("<path>", "");
        prop_assert!(told.split_whitespace().all(|word| !bare(word).contains('/')), "{}", told);
    }
}
