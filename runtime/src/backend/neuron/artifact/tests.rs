use njoule_models::program::{CacheId, WeightId};
use proptest::prelude::*;
use serde_json::Value;

use super::write::MARKER;
use super::*;
use crate::backend::neuron::interface::{CachePart, ModuleKind, Part, WeightPart};

const CLASS: CacheShape = CacheShape { rows: 2, positions: 8 };
const LONGER: CacheShape = CacheShape { rows: 1, positions: 16 };
const VOCAB: usize = 40;
const CANDIDATES: usize = 4;

/// A module of each kind, and one that decodes two classes, with one cache and two weights, on two cores.
pub(crate) fn layout() -> Layout {
    let choosing = |spec| ModuleSpec { biases: 2, mask: true, ..spec };
    let spec = |kind, len| choosing(ModuleSpec::of(CLASS, kind, len));
    let parts = [Part { class: CLASS, rows: 2, len: 4 }, Part { class: LONGER, rows: 1, len: 16 }];
    Layout {
        instance: "inf2.xlarge".to_owned(),
        target: Target::Inf2,
        lnc: None,
        tp: 2,
        replicas: 1,
        weights: Quant::Int8,
        kv: KvType::Bf16,
        candidates: CANDIDATES,
        context: 5,
        profile: Profile::default(),
        classes: vec![CLASS, LONGER],
        modules: vec![
            spec(ModuleKind::Decode { batch: 2 }, 8),
            spec(ModuleKind::Prefill { tokens: 3 }, 8),
            ModuleSpec::of(CLASS, ModuleKind::Score { tokens: 3 }, 8),
            choosing(ModuleSpec::decode(parts.into())),
        ],
    }
}

fn inputs(spec: &ModuleSpec) -> Vec<Port<Input>> {
    let (tokens, outputs) = (spec.kind.tokens(), spec.kind.outputs());
    let s32 = |role, dims: &[usize]| Port { role, dtype: DType::S32, dims: dims.to_vec() };
    let mut ports = vec![s32(Input::Tokens, &[tokens])];
    match spec.kind {
        ModuleKind::Decode { .. } => {
            ports.extend([Input::Positions, Input::Slots].map(|role| s32(role, &[tokens])));
        }
        ModuleKind::Prefill { .. } => ports.extend([Input::Start, Input::Row, Input::Last].map(|role| s32(role, &[]))),
        ModuleKind::Score { .. } => ports.extend([Input::Start, Input::Row].map(|role| s32(role, &[]))),
    }
    ports.push(s32(Input::Rank, &[]));
    if spec.mask {
        ports.push(s32(Input::BiasIds, &[outputs, 2]));
        ports.push(Port { role: Input::BiasValues, dtype: DType::F32, dims: vec![outputs, 2] });
        ports.push(Port { role: Input::Mask, dtype: DType::U32, dims: vec![outputs, 1] });
    }
    for class in spec.parts.iter().map(|part| part.class) {
        let role = Input::Cache(class, CacheId(0), CachePart::Keys);
        ports.push(Port { role, dtype: DType::BF16, dims: vec![class.rows, class.positions, 1, 4] });
    }
    let weight = |id, part| Input::Weight(WeightId(id), part);
    ports.push(Port { role: weight(0, WeightPart::Values), dtype: DType::S8, dims: vec![30, 7] });
    ports.push(Port { role: weight(0, WeightPart::Scales), dtype: DType::F32, dims: vec![30] });
    ports
}

fn outputs(spec: &ModuleSpec) -> Vec<Port<Output>> {
    let rows = spec.kind.outputs();
    let port = |role, dtype, dims: &[usize]| Port { role, dtype, dims: dims.to_vec() };
    let mut ports = match spec.kind {
        ModuleKind::Score { .. } => vec![port(Output::Logits, DType::F32, &[rows, VOCAB])],
        _ => vec![
            port(Output::CandidateValues, DType::F32, &[rows, CANDIDATES]),
            port(Output::CandidateIds, DType::S32, &[rows, CANDIDATES]),
            port(Output::LogSumExp, DType::F32, &[rows]),
            port(Output::Greedy, DType::S32, &[rows]),
        ],
    };
    for class in spec.parts.iter().map(|part| part.class) {
        let role = Output::Cache(class, CacheId(0), CachePart::Keys);
        ports.push(port(role, DType::BF16, &[class.rows, class.positions, 1, 4]));
    }
    ports
}

