//! A server as a process, and a client that measures.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Scale;
use crate::live::Live as Process;

/// A running server, ended with its test.
pub struct Live {
    process: Process,
    pub address: String,
}

/// An answer and how long it took.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub took: Duration,
}

impl Answer {
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| String::from_utf8_lossy(&self.body).into_owned())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn has(&self, header: &str) -> bool {
        self.head.to_ascii_lowercase().contains(&format!("\n{header}:"))
    }
}

impl Live {
    pub fn start(scale: &Scale, arguments: &[&str]) -> anyhow::Result<Live> {
        let model = scale.model.to_str().context("the model's path is not text")?;
        Live::serve(scale, &[&[model, "--threads", "1", "--offline"], arguments].concat())
    }

    /// With the default model as it is served by default, where a token takes longer than it takes to wake a thread.
    pub fn start_default(scale: &Scale) -> anyhow::Result<Live> {
        Live::serve(scale, &[])
    }

    fn serve(scale: &Scale, arguments: &[&str]) -> anyhow::Result<Live> {
        let always = ["--served-model-name", "m", "--log-level", "error"];
        let process = Process::start(&scale.binary, &[&always, arguments].concat())?;
        let address = process.url.strip_prefix("http://").context("it speaks TLS")?.to_owned();
        Ok(Live { process, address })
    }

    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let done = Command::new("kill").arg(format!("-{name}")).arg(self.process.child.id().to_string()).status()?;
        ensure!(done.success(), "kill -{name}: {done}");
        Ok(())
    }

    /// Its exit code.
    pub fn wait(&mut self) -> anyhow::Result<Option<i32>> {
        Ok(self.process.child.wait()?.code())
    }

    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.ask("GET", path, b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.ask("POST", path, body.to_string().as_bytes())
    }

    /// Posts and demands success.
    pub fn ok(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.post(path, body)?;
        ensure!(answer.status == 200, "{body}: {} {}", answer.status, answer.text());
        answer.json()
    }

    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let begun = Instant::now();
        let mut stream = self.send(method, path, body)?;
        let mut answer = read_head(&mut stream)?;
        read_body(&mut stream, &mut answer)?;
        answer.took = begun.elapsed();
        Ok(answer)
    }

    /// Sends a request and leaves its answer to be read.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        // A server may refuse before it has read all.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        Ok(BufReader::new(stream))
    }

    /// The sum of a metric's samples.
    pub fn metric(&self, start: &str) -> anyhow::Result<f64> {
        let text = self.get("/metrics")?.text();
        Ok(text
            .lines()
            .filter(|l| l.starts_with(start))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Waits until nothing runs, waits or holds a block; says how long that took.
    pub fn idle(&self, patience: Duration) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            let text = self.get("/metrics")?.text();
            let zero = |name: &str| text.lines().filter(|l| l.starts_with(name)).all(|l| l.ends_with(" 0"));
            if zero("njoule_num_requests_running{")
                && zero("njoule_num_requests_waiting{")
                && zero("njoule_kv_cache_usage_ratio{")
            {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < patience, "not idle after {patience:?}: {text}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Does `work` while a stream runs beside it; the times between the tokens of that.
    pub fn beside<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Vec<Duration>)> {
        let over = AtomicBool::new(false);
        let (done, gaps) = std::thread::scope(|scope| {
            let probe = scope.spawn(|| self.gaps(&over));
            let done = work();
            over.store(true, Ordering::Relaxed);
            (done, probe.join())
        });
        Ok((done?, gaps.map_err(|_| anyhow::anyhow!("the stream beside it panicked"))??))
    }

    fn gaps(&self, over: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
        let body = json!({"prompt": "Hi", "max_tokens": 480, "ignore_eos": true, "stream": true}).to_string();
        let mut gaps = vec![];
        while !over.load(Ordering::Relaxed) {
            let mut stream = self.send("POST", "/v1/completions", body.as_bytes())?;
            let head = read_head(&mut stream)?;
            ensure!(head.status == 200, "the stream beside it: {}", head.status);
            read_chunk(&mut stream)?;
            let mut last = Instant::now();
            while !read_chunk(&mut stream)?.is_empty() && !over.load(Ordering::Relaxed) {
                gaps.push(last.elapsed());
                last = Instant::now();
            }
        }
        ensure!(!gaps.is_empty(), "the stream beside it had no token");
        Ok(gaps)
    }

    /// Resident bytes.
    pub fn resident(&self) -> anyhow::Result<i64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<i64>()? * 1024)
    }

    /// Bytes that the system holds for its clients.
    pub fn queued(&self) -> anyhow::Result<i64> {
        let port: u16 = self.address.rsplit(':').next().context("no port")?.parse()?;
        let end = format!(":{port:04X}");
        let sockets = std::fs::read_to_string("/proc/net/tcp")?;
        let mut queued = 0;
        for line in sockets.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [_, local, _, _, queues, ..] = fields[..]
                && local.ends_with(&end)
            {
                queued += i64::from_str_radix(queues.split(':').next().unwrap_or_default(), 16)?;
            }
        }
        Ok(queued)
    }

    /// Open files.
    pub fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.process.child.id()))?.count())
    }
}

pub fn read_head(stream: &mut impl BufRead) -> anyhow::Result<Answer> {
    let mut head = String::new();
    loop {
        let before = head.len();
        ensure!(stream.read_line(&mut head)? > 0, "the connection ended: {head:?}");
        if head[before..].trim_end().is_empty() {
            break;
        }
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).with_context(|| head.clone())?;
    Ok(Answer { status, head, body: Vec::new(), took: Duration::ZERO })
}

/// The next chunk of a chunked body; empty at its end.
pub fn read_chunk(stream: &mut impl BufRead) -> anyhow::Result<Vec<u8>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let length = usize::from_str_radix(line.trim_end(), 16).with_context(|| format!("{line:?}"))?;
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(length);
    Ok(chunk)
}

pub fn read_body(stream: &mut impl BufRead, answer: &mut Answer) -> anyhow::Result<()> {
    if answer.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        loop {
            let chunk = read_chunk(stream)?;
            if chunk.is_empty() {
                return Ok(());
            }
            answer.body.extend(chunk);
        }
    }
    stream.read_to_end(&mut answer.body)?;
    Ok(())
}

/// The data of a stream's events, which must end as it should.
pub fn events(answer: &Answer) -> anyhow::Result<Vec<Value>> {
    let text = answer.text();
    ensure!(answer.status == 200 && text.ends_with("data: [DONE]\n\n"), "{} {text}", answer.status);
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| Ok(serde_json::from_str(data)?)).collect()
}

/// The value below which `share` of `all` lie.
pub fn percentile(all: &mut [Duration], share: f64) -> Duration {
    all.sort();
    let at = ((all.len() as f64 * share).ceil() as usize).clamp(1, all.len().max(1)) - 1;
    all.get(at).copied().unwrap_or_default()
}
