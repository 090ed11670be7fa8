//! From checkpoint tensors to packed weights: which stored type each gets, and the packing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use njoule_kernels::buffer::Arena;
use njoule_kernels::packed::{PackError, Packed, Source, Stored};
#[cfg(target_os = "linux")]
use njoule_kernels::shared::{Shared, SharedError};
use njoule_models::program::{Op, Program, Val, WeightDecl, WeightId, WeightUse};
use njoule_models::weights::parts::Codes;
use njoule_models::weights::{Container, DType, Encoding, GgmlType, Holds, WeightError, WeightRows, WeightSource};

use crate::backend::{LoadError, Quant};

/// Every weight of a program, ready for kernels.
#[derive(Debug)]
pub struct StoredWeights {
    weights: Vec<StoredWeight>,
}

#[derive(Debug)]
enum StoredWeight {
    Matrix(Arc<Packed>),
    Vector(Arc<[f32]>),
}

impl StoredWeights {
    /// Reads, quantises and packs all weights. A matrix is read in chunks of rows whose file pages are released.
    pub fn load(program: &Program, source: &dyn WeightSource, quant: Quant) -> Result<Self, LoadError> {
        Self::pack(program, source, quant, &mut Arena::default())
    }

    /// The same in memory that other processes read as well: whoever comes first packs.
    #[cfg(target_os = "linux")]
    pub fn load_shared(
        program: &Program,
        source: &dyn WeightSource,
        quant: Quant,
        shared: &Shared,
    ) -> Result<Self, LoadError> {
        let (routers, mut layout, mut bytes) = (routers(program), program.fingerprint(), 0_usize);
        // Others may have been packed of files that are other ones by now.
        layout ^= source.version().rotate_left(1);
        for (id, decl) in program.weights.iter().enumerate().filter(|(_, d)| d.usage != WeightUse::Vector) {
            let stored = choose(quant, kind(decl, id, &routers), &*source.get(decl)?, source.container());
            let size = decl.experts.unwrap_or(1) * Packed::bytes_of(decl.rows, decl.cols, stored);
            bytes = bytes.saturating_add(size.next_multiple_of(64));
            layout = stored.name().bytes().fold(layout, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        }
        let fill = |arena: &mut Arena| Self::pack(program, source, quant, arena).map(drop);
        let mut arena = shared.arena(layout, bytes, fill).map_err(|error| match error {
            SharedError::Fill(error) => error,
            error => LoadError::Shared(error.to_string()),
        })?;
        Self::pack(program, source, quant, &mut arena)
    }

    fn pack(program: &Program, source: &dyn WeightSource, quant: Quant, arena: &mut Arena) -> Result<Self, LoadError> {
        let routers = routers(program);
        let load = |(id, decl): (usize, &WeightDecl)| {
            let view = source.get(decl)?;
            if decl.usage == WeightUse::Vector {
                let mut values = vec![0.0; decl.all_rows() * decl.cols];
                view.read_f32(0..decl.all_rows(), &mut values);
                if let Some(at) = values.iter().position(|value: &f32| !value.is_finite()) {
                    let what = format!("value {at} is not finite");
                    return Err(LoadError::Values { name: decl.name.clone(), stored: "f32", what });
                }
                return Ok(StoredWeight::Vector(values.into()));
            }
            let stored = choose(quant, kind(decl, id, &routers), &*view, source.container());
            let rows = Rows { blocks: kept(stored, &*view).ok().map(|(kind, _)| kind), view: &*view };
            let packed = Packed::pack_stack(&rows, decl.experts.unwrap_or(1), stored, arena).map_err(|e| match e {
                PackError::Memory(e) => LoadError::Memory { bytes: e.bytes, what: "weights" },
                PackError::Value { row, stored } => LoadError::Values {
                    name: decl.name.clone(),
                    stored,
                    what: format!("row {row} holds a value that is not finite or too large"),
                },
            })?;
            Ok(StoredWeight::Matrix(Arc::new(packed)))
        };
        Ok(StoredWeights { weights: program.weights.iter().enumerate().map(load).collect::<Result<_, LoadError>>()? })
    }

    /// Bytes per stored type that [`StoredWeights::load`] would take for the matrices, without reading them.
    pub fn preview(
        program: &Program,
        source: &dyn WeightSource,
        quant: Quant,
    ) -> Result<BTreeMap<&'static str, usize>, WeightError> {
        let mut types = BTreeMap::new();
        let routers = routers(program);
        for (id, decl) in program.weights.iter().enumerate().filter(|(_, d)| d.usage != WeightUse::Vector) {
            let stored = choose(quant, kind(decl, id, &routers), &*source.get(decl)?, source.container());
            let bytes = decl.experts.unwrap_or(1) * Packed::bytes_of(decl.rows, decl.cols, stored);
            *types.entry(stored.name()).or_default() += bytes;
        }
        Ok(types)
    }