/// A module with these ports that computes nothing.
fn module_of(inputs: &[Port<Input>], outputs: &[Port<Output>]) -> Vec<u8> {
    let mut b = njoule_hlo::Builder::new("ports");
    let parameters: Vec<_> =
        inputs.iter().enumerate().map(|(i, p)| b.parameter(&format!("p{i}"), p.dtype, &p.dims)).collect();
    let mut result = |port: &Port<Output>| match port.role {
        Output::Cache(class, id, part) => {
            parameters[inputs.iter().position(|p| p.role == Input::Cache(class, id, part)).unwrap()]
        }
        _ if port.dtype == DType::F32 => b.full(&port.dims, 0f32),
        _ => b.full(&port.dims, 0i32),
    };
    let results: Vec<_> = outputs.iter().map(&mut result).collect();
    njoule_hlo::encode(&b.finish(&results))
}

/// Writes an artifact of [`layout`] at `place`.
fn write(place: &Path) -> String {
    let layout = layout();
    let all: Vec<Vec<Port<Input>>> = layout.modules.iter().map(inputs).collect();
    let parameters = lay_out(all.iter().flatten(), |_| "a.weight".to_owned()).unwrap();
    let source = Source {
        njoule: "0.0.0".to_owned(),
        compiler: "2.99".to_owned(),
        model: ModelRecord {
            name: "tiny".to_owned(),
            architecture: "llama".to_owned(),
            fingerprint: "00".to_owned(),
            vocab: VOCAB,
            origin: Origin::Directory,
        },
        layout: layout.clone(),
        plan: serde_json::json!({"figure": 0.1 + 0.2}),
        parameters,
    };
    let mut writer = Writer::start(place, source).unwrap();
    let neff = place.with_extension("neff");
    fs::write(&neff, neff::fixture(&[], 1)).unwrap();
    for (i, (spec, inputs)) in layout.modules.iter().zip(all).enumerate() {
        let module = Module {
            name: format!("m{i}"),
            spec: spec.clone(),
            inputs: inputs.clone(),
            outputs: outputs(spec),
            hlo: module_of(&inputs, &outputs(spec)),
            neff: neff.clone(),
            neff_sha256: digest::of_bytes(&fs::read(&neff).unwrap()),
            flags: vec!["-O1".to_owned()],
            peak_bytes: 7,
            seconds: 0.3,
        };
        writer.module(&module).unwrap();
    }
    for rank in 0..layout.tp {
        let fill = |put: &mut Put<'_>| {
            let piece = vec![rank as u8 + 1; 105];
            put(Input::Weight(WeightId(0), WeightPart::Values), &piece)?;
            put(Input::Weight(WeightId(0), WeightPart::Values), &piece)?;
            put(Input::Weight(WeightId(0), WeightPart::Scales), &piece)
        };
        writer.weights::<WriteError>(fill).unwrap();
    }
    writer.file("config.json", b"{}").unwrap();
    writer.finish().unwrap()
}

fn written() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("model");
    write(&place);
    (dir, place)
}

