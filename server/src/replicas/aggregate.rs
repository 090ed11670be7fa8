//! The figures of all replicas as those of one server.
//!
//! Counters and histograms are summed; a gauge of ours is a sample per replica, with the label `replica`, and one of vLLM's
//! a sum (a share: a mean; a fact: the newest), because routers read one sample of those names. What a replica had counted when it ended stays
//! counted, so that sums never fall.
//!
//! Invariant: every line of the result is a line of Prometheus' text format, whatever a replica sent.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The samples of one text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Families in the order in which they came.
    families: Vec<Family>,
}

#[derive(Clone, Debug, PartialEq)]
struct Family {
    name: String,
    help: String,
    kind: String,
    /// Name with labels (between the braces), and value.
    samples: Vec<(String, String, f64)>,
}

impl Figures {
    /// Reads a text; what is no sample of a declared family is left out.
    pub fn read(text: &str) -> Figures {
        let mut figures = Figures::default();
        let mut help = ("", "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').unwrap_or_default();
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let help = if help.0 == name { help.1 } else { "" };
                let (name, help, kind) = (name.to_owned(), help.to_owned(), kind.to_owned());
                figures.families.push(Family { name, help, kind, samples: Vec::new() });
            } else if let (Some(sample), Some(family)) = (sample(line), figures.families.last_mut())
                && sample.0.starts_with(&family.name)
            {
                family.samples.push(sample);
            }
        }
        figures
    }

    /// Without the families whose names begin with one of `prefixes`.
    pub fn without(mut self, prefixes: &[&str]) -> Figures {
        self.families.retain(|family| !prefixes.iter().any(|prefix| family.name.starts_with(prefix)));
        self
    }

    /// What only grows: all that remains of a replica that has ended.
    pub fn counted(mut self) -> Figures {
        self.families.retain(|family| family.kind != "gauge");
        self
    }

    /// Whether these are of an earlier moment of the same process: a counter is smaller.
    pub fn precede(&self, other: &Figures) -> bool {
        let less = |family: &Family| {
            let known = other.families.iter().find(|known| known.kind != "gauge" && known.name == family.name);
            family.samples.iter().any(|(name, labels, value)| {
                let same = known.and_then(|known| known.samples.iter().find(|(n, l, _)| (n, l) == (name, labels)));
                same.is_some_and(|(_, _, before)| value < before)
            })
        };
        self.families.iter().any(less)
    }

    /// The sample of a family whose labels have `label` in them.
    pub fn value(&self, name: &str, label: &str) -> Option<f64> {
        let family = self.families.iter().find(|family| family.name == name)?;
        family.samples.iter().find(|(_, labels, _)| labels.contains(label)).map(|(_, _, value)| *value)
    }

    /// Adds what `other` has counted.
    pub fn add(&mut self, other: &Figures) {
        for family in other.families.iter().filter(|family| family.kind != "gauge") {
            match self.families.iter_mut().find(|known| known.name == family.name) {
                Some(known) => add(&mut known.samples, &family.samples),
                None => self.families.push(family.clone()),
            }
        }
    }
}

