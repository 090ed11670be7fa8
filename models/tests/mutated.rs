//! Damaged checkpoints are opened or refused, within the memory that their files imply and soon.
//!
//! Their own tests hold each parser to a value or an error; here whole models are opened, by an allocator that remembers the
//! largest piece that was asked for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use njoule_models::checkpoint::Checkpoint;
use proptest::prelude::*;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// Notes the largest allocation of each thread.
struct Watching;

fn note(bytes: usize) {
    // A thread that ends has no such value any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: every call is passed on to the system allocator unchanged; noting touches a cell without a destructor alone.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// A fixture's copy, of which one file is damaged.
struct Damaged {
    dir: tempfile::TempDir,
    file: &'static str,
    whole: Vec<u8>,
    others: usize,
}

impl Damaged {
    fn new(fixture: &str, file: &'static str) -> Damaged {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(fixture);
        let dir = tempfile::tempdir().unwrap();
        let mut others = 0;
        for entry in std::fs::read_dir(&from).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() && entry.file_name() != file {
                others += std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap() as usize;
            }
        }
        Damaged { dir, file, whole: std::fs::read(from.join(file)).unwrap(), others }
    }

    fn model(&self) -> PathBuf {
        if self.file.ends_with(".gguf") { self.dir.path().join(self.file) } else { self.dir.path().to_owned() }
    }
}

thread_local! {
    static KINDS: [Damaged; 4] = [
        Damaged::new("gguf_llama", "model.gguf"),
        Damaged::new("qwen3", "model.safetensors"),
        Damaged::new("qwen3", "config.json"),
        Damaged::new("qwen3", "tokenizer.json"),
    ];
}

/// Of a quiet machine; tests run beside others.
fn patience() -> Duration {
    Duration::from_millis(if std::env::var_os("NJOULE_SOAK").is_some() { 100 } else { 2000 })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_checkpoints_take_what_their_files_imply(
        kind in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<u8>()), 1..6),
        keep in prop_oneof![4 => Just(1.0), 1 => 0.0_f64..1.0],
    ) {
        KINDS.with(|kinds| -> Result<(), TestCaseError> {
            let damaged = &kinds[kind];
            let mut bytes = damaged.whole.clone();
            // The interesting part is at the beginning.
            for (at, in_head, value) in changes {
                let range = if in_head { bytes.len().min(4096) } else { bytes.len() };
                bytes[at.index(range)] = value;
            }
            bytes.truncate((bytes.len() as f64 * keep) as usize);
            std::fs::write(damaged.dir.path().join(damaged.file), &bytes).unwrap();
            let model = damaged.model();
            LARGEST.set(0);
            let begun = Instant::now();
            let opened = Checkpoint::open(&model).map(|checkpoint| checkpoint.config.program());
            let (took, largest) = (begun.elapsed(), LARGEST.get());
            drop(opened);
            let implied = 2 * (bytes.len() + damaged.others) + (1 << 20);
            prop_assert!(largest <= implied, "{}: {largest} bytes at once, {implied} are implied", damaged.file);
            prop_assert!(took <= patience(), "{}: {took:?}", damaged.file);
            Ok(())
        })?;
    }
}
