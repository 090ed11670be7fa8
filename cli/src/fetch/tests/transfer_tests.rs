//! Transfers: resuming, verifying, and who sees a token.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::server::{Reply, Server};
use super::*;
use crate::fetch::download::{Arrived, Download, download};
use crate::fetch::http::{Authorization, Http, HttpSettings};
use crate::fetch::url::Url;

fn content() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn get(server: &Server, partial: &Path, sha256: Option<&str>) -> Result<Arrived, FetchError> {
    let http = Http::new(&Env::default(), &HttpSettings::default())?;
    let url = Url::parse(&server.url("file?signature=hunter2")).unwrap();
    let wanted = Download {
        url: &url,
        auth: None,
        partial,
        sha256,
        size: None,
        resume: true,
        label: "file",
        retry_pause: Duration::ZERO,
    };
    download(&http, &Silent, &wanted)
}

#[test]
fn a_transfer_that_breaks_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("p");
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let reply = Reply::ranged(request, &content());
        if tries.fetch_add(1, Ordering::SeqCst) < 3 { reply.cut_after(250_000) } else { reply }
    });
    let arrived = get(&server, &partial, Some(&sha256(&content()))).unwrap();
    assert_eq!(arrived.size, 1_200_000);
    assert_eq!(std::fs::read(&partial).unwrap(), content());
    let starts: Vec<_> = server.requests().iter().map(|r| r.range_start()).collect();
    assert_eq!(starts, [None, Some(250_000), Some(500_000), Some(750_000)]);
}

#[test]
fn bytes_of_an_earlier_run_are_built_on() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("p");
    std::fs::write(&partial, &content()[..1_000_000]).unwrap();
    let server = Server::start(|request| Reply::ranged(request, &content()));
    get(&server, &partial, Some(&sha256(&content()))).unwrap();
    assert_eq!(server.requests()[0].range_start(), Some(1_000_000));
    assert_eq!(std::fs::read(&partial).unwrap(), content());
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("p");
    std::fs::write(&partial, &content()[..1000]).unwrap();
    let server = Server::start(|_| Reply::ok(content()));
    get(&server, &partial, Some(&sha256(&content()))).unwrap();
    assert_eq!(std::fs::read(&partial).unwrap(), content());
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_damaged_beginning_is_thrown_away_and_fetched_again() {
    for stale in [vec![7; 5000], vec![7; 2_000_000]] {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join("p");
        std::fs::write(&partial, stale).unwrap();
        let server = Server::start(|request| Reply::ranged(request, &content()));
        get(&server, &partial, Some(&sha256(&content()))).unwrap();
        assert_eq!(std::fs::read(&partial).unwrap(), content());
    }
}

#[test]
fn a_file_with_the_wrong_hash_is_removed_and_both_hashes_named() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("p");
    let server = Server::start(|request| Reply::ranged(request, &content()));
    let expected = sha256(b"something else");
    let error = get(&server, &partial, Some(&expected)).unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&expected) && text.contains(&sha256(&content())), "{text}");
    assert!(!text.contains("hunter2"), "the query is in {text}");
    assert!(!partial.exists());
}

#[test]
fn a_line_that_never_moves_is_given_up_and_what_is_here_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("p");
    std::fs::write(&partial, &content()[..1000]).unwrap();
    let server = Server::start(|request| Reply::ranged(request, &content()).cut_after(0));
    let error = get(&server, &partial, Some(&sha256(&content()))).unwrap_err();
    assert!(matches!(error, FetchError::Broken { bytes: 1000, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 1);
    assert_eq!(std::fs::read(&partial).unwrap().len(), 1000);
}

#[test]
fn a_token_is_not_sent_to_another_origin() {
    let other = Server::start(|_| Reply::ok("elsewhere"));
    let away = other.url("away");
    let server = Server::start(move |request| match request.path.as_str() {
        "/start" => Reply::redirect("/again"),
        _ => Reply::redirect(&away),
    });
    let http = Http::new(&Env::default(), &HttpSettings::default()).unwrap();
    let url = Url::parse(&server.url("start")).unwrap();
    let auth = Authorization::bearer(&url, "hf_secret");
    let answer = http.get(&url, &[], Some(&auth)).unwrap();
    assert_eq!(answer.text().unwrap(), "elsewhere");
    let sent: Vec<_> = server.requests().iter().map(|r| r.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [Some("Bearer hf_secret".to_owned()), Some("Bearer hf_secret".to_owned())]);
    assert_eq!(other.requests()[0].header("authorization"), None);
    assert!(!format!("{auth:?}").contains("hf_secret"));
}

#[test]
fn redirects_without_end_and_plain_http_elsewhere_are_refused() {
    let server = Server::start(|_| Reply::redirect("/round"));
    let http = Http::new(&Env::default(), &HttpSettings::default()).unwrap();
    let get = |url: &str| http.get(&Url::parse(url).unwrap(), &[], None).map(|answer| answer.status).unwrap_err();
    assert!(get(&server.url("x")).to_string().ends_with("redirects without end"));
    assert!(matches!(get("http://pypi.invalid/simple"), FetchError::Insecure { .. }));
    assert!(matches!(get("file:///etc/passwd"), FetchError::Protocol { .. }));
}

#[test]
fn a_bundle_without_certificates_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.pem");
    std::fs::write(&path, "no certificate").unwrap();
    let env = Env::from_pairs([("SSL_CERT_FILE", path.as_os_str())]);
    let error = Http::new(&env, &HttpSettings::default()).err().unwrap().to_string();
    assert!(error.contains("none.pem") && error.contains("SSL_CERT_FILE"), "{error}");
}
