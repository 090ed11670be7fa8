//! `njoule bench` and `njoule inspect`: the shape of what they print.

mod support;

use support::*;

#[test]
fn bench_prints_a_row_per_case_with_all_figures() {
    let report = run(&[
        "bench",
        "-m",
        &model("llama_plain"),
        "--batch",
        "1,4",
        "--prompt",
        "8",
        "--gen",
        "6",
        "--threads",
        "2",
        "--json",
    ])
    .json();
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    for (row, batch) in rows.iter().zip([1, 4]) {
        assert_eq!((&row["batch"], &row["prompt_tokens"], &row["gen_tokens"]), (&batch.into(), &8.into(), &6.into()));
        for key in ["prefill_tokens_per_s", "decode_tokens_per_s", "cpu_s_per_token", "ttft_s", "mbu", "roofline"] {
            assert!(row[key].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{key} = {}", row[key]);
        }
        assert!(row["energy"]["joules"].is_null() && row["energy"]["method"].is_null());
    }
    assert!(report["memory"]["peak_rss_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    assert!(report["machine"]["read_bytes_per_s"].as_f64().is_some_and(|x| x > 1e8));
    assert_eq!(report["threads"], 2);
}

#[test]
fn bench_of_no_generated_tokens_measures_prefill_alone() {
    let model = model("gguf_llama");
    let args =
        ["bench", "-m", &model, "--batch", "2", "--prompt", "40", "--gen", "0", "--no-roofline", "--repeat", "1"];
    let report = run(&[&args[..], &["--json"]].concat()).json();
    let row = &report["rows"][0];
    assert!(row["decode_tokens_per_s"].is_null() && row["mbu"].is_null());
    assert!(row["prefill_tokens_per_s"].as_f64().unwrap() > 0.0 && row["cpu_s_per_token"].as_f64().unwrap() > 0.0);
    let table = run(&args);
    assert!(table.code == 0 && table.stdout.contains("prefill tok/s") && table.stdout.contains("energy: unknown"));
    assert!(table.stderr.is_empty(), "{}", table.stderr);
}

#[test]
fn inspect_tells_what_a_model_is_and_costs() {
    for fixture in ["llama_plain", "qwen3", "gguf_qwen2"] {
        let golden = golden(fixture);
        let report = run(&["inspect", &model(fixture), "--json"]).json();
        assert_eq!(report["config"]["vocab"], golden["vocab_size"], "{fixture}");
        if let Some(parameters) = golden["n_params"].as_u64() {
            assert_eq!(report["parameters"], parameters, "{fixture}");
        }
        let packed = |quant: &str| report["packed_bytes"][quant]["bytes"].as_u64().unwrap();
        assert!(packed("none") > packed("bf16") && packed("bf16") > packed("int8"), "{fixture}");
        assert!(report["flops_per_token"].as_u64().unwrap() > report["parameters"].as_u64().unwrap(), "{fixture}");
        let kv = |kv: &str| report["kv_bytes_per_token"][kv].as_u64().unwrap();
        assert_eq!(kv("f32"), 2 * kv("bf16"), "{fixture}");
    }
    let text = run(&["inspect", &model("qwen3"), "--program"]);
    assert!(text.stdout.contains("program qwen3") && text.stdout.contains("attend cache0"), "{}", text.stdout);
}

#[test]
fn what_inspect_says_of_packed_bytes_is_what_loading_takes() {
    for quant in ["none", "bf16", "int8", "int4", "auto"] {
        for fixture in ["llama_plain", "gguf_llama", "quantized/awq", "quantized/gptq_desc_act"] {
            let model = model(fixture);
            let said = run(&["inspect", &model, "--json"]).json()["packed_bytes"][quant]["bytes"].as_u64().unwrap();
            let args = ["bench", "-m", &model, "--batch", "1", "--prompt", "2", "--gen", "1", "--repeat", "1"];
            let report = run(&[&args[..], &["--no-roofline", "--quant", quant, "--json"]].concat()).json();
            assert_eq!(report["memory"]["weight_bytes"].as_u64().unwrap(), said, "{fixture} {quant}");
        }
    }
}

#[test]
fn what_becomes_of_quantised_weights_is_said() {
    let model = model("quantized/fp8_blocks");
    let report = run(&["inspect", &model, "--json"]).json();
    let notes = report["quantization"]["notes"].to_string();
    assert_eq!(report["quantization"]["method"], "fp8");
    assert!(notes.contains("activations") && notes.contains("rounded to bf16"), "{notes}");
    assert!(report["file_types"]["fp8-b24x48"].as_u64().is_some_and(|n| n > 0), "{report}");
    assert!(run(&["inspect", &model]).stdout.contains("quantised     fp8 fp8-b24x48"));
    let args = ["bench", "-m", &model, "--batch", "1", "--prompt", "2", "--gen", "1", "--repeat", "1", "--no-roofline"];
    let loaded = run(&[&args[..], &["--quant", "none"]].concat());
    assert!(loaded.stderr.contains("7 weights dequantised to f32"), "{}", loaded.stderr);
    assert!(!run(&[&args[..], &["--quiet"]].concat()).stderr.contains("weights"));
}

#[test]
fn presets_need_no_files() {
    let report = run(&["inspect", "random:synth-1b", "--json"]).json();
    assert!(report["parameters"].as_u64().unwrap() > 500_000_000);
    run(&["inspect", "random:no-such-preset"]).fails_with(1, &["no-such-preset", "synth-1b"]);
}
