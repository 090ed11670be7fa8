//! `njoule energy serve`: the agent. It keeps nothing about its clients: a window is two snapshots, and the client brings the
//! first one along.
//!
//! `GET /v1/energy` is a snapshot; `POST /v1/energy/report` with an earlier one is the report since; `GET /metrics` is
//! Prometheus' text; `GET /health` is `ok`.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use njoule_energy::report::Report;
use njoule_energy::{Snapshot, Window};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::polled::Polled;
use super::subject::LocalArgs;
use crate::commit;
use crate::verbs::Context;

/// Arguments of `energy serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    local: LocalArgs,
    /// Address to listen on; whoever reaches it may read
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port; 0 takes a free one
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

impl Args {
    /// Serves until SIGTERM or Ctrl-C.
    pub fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let meters = Arc::new(Polled::open(&self.local.wanted(None))?);
        let threads = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = threads.context("cannot start the agent")?;
        runtime.block_on(async {
            let host = self.host.trim_start_matches('[').trim_end_matches(']');
            let listener = TcpListener::bind((host, self.port)).await;
            let listener = listener.with_context(|| format!("cannot listen on {}:{}", self.host, self.port))?;
            let address = listener.local_addr()?;
            for absent in &meters.snapshot().absent {
                context.note(&format!("no {}: {}", absent.meter, absent.reason));
            }
            eprintln!("listening on http://{address}");
            tokio::select! {
                () = accept(listener, meters) => {}
                signal = end() => signal?,
            }
            Ok(())
        })
    }
}

/// SIGTERM or SIGINT.
async fn end() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn accept(listener: TcpListener, meters: Arc<Polled>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, mostly.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let meters = meters.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let meters = meters.clone();
                async move { Ok::<_, Infallible>(answer(request, &meters).await) }
            });
            let mut server = http1::Builder::new();
            let connection = server
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // A client that leaves is no failure of ours.
            let _ = tokio::time::timeout(LONGEST_CONNECTION, connection).await;
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, meters: &Arc<Polled>) -> Response<String> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/energy") => {
            match snapshot(meters, Polled::begin).await.map(|s| serde_json::to_string(&s.brief())) {
                Ok(Ok(snapshot)) => text(StatusCode::OK, JSON, snapshot),
                Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
                Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
            }
        }
        (&Method::POST, "/v1/energy/report") => match body(request.into_body()).await {
            Ok(body) => report(&body, meters).await,
            Err((status, error)) => refuse(status, error),
        },
        (&Method::GET, "/metrics") => match snapshot(meters, Polled::snapshot).await {
            Ok(snapshot) => text(StatusCode::OK, PROMETHEUS, metrics(&snapshot)),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
        },
        (&Method::GET, "/health") => text(StatusCode::OK, "text/plain", "ok\n".into()),
        (_, "/v1/energy" | "/v1/energy/report" | "/metrics" | "/health") => refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "another method: GET /v1/energy, POST /v1/energy/report, GET /metrics",
        ),
        (_, path) => {
            refuse(StatusCode::NOT_FOUND, format!("{path}: the agent has /v1/energy, /v1/energy/report, /metrics"))
        }
    }
}

/// Apart from the thread that serves: a feed's command may take its time.
async fn snapshot(meters: &Arc<Polled>, look: fn(&Polled) -> Snapshot) -> Result<Snapshot, tokio::task::JoinError> {
    let meters = meters.clone();
    tokio::task::spawn_blocking(move || look(&meters)).await
}

async fn report(body: &[u8], meters: &Arc<Polled>) -> Response<String> {
    let start: Snapshot = match serde_json::from_slice(body) {
        Ok(start) => start,
        Err(error) => {
            return refuse(StatusCode::BAD_REQUEST, format!("the body is no snapshot of GET /v1/energy: {error}"));
        }
    };
    let end = match snapshot(meters, Polled::end).await {
        Ok(end) => end,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    };
    match Window::between(&start, &end) {
        Ok(window) => {
            let mut report = Report::of("agent", "local", window);
            report.git = commit::of_this_build().map(str::to_owned);
            text(StatusCode::OK, JSON, format!("{}\n", report.json()))
        }
        Err(error) => refuse(StatusCode::CONFLICT, error),
    }
}

/// A body of bounded size, in bounded time.
async fn body(mut body: Incoming) -> Result<Vec<u8>, (StatusCode, String)> {
    let collect = async {
        let mut bytes = vec![];
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > MOST_BYTES {
                    return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("more than {MOST_BYTES} bytes")));
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    };
    let late = |_| Err((StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time".to_owned()));
    tokio::time::timeout(PATIENCE, collect).await.unwrap_or_else(late)
}

fn refuse(status: StatusCode, message: impl ToString) -> Response<String> {
    let error = json!({"error": {"message": message.to_string(), "type": "invalid_request_error", "param": null, "code": null}});
    text(status, JSON, error.to_string())
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
}

/// Counters of joules that are known, and of utilisation.
fn metrics(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ");
    let name = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    out += "# HELP njoule_energy_joules_total Joules since the meters were opened\n# TYPE njoule_energy_joules_total counter\n";
    for meter in &snapshot.meters {
        let (Some(total), None) = (meter.total, &meter.trouble) else { continue };
        // A counter that has not moved is not known to count.
        if total.best() == 0.0 {
            continue;
        }
        let (scope, id) = (name(json!(meter.info.scope)), escape(&meter.info.id));
        let method = meter.info.method.name();
        let _ = writeln!(
            out,
            "njoule_energy_joules_total{{meter=\"{id}\",scope=\"{scope}\",method=\"{method}\"}} {}",
            total.best()
        );
    }
    out += "# HELP njoule_energy_meter_errors_total Readings that failed\n# TYPE njoule_energy_meter_errors_total counter\n";
    let errors: u64 = snapshot.meters.iter().map(|m| m.errors).sum();
    let _ = writeln!(out, "njoule_energy_meter_errors_total {errors}");
    if !snapshot.neuron.is_empty() {
        out += "# HELP njoule_neuron_power_utilization_seconds_total Utilisation of whole minutes, integrated\n\
                # TYPE njoule_neuron_power_utilization_seconds_total counter\n";
        for device in &snapshot.neuron {
            let (n, util) = (device.device, device.util_seconds);
            let _ = writeln!(out, "njoule_neuron_power_utilization_seconds_total{{device=\"{n}\"}} {util}");
        }
    }
    out
}

/// Where an agent listens unless told otherwise.
pub const PORT: u16 = 9788;
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4";
const MOST_CONNECTIONS: usize = 64;
const MOST_BYTES: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);
