//! Older libraries: a copy of the built library in which some functions cannot be found.
//!
//! Features of the crate would need a build of their own for each variant, and what is tested would not be what is used.
//! Instead the copy's dynamic symbol table is changed: a symbol that is local is one that `dlsym` does not see. Nothing
//! else differs, so the switches of [`crate::config`] (`NJOULE_FAKE_VERSION` above all) work as ever.

/// Functions of libnrt 2.31 and later, and the batch calls.
pub const TIER2: [&str; 5] = [
    "nrta_execute_schedule",
    "nrta_is_completed",
    "nrta_event_register_seq_id_completion",
    "nrt_tensor_write_batch",
    "nrt_tensor_read_batch",
];

/// A function of libnrt 2.27.23 and later.
pub const MEMORY_STATS: [&str; 1] = ["nrt_get_vnc_memory_stats"];

/// Names of libnrt before logical cores came, which it still has, are all that such a library has.
pub const VNC_NAMES: [&str; 2] = ["nrt_get_total_vnc_count", "nrt_get_visible_vnc_count"];

/// Why there is no variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariantError {
    /// No ELF file of this kind, or a damaged one.
    #[error("not a 64-bit little-endian ELF library with a dynamic symbol table")]
    NotElf,
    /// The library has no such function.
    #[error("the library has no symbol `{0}`")]
    Missing(String),
}

/// The library without these functions.
pub fn without(library: &[u8], names: &[&str]) -> Result<Vec<u8>, VariantError> {
    let mut out = library.to_vec();
    for name in names {
        let at = symbol(library, name)?.ok_or_else(|| VariantError::Missing((*name).to_owned()))?;
        // st_info: binding in the upper half (0 is local), type in the lower.
        out[at + 4] &= 0x0F;
    }
    Ok(out)
}

/// Where the entry of a defined symbol is; None if there is none.
fn symbol(elf: &[u8], name: &str) -> Result<Option<usize>, VariantError> {
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(VariantError::NotElf);
    }
    let number = |at: usize, len: usize| -> Result<usize, VariantError> {
        let bytes = at.checked_add(len).and_then(|end| elf.get(at..end)).ok_or(VariantError::NotElf)?;
        let value = bytes.iter().rev().fold(0u64, |sum, &b| (sum << 8) | u64::from(b));
        usize::try_from(value).map_err(|_| VariantError::NotElf)
    };
    let (table, size, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    let section = |n: usize| {
        let at = n.checked_mul(size).and_then(|skip| table.checked_add(skip)).ok_or(VariantError::NotElf)?;
        // type, offset, size, link
        Ok((number(at + 4, 4)?, number(at + 24, 8)?, number(at + 32, 8)?, number(at + 40, 4)?))
    };
    for n in 0..count {
        let (kind, offset, len, link) = section(n)?;
        if kind != DYNSYM {
            continue;
        }
        let (_, names, names_len, _) = section(link)?;
        let names = names.checked_add(names_len).and_then(|end| elf.get(names..end)).ok_or(VariantError::NotElf)?;
        let symbols = offset.checked_add(len).and_then(|end| elf.get(offset..end)).ok_or(VariantError::NotElf)?;
        for place in 0..symbols.len() / SYMBOL {
            let at = offset + place * SYMBOL;
            let found = names.get(number(at, 4)?..).and_then(|n| n.split(|&b| b == 0).next());
            // Defined here, and not local.
            if found == Some(name.as_bytes()) && number(at + 6, 2)? != 0 && number(at + 4, 1)? >> 4 != 0 {
                return Ok(Some(at));
            }
        }
        return Ok(None);
    }
    Err(VariantError::NotElf)
}

const DYNSYM: usize = 11;
const SYMBOL: usize = 24;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_give_a_library_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut elf = b"\x7fELF\x02\x01".to_vec();
            elf.extend_from_slice(&bytes);
            let _ = without(&elf, &["nrt_init"]);
            prop_assert!(without(&bytes, &["nrt_init"]).is_err());
        }
    }
}
