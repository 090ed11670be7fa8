//! Which proxy a URL goes through: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` in either case, and pip's own.

use ureq::Proxy;

use super::url::Url;
use super::{Env, FetchError};

/// The proxies of an environment.
#[derive(Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    except: Vec<String>,
}

impl Proxies {
    /// Reads the variables; `of_pip` is pip's `proxy` setting, which goes before them.
    pub fn new(env: &Env, of_pip: Option<&str>) -> Result<Self, FetchError> {
        let either = |name: &str| env.var(&name.to_ascii_lowercase()).or_else(|| env.var(name));
        let proxy = |name: &'static str| {
            let settings = [("pip's proxy", of_pip), (name, either(name)), ("ALL_PROXY", either("ALL_PROXY"))];
            let Some((setting, text)) = settings.into_iter().find_map(|(name, text)| Some((name, text?))) else {
                return Ok(None);
            };
            Proxy::new(text).map(Some).map_err(|_| FetchError::BadProxy { setting })
        };
        // HTTP_PROXY in capitals is not read under CGI, where a client could set it; njoule is no CGI program.
        let except = either("NO_PROXY").unwrap_or("").split([',', ' ']).map(|e| e.trim().to_ascii_lowercase());
        let except = except.filter(|e| !e.is_empty()).collect();
        Ok(Proxies { http: proxy("HTTP_PROXY")?, https: proxy("HTTPS_PROXY")?, except })
    }

    /// The proxy for a URL.
    pub fn of(&self, url: &Url) -> Option<Proxy> {
        let excepted = self.except.iter().any(|e| is_excepted(e, url)) || url.is_loopback();
        if excepted {
            return None;
        }
        if url.scheme() == "https" { self.https.clone() } else { self.http.clone() }
    }
}

fn is_excepted(entry: &str, url: &Url) -> bool {
    if entry == "*" {
        return true;
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && !name.contains(':') => (name, port.parse().ok()),
        _ => (entry, None),
    };
    let name = name.trim_start_matches("*.").trim_start_matches('.');
    let host = url.host();
    let ends = host.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'));
    !name.is_empty() && ends && port.is_none_or(|port: u16| port == url.port_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_covers_domains_and_ports_but_not_lookalikes() {
        let env = Env::from_pairs([("https_proxy", "http://proxy:3128"), ("NO_PROXY", "intra.example, .b.c,x:444")]);
        let proxies = Proxies::new(&env, None).unwrap();
        for (url, proxied) in [
            ("https://pypi.org/", true),
            ("http://pypi.org/", false),
            ("https://intra.example/", false),
            ("https://a.intra.example/", false),
            ("https://notintra.example/", true),
            ("https://a.b.c/", false),
            ("https://x/", true),
            ("https://x:444/", false),
            ("https://127.0.0.1/", false),
        ] {
            assert_eq!(proxies.of(&Url::parse(url).unwrap()).is_some(), proxied, "{url}");
        }
    }

    #[test]
    fn a_proxy_that_makes_no_sense_is_named_without_its_value() {
        let env = Env::from_pairs([("HTTPS_PROXY", "gopher://me:hunter2@proxy")]);
        let error = Proxies::new(&env, None).err().unwrap().to_string();
        assert!(error.starts_with("HTTPS_PROXY") && !error.contains("hunter2"), "{error}");
        assert!(Proxies::new(&env, Some("http://me:hunter2@proxy:1")).is_ok());
    }
}
