//! The input, read on a thread of its own: a slow one (a pipe, a terminal) keeps no answer from being written.
//!
//! Invariant: no more lines are read than were asked for, so that memory is bounded however fast the input is.

use std::io::{self, BufRead};
use std::sync::mpsc::{Sender, channel};

use super::lines::Lines;

/// What comes of the input.
pub enum Input {
    /// A line.
    Line(Line),
    /// There is no other.
    End,
    /// There may be others, which cannot be read.
    Failed(io::Error),
}

/// A line without its end.
pub struct Line {
    /// From 1.
    pub number: u64,
    /// Its bytes; `None` where there are more than the limit.
    pub bytes: Option<Vec<u8>>,
    /// Bytes of the input up to its end.
    pub offset: u64,
}

impl Line {
    /// Whether there is nothing in it.
    pub fn is_blank(&self) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| bytes.trim_ascii().is_empty())
    }
}

/// Asks for lines.
pub struct Reader {
    ask: Sender<()>,
    /// Lines that were asked for and have not come.
    asked: usize,
    ended: bool,
}

impl Reader {
    /// Reads from `input` lines of at most `limit` bytes and hands over what comes by `give`, until that says that nobody wants
    /// more. The thread is left alone when the reader is dropped: it may wait for the input forever.
    pub fn start(
        input: Box<dyn BufRead + Send>,
        limit: usize,
        give: impl Fn(Input) -> bool + Send + 'static,
    ) -> io::Result<Reader> {
        let (ask, asked) = channel();
        std::thread::Builder::new().name("njoule-input".into()).spawn(move || {
            let mut lines = Lines::new(input, limit);
            for () in asked {
                let line = lines.next().map(|line| line.map(|line| (line.number, line.bytes.map(<[u8]>::to_vec))));
                let (given, last) = match line {
                    Ok(Some((number, bytes))) => (Input::Line(Line { number, bytes, offset: lines.offset() }), false),
                    Ok(None) => (Input::End, true),
                    Err(error) => (Input::Failed(error), true),
                };
                if !give(given) || last {
                    break;
                }
            }
        })?;
        Ok(Reader { ask, asked: 0, ended: false })
    }

    /// Asks for one more line, unless `most` are being read or there is none.
    pub fn ask(&mut self, most: usize) -> bool {
        let asks = !self.ended && self.asked < most && self.ask.send(()).is_ok();
        self.asked += usize::from(asks);
        asks
    }

    /// Takes note of what has come.
    pub fn came(&mut self, input: &Input) {
        self.asked -= 1;
        self.ended |= !matches!(input, Input::Line(_));
    }

    /// Lines that are being read.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Whether there are no others.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_lines_are_read_than_were_asked_for() {
        let (give, given) = channel();
        let text = io::Cursor::new(b"a\n\nccc\n".to_vec());
        let mut reader = Reader::start(Box::new(text), 2, move |input| give.send(input).is_ok()).unwrap();
        assert!(given.try_recv().is_err());
        assert!(reader.ask(2) && reader.ask(2) && !reader.ask(2));
        let next = |reader: &mut Reader| {
            let input = given.recv().unwrap();
            reader.came(&input);
            match input {
                Input::Line(line) => Some((line.number, line.bytes.clone(), line.offset, line.is_blank())),
                _ => None,
            }
        };
        assert_eq!(next(&mut reader), Some((1, Some(b"a".to_vec()), 2, false)));
        assert_eq!(next(&mut reader), Some((2, Some(vec![]), 3, true)));
        assert_eq!(reader.asked(), 0);
        assert!(reader.ask(1));
        assert_eq!(next(&mut reader), Some((3, None, 7, false)), "longer than the limit");
        assert!(reader.ask(1) && !reader.ended());
        assert_eq!(next(&mut reader), None);
        assert!(reader.ended() && !reader.ask(1));
    }
}
