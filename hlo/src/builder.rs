//! Writes a module, operation by operation.
//!
//! Shapes are inferred and checked at the call. A mismatch is a mistake in a lowering, never in a checkpoint or a request,
//! and panics with the scope path. What [`Builder::finish`] returns passes [`crate::verify`] for [`crate::Target::Xla`],
//! and its bytes depend on the calls alone.

mod custom;
mod ops;

pub use custom::Custom;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::infer::infer;
use crate::op::{Binary, Combiner, Direction, Op};
use crate::{
    Alias, AliasKind, ArrayShape, Computation, DType, Element, Id, Instruction, Module, Shape, Signature, Tensor,
};

/// Builds a module.
#[derive(Debug)]
pub struct Builder {
    name: String,
    options: Options,
    /// Finished computations, callees first.
    done: Vec<Computation>,
    /// The computation being written, and behind it those that wait for it; the first is the entry's.
    drafts: Vec<Draft>,
    /// How many drafts there have been: tells values of different computations apart.
    serial: u32,
    scope: Vec<String>,
    combiners: BTreeMap<(Combiner, DType), Id>,
    aliases: Vec<(usize, Val)>,
    attributes: BTreeMap<String, String>,
}

/// Which forms the idioms take where there are several; plain operations by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Custom calls that stand for plain operations.
    pub custom_calls: BTreeSet<Custom>,
    /// Rows are looked up by a product with one-hot rows, not by a gather.
    pub one_hot_lookups: bool,
    /// Products have their operands' type, and are widened to f32 after.
    pub narrow_products: bool,
}

/// An array that the module computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Val {
    draft: u32,
    index: u32,
    shape: ArrayShape,
}

/// A computation to be called.
#[derive(Clone, Debug)]
pub struct Function {
    id: Id,
    parameters: Vec<ArrayShape>,
    results: Vec<ArrayShape>,
}

#[derive(Debug)]
struct Draft {
    name: String,
    serial: u32,
    instructions: Vec<Instruction>,
    parameters: u32,
    scalars: HashMap<(DType, Vec<u8>), Val>,
}

impl Val {
    /// Its shape.
    pub fn shape(&self) -> ArrayShape {
        self.shape
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.shape.dtype()
    }

    /// Its dimensions.
    pub fn dims(&self) -> Vec<usize> {
        self.shape.dims().to_vec()
    }

    /// Size of dimension `d`.
    pub fn dim(&self, d: usize) -> usize {
        self.shape.dim(d)
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }
}

impl Builder {
    /// An empty module of this name, of plain operations.
    pub fn new(name: &str) -> Self {
        Builder::with_options(name, Options::default())
    }

    /// An empty module of this name.
    pub fn with_options(name: &str, options: Options) -> Self {
        let mut builder = Builder {
            name: name.to_owned(),
            options,
            done: vec![],
            drafts: vec![],
            serial: 0,
            scope: vec![],
            combiners: BTreeMap::new(),
            aliases: vec![],
            attributes: BTreeMap::new(),
        };
        builder.check(!name.is_empty(), || "a module has a name".into());
        builder.begin("main");
        builder
    }

    /// What the idioms may use.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Runs `body` under a name that errors and the compiler's messages show.
    pub fn scope<T>(&mut self, name: &str, body: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(name.to_owned());
        let result = body(self);
        self.scope.pop();
        result
    }

    /// The next input of the module.
    #[track_caller]
    pub fn parameter(&mut self, name: &str, dtype: DType, dims: &[usize]) -> Val {
        self.check(self.drafts.len() == 1, || "parameters are the entry computation's".into());
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let named = name.chars().all(plain) && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        self.check(named, || format!("`{name}` is no name of a parameter"));
        let shape = self.shape(dtype, dims);
        let val = self.next_parameter(shape);
        name.clone_into(&mut self.draft().instructions[val.index as usize].name);
        val
    }

    /// Lets result number `output` take the memory of `parameter`: the caller binds one tensor to both.
    #[track_caller]
    pub fn alias(&mut self, output: usize, parameter: Val) {
        self.aliases.push((output, parameter));
    }

    /// Adds a frontend attribute of the module.
    pub fn attribute(&mut self, key: &str, value: &str) {
        self.attributes.insert(key.to_owned(), value.to_owned());
    }