fn refusal(place: &Path) -> String {
    let error = Artifact::open(place).unwrap_err();
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn what_is_written_is_read_and_has_the_same_name_when_written_again() {
    let (dir, place) = written();
    let artifact = Artifact::open(&place).unwrap();
    assert_eq!(artifact.manifest.layout, layout());
    assert!(Artifact::is_in(&place) && artifact.has_weights());
    let second = &artifact.manifest.parameters[1];
    assert_eq!((second.offset, second.bytes), (4096, 120));
    let rank1 = fs::read(place.join("weights/rank1.bin")).unwrap();
    assert_eq!(rank1.len(), 4096 + 120);
    assert_eq!((rank1[209], rank1[210], rank1[4095], rank1[4096]), (2, 0, 0, 2));
    assert_eq!(rank1[4096 + 105..], [0; 15], "what was not handed over");
    let mut read = 0;
    artifact.verify(|n| read += n).unwrap();
    assert!(read > 2 * 4096);
    let id = artifact.manifest.id;
    assert_eq!(write(&place), id, "in the place of the first");
    assert_eq!(write(&dir.path().join("other")), id);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "two artifacts, two NEFFs, nothing else");
}

#[test]
fn a_manifest_in_another_layout_is_read_and_what_was_measured_is_no_part_of_the_name() {
    let (_dir, place) = written();
    let path = place.join(MANIFEST);
    let manifest = Artifact::open(&place).unwrap().manifest;
    let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut sorted: std::collections::BTreeMap<String, Value> = std::collections::BTreeMap::new();
    sorted.extend(value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.clone())));
    for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&sorted).unwrap()] {
        fs::write(&path, text).unwrap();
        assert_eq!(Artifact::open(&place).unwrap().manifest, manifest);
        assert!(Artifact::is_in(&place) && Writer::may_take(&place).is_ok());
    }
    let mut measured = value.clone();
    measured["modules"][0]["seconds"] = 99.5.into();
    fs::write(&path, measured.to_string()).unwrap();
    assert!(refusal(&place).contains("field `checksum`"), "{}", refusal(&place));
    measured["checksum"] = identity::of_everything(&measured).into();
    fs::write(&path, measured.to_string()).unwrap();
    assert_eq!(Artifact::open(&place).unwrap().manifest.id, manifest.id);
}

#[test]
fn what_is_no_manifest_is_refused_as_one_and_never_waited_for_or_replaced() {
    let (_dir, place) = written();
    let path = place.join(MANIFEST);
    for (text, says) in [("x\n", "is no manifest"), ("", "is no manifest"), ("{}", "missing field `format`")] {
        fs::write(&path, text).unwrap();
        assert!(Artifact::is_in(&place) && refusal(&place).contains(says), "{}", refusal(&place));
        assert!(matches!(Writer::may_take(&place), Err(WriteError::Occupied { .. })));
    }
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success() && Artifact::is_in(&place));
    assert!(refusal(&place).contains("it is no regular file"), "{}", refusal(&place));
    // Another program's manifest, beside no modules.
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join(MANIFEST), "{\"version\": 2}").unwrap();
    assert!(!Artifact::is_in(other.path()));
}

/// Of nothing.
fn source(layout: Layout) -> Source {
    Source {
        njoule: String::new(),
        compiler: String::new(),
        model: ModelRecord {
            name: String::new(),
            architecture: String::new(),
            fingerprint: String::new(),
            vocab: 4,
            origin: Origin::None,
        },
        layout,
        plan: Value::Null,
        parameters: vec![],
    }
}

#[test]
fn a_writer_that_does_not_finish_leaves_nothing_and_none_takes_the_place_of_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("precious");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("letter.txt"), "x").unwrap();
    assert!(matches!(Writer::start(&place, source(layout())), Err(WriteError::Occupied { .. })));
    let writer = Writer::start(&dir.path().join("new"), source(layout())).unwrap();
    let Err(WriteError::Inconsistent(_)) = writer.finish() else { panic!("modules are missing") };
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_a_killed_writer_left_is_removed_and_nothing_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let [marked, foreign, other] = ["model.tmp-999999999", "model.tmp-999999998", "model.tmp-x"].map(|name| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("letter.txt"), "x").unwrap();
        path
    });
    fs::write(marked.join(MARKER), "").unwrap();
    fs::write(other.join(MARKER), "").unwrap();
    let place = dir.path().join("model");
    write(&place);
    assert!(!marked.exists() && foreign.join("letter.txt").exists() && other.join("letter.txt").exists());
    assert!(!place.join(MARKER).exists());
    // A directory of the writer's own name that it did not make.
    let own = dir.path().join(format!("model.tmp-{}", std::process::id()));
    fs::create_dir(&own).unwrap();
    fs::write(own.join("letter.txt"), "x").unwrap();
    let Err(WriteError::Io { action: "make", .. }) = Writer::start(&place, source(layout())) else { panic!("taken") };
    assert!(own.join("letter.txt").exists());
}

