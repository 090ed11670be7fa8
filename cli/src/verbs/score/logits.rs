//! Logits into a safetensors file, row by row: the file may be far larger than memory.
//!
//! All sizes are known before the first row, so the header goes first. The file takes its name when it is whole.
//!
//! ```text
//! u64 header length | JSON header, padded with spaces | logits.0 rows | logits.1 rows | ...
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

/// A file that is being written.
pub struct LogitsFile {
    out: BufWriter<File>,
    /// Values that are still to come.
    left: usize,
    partial: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl LogitsFile {
    /// Begins a file of `logits.i` with a row of `vocab` values per token of sequence `i`.
    pub fn create(path: &Path, sequences: &[Vec<u32>], vocab: usize) -> anyhow::Result<LogitsFile> {
        let mut header = Map::new();
        let mut values = 0_usize;
        for (i, ids) in sequences.iter().enumerate() {
            let end = ids.len().checked_mul(vocab).and_then(|n| values.checked_add(n)).filter(|n| *n <= usize::MAX / 4);
            let Some(end) = end else { bail!("the logits of sequence {i} do not fit into a file") };
            let entry = json!({"dtype": "F32", "shape": [ids.len(), vocab], "data_offsets": [4 * values, 4 * end]});
            header.insert(format!("logits.{i}"), entry);
            values = end;
        }
        let mut header = Value::Object(header).to_string();
        // The format aligns tensors by the header's length.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

        let name = path.file_name().context("--logits names no file")?.to_string_lossy().into_owned();
        let partial = path.with_file_name(format!("{name}.partial"));
        let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
        let mut file = LogitsFile {
            out: BufWriter::with_capacity(1 << 20, file),
            left: values,
            partial,
            path: path.to_owned(),
            finished: false,
        };
        let length = u64::try_from(header.len()).context("the header is too long")?;
        file.put(&length.to_le_bytes())?;
        file.put(header.as_bytes())?;
        Ok(file)
    }

    /// Appends rows.
    pub fn write(&mut self, rows: &[f32]) -> anyhow::Result<()> {
        let Some(left) = self.left.checked_sub(rows.len()) else {
            bail!("more logits than positions: a bug in the engine")
        };
        self.left = left;
        match cfg!(target_endian = "little") {
            true => self.put(bytemuck::cast_slice(rows)),
            false => rows.iter().try_for_each(|x| self.put(&x.to_le_bytes())),
        }
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> anyhow::Result<()> {
        if self.left > 0 {
            bail!("{} logits are missing: a bug in the engine", self.left);
        }
        let done: io::Result<()> = self.out.flush().and_then(|()| fs::rename(&self.partial, &self.path));
        done.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.finished = true;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.out.write_all(bytes).with_context(|| format!("cannot write {}", self.partial.display()))
    }
}

impl Drop for LogitsFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_holds_one_tensor_per_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        let mut file = LogitsFile::create(&path, &[vec![1, 2], vec![3]], 3).unwrap();
        file.write(&[0.0, 1.0, 2.0]).unwrap();
        file.write(&[3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
        file.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("logits.0").unwrap().shape(), [2, 3]);
        assert_eq!(read.tensor("logits.1").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&[6.0, 7.0, 8.0]));
    }

    #[test]
    fn unfinished_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        let mut file = LogitsFile::create(&path, &[vec![1]], 2).unwrap();
        file.write(&[0.0]).unwrap();
        assert!(file.finish().is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
