//! `njoule chat`: a conversation, line by line, on a terminal or through pipes.
//!
//! The whole conversation is rendered and run anew for each answer; what no longer fits loses its oldest turns, and the
//! person is told. Ctrl-C stops an answer; at the prompt it ends the program.

mod history;

use std::io::{BufRead, IsTerminal, Write};

use anyhow::anyhow;
use njoule_models::chat::ChatTemplate;
use njoule_runtime::request::Usage;
use njoule_runtime::{Event, FinishReason, Request, RequestHandle, SamplingParams};

use self::history::History;
use super::Context;
use super::generate::{Figures, submit};
use crate::args::ModelArgs;
use crate::session::metering::MeteringArgs;
use crate::session::sampling::SamplingArgs;
use crate::session::{Interrupt, Model, RunArgs, ScheduleArgs, Session, Size, Text};

/// Arguments of `chat`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of an answer at most
    #[arg(short = 'n', long, visible_alias = "max-new-tokens", value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Print a line of figures after each answer
    #[arg(long)]
    figures: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    metering: MeteringArgs,
    #[command(flatten)]
    schedule: ScheduleArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    /// Talks until the input ends.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let options = self.run.options()?.scheduled(self.schedule.read()?).metered(self.metering.wanted());
        let model = Model::open(&self.model.resolve(&context.fetch.env)?, context)?;
        let loader = model.load_text();
        let max_len = model.max_len(options.context, 0, context)?;
        let params = self.sampling.params(&model.checkpoint.generation, model.program.vocab())?;
        let session = model.start(&options, Size { max_len, max_seqs: 1, max_outputs: 1 }, context)?;
        let text = loader.require("chat cannot do without")?;
        let template = text
            .template
            .as_ref()
            .ok_or_else(|| anyhow!("the model has no chat template; `njoule generate --raw` continues plain text"))?;
        let chat = Chat { args: &self, session: &session, text: &text, template, params };
        let spoken = chat.talk(context);
        let finished = session.finish()?;
        if self.figures && !context.quiet {
            // Of the conversation, with what loading and waiting for the person used.
            eprintln!("energy in all: {}", finished.stats.energy.text());
        }
        spoken
    }
}

/// A conversation's fixed parts.
struct Chat<'a> {
    args: &'a Args,
    session: &'a Session,
    text: &'a Text,
    template: &'a ChatTemplate,
    params: SamplingParams,
}

impl Chat<'_> {
    fn talk(&self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let interrupt = Interrupt::install()?;
        let mut history = History::new(self.args.system.clone());
        let interactive = std::io::stdin().is_terminal() && !context.quiet;
        if interactive {
            eprintln!("/clear forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends");
        }
        let mut lines = std::io::stdin().lock().lines();
        loop {
            // Ctrl-C ends the program while nothing is being generated.
            interrupt.set(true);
            if interactive {
                eprint!("> ");
            }
            let Some(line) = lines.next().transpose()? else { return Ok(()) };
            let line = line.trim();
            match Command::read(line) {
                Command::Nothing => {}
                Command::Exit => return Ok(()),
                Command::Clear => {
                    history.clear();
                    context.note("the conversation is forgotten");
                }
                Command::System(text) => {
                    history.system = (!text.is_empty()).then(|| text.to_owned());
                    context.note("the system message is set");
                }
                Command::Unknown => {
                    context.note(&format!("no such command: {line}; there are /exit, /clear and /system TEXT"))
                }
                Command::Say(said) => {
                    interrupt.set(false);
                    self.answer(said, &mut history, &interrupt, context)?;
                }
            }
        }
    }

    fn answer(
        &self,
        said: &str,
        history: &mut History,
        interrupt: &Interrupt,
        context: &mut Context<'_>,
    ) -> anyhow::Result<()> {
        history.ask(said);
        let max_len = self.session.engine.config().capacity.max_len;
        let reserve = self.args.max_tokens.min(max_len / 4).max(1);
        let encode = |messages| self.text.encode_chat(self.template, messages);
        let fitted = history.fit(max_len.saturating_sub(reserve), encode)?;
        if fitted.dropped > 0 {
            context.note(&format!(
                "the context of {max_len} tokens is full: the oldest {} turns are forgotten",
                fitted.dropped
            ));
        }
        if fitted.ids.len() >= max_len {
            let more = match self.session.built_for {
                Some(_) => "build an artifact for longer ones (njoule build --context N)",
                None => "start with a larger --context",
            };
            context.note(&format!(
                "this message takes {} tokens, more than the context of {max_len}: shorten it, or {more}",
                fitted.ids.len()
            ));
            history.take_back();
            return Ok(());
        }
        let max_new = self.args.max_tokens.min(max_len - fitted.ids.len());
        let eos = self.session.eos(Some(self.text));
        let request =
            self.args.sampling.request(fitted.ids, max_new, &self.params, &eos, Some(self.text.answers(false)));
        let handle = submit(self.session, Request { energy: self.args.figures, ..request })?;
        let (text, reason, usage) = stream(handle, interrupt, context.out)?;
        match reason {
            FinishReason::Cancelled => context.note("stopped"),
            FinishReason::Length => context.note(&format!("the answer was cut at {max_new} tokens")),
            _ => {}
        }
        if self.args.figures && !context.quiet {
            eprintln!("{}", Figures::of_one(&usage, self.session.facts.load));
        }
        history.answer(text);
        Ok(())
    }
}

