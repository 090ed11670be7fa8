//! Build, artifact and run against the stand-ins of neuron-fake: nothing here has run on a device or with a compiler.

#[path = "neuron/cache.rs"]
mod cache;
#[path = "neuron/failing.rs"]
mod failing;
#[path = "neuron/flags.rs"]
mod flags;
#[path = "neuron/gguf.rs"]
mod gguf;
#[path = "neuron/minute.rs"]
mod minute;
mod support;
#[path = "neuron/together.rs"]
mod together;
#[path = "neuron/verbs.rs"]
mod verbs;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Ran, SMOLLM2, asset, golden, lives, neuron_fake, njoule, ran, until};

/// The stand-ins and a place for caches and artifacts.
struct Bench {
    dir: tempfile::TempDir,
    nrt: PathBuf,
    cc: PathBuf,
}

impl Bench {
    /// `None` where the stand-ins are not built, as by `cargo test -p njoule`.
    fn new() -> Option<Bench> {
        let (nrt, cc) = (neuron_fake("libneuron_fake.so")?, neuron_fake("neuronx-cc-fake")?);
        Some(Bench { dir: tempfile::tempdir().unwrap(), nrt, cc })
    }

    fn run(&self, args: &[&str], environment: &[(&str, &str)]) -> Ran {
        ran(self.command(args, environment).output().expect("the binary starts"))
    }

