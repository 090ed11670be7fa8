//! Classes of rows that decode together: built from a plan that says so, and run beside the cpu backend.

use std::fs;

use serde_json::{Value, json};

use super::{Bench, fixture_path, ids};

/// Two classes with a module of chunks each, decoded together at two levels; the longer one by itself where nobody else is.
fn two_classes() -> (Value, Value) {
    let (short, long) = (json!({"rows": 3, "positions": 96}), json!({"rows": 2, "positions": 576}));
    let part = |class: &Value, rows: usize, len: usize| json!({"class": class, "rows": rows, "len": len});
    let module = |kind, parts: Vec<Value>| json!({"kind": kind, "parts": parts, "biases": 8, "mask": true});
    let decode = |batch: usize, parts| module(json!({"decode": {"batch": batch}}), parts);
    let prefill = |class, len| module(json!({"prefill": {"tokens": 64}}), vec![part(class, 1, len)]);
    let modules = json!([
        prefill(&short, 32),
        prefill(&long, 512),
        decode(5, vec![part(&short, 3, 32), part(&long, 2, 512)]),
        decode(4, vec![part(&short, 2, 16), part(&long, 2, 256)]),
        decode(1, vec![part(&long, 1, 320)]),
    ]);
    (json!([short, long]), modules)
}

#[test]
fn classes_that_decode_together_answer_as_the_cpu_does() {
    let Some(bench) = Bench::new() else { return };
    let (model, plan) = (fixture_path("llama_tied"), bench.path("plan.json"));
    let expected = ids(&bench.generate(&model, &["--backend", "cpu", "--quant", "none"], &[]));
    for tp in ["1", "2"] {
        let given = ["plan", &model, "--tp", tp, "--context", "512", "--candidates", "16", "--quant", "none", "--json"];
        let mut planned = bench.run(&given, &[]).json();
        let (classes, modules) = two_classes();
        planned["module_seconds"] = json!(vec![1e-3; modules.as_array().unwrap().len()]);
        (planned["classes"], planned["modules"]) = (classes, modules.clone());
        fs::write(&plan, planned.to_string()).unwrap();
        let place = bench.path(&format!("together-{tp}"));
        let build = ["build", &model, "-o", &place, "--plan", &plan, "--no-score", "--json", "-q", "--verify"];
        bench.run(&build, &[]).json();
        let inspected = bench.run(&["inspect", &place, "--json"], &[]).json();
        assert_eq!(inspected["layout"]["modules"], modules);
        let table = bench.run(&["inspect", &place], &[]).stdout;
        assert!(table.contains("\ndecode        2x16 + 2x256\n"), "{table}");
        // Five prompts: two are longer than the short class.
        let answered = bench.generate(&place, &[], &[]);
        assert_eq!(ids(&answered), expected, "on {tp}: {}", answered.stderr);
        assert_eq!(answered.json()["model"]["backend"], "neuron");
        // A list that is none is refused before anything is compiled.
        planned["modules"][2]["parts"][1]["rows"] = json!(3);
        fs::write(&plan, planned.to_string()).unwrap();
        let refused = bench.run(&build, &[]);
        refused
            .fails_with(1, &["plan.json", "`modules[2]`", "`parts[1]`: 3 rows of 512 positions are no part of 2 rows"]);
    }
}

/// Most requests are short, every fourth is long: few rows, whose caches are about as large as the weights, pay together.
#[test]
fn classes_that_the_planner_itself_puts_together_answer_and_score_as_the_cpu_does() {
    let Some(bench) = Bench::new() else { return };
    let (model, lengths, file) = (fixture_path("llama_tied"), bench.path("mixed.csv"), bench.path("plan.json"));
    let request = |i: usize| match i % 4 {
        3 => format!("{},{}\n", 60 + i * 7 % 60, 100 + i * 11 % 40),
        _ => format!("{},{}\n", 1 + i % 6, 8 + i * 5 % 22),
    };
    let rows: String = (0..120).map(request).collect();
    fs::write(&lengths, format!("ContextTokens,GeneratedTokens\n{rows}")).unwrap();
    let given = ["plan", &model, "--lengths", &lengths, "--batch", "6", "--max-neffs", "8", "--json"];
    let options = ["--tp", "1", "--context", "512", "--candidates", "16", "--quant", "none"];
    let planned = bench.run(&[&given[..], &options].concat(), &[]).json();
    let classes = planned["classes"].as_array().unwrap();
    let joins = |m: &&Value| m["parts"].as_array().unwrap().len() == classes.len();
    assert!(classes.len() > 1 && planned["modules"].as_array().unwrap().iter().any(|m| joins(&m)), "{planned}");
    fs::write(&file, planned.to_string()).unwrap();
    let place = bench.path("chosen");
    let built = bench.run(&["build", &model, "-o", &place, "--plan", &file, "--json", "-q", "--verify"], &[]).json();
    assert!(built["modules"].as_array().unwrap().len() > planned["modules"].as_array().unwrap().len(), "scores too");
    // Five prompts of 1 to 300 tokens, each in the class that it fits.
    let cpu = ["--backend", "cpu", "--quant", "none"];
    let answered = bench.generate(&place, &[], &[]);
    assert_eq!(ids(&answered), ids(&bench.generate(&model, &cpu, &[])), "{}", answered.stderr);
    assert_eq!(answered.json()["model"]["backend"], "neuron");
    let prompts = bench.path("prompts.json");
    let logprobs = |model: &str, options: &[&str]| {
        let args = ["score", "-m", model, "--token-ids", &prompts, "--json", "-q", "-c", "512"];
        let report = bench.run(&[&args[..], options].concat(), &[]).json();
        let of = |result: &Value| {
            let values = result["logprobs"].as_array().unwrap().iter();
            values.filter_map(Value::as_f64).collect::<Vec<f64>>()
        };
        report["results"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let (got, want) = (logprobs(&place, &[]), logprobs(&model, &cpu));
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), want.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(want.iter().any(|of| of.len() > 200));
    let far = got.iter().flatten().zip(want.iter().flatten()).filter(|(a, b)| !((*a - *b).abs() < 1e-3)).count();
    assert_eq!(far, 0, "log probabilities");
}