    /// Adds a frontend attribute of an instruction.
    #[track_caller]
    pub fn attribute_of(&mut self, val: Val, key: &str, value: &str) {
        self.check_own(val);
        self.draft().instructions[val.index as usize].attributes.insert(key.to_owned(), value.to_owned());
    }

    /// A literal; one constant per distinct scalar. Weights are parameters: a module has at most 2 GB.
    #[track_caller]
    pub fn constant(&mut self, literal: Tensor) -> Val {
        let shape = literal.shape();
        let key = (shape.rank() == 0).then(|| (shape.dtype(), literal.to_bytes()));
        if let Some(&val) = key.as_ref().and_then(|key| self.draft().scalars.get(key)) {
            return val;
        }
        let val = self.array(Op::Constant(literal), &[], shape);
        if let Some(key) = key {
            self.draft().scalars.insert(key, val);
        }
        val
    }

    /// A scalar.
    #[track_caller]
    pub fn scalar<T: Element>(&mut self, value: T) -> Val {
        self.constant(Tensor::scalar(value))
    }

    /// A scalar of a float type, rounded to it.
    #[track_caller]
    pub fn float(&mut self, dtype: DType, value: f32) -> Val {
        match dtype {
            DType::F32 => self.scalar(value),
            DType::BF16 => self.scalar(half::bf16::from_f32(value)),
            DType::F16 => self.scalar(half::f16::from_f32(value)),
            _ => self.fail(&format!("{dtype} is not a float")),
        }
    }

    /// A number in every element.
    #[track_caller]
    pub fn full<T: Element>(&mut self, dims: &[usize], value: T) -> Val {
        let scalar = self.scalar(value);
        self.broadcast(scalar, &[], dims)
    }

    /// `value` in every element, in x's type and dimensions.
    #[track_caller]
    pub fn full_like(&mut self, x: Val, value: f32) -> Val {
        let scalar = self.float(x.dtype(), value);
        self.broadcast(scalar, &[], &x.dims())
    }

    /// Writes a computation to be called: `body` gets its parameters and returns its results.
    #[track_caller]
    pub fn function(
        &mut self,
        name: &str,
        parameters: &[ArrayShape],
        body: impl FnOnce(&mut Self, &[Val]) -> Vec<Val>,
    ) -> Function {
        self.begin(name);
        let vals: Vec<Val> = parameters.iter().map(|&shape| self.next_parameter(shape)).collect();
        let results = body(self, &vals);
        let shapes = results.iter().map(Val::shape).collect();
        self.check(!results.is_empty(), || "a computation has a result".into());
        for &result in &results {
            self.check_own(result);
        }
        let root = match results[..] {
            [one] => one.index,
            _ => self.push(Op::Tuple, &results, Shape::Tuple(vec![])),
        };
        Function { id: self.end(root), parameters: parameters.to_vec(), results: shapes }
    }

    /// Ends the module with these results, in a tuple.
    ///
    /// A result that is a parameter and not aliased to it is copied: inputs and outputs live in separate memory.
    #[track_caller]
    pub fn finish(mut self, results: &[Val]) -> Module {
        self.scope.clear();
        self.check(self.drafts.len() == 1, || "finished inside a computation".into());
        let mut outputs = vec![];
        for (i, &result) in results.iter().enumerate() {
            self.check_own(result);
            let parameter = matches!(self.drafts[0].instructions[result.index as usize].op, Op::Parameter(_));
            let aliased = self.aliases.contains(&(i, result));
            outputs.push(if parameter && !aliased { self.copy(result) } else { result });
        }
        let root = self.push(Op::Tuple, &outputs, Shape::Tuple(vec![]));
        let mut aliases = vec![];
        for (output, parameter) in std::mem::take(&mut self.aliases) {
            let number = match self.drafts[0].instructions.get(parameter.index as usize).map(|i| &i.op) {
                Some(Op::Parameter(number)) if parameter.draft == self.drafts[0].serial => *number as usize,
                _ => self.fail("an alias is of a parameter"),
            };
            let same = outputs.get(output).is_some_and(|o| o.shape == parameter.shape);
            self.check(same, || format!("result {output} is not of the shape of its alias {}", parameter.shape));
            aliases.push(Alias { output: Some(output), parameter: number, kind: AliasKind::Must });
        }
        let entry = self.end(root);
        let mut module = Module {
            name: self.name,
            computations: self.done,
            entry,
            signature: Signature::default(),
            aliases,
            attributes: self.attributes,
        };
        number(&mut module);
        sign(&mut module);
        let mut names = HashSet::new();
        for instruction in module.computations.iter().flat_map(|c| &c.instructions) {
            let fresh = names.insert(instruction.name.as_str());
            assert!(fresh, "lowering error in module `{}`: two instructions `{}`", module.name, instruction.name);
        }
        module
    }

