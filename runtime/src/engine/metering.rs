//! The engine's books of energy: each step's work by request, each reading split over the work before it.
//!
//! Three ledgers get the same work: one of CPU and core seconds, which every reading tells, and those of joules and of
//! utilisation-seconds, whose readings may be rarer. A request that wants its energy is answered when the readings reach beyond
//! its end, or after [`EngineConfig::energy_wait`](super::EngineConfig::energy_wait) without; for minutes nobody waits, and what
//! they bring is written where the answer's [`Later`] is. A reading that was made in the middle of a step settles the part of its
//! work that was done by then. Utilisation-seconds of time that is still to be told are extrapolated for an answer alone, and say so
//! (`pace`): no bucket and no joule comes of them. What operations, cache bytes and a step cost is fitted to the readings as they come, and declared
//! before that. Invariant: a step allocates nothing here after warm-up, and what was settled is the sum of the buckets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use njoule_energy::attribution::{AccountId, Amounts, Coefficients, Ledger, Purpose, Share};
use njoule_energy::{Joules, Method};
use serde_json::Value;

use super::energy::{Character, CpuTime, EnergySource, EnergyStats, Later, Metered, Reading, RequestEnergy, Utilised};
use super::sampler::{Sample, Sampler, Ticket};
use super::{Doorbell, EngineFigures};
use crate::backend::{Cost, CostModel};
use crate::policy::StepEnergy;

mod book;
mod pace;

use self::book::Book;
use self::pace::Pace;

/// A request's place in the books.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    seconds: AccountId,
    joules: Option<AccountId>,
    util: Option<AccountId>,
    /// Tokens whose keys and values have been in the cache: what is run of them again is in vain.
    reached: usize,
}

/// A sequence's rows in a step.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// In the cache before.
    pub computed: usize,
    /// Rows run.
    pub run: usize,
    /// Of these, without refused guesses at their end.
    pub kept: usize,
    pub outputs: usize,
    pub prompt_len: usize,
}

/// Until when a request waits for its energy.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    account: Account,
    ticket: Ticket,
    until: Instant,
}

/// An answer that was given before all of it was told.
struct Unsettled {
    account: Account,
    /// See [`Metering::owed`].
    owed: [bool; 3],
    later: Later,
}

impl Wait {
    /// When it ends at the latest.
    pub fn until(&self) -> Instant {
        self.until
    }
}

/// The books.
pub struct Metering {
    costs: CostModel,
    seconds: Book,
    /// `None` where nothing could ever tell.
    joules: Option<Book>,
    /// Utilisation-seconds in the place of joules: how an amount is split does not depend on its unit. `None` without
    /// accelerators.
    util: Option<Book>,
    /// Whether joules have been known.
    known: bool,
    sampler: Sampler,
    /// Whether a step has been run.
    begun: bool,
    patience: Duration,
    answered: Option<Ticket>,
    metered: Option<Ticket>,
    /// Answers that were given before all of them was told.
    later: Vec<Unsettled>,
    /// Which books were told something since these were looked at: seconds, joules, utilisation.
    told: [bool; 3],
    /// Whether joules come too late for any answer.
    late: bool,
    /// Whether a part of what loading used will never be known.
    load_lost: bool,
    /// End of what has been booked.
    mark: Instant,
    /// Accelerator cores of a step, and their seconds since the last reading.
    cores: Option<usize>,
    core_s: f64,
    /// Seconds and generated tokens since the last reading of joules.
    period_s: f64,
    /// Seconds since the last reading of utilisation, and those of which none was told.
    util_period_s: f64,
    util_lost_s: f64,
    /// What core-seconds had of them in the last minutes.
    pace: Pace,
    tokens_before: u64,
    stats: EnergyStats,
    step_energy: Option<StepEnergy>,
    figures: Arc<EngineFigures>,
}

