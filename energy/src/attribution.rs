//! The split of energy over the requests that shared a device, step by step.
//!
//! Between two readings of the meter lies a period of one or more steps. Its energy is static (idle power times time, split by
//! occupied slot-time) and dynamic (the rest, split by each sequence's weight):
//!
//! ```text
//! w = A · FLOPs + K · cache bytes + W · weight bytes / sequences of the step
//! ```
//!
//! The equal share of the weights' reading is the Shapley value of a fixed cost, so no order matters. A, K and W are declared
//! until the meter has told them ([`Fit`]). Invariants: the buckets add up to what was settled; no share is negative; what
//! cannot be given to anybody goes to a bucket that says so. After its first steps nothing here allocates.

use serde::Serialize;

use crate::joules::Joules;

mod fit;

pub use fit::Fit;

/// What a step's work costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Coefficients {
    /// Joules per floating-point operation.
    pub joules_per_flop: f64,
    /// Joules per byte of cache read or written.
    pub joules_per_kv_byte: f64,
    /// Joules per byte of weights read; what a step costs beside its rows is in it where it was fitted.
    pub joules_per_weight_byte: f64,
    /// Watts with the model loaded and nothing to do; unknown is `None`, and all energy is dynamic then.
    pub idle_w: Option<f64>,
    /// Whether the meter gave them, or a declaration.
    pub calibrated: bool,
}

impl Default for Coefficients {
    /// The declared constants of the physical bound: only their ratio matters to a split.
    fn default() -> Coefficients {
        let bound = crate::bound::LimitConstants::default();
        Coefficients {
            joules_per_flop: bound.eps_f_pj_flop * 1e-12,
            joules_per_kv_byte: 8.0 * bound.eps_m_pj_bit * 1e-12,
            joules_per_weight_byte: 8.0 * bound.eps_m_pj_bit * 1e-12,
            idle_w: None,
            calibrated: false,
        }
    }
}

/// What a sequence's rows are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its prompt, for the first time.
    Prefill,
    /// Its next token.
    Decode,
    /// Nobody's good: rows computed before, drafts refused, padding.
    Waste,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Whose; `None` is padding.
    pub account: Option<AccountId>,
    /// What for.
    pub purpose: Purpose,
    /// Floating-point operations; none if it held its slot and waited.
    pub flops: f64,
    /// Cache bytes read and written.
    pub kv_bytes: f64,
}

/// An account of a [`Ledger`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AccountId(u32);

/// What a meter and clocks say of a period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amounts {
    /// Energy; `None` is unknown.
    pub joules: Option<Joules>,
    /// CPU-seconds.
    pub cpu_s: f64,
    /// Seconds of accelerator cores.
    pub core_s: Option<f64>,
    /// Utilisation-seconds of accelerators.
    pub util_s: Option<f64>,
}

/// Joules by what they went for. Static energy lies in the bucket of those who held the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Split {
    /// Prompts.
    pub prefill_j: f64,
    /// Generated tokens.
    pub decode_j: f64,
    /// Nobody's good.
    pub wasted_j: f64,
    /// No sequence ran.
    pub idle_j: f64,
    /// Loading and compiling.
    pub load_j: f64,
    /// Steps whose work is unknown.
    pub unattributed_j: f64,
}

impl Split {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.prefill_j + self.decode_j + self.wasted_j + self.idle_j + self.load_j + self.unattributed_j
    }
}

/// What a request has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// For its prompt, static share included.
    pub prefill_j: f64,
    /// For its tokens, static share included.
    pub decode_j: f64,
    /// In vain, static share included.
    pub wasted_j: f64,
    /// Of these three, the static share.
    pub static_j: f64,
    /// The interval of their sum.
    pub bounds: Option<(f64, f64)>,
    /// Whether every step it ran in was covered by a reading that knew the energy.
    pub known: bool,
    /// Whether a reading covered more than one step, or its share was inferred from a longer period.
    pub interpolated: bool,
    /// CPU-seconds.
    pub cpu_s: f64,
    /// Seconds of accelerator cores.
    pub core_s: Option<f64>,
    /// Utilisation-seconds of accelerators.
    pub util_s: Option<f64>,
}

