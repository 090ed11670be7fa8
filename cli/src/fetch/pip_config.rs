//! pip's own settings, so that a machine set up for `pip install` is set up for `pypi:` too.
//!
//! Order as in pip (pip 25, `_internal/configuration.py`): global, user and site files, the file of `PIP_CONFIG_FILE`,
//! then `PIP_*` variables; a command's section goes before `[global]`. Of the sections of commands, `[download]` is what
//! njoule does and goes before `[install]`. Values may hold passwords: nothing here prints them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::http::HttpSettings;
use super::url::Url;
use super::{Env, FetchError};

/// What pip would use.
#[derive(Clone, Debug, Default)]
pub struct PipSettings {
    /// Indexes, the main one first; none if `no-index`.
    pub indexes: Vec<Url>,
    /// Directories, files and pages that list wheels.
    pub find_links: Vec<String>,
    /// Certificates, proxy, trusted hosts and timeout.
    pub http: HttpSettings,
}

impl PipSettings {
    /// Reads every file and variable that pip would read.
    pub fn load(env: &Env) -> Result<PipSettings, FetchError> {
        let mut settings = BTreeMap::new();
        for path in config_files(env) {
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let entries = parse_ini(&String::from_utf8_lossy(&bytes)).map_err(|(line, why)| FetchError::PipConfig {
                path: path.clone(),
                line,
                why,
            })?;
            for Entry { section, key, value } in entries {
                settings.insert((section, key), value);
            }
        }
        Self::from_settings(env, &settings)
    }

    fn from_settings(env: &Env, files: &BTreeMap<(String, String), String>) -> Result<PipSettings, FetchError> {
        let value = |key: &str| -> Option<String> {
            let variable = format!("PIP_{}", key.to_ascii_uppercase().replace('-', "_"));
            if let Some(value) = env.var(&variable) {
                return Some(value.to_owned());
            }
            let in_section = |section: &str| files.get(&(section.to_owned(), key.to_owned())).cloned();
            ["download", "install", "global"].into_iter().find_map(in_section).filter(|value| !value.is_empty())
        };
        let words = |key: &str| -> Vec<String> {
            value(key).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let url = |text: &str, setting: &str| {
            Url::parse(text).map_err(|why| FetchError::BadUrl { setting: setting.to_owned(), why })
        };
        let mut indexes = vec![];
        if !value("no-index").is_some_and(|v| is_yes(&v)) {
            indexes.push(url(value("index-url").as_deref().unwrap_or(PYPI), "pip's index-url")?);
            for extra in words("extra-index-url") {
                indexes.push(url(&extra, "pip's extra-index-url")?);
            }
        }
        let seconds = value("timeout").or_else(|| value("default-timeout")).and_then(|v| v.trim().parse::<f64>().ok());
        let idle = seconds.filter(|s| (1.0..1e6).contains(s)).map(Duration::from_secs_f64);
        let http = HttpSettings {
            cert: value("cert").map(|path| env.expand(path.trim())),
            proxy: value("proxy"),
            trusted: words("trusted-host"),
            idle,
            plain_http: None,
        };
        Ok(PipSettings { indexes, find_links: words("find-links"), http })
    }
}

/// The files that pip reads, the strongest last.
fn config_files(env: &Env) -> Vec<PathBuf> {
    let own = env.path("PIP_CONFIG_FILE");
    if own.as_deref() == Some(Path::new("/dev/null")) {
        return vec![]; // pip's way of saying "no files at all"
    }
    let mut files = vec![];
    let system = env.var("XDG_CONFIG_DIRS").unwrap_or("/etc/xdg");
    files.extend(system.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).join("pip/pip.conf")));
    files.push("/etc/pip.conf".into());
    if !own.as_deref().is_some_and(Path::exists) {
        files.extend(env.home().map(|home| home.join(".pip/pip.conf")));
        let config_home = env.path("XDG_CONFIG_HOME").or_else(|| env.home().map(|home| home.join(".config")));
        files.extend(config_home.map(|home| home.join("pip/pip.conf")));
    }
    files.extend(env.path("VIRTUAL_ENV").map(|site| site.join("pip.conf")));
    files.extend(own);
    files
}

/// One setting of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Lower case.
    pub section: String,
    /// Lower case with dashes.
    pub key: String,
    /// Lines of a continued value joined by line feeds.
    pub value: String,
}

