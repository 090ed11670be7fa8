//! Tokens per joule of the server's own policy on a made-up machine, under watts that somebody declares.
//!
//! Nothing here is measured: lengths are published ones, arrivals a Poisson process, step times and watts inputs.

use std::time::Duration;

use njoule_energy::profile::NeuronWatts;
use njoule_runtime::backend::neuron::plan::Request;
use njoule_runtime::policy::simulate::{Machine, Outcome, Player, poisson, simulate};
use njoule_runtime::policy::{Bounds, Objective};

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Lengths of requests, in turn.
    pub lengths: Vec<Request>,
    /// How many come.
    pub requests: usize,
    /// The machine; its watts are the profile's.
    pub machine: Machine,
    /// Watts at idle (`base`) and beyond them while a step runs (`span`), as intervals.
    pub watts: NeuronWatts,
    /// The promised latencies.
    pub bounds: Bounds,
    /// What arrivals are made from.
    pub seed: u64,
}

/// A player at a load.
#[derive(Clone, Debug)]
pub struct Row {
    /// Whose policy.
    pub player: &'static str,
    /// At the profile's highest watts, and at its lowest.
    pub tokens_per_joule: (f64, f64),
    /// What it did.
    pub outcome: Outcome,
}

impl Setup {
    /// All players at a share of what the machine can do.
    pub fn rows(&self, share: f64) -> Vec<Row> {
        let rate = share * self.machine.capacity(&self.lengths);
        let arrivals = poisson(&self.lengths, rate, self.requests, self.seed);
        let players = [
            ("latency", Player::Policy(Objective::Latency)),
            ("tokens-per-joule", Player::Policy(Objective::TokensPerJoule(self.bounds))),
            ("clairvoyant", Player::Clairvoyant(self.bounds)),
        ];
        let row = |(name, player)| {
            let with =
                |idle_w: f64, busy_w: f64| simulate(&arrivals, &Machine { idle_w, busy_w, ..self.machine }, player);
            let (base, span) = (self.watts.base, self.watts.span);
            let (most, least) = (with(base.high, span.high), with(base.low, span.low));
            Row { player: name, tokens_per_joule: (most.tokens_per_joule(), least.tokens_per_joule()), outcome: least }
        };
        players.into_iter().map(row).collect()
    }
}

/// A time such as `200ms` or `2s`.
pub fn time(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s')?, 1.0),
    };
    let seconds = number.trim().parse::<f64>().ok()? * unit;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use njoule_runtime::backend::neuron::plan::Lengths;

    #[test]
    fn waiting_for_company_is_worth_more_where_little_flows_at_idle() {
        let setup = |watts: &str| Setup {
            lengths: Lengths::default().requests,
            requests: 1000,
            machine: Machine { step_s: 0.012, row_s: 2e-5, slots: 128, budget: 2048, busy_w: 0.0, idle_w: 0.0 },
            watts: watts.parse().unwrap(),
            bounds: Bounds::default(),
            seed: 1,
        };
        let gain = |watts: &str| {
            let rows = setup(watts).rows(0.2);
            let joules = |at: usize| rows[at].tokens_per_joule;
            assert!(rows.iter().all(|row| row.tokens_per_joule.0 <= row.tokens_per_joule.1));
            joules(1).0 / joules(0).0
        };
        let (alone, beside) = (gain("base=0,span=100"), gain("base=100,span=100"));
        assert!(alone > 1.25 && beside > 1.0 && beside < alone, "{alone} {beside}");
        // An interval of watts is one of tokens per joule: twice the watts, half of them.
        let wide = setup("base=10..20,span=50..100").rows(0.5);
        let (least, most) = wide[0].tokens_per_joule;
        assert!((most / least - 2.0).abs() < 1e-9, "{least} {most}");
    }

    #[test]
    fn times_have_units() {
        assert_eq!((time("200ms"), time("2s")), (Some(Duration::from_millis(200)), Some(Duration::from_secs(2))));
        assert_eq!((time("2"), time("-1s"), time("s")), (None, None, None));
    }
}
