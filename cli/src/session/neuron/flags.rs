//! Flags beside an artifact: what is fixed in it cannot be asked for otherwise, and is not passed over in silence.

use njoule_runtime::backend::Quant;
use njoule_runtime::backend::neuron::artifact::Artifact;
use njoule_runtime::backend::neuron::plan::Instances;

use crate::args::UsageError;
use crate::session::RunOptions;
use crate::session::backend::BackendArg;
use crate::session::options::{QuantArg, kv_name};
use crate::session::planning::no_instance;

impl RunOptions {
    /// Refuses what contradicts the artifact, by flag and by what it has; flags that say the same are fine.
    pub(in crate::session) fn check_artifact(&self, artifact: &Artifact) -> Result<(), UsageError> {
        let (layout, place) = (&artifact.manifest.layout, artifact.dir.display());
        let refuse = |flag: &str, why: String| Err(UsageError(format!("{flag}: {place} is an artifact {why}")));
        let backend = match self.backend {
            BackendArg::Auto | BackendArg::Neuron => None,
            BackendArg::Cpu => Some("--backend cpu"),
            BackendArg::Candle => Some("--backend candle"),
        };
        if let Some(flag) = backend {
            let why = "for Neuron cores, which --backend neuron alone runs; name the model that it was built from";
            return refuse(flag, why.to_owned());
        }
        if self.fallback.is_some() {
            let why = "whose weights are packed for Neuron cores; to fall back to cpu, name the model that it was built from, \
                       with --backend neuron";
            return refuse("--fallback cpu", why.to_owned());
        }
        if !matches!(self.quant(), Quant::Auto) && self.quant() != layout.weights {
            let has = weights_name(layout.weights);
            let why = format!("with weights in {has} (--quant {has}); leave the flag out, or build it anew");
            return refuse(&format!("--quant {}", self.quant_name()), why);
        }
        if let Some(kv) = self.kv.filter(|kv| *kv != layout.kv) {
            let has = kv_name(layout.kv);
            let why = format!("with caches in {has} (--kv-type {has}); leave the flag out, or build it anew");
            return refuse(&format!("--kv-type {}", kv_name(kv)), why);
        }
        if let Some(name) = self.instance.as_deref().filter(|name| !name.is_empty() && *name != layout.instance) {
            let table = Instances::built_in();
            let instance = table.find(name).ok_or_else(|| no_instance(name, &table))?;
            // On other sizes of the same chips it runs as well.
            if instance.target() != layout.target {
                let why = format!("for {} ({}); build one for {name}", layout.instance, layout.target.name());
                return refuse(&format!("--instance {name}"), why);
            }
        }
        match self.context {
            Some(context) => check_context(artifact, context),
            None => Ok(()),
        }
    }
}

/// Refuses sequences that are longer than the artifact's.
pub fn check_context(artifact: &Artifact, asked: usize) -> Result<(), UsageError> {
    let (built_for, place) = (artifact.manifest.layout.context, artifact.dir.display());
    match asked > built_for {
        true => Err(UsageError(format!(
            "--context {asked}: {place} is an artifact for sequences of {built_for} tokens; build one for more with \
             `njoule build --context {asked}`"
        ))),
        false => Ok(()),
    }
}

/// A stored type as it is typed.
pub fn weights_name(weights: Quant) -> &'static str {
    QuantArg::ALL.into_iter().find(|arg| arg.quant() == weights).map_or("auto", QuantArg::name)
}