impl Used {
    /// Its energy, if every part is known.
    pub fn joules(&self) -> Option<Joules> {
        let best = self.prefill_j + self.decode_j + self.wasted_j;
        let known = match self.bounds {
            Some((low, high)) => Joules::within(low.min(best), best, high.max(best)),
            None => Joules::new(best),
        };
        known.filter(|_| self.known)
    }
}

/// Accounts of the requests that run, and the buckets of all.
#[derive(Clone, Debug)]
pub struct Ledger {
    coefficients: Coefficients,
    /// What the fit falls back on.
    declared: Coefficients,
    currency: Currency,
    accounts: Vec<Account>,
    free: Vec<AccountId>,
    /// Accounts with something pending.
    touched: Vec<AccountId>,
    pending: Period,
    /// Steps so far.
    round: u64,
    split: Split,
    /// What idling since the last step has used, in its bucket.
    tail: Joules,
    /// Of the last reading, what accounts got.
    given: f64,
    cpu_s: f64,
    fit: Fit,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    used: Used,
    pending: [Part; 3],
    touched: bool,
    aborted: bool,
    /// Rounds whose shares of the slots and of the weights' reading are still to be given.
    held: Option<u64>,
    worked: Option<u64>,
    /// Whether a period lacked the seconds of cores, and the utilisation.
    lost: [bool; 2],
    /// Its seconds of cores by the last [`Ledger::mark_cores`].
    marked_core_s: f64,
}

impl Account {
    /// What it has used; not known while steps of it wait for a reading.
    fn so_far(&self) -> Used {
        Used { known: self.used.known && !self.touched, ..self.used }
    }
}

/// What costs are fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Currency {
    Joules,
    CpuTime,
}

/// What is pending of one purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Part {
    work: Work,
    slot_s: f64,
}

/// Work whose price is looked up when it is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Work {
    flops: f64,
    kv_bytes: f64,
    /// Its share of the weights' reading.
    weight_bytes: f64,
}

impl Work {
    fn add(&mut self, flops: f64, kv_bytes: f64, weight_bytes: f64) {
        self.flops += flops;
        self.kv_bytes += kv_bytes;
        self.weight_bytes += weight_bytes;
    }

    fn cost(&self, coefficients: &Coefficients) -> f64 {
        coefficients.joules_per_flop * self.flops
            + coefficients.joules_per_kv_byte * self.kv_bytes
            + coefficients.joules_per_weight_byte * self.weight_bytes
    }
}

/// What has happened since the last reading.
#[derive(Clone, Copy, Debug, Default)]
struct Period {
    steps: u32,
    active_s: f64,
    idle_s: f64,
    /// Of the idle time, what lies behind the last step.
    tail_s: f64,
    /// Of loading.
    load_s: f64,
    /// All of it that somebody has, padding included.
    work: Work,
    slot_s: f64,
    /// Of padding, which has no account.
    padding: Work,
    /// Weight bytes read, whoever has them.
    weight_bytes: f64,
}

impl Ledger {
    /// Empty; `coefficients` are declared.
    pub fn new(coefficients: Coefficients) -> Ledger {
        Ledger::of(Currency::Joules, coefficients)
    }

    /// Empty, of a time whose costs are fitted to the CPU-seconds and not to joules.
    pub fn of_cpu_time(coefficients: Coefficients) -> Ledger {
        Ledger::of(Currency::CpuTime, coefficients)
    }

    fn of(currency: Currency, coefficients: Coefficients) -> Ledger {
        Ledger {
            coefficients,
            declared: coefficients,
            currency,
            accounts: vec![],
            free: vec![],
            touched: vec![],
            pending: Period::default(),
            round: 0,
            split: Split::default(),
            tail: Joules::ZERO,
            given: 0.0,
            cpu_s: 0.0,
            fit: Fit::default(),
        }
    }

    /// What a step's work costs, as it is believed now.
    pub fn coefficients(&self) -> Coefficients {
        self.coefficients
    }

    /// Believes something else from the next reading on.
    pub fn set_coefficients(&mut self, coefficients: Coefficients) {
        self.coefficients = coefficients;
    }

