//! What the facts mean: findings in the order in which they are to be mended, and one verdict.
//!
//! Invariant: what a finding depends on comes before it, so the first broken one is the first to mend.

use njoule_neuron_sys::sysfs::{Chip, DeviceNode, KernelLog, PowerStatus};

use super::facts::{Device, Facts};
use super::software::INSTALL_COMPILER;
use super::variables::Gravity;
use super::versions::{self, UPDATE_DRIVER};

/// Something to know.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Of what.
    pub about: &'static str,
    /// What is so.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Serving on Neuron does not work with it.
    Broken,
    /// It works, but something is lacking or suspicious.
    Doubtful,
    /// To know.
    Note,
}

/// What the machine is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that serving on Neuron needs is there.
    Serves,
    /// A stand-in would serve: there is no device behind it.
    StandIn,
    /// No Neuron device, and nothing that says there should be one.
    CpuOnly,
    /// Something that should work does not.
    Broken,
}

impl Severity {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Broken => "broken",
            Severity::Doubtful => "doubtful",
            Severity::Note => "note",
        }
    }
}

impl Verdict {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Serves => "serves",
            Verdict::StandIn => "stand_in",
            Verdict::CpuOnly => "cpu_only",
            Verdict::Broken => "broken",
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Serves => "this machine has what serving on Neuron needs",
            Verdict::StandIn => "a stand-in would serve: there is no Neuron device behind it",
            Verdict::CpuOnly => {
                "no Neuron device: CPU only. That is fine for --backend cpu; what is absent below is not missed"
            }
            Verdict::Broken => "this machine cannot serve on Neuron as it is",
        }
    }
}

