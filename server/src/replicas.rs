//! Several processes behind one port: this one owns the connections and forwards, each replica has an engine.
//!
//! [`supervisor`] starts replicas and replaces those that die or hang, [`dispatch`] chooses one for a request, [`proxy`]
//! forwards it, [`aggregate`] makes one text of all figures.
//!
//! Invariant: a request that was forwarded is answered as long as any replica lives: where nothing of its answer was sent when
//! its replica was lost, it goes to another one; else its stream ends by an error.

mod aggregate;
mod client;
pub mod dispatch;
pub(crate) mod find;
mod idle;
mod outline;
pub(crate) mod proxy;
mod supervisor;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::app::App;
use crate::metrics::Counter;
use crate::orca::Load;
use crate::tenant::Tenant;
use aggregate::Figures;
use dispatch::{Dispatch, Keys, Policy, Standing};
use idle::BreakEven;

/// How replicas are started and used.
#[derive(Clone)]
pub struct ReplicaSettings {
    /// Name of the model, for figures.
    pub model: String,
    /// How many.
    pub count: usize,
    /// Makes the command of one, by its number. Its process listens on the loopback interface, writes the address as a line to
    /// stdout, and ends when its stdin does.
    pub command: Arc<dyn Fn(usize) -> Command + Send + Sync>,
    /// Requests that one runs together.
    pub slots: usize,
    /// Requests that may wait at one.
    pub queue: usize,
    /// Where requests go that no replica has a part of.
    pub policy: Policy,
    /// One that gives no sign of life for so long hangs.
    pub patience: Duration,
    /// One without requests for so long is ended, and started anew by the next one.
    pub idle_unload: Option<Duration>,
}

impl fmt::Debug for ReplicaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplicaSettings({} of {} + {})", self.count, self.slots, self.queue)
    }
}

/// What is going on with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its process is started.
    Starting,
    /// It listens, its model is not there yet.
    Loading,
    /// It answers.
    Ready,
    /// It takes long to answer a probe: it gets what nobody else can take.
    Slow,
    /// Its connection broke, or its engine has failed.
    Lost,
    /// It ended; another process is started in a while.
    Ended,
    /// It had no requests and was ended; one starts it anew.
    Unloaded,
}

impl State {
    const ALL: [State; 7] =
        [State::Starting, State::Loading, State::Ready, State::Slow, State::Lost, State::Ended, State::Unloaded];

    fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Loading => "loading",
            State::Ready => "ready",
            State::Slow => "slow",
            State::Lost => "lost",
            State::Ended => "ended",
            State::Unloaded => "unloaded",
        }
    }
}

/// All replicas.
pub struct Replicas {
    settings: ReplicaSettings,
    members: Vec<Member>,
    dispatch: Dispatch,
    /// Requests that run or wait, by tenant.
    tenants: Mutex<HashMap<u32, usize>>,
    /// Changes when a replica becomes ready or is lost, or has one request less.
    changed: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
    /// Exit code of the first one, where it never got ready.
    failed: watch::Sender<Option<i32>>,
    /// What replicas that have ended had counted.
    counted: Mutex<Figures>,
    moved: Counter,
    /// Requests that wait for one that was unloaded.
    waiting: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
}

struct Member {
    now: Mutex<Now>,
    load: AtomicUsize,
    restarts: Counter,
    unloads: Counter,
    /// Told when it is to be loaded again.
    wanted: Notify,
}

struct Now {
    state: State,
    address: Option<SocketAddr>,
    pid: Option<Pid>,
    /// Counts processes.
    life: u64,
    /// Ends in a row, without a long life between.
    failures: u32,
    figures: Option<Figures>,
    /// When a request last began or ended there.
    used: Instant,
    /// Whether it was unloaded, and is not ready again.
    returns: bool,
    /// What was known when it was unloaded.
    break_even: Option<BreakEven>,
}

