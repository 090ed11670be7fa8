//! Which machine this is, as the library tells it.

use std::fmt;

use crate::bindings as b;
use crate::version::text;

/// The instance that this process runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its family.
    pub family: Family,
    /// The library's name of the architecture.
    pub arch: String,
    /// The library's name of the device's revision.
    pub revision: String,
}

/// An instance family. A number: newer libraries have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Family(pub u32);

impl Family {
    /// AWS's name in lower case; none for a number that we do not know.
    pub fn name(self) -> Option<&'static str> {
        FAMILIES.iter().find(|(code, _)| *code == self.0).map(|(_, name)| *name)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "family {}", self.0),
        }
    }
}

impl From<&b::nrt_instance_info_t> for Instance {
    fn from(raw: &b::nrt_instance_info_t) -> Instance {
        Instance { family: Family(raw.family), arch: text(&raw.arch_name), revision: text(&raw.device_revision) }
    }
}

const FAMILIES: [(u32, &str); 15] = [
    (b::NRT_INSTANCE_INF1, "inf1"),
    (b::NRT_INSTANCE_TRN1, "trn1"),
    (b::NRT_INSTANCE_TRN1N, "trn1n"),
    (b::NRT_INSTANCE_INF2, "inf2"),
    (b::NRT_INSTANCE_TRN2, "trn2"),
    (b::NRT_INSTANCE_TRN2N, "trn2n"),
    (b::NRT_INSTANCE_INF2E, "inf2e"),
    (b::NRT_INSTANCE_TRN2P, "trn2p"),
    (b::NRT_INSTANCE_TRN2U, "trn2u"),
    (b::NRT_INSTANCE_TRN2E, "trn2e"),
    (b::NRT_INSTANCE_TRN2EU, "trn2eu"),
    (b::NRT_INSTANCE_TRN2AC, "trn2ac"),
    (b::NRT_INSTANCE_TRN2UAC, "trn2uac"),
    (b::NRT_INSTANCE_TRN3, "trn3"),
    (b::NRT_INSTANCE_TRN3PDS98, "trn3pds98"),
];
