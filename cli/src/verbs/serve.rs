//! `njoule serve`: a model over HTTP.
//!
//! stderr carries the log and one line `listening on http://HOST:PORT` (or https) when requests are answered; stdout stays empty.

mod familiar;
mod replica;
mod supervise;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use njoule_runtime::EngineConfig;
use njoule_server::config::TlsFiles;
use njoule_server::log::{Format, Log};
use njoule_server::metrics::Names;
use njoule_server::{ModelParts, Outcome, Server, ServerConfig};

use self::familiar::FamiliarArgs;
use self::replica::Replica;
use self::supervise::Replication;
use super::Context;
use crate::args::{ModelArgs, UsageError};
use crate::session::metering::MeteringArgs;
use crate::session::operating::OperatingPoints;
use crate::session::options::kv_name;
use crate::session::{Interrupted, Model, ObjectiveArgs, RunArgs, RunOptions, ScheduleArgs, Size};

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A file of settings in TOML: a key is the name of a flag
    // Both were followed when the command line was read (config.rs).
    #[allow(dead_code)]
    #[arg(long, env = "NJOULE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what the settings are and where each comes from, and serve nothing
    #[allow(dead_code)]
    #[arg(long)]
    print_config: bool,
    /// Address to listen on
    #[arg(long, env = "NJOULE_HOST", default_value = "127.0.0.1", value_name = "HOST")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "NJOULE_PORT", default_value_t = 8000, value_name = "PORT")]
    port: u16,
    /// Name that clients ask for; several by commas or blanks, answers carry the first [default: the model as it was named]
    #[arg(long, visible_alias = "alias", value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    served_model_name: Vec<String>,
    /// A key that opens the API; may be repeated (a comma is a part of it); none means that everybody may
    #[arg(long, env = "NJOULE_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Vec<String>,
    /// A file of such keys, one per line
    #[arg(long, env = "NJOULE_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// A name that the Host header may carry; `*` allows all [default: addresses and localhost on 127.0.0.1, else all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    allowed_host: Vec<String>,
    /// An origin (`https://NAME`) whose pages may read answers in a browser; may be repeated, `*` allows all [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    allowed_origin: Vec<String>,
    /// Certificate of TLS in PEM, with those that vouch for it; plain HTTP without
    #[arg(long, visible_alias = "ssl-certfile", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key in PEM
    #[arg(long, visible_alias = "ssl-keyfile", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    replication: Replication,
    /// Whether the model's generation_config.json sets sampling defaults
    #[arg(long, value_enum, default_value_t = Defaults::Auto, value_name = "SOURCE")]
    generation_config: Defaults,
    /// Take chat templates from requests
    #[arg(long)]
    trust_request_chat_template: bool,
    /// How the log looks
    #[arg(long, value_enum, env = "NJOULE_LOG_FORMAT", default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
    /// The same as --log-format json
    #[arg(long)]
    log_json: bool,
    /// What the log holds
    #[arg(long, value_enum, env = "NJOULE_LOG_LEVEL", default_value_t = LogLevel::Info, value_name = "LEVEL")]
    log_level: LogLevel,
    /// Whose metric names are exported beside our own
    #[arg(long, value_enum, default_value_t = Compat::Vllm, value_name = "NAMES")]
    metrics_compat: Compat,
    /// Devices that share a model; only 1 is possible on a CPU
    #[arg(long, value_name = "N", default_value = "1", hide_default_value = true)]
    tensor_parallel_size: NonZero<usize>,
    /// Say in every answer what it has used, and not only where its request asks by `x-njoule-energy: true`
    #[arg(long, env = "NJOULE_USAGE_ENERGY", value_parser = clap::builder::FalseyValueParser::new())]
    usage_energy: bool,
    #[command(flatten)]
    metering: MeteringArgs,
    #[command(flatten)]
    schedule: ScheduleArgs,
    #[command(flatten)]
    objective: ObjectiveArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    familiar: FamiliarArgs,
}

/// Limits, as typed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct Limits {
    /// Requests that may wait for their first step [default: as many as run together]
    #[arg(long, visible_alias = "max-num-queued-reqs", value_name = "N")]
    max_queued_requests: Option<usize>,
    /// Prompt tokens of the requests that wait
    #[arg(long, visible_alias = "max-num-queued-tokens", value_name = "N", default_value_t = 1 << 20)]
    max_queued_tokens: usize,
    /// Rows of a step at most
    #[arg(long, short = 'b', value_name = "N")]
    max_num_batched_tokens: Option<NonZero<usize>>,
    /// Choices of a request at most
    #[arg(long, value_name = "N", default_value = "8")]
    max_n: NonZero<usize>,
    /// Connections at once, and as many again of addresses that have none
    #[arg(long, value_name = "N", default_value = "1024")]
    max_connections: NonZero<usize>,
    /// Seconds that a request may take [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    request_timeout: Option<NonZero<u32>>,
    /// Seconds that running requests may go on after SIGTERM
    #[arg(long, env = "NJOULE_SHUTDOWN_TIMEOUT", value_name = "SECONDS", default_value_t = 25)]
    shutdown_timeout: u32,
    /// Seconds after which a step is taken for a hang, unless three times the slowest so far is more
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    step_timeout: NonZero<u32>,
    /// Seconds that a client may leave an answer unread
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    write_timeout: NonZero<u32>,
}

