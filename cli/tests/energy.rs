//! `njoule energy` on made-up machines: what scripts see.

#[path = "energy/late.rs"]
mod late;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use support::{Ran, njoule, ran};

/// A machine of files with one RAPL zone, whose value the commands below move.
struct Machine(tempfile::TempDir);

impl Machine {
    fn bare() -> Machine {
        Machine(tempfile::tempdir().unwrap())
    }

    fn with_zone() -> Machine {
        let machine = Machine::bare();
        machine.put("proc/cpuinfo", "vendor_id\t: GenuineIntel\nflags\t\t: fpu\n");
        machine.put("sys/class/powercap/intel-rapl:0/name", "package-0\n");
        machine.put("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n");
        machine.joules(1);
        machine
    }

    fn joules(&self, joules: u64) {
        self.put("sys/class/powercap/intel-rapl:0/energy_uj", &format!("{}\n", joules * 1_000_000));
    }

    /// A counter that moves by a joule many times in a millisecond, as long as what this returns lives.
    fn ticking(&self) -> Ticking {
        let (path, next) = (self.path("sys/class/powercap/intel-rapl:0/energy_uj"), self.path("next"));
        let ticks = Arc::new(AtomicBool::new(true));
        let goes_on = ticks.clone();
        let thread = std::thread::spawn(move || {
            for joules in 2u64.. {
                if !goes_on.load(Relaxed) {
                    return;
                }
                // Whole at every moment.
                fs::write(&next, format!("{}\n", joules * 1_000_000)).unwrap();
                fs::rename(&next, &path).unwrap();
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        Ticking(ticks, Some(thread))
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self, path: &str) -> String {
        self.0.path().join(path).to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = njoule(args);
        command.env("NJOULE_SYSFS_ROOT", self.0.path());
        for name in ["NJOULE_NEURON_WATTS", "NJOULE_NVML"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    /// A shell command that moves the counter by so much and prints a word.
    fn burn(&self, joules: u64) -> String {
        self.burn_from(1, joules)
    }

    /// The same for a counter that stands at `joules` by then.
    fn burn_from(&self, stands: u64, joules: u64) -> String {
        format!(
            "echo {} > {}; echo done",
            (stands + joules) * 1_000_000,
            self.path("sys/class/powercap/intel-rapl:0/energy_uj")
        )
    }
}

/// A counter that moves.
struct Ticking(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
        self.1.take().map(|thread| thread.join());
    }
}

/// Something that listens, on a free port; it ends with the test, also with one that fails.
struct Agent(Child, String);

impl Agent {
    fn start(machine: &Machine, args: &[&str]) -> Agent {
        Agent::listening(machine.command(&[&["energy", "serve", "-q", "--port", "0"], args].concat()))
    }

    /// A server of a model.
    fn serving(machine: &Machine, model: &str) -> Agent {
        Agent::listening(machine.command(&["serve", model, "--port", "0", "--threads", "1"]))
    }

    fn listening(mut command: Command) -> Agent {
        let mut agent = Agent(command.stderr(Stdio::piped()).spawn().unwrap(), String::new());
        let mut lines = BufReader::new(agent.0.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| line.unwrap().strip_prefix("listening on ").map(str::to_owned));
        agent.1 = address.expect("it says where it listens");
        // Nobody reads on, and nothing may wait for that.
        std::thread::spawn(move || lines.for_each(drop));
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_command_is_recorded_and_its_exit_code_kept() {
    let machine = Machine::with_zone();
    let file = machine.path("run.json");
    let burn = machine.burn(50);
    let done = machine.run(&["energy", "record", "-o", &file, "--output-tokens", "100", "--", "sh", "-c", &burn]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "done\n"));
    assert!(done.stderr.contains("energy: 50.000 J (") && done.stderr.contains(", cpu, measured"), "{}", done.stderr);
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(report["schema"], "njoule.energy/1");
    assert!((report["energy"]["total_j"].as_f64().unwrap() - 50.0).abs() < 1e-9);
    assert!((report["metrics"]["output_tokens_per_joule"].as_f64().unwrap() - 2.0).abs() < 1e-9);
    assert_eq!(report["client"]["exit_code"], 0);

    let failed = machine.run(&["energy", "record", "-q", "--json", "--", "sh", "-c", "exit 7"]);
    assert_eq!((failed.code, failed.stderr.as_str()), (7, ""));
    // A counter that did not move is not zero joules.
    let report: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert!(report["energy"]["total_j"].is_null() && report["client"]["exit_code"] == 7, "{report}");
    machine.run(&["energy", "record", "--", "/nowhere/x"]).fails_with(1, &["/nowhere/x: cannot be started"]);
}

/// A feed that takes its time stretches no window, and says that it is late; one that never answers is not waited for twice.
#[test]
fn a_slow_feed_neither_stretches_the_window_nor_hides() {
    let machine = Machine::bare();
    // Ten watts, by the stamps.
    let slow = "cmd:sleep 1.5; date +%s.%N | awk -F. '{s = $1 % 100000; printf \"%s.%s,%.3f\\n\", $1, $2, 10 * (s + (\"0.\" $2))}'";
    let record = ["energy", "record", "-q", "--json", "--feed", slow, "--", "sleep", "2"];
    let report = machine.run(&record).json();
    let length = report["window"]["duration_s"].as_f64().unwrap();
    assert!((1.99..3.0).contains(&length), "{report}");
    assert!(report["validity"]["flags"].as_array().unwrap().contains(&"meter_gap".into()), "{report}");
    let number =
        |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {report}"));
    let (low, high) = (number("/energy/low_j"), number("/energy/high_j"));
    assert!(low <= 10.0 * length && 10.0 * length <= high && number("/meters/0/edge_error_j") > 0.0, "{report}");

    let began = std::time::Instant::now();
    let dumb = machine.run(&["energy", "record", "-q", "--json", "--seconds", "1", "--feed", "cmd:sleep 30"]).json();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(
        dumb["energy"]["total_j"].is_null() && dumb["energy"]["reasons"][0].as_str().unwrap().contains("took longer")
    );
}

#[test]
fn a_report_that_could_not_be_written_is_refused_before_the_work() {
    let machine = Machine::with_zone();
    let (marker, file) = (machine.path("ran"), machine.path("run.json"));
    let refused = machine.run(&["energy", "record", "-o", "/nowhere/run.json", "--", "touch", &marker]);
    refused.fails_with(1, &["/nowhere/run.json: cannot write"]);
    assert!(!std::path::Path::new(&marker).exists());
    // An older and longer report is there until the new one is, and then nothing of it.
    machine.put("run.json", &"x".repeat(100_000));
    assert_eq!(machine.run(&["energy", "record", "-q", "-o", &file, "--", "grep", "-q", "xxx", &file]).code, 0);
    serde_json::from_str::<Value>(&fs::read_to_string(&file).unwrap()).unwrap();
}

#[test]
fn unknown_is_null_and_no_failure_unless_asked_for() {
    let machine = Machine::bare();
    let ran = machine.run(&["energy", "record", "--json", "--", "true"]);
    let report = ran.json();
    assert!(report["energy"]["total_j"].is_null() && report["energy"]["method"].is_null());
    assert!(!report["energy"]["reasons"].as_array().unwrap().is_empty());
    let strict = machine.run(&["energy", "record", "-q", "--require-energy", "estimated", "--", "true"]);
    strict.fails_with(1, &["the energy is unknown"]);
    let watched = machine.run(&["energy", "watch", "-q", "-n", "1", "-i", "0.05"]);
    assert!(watched.code == 0 && watched.stdout.starts_with("energy: unknown over "), "{}", watched.stdout);
    let weak = Machine::with_zone();
    weak.put("proc/cpuinfo", "vendor_id\t: AuthenticAMD\n");
    let burn = weak.burn(9);
    let refused = weak.run(&["energy", "record", "-q", "--require-energy", "measured", "--", "sh", "-c", &burn]);
    assert!(refused.code == 1 && refused.stderr.contains("the energy is hardware_model"), "{}", refused.stderr);
}

#[test]
fn an_agent_answers_for_its_machine_and_nobody_else() {
    let served = Machine::with_zone();
    let agent = Agent::start(&served, &[]);
    let burn = served.burn(30);
    // The client's own machine has no meter at all.
    let client = Machine::bare();
    let ran = client.run(&["energy", "record", "-q", "--json", "--meter", &agent.1, "--", "sh", "-c", &burn]);
    let report: Value = serde_json::from_str(ran.stdout.trim_start_matches("done\n")).unwrap();
    assert!((report["energy"]["total_j"].as_f64().unwrap() - 30.0).abs() < 1e-9, "{report}");
    assert_eq!(report["subject"].as_str(), Some(agent.1.as_str()));
    assert!(report["client"]["command_cpu_s"].is_number());

    // The other way round: a client with a meter never answers for a machine that has none, or is not there.
    let bare = Agent::start(&Machine::bare(), &[]);
    let dead = "http://127.0.0.1:1";
    for url in [bare.1.as_str(), dead] {
        let burn = served.burn(60);
        let ran = served.run(&["energy", "record", "-q", "--json", "--meter", url, "--", "sh", "-c", &burn]);
        let report: Value = serde_json::from_str(ran.stdout.trim_start_matches("done\n")).unwrap();
        assert!(ran.code == 0 && report["energy"]["total_j"].is_null(), "{report}");
        assert!(!report["energy"]["reasons"].as_array().unwrap().is_empty(), "{report}");
    }
}

#[test]
fn scripts_survive_what_is_unknown() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/scripts");
    let python = format!(
        "import sys; sys.path.insert(0, {dir:?})\nfrom energy import measure\nimport subprocess, os\n\
         with measure('work') as m: subprocess.run(['sh', '-c', os.environ['BURN']], stdout=subprocess.DEVNULL)\n\
         print(m.joules is not None and round(m.joules), m.method, bool(m.reasons))"
    );
    let shell = format!("set -eu; . {dir}/energy.sh; energy_start; sh -c \"$BURN\" > /dev/null; energy_end");
    let measured = Machine::with_zone();
    let (with, without) = (Agent::start(&measured, &[]), Agent::start(&Machine::bare(), &[]));
    let mut stands = 1;
    for (url, python_says, shell_says) in [
        (with.1.as_str(), "40 measured False", "\"method\":\"measured\""),
        (without.1.as_str(), "False None True", "\"total_j\":null"),
        ("http://127.0.0.1:1", "False None True", "\"total_j\":null"),
    ] {
        for (program, flag, script, says) in
            [("python3", "-c", &python, python_says), ("bash", "-c", &shell, shell_says)]
        {
            let burn = measured.burn_from(stands, 40);
            stands += 40;
            let mut command = Command::new(program);
            command.arg(flag).arg(script).env("NJOULE_ENERGY_URL", url).env("BURN", burn);
            let ran = ran(command.output().unwrap());
            assert!(ran.code == 0 && ran.stdout.contains(says), "{program} {url}: {} {}", ran.stdout, ran.stderr);
        }
    }
}

/// An agent that is there at the start and dies, or is none: scripts print null and go on.
#[test]
fn scripts_survive_an_agent_that_dies_midway() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/scripts");
    let python = format!(
        "import sys; sys.path.insert(0, {dir:?})\nfrom energy import measure\n\
         with measure('work') as m: pass\nprint('went on', m.joules, m.method, bool(m.reasons))"
    );
    let shell = format!("set -euo pipefail; . {dir}/energy.sh; energy_start; energy_end; echo went on");
    // What the second call gets: nothing, a broken answer, no object, another object.
    let halves = ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "[1]", "{\"energy\": 3}", "{\"energy\": {}}"];
    for second in halves {
        for (program, flag, script) in [("python3", "-c", &python), ("bash", "-c", &shell)] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let agent = std::thread::spawn(move || {
                for answer in ["{}", second] {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut seen = vec![];
                    // A head and, of the second call, a body of two bytes.
                    let ends: &[u8] = if answer == "{}" { b"\r\n\r\n" } else { b"\r\n\r\n{}" };
                    let mut byte = [0];
                    while !seen.ends_with(ends) && stream.read(&mut byte).unwrap() == 1 {
                        seen.push(byte[0]);
                    }
                    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
                    let bare = answer.is_empty() || answer.starts_with("HTTP");
                    stream.write_all(if bare { answer } else { &whole }.as_bytes()).unwrap();
                }
            });
            let ran = ran(Command::new(program).args([flag, script]).env("NJOULE_ENERGY_URL", &url).output().unwrap());
            agent.join().unwrap();
            let says = if program == "bash" { "\"total_j\":null" } else { "went on None None True" };
            let whole = ran.code == 0 && ran.stdout.contains(says) && ran.stdout.contains("went on");
            assert!(whole, "{program} {second:?}: {} {}", ran.stdout, ran.stderr);
        }
    }
}

/// The two benchmark scripts as a reader would start them, beside an agent that knows nothing.
#[test]
fn benchmark_scripts_print_tokens_and_null() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/scripts");
    let machine = Machine::bare();
    let agent = Agent::start(&machine, &[]);
    let model = support::testdata("qwen3");
    let server = Agent::serving(&machine, &model);
    let mut python = Command::new("python3");
    python.arg(format!("{dir}/tokens-per-joule.py")).args([&server.1, &agent.1]);
    let mut shell = Command::new("bash");
    shell.arg(format!("{dir}/tokens-per-joule.sh")).args([env!("CARGO_BIN_EXE_njoule"), &model]);
    shell.env("NJOULE_SYSFS_ROOT", machine.path("")).env_remove("NJOULE_NEURON_WATTS");
    let results = [(python, 256), (shell, 128)].map(|(mut script, tokens)| (ran(script.output().unwrap()), tokens));
    for (result, tokens) in results {
        let printed = result.json();
        assert_eq!(printed["output_tokens"], tokens);
        for key in ["total_j", "method", "output_tokens_per_joule"] {
            assert!(printed[key].is_null(), "{printed}");
        }
        assert!(!printed["reasons"].as_array().unwrap().is_empty(), "{printed}");
    }
}

