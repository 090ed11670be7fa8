//! What answers on a device have of the driver's minute, which the test ends when the run waits for it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::Bench;

#[test]
fn answers_and_buckets_share_the_drivers_minute() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) =
        bench.build("qwen3", "minute", &["--quant", "none", "--tp", "1", "--batch", "3", "--max-neffs", "4"]);
    let device = "root/sys/devices/virtual/neuron_device/neuron0";
    for dir in ["info/architecture", "stats/power"] {
        fs::create_dir_all(bench.path(&format!("{device}/{dir}"))).unwrap();
    }
    fs::write(bench.path(&format!("{device}/info/architecture/device_name")), "Inferentia2\n").unwrap();
    let tell = |stamp: u64, mean: f64| {
        let (next, file) = (bench.path("next"), bench.path(&format!("{device}/stats/power/utilization")));
        fs::write(&next, format!("POWER_STATUS_VALID,{stamp},0.00,100.00,{mean:.2}\n")).unwrap();
        fs::rename(next, file).unwrap();
    };
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - 30;
    tell(stamp, 40.0);
    let (ids, root) = (bench.path("ids.json"), bench.path("root"));
    fs::write(&ids, "[[5, 6, 7], [8, 9], [10, 11, 12, 13]]").unwrap();
    let args = ["generate", "-m", &artifact, "--token-ids", &ids, "-n", "6", "--json", "--energy-wait", "100"];
    let watts = ["--neuron-watts", "base=20..40,span=80..120"];
    let mut command = bench.command(&[&args[..], &watts].concat(), &[("NJOULE_SYSFS_ROOT", &root)]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("waiting up to 100 s")), "it does not wait");
    // All of it, so that also the part of it that is the run's is no matter of opinion.
    tell(stamp + 60, 100.0);
    lines.for_each(drop);
    let mut report = String::new();
    child.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert!(child.wait().unwrap().success());
    let report: Value = serde_json::from_str(&report).unwrap();
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {report}"));
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b, "{a} is not {b}: {report}");
    let used = |key: &str| {
        let of = |answer: &Value| number(&answer["usage"]["energy"][key]);
        report["results"].as_array().unwrap().iter().map(of).sum::<f64>()
    };
    let energy = &report["energy"];
    for answer in report["results"].as_array().unwrap() {
        let energy = &answer["usage"]["energy"];
        assert!(
            energy["settled"] == true
                && energy["extrapolated"] == false
                && number(&energy["core_s"]) > 0.0
                && number(&energy["util_s"]) > 0.0,
            "{energy}"
        );
    }
    let sum = |buckets: &Value| buckets.as_object().unwrap().values().map(&number).sum::<f64>();
    near(sum(&energy["util_by_bucket"]), number(&energy["util_s"]));
    near(sum(&energy["by_bucket"]), number(&energy["total_j"]));
    // No answer was in vain, computed anew, or aborted: the rest is padding, loading and idling.
    let bucket = |all: &str, names: [&str; 2]| names.iter().map(|name| number(&energy[all][*name])).sum::<f64>();
    near(used("util_s"), bucket("util_by_bucket", ["prefill_s", "decode_s"]));
    near(used("total_j"), bucket("by_bucket", ["prefill_j", "decode_j"]));
    near(used("core_s"), number(&energy["core_s"]));
    assert!(number(&energy["by_bucket"]["load_j"]) > 0.0 && number(&energy["by_bucket"]["wasted_j"]) > 0.0);
}
