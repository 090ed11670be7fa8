//! When a replica without requests gives its device back, and for how long it must stay away to pay.
//!
//! An idle process with a device uses power (libnrt polls with several threads per core), and starting it anew costs what
//! loading costs. It pays after E_load / P_idle without requests. Where watts are unknown that is still no less than the
//! time that loading takes, since loading needs no less power than idling; in CPU time both are known.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::aggregate::Figures;

/// What a process's figures said at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    cpu_s: Option<f64>,
    load_j: Option<f64>,
    idle_j: Option<f64>,
}

/// The costs of a process, from its start on.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    load: Duration,
    ready: Sample,
    /// Since when it has no request, and the figures of then.
    idle: Option<Sample>,
}

/// What is known of unloading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BreakEven {
    /// Seconds from a process's start to its first answer.
    pub load_s: f64,
    /// CPU-seconds of that.
    pub load_cpu_s: Option<f64>,
    /// CPU-seconds per second without requests.
    pub idle_cpu: Option<f64>,
    /// Joules of loading.
    pub load_j: Option<f64>,
    /// Watts without requests.
    pub idle_w: Option<f64>,
}

impl Sample {
    fn of(figures: &Figures, at: Instant) -> Sample {
        let joules = |phase: &str| figures.value("njoule_energy_attributed_joules_total", phase);
        Sample {
            at,
            // As of its meters' last reading, of which there was none yet where it is 0.
            cpu_s: figures.value("njoule_cpu_seconds_total", "").filter(|seconds| *seconds > 0.0),
            load_j: joules("phase=\"load\"").filter(|joules| *joules > 0.0),
            idle_j: joules("phase=\"idle\""),
        }
    }
}

impl Costs {
    /// Of a process that took `load` until it answered, with its first figures.
    pub fn new(load: Duration, figures: &Figures) -> Costs {
        Costs { load, ready: Sample::of(figures, Instant::now()), idle: None }
    }

    /// A later look at its figures; `busy` says that it has, or has had since the last one, a request.
    pub fn look(&mut self, busy: bool, figures: &Figures) {
        if self.ready.cpu_s.is_none() {
            self.ready = Sample::of(figures, self.ready.at);
        }
        match (busy, self.idle) {
            (true, _) => self.idle = None,
            (false, None) => self.idle = Some(Sample::of(figures, Instant::now())),
            (false, Some(_)) => {}
        }
    }

    /// By the figures of now.
    pub fn break_even(&self, figures: &Figures) -> BreakEven {
        self.until(Sample::of(figures, Instant::now()))
    }

    fn until(&self, now: Sample) -> BreakEven {
        let idle = self.idle.map(|from| (from, now.at.saturating_duration_since(from.at).as_secs_f64()));
        let rate = |of: fn(&Sample) -> Option<f64>| {
            let (from, seconds) = idle.filter(|(_, seconds)| *seconds > 0.0)?;
            Some((of(&now)? - of(&from)?).max(0.0) / seconds)
        };
        BreakEven {
            load_s: self.load.as_secs_f64(),
            load_cpu_s: self.ready.cpu_s,
            idle_cpu: rate(|s| s.cpu_s),
            load_j: now.load_j,
            // A counter that has not moved is not known to count.
            idle_w: rate(|s| s.idle_j).filter(|watts| *watts > 0.0),
        }
    }
}

impl BreakEven {
    /// Seconds without requests from which on unloading saves joules.
    pub fn joules_s(&self) -> Option<f64> {
        self.load_j.zip(self.idle_w).map(|(joules, watts)| joules / watts)
    }

    /// The same of CPU time; `None` also where an idle process uses none.
    pub fn cpu_s(&self) -> Option<f64> {
        self.load_cpu_s.zip(self.idle_cpu).filter(|(_, idle)| *idle > 0.0).map(|(load, idle)| load / idle)
    }

    /// For `/health`.
    pub fn json(&self) -> Value {
        json!({
            "load_s": self.load_s, "load_cpu_s": self.load_cpu_s, "idle_cpu_s_per_s": self.idle_cpu,
            "load_j": self.load_j, "idle_w": self.idle_w,
            "pays_beyond_s": {"joules": self.joules_s(), "joules_at_least": self.load_s, "cpu_time": self.cpu_s()},
        })
    }
}

impl fmt::Display for BreakEven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loading takes {:.1} s; unloading pays after ", self.load_s)?;
        match self.joules_s() {
            Some(seconds) => write!(f, "{seconds:.0} s without requests in joules")?,
            None => write!(f, "E_load / P_idle without requests in joules, unknown and {:.0} s at least", self.load_s)?,
        }
        match (self.cpu_s(), self.idle_cpu) {
            (Some(seconds), _) => write!(f, ", {seconds:.0} s in CPU time"),
            (None, Some(_)) => f.write_str(", never in CPU time: it uses none"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cpu_s: f64, joules: Option<(f64, f64)>) -> Figures {
        let mut text = format!("# TYPE njoule_cpu_seconds_total counter\nnjoule_cpu_seconds_total{{}} {cpu_s}\n");
        if let Some((load, idle)) = joules {
            text += "# TYPE njoule_energy_attributed_joules_total counter\n";
            for (phase, joules) in [("load", load), ("idle", idle)] {
                text += &format!(
                    "njoule_energy_attributed_joules_total{{phase=\"{phase}\",method=\"measured\"}} {joules}\n"
                );
            }
        }
        Figures::read(&text)
    }

    /// Loaded in 4 s, then ten seconds without requests.
    fn after_ten_seconds(joules: [Option<(f64, f64)>; 2], cpu_s: [f64; 2]) -> BreakEven {
        let mut costs = Costs::new(Duration::from_secs(4), &figures(cpu_s[0], joules[0]));
        costs.look(true, &figures(cpu_s[0], joules[0]));
        costs.look(false, &figures(cpu_s[0], joules[0]));
        let from = costs.idle.unwrap();
        costs.until(Sample {
            at: from.at + Duration::from_secs(10),
            ..Sample::of(&figures(cpu_s[1], joules[1]), from.at)
        })
    }

    #[test]
    fn it_pays_after_what_loading_costs_over_what_idling_costs() {
        let known = after_ten_seconds([Some((90.0, 1.0)), Some((90.0, 31.0))], [6.0, 8.0]);
        assert_eq!((known.joules_s(), known.cpu_s()), (Some(30.0), Some(30.0)));
        let told = "loading takes 4.0 s; unloading pays after 30 s without requests in joules, 30 s in CPU time";
        assert_eq!(known.to_string(), told);
    }

    #[test]
    fn without_watts_there_is_an_inequality_and_no_number() {
        let unknown = after_ten_seconds([None, None], [6.0, 6.0]);
        assert_eq!((unknown.joules_s(), unknown.cpu_s()), (None, None));
        let text = unknown.to_string();
        assert!(text.contains("unknown and 4 s at least") && text.contains("never in CPU time"), "{text}");
        let json = unknown.json();
        assert!(json["pays_beyond_s"]["joules"].is_null() && json["pays_beyond_s"]["joules_at_least"] == 4.0, "{json}");
        // A counter that stands still is not zero watts.
        assert_eq!(after_ten_seconds([Some((90.0, 1.0)); 2], [6.0, 6.0]).joules_s(), None);
    }
}