/// A server on a machine with a counter: answers carry joules and their method, and buckets add up to what was counted.
#[test]
fn a_server_tells_the_joules_of_its_answers() {
    let machine = Machine::with_zone();
    let model = support::testdata("qwen3");
    let args = ["serve", &model, "--port", "0", "--threads", "1", "--usage-energy"];
    let server = Agent::listening(machine.command(&args));
    let curl = |path: &str, more: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-s", "--noproxy", "*", &format!("{}{path}", server.1)]).args(more);
        ran(command.output().unwrap()).stdout
    };
    const JSON: &str = "content-type: application/json";
    let body = r#"{"prompt": "Hi", "max_tokens": 8, "temperature": 0}"#;
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(120);
    let mut joules = 1;
    let energy = loop {
        joules += 7;
        machine.joules(joules);
        let answer: Value = serde_json::from_str(&curl("/v1/completions", &["-H", JSON, "--data", body])).unwrap();
        let energy = answer["usage"]["energy"].clone();
        assert!(energy["cpu_s"].as_f64().unwrap() > 0.0, "{answer}");
        // Null where the counter stood still while it ran.
        if energy["total_j"].is_number() {
            break energy;
        }
        assert!(energy["method"].is_null() && std::time::Instant::now() < patience, "{answer}");
    };
    assert_eq!(energy["method"], "measured", "{energy}");
    let totals: Value = serde_json::from_str(&curl("/v1/energy", &[])).unwrap();
    let counted = totals["total_j"].as_f64().unwrap();
    assert!(counted > 0.0 && counted <= (joules - 1) as f64 * (1.0 + 1e-9), "{totals}");
    assert_eq!((&totals["boundary"], &totals["meters"][0]["id"]), (&"cpu".into(), &"powercap-0".into()));
    assert!(curl("/metrics", &[]).contains("njoule_energy_attributed_joules_total{"));
}