    fn command(&self, args: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = njoule(args);
        command.env("NJOULE_NRT", &self.nrt).env("NJOULE_NEURONX_CC", &self.cc).env("NJOULE_INSTANCE", "inf2.xlarge");
        command.env("NJOULE_CACHE", self.path("cache")).envs(environment.iter().copied());
        command
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Builds an artifact of a fixture.
    fn build(&self, fixture: &str, name: &str, options: &[&str]) -> (String, Value) {
        let (model, place) = (fixture_path(fixture), self.path(name));
        let mut args = vec!["build", &model, "-o", &place, "--context", "512", "--candidates", "16", "--json", "-q"];
        args.extend(options);
        let built = self.run(&args, &[]).json();
        (place, built)
    }

    /// Answers to prompts of several lengths.
    fn generate(&self, model: &str, options: &[&str], environment: &[(&str, &str)]) -> Ran {
        let prompts = self.path("prompts.json");
        let ids = |n: u32| (0..n).map(|i| (i * 37 + n) % 250 + 3).collect::<Vec<u32>>();
        let all: Vec<Vec<u32>> = [1, 3, 17, 130, 300].map(ids).to_vec();
        fs::write(&prompts, serde_json::to_string(&all).unwrap()).unwrap();
        let mut args =
            vec!["generate", "-m", model, "--token-ids", &prompts, "-n", "6", "--json", "--ignore-eos", "-q"];
        args.extend(["-c", "512", "--temperature", "0"]);
        args.extend(options);
        self.run(&args, environment)
    }
}

fn fixture_path(name: &str) -> String {
    format!("{}/../testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn ids(ran: &Ran) -> Vec<Value> {
    ran.json()["results"].as_array().unwrap().iter().map(|r| r["token_ids"].clone()).collect()
}

#[test]
fn an_artifact_answers_as_the_cpu_does_in_every_bucket_and_on_two_cores() {
    let Some(bench) = Bench::new() else { return };
    for fixture in ["llama_tied", "qwen3"] {
        let expected = ids(&bench.generate(&fixture_path(fixture), &["--backend", "cpu", "--quant", "none"], &[]));
        for tp in ["1", "2"] {
            let (artifact, built) = bench.build(
                fixture,
                &format!("{fixture}-{tp}"),
                &["--quant", "none", "--tp", tp, "--batch", "3", "--max-neffs", "8"],
            );
            assert_eq!(built["tp"].to_string(), tp);
            let answered = bench.generate(&artifact, &[], &[]);
            assert_eq!(ids(&answered), expected, "{fixture} on {tp}: {}", answered.stderr);
            assert_eq!(answered.json()["model"]["backend"], "neuron");
        }
    }
}

/// A logical core of trn2 is two physical ones unless somebody says otherwise, for the compiler as for the library.
#[test]
fn a_model_is_built_for_trn2_and_answers_there() {
    let Some(bench) = Bench::new() else { return };
    let expected = ids(&bench.generate(&fixture_path("qwen3"), &["--backend", "cpu", "--quant", "none"], &[]));
    let options = ["--instance", "trn2.3xlarge", "--quant", "none", "--tp", "1", "--batch", "3", "--max-neffs", "4"];
    let (artifact, _) = bench.build("qwen3", "trn2", &options);
    let there = [("NJOULE_FAKE_INSTANCE", "trn2.3xlarge"), ("NJOULE_INSTANCE", "trn2.3xlarge")];
    let answered = bench.generate(&artifact, &[], &there);
    assert_eq!(ids(&answered), expected, "{}", answered.stderr);
    let other = [&there[..], &[("NEURON_LOGICAL_NC_CONFIG", "1")]].concat();
    let refused = bench.generate(&artifact, &[], &other);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("set NEURON_LOGICAL_NC_CONFIG=2"), "{}", refused.stderr);
    // Twice as many cores, each with half of the memory.
    let (small, built) = bench.build("qwen3", "lnc1", &[&options[..], &["--lnc", "1"]].concat());
    assert_eq!(built["replicas"], 8);
    assert_eq!(ids(&bench.generate(&small, &[], &other)), expected);
    // A plan for such cores says so, and is built for them.
    let (model, file) = (fixture_path("qwen3"), bench.path("lnc1.json"));
    let given = ["plan", &model, "--context", "512", "--candidates", "16", "--lnc", "1", "--json"];
    let planned = bench.run(&[&given[..], &options].concat(), &[]).json();
    assert_eq!((&planned["lnc"], &planned["replicas"]), (&1.into(), &8.into()));
    fs::write(&file, planned.to_string()).unwrap();
    let place = bench.path("planned");
    let build = ["build", &model, "-o", &place, "--plan", &file, "--json", "-q"];
    assert_eq!(bench.run(&build, &there).json()["lnc"], 1);
    assert_eq!(ids(&bench.generate(&place, &[], &other)), expected);
    bench.run(&[&build[..], &["--lnc", "1"]].concat(), &there).fails_with(2, &["--plan", "--lnc"]);
    let place = bench.path("none");
    let args = ["build", &fixture_path("qwen3"), "-o", &place, "--instance", "inf2.xlarge", "--lnc", "2"];
    let refused = bench.run(&args, &[]);
    assert!(refused.code == 2 && refused.stderr.contains("--lnc 2"), "{}", refused.stderr);
}

/// Kinds of attention, of norms, of feed-forwards and of positions, to the tokens that transformers gives.
#[test]
fn families_give_the_references_tokens() {
    let Some(bench) = Bench::new() else { return };
    for fixture in ["gpt2", "gemma2", "gpt_oss", "phi3_longrope", "qwen2_moe", "deepseek_v3"] {
        let model = fixture_path(fixture);
        let golden = golden(fixture);
        let cases = golden["prompts"].as_array().or(golden["cases"].as_array()).unwrap();
        let part = |key: &str| cases.iter().map(|case| case[key].clone()).collect::<Vec<Value>>();
        let prompts = bench.path("golden.json");
        fs::write(&prompts, serde_json::to_string(&part("input_ids")).unwrap()).unwrap();
        let expected = part("greedy_ids");
        let count = expected[0].as_array().unwrap().len().to_string();
        let options = ["--backend", "neuron", "--quant", "none", "--temperature", "0", "--ignore-eos", "--json", "-q"];
        let args = [&["generate", "-m", &model, "--token-ids", &prompts, "-n", &count], &options[..]].concat();
        assert_eq!(ids(&bench.run(&args, &[])), expected, "{fixture}");
    }
}

/// The default model: built, then eight prompts of all lengths in one batch.
#[test]
fn smollm2_answers_as_the_cpu_does() {
    let Some(file) = asset(SMOLLM2, "smollm2_answers_as_the_cpu_does") else { return };
    let Some(bench) = Bench::new() else { return };
    let (prompts, artifact) = (bench.path("eight.json"), bench.path("smollm2"));
    let ids_of = |n: u32| (0..n).map(|i| (i * 37 + n) % 49000 + 3).collect::<Vec<u32>>();
    let all: Vec<Vec<u32>> = [1, 5, 17, 40, 96, 97, 150, 200].map(ids_of).to_vec();
    fs::write(&prompts, serde_json::to_string(&all).unwrap()).unwrap();
    let answer = |model: &str, options: &[&str]| {
        let common =
            ["--token-ids", &prompts, "-n", "3", "--temperature", "0", "--ignore-eos", "--json", "-q", "-c", "256"];
        ids(&bench.run(&[&["generate", "-m", model], &common[..], options].concat(), &[]))
    };
    let options = ["--quant", "none", "--context", "256", "--batch", "8", "--max-neffs", "6", "-q", "--json"];
    bench.run(&[&["build", "-m", &file, "-o", &artifact], &options[..]].concat(), &[]).json();
    assert_eq!(answer(&artifact, &[]), answer(&file, &["--backend", "cpu", "--quant", "none"]));
}

#[test]
fn an_artifact_of_a_gguf_file_serves_without_the_file() {
    let Some(bench) = Bench::new() else { return };
    let file = fixture_path("gguf_llama/model.gguf");
    let expected = ids(&bench.generate(&file, &["--backend", "cpu", "--quant", "none"], &[]));
    let options = ["--quant", "none", "--tp", "1", "--batch", "2", "--max-neffs", "4"];
    let (artifact, _) = bench.build("gguf_llama/model.gguf", "gguf", &options);
    let answered = bench.generate(&artifact, &[], &[]);
    assert_eq!(ids(&answered), expected, "{}", answered.stderr);
    // Longer sequences than it was built for: refused, not cut in silence.
    let prompts = bench.path("prompts.json");
    let longer = ["generate", "-m", &artifact, "--token-ids", &prompts, "-n", "2", "-c", "600", "--json"];
    bench.run(&longer, &[]).fails_with(2, &["--context 600", "sequences of 512 tokens"]);
}

/// Two files, and a tensor that belongs to the configuration: the artifact keeps what describes the model of both.
#[test]
fn an_artifact_of_a_split_gguf_file_with_rotary_divisors_serves_without_the_files() {
    let Some(bench) = Bench::new() else { return };
    let whole = fs::read(fixture_path("gguf_llama/model.gguf")).unwrap();
    let parts = gguf::split_with_divisors(&whole);
    let [first, second] = [1, 2].map(|i| bench.path(&format!("model-0000{i}-of-00002.gguf")));
    fs::write(&first, &parts[0]).unwrap();
    fs::write(&second, &parts[1]).unwrap();
    let reference = ["--backend", "cpu", "--quant", "none"];
    let expected = ids(&bench.generate(&first, &reference, &[]));
    assert_ne!(
        expected,
        ids(&bench.generate(&fixture_path("gguf_llama/model.gguf"), &reference, &[])),
        "divisors count"
    );
    let artifact = bench.path("split");
    let options = ["--context", "512", "--candidates", "16", "--quant", "none", "--tp", "1", "--batch", "2", "-q"];
    let args = [&["build", &first, "-o", &artifact, "--max-neffs", "4", "--verify", "--json"], &options[..]].concat();
    assert_eq!(bench.run(&args, &[]).json()["verified"], true);
    fs::remove_file(&first).unwrap();
    fs::remove_file(&second).unwrap();
    let answered = bench.generate(&artifact, &[], &[]);
    assert_eq!(ids(&answered), expected, "{}", answered.stderr);
}

/// Ctrl-C in the middle: exit code 130, no compiler left, no artifact, and what was done is not done again.
#[test]
fn an_interrupted_build_ends_its_compilers_and_goes_on_from_what_was_done() {
    let Some(bench) = Bench::new() else { return };
    let (model, place) = (fixture_path("llama_tied"), bench.path("out"));
    let args = [
        "build",
        &model,
        "-o",
        &place,
        "--context",
        "512",
        "--candidates",
        "16",
        "--quant",
        "none",
        "--tp",
        "1",
        "--batch",
        "2",
        "--max-neffs",
        "4",
        "--jobs",
        "1",
        "--keep-logs",
    ];
    // The second compile outlives any test.
    let counter = bench.path("count");
    let slow = bench.path("slow-cc");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = compile ] && {{ echo . >> {counter}; [ $(wc -l < {counter}) = 2 ] && export NJOULE_FAKE_CC_DELAY=1000s; }}\n\
         {} \"$@\" & echo $! > {counter}.part; [ \"$NJOULE_FAKE_CC_DELAY\" ] && mv {counter}.part {counter}.pid; wait $!\n",
        bench.cc.display()
    );
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut child = bench
        .command(&args, &[("NJOULE_NEURONX_CC", &slow)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("[1/")).collect();
    assert!(said[0].starts_with("compiling ") && said[0].contains("the cache has 0"), "{said:?}");
    let started = lines.by_ref().find(|line| line.starts_with("compiling ")).unwrap();
    // Of the second compile, whole: it appears by a rename.
    let pid = format!("{counter}.pid");
    until("the second compile", || Path::new(&pid).exists());
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{started} {rest:?}");
    assert!(rest.iter().any(|line| line.contains("the next build goes on from there")), "{rest:?}");
    let compiler = fs::read_to_string(pid).unwrap();
    until("the compiler's end", || !lives(&compiler));
    let left = || fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(left().all(|name| !name.starts_with("out")), "{:?}", left().collect::<Vec<_>>());
    // What a build that was killed outright has left goes too; what only looks like it stays.
    let [stale, foreign] = ["out.tmp-999999999", "out.tmp-999999998"].map(|name| bench.path(name));
    fs::create_dir(&stale).unwrap();
    fs::create_dir(&foreign).unwrap();
    fs::write(Path::new(&stale).join(".njoule-unfinished"), "").unwrap();
    let built = bench.run(&[&args[..], &["--json", "-q"]].concat(), &[]).json();
    let cached: Vec<bool> = built["modules"].as_array().unwrap().iter().map(|m| m["cached"] == true).collect();
    assert!(cached[0] && cached.len() > 2 && !cached[1..].contains(&true), "{cached:?}");
    assert!(!Path::new(&stale).exists() && Path::new(&foreign).exists());
    for module in built["modules"].as_array().unwrap() {
        let log = Path::new(&format!("{place}.logs")).join(format!("{}.log", module["name"].as_str().unwrap()));
        assert!(fs::read_to_string(&log).unwrap().contains("Compiler status PASS"), "{}", log.display());
    }
}

