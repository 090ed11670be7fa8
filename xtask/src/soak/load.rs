//! Many clients at once: those that leave, those that dawdle, too many, and whether answers stay what they are.

use std::fmt::Write as _;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Scale;
use super::live::{Live, events, percentile, read_body, read_chunk, read_head};

fn endless(stream: bool) -> Value {
    json!({"prompt": "Hi", "max_tokens": 480, "ignore_eos": true, "stream": stream})
}

/// Runs `clients` threads, each for its share of `count`, and returns the first error.
fn crowd(clients: usize, count: usize, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let first = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if i >= count {
                        return;
                    }
                    if let Err(error) = work(i) {
                        next.store(count, std::sync::atomic::Ordering::Relaxed);
                        // A panic of another client is that client's.
                        let _ = first.lock().map(|mut first| first.get_or_insert(error).to_string());
                        return;
                    }
                }
            });
        }
    });
    first.into_inner().unwrap_or_default().map_or(Ok(()), Err)
}

/// Clients that leave at random points.
pub fn disconnects(scale: &Scale) -> anyhow::Result<String> {
    let live = Live::start(scale, &["--max-num-seqs", "16", "--max-queued-requests", "256"])?;
    let count = scale.count(1000, 100);
    let mut slowest = Duration::ZERO;
    for round in 0..count / 50 {
        crowd(50, 50, |i| {
            let mut client = live.send("POST", "/v1/completions", endless(i % 2 == 0).to_string().as_bytes())?;
            match (i + round) % 4 {
                0 => {}
                1 => std::thread::sleep(Duration::from_millis((i % 7) as u64)),
                2 if i % 2 == 0 => drop(read_head(&mut client)?),
                _ if i % 2 == 0 => {
                    read_head(&mut client)?;
                    read_chunk(&mut client)?;
                }
                _ => {}
            }
            Ok(())
        })?;
        let took = live.idle(Duration::from_secs(30))?;
        slowest = slowest.max(took);
    }
    let aborted =
        live.metric("njoule_requests_finished_total{model_name=\"m\",engine=\"0\",finished_reason=\"abort\"")?;
    ensure!(aborted > 0.0, "nobody left while its request ran");
    ensure!(slowest <= scale.within(200), "idle only after {slowest:?}");
    ensure!(live.get("/health")?.status == 200, "it is not well");
    let mut figures = format!(
        "{count} clients left, no block leaked, idle after {:.0} ms at the latest",
        slowest.as_secs_f64() * 1e3
    );
    // This model has a token in less time than a thread needs to be woken: nothing but the server's own restraint holds it back.
    let after = tokens_after_leaving(&live, scale.count(1000, 100))?;
    write!(figures, "; {after:.0} tokens at most after a client was gone")?;
    ensure!(after <= 2.0, "{figures}");
    drop(live);
    if scale.full {
        let after = tokens_after_leaving(&Live::start_default(scale)?, 500)?;
        write!(figures, "; {after:.0} at most of the default model")?;
        ensure!(after <= 2.0, "{figures}");
    }
    Ok(figures)
}

/// Of clients that leave one by one: the most tokens that were counted after the first look behind it.
fn tokens_after_leaving(live: &Live, times: usize) -> anyhow::Result<f64> {
    let (mut most, mut left): (f64, usize) = (0.0, 0);
    for i in 0..times {
        let mut client = live.send("POST", "/v1/completions", endless(true).to_string().as_bytes())?;
        read_head(&mut client)?;
        // A client that was late finds the end of its answer: it has nothing to leave.
        let mut over = false;
        for _ in 0..=i % 5 {
            over = over || read_chunk(&mut client)?.is_empty();
        }
        drop(client);
        left += usize::from(!over);
        let first = live.metric("njoule_generation_tokens_total")?;
        live.idle(Duration::from_secs(10))?;
        most = most.max(live.metric("njoule_generation_tokens_total")? - first);
    }
    ensure!(left * 2 >= times, "{left} of {times} left before their answer had ended");
    Ok(most)
}