    /// Believes from the next reading on what the readings so far say: the fitted costs as soon as they can be told, and the idle
    /// power.
    pub fn learn(&mut self) {
        let known = Coefficients { idle_w: self.fit.idle_w().or(self.declared.idle_w), ..self.declared };
        self.coefficients = self.fit.solve(&self.declared).unwrap_or(known);
    }

    /// Periods and their work so far, for [`Fit::solve`].
    pub fn fit(&self) -> &Fit {
        &self.fit
    }

    /// Joules settled so far.
    pub fn split(&self) -> Split {
        self.split
    }

    /// CPU-seconds settled so far.
    pub fn cpu_s(&self) -> f64 {
        self.cpu_s
    }

    /// Steps since the last reading.
    pub fn pending_steps(&self) -> u32 {
        self.pending.steps
    }

    /// Whether a reading is still to come of a time in which something was loaded or run.
    pub fn is_owed(&self) -> bool {
        self.pending.steps > 0 || self.is_loading()
    }

    /// Whether loading is part of what the next reading tells.
    pub fn is_loading(&self) -> bool {
        self.pending.load_s > 0.0
    }

    /// Of the joules settled so far, what idling since the last step has used; they are in `idle_j`.
    pub fn tail(&self) -> Joules {
        self.tail
    }

    /// A request begins to run.
    pub fn open(&mut self) -> AccountId {
        let fresh = Account { used: Used { known: true, ..Used::default() }, ..Account::default() };
        match self.free.pop() {
            Some(id) => {
                self.accounts[id.0 as usize] = fresh;
                id
            }
            None => {
                self.accounts.push(fresh);
                // Each account is touched once between two readings: a step needs no more room.
                self.touched.reserve(self.accounts.len() - self.touched.len());
                // More requests at once than 32 bits count do not fit into memory.
                AccountId(u32::try_from(self.accounts.len() - 1).unwrap_or(u32::MAX))
            }
        }
    }

    /// A request ended without use to anybody: what it has used and still has pending is waste.
    pub fn abort(&mut self, id: AccountId) {
        let account = &mut self.accounts[id.0 as usize];
        account.aborted = true;
        let used = &mut account.used;
        let moved = used.prefill_j + used.decode_j;
        self.split.prefill_j -= used.prefill_j;
        self.split.decode_j -= used.decode_j;
        // Differences of sums may fall below zero by a rounding.
        self.split.prefill_j = self.split.prefill_j.max(0.0);
        self.split.decode_j = self.split.decode_j.max(0.0);
        self.split.wasted_j += moved;
        used.wasted_j += moved;
        (used.prefill_j, used.decode_j) = (0.0, 0.0);
    }

    /// What a request has used, as of the last reading; its account is closed. Steps that no reading covers yet stay
    /// unattributed.
    pub fn close(&mut self, id: AccountId) -> Used {
        let account = self.accounts[id.0 as usize];
        // What it has pending stays in the period, so that the others get no more for it.
        self.touched.retain(|touched| *touched != id);
        self.accounts[id.0 as usize] = Account::default();
        self.free.push(id);
        account.so_far()
    }

    /// What a request has used, as of the last reading.
    pub fn used(&self, id: AccountId) -> Used {
        self.accounts[id.0 as usize].so_far()
    }

    /// Whether readings cover every step that a request has run in, whether or not they knew its energy.
    pub fn is_told(&self, id: AccountId) -> bool {
        !self.accounts[id.0 as usize].touched
    }

    /// What readings have told of a request so far, where all of them knew: the rest is still to come. `None` if a part will
    /// never be known.
    pub fn so_far(&self, id: AccountId) -> Option<f64> {
        let used = &self.accounts[id.0 as usize].used;
        used.known.then_some(used.prefill_j + used.decode_j + used.wasted_j)
    }

    /// Of the last reading, what accounts got: neither padding nor idling nor loading.
    pub fn given(&self) -> f64 {
        self.given
    }

    /// From here on [`Ledger::core_s_since`] counts.
    pub fn mark_cores(&mut self) {
        self.accounts.iter_mut().for_each(|account| account.marked_core_s = account.used.core_s.unwrap_or(0.0));
    }

