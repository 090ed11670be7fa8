//! Whether a manifest is consistent in itself, so that whoever uses it may follow its indices.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path};

use njoule_hlo::DType;
use njoule_models::program::WeightId;

use super::parameters::{ALIGN, file_bytes};
use super::{FileRecord, Manifest, ModuleRecord, Origin, Parameter, port_bytes};
use crate::backend::neuron::interface::{CachePart, Input, ModuleKind, Output, Port};

/// The first thing that is wrong, with its field.
pub(super) fn check(m: &Manifest) -> Result<(), String> {
    let layout = &m.layout;
    if !(1..=MOST_RANKS).contains(&layout.tp) {
        return Err(format!("field `layout.tp` is {}, a model is on 1 to {MOST_RANKS} cores", layout.tp));
    }
    if layout.classes.is_empty() || layout.modules.is_empty() {
        return Err("field `layout`: there is no class or no module".to_owned());
    }
    if layout.classes.len() > MOST_CLASSES || layout.modules.len() > MOST_MODULES {
        return Err("field `layout`: there are too many classes or modules".to_owned());
    }
    for (i, class) in layout.classes.iter().enumerate() {
        let places = class.rows.checked_mul(class.positions).filter(|n| (1..=MOST_PLACES).contains(n));
        if places.is_none() || class.positions < 2 {
            return Err(format!("field `layout.classes[{i}]`: {} rows of {} positions", class.rows, class.positions));
        }
    }
    if layout.classes.windows(2).any(|pair| pair[0].positions >= pair[1].positions) {
        return Err("field `layout.classes`: they are not in order of their positions".to_owned());
    }
    if !(1..=m.model.vocab).contains(&layout.candidates) || m.model.vocab > i32::MAX as usize {
        let (candidates, vocab) = (layout.candidates, m.model.vocab);
        return Err(format!("field `layout.candidates` is {candidates} of {vocab} tokens"));
    }
    let weights = check_parameters(m)?;
    check_files(m)?;
    if m.modules.len() != layout.modules.len() {
        return Err(format!(
            "field `modules` has {} entries, `layout.modules` {}",
            m.modules.len(),
            layout.modules.len()
        ));
    }
    let mut names = HashSet::new();
    let mut caches = HashMap::new();
    for (i, (module, spec)) in m.modules.iter().zip(&layout.modules).enumerate() {
        let at = |what: String| format!("field `modules[{i}]` ({}): {what}", module.name);
        if module.spec != *spec {
            return Err(at("its spec is not that of `layout.modules`".to_owned()));
        }
        if !names.insert(&module.name) {
            return Err(at("another module has that name".to_owned()));
        }
        check_module(module, m, &weights, &mut caches).map_err(at)?;
    }
    Ok(())
}

fn check_files(m: &Manifest) -> Result<(), String> {
    let mut seen = HashSet::new();
    let modules = m.modules.iter().flat_map(|module| [&module.hlo, &module.neff]);
    for FileRecord { path, sha256, .. } in modules.chain(&m.weights).chain(&m.files) {
        let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || path.is_empty() || path.contains(['\\', '\0']) {
            return Err(format!("a file is called {path:?}, which is no path below the artifact"));
        }
        if !seen.insert(path) {
            return Err(format!("two files are called {path:?}"));
        }
        if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("field `sha256` of {path} is no hash"));
        }
    }
    if let Origin::GgufHead { file, .. } = &m.model.origin
        && !m.files.iter().any(|f| f.path == *file)
    {
        return Err(format!("field `model.origin`: {file:?} is not among the files"));
    }
    if !m.weights.is_empty() && m.weights.len() != m.layout.tp {
        return Err(format!("field `weights` has {} files for {} ranks", m.weights.len(), m.layout.tp));
    }
    let bytes = file_bytes(&m.parameters);
    match m.weights.iter().find(|file| file.bytes != bytes) {
        Some(file) => Err(format!("field `weights`: {} has {} bytes, its parameters {bytes}", file.path, file.bytes)),
        None => Ok(()),
    }
}

fn check_parameters(m: &Manifest) -> Result<HashMap<Input, &Parameter>, String> {
    let (mut known, mut end) = (HashMap::new(), 0);
    for p in &m.parameters {
        let at = |what: &str| format!("field `parameters` (`{}`): {what}", p.name);
        if !matches!(p.port.role, Input::Weight(..)) {
            return Err(at("it is no weight"));
        }
        if port_bytes(p.port.dtype, &p.port.dims) != Some(p.bytes) || p.bytes == 0 {
            return Err(at("`bytes` is not what type and dimensions give"));
        }
        if !p.offset.is_multiple_of(ALIGN) || p.offset < end {
            return Err(at("`offset` is not aligned, or lies within the one before"));
        }
        end = p.offset.checked_add(p.bytes).ok_or_else(|| at("`offset` is too large"))?;
        if known.insert(p.port.role, p).is_some() {
            return Err(at("it is there twice"));
        }
    }
    Ok(known)
}

type Caches<'a> = HashMap<Input, &'a Port<Input>>;