/// What an answer or a sequence used: joules with their method, and its parts.
#[track_caller]
fn told(energy: &Value) {
    let number = |key: &str| energy[key].as_f64().unwrap_or_else(|| panic!("{key}: {energy}"));
    let joules = number("total_j");
    assert!(joules > 0.0 && number("low_j") < joules && joules < number("high_j"), "{energy}");
    assert!((number("prefill_j") + number("decode_j") + number("wasted_j") - joules).abs() < 1e-9 * joules, "{energy}");
    assert_eq!(energy["method"], "measured");
    assert!(number("cpu_s") >= 0.0);
}

/// What a run used, from loading on, by what it went for.
#[track_caller]
fn whole(energy: &Value) {
    let number =
        |path: &str| energy.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {energy}"));
    let joules = number("/total_j");
    let buckets: f64 = energy["by_bucket"].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum();
    assert!((buckets - joules).abs() < 1e-9 * joules, "{energy}");
    assert!(number("/by_bucket/load_j") > 0.0 && number("/by_bucket/prefill_j") > 0.0, "{energy}");
    assert!(number("/low_j") < joules && joules < number("/high_j") && number("/cpu_s") > 0.0, "{energy}");
    assert_eq!((&energy["method"], &energy["boundary"]), (&"measured".into(), &"cpu".into()));
}

