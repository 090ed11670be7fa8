//! A meter outside the machine: lines `t_unix_s,joules` of a running total, from a command, a file or a socket.
//!
//! The joules are those of the stamps, not of the moment of reading: a window asks what was counted between the last
//! stamps before its ends, and the difference is its edge error. A total that falls in any line is a reset; a stamp from the
//! future is refused.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::{Meter, MeterError, MeterInfo, Reading, Scope};
use crate::clock::{Now, seconds};
use crate::joules::{Joules, Method};

mod command;

pub use command::SharedCommand;

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedSource {
    /// A command of the shell, run for each reading and ended after 5 s; its last line counts.
    Command(String),
    /// A file that something appends to.
    Csv(PathBuf),
    /// A Unix socket that writes lines, or one a connection; where it ends it is opened anew.
    Socket(PathBuf),
}

impl FromStr for FeedSource {
    type Err = FeedError;

    fn from_str(text: &str) -> Result<FeedSource, FeedError> {
        match text.split_once(':') {
            Some((_, "")) => Err(FeedError(text.to_owned())),
            Some(("cmd", command)) => Ok(FeedSource::Command(command.to_owned())),
            Some(("csv", path)) => Ok(FeedSource::Csv(path.into())),
            Some(("unix", path)) => Ok(FeedSource::Socket(path.into())),
            _ => Err(FeedError(text.to_owned())),
        }
    }
}

/// No feed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no feed: cmd:COMMAND, csv:FILE or unix:SOCKET, each giving lines t_unix_s,joules")]
pub struct FeedError(String);

/// One line: seconds since 1970 and joules in all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When.
    pub unix_s: f64,
    /// How much since the feed's own beginning.
    pub joules: f64,
}

impl FromStr for Sample {
    type Err = ();

    fn from_str(line: &str) -> Result<Sample, ()> {
        let (time, joules) = line.trim().split_once(',').ok_or(())?;
        let number = |text: &str| text.trim().parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0).ok_or(());
        Ok(Sample { unix_s: number(time)?, joules: number(joules)? })
    }
}

/// All samples of a text; a first line of names and empty lines are passed over, anything else is an error with its number.
pub fn samples(text: &str) -> Result<Vec<Sample>, usize> {
    let mut samples = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        match line.parse() {
            Ok(sample) => samples.push(sample),
            Err(()) if line.trim().is_empty() || number == 1 => {}
            Err(()) => return Err(number),
        }
    }
    Ok(samples)
}

/// A feed as a meter.
pub struct Feed {
    info: MeterInfo,
    source: FeedSource,
    command: Option<Arc<SharedCommand>>,
    stream: Option<Stream>,
    base: Option<Sample>,
    last: Option<Sample>,
    before: f64,
    holes: u32,
}

/// What stays open between two readings.
struct Stream {
    from: Box<dyn Read + Send>,
    partial: Vec<u8>,
    /// Whether an end is the end: of a socket. A file may grow.
    ends: bool,
}

/// What a stream had.
#[derive(Default)]
struct Drained {
    samples: Vec<Sample>,
    /// The last line, if it is none.
    unreadable: Option<String>,
    ended: bool,
}

impl Feed {
    /// A feed that covers `scope` with this uncertainty.
    pub fn new(source: FeedSource, scope: Scope, rel_uncertainty: Option<f64>) -> Feed {
        let shown = match &source {
            FeedSource::Command(command) => format!("cmd:{command}"),
            FeedSource::Csv(path) => format!("csv:{}", path.display()),
            FeedSource::Socket(path) => format!("unix:{}", path.display()),
        };
        let info = MeterInfo {
            id: "feed".into(),
            domain: DOMAIN.into(),
            scope,
            method: Method::Measured,
            source: shown,
            profile: None,
            unit_j: None,
            update_period_s: None,
            rel_uncertainty,
            parent: None,
            counts_in_total: true,
            excluded: None,
        };
        let command = match &source {
            FeedSource::Command(command) => Some(SharedCommand::new(command.clone())),
            FeedSource::Csv(_) | FeedSource::Socket(_) => None,
        };
        Feed { info, source, command, stream: None, base: None, last: None, before: 0.0, holes: 0 }
    }

