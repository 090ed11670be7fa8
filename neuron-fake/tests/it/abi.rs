//! The library's functions are those of the project's header, and its SONAME is the real one's.

use crate::child::library;

/// Every function that the header declares is exported, but those that the stand-in leaves out on purpose.
#[test]
fn the_headers_functions_are_all_exported() {
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/../neuron-sys/include/njoule_nrt.h");
    let header = std::fs::read_to_string(header).unwrap();
    let library = std::fs::read(library()).unwrap();
    let mut seen = 0;
    for word in header.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '(')) {
        let Some((name, _)) = word.split_once('(') else { continue };
        if (name.starts_with("nrt_") || name.starts_with("nrta_")) && !LEFT_OUT.contains(&name) {
            assert!(neuron_fake::variant::without(&library, &[name]).is_ok(), "{name} is not exported");
            seen += 1;
        }
    }
    assert!(seen >= 40, "{seen} functions found in the header");
}

#[test]
fn it_has_the_name_of_the_real_one() {
    let library = std::fs::read(library()).unwrap();
    let soname = b"\0libnrt.so.1\0";
    assert!(library.windows(soname.len()).any(|w| w == soname));
}

/// Optional, and of no use to njoule: a loader must do without them.
const LEFT_OUT: [&str; 2] = ["nrt_tensor_check_output_completion", "nrt_tensor_reset_output_completion"];
