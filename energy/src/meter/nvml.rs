//! NVIDIA boards: the energy counter where there is one (Volta and later), else power integrated here: of a moment
//! (`NVML_FI_DEV_POWER_INSTANT`), of which a sample that is shown again is dropped, else `nvmlDeviceGetPowerUsage`, which
//! Ampere and later boards average over a second.
//!
//! A board that cannot be asked stays among the meters, and makes a total that it belongs to unknown.

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
    /// Or why it has no handle.
    device: Result<Device, NvmlError>,
    kind: Kind,
}

enum Kind {
    Energy(Counter),
    /// With the stamp of the last sample.
    Instant(PowerIntegral, Option<i64>),
    Power(PowerIntegral),
}

impl Kind {
    /// What the board has.
    fn of(nvml: &Nvml, device: &Result<Device, NvmlError>) -> Kind {
        let power = || PowerIntegral::new(LONGEST_GAP_S);
        match device.as_ref().map(|device| (nvml.energy_mj(device), nvml.instant_mw(device))) {
            Ok((Err(NvmlError::NotSupported), Ok(_))) => Kind::Instant(power(), None),
            Ok((Err(NvmlError::NotSupported), Err(_))) => Kind::Power(power()),
            _ => Kind::Energy(Counter::endless()),
        }
    }

    fn source(&self) -> &'static str {
        match self {
            Kind::Energy(_) => "nvml:nvmlDeviceGetTotalEnergyConsumption",
            Kind::Instant(..) => "nvml:NVML_FI_DEV_POWER_INSTANT",
            Kind::Power(_) => "nvml:nvmlDeviceGetPowerUsage",
        }
    }
}

/// Opens all boards. Where their number is unknown, one stands for all of them.
pub fn open(nvml: Arc<Nvml>) -> Vec<NvmlBoard> {
    let mut meters = vec![];
    for (index, device) in nvml.devices().unwrap_or_else(|error| vec![Err(error)]).into_iter().enumerate() {
        let kind = Kind::of(&nvml, &device);
        let counts = matches!(kind, Kind::Energy(_));
        let info = MeterInfo {
            id: format!("nvml-{index}"),
            domain: "board".into(),
            scope: Scope::Accelerator,
            method: Method::Measured,
            source: kind.source().into(),
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
    meters
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
        let device = self.device.as_ref().map_err(|e| failed(e.clone()))?;
        match &mut self.kind {
            Kind::Energy(counter) => {
                let raw = self.nvml.energy_mj(device).map_err(failed)?;
                counter.advance(raw, now.mono_ns).map_err(|_| MeterError::Reset(self.info.source.clone()))?;
                reading(counter, 1e-3, now)
            }
            Kind::Instant(integral, last) => {
                let (milliwatts, stamp) = self.nvml.instant_mw(device).map_err(failed)?;
                match last.replace(stamp) == Some(stamp) {
                    true => Ok(integral.held(now)),
                    false => Ok(integral.add(f64::from(milliwatts) * 1e-3, now)),
                }
            }
            Kind::Power(integral) => {
                let milliwatts = self.nvml.power_mw(device).map_err(failed)?;
                Ok(integral.add(f64::from(milliwatts) * 1e-3, now))
            }
        }
    }
}

/// The slower end of what is published, 20 to 100 ms.
const UPDATE_S: f64 = 0.1;

/// Power between two reads further apart than this is unknown.
const LONGEST_GAP_S: f64 = 5.0;
