//! Machines in every state, as trees of files with a library beside them: what is said first, and the verdict.

#[path = "../../../../neuron-sys/src/sysfs/tests/tree.rs"]
mod tree;

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use self::tree::{INF2, Kind, TRN1, TRN2, Tree, device_dir};
use super::facts::Facts;
use super::library::{Found, Library};
use super::report::Report;
use super::verdict::{Finding, Severity, Verdict, judge};
use crate::fetch::Env;

struct Machine {
    dir: TempDir,
    variables: Vec<(&'static str, String)>,
    library: Option<Found>,
    real: bool,
}

impl Machine {
    fn empty() -> Machine {
        Machine { dir: TempDir::new().unwrap(), variables: vec![], library: None, real: false }
    }

    /// Complete, of this kind, with libnrt and driver of SDK 2.32.
    fn of(kind: &Kind, devices: u32) -> Machine {
        let machine = Machine { library: Some(found((2, 34, 10), "")), ..Machine::empty() };
        machine.tree().machine(kind, devices, "2.30.2.0");
        machine.tree().write("opt/aws/neuron/lib/libnccom.so.2", "");
        machine.tree().write("opt/aws/neuron/bin/neuron-ls", "");
        machine
    }

    fn tree(&self) -> Tree<'_> {
        Tree(self.dir.path())
    }

