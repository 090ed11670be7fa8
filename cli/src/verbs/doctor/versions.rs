//! Versions that do not go together.
//!
//! Each line is a statement of AWS's release notes (release-notes/components/runtime), or of its list of tested systems.

use njoule_neuron_sys::sysfs::DriverVersion;

/// What a pair of versions means.
#[derive(Debug, PartialEq, Eq)]
pub struct Clash {
    /// Nothing runs with it.
    pub fatal: bool,
    /// What does not go together.
    pub what: String,
    /// What to do.
    pub fix: &'static str,
}

/// Clashes of a library (major, minor, patch), a driver and a C library (major, minor), of those that are known.
pub fn clashes(
    library: Option<(u64, u64, u64)>,
    driver: Option<&DriverVersion>,
    glibc: Option<(u32, u32)>,
) -> Vec<Clash> {
    let mut found = vec![];
    if let (Some(library @ (major, minor, _)), Some(driver)) = (library, driver) {
        if library >= (2, 32, 0) && driver.release() <= (2, 26) {
            found.push(Clash {
                fatal: true,
                what: format!("libnrt {major}.{minor} does not start with driver {driver}: it needs 2.27 or newer"),
                fix: UPDATE_DRIVER,
            });
        }
        if driver.release() >= (2, 29) && library < (2, 33, 0) {
            found.push(Clash {
                fatal: true,
                what: format!("driver {driver} does not work with libnrt {major}.{minor}: it needs 2.33 or newer"),
                fix: UPDATE_LIBRARY,
            });
        }
    }
    if let Some(library @ (major, minor, _)) = library {
        if library < (2, 30, 0) {
            found.push(Clash {
                fatal: false,
                what: format!("libnrt {major}.{minor} is wrong for allocations of 4 GB and more: njoule refuses them"),
                fix: UPDATE_LIBRARY,
            });
        }
        if library < (2, 31, 0) {
            found.push(Clash {
                fatal: false,
                what: format!(
                    "the scheduled runs of libnrt {major}.{minor} have another meaning than since 2.31: njoule refuses \
                     them and runs modules one by one"
                ),
                fix: UPDATE_LIBRARY,
            });
        }
    }
    if let (Some(driver), true) = (driver, driver.is_some_and(|driver| driver.release() < (2, 21))) {
        found.push(Clash {
            fatal: false,
            what: format!("driver {driver} tells nothing about power: that came with 2.21"),
            fix: UPDATE_DRIVER,
        });
    }
    if let Some((major, minor)) = glibc {
        if (major, minor) < (2, 34) {
            found.push(Clash {
                fatal: false,
                what: format!("AWS tests libnrt on glibc 2.34 to 2.39; this is {major}.{minor}, where it may not load"),
                fix: "use a newer system: Ubuntu 22.04, Amazon Linux 2023, Debian 12 or Rocky 9",
            });
        } else if (major, minor) > (2, 39) {
            found.push(Clash {
                fatal: false,
                what: format!("AWS tests libnrt on glibc 2.34 to 2.39; this is {major}.{minor}"),
                fix: "nothing, unless libnrt fails to load or crashes",
            });
        }
    }
    found
}

/// How to update the driver.
pub const UPDATE_DRIVER: &str =
    "update aws-neuronx-dkms with apt-get or dnf, then reload it: sudo rmmod neuron; sudo modprobe neuron";
const UPDATE_LIBRARY: &str = "update aws-neuronx-runtime-lib with apt-get or dnf";

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a pair is fatal, and how many remarks there are in all.
    fn of(library: (u64, u64, u64), driver: &str) -> (bool, usize) {
        let found = clashes(Some(library), Some(&driver.parse().unwrap()), Some((2, 35)));
        (found.iter().any(|clash| clash.fatal), found.len())
    }

    #[test]
    fn pairs_of_the_release_notes() {
        assert_eq!(of((2, 34, 10), "2.30.2.0"), (false, 0));
        assert_eq!(of((2, 32, 31), "2.28.0.0"), (false, 0));
        assert_eq!(of((2, 32, 31), "2.27.4.0"), (false, 0));
        assert_eq!(of((2, 32, 31), "2.26.5.0"), (true, 1));
        assert_eq!(of((2, 34, 10), "2.26.0.0"), (true, 1));
        assert_eq!(of((2, 31, 24), "2.26.0.0"), (false, 0));
        assert_eq!(of((2, 32, 31), "2.29.0.0"), (true, 1));
        assert_eq!(of((2, 33, 0), "2.29.0.0"), (false, 0));
        assert_eq!(of((2, 31, 24), "2.30.2.0"), (true, 1));
        assert_eq!(of((2, 30, 50), "2.26.0.0"), (false, 1), "schedule");
        assert_eq!(of((2, 27, 23), "2.21.37.0"), (false, 2), "schedule and 4 GB");
        assert_eq!(of((2, 31, 24), "2.20.1.0"), (false, 1), "power");
    }

    #[test]
    fn c_libraries_outside_of_the_tested_range_are_named() {
        let of = |glibc| clashes(None, None, Some(glibc)).len();
        assert_eq!([of((2, 33)), of((2, 34)), of((2, 39)), of((2, 40))], [1, 0, 0, 1]);
        assert!(clashes(None, None, None).is_empty());
    }
}
