//! A shell script stands in for the compiler: what counts here is how it is called and what becomes of its results.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::*;

/// A compiler that runs `body` for `compile`; `$out` is where the NEFF goes, `$mod` the module.
struct Standin {
    dir: tempfile::TempDir,
    compiler: Compiler,
    cache: NeffCache,
}

impl Standin {
    fn new(body: &str) -> Standin {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("neuronx-cc");
        fs::write(dir.path().join("good.neff"), crate::backend::neuron::neff::fixture(&[], 1)).unwrap();
        let script = format!(
            "#!/bin/sh\nhere=$(dirname \"$0\")\n[ \"$1\" = --version ] && {{ echo 'NeuronX Compiler version 2.99.1+ab'; exit 0; }}\n\
             echo \"$@\" >> \"$here/calls\"\nmod=$2\nwhile [ $# -gt 1 ]; do [ \"$1\" = --output ] && out=$2; shift; done\n{body}\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let compiler = Compiler::at(&path).unwrap();
        let cache = NeffCache::new(&dir.path().join("cache"));
        Standin { dir, compiler, cache }
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn compile(&self, units: &[Unit], limits: Limits<'_>) -> Result<Vec<Compiled>, CompileError> {
        self.compiler.compile(units, &self.cache, limits, &|_| ())
    }
}

fn unit(name: &str) -> Unit {
    Unit { name: name.to_owned(), hlo: name.as_bytes().to_vec(), settings: settings() }
}

fn settings() -> Settings {
    Settings { target: Target::Trn2, opt_level: 2, lnc: Some(1), extra: vec!["--x".to_owned()] }
}

static NEVER: AtomicBool = AtomicBool::new(false);

fn limits() -> Limits<'static> {
    Limits { jobs: Some(2), memory: None, deadline: None, cancelled: &NEVER }
}

const COPY: &str = "cp \"$here/good.neff\" \"$out\"";

#[test]
fn a_module_is_compiled_once_and_found_afterwards_until_anything_of_it_changes() {
    let standin = Standin::new(COPY);
    assert_eq!(standin.compiler.version(), "2.99.1+ab");
    let first = standin.compile(&[unit("a"), unit("b")], limits()).unwrap();
    assert!(first.iter().all(|c| !c.cached && c.neff.is_file()));
    let mut calls = standin.calls();
    calls.sort();
    assert_eq!(
        calls[0],
        "compile module.hlo.pb --framework XLA --target trn2 --model-type transformer --auto-cast=none -O2 --lnc 1 \
         --verbose warning --x --logfile log-neuron-cc.txt --output module.neff"
    );
    let again = standin.compile(&[unit("a"), unit("b")], limits()).unwrap();
    assert!(again.iter().all(|c| c.cached));
    assert_eq!(again[0].record, first[0].record);
    assert_eq!(standin.calls().len(), 2);
    let changes = [
        Settings { target: Target::Inf2, ..settings() },
        Settings { opt_level: 1, ..settings() },
        Settings { lnc: Some(2), ..settings() },
        Settings { extra: vec![], ..settings() },
    ];
    for settings in changes {
        let compiled = standin.compile(&[Unit { settings, ..unit("a") }], limits()).unwrap();
        assert!(!compiled[0].cached);
    }
    let other = Standin { compiler: Compiler { banner: "2.99.2".to_owned(), ..standin.compiler.clone() }, ..standin };
    assert!(!other.compile(&[unit("a")], limits()).unwrap()[0].cached, "another compiler");
}

#[test]
fn a_failure_names_code_and_advice_and_is_not_remembered() {
    let standin = Standin::new(
        "[ -e \"$here/fixed\" ] || { echo 'ERROR: NCC_EOOM001 needs 20 GB' >&2; exit 70; }\ncp \"$here/good.neff\" \"$out\"",
    );
    let error = standin.compile(&[unit("a")], limits()).unwrap_err();
    let CompileError::Refused { exit: 70, code, log, .. } = &error else { panic!("{error}") };
    assert_eq!(code.as_deref(), Some("EOOM001"));
    assert!(fs::read_to_string(log).unwrap().contains("needs 20 GB"));
    let text = error.to_string();
    assert!(
        text.contains("module a") && text.contains("NCC_EOOM001 needs 20 GB") && text.contains("fewer rows"),
        "{text}"
    );
    fs::write(standin.dir.path().join("fixed"), "").unwrap();
    assert!(!standin.compile(&[unit("a")], limits()).unwrap()[0].cached);
}

#[test]
fn a_kill_by_the_kernel_is_told_with_the_memory_taken_and_tried_again_alone_only_if_others_ran() {
    let standin = Standin::new("sleep 0.3\nkill -9 $$");
    let error = standin.compile(&[unit("a")], limits()).unwrap_err();
    let CompileError::Killed { signal: 9, peak, .. } = error else { panic!("{error}") };
    assert!(peak > 0);
    assert!(error.to_string().contains("memory ran out"), "{error}");
    assert_eq!(standin.calls().len(), 1);
    // `b` outlives the kill of `a` by more than it takes to notice it; then `a` passes.
    let body = format!(
        "case $(cat $mod) in\na) [ -e \"$here/killed\" ] || {{ while [ ! -e \"$here/running\" ]; do :; done; touch \"$here/killed\"; kill -9 $$; }};;\n\
         b) touch \"$here/running\"; while [ ! -e \"$here/killed\" ]; do :; done; sleep 2;;\nesac\n{COPY}"
    );
    let standin = Standin::new(&body);
    let again = Mutex::new(vec![]);
    let on_event = |event: Event<'_>| {
        if let Event::Again(unit) = event {
            again.lock().unwrap().push(unit.name.clone());
        }
    };
    standin.compiler.compile(&[unit("a"), unit("b")], &standin.cache, limits(), &on_event).unwrap();
    assert_eq!(*again.lock().unwrap(), ["a"]);
}

