//! The meters of a machine: found, put in order so that nothing is counted twice, and read together.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::{Clock, Now, SystemClock, seconds};
use crate::host::Host;
use crate::load::{MachineTime, Part, thread_cpu_s};
use crate::meter::feed::{Feed, FeedSource, SharedCommand};
use crate::meter::instance::InstanceModel;
use crate::meter::neuron::NeuronPower;
use crate::meter::{self, Meter, MeterError, Reading, Scope};
use crate::nvml::Nvml;
use crate::perf::{Elsewhere, Kernel, PerfOpen};
use crate::profile::NeuronWatts;
use crate::root::Root;
use crate::snapshot::{Absent, MeterState, Overhead, SCHEMA, Snapshot};
use crate::table::Table;

/// What to look for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the machine's files are.
    pub root: Root,
    /// A meter outside the machine.
    pub feed: Option<(FeedSource, Scope, Option<f64>)>,
    /// Watts of the Neuron devices.
    pub neuron_watts: Option<NeuronWatts>,
    /// The instance's type, if the machine does not say it or says it wrong.
    pub instance: Option<String>,
    /// A part of the machine that is asked for.
    pub part: Option<Part>,
    /// The NVML library; `None` is where the loader finds it.
    pub nvml: Option<PathBuf>,
}

impl Wanted {
    /// Everything that the environment points at: `NJOULE_SYSFS_ROOT` and `NJOULE_NVML`.
    pub fn from_environment() -> Wanted {
        let nvml = std::env::var_os("NJOULE_NVML").filter(|path| !path.is_empty()).map(PathBuf::from);
        Wanted { nvml, ..Wanted::all(Root::from_environment()) }
    }

    /// Everything that the machine has.
    pub fn all(root: Root) -> Wanted {
        Wanted { root, feed: None, neuron_watts: None, instance: None, part: None, nvml: None }
    }
}

/// The meters of one machine.
pub struct Meters {
    clock: Box<dyn Clock>,
    root: Root,
    host: Host,
    tracks: Vec<Track>,
    neuron: Vec<NeuronPower>,
    absent: Vec<Absent>,
    part: Option<Part>,
    session: String,
    overhead: Overhead,
}

/// A meter and what has come of it.
struct Track {
    meter: Box<dyn Meter>,
    first_ns: Option<u64>,
    last: Option<Reading>,
    trouble: Option<MeterError>,
    samples: u64,
    errors: u64,
    /// Whether it was taken out of the total because it stands still.
    retired: bool,
    peak_w: f64,
}

impl Meters {
    /// The machine's meters by the machine's clocks.
    pub fn open(wanted: &Wanted) -> Meters {
        // The kernel's counters are the machine's: they have no place in another tree.
        let perf: &dyn PerfOpen = if wanted.root.is_machine() { &Kernel } else { &Elsewhere };
        Meters::open_with(wanted, perf, Box::new(SystemClock))
    }

    /// With other means of opening counters, and other clocks.
    pub fn open_with(wanted: &Wanted, perf: &dyn PerfOpen, clock: Box<dyn Clock>) -> Meters {
        let root = &wanted.root;
        let mut host = Host::read(root);
        if wanted.instance.is_some() {
            host.instance_type.clone_from(&wanted.instance);
        }
        let mut found: Vec<Box<dyn Meter>> = vec![];
        let mut absent = vec![];
        let mut lacks = |meter: &str, reason: String| absent.push(Absent { meter: meter.to_owned(), reason });

        if let Some((source, scope, uncertainty)) = &wanted.feed {
            found.push(Box::new(Feed::new(source.clone(), *scope, *uncertainty)));
        }
        // perf before powercap: the kernel extends its counters.
        match meter::rapl::open(root, perf) {
            Ok(meters) => found.extend(meters.into_iter().map(|m| Box::new(m) as _)),
            Err(by_perf) => {
                lacks("rapl-perf", by_perf.to_string());
                match meter::powercap::open(root) {
                    Ok(meters) => found.extend(meters.into_iter().map(|m| Box::new(m) as _)),
                    Err(by_powercap) => lacks("rapl-powercap", by_powercap.to_string()),
                }
            }
        }
        // The loader's library knows nothing of a made-up tree.
        let nvml = match &wanted.nvml {
            Some(path) => Nvml::open_at(path).map_err(|e| e.to_string()),
            None if root.is_machine() => Nvml::open().map_err(|e| e.to_string()),
            None => Err("not looked for in another tree than the machine's".to_owned()),
        };
        match nvml {
            Ok(nvml) => found.extend(meter::nvml::open(Arc::new(nvml)).into_iter().map(|m| Box::new(m) as _)),
            Err(reason) => lacks("nvml", reason),
        }
        match meter::hwmon::open(root) {
            Ok(meters) => found.extend(meters.into_iter().map(|m| Box::new(m) as _)),
            Err(reason) => lacks("hwmon", reason.to_string()),
        }
        match model(root, &host) {
            Ok(model) => found.push(Box::new(model)),
            Err(reason) => lacks("instance-model", reason),
        }
        let neuron = meter::neuron::open(root, wanted.neuron_watts.as_ref());
        let mut meters = Meters::of(found, clock);
        (meters.root, meters.host, meters.neuron) = (root.clone(), host, neuron);
        (meters.absent, meters.part) = (absent, wanted.part.clone());
        meters.poll();
        meters
    }

