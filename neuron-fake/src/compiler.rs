//! `neuronx-cc-fake`: takes the command line of neuronx-cc, verifies the module for the target, and packs it as a NEFF.
//!
//! Exit codes: 0 done; 2 a command line that argparse would refuse; 70 a module that is refused, with an `NCC_…` code on
//! stderr and in the log; 1 a file that cannot be read or written. A pass is no promise that the compiler takes the module.
//!
//! Switches (environment):
//! * `NJOULE_FAKE_CC_REFUSE`: opcodes and custom-call targets that "are not supported", separated by commas: exit 70.
//! * `NJOULE_FAKE_CC_DELAY`: how long a compilation takes, such as `2s`.
//! * `NJOULE_FAKE_CC_CRASH`, `NJOULE_FAKE_CC_KILL`: abort, or be killed by signal 9 as for want of memory. `1` for each
//!   compilation; a larger `n` for the nth alone, counted in the file that `NJOULE_FAKE_CC_COUNTER` names.
//! * `NJOULE_FAKE_CC_NEFF_VERSION`: `3.0` makes NEFFs that the stand-in library refuses with status 10.

mod args;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use njoule_hlo::op::{OPCODES, Op};
use njoule_hlo::{DType, Module, Target, VerifyError, decode, verify};

pub use args::{Arguments, Command, UsageError};

use crate::env::{self, BadVariable};
use crate::neff::{self, Packing, Sidecar};

/// What `--version` says: never to be taken for the compiler's own.
pub const VERSION: &str = "NeuronX Compiler version 2.99.0+FAKE (neuronx-cc-fake, not a compiler)";

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exit(u8),
    /// By SIGABRT.
    Abort,
    /// By SIGKILL.
    Kill,
}

/// Runs the command line (without the program's name); writes to stdout and stderr.
pub fn run(arguments: &[String]) -> End {
    match args::parse(arguments) {
        Err(error) => {
            eprintln!("usage: neuronx-cc [-h] [--version] {{compile,list-operators}} ...\nneuronx-cc: error: {error}");
            End::Exit(2)
        }
        Ok(Command::Version) => {
            println!("{VERSION}");
            End::Exit(0)
        }
        // What the evaluator knows: the compiler's own list is not public.
        Ok(Command::ListOperators) => {
            let refused = match refused() {
                Ok(refused) => refused,
                Err(error) => return complain(&error.to_string(), None, 2),
            };
            OPCODES.iter().filter(|o| !refused.contains(**o)).for_each(|o| println!("{o}"));
            End::Exit(0)
        }
        Ok(Command::Compile(arguments)) => compile(&arguments),
    }
}

fn compile(arguments: &Arguments) -> End {
    let log = arguments.logfile.as_deref();
    let switches = match Switches::from_env() {
        Ok(switches) => switches,
        Err(error) => return complain(&error.to_string(), log, 2),
    };
    note(log, &format!("INFO: {VERSION}\nINFO: {}", arguments.line));
    std::thread::sleep(switches.delay);
    if switches.kill {
        return End::Kill;
    }
    if switches.crash {
        note(log, "ERROR: internal compiler error");
        eprintln!("neuronx-cc-fake: internal compiler error");
        return End::Abort;
    }
    let bytes = match std::fs::read(&arguments.module) {
        Ok(bytes) => bytes,
        Err(error) => return complain(&format!("{}: {error}", arguments.module.display()), log, 1),
    };
    let module = match decode(&bytes) {
        Ok(module) => module,
        Err(error) => return complain(&format!("[NCC_EVRF064] not an HloModuleProto: {error}"), log, REFUSED),
    };
    if let Err((code, text)) = accept(&module, arguments, &switches.refused) {
        return complain(&format!("[NCC_{code}] {text}"), log, REFUSED);
    }
    let sidecar = Sidecar::of(&module, arguments.target, arguments.lnc);
    let packing = Packing { version: switches.neff_version, plain: arguments.fast_loading };
    // Verified: every parameter is an array.
    let packed = sidecar.ok_or_else(|| "a parameter is no array".to_owned());
    let packed = packed.and_then(|s| neff::write(&module, &s, packing).map_err(|e| e.to_string()));
    let written =
        packed.and_then(|bytes| write(&arguments.output, &bytes).map_err(|e| e.to_string()).map(|()| bytes.len()));
    match written {
        Ok(len) => {
            note(log, &format!("INFO: wrote {}, {len} bytes", arguments.output.display()));
            println!("Compiler status PASS");
            End::Exit(0)
        }
        Err(error) => complain(&format!("{}: {error}", arguments.output.display()), log, 1),
    }
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::write(path, bytes)
}

