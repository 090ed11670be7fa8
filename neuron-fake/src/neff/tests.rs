//! The container: what is written comes back, an offline reader finds names and sizes, and damage is an error.

use njoule_hlo::op::Binary;
use njoule_hlo::{Builder, DType, Module, Target};
use proptest::prelude::*;

use super::*;

fn module(ranks: u32) -> Module {
    let mut b = Builder::new("sum");
    let x = b.parameter("x", DType::F32, &[2, 3]);
    let cache = b.parameter("cache", DType::BF16, &[4]);
    let groups = [(0..ranks).collect::<Vec<_>>()];
    let sum = if ranks > 1 { b.all_reduce(x, Binary::Add, &groups) } else { b.add(x, x) };
    let two = b.full_like(cache, 2.0);
    let next = b.add(cache, two);
    b.alias(1, cache);
    b.finish(&[sum, next])
}

fn packed(ranks: u32, packing: Packing) -> Vec<u8> {
    let module = module(ranks);
    let sidecar = Sidecar::of(&module, Target::Inf2, 1).unwrap();
    write(&module, &sidecar, packing).unwrap()
}

#[test]
fn a_neff_survives_with_and_without_gzip() {
    for plain in [false, true] {
        let bytes = packed(2, Packing { plain, ..Packing::default() });
        assert_eq!(bytes, packed(2, Packing { plain, ..Packing::default() }), "the same each time");
        let neff = read(&bytes).unwrap();
        assert_eq!(neff.module, module(2));
        assert_eq!((neff.sidecar.world, &neff.sidecar.aliases[..]), (2, &[(1, 1)][..]));
        assert!(hash_holds(&bytes, &neff.header));
        // The rule by which a NEFF is told from other files without a magic number.
        assert_eq!(u64::from_le_bytes(bytes[8..16].try_into().unwrap()), 1024);
        assert_eq!(u64::from_le_bytes(bytes[16..24].try_into().unwrap()), bytes.len() as u64 - 1024);
        assert_eq!(
            if plain { &bytes[1024 + 257..][..5] } else { &bytes[1024..1026] },
            if plain { &b"ustar"[..] } else { &[0x1f, 0x8b] }
        );
    }
}

#[test]
fn an_offline_reader_finds_names_and_sizes() {
    let bytes = packed(1, Packing { plain: true, ..Packing::default() });
    let files = tar::read(&bytes[1024..]).unwrap();
    let (_, def) = files.iter().find(|(name, _)| *name == "sg00/def.json").unwrap();
    let def: serde_json::Value = serde_json::from_slice(def).unwrap();
    assert_eq!((&def["var"]["input0"]["type"], &def["var"]["input0"]["size"]), (&"input".into(), &24.into()));
    assert_eq!((&def["var"]["output1"]["type"], &def["var"]["output1"]["size"]), (&"output".into(), &8.into()));
}

#[test]
fn another_version_and_a_wrong_hash_are_told_apart() {
    let newer = packed(1, Packing { version: (3, 0), plain: false });
    assert_eq!(read(&newer), Err(NeffError::Version { received: (3, 0) }));
    let mut bytes = packed(1, Packing { plain: true, ..Packing::default() });
    let last = bytes.len() - 1;
    bytes[last] = 1;
    assert!(!hash_holds(&bytes, &header(&bytes).unwrap()));
    assert_eq!(read(&bytes[..100]), Err(NeffError::Short { len: 100 }));
}

proptest! {
    #[test]
    fn any_bytes_behind_a_good_header_give_a_neff_or_an_error(
        data in proptest::collection::vec(any::<u8>(), 0..2000), gzip: bool,
    ) {
        let mut bytes = packed(1, Packing::default())[..HEADER].to_vec();
        if gzip { bytes.extend_from_slice(&GZIP); }
        bytes.extend_from_slice(&data);
        let len = (bytes.len() - HEADER) as u64;
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let _ = read(&bytes);
    }

    #[test]
    fn any_damage_gives_a_neff_or_an_error(places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), plain: bool) {
        let mut bytes = packed(2, Packing { plain, ..Packing::default() });
        for (at, with) in places {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn any_bytes_give_a_neff_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }
}
