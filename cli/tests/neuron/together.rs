//! Classes of rows that decode together: planned where it pays, built from the plan, and run beside the cpu backend.

use std::fs;

use serde_json::Value;

use super::{Bench, fixture_path, ids};

/// Rows that decode in a module, by class.
fn parts(module: &Value) -> Vec<u64> {
    module["parts"].as_array().unwrap().iter().map(|part| part["rows"].as_u64().unwrap()).collect()
}

#[test]
fn classes_that_decode_together_answer_as_the_cpu_does() {
    let Some(bench) = Bench::new() else { return };
    let (model, lengths, plan) = (fixture_path("llama_tied"), bench.path("lengths.csv"), bench.path("plan.json"));
    // Many short ones, some long.
    let rows = "40,30\n50,20\n30,34\n".repeat(4) + "420,60\n";
    fs::write(&lengths, format!("ContextTokens,GeneratedTokens\n{rows}")).unwrap();
    let expected = ids(&bench.generate(&model, &["--backend", "cpu", "--quant", "none"], &[]));
    for tp in ["1", "2"] {
        let common = ["--context", "512", "--candidates", "16", "--quant", "none", "--batch", "5", "--max-neffs", "4"];
        let given = ["plan", &model, "--lengths", &lengths, "--tp", tp, "-q"];
        let table = bench.run(&[&given[..], &common].concat(), &[]);
        assert!(table.stdout.contains("\ndecode        "), "{}", table.stdout);
        let planned = bench.run(&[&given[..], &common, &["--json"]].concat(), &[]);
        fs::write(&plan, &planned.stdout).unwrap();
        let planned = planned.json();
        let together = |modules: &Value| -> Vec<Vec<u64>> {
            let modules = modules.as_array().unwrap().iter();
            modules.map(parts).filter(|parts| parts.len() > 1).collect()
        };
        let decodes = together(&planned["modules"]);
        assert!(planned["classes"].as_array().unwrap().len() > 1 && !decodes.is_empty(), "{planned}");
        // No class decodes by itself: the weights are read once per step.
        let alone = |m: &&Value| m["kind"]["decode"].is_object() && parts(m).len() == 1;
        assert_eq!(planned["modules"].as_array().unwrap().iter().filter(alone).count(), 0, "{planned}");
        let place = bench.path(&format!("together-{tp}"));
        bench.run(&["build", &model, "-o", &place, "--plan", &plan, "--json", "-q", "--verify"], &[]).json();
        let inspected = bench.run(&["inspect", &place, "--json"], &[]).json();
        assert_eq!(together(&inspected["layout"]["modules"]), decodes);
        let answered = bench.generate(&place, &[], &[]);
        assert_eq!(ids(&answered), expected, "on {tp}: {}", answered.stderr);
        assert_eq!(answered.json()["model"]["backend"], "neuron");
    }
}
