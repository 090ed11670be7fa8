//! Energy in answers: `usage.energy` and the header `x-njoule-energy`, and what meters tell later.
//!
//! Their form is the engine's ([`Energy`]), as that of `GET /v1/energy` is: other programs tell theirs the same way.

mod answers;

use std::sync::Arc;

use hyper::StatusCode;
use njoule_runtime::engine::Later;

pub use njoule_runtime::engine::Energy;

pub use self::answers::Answers;
use crate::app::App;
use crate::error::ApiError;
use crate::mailbox::Part;
use crate::tenant::Tenant;

/// What the sequences of an answer have used, as they end.
#[derive(Clone, Debug, Default)]
pub struct Used {
    /// Of those that are settled.
    settled: Option<Energy>,
    later: Vec<Later>,
}

impl Used {
    /// Adds what a sequence has used, if this is its end and it was asked for.
    pub fn add(&mut self, part: &Part) {
        let Some(end) = &part.end else { return };
        match (&end.usage.energy_later, end.usage.energy.as_deref()) {
            (Some(later), _) => self.later.push(later.clone()),
            (None, Some(used)) => self.settled = plus(self.settled, (*used).into()),
            (None, None) => {}
        }
    }

    /// The sum, as far as it is known now.
    pub fn now(&self) -> Option<Energy> {
        self.later.iter().fold(self.settled, |sum, later| plus(sum, later.now().into()))
    }

    /// The same; what is settled needs no place of its own any more.
    fn settle(&mut self) -> Option<Energy> {
        let settled = &mut self.settled;
        self.later.retain(|later| {
            let now = Energy::from(later.now());
            if now.settled {
                *settled = plus(*settled, now);
            }
            !now.settled
        });
        self.now()
    }

    /// Sequences that are not settled.
    fn open(&self) -> usize {
        self.later.len()
    }
}

fn plus(sum: Option<Energy>, more: Energy) -> Option<Energy> {
    Some(sum.map_or(more, |sum| sum.plus(more)))
}

/// Whose answers are kept, and where.
#[derive(Clone)]
pub struct Keeper {
    app: Arc<App>,
    tenant: Tenant,
}

impl Keeper {
    /// For answers to `tenant`.
    pub fn new(app: &Arc<App>, tenant: Tenant) -> Keeper {
        Keeper { app: app.clone(), tenant }
    }

    /// What the answer `id`, all of whose sequences have ended, has used; kept for who asks later, if it was asked for.
    pub fn keep(&self, id: &str, used: &Used) -> Option<Energy> {
        let now = used.now()?;
        self.app.answers.keep(id, self.tenant, used.clone(), std::time::Instant::now());
        Some(now)
    }
}

/// What `tenant` can be told of the answer `id`.
pub fn of_answer(app: &App, id: &str, tenant: Tenant) -> Result<Energy, ApiError> {
    let found = app.answers.find(id, tenant, std::time::Instant::now());
    found.ok_or_else(|| {
        let message = "no answer of yours has this id, it was not asked for its energy, or it was too long ago";
        ApiError::new(StatusCode::NOT_FOUND, "unknown_answer", message)
    })
}

/// The header that asks for energy, and that brings it.
pub const HEADER: &str = "x-njoule-energy";
