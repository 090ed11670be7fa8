//! How bindgen is called. The text of this file is part of the hash in `bindings.rs`: change an option here, and
//! `cargo xtask bindings --check` asks for new bindings.

use std::path::Path;

use anyhow::Context;

/// The bindings of `header`: one struct `Nrt` that holds every function as what `dlsym` gave, present or not.
pub fn generate(header: &Path) -> anyhow::Result<String> {
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .allowlist_file(".*njoule_nrt\\.h")
        .dynamic_library_name("Nrt")
        .dynamic_link_require_all(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|e| anyhow::anyhow!("{e}"))?)
        .wrap_unsafe_ops(true)
        .use_core()
        .merge_extern_blocks(true)
        .disable_header_comment()
        .formatter(bindgen::Formatter::Prettyplease)
        // The layout does not depend on the machine that generates.
        .clang_arg("--target=x86_64-unknown-linux-gnu")
        .generate()
        .context("bindgen (it needs libclang: package libclang-dev, or LIBCLANG_PATH)")?;
    Ok(bindings.to_string())
}
