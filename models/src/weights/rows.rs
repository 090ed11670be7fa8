//! Rows of a mapped tensor: the one [`WeightRows`] of both file formats.
//!
//! Invariant: construction has checked that every row lies within the file.

use std::ops::Range;

use super::mapped::MappedFile;
use super::{Encoding, GgmlType, Holds, WeightError, WeightRows, WeightSource, dequant};
use crate::program::{View, WeightDecl, WeightUse};

/// In which order the file has the rows of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The reference implementation's.
    Plain,
    /// The two halves of every head interleaved, as llama.cpp stores the queries and keys of arch llama and others: it
    /// rotates neighbours instead of halves (`LlamaModel.permute` in convert_hf_to_gguf.py).
    Interleaved {
        /// Length of a head, even.
        head_dim: usize,
    },
}

impl Order {
    /// Where the file has row `row`.
    fn place(self, row: usize) -> usize {
        match self {
            Order::Plain => row,
            Order::Interleaved { head_dim } => {
                let (head, i) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (i % half) + i / half
            }
        }
    }
}

/// A tensor in a file: `planes` matrices, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// File.
    pub file: &'a MappedFile,
    /// Where its data starts; data of the whole tensor lies within the file.
    pub offset: usize,
    /// How it is encoded.
    pub encoding: Encoding,
    /// Matrices: the experts of a stack, else 1.
    pub planes: usize,
    /// Rows of a matrix, 1 for a vector.
    pub rows: usize,
    /// Columns of a matrix.
    pub cols: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Order of the rows, or of a vector's elements.
    pub order: Order,
}

/// `(planes, rows, cols)` of a tensor of this shape, as `decl` needs it; zeros, which fit nothing, where it cannot be.
pub fn planes(shape: &[usize], decl: &WeightDecl) -> (usize, usize, usize) {
    match (decl.experts, decl.usage, shape) {
        (None, _, [cols]) => (1, 1, *cols),
        (None, _, [rows, cols]) => (1, *rows, *cols),
        (Some(_), WeightUse::Vector, [planes, cols]) => (*planes, 1, *cols),
        (Some(_), _, [planes, rows, cols]) => (*planes, *rows, *cols),
        _ => (0, 0, 0),
    }
}

/// A view of a [`Stored`] tensor.
pub struct FileRows<'a> {
    tensor: Stored<'a>,
    view: View,
    /// Whether the view picks elements of a row instead of rows.
    is_vector: bool,
    /// Rows and columns of the view, of each plane.
    shape: (usize, usize),
}

impl<'a> FileRows<'a> {
    /// The rows that `decl` asks for; `name` and `shape` are the file's, for the error.
    pub fn new(tensor: Stored<'a>, decl: &WeightDecl, name: &str, shape: &[usize]) -> Result<Self, WeightError> {
        let (view, is_vector) = (decl.view, decl.usage == WeightUse::Vector);
        let (rows, cols) = if is_vector { (1, view.of_rows) } else { (view.of_rows, decl.cols) };
        let (rows, cols) = if view.transposed { (cols, rows) } else { (rows, cols) };
        let expected = (decl.experts.unwrap_or(1), rows, cols);
        let within = decl.view_is_within();
        let fits = (tensor.planes, tensor.rows, tensor.cols) == expected && within;
        if !fits {
            let planes = decl.experts.into_iter();
            return Err(WeightError::Shape {
                name: name.to_owned(),
                path: tensor.file.path().to_owned(),
                found: shape.to_vec(),
                expected: if is_vector { planes.chain([cols]).collect() } else { planes.chain([rows, cols]).collect() },
            });
        }
        let view = FileRows { tensor, view, is_vector, shape: (decl.rows, decl.cols) };
        if tensor.order == Order::Plain {
            tensor.file.will_need(view.span(0..view.all_rows()));
        }
        Ok(view)
    }

    fn all_rows(&self) -> usize {
        self.tensor.planes * self.shape.0
    }

