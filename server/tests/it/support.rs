//! Servers to test, and a client.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use njoule_models::chat::ChatTemplate;
use njoule_models::checkpoint::Checkpoint;
use njoule_models::tokenizer::Tokenizer;
use njoule_runtime::backend::cpu::CpuBackend;
use njoule_runtime::backend::{
    Backend, Batch, Capacity, Cost, Executor, MemoryUse, Padding, Quant, StepError, StepOutput,
};
use njoule_runtime::engine::EnergySource;
use njoule_runtime::{Engine, EngineConfig};
use njoule_server::{ModelParts, Outcome, Server, ServerConfig, Stop};
use serde_json::Value;

/// A running server.
pub struct Live {
    pub address: SocketAddr,
    pub engine: Engine,
    pub tokenizer: Arc<Tokenizer>,
    pub gate: Arc<Gate>,
    pub stop: Stop,
    ended: Option<JoinHandle<Outcome>>,
}

/// Lets a test count steps out to the engine, and play a device.
#[derive(Debug, Default)]
pub struct Gate {
    /// Steps that may still run; `None` for all.
    steps: Mutex<Option<usize>>,
    changed: Condvar,
    /// The next step is refused, once.
    pub busy: AtomicBool,
    /// Rows of each step that belong to nobody.
    pub padding: AtomicUsize,
}

impl Gate {
    /// Lets `steps` more run, or all.
    pub fn allow(&self, steps: Option<usize>) {
        *self.steps.lock().unwrap() = steps;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let steps = self.steps.lock().unwrap();
        let mut steps = self.changed.wait_while(steps, |steps| *steps == Some(0)).unwrap();
        *steps = steps.map(|steps| steps - 1);
    }
}

/// An executor behind a gate.
struct Gated(Box<dyn Executor>, Arc<Gate>);

impl Executor for Gated {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        self.1.pass();
        if self.1.busy.swap(false, Ordering::Relaxed) {
            return Err(StepError::Busy("so the test wants it".into()));
        }
        self.0.submit(batch)
    }

    fn error_code(&self) -> Option<u32> {
        Some(1005)
    }

    fn padding(&self) -> Padding {
        Padding { rows: self.1.padding.load(Ordering::Relaxed), ..self.0.padding() }
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        self.0.collect(out)
    }

    fn cost(&self, batch: &Batch) -> Cost {
        self.0.cost(batch)
    }

    fn memory(&self) -> MemoryUse {
        self.0.memory()
    }
}

/// A server on `testdata/NAME` with `max_seqs` sequences at once.
pub fn start(name: &str, max_seqs: usize, config: ServerConfig) -> Live {
    start_with(name, max_seqs, config, |_| {})
}

/// The same with another engine.
pub fn start_with(name: &str, max_seqs: usize, config: ServerConfig, adjust: impl FnOnce(&mut EngineConfig)) -> Live {
    start_metered(name, max_seqs, config, adjust, None)
}

/// The same with a meter.
pub fn start_metered(
    name: &str,
    max_seqs: usize,
    config: ServerConfig,
    adjust: impl FnOnce(&mut EngineConfig),
    source: Option<Box<dyn EnergySource>>,
) -> Live {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    let checkpoint = Checkpoint::open(&dir).expect("the fixture");
    let tokenizer = Arc::new(Tokenizer::from_files(&dir).expect("its tokenizer"));
    let program = checkpoint.config.program();
    let backend = CpuBackend::new(NonZero::<usize>::MIN, Quant::None).expect("a backend");
    let block_len = backend.limits(&program).block_len;
    let max_len = checkpoint.config.max_len;
    let capacity = Capacity {
        blocks: max_len.div_ceil(block_len) * max_seqs,
        block_len,
        max_rows: 64,
        max_seqs,
        max_outputs: 64,
        max_len,
    };
    let gate = Arc::<Gate>::default();
    let executor = backend.load(&program, &*checkpoint.weights, capacity).expect("it loads");
    let mut engine_config = EngineConfig::new(capacity);
    engine_config.max_queue = 1 << 14;
    adjust(&mut engine_config);
    let gated = Box::new(Gated(executor, gate.clone()));
    let engine = Engine::start_metered(gated, program.vocab(), engine_config, source).expect("an engine");
    let server = Server::start(ServerConfig { port: 0, ..config }).expect("it listens");
    server.serve(ModelParts {
        engine: engine.clone(),
        tokenizer: tokenizer.clone(),
        template: ChatTemplate::of(&tokenizer).expect("a template").map(Arc::new),
        names: vec!["m".into(), "other".into()],
        eos: checkpoint.generation.eos.clone(),
        defaults: None,
        load: Duration::ZERO,
        compile: None,
        seed: None,
    });
    let (address, stop) = (server.address(), server.stopper());
    let ended = std::thread::spawn(move || server.wait());
    Live { address, engine, tokenizer, gate, stop, ended: Some(ended) }
}

