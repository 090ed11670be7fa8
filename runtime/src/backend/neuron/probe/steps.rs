//! The steps, from what everything needs to what only speed needs. A form may build on what an earlier step chose.
//!
//! The forms of an idiom are those of lowering, by its own code, one small module each, in the order of preference; inputs
//! are such that sums and products are exact in f32, so that only what is truly approximated (exponentials, sines) has a
//! tolerance. Whole layers and a model come after them, in the forms chosen.

mod idioms;
mod layer;
mod rows;

use super::trial::Trial;
use crate::backend::neuron::Profile;

/// A step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// What is known once it passed.
    pub proves: &'static str,
    /// What to do if it does not.
    pub advice: &'static str,
    /// What alone needs it; everything does where this is none, and then nothing comes after its failure.
    pub only_for: Option<&'static str>,
    /// What is done.
    pub work: Work,
}

/// What a step does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Opens the library.
    Library,
    /// Starts the runtime and takes a core.
    Core,
    /// Tries every form; the first that works is chosen.
    Forms(&'static [Form]),
    /// Tries modules in the forms chosen so far.
    Whole(fn(&Profile) -> Vec<Trial>),
    /// Loads a model and compares its logits and tokens.
    Logits,
    /// Times its decode steps.
    Speed,
    /// Reads what the device tells of its power.
    Power,
}

/// A form of an idiom.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// As the profile has it.
    pub name: &'static str,
    /// Its modules, where what was chosen before is as the profile says.
    pub trials: fn(&Profile) -> Vec<Trial>,
    /// Writes it down.
    pub choose: fn(&mut Profile),
}

/// What has one form only.
const fn only(name: &'static str, trials: fn(&Profile) -> Vec<Trial>) -> Form {
    Form { name, trials, choose: |_| {} }
}

macro_rules! forms {
    ($field:ident: $type:ident; $($name:literal $variant:ident $trials:expr),* $(,)?) => {
        Work::Forms(&[$(Form {
            name: $name,
            trials: $trials,
            choose: |profile| profile.$field = crate::backend::neuron::profile::$type::$variant,
        }),*])
    };
}

const fn needed(name: &'static str, proves: &'static str, advice: &'static str, work: Work) -> Step {
    Step { name, proves, advice, only_for: None, work }
}

const fn wanted(
    name: &'static str,
    only_for: &'static str,
    proves: &'static str,
    advice: &'static str,
    work: Work,
) -> Step {
    Step { name, proves, advice, only_for: Some(only_for), work }
}

/// All of them, in order.
pub const STEPS: &[Step] = &[
    needed(
        "library",
        "the library opens and has what njoule needs",
        "run `njoule doctor`: it names what is missing",
        Work::Library,
    ),
    needed(
        "core",
        "the runtime starts and gives this process a core",
        "run `njoule doctor --init`: it names who has the cores, or what the driver lacks",
        Work::Core,
    ),
    needed(
        "add",
        "a module is compiled, loaded and run, and tensors reach it and come back as they are",
        "compiler and runtime do not go together, or the module's bytes are not taken: send the report",
        Work::Forms(&[only("add", idioms::add)]),
    ),
    needed(
        "alias",
        "a result bound to its parameter's tensor is updated in place, over several runs",
        "without it no cache can live on the device: send the report",
        Work::Forms(&[only("must_alias", idioms::alias)]),
    ),
    needed(
        "dot_result",
        "products of bf16 matrices are summed in f32",
        "no result type works: look at the largest error of each form; a sum in bf16 is too coarse to serve",
        forms!(dot_result: DotResult; "f32" F32 idioms::dot_f32, "operand" Operand idioms::dot_operand),
    ),
    needed(
        "normalise",
        "root mean square, exponentials and logarithms in f32 are near those of a CPU",
        "activation tables of this compiler are too coarse: look at the error, and try --optlevel 1",
        Work::Forms(&[only("plain", idioms::normalise)]),
    ),
    needed(
        "lookup",
        "rows of a table are looked up by ids of run time",
        "no embedding can be read on the device: send the report",
        forms!(lookup: Lookup; "gather" Gather rows::lookup_gather, "one_hot" OneHot rows::lookup_one_hot),
    ),
    needed(
        "rope",
        "rotary angles at large positions are right",
        "neither computed angles nor a table works: send the report",
        forms!(rope: RopeAngles; "computed" Computed idioms::rope_computed, "table" Table idioms::rope_table),
    ),
    needed(
        "cache_write",
        "keys and values get into a cache at positions of run time, in a decode step and in a chunk",
        "no cache can be written on the device: send the report",
        forms!(cache_write: CacheWrite;
            "scatter" Scatter rows::write_scatter,
            "update_slice" UpdateSlice rows::write_update_slice,
            "select" Select rows::write_select),
    ),
    needed(
        "row_read",
        "a chunk reads the row of the cache that it works on",
        "prefill needs one of the two: send the report",
        forms!(row_read: RowRead; "dynamic_slice" DynamicSlice rows::read_slice, "gather" Gather rows::read_gather),
    ),
    needed(
        "attention",
        "queries meet cached keys and the step's own, masked where they must not",
        "no model attends without it: look at the error, and send the report",
        Work::Forms(&[only("plain", idioms::attention)]),
    ),
    needed(
        "greedy",
        "the likeliest token is found on the device",
        "no step can tell its token: send the report",
        Work::Forms(&[only("plain", idioms::greedy)]),
    ),
    needed(
        "top_k",
        "candidates are found on the device, with their ids",
        "without it the whole vocabulary goes to the host each step: send the report",
        forms!(top_k: TopK; "rounds" Rounds idioms::top_k_rounds, "custom" Custom idioms::top_k_custom),
    ),
    wanted(
        "int8",
        "--quant int8 and --kv-type int8",
        "matrices and caches of 8 bits with their scales compute what they should",
        "serve with bf16, and send the report",
        Work::Whole(layer::int8),
    ),
    wanted(
        "constrained",
        "logit biases and structured output on the device",
        "sparse biases and masks of allowed tokens reach the candidates",
        "build with --biases 0 --no-masks, and send the report",
        Work::Whole(layer::constrained),
    ),
    wanted(
        "experts",
        "mixtures of experts",
        "experts are chosen, computed and summed",
        "serve models without experts, and send the report",
        Work::Whole(layer::experts),
    ),
    wanted(
        "activations",
        "families with gelu or bounded scores (gpt2, gemma)",
        "gelu in both forms and soft bounds are near those of a CPU",
        "serve families with silu, and send the report",
        Work::Forms(&[only("plain", idioms::activations)]),
    ),
    needed(
        "layer",
        "a layer of SmolLM2's sizes decodes, prefills and scores as it should, with the forms chosen",
        "each idiom works alone and not with the others: send the report",
        Work::Whole(layer::layer),
    ),
    needed(
        "logits",
        "a whole model gives the reference's logits, and its tokens by prefill and decode",
        "layers work alone and the model does not: look at the first prompt that is off, and send the report",
        Work::Logits,
    ),
    needed(
        "speed",
        "decode steps run one after the other, and how long each takes",
        "the model computes and cannot be timed: send the report",
        Work::Speed,
    ),
    wanted(
        "power",
        "measured energy",
        "the driver tells its power, as a share of a maximum that is not published",
        "energy is not measured on this device; nothing serves worse for it",
        Work::Power,
    ),
];