    fn failed(&self, what: impl ToString) -> MeterError {
        MeterError::Failed { path: self.info.source.clone(), what: what.to_string() }
    }

    /// All complete lines since the last reading. Of a command the last line counts, and of what a stream held before the
    /// first reading as well: history is nobody's window.
    fn news(&mut self) -> (Vec<Sample>, Result<(), MeterError>) {
        let mut news = Drained::default();
        let read = match &self.command {
            Some(command) => command.said().map_err(|e| self.failed(e)).and_then(|text| {
                let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
                news.samples = vec![line.parse().map_err(|()| self.unreadable(line))?];
                Ok(())
            }),
            None => self.follow(&mut news),
        };
        if self.base.is_none() {
            news.samples.drain(..news.samples.len().saturating_sub(1));
        }
        (news.samples, read.and_then(|()| news.unreadable.map_or(Ok(()), |line| Err(self.unreadable(&line)))))
    }

    /// What a connection that has ended still held, then what a new one says.
    fn follow(&mut self, news: &mut Drained) -> Result<(), MeterError> {
        for _ in 0..2 {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => self.connect()?,
            };
            self.drain(&mut stream, news)?;
            if !std::mem::take(&mut news.ended) {
                self.stream = Some(stream);
                break;
            }
        }
        Ok(())
    }

    fn connect(&self) -> Result<Stream, MeterError> {
        let mut partial = vec![];
        let from: Box<dyn Read + Send> = match &self.source {
            FeedSource::Csv(path) => {
                let mut file = std::fs::File::open(path).map_err(|e| MeterError::from_io(path, &e))?;
                // The last lines are enough, however long the file.
                let length = file.seek(SeekFrom::End(0)).map_err(|e| self.failed(e))?;
                file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).map_err(|e| self.failed(e))?;
                Box::new(file)
            }
            #[cfg(unix)]
            FeedSource::Socket(path) => {
                let mut socket =
                    std::os::unix::net::UnixStream::connect(path).map_err(|e| MeterError::from_io(path, &e))?;
                // Who says one line a connection says it now.
                socket.set_read_timeout(Some(GREETING)).map_err(|e| self.failed(e))?;
                let mut first = [0; 4096];
                if let Ok(n) = socket.read(&mut first) {
                    partial.extend_from_slice(&first[..n]);
                }
                socket.set_nonblocking(true).map_err(|e| self.failed(e))?;
                Box::new(socket)
            }
            #[cfg(not(unix))]
            FeedSource::Socket(_) => return Err(MeterError::Unsupported(self.info.source.clone())),
            FeedSource::Command(_) => return Err(MeterError::Unsupported(self.info.source.clone())),
        };
        Ok(Stream { from, partial, ends: matches!(self.source, FeedSource::Socket(_)) })
    }

    /// Reads what there is.
    fn drain(&self, stream: &mut Stream, news: &mut Drained) -> Result<(), MeterError> {
        let mut buffer = [0; 4096];
        let mut read = 0;
        while read < MOST_AT_ONCE {
            match stream.from.read(&mut buffer) {
                Ok(0) => {
                    news.ended = stream.ends;
                    // The end of a connection ends its last line.
                    if stream.ends && !stream.partial.is_empty() {
                        stream.partial.push(b'\n');
                    }
                    break;
                }
                Ok(n) => {
                    read += n;
                    stream.partial.extend_from_slice(&buffer[..n]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        let Some(end) = stream.partial.iter().rposition(|b| *b == b'\n') else {
            if stream.partial.len() > LONGEST_LINE {
                stream.partial.clear();
                return Err(self.failed("a line without end"));
            }
            return Ok(());
        };
        let complete: Vec<u8> = stream.partial.drain(..=end).collect();
        for line in String::from_utf8_lossy(&complete).lines().filter(|line| !line.trim().is_empty()) {
            news.unreadable = None;
            match line.parse() {
                Ok(sample) => news.samples.push(sample),
                Err(()) => news.unreadable = Some(line.to_owned()),
            }
        }
        Ok(())
    }

    /// Takes a line in; whether it fell below the one before.
    fn take(&mut self, sample: Sample) -> bool {
        let base = *self.base.get_or_insert(sample);
        match self.last.replace(sample) {
            Some(last) if sample.joules < last.joules => {
                // What it counted up to the reset stays; what lies between is lost.
                self.before += last.joules - base.joules;
                self.base = Some(sample);
                self.holes += 1;
                true
            }
            _ => false,
        }
    }

    fn unreadable(&self, line: &str) -> MeterError {
        MeterError::Unreadable { path: self.info.source.clone(), text: line.chars().take(80).collect() }
    }
}

impl Meter for Feed {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn info_mut(&mut self) -> &mut MeterInfo {
        &mut self.info
    }

    fn command(&self) -> Option<Arc<SharedCommand>> {
        self.command.clone()
    }

    fn late(&self) -> u32 {
        self.command.as_ref().map_or(0, |command| command.late())
    }

    fn read(&mut self, now: Now) -> Result<Reading, MeterError> {
        let (news, read) = self.news();
        if let Some(ahead) = news.iter().map(|sample| sample.unix_s - now.unix_s).find(|ahead| *ahead > AHEAD_S) {
            let what =
                format!("a stamp lies {ahead:.0} s ahead of this machine's clock: stamps are seconds since 1970");
            return Err(self.failed(what));
        }
        let falls = news.into_iter().filter(|sample| self.take(*sample)).count();
        read?;
        if falls > 0 {
            return Err(MeterError::Reset(self.info.source.clone()));
        }
        let (Some(base), Some(last)) = (self.base, self.last) else {
            return Err(MeterError::Silent(self.info.source.clone()));
        };
        let at_ns = now.mono_of_unix(last.unix_s);
        if seconds(at_ns, now.mono_ns) > STALE_S {
            return Err(self.failed(format!("nothing new for {:.0} s", seconds(at_ns, now.mono_ns))));
        }
        let total = Joules::new(self.before + (last.joules - base.joules)).unwrap_or(Joules::ZERO);
        Ok(Reading { at_ns, total, wraps: 0, holes: self.holes, ambiguous: 0 })
    }
}

/// What a feed calls its domain.
pub(super) const DOMAIN: &str = "feed";

/// Bytes at the end of a file that is opened.
const TAIL: u64 = 4096;

/// Bytes of a stream in one reading.
const MOST_AT_ONCE: usize = 1 << 20;

/// Bytes of a line.
const LONGEST_LINE: usize = 4096;

/// How long a new connection is waited for to say its first line.
#[cfg(unix)]
const GREETING: std::time::Duration = std::time::Duration::from_millis(20);

/// Two machines' clocks, and a command that was asked before it gave its stamp, may be this far apart.
const AHEAD_S: f64 = 10.0;

/// A feed that says nothing for this long has ended.
const STALE_S: f64 = 300.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_line_is_a_sample_or_none(line in ".{0,40}") {
            if let Ok(sample) = line.parse::<Sample>() {
                prop_assert!(sample.unix_s >= 0.0 && sample.joules >= 0.0);
            }
            let _ = samples(&line);
        }
    }

    #[test]
    fn a_table_may_have_a_head_and_says_where_it_is_broken() {
        let table = samples("t_unix_s,joules\n1.5,10\n\n2.5,30\n").unwrap();
        assert_eq!(table, [Sample { unix_s: 1.5, joules: 10.0 }, Sample { unix_s: 2.5, joules: 30.0 }]);
        assert_eq!(samples("1,2\n3\n"), Err(2));
        assert_eq!(samples("1,2\n3,-4\n"), Err(2));
    }

    #[test]
    fn feeds_are_named_by_kind() {
        assert_eq!("cmd:pdu --total".parse(), Ok(FeedSource::Command("pdu --total".into())));
        assert_eq!("unix:/run/pdu".parse(), Ok(FeedSource::Socket("/run/pdu".into())));
        let error = "pdu".parse::<FeedSource>().unwrap_err().to_string();
        assert!(error.contains("cmd:COMMAND, csv:FILE or unix:SOCKET"), "{error}");
    }
}