impl Member {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request wants of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// To run there, for somebody.
    Place(Option<Tenant>),
    /// An answer that the engine has no part in, which it gives however full it is.
    Answer,
}

/// A request's place at a replica.
pub(crate) struct Seat {
    replicas: Arc<Replicas>,
    replica: usize,
    life: u64,
    address: SocketAddr,
    claim: Claim,
}

/// Somebody who waits for a replica to be loaded again.
struct Waits(Arc<Replicas>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Claim::Place(tenant) = self.claim else { return };
        self.replicas.members[self.replica].now().used = Instant::now();
        self.replicas.members[self.replica].load.fetch_sub(1, Ordering::Relaxed);
        if let Some(tenant) = tenant {
            let mut tenants = self.replicas.tenants();
            if let Some(count) = tenants.get_mut(&tenant.number()) {
                *count -= 1;
                if *count == 0 {
                    tenants.remove(&tenant.number());
                }
            }
        }
        // Somebody may wait for it whose replica was lost.
        self.replicas.ring();
    }
}

impl Replicas {
    /// All, of which no process is started.
    fn new(settings: ReplicaSettings) -> Replicas {
        let member = |_| Member {
            now: Mutex::new(Now {
                state: State::Starting,
                address: None,
                pid: None,
                life: 0,
                failures: 0,
                figures: None,
                used: Instant::now(),
                returns: false,
                break_even: None,
            }),
            load: AtomicUsize::new(0),
            restarts: Counter::default(),
            unloads: Counter::default(),
            wanted: Notify::new(),
        };
        Replicas {
            members: (0..settings.count).map(member).collect(),
            dispatch: Dispatch::new(settings.policy, settings.slots),
            settings,
            tenants: Mutex::default(),
            changed: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            failed: watch::Sender::new(None),
            counted: Mutex::default(),
            moved: Counter::default(),
            waiting: AtomicUsize::new(0),
            tasks: Mutex::default(),
        }
    }

    /// Starts them; within a runtime.
    pub(crate) fn start(settings: ReplicaSettings, app: &Arc<App>) -> Arc<Replicas> {
        let replicas = Arc::new(Replicas::new(settings));
        let mut tasks = replicas.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for replica in 0..replicas.members.len() {
            tasks.spawn(supervisor::keep(replicas.clone(), app.clone(), replica));
        }
        drop(tasks);
        replicas
    }

    /// Exit code of the first one, where it ended for good before any was ready.
    pub(crate) fn failed(&self) -> Option<i32> {
        *self.failed.borrow()
    }

    /// Whether any replica answers, or would if it were asked.
    pub(crate) fn is_healthy(&self) -> bool {
        let alive = |now: &Now| matches!(now.state, State::Ready | State::Slow) || now.returns;
        self.members.iter().any(|member| alive(&member.now()))
    }

    /// Whether any replica has room for it, or will.
    pub(crate) fn has_room(&self, claim: Claim) -> bool {
        let now = self.standings(self.most(claim, &self.tenants()), &[]).iter().any(|standing| standing.usable);
        now || self.members.iter().any(|member| member.now().returns)
    }

    /// Has one loaded again that was unloaded, unless one comes already. Whether one comes.
    fn wake(&self) -> bool {
        if self.settings.idle_unload.is_none() {
            return false;
        }
        let on_its_way = |now: &Now| now.returns && now.state != State::Unloaded;
        if self.members.iter().any(|member| on_its_way(&member.now())) {
            return true;
        }
        for (replica, member) in self.members.iter().enumerate() {
            let mut now = member.now();
            if now.state == State::Unloaded {
                now.state = State::Starting;
                // Once for each time: what is told twice would load it again after the next.
                member.wanted.notify_one();
                tracing::info!(replica, "a replica is loaded again");
                return true;
            }
        }
        false
    }

