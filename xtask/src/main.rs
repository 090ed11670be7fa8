//! Development tasks: `cargo xtask help` lists them. Each has `--check` where it makes sense: look, change nothing.
#![forbid(unsafe_code)]

mod assets;
mod bindings;
mod check_api;
mod clients;
mod features;
mod live;
mod python;
mod schemas;
mod soak;
mod xla_check;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["assets"] => assets::fetch(),
        ["assets", "--check"] => assets::check(),
        ["bindings"] => bindings::write(),
        ["bindings", "--check"] => bindings::check(),
        ["check-api"] => check_api::run(),
        ["features"] => features::write(),
        ["features", "--check"] => features::check(),
        ["schemas", ref words @ ..] => schemas::run(words),
        ["check-clients", ref names @ ..] => clients::run(names),
        ["soak", ref words @ ..] => soak::run(words),
        ["xla-check", ref words @ ..] => match xla_check::Options::parse(words) {
            Some(options) => xla_check::run(&options),
            None => return usage(),
        },
        // The server of `check-api`: nothing else has to be built for it.
        ["serve", ..] => {
            let line = std::iter::once("njoule").chain(words.iter().copied()).map(Into::into);
            return ExitCode::from(njoule_cli::run(line, &mut std::io::stdout(), &mut std::io::stderr()));
        }
        #[cfg(feature = "pjrt")]
        ["xla-run", plugin] => xla_check::serve(plugin),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => return usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprint!("error: no such task\n\n{HELP}");
    ExitCode::from(2)
}

const HELP: &str = "\
cargo xtask TASK

  assets            fetch what tests need into target/assets (or NJOULE_ASSETS), verified by pinned sha256
  assets --check    only say whether it is all there and unharmed
  bindings          make neuron-sys/src/bindings.rs from its header (needs libclang)
  bindings --check  only say whether it is what the header gives, and unedited (by hashes; with the cargo feature
                    `bindings` also by making it anew)
  check-api         ask a live server as strangers do: schemathesis by its OpenAPI document, openai's client, curl (needs
                    python3 with venv; packages come from PyPI into target/api-venv or by NJOULE_API_PYTHON)
  check-clients [NAME...]
                    outside clients against live servers, each installed into target/clients: openai-python openai-js
                    anthropic manifests vllm-router ray-serve ray-data (or ray) guidellm, and by their names alone lm-eval
                    and accuracy (lm-eval by a server and by transformers)
  features          write the README's tables of backends and families from what the code says
  features --check  only say whether they are the code's
  schemas FILE [MODEL] [--together N] [--max-tokens N] [--sample N]
                    answer each JSON schema of a file (lines of name and schema) by a live server, N at once, validate what it
                    completed with Python's jsonschema, and tell what the grammar costs per token, by a sample (NJOULE_BIN
                    names a build)
  soak [NUMBER...]  the reliability tests of a server, with their numbers: an hour and more; NJOULE_BIN names a release build
  soak --reduced    less of each, bounds of time tenfold
  xla-check         run modules for Neuron on XLA (jaxlib, in target/xla-venv or by NJOULE_XLA_PYTHON; with the cargo
                    feature `pjrt`, the plugin that NJOULE_PJRT names) and compare logits, tokens and caches with
                    candle's: some families, and layers of SmolLM2's size
  xla-check --all   the same of every model of testdata, in f32 and bf16, on 1, 2 and 4 cores; those that the lowering refuses
                    are named with its reason. With both: --only NAME[,NAME] (a part of a check's name: `gemma2`,
                    `bf16 on 4`), --resume (without what this very build has passed before)
  help              this list
";