/// A copy of `testdata/NAME` with another chat template, for [`start`].
pub fn with_template(name: &str, template: &str) -> String {
    static COPIES: AtomicUsize = AtomicUsize::new(0);
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name);
    let copy = format!("{}-{}", std::process::id(), COPIES.fetch_add(1, Ordering::Relaxed));
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(copy);
    std::fs::create_dir_all(&to).expect("a directory");
    for file in std::fs::read_dir(from).expect("the fixture") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
    }
    let config = to.join("tokenizer_config.json");
    let mut all: Value = serde_json::from_slice(&std::fs::read(&config).expect("it is there")).expect("JSON");
    all["chat_template"] = template.into();
    std::fs::write(config, all.to_string()).expect("it is written");
    to.to_str().expect("UTF-8").to_owned()
}

/// A template whose prompt begins thoughts unless `enable_thinking` is false.
pub const THINKS: &str = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}\
    {% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}";

/// A server for tests that need nothing special.
pub fn plain() -> Live {
    start("qwen3", 8, ServerConfig::default())
}

impl Live {
    /// How it ended.
    pub fn outcome(mut self) -> Outcome {
        self.ended.take().expect("not asked before").join().expect("no panic")
    }

    pub fn get(&self, path: &str) -> Answer {
        call(self.address, "GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        call(self.address, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Posts and demands success.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        answer.json()
    }

    /// Waits for the engine to look like this.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Live) -> bool) {
        let patience = Instant::now() + Duration::from_secs(60);
        while !wanted(self) {
            assert!(Instant::now() < patience, "{what}: {:?}", self.engine.stats());
            std::thread::yield_now();
        }
    }

    pub fn wait_until_idle(&self) {
        self.wait_for("idle", |live| {
            let stats = live.engine.stats();
            stats.running == 0 && stats.queued == 0 && stats.blocks_used == 0
        });
    }

    /// A figure of `/metrics`.
    pub fn metric(&self, start: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start} in {text}"));
        line.rsplit(' ').next().unwrap().parse().expect("a number")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.gate.allow(None);
        if let Some(ended) = self.ended.take() {
            self.stop.stop();
            self.stop.stop();
            let _ = ended.join();
        }
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }

    /// The objects of a stream of OpenAI's, which must end as it should.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert!(self.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")));
        let text = self.text();
        let mut events: Vec<&str> = text.split_terminator("\n\n").filter(|event| !event.starts_with(':')).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        let json = |event: &str| {
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
            serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"))
        };
        events.into_iter().map(json).collect()
    }

    /// Demands an error in OpenAI's shape.
    pub fn is_error(&self, status: u16, code: &str) -> Value {
        let body = self.json();
        let error = &body["error"];
        assert_eq!((self.status, error["code"].as_str()), (status, Some(code)), "{body}");
        assert!(well_formed(&body), "{body}");
        error.clone()
    }
}

/// Whether a body is an error with all four keys.
pub fn well_formed(body: &Value) -> bool {
    let Some(error) = body["error"].as_object() else { return false };
    let optional = |name: &str| error.get(name).is_some_and(|value| value.is_null() || value.is_string());
    error.len() == 4
        && error["message"].is_string()
        && error["type"].is_string()
        && optional("param")
        && optional("code")
}

/// One request on a connection of its own.
pub fn call(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut open = send(address, method, path, headers, body);
    read_answer(&mut open).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// Sends a request and leaves the answer to be read.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> BufReader<TcpStream> {
    send_over(TcpStream::connect(address).expect("it listens"), address, method, path, headers, body)
}

fn send_over(
    mut stream: TcpStream,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> BufReader<TcpStream> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    head.push_str("\r\n");
    // A server may refuse before it has read all.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    BufReader::new(stream)
}

/// Posts JSON and leaves the answer to be read.
pub fn send_json(address: SocketAddr, path: &str, body: &Value) -> BufReader<TcpStream> {
    send(address, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Connects from another address of this machine.
pub fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(to).await?.into_std()
    });
    let stream = stream.expect("every 127.x.y.z is this machine");
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Posts JSON from another address of this machine and leaves the answer to be read.
pub fn send_json_from(from: [u8; 4], to: SocketAddr, path: &str, body: &Value) -> BufReader<TcpStream> {
    send_over(
        connect_from(from, to),
        to,
        "POST",
        path,
        &[("content-type", "application/json")],
        body.to_string().as_bytes(),
    )
}

/// Status line and headers.
pub fn read_head(stream: &mut impl BufRead) -> std::io::Result<Answer> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status line: {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => return Ok(Answer { status, headers, body: Vec::new() }),
        }
    }
}

/// The next chunk of a chunked body; empty at its end.
pub fn read_chunk(stream: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let length =
        usize::from_str_radix(line.trim_end(), 16).map_err(|e| std::io::Error::other(format!("{e}: {line:?}")))?;
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(length);
    Ok(chunk)
}

pub fn read_answer(stream: &mut impl BufRead) -> std::io::Result<Answer> {
    let mut answer = read_head(stream)?;
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let chunk = read_chunk(stream)?;
            if chunk.is_empty() {
                return Ok(answer);
            }
            answer.body.extend(chunk);
        }
    }
    let length = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    answer.body = vec![0; length];
    stream.read_exact(&mut answer.body)?;
    Ok(answer)
}