#[test]
fn files_that_the_manifest_does_not_name_are_named_by_a_look_at_all() {
    let (_dir, place) = written();
    fs::write(place.join("weights/rank2.bin"), "x").unwrap();
    fs::create_dir(place.join("more")).unwrap();
    fs::write(place.join("more/notes.txt"), "x").unwrap();
    let error = Artifact::open(&place).unwrap().verify(|_| ()).unwrap_err();
    assert!(error.to_string().ends_with("does not name: more/notes.txt, weights/rank2.bin"), "{error}");
    fs::remove_file(place.join("weights/rank2.bin")).unwrap();
    fs::remove_file(place.join("more/notes.txt")).unwrap();
    Artifact::open(&place).unwrap().verify(|_| ()).unwrap();
}

#[test]
fn damage_is_refused_naming_file_and_field() {
    let check = |damage: &dyn Fn(&Path), says: &[&str]| {
        let (_dir, place) = written();
        damage(&place);
        let text = refusal(&place);
        assert!(says.iter().all(|part| text.contains(part)), "{text} does not say {says:?}");
    };
    check(&|p| fs::remove_file(p.join("modules/m1.neff")).unwrap(), &["m1.neff", "cannot read"]);
    check(&|p| fs::write(p.join("weights/rank0.bin"), "x").unwrap(), &["rank0.bin", "has 1 bytes"]);
    check(&|p| fs::write(p.join(MANIFEST), "{\n  \"format\": 9}").unwrap(), &[MANIFEST, "`format` is 9"]);
    check(&|p| fs::write(p.join(MANIFEST), "[]").unwrap(), &[MANIFEST, "no manifest"]);
    let edit = |p: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(p.join(MANIFEST)).unwrap();
        assert!(text.contains(from));
        fs::write(p.join(MANIFEST), text.replacen(from, to, 1)).unwrap();
    };
    check(&|p| edit(p, "\"context\": 5", "\"context\": 6"), &[MANIFEST, "`id`"]);
    check(&|p| edit(p, "\"context\": 5", "\"context\": -5"), &[MANIFEST, "invalid value"]);
    check(&|p| edit(p, "\"context\"", "\"contextt\""), &[MANIFEST, "contextt"]);
    // Same size, another content: only a look at all bytes finds it.
    let (_dir, place) = written();
    let rank0 = place.join("weights/rank0.bin");
    let mut bytes = fs::read(&rank0).unwrap();
    bytes[0] ^= 1;
    fs::write(&rank0, bytes).unwrap();
    let error = Artifact::open(&place).unwrap().verify(|_| ()).unwrap_err();
    assert!(matches!(&error, ArtifactError::Hash { path, .. } if *path == rank0), "{error}");
}

