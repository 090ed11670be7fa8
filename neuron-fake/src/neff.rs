//! The container that the stand-in compiler writes and the stand-in library loads: a NEFF in form, with an HLO module in
//! place of machine code.
//!
//! A 1024-byte little-endian header (offsets: aws-neuron-sdk, neuron-runtime/explore/work-with-neff-files.rst), then a tar,
//! gzipped unless asked otherwise. The tar holds `module.pb` (the HloModuleProto), `sidecar.json` ([`Sidecar`]), and
//! `sg00/def.json`, whose `var` entries give names and sizes of inputs and outputs as a real one's do.
//!
//! Reading is total: any bytes give a [`Neff`] or a [`NeffError`], and memory stays within what the bytes can unpack to.

mod sidecar;

pub use sidecar::{Sidecar, TensorSpec, nrt_dtype};

use std::io::{Read, Write};

use njoule_hlo::{DecodeError, Module, decode, encode};
use sha2::{Digest, Sha256};

use crate::tar::{self, TarError};

/// What a NEFF holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Neff {
    /// The header's numbers.
    pub header: Header,
    /// What the compiler noted.
    pub sidecar: Sidecar,
    /// What is run.
    pub module: Module,
    /// Bytes of the archive once unpacked: what it takes on a device.
    pub unpacked: usize,
}

/// The fields of the header that a loader looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the format: major, minor.
    pub version: (u64, u64),
    /// Physical cores per logical core.
    pub lnc: u32,
    /// SHA-256 of all that follows the header.
    pub hash: [u8; 32],
}

/// How to write one.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Of the format: major, minor.
    pub version: (u64, u64),
    /// Without gzip: `--enable-fast-loading-neuron-binaries`.
    pub plain: bool,
}

impl Default for Packing {
    fn default() -> Self {
        Packing { version: VERSION, plain: false }
    }
}

/// Why bytes are no NEFF of ours.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NeffError {
    /// Shorter than a header.
    #[error("{len} bytes are no NEFF: its header has 1024")]
    Short {
        /// How many there are.
        len: usize,
    },
    /// A field of the header that cannot be.
    #[error("the header's {field} is {got}, not {want}")]
    Header {
        /// Its name.
        field: &'static str,
        /// What it is.
        got: u64,
        /// What it must be.
        want: u64,
    },
    /// Of another version of the format.
    #[error("NEFF version mismatch supported: {}.{} received: {}.{}", VERSION.0, VERSION.1, .received.0, .received.1)]
    Version {
        /// The file's.
        received: (u64, u64),
    },
    /// The gzip stream is damaged.
    #[error("the archive does not unpack: {0}")]
    Gzip(String),
    /// It unpacks to more than a NEFF of ours can be.
    #[error("the archive unpacks to more than {limit} bytes")]
    TooLarge {
        /// The most.
        limit: u64,
    },
    /// The tar is damaged.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A file is not there: made by the real compiler, perhaps, which this does not run.
    #[error("the archive has no {0}: not made by neuronx-cc-fake, which makes the only NEFFs that this runs")]
    Missing(&'static str),
    /// The sidecar is not what the compiler writes.
    #[error("sidecar.json: {0}")]
    Sidecar(String),
    /// The module does not decode.
    #[error("module.pb: {0}")]
    Module(#[from] DecodeError),
    /// Header and sidecar, or sidecar and module, disagree.
    #[error("{0}")]
    Disagree(String),
}

/// Writes a NEFF. The same arguments give the same bytes.
pub fn write(module: &Module, sidecar: &Sidecar, packing: Packing) -> Result<Vec<u8>, NeffError> {
    let json = |e: serde_json::Error| NeffError::Sidecar(e.to_string());
    let files = [
        ("sidecar.json", serde_json::to_vec_pretty(sidecar).map_err(json)?),
        ("sg00/def.json", serde_json::to_vec_pretty(&sidecar.definition()).map_err(json)?),
        ("module.pb", encode(module)),
    ];
    let files: Vec<tar::File<'_>> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
    let archive = tar::write(&files).ok_or(NeffError::TooLarge { limit: LIMIT })?;
    let data = if packing.plain {
        archive
    } else {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        let gzipped = gzip.write_all(&archive).and_then(|()| gzip.finish());
        gzipped.map_err(|e| NeffError::Gzip(e.to_string()))?
    };
    let mut out = vec![0; HEADER];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &1u64.to_le_bytes()); // gzip or plain tar with a SHA-256
    put(8, &(HEADER as u64).to_le_bytes());
    put(16, &(data.len() as u64).to_le_bytes());
    put(24, &packing.version.0.to_le_bytes());
    put(32, &packing.version.1.to_le_bytes());
    put(40, b"neuronx-cc-fake");
    put(168, &sidecar.lnc.to_le_bytes());
    let hash = Sha256::digest(&data);
    put(172, &hash);
    put(204, &hash[..16]); // the uuid: of the content, not of the moment
    let name = module.name.as_bytes();
    put(220, &name[..name.len().min(255)]);
    put(476, &sidecar.lnc.to_le_bytes());
    put(480, &[u8::try_from(sidecar.lnc).unwrap_or(u8::MAX)]);
    put(552, &sidecar.lnc.to_le_bytes());
    out.extend_from_slice(&data);
    Ok(out)
}

