//! The few URLs that fetching needs: parse, join, compare origins, and print without secrets.
//!
//! `Display` shows scheme, host and path alone: the user part carries index passwords, the query carries signatures.

use std::fmt;

use base64::Engine;

/// An absolute `http`, `https` or `file` URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    userinfo: Option<String>,
    host: String,
    port: Option<u16>,
    path: String,
    query: Option<String>,
    /// What follows `#`; the HTML simple index puts hashes there.
    pub fragment: Option<String>,
}

impl Url {
    /// Parses an absolute URL.
    pub fn parse(text: &str) -> Result<Url, BadUrl> {
        let text = text.trim();
        let (scheme, rest) = text.split_once(':').ok_or(BadUrl("has no scheme"))?;
        let scheme = scheme.to_ascii_lowercase();
        if !["http", "https", "file"].contains(&scheme.as_str()) {
            return Err(BadUrl("is not http, https or file"));
        }
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(BadUrl("has a blank or control character"));
        }
        let rest = rest.strip_prefix("//").ok_or(BadUrl("has no host"))?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (userinfo, host_port) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, authority),
        };
        let (host, port) = match host_port.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, if port.is_empty() { None } else { Some(port.parse().map_err(|_| BadUrl("has a bad port"))?) })
            }
            _ => (host_port, None),
        };
        if host.is_empty() && scheme != "file" {
            return Err(BadUrl("has no host"));
        }
        let (tail, fragment) = split_off(tail, '#');
        let (path, query) = split_off(tail, '?');
        let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
        Ok(Url { scheme, userinfo, host: host.to_ascii_lowercase(), port, path, query, fragment })
    }

    /// The URL that `reference` means on a page at this one.
    pub fn join(&self, reference: &str) -> Result<Url, BadUrl> {
        let reference = reference.trim();
        if ["http:", "https:", "file:"].iter().any(|s| starts_with_ignore_case(reference, s)) {
            return Url::parse(reference);
        }
        if reference.starts_with("//") {
            return Url::parse(&format!("{}:{reference}", self.scheme));
        }
        if reference.chars().any(|c| c.is_control()) {
            return Err(BadUrl("has a control character"));
        }
        let (rest, fragment) = split_off(reference, '#');
        let (path, query) = split_off(rest, '?');
        let mut url = Url { query, fragment, ..self.clone() };
        if path.starts_with('/') {
            url.path = without_dots(path);
        } else if !path.is_empty() {
            let directory = &self.path[..self.path.rfind('/').map_or(0, |slash| slash + 1)];
            url.path = without_dots(&format!("{directory}{path}"));
        }
        Ok(url)
    }

    /// This URL with path segments added.
    pub fn with_segments(&self, segments: &str) -> Url {
        let path = format!("{}/{segments}", self.path.trim_end_matches('/'));
        Url { path, query: None, fragment: None, ..self.clone() }
    }

    /// What goes over the wire: no user part, no fragment.
    pub fn request(&self) -> String {
        let query = self.query.as_ref().map_or(String::new(), |query| format!("?{query}"));
        format!("{}{query}", self)
    }

    /// Whether both name the same scheme, host and port.
    pub fn same_origin(&self, other: &Url) -> bool {
        self.scheme == other.scheme && self.host == other.host && self.port_or_default() == other.port_or_default()
    }

    /// `http`, `https` or `file`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Host name or address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port that a connection uses.
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == "https" { 443 } else { 80 })
    }

    /// The path, percent-decoded: the file that a `file:` URL names.
    pub fn decoded_path(&self) -> String {
        percent_decode(&self.path)
    }

    /// The `Authorization` value of the user part.
    pub fn basic_authorization(&self) -> Option<String> {
        let userinfo = self.userinfo.as_ref()?;
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let pair = format!("{}:{}", percent_decode(user), percent_decode(password));
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
    }

    /// Whether a connection stays on this machine, which makes plain http safe.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host == "[::1]" || self.host.starts_with("127.")
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a URL; the text itself may hold a secret and is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadUrl(&'static str);

/// Bytes that are not unreserved, as `%XX`; `/` too.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// `%XX` as the bytes they stand for; anything malformed is kept.
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |i: usize| tail.get(i).and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (*first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn split_off(text: &str, mark: char) -> (&str, Option<String>) {
    match text.split_once(mark) {
        Some((head, tail)) => (head, Some(tail.to_owned())),
        None => (text, None),
    }
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = vec![];
    let last = path.rsplit('/').next().unwrap_or("");
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    let directory = if [".", ".."].contains(&last) { "/" } else { "" };
    format!("/{}{directory}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn relative_references_join_like_a_browser() {
        let base = Url::parse("https://host:8080/simple/pkg/").unwrap();
        for (reference, expected) in [
            ("../../files/a.whl#sha256=12", "https://host:8080/files/a.whl"),
            ("a%20b.whl", "https://host:8080/simple/pkg/a%20b.whl"),
            ("/x/./y/../z", "https://host:8080/x/z"),
            ("//other/a", "https://other/a"),
            ("http://third/a?b=c", "http://third/a"),
            ("../../../../a", "https://host:8080/a"),
        ] {
            assert_eq!(base.join(reference).unwrap().to_string(), expected, "{reference}");
        }
        assert_eq!(base.join("a#sha256=12").unwrap().fragment.as_deref(), Some("sha256=12"));
    }

    #[test]
    fn secrets_are_neither_displayed_nor_sent_in_the_target() {
        let url = Url::parse("https://us%40er:s3cret@host/simple/?sig=abc#f").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://host/simple/ https://host/simple/");
        assert_eq!(url.request(), "https://host/simple/?sig=abc");
        assert_eq!(url.basic_authorization().unwrap(), "Basic dXNAZXI6czNjcmV0");
    }

    #[test]
    fn origin_includes_scheme_and_port() {
        let url = |text| Url::parse(text).unwrap();
        assert!(url("https://a/x").same_origin(&url("https://A:443/y")));
        assert!(!url("https://a/").same_origin(&url("http://a/")));
        assert!(!url("https://a/").same_origin(&url("https://a:444/")));
        assert!(!url("https://a/").same_origin(&url("https://b/")));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_errs(base in ".{0,60}", reference in ".{0,60}") {
            let _ = percent_decode(&reference);
            let _ = Url::parse(&base);
            let _ = Url::parse("http://h/a/b").unwrap().join(&reference);
        }
    }
}
