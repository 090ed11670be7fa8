//! The njoule server: OpenAI's and Anthropic's HTTP interfaces over the engine.
//!
//! [`Server::start`] listens at once and answers 503 until [`Server::serve`] is given a model; [`Server::wait`] returns when
//! the server has ended, and how. Connections are hyper's, on two threads of a tokio runtime; the engine has its own thread
//! and never waits for a connection ([`mailbox`]). What takes a while (templates, tokenising) runs aside.
//!
//! Invariant: a request that was admitted is answered, or its client has gone; the messages of errors say nothing of this
//! machine.
#![forbid(unsafe_code)]

pub mod anthropic;
mod app;
mod aside;
mod auth;
mod body;
mod chat;
mod completions;
pub mod config;
mod connection;
mod cors;
mod elsewhere;
mod energy;
pub mod error;
mod fields;
mod generation;
pub mod local;
pub mod log;
mod logprobs;
pub mod mailbox;
mod masks;
pub mod metrics;
pub mod model;
mod openapi;
mod orca;
mod output;
mod params;
mod receipts;
pub mod replicas;
mod respond;
mod routes;
mod sse;
mod structured;
mod tenant;
pub mod tls;
mod tokenize;
mod tools;
mod trace;
mod usage;
mod watchdog;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use app::App;
pub use app::Phase;
pub use config::ServerConfig;
use connection::Places;
use error::ApiError;
use model::Model;
pub use model::ModelParts;
pub use openapi::request_fields;
use replicas::{ReplicaSettings, Replicas};
pub use structured::json_schema;