/// Clients that read a byte a second, and clients that never finish their headers.
pub fn slow_clients(scale: &Scale) -> anyhow::Result<String> {
    let live = Live::start(scale, &["--max-num-seqs", "66", "--max-queued-requests", "256", "--write-timeout", "2"])?;
    let body = json!({"prompt": "Hi", "max_tokens": 16, "temperature": 0, "ignore_eos": true});
    let asked = |top: Option<usize>| {
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 480, "logprobs": top.is_some(),
            "top_logprobs": top, "stream": true, "ignore_eos": true, "temperature": 2})
        .to_string()
    };
    let (slow, plain) = (asked(Some(20)), asked(None));
    let readers = scale.count(64, 8);
    let crowded = |body: &str| {
        crowd(readers, readers, |_| {
            let mut stream = live.send("POST", "/v1/chat/completions", body.as_bytes())?;
            let mut answer = read_head(&mut stream)?;
            read_body(&mut stream, &mut answer)?;
            ensure!(!answer.text().contains("slow_reader"), "one that reads was cut off");
            Ok(())
        })?;
        live.idle(Duration::from_secs(60))
    };
    // What as many clients that read take of memory: rows of the batch, blocks to their end, connections. Without
    // log-probabilities, whose memory would be there for the others.
    crowded(&plain)?;
    let before = live.resident()?;
    let mut deaf = Vec::new();
    for _ in 0..readers {
        let stream = live.send("POST", "/v1/chat/completions", slow.as_bytes())?;
        // Less than an answer: else the system reads it all.
        rustix::net::sockopt::set_socket_recv_buffer_size(stream.get_ref(), 4096)?;
        deaf.push(stream);
    }
    let mut byte = [0];
    let (mut times, mut most, mut most_queued) = (Vec::new(), before, 0);
    for _ in 0..scale.count(5, 4) {
        for reader in &mut deaf {
            // No more than that: one that was cut off has ended.
            let _ = reader.get_mut().read(&mut byte);
        }
        let answer = live.post("/v1/completions", &body)?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        times.push(answer.took);
        let queued = live.queued()?;
        (most, most_queued) = (most.max(live.resident()? + queued), most_queued.max(queued));
        std::thread::sleep(Duration::from_secs(1));
    }
    live.idle(Duration::from_secs(60))?;
    // Those that read are never cut off, however much there is.
    crowded(&slow)?;
    let [each, queued] = [most - before, most_queued].map(|bytes| bytes / readers as i64 / 1024);
    let ended = |mut reader: BufReader<TcpStream>| {
        let mut rest = vec![];
        // A connection that was reset has no end of its own.
        let _ = reader.get_mut().read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).contains("[DONE]")
    };
    // At once: what is left in small windows comes slowly.
    let whole = std::thread::scope(|scope| {
        let endings: Vec<_> = deaf.into_iter().map(|reader| scope.spawn(move || ended(reader))).collect();
        endings.into_iter().filter_map(|ending| ending.join().ok()).filter(|whole| *whole).count()
    });
    let cut = readers - whole;
    let count = scale.count(256, 32);
    let begun = Instant::now();
    let mut waiting = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(&live.address)?;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: local")?;
        waiting.push(BufReader::new(stream));
    }
    ensure!(live.get("/health")?.status == 200, "it does not answer beside them");
    for stream in &mut waiting {
        ensure!(read_head(stream)?.status == 408, "no 408");
    }
    let closed = begun.elapsed();
    ensure!(closed <= Duration::from_secs(10) + scale.within(500), "closed after {closed:?}");
    let worst = percentile(&mut times, 1.0);
    ensure!(worst <= scale.within(500), "another request took {worst:?}");
    let figures = format!(
        "{readers} slow readers, {cut} cut off, {each} KiB more for each ({queued} of them in sockets), others within {:.0} ms; {count} slow headers closed after {:.1} s",
        worst.as_secs_f64() * 1e3,
        closed.as_secs_f64()
    );
    // Of few the allocator's own is most.
    let own = if scale.full { 0 } else { 4 << 20 };
    ensure!(cut == readers && most - before <= readers as i64 * (256 << 10) + own, "{figures}");
    Ok(figures)
}

/// What a level of load gave.
struct Level {
    ttft: Vec<Duration>,
    refused: Vec<Duration>,
    tokens: f64,
}

