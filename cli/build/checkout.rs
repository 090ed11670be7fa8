//! The commit that a directory has checked out, from git's own files: no git is run.
//!
//! Invariant: any bytes give a commit or none, never an error, so that a tarball builds as a checkout does. Every path to watch
//! exists: cargo takes one that does not for one that has changed.

use std::fs;
use std::path::{Path, PathBuf};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checkout {
    /// The commit in hexadecimal digits.
    pub commit: Option<String>,
    /// Files that change when another is checked out.
    pub watched: Vec<PathBuf>,
}

/// Of the repository whose root is `root`.
pub fn read(root: &Path) -> Checkout {
    let mut found = Checkout::default();
    let Some(git) = directory(&root.join(".git"), &mut found) else { return found };
    // A worktree has a HEAD of its own, and the refs of the repository that it belongs to.
    let common = match text(&git.join("commondir"), &mut found) {
        Some(path) => git.join(path),
        None => git.clone(),
    };
    let Some(head) = text(&git.join("HEAD"), &mut found) else { return found };
    let Some(name) = head.strip_prefix("ref:").map(str::trim) else {
        found.commit = digits(&head);
        return found;
    };
    // Such a name could lead anywhere.
    if !name.starts_with("refs/") || Path::new(name).components().any(|part| part.as_os_str() == "..") {
        return found;
    }
    let loose = common.join(name);
    if let Some(commit) = text(&loose, &mut found) {
        found.commit = digits(&commit);
        return found;
    }
    // The next commit makes the file, and so changes the directory that it will be in.
    found.watched.extend(loose.ancestors().skip(1).find(|path| path.exists()).map(Path::to_owned));
    let packed = text(&common.join("packed-refs"), &mut found).unwrap_or_default();
    found.commit = packed.lines().find_map(|line| {
        let (commit, packed_name) = line.split_once(' ')?;
        digits(commit).filter(|_| packed_name.trim() == name)
    });
    found
}

/// `.git`: a directory, or a file that names one.
fn directory(git: &Path, found: &mut Checkout) -> Option<PathBuf> {
    if git.is_dir() {
        return Some(git.to_owned());
    }
    let path = text(git, found)?;
    Some(git.parent()?.join(path.strip_prefix("gitdir:")?.trim()))
}

/// A file that is there, which is to be watched.
fn text(path: &Path, found: &mut Checkout) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    found.watched.push(path.to_owned());
    Some(text.trim().to_owned())
}

/// 40 of them, or 64 in a repository of SHA-256.
fn digits(text: &str) -> Option<String> {
    let commit = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    commit.then(|| text.to_ascii_lowercase())
}