/// The header alone, whatever its version.
pub fn header(bytes: &[u8]) -> Result<Header, NeffError> {
    let Some((head, data)) = bytes.split_at_checked(HEADER) else {
        return Err(NeffError::Short { len: bytes.len() });
    };
    for (field, at, want) in [("header_size", 8, HEADER as u64), ("data_size", 16, data.len() as u64)] {
        let got = u64::from_le_bytes(array(head, at));
        if got != want {
            return Err(NeffError::Header { field, got, want });
        }
    }
    Ok(Header {
        version: (u64::from_le_bytes(array(head, 24)), u64::from_le_bytes(array(head, 32))),
        lnc: u32::from_le_bytes(array(head, 552)),
        hash: array(head, 172),
    })
}

/// Reads a NEFF.
pub fn read(bytes: &[u8]) -> Result<Neff, NeffError> {
    let header = header(bytes)?;
    if header.version.0 != VERSION.0 {
        return Err(NeffError::Version { received: header.version });
    }
    let data = &bytes[HEADER..];
    let unpacked;
    let archive = if data.starts_with(&GZIP) {
        // Deflate makes at most 1032 bytes of one.
        let limit = LIMIT.min((data.len() as u64).saturating_mul(1032));
        let mut out = vec![];
        let mut stream = flate2::read::GzDecoder::new(data).take(limit + 1);
        stream.read_to_end(&mut out).map_err(|e| NeffError::Gzip(e.to_string()))?;
        if out.len() as u64 > limit {
            return Err(NeffError::TooLarge { limit });
        }
        unpacked = out;
        &unpacked
    } else {
        data
    };
    let files = tar::read(archive)?;
    let file = |name: &'static str| {
        files.iter().find(|(n, _)| *n == name).map(|(_, content)| *content).ok_or(NeffError::Missing(name))
    };
    let sidecar: Sidecar =
        serde_json::from_slice(file("sidecar.json")?).map_err(|e| NeffError::Sidecar(e.to_string()))?;
    let module = decode(file("module.pb")?)?;
    if sidecar.lnc != header.lnc {
        let text = format!("the header's lnc_size is {}, the sidecar's lnc {}", header.lnc, sidecar.lnc);
        return Err(NeffError::Disagree(text));
    }
    let again = Sidecar::of(&module, sidecar.target()?, sidecar.lnc);
    if again.as_ref() != Some(&sidecar) {
        return Err(NeffError::Disagree("the sidecar does not describe the module".to_owned()));
    }
    Ok(Neff { header, sidecar, module, unpacked: archive.len() })
}

/// Whether what follows the header has the hash that the header says: `NEURON_RT_VALIDATE_HASH`.
pub fn hash_holds(bytes: &[u8], header: &Header) -> bool {
    bytes.get(HEADER..).is_some_and(|data| Sha256::digest(data).as_slice() == header.hash)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    // Only called inside the header.
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

/// The version of the format that the library loads, by its major number.
pub const VERSION: (u64, u64) = (2, 0);

const HEADER: usize = 1024;
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// No module of ours comes near: weights are parameters, and literals end at 2 GB.
const LIMIT: u64 = 3 << 30;

#[cfg(test)]
mod tests;
