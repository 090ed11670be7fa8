//! Following requests to their ends: text to stdout as it comes, or results for the JSON report.

use std::io::{self, Write};

use njoule_runtime::engine::Energy;
use njoule_runtime::request::{StopMatch, Usage};
use njoule_runtime::sampler::TokenLogprob;
use njoule_runtime::{Event, FinishReason, RequestHandle};
use serde_json::{Value, json};

use super::Figures;
use crate::session::{Finished, Interrupt, timing};

/// Prints or gathers answers, in the order of the prompts.
pub struct Printer {
    /// Gather for a report instead of printing.
    pub json: bool,
    /// Put log-probabilities into the report.
    pub logprobs: bool,
    /// Whether there is text at all.
    pub text: bool,
    /// What has ended.
    pub results: Vec<Answer>,
}

/// One answer.
#[derive(Debug, Default)]
pub struct Answer {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    reason: Option<FinishReason>,
    matched: Option<StopMatch>,
    usage: Usage,
}

impl Printer {
    /// Waits for one answer. Without text, ids are printed.
    pub fn follow(
        &mut self,
        mut handle: RequestHandle,
        interrupt: &Interrupt,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let mut answer = Answer::default();
        while let Some(event) = interrupt.next_event(&mut handle) {
            match event {
                Event::Token { id, index, text, logprob } => {
                    if index == 0 {
                        timing::mark("first token");
                    }
                    answer.ids.push(id);
                    answer.logprobs.extend(logprob);
                    self.piece(&mut answer, &text, id, out)?;
                }
                Event::Finished { reason, matched, text, usage } => {
                    answer.text.push_str(&text);
                    (answer.reason, answer.matched, answer.usage) = (Some(reason), matched, usage);
                    if !self.json {
                        out.write_all(text.as_bytes())?;
                        let ended = self.text && answer.text.ends_with('\n');
                        out.write_all(if ended { b"" } else { b"\n" })?;
                        out.flush()?;
                    }
                }
                Event::Failed(error) => return Err(error.into()),
                Event::PromptLogits { .. } | Event::PromptLogprobs { .. } => {}
            }
        }
        self.results.push(answer);
        Ok(())
    }

    fn piece(&self, answer: &mut Answer, text: &str, id: u32, out: &mut dyn Write) -> io::Result<()> {
        answer.text.push_str(text);
        if self.json {
            return Ok(());
        }
        match (self.text, answer.ids.len()) {
            (true, _) if text.is_empty() => return Ok(()),
            (true, _) => out.write_all(text.as_bytes())?,
            (false, 1) => write!(out, "{id}")?,
            (false, _) => write!(out, " {id}")?,
        }
        out.flush()
    }

    /// Figures of all answers.
    pub fn usages(&self) -> Vec<Usage> {
        self.results.iter().map(|answer| answer.usage.clone()).collect()
    }

    /// The report; its keys are a contract.
    pub fn report(&self, finished: &Finished, figures: &Figures) -> Value {
        let results: Vec<Value> = self.results.iter().map(|answer| self.result(answer)).collect();
        let model = finished.facts.json();
        json!({"results": results, "figures": figures.json(), "model": model, "energy": finished.energy()})
    }

    fn result(&self, answer: &Answer) -> Value {
        let usage = &answer.usage;
        let mut result = json!({
            "token_ids": answer.ids,
            "text": self.text.then_some(&answer.text),
            "finish_reason": answer.reason.map(reason_name),
            "stop": answer.matched.as_ref().map(matched_json),
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.generated_tokens,
                "total_tokens": usage.prompt_tokens + usage.generated_tokens,
                "ttft_s": usage.ttft.map(|t| t.as_secs_f64()),
                "energy": usage.energy_now().map(Energy::from),
            },
        });
        if self.logprobs {
            let token = |t: &TokenLogprob| {
                let top: Vec<Value> = t.top.iter().map(|(id, logprob)| json!({"id": id, "logprob": logprob})).collect();
                json!({"id": t.id, "logprob": t.logprob, "top": top})
            };
            result["logprobs"] = answer.logprobs.iter().map(token).collect();
        }
        result
    }
}

fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Deadline => "deadline",
        _ => "other",
    }
}

fn matched_json(matched: &StopMatch) -> Value {
    match matched {
        StopMatch::Eos(id) => json!({"eos": id}),
        StopMatch::Token(id) => json!({"token": id}),
        StopMatch::Text(text) => json!({"text": text}),
    }
}