    fn remove(&self, path: &str) {
        let path = self.dir.path().join(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    fn facts(self) -> (Facts, TempDir) {
        let root = ("NJOULE_SYSFS_ROOT", self.dir.path().to_str().unwrap().to_owned());
        let env = Env::from_pairs(self.variables.into_iter().chain([root]));
        let mut facts = Facts::gather(&env, false);
        facts.library = Library { found: self.library, error: Some("none".into()), tried: vec![], named: false };
        if self.real {
            facts.root = njoule_neuron_sys::sysfs::Root::at("/");
            facts.nodes.iter_mut().for_each(|node| node.is_device = true);
        }
        (facts, self.dir)
    }

    fn judged(self) -> (Verdict, Vec<Finding>) {
        judge(&self.facts().0)
    }
}

fn found(version: (u64, u64, u64), detail: &str) -> Found {
    Found {
        path: "libnrt.so.1".into(),
        file: None,
        origin: "the loader's search path",
        version,
        version_text: format!("{}.{}.{}.0", version.0, version.1, version.2),
        detail: detail.into(),
        stand_in: super::library::is_stand_in(detail),
        schedules: true,
        sleeps: true,
        memory_stats: true,
        cores: Ok((2, 2)),
        started: None,
    }
}

/// The first finding that is broken or doubtful, and how bad it is.
fn first(findings: &[Finding]) -> (Severity, &'static str, String) {
    let first = findings.iter().find(|f| f.severity != Severity::Note).expect("something to fix");
    (first.severity, first.about, format!("{} | {}", first.what, first.fix))
}

#[test]
fn a_machine_with_nothing_is_for_the_cpu_and_that_is_fine() {
    let (verdict, findings) = Machine::empty().judged();
    assert_eq!(verdict, Verdict::CpuOnly);
    assert!(findings.iter().all(|finding| finding.severity == Severity::Note), "{findings:?}");
    let machine = Machine { variables: vec![("NEURON_RT_NUM_CORES", "many".into())], ..Machine::empty() };
    assert_eq!(machine.judged().0, Verdict::CpuOnly, "nobody reads that variable here");
}

#[test]
fn complete_machines_serve_and_only_a_missing_compiler_is_doubtful() {
    for (kind, devices) in [(INF2, 1), (TRN1, 1), (TRN2, 16)] {
        let (verdict, findings) = Machine { real: true, ..Machine::of(&kind, devices) }.judged();
        assert_eq!(verdict, Verdict::Serves, "{findings:?}");
        let (severity, about, words) = first(&findings);
        assert_eq!((severity, about), (Severity::Doubtful, "compiler"), "{words}");
        assert!(words.contains("pip install"), "{words}");
    }
}

#[test]
fn a_tree_or_a_stand_in_is_never_called_a_machine_that_serves() {
    assert_eq!(Machine::of(&INF2, 1).judged().0, Verdict::StandIn, "a tree");
    for detail in ["FAKE libnrt of njoule", "stand-in"] {
        let machine = Machine { real: true, library: Some(found((2, 34, 10), detail)), ..Machine::of(&INF2, 1) };
        let (facts, _dir) = machine.facts();
        let (verdict, findings) = judge(&facts);
        assert_eq!(verdict, Verdict::StandIn, "{detail}");
        let mut text = vec![];
        Report { facts: &facts, verdict, findings: &findings }.print(&mut text).unwrap();
        assert!(String::from_utf8(text).unwrap().contains("a STAND-IN, not AWS's library"));
    }
}

#[test]
fn the_driver_comes_before_all_that_needs_it() {
    for (installed, words) in [(true, "sudo modprobe neuron"), (false, "aws-neuronx-dkms")] {
        let machine = Machine { library: None, ..Machine::of(&INF2, 1) };
        for gone in ["sys/module", "proc/modules", "sys/devices/virtual/neuron_device", "dev/neuron0"] {
            machine.remove(gone);
        }
        if !installed {
            machine.remove("usr/src");
        }
        let (verdict, findings) = machine.judged();
        let (severity, about, told) = first(&findings);
        assert_eq!((verdict, severity, about), (Verdict::Broken, Severity::Broken, "driver"));
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn an_instance_type_alone_says_that_there_should_be_devices() {
    let machine = Machine::empty();
    machine.tree().write("sys/devices/virtual/dmi/id/product_name", "inf2.8xlarge\n");
    let (verdict, findings) = machine.judged();
    assert_eq!((verdict, first(&findings).1), (Verdict::Broken, "driver"));
}

#[test]
fn a_container_without_nodes_is_told_to_be_given_them() {
    let machine = Machine::of(&TRN1, 2);
    machine.remove("dev");
    let (verdict, findings) = machine.judged();
    assert_eq!(verdict, Verdict::Broken);
    assert!(first(&findings).2.contains("--device=/dev/neuron0"));
    let machine = Machine::of(&TRN1, 2);
    machine.remove("dev/neuron1");
    assert_eq!(machine.judged().0, Verdict::StandIn, "one of two is enough");
}

#[test]
fn without_the_library_its_package_is_named() {
    let (verdict, findings) = Machine { library: None, ..Machine::of(&INF2, 1) }.judged();
    assert_eq!((verdict, first(&findings).1), (Verdict::Broken, "library"));
    assert!(first(&findings).2.contains("aws-neuronx-runtime-lib"));
}

#[test]
fn versions_that_do_not_go_together_are_broken() {
    let machine = Machine { library: Some(found((2, 32, 31), "")), ..Machine::of(&INF2, 1) };
    let (verdict, findings) = machine.judged();
    assert_eq!((verdict, first(&findings).1), (Verdict::Broken, "versions"));
    let machine = Machine::of(&INF2, 1);
    machine.tree().write("sys/module/neuron/version", "2.26.1.0\n");
    let (verdict, findings) = machine.judged();
    assert_eq!((verdict, first(&findings).1), (Verdict::Broken, "versions"));
    let reload = findings.iter().find(|f| f.about == "driver").unwrap();
    assert!(reload.what.contains("2.26.1.0 is loaded, but 2.30.2.0 is installed"), "{}", reload.what);
}

#[test]
fn broken_memory_is_broken_and_a_repairable_one_names_the_repair() {
    for (counter, words) in [
        ("mem_ecc_uncorrected", "replace the instance"),
        ("sram_ecc_uncorrected", "replace the instance"),
        ("mem_ecc_repairable_uncorrected", "sudo rmmod neuron"),
    ] {
        let machine = Machine::of(&INF2, 1);
        machine.tree().counter(&format!("{}/stats/hardware/{counter}", device_dir(0)), 1);
        let (verdict, findings) = machine.judged();
        assert_eq!(verdict, Verdict::Broken, "{counter}");
        assert!(first(&findings).2.contains(words), "{findings:?}");
    }
}

#[test]
fn counters_logs_owners_and_health_are_told_and_stop_nobody() {
    let machine = Machine::of(&TRN2, 1);
    let tree = machine.tree();
    let core = format!("{}/neuron_core3/stats/status", device_dir(0));
    tree.counter(&format!("{core}/hw_hbm_ue_error"), 4);
    tree.counter(&format!("{core}/exec_bad_input"), 9);
    tree.write(&format!("{}/stats/hardware/health_status/unhealthy_components", device_dir(0)), "pe0\n");
    tree.write("var/log/kern.log", "x NEURON_HW_ERR=DMA_ABORT nd-id=0 nc-id=3 action=TERMINATE_INSTANCE\n");
    tree.write("proc/77/comm", "vllm\n");
    fs::create_dir_all(machine.dir.path().join("proc/77/fd")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/neuron0", machine.dir.path().join("proc/77/fd/5")).unwrap();
    let (verdict, findings) = machine.judged();
    assert_eq!(verdict, Verdict::StandIn);
    let said = |severity, words: &str| {
        findings.iter().any(|f| f.severity == severity && format!("{} {}", f.what, f.fix).contains(words))
    };
    assert!(said(Severity::Doubtful, "core 3: 4 calls ended with hw_hbm_ue_error"));
    assert!(said(Severity::Note, "9 calls ended with exec_bad_input"));
    assert!(said(Severity::Doubtful, "DMA_ABORT on neuron0 core 3 the driver advises TERMINATE_INSTANCE"));
    assert!(said(Severity::Doubtful, "unhealthy_components is \"pe0\""));
    #[cfg(unix)]
    assert!(said(Severity::Doubtful, "process 77 (vllm) has neuron0 open"));
}

#[test]
fn a_variable_that_stops_the_runtime_is_the_first_to_fix() {
    let machine = Machine { variables: vec![("NEURON_RT_VISIBLE_CORES", "0,5".into())], ..Machine::of(&INF2, 1) };
    let (verdict, findings) = machine.judged();
    assert_eq!((verdict, first(&findings).1), (Verdict::Broken, "environment"));
}

#[test]
fn the_report_says_verdict_and_first_fix_at_its_top() {
    let (facts, _dir) = Machine { library: None, ..Machine::of(&TRN1, 2) }.facts();
    let (verdict, findings) = judge(&facts);
    let report = Report { facts: &facts, verdict, findings: &findings };
    let mut text = vec![];
    report.print(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(verdict.words()));
    assert!(lines.next().unwrap().starts_with("first to fix: "));
    assert!(lines.next().unwrap().contains("do: sudo apt-get install aws-neuronx-runtime-lib"));
    assert_eq!(lines.next(), Some("note: nothing of njoule has run on Neuron hardware yet"));
    assert!(text.contains("neuron1       Trainium1, 2 physical cores, 2 logical, 32 GiB, connected with 0"), "{text}");
    let json = report.json();
    assert_eq!(json["verdict"], "broken");
    assert_eq!(json["devices"][1]["chip"], "Trainium1");
    assert_eq!(json["devices"][1]["cores"][0]["used_bytes"], 100 << 20);
    assert_eq!(json["devices"][0]["power"]["mean_percent"], 12.75);
    assert_eq!(json["first_fix"]["about"], "library");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever the files hold, there is a report.
    #[test]
    fn any_tree_has_a_report(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..60)), 1..10),
    ) {
        let machine = Machine::of(&TRN1, 1);
        let mut files = vec![machine.dir.path().to_path_buf()];
        let mut at = 0;
        while at < files.len() {
            if files[at].is_dir() {
                let inside: Vec<_> = fs::read_dir(&files[at]).unwrap().map(|entry| entry.unwrap().path()).collect();
                files.extend(inside);
            }
            at += 1;
        }
        files.retain(|path| path.is_file());
        files.sort();
        for (at, bytes) in damage {
            fs::write(at.get(&files), bytes).unwrap();
        }
        let (facts, _dir) = machine.facts();
        let (verdict, findings) = judge(&facts);
        let report = Report { facts: &facts, verdict, findings: &findings };
        let mut text = vec![];
        report.print(&mut text).unwrap();
        prop_assert!(text.len() < 1 << 16);
        prop_assert!(report.json().is_object());
        prop_assert!(verdict != Verdict::Serves && verdict != Verdict::CpuOnly);
    }
}
