//! The hub's side: what a repository has, and the files that are missing here.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::settings::HubSettings;
use super::snapshot::{folder, is_commit, write_ref};
use crate::fetch::download::{Download, Lock, download};
use crate::fetch::http::{Answer, Authorization, Http, HttpSettings};
use crate::fetch::hub_files::{self, INDEX, SINGLE};
use crate::fetch::reference::HubRef;
use crate::fetch::url::{Url, percent_encode};
use crate::fetch::{FetchError, FetchOptions, ModelPath};

/// Gets what is missing and names the result.
pub fn obtain(wanted: &HubRef, settings: &HubSettings, options: &FetchOptions) -> Result<ModelPath, FetchError> {
    let plain_http = Some(settings.endpoint.host().to_owned());
    let http = Http::new(&options.env, &HttpSettings { plain_http, ..HttpSettings::default() })?;
    let auth = settings.token.as_ref().map(|token| Authorization::bearer(&settings.endpoint, token));
    let revision = wanted.revision();
    let page = format!("api/models/{}/revision/{}", wanted.repo, percent_encode(revision));
    let answer = http.get(&settings.endpoint.with_segments(&page), &[], auth.as_ref())?;
    let answer = accepted(answer, wanted, settings)?;
    let url = answer.url.to_string();
    let info: RepoInfo = serde_json::from_str(&answer.text()?)
        .map_err(|e| FetchError::BadIndex { url: url.clone(), why: e.to_string() })?;
    if !is_commit(&info.sha) {
        return Err(FetchError::Protocol { url, why: "names a commit that is none" });
    }
    let root = settings.cache.join(folder(&wanted.repo));
    let snapshot = root.join("snapshots").join(&info.sha);
    let repo = Repo { http, auth, wanted, settings, options, snapshot, root, commit: info.sha };
    let names: Vec<_> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let found = repo.get_model(&names)?;
    write_ref(&repo.root, revision, &repo.commit)?;
    Ok(found)
}

/// The part of `/api/models/…` that matters.
#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// One commit being got.
struct Repo<'a> {
    http: Http,
    auth: Option<Authorization>,
    wanted: &'a HubRef,
    settings: &'a HubSettings,
    options: &'a FetchOptions,
    root: PathBuf,
    snapshot: PathBuf,
    commit: String,
}

