//! What every step of a phase took: beside its report, a line per step.
//!
//! A step adds a few numbers to room that was made before the phase: it allocates nothing, takes no lock and makes no system
//! call (the monotonic clock is read in user space). Steps beyond the room are counted, with their time, and not lost
//! silently. A meter is read at the ends of a phase alone, so a step's joules are its time's share of the phase's: steps
//! and what was dropped add up to the report's total, and say that they are interpolated.

use std::time::Instant;

use serde_json::{Value, json};

use super::lines::Lines;

/// Steps of a phase.
#[derive(Debug)]
pub struct Steps {
    kept: Vec<Step>,
    room: usize,
    dropped: u64,
    dropped_s: f64,
    start: Instant,
    last: Instant,
}

/// One step, from the end of the one before to its own.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Its beginning, from the phase's.
    t_s: f64,
    dt_s: f64,
    prefill: usize,
    decode: usize,
}

impl Steps {
    /// Room for so many.
    pub fn with_room(room: usize) -> Steps {
        let now = Instant::now();
        Steps { kept: Vec::with_capacity(room), room, dropped: 0, dropped_s: 0.0, start: now, last: now }
    }

    /// A phase begins.
    pub fn begin(&mut self) {
        self.kept.clear();
        (self.dropped, self.dropped_s) = (0, 0.0);
        self.start = Instant::now();
        self.last = self.start;
    }

    /// A step of so many rows of prompts and of generated tokens is over.
    pub fn add(&mut self, prefill: usize, decode: usize) {
        let (now, before) = (Instant::now(), self.last);
        self.last = now;
        let dt_s = now.saturating_duration_since(before).as_secs_f64();
        if self.kept.len() == self.room {
            self.dropped += 1;
            self.dropped_s += dt_s;
            return;
        }
        let t_s = before.saturating_duration_since(self.start).as_secs_f64();
        self.kept.push(Step { t_s, dt_s, prefill, decode });
    }

    /// Writes the lines of the phase that `report` is of.
    pub fn write(&self, report: &Value, lines: &mut Lines) -> anyhow::Result<()> {
        let all_s = self.dropped_s + self.kept.iter().map(|step| step.dt_s).sum::<f64>();
        let total = report["energy"]["total_j"].as_f64().filter(|_| all_s > 0.0);
        let joules = |dt_s: f64| json!(total.map(|total| total * (dt_s / all_s)));
        let method = if total.is_some() { report["energy"]["method"].clone() } else { Value::Null };
        let interpolated = total.is_some() && self.kept.len() + usize::from(self.dropped > 0) > 1;
        let mut line = |at: Value, [t_s, prefill, decode]: [Value; 3], dt_s: f64, dropped: Value| {
            lines.write(&[
                ("run_id", report["run_id"].clone()),
                ("step", at),
                ("t_s", t_s),
                ("dt_s", json!(dt_s)),
                ("n_prefill", prefill),
                ("n_decode", decode),
                ("e_j", joules(dt_s)),
                ("method", method.clone()),
                ("interpolated", json!(interpolated)),
                ("dropped_steps", dropped),
            ])
        };
        for (at, step) in self.kept.iter().enumerate() {
            line(json!(at), [json!(step.t_s), json!(step.prefill), json!(step.decode)], step.dt_s, Value::Null)?;
        }
        if self.dropped > 0 {
            line(Value::Null, [Value::Null, Value::Null, Value::Null], self.dropped_s, json!(self.dropped))?;
        }
        Ok(())
    }
}

/// Steps of a phase that are kept: 2.6 MB, and half an hour of steps of 30 ms.
pub const ROOM: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn written(steps: &Steps, report: &Value) -> Vec<Value> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steps");
        let mut lines = Lines::make(&path).unwrap();
        steps.write(report, &mut lines).unwrap();
        lines.finish().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn steps_and_what_was_dropped_add_up_to_the_report() {
        let mut steps = Steps::with_room(3);
        let room = steps.kept.capacity();
        steps.add(9, 9);
        steps.begin();
        for at in 0..5 {
            std::thread::sleep(std::time::Duration::from_micros(300));
            steps.add(0, at);
        }
        assert_eq!(steps.kept.capacity(), room, "a step made room");
        let report = json!({"run_id": "r", "energy": {"total_j": 7.0, "method": "measured"}});
        let lines = written(&steps, &report);
        assert_eq!(lines.len(), 4);
        let sum: f64 = lines.iter().map(|line| line["e_j"].as_f64().unwrap()).sum();
        assert!((sum - 7.0).abs() < 1e-9 * 7.0, "{sum}");
        assert_eq!((&lines[0]["t_s"], &lines[2]["n_decode"]), (&json!(0.0), &json!(2)));
        assert_eq!((&lines[3]["dropped_steps"], &lines[3]["step"]), (&json!(2), &Value::Null));
        for pair in lines[..3].windows(2) {
            let number = |at: usize, key: &str| pair[at][key].as_f64().unwrap();
            assert!((number(0, "t_s") + number(0, "dt_s") - number(1, "t_s")).abs() < 1e-12);
        }
        assert!(lines.iter().all(|line| line["interpolated"] == true && line["method"] == "measured"));
        let unknown = written(&steps, &json!({"run_id": "r", "energy": {"total_j": null, "method": null}}));
        assert!(unknown.iter().all(|line| line["e_j"].is_null() && line["method"].is_null()));
        assert_eq!(unknown[0]["interpolated"], false);
    }
}
