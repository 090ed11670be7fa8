//! A module: computations of instructions, as `HloModuleProto` has them, typed.
//!
//! Nothing here is checked: a [`crate::Builder`] makes modules that are right, the decoder makes whatever the file says,
//! and [`crate::verify`] tells them apart.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Op, Shape};

/// The number of an instruction or of a computation; the two are counted apart.
///
/// 64 bits because files have them; ours stay dense and below 2^31 ([`crate::verify`] says why).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub i64);

/// A module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// Not empty.
    pub name: String,
    /// Callees first.
    pub computations: Vec<Computation>,
    /// The computation that is run.
    pub entry: Id,
    /// `host_program_shape`.
    pub signature: Signature,
    /// Results that take a parameter's memory.
    pub aliases: Vec<Alias>,
    /// Frontend attributes; ordered, because the bytes are a cache key.
    pub attributes: BTreeMap<String, String>,
}

/// Parameters and result of the entry computation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// In order of their numbers.
    pub parameters: Vec<Shape>,
    /// One for each.
    pub parameter_names: Vec<String>,
    /// Absent only in a broken file.
    pub result: Option<Shape>,
}

/// A computation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Computation {
    /// Unique in the module.
    pub name: String,
    /// Unique among computations.
    pub id: Id,
    /// Operands before users.
    pub instructions: Vec<Instruction>,
    /// Whose value is the result.
    pub root: Id,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// Unique in the module.
    pub name: String,
    /// Unique in the module.
    pub id: Id,
    /// Of its value.
    pub shape: Shape,
    /// In the same computation, earlier.
    pub operands: Vec<Id>,
    /// What it does.
    pub op: Op,
    /// Where it comes from, such as `layers.3/attention`; compilers show it in messages.
    pub scope: String,
    /// Frontend attributes; ordered, because the bytes are a cache key.
    pub attributes: BTreeMap<String, String>,
}

/// A result that takes a parameter's memory: `input_output_alias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// Which part of the result tuple; None where the result is no tuple.
    pub output: Option<usize>,
    /// Which parameter.
    pub parameter: usize,
    /// Whether it may or must.
    pub kind: AliasKind,
}

/// How binding an [`Alias`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AliasKind {
    /// Not said; nkipy writes this.
    Undefined,
    /// If the caller gives the buffer away.
    May,
    /// Always: what we write.
    Must,
}

impl Module {
    /// The entry computation.
    pub fn entry(&self) -> Option<&Computation> {
        self.computations.iter().find(|c| c.id == self.entry)
    }

    /// The shapes of the results: the parts of the root's tuple, or the root itself.
    pub fn results(&self) -> &[crate::ArrayShape] {
        self.signature.result.as_ref().map_or(&[], Shape::parts)
    }

    /// Number of instructions in all computations.
    pub fn instructions(&self) -> usize {
        self.computations.iter().map(|c| c.instructions.len()).sum()
    }
}

impl Computation {
    /// The root instruction.
    pub fn root(&self) -> Option<&Instruction> {
        self.instructions.iter().rev().find(|i| i.id == self.root)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