#[test]
fn success_without_a_neff_or_with_a_broken_one_is_an_error_and_leaves_no_entry() {
    for body in ["exit 0", "echo junk > \"$out\""] {
        let standin = Standin::new(body);
        let error = standin.compile(&[unit("a")], limits()).unwrap_err();
        assert!(matches!(error, CompileError::Output { .. }), "{error}");
        let text = with_causes(&error);
        let wanted = if body == "exit 0" { "there is none" } else { "no room for a header" };
        assert!(text.matches(wanted).count() == 1 && !text.contains(".tmp-"), "{text}");
        let key = Key::new(b"a", &settings(), &standin.compiler);
        assert!(standin.cache.find(key).is_none());
    }
}

/// An error with its causes, as it is printed.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[test]
fn a_compiler_whose_worker_was_killed_or_that_crashed_is_told_so() {
    for body in
        ["echo Killed; exit 1", "echo \"$0: line 9: 4711 Killed   python3 -m neuronxcc\" >&2; exit 1", "exit 137"]
    {
        let standin = Standin::new(&format!("sleep 0.3\n{body}"));
        let error = standin.compile(&[unit("a")], limits()).unwrap_err();
        let CompileError::Killed { signal: 9, peak, .. } = error else { panic!("{body}: {error}") };
        assert!(peak > 0 && error.to_string().contains("memory ran out"), "{error}");
    }
    let coded = Standin::new("echo 'Killed'; echo 'NCC_EVRF063: no such scatter'; exit 1");
    let error = coded.compile(&[unit("a")], limits()).unwrap_err();
    assert!(error.to_string().contains("with EVRF063") && error.to_string().contains("please report"), "{error}");
    let crashed = Standin::new("exit 139").compile(&[unit("a")], limits()).unwrap_err();
    assert!(crashed.to_string().contains("was killed by signal 11"), "{crashed}");
}

#[test]
fn what_is_compiled_anew_is_not_taken_from_the_cache_and_only_once() {
    let standin = Standin::new(COPY);
    standin.compile(&[unit("a")], limits()).unwrap();
    // File systems tell times in steps.
    std::thread::sleep(Duration::from_millis(50));
    let anew = NeffCache::anew(standin.cache.root());
    let cached =
        |cache: &NeffCache| standin.compiler.compile(&[unit("a")], cache, limits(), &|_| ()).unwrap()[0].cached;
    assert!(!cached(&anew));
    assert!(cached(&NeffCache::new(standin.cache.root())));
    assert_eq!(standin.calls().len(), 2);
}

