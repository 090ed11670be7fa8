//! Clients of any server that speaks OpenAI's interface, streamed by SSE from `/v1/completions`.
//!
//! Figures are of the client's clock; counts are the server's own (`usage`). A request that fails is counted with its reason
//! and stops nobody else.

use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The prompt.
    pub prompt: String,
    /// Tokens of the answer; a server is told not to stop before.
    pub tokens: usize,
    /// When it is sent, from the beginning; at once with `None`, when a client is free.
    pub at: Option<Duration>,
}

/// What became of one.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When it was sent, from the beginning.
    pub sent_s: f64,
    /// To the first piece.
    pub ttft_s: f64,
    /// Between pieces on average, by the count of tokens; `None` of a single token.
    pub itl_s: Option<f64>,
    /// To the end.
    pub seconds: f64,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Of them, those that were in the cache, where the server says so.
    pub cached_tokens: Option<u64>,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// `usage.energy`, where the server gives it.
    pub energy: Value,
    /// The text.
    pub text: String,
    /// When its pieces came that are not empty, from the beginning.
    pub pieces: Vec<f64>,
}

impl Answer {
    /// The same, with so many seconds more before its beginning.
    pub fn later(&mut self, seconds: f64) {
        self.sent_s += seconds;
        self.pieces.iter_mut().for_each(|at| *at += seconds);
    }
}

/// What is sent, by whom, and who sees what becomes of it; clients are numbered from 0.
pub trait Load: Sync {
    /// The next request with its number; once there is none, there is none any more.
    fn next(&self) -> Option<(usize, Asked)>;

    /// A piece has come that is not empty.
    fn piece(&self, client: usize);

    /// A request has its answer, or failed.
    fn answered(&self, _good: bool) {}

    /// A client found no request any more.
    fn nothing_left(&self, _client: usize) {}
}

/// Requests that are there before the first is sent.
pub struct List<'a> {
    requests: &'a [Asked],
    next: AtomicUsize,
    pieces: &'a AtomicU64,
}

impl<'a> List<'a> {
    /// These; `pieces` counts what comes.
    pub fn of(requests: &'a [Asked], pieces: &'a AtomicU64) -> List<'a> {
        List { requests, next: AtomicUsize::new(0), pieces }
    }
}

impl Load for List<'_> {
    fn next(&self) -> Option<(usize, Asked)> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        Some((at, self.requests.get(at)?.clone()))
    }

    fn piece(&self, _client: usize) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }
}

/// A server.
pub struct Endpoint {
    url: String,
    model: Option<String>,
    key: Option<String>,
    agent: ureq::Agent,
}