/// `clients` that ask again and again for a time.
fn level(live: &Live, clients: usize, time: Duration) -> anyhow::Result<Level> {
    let (ttft, refused) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let tokens = live.metric("njoule_generation_tokens_total")?;
    let begun = Instant::now();
    let body = json!({"prompt": "Hi there", "max_tokens": 32, "ignore_eos": true, "stream": true}).to_string();
    crowd(clients, usize::MAX, |_| {
        while begun.elapsed() < time {
            let asked = Instant::now();
            let mut stream = live.send("POST", "/v1/completions", body.as_bytes())?;
            let mut answer = read_head(&mut stream)?;
            if answer.status == 200 {
                read_chunk(&mut stream)?;
                let first = asked.elapsed();
                read_body(&mut stream, &mut answer)?;
                ttft.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.push(first);
            } else {
                let took = asked.elapsed();
                read_body(&mut stream, &mut answer)?;
                ensure!(matches!(answer.status, 429 | 503), "{} {}", answer.status, answer.text());
                ensure!(answer.has("retry-after") && answer.has("retry-after-ms"), "no Retry-After: {}", answer.head);
                refused.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.push(took);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        anyhow::bail!("over")
    })
    .or_else(|error| if error.to_string() == "over" { Ok(()) } else { Err(error) })?;
    let seconds = begun.elapsed().as_secs_f64();
    let tokens = (live.metric("njoule_generation_tokens_total")? - tokens) / seconds;
    Ok(Level { ttft: ttft.into_inner().unwrap_or_default(), refused: refused.into_inner().unwrap_or_default(), tokens })
}

/// Four times what there is room for.
pub fn overload(scale: &Scale) -> anyhow::Result<String> {
    const ROOM: usize = 8;
    let live = Live::start(scale, &["--max-num-seqs", "4", "--max-queued-requests", "4"])?;
    let time = Duration::from_secs(scale.count(60, 2) as u64);
    let mut one = level(&live, ROOM, time)?;
    let mut four = level(&live, 4 * ROOM, time)?;
    ensure!(!four.refused.is_empty(), "nobody was refused");
    let (calm, busy) = (percentile(&mut one.ttft, 0.99), percentile(&mut four.ttft, 0.99));
    let (refused, slowest) = (percentile(&mut four.refused, 0.99), percentile(&mut four.refused, 1.0));
    let goodput = four.tokens / one.tokens.max(1.0);
    std::thread::sleep(Duration::from_secs(2).min(scale.within(2000)));
    live.idle(Duration::from_secs(2))?;
    let after = live.post("/v1/completions", &json!({"prompt": "Hi", "max_tokens": 4}))?;
    ensure!(after.status == 200 && live.get("/ready")?.status == 200, "not normal after 2 s");
    let figures = format!(
        "{} refused, p99 {:.1} ms, the slowest {:.1} ms; p99 TTFT {:.1} ms at 1x, {:.1} ms at 4x; goodput {:.0} % (client and server share this machine)",
        four.refused.len(),
        refused.as_secs_f64() * 1e3,
        slowest.as_secs_f64() * 1e3,
        calm.as_secs_f64() * 1e3,
        busy.as_secs_f64() * 1e3,
        goodput * 100.0
    );
    ensure!(refused <= scale.within(10), "{figures}");
    // On a machine that builds meanwhile two runs do not compare.
    ensure!(!scale.full || (busy <= 2 * calm && goodput >= 0.95), "{figures}");
    Ok(figures)
}

/// The same answers alone and in company that changes.
pub fn isolation(scale: &Scale) -> anyhow::Result<String> {
    let live = Live::start(scale, &["--max-num-seqs", "32", "--max-queued-requests", "64"])?;
    let body = |i: usize| {
        json!({"prompt": format!("{i} times {}", "x".repeat(i * 5)), "max_tokens": 10 + i, "temperature": (i % 2) as f64, "seed": i,
        "ignore_eos": true, "logprobs": 1})
    };
    let alone: Vec<Value> =
        (0..16).map(|i| Ok(live.ok("/v1/completions", &body(i))?["choices"].clone())).collect::<anyhow::Result<_>>()?;
    let count = scale.count(2000, 200);
    crowd(32, count, |i| {
        let which = i * 7 % 16;
        let got = &live.ok("/v1/completions", &body(which))?["choices"];
        ensure!(got == &alone[which], "{which}: {got} but alone {}", alone[which]);
        if i % 9 == 0 {
            // One that leaves.
            drop(live.send("POST", "/v1/completions", endless(true).to_string().as_bytes())?);
        }
        Ok(())
    })?;
    // A prompt of blocks that another salt has computed.
    let salted = |salt: &str| -> anyhow::Result<u64> {
        let body = json!({"prompt": "share ".repeat(40), "max_tokens": 1, "cache_salt": salt});
        let answer = live.ok("/v1/completions", &body)?;
        Ok(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0))
    };
    for salt in 0..scale.count(100, 10) {
        let [first, again] = [salted(&salt.to_string())?, salted(&salt.to_string())?];
        ensure!(first == 0 && again > 0, "salt {salt}: {first} tokens were another's, {again} its own");
    }
    Ok(format!(
        "{count} answers with log-probabilities, in batches of up to 32 with joins and leaves, equal those that ran alone; no two cache \
         salts share a block"
    ))
}

/// Streams against whole answers.
pub fn text(scale: &Scale) -> anyhow::Result<String> {
    let live = Live::start(scale, &["--max-num-seqs", "16", "--max-queued-requests", "64"])?;
    let count = scale.count(10_000, 200);
    let stops = ["e", "ab", "\u{fffd}", " ", "th", "\n", "xyz"];
    crowd(16, count, |i| {
        let stop: Vec<&str> = stops.iter().copied().cycle().skip(i % 7).take(i % 5).collect();
        let mut body =
            json!({"prompt": format!("{} é", i % 97), "max_tokens": 24, "seed": i, "temperature": 1.5, "stop": stop});
        let whole = live.ok("/v1/completions", &body)?;
        body["stream"] = json!(true);
        let streamed = events(&live.post("/v1/completions", &body)?)?;
        let text: String = streamed.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        let last = streamed.iter().filter_map(|event| event["choices"].get(0)).next_back().context("no choice")?;
        ensure!(
            whole["choices"][0]["text"] == json!(text),
            "{body}: {text:?} but whole {}",
            whole["choices"][0]["text"]
        );
        ensure!(whole["choices"][0]["finish_reason"] == last["finish_reason"], "{body}");
        Ok(())
    })?;
    Ok(format!("{count} streams with stop strings equal whole answers"))
}