/// Judges.
pub fn judge(facts: &Facts) -> (Verdict, Vec<Finding>) {
    let mut findings = Findings(vec![]);
    let expected = facts.expects_devices();
    findings.variables(facts, expected);
    findings.driver(facts, expected);
    findings.devices(facts);
    findings.library(facts, expected);
    findings.versions(facts, expected);
    findings.health(facts);
    findings.software(facts, expected);
    findings.owners(facts);
    findings.power(facts);
    let mut findings = findings.0;
    findings.sort_by_key(|finding| finding.severity as u8); // stable: the order within each is kept
    let broken = findings.iter().any(|finding| finding.severity == Severity::Broken);
    let stand_in = facts.library.found.as_ref().is_some_and(|found| found.stand_in) || !facts.root.is_machine();
    let verdict = match (broken, expected, stand_in) {
        (true, _, _) => Verdict::Broken,
        (false, _, true) if expected || facts.library.found.is_some() => Verdict::StandIn,
        (false, true, _) => Verdict::Serves,
        (false, false, _) => Verdict::CpuOnly,
    };
    (verdict, findings)
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, about: &'static str, what: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { severity, about, what: what.into(), fix: fix.into() });
    }

    fn broken(&mut self, about: &'static str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Broken, about, what, fix);
    }

    fn doubtful(&mut self, about: &'static str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Doubtful, about, what, fix);
    }

    fn note(&mut self, about: &'static str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Severity::Note, about, what, fix);
    }

    fn variables(&mut self, facts: &Facts, expected: bool) {
        for variable in &facts.variables {
            let Some((gravity, problem)) = &variable.problem else { continue };
            let severity = match gravity {
                // Without a device nobody reads them.
                _ if !expected && variable.name.starts_with("NEURON_") => Severity::Note,
                Gravity::Fatal => Severity::Broken,
                Gravity::Unwise => Severity::Doubtful,
            };
            let what = format!("{}={}: not sound", variable.name, variable.value);
            self.add(severity, "environment", what, problem.clone());
        }
        if !facts.root.is_machine() && !facts.root_missing {
            let what = format!("devices are read below {}: a tree, not this machine", facts.root.prefix().display());
            self.note("environment", what, "unset NJOULE_SYSFS_ROOT to look at the machine");
        }
    }

    fn driver(&mut self, facts: &Facts, expected: bool) {
        let driver = &facts.driver;
        if expected && !driver.loaded {
            match driver.installed.first() {
                Some(installed) => self.broken(
                    "driver",
                    format!("the driver {} is installed but not loaded", installed.version),
                    "sudo modprobe neuron; if that fails, install the running kernel's headers and aws-neuronx-dkms anew",
                ),
                None => self.broken(
                    "driver",
                    "there is no Neuron driver",
                    "sudo apt-get install aws-neuronx-dkms (or dnf), from AWS's Neuron repository, then sudo modprobe neuron",
                ),
            }
        }
        if let (Some(loaded), Some(installed)) = (driver.version.value(), driver.installed.first())
            && *loaded < installed.version
        {
            let what = format!("the driver {loaded} is loaded, but {} is installed", installed.version);
            self.doubtful("driver", what, "sudo rmmod neuron; sudo modprobe neuron");
        }
        if driver.loaded && driver.version.value().is_none() && expected {
            self.doubtful("driver", "the loaded driver does not tell its version", "see `modinfo neuron`");
        }
    }

    fn devices(&mut self, facts: &Facts) {
        let expected = facts.expects_devices();
        if expected && facts.driver.loaded && facts.devices.is_empty() && facts.nodes.is_empty() {
            let fix = "in a container, give it the devices (docker run --device=/dev/neuron0 ...); on the machine itself, \
                       see the kernel's log: sudo dmesg | grep -i neuron";
            self.broken("devices", "the driver is loaded but no device is to be seen", fix);
        }
        let nodes: Vec<u32> = facts.nodes.iter().map(|node| node.index).collect();
        let hidden: Vec<u32> = facts.devices.iter().map(|d| d.dir.index()).filter(|n| !nodes.contains(n)).collect();
        match (hidden.len(), nodes.len()) {
            (0, _) => {}
            (_, 0) => self.broken(
                "devices",
                "no device has its node in /dev",
                "in a container, give it the devices: docker run --device=/dev/neuron0 ...",
            ),
            _ => self.note(
                "devices",
                format!("devices without a node in /dev: {}", list(&hidden)),
                "in a container that is what it was given; else give it more with --device",
            ),
        }
        for node in &facts.nodes {
            if facts.root.is_machine() && !node.is_device {
                let what = format!("{} is no device", node.path.display());
                self.broken("devices", what, "remove it and reload the driver");
            } else if !may_use(node) {
                let what = format!("{} may not be opened by this user", node.path.display());
                self.broken("devices", what, "sudo chmod a+rw /dev/neuron*, or a udev rule that does it at each start");
            }
        }
        for device in &facts.devices {
            match (device.chip.value(), device.chip.problem()) {
                (Some(Chip::Inferentia1), _) => {
                    let what = format!("neuron{} is an Inferentia of the first generation", device.dir.index());
                    self.broken("devices", what, "use an inf2, trn1 or trn2 instance");
                }
                (None, Some(problem)) => {
                    let what = format!("the kind of neuron{} is {problem}", device.dir.index());
                    self.doubtful("devices", what, "report it, with the output of `njoule doctor --json`");
                }
                _ => {}
            }
        }
        if let Some(bus) = facts.pci.len().checked_sub(facts.devices.len()).filter(|n| *n > 0)
            && !facts.devices.is_empty()
        {
            let what = format!("{bus} devices on the bus are not shown by the driver");
            self.doubtful("devices", what, "see the kernel's log: sudo dmesg | grep -i neuron");
        }
    }

    fn library(&mut self, facts: &Facts, expected: bool) {
        let library = &facts.library;
        let Some(found) = &library.found else {
            let error = library.error.clone().unwrap_or_default();
            match (library.named, expected) {
                (true, _) => self.broken("library", error, "correct or unset NJOULE_NRT"),
                (false, true) => self.broken(
                    "library",
                    error,
                    "sudo apt-get install aws-neuronx-runtime-lib (or dnf), from AWS's Neuron repository",
                ),
                (false, false) => {}
            }
            return;
        };
        if found.stand_in {
            let what = format!("{} is a stand-in, not AWS's library: it runs modules on the CPU", found.path.display());
            let fix =
                if expected { "unset NJOULE_NRT to use the devices" } else { "nothing, if that is what is wanted" };
            self.note("library", what, fix);
        }
        match &found.cores {
            Err(error) if expected => self.doubtful("library", error.clone(), "try `njoule doctor --init`"),
            Ok((total, 0)) => self.broken(
                "library",
                format!("none of {total} logical cores is visible to this process"),
                "see NEURON_RT_VISIBLE_CORES and NEURON_RT_NUM_CORES",
            ),
            _ => {}
        }
        match &found.started {
            Some(Err(error)) => {
                let fix = "the meaning of the status stands there; the library's own log says more (NEURON_RT_LOG_LEVEL=INFO)";
                self.broken("library", format!("it does not start: {error}"), fix);
            }
            Some(Ok(started)) if started.cores.is_empty() => {
                self.broken(
                    "library",
                    "it started with no core",
                    "see NEURON_RT_VISIBLE_CORES and NEURON_RT_NUM_CORES",
                );
            }
            _ => {}
        }
    }

    fn versions(&mut self, facts: &Facts, expected: bool) {
        let library = facts.library.found.as_ref().filter(|found| !found.stand_in).map(|found| found.version);
        let glibc = facts.host.glibc.filter(|_| expected);
        for clash in versions::clashes(library, facts.driver.version.value(), glibc) {
            let severity = if clash.fatal { Severity::Broken } else { Severity::Doubtful };
            self.add(severity, "versions", clash.what, clash.fix);
        }
    }

    fn health(&mut self, facts: &Facts) {
        for device in &facts.devices {
            let index = device.dir.index();
            for (name, count) in &device.ecc {
                let what = format!("neuron{index}: {name} {count}");
                match name.as_str() {
                    name if name.contains("repairable") => self.broken("health", what, RELOAD),
                    name if name.contains("uncorrected") => {
                        self.broken("health", what, "replace the instance: stop and start it, or terminate it");
                    }
                    _ => self.note("health", what, "nothing: the hardware corrected them"),
                }
            }
            for (name, text) in &device.health {
                let sound =
                    matches!(text.value().map(|t| t.to_ascii_lowercase()).as_deref(), Some("" | "0" | "0x0" | "none"));
                if name.contains("unhealthy") && !sound && text.value().is_some() {
                    let what = format!("neuron{index}: {name} is {:?}", text.value().map_or("", |t| t));
                    self.doubtful("health", what, "what it says is not published: replace the instance if runs fail");
                }
            }
            for core in &device.cores {
                for (status, count) in &core.failures {
                    let what = format!("neuron{index} core {}: {count} calls ended with {status}", core.index);
                    let hardware = status.starts_with("hw_")
                        || ["timeout", "execute_completed_with_error"].contains(&status.as_str());
                    if hardware {
                        self.doubtful(
                            "health",
                            what,
                            "it happened since the driver was loaded; if it comes back, replace the instance",
                        );
                    } else {
                        self.note("health", what, "it happened since the driver was loaded, in whatever program");
                    }
                }
            }
        }
        if let KernelLog::Read { errors, path } = &facts.kernel_log {
            for error in errors {
                let on = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
                let what = format!(
                    "{}: hardware error {} on neuron{} core {}",
                    path.display(),
                    error.error,
                    on(error.device),
                    on(error.core)
                );
                let fix = match &error.action {
                    Some(action) => format!("the driver advises {action}"),
                    None => RELOAD.to_owned(),
                };
                self.doubtful("health", what, fix);
            }
        }
    }

    fn software(&mut self, facts: &Facts, expected: bool) {
        let compiler = &facts.compiler;
        match (&compiler.version, compiler.named) {
            (Ok(_), _) if compiler.stand_in => {
                self.note(
                    "compiler",
                    "it is a stand-in: what it makes runs on stand-ins alone",
                    "unset NJOULE_NEURONX_CC",
                );
            }
            (Ok(_), _) => {}
            (Err(why), true) => self.broken("compiler", why.clone(), "correct or unset NJOULE_NEURONX_CC"),
            (Err(why), false) if compiler.path.is_some() => {
                self.doubtful("compiler", why.clone(), INSTALL_COMPILER);
            }
            (Err(_), false) if expected => self.doubtful(
                "compiler",
                "there is no neuronx-cc: modules that were compiled elsewhere run, others cannot be compiled here",
                INSTALL_COMPILER,
            ),
            (Err(_), false) => {}
        }
        let cores: u64 = facts.devices.iter().map(Device::logical_cores).sum();
        if cores > 1 && facts.collectives.path.is_none() {
            let fix = "sudo apt-get install aws-neuronx-collectives (or dnf)";
            self.doubtful("collectives", "there is no libnccom: a model runs on one core only", fix);
        }
        if expected && facts.tools.iter().all(|tool| tool.path.is_none()) {
            self.note(
                "tools",
                "neuron-ls and its like are not here",
                "sudo apt-get install aws-neuronx-tools (or dnf)",
            );
        }
        if let Some((total, _)) = facts.host.memory.filter(|(total, _)| expected && *total < SMALL_HOST) {
            let what = format!(
                "{} GB of host memory are little for the compiler on models of 7B and more",
                total / 1_000_000_000
            );
            self.note("host", what, "compile on a larger machine; the modules can be copied here");
        }
    }

    fn owners(&mut self, facts: &Facts) {
        for owner in &facts.owners.seen {
            let devices: Vec<u32> = owner.devices.iter().copied().collect();
            let what = format!("process {} ({}) has neuron{} open", owner.pid, owner.name, list(&devices));
            let fix = "cores belong to one process: stop it, or share them out with NEURON_RT_VISIBLE_CORES";
            self.doubtful("owners", what, fix);
        }
    }

    fn power(&mut self, facts: &Facts) {
        let told = |device: &&Device| device.power.value().is_some_and(|power| power.status == PowerStatus::Valid);
        let silent = facts.devices.iter().filter(|device| !told(device)).count();
        if silent > 0 {
            let what = format!("{silent} of {} devices tell no power", facts.devices.len());
            let old = facts.driver.version.value().is_some_and(|version| version.release() < (2, 21));
            let fix = if old { UPDATE_DRIVER } else { "nothing serves worse for it; energy of those is not measured" };
            self.note("power", what, fix);
        }
    }
}

/// Whether this user may read and write a node, by its permission bits.
#[cfg(unix)]
fn may_use(node: &DeviceNode) -> bool {
    use rustix::process::{getegid, geteuid, getgroups};

    let Some((mode, owner, group)) = node.access else { return true };
    let user = geteuid().as_raw();
    let in_group =
        || getegid().as_raw() == group || getgroups().is_ok_and(|all| all.iter().any(|g| g.as_raw() == group));
    let bits = if user == owner {
        mode >> 6
    } else if in_group() {
        mode >> 3
    } else {
        mode
    };
    user == 0 || bits & 0o6 == 0o6
}

#[cfg(not(unix))]
fn may_use(_: &DeviceNode) -> bool {
    true
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

const RELOAD: &str = "reload the driver (sudo rmmod neuron; sudo modprobe neuron) or reboot: that repairs it; if it comes \
                      back, replace the instance";
/// AWS's users report that compiles of 8B models are killed on hosts of 16 and 32 GB.
const SMALL_HOST: u64 = 48_000_000_000;
