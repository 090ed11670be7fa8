//! The life of one replica: started, watched, replaced.
//!
//! Invariant: there is at most one process of a number; whoever is killed or replaced was waited for, so that no process stays
//! behind and none is taken for another.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

use super::client::Broken;
use super::idle::Costs;
use super::{Replicas, State, client};
use crate::app::{App, Phase};

/// Keeps a replica running until all shall end.
pub(super) async fn keep(replicas: Arc<Replicas>, app: Arc<App>, replica: usize) {
    let mut stopping = replicas.stopping.subscribe();
    if replica > 0 {
        // One shows first that the model can be loaded at all, and packs the weights that the others share.
        let mut changed = replicas.changed.subscribe();
        let first = changed.wait_for(|_| {
            let now = replicas.members[0].now();
            now.state == State::Ready || now.failures > 0
        });
        tokio::select! {
            _ = first => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
    let mut failures = 0;
    while !*stopping.borrow() {
        let begun = Instant::now();
        let mut ready = false;
        let ended = run(&replicas, &app, replica, &mut ready).await;
        if let Ended::Unloaded = ended {
            // It may be wanted again already.
            replicas.settle(replica, |now| (now.pid, now.address) = (None, None));
            tokio::select! {
                () = replicas.members[replica].wanted.notified() => {}
                _ = stopping.wait_for(|stopping| *stopping) => break,
            }
            failures = 0;
            continue;
        }
        // At once: what has no address is nobody's choice.
        replicas
            .settle(replica, |now| (now.pid, now.address, now.state, now.returns) = (None, None, State::Ended, false));
        if *stopping.borrow() {
            break;
        }
        failures = if ready && begun.elapsed() > LONG_LIFE { 1 } else { failures + 1 };
        tracing::error!(replica, how = ended.to_string(), failures, "a replica has ended");
        // A command line or a model that cannot be served does not get better.
        if let Ended::Code(code @ (1 | 2)) = ended
            && app.phase() == Phase::Loading
        {
            replicas.failed.send_replace(Some(code));
            app.advance(Phase::Ending);
            break;
        }
        replicas.members[replica].now().failures = failures;
        replicas.ring();
        // The first time at once.
        let wait = if failures == 1 {
            Duration::ZERO
        } else {
            (FIRST_WAIT * 2_u32.pow((failures - 2).min(6))).min(LONGEST_WAIT)
        };
        tokio::select! {
            () = sleep(wait) => {}
            _ = stopping.wait_for(|stopping| *stopping) => break,
        }
        replicas.members[replica].restarts.add(1);
    }
    replicas.set(replica, |now| now.state = State::Ended);
}

/// How a process ended.
enum Ended {
    /// It could not be started.
    NotStarted(std::io::Error),
    /// By itself.
    Code(i32),
    /// By a signal, or by one of ours because it gave no sign of life.
    Killed(&'static str),
    /// It had nothing to do.
    Unloaded,
}

/// Why a process is watched no more.
enum Watched {
    /// What is missing.
    Failed(&'static str),
    /// It has had no request for long enough.
    Idle,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::NotStarted(error) => write!(f, "it cannot be started: {error}"),
            Ended::Code(code) => write!(f, "exit code {code}"),
            Ended::Killed(why) => f.write_str(why),
            Ended::Unloaded => f.write_str("it had no requests"),
        }
    }
}

/// One process, from its start to its end.
async fn run(replicas: &Replicas, app: &App, replica: usize, ready: &mut bool) -> Ended {
    let (mut child, _stdin) = match spawn(replicas, replica) {
        Ok(started) => started,
        Err(error) => return Ended::NotStarted(error),
    };
    let mut stopping = replicas.stopping.subscribe();
    let stdout = child.stdout.take();
    let watched = tokio::select! {
        status = child.wait() => return ended(status),
        why = watch(replicas, app, replica, ready, stdout) => Some(why),
        _ = stopping.wait_for(|stopping| *stopping) => None,
    };
    match watched {
        Some(Watched::Failed(why)) => {
            replicas.set(replica, |now| now.state = State::Lost);
            // One that failed ends by itself in a moment; a stopped one does not.
            if timeout(LAST_WORDS, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
            Ended::Killed(why)
        }
        None | Some(Watched::Idle) => {
            if let Some(pid) = pid(&child) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let end = match timeout(GENTLE_END, child.wait()).await {
                Ok(status) => ended(status),
                Err(_) => {
                    let _ = child.kill().await;
                    Ended::Killed("it did not end")
                }
            };
            // However it went: its device is free.
            if watched.is_some() { Ended::Unloaded } else { end }
        }
    }
}

fn ended(status: std::io::Result<ExitStatus>) -> Ended {
    match status.ok().and_then(|status| status.code()) {
        Some(code) => Ended::Code(code),
        None => Ended::Killed("by a signal"),
    }
}

fn spawn(replicas: &Replicas, replica: usize) -> std::io::Result<(Child, Option<ChildStdin>)> {
    let mut command = (replicas.settings.command)(replica);
    // Its own group: Ctrl-C is for the process that owns the port.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Command::from(command).kill_on_drop(true).spawn()?;
    let stdin = child.stdin.take();
    replicas.set(replica, |now| {
        now.life += 1;
        now.state = State::Starting;
        now.pid = pid(&child);
    });
    Ok((child, stdin))
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

/// Asks for signs of life until there are none, or nothing to do; says what is missing.
async fn watch(
    replicas: &Replicas,
    app: &App,
    replica: usize,
    ready: &mut bool,
    stdout: Option<tokio::process::ChildStdout>,
) -> Watched {
    let patience = replicas.settings.patience;
    let started = Instant::now();
    let mut costs: Option<Costs> = None;
    let Some(address) = address(stdout, patience.max(START)).await else {
        return Watched::Failed("it told no address");
    };
    replicas.set(replica, |now| (now.state, now.address) = (State::Loading, Some(address)));
    let begun = Instant::now();
    let mut last = begun;
    loop {
        let asked = Instant::now();
        let probe = client::get(address, "/health", patience);
        tokio::pin!(probe);
        let answer = tokio::select! {
            answer = &mut probe => answer,
            () = sleep(SLOW) => {
                // Others get what is new until it answers.
                demote(replicas, replica, State::Slow);
                probe.await
            }
        };
        match answer {
            Ok((200, _)) => {
                last = Instant::now();
                if let Ok((200, text)) = client::get(address, "/metrics", patience).await {
                    let life = replicas.members[replica].now().life;
                    replicas.take_figures(replica, life, &text);
                }
                replicas.set(replica, |now| {
                    if !*ready {
                        now.used = Instant::now();
                    }
                    (now.state, now.returns) = (State::Ready, false);
                    if begun.elapsed() > LONG_LIFE {
                        now.failures = 0;
                    }
                });
                if !std::mem::replace(ready, true) {
                    tracing::info!(replica, "replica ready");
                    app.advance(Phase::Ready);
                }
                if let Some(after) = replicas.settings.idle_unload
                    && is_idle(replicas, replica, after, started, &mut costs)
                {
                    return Watched::Idle;
                }
            }
            Ok(_) => {
                last = Instant::now();
                if *ready {
                    return Watched::Failed("its engine has failed");
                }
            }
            // It was not asked.
            Err(Broken::Here) => {
                tracing::warn!(replica, "no connection can be opened: file descriptors or ports are used up");
                last = Instant::now();
            }
            Err(Broken::There) => {
                demote(replicas, replica, State::Lost);
                if last.elapsed() >= patience {
                    return Watched::Failed("it gave no sign of life");
                }
            }
        }
        let period = if *ready { PERIOD } else { LOADING_PERIOD };
        sleep(period.saturating_sub(asked.elapsed()).max(LOADING_PERIOD)).await;
    }
}

/// Whether it was given up because it has had no request for `after`; says for how long it should stay away to pay.
fn is_idle(replicas: &Replicas, replica: usize, after: Duration, started: Instant, costs: &mut Option<Costs>) -> bool {
    let (figures, used) = {
        let now = replicas.members[replica].now();
        (now.figures.clone().unwrap_or_default(), now.used)
    };
    let costs = costs.get_or_insert_with(|| Costs::new(started.elapsed(), &figures));
    let busy = replicas.members[replica].load.load(Ordering::Relaxed) > 0 || used.elapsed() < PERIOD;
    costs.look(busy, &figures);
    if !replicas.unload(replica, after) {
        return false;
    }
    let known = costs.break_even(&figures);
    replicas.members[replica].now().break_even = Some(known);
    tracing::info!(replica, idle_s = after.as_secs(), "a replica without requests is unloaded; {known}");
    true
}

/// Until it answers.
fn demote(replicas: &Replicas, replica: usize, state: State) {
    replicas.set(replica, |now| {
        if matches!(now.state, State::Ready | State::Slow) {
            now.state = state;
        }
    });
}

/// The line that a replica writes when it listens.
async fn address(stdout: Option<tokio::process::ChildStdout>, patience: Duration) -> Option<SocketAddr> {
    let mut line = String::new();
    let mut stdout = BufReader::new(stdout?);
    timeout(patience, stdout.read_line(&mut line)).await.ok()?.ok()?;
    line.trim().parse().ok()
}

/// Between two probes.
const PERIOD: Duration = Duration::from_millis(500);
const LOADING_PERIOD: Duration = Duration::from_millis(50);
/// A replica that takes longer to answer a probe gets nothing new meanwhile.
const SLOW: Duration = Duration::from_secs(1);
/// A process has listened by then.
const START: Duration = Duration::from_secs(30);
/// A process that was ready for so long has not failed in a row.
const LONG_LIFE: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What a process that has failed may take to say so to its clients and end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a process without requests may take to end.
const GENTLE_END: Duration = Duration::from_secs(3);
