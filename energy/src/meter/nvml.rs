//! NVIDIA boards: the energy counter where there is one (Volta and later), else power integrated here.

use std::sync::Arc;

use super::rapl::reading;
use super::{Meter, MeterError, MeterInfo, Reading, Scope};
use crate::clock::Now;
use crate::counter::Counter;
use crate::integral::PowerIntegral;
use crate::joules::Method;
use crate::nvml::{Device, Nvml, NvmlError};

/// One board.
pub struct NvmlBoard {
    info: MeterInfo,
    nvml: Arc<Nvml>,
    device: Device,
    kind: Kind,
}

enum Kind {
    Energy(Counter),
    Power(PowerIntegral),
}

/// Opens all boards.
pub fn open(nvml: Arc<Nvml>) -> Result<Vec<NvmlBoard>, MeterError> {
    let failed = |e: NvmlError| MeterError::Failed { path: "nvml".into(), what: e.to_string() };
    let mut meters = vec![];
    for (index, device) in nvml.devices().map_err(failed)?.into_iter().enumerate() {
        let energy = nvml.energy_mj(&device);
        let kind = match energy {
            Ok(_) => Kind::Energy(Counter::endless()),
            Err(NvmlError::NotSupported) => Kind::Power(PowerIntegral::new(LONGEST_GAP_S)),
            Err(error) => return Err(failed(error)),
        };
        let counts = matches!(kind, Kind::Energy(_));
        let info = MeterInfo {
            id: format!("nvml-{index}"),
            domain: "board".into(),
            scope: Scope::Accelerator,
            method: Method::Measured,
            source: if counts { "nvml:nvmlDeviceGetTotalEnergyConsumption" } else { "nvml:nvmlDeviceGetPowerUsage" }
                .into(),
            profile: None,
            unit_j: counts.then_some(1e-3),
            update_period_s: Some(UPDATE_S),
            rel_uncertainty: Some(0.05),
            parent: None,
            counts_in_total: true,
            excluded: None,
        };
        meters.push(NvmlBoard { info, nvml: nvml.clone(), device, kind });
    }
    Ok(meters)
}

impl Meter for NvmlBoard {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn info_mut(&mut self) -> &mut MeterInfo {
        &mut self.info
    }

    fn read(&mut self, now: Now) -> Result<Reading, MeterError> {
        let failed = |e: NvmlError| MeterError::Failed { path: "nvml".into(), what: e.to_string() };
        match &mut self.kind {
            Kind::Energy(counter) => {
                let raw = self.nvml.energy_mj(&self.device).map_err(failed)?;
                counter.advance(raw, now.mono_ns).map_err(|_| MeterError::Reset(self.info.source.clone()))?;
                reading(counter, 1e-3, now)
            }
            Kind::Power(integral) => {
                let milliwatts = self.nvml.power_mw(&self.device).map_err(failed)?;
                Ok(integral.add(f64::from(milliwatts) * 1e-3, now))
            }
        }
    }
}

/// The slower end of what is published, 20 to 100 ms.
const UPDATE_S: f64 = 0.1;

/// Power between two reads further apart than this is unknown.
const LONGEST_GAP_S: f64 = 5.0;