    /// Bytes of the file from the first to the last of `rows`.
    fn span(&self, rows: Range<usize>) -> Range<usize> {
        let plane = self.tensor.rows * self.tensor.row_bytes;
        let start = |row: usize| self.tensor.offset + row / self.shape.0 * plane;
        match rows.clone().last() {
            None => self.tensor.offset..self.tensor.offset,
            // Every row of a transposed or picked view touches the whole of its plane.
            Some(last) if self.is_vector || self.view.transposed => start(rows.start)..start(last) + plane,
            Some(last) => {
                let at = |row: usize| start(row) + self.view.row(row % self.shape.0) * self.tensor.row_bytes;
                at(rows.start)..at(last) + self.tensor.row_bytes
            }
        }
    }

    /// Row `place` of plane `plane` of the tensor.
    fn row_at(&self, plane: usize, place: usize) -> &[u8] {
        let start = self.tensor.offset + (plane * self.tensor.rows + place) * self.tensor.row_bytes;
        &self.tensor.file.bytes()[start..start + self.tensor.row_bytes]
    }

    /// The bytes of row `row` of the view, where it is one of the tensor's.
    fn stored_row(&self, row: usize) -> &[u8] {
        let (plane, row) = (row / self.shape.0, row % self.shape.0);
        self.row_at(plane, self.tensor.order.place(self.view.row(row)))
    }

    /// Whether a row of the view is a row of the file, whole and in order.
    fn is_row_of_file(&self) -> bool {
        let cols = self.shape.1;
        let whole =
            !self.is_vector || self.tensor.order == Order::Plain && self.view.run == cols && self.view.start == 0;
        whole && !self.view.transposed && self.tensor.cols == cols
    }

    /// A vector whose elements are picked or reordered.
    fn read_picked(&self, plane: usize, out: &mut [f32]) {
        let mut stored = vec![0.0; self.tensor.cols];
        dequant::decode(self.tensor.encoding, self.row_at(plane, 0), &mut stored);
        out.iter_mut().enumerate().for_each(|(i, x)| *x = stored[self.tensor.order.place(self.view.row(i))]);
    }

    /// `rows` of one plane of a transposed tensor: a stretch of every row of the file.
    fn read_transposed(&self, plane: usize, rows: Range<usize>, out: &mut [f32]) {
        let (first, cols) = (self.view.row(rows.start), self.shape.1);
        let Some(last) = rows.clone().last().map(|row| self.view.row(row)) else { return };
        let size = self.tensor.row_bytes / self.tensor.cols.max(1);
        // Blocks are decoded with their row.
        let is_blocks = self.tensor.encoding.is_blocks();
        let (first, len) = if is_blocks { (0, self.tensor.cols) } else { (first, last + 1 - first) };
        let mut stretch = vec![0.0; len];
        for col in 0..cols {
            let row = self.row_at(plane, col);
            let bytes = if is_blocks { row } else { &row[first * size..(first + len) * size] };
            dequant::decode(self.tensor.encoding, bytes, &mut stretch);
            for (i, row) in rows.clone().enumerate() {
                out[i * cols + col] = stretch[self.view.row(row) - first];
            }
        }
    }
}