/// The text of all: `counted` is what replicas that have ended, and the server itself, have counted.
pub fn write(counted: &Figures, replicas: &[(usize, Figures)]) -> String {
    let mut sums = counted.clone();
    replicas.iter().for_each(|(_, figures)| sums.add(figures));
    let mut gauges = BTreeMap::<&str, Family>::new();
    for (replica, figures) in replicas {
        for family in figures.families.iter().filter(|family| family.kind == "gauge") {
            let empty = || Family { samples: Vec::new(), ..family.clone() };
            let all = gauges.entry(&family.name).or_insert_with(empty);
            if family.name.starts_with("vllm:") {
                let join = if family.name.ends_with("_info") { f64::max } else { sum };
                join_samples(&mut all.samples, &family.samples, join);
            } else {
                let labelled = family.samples.iter().map(|(name, labels, value)| {
                    let comma = if labels.is_empty() { "" } else { "," };
                    (name.clone(), format!("{labels}{comma}replica=\"{replica}\""), *value)
                });
                all.samples.extend(labelled);
            }
        }
    }
    let count = replicas.len().max(1) as f64;
    if let Some(share) = gauges.get_mut("vllm:kv_cache_usage_perc") {
        share.samples.iter_mut().for_each(|(_, _, value)| *value /= count);
    }
    let mut out = String::with_capacity(32 << 10);
    for family in gauges.values().chain(&sums.families) {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {}", family.name, family.help, family.name, family.kind);
        for (name, labels, value) in &family.samples {
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
    }
    out
}

fn add(to: &mut Vec<(String, String, f64)>, from: &[(String, String, f64)]) {
    join_samples(to, from, sum);
}

fn sum(a: f64, b: f64) -> f64 {
    a + b
}

fn join_samples(to: &mut Vec<(String, String, f64)>, from: &[(String, String, f64)], join: fn(f64, f64) -> f64) {
    for (i, sample) in from.iter().enumerate() {
        // Replicas write the same samples in the same order, mostly.
        let same = |known: &(String, String, f64)| (&known.0, &known.1) == (&sample.0, &sample.1);
        let at = if to.get(i).is_some_and(same) { Some(i) } else { to.iter().position(same) };
        match at {
            Some(at) => to[at].2 = join(to[at].2, sample.2),
            None => to.push(sample.clone()),
        }
    }
}

/// `name{labels} value` or `name value`.
fn sample(line: &str) -> Option<(String, String, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let (before, value) = line.rsplit_once(' ')?;
    let value: f64 = value.parse().ok()?;
    let (name, labels) = match before.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}')?),
        None => (before, ""),
    };
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    (!name.is_empty() && name.chars().all(sound) && value.is_finite()).then(|| (name.into(), labels.into(), value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(requests: u32, running: u32, usage: f64) -> Figures {
        Figures::read(&format!(
            "# HELP a_total Requests.\n# TYPE a_total counter\na_total{{m=\"x y\"}} {requests}\n\
             # HELP h Times.\n# TYPE h histogram\nh_bucket{{le=\"1\"}} {requests}\nh_bucket{{le=\"+Inf\"}} {requests}\n\
             h_sum{{}} 0.5\nh_count{{}} {requests}\n\
             # HELP njoule_running Running.\n# TYPE njoule_running gauge\nnjoule_running{{m=\"x y\"}} {running}\n\
             # HELP vllm:kv_cache_usage_perc Share.\n# TYPE vllm:kv_cache_usage_perc gauge\n\
             vllm:kv_cache_usage_perc{{}} {usage}\n\
             # TYPE vllm:running gauge\nvllm:running{{}} {running}\nnonsense\n\
             # TYPE njoule_meter_info gauge\nnjoule_meter_info{{}} 1\n\
             # TYPE vllm:lora_requests_info gauge\nvllm:lora_requests_info{{max_lora=\"0\"}} {requests}\n"
        ))
    }

    #[test]
    fn counters_add_up_and_gauges_stand_side_by_side() {
        let text = write(&of(100, 9, 1.0).counted(), &[(0, of(1, 2, 0.5)), (3, of(2, 4, 1.0))]);
        for line in [
            "a_total{m=\"x y\"} 103",
            "h_bucket{le=\"+Inf\"} 103",
            "h_sum{} 1.5",
            "njoule_running{m=\"x y\",replica=\"0\"} 2",
            "njoule_running{m=\"x y\",replica=\"3\"} 4",
            "vllm:kv_cache_usage_perc{} 0.75",
            "vllm:running{} 6",
            "njoule_meter_info{replica=\"3\"} 1",
            "vllm:lora_requests_info{max_lora=\"0\"} 2",
            "# TYPE h histogram",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(!text.contains("nonsense"));
        assert_eq!(text.matches("# TYPE a_total").count(), 1);
    }

    #[test]
    fn families_can_be_left_out() {
        assert!(!write(&Figures::default(), &[(0, of(1, 2, 0.5).without(&["a_"]))]).contains("a_total"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(# (TYPE|HELP) [a-c_]{1,3} (gauge|counter)\n|[a-c_]{0,3}(\\{[a-z=\",]{0,5}\\})? [0-9.e-]{0,3}\n|.{0,9}\n){0,12}") {
            let figures = Figures::read(&text);
            let written = write(&figures.clone().counted(), &[(0, figures)]);
            for line in written.lines() {
                prop_assert!(line.starts_with("# ") || sample(line).is_some(), "{}", line);
            }
        }
    }
}