/// A server that listens.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    listening: JoinHandle<()>,
    runtime: Runtime,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address cannot be had.
    #[error("cannot listen on {host}:{port}: {source}")]
    Listen {
        /// Asked for.
        host: String,
        /// Asked for.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
    /// No threads.
    #[error("cannot start the server's threads: {0}")]
    Threads(std::io::Error),
    /// TLS is asked for and cannot be had.
    #[error("TLS: {0}")]
    Tls(#[from] tls::TlsError),
    /// The signals are taken.
    #[error("cannot take over signals: {0}")]
    Signals(std::io::Error),
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that had been accepted was answered, or failed because its time was over.
    Drained,
    /// It was told to end at once.
    Aborted,
    /// The engine hangs or has failed; the process should be replaced.
    EngineLost,
    /// No replica could be started; the exit code of one.
    ReplicaFailed(i32),
}

/// Ends a server from anywhere.
#[derive(Clone)]
pub struct Stop(Arc<App>);

impl Stop {
    /// Takes nothing new and ends when what runs has ended, or its time is over. A second call ends at once.
    pub fn stop(&self) {
        if self.0.phase() >= Phase::Draining {
            tracing::warn!("ending at once");
            self.0.advance(Phase::Ending);
        } else {
            tracing::info!(in_flight = self.0.in_flight(), "draining");
            self.0.advance(Phase::Draining);
        }
    }
}

impl Server {
    /// Listens.
    pub fn start(config: ServerConfig) -> Result<Server, StartError> {
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(ASIDE_THREADS)
            .thread_name("njoule-http")
            .enable_io()
            .enable_time()
            .build()
            .map_err(StartError::Threads)?;
        let listen = |source| StartError::Listen { host: config.host.clone(), port: config.port, source };
        let host = config.host.trim_start_matches('[').trim_end_matches(']');
        let listener = runtime.block_on(TcpListener::bind((host, config.port))).map_err(listen)?;
        // Connections have it from here. What a slow reader leaves lies in the system's memory first, which else is megabytes.
        rustix::net::sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER).map_err(|e| listen(e.into()))?;
        // The same of what a client sends faster than it is read, which besides would keep both sides busy for milliseconds.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, RECEIVE_BUFFER).map_err(|e| listen(e.into()))?;
        // Again, for a longer queue than the 128 that it has: a client for which there is no room tries again after a second.
        rustix::net::listen(&listener, BACKLOG).map_err(|e| listen(e.into()))?;
        let address = listener.local_addr().map_err(listen)?;
        let app = Arc::new(App::new(config, address.ip().is_loopback()));
        let listening = runtime.spawn(accept(listener, tls, app.clone()));
        runtime.spawn(watchdog::watch(app.clone()));
        Ok(Server { app, address, listening, runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers with this model from now on.
    pub fn serve(&self, model: ModelParts) {
        let model = Model::new(model);
        let sampling = model.describe_sampling().to_string();
        tracing::info!(model = model.name(), max_model_len = model.max_len, sampling, "ready");
        self.app.serve_model(model);
    }

    /// Answers by replicas from now on, and returns when one is ready, or the server ends.
    pub fn serve_replicas(&self, settings: ReplicaSettings) {
        let _context = self.runtime.enter();
        self.app.forward_to(Replicas::start(settings, &self.app));
        self.runtime.block_on(self.app.reached(Phase::Ready));
    }

    /// What ends it.
    pub fn stopper(&self) -> Stop {
        Stop(self.app.clone())
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.app.phase()
    }

    /// Ends it gently on SIGTERM or SIGINT, and at once on the next.
    pub fn stop_on_signals(&self) -> Result<(), StartError> {
        use tokio::signal::unix::{SignalKind, signal};
        let _context = self.runtime.enter();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signals = signal(kind).map_err(StartError::Signals)?;
            let stop = self.stopper();
            self.runtime.spawn(async move {
                while signals.recv().await.is_some() {
                    stop.stop();
                }
            });
        }
        Ok(())
    }

    /// Waits for the end.
    pub fn wait(self) -> Outcome {
        let Server { app, listening, runtime, .. } = self;
        let mut outcome = runtime.block_on(end(&app, listening));
        if let Some(replicas) = app.replicas() {
            runtime.block_on(replicas.shutdown());
            if let Some(code) = replicas.failed() {
                outcome = Outcome::ReplicaFailed(code);
            }
        }
        runtime.shutdown_timeout(LAST_TASKS);
        if outcome != Outcome::EngineLost
            && let Some(model) = app.model()
            && let Err(error) = model.engine().shutdown(Duration::ZERO)
        {
            tracing::warn!(%error, "the engine did not end");
        }
        outcome
    }
}

/// From the first sign of the end to the last connection.
async fn end(app: &Arc<App>, listening: JoinHandle<()>) -> Outcome {
    let outcome = match app.reached(Phase::Draining).await {
        Phase::Dead => Outcome::EngineLost,
        _ => tokio::select! {
            _ = timeout(app.config.shutdown_timeout, app.idle()) => Outcome::Drained,
            phase = app.reached(Phase::Dead) => match phase {
                Phase::Dead => Outcome::EngineLost,
                _ => Outcome::Aborted,
            },
        },
    };
    if outcome == Outcome::EngineLost {
        // The supervisor's probe and the clients shall hear of it.
        tokio::time::sleep(LAST_WORDS).await;
    }
    app.fail_all(&ApiError::draining());
    let _ = timeout(LAST_WORDS, app.idle()).await;
    app.advance(Phase::Ending);
    let _ = timeout(LAST_TASKS, listening).await;
    outcome
}

/// Takes connections until the end.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, app: Arc<App>) {
    let places = Places::new(app.config.max_connections);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = app.reached(Phase::Ending) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match places.take(peer.ip()) {
                    Some(place) => drop(connections.spawn(connection::serve(stream, place, tls.clone(), app.clone()))),
                    None => {
                        tracing::warn!("too many connections");
                        // Without a handshake nothing can be said.
                        if tls.is_none() {
                            connections.spawn(connection::refuse(stream));
                        }
                    }
                },
                // Out of file descriptors, mostly: one must be given back first.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Threads of connections: they move bytes, the machine belongs to the engine.
const THREADS: usize = 2;
/// Threads that render templates and tokenise.
const ASIDE_THREADS: usize = 4;
/// How long the last answers may take.
const LAST_WORDS: Duration = Duration::from_millis(500);
const LAST_TASKS: Duration = Duration::from_secs(2);
/// Bytes that the system keeps for a client; Linux takes twice as many.
const SEND_BUFFER: usize = 48 << 10;
const RECEIVE_BUFFER: usize = 128 << 10;
/// Connections that may wait to be accepted; Linux takes no more than net.core.somaxconn.
const BACKLOG: i32 = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
