//! The driver's one statement about power: `stats/power/utilization`, a line that describes the previous calendar minute.
//!
//! Percentages are of a maximum that is not published, with the idle power taken off: no watts follow from them alone.

use std::str::FromStr;

/// One line of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Power {
    /// Whether the figures mean something.
    pub status: PowerStatus,
    /// When it was written, in seconds since 1970.
    pub epoch_seconds: u64,
    /// Least of the minute, in percent.
    pub min: f64,
    /// Most of the minute, in percent.
    pub max: f64,
    /// Mean of the minute, in percent.
    pub mean: f64,
}

/// What the driver says of its figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerStatus {
    /// At least 60 samples in the minute.
    Valid,
    /// The firmware gave none.
    NoData,
    /// An error within the driver, or a word that is not known.
    Invalid,
}

impl FromStr for Power {
    type Err = ();

    /// `STATUS,epoch_seconds,min,max,mean`; other numbers of fields, and figures that are no finite, positive percentages, are refused.
    fn from_str(line: &str) -> Result<Power, ()> {
        let fields: Vec<&str> = line.split(',').map(str::trim).take(6).collect();
        let [status, seconds, min, max, mean] = fields[..] else { return Err(()) };
        let status = match status.strip_prefix("POWER_STATUS_").ok_or(())? {
            "VALID" => PowerStatus::Valid,
            "NO_DATA" => PowerStatus::NoData,
            _ => PowerStatus::Invalid,
        };
        let percent = |text: &str| text.parse::<f64>().ok().filter(|p| p.is_finite() && *p >= 0.0).ok_or(());
        let epoch_seconds = seconds.parse().map_err(|_| ())?;
        Ok(Power { status, epoch_seconds, min: percent(min)?, max: percent(max)?, mean: percent(mean)? })
    }
}
