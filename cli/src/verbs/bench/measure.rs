//! What is metered while something is measured, and where the reports go.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use super::plot::chart::Chart;
use super::{plot, table};
use crate::args::UsageError;
use crate::session::metering::MeteringArgs;
use crate::session::{Interrupt, Interrupted};
use crate::verbs::Context;
use crate::verbs::energy::Required;
use crate::verbs::energy::subject::{LocalArgs, MeterArgs, Source, Subject};
use crate::verbs::whole::LineFile;

/// Arguments about meters and reports.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Energy and reports")]
pub struct MeasureArgs {
    /// Whose energy: local, pid:N, cgroup:PATH, or the address of an agent (`njoule energy serve`) [default: local; of a
    /// server that is started here its process, of one that is not on this host nobody's]
    #[arg(long, value_name = "WHOSE")]
    meter: Option<Subject>,
    #[command(flatten)]
    metering: MeteringArgs,
    /// Write a report of every case, phase and repeat, one JSON object a line
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the same figures as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Fail where the energy is unknown or weaker
    #[arg(long, value_name = "METHOD", value_enum)]
    require_energy: Option<Required>,
}

/// Meters that are open.
pub struct Metered {
    /// Who is asked.
    pub source: Source,
    /// Whose energy.
    pub subject: Subject,
    /// Watts with the model loaded and nothing to do, if they were measured.
    pub idle_w: Option<f64>,
}

impl Metered {
    /// Measures the idle watts, which the model's load must be over for.
    pub fn idle(&mut self, seconds: Option<f64>, context: &Context<'_>) -> anyhow::Result<()> {
        let Some(seconds) = seconds else { return Ok(()) };
        let interrupt = Interrupt::install()?;
        self.idle_w = self.source.idle_w(seconds, &self.subject, &interrupt);
        if interrupt.pressed() {
            return Err(Interrupted.into());
        }
        // From here on a press ends the process, as without this.
        interrupt.set(true);
        context.note(&match self.idle_w {
            Some(watts) => format!("idle, with the model loaded: {watts:.2} W"),
            None => "idle, with the model loaded: unknown watts".to_owned(),
        });
        Ok(())
    }
}

/// Files that will hold the reports; made before anything is measured.
pub struct Outputs {
    report: Option<(PathBuf, File)>,
    csv: Option<(PathBuf, File)>,
    html: Option<(PathBuf, File)>,
    require_energy: Option<Required>,
}

impl MeasureArgs {
    /// Opens the meters; `otherwise` is the subject where none was named.
    pub fn open(&self, otherwise: Subject) -> anyhow::Result<Metered> {
        // The machine says itself what it is: an instance that modules are built for need not be this one.
        let local = LocalArgs { metering: self.metering.clone(), instance: None };
        let meter = self.meter.clone().unwrap_or(otherwise);
        let args = MeterArgs { meter: meter.clone(), local };
        Ok(Metered { source: args.open()?, subject: meter, idle_w: None })
    }

    /// The same of a server at `url` that was not started here.
    pub fn open_for(&self, url: &str) -> anyhow::Result<Metered> {
        if self.meter.is_some() {
            return self.open(Subject::Local);
        }
        let local = LocalArgs { metering: self.metering.clone(), instance: None };
        let (source, subject) = MeterArgs::open_for(local, url)?;
        Ok(Metered { source, subject, idle_w: None })
    }

    /// Whether anything that shows energy was asked for.
    pub fn wants_energy(&self) -> bool {
        self.report.is_some() || self.csv.is_some() || self.html.is_some() || self.require_energy.is_some()
    }

    /// Makes the files that were asked for.
    pub fn outputs(&self) -> anyhow::Result<Outputs> {
        let named: Vec<&PathBuf> = [&self.report, &self.csv, &self.html].into_iter().flatten().collect();
        if let Some(twice) = (1..named.len()).find(|at| named[..*at].contains(&named[*at])) {
            let twice = named[twice].display();
            return Err(UsageError(format!("{twice}: --report, --csv and --html are files of their own")).into());
        }
        let make = |path: &Option<PathBuf>| -> anyhow::Result<Option<(PathBuf, File)>> {
            path.as_ref().map(|path| Ok((path.clone(), create(path)?))).transpose()
        };
        Ok(Outputs {
            report: make(&self.report)?,
            csv: make(&self.csv)?,
            html: make(&self.html)?,
            require_energy: self.require_energy,
        })
    }
}

impl Outputs {
    /// Writes all reports, then looks whether they are as good as was asked.
    pub fn write(self, reports: &[Value]) -> anyhow::Result<()> {
        self.write_all(&[("", reports)], &[])
    }

    /// The same of several sets, each with a name on the page, which begins with these charts.
    pub fn write_all(self, sets: &[(&str, &[Value])], charts: &[Chart]) -> anyhow::Result<()> {
        let all = || sets.iter().flat_map(|(_, reports)| reports.iter());
        if let Some((path, file)) = self.report {
            let mut file = LineFile::new(file);
            let written = all().try_for_each(|report| file.keep(&report.to_string())).and_then(|()| file.flush());
            written.with_context(|| format!("{}: cannot write", path.display()))?;
        }
        let text = |given: Option<(PathBuf, File)>, text: &dyn Fn() -> String| match given {
            Some((path, mut file)) => {
                file.write_all(text().as_bytes()).with_context(|| format!("{}: cannot write", path.display()))
            }
            None => Ok(()),
        };
        text(self.csv, &|| table::csv(&all().cloned().collect::<Vec<_>>()))?;
        text(self.html, &|| plot::page(sets, charts))?;
        self.require_energy.map_or(Ok(()), |required| all().try_for_each(|report| required.check(report)))
    }
}

/// Makes a file, or says which one could not be made.
pub fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("{}: cannot be made", path.display()))
}
