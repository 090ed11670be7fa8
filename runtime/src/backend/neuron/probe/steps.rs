//! The steps, from what everything needs to what only speed needs. A form may build on what an earlier step chose.
//!
//! The forms of an idiom are those that lowering emits, one small module each, in the order of preference; inputs are such
//! that sums and products are exact in f32, so that only what is truly approximated (exponentials, sines) has a tolerance.

mod idioms;
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
    /// What is done.
    pub work: Work,
}

/// What a step does.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Opens library and core.
    Open,
    /// Tries every form; the first that works is chosen.
    Forms(&'static [Form]),
    /// Reads what the device tells of its power; nothing depends on it.
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

/// All of them, in order.
pub const STEPS: &[Step] = &[
    Step {
        name: "open",
        proves: "the library opens, the runtime starts and gives this process a core",
        advice: "run `njoule doctor --init`: it names what is missing",
        work: Work::Open,
    },
    Step {
        name: "add",
        proves: "a module is compiled, loaded and run, and tensors reach it and come back as they are",
        advice: "compiler and runtime do not go together, or the module's bytes are not taken: send the report",
        work: Work::Forms(&[only("add", idioms::add)]),
    },
    Step {
        name: "alias",
        proves: "a result bound to its parameter's tensor is updated in place, over several runs",
        advice: "without it no cache can live on the device: send the report",
        work: Work::Forms(&[only("must_alias", idioms::alias)]),
    },
    Step {
        name: "dot_result",
        proves: "products of bf16 matrices are summed in f32",
        advice: "no result type works: look at the largest error of each form; a sum in bf16 is too coarse to serve",
        work: forms!(dot_result: DotResult; "f32" F32 idioms::dot_f32, "operand" Operand idioms::dot_operand),
    },
    Step {
        name: "normalise",
        proves: "root mean square, exponentials and logarithms in f32 are near those of a CPU",
        advice: "activation tables of this compiler are too coarse: look at the error, and try --optlevel 1",
        work: Work::Forms(&[only("plain", idioms::normalise)]),
    },
    Step {
        name: "lookup",
        proves: "rows of a table are looked up by ids of run time",
        advice: "no embedding can be read on the device: send the report",
        work: forms!(lookup: Lookup; "gather" Gather rows::lookup_gather, "one_hot" OneHot rows::lookup_one_hot),
    },
    Step {
        name: "rope",
        proves: "rotary angles at large positions are right",
        advice: "neither computed angles nor a table works: send the report",
        work: forms!(rope: RopeAngles; "computed" Computed idioms::rope_computed, "table" Table idioms::rope_table),
    },
    Step {
        name: "cache_write",
        proves: "keys and values get into a cache at positions of run time, in a decode step and in a chunk",
        advice: "no cache can be written on the device: send the report",
        work: forms!(cache_write: CacheWrite;
            "scatter" Scatter rows::write_scatter,
            "update_slice" UpdateSlice rows::write_update_slice,
            "select" Select rows::write_select),
    },
    Step {
        name: "row_read",
        proves: "a chunk reads the row of the cache that it works on",
        advice: "prefill needs one of the two: send the report",
        work: forms!(row_read: RowRead; "dynamic_slice" DynamicSlice rows::read_slice, "gather" Gather rows::read_gather),
    },
    Step {
        name: "top_k",
        proves: "candidates are found on the device, with their ids",
        advice: "without it the whole vocabulary goes to the host each step: send the report",
        work: forms!(top_k: TopK; "rounds" Rounds idioms::top_k_rounds, "custom" Custom idioms::top_k_custom),
    },
    Step {
        name: "power",
        proves: "the device tells its power, as a share of a maximum that is not published",
        advice: "energy is not measured on this device; nothing serves worse for it",
        work: Work::Power,
    },
];