impl Metering {
    /// Books of an engine whose rows cost this and whose steps occupy so many accelerator cores, from `source`, or the process's
    /// CPU time alone.
    pub fn begin(
        costs: CostModel,
        cores: Option<usize>,
        source: Option<Box<dyn EnergySource>>,
        doorbell: Arc<Doorbell>,
        figures: Arc<EngineFigures>,
        patience: Duration,
    ) -> std::io::Result<Metering> {
        let metered = source.is_some();
        let source = source.unwrap_or_else(|| Box::new(CpuTime::begin()));
        let Character { since, late, idle_w } = source.character();
        let loading_s = since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        let late_s = if late { loading_s } else { 0.0 };
        let book = |idle_w, loading_s| {
            let mut ledger = Ledger::new(Coefficients { idle_w, ..Coefficients::default() });
            ledger.load_for(loading_s);
            Book::new(ledger)
        };
        Ok(Metering {
            costs,
            seconds: Book::new(Ledger::of_cpu_time(Coefficients::default())),
            joules: metered.then(|| book(idle_w, late_s)),
            // An idle device's utilisation is none: the idle power is taken off.
            util: cores.filter(|_| metered).map(|_| book(Some(0.0), loading_s)),
            known: false,
            // What comes late anyway is not looked for again and again.
            sampler: Sampler::start(source, metered, doorbell, if late { Duration::ZERO } else { patience })?,
            begun: false,
            patience,
            answered: None,
            metered: None,
            later: Vec::new(),
            told: [false; 3],
            late,
            load_lost: false,
            mark: Instant::now(),
            cores,
            core_s: 0.0,
            period_s: late_s,
            util_period_s: loading_s,
            util_lost_s: 0.0,
            pace: Pace::default(),
            tokens_before: 0,
            stats: EnergyStats::default(),
            step_energy: None,
            figures,
        })
    }

    /// Steps cost this from now on, and occupy so many accelerator cores.
    pub fn move_to(&mut self, costs: CostModel, cores: Option<usize>) {
        (self.costs, self.cores) = (costs, cores);
    }

    /// Where the meters' description will be.
    pub fn description(&self) -> impl Fn() -> Option<Arc<Value>> + Send + Sync + use<> {
        self.sampler.description()
    }

    /// As of the last reading.
    pub fn stats(&self) -> EnergyStats {
        let owed = self.joules.iter().chain(&self.util).any(|book| book.ledger.is_owed());
        let util_unknown_s = self.util.as_ref().map(|_| self.util_lost_s + self.util_period_s);
        EnergyStats { owed, util_unknown_s, ..self.stats }
    }

    /// What a step costs, once the meter has told.
    pub fn step_energy(&self) -> Option<StepEnergy> {
        self.step_energy
    }

    /// A sequence's part of the step that has been run; `account` is opened with its first.
    pub fn rows(&mut self, account: &mut Option<Account>, rows: Rows) {
        let account = account.get_or_insert_with(|| Account {
            seconds: self.seconds.ledger.open(),
            joules: self.joules.as_mut().map(|book| book.ledger.open()),
            util: self.util.as_mut().map(|book| book.ledger.open()),
            reached: 0,
        });
        let whole = self.costs.cost(rows.computed, rows.run, rows.outputs);
        let (end, kept_end) = (rows.computed + rows.run, rows.computed + rows.kept);
        let again_end = account.reached.clamp(rows.computed, kept_end);
        let prompt_end = rows.prompt_len.clamp(again_end, kept_end);
        let parts = [
            (Purpose::Waste, rows.computed, again_end),
            (Purpose::Prefill, again_end, prompt_end),
            (Purpose::Decode, prompt_end, kept_end),
            (Purpose::Waste, kept_end, end),
        ];
        for (purpose, from, to) in parts {
            if from == to {
                continue;
            }
            // Outputs are those of the last rows.
            let outputs = rows.outputs.saturating_sub(end - to).min(to - from);
            let flops = self.costs.cost(from, to - from, outputs).flops;
            let kv_bytes = whole.kv_bytes * (to - from) as f64 / rows.run as f64;
            self.seconds.shares.push(Share { account: Some(account.seconds), purpose, flops, kv_bytes });
            for (book, id) in [(&mut self.joules, account.joules), (&mut self.util, account.util)] {
                if let Some(book) = book {
                    book.shares.push(Share { account: id, purpose, flops, kv_bytes });
                }
            }
        }
        account.reached = account.reached.max(kept_end);
    }

    /// Before the first step: what loading used should be told apart from it.
    pub fn begin_step(&mut self, generated: u64) {
        if std::mem::replace(&mut self.begun, true) || self.joules.is_none() {
            return;
        }
        self.sampler.wait_first(Instant::now() + self.patience);
        self.settle(generated);
    }

