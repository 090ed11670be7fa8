//! Prometheus' text format, as far as a server's figures need it.
//!
//! Invariant: any text gives a snapshot; lines that are no samples are passed over.

use std::collections::BTreeMap;
use std::time::Instant;

/// What a server's metrics said at one time. Samples that differ in labels alone are added up, those of a share averaged.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When.
    pub at: Instant,
    /// Sum and number of samples by name.
    values: BTreeMap<String, (f64, f64)>,
    /// Cumulative counts by bound, of each histogram.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
    /// Label `model_name`.
    pub model: Option<String>,
}

impl Snapshot {
    /// Reads what `/metrics` answered.
    pub fn read(text: &str, at: Instant) -> Snapshot {
        let mut snapshot = Snapshot { at, values: BTreeMap::new(), buckets: BTreeMap::new(), model: None };
        for line in text.lines() {
            let Some((name, labels, value)) = sample(line) else { continue };
            let label = |name: &str| labels.iter().find(|(known, _)| known == name).map(|(_, value)| value);
            if snapshot.model.is_none() {
                snapshot.model = label("model_name").filter(|name| !name.is_empty()).cloned();
            }
            match (
                name.strip_suffix("_bucket"),
                label("le").and_then(|le| le.parse::<f64>().ok()).filter(|bound| !bound.is_nan()),
            ) {
                (Some(name), Some(bound)) => {
                    let buckets = snapshot.buckets.entry(name.to_owned()).or_default();
                    match buckets.iter_mut().find(|(known, _)| *known == bound) {
                        Some((_, count)) => *count += value,
                        None => buckets.push((bound, value)),
                    }
                }
                _ => {
                    let (sum, count) = snapshot.values.entry(name.to_owned()).or_default();
                    (*sum, *count) = (*sum + value, *count + 1.0);
                }
            }
        }
        snapshot.buckets.values_mut().for_each(|buckets| buckets.sort_by(|a, b| a.0.total_cmp(&b.0)));
        snapshot
    }

    /// A figure under our name, else under vLLM's.
    pub fn value(&self, name: &str) -> Option<f64> {
        let ours = self.values.get(&format!("njoule_{name}"));
        let (sum, count) = *ours.or_else(|| self.values.get(&format!("vllm:{name}")))?;
        let is_share = ["_ratio", "_perc"].iter().any(|end| name.ends_with(end));
        Some(if is_share { sum / count } else { sum })
    }

    /// How much a counter grew since `before`, unless it did not exist or began anew.
    pub fn growth(&self, before: &Snapshot, name: &str) -> Option<f64> {
        let growth = self.value(name)? - before.value(name)?;
        (growth >= 0.0).then_some(growth)
    }

    /// A quantile of what a histogram has seen since `before`, linear within its bucket; `None` if it saw nothing.
    pub fn quantile(&self, before: &Snapshot, name: &str, q: f64) -> Option<f64> {
        let of = |snapshot: &Snapshot| {
            let ours = snapshot.buckets.get(&format!("njoule_{name}"));
            ours.or_else(|| snapshot.buckets.get(&format!("vllm:{name}"))).cloned()
        };
        let (now, before) = (of(self)?, of(before)?);
        if !now.iter().map(|(bound, _)| bound).eq(before.iter().map(|(bound, _)| bound)) {
            return None;
        }
        let counts: Vec<(f64, f64)> =
            now.iter().zip(&before).map(|((le, now), (_, before))| (*le, now - before)).collect();
        let total = counts.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let wanted = q * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in counts {
            if count >= wanted && count > below {
                // Beyond the last bound nothing is known but that bound.
                return Some(if bound.is_finite() {
                    low + (bound - low) * (wanted - below) / (count - below)
                } else {
                    low
                });
            }
            (low, below) = (bound, count);
        }
        None
    }
}

/// Names and values.
type Labels = Vec<(String, String)>;

/// Name, labels and value of a line.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse::<f64>().ok()?;
    (!name.is_empty() && value.is_finite()).then_some((name, labels, value))
}

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut all = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((all, rest));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (mut value, mut end, mut escaped) = (String::new(), None, false);
        for (at, c) in quoted.char_indices() {
            match c {
                _ if escaped => {
                    value.push(if c == 'n' { '\n' } else { c });
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    end = Some(at + 1);
                    break;
                }
                c => value.push(c),
            }
        }
        all.push((name.to_owned(), value));
        rest = &quoted[end?..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Snapshot {
        Snapshot::read(text, Instant::now())
    }

    #[test]
    fn samples_are_added_up_over_their_labels() {
        let text = "# TYPE njoule_a counter\nnjoule_a{model_name=\"x\\\"} y\",k=\"1\"} 2\nnjoule_a{k=\"2\"} 3.5 1700000000\nvllm:b 7\n";
        let snapshot = read(text);
        assert_eq!((snapshot.value("a"), snapshot.value("b"), snapshot.value("c")), (Some(5.5), Some(7.0), None));
        assert_eq!(snapshot.model.as_deref(), Some("x\"} y"));
        let replicas = read("njoule_kv_ratio{replica=\"0\"} 0.5\nnjoule_kv_ratio{replica=\"1\"} 1\n");
        assert_eq!(replicas.value("kv_ratio"), Some(0.75), "a share");
        assert_eq!(read("njoule_a 9").growth(&snapshot, "a"), Some(3.5));
        assert_eq!(read("njoule_a 1").growth(&snapshot, "a"), None, "the server began anew");
    }

    #[test]
    fn quantiles_are_those_of_the_time_between() {
        let of = |counts: [u32; 3]| {
            let [a, b, c] = counts;
            read(&format!(
                "njoule_t_bucket{{le=\"1\"}} {a}\nnjoule_t_bucket{{le=\"3\"}} {b}\nnjoule_t_bucket{{le=\"+Inf\"}} {c}\n"
            ))
        };
        let (before, now) = (of([5, 5, 5]), of([5, 9, 10]));
        assert_eq!(now.quantile(&before, "t", 0.4), Some(2.0));
        assert_eq!(now.quantile(&before, "t", 0.99), Some(3.0), "beyond the last bound");
        assert_eq!(now.quantile(&now, "t", 0.5), None);
        assert_eq!(now.quantile(&before, "u", 0.5), None);
        // A bound that is no number is none, and with other bounds there is nothing to compare.
        let odd = "njoule_t_bucket{le=\"NaN\"} 7\nnjoule_t_bucket{le=\"+Inf\"} 10\nnjoule_t_bucket{le=\"3\"} 9\n\
                   njoule_t_bucket{le=\"1\"} 5\n";
        assert_eq!(read(odd).quantile(&before, "t", 0.4), Some(2.0));
        assert_eq!(read(&odd.replace("\"3\"", "\"4\"")).quantile(&before, "t", 0.4), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_snapshot(text in "([a-z_:]{0,4}[{]?([a-z]=\"[a-z\\\\\"]{0,3}\"?,?){0,2}[}]? [0-9.eINa-f+-]{0,5}\n|\\PC{0,20}\n){0,6}") {
            let snapshot = read(&text);
            let _ = snapshot.quantile(&snapshot, "a", 0.5);
        }
    }
}
