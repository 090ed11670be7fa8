//! The hub: the shared cache's layout, offline, tokens, and what a refusal means.

use std::path::{Path, PathBuf};

use super::server::{Reply, Request, Server};
use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SHARDS: &str =
    r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

/// A hub with one repository; weights are served from another origin, as the real one does.
struct Hub {
    hub: Server,
    storage: Arc<Server>,
}

fn hub(files: &'static [(&'static str, &'static str)]) -> Hub {
    let storage = Arc::new(Server::start(move |request| {
        let content = files.iter().find(|(name, _)| request.path == format!("/lfs/{name}"));
        content.map_or(Reply::status(404), |(_, content)| Reply::ranged(request, content.as_bytes()))
    }));
    let lfs = storage.url("lfs/");
    let hub = Server::start(move |request: &Request| {
        if request.path.starts_with("/api/models/org/name/revision/") {
            let names: Vec<_> = files.iter().map(|(name, _)| format!(r#"{{"rfilename":"{name}"}}"#)).collect();
            return Reply::ok(format!(r#"{{"sha":"{COMMIT}","siblings":[{}],"extra":1}}"#, names.join(",")));
        }
        let Some(name) = request.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else {
            return Reply::status(401).with("X-Error-Code", "RepoNotFound");
        };
        let Some((name, content)) = files.iter().find(|(file, _)| *file == name) else { return Reply::status(404) };
        if name.ends_with(".safetensors") || name.ends_with(".gguf") {
            let etag = format!("\"{}\"", sha256(content.as_bytes()));
            let size = content.len().to_string();
            return Reply::redirect(&format!("{lfs}{name}")).with("X-Linked-Etag", &etag).with("X-Linked-Size", &size);
        }
        Reply::ranged(request, content.as_bytes()).with("ETag", &format!("W/\"{}\"", &sha256(content.as_bytes())[..40]))
    });
    Hub { hub, storage }
}

const CHECKPOINT: &[(&str, &str)] = &[
    ("README.md", "readme"),
    ("config.json", "{}"),
    ("generation_config.json", "{ }"),
    ("tokenizer.json", "{  }"),
    ("tokenizer_config.json", "{   }"),
    ("model.safetensors.index.json", SHARDS),
    ("model-00001-of-00002.safetensors", "one"),
    ("model-00002-of-00002.safetensors", "two"),
    ("pytorch_model.bin", "pickle"),
    ("modeling.py", "code"),
];

fn setup(hub: &Hub, home: &Path, more: &[(&str, &str)]) -> FetchOptions {
    let endpoint = hub.hub.url("");
    let mut variables = vec![("HF_ENDPOINT", endpoint.as_str()), ("HF_TOKEN", "hf_secret")];
    variables.extend_from_slice(more);
    options(home, &variables).0
}

fn repo_dir(home: &Path) -> PathBuf {
    home.join(".cache/huggingface/hub/models--org--name")
}

#[test]
fn a_checkpoint_lands_in_the_shared_layout_with_the_needed_files_alone() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(CHECKPOINT);
    let options = setup(&server, home.path(), &[]);
    let found = resolve(&parse("org/name"), &options).unwrap();
    let root = repo_dir(home.path());
    let snapshot = root.join("snapshots").join(COMMIT);
    assert_eq!(found, ModelPath::Dir(snapshot.clone()));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let mut names: Vec<_> =
        std::fs::read_dir(&snapshot).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let wanted = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, wanted);
    let link = std::fs::read_link(snapshot.join("model-00001-of-00002.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(b"one")));
    assert_eq!(std::fs::read(snapshot.join("model-00002-of-00002.safetensors")).unwrap(), b"two");
    let seen =
        |server: &Server| server.requests().iter().all(|r| r.header("authorization") == Some("Bearer hf_secret"));
    assert!(seen(&server.hub), "the hub knows who asks");
    let storage = server.storage.requests();
    assert!(!storage.is_empty() && storage.iter().all(|r| r.header("authorization").is_none()), "{storage:?}");
}

#[test]
fn offline_uses_what_the_cache_holds_and_names_what_it_lacks() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(CHECKPOINT);
    let online = setup(&server, home.path(), &[]);
    resolve(&parse("org/name"), &online).unwrap();
    let asked = server.hub.log().len();
    let offline = setup(&server, home.path(), &[("HF_HUB_OFFLINE", "1")]);
    for reference in ["org/name", "org/name@main", &format!("org/name@{COMMIT}")] {
        resolve(&parse(reference), &offline).unwrap();
    }
    let snapshot = repo_dir(home.path()).join("snapshots").join(COMMIT);
    std::fs::remove_file(repo_dir(home.path()).join("blobs").join(sha256(b"two"))).unwrap();
    let error = resolve(&parse("org/name"), &offline).unwrap_err().to_string();
    assert!(error.contains("missing: model-00002-of-00002.safetensors") && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(resolve(&parse("org/none"), &offline).is_err());
    assert_eq!(server.hub.log().len(), asked, "nobody was asked");
    resolve(&parse("org/name"), &online).unwrap();
    assert_eq!(std::fs::read(snapshot.join("model-00002-of-00002.safetensors")).unwrap(), b"two", "the gap is filled");
}

#[test]
fn a_cached_model_needs_no_network_and_a_refresh_fetches_only_news() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(CHECKPOINT);
    let mut options = setup(&server, home.path(), &[]);
    resolve(&parse("org/name"), &options).unwrap();
    let asked = server.hub.log().len();
    resolve(&parse("org/name"), &options).unwrap();
    assert_eq!(server.hub.log().len(), asked);
    options.refresh = true;
    resolve(&parse("org/name"), &options).unwrap();
    assert_eq!(server.hub.log()[asked..], ["GET /api/models/org/name/revision/main"]);
}

#[test]
fn an_incomplete_blob_of_any_program_is_gone_on_with() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(&[("config.json", "{}"), ("tokenizer.json", "{ }"), ("model.safetensors", "weights of a model")]);
    let blobs = repo_dir(home.path()).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.incomplete", sha256(b"weights of a model"))), "weights").unwrap();
    resolve(&parse("org/name"), &setup(&server, home.path(), &[])).unwrap();
    assert_eq!(server.storage.requests()[0].range_start(), Some(7));
}

#[test]
fn one_quantisation_of_a_gguf_repository_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(&[("m-Q4_K_M.gguf", "GGUF 4"), ("m-Q8_0.gguf", "GGUF 8"), ("mmproj.gguf", "picture")]);
    let options = setup(&server, home.path(), &[]);
    let ModelPath::Gguf(path) = resolve(&parse("org/name:q8_0"), &options).unwrap() else { panic!("no GGUF") };
    assert_eq!(std::fs::read(&path).unwrap(), b"GGUF 8");
    assert_eq!(server.storage.log(), ["GET /lfs/m-Q8_0.gguf"]);
    let listed: Vec<_> = cached_models(&options.env).unwrap().into_iter().map(|m| (m.reference, m.path)).collect();
    assert_eq!(listed, [("org/name:m-Q8_0.gguf".to_owned(), path)]);
    let error = resolve(&parse("org/name@other"), &options).unwrap_err().to_string();
    assert!(
        error.contains("m-Q4_K_M.gguf") && error.contains("org/name:Q4_K_M") && !error.contains("mmproj"),
        "{error}"
    );
}

#[test]
fn refusals_say_what_can_be_done() {
    for (status, code, token, part) in [
        (401, "RepoNotFound", "", "set HF_TOKEN if it is yours"),
        (401, "", "", "set HF_TOKEN if it is yours"),
        (404, "RepoNotFound", "x", "whether your token may read it"),
        (401, "", "x", "the token is wrong or has expired"),
        (403, "", "x", "the token lacks the right"),
        (403, "GatedRepo", "x", "accept its terms at http://"),
        (404, "RevisionNotFound", "", "has no revision \"main\""),
        (429, "", "", "too many requests"),
        (500, "", "", "answered 500"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(move |_| Reply::status(status).with("X-Error-Code", code));
        let (options, _) = options(home.path(), &[("HF_ENDPOINT", &server.url("")), ("HF_TOKEN", token)]);
        let error = resolve(&parse("org/name"), &options).unwrap_err().to_string();
        assert!(error.contains(part), "{status} {code}: {error}");
    }
}

#[test]
fn repositories_without_readable_weights_are_refused_by_what_they_have() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(&[("config.json", "{}"), ("pytorch_model.bin", "pickle")]);
    let error = resolve(&parse("org/name"), &setup(&server, home.path(), &[])).unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin"), "{error}");
}

#[test]
fn file_names_that_leave_the_snapshot_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let server = hub(&[("../../x.gguf", "GGUF")]);
    let error = resolve(&parse("org/name"), &setup(&server, home.path(), &[])).unwrap_err();
    assert!(matches!(error, FetchError::BadFileName { .. }), "{error}");
}