    /// A place among those who wait for one to be loaded again: as many as all of them could have.
    fn wait_for_load(self: &Arc<Self>) -> Option<Waits> {
        let each = self.settings.slots.saturating_add(self.settings.queue);
        let most = each.saturating_mul(self.members.len());
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Waits(self.clone());
        (before < most).then_some(waits)
    }

    /// Gives up a replica that has no requests and has had none for so long. From here on it gets none.
    fn unload(&self, replica: usize, after: Duration) -> bool {
        // No seat is given meanwhile.
        let tenants = self.tenants();
        let member = &self.members[replica];
        let mut now = member.now();
        let idle = member.load.load(Ordering::Relaxed) == 0 && now.used.elapsed() >= after;
        if !idle || now.state != State::Ready {
            return false;
        }
        (now.state, now.returns) = (State::Unloaded, true);
        drop((now, tenants));
        member.unloads.add(1);
        self.ring();
        true
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that a replica has where it takes no more of these. Whoever has none is let in beyond what others fill.
    fn most(&self, claim: Claim, tenants: &HashMap<u32, usize>) -> usize {
        let most = self.settings.slots.saturating_add(self.settings.queue);
        match claim {
            Claim::Answer => usize::MAX,
            Claim::Place(Some(tenant)) if !tenants.contains_key(&tenant.number()) => tenant.most(most),
            Claim::Place(_) => most,
        }
    }

    fn standings(&self, most: usize, refused: &[usize]) -> Vec<Standing> {
        let standing = |(i, member): (usize, &Member)| {
            let (load, now) = (member.load.load(Ordering::Relaxed), member.now());
            let room = load < most && now.address.is_some() && !refused.contains(&i);
            let standing = |usable| Standing { load, life: now.life, usable };
            (standing(room && now.state == State::Ready), standing(room && now.state == State::Slow))
        };
        let (ready, slow): (Vec<Standing>, Vec<Standing>) = self.members.iter().enumerate().map(standing).unzip();
        if ready.iter().any(|standing| standing.usable) { ready } else { slow }
    }

    /// A place for a request at the replica that suits it best, but not at those that have `refused` it.
    fn seat(self: &Arc<Self>, keys: &Keys, claim: Claim, refused: &[usize]) -> Option<Seat> {
        let mut tenants = self.tenants();
        let most = self.most(claim, &tenants);
        let mut refused = refused.to_vec();
        loop {
            let standings = self.standings(most, &refused);
            let replica = match claim {
                Claim::Place(_) => self.dispatch.choose(keys, &standings)?,
                // It leaves nothing behind that another request would look for.
                Claim::Answer => self.dispatch.choose(&Keys::default(), &standings)?,
            };
            let mut now = self.members[replica].now();
            let alive = matches!(now.state, State::Ready | State::Slow) && now.life == standings[replica].life;
            let Some(address) = now.address.filter(|_| alive) else {
                // It was lost since it was chosen; another one may be there.
                refused.push(replica);
                continue;
            };
            let life = now.life;
            if let Claim::Place(tenant) = claim {
                let before = self.members[replica].load.fetch_add(1, Ordering::Relaxed);
                tenant.into_iter().for_each(|tenant| *tenants.entry(tenant.number()).or_default() += 1);
                now.used = Instant::now();
                drop(now);
                if before >= self.settings.slots {
                    // It would wait there longer than need be, and so would the next.
                    self.wake();
                }
            }
            return Some(Seat { replicas: self.clone(), replica, life, address, claim });
        }
    }

    /// Tells those who wait to look again.
    fn ring(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sets what is going on with a replica, and tells those who wait.
    fn set(&self, replica: usize, change: impl FnOnce(&mut Now)) {
        let mut now = self.members[replica].now();
        let before = now.state;
        change(&mut now);
        if now.state != before {
            tracing::debug!(replica, state = now.state.name(), "replica");
            drop(now);
            self.ring();
        }
    }

    /// A request found the replica broken: nothing is sent there until it answers a probe.
    fn suspect(&self, seat: &Seat) {
        self.set(seat.replica, |now| {
            if now.life == seat.life && matches!(now.state, State::Ready | State::Slow) {
                now.state = State::Lost;
            }
        });
    }

    /// Ends the answers in the making, each by an error.
    pub(crate) fn abort(&self) {
        // What ends now is not started anew.
        self.stopping.send_replace(true);
        if self.members.iter().all(|member| member.load.load(Ordering::Relaxed) == 0) {
            return;
        }
        for member in &self.members {
            let now = member.now();
            if let Some(pid) = now.pid {
                // Two that differ: of two equal ones a process may see one. What has ended needs none.
                let _ = kill_process(pid, Signal::TERM);
                let _ = kill_process(pid, Signal::INT);
            }
        }
    }

    /// Ends all replicas.
    pub(crate) async fn shutdown(&self) {
        self.stopping.send_replace(true);
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }

    /// For `/replicas`.
    pub(crate) fn describe(&self) -> Value {
        let mut ready = 0;
        let members = self.members.iter().enumerate().map(|(replica, member)| {
            let now = member.now();
            // One that was unloaded is as it should be.
            ready += usize::from(matches!(now.state, State::Ready | State::Unloaded));
            let mut told = json!({
                "replica": replica, "state": now.state.name(), "requests": member.load.load(Ordering::Relaxed),
                "restarts": member.restarts.read(), "failing": now.failures >= FAILING,
            });
            if self.settings.idle_unload.is_some() {
                told["unloads"] = json!(member.unloads.read());
                told["break_even"] = json!(now.break_even.map(|known| known.json()));
            }
            told
        });
        let members: Vec<Value> = members.collect();
        let status = if ready == members.len() { "ok" } else { "degraded" };
        json!({"status": status, "replicas": members})
    }

    /// Name of the model.
    pub(crate) fn model(&self) -> &str {
        &self.settings.model
    }

    /// Where the replicas are that have a process.
    fn addresses(&self) -> Vec<(usize, SocketAddr)> {
        let members = self.members.iter().enumerate();
        members.filter_map(|(replica, member)| Some((replica, member.now().address?))).collect()
    }

    /// Asks all for their figures; of one that does not answer the last ones stay.
    pub(crate) async fn refresh(self: &Arc<Self>) {
        let mut asked = JoinSet::new();
        for replica in 0..self.members.len() {
            let replicas = self.clone();
            let (life, address) = {
                let now = self.members[replica].now();
                (now.life, now.address)
            };
            if let Some(address) = address {
                asked.spawn(async move {
                    if let Ok((200, text)) = client::get(address, "/metrics", SCRAPE).await {
                        replicas.take_figures(replica, life, &text);
                    }
                });
            }
        }
        while asked.join_next().await.is_some() {}
    }

    /// Keeps the figures of one process of a replica.
    fn take_figures(&self, replica: usize, life: u64, text: &[u8]) {
        let figures = Figures::read(&String::from_utf8_lossy(text));
        let mut now = self.members[replica].now();
        // Of a process that has ended its last ones are counted already. Of two answers the later one may come first.
        if now.life == life && now.address.is_some() && !now.figures.as_ref().is_some_and(|last| figures.precede(last))
        {
            now.figures = Some(figures);
        }
    }

    /// Counts what a process that has ended had counted; of its replica nothing else is left. `change` is what happens to it in
    /// the same moment, so that no sum falls.
    fn settle(&self, replica: usize, change: impl FnOnce(&mut Now)) {
        let mut counted = self.counted();
        let mut now = self.members[replica].now();
        change(&mut now);
        if let Some(figures) = now.figures.take() {
            counted.add(&figures.without(&["njoule_http_"]).counted());
        }
    }

    fn counted(&self) -> MutexGuard<'_, Figures> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All figures; `own` are those of this process.
    pub(crate) fn figures(&self, own: &str) -> String {
        // Held until the members have been read: what ends meanwhile would be in neither.
        let counting = self.counted();
        let theirs = self.members.iter().enumerate().filter_map(|(replica, member)| {
            // What clients see is counted here.
            let figures = member.now().figures.clone()?.without(&["njoule_http_", "njoule_ready"]);
            Some((replica, figures))
        });
        let theirs: Vec<(usize, Figures)> = theirs.collect();
        let mut counted = counting.clone();
        drop(counting);
        counted.add(&Figures::read(own));
        let mut text = aggregate::write(&counted, &theirs);
        let gauges = own.split_inclusive('\n').filter(|line| OWN.iter().any(|name| line.contains(name)));
        gauges.for_each(|line| text.push_str(line));
        text + &self.own_figures()
    }

    /// How full those are that have told their figures: shares averaged, those who wait added up.
    pub(crate) fn load_report(&self) -> Option<Load> {
        let told = self.members.iter().filter_map(|member| {
            let now = member.now();
            let figures = now.figures.as_ref()?;
            let of = |name| figures.value(name, "");
            Some((of("njoule_kv_cache_usage_ratio")?, of("njoule_num_requests_waiting")?))
        });
        let told: Vec<(f64, f64)> = told.collect();
        let (cache, waiting) = told.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (!told.is_empty()).then(|| Load { cache: cache / told.len() as f64, waiting })
    }

    /// Figures of replicas as such.
    fn own_figures(&self) -> String {
        let rows = |value: &dyn Fn(&Member) -> String, name: &str| -> String {
            let row = |(i, member): (usize, &Member)| format!("{name}{{replica=\"{i}\"}} {}\n", value(member));
            self.members.iter().enumerate().map(row).collect()
        };
        let mut states = String::new();
        for (i, member) in self.members.iter().enumerate() {
            let now = member.now().state;
            for state in State::ALL {
                let (name, is) = (state.name(), u8::from(state == now));
                states.push_str(&format!("njoule_replica_state{{replica=\"{i}\",state=\"{name}\"}} {is}\n"));
            }
        }
        let failing = rows(&|member| u8::from(member.now().failures >= FAILING).to_string(), "njoule_replica_failing");
        let load = rows(&|member| member.load.load(Ordering::Relaxed).to_string(), "njoule_replica_requests");
        let restarts = rows(&|member| member.restarts.read().to_string(), "njoule_replica_restarts_total");
        let unloads = rows(&|member| member.unloads.read().to_string(), "njoule_replica_unloads_total");
        format!(
            "# HELP njoule_replica_state What is going on with a replica.\n# TYPE njoule_replica_state gauge\n{states}\
             # HELP njoule_replica_failing Whether a replica ends again and again.\n\
             # TYPE njoule_replica_failing gauge\n{failing}\
             # HELP njoule_replica_requests Requests that a replica has.\n# TYPE njoule_replica_requests gauge\n{load}\
             # HELP njoule_replica_restarts_total Processes started anew.\n\
             # TYPE njoule_replica_restarts_total counter\n{restarts}\
             # HELP njoule_replica_unloads_total Processes ended because they had no requests.\n\
             # TYPE njoule_replica_unloads_total counter\n{unloads}\
             # HELP njoule_moved_requests_total Requests sent to another replica because theirs was lost.\n\
             # TYPE njoule_moved_requests_total counter\nnjoule_moved_requests_total {}\n",
            self.moved.read()
        )
    }
}

/// What a scrape waits for a replica.
const SCRAPE: Duration = Duration::from_secs(1);
/// Gauges of the process that owns the port.
const OWN: [&str; 2] = ["njoule_ready", "njoule_http_requests_in_flight"];
/// Ends in a row from which on a replica is reported.
const FAILING: u32 = 3;

#[cfg(test)]
mod tests;