/// Reads the dialect of Python's `RawConfigParser`; an error names the line, counted from 1.
pub fn parse_ini(text: &str) -> Result<Vec<Entry>, (usize, &'static str)> {
    let mut entries: Vec<Entry> = vec![];
    let mut section: Option<String> = None;
    let mut in_value = false;
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with([' ', '\t'])
            && in_value
            && let Some(last) = entries.last_mut()
        {
            last.value.push('\n');
            last.value.push_str(bare);
            continue;
        }
        if let Some(name) = bare.strip_prefix('[') {
            let end = name.find(']').ok_or((number + 1, "a section's name lacks its ]"))?;
            section = Some(name[..end].trim().to_ascii_lowercase());
            in_value = false;
            continue;
        }
        let section = section.clone().ok_or((number + 1, "a setting stands before any [section]"))?;
        let (key, value) =
            bare.split_once(['=', ':']).ok_or((number + 1, "a line is neither [section] nor key = value"))?;
        let key = key.trim().to_ascii_lowercase().replace('_', "-");
        let key = key.trim_start_matches("--").to_owned();
        entries.push(Entry { section, key, value: value.trim().to_owned() });
        in_value = true;
    }
    Ok(entries)
}

fn is_yes(value: &str) -> bool {
    ["1", "y", "yes", "t", "true", "on"].contains(&value.trim().to_ascii_lowercase().as_str())
}

const PYPI: &str = "https://pypi.org/simple/";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(pairs: &[(&str, &str)], files: &str) -> PipSettings {
        let entries = parse_ini(files).unwrap();
        let files = entries.into_iter().map(|e| ((e.section, e.key), e.value)).collect();
        PipSettings::from_settings(&Env::from_pairs(pairs.iter().copied()), &files).unwrap()
    }

    fn urls(settings: &PipSettings) -> Vec<String> {
        settings.indexes.iter().map(Url::to_string).collect()
    }

    #[test]
    fn nothing_set_means_pypi() {
        assert_eq!(urls(&load(&[], "")), [PYPI]);
    }

    #[test]
    fn variables_go_before_sections_and_commands_before_global() {
        let file = "[global]\nindex-url = https://g/simple\nextra_index_url =\n    https://e1/s\n    https://e2/s\n\
                    # a comment\ncert: /g.pem\ntimeout = 60\n[install]\nindex-url = https://i/simple\n\
                    trusted-host = a b:8080\n[Download]\n--find-links = /w https://l/\n";
        let settings = load(&[("PIP_CERT", "~/c.pem"), ("HOME", "/h")], file);
        assert_eq!(urls(&settings), ["https://i/simple", "https://e1/s", "https://e2/s"]);
        assert_eq!(settings.http.cert.as_deref(), Some(Path::new("/h/c.pem")));
        assert_eq!(settings.http.trusted, ["a", "b:8080"]);
        assert_eq!(settings.http.idle, Some(Duration::from_secs(60)));
        assert_eq!(settings.find_links, ["/w", "https://l/"]);
        let settings = load(&[("PIP_INDEX_URL", "https://v/"), ("PIP_EXTRA_INDEX_URL", "https://x/ https://y/")], file);
        assert_eq!(urls(&settings), ["https://v/", "https://x/", "https://y/"]);
        assert!(load(&[("PIP_NO_INDEX", "true")], file).indexes.is_empty());
    }

    #[test]
    fn files_are_read_in_the_order_of_pip() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        write(".config/pip/pip.conf", "[global]\nindex-url = https://user/\nproxy = http://p:1\n");
        write("venv/pip.conf", "[global]\nindex-url = https://site/\n");
        let own = write("own.conf", "[global]\nindex-url = https://own/\n");
        let base = [("HOME", home.path().to_path_buf()), ("XDG_CONFIG_DIRS", home.path().join("none"))];
        let with = |more: Vec<(&'static str, PathBuf)>| {
            PipSettings::load(&Env::from_pairs(base.iter().cloned().chain(more))).unwrap()
        };
        assert_eq!(urls(&with(vec![])), ["https://user/"]);
        let venv = ("VIRTUAL_ENV", home.path().join("venv"));
        assert_eq!(urls(&with(vec![venv.clone()])), ["https://site/"]);
        let settings = with(vec![venv, ("PIP_CONFIG_FILE", own)]);
        assert_eq!(urls(&settings), ["https://own/"]);
        assert_eq!(settings.http.proxy, None, "the user's file is not read beside PIP_CONFIG_FILE");
        assert_eq!(urls(&with(vec![("PIP_CONFIG_FILE", "/dev/null".into())])), [PYPI]);
    }

    #[test]
    fn a_broken_file_is_named_with_its_line_and_without_its_content() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pip.conf");
        std::fs::write(&path, "[global]\n\nhunter2\n").unwrap();
        let env = Env::from_pairs([("PIP_CONFIG_FILE", path.clone())]);
        let error = PipSettings::load(&env).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:3: ", path.display())), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_settings_or_an_error(text in "(?s)([\\[\\]=:#; \\n\\ta-c\\-]|\\PC){0,120}") {
            let _ = parse_ini(&text);
        }
    }
}
