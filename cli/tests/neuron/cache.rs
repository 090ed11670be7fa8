//! Modules in the cache: damage is made good, and nothing of the compiler is needed to serve them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Bench, fixture_path, ids};

const OPTIONS: [&str; 6] = ["--backend", "neuron", "--quant", "none", "--batch-size", "2"];

/// The directories of modules.
fn modules(bench: &Bench) -> Vec<PathBuf> {
    let entries = fs::read_dir(bench.path("cache/neuron/modules")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// A compiler that writes down each time that it is asked anything, and says that it is of `version`.
fn counting(bench: &Bench, version: &str) -> (String, PathBuf) {
    let (path, calls) = (bench.path(&format!("cc-{version}")), bench.dir.path().join("calls"));
    let script = format!(
        "#!/bin/sh\necho \"$1\" >> {}\n[ \"$1\" = --version ] && {{ echo 'NeuronX Compiler version {version}'; exit 0; }}\n\
         exec {} \"$@\"\n",
        calls.display(),
        bench.cc.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (path, calls)
}

#[test]
fn modules_of_the_cache_that_cannot_be_read_are_built_anew() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("llama_tied");
    let expected = ids(&bench.generate(&model, &OPTIONS, &[]));
    let [place] = &modules(&bench)[..] else { panic!() };
    let manifest = place.join("manifest.json");
    let damage: [&dyn Fn(); 3] =
        [&|| fs::write(&manifest, "junk").unwrap(), &|| fs::write(&manifest, "{\"format\": 99}").unwrap(), &|| {
            fs::remove_file(&manifest).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(&manifest).status().unwrap().success());
        }];
    for damage in damage {
        damage();
        assert_eq!(ids(&bench.generate(&model, &OPTIONS, &[])), expected);
        assert!(fs::read_to_string(&manifest).unwrap().contains("\"compiler\""));
    }
}

#[test]
fn what_is_in_the_cache_starts_without_a_compiler_and_asks_one_for_its_version_once() {
    let Some(bench) = Bench::new() else { return };
    let model = fixture_path("llama_tied");
    let (cc, calls) = counting(&bench, "2.50");
    let with = |cc: &str| bench.generate(&model, &OPTIONS, &[("NJOULE_NEURONX_CC", cc)]);
    let expected = ids(&with(&cc));
    let asked = || fs::read_to_string(&calls).unwrap_or_default();
    assert!(asked().contains("compile"));
    fs::remove_file(&calls).unwrap();
    assert_eq!(ids(&with(&cc)), expected);
    assert_eq!(asked(), "", "with everything in the cache nothing of it is run");

    // None on this machine: what was compiled serves, and that is said.
    let none = ["generate", "-m", &model, "--token-ids", &bench.path("prompts.json"), "-n", "6", "--json"];
    let none = [&none[..], &["--ignore-eos", "-c", "512", "--temperature", "0"], &OPTIONS].concat();
    let seen = bench.run(&none, &[("NJOULE_NEURONX_CC", ""), ("PATH", "/nowhere")]);
    assert_eq!(ids(&seen), expected);
    for says in ["no neuronx-cc", "neuronx-cc 2.50 compiled, from the cache"] {
        assert!(seen.stderr.contains(says), "{}", seen.stderr);
    }
    let seen = bench.run(&none, &[("NJOULE_NEURONX_CC", "/no/such/cc")]);
    assert!(seen.code == 0 && seen.stderr.contains("/no/such/cc"), "{}", seen.stderr);
    let other = bench.run(&[&none[..], &["--kv-type", "bf16"]].concat(), &[("NJOULE_NEURONX_CC", "/no/such/cc")]);
    assert!(other.code == 1 && other.stderr.contains("pip install"), "another plan: {}", other.stderr);

    // Another version compiles its own.
    let (newer, calls) = counting(&bench, "2.60");
    assert_eq!(ids(&with(&newer)), expected);
    assert!(fs::read_to_string(calls).unwrap().contains("compile"));
    assert_eq!(modules(&bench).len(), 2);
    // The same file changed is asked again.
    let changed = fs::read_to_string(&newer).unwrap().replace("2.60", "2.61");
    fs::write(&newer, changed).unwrap();
    assert_eq!(ids(&with(&newer)), expected);
    assert_eq!(modules(&bench).len(), 3);
    assert!(Path::new(&bench.path("cache/neuron/compiler.json")).exists());
    // A path from where njoule was started, though compilers are started elsewhere.
    let mut from_here =
        bench.command(&[&none[..], &["--kv-type", "bf16"]].concat(), &[("NJOULE_NEURONX_CC", "./cc-2.50")]);
    let seen = super::support::ran(from_here.current_dir(bench.dir.path()).output().unwrap());
    assert_eq!(seen.code, 0, "{}", seen.stderr);
}
