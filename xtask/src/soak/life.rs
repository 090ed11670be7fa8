//! A server's life: its end, its memory, and whether its figures are true.

use std::io::Write;
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use serde_json::json;

use super::Scale;
use super::live::{Live, events, read_body, read_chunk, read_head};

/// SIGTERM under load, and many sudden ends.
pub fn drain(scale: &Scale) -> anyhow::Result<String> {
    let mut live = Live::start(scale, &["--max-num-seqs", "8", "--max-queued-requests", "64"])?;
    let body = json!({"prompt": "Hi", "max_tokens": 400, "stream": true, "ignore_eos": true, "stream_options": {"include_usage": true}});
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(live.send("POST", "/v1/completions", body.to_string().as_bytes())?);
    }
    let mut heads = Vec::new();
    for stream in &mut streams {
        heads.push(read_head(stream)?);
        read_chunk(stream)?;
    }
    live.signal("TERM")?;
    let begun = Instant::now();
    let unready = loop {
        match live.get("/ready")?.status {
            200 => ensure!(begun.elapsed() < Duration::from_secs(5), "still ready"),
            503 => break begun.elapsed(),
            status => anyhow::bail!("/ready: {status}"),
        }
    };
    ensure!(unready <= scale.within(100), "/ready was 200 for {unready:?}");
    let refused = live.post("/v1/completions", &json!({"prompt": "Hi"}))?.status;
    ensure!(refused == 503, "a new request was answered {refused}");
    for (stream, mut head) in streams.iter_mut().zip(heads) {
        read_body(stream, &mut head)?;
        let last = events(&head)?.pop().unwrap_or_default();
        ensure!(last["usage"]["completion_tokens"] == 400 || last["error"].is_object(), "{last}");
        ensure!(last["error"].is_null(), "a stream ended by an error before its time: {last}");
    }
    let drained = begun.elapsed();
    ensure!(live.wait()? == Some(0), "the exit code is not 0");

    let mut second = Live::start(scale, &[])?;
    let mut stream = second.send(
        "POST",
        "/v1/completions",
        json!({"prompt": "Hi", "max_tokens": 480, "ignore_eos": true}).to_string().as_bytes(),
    )?;
    std::thread::sleep(Duration::from_millis(20));
    second.signal("TERM")?;
    second.signal("INT")?;
    let begun = Instant::now();
    let _ = read_head(&mut stream);
    let code = second.wait()?;
    let aborted = begun.elapsed();
    ensure!(aborted <= scale.within(1000), "a second signal took {aborted:?}");
    ensure!(matches!(code, Some(0 | 130)), "exit code {code:?}");

    let times = scale.count(100, 3);
    for _ in 0..times {
        let mut live = Live::start(scale, &[])?;
        let stream = live.send("POST", "/v1/completions", body.to_string().as_bytes())?;
        live.signal("KILL")?;
        live.wait()?;
        drop(stream);
    }
    Ok(format!(
        "32 streams whole after {:.2} s, unready after {:.0} ms, exit 0; second signal after {:.2} s; {times} times SIGKILL and start",
        drained.as_secs_f64(),
        unready.as_secs_f64() * 1e3,
        aborted.as_secs_f64()
    ))
}

