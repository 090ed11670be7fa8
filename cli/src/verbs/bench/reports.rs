//! Reports that are read from files: of `bench`, `energy record`, or any program that writes `njoule.energy/1`.

use std::path::Path;

use anyhow::{Context as _, bail};
use njoule_energy::report::SCHEMA;
use serde_json::Value;

/// Reads a file that holds one report, an array of them, or one a line.
pub fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let shown = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("{shown}: cannot be read"))?;
    if !size.is_file() || size.len() > MOST_BYTES {
        bail!("{shown}: no file of reports: they take at most {} MiB", MOST_BYTES >> 20);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown}: cannot be read"))?;
    parse(&text).with_context(|| shown.to_string())
}

fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let reports = match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(reports)) => reports,
        Ok(report) => vec![report],
        Err(_) => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let line = |(at, line): (usize, &str)| {
                serde_json::from_str(line).with_context(|| format!("line {}: not JSON", at + 1))
            };
            lines.map(line).collect::<anyhow::Result<_>>()?
        }
    };
    if reports.is_empty() {
        bail!("there is no report in it");
    }
    for (at, report) in reports.iter().enumerate() {
        match report["schema"].as_str() {
            Some(SCHEMA) => {}
            Some(other) => bail!("report {}: schema is {other:?}, this njoule reads {SCHEMA:?}", at + 1),
            None => bail!("report {}: no object with \"schema\": {SCHEMA:?}", at + 1),
        }
    }
    Ok(reports)
}

/// What tells one case from another.
pub fn key(report: &Value) -> String {
    let workload = &report["workload"];
    let number = |name: &str| workload[name].as_u64().map_or("-".to_owned(), |n| n.to_string());
    let name = workload["name"].as_str().unwrap_or("run");
    format!("{name}, {} at once, prompt {}, gen {}", number("concurrency"), number("prompt"), number("generated"))
}

/// Tokens that a run's figures are per: those generated, or the prompt's where none were.
pub fn tokens(report: &Value) -> Option<f64> {
    let workload = &report["workload"];
    let count = |name: &str| workload[name].as_f64().filter(|n| *n > 0.0);
    count("output_tokens").or_else(|| count("input_tokens"))
}

/// Bytes of a file of reports.
const MOST_BYTES: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_report_an_array_and_lines_are_read() {
        let one = r#"{"schema":"njoule.energy/1","workload":{}}"#;
        assert_eq!(parse(one).unwrap().len(), 1);
        assert_eq!(parse(&format!("[{one},{one}]")).unwrap().len(), 2);
        assert_eq!(parse(&format!("{one}\n\n{one}\n")).unwrap().len(), 2);
        for (bad, words) in [
            ("", "no report"),
            ("[]", "no report"),
            ("{}", "no object with"),
            ("7", "no object with"),
            (r#"{"schema":"x/2"}"#, "x/2"),
            ("{\n", "line 1"),
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_reports_or_an_error(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
