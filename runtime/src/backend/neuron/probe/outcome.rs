//! What a probe found, as it is reported.

use njoule_hlo::Target;
use serde::Serialize;

use super::model::LogitsFound;
use super::power::PowerFound;
use super::redaction::Redaction;
use super::speed::SpeedFound;
use super::steps::Step;
use super::{Fault, Profile, Stage};

/// A whole probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Chip that modules were made for.
    pub target: String,
    /// What was done, in order.
    pub steps: Vec<StepOutcome>,
    /// The step that everything needs and nothing passed, or at which somebody stopped: none was taken after it.
    pub stopped_at: Option<String>,
    /// The step that is being taken: in a report that was left behind, the one at which the process or the machine ended.
    pub running: Option<String>,
    /// The forms chosen up to there.
    pub chosen: Profile,
    /// The same, of a probe that was not stopped: what to build with.
    pub profile: Option<Profile>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It proves what it should.
    Passed,
    /// It does not.
    Failed,
    /// It could not be taken, or what it asks is not told here: nothing is known.
    Unknown,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepOutcome {
    /// Its name.
    pub name: String,
    /// What it proves.
    pub proves: String,
    /// How it ended.
    pub state: State,
    /// What alone needs it.
    pub only_for: Option<String>,
    /// The form that is to be emitted.
    pub chosen: Option<String>,
    /// All forms that were tried.
    pub forms: Vec<FormOutcome>,
    /// What it found, in words.
    pub words: String,
    /// A model's logits beside the reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits: Option<LogitsFound>,
    /// How long its decode steps take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<SpeedFound>,
    /// What each device tells of its power.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerFound>,
    /// What to do if it did not pass.
    pub advice: String,
}

/// A form of an idiom.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FormOutcome {
    /// Its name, as in the profile.
    pub form: String,
    /// Whether every module of it computes what it should.
    pub works: bool,
    /// How far the one came that does not.
    pub failed: Option<Stage>,
    /// Why it does not.
    pub words: String,
    /// Largest error of those that do, relative.
    pub error: f64,
}

impl Outcome {
    pub(super) fn new(target: Target) -> Outcome {
        let (target, chosen) = (target.name().to_owned(), Profile::default());
        Outcome { target, steps: vec![], stopped_at: None, running: None, chosen, profile: None }
    }

    /// The same without what tells whose machine it is: a report to send.
    pub fn redacted(&self, redaction: &Redaction) -> Outcome {
        let mut outcome = self.clone();
        for step in &mut outcome.steps {
            step.words = redaction.of(&step.words);
            step.forms.iter_mut().for_each(|form| form.words = redaction.of(&form.words));
            if let Some(logits) = &mut step.logits {
                logits.reference = redaction.of(&logits.reference);
            }
            if let Some(power) = &mut step.power {
                power.devices.iter_mut().for_each(|device| device.redact(redaction));
            }
        }
        outcome
    }
}

impl StepOutcome {
    pub(super) fn of(step: &Step) -> StepOutcome {
        StepOutcome {
            name: step.name.to_owned(),
            proves: step.proves.to_owned(),
            state: State::Failed,
            only_for: step.only_for.map(str::to_owned),
            chosen: None,
            forms: vec![],
            words: String::new(),
            logits: None,
            speed: None,
            power: None,
            advice: step.advice.to_owned(),
        }
    }

    /// What the device said is all there is to it.
    pub(super) fn says(&mut self, said: Result<String, Fault>) {
        self.state = if said.is_ok() { State::Passed } else { State::Failed };
        self.words = said.unwrap_or_else(|fault| fault.to_string());
    }

    /// It was not taken.
    pub(super) fn left_out(&mut self, why: &str) {
        self.state = State::Unknown;
        self.words = format!("left out: {why}");
    }
}