/// SIGKILL, on which nobody can act: the compilers end all the same, and what they have started.
#[test]
fn a_build_that_is_killed_outright_leaves_no_compiler_behind() {
    let Some(bench) = Bench::new() else { return };
    let (model, place, slow) = (fixture_path("llama_tied"), bench.path("out"), bench.path("slow-cc"));
    // Each says who it is: the process before it, itself, and its worker.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = compile ] || exec {cc} \"$@\"\nexport NJOULE_FAKE_CC_DELAY=1000s\n{cc} \"$@\" &\n\
         echo $PPID $$ $! > {dir}/part-$$; mv {dir}/part-$$ {dir}/pids-$$; wait $!\n",
        cc = bench.cc.display(),
        dir = bench.dir.path().display(),
    );
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = ["--context", "512", "--candidates", "16", "--quant", "none", "--tp", "1", "--batch", "2"];
    let args = [&["build", &model, "-o", &place, "-q", "--max-neffs", "4", "--jobs", "2"], &options[..]].concat();
    let mut child = bench.command(&args, &[("NJOULE_NEURONX_CC", &slow)]).spawn().unwrap();
    let pids = || -> Vec<String> {
        let files = fs::read_dir(bench.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("pids-"));
        files
            .flat_map(|path| {
                fs::read_to_string(path).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    };
    until("two compilers", || pids().len() == 6);
    let pids = pids();
    assert!(pids.iter().all(|pid| lives(pid)) && !pids.contains(&child.id().to_string()), "{pids:?}");
    child.kill().unwrap();
    let killed = Instant::now();
    child.wait().unwrap();
    until("the compilers' end", || !pids.iter().any(|pid| lives(pid)));
    // It takes milliseconds; a loaded machine may need more.
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    // What the compilers leave to be seen of them: nothing that another build would take for a result.
    let built = bench.run(&[&args[..], &["--json"]].concat(), &[]).json();
    assert!(built["modules"].as_array().unwrap().iter().all(|module| module["cached"] == false));
}

#[test]
fn what_watches_over_compilers_is_not_for_people() {
    let ran = support::run(&["__keep-compiler", "/bin/true"]);
    ran.fails_with(2, &["what njoule calls itself with"]);
}

#[test]
fn an_artifact_is_verified_byte_by_byte_and_what_differs_is_named() {
    let Some(bench) = Bench::new() else { return };
    let options = ["--quant", "none", "--tp", "1", "--batch", "2", "--max-neffs", "4"];
    let (artifact, built) = bench.build("llama_tied", "seen", &options);
    let seen = bench.run(&["inspect", &artifact, "--verify", "--json", "-q"], &[]).json();
    assert_eq!((&seen["id"], &seen["verified"]), (&built["id"], &true.into()));
    assert_eq!(seen["modules"].as_array().unwrap().len(), built["modules"].as_array().unwrap().len());
    let table = bench.run(&["inspect", &artifact], &[]);
    for words in ["inf2.xlarge", "2 of 1 core(s)", "rank(s)", "--verify reads all"] {
        assert!(table.stdout.contains(words), "no {words:?} in:\n{}", table.stdout);
    }
    let added = Path::new(&artifact).join("notes.txt");
    fs::write(&added, "x").unwrap();
    bench.run(&["inspect", &artifact, "--verify", "-q"], &[]).fails_with(1, &["does not name: notes.txt"]);
    fs::remove_file(&added).unwrap();
    let weights = Path::new(&artifact).join("weights/rank0.bin");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[100] ^= 4;
    fs::write(&weights, bytes).unwrap();
    let damaged = bench.run(&["inspect", &artifact, "--verify", "-q"], &[]);
    damaged.fails_with(1, &["rank0.bin", "sha256", built["weights"][0]["sha256"].as_str().unwrap(), "damaged"]);
    bench.run(&["inspect", &fixture_path("llama_tied"), "--verify"], &[]).fails_with(2, &["no artifact"]);
    bench.run(&["build", &artifact, "-o", &bench.path("again")], &[]).fails_with(2, &["is an artifact already"]);
    let place = fixture_path("llama_tied");
    bench.run(&["build", &place, "-o", &place, "-q"], &[]).fails_with(1, &["is there and is no artifact"]);
}

/// A plan that was made before, requests' lengths, and the instance as a flag of a run verb.
#[test]
fn a_build_takes_a_plan_or_lengths_and_a_run_an_instance() {
    let Some(bench) = Bench::new() else { return };
    let (model, place, plan) = (fixture_path("llama_tied"), bench.path("planned"), bench.path("plan.json"));
    let lengths = bench.path("lengths.csv");
    fs::write(&lengths, "ContextTokens,GeneratedTokens\n40,20\n100,28\n30,10\n").unwrap();
    let common =
        ["--context", "128", "--candidates", "16", "--quant", "none", "--tp", "1", "--batch", "2", "--max-neffs", "4"];
    let with_lengths = ["--instance", "inf2.8xlarge", "--lengths", &lengths, "--json", "-q"];
    let planned = bench.run(&[&["plan", &model], &common[..], &with_lengths].concat(), &[]);
    fs::write(&plan, &planned.stdout).unwrap();
    let instance = [("NJOULE_INSTANCE", "inf2.8xlarge")];
    let by_plan = bench.run(&["build", &model, "-o", &place, "--plan", &plan, "--json", "-q"], &instance).json();
    let by_lengths =
        bench.run(&[&["build", &model, "-o", &bench.path("again")], &common[..], &with_lengths].concat(), &[]).json();
    // Not the id: figures of the plan, which the manifest keeps, need not read back bit for bit.
    let made = |built: &Value| {
        let hashes = built["modules"].as_array().unwrap().iter().map(|m| m["neff_sha256"].clone()).collect::<Vec<_>>();
        (built["instance"].clone(), built["classes"].clone(), built["weights"].clone(), hashes)
    };
    assert_eq!(made(&by_plan), made(&by_lengths));
    assert_eq!(by_plan["instance"], "inf2.8xlarge");
    assert!(by_plan["figures"]["lengths"].as_str().unwrap().ends_with("lengths.csv"));
    let other = fixture_path("qwen3");
    bench
        .run(&["build", &other, "-o", &place, "--plan", &plan], &instance)
        .fails_with(1, &["plan.json", "another model"]);
    bench.run(&["build", &model, "-o", &place, "--plan", &plan], &[]).fails_with(2, &["inf2.8xlarge", "inf2.xlarge"]);
    fs::write(&plan, "{}").unwrap();
    bench.run(&["build", &model, "-o", &place, "--plan", &plan], &[]).fails_with(1, &["plan.json is no plan"]);
    let unknown = ["--backend", "neuron", "--instance", "inf9.huge", "--quant", "none"];
    let seen = bench.generate(&model, &unknown, &[]);
    assert!(seen.code == 2 && seen.stderr.contains("\"inf9.huge\""), "{}", seen.stderr);
}

#[test]
fn a_second_build_compiles_nothing_and_makes_the_same_artifact() {
    let Some(bench) = Bench::new() else { return };
    let options = ["--quant", "none", "--tp", "1", "--batch", "2", "--max-neffs", "4"];
    let (_, first) = bench.build("llama_tied", "a", &options);
    let (_, second) = bench.build("llama_tied", "b", &options);
    assert_eq!(first["id"], second["id"]);
    assert!(second["modules"].as_array().unwrap().iter().all(|m| m["cached"] == true));
    // A NEFF of the cache that was changed, its size kept, makes no artifact.
    let cache = fs::read_dir(bench.dir.path().join("cache/neuron")).unwrap().map(Result::unwrap);
    let shelves = cache.filter(|dir| dir.file_name().len() == 2).flat_map(|dir| fs::read_dir(dir.path()).unwrap());
    let entry = shelves.map(Result::unwrap).find(|dir| dir.file_name().len() == 64).unwrap().path();
    let mut bytes = fs::read(entry.join("module.neff")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(entry.join("module.neff"), bytes).unwrap();
    let model = fixture_path("llama_tied");
    let place = bench.path("c");
    let args =
        [&["build", &model, "-o", &place, "--context", "512", "--candidates", "16", "-q"], &options[..]].concat();
    bench.run(&args, &[]).fails_with(1, &["module.neff", "it was compiled as"]);
    assert!(!Path::new(&place).exists());
}

#[test]
fn int8_weights_and_caches_run_and_stay_near_the_exact_answers() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build(
        "llama_tied",
        "int8",
        &["--quant", "int8", "--kv-type", "int8", "--tp", "2", "--batch", "2", "--max-neffs", "4"],
    );
    let prompt = bench.path("score.json");
    fs::write(&prompt, "[[1, 5, 9, 30, 200, 7, 8, 100, 3, 17]]").unwrap();
    let score = |model: &str, options: &[&str]| {
        let args = [&["score", "-m", model, "--token-ids", &prompt, "--json", "-q", "-c", "512"], options].concat();
        let json = bench.run(&args, &[]).json();
        let results = json["results"][0]["logprobs"].as_array().cloned();
        results.unwrap_or_else(|| panic!("{json}")).iter().filter_map(Value::as_f64).collect::<Vec<f64>>()
    };
    let exact = score(&fixture_path("llama_tied"), &["--backend", "cpu", "--quant", "none"]);
    let coded = score(&artifact, &[]);
    assert_eq!(exact.len(), coded.len());
    let off = exact.iter().zip(&coded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off > 0.0 && off < 0.5, "{off}: {exact:?} {coded:?}");
}

#[test]
fn a_model_without_an_artifact_is_built_into_the_cache_once() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("llama_tied");
    let options = ["--backend", "neuron", "--quant", "none", "--batch-size", "2"];
    let expected = ids(&bench.generate(&model, &["--backend", "cpu", "--quant", "none"], &[]));
    assert_eq!(ids(&bench.generate(&model, &options, &[])), expected);
    // Nothing is left to compile: a compiler that would refuse everything is not asked.
    assert_eq!(ids(&bench.generate(&model, &options, &[("NJOULE_FAKE_CC_REFUSE", "dot")])), expected);
}