/// Prints an answer as it comes.
fn stream(
    mut handle: RequestHandle,
    interrupt: &Interrupt,
    out: &mut dyn Write,
) -> anyhow::Result<(String, FinishReason, Usage)> {
    let mut answer = String::new();
    let mut end = (FinishReason::Cancelled, Usage::default());
    while let Some(event) = interrupt.next_event(&mut handle) {
        match event {
            Event::Token { text, .. } => {
                out.write_all(text.as_bytes())?;
                out.flush()?;
                answer.push_str(&text);
            }
            Event::Finished { reason, text, usage, .. } => {
                answer.push_str(&text);
                let ended = answer.ends_with('\n');
                write!(out, "{text}{}", if ended { "" } else { "\n" })?;
                out.flush()?;
                end = (reason, usage);
            }
            Event::Failed(error) => return Err(error.into()),
            Event::PromptLogits { .. } | Event::PromptLogprobs { .. } => {}
        }
    }
    Ok((answer, end.0, end.1))
}

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
enum Command<'a> {
    Nothing,
    Exit,
    Clear,
    System(&'a str),
    Unknown,
    Say(&'a str),
}

impl Command<'_> {
    fn read(line: &str) -> Command<'_> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => Command::Nothing,
            "/exit" | "/quit" => Command::Exit,
            "/clear" => Command::Clear,
            "/system" => Command::System(rest.trim()),
            // A path or a date may begin with a slash; a lone word that does is a slip.
            _ if word.starts_with('/') && rest.is_empty() && word[1..].chars().all(char::is_alphabetic) => {
                Command::Unknown
            }
            _ => Command::Say(line),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  njoule chat                                  with the default model
  njoule chat Qwen/Qwen3-0.6B --system \"Answer in one sentence.\" --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | njoule chat -m model.gguf

In a conversation: /system TEXT sets the system message, /clear forgets everything said, /exit or
Ctrl-D ends. Ctrl-C stops an answer; twice, or while nothing is being generated, it ends the program.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_said() {
        assert_eq!(Command::read("/system be brief"), Command::System("be brief"));
        assert_eq!(Command::read("/clear"), Command::Clear);
        assert_eq!(Command::read("/exti"), Command::Unknown);
        assert_eq!(Command::read("/etc/passwd is a file"), Command::Say("/etc/passwd is a file"));
        assert_eq!(Command::read(""), Command::Nothing);
    }
}