/// Verbs that run a model tell what it used where a meter does, and say that they do not know where none does.
#[test]
fn generate_score_and_chat_tell_their_energy() {
    let model = support::testdata("qwen3");
    let generate = ["generate", &model, "Hi", "-n", "8", "--temperature", "0", "--ignore-eos", "--threads", "1"];
    let score = ["score", &model, "The quick brown fox", "--threads", "1"];
    let chat = ["chat", &model, "-n", "4", "--temperature", "0", "--threads", "1", "--figures"];
    let talk = |machine: &Machine| {
        let mut command = machine.command(&chat);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"Hi\n").unwrap();
        ran(child.wait_with_output().unwrap())
    };

    let metered = Machine::with_zone();
    let ticking = metered.ticking();
    // Null where the counter stood still while it was loaded, on a machine that does other things.
    let until_known = |args: &[&str]| {
        let tries = || metered.run(&[args, &["--json"]].concat()).json();
        std::iter::repeat_with(tries).take(200).find(|report| report["energy"]["total_j"].is_number()).expect("joules")
    };
    let report = until_known(&generate);
    whole(&report["energy"]);
    told(&report["results"][0]["usage"]["energy"]);
    assert!(report["energy"]["by_bucket"]["decode_j"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["figures"]["energy"]["total_j"], report["energy"]["total_j"]);
    let told_in_text = |ran: &dyn Fn() -> Ran, times: usize| {
        let tries = std::iter::repeat_with(ran).take(200);
        let mut told = tries.filter(|ran| ran.stderr.matches(", measured), CPU ").count() == times);
        let told = told.next().expect("joules in a line");
        assert!(told.code == 0 && !told.stdout.contains("energy"), "{}", told.stdout);
    };
    told_in_text(&|| metered.run(&generate), 1);
    let report = until_known(&score);
    whole(&report["energy"]);
    told(&report["results"][0]["energy"]);
    told_in_text(&|| metered.run(&score), 1);
    told_in_text(&|| talk(&metered), 2);
    drop(ticking);

    let bare = Machine::bare();
    for args in [&generate[..], &score] {
        let energy = bare.run(&[args, &["--json"]].concat()).json()["energy"].clone();
        for key in ["total_j", "low_j", "high_j", "method", "by_bucket", "core_s", "util_s"] {
            assert!(energy.as_object().unwrap().contains_key(key) && energy[key].is_null(), "{key}: {energy}");
        }
        assert!(
            energy["cpu_s"].as_f64().unwrap() > 0.0 && !energy["reasons"].as_array().unwrap().is_empty(),
            "{energy}"
        );
        assert!(bare.run(args).stderr.contains("energy: unknown, CPU "));
    }
    assert_eq!(talk(&bare).stderr.matches(": unknown, CPU ").count(), 2);
    bare.run(&["generate", &model, "Hi", "--neuron-watts", "x"]).fails_with(2, &["--neuron-watts"]);
}