impl Repo<'_> {
    fn get_model(&self, names: &[&str]) -> Result<ModelPath, FetchError> {
        let has = |name: &str| names.contains(&name);
        let is_loose = |name: &&&str| name.ends_with(".safetensors") && !name.contains('/');
        let sharded = !has(SINGLE) && has(INDEX);
        let single = if has(SINGLE) { vec![SINGLE] } else { names.iter().filter(is_loose).copied().collect() };
        let has_weights = sharded || !single.is_empty();
        if self.wanted.file.is_some() || !(has("config.json") && has_weights) {
            return self.get_gguf(names);
        }
        for name in names.iter().filter(|name| hub_files::is_text(name)) {
            self.get(name)?;
        }
        if sharded {
            let path = self.get(INDEX)?;
            let text = fs::read_to_string(&path).map_err(FetchError::io("read", &path))?;
            let bad = |why| FetchError::BadIndex { url: format!("{}/{INDEX}", self.wanted.repo), why };
            for shard in hub_files::shards(&text).map_err(bad)? {
                self.get(&shard)?;
            }
        } else {
            single.into_iter().try_for_each(|name| self.get(name).map(drop))?;
        }
        Ok(ModelPath::Dir(self.snapshot.clone()))
    }

    fn get_gguf(&self, names: &[&str]) -> Result<ModelPath, FetchError> {
        let repo = &self.wanted.repo;
        let ggufs = hub_files::gguf_models(names.iter().copied());
        if ggufs.is_empty() {
            let kinds =
                [("pytorch_model.bin", ".bin"), ("split .gguf files", ".gguf"), (".onnx", ".onnx"), (".pth", ".pth")];
            let found = kinds.iter().find(|(_, end)| names.iter().any(|name| name.ends_with(end)));
            let found = found.map_or("neither", |(kind, _)| kind).to_owned();
            return Err(FetchError::NoWeights { repo: repo.clone(), found });
        }
        let name = hub_files::choose(repo, &format!("{repo}:Q4_K_M"), &ggufs, self.wanted.file.as_deref())?;
        self.get(name).map(ModelPath::Gguf)
    }

    /// Makes sure that one file is in the snapshot.
    fn get(&self, name: &str) -> Result<PathBuf, FetchError> {
        let plain = !name.contains('\\') && !name.chars().any(char::is_control);
        if !plain || name.is_empty() || !Path::new(name).components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(FetchError::BadFileName { repo: self.wanted.repo.clone(), file: name.to_owned() });
        }
        let pointer = self.snapshot.join(name);
        if pointer.is_file() {
            return Ok(pointer);
        }
        let segments: Vec<_> = name.split('/').map(percent_encode).collect();
        let page = format!("{}/resolve/{}/{}", self.wanted.repo, self.commit, segments.join("/"));
        let url = self.settings.endpoint.with_segments(&page);
        let described = self.describe(&url)?;
        let blob = self.root.join("blobs").join(&described.etag);
        let lock =
            self.settings.cache.join(".locks").join(folder(&self.wanted.repo)).join(format!("{}.lock", described.etag));
        let _lock = Lock::acquire(&lock, &*self.options.reporter)?;
        if !blob.is_file() {
            self.get_blob(name, &url, &described, &blob)?;
        }
        link(&blob, &pointer, name)?;
        Ok(pointer)
    }

    /// What the hub says of a file before it sends it elsewhere.
    fn describe(&self, url: &Url) -> Result<Described, FetchError> {
        let answer = self.http.head(url, &[("Accept-Encoding", "identity")], self.auth.as_ref())?;
        let elsewhere = (300..400).contains(&answer.status);
        let answer = if elsewhere { answer } else { accepted(answer, self.wanted, self.settings)? };
        let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag")).unwrap_or("");
        let etag = etag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if etag.is_empty() || etag.len() > 128 || !etag.chars().all(safe) {
            return Err(FetchError::Protocol { url: url.to_string(), why: "has no usable ETag" });
        }
        let linked = answer.header("x-linked-size").and_then(|size| size.trim().parse().ok());
        let size = linked.or_else(|| if elsewhere { None } else { answer.content_length() });
        Ok(Described { etag, size })
    }

    fn get_blob(&self, name: &str, url: &Url, described: &Described, blob: &Path) -> Result<(), FetchError> {
        let blobs = self.root.join("blobs");
        fs::create_dir_all(&blobs).map_err(FetchError::io("create", &blobs))?;
        let partial = blobs.join(format!("{}.incomplete", described.etag));
        // Files in large-file storage are named by their sha256; small ones by git's sha1, which TLS and length must do for.
        let sha256 = Some(described.etag.as_str()).filter(|etag| etag.len() == 64);
        let label = format!("{}/{name}", self.wanted.repo);
        let wanted = Download {
            url,
            auth: self.auth.as_ref(),
            partial: &partial,
            sha256,
            size: described.size,
            resume: true,
            label: &label,
            retry_pause: self.options.retry_pause,
        };
        download(&self.http, &*self.options.reporter, &wanted)?;
        fs::rename(&partial, blob).map_err(FetchError::io("rename", &partial))
    }
}

struct Described {
    etag: String,
    size: Option<u64>,
}

/// The answer, unless it is a refusal, which is explained.
fn accepted(answer: Answer, wanted: &HubRef, settings: &HubSettings) -> Result<Answer, FetchError> {
    let repo = wanted.repo.clone();
    let has_token = settings.token.is_some();
    let code = answer.header("x-error-code").unwrap_or("");
    let not_found = |repo| FetchError::HubNotFound {
        repo,
        token_hint: if has_token { ", and whether your token may read it" } else { ", or set HF_TOKEN if it is yours" },
    };
    Err(match (answer.status, code) {
        (200..300, _) => return Ok(answer),
        (_, "GatedRepo") => FetchError::HubGated { page: settings.endpoint.with_segments(&repo).to_string(), repo },
        (_, "RevisionNotFound") => FetchError::HubNoRevision { repo, revision: wanted.revision().to_owned() },
        (_, "RepoNotFound") | (404, _) => not_found(repo),
        (401, _) if !has_token => not_found(repo),
        (status @ 401, _) => FetchError::HubDenied { repo, status, hint: "the token is wrong or has expired" },
        (status @ 403, _) => FetchError::HubDenied { repo, status, hint: "the token lacks the right to read it" },
        (429, _) => FetchError::HubDenied { repo, status: 429, hint: "too many requests; wait, or set HF_TOKEN" },
        (status, _) => FetchError::Status { url: answer.url.to_string(), status },
    })
}

/// Makes the snapshot's name for a blob: a relative link, or the file itself where there are no links.
fn link(blob: &Path, pointer: &Path, name: &str) -> Result<(), FetchError> {
    if let Some(parent) = pointer.parent() {
        fs::create_dir_all(parent).map_err(FetchError::io("create", parent))?;
    }
    if pointer.symlink_metadata().is_ok() {
        fs::remove_file(pointer).map_err(FetchError::io("replace", pointer))?; // a link to a blob that was gone
    }
    let up = "../".repeat(name.split('/').count() + 1);
    let etag = blob.file_name().unwrap_or_default();
    let target = Path::new(&up).join("blobs").join(etag);
    if symlink(&target, pointer).is_ok() {
        return Ok(());
    }
    fs::rename(blob, pointer).map_err(FetchError::io("create", pointer))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