    /// Seconds of cores of a request since the last mark, or since it began.
    pub fn core_s_since(&self, id: AccountId) -> Option<f64> {
        let account = &self.accounts[id.0 as usize];
        account.used.core_s.map(|core_s| core_s - account.marked_core_s)
    }

    /// A step of `seconds` that read `weight_bytes` and did `shares`.
    pub fn step(&mut self, seconds: f64, weight_bytes: f64, shares: &[Share]) {
        self.part_of_step(1.0, seconds, weight_bytes, shares);
    }

    /// The `part` of a step's work that was done in `seconds` of it, where a reading lies inside it.
    pub fn part_of_step(&mut self, part: f64, seconds: f64, weight_bytes: f64, shares: &[Share]) {
        // Sequences, not shares: one that has a part to waste beside its token is one.
        self.round += 1;
        let round = self.round;
        let (mut working, mut holding) = (0u32, 0u32);
        for share in shares {
            let Some(id) = share.account else { continue };
            let account = &mut self.accounts[id.0 as usize];
            holding += u32::from(account.held.replace(round) != Some(round));
            if share.flops > 0.0 {
                working += u32::from(account.worked.replace(round) != Some(round));
            }
        }
        let (working, holding) = (f64::from(working.max(1)), f64::from(holding.max(1)));
        let weight_bytes = part * weight_bytes;
        let pending = &mut self.pending;
        (self.tail, pending.tail_s) = (Joules::ZERO, 0.0);
        pending.steps += 1;
        pending.active_s += seconds;
        pending.weight_bytes += weight_bytes;
        for share in shares {
            let (flops, kv_bytes) = (part * share.flops, part * share.kv_bytes);
            let Some(id) = share.account else {
                pending.padding.add(flops, kv_bytes, 0.0);
                pending.work.add(flops, kv_bytes, 0.0);
                continue;
            };
            let account = &mut self.accounts[id.0 as usize];
            // Once for each sequence: with its first share, and with its first that works.
            let works = share.flops > 0.0 && account.worked.take_if(|at| *at == round).is_some();
            let read = if works { weight_bytes / working } else { 0.0 };
            let held = if account.held.take_if(|at| *at == round).is_some() { seconds / holding } else { 0.0 };
            let own = &mut account.pending[share.purpose as usize];
            own.work.add(flops, kv_bytes, read);
            own.slot_s += held;
            pending.work.add(flops, kv_bytes, read);
            pending.slot_s += held;
            if !account.touched {
                account.touched = true;
                self.touched.push(id);
            }
        }
    }

    /// Time in which no sequence ran.
    pub fn idle(&mut self, seconds: f64) {
        self.pending.idle_s += seconds;
        self.pending.tail_s += seconds;
    }

    /// Time in which the model was loaded, where the next reading tells of more than that.
    pub fn load_for(&mut self, seconds: f64) {
        self.pending.load_s += seconds;
    }

    /// Energy of loading or compiling.
    pub fn load(&mut self, joules: f64) {
        self.split.load_j += joules.max(0.0);
    }

    /// Takes the last `seconds` of loading away from what the next reading is of, and says how many these were.
    pub fn hold_loading(&mut self, seconds: f64) -> f64 {
        let held = self.pending.load_s.min(seconds.max(0.0));
        self.pending.load_s -= held;
        held
    }

