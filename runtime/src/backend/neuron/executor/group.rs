//! The threads of all ranks: started, given their weights, waited for, let go.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use njoule_models::program::{Program, WeightId};
use njoule_models::weights::{MappedFile, WeightSource};
use njoule_neuron_sys::Runtime;

use super::rank::{self, Memory, Piece, Report, Seed, Weights};
use super::step::{Io, Work};
use super::{NeuronBackend, device};
use crate::backend::LoadError;
use crate::backend::neuron::interface::Input;
use crate::backend::neuron::{shard, weights};

/// The threads of all ranks.
#[derive(Debug)]
pub struct Group {
    pub inboxes: Vec<SyncSender<Box<Work>>>,
    pub reports: Receiver<(usize, Report)>,
    /// Of ranks that are given their weights in pieces.
    pieces: Vec<SyncSender<Piece>>,
    /// A thread hangs or is in an unknown state: nobody waits for it.
    pub lost: bool,
}

impl Group {
    /// Starts a thread for each rank; they load at once.
    pub fn start(backend: &NeuronBackend, runtime: &Runtime, ios: &Arc<Vec<Io>>) -> Result<Group, LoadError> {
        let manifest = &backend.artifact.manifest;
        let world = manifest.layout.tp;
        let (report, reports) = sync_channel(8 * world + 8);
        let mut group = Group { inboxes: vec![], reports, pieces: vec![], lost: false };
        for rank in 0..world {
            let weights = match manifest.weights.get(rank) {
                Some(file) => Weights::File(Arc::new(MappedFile::open(&backend.artifact.dir.join(&file.path))?)),
                None => {
                    let (sender, receiver) = sync_channel(PIECES_AHEAD);
                    group.pieces.push(sender);
                    Weights::Pieces(receiver)
                }
            };
            let index = u32::try_from(rank).unwrap_or(u32::MAX);
            let core = runtime.core(index).map_err(|error| LoadError::Device(error.to_string()))?;
            let seed = Seed {
                runtime: runtime.clone(),
                core,
                rank,
                artifact: Arc::clone(&backend.artifact),
                ios: Arc::clone(ios),
                weights,
                limit: backend.step_limit,
            };
            let (inbox, receiver) = sync_channel(1);
            group.inboxes.push(inbox);
            let report = report.clone();
            thread::Builder::new()
                .name(format!("neuron rank {rank}"))
                .spawn(move || rank::run(seed, &receiver, &report))
                .map_err(|source| LoadError::Threads { count: world, source })?;
        }
        Ok(group)
    }

    /// Packs the weights of `source` for every rank, a weight at a time.
    pub fn pack(
        &mut self,
        program: &Program,
        source: &dyn WeightSource,
        backend: &NeuronBackend,
    ) -> Result<(), LoadError> {
        let layout = backend.layout();
        let unsupported = |what: String| LoadError::Unsupported { backend: "neuron", what };
        let sharded = shard::shard(program, layout.tp).map_err(|error| unsupported(error.to_string()))?;
        let types = weights::stored(program, layout.weights);
        let parameters = &backend.artifact.manifest.parameters;
        for (id, dtype) in (0..).map(WeightId).zip(types) {
            for rank in 0..layout.tp {
                let (mut current, mut offset) = (None, 0);
                let mut sink = |part, bytes: &[u8]| {
                    let role = Input::Weight(id, part);
                    let Some(parameter) = parameters.iter().position(|p| p.port.role == role) else { return Ok(()) };
                    if current != Some(parameter) {
                        (current, offset) = (Some(parameter), 0);
                    }
                    let piece = Piece::Bytes { parameter, offset, bytes: bytes.to_vec() };
                    offset += bytes.len();
                    self.send(rank, piece, backend.load_limit)
                };
                weights::write_part(source, &sharded, id, dtype, rank, &mut sink)?;
            }
        }
        (0..layout.tp).try_for_each(|rank| self.send(rank, Piece::End, backend.load_limit))
    }

    /// A rank that takes no piece within the limit hangs; one that is gone has said why.
    fn send(&self, rank: usize, piece: Piece, limit: Duration) -> Result<(), LoadError> {
        let (mut piece, started) = (piece, Instant::now());
        loop {
            match self.pieces[rank].try_send(piece) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(self.why_gone(rank)),
                Err(TrySendError::Full(back)) if started.elapsed() < limit => piece = back,
                Err(TrySendError::Full(_)) => return Err(stalled(&rank.to_string(), limit)),
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// A rank lets its pieces go before it says why.
    fn why_gone(&self, rank: usize) -> LoadError {
        let until = Instant::now() + CLOSE_LIMIT;
        while let Ok(report) = self.reports.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if let (rank, Report::Loaded(Err(failure))) = report {
                return LoadError::Device(format!("rank {rank}: {failure}"));
            }
        }
        LoadError::Device(format!("the thread of rank {rank} is gone"))
    }

    /// Waits until every rank is ready; each sign of life of any starts the time anew.
    pub fn wait_loaded(&mut self, backend: &NeuronBackend) -> Result<Memory, LoadError> {
        self.pieces.clear();
        let world = self.inboxes.len();
        let mut ready = vec![false; world];
        let mut sum = Memory::default();
        while ready.contains(&false) {
            match self.reports.recv_timeout(backend.load_limit) {
                Ok((_, Report::Progress(bytes))) => backend.on_load.iter().for_each(|hear| hear(bytes)),
                Ok((rank, Report::Loaded(Ok(memory)))) => {
                    ready[rank] = true;
                    sum.weights += memory.weights;
                    sum.caches += memory.caches;
                    sum.steps += memory.steps;
                }
                Ok((rank, Report::Loaded(Err(failure)))) => {
                    // The others may wait for this one for ever.
                    self.lost = world > 1;
                    return Err(LoadError::Device(format!("rank {rank}: {failure}")));
                }
                Ok((_, Report::Done(..))) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.lost = true;
                    let missing = (0..world).filter(|rank| !ready[*rank]).map(|rank| rank.to_string());
                    return Err(stalled(&missing.collect::<Vec<_>>().join(", "), backend.load_limit));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(LoadError::Device("a rank's thread panicked while it loaded".to_owned()));
                }
            }
        }
        // All have said what they had to say.
        drop(self.reports.recv_timeout(rank::FIRST_WAIT));
        Ok(sum)
    }
}

impl Drop for Group {
    /// Lets the ranks give their memory back.
    fn drop(&mut self) {
        self.inboxes.clear();
        self.pieces.clear();
        let until = Instant::now() + CLOSE_LIMIT;
        if self.lost {
            device::abandon();
            return;
        }
        // Until all are gone, or one hangs.
        while self.reports.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

fn stalled(ranks: &str, limit: Duration) -> LoadError {
    LoadError::Device(format!(
        "loading made no progress for {limit:?} (rank {ranks}) and cannot be stopped; end this process and start a new one"
    ))
}

const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Pieces of weights that are packed before a rank has taken them: two of a few megabytes each.
const PIECES_AHEAD: usize = 2;