fn check_module<'a>(
    module: &'a ModuleRecord,
    m: &Manifest,
    weights: &HashMap<Input, &Parameter>,
    caches: &mut Caches<'a>,
) -> Result<(), String> {
    let (layout, spec) = (&m.layout, &module.spec);
    spec.check_parts()?;
    if let Some(i) = spec.parts.iter().position(|part| !layout.classes.contains(&part.class)) {
        return Err(format!("field `parts[{i}]`: its class is not among `layout.classes`"));
    }
    if spec.biases > MOST_BIASES {
        return Err(format!("field `biases` is {}", spec.biases));
    }
    let (tokens, outputs) = (spec.kind.tokens(), spec.kind.outputs());
    let decode = matches!(spec.kind, ModuleKind::Decode { .. });
    let mut seen = HashSet::new();
    for (i, port) in module.inputs.iter().enumerate() {
        let at = |what: &str| format!("input {i} {what}");
        if !seen.insert(port.role) {
            return Err(at("has a role that another has"));
        }
        let per_row: &[usize] = if decode { &[tokens] } else { &[] };
        let biases = [outputs, spec.biases];
        let (dtype, dims): (DType, &[usize]) = match port.role {
            Input::Tokens => (DType::S32, &[tokens]),
            Input::Positions | Input::Slots => (DType::S32, &[tokens]),
            Input::Start | Input::Row | Input::Last | Input::Rank => (DType::S32, &[]),
            Input::RopeLen => (DType::S32, per_row),
            Input::BiasIds => (DType::S32, &biases),
            Input::BiasValues => (DType::F32, &biases),
            Input::Mask => {
                let words = port.dims.get(1).copied().unwrap_or(0);
                let whole =
                    words.checked_mul(32 * layout.tp).is_some_and(|bits| bits >= m.model.vocab && words <= MOST_WORDS);
                if port.dtype != DType::U32 || port.dims.len() != 2 || port.dims[0] != outputs || !whole {
                    return Err(at("(mask) has another type or shape than its role"));
                }
                continue;
            }
            Input::Cache(class, _, part) => {
                if spec.part(class).is_none() {
                    return Err(at("(cache) is of a class that is not among its `parts`"));
                }
                let values = matches!(part, CachePart::Keys | CachePart::Values);
                let fits =
                    port.dims.len() == if values { 4 } else { 3 } && port.dims[..2] == [class.rows, class.positions];
                if !fits || port_bytes(port.dtype, &port.dims).is_none_or(|bytes| bytes == 0) {
                    return Err(at("(cache) has another shape than its class"));
                }
                let known = caches.entry(port.role).or_insert(port);
                if *known != port {
                    return Err(at("(cache) has another type or shape than in another module"));
                }
                continue;
            }
            Input::Weight(WeightId(_), _) => {
                if weights.get(&port.role).is_none_or(|p| p.port != *port) {
                    return Err(at("(weight) is not as `parameters` has it"));
                }
                continue;
            }
        };
        if port.dtype != dtype || port.dims != dims {
            return Err(at("has another type or shape than its role"));
        }
    }
    let needed: &[Input] = match spec.kind {
        ModuleKind::Decode { .. } => &[Input::Tokens, Input::Positions, Input::Slots],
        ModuleKind::Prefill { .. } => &[Input::Tokens, Input::Start, Input::Row, Input::Last],
        ModuleKind::Score { .. } => &[Input::Tokens, Input::Start, Input::Row],
    };
    if let Some(missing) = needed.iter().find(|role| !seen.contains(role)) {
        return Err(format!("it has no input {missing:?}"));
    }
    if layout.tp > 1 && !seen.contains(&Input::Rank) {
        return Err("it is on several cores and has no input Rank".to_owned());
    }
    check_outputs(module, m, &seen)
}

fn check_outputs(module: &ModuleRecord, m: &Manifest, inputs: &HashSet<Input>) -> Result<(), String> {
    let (rows, k) = (module.spec.kind.outputs(), m.layout.candidates);
    let score = matches!(module.spec.kind, ModuleKind::Score { .. });
    let mut seen = HashSet::new();
    for (j, port) in module.outputs.iter().enumerate() {
        let at = |what: &str| format!("output {j} {what}");
        if !seen.insert(port.role) {
            return Err(at("has a role that another has"));
        }
        let (dtype, dims): (DType, &[usize]) = match port.role {
            Output::CandidateValues => (DType::F32, &[rows, k]),
            Output::CandidateIds => (DType::S32, &[rows, k]),
            Output::LogSumExp => (DType::F32, &[rows]),
            Output::Greedy => (DType::S32, &[rows]),
            Output::Logits => (DType::F32, &[rows, m.model.vocab]),
            Output::Shares(_) => return Err(at("is a router's: no step asks for it")),
            Output::Stream(_) => return Err(at("is within the model: no step asks for it")),
            Output::Cache(class, id, part) => {
                let input = module.inputs.iter().find(|i| i.role == Input::Cache(class, id, part));
                if input.is_none_or(|i| i.dtype != port.dtype || i.dims != port.dims) {
                    return Err(at("(cache) has no input of its kind to be aliased to"));
                }
                continue;
            }
        };
        if port.dtype != dtype || port.dims != dims {
            return Err(at("has another type or shape than its role"));
        }
    }
    let choices = [Output::CandidateValues, Output::CandidateIds, Output::LogSumExp, Output::Greedy];
    let needed: &[Output] = if score { &[Output::Logits] } else { &choices };
    if let Some(missing) = needed.iter().find(|role| !seen.contains(role)) {
        return Err(format!("it has no output {missing:?}"));
    }
    let unwritten = inputs.iter().find(
        |role| matches!(role, Input::Cache(class, id, part) if !seen.contains(&Output::Cache(*class, *id, *part))),
    );
    match unwritten {
        Some(role) => Err(format!("{role:?} is no output")),
        None => Ok(()),
    }
}

const MOST_RANKS: usize = 256;
const MOST_CLASSES: usize = 1024;
const MOST_MODULES: usize = 1 << 14;
const MOST_BIASES: usize = 1 << 16;
const MOST_WORDS: usize = 1 << 26;
/// Places of a cache are numbered in s32.
const MOST_PLACES: usize = i32::MAX as usize;
