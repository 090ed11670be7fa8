//! Values of environment variables: read once, refused in words that name the variable.

use std::time::Duration;

/// A variable that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}=`{value}`: {problem}")]
pub struct BadVariable {
    /// Its name.
    pub name: String,
    /// What it is set to.
    pub value: String,
    /// What is wrong with that.
    pub problem: String,
}

/// The variable, parsed; None if unset or empty.
pub fn get<T, E: ToString>(name: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<Option<T>, BadVariable> {
    let Some(value) = std::env::var_os(name).filter(|v| !v.is_empty()) else { return Ok(None) };
    let value = value.to_string_lossy().into_owned();
    match parse(&value) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(problem) => Err(BadVariable { name: name.to_owned(), value, problem: problem.to_string() }),
    }
}

/// A switch: `0` is off, `1` on.
pub fn switch(name: &str, default: bool) -> Result<bool, BadVariable> {
    let parse = |value: &str| match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("neither 0 nor 1"),
    };
    Ok(get(name, parse)?.unwrap_or(default))
}

/// `20ms`, `1.5s`, `300us`.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 3] = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let (digits, unit) = UNITS
        .into_iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, unit)))
        .ok_or("no unit: us, ms or s")?;
    let seconds = digits.parse::<f64>().map_err(|e| e.to_string())? * unit;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("7us"), Ok(Duration::from_micros(7)));
        for bad in ["", "20", "ms", "-1s", "nans", "1e99s", "2 m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