/// Resident memory, file descriptors and counters over many requests.
pub fn memory(scale: &Scale) -> anyhow::Result<String> {
    let live = Live::start(scale, &["--max-num-seqs", "8", "--max-queued-requests", "64"])?;
    let (least, time) = (scale.count(10_000, 600), Duration::from_secs(scale.count(3600, 0) as u64));
    let (done, prompt, generated) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    // Held by each request; whoever wants a server without any takes it alone.
    let (over, asking) = (AtomicBool::new(false), RwLock::new(()));
    let client = |number: usize| -> anyhow::Result<()> {
        let mut i = number;
        while !over.load(Ordering::Relaxed) {
            let body = json!({"prompt": "x".repeat(1 + i % 200), "max_tokens": 1 + i % 40, "seed": i, "n": 1 + i % 2, "logprobs": i % 3});
            let held = asking.read();
            let answer = live.ok("/v1/completions", &body)?;
            drop(held);
            for (name, sum) in [("prompt_tokens", &prompt), ("completion_tokens", &generated)] {
                sum.fetch_add(
                    answer["usage"][name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
                    Ordering::Relaxed,
                );
            }
            done.fetch_add(1, Ordering::Relaxed);
            i += 6;
            // Four fifths of what it can do.
            std::thread::sleep(PAUSE);
        }
        Ok(())
    };
    let begun = Instant::now();
    let mut samples: Vec<(f64, i64)> = vec![];
    let mut files = vec![];
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let client = &client;
        let running: Vec<_> = (0..6).map(|number| scope.spawn(move || client(number))).collect();
        let mut last = 0.0;
        while done.load(Ordering::Relaxed) < least || begun.elapsed() < time {
            std::thread::sleep(Duration::from_millis(200));
            if running.iter().any(|client| client.is_finished()) {
                break;
            }
            let counted = live.metric("njoule_generation_tokens_total")?;
            ensure!(counted >= last, "a counter fell from {last} to {counted}");
            last = counted;
            // A third is warm-up.
            if done.load(Ordering::Relaxed) > least / 3 {
                samples.push((begun.elapsed().as_secs_f64(), live.resident()?));
                if samples.len().is_multiple_of(scale.count(50, 1)) {
                    let _alone = asking.write();
                    files.push(at_rest(&live, files.first().copied())?);
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        for client in running {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;
    live.idle(Duration::from_secs(10))?;
    let (prompt, generated) = (prompt.into_inner() as f64, generated.into_inner() as f64);
    let counted = [live.metric("njoule_prompt_tokens_total")?, live.metric("njoule_generation_tokens_total")?];
    ensure!(counted == [prompt, generated], "counted {counted:?}, answers said {prompt} and {generated}");
    let slope = slope(&samples) * 3600.0 / f64::from(1 << 20);
    let grown = samples.last().zip(samples.first()).map_or(0, |(last, first)| last.1 - first.1);
    let (least_files, most_files) =
        (files.iter().min().copied().unwrap_or(0), files.iter().max().copied().unwrap_or(0));
    let figures = format!(
        "{} requests in {:.0} s, tokens add up; after warm-up grown by {} KiB ({slope:.1} MiB/h), {least_files} to {most_files} files open at {} moments without a request",
        done.into_inner(),
        begun.elapsed().as_secs_f64(),
        grown / 1024,
        files.len()
    );
    // A slope of seconds says nothing.
    ensure!(if scale.full { slope <= 1.0 } else { grown <= 4 << 20 }, "{figures}");
    ensure!(most_files == least_files, "{figures}");
    Ok(figures)
}

/// Open files of a server that nobody asks anything: as soon as there are no more than at rest `before`, or those that stay.
fn at_rest(live: &Live, before: Option<usize>) -> anyhow::Result<usize> {
    live.idle(Duration::from_secs(10))?;
    let (mut least, begun) = (live.descriptors()?, Instant::now());
    // The last connections are closed on its side as well, at the latest when it has a core again.
    while before.is_none_or(|before| least > before) && begun.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(5));
        least = least.min(live.descriptors()?);
    }
    Ok(least)
}

/// Between two requests of a client, so that the server has idle moments.
const PAUSE: Duration = Duration::from_millis(2);

/// Least squares, in bytes per second.
fn slope(samples: &[(f64, i64)]) -> f64 {
    let n = samples.len().max(1) as f64;
    let (x, y) = samples.iter().fold((0.0, 0.0), |(x, y), s| (x + s.0 / n, y + s.1 as f64 / n));
    let (xy, xx) =
        samples.iter().fold((0.0, 0.0), |(xy, xx), s| (xy + (s.0 - x) * (s.1 as f64 - y), xx + (s.0 - x).powi(2)));
    if xx > 0.0 { xy / xx } else { 0.0 }
}

/// Whether running and waiting are what clients know to be in flight, and what energy went for is what a meter told.
pub fn metrics(scale: &Scale) -> anyhow::Result<String> {
    let place = scale.workspace.join("target/soak");
    std::fs::create_dir_all(&place)?;
    let meter = place.join("wall.csv");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Its first line stands before the server looks.
        tell(&meter, false)?;
        let telling = scope.spawn(|| -> anyhow::Result<()> {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                tell(&meter, true)?;
            }
            Ok(())
        });
        let figures = metered(scale, &meter);
        over.store(true, Ordering::Relaxed);
        telling.join().map_err(|_| anyhow::anyhow!("the meter panicked"))??;
        figures
    })
}