    /// What [`StoredWeights::load`] makes of a checkpoint's quantised matrices, a line for each way; reads their scales.
    pub fn notes(program: &Program, source: &dyn WeightSource, quant: Quant) -> Result<Vec<String>, WeightError> {
        let Some(quantization) = source.quantization() else { return Ok(vec![]) };
        let (mut ways, routers) = (BTreeMap::new(), routers(program));
        for (id, decl) in program.weights.iter().enumerate().filter(|(_, d)| d.usage != WeightUse::Vector) {
            let view = source.get(decl)?;
            if let Encoding::Parts(parts) = view.encoding() {
                let way = way(choose(quant, kind(decl, id, &routers), &*view, source.container()), &*view);
                *ways.entry((parts.to_string(), way)).or_insert(0_usize) += 1;
            }
        }
        let name = quantization.name();
        let line = |((parts, way), n): (_, usize)| {
            format!("{name} {parts}: {n} weight{} {way}", if n == 1 { "" } else { "s" })
        };
        Ok(quantization.notes.iter().cloned().chain(ways.into_iter().map(line)).collect())
    }

    /// The packed matrix of a linear or vocabulary weight, or the stack of them.
    pub fn matrix(&self, id: WeightId) -> Arc<Packed> {
        match &self.weights[id.0 as usize] {
            StoredWeight::Matrix(m) => Arc::clone(m),
            StoredWeight::Vector(_) => unreachable!("the tracer declares matrices and vectors apart"),
        }
    }

    /// The values of a vector weight; of a stack, one after the other.
    pub fn vector(&self, id: WeightId) -> Arc<[f32]> {
        match &self.weights[id.0 as usize] {
            StoredWeight::Vector(v) => Arc::clone(v),
            StoredWeight::Matrix(_) => unreachable!("the tracer declares matrices and vectors apart"),
        }
    }

    /// Bytes of one weight.
    pub fn bytes_of(&self, id: WeightId) -> usize {
        match &self.weights[id.0 as usize] {
            StoredWeight::Matrix(m) => m.bytes(),
            StoredWeight::Vector(v) => v.len() * 4,
        }
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        (0..self.weights.len()).map(|i| self.bytes_of(WeightId(i as u32))).sum()
    }

    /// Stored types of the matrices, with how many bytes each takes.
    pub fn types(&self) -> BTreeMap<&'static str, usize> {
        let mut types = BTreeMap::new();
        for w in &self.weights {
            if let StoredWeight::Matrix(m) = w {
                *types.entry(m.stored().name()).or_default() += m.bytes();
            }
        }
        types
    }
}

/// What decides the stored type of a matrix, beside its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MatrixKind {
    Linear,
    Vocabulary,
    /// Its product decides which experts a token gets.
    Router,
}

fn kind(decl: &WeightDecl, id: usize, routers: &[WeightId]) -> MatrixKind {
    match decl.usage {
        _ if routers.contains(&WeightId(id as u32)) => MatrixKind::Router,
        WeightUse::Vocabulary => MatrixKind::Vocabulary,
        WeightUse::Linear | WeightUse::Vector => MatrixKind::Linear,
    }
}

/// Matrices whose products are routed by, capped, clamped or scaled on the way or not.
pub(in crate::backend) fn routers(program: &Program) -> Vec<WeightId> {
    let mut routed: Vec<Val> = vec![];
    let mut found = vec![];
    for op in program.ops.iter().rev() {
        match op {
            Op::Route { x, .. } => routed.push(*x),
            Op::Scale { x, out, .. } | Op::Softcap { x, out, .. } | Op::Clamp { x, out, .. }
                if routed.contains(out) =>
            {
                routed.push(*x);
            }
            Op::LinearN { parts, .. } => {
                found.extend(parts.iter().filter(|p| routed.contains(&p.out)).map(|p| p.weight));
            }
            _ => {}
        }
    }
    found
}

