use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

/// A gzipped NEFF with these files.
pub(crate) fn fixture(files: &[(&str, &[u8])], lnc: u32) -> Vec<u8> {
    let mut gzip = GzEncoder::new(vec![], Compression::fast());
    gzip.write_all(&tar_of(files)).unwrap();
    with_header(&gzip.finish().unwrap(), lnc)
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = vec![];
    for (name, content) in [("info.json", &b"{}"[..])].iter().chain(files) {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = b'0';
        block[257..262].copy_from_slice(b"ustar");
        tar.extend(block);
        tar.extend(*content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn with_header(data: &[u8], lnc: u32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[0] = 2;
    bytes[8..16].copy_from_slice(&1024u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&(data.len() as u64).to_le_bytes());
    bytes[24] = 2;
    bytes[40..44].copy_from_slice(b"2.99");
    bytes[168] = 1;
    bytes[552..556].copy_from_slice(&lnc.to_le_bytes());
    bytes.extend(data);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Neff, String> {
    read_from(Cursor::new(bytes)).map_err(|problem| problem.at(Path::new("x")).to_string())
}

const DEF: &[u8] =
    br#"{"var": {"input0": {"type": "input", "size": 8, "var_id": 1}, "output0": {"type": "output", "size": 4},
    "t": {"type": "tmp-buf", "size": 9}}, "dma_queue": {}}"#;

#[test]
fn names_and_sizes_are_read_from_gzipped_and_plain_tars() {
    let gzipped = parse(&fixture(&[("sg00/def.json", DEF)], 2)).unwrap();
    let plain = parse(&with_header(&tar_of(&[("sg00/def.json", DEF)]), 2)).unwrap();
    for (neff, is) in [(&gzipped, true), (&plain, false)] {
        assert_eq!((neff.header.gzipped, neff.header.lnc, neff.header.version), (is, 2, (2, 0)));
        assert_eq!(neff.header.build, "2.99");
        assert_eq!(neff.inputs.iter().collect::<Vec<_>>(), [(&"input0".to_owned(), &8)]);
        assert_eq!(neff.outputs.iter().collect::<Vec<_>>(), [(&"output0".to_owned(), &4)]);
    }
}

#[test]
fn each_broken_field_is_named() {
    let good = fixture(&[("sg00/def.json", DEF)], 1);
    let broken = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        parse(&bytes).unwrap_err()
    };
    assert!(broken(|b| b.truncate(1000)).contains("no room for a header"));
    assert!(broken(|b| b[8] = 1).contains("header_size"));
    assert!(broken(|b| b.truncate(1100)).contains("data_size"));
    assert!(broken(|b| b[1024] = 0).contains("neither gzip nor tar"));
    assert!(broken(|b| *b.last_mut().unwrap() ^= 0xff).contains("unpack"));
    assert!(parse(&fixture(&[("sg00/def.json", b"[")], 1)).unwrap_err().contains("def.json"));
    assert!(parse(&with_header(&tar_of(&[("x", DEF)])[..1100], 1)).unwrap_err().contains("ends within"));
}

proptest! {
    #[test]
    fn any_bytes_give_a_description_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = parse(&bytes);
    }

    /// Past the header's checks, into gzip, tar and JSON.
    #[test]
    fn any_change_of_a_real_one_gives_a_description_or_an_error(
        at in 0usize..4096, to in any::<u8>(), cut in 0usize..4096, gzip in any::<bool>(),
    ) {
        let data = tar_of(&[("sg00/def.json", DEF)]);
        let mut bytes = if gzip { fixture(&[("sg00/def.json", DEF)], 1) } else { with_header(&data, 1) };
        let at = at % bytes.len();
        bytes[at] = to;
        let keep = bytes.len() - cut % (bytes.len() - HEADER);
        bytes.truncate(keep);
        let size = (bytes.len() - HEADER) as u64;
        bytes[16..24].copy_from_slice(&size.to_le_bytes());
        let _ = parse(&bytes);
    }
}