/// Waits till the process whose number `file` holds is gone, or a zombie that nobody has waited for.
fn ends(file: &Path) {
    let pid = fs::read_to_string(file).unwrap();
    let started = Instant::now();
    while fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(started.elapsed() < Duration::from_secs(60), "{} lives on", file.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Leaves a child and writes its number, whole or not at all.
const WORKER: &str = "sleep 1000 & echo $! > \"$here/worker.part\"; mv \"$here/worker.part\" \"$here/worker\"";

#[test]
fn a_compile_that_takes_too_long_is_ended_with_all_of_its_children() {
    let standin = Standin::new(&format!("{WORKER}; wait"));
    let worker = standin.dir.path().join("worker");
    // Longer where a loaded machine has not come so far.
    for millis in [100, 500, 2500, 12500, 60000] {
        let limits = Limits { deadline: Some(Duration::from_millis(millis)), ..limits() };
        let error = standin.compile(&[unit("a")], limits).unwrap_err();
        assert!(matches!(error, CompileError::Deadline { .. }), "{error}");
        if worker.exists() {
            break;
        }
    }
    ends(&worker);
}

#[test]
fn a_stop_kills_what_runs_and_what_was_done_is_found_by_the_next_build() {
    let standin = Standin::new(&format!("[ $(cat $mod) = b ] && {{ touch \"$here/b\"; exec sleep 1000; }}\n{COPY}"));
    let cancelled = AtomicBool::new(false);
    let limits = Limits { jobs: Some(1), cancelled: &cancelled, ..limits() };
    let on_event = |event: Event<'_>| {
        if let Event::Started(unit) = event
            && unit.name == "b"
        {
            cancelled.store(true, Ordering::Relaxed);
        }
    };
    let units = [unit("a"), unit("b"), unit("c")];
    let error = standin.compiler.compile(&units, &standin.cache, limits, &on_event).unwrap_err();
    assert!(matches!(error, CompileError::Cancelled), "{error}");
    let found = |name: &str| standin.cache.find(Key::new(name.as_bytes(), &settings(), &standin.compiler)).is_some();
    assert_eq!(["a", "b", "c"].map(found), [true, false, false]);
}

#[test]
fn memory_bounds_how_many_run_at_once_and_one_always_does() {
    let body = format!("mkdir \"$here/busy\" || exit 3\nsleep 0.05\nrmdir \"$here/busy\"\n{COPY}");
    let standin = Standin::new(&body);
    let units: Vec<Unit> = ["a", "b", "c"].map(unit).to_vec();
    let tight = Limits { jobs: Some(3), memory: Some(1), ..limits() };
    assert_eq!(standin.compile(&units, tight).unwrap().len(), 3);
}

#[test]
fn without_a_compiler_the_error_says_how_to_get_one() {
    assert_eq!(find(Some("/x/cc".into()), None).unwrap(), Path::new("/x/cc"));
    let tried = find(None, Some("/nowhere".into())).unwrap_err();
    let text = CompileError::NotFound { tried }.to_string();
    assert!(text.contains("pip install neuronx-cc") && text.contains("NJOULE_NEURONX_CC"), "{text}");
    assert!(matches!(Compiler::at(Path::new("/bin/false")), Err(CompileError::Unusable { .. })));
    let text = Compiler::at(Path::new("/no/such/neuronx-cc")).unwrap_err().to_string();
    assert!(text.contains("/no/such/neuronx-cc") && text.contains("pip install neuronx-cc"), "{text}");
}

#[test]
fn a_program_that_does_not_answer_is_given_up_and_ended_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let path = script(dir.path(), &format!("{WORKER}; wait"));
    // Longer where a loaded machine has not come so far.
    for patience in [100, 500, 2500, 12500, 60000].map(Duration::from_millis) {
        let why = child::said(&path, &["--version"], patience).unwrap_err();
        assert!(why.contains(&format!("did not answer --version within {patience:?}")), "{why}");
        if dir.path().join("worker").exists() {
            break;
        }
    }
    ends(&dir.path().join("worker"));
    let (status, said) = child::said(Path::new("/bin/echo"), &["here"], AMPLE).unwrap();
    assert!(status.success() && said == ["here\n", ""]);
}

fn script(dir: &Path, body: &str) -> PathBuf {
    let path = dir.join("program");
    fs::write(&path, format!("#!/bin/sh\nhere=$(dirname \"$0\")\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

const AMPLE: Duration = Duration::from_secs(100);

#[test]
fn what_a_program_leaves_behind_with_its_pipes_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    // The child keeps both pipes open and says nothing.
    let path = script(dir.path(), &format!("{WORKER}; echo here; exit 3"));
    let started = Instant::now();
    let (status, said) = child::said(&path, &[], AMPLE).unwrap();
    assert!(started.elapsed() < AMPLE);
    assert_eq!((status.code(), said), (Some(3), ["here\n".to_owned(), String::new()]));
    ends(&dir.path().join("worker"));
}

#[test]
fn of_a_program_that_says_more_than_a_pipe_holds_the_beginning_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = script(dir.path(), "head -c 300000 /dev/zero | tr '\\0' x; echo end >&2");
    let (status, [out, err]) = child::said(&path, &[], AMPLE).unwrap();
    assert!(status.success() && out == "x".repeat(1 << 16), "{status}: {} bytes", out.len());
    assert_eq!(err, "end\n");
}
