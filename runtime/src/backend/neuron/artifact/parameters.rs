//! Where each weight stands in a rank's file, and in the device's memory.
//!
//! Every rank has the same shapes, so one table serves all. Offsets are multiples of a page, in the order of the modules'
//! parameters: a layer's weights lie together, and a part of the file can be mapped, written and let go alone.

use std::collections::HashMap;

use njoule_hlo::DType;
use serde::{Deserialize, Serialize};

use super::port_bytes;
use crate::backend::neuron::interface::{Input, Port};

/// A parameter that is a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// Role, type and dimensions on one core.
    pub port: Port<Input>,
    /// First byte in the rank's file.
    pub offset: u64,
    /// Bytes there.
    pub bytes: u64,
}

impl Parameter {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.port.dtype
    }
}

/// The weights among the ports of all modules, each once, with their places; `name` gives a weight's name.
///
/// An error names a weight that two modules want in different forms.
pub fn lay_out<'a>(
    ports: impl IntoIterator<Item = &'a Port<Input>>,
    name: impl Fn(&Input) -> String,
) -> Result<Vec<Parameter>, String> {
    let mut known: HashMap<Input, usize> = HashMap::new();
    let (mut parameters, mut offset) = (Vec::<Parameter>::new(), 0u64);
    for port in ports {
        if !matches!(port.role, Input::Weight(..)) {
            continue;
        }
        if let Some(&at) = known.get(&port.role) {
            let other = &parameters[at].port;
            if other != port {
                let name = &parameters[at].name;
                return Err(format!("modules want `{name}` as {other:?} and as {port:?}"));
            }
            continue;
        }
        let name = name(&port.role);
        let bytes = port_bytes(port.dtype, &port.dims).ok_or_else(|| format!("`{name}` has too many elements"))?;
        known.insert(port.role, parameters.len());
        parameters.push(Parameter { name, port: port.clone(), offset, bytes });
        offset = (offset + bytes).next_multiple_of(ALIGN);
    }
    Ok(parameters)
}

/// Bytes of a rank's file.
pub(super) fn file_bytes(parameters: &[Parameter]) -> u64 {
    parameters.last().map_or(0, |p| p.offset.saturating_add(p.bytes))
}

/// A page of the host, and no less than what any DMA wants.
pub(super) const ALIGN: u64 = 4096;
