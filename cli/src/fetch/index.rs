//! A package's page on a Python index: the JSON of PEP 691 or the HTML of PEP 503.
//!
//! Both readers are total: a page that is neither gives an error or an empty list.

use serde::Deserialize;

use super::url::{BadUrl, Url};

/// What to ask an index for, the form that is easiest to read first.
pub const ACCEPT: &str =
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

/// One file on a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFile {
    /// Its name.
    pub name: String,
    /// Where it is, possibly relative to the page.
    pub href: String,
    /// Its hash, if the page tells.
    pub sha256: Option<String>,
    /// Its length, if the page tells.
    pub size: Option<u64>,
    /// Whether its author has withdrawn it (PEP 592).
    pub yanked: bool,
}

/// Reads a page by the type that it says it has.
pub fn parse(content_type: &str, text: &str) -> Result<Vec<IndexFile>, String> {
    let kind = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if kind.ends_with("json") { parse_json(text) } else { Ok(parse_html(text)) }
}

/// Reads the JSON of PEP 691.
pub fn parse_json(text: &str) -> Result<Vec<IndexFile>, String> {
    #[derive(Deserialize)]
    struct Page {
        files: Vec<File>,
    }
    #[derive(Deserialize)]
    struct File {
        filename: String,
        url: String,
        #[serde(default)]
        hashes: std::collections::BTreeMap<String, String>,
        size: Option<u64>,
        yanked: Option<serde_json::Value>,
    }
    let page: Page = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let file = |file: File| IndexFile {
        sha256: file.hashes.get("sha256").filter(|hash| is_sha256(hash)).cloned(),
        yanked: file.yanked.is_some_and(|y| !(y.is_null() || y == serde_json::Value::Bool(false))),
        name: file.filename,
        href: file.url,
        size: file.size,
    };
    Ok(page.files.into_iter().map(file).collect())
}

/// Reads every `<a href>` of a page.
pub fn parse_html(text: &str) -> Vec<IndexFile> {
    let mut files = vec![];
    let mut base = None;
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
            continue;
        }
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (tag, after) = rest.split_at(end);
        let (attributes, after) = attributes(after);
        rest = after;
        let attribute = |name: &str| attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let Some(href) = attribute("href") else { continue };
        if tag.eq_ignore_ascii_case("base") {
            base = Url::parse(href).ok();
        }
        if !tag.eq_ignore_ascii_case("a") {
            continue;
        }
        let (path, fragment) = href.split_once('#').unwrap_or((href, ""));
        let path = path.split('?').next().unwrap_or(path);
        let name = super::url::percent_decode(path.rsplit('/').next().unwrap_or(path));
        let sha256 = fragment.split('&').find_map(|part| part.strip_prefix("sha256=")).filter(|hash| is_sha256(hash));
        let absolute = base.as_ref().and_then(|base| Some((base, base.join(href).ok()?)));
        files.push(IndexFile {
            name,
            href: absolute.map_or(href.to_owned(), |(_, url)| url.request()),
            sha256: sha256.map(str::to_owned),
            size: None,
            yanked: attribute("data-yanked").is_some(),
        });
    }
    files
}

impl IndexFile {
    /// Where the file is, given the page that listed it.
    pub fn url(&self, page: &Url) -> Result<Url, BadUrl> {
        page.join(&self.href)
    }
}

/// The attributes up to the tag's `>`, and what follows it.
fn attributes(text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = vec![];
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        if rest.is_empty() {
            return (found, rest);
        }
        if let Some(after) = rest.strip_prefix('>') {
            return (found, after);
        }
        let end = rest.find(|c: char| c.is_whitespace() || "=>/".contains(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let spaceless = after.trim_start();
        let (value, after) = match spaceless.strip_prefix('=') {
            None => ("", after),
            Some(value) => quoted(value.trim_start()),
        };
        // A lone `=` would otherwise stand still.
        rest = if end == 0 && after.len() == rest.len() {
            &rest[rest.chars().next().map_or(0, char::len_utf8)..]
        } else {
            after
        };
        found.push((name.to_ascii_lowercase(), unescape(value)));
    }
}

fn quoted(text: &str) -> (&str, &str) {
    for quote in ['"', '\''] {
        if let Some(value) = text.strip_prefix(quote) {
            return value.split_once(quote).unwrap_or((value, ""));
        }
    }
    text.split_at(text.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(text.len()))
}

/// The character references that appear in URLs.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        plain.push_str(&rest[..start]);
        rest = &rest[start..];
        let reference = rest.find(';').filter(|end| *end < 10).and_then(|end| Some((end, character(&rest[1..end])?)));
        match reference {
            Some((end, c)) => {
                plain.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain + rest
}

fn character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let digits = name.strip_prefix('#')?;
            let hex = digits.strip_prefix(['x', 'X']).map(|hex| u32::from_str_radix(hex, 16));
            char::from_u32(hex.unwrap_or_else(|| digits.parse()).ok()?)
        }
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";

    #[test]
    fn json_page_gives_names_hashes_sizes_and_yanks() {
        let text = format!(
            r#"{{"meta":{{"api-version":"1.1"}},"name":"a","files":[
                {{"filename":"a-1-py3-none-any.whl","url":"../f/a.whl","hashes":{{"sha256":"{HASH}"}},"size":7,"yanked":false}},
                {{"filename":"a-2.tar.gz","url":"x","hashes":{{"md5":"00"}},"yanked":"broken"}}]}}"#
        );
        let files = parse("application/vnd.pypi.simple.v1+json", &text).unwrap();
        let first = (files[0].name.as_str(), files[0].sha256.as_deref(), files[0].size, files[0].yanked);
        assert_eq!(first, ("a-1-py3-none-any.whl", Some(HASH), Some(7), false));
        assert_eq!((files[1].sha256.as_deref(), files[1].yanked), (None, true));
        assert!(parse("application/json", "{").is_err());
    }

    #[test]
    fn html_page_gives_the_same() {
        let text = format!(
            "<!DOCTYPE html><html><!-- <a href='no.whl'>no</a> --><body><h1>Links</h1>\n\
             <a href=\"../../files/a%2B1-1-py3-none-any.whl#sha256={HASH}\" data-requires-python=\"&gt;=3.9\">a</a><br/>\n\
             <A class=x HREF='b.whl?x=1&amp;y=2' data-yanked>b</A><a name=top>none</a></body>"
        );
        let files = parse("text/html; charset=utf-8", &text).unwrap();
        assert_eq!(files.len(), 2, "{files:?}");
        assert_eq!(
            (files[0].name.as_str(), files[0].sha256.as_deref(), files[0].yanked),
            ("a+1-1-py3-none-any.whl", Some(HASH), false)
        );
        assert_eq!((files[1].href.as_str(), files[1].name.as_str(), files[1].yanked), ("b.whl?x=1&y=2", "b.whl", true));
        let page = Url::parse("https://h/simple/a/").unwrap();
        assert_eq!(files[0].url(&page).unwrap().to_string(), "https://h/files/a%2B1-1-py3-none-any.whl");
    }

    #[test]
    fn html_base_moves_relative_links() {
        let files = parse_html("<base href='https://other/x/'><a href='a.whl'>");
        assert_eq!(files[0].href, "https://other/x/a.whl");
    }

    proptest! {
        #[test]
        fn any_page_is_read_or_refused(text in "(?s)([<>a=\"'/&#;! -]|href|<a href=|\\PC){0,80}") {
            let _ = parse_html(&text);
            let _ = parse_json(&text);
        }
    }
}
