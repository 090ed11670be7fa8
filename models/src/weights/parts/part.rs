//! The tensors of a quantised matrix by name, and what can be wrong with one.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};

use crate::weights::WeightError;
use crate::weights::mapped::MappedFile;

/// A tensor of a checkpoint.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// File.
    pub file: &'a MappedFile,
    /// Type and shape.
    pub info: &'a TensorInfo,
    /// Where its data starts in the file, which holds all of it.
    pub start: usize,
}

impl<'a> Tensor<'a> {
    /// Its data.
    pub fn bytes(&self) -> &'a [u8] {
        &self.file.bytes()[self.start..self.start + (self.info.data_offsets.1 - self.info.data_offsets.0)]
    }
}

/// Looks a tensor up by its name.
pub type Find<'a, 'f> = &'f dyn Fn(&str) -> Option<Tensor<'a>>;

/// Tensors whose names start alike.
#[derive(Clone, Copy)]
pub struct Named<'a, 'f> {
    /// What their names start with.
    pub base: &'f str,
    /// The checkpoint.
    pub find: Find<'a, 'f>,
    /// A file of the checkpoint, for errors about what is absent.
    pub dir: &'f Path,
}

impl<'a> Named<'a, '_> {
    /// The tensor with this ending.
    pub fn get(self, ending: &str) -> Option<Part<'a>> {
        let name = format!("{}{ending}", self.base);
        let tensor = (self.find)(&name)?;
        Some(Part { name, tensor })
    }

    /// The same, which must be there.
    pub fn find(self, ending: &str) -> Result<Part<'a>, WeightError> {
        let missing = || WeightError::Missing { name: format!("{}{ending}", self.base), path: self.dir.to_owned() };
        self.get(ending).ok_or_else(missing)
    }

    /// The same, of one of `types` and of this shape.
    pub fn need(self, ending: &str, types: &[Dtype], shape: &[usize]) -> Result<Part<'a>, WeightError> {
        let part = self.find(ending)?;
        part.check(types, shape)?;
        Ok(part)
    }
}

/// A tensor that is part of a quantised matrix.
pub struct Part<'a> {
    /// Its name.
    pub name: String,
    /// The tensor.
    pub tensor: Tensor<'a>,
}

impl<'a> Part<'a> {
    /// Its data.
    pub fn bytes(&self) -> &'a [u8] {
        self.tensor.bytes()
    }

    /// Its type.
    pub fn dtype(&self) -> Dtype {
        self.tensor.info.dtype
    }

    /// Checks type and shape.
    pub fn check(&self, types: &[Dtype], shape: &[usize]) -> Result<(), WeightError> {
        self.check_any(types, &[shape])
    }

    /// Checks the type, and that the shape is one of `shapes`, of which an error names the first.
    pub fn check_any(&self, types: &[Dtype], shapes: &[&[usize]]) -> Result<(), WeightError> {
        if !types.contains(&self.dtype()) {
            let list = types.iter().map(Dtype::to_string).collect::<Vec<_>>().join(", ");
            return Err(self.broken(format!("has type {}, expected is {list}", self.dtype())));
        }
        let found = self.tensor.info.shape.as_slice();
        if shapes.contains(&found) {
            return Ok(());
        }
        let expected = shapes.first().map_or_else(Vec::new, |s| s.to_vec());
        let path = self.tensor.file.path().to_owned();
        Err(WeightError::Shape { name: self.name.clone(), path, found: found.to_vec(), expected })
    }

    /// The error that says `what` is wrong with it.
    pub fn broken(&self, what: String) -> WeightError {
        WeightError::Part { name: self.name.clone(), path: self.tensor.file.path().to_owned(), what }
    }
}
