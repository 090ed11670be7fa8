//! How fetching tells a person what it does: a bar on a terminal, plain lines elsewhere, nothing when quiet.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where notes and the progress of transfers go.
pub trait Reporter: fmt::Debug + Send + Sync {
    /// Something worth knowing.
    fn note(&self, text: &str);
    /// A transfer starts; `have` bytes of it are here already.
    fn start(&self, what: &str, have: u64, total: Option<u64>);
    /// Bytes arrived.
    fn advance(&self, bytes: u64);
    /// The transfer has ended, one way or the other.
    fn finish(&self);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn note(&self, _: &str) {}
    fn start(&self, _: &str, _: u64, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
}

/// Speaks on stderr: a progress bar if it is a terminal, one line per transfer if not.
#[derive(Debug, Default)]
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
}

impl Terminal {
    /// A reporter on the process's stderr.
    pub fn new() -> Self {
        Self::default()
    }

    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        // A poisoned lock means that a transfer panicked: the bar is still a bar.
        act(&mut self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Reporter for Terminal {
    fn note(&self, text: &str) {
        // Notes are lost if stderr is closed; that stops nothing.
        let say = || drop(writeln!(std::io::stderr(), "{text}"));
        self.with_bar(|bar| match bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        });
    }

    fn start(&self, what: &str, have: u64, total: Option<u64>) {
        if !std::io::stderr().is_terminal() {
            let size = total.map_or(String::new(), |total| format!(" ({:.1} MB)", total as f64 / 1e6));
            let resumed =
                if have > 0 { format!(", going on after {:.1} MB", have as f64 / 1e6) } else { String::new() };
            return self.note(&format!("downloading {what}{size}{resumed}"));
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_message(what.to_owned());
        let template = if total.is_some() { WITH_TOTAL } else { WITHOUT_TOTAL };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_position(have);
        bar.reset_eta();
        self.with_bar(|slot| *slot = Some(bar));
    }

    fn advance(&self, bytes: u64) {
        self.with_bar(|bar| bar.iter().for_each(|bar| bar.inc(bytes)));
    }

    fn finish(&self) {
        self.with_bar(|slot| slot.take().into_iter().for_each(|bar| bar.finish_and_clear()));
    }
}

const WITH_TOTAL: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const WITHOUT_TOTAL: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";
