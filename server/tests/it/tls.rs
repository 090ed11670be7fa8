//! Connections with TLS, and files that give none.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use njoule_server::config::TlsFiles;
use njoule_server::{Server, ServerConfig};
use serde_json::json;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::{read_answer, start};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/tls").join(name)
}

fn config(certificate: &str, key: &str) -> ServerConfig {
    let tls = Some(TlsFiles { certificate: file(certificate), key: file(key) });
    ServerConfig { tls, ..ServerConfig::default() }
}

#[test]
fn requests_go_over_tls() {
    let live = start("qwen3", 2, config("cert.pem", "key.pem"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("cert.pem")).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Arc::new(client);
    let connect = || {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(client.clone(), name).unwrap();
        StreamOwned::new(connection, TcpStream::connect(live.address).unwrap())
    };
    let mut texts = Vec::new();
    for stream in [false, true] {
        let body = json!({"prompt": "Hi", "max_tokens": 40, "ignore_eos": true, "temperature": 0, "stream": stream});
        let body = body.to_string();
        let mut tls = connect();
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        tls.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let answer = read_answer(&mut BufReader::new(tls)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let parts = if stream { answer.events() } else { vec![answer.json()] };
        texts.push(parts.iter().filter_map(|part| part["choices"][0]["text"].as_str()).collect::<String>());
    }
    assert!(!texts[0].is_empty() && texts[0] == texts[1], "{texts:?}");
}

#[test]
fn who_speaks_without_tls_or_says_nothing_is_cut_off() {
    let hasty = ServerConfig { read_timeout: Duration::from_millis(300), ..config("cert.pem", "key.pem") };
    let live = start("qwen3", 2, hasty);
    let mut plain = TcpStream::connect(live.address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert!(read_answer(&mut BufReader::new(plain)).is_err());
    let silent = TcpStream::connect(live.address).unwrap();
    assert!(read_answer(&mut BufReader::new(silent)).is_err());
}

#[test]
fn files_that_give_no_tls_are_named() {
    let error = |certificate: &str, key: &str| match Server::start(ServerConfig { port: 0, ..config(certificate, key) })
    {
        Ok(_) => panic!("{certificate} and {key} were taken"),
        Err(error) => error.to_string(),
    };
    assert!(error("nowhere.pem", "key.pem").contains("nowhere.pem"));
    assert!(error("key.pem", "key.pem").ends_with("key.pem: no certificate in it"));
    assert!(error("cert.pem", "cert.pem").contains("cert.pem"));
    assert!(error("cert.pem", "make.sh").contains("make.sh"));
}