/// The module for the target, or the code and the words of a refusal.
fn accept(module: &Module, arguments: &Arguments, refused: &BTreeSet<String>) -> Result<(), (&'static str, String)> {
    let core_v2 = matches!(arguments.target, Target::Inf2 | Target::Trn1);
    if arguments.lnc != 1 && core_v2 {
        return Err(("EARG001", format!("--lnc {} on {}: it has only 1", arguments.lnc, arguments.target)));
    }
    for i in module.computations.iter().flat_map(|c| &c.instructions) {
        let name = match &i.op {
            Op::CustomCall(call) => call.target.as_str(),
            op => op.name(),
        };
        if refused.contains(name) {
            return Err(("EVRF001", format!("operator {name} is not supported: instruction `{}` {}", i.name, i.scope)));
        }
    }
    verify(module, arguments.target).map_err(|error| (code(&error), error.to_string()))
}

/// The page of aws-neuron-sdk `compiler/error-codes/` that the rule is from.
fn code(error: &VerifyError) -> &'static str {
    match error {
        VerifyError::CustomCall { .. } => "EVRF015",
        VerifyError::TopKLen { .. } => "EVRF013",
        VerifyError::Type { dtype: DType::F8E4M3FN, .. } => "EVRF051",
        VerifyError::Type { .. } => "ESFH002",
        VerifyError::IntegerCollective { .. } => "EVRF061",
        VerifyError::IntegerScatter { .. } => "EVRF060",
        VerifyError::Index { .. } => "EVRF031",
        VerifyError::Instructions { .. } => "EBVF030",
        VerifyError::Size { .. } => "EXTP004",
        _ => "EVRF064",
    }
}

struct Switches {
    refused: BTreeSet<String>,
    delay: Duration,
    crash: bool,
    kill: bool,
    neff_version: (u64, u64),
}

impl Switches {
    fn from_env() -> Result<Switches, BadVariable> {
        let whole = |v: &str| v.parse::<u64>();
        let (crash, kill) = (env::get("NJOULE_FAKE_CC_CRASH", whole)?, env::get("NJOULE_FAKE_CC_KILL", whole)?);
        let count = if crash.or(kill).is_some_and(|n| n > 1) { counted()? } else { 1 };
        let now = |n: Option<u64>| n.is_some_and(|n| n == 1 || n == count);
        let version = |v: &str| {
            let (major, minor) = v.split_once('.').ok_or("not major.minor")?;
            let number = |n: &str| n.parse::<u64>().map_err(|_| "not major.minor");
            Ok::<_, &str>((number(major)?, number(minor)?))
        };
        Ok(Switches {
            refused: refused()?,
            delay: env::get("NJOULE_FAKE_CC_DELAY", env::duration)?.unwrap_or_default(),
            crash: now(crash),
            kill: now(kill),
            neff_version: env::get("NJOULE_FAKE_CC_NEFF_VERSION", version)?.unwrap_or(neff::VERSION),
        })
    }
}

fn refused() -> Result<BTreeSet<String>, BadVariable> {
    let list = |v: &str| Ok::<_, String>(v.split(',').map(|name| name.trim().to_owned()).collect());
    Ok(env::get("NJOULE_FAKE_CC_REFUSE", list)?.unwrap_or_default())
}

/// The number of this compilation, by a file that holds as many bytes: appending one is atomic.
fn counted() -> Result<u64, BadVariable> {
    let count = |path: &str| {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        std::io::Write::write_all(&mut file, b".")?;
        file.metadata().map(|m| m.len())
    };
    Ok(env::get("NJOULE_FAKE_CC_COUNTER", |path| count(path).map_err(|e: std::io::Error| e))?.unwrap_or(1))
}

fn complain(text: &str, log: Option<&Path>, exit: u8) -> End {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = write!(line, "ERROR: {text}");
    note(log, &line);
    eprintln!("{line}");
    End::Exit(exit)
}

/// Adds to the log; a log that cannot be written is said on stderr and stops nothing.
fn note(log: Option<&Path>, text: &str) {
    let Some(path) = log else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| std::io::Write::write_all(&mut file, format!("{text}\n").as_bytes())) {
        eprintln!("WARNING: {}: {error}", path.display());
    }
}

/// What a refused module ends with: EX_SOFTWARE of sysexits.h.
const REFUSED: u8 = 70;