/// The stored type of a matrix.
fn choose(quant: Quant, kind: MatrixKind, view: &dyn WeightRows, container: Container) -> Stored {
    // A rounded router gives a token other experts, an error beside which that of every other matrix is small; and it
    // is a thousandth of the experts' size.
    if kind == MatrixKind::Router && quant != Quant::Bf16 {
        return Stored::F32;
    }
    // One scale per channel would save a seventeenth of the bytes and cost SmolLM2 0.4 % of perplexity.
    let int8 = Stored::Int8;
    match quant {
        Quant::None => Stored::F32,
        Quant::Bf16 => Stored::Bf16,
        Quant::Int8 => int8,
        // The vocabulary decides every token, and is small beside the layers of all but the smallest models.
        Quant::Int4 if kind == MatrixKind::Vocabulary => int8,
        Quant::Int4 if kept(Stored::Int4, view).is_ok() => Stored::Int4,
        Quant::Int4 => Stored::Int4Min,
        Quant::Auto => match (view.encoding(), container) {
            (Encoding::Dense(DType::F32), _) => Stored::F32,
            (Encoding::Dense(DType::F16), Container::Gguf) => Stored::F16,
            (Encoding::Dense(DType::BF16), Container::Gguf) => Stored::Bf16,
            (Encoding::Dense(_), _) => int8,
            (Encoding::GgufBlock(GgmlType::Q4_0), _) => Stored::Int4,
            (Encoding::GgufBlock(GgmlType::Q4_1), _) => Stored::Int4Min,
            // Blocks of 5 and 6 bits and the K types: 8 bits in groups of 32 keep what they hold to a 254th of a
            // group's largest value.
            (Encoding::GgufBlock(_), _) => Stored::Int8,
            (Encoding::Parts(_), _) if kept(Stored::Int4, view).is_ok() => Stored::Int4,
            (Encoding::Parts(_), _) if kept(Stored::Int8, view).is_ok() => Stored::Int8,
            // What is quantised anew gets twice the bits: that error drowns in the first one's.
            (Encoding::Parts(p), _) => match p.codes {
                Codes::Int4 | Codes::Mxfp4 => Stored::Int8,
                Codes::Int8 | Codes::Fp8 => Stored::Bf16,
            },
        },
    }
}

/// The blocks that `stored` keeps bit for bit, and how well they hold `view`; an error is the reason why not.
fn kept(stored: Stored, view: &dyn WeightRows) -> Result<(GgmlType, Holds), &'static str> {
    let kind = match stored {
        Stored::Int8 => GgmlType::Q8_0,
        Stored::Int4 => GgmlType::Q4_0,
        Stored::Int4Min => GgmlType::Q4_1,
        Stored::F32 | Stored::F16 | Stored::Bf16 => return Err("the type has no codes"),
    };
    match view.holds(kind) {
        Holds::Not(why) => Err(why),
        holds => Ok((kind, holds)),
    }
}

/// How a quantised matrix becomes `stored`, in words.
fn way(stored: Stored, view: &dyn WeightRows) -> String {
    let name = stored.name();
    match (stored.is_int(), kept(stored, view)) {
        (false, _) if stored == Stored::F32 => format!("dequantised to {name}"),
        (false, _) => format!("dequantised and rounded to {name}"),
        (true, Ok((_, Holds::Exactly))) => format!("held exactly as {name}"),
        (true, Ok((GgmlType::Q4_1, _))) => {
            format!("held as {name}: codes kept, scales and minima (scale times zero point) in f16")
        }
        (true, Ok(_)) => format!("held as {name}: codes kept, scales rounded to f16"),
        (true, Err(why)) => format!("dequantised and quantised anew to {name}: {why}"),
    }
}

struct Rows<'a> {
    view: &'a dyn WeightRows,
    /// The kind that holds its codes as they are, if any does.
    blocks: Option<GgmlType>,
}

impl Source for Rows<'_> {
    fn shape(&self) -> (usize, usize) {
        self.view.shape()
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        self.view.read_f32(rows, out);
    }

    fn read_blocks(&self, rows: Range<usize>, out: &mut Vec<u8>) {
        if let Some(kind) = self.blocks {
            self.view.read_blocks(rows, kind, out);
        }
    }

    fn done(&self, rows: Range<usize>) {
        self.view.release(rows);
    }
}

#[cfg(test)]
mod tests;