    /// These meters alone.
    pub fn of(mut found: Vec<Box<dyn Meter>>, clock: Box<dyn Clock>) -> Meters {
        arrange(&mut found);
        let track = |meter| Track {
            meter,
            first_ns: None,
            last: None,
            trouble: None,
            samples: 0,
            errors: 0,
            retired: false,
            peak_w: 0.0,
        };
        let now = clock.now();
        let session = format!("{:x}-{:x}", (now.unix_s * 1e6) as u64, std::process::id());
        let tracks = found.into_iter().map(track).collect();
        Meters {
            clock,
            root: Root::at("/"),
            host: Host::default(),
            tracks,
            neuron: vec![],
            absent: vec![],
            part: None,
            session,
            overhead: Overhead::default(),
        }
    }

    /// The commands of feeds. Who shares the meters among threads runs these before a poll or a snapshot and without their
    /// lock: after that no reading runs a command.
    pub fn commands(&self) -> Vec<Arc<SharedCommand>> {
        self.tracks.iter().filter_map(|track| track.meter.command()).collect()
    }

    /// Reads every meter once.
    pub fn poll(&mut self) {
        let before = thread_cpu_s();
        for track in &mut self.tracks {
            track.read(self.clock.now());
        }
        self.poll_devices();
        self.retire();
        self.overhead.polls += 1;
        self.overhead.cpu_s += (thread_cpu_s() - before).max(0.0);
    }

    /// Looks at the Neuron devices alone, which show their newest minute and no other: it takes no time worth telling.
    pub fn poll_devices(&mut self) {
        for device in &mut self.neuron {
            device.poll(self.clock.now());
        }
    }

    /// Takes the host's counters out of the total if not one of them moves, and back in if one does: under a hypervisor
    /// there are such. The model of the host stands in for them, or what else is metered is the total without the host. One
    /// that stands still beside others that move, or beside nothing else, stays in the total and makes it unknown: what it
    /// should have counted is missing.
    fn retire(&mut self) {
        let host = |track: &Track| {
            let info = track.meter.info();
            let place = matches!(info.scope, Scope::Cpu | Scope::Dram) || info.domain == "psys";
            place && (info.counts_in_total || track.retired)
        };
        let other = |track: &Track| {
            let info = track.meter.info();
            info.scope == Scope::Host || (info.counts_in_total && !host(track))
        };
        let rest = !self.neuron.is_empty() || self.tracks.iter().any(other);
        let dead = rest && self.tracks.iter().filter(|track| host(track)).all(Track::stands_still);
        let mut changed = false;
        for track in self.tracks.iter_mut().filter(|track| host(track) && track.retired != dead) {
            let info = track.meter.info_mut();
            info.counts_in_total = !dead;
            info.excluded = dead.then(|| "the counter stands still".into());
            (track.retired, changed) = (dead, true);
        }
        if !changed {
            return;
        }
        let counts =
            |i: &&meter::MeterInfo| i.counts_in_total && matches!(i.scope, Scope::Cpu | Scope::Node | Scope::Wall);
        let metered = self.tracks.iter().map(|t| t.meter.info()).find(counts).map(|i| i.id.clone());
        let model = self.tracks.iter_mut().map(|t| t.meter.info_mut()).find(|i| i.scope == Scope::Host);
        if let Some(info) = model {
            info.counts_in_total = metered.is_none();
            info.excluded = metered.as_ref().map(|id| format!("{id} meters it"));
        }
    }

    /// Reads every meter once and says where all stand.
    pub fn snapshot(&mut self) -> Snapshot {
        self.poll();
        let now = self.clock.now();
        let part = self.part.as_ref().map(|part| part.cpu_s(&self.root));
        Snapshot {
            schema: SCHEMA.to_owned(),
            session: self.session.clone(),
            mono_ns: now.mono_ns,
            unix_s: now.unix_s,
            host: self.host.clone(),
            meters: self.tracks.iter().map(Track::state).collect(),
            neuron: self.neuron.iter().map(|device| device.state().clone()).collect(),
            absent: self.absent.clone(),
            machine: MachineTime::read(&self.root).ok(),
            part_cpu_s: part.as_ref().and_then(|cpu_s| cpu_s.as_ref().ok().copied()),
            part_trouble: part.and_then(|cpu_s| cpu_s.err().map(|e| e.to_string())),
            overhead: self.overhead,
            conditions: None,
        }
    }

