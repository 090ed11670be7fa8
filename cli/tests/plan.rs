//! `njoule plan`: what it prints, and what it refuses.

mod support;

use support::*;

#[test]
fn a_plan_is_one_object_with_its_memory_modules_and_reasons() {
    let plan = run(&["plan", "random:llama-3.1-8b", "--instance", "inf2.xlarge", "--max-neffs", "6", "--json"]).json();
    assert_eq!(
        (plan["tp"].as_u64(), plan["weights"].as_str(), plan["kv"].as_str()),
        (Some(2), Some("bf16"), Some("bf16"))
    );
    assert_eq!(plan["target"], "inf2");
    let sum: u64 = ["microcode", "weights", "caches", "scratch", "collectives", "rings", "code"]
        .iter()
        .map(|line| plan["hbm"][line].as_u64().unwrap())
        .sum();
    assert!(sum <= plan["hbm"]["limit"].as_u64().unwrap() && sum > 8_000_000_000);
    let modules = plan["modules"].as_array().unwrap();
    assert!((2..=6).contains(&modules.len()) && modules.iter().all(|m| m["parts"][0]["class"]["rows"].is_u64()));
    assert!(plan["figures"]["tokens_per_joule"].is_null());
    assert!(plan["figures"]["usd_per_million"].as_f64().unwrap() > 0.0);
    assert!(plan["reasons"].as_array().unwrap().len() > 3);
}

#[test]
fn every_instance_has_a_plan_for_a_small_model_and_a_price_or_none() {
    let list = run(&["plan", "--list", "--json"]).json();
    for instance in list.as_array().unwrap() {
        let name = instance["name"].as_str().unwrap();
        let args = ["plan", "random:smollm2-135m", "--instance", name, "--max-neffs", "4", "--json"];
        let plan = run(&args).json();
        assert_eq!(plan["figures"]["usd_per_million"].is_null(), instance["price_per_hour"].is_null(), "{name}");
        assert!(plan["figures"]["tokens_per_s"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(list.as_array().unwrap().len(), 9);
}

#[test]
fn people_get_a_table_with_bounds_and_no_watts() {
    let model = model("llama_plain");
    let ran =
        run(&["plan", &model, "--instance", "trn2.3xlarge", "--context", "512", "--batch", "4", "--price", "2.5"]);
    // Only the requests of at most 512 tokens count.
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for words in ["core memory", "at most", "energy        unknown", "USD per million", "because", "4 rows"] {
        assert!(ran.stdout.contains(words), "no {words:?} in:\n{}", ran.stdout);
    }
}

#[test]
fn logical_cores_of_trn2_can_be_chosen_and_those_of_others_are_what_they_are() {
    let plan = |options: &[&str]| {
        let given = ["plan", "random:smollm2-135m", "--max-neffs", "4", "--batch", "8", "--json"];
        run(&[&given[..], options].concat())
    };
    let usual = plan(&["--instance", "trn2.3xlarge"]).json();
    let single = plan(&["--instance", "trn2.3xlarge", "--lnc", "1"]).json();
    let number = |plan: &serde_json::Value, key: &str| plan.pointer(key).and_then(serde_json::Value::as_u64).unwrap();
    assert!(usual.get("lnc").is_none() && single["lnc"] == 1);
    assert_eq!(number(&single, "/replicas"), 2 * number(&usual, "/replicas"));
    assert_eq!(2 * number(&single, "/hbm/limit"), number(&usual, "/hbm/limit"));
    let message = "--lnc 2: a logical core of inf2.xlarge is one physical one";
    plan(&["--instance", "inf2.xlarge", "--lnc", "2"]).fails_with(2, &[message]);
    plan(&["--instance", "trn2.3xlarge", "--lnc", "3"]).fails_with(2, &["--lnc"]);
}

#[test]
fn lengths_and_instances_are_read_from_files() {
    let dir = scratch();
    let lengths = write(dir.path(), "trace.csv", "ContextTokens,GeneratedTokens\n100,28\n30,10\n");
    let table = r#"{"instances": [{"name": "mine", "chip": "trainium1", "chips": 2, "price_per_hour": 1.0}]}"#;
    let table = write(dir.path(), "table.json", table);
    let base = ["plan", "random:smollm2-135m", "--instances", &table, "--instance", "mine", "--context", "128"];
    let plan = run(&[&base[..], &["--lengths", &lengths, "--min-useful", "0.8", "--json"]].concat()).json();
    assert!(plan["figures"]["lengths"].as_str().unwrap().ends_with("trace.csv"));
    assert!(plan["figures"]["useful"]["decode"].as_f64().unwrap() >= 0.8);
    let text = write(dir.path(), "text.json", r#"[{"prompt": "hello", "output": 3}]"#);
    run(&[&base[..], &["--lengths", &text]].concat()).fails_with(1, &["text.json", "prompt is text"]);
    let bad = write(dir.path(), "bad.json", "{");
    run(&["plan", "random:smollm2-135m", "--instances", &bad, "--instance", "mine"]).fails_with(1, &["bad.json"]);
}

#[test]
fn what_cannot_be_is_refused_with_what_could() {
    let model = "random:llama-2-7b";
    run(&["plan", model, "--instance", "p5.48xlarge"]).fails_with(2, &["p5.48xlarge", "inf2.xlarge", "trn2.48xlarge"]);
    run(&["plan", model]).fails_with(2, &["--instance"]);
    run(&["plan", model, "--instance", "inf2.xlarge", "--tpot", "soon"]).fails_with(2, &["--tpot", "50ms"]);
    run(&["plan", model, "--instance", "inf2.xlarge", "--tp", "3"]).fails_with(2, &["--tp 3", "2 cores"]);
    let longer = ["plan", model, "--instance", "inf2.xlarge", "--context", "5000"];
    run(&longer).fails_with(2, &["--context 5000", "made for 4096 tokens"]);
    run(&["plan", model, "--instance", "inf2.xlarge", "--kv-type", "f16"]).fails_with(2, &["f16"]);
    run(&["plan", model, "--instance", "inf2.xlarge", "--price=-1"]).fails_with(2, &["--price"]);
    let wide = ["plan", "random:qwen3-32b", "--instance", "inf2.xlarge", "--weights", "bf16", "--max-neffs", "4"];
    run(&wide).fails_with(1, &["does not fit on inf2.xlarge", "lacks", "trn2.3xlarge would do"]);
}