/// The idle machine is measured with the model loaded, and stands in what follows from it: net joules, and the bound.
#[test]
fn bench_measures_the_idle_machine_and_says_what_ran() {
    let machine = Machine::with_zone();
    let (model, file) = (support::testdata("qwen3"), machine.path("r.jsonl"));
    let ticking = machine.ticking();
    let args = ["bench", "-m", &model, "-b", "2", "-p", "4", "-g", "4", "-r", "1", "--threads", "1", "--idle", "1"];
    let done = machine.run(&[&args[..], &["--min-seconds", "0.2", "--report", &file]].concat());
    drop(ticking);
    assert!(done.code == 0 && done.stderr.contains("idle, with the model loaded: "), "{}", done.stderr);
    let text = fs::read_to_string(&file).unwrap();
    let reports: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (report, kind) in reports.iter().zip(["full", "steady"]) {
        let number =
            |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {report}"));
        let (idle_w, joules) = (number("/energy/idle_baseline_w"), number("/energy/total_j"));
        let net = (joules - idle_w * number("/window/duration_s")).max(0.0);
        assert!(idle_w > 0.0 && (number("/energy/net_j") - net).abs() < 1e-6 * joules, "{report}");
        assert_eq!(report["window"]["kind"], kind);
        // No honest comparison is made of so short a time.
        assert!(report["validity"]["flags"].as_array().unwrap().contains(&"short_window".into()), "{report}");
        assert!(number("/model/active_params") > 0.0 && number("/model/active_params") <= number("/model/params"));
        assert!(number("/model/kv_bytes_per_token") > 0.0 && report["model"]["tp"] == 1, "{report}");
        assert_eq!(report["model"]["sha256"].as_str().unwrap().len(), 64);
    }
    let alone = &reports[1]["stats"]["output_tokens_per_joule"];
    assert_eq!((&alone["ci95"], &alone["reason"]), (&Value::Null, &"0 whole blocks of 10 s, and 5 are needed".into()));
    assert_eq!(alone["mean"], reports[1]["metrics"]["output_tokens_per_joule"]);
    let decode = &reports[1]["metrics"];
    assert!(decode["pj_per_weight_bit"].as_f64().unwrap() > 0.0, "{decode}");
    assert_eq!(decode["limit_constants"]["p_static_w"], reports[1]["energy"]["idle_baseline_w"]);
}