/// `--generation-config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Defaults {
    /// The model's, where it asks for sampling
    Auto,
    /// OpenAI's defaults alone
    None,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines
    Text,
    /// An object a line
    Json,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// `--metrics-compat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compat {
    /// vLLM's names
    Vllm,
    /// None
    Off,
}

impl Args {
    /// Serves until a signal.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        if self.tensor_parallel_size.get() > 1 {
            let message =
                "--tensor-parallel-size: one CPU process runs the whole model, there is nothing to split it over";
            return Err(UsageError(message.into()).into());
        }
        raise_descriptors();
        let replica = Replica::of(&context.fetch.env)?;
        if let Some(replica) = &replica {
            replica.settle()?;
        }
        if replica.is_none() {
            self.familiar.note_unneeded(context);
        }
        self.familiar.check_files()?;
        let schedule = self.schedule.read()?.aiming_at(self.objective.read()?);
        let named = self.model.resolve(&context.fetch.env)?;
        let asked = self.familiar.revised(named.clone())?;
        let mut options = self.familiar.stored(self.run.options()?)?.scheduled(schedule);
        if let Ok(points) = OperatingPoints::open(&context.fetch.env) {
            options = self.tuned(&points, &asked.to_string(), options, replica.is_none(), context);
        }
        options.meters = Some(match &replica {
            Some(_) => self.metering.wanted_of_replica(),
            None => self.metering.wanted(),
        });
        let sequences = options.sequences(usize::MAX);
        let mut config = self.config(sequences)?;
        if let Some(replica) = &replica {
            config = replica.config(config, sequences);
            replica.share(&mut options)?;
        }
        self.log(replica.is_some()).install();
        // Listens before it loads: probes hear that the server is loading instead of finding nobody.
        let encrypted = config.tls.is_some();
        let server = Server::start(config.clone())?;
        server.stop_on_signals()?;
        if let Some(replica) = &replica {
            replica.announce(server.address(), context.out, server.stopper())?;
            if replica.number > 0 {
                // The first one has said it.
                context.fetch.reporter = Arc::new(crate::fetch::Silent);
            }
        }
        let max_queue = config.max_queued_requests.saturating_mul(2).saturating_add(SIBLINGS);
        let adjust = |config: &mut EngineConfig| {
            // The server's own limits come first; these leave room for newcomers, and for the siblings of a request that was let in.
            (config.max_queue, config.max_queued_tokens) = (max_queue, usize::MAX >> 1);
            if let Some(rows) = self.limits.max_num_batched_tokens {
                config.token_budget = rows.get().min(config.capacity.max_rows);
            }
        };
        let model = Model::open(&asked, context)?;
        if replica.is_none() && self.replication.is_asked() {
            let name = self.served_model_name.first().cloned().unwrap_or_else(|| named.to_string());
            return self.replication.run(server, &config, model, &options, sequences, name, context);
        }
        let loader = model.load_text_from(self.familiar.tokenizer());
        let max_len = model.max_len(options.context, 0, context)?;
        let size = Size { max_len, max_seqs: sequences, max_outputs: sequences.max(OUTPUTS) };
        let vocab = model.program.vocab();
        let session = model.start_with(&options, size, adjust, context)?;
        let engine = session.engine.config();
        self.familiar.check_blocks(engine.capacity.block_len, engine.limits.paged)?;
        let text = self.familiar.dressed(loader.require("serve cannot do without")?, vocab)?;
        let names = match self.served_model_name.is_empty() {
            true => vec![named.to_string()],
            false => self.served_model_name.clone(),
        };
        server.serve(ModelParts {
            engine: session.engine.clone(),
            eos: session.eos(Some(&text)),
            tokenizer: text.tokenizer.clone(),
            template: text.template.map(Arc::new),
            names,
            defaults: (self.generation_config == Defaults::Auto).then(|| session.checkpoint.generation.clone()),
            load: session.facts.load,
            compile: session.facts.compile,
            seed: self.familiar.seed(),
        });
        drop(session);
        if replica.is_none() {
            let scheme = if encrypted { "https" } else { "http" };
            eprintln!("listening on {scheme}://{}", server.address());
        }
        match server.wait() {
            Outcome::Drained => Ok(()),
            Outcome::Aborted => Err(Interrupted.into()),
            Outcome::EngineLost | Outcome::ReplicaFailed(_) => Err(EngineLost.into()),
        }
    }

    /// What `njoule tune` has kept for this objective, in the place of what was not named.
    fn tuned(
        &self,
        points: &OperatingPoints,
        model: &str,
        options: RunOptions,
        whole_machine: bool,
        context: &Context<'_>,
    ) -> RunOptions {
        // Of replicas the process that starts them has said it.
        let say = |text: String| {
            if whole_machine {
                context.note(&text)
            }
        };
        let point = match points.of(model, &options) {
            Ok(Some(point)) => point,
            Ok(None) => return options,
            Err(why) => {
                say(format!("warning: {why}; nothing is taken as tuned"));
                return options;
            }
        };
        let Some(setting) = point.setting(options.schedule.objective()) else { return options };
        say(format!("as tuned: {setting}, where no flag says otherwise"));
        let schedule = self.schedule.tuned(options.schedule, setting.speculate);
        let mut options = self.run.tuned(options.scheduled(schedule), &setting, whole_machine);
        if let Some(kv) = point.kv.filter(|_| self.objective.allows_kv() && options.kv().is_none()) {
            say(format!("as tuned: --kv-type {}, which changes what the model says", kv_name(kv)));
            options = options.caching_as(kv);
        }
        options
    }

    fn config(&self, sequences: usize) -> anyhow::Result<ServerConfig> {
        let mut api_keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            api_keys.extend(read_keys(path)?);
        }
        if api_keys.iter().any(String::is_empty) {
            return Err(UsageError("an API key is empty".into()).into());
        }
        let limits = &self.limits;
        let seconds = |seconds: NonZero<u32>| Duration::from_secs(seconds.get().into());
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate: certificate.clone(), key: key.clone() }),
            (None, None) => None,
            _ => return Err(UsageError("--tls-cert and --tls-key need each other".into()).into()),
        };
        Ok(ServerConfig {
            host: self.host.clone(),
            port: self.port,
            tls,
            api_keys,
            allowed_hosts: self.allowed_host.clone(),
            allowed_origins: self.allowed_origin.clone(),
            max_connections: limits.max_connections.get(),
            max_queued_requests: limits.max_queued_requests.unwrap_or(sequences),
            max_queued_tokens: limits.max_queued_tokens,
            max_n: limits.max_n.get(),
            write_timeout: seconds(limits.write_timeout),
            request_timeout: limits.request_timeout.map(seconds),
            shutdown_timeout: Duration::from_secs(limits.shutdown_timeout.into()),
            step_timeout: seconds(limits.step_timeout),
            metric_names: match self.metrics_compat {
                Compat::Vllm => Names::Vllm,
                Compat::Off => Names::Off,
            },
            usage_energy: self.usage_energy,
            trust_request_chat_template: self.trust_request_chat_template,
            ..ServerConfig::default()
        })
    }

    /// Of a replica, what the process that forwards to it does not log itself.
    fn log(&self, replica: bool) -> Log {
        let format = match self.log_format {
            LogFormat::Text if !self.log_json => Format::Text,
            LogFormat::Text | LogFormat::Json => Format::Json,
        };
        let level = match self.log_level {
            LogLevel::Error => tracing::Level::ERROR,
            LogLevel::Warn => tracing::Level::WARN,
            LogLevel::Info if replica => tracing::Level::WARN,
            LogLevel::Info => tracing::Level::INFO,
            LogLevel::Debug => tracing::Level::DEBUG,
        };
        Log::new(format, level)
    }
}

/// A connection needs a file descriptor, and another one where it is forwarded: as many as the system lets this process have.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused, it is as it was; connections beyond it are.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The engine of a server hangs or has failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the engine was lost; its requests were answered with errors")]
pub struct EngineLost;

fn read_keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Sequences of one request at most: prompts times choices.
const SIBLINGS: usize = 1024 * 8;
/// Rows of a step that have logits, at least: what the log-probabilities of prompts go through.
pub const OUTPUTS: usize = 64;

const EXAMPLES: &str = "\
Examples:
  njoule serve                                      the default model on http://127.0.0.1:8000
  njoule serve model.gguf --port 0 --api-key secret
  njoule serve Qwen/Qwen3-0.6B --host 0.0.0.0 --served-model-name qwen --log-format json

  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}], \"stream\": true}'

Each flag is a variable too (--max-connections: NJOULE_MAX_CONNECTIONS) and a key of the file of --config.
SIGTERM or Ctrl-C lets running requests finish (--shutdown-timeout), a second one ends at once.
Exit code 70: the engine hangs or has failed, start the process anew.
";