    /// Takes into `snapshot`, the last of these meters, what the commands of feeds have said since. A command takes its
    /// time: what else is read must not wait for it.
    pub fn refresh(&mut self, snapshot: &mut Snapshot) {
        for (track, state) in self.tracks.iter_mut().zip(&mut snapshot.meters) {
            if track.meter.command().is_some() {
                track.read(self.clock.now());
                *state = track.state();
            }
        }
    }

    /// Where the machine's files are.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

impl Track {
    fn read(&mut self, now: Now) {
        match self.meter.read(now) {
            Ok(reading) => {
                if let Some(last) = self.last {
                    let span = seconds(last.at_ns, reading.at_ns);
                    if span >= SHORTEST_FOR_PEAK_S {
                        self.peak_w = self.peak_w.max((reading.total.best() - last.total.best()) / span);
                    }
                }
                self.samples += 1;
                self.first_ns.get_or_insert(reading.at_ns);
                self.last = Some(reading);
                self.trouble = None;
            }
            Err(error) => {
                self.errors += 1;
                self.trouble = Some(error);
            }
        }
    }

    /// Whether it has been seen not to move for long enough. One that was reset, or cannot be read, has moved or may have:
    /// what it counted is unknown, and nothing stands in for it.
    fn stands_still(&self) -> bool {
        let (Some(first), Some(last)) = (self.first_ns, self.last) else { return false };
        let whole = self.trouble.is_none() && last.holes == 0;
        whole && last.total.best() == 0.0 && seconds(first, last.at_ns) >= STANDS_STILL_S
    }

    fn state(&self) -> MeterState {
        MeterState {
            info: self.meter.info().clone(),
            at_ns: self.last.map_or(0, |r| r.at_ns),
            total: self.last.map(|r| r.total),
            trouble: self.trouble.as_ref().map(ToString::to_string),
            samples: self.samples,
            errors: self.errors,
            wraps: self.last.map_or(0, |r| r.wraps),
            holes: self.last.map_or(0, |r| r.holes),
            ambiguous: self.last.map_or(0, |r| r.ambiguous),
            late: self.meter.late(),
            peak_w: self.peak_w,
        }
    }
}

/// The model of the instance, or why there is none.
fn model(root: &Root, host: &Host) -> Result<InstanceModel, String> {
    let instance = host.instance_type.as_deref().ok_or("the machine does not say that it is an Amazon instance")?;
    let vcpus = host.vcpus.ok_or("the number of CPUs is unknown")?;
    let memory = host.memory_gib.ok_or("the amount of memory is unknown")?;
    let watts = Table::published().host(instance, vcpus, memory)?;
    Ok(InstanceModel::new(root.clone(), watts))
}

/// Decides who counts: of overlapping meters exactly one side.
///
/// A meter at the plug, or of the node, includes everything and counts alone. A feed of the accelerators includes every board
/// and device. Else packages, memories and boards count
/// beside each other; psys only where no package is seen; the model of the host only where nothing of the host is metered.
fn arrange(found: &mut [Box<dyn Meter>]) {
    let has = |found: &[Box<dyn Meter>], test: &dyn Fn(&meter::MeterInfo) -> bool| {
        found
            .iter()
            .map(|m| m.info())
            .find(|i| i.counts_in_total && i.parent.is_none() && test(i))
            .map(|i| i.id.clone())
    };
    let psys = |i: &meter::MeterInfo| i.domain == "psys";
    let devices = has(found, &meter::MeterInfo::covers_accelerators);
    let whole = has(found, &|i| i.scope == Scope::Wall).or_else(|| has(found, &|i| i.scope == Scope::Node && !psys(i)));
    let package = has(found, &|i| i.scope == Scope::Cpu);
    let platform = has(found, &psys);
    for meter in found.iter_mut() {
        let info = meter.info_mut();
        let over = match () {
            () if whole.as_ref() == Some(&info.id) => None,
            () if whole.is_some() => whole.clone(),
            () if info.scope == Scope::Host => package.clone().or(platform.clone()),
            () if info.scope == Scope::Accelerator && devices.as_ref() != Some(&info.id) => devices.clone(),
            () => None,
        };
        if psys(info) && whole.is_none() && package.is_some() {
            info.counts_in_total = false;
            info.excluded.get_or_insert_with(|| "includes the packages, which count".into());
        } else if let Some(over) = over {
            info.counts_in_total = false;
            let metered = info.scope == Scope::Host && whole.is_none();
            match metered {
                true => info.excluded = Some(format!("{over} meters it")),
                false => info.parent = info.parent.take().or(Some(over)),
            }
        } else if info.parent.is_some() {
            info.counts_in_total = false;
        }
    }
}

/// A powered part that uses less than a counter's step in this time does not exist.
const STANDS_STILL_S: f64 = 1.0;

/// Mean power over a shorter span is mostly the counter's step.
const SHORTEST_FOR_PEAK_S: f64 = 0.02;