/// The steady window is a part of the run, has tokens, time and joules of its own, and is not where it cannot be.
#[test]
fn a_closed_loop_has_its_steady_window_beside_the_whole_run() {
    let machine = Machine::with_zone();
    let (model, file) = (support::testdata("gguf_llama"), machine.path("r.jsonl"));
    let bench = |server: &Agent, more: &[&str]| {
        let args = ["bench", "--endpoint", &server.1, "-p", "4", "-g", "8", "-r", "1", "--meter", "local"];
        let done = machine.run(&[&args[..], &["--report", &file], more].concat());
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        let text = fs::read_to_string(&file).unwrap();
        let report: Value = serde_json::from_str(text.trim()).unwrap();
        (report, done.stdout)
    };
    let server = Agent::serving(&machine, &model);
    let ticking = machine.ticking();
    let (report, _) = bench(&server, &["-b", "3", "--min-seconds", "1"]);
    drop(ticking);
    let steady = &report["steady"];
    let number =
        |of: &Value, path: &str| of.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {of}"));
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-9 * b, "{a} is not {b}: {steady}");
    let (length, joules) = (number(steady, "/window/duration_s"), number(steady, "/energy/total_j"));
    let tokens = number(steady, "/output_tokens");
    assert_eq!((&report["window"]["kind"], &steady["window"]["kind"]), (&"full".into(), &"steady".into()));
    assert_eq!((&steady["window"]["mean_running_seqs"], &steady["energy"]["method"]), (&3.into(), &"measured".into()));
    assert!(0.5 < length && length < number(&report, "/window/duration_s"), "{report}");
    assert!(0.0 < joules && joules < number(&report, "/energy/total_j"), "{report}");
    // A server of a few tokens per millisecond, of which a second has many.
    assert!(0.0 < tokens && tokens < number(&report, "/workload/output_tokens"), "{report}");
    near(number(steady, "/metrics/output_tokens_per_s"), tokens / length);
    near(number(steady, "/metrics/output_tokens_per_joule"), tokens / joules);
    // Whole rounds, whoever sends them.
    assert_eq!(report["workload"]["requests"].as_u64().unwrap() % 12, 0);
    assert!(steady["validity"]["flags"].as_array().unwrap().contains(&"short_window".into()));

    // Those that arrive by the clock keep nobody busy all the time.
    let (report, told) = bench(&server, &["-b", "2", "--workload", "chat", "--rate", "100", "--requests", "4"]);
    assert!(report["steady"].is_null() && told.contains("no steady window in every run: requests arrive"), "{told}");
    assert_eq!((&report["window"]["kind"], &report["workload"]["requests"]), (&"full".into(), &4.into()));
}

