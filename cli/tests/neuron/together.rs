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