#[test]
fn without_a_runtime_the_error_says_what_was_tried_and_a_fallback_answers() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("llama_tied");
    let options = ["--backend", "neuron", "--quant", "none", "--batch-size", "2"];
    let absent = [("NJOULE_NRT", "/nowhere/libnrt.so.1")];
    let refused = bench.generate(&model, &options, &absent);
    assert_eq!(refused.code, 1);
    for part in ["/nowhere/libnrt.so.1", "NJOULE_NRT", "njoule doctor"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let answered = bench.generate(&model, &[&options[..], &["--fallback", "cpu"]].concat(), &absent);
    assert_eq!(answered.json()["model"]["backend"], "cpu");
    let refused = bench.generate(&model, &["--backend", "neuron", "--quant", "int4"], &[]);
    assert!(refused.code == 2 && refused.stderr.contains("int4"), "{}", refused.stderr);
}

#[test]
fn an_artifact_that_does_not_fit_the_machine_or_is_damaged_is_refused_at_once_in_words() {
    let Some(bench) = Bench::new() else { return };
    let options = ["--quant", "none", "--tp", "2", "--batch", "2", "--max-neffs", "4"];
    let (artifact, _) = bench.build("llama_tied", "fine", &options);
    let refused = |says: &str, environment: &[(&str, &str)]| {
        // Within a second, on a machine that may do other things: at one of three times.
        let times = [0; 3].map(|_| {
            let started = Instant::now();
            let seen = bench.generate(&artifact, &[], environment);
            assert!(seen.code == 1 && seen.stderr.contains(says), "{says}: {}", seen.stderr);
            started.elapsed()
        });
        assert!(times.iter().any(|time| *time < Duration::from_secs(1)), "{says}: {times:?}");
    };
    let (newer, _) = bench_newer(&bench);
    let seen = bench.generate(&newer, &[], &[]);
    assert!(seen.code == 1 && seen.stderr.contains("(10)"), "a NEFF of another version: {}", seen.stderr);
    refused("it was built for inf2", &[("NJOULE_FAKE_INSTANCE", "trn2.48xlarge")]);
    refused("it needs 2 cores, this process has 1", &[("NEURON_RT_NUM_CORES", "1")]);
    let neff = fs::read_dir(Path::new(&artifact).join("modules")).unwrap().map(|e| e.unwrap().path());
    let neff = neff.into_iter().find(|p| p.extension().is_some_and(|e| e == "neff")).unwrap();
    let whole = fs::read(&neff).unwrap();
    fs::write(&neff, &whole[..whole.len() - 1]).unwrap();
    refused(neff.file_name().unwrap().to_str().unwrap(), &[]);
    fs::write(&neff, whole).unwrap();
    let manifest = Path::new(&artifact).join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replacen("\"tp\": 2", "\"tp\": 1", 1)).unwrap();
    refused("manifest.json: field `id`", &[]);
}