#[test]
fn an_agent_refuses_what_is_no_snapshot() {
    let agent = Agent::start(&Machine::with_zone(), &[]);
    let post = |body: &str| {
        let url = format!("{}/v1/energy/report", agent.1);
        let ran = ran(Command::new("curl").args(["-s", "--noproxy", "*", "--data", body, &url]).output().unwrap());
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(post("{}").contains("no snapshot"));
    assert!(post("not json").contains("no snapshot"));
    let get = |path: &str| {
        ran(Command::new("curl").args(["-s", "--noproxy", "*", &format!("{}{path}", agent.1)]).output().unwrap()).stdout
    };
    let snapshot = get("/v1/energy").replace("\"session\":\"", "\"session\":\"x");
    assert!(post(&snapshot).contains("started again"));
    assert!(get("/metrics").contains("# TYPE njoule_energy_joules_total counter"));
    assert!(get("/nothing").contains("/v1/energy/report"));
}

#[test]
fn watts_are_calibrated_from_recorded_files() {
    let machine = Machine::bare();
    let (mut lines, mut feed, mut joules) = (String::new(), "t_unix_s,joules\n".to_owned(), 0.0);
    for (i, mean) in [0.0, 10.0, 20.0, 80.0, 50.0, 30.0, 90.0, 0.0, 60.0].into_iter().enumerate() {
        let stamp = 1_726_000_020 + 60 * i;
        joules += if i == 0 { 0.0 } else { 60.0 * (25.0 + 110.0 * mean / 100.0) };
        // Read twice, as a loop does.
        lines += &format!("POWER_STATUS_VALID,{stamp},0.00,{mean:.2},{mean:.2}\n").repeat(2);
        feed += &format!("{stamp},{joules}\n");
    }
    machine.put("lines.txt", &lines);
    machine.put("pdu.csv", &feed);
    let source = format!("csv:{}", machine.path("pdu.csv"));
    let file = machine.path("lines.txt");
    let fit = machine.run(&["energy", "calibrate", "--feed", &source, "--lines", &file, "--json"]).json();
    assert!((fit["base_w"]["best"].as_f64().unwrap() - 25.0).abs() < 1e-6, "{fit}");
    assert!((fit["span_w"]["best"].as_f64().unwrap() - 110.0).abs() < 1e-6, "{fit}");
    machine.put("lines.txt", "POWER_STATUS_VALID,1726000020,0.00,1.00,1.00\n");
    machine.run(&["energy", "calibrate", "--feed", &source, "--lines", &file]).fails_with(1, &["5 are needed"]);
    machine.put("lines.txt", "watts\n");
    machine.run(&["energy", "calibrate", "--feed", &source, "--lines", &file]).fails_with(1, &["line 1"]);
    machine.run(&["energy", "calibrate", "--feed", &source]).fails_with(1, &["no Neuron device here"]);
}

#[test]
fn a_wrong_command_line_says_what_is_right() {
    let machine = Machine::bare();
    for (args, words) in [
        (&["energy", "watch", "--meter", "moon"][..], &["none of local, pid:N, cgroup:PATH"][..]),
        (&["energy", "watch", "--neuron-watts", "base=1"], &["span=WATTS is missing"]),
        (&["energy", "watch", "--feed", "pdu"], &["cmd:COMMAND, csv:FILE or unix:SOCKET"]),
        (&["energy", "watch", "--interval", "0"], &["no number of seconds"]),
        (&["energy", "record", "--seconds", "1", "--", "true"], &["cannot be used with"]),
        (
            &["energy", "watch", "--meter", "http://far:1", "--feed", "csv:x"],
            &["--feed is about this machine's meters"],
        ),
        (&["energy", "watch", "--meter", "http://far:1", "--instance", "inf2.xlarge"], &["--instance is about"]),
        (
            &["energy", "watch", "--meter", "http://far:1", "--neuron-watts", "base=1,span=2"],
            &["--neuron-watts is about"],
        ),
    ] {
        machine.run(args).fails_with(2, words);
    }
}
