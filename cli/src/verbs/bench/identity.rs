//! Which weights ran: the SHA-256 of their file, as `sha256sum` prints it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Of the one file of weights at `path`, itself or in that directory; `None` where there are several, or it cannot be read.
pub fn sha256(path: &Path) -> Option<String> {
    let file = if path.is_dir() { only_file(path)? } else { path.to_owned() };
    let (mut file, mut hash) = (File::open(file).ok()?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn only_file(dir: &Path) -> Option<PathBuf> {
    // As transformers names the weights of a model that is one file, whatever else lies there.
    let usual = dir.join("model.safetensors");
    if usual.is_file() {
        return Some(usual);
    }
    let names = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut weights = names.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    weights.next().filter(|_| weights.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_a_hash_and_several_have_none() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(dir.path().join(name), "abc").unwrap();
        assert_eq!(sha256(dir.path()), None);
        write("config.json");
        write("model-1.safetensors");
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(dir.path()).as_deref(), Some(of_abc));
        assert_eq!(sha256(&dir.path().join("model-1.safetensors")).as_deref(), Some(of_abc));
        write("model-2.safetensors");
        assert_eq!(sha256(dir.path()), None);
        write("model.safetensors");
        assert_eq!(sha256(dir.path()).as_deref(), Some(of_abc));
    }
}
