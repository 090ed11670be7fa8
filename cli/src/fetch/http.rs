//! The HTTP client: one agent, redirects followed by hand.
//!
//! Invariant: an `Authorization` header is sent to the origin (scheme, host and port) that it was made for and to no
//! other, whatever redirects say; a redirect never leads from https to http.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::HeaderMap;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::proxy::Proxies;
use super::url::Url;
use super::{Env, FetchError, tls};

/// What a client is made with.
#[derive(Clone, Debug, Default)]
pub struct HttpSettings {
    /// Bundle of certificates that goes before the environment's.
    pub cert: Option<PathBuf>,
    /// A proxy that goes before the environment's.
    pub proxy: Option<String>,
    /// `host` or `host:port` whose certificates are not verified, and that may speak plain http (pip's trusted-host).
    pub trusted: Vec<String>,
    /// A host that a person chose to reach over plain http.
    pub plain_http: Option<String>,
    /// How long a connection may be silent.
    pub idle: Option<Duration>,
}

/// A client.
pub struct Http {
    agent: Agent,
    trusting: Agent,
    proxies: Proxies,
    trusted: Vec<String>,
    plain_http: Option<String>,
}

/// An `Authorization` header and the origin that may see it.
#[derive(Clone)]
pub struct Authorization {
    origin: Url,
    value: String,
}

/// How far a request follows redirects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// To the end.
    All,
    /// While they stay at the origin: the answer that points elsewhere is returned.
    SameOrigin,
}

/// An answer: its body has not been read.
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Where it came from, after redirects.
    pub url: Url,
    headers: HeaderMap,
    body: Body,
}

impl Http {
    /// A client for this environment.
    pub fn new(env: &Env, settings: &HttpSettings) -> Result<Http, FetchError> {
        let roots = tls::roots(env, settings.cert.as_deref())?;
        let idle = settings.idle.unwrap_or(IDLE_TIMEOUT);
        let agent = |roots: RootCerts, trusting: bool| -> Agent {
            let tls = TlsConfig::builder().root_certs(roots).disable_verification(trusting).build();
            let config = Agent::config_builder()
                .tls_config(tls)
                .proxy(None)
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(idle))
                .timeout_per_read(Some(idle))
                .timeout_per_write(Some(idle))
                .user_agent(concat!("njoule/", env!("CARGO_PKG_VERSION")))
                .build();
            config.into()
        };
        Ok(Http {
            trusting: agent(roots.clone(), true),
            agent: agent(roots, false),
            proxies: Proxies::new(env, settings.proxy.as_deref())?,
            trusted: settings.trusted.iter().map(|host| host.to_ascii_lowercase()).collect(),
            plain_http: settings.plain_http.clone(),
        })
    }

    /// GET.
    pub fn get(&self, url: &Url, headers: &[(&str, &str)], auth: Option<&Authorization>) -> Result<Answer, FetchError> {
        self.request("GET", url, headers, auth, Follow::All)
    }

    /// HEAD, to learn what the first origin says of a file that it serves from elsewhere.
    pub fn head(
        &self,
        url: &Url,
        headers: &[(&str, &str)],
        auth: Option<&Authorization>,
    ) -> Result<Answer, FetchError> {
        self.request("HEAD", url, headers, auth, Follow::SameOrigin)
    }

    fn request(
        &self,
        method: &str,
        url: &Url,
        headers: &[(&str, &str)],
        auth: Option<&Authorization>,
        follow: Follow,
    ) -> Result<Answer, FetchError> {
        let mut url = url.clone();
        for _ in 0..MAX_REDIRECTS {
            let answer = self.once(method, &url, headers, auth)?;
            let Some(next) = answer.redirect()? else { return Ok(answer) };
            // x-linked-* on a redirect describe the file itself (huggingface_hub reads them there too).
            let described = answer.header("x-linked-etag").is_some();
            if follow == Follow::SameOrigin && (described || !next.same_origin(&url)) {
                return Ok(answer);
            }
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(FetchError::Protocol { url: url.to_string(), why: "redirects from https to plain http" });
            }
            url = next;
        }
        Err(FetchError::Protocol { url: url.to_string(), why: "redirects without end" })
    }

    fn once(
        &self,
        method: &str,
        url: &Url,
        headers: &[(&str, &str)],
        auth: Option<&Authorization>,
    ) -> Result<Answer, FetchError> {
        let trusted = self.is_trusted(url);
        match url.scheme() {
            "https" => {}
            "http" if trusted || url.is_loopback() || self.plain_http.as_deref() == Some(url.host()) => {}
            "http" => return Err(FetchError::Insecure { url: url.to_string() }),
            _ => return Err(FetchError::Protocol { url: url.to_string(), why: "is not http" }),
        }
        let agent = if trusted { &self.trusting } else { &self.agent };
        let mut request = if method == "HEAD" { agent.head(url.request()) } else { agent.get(url.request()) };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(auth) = auth.filter(|auth| auth.origin.same_origin(url)) {
            request = request.header("Authorization", &auth.value);
        }
        let response = request
            .config()
            .proxy(self.proxies.of(url))
            .build()
            .call()
            .map_err(|source| FetchError::Network { url: url.to_string(), source: Box::new(source) })?;
        let (parts, body) = response.into_parts();
        Ok(Answer { status: parts.status.as_u16(), url: url.clone(), headers: parts.headers, body })
    }

    fn is_trusted(&self, url: &Url) -> bool {
        let with_port = format!("{}:{}", url.host(), url.port_or_default());
        self.trusted.iter().any(|host| host == url.host() || *host == with_port)
    }
}

impl Authorization {
    /// A bearer token for an origin.
    pub fn bearer(origin: &Url, token: &str) -> Self {
        Authorization { origin: origin.clone(), value: format!("Bearer {token}") }
    }

    /// The user and password that a URL carries.
    pub fn of_url(url: &Url) -> Option<Self> {
        Some(Authorization { origin: url.clone(), value: url.basic_authorization()? })
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorization(for {}, hidden)", self.origin)
    }
}

impl Answer {
    /// A header that is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Length of the body, if it was announced.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// An error unless the status is 2xx.
    pub fn ok(self) -> Result<Answer, FetchError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        Err(FetchError::Status { url: self.url.to_string(), status: self.status })
    }

    /// The body as text, up to a length that no listing exceeds.
    pub fn text(self) -> Result<String, FetchError> {
        let url = self.url.to_string();
        let mut bytes = vec![];
        let read = self.body.into_reader().take(MAX_PAGE_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|source| FetchError::Broken { url: url.clone(), bytes: bytes.len() as u64, source })?;
        if bytes.len() as u64 > MAX_PAGE_BYTES {
            return Err(FetchError::Protocol { url, why: "has a page of more than 64 MiB" });
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The body as it arrives.
    pub fn reader(self) -> impl Read {
        self.body.into_reader()
    }

    fn redirect(&self) -> Result<Option<Url>, FetchError> {
        if ![301, 302, 303, 307, 308].contains(&self.status) {
            return Ok(None);
        }
        let Some(location) = self.header("location") else { return Ok(None) };
        let bad = |_| FetchError::Protocol { url: self.url.to_string(), why: "redirects to something that is no URL" };
        self.url.join(location).map(Some).map_err(bad)
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;
const MAX_PAGE_BYTES: u64 = 64 << 20;
