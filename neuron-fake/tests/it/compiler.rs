//! The stand-in compiler: what it takes, what it refuses and how, and that what it makes is loaded and run.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use neuron_fake::neff;
use njoule_hlo::{Builder, DType, Module, encode};
use njoule_neuron_sys::Model;

use crate::child::{child, start};
use crate::modules::{Bound, read, step, sum};

fn compile(dir: &Path, module: &Module, flags: &[&str], environment: &[(&str, &str)]) -> Output {
    std::fs::write(dir.join("module.pb"), encode(module)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_neuronx-cc-fake"));
    command.current_dir(dir).args(["compile", "module.pb", "--framework", "XLA", "--output", "out.neff"]);
    command.args(flags).envs(environment.iter().copied()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_it_compiles_is_loaded_and_run() {
    child(&[], || {
        let dir = tempfile::tempdir().unwrap();
        let flags = ["--target=inf2", "--model-type", "transformer", "--auto-cast=none", "-O2", "--logfile", "log.txt"];
        let output = compile(dir.path(), &step(), &flags, &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let log = std::fs::read_to_string(dir.path().join("log.txt")).unwrap();
        assert!(log.contains("FAKE") && log.contains("wrote out.neff"), "{log}");
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let neff = std::fs::read(dir.path().join("out.neff")).unwrap();
        let model = std::sync::Arc::new(Model::load(&runtime, core, &neff, "step").unwrap());
        let mut b = Bound::of(&runtime, core, model);
        b.run.execute().unwrap();
        assert_eq!(read::<f32>(&b.cache)[3], 3.0);
    });
}

#[test]
fn ranks_target_and_packing_are_in_the_neff() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--target", "trn2", "--lnc", "2", "--enable-fast-loading-neuron-binaries"];
    assert!(compile(dir.path(), &sum(8), &flags, &[]).status.success());
    let bytes = std::fs::read(dir.path().join("out.neff")).unwrap();
    assert_eq!(&bytes[1024 + 257..][..5], b"ustar");
    let neff = neff::read(&bytes).unwrap();
    assert_eq!((neff.sidecar.world, neff.sidecar.target.as_str(), neff.header.lnc), (8, "trn2", 2));
}

#[test]
fn refusals_have_the_compilers_codes() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = Builder::new("long");
    let x = b.parameter("x", DType::S64, &[2]);
    let y = b.add(x, x);
    let long = b.finish(&[y]);
    type Case<'a> = (&'a Module, &'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);
    let cases: [Case<'_>; 5] = [
        (&long, &["--target=inf2"], &[], 70, "[NCC_ESFH002]"),
        (&step(), &["--target=inf2", "--lnc=2"], &[], 70, "[NCC_EARG001]"),
        (
            &step(),
            &["--target=inf2"],
            &[("NJOULE_FAKE_CC_REFUSE", "sort,scatter")],
            70,
            "[NCC_EVRF001] operator scatter",
        ),
        (&step(), &["--target=inf2", "--frobnicate=1"], &[], 2, "unrecognized arguments: --frobnicate=1"),
        (&step(), &["--target=inf3"], &[], 2, "invalid choice: 'inf3'"),
    ];
    for (module, flags, environment, code, text) in cases {
        let output = compile(dir.path(), module, flags, environment);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(text), "{}", stderr(&output));
        assert!(!dir.path().join("out.neff").exists());
    }
    std::fs::write(dir.path().join("module.pb"), b"\xff\xff").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_neuronx-cc-fake"));
    command.current_dir(dir.path()).args(["compile", "module.pb", "--framework=XLA", "--target=inf2", "--output=o"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(70), "{}", stderr(&output));
    assert!(stderr(&output).contains("[NCC_EVRF064] not an HloModuleProto"), "{}", stderr(&output));
}

#[test]
fn it_can_be_slow_crash_and_be_killed() {
    let dir = tempfile::tempdir().unwrap();
    let compile = |environment: &[(&str, &str)]| compile(dir.path(), &step(), &["--target=inf2"], environment);
    let start = Instant::now();
    assert!(compile(&[("NJOULE_FAKE_CC_DELAY", "80ms")]).status.success());
    assert!(start.elapsed() >= Duration::from_millis(80));
    assert_eq!(compile(&[("NJOULE_FAKE_CC_CRASH", "1")]).status.signal(), Some(6));
    assert_eq!(compile(&[("NJOULE_FAKE_CC_KILL", "1")]).status.signal(), Some(9));
    let third = [("NJOULE_FAKE_CC_KILL", "3"), ("NJOULE_FAKE_CC_COUNTER", "count")];
    let signals: Vec<_> = (0..4).map(|_| compile(&third).status.signal()).collect();
    assert_eq!(signals, [None, None, Some(9), None]);
}

#[test]
fn it_says_what_it_is_and_lists_operators() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neuronx-cc-fake"));
        String::from_utf8(command.args(arguments).output().unwrap().stdout).unwrap()
    };
    assert!(run(&["--version"]).contains("FAKE"));
    let operators = run(&["list-operators", "--framework", "XLA"]);
    assert!(operators.lines().any(|l| l == "dot") && operators.lines().any(|l| l == "all-reduce"), "{operators}");
}
