//! A ledger, the step that it will be told, and who leaves it.

use njoule_energy::Joules;
use njoule_energy::attribution::{AccountId, Amounts, Ledger, Share};

/// A ledger and what it will be told.
pub struct Book {
    pub ledger: Ledger,
    /// The step in the making.
    pub shares: Vec<Share>,
    /// Accounts that are closed at its next reading: what they have not been charged for yet is their own.
    pub leaving: Vec<AccountId>,
}

impl Book {
    /// Without entries.
    pub fn new(ledger: Ledger) -> Book {
        Book { ledger, shares: Vec::new(), leaving: Vec::new() }
    }

    /// A part of the step in the making.
    pub fn work(&mut self, part: f64, seconds: f64, weight_bytes: f64) {
        self.ledger.part_of_step(part, seconds, weight_bytes, &self.shares);
    }

    /// Time without a step, which is theirs who hold a slot.
    pub fn wait(&mut self, seconds: f64) {
        if self.shares.is_empty() {
            self.ledger.idle(seconds);
        } else if seconds > 0.0 {
            self.ledger.part_of_step(0.0, seconds, 0.0, &self.shares);
        }
    }

    /// What was used since the last time, up to `lag_s` ago; `None` will never be known. Loading in these last seconds, which is
    /// for the next reading; of steps that long is not to be told.
    pub fn settle(&mut self, joules: Option<Joules>, lag_s: f64) -> f64 {
        let held_s = self.ledger.hold_loading(lag_s);
        self.ledger.settle(&Amounts { joules, ..Amounts::default() });
        self.ledger.load_for(held_s);
        held_s
    }

    /// Those who leave have been charged.
    pub fn close_leaving(&mut self) {
        for id in self.leaving.drain(..) {
            self.ledger.close(id);
        }
    }
}