impl Endpoint {
    /// At `url` (`http://HOST:PORT`, with or without `/v1`).
    pub fn new(url: &str, model: Option<&str>, key: Option<String>) -> Endpoint {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(PATIENCE))
            // Servers close idle connections when they like, and a request that meets such an end cannot be sent again.
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .build()
            .into();
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Endpoint { url, model: model.map(str::to_owned), key, agent }
    }

    /// The model that it serves: the one that was named, else its first.
    pub fn model(&mut self) -> Result<String, String> {
        if self.model.is_none() {
            let url = format!("{}/v1/models", self.url);
            let request = self.agent.get(&url);
            let request = match &self.key {
                Some(key) => request.header("authorization", format!("Bearer {key}")),
                None => request,
            };
            let mut answer = request.call().map_err(|e| format!("{url}: {e}"))?;
            let status = answer.status();
            let body = answer.body_mut().with_config().limit(MOST_BYTES).read_to_string();
            let body = body.map_err(|e| format!("{url}: {e}"))?;
            let models: Value = serde_json::from_str(&body).unwrap_or_default();
            let first = models["data"][0]["id"].as_str();
            self.model =
                Some(first.ok_or_else(|| format!("{url}: HTTP {status}, and no model in the answer"))?.to_owned());
        }
        Ok(self.model.clone().unwrap_or_default())
    }

    /// Whether it answers requests: servers without `/health` say that there is none, loading ones that they are unavailable.
    pub fn is_up(&self) -> bool {
        self.agent.get(format!("{}/health", self.url)).call().is_ok_and(|answer| answer.status() != 503)
    }

    fn ask(&self, asked: &Asked, start: Instant, seen: impl Fn()) -> Result<Answer, String> {
        let body = json!({
            "model": self.model,
            "prompt": asked.prompt,
            "max_tokens": asked.tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let url = format!("{}/v1/completions", self.url);
        let sent = Instant::now();
        // njoule's own servers tell then what the request has used; others pass over what they do not know.
        let mut request = self.agent.post(&url).header("content-type", "application/json").header(TELL_ENERGY, "1");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.send(body.to_string()).map_err(|e| e.to_string())?;
        let status = response.status();
        if !status.is_success() {
            let mut text = String::new();
            let _ = response.into_body().into_reader().take(4096).read_to_string(&mut text);
            let message = serde_json::from_str::<Value>(&text).ok();
            let message = message.as_ref().and_then(|m| m["error"]["message"].as_str()).unwrap_or(text.trim());
            return Err(format!("HTTP {}: {message}", status.as_u16()));
        }
        let (mut first, mut last, mut usage, mut text) = (None, sent, Value::Null, String::new());
        let mut pieces = vec![];
        let mut lines = BufReader::new(response.into_body().into_reader().take(MOST_BYTES));
        let mut line = String::new();
        loop {
            line.clear();
            if lines.read_line(&mut line).map_err(|e| e.to_string())? == 0 {
                break;
            }
            let Some(data) = line.trim_end().strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
            let chunk: Value = serde_json::from_str(data).map_err(|e| format!("a piece that is no JSON: {e}"))?;
            if !chunk["error"].is_null() {
                return Err(format!("broken off: {}", chunk["error"]));
            }
            // llama.cpp's last piece has usage and an empty text.
            if let Some(piece) = chunk["choices"][0]["text"].as_str() {
                last = Instant::now();
                first.get_or_insert(last);
                text.push_str(piece);
                if !piece.is_empty() {
                    pieces.push((last - start).as_secs_f64());
                    seen();
                }
            }
            if chunk["usage"].is_object() {
                usage = chunk["usage"].clone();
            }
        }
        let first = first.ok_or("an answer without a piece")?;
        let count = |path: &str| usage.pointer(path).and_then(Value::as_u64);
        let (Some(input_tokens), Some(output_tokens)) = (count("/prompt_tokens"), count("/completion_tokens")) else {
            return Err("an answer without usage".to_owned());
        };
        let after = output_tokens.saturating_sub(1);
        Ok(Answer {
            sent_s: (sent - start).as_secs_f64(),
            ttft_s: (first - sent).as_secs_f64(),
            itl_s: (after > 0).then(|| (last - first).as_secs_f64() / after as f64),
            seconds: sent.elapsed().as_secs_f64(),
            input_tokens,
            cached_tokens: count("/prompt_tokens_details/cached_tokens"),
            output_tokens,
            energy: usage["energy"].clone(),
            text,
            pieces,
        })
    }

    /// Sends a load by `clients`, each its next request when the last is answered, none before its time, which is from `start`
    /// on. Answers are in the order of their numbers.
    pub fn run(&self, load: &dyn Load, clients: usize, start: Instant) -> Vec<Result<Answer, String>> {
        let answers: Mutex<Vec<(usize, Result<Answer, String>)>> = Mutex::new(vec![]);
        std::thread::scope(|scope| {
            for client in 0..clients {
                let answers = &answers;
                scope.spawn(move || {
                    while let Some((at, asked)) = load.next() {
                        if let Some(due) = asked.at {
                            std::thread::sleep(due.saturating_sub(start.elapsed()));
                        }
                        let answer = self.ask(&asked, start, || load.piece(client));
                        load.answered(answer.is_ok());
                        answers.lock().unwrap_or_else(PoisonError::into_inner).push((at, answer));
                    }
                    load.nothing_left(client);
                });
            }
        });
        let mut answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
        answers.sort_by_key(|(at, _)| *at);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

/// SHA-256 of all texts, in the order of the requests.
pub fn digest<'a>(answers: impl Iterator<Item = &'a Answer>) -> String {
    let mut hash = Sha256::new();
    for answer in answers {
        hash.update((answer.text.len() as u64).to_le_bytes());
        hash.update(&answer.text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks for `usage.energy`.
const TELL_ENERGY: &str = "x-njoule-energy";

/// How long a server may take for the head of its answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// Bytes of an answer.
const MOST_BYTES: u64 = 64 << 20;
