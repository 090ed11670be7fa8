//! Models of the Hugging Face hub, kept in the cache that every Hugging Face library shares, and nowhere else.
//!
//! ```text
//! CACHE/models--ORG--NAME/blobs/ETAG                 a file's content (".incomplete" while it grows)
//! CACHE/models--ORG--NAME/refs/REVISION              the commit that a branch or tag means
//! CACHE/models--ORG--NAME/snapshots/COMMIT/FILE      a link to ../../blobs/ETAG
//! CACHE/.locks/models--ORG--NAME/ETAG.lock
//! ```
//!
//! Names, locks and links are those of huggingface_hub (`file_download.py`), so that either program goes on with what
//! the other began. Only the files that njoule reads are downloaded. The token goes to the hub's origin alone.

mod remote;
mod settings;
mod snapshot;

use super::reference::HubRef;
use super::{FetchError, FetchOptions, ModelPath};

pub use self::settings::{HubSettings, cache_dir};
pub use self::snapshot::{Snapshot, repo_of_folder, revisions};

/// Gets a model of the hub: from the cache if it is whole there, else the missing files from the network.
pub fn obtain(wanted: &HubRef, options: &FetchOptions) -> Result<ModelPath, FetchError> {
    let settings = HubSettings::load(options)?;
    let cached = Snapshot::cached(&settings.cache, &wanted.repo, wanted.revision()).map(|s| (s.find(wanted), s));
    let (held, missing) = match cached {
        None => (None, "everything".to_owned()),
        Some((Ok(found), snapshot)) => {
            // A directory without a tokenizer may be half of somebody else's download: worth a look at the hub.
            let whole = snapshot.is_complete(&found);
            if whole && !options.refresh {
                return Ok(found);
            }
            (Some(found), "the tokenizer".to_owned())
        }
        Some((Err(missing), _)) => (None, missing),
    };
    if let Some(why) = settings.offline {
        let offline = || FetchError::Offline { what: wanted.to_string(), cache: settings.cache.clone(), why, missing };
        return held.ok_or_else(offline);
    }
    match (remote::obtain(wanted, &settings, options), held) {
        (Err(error), Some(held)) if error.is_unavailable() => {
            options.reporter.note(&format!("{}; going on with what the cache holds", super::error::one_line(&error)));
            Ok(held)
        }
        (result, _) => result,
    }
}

impl HubRef {
    /// The revision that is wanted; `main` unless another is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}