/// A line of a meter at the wall, where always [`WATTS`] are drawn.
fn tell(meter: &Path, append: bool) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    let mut file = std::fs::File::options().create(true).write(true).append(append).truncate(!append).open(meter)?;
    Ok(writeln!(file, "{now:.6},{:.6}", now * WATTS)?)
}

const WATTS: f64 = 50.0;

fn metered(scale: &Scale, meter: &Path) -> anyhow::Result<String> {
    let feed = format!("csv:{}", meter.to_str().context("the meter's path is not text")?);
    let begun = Instant::now();
    let live = Live::start(scale, &["--max-num-seqs", "4", "--max-queued-requests", "64", "--feed", &feed])?;
    let rounds = scale.count(50, 5);
    let mut checked = 0;
    for round in 0..rounds {
        let count = 1 + round % 12;
        // Streams that have begun and are not read on are in flight until they are dropped, if they are long enough.
        let body =
            json!({"prompt": "Hi", "max_tokens": 480, "ignore_eos": true, "stream": true, "logprobs": 5}).to_string();
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = live.send("POST", "/v1/completions", body.as_bytes())?;
            ensure!(read_head(&mut stream)?.status == 200, "not taken");
            streams.push(stream);
        }
        let text = live.get("/metrics")?.text();
        let value = |name: &str| -> f64 {
            text.lines().find(|l| l.starts_with(name)).and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(-1.0)
        };
        let counted = value("njoule_num_requests_running{") + value("njoule_num_requests_waiting{");
        let flight = count as f64;
        ensure!((counted - flight).abs() <= 1.0, "{counted} counted, {flight} in flight");
        checked += 1;
        drop(streams);
        live.idle(Duration::from_secs(10))?;
    }
    ensure!(checked > 0, "no scrape");
    // The meter is read about once a second: twice the same says that nothing was read between.
    let (told, parts) = loop {
        let told = || -> anyhow::Result<f64> {
            let energy = live.get("/v1/energy")?.json()?;
            Ok(TOTAL.iter().find_map(|name| energy[*name].as_f64()).unwrap_or(0.0))
        };
        let before = told()?;
        let parts = live.metric("njoule_energy_attributed_joules_total{")?;
        if before > 0.0 && begun.elapsed() > Duration::from_secs(3) && before.to_bits() == told()?.to_bits() {
            break (before, parts);
        }
        ensure!(begun.elapsed() < Duration::from_secs(120), "the meter was never read");
        std::thread::sleep(Duration::from_millis(50));
    };
    let (most, least) = (WATTS * (begun.elapsed().as_secs_f64() + 0.2), WATTS * (begun.elapsed().as_secs_f64() - 4.0));
    let figures = format!(
        "{checked} scrapes with 1 to 12 in flight, never off by more than 1; {parts:.2} J by what they went for, {told:.2} J by the meter"
    );
    ensure!((parts - told).abs() <= 0.01 * told, "{figures}");
    ensure!(told <= most && told >= least, "{figures}, which drew {least:.1} to {most:.1} J");
    Ok(figures)
}

/// Names of the total.
const TOTAL: [&str; 2] = ["total_j", "joules"];
