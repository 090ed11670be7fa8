//! Which wheel: all that pip's places offer, and the best of them.
//!
//! As pip does: every place is asked, the highest version wins, at equal versions find-links goes before the indexes in
//! their order; pre-releases and yanked files only if nothing else fits or the version is named. A place that cannot be
//! reached is remembered for the message.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use crate::fetch::error::Attempt;
use crate::fetch::http::{Authorization, Http};
use crate::fetch::index::{self, IndexFile};
use crate::fetch::pip_config::PipSettings;
use crate::fetch::reference::{PypiRef, normalise_package};
use crate::fetch::url::Url;
use crate::fetch::version::Version;
use crate::fetch::{FetchError, FetchOptions};

/// A wheel that could be used.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// File name.
    pub wheel: String,
    /// Version as the file name spells it: letters, digits and `.-_+!`.
    pub version: String,
    /// Where.
    pub place: Place,
    /// What its hash must be.
    pub sha256: Option<String>,
    /// What its length must be.
    pub size: Option<u64>,
    yanked: bool,
    parsed: Version,
}

/// Where a wheel is.
#[derive(Clone, Debug)]
pub enum Place {
    /// On disk.
    Local(PathBuf),
    /// On a server, for which there may be a password.
    Remote {
        /// The file.
        url: Box<Url>,
        /// Who asks.
        auth: Option<Box<Authorization>>,
    },
}

/// Asks every place and chooses.
pub fn best(
    wanted: &PypiRef,
    exact: Option<&Version>,
    pinned_sha256: Option<&str>,
    pip: &PipSettings,
    http: &Http,
    options: &FetchOptions,
) -> Result<Candidate, FetchError> {
    let mut attempts = vec![];
    let mut candidates = vec![];
    let sources = pip.find_links.iter().map(|place| Source::links(place, options));
    for source in sources.chain(pip.indexes.iter().map(|index| Source::Page(package_page(index, &wanted.package)))) {
        match source.list(http) {
            Ok(files) => {
                let before = candidates.len();
                candidates.extend(files.into_iter().filter_map(|file| candidate(file, &wanted.package)));
                if candidates.len() == before {
                    attempts.push(Attempt::new(&source, "has no wheel of it that runs on any platform"));
                }
            }
            Err(FetchError::Status { status: 404, .. }) => attempts.push(Attempt::new(&source, "has no such package")),
            Err(error) => attempts.push(Attempt::failed(&source, &error)),
        }
    }
    choose(candidates, exact, pinned_sha256).map_err(|refused| {
        attempts.extend(refused);
        if attempts.is_empty() {
            attempts.push(Attempt::new("pip's settings", "no-index is set and find-links names no place"));
        }
        FetchError::Tried { what: wanted.to_string(), attempts }
    })
}

/// The best candidate, or why each was refused.
fn choose(all: Vec<Candidate>, exact: Option<&Version>, sha256: Option<&str>) -> Result<Candidate, Vec<Attempt>> {
    let mut refused = vec![];
    let mut fitting = vec![];
    let mut others = vec![];
    for mut candidate in all {
        let same = |hash: &String| sha256.is_none_or(|pinned| hash.eq_ignore_ascii_case(pinned));
        if exact.is_some_and(|exact| *exact != candidate.parsed) {
            others.push((candidate.parsed, candidate.version));
            continue;
        }
        let why = if candidate.yanked && exact.is_none() {
            "was withdrawn by its author (yanked)"
        } else if !candidate.sha256.as_ref().is_none_or(same) {
            "is listed with a hash that is not the one njoule knows"
        } else {
            candidate.sha256 = candidate.sha256.or_else(|| sha256.map(str::to_owned));
            fitting.push(candidate);
            continue;
        };
        refused.push(Attempt::new(&candidate.wheel, why));
    }
    if !others.is_empty() {
        others.sort();
        others.dedup_by(|a, b| a.0 == b.0);
        let named: Vec<_> = others.iter().rev().take(10).map(|(_, name)| name.as_str()).collect();
        let more = if others.len() > named.len() { ", ..." } else { "" };
        refused.push(Attempt::new("the version", format!("is not there; there are {}{more}", named.join(", "))));
    }
    // `max_by_key` takes the last of equals: places are asked in order of preference, so the order is turned round.
    let rank = |c: &Candidate| (Reverse(c.yanked), Reverse(c.parsed.is_prerelease()), c.parsed.clone());
    fitting.into_iter().rev().max_by_key(rank).ok_or(refused)
}

/// A place that lists files.
enum Source {
    Dir(PathBuf),
    File(PathBuf),
    Page(Url),
    Bad(String, FetchError),
}

type Listed = (IndexFile, Place);

impl Source {
    fn links(place: &str, options: &FetchOptions) -> Source {
        let local = |path: PathBuf| if path.is_dir() { Source::Dir(path) } else { Source::File(path) };
        if !place.contains("://") {
            return local(options.env.expand(place));
        }
        match Url::parse(place) {
            Ok(url) if url.scheme() == "file" => local(url.decoded_path().into()),
            Ok(url) => Source::Page(url),
            Err(why) => {
                let setting = "an entry of pip's find-links".to_owned();
                Source::Bad(setting.clone(), FetchError::BadUrl { setting, why })
            }
        }
    }