    fn begin(&mut self, name: &str) {
        let taken = self.drafts.iter().map(|d| &d.name).chain(self.done.iter().map(|c| &c.name)).any(|n| n == name);
        self.check(!taken, || format!("two computations `{name}`"));
        let (name, serial) = (name.to_owned(), self.serial);
        self.serial += 1;
        self.drafts.push(Draft { name, serial, instructions: vec![], parameters: 0, scalars: HashMap::new() });
    }

    /// Ends the current computation; its number is its place.
    fn end(&mut self, root: u32) -> Id {
        let draft = self.drafts.pop().expect("a computation is open from `begin` to `end`");
        let id = Id(self.done.len() as i64 + 1);
        let root = Id(i64::from(root));
        self.done.push(Computation { name: draft.name, id, instructions: draft.instructions, root });
        id
    }

    fn draft(&mut self) -> &mut Draft {
        self.drafts.last_mut().expect("the entry computation is open until `finish`")
    }

    fn next_parameter(&mut self, shape: ArrayShape) -> Val {
        let number = self.draft().parameters;
        self.draft().parameters += 1;
        self.array(Op::Parameter(number), &[], shape)
    }

    /// The computation of a combiner, shared by whoever needs it.
    #[track_caller]
    fn combiner(&mut self, combiner: Combiner, dtype: DType) -> Id {
        if let Some(&id) = self.combiners.get(&(combiner, dtype)) {
            return id;
        }
        let scalar = ArrayShape::scalar(dtype);
        let name = format!("{}_{dtype}", combiner.name());
        let function = self.function(&name, &[scalar, scalar], |b, p| {
            vec![match combiner {
                Combiner::Binary(op) => b.binary(op, p[0], p[1]),
                Combiner::Assign => p[1],
            }]
        });
        self.combiners.insert((combiner, dtype), function.id);
        function.id
    }

    /// The computation of a sort of these operands.
    #[track_caller]
    fn comparator(&mut self, direction: Direction, operands: &[Val]) -> Id {
        let types: Vec<String> = operands.iter().map(|x| x.dtype().to_string()).collect();
        let name = format!("{}_{}", direction.name().to_ascii_lowercase(), types.join("_"));
        if let Some(done) = self.done.iter().find(|c| c.name == name) {
            return done.id;
        }
        let parameters: Vec<ArrayShape> = operands.iter().flat_map(|x| [ArrayShape::scalar(x.dtype()); 2]).collect();
        self.function(&name, &parameters, |b, p| vec![b.compare(direction, p[0], p[1])]).id
    }

    /// Adds an instruction whose result is an array.
    #[track_caller]
    fn array(&mut self, op: Op, operands: &[Val], declared: ArrayShape) -> Val {
        let index = self.push(op, operands, declared.into());
        let (draft, instruction) = (self.draft().serial, &self.draft().instructions[index as usize]);
        match instruction.shape {
            Shape::Array(shape) => Val { draft, index, shape },
            Shape::Tuple(_) => self.fail("a tuple where an array is meant"),
        }
    }

    /// Adds an instruction whose result is a tuple, and one for each part.
    #[track_caller]
    fn tuple_parts(&mut self, op: Op, operands: &[Val], declared: Vec<ArrayShape>) -> Vec<Val> {
        let tuple = self.push(op, operands, Shape::Tuple(declared));
        let shape = self.draft().instructions[tuple as usize].shape.clone();
        let parts = shape.parts().to_vec();
        let part = |(i, part): (usize, ArrayShape)| {
            let op = Op::GetTupleElement(i);
            let index = self.append(op, vec![Id(i64::from(tuple))], part.into());
            Val { draft: self.draft().serial, index, shape: part }
        };
        parts.into_iter().enumerate().map(part).collect()
    }

