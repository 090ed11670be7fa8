//! `njoule models --supported`: the table, and the object for programs, say the same.

mod support;

use support::run;

#[test]
fn families_are_listed_with_their_files_and_who_refuses_them() {
    let json = run(&["models", "--supported", "--json"]).json();
    let families = json["families"].as_array().unwrap();
    let table = run(&["models", "--supported"]).stdout;
    for family in families {
        let name = family["family"].as_str().unwrap();
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no line of {name} in\n{table}"));
        let refused = family["refusals"].as_object().unwrap().values().filter(|why| why.is_string()).count();
        assert_eq!(line.split_whitespace().filter(|word| *word == "no").count(), refused, "{line}");
        for why in family["refusals"].as_object().unwrap().values().filter_map(|why| why.as_str()) {
            assert!(table.contains(&format!("{name} on neuron: {why}")), "{table}");
        }
    }
    let of = |name: &str| families.iter().find(|family| family["family"] == name).unwrap();
    assert_eq!(of("mixtral")["gguf"], serde_json::json!(["llama"]));
    assert_eq!(of("opt")["gguf"], serde_json::json!([]));
    assert_eq!(of("deepseek_v3")["refusals"]["neuron"], serde_json::json!(null));
    assert!(json["stored_types"]["GGUF"].as_str().unwrap().contains("MXFP4") && table.contains("GGUF: F32, "));
}
