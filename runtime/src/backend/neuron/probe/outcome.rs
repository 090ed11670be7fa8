//! What a probe found, as it is reported.

use njoule_hlo::Target;
use serde::Serialize;

use super::steps::Step;
use super::{Profile, Stage};

/// A whole probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Chip that modules were made for.
    pub target: String,
    /// What was done, in order.
    pub steps: Vec<StepOutcome>,
    /// The step that nothing passed, if there was one: none was taken after it.
    pub stopped_at: Option<String>,
    /// The forms that work here; only of a probe that was not stopped.
    pub profile: Option<Profile>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepOutcome {
    /// Its name.
    pub name: String,
    /// What it proves.
    pub proves: String,
    /// Whether it does.
    pub passed: bool,
    /// The form that is to be emitted.
    pub chosen: Option<String>,
    /// All forms that were tried.
    pub forms: Vec<FormOutcome>,
    /// What the device said, where there are no forms.
    pub words: String,
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
        Outcome { target: target.name().to_owned(), steps: vec![], stopped_at: None, profile: None }
    }

    /// The same without what tells whose machine it is: a report to send.
    pub fn redacted(&self, redaction: &Redaction) -> Outcome {
        let mut outcome = self.clone();
        for step in &mut outcome.steps {
            step.words = redaction.of(&step.words);
            step.forms.iter_mut().for_each(|form| form.words = redaction.of(&form.words));
        }
        outcome
    }
}

impl StepOutcome {
    pub(super) fn of(step: &Step) -> StepOutcome {
        StepOutcome {
            name: step.name.to_owned(),
            proves: step.proves.to_owned(),
            passed: false,
            chosen: None,
            forms: vec![],
            words: String::new(),
            advice: step.advice.to_owned(),
        }
    }
}

/// Takes paths, host names, addresses, instance ids and serial numbers out of a text.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    /// Names to take out wherever they stand: the host's, the user's.
    pub names: Vec<String>,
}

impl Redaction {
    /// The text without them; words are otherwise kept, and blanks become single.
    pub fn of(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for name in self.names.iter().filter(|name| name.len() > 1) {
            text = text.replace(name.as_str(), "<name>");
        }
        let words: Vec<String> = text.split_whitespace().map(word).collect();
        words.join(" ")
    }
}

fn word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-~:\\+%@".contains(c);
    let start = word.find(plain).unwrap_or(word.len());
    let end = word.rfind(plain).map_or(start, |at| at + word[at..].chars().next().map_or(0, char::len_utf8)).max(start);
    let (before, core, after) = (&word[..start], &word[start..end], &word[end..]);
    let core_of = core.trim_end_matches(['.', ':']);
    match secret(core_of) {
        Some(kind) => format!("{before}{kind}{}{after}", &core[core_of.len()..]),
        None => word.to_owned(),
    }
}

/// What a word is that should not be told.
fn secret(word: &str) -> Option<&'static str> {
    let hex = |text: &str| text.bytes().all(|c| c.is_ascii_hexdigit());
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    if word.contains('/') || word.contains('\\') || word.starts_with('~') {
        return Some("<path>");
    }
    let parts: Vec<&str> = word.split(['.', ':']).collect();
    let address = |separator| {
        let numbers: Vec<&str> = word.split(separator).collect();
        numbers.len() >= 4 && numbers.iter().all(|part| part.len() <= 4 && hex(part))
    };
    if word.starts_with("ip-") || word.contains('@') || word.ends_with(".internal") || word.ends_with(".com") {
        return Some("<name>");
    }
    if (address(':') || address('.')) && parts.len() >= 4 {
        return Some("<address>");
    }
    let id = word.strip_prefix("i-").unwrap_or(word);
    (id.len() >= 12 && hex(id) && digits > 0).then_some("<id>")
}
