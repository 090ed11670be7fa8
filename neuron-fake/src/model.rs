//! Loaded models. The program of a NEFF is verified and planned once per process, however many cores and ranks load it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use njoule_hlo::{AliasKind, ArrayShape};

use crate::collective::Seat;
use crate::config;
use crate::core::{Charge, Core};
use crate::engine::Engine;
use crate::neff::{self, Neff, NeffError, Sidecar};
use crate::runtime::Runtime;
use crate::status::{self, Answer, Refusal, refuse};

/// What a NEFF does.
#[derive(Debug)]
pub(crate) struct Program {
    pub engine: Engine,
    pub sidecar: Sidecar,
    pub inputs: Vec<ArrayShape>,
    pub outputs: Vec<ArrayShape>,
    /// Of each output, the input whose memory it takes, and whether it must.
    pub alias: Vec<Option<(usize, bool)>>,
    pub hash: [u8; 32],
    unpacked: usize,
}

/// A program on a core.
#[derive(Debug)]
pub(crate) struct Model {
    pub program: Arc<Program>,
    pub core: Arc<Core>,
    /// `NEURON_RT_EXEC_TIMEOUT` as it was at load.
    pub timeout: Duration,
    /// Its place among the ranks, where the program has collectives.
    pub seat: Option<Seat>,
    /// Runs in flight.
    pub busy: Arc<AtomicU32>,
    _charge: Charge,
}

impl Program {
    /// Checks what the library checks before it looks at the code, then decodes and verifies.
    pub(crate) fn new(bytes: &[u8], runtime: &Runtime) -> Answer<Program> {
        let Neff { header, sidecar, module, unpacked } = neff::read(bytes)?;
        if crate::env::switch("NEURON_RT_VALIDATE_HASH", false)? && !neff::hash_holds(bytes, &header) {
            return refuse(status::INVALID, "the NEFF does not have its hash");
        }
        let lnc = runtime.config.lnc;
        if header.lnc != lnc {
            let text = format!("the NEFF is for logical cores of {}, NEURON_LOGICAL_NC_CONFIG is {lnc}", header.lnc);
            return refuse(status::INVALID, text);
        }
        let (target, instance) = (sidecar.target()?, runtime.config.instance);
        let legacy = crate::env::switch("NEURON_RT_ALLOW_LEGACY_NEFF", false)?;
        if !instance.chip.runs(target) && !legacy {
            return refuse(status::INVALID, format!("the NEFF is for {target}, this is {}", instance.name));
        }
        let outputs = module.results().to_vec();
        let mut alias = vec![None; outputs.len()];
        for a in &module.aliases {
            // Verified below: the output is there.
            if let Some(slot) = alias.get_mut(a.output.unwrap_or(0)) {
                *slot = Some((a.parameter, a.kind != AliasKind::May));
            }
        }
        let inputs = module.signature.parameters.iter().filter_map(|s| s.array()).collect();
        let engine = Engine::new(module, target, sidecar.world)?;
        Ok(Program { engine, sidecar, inputs, outputs, alias, hash: hash(bytes), unpacked })
    }
}

impl Model {
    pub(crate) fn new(program: Arc<Program>, core: Arc<Core>, seat: Option<Seat>) -> Answer<Model> {
        let charge = core.charge(program.unpacked, &format!("code of `{}`", program.sidecar.module))?;
        let (timeout, busy) = (config::exec_timeout()?, Arc::default());
        Ok(Model { program, core, timeout, seat, busy, _charge: charge })
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }
}

/// By which equal NEFFs are known: its own bytes, whatever its header says.
pub(crate) fn hash(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

impl From<NeffError> for Refusal {
    fn from(error: NeffError) -> Refusal {
        let status = match error {
            NeffError::Version { .. } => status::UNSUPPORTED_NEFF_VERSION,
            _ => status::INVALID,
        };
        Refusal { status, text: error.to_string() }
    }
}
