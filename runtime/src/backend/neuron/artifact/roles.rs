//! Ports as the manifest writes them: `{"role": "cache:4x2048:3:keys", "dtype": "bf16", "dims": [4, 2048, 8, 128]}`, a cache
//! with rows and positions of its class.

use njoule_hlo::DType;
use njoule_models::program::{CacheId, WeightId};
use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

use crate::backend::neuron::interface::{CachePart, CacheShape, Input, Output, Port, WeightPart};

/// A role that has a name.
pub trait Role: Sized {
    /// Its name.
    fn name(&self) -> String;
    /// The role of that name.
    fn parse(name: &str) -> Option<Self>;
}

const INPUTS: [(&str, Input); 11] = [
    ("tokens", Input::Tokens),
    ("positions", Input::Positions),
    ("slots", Input::Slots),
    ("start", Input::Start),
    ("row", Input::Row),
    ("last", Input::Last),
    ("rope_len", Input::RopeLen),
    ("rank", Input::Rank),
    ("bias_ids", Input::BiasIds),
    ("bias_values", Input::BiasValues),
    ("mask", Input::Mask),
];

const OUTPUTS: [(&str, Output); 5] = [
    ("candidate_values", Output::CandidateValues),
    ("candidate_ids", Output::CandidateIds),
    ("log_sum_exp", Output::LogSumExp),
    ("greedy", Output::Greedy),
    ("logits", Output::Logits),
];

const CACHE_PARTS: [(&str, CachePart); 4] = [
    ("keys", CachePart::Keys),
    ("values", CachePart::Values),
    ("key_scales", CachePart::KeyScales),
    ("value_scales", CachePart::ValueScales),
];

const WEIGHT_PARTS: [(&str, WeightPart); 2] = [("values", WeightPart::Values), ("scales", WeightPart::Scales)];

impl Role for Input {
    fn name(&self) -> String {
        match self {
            Input::Cache(class, id, part) => cache_name(*class, *id, *part),
            Input::Weight(id, part) => format!("weight:{}:{}", id.0, name_in(&WEIGHT_PARTS, part)),
            plain => name_in(&INPUTS, plain).to_owned(),
        }
    }

    fn parse(name: &str) -> Option<Input> {
        if let Some((class, id, part)) = cache_of(name) {
            return Some(Input::Cache(class, id, part));
        }
        if let Some(rest) = name.strip_prefix("weight:") {
            let (id, part) = rest.split_once(':')?;
            return Some(Input::Weight(WeightId(id.parse().ok()?), value_in(&WEIGHT_PARTS, part)?));
        }
        value_in(&INPUTS, name)
    }
}

impl Role for Output {
    fn name(&self) -> String {
        match self {
            Output::Cache(class, id, part) => cache_name(*class, *id, *part),
            plain => name_in(&OUTPUTS, plain).to_owned(),
        }
    }

    fn parse(name: &str) -> Option<Output> {
        match cache_of(name) {
            Some((class, id, part)) => Some(Output::Cache(class, id, part)),
            None => value_in(&OUTPUTS, name),
        }
    }
}

fn cache_name(class: CacheShape, id: CacheId, part: CachePart) -> String {
    format!("cache:{}x{}:{}:{}", class.rows, class.positions, id.0, name_in(&CACHE_PARTS, &part))
}

fn cache_of(name: &str) -> Option<(CacheShape, CacheId, CachePart)> {
    let (class, rest) = name.strip_prefix("cache:")?.split_once(':')?;
    let (rows, positions) = class.split_once('x')?;
    let class = CacheShape { rows: rows.parse().ok()?, positions: positions.parse().ok()? };
    let (id, part) = rest.split_once(':')?;
    Some((class, CacheId(id.parse().ok()?), value_in(&CACHE_PARTS, part)?))
}

fn name_in<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, v)| v == value).map_or("", |(name, _)| name)
}

fn value_in<T: Copy>(table: &[(&'static str, T)], name: &str) -> Option<T> {
    table.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
}

/// A type by its name in HLO text.
pub(super) fn dtype_of(name: &str) -> Option<DType> {
    DType::ALL.into_iter().find(|dtype| dtype.to_string() == name)
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    role: String,
    dtype: String,
    dims: Vec<usize>,
}

impl<T: Role> Serialize for Port<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Port { role, dtype, dims } = self;
        Written { role: role.name(), dtype: dtype.to_string(), dims: dims.clone() }.serialize(serializer)
    }
}

impl<'de, T: Role> Deserialize<'de> for Port<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { role, dtype, dims } = Written::deserialize(deserializer)?;
        let dtype = dtype_of(&dtype).ok_or_else(|| D::Error::custom(format!("`dtype` of `{role}` is {dtype:?}")))?;
        let known = T::parse(&role).ok_or_else(|| D::Error::custom(format!("`role` is {role:?}")))?;
        Ok(Port { role: known, dtype, dims })
    }
}