    /// Adds an instruction, its shape inferred.
    #[track_caller]
    fn push(&mut self, op: Op, operands: &[Val], declared: Shape) -> u32 {
        let mut ids = vec![];
        for &operand in operands {
            self.check_own(operand);
            ids.push(Id(i64::from(operand.index)));
        }
        let shapes: Vec<Shape> = operands.iter().map(|v| v.shape.into()).collect();
        match infer(&op, &shapes.iter().collect::<Vec<_>>(), &declared) {
            Ok(shape) => self.append(op, ids, shape),
            Err(error) => {
                let operands: Vec<String> = shapes.iter().map(Shape::to_string).collect();
                self.fail(&format!("{}({}): {error}", op.name(), operands.join(", ")))
            }
        }
    }

    fn append(&mut self, op: Op, operands: Vec<Id>, shape: Shape) -> u32 {
        let scope = self.scope.join("/");
        let index = self.draft().instructions.len();
        let id = Id(index as i64);
        let name = String::new();
        self.draft().instructions.push(Instruction {
            name,
            id,
            shape,
            operands,
            op,
            scope,
            attributes: BTreeMap::new(),
        });
        u32::try_from(index).expect("a computation has fewer than 2^32 instructions")
    }

    #[track_caller]
    fn shape(&self, dtype: DType, dims: &[usize]) -> ArrayShape {
        match ArrayShape::new(dtype, dims) {
            Some(shape) => shape,
            None => self.fail(&format!("dimensions {dims:?} are out of range")),
        }
    }

    #[track_caller]
    fn check_own(&self, val: Val) {
        let own = self.drafts.last().is_some_and(|d| d.serial == val.draft);
        self.check(own, || format!("a value {} of another computation", val.shape));
    }

    #[track_caller]
    pub(crate) fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(&what());
        }
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        // A bug in a lowering, never input.
        panic!("lowering error in `{}` of module `{}`: {what}", self.scope.join("/"), self.name)
    }
}

/// The value that changes nothing: what a reduction starts from. Finite, because -inf becomes NaN in some products on trn1.
pub(crate) fn identity(op: Binary, dtype: DType) -> Option<Tensor> {
    use half::{bf16, f16};
    Some(match (op, dtype) {
        (Binary::Add, DType::F32) => Tensor::scalar(0f32),
        (Binary::Add, DType::BF16) => Tensor::scalar(bf16::ZERO),
        (Binary::Add, DType::F16) => Tensor::scalar(f16::ZERO),
        (Binary::Add, DType::S32) => Tensor::scalar(0i32),
        (Binary::Add, DType::U32) => Tensor::scalar(0u32),
        (Binary::Maximum, DType::F32) => Tensor::scalar(f32::MIN),
        (Binary::Maximum, DType::BF16) => Tensor::scalar(bf16::MIN),
        (Binary::Maximum, DType::F16) => Tensor::scalar(f16::MIN),
        (Binary::Maximum, DType::S32) => Tensor::scalar(i32::MIN),
        (Binary::Maximum, DType::U32) => Tensor::scalar(u32::MIN),
        (Binary::Minimum, DType::F32) => Tensor::scalar(f32::MAX),
        (Binary::Minimum, DType::BF16) => Tensor::scalar(bf16::MAX),
        (Binary::Minimum, DType::F16) => Tensor::scalar(f16::MAX),
        (Binary::Minimum, DType::S32) => Tensor::scalar(i32::MAX),
        (Binary::Minimum, DType::U32) => Tensor::scalar(u32::MAX),
        (Binary::And, DType::Pred) => Tensor::scalar(true),
        (Binary::Maximum, DType::Pred) => Tensor::scalar(false),
        _ => return None,
    })
}

/// Ids dense over the module, from 1 in file order; names from them.
fn number(module: &mut Module) {
    let mut next = 1;
    for computation in &mut module.computations {
        let first = next;
        let global = |id: Id| Id(first + id.0);
        for instruction in &mut computation.instructions {
            instruction.id = Id(next);
            next += 1;
            instruction.operands.iter_mut().for_each(|id| *id = global(*id));
            if instruction.name.is_empty() {
                instruction.name = format!("{}.{}", instruction.op.name(), instruction.id);
            }
        }
        computation.root = global(computation.root);
    }
}

fn sign(module: &mut Module) {
    let Some(entry) = module.entry() else { return };
    let mut signature = Signature { result: entry.root().map(|r| r.shape.clone()), ..Signature::default() };
    for instruction in &entry.instructions {
        // Parameters are numbered in the order they are written.
        if let Op::Parameter(_) = instruction.op {
            signature.parameters.push(instruction.shape.clone());
            signature.parameter_names.push(instruction.name.clone());
        }
    }
    module.signature = signature;
}

#[cfg(test)]
mod tests;
