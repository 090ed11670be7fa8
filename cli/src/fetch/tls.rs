//! Which certificates are trusted: the bundle that the environment or pip's settings name, else the system's, else the
//! one compiled in.
//!
//! Companies put their own authority into the system's bundle or into one of these variables; a client that ignores
//! them is useless there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use super::{Env, FetchError};

/// The certificates to trust; `pip_cert` is pip's own setting, which only the package index follows.
pub fn roots(env: &Env, pip_cert: Option<&Path>) -> Result<RootCerts, FetchError> {
    if let Some(path) = pip_cert {
        return bundle("pip's cert", path);
    }
    for setting in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        if let Some(path) = env.path(setting) {
            return bundle(setting, &path);
        }
    }
    for path in SYSTEM_BUNDLES {
        if let Ok(roots) = bundle("the system", Path::new(path)) {
            return Ok(roots);
        }
    }
    let from_directory = env.path("SSL_CERT_DIR").and_then(|path| bundle("SSL_CERT_DIR", &path).ok());
    Ok(from_directory.unwrap_or(RootCerts::WebPki))
}

/// The certificates of a PEM file, or of every PEM file of a directory.
fn bundle(setting: &'static str, path: &Path) -> Result<RootCerts, FetchError> {
    let bad = || FetchError::Certificates { setting, path: path.to_owned() };
    let files: Vec<PathBuf> = match std::fs::read_dir(path) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(_) => vec![path.to_owned()],
    };
    let mut certificates: Vec<Certificate<'static>> = vec![];
    for file in files {
        let Ok(pem) = std::fs::read(&file) else { continue };
        for item in parse_pem(&pem) {
            if let Ok(PemItem::Certificate(certificate)) = item {
                certificates.push(certificate.to_owned());
            }
        }
    }
    if certificates.is_empty() { Err(bad()) } else { Ok(RootCerts::Specific(Arc::new(certificates))) }
}

/// Where systems keep their bundle (the list of Go's crypto/x509, root_linux.go and root_bsd.go).
const SYSTEM_BUNDLES: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
];