    fn list(&self, http: &Http) -> Result<Vec<Listed>, FetchError> {
        match self {
            Source::Bad(setting, FetchError::BadUrl { why, .. }) => {
                Err(FetchError::BadUrl { setting: setting.clone(), why: *why })
            }
            Source::Bad(..) => Ok(vec![]),
            Source::Dir(dir) => {
                let entries = std::fs::read_dir(dir).map_err(FetchError::io("read", dir))?;
                Ok(entries.filter_map(|entry| local_file(&entry.ok()?.path())).collect())
            }
            Source::File(path) if path.extension().is_some_and(|e| e == "whl") => {
                Ok(local_file(path).into_iter().collect())
            }
            Source::File(path) => Err(FetchError::NotFound { path: path.clone() }),
            Source::Page(url) => {
                let auth = Authorization::of_url(url);
                let answer = http.get(url, &[("Accept", index::ACCEPT)], auth.as_ref())?.ok()?;
                let page = answer.url.clone();
                let kind = answer.header("content-type").unwrap_or("text/html").to_owned();
                let bad = |why| FetchError::BadIndex { url: page.to_string(), why };
                let files = index::parse(&kind, &answer.text()?).map_err(bad)?;
                let place = |file: IndexFile| {
                    let url = file.url(&page).ok()?;
                    let auth = Authorization::of_url(&url).or_else(|| auth.clone()).map(Box::new);
                    Some((file, Place::Remote { url: Box::new(url), auth }))
                };
                Ok(files.into_iter().filter_map(place).collect())
            }
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Dir(path) | Source::File(path) => write!(f, "{}", path.display()),
            Source::Page(url) => url.fmt(f),
            Source::Bad(setting, _) => f.write_str(setting),
        }
    }
}

fn package_page(index: &Url, package: &str) -> Url {
    index.with_segments(&format!("{package}/"))
}

fn local_file(path: &Path) -> Option<Listed> {
    let name = path.file_name()?.to_str()?.to_owned();
    let file = IndexFile { href: String::new(), name, sha256: None, size: None, yanked: false };
    Some((file, Place::Local(path.to_owned())))
}

/// The candidate that a file is, if it is a wheel of the package for any platform.
fn candidate((file, place): Listed, package: &str) -> Option<Candidate> {
    if file.name.contains(|c: char| c.is_control() || "/\\:".contains(c)) {
        return None; // it will name a file on this disk
    }
    let parts: Vec<_> = file.name.strip_suffix(".whl")?.split('-').collect();
    let (name, version, platform) = match parts[..] {
        [name, version, _python, _abi, platform] | [name, version, _, _python, _abi, platform] => {
            (name, version, platform)
        }
        _ => return None,
    };
    let parsed = Version::parse(version)?;
    let fits = normalise_package(name) == package && platform.split('.').any(|p| p == "any");
    fits.then(|| Candidate {
        version: version.to_owned(),
        wheel: file.name.clone(),
        place,
        sha256: file.sha256,
        size: file.size,
        yanked: file.yanked,
        parsed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(name: &str, yanked: bool, place: &str) -> Candidate {
        let file = IndexFile { name: name.into(), href: String::new(), sha256: None, size: None, yanked };
        candidate((file, Place::Local(place.into())), "my-pkg").unwrap_or_else(|| panic!("{name} is no candidate"))
    }

    #[test]
    fn only_wheels_of_the_package_for_any_platform_count() {
        let is = |name: &str| {
            let file = IndexFile { name: name.into(), href: String::new(), sha256: None, size: None, yanked: false };
            candidate((file, Place::Local("x".into())), "my-pkg").is_some()
        };
        assert!(is("My.Pkg-1.0-py3-none-any.whl") && is("my_pkg-1.0-1-py2.py3-none-any.whl"));
        for name in [
            "my_pkg-1.0.tar.gz",
            "other-1.0-py3-none-any.whl",
            "my_pkg-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
            "my_pkg-x-py3-none-any.whl",
            "my_pkg.whl",
            "my_pkg-1.0-py3/../../x-none-any.whl",
        ] {
            assert!(!is(name), "{name}");
        }
    }

    #[test]
    fn newest_final_version_wins_and_first_place_breaks_ties() {
        let all = vec![
            offer("my_pkg-1.9-py3-none-any.whl", false, "first"),
            offer("my_pkg-1.10-py3-none-any.whl", false, "second"),
            offer("my_pkg-1.10.0-py3-none-any.whl", false, "third"),
            offer("my_pkg-2.0rc1-py3-none-any.whl", false, "fourth"),
            offer("my_pkg-3.0-py3-none-any.whl", true, "fifth"),
        ];
        let place = |exact: Option<&str>| {
            let exact = exact.and_then(Version::parse);
            match choose(all.clone(), exact.as_ref(), None).unwrap().place {
                Place::Local(path) => path.display().to_string(),
                Place::Remote { url, .. } => url.to_string(),
            }
        };
        assert_eq!(place(None), "second");
        assert_eq!(place(Some("2.0rc1")), "fourth");
        assert_eq!(place(Some("3")), "fifth");
        let refused = choose(all.clone(), Version::parse("4").as_ref(), None).unwrap_err();
        assert_eq!(refused[0].why, "is not there; there are 3.0, 2.0rc1, 1.10, 1.9");
    }

    #[test]
    fn a_pinned_hash_refuses_what_is_listed_with_another() {
        let mut other = offer("my_pkg-1.0-py3-none-any.whl", false, "x");
        other.sha256 = Some("ab".repeat(32));
        assert!(choose(vec![other.clone()], None, Some(&"cd".repeat(32))).is_err());
        assert!(choose(vec![other], None, Some(&"AB".repeat(32))).is_ok());
    }
}