    /// A sequence that ran before waits in its slot and has no rows.
    pub fn holds(&mut self, account: &Account, prefill: bool) {
        let purpose = if prefill { Purpose::Prefill } else { Purpose::Decode };
        let share = |account| Share { account, purpose, flops: 0.0, kv_bytes: 0.0 };
        self.seconds.shares.push(share(Some(account.seconds)));
        for (book, id) in [(&mut self.joules, account.joules), (&mut self.util, account.util)] {
            if let Some(book) = book {
                book.shares.push(share(id));
            }
        }
    }

    /// The step that began at `started` is over, of which [`Metering::rows`] has told, and in which so much was computed for
    /// nobody. What lies between steps is theirs who run. Cores are occupied for the sequences alone, however they are padded: all
    /// of their seconds is given to these. `generated` are the tokens so far.
    pub fn step(&mut self, started: Instant, now: Instant, generated: u64, padding: Cost) {
        if padding.flops > 0.0 || padding.kv_bytes > 0.0 {
            let Cost { flops, kv_bytes, .. } = padding;
            for book in [&mut self.joules, &mut self.util].into_iter().flatten() {
                book.shares.push(Share { account: None, purpose: Purpose::Waste, flops, kv_bytes });
            }
        }
        let whole = now.saturating_duration_since(started).as_secs_f64();
        let mut done = 0.0;
        while let Some(sample) = self.sampler.take() {
            let before = sample.at.saturating_duration_since(started).as_secs_f64();
            let part = if before < whole { before / whole } else { 1.0 };
            self.work(part - done, sample.at.min(now));
            done = part;
            self.take_in(&sample, generated);
        }
        self.work(1.0 - done, now);
        self.books().for_each(|book| book.shares.clear());
    }

    /// A part of the step's work, done by `until`.
    fn work(&mut self, part: f64, until: Instant) {
        let seconds = self.passed(until);
        if part == 0.0 && seconds == 0.0 {
            return;
        }
        self.core_s += self.cores.map_or(0.0, |cores| cores as f64 * seconds);
        let weights = self.costs.weight_bytes();
        self.books().for_each(|book| book.work(part, seconds, weights));
    }

    /// No step has run until now. Those of whom [`Metering::holds`] has told have waited in their slots.
    pub fn waited(&mut self, now: Instant, generated: u64) {
        while let Some(sample) = self.sampler.take() {
            self.wait(sample.at.min(now));
            self.take_in(&sample, generated);
        }
        self.wait(now);
        self.books().for_each(|book| book.shares.clear());
    }

    fn wait(&mut self, until: Instant) {
        let seconds = self.passed(until);
        self.books().for_each(|book| book.wait(seconds));
    }

    fn books(&mut self) -> impl Iterator<Item = &mut Book> {
        std::iter::once(&mut self.seconds).chain(&mut self.joules).chain(&mut self.util)
    }