    /// A reading: splits what was used since the last over what happened since.
    pub fn settle(&mut self, amounts: &Amounts) {
        let period = std::mem::take(&mut self.pending);
        let best = amounts.joules.map_or(0.0, Joules::best);
        // Of nothing there is no share of an interval, unless that is nothing too.
        let around = amounts.joules.and_then(Joules::bounds).and_then(|(low, high)| match best > 0.0 {
            true => Some((low / best, high / best)),
            false => (high == 0.0).then_some((1.0, 1.0)),
        });
        // Without a step: idling and loading, which shares idle power by time and has what goes beyond it, but not what
        // steps are there for.
        let rest_s = period.idle_s + period.load_s;
        let rest = match self.coefficients.idle_w {
            _ if period.steps == 0 => best,
            Some(watts) => (watts * rest_s).min(best),
            None => best * ratio(rest_s, rest_s + period.active_s),
        };
        let idle = match self.coefficients.idle_w {
            _ if period.load_s == 0.0 => rest,
            Some(watts) if period.steps == 0 => (watts * period.idle_s).min(rest),
            _ => rest * ratio(period.idle_s, rest_s),
        };
        let active = best - rest;
        let fixed = self.coefficients.idle_w.map_or(0.0, |watts| watts * period.active_s);
        let fixed = fixed.min(active);
        let moving = active - fixed;
        self.split.idle_j += idle;
        self.split.load_j += rest - idle;
        let tail = idle * ratio(period.tail_s, period.idle_s);
        let tail = match around {
            Some((low, high)) => Joules::within(tail * low, tail, tail * high),
            None => Joules::new(tail),
        };
        self.tail = tail.map_or(self.tail, |tail| if self.tail == Joules::ZERO { tail } else { self.tail.plus(tail) });
        self.cpu_s += amounts.cpu_s;
        let work = [period.active_s, period.work.flops, period.work.kv_bytes, period.weight_bytes];
        match (self.currency, amounts.joules) {
            (Currency::Joules, _) if period.load_s > 0.0 => {}
            (Currency::Joules, Some(_)) if period.steps == 0 => self.fit.add_idle(period.idle_s, best),
            (Currency::Joules, Some(_)) if period.idle_s == 0.0 => self.fit.add(work, best),
            // Idling takes none worth telling.
            (Currency::CpuTime, _) if period.steps > 0 => self.fit.add(work, amounts.cpu_s),
            _ => {}
        }
        let whole = period.work.cost(&self.coefficients);
        // Of a time in which slots were held and nothing was run, all is by slot-time.
        let by_work = |work: &Work, slot_s: f64| match whole > 0.0 {
            true => ratio(work.cost(&self.coefficients), whole),
            false => ratio(slot_s, period.slot_s),
        };
        let padding = moving * by_work(&period.padding, 0.0);
        self.split.wasted_j += padding;
        let mut given = padding;
        for id in self.touched.drain(..) {
            let account = &mut self.accounts[id.0 as usize];
            let parts = std::mem::take(&mut account.pending);
            account.touched = false;
            let used = &mut account.used;
            used.known &= amounts.joules.is_some();
            used.interpolated |= period.steps > 1;
            let mut all = 0.0;
            let mut worked = 0.0;
            for (purpose, part) in parts.iter().enumerate() {
                let share = by_work(&part.work, part.slot_s);
                let held = fixed * ratio(part.slot_s, period.slot_s);
                let joules = moving * share + held;
                let (own, bucket) = match (purpose, account.aborted) {
                    (0, false) => (&mut used.prefill_j, &mut self.split.prefill_j),
                    (1, false) => (&mut used.decode_j, &mut self.split.decode_j),
                    _ => (&mut used.wasted_j, &mut self.split.wasted_j),
                };
                *own += joules;
                *bucket += joules;
                used.static_j += held;
                all += joules;
                worked += share;
            }
            given += all;
            let before = used.bounds.or((used.prefill_j + used.decode_j + used.wasted_j == all).then_some((0.0, 0.0)));
            used.bounds = before.zip(around).map(|(b, (low, high))| (b.0 + all * low, b.1 + all * high));
            used.cpu_s += amounts.cpu_s * worked;
            // A sum with a part unknown is unknown.
            let sums = [(&mut used.core_s, amounts.core_s), (&mut used.util_s, amounts.util_s)];
            for ((sum, amount), lost) in sums.into_iter().zip(&mut account.lost) {
                *lost |= amount.is_none();
                *sum = amount.filter(|_| !*lost).map(|amount| sum.unwrap_or(0.0) + amount * worked);
            }
        }
        self.given = given - padding;
        // What closed accounts had pending, and what nobody can be given.
        self.split.unattributed_j += (active - given).max(0.0);
    }
}

/// A share of a whole that may be nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole).clamp(0.0, 1.0) } else { 0.0 }
}