/// An artifact whose NEFFs are of a format that the runtime does not load.
fn bench_newer(bench: &Bench) -> (String, Value) {
    let place = bench.path("newer");
    let model = fixture_path("llama_tied");
    let args =
        ["build", &model, "-o", &place, "--context", "512", "--candidates", "16", "--quant", "none", "--tp", "1"];
    let args = [&args[..], &["--batch", "3", "--max-neffs", "4", "--json", "-q"]].concat();
    let built = bench.run(&args, &[("NJOULE_FAKE_CC_NEFF_VERSION", "3.0")]).json();
    (place, built)
}

/// Every status at every kind of call: a request is answered or refused, within the deadline, and nothing panics.
#[test]
fn whatever_the_runtime_answers_a_request_is_answered_or_refused_and_none_is_lost() {
    let Some(bench) = Bench::new() else { return };
    let (artifact, _) = bench.build(
        "llama_tied",
        "faults",
        &["--quant", "none", "--tp", "1", "--batch", "2", "--max-neffs", "4", "--no-score"],
    );
    let healthy = ids(&bench.generate(&artifact, &[], &[]));
    let statuses = [
        1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15, 101, 1002, 1003, 1004, 1005, 1006, 1100, 1200, 1201, 1202, 1203,
        1204, 1205, 1206, 9999,
    ];
    let actions = statuses.map(|s| s.to_string()).into_iter().chain(["hang".to_owned()]);
    let mut table = vec![];
    for action in actions {
        for (call, nth) in [
            ("nrt_load", "1"),
            ("nrt_tensor_write", "1"),
            ("nrt_tensor_write", "40"),
            ("evaluate", "8"),
            ("nrt_tensor_read", "2"),
        ] {
            let fault = format!("{call}@{nth}={action}");
            // Short where nothing else ends the wait; elsewhere a loaded machine is given time.
            let limit = if action == "hang" { "1" } else { "60" };
            let environment = [
                ("NJOULE_FAKE_FAULTS", fault.as_str()),
                ("NJOULE_NEURON_STEP_TIMEOUT", limit),
                ("NJOULE_NEURON_LOAD_TIMEOUT", limit),
                ("NEURON_RT_EXEC_TIMEOUT", limit),
            ];
            let started = Instant::now();
            let seen = bench.generate(&artifact, &[], &environment);
            let took = started.elapsed();
            assert!(took < Duration::from_secs(50), "{fault}: {took:?}");
            assert!(!seen.stderr.contains("panicked"), "{fault}: {}", seen.stderr);
            // A run of several rows with an index out of bounds is tried again by halves: a fault that comes but once is
            // survived. The first of these calls are of the load, the second read is of a chunk.
            let survived =
                action == "1006" && ["evaluate@8", "nrt_tensor_write@40"].contains(&&*format!("{call}@{nth}"));
            let outcome = match seen.code {
                0 => {
                    assert_eq!(ids(&seen), healthy, "{fault}: an answer that is not the right one");
                    "answered"
                }
                _ => {
                    let named = action == "hang"
                        || seen.stderr.contains(&format!("({action})"))
                        || seen.stderr.contains(&format!("status {action}"));
                    assert!(named || seen.stderr.contains("out of bounds"), "{fault} is not named: {}", seen.stderr);
                    "refused"
                }
            };
            match action.as_str() {
                // Tried again where it is a run's, and otherwise too.
                "7" => {}
                _ => assert_eq!(outcome == "answered", survived, "{fault}: {outcome}"),
            }
            table.push(format!("{fault}: {outcome}"));
        }
    }
    assert_eq!(table.len(), 29 * 5);
}