/// What hashes cannot tell: a manifest that was made for other modules.
#[test]
fn modules_and_neffs_that_differ_from_the_manifest_are_named() {
    let (_dir, place) = written();
    let opened = || Artifact::open(&place).unwrap();
    opened().verify(|_| ()).unwrap();
    let differs = |change: fn(&mut Manifest)| {
        let mut artifact = opened();
        change(&mut artifact.manifest);
        match artifact.verify(|_| ()).unwrap_err() {
            ArtifactError::Differs { path, what } => format!("{}: {what}", path.display()),
            other => panic!("{other}"),
        }
    };
    let text = differs(|m| m.modules[0].inputs[0].dims[0] = 7);
    assert!(text.contains("m0.hlo.pb") && text.contains("parameter 0"), "{text}");
    let text = differs(|m| m.modules[2].outputs[0].dtype = DType::S32);
    assert!(text.contains("m2.hlo.pb") && text.contains("result 0"), "{text}");
    let text = differs(|m| drop(m.modules[1].outputs.pop()));
    assert!(text.contains("it has 5 results, the manifest 4"), "{text}");
    // A NEFF that tells its inputs' sizes tells others.
    let def = br#"{"var": {"input0": {"type": "input", "size": 3}, "output0": {"type": "output", "size": 3}}}"#;
    let neff = neff::fixture(&[("sg00/def.json", &def[..])], 1);
    let mut artifact = opened();
    let record = &mut artifact.manifest.modules[0].neff;
    (record.sha256, record.bytes) = (digest::of_bytes(&neff), neff.len() as u64);
    fs::write(place.join(&record.path), &neff).unwrap();
    let error = artifact.verify(|_| ()).unwrap_err().to_string();
    assert!(error.contains("m0.neff") && error.contains("`input0` has 3 bytes, the manifest says 8"), "{error}");
}

/// The manifest's text with one value replaced and the id made right again.
fn changed(text: &[u8], pointer: &str, to: Value) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(text).unwrap();
    *value.pointer_mut(pointer).unwrap() = to;
    value["id"] = identity::of_content(&value).into();
    value["checksum"] = identity::of_everything(&value).into();
    serde_json::to_vec_pretty(&value).unwrap()
}

#[test]
fn inconsistent_fields_are_refused_by_name() {
    let (_dir, place) = written();
    let text = fs::read(place.join(MANIFEST)).unwrap();
    let cases = [
        ("/layout/tp", 3.into(), "field `weights`"),
        ("/layout/tp", 0.into(), "layout.tp"),
        ("/layout/candidates", 41.into(), "layout.candidates"),
        ("/layout/classes", Value::Array(vec![]), "layout"),
        ("/modules/0/hlo/path", "../x".into(), "no path below"),
        ("/modules/0/hlo/path", "/etc/passwd".into(), "no path below"),
        ("/modules/1/name", "m0".into(), "modules[1]"),
        ("/modules/0/inputs/0/dims/0", 3.into(), "input 0"),
        ("/modules/0/inputs/0/role", "row".into(), "input 0"),
        ("/modules/0/inputs/0/role", "rows".into(), "\"rows\""),
        ("/modules/2/outputs/0/role", "greedy".into(), "output 0"),
        ("/modules/0/outputs/4/dims/0", 1.into(), "output 4"),
        ("/parameters/1/offset", 100.into(), "`a.weight`"),
        ("/parameters/1/bytes", 100.into(), "`a.weight`"),
        ("/modules/0/spec/parts/0/len", 9.into(), "modules[0]"),
        ("/modules/3/inputs/7/role", "cache:2x9:0:keys".into(), "input 7 (cache) is of a class that is not among"),
        ("/modules/3/inputs/7/role", "cache:0:keys".into(), "\"cache:0:keys\""),
        ("/modules/3/inputs/8/role", "cache:2x8:0:keys".into(), "input 8 has a role that another has"),
        ("/modules/3/inputs/8/dims/1", 8.into(), "input 8 (cache) has another shape than its class"),
        ("/modules/3/outputs/5/role", "cache:2x8:0:keys".into(), "output 5"),
    ];
    for (pointer, to, says) in cases {
        let error = Manifest::parse(&changed(&text, pointer, to)).unwrap_err();
        assert!(error.contains(says), "{pointer}: {error}");
    }
}

