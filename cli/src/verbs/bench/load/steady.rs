//! The steady window of a closed loop: from when every client has had a first token until one finds nothing left to send.
//!
//! In between all places are taken, as ml.energy counts it; what lies before and behind is a ramp. Invariant: the window's
//! tokens and joules are of the same time, that between the meters' two readings, which are made as its ends are seen.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::verbs::bench::client::Answer;
use crate::verbs::bench::measure::Metered;
use crate::verbs::bench::record;
use crate::verbs::energy::subject::Span;

/// An end of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Every client has had a first token.
    Full,
    /// A client found nothing left to send.
    Draining,
}

/// Which clients have had a token.
#[derive(Debug)]
pub struct Slots {
    has_token: Vec<bool>,
    without: usize,
    draining: bool,
}

impl Slots {
    /// None of so many.
    pub fn of(clients: usize) -> Slots {
        Slots { has_token: vec![false; clients], without: clients, draining: false }
    }

    /// One has a token; [`Edge::Full`] if it was the last without.
    pub fn has_token(&mut self, client: usize) -> Option<Edge> {
        let first = !std::mem::replace(self.has_token.get_mut(client)?, true);
        self.without -= usize::from(first);
        (first && self.without == 0 && !self.draining).then_some(Edge::Full)
    }

    /// One has nothing left to send; [`Edge::Draining`] if it is the first.
    pub fn is_empty(&mut self) -> Option<Edge> {
        (!std::mem::replace(&mut self.draining, true)).then_some(Edge::Draining)
    }
}

/// Reads the meters at both ends as they come; `Err` says why there is no window.
pub fn observe(edges: &Receiver<Edge>, metered: &Metered) -> Result<Span, String> {
    if edges.recv() != Ok(Edge::Full) {
        return Err("a client had nothing left to send before every client had a first token: more --requests".into());
    }
    let mark = metered.source.mark();
    match edges.try_recv() {
        Ok(_) => return Err("it was over before the meters were read".into()),
        Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
    }
    match edges.recv() {
        Ok(_) => Ok(metered.source.end(&mark)),
        Err(_) => Err("its end was not seen".into()),
    }
}

/// Tokens whose pieces came after `from` and by `to`. Servers count tokens and send pieces: each piece is as many tokens as its
/// answer has for one, which is one where every token is sent by itself.
pub fn tokens<'a>(answers: impl Iterator<Item = &'a Answer>, from: f64, to: f64) -> f64 {
    let of = |answer: &Answer| {
        let within = answer.pieces.iter().filter(|at| **at > from && **at <= to).count();
        // No piece within says nothing of the answer's whole.
        if within == 0 { 0.0 } else { answer.output_tokens as f64 * within as f64 / answer.pieces.len() as f64 }
    };
    answers.map(of).sum()
}

/// What a report says of it: the same objects as of the whole run, whose `window.kind` is `steady`.
pub fn json(
    span: Span,
    start: Instant,
    clients: usize,
    metered: &Metered,
    answers: &[Result<Answer, String>],
) -> Value {
    let (at, length_s) = span.place();
    let from = at.saturating_duration_since(start).as_secs_f64();
    let tokens = tokens(answers.iter().flatten(), from, from + length_s).round() as u64;
    let mut report = span.report("steady", &metered.subject, |report| {
        report.work.output_tokens = Some(tokens);
        report.idle_baseline_w = metered.idle_w;
        report.kind = "steady";
    });
    record::check_length(&mut report);
    let mut take = |key: &str| report[key].take();
    let (mut window, cpu) = (take("window"), take("cpu"));
    window["mean_running_seqs"] = json!(clients);
    json!({
        "output_tokens": tokens, "window": window, "meters": take("meters"),
        "neuron_power": take("neuron_power"), "cpu_s": cpu["part_s"], "energy": take("energy"),
        "metrics": take("metrics"), "validity": take("validity"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::energy::subject::{Source, Subject};

    /// What is seen of a trace of `(seconds, client, has a token)`, else that it has nothing left.
    fn window(clients: usize, trace: &[(f64, usize, bool)]) -> Vec<(f64, Edge)> {
        let mut slots = Slots::of(clients);
        let edge = |(at, client, token): &(f64, usize, bool)| {
            let edge = if *token { slots.has_token(*client) } else { slots.is_empty() };
            edge.map(|edge| (*at, edge))
        };
        trace.iter().filter_map(edge).collect()
    }

    #[test]
    fn it_is_from_the_last_first_token_to_the_first_client_without_a_request() {
        let trace = [
            (0.5, 0, true),
            (0.6, 0, true),
            (0.75, 2, true),
            (1.25, 1, true),
            (2.0, 0, true),
            (7.5, 2, false),
            (8.0, 1, true),
            (9.0, 0, false),
            (9.5, 1, false),
        ];
        assert_eq!(window(3, &trace), [(1.25, Edge::Full), (7.5, Edge::Draining)]);
        // One client alone: from its first token to its end.
        assert_eq!(
            window(1, &[(0.25, 0, true), (1.0, 0, true), (4.0, 0, false)]),
            [(0.25, Edge::Full), (4.0, Edge::Draining)]
        );
    }

    #[test]
    fn a_run_that_drains_before_it_is_full_has_none() {
        let trace = [(0.5, 0, true), (1.0, 0, false), (1.5, 1, true), (2.0, 1, false)];
        assert_eq!(window(2, &trace), [(1.0, Edge::Draining)]);
        // A client whose requests all failed never had a token.
        assert_eq!(window(2, &[(0.5, 0, true), (1.0, 1, false), (2.0, 0, false)]), [(1.0, Edge::Draining)]);
    }

    /// Nobody's joules: what is of the edges alone.
    fn seen(edges: &[Edge]) -> Result<Span, String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        edges.iter().for_each(|edge| sender.send(*edge).unwrap());
        drop(sender);
        let source = Source::Nobody("no meter here".to_owned());
        observe(&receiver, &Metered { source, subject: Subject::Local, idle_w: None })
    }

    #[test]
    fn why_there_is_no_window_is_said() {
        let said = |edges: &[Edge]| seen(edges).err().unwrap();
        assert!(said(&[Edge::Draining]).contains("nothing left to send before every client had a first token"));
        assert!(said(&[]).contains("before every client had a first token"));
        assert!(said(&[Edge::Full, Edge::Draining]).contains("over before the meters were read"));
        assert!(said(&[Edge::Full]).contains("not seen"));
    }

    fn answer(output_tokens: u64, pieces: &[f64]) -> Answer {
        Answer {
            sent_s: 0.0,
            ttft_s: 0.0,
            itl_s: None,
            seconds: 0.0,
            input_tokens: 1,
            cached_tokens: None,
            output_tokens,
            energy: Value::Null,
            text: String::new(),
            pieces: pieces.to_vec(),
        }
    }

    /// 4 tokens of the first lie within (1, 3], one on its end; of the second 3 pieces of 2 tokens; the third is before.
    #[test]
    fn tokens_are_those_of_the_pieces_within() {
        let answers = [
            answer(6, &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0]),
            answer(8, &[1.25, 1.75, 2.25, 3.25]),
            answer(2, &[0.1, 0.2]),
            answer(5, &[]),
        ];
        assert_eq!(tokens(answers.iter(), 1.0, 3.0), 4.0 + 6.0);
        assert_eq!(tokens(answers.iter(), 0.0, 9.0), 6.0 + 8.0 + 2.0);
        assert_eq!(tokens(answers.iter(), 3.5, 9.0), 0.0);
    }
}