    fn passed(&mut self, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.mark).as_secs_f64();
        self.mark = self.mark.max(now);
        self.period_s += seconds;
        self.util_period_s += seconds;
        seconds
    }

    /// Takes in what was read since the last look; `generated` are the tokens so far.
    pub fn settle(&mut self, generated: u64) {
        while let Some(sample) = self.sampler.take() {
            self.take_in(&sample, generated);
        }
        let told = std::mem::take(&mut self.told);
        if told != [false; 3] {
            self.tell_later(told);
        }
    }

    /// Writes down what is known now of answers that were given before, of those that waited for what was told; who is settled
    /// leaves the books.
    fn tell_later(&mut self, told: [bool; 3]) {
        for i in (0..self.later.len()).rev() {
            let Unsettled { account, owed, later } = &self.later[i];
            if !owed.iter().zip(told).any(|(owed, told)| *owed && told) {
                continue;
            }
            let (account, owed) = (*account, self.owed(account));
            let known = self.used(&account);
            later.set(known);
            self.later[i].owed = owed;
            if known.settled {
                self.later.swap_remove(i);
                self.close(account);
            }
        }
    }

    fn take_in(&mut self, sample: &Sample, generated: u64) {
        let Sample { reading, first, answered, metered, .. } = *sample;
        let Reading { cpu_s, core_s, util, energy, lag_s } = reading;
        let held = std::mem::take(&mut self.core_s);
        let core_s = core_s.or(self.cores.map(|_| held));
        // Of a time without a step a source may tell what others' cores did.
        let ran = self.seconds.ledger.pending_steps() > 0;
        self.pace.work(core_s.filter(|_| ran).unwrap_or(0.0));
        self.seconds.ledger.settle(&Amounts { joules: None, cpu_s, core_s, util_s: None });
        // Where a device computes, CPU time says nothing of what its seconds went for.
        if self.cores.is_none() {
            self.seconds.ledger.learn();
        }
        self.answered = Some(answered);
        let told = [true, energy != Metered::NotYet, util != Utilised::NotYet];
        self.told.iter_mut().zip(told).for_each(|(all, told)| *all |= told);
        self.stats.cpu_s += cpu_s;
        self.stats.core_s = core_s.map(|more| self.stats.core_s.unwrap_or(0.0) + more);
        self.utilised(util, lag_s);
        if first || self.joules.as_ref().is_some_and(|book| book.ledger.is_loading()) {
            self.load_lost |= energy == Metered::Unknown;
            self.stats.load_known = !self.load_lost && (self.stats.load_known || matches!(energy, Metered::Known(..)));
        }
        let joules = match energy {
            Metered::NotYet => return,
            Metered::Unknown => None,
            Metered::Known(joules, method) => Some((joules, method)),
        };
        self.metered = Some(metered);
        self.book(joules, generated, first, lag_s);
    }

    fn utilised(&mut self, util: Utilised, lag_s: f64) {
        let seconds = match util {
            Utilised::NotYet => return,
            Utilised::Unknown => None,
            Utilised::Known(seconds) => Joules::new(seconds),
        };
        if let Some(book) = &mut self.util {
            let held_s = book.settle(seconds, lag_s);
            let period_s = std::mem::replace(&mut self.util_period_s, held_s) - held_s;
            self.pace.told(seconds.map(|_| book.ledger.given()));
            self.seconds.ledger.mark_cores();
            book.close_leaving();
            match seconds {
                Some(_) => self.stats.util = Some(book.ledger.split()),
                None => self.util_lost_s += period_s,
            }
        }
    }

    /// Waits for a last reading, so that the figures are those of the whole time.
    pub fn end(&mut self, doorbell: &Doorbell, generated: u64) {
        if self.joules.is_none() {
            return;
        }
        let until = Instant::now() + self.patience;
        // One that was asked for before would be of loading alone.
        self.sampler.wait_first(until);
        let ticket = self.sampler.ask();
        loop {
            doorbell.take();
            self.waited(Instant::now(), generated);
            let reached = if self.late { self.answered } else { self.metered };
            if reached >= Some(ticket) || !doorbell.wait(Some(until)) {
                break;
            }
        }
        self.settle(generated);
    }

    fn book(&mut self, joules: Option<(Joules, Method)>, generated: u64, first: bool, lag_s: f64) {
        let tokens = generated - std::mem::replace(&mut self.tokens_before, generated);
        let Some(book) = &mut self.joules else { return };
        let held_s = match joules {
            // Before the first step the model was loaded.
            Some((joules, _)) if first && !book.ledger.is_owed() => {
                book.ledger.load(joules.best());
                0.0
            }
            other => book.settle(other.map(|(joules, _)| joules), lag_s),
        };
        let seconds = std::mem::replace(&mut self.period_s, held_s) - held_s;
        match joules {
            Some((joules, method)) => {
                self.known = true;
                self.stats.tokens += tokens;
                self.stats.joules = Some(self.stats.joules.map_or(joules, |before| before.plus(joules)));
                self.stats.method = Some(self.stats.method.map_or(method, |before| before.weakest(method)));
                self.stats.watts = (seconds > 0.0).then(|| joules.best() / seconds);
            }
            None => {
                self.stats.unknown_s += seconds;
                self.stats.watts = None;
            }
        }
        // Idle power and costs are those of this machine with this model.
        book.ledger.learn();
        let costs = book.ledger.coefficients();
        self.stats.costs = Some(costs);
        self.step_energy = costs.calibrated.then(|| StepEnergy {
            fixed: costs.joules_per_weight_byte * self.costs.weight_bytes(),
            per_row: costs.joules_per_flop * self.costs.cost(0, 1, 1).flops,
            per_second: costs.idle_w.unwrap_or(0.0),
        });
        let known = book.leaving.iter().filter(|id| book.ledger.is_told(**id));
        let joules = known.filter_map(|id| book.ledger.used(*id).joules());
        joules.for_each(|joules| self.figures.request(joules.best()));
        book.close_leaving();
        self.stats.split = self.known.then(|| book.ledger.split());
        self.stats.tail = self.known.then(|| book.ledger.tail());
    }

    /// A request has ended, in vain if `wasted`. `Some` if it `wants` its energy and has to wait for it.
    pub fn leave(&mut self, account: Option<Account>, wasted: bool, wants: bool, now: Instant) -> Option<Wait> {
        let account = account?;
        for (book, id) in [(&mut self.joules, account.joules), (&mut self.util, account.util)] {
            if let Some((book, id)) = book.as_mut().zip(id)
                && wasted
            {
                book.ledger.abort(id);
            }
        }
        if wants && !wasted {
            return Some(Wait { account, ticket: self.sampler.ask(), until: now + self.patience });
        }
        self.close(account);
        None
    }

    fn close(&mut self, account: Account) {
        self.seconds.ledger.close(account.seconds);
        for (book, id) in [(&mut self.joules, account.joules), (&mut self.util, account.util)] {
            if let Some(book) = book {
                book.leaving.extend(id);
            }
        }
    }

    /// What the request has used, once that is known or its patience is over, and where the rest of it will be.
    pub fn take(&mut self, wait: &Wait, now: Instant) -> Option<(RequestEnergy, Option<Later>)> {
        let reached = |ticket: Option<Ticket>| ticket >= Some(wait.ticket);
        let joules = self.late || wait.account.joules.is_none() || reached(self.metered);
        if !(reached(self.answered) && joules) && now < wait.until {
            return None;
        }
        let known = self.used(&wait.account);
        if known.settled {
            self.close(wait.account);
            return Some((known, None));
        }
        let later = Later::new(known);
        let owed = self.owed(&wait.account);
        self.later.push(Unsettled { account: wait.account, owed, later: later.clone() });
        Some((known, Some(later)))
    }

    /// Which books have still to be told of steps that it ran in: of seconds, joules, utilisation.
    fn owed(&self, account: &Account) -> [bool; 3] {
        let owes = |book: &Option<Book>, id: Option<AccountId>| {
            book.as_ref().zip(id).is_some_and(|(book, id)| !book.ledger.is_told(id))
        };
        let seconds = !self.seconds.ledger.is_told(account.seconds);
        [seconds, owes(&self.joules, account.joules), owes(&self.util, account.util)]
    }

    /// What the readings so far say of a request that has ended.
    fn used(&self, account: &Account) -> RequestEnergy {
        let used = self.seconds.ledger.used(account.seconds);
        let owed = self.owed(account);
        let util = self.util.as_ref().zip(account.util);
        let util_s = match owed {
            [_, _, true] => util.and_then(|(book, id)| {
                let rest_s = self.seconds.ledger.core_s_since(account.seconds)?;
                Some(book.ledger.so_far(id)? + self.pace.util_s(rest_s)?)
            }),
            _ => util.and_then(|(book, id)| book.ledger.used(id).joules()).map(Joules::best),
        };
        let mut energy = RequestEnergy {
            cpu_s: used.cpu_s,
            core_s: used.core_s,
            util_s,
            extrapolated: owed[2] && util_s.is_some(),
            settled: owed == [false; 3],
            ..RequestEnergy::default()
        };
        if let Some((book, id)) = self.joules.as_ref().zip(account.joules) {
            let ledger = &book.ledger;
            let used = ledger.used(id);
            energy.joules = used.joules();
            if energy.joules.is_some() {
                energy.method = self.stats.method;
                energy.parts = Some([used.prefill_j, used.decode_j, used.wasted_j]);
                energy.static_j = ledger.coefficients().idle_w.map(|_| used.static_j);
                energy.interpolated = used.interpolated;
            }
        }
        energy
    }
}