#[test]
fn lists_of_classes_that_are_none_are_refused_by_name() {
    let (_dir, place) = written();
    let text = fs::read(place.join(MANIFEST)).unwrap();
    let part = |rows: usize, positions: usize, of: usize, len: usize| serde_json::json!({"class": {"rows": of, "positions": positions}, "rows": rows, "len": len});
    let (short, long) = (part(2, 8, 2, 4), part(1, 16, 1, 16));
    let cases = [
        (vec![], "field `parts` is an empty list"),
        (vec![long.clone(), short.clone()], "field `parts[1]`: its class is no longer than that of the part before it"),
        (
            vec![short.clone(), short.clone()],
            "field `parts[1]`: its class is no longer than that of the part before it",
        ),
        (vec![short.clone()], "field `kind` has 3 rows, the `parts` have 2"),
        (
            vec![short.clone(), part(2, 16, 1, 16)],
            "field `parts[1]`: 2 rows of 16 positions are no part of 1 rows of 16",
        ),
        (
            vec![short.clone(), part(1, 16, 1, 17)],
            "field `parts[1]`: 1 rows of 17 positions are no part of 1 rows of 16",
        ),
        (vec![short.clone(), part(1, 17, 1, 16)], "field `parts[1]`: its class is not among `layout.classes`"),
    ];
    for (parts, says) in cases {
        // Both places say it, so that nothing else is wrong.
        let mut value: Value = serde_json::from_slice(&text).unwrap();
        for pointer in ["/layout/modules/3/parts", "/modules/3/spec/parts"] {
            *value.pointer_mut(pointer).unwrap() = Value::Array(parts.clone());
        }
        let parts = value["modules"][3]["spec"]["parts"].clone();
        let error = Manifest::parse(&changed(&serde_json::to_vec(&value).unwrap(), "/modules/3/spec/parts", parts));
        let error = error.unwrap_err();
        assert!(error.starts_with("field `modules[3]` (m3): ") && error.ends_with(says), "{error} does not say {says}");
    }
    // A chunk is of one class.
    let mut value: Value = serde_json::from_slice(&text).unwrap();
    value["layout"]["modules"][1]["parts"] = Value::Array(vec![short.clone(), long.clone()]);
    let to = value["layout"]["modules"][1]["parts"].clone();
    let error =
        Manifest::parse(&changed(&serde_json::to_vec(&value).unwrap(), "/modules/1/spec/parts", to)).unwrap_err();
    assert_eq!(error, "field `modules[1]` (m1): field `parts`: a chunk is of one row, not of 3");
    // The format before this one had one class by itself.
    let error = Manifest::parse(br#"{"format": 1}"#).unwrap_err();
    assert!(error.contains("`format` is 1, this njoule reads 2: build the artifact anew"), "{error}");
}

/// Every place in a value.
fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| pointers(v, format!("{at}/{k}"), out)),
        Value::Array(all) => all.iter().enumerate().for_each(|(i, v)| pointers(v, format!("{at}/{i}"), out)),
        _ => {}
    }
    out.push(at);
}

proptest! {
    #[test]
    fn any_bytes_give_a_manifest_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let _ = Manifest::parse(&bytes);
    }

    #[test]
    fn any_value_anywhere_gives_a_manifest_or_an_error(at in any::<prop::sample::Index>(), to in 0usize..8, n in any::<i64>()) {
        let (_dir, place) = written();
        let text = fs::read(place.join(MANIFEST)).unwrap();
        let mut places = vec![];
        pointers(&serde_json::from_slice(&text).unwrap(), String::new(), &mut places);
        let pointer = at.get(&places).clone();
        prop_assume!(pointer != "/id" && !pointer.is_empty());
        let huge = (i64::MAX as u64).into();
        let to = [Value::Null, n.into(), huge, "weight:0:values".into(), "cache:2x8:99:keys".into(), Value::Array(vec![]),
            Value::Array(vec![n.into(); 5]), serde_json::json!({})][to].clone();
        let text = changed(&text, &pointer, to);
        let _ = Manifest::parse(&text);
        fs::write(place.join(MANIFEST), text).unwrap();
        if let Ok(artifact) = Artifact::open(&place) {
            let _ = artifact.verify(|_| ());
        }
    }
}
