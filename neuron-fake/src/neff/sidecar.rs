//! What the compiler notes beside the module: names, types and shapes by NEFF name, aliases, and for whom it is.

use njoule_hlo::{ArrayShape, DType, Module, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::NeffError;

/// Content of `sidecar.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// The module's name.
    pub module: String,
    /// `--target`.
    pub target: String,
    /// Physical cores per logical core.
    pub lnc: u32,
    /// Ranks that take part in its collectives; 1 where there are none.
    pub world: u32,
    /// `input{i}`, in order of the parameters.
    pub inputs: Vec<TensorSpec>,
    /// `output{j}`, in order of the result tuple.
    pub outputs: Vec<TensorSpec>,
    /// Output and the input whose memory it takes.
    pub aliases: Vec<(usize, usize)>,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Under which it is bound.
    pub name: String,
    /// As HLO text has it.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub size: usize,
}

impl Sidecar {
    /// Of this module; None where an input is no array.
    pub fn of(module: &Module, target: Target, lnc: u32) -> Option<Sidecar> {
        let spec = |prefix: &str, i: usize, shape: ArrayShape| TensorSpec {
            name: format!("{prefix}{i}"),
            dtype: shape.dtype().to_string(),
            shape: shape.dims().to_vec(),
            size: shape.bytes(),
        };
        let parameters = module.signature.parameters.iter().enumerate();
        let results = module.results().iter().enumerate();
        Some(Sidecar {
            module: module.name.clone(),
            target: target.name().to_owned(),
            lnc,
            world: world(module),
            inputs: parameters.map(|(i, s)| Some(spec("input", i, s.array()?))).collect::<Option<_>>()?,
            outputs: results.map(|(j, &s)| spec("output", j, s)).collect(),
            aliases: module.aliases.iter().map(|a| (a.output.unwrap_or(0), a.parameter)).collect(),
        })
    }

    /// For which chip it was compiled.
    pub fn target(&self) -> Result<Target, NeffError> {
        let found = Target::ALL.into_iter().find(|t| t.name() == self.target);
        found.ok_or_else(|| NeffError::Sidecar(format!("unknown target `{}`", self.target)))
    }

    /// `def.json` of a subgraph: variables by name, with type and size, as a real NEFF's has them.
    pub(super) fn definition(&self) -> Value {
        let inputs = self.inputs.iter().map(|t| (t, "input"));
        let all = inputs.chain(self.outputs.iter().map(|t| (t, "output")));
        let var = all.enumerate().map(|(id, (t, kind))| {
            (t.name.clone(), json!({ "type": kind, "size": t.size, "var_id": id, "#transpose": "" }))
        });
        json!({ "name": "sg00", "var": var.collect::<serde_json::Map<_, _>>(), "dma_queue": {} })
    }
}

/// Ranks that a module's replica groups name.
fn world(module: &Module) -> u32 {
    let instructions = module.computations.iter().flat_map(|c| &c.instructions);
    let ranks = instructions.filter_map(|i| i.op.collective()).flat_map(|c| c.groups.iter().flatten());
    ranks.max().map_or(1, |&last| last.saturating_add(1))
}

/// The runtime's number of an element type (`nrt_dtype_t`).
pub fn nrt_dtype(dtype: DType) -> u32 {
    match dtype {
        DType::S8 => 0x2,
        DType::U8 | DType::Pred => 0x3,
        DType::BF16 => 0x6,
        DType::F16 => 0x7,
        DType::S32 => 0x8,
        DType::U32 => 0x9,
        DType::F32 => 0xA,
        DType::S64 => 0xC,
        DType::F8E4M3 | DType::F8E4M3FN => 0xE,
        DType::F8E5M2 => 0xF,
    }
}
