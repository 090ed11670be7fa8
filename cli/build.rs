//! Tells the crate the commit that it is built from, and makes cargo look again when another one is checked out.

#[path = "build/checkout.rs"]
mod checkout;

use std::path::Path;

fn main() {
    // The repository's root and no directory above it: another project's commit is not ours.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let found = checkout::read(&root);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/checkout.rs");
    for path in &found.watched {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    // Empty where there is none, so that nothing of the builder's own environment takes its place.
    println!("cargo::rustc-env=NJOULE_COMMIT={}", found.commit.unwrap_or_default());
}