impl WeightRows for FileRows<'_> {
    fn encoding(&self) -> Encoding {
        self.tensor.encoding
    }

    fn shape(&self) -> (usize, usize) {
        (self.all_rows(), self.shape.1)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let (per_plane, cols) = self.shape;
        assert!(rows.end <= self.all_rows() && out.len() == rows.len() * cols, "rows of the view, and room for them");
        if self.is_row_of_file() {
            for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
                dequant::decode(self.tensor.encoding, self.stored_row(row), out);
            }
        } else {
            let mut row = rows.start;
            let mut rest = &mut *out;
            while row < rows.end {
                let (plane, first) = (row / per_plane, row % per_plane);
                let n = (per_plane - first).min(rows.end - row);
                let (part, after) = rest.split_at_mut(n * cols);
                if self.is_vector {
                    self.read_picked(plane, part);
                } else {
                    self.read_transposed(plane, first..first + n, part);
                }
                (row, rest) = (row + n, after);
            }
        }
        if self.view.plus_one {
            out.iter_mut().for_each(|x| *x += 1.0);
        }
    }

    fn raw_row(&self, row: usize) -> Option<&[u8]> {
        assert!(row < self.all_rows(), "a row of the view");
        (self.is_row_of_file() && !self.view.plus_one).then(|| self.stored_row(row))
    }

    fn holds(&self, kind: GgmlType) -> Holds {
        let same = self.tensor.encoding == Encoding::GgufBlock(kind) && self.is_row_of_file() && !self.view.plus_one;
        if same { Holds::Exactly } else { Holds::Not("it is of another type") }
    }

    fn read_blocks(&self, rows: Range<usize>, _kind: GgmlType, out: &mut Vec<u8>) {
        rows.for_each(|row| out.extend_from_slice(self.stored_row(row)));
    }

    fn release(&self, rows: Range<usize>) {
        // Reordered rows stay within their head, so the span is right up to a head at either end.
        self.tensor.file.release(self.span(rows));
    }
}

/// A stack of experts that have a tensor each.
pub struct Stack<'a> {
    parts: Vec<Box<dyn WeightRows + 'a>>,
    rows: usize,
}

impl<'a> Stack<'a> {
    /// The stack that `decl` asks for, each expert from `source`.
    pub fn new(source: &'a dyn WeightSource, decl: &WeightDecl) -> Result<Self, WeightError> {
        let experts = 0..decl.experts.unwrap_or(1);
        let parts = experts.map(|e| source.get(&decl.of_expert(e))).collect::<Result<_, _>>()?;
        Ok(Stack { parts, rows: decl.rows })
    }

    /// Calls `f` with each part that `rows` touch: the part, its rows, and which of `rows` they are.
    fn each(&self, rows: Range<usize>, mut f: impl FnMut(&dyn WeightRows, Range<usize>, Range<usize>)) {
        let mut row = rows.start;
        while row < rows.end {
            let (part, first) = (row / self.rows, row % self.rows);
            let n = (self.rows - first).min(rows.end - row);
            f(&*self.parts[part], first..first + n, row - rows.start..row - rows.start + n);
            row += n;
        }
    }
}

impl WeightRows for Stack<'_> {
    fn encoding(&self) -> Encoding {
        self.parts[0].encoding()
    }

    fn shape(&self) -> (usize, usize) {
        (self.parts.len() * self.rows, self.parts[0].shape().1)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.shape().1;
        self.each(rows, |part, rows, at| part.read_f32(rows, &mut out[at.start * cols..at.end * cols]));
    }

    fn raw_row(&self, row: usize) -> Option<&[u8]> {
        let part = &self.parts[row / self.rows];
        if part.encoding() == self.encoding() { part.raw_row(row % self.rows) } else { None }
    }

    fn holds(&self, kind: GgmlType) -> Holds {
        // The worst of all.
        let both = |all: Holds, part: &dyn WeightRows| match (all, part.holds(kind)) {
            (Holds::Not(why), _) | (_, Holds::Not(why)) => Holds::Not(why),
            (Holds::Exactly, Holds::Exactly) => Holds::Exactly,
            _ => Holds::Rounded,
        };
        self.parts.iter().fold(Holds::Exactly, |all, part| both(all, &**part))
    }

    fn read_blocks(&self, rows: Range<usize>, kind: GgmlType, out: &mut Vec<u8>) {
        self.each(rows, |part, rows, _| part.read_blocks(rows, kind, out));
    }

    fn release(&self, rows: Range<usize>) {
        self.each(rows, |part, rows, _| part.release(rows));
    }
}
