//! Rows of a mapped tensor: the one [`WeightRows`] of both file formats.
//!
//! Invariant: construction has checked that every row lies within the file.

use std::ops::Range;

use super::mapped::MappedFile;
use super::{Encoding, WeightError, WeightRows, dequant};
use crate::program::{WeightDecl, WeightUse};

/// In which order the file has the rows of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The reference implementation's.
    Plain,
    /// The two halves of every head interleaved, as llama.cpp stores the queries and keys of arch llama: it rotates
    /// neighbours instead of halves (`LlamaModel.permute` in convert_hf_to_gguf.py).
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

/// A tensor in a file.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// File.
    pub file: &'a MappedFile,
    /// Where its data starts; data of the whole tensor lies within the file.
    pub offset: usize,
    /// How it is encoded.
    pub encoding: Encoding,
    /// Rows of the tensor, 1 for a vector.
    pub rows: usize,
    /// Columns of the tensor.
    pub cols: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Order of the rows, or of a vector's elements.
    pub order: Order,
}

/// A view of a [`Stored`] tensor.
pub struct FileRows<'a> {
    tensor: Stored<'a>,
    first: usize,
    rows: usize,
}

impl<'a> FileRows<'a> {
    /// The rows that `decl` asks for; `name` and `shape` are the file's, for the error.
    pub fn new(tensor: Stored<'a>, decl: &WeightDecl, name: &str, shape: &[usize]) -> Result<Self, WeightError> {
        let end = decl.row_start.checked_add(decl.rows);
        let fits = tensor.rows == decl.of_rows && end.is_some_and(|end| end <= tensor.rows);
        if !fits || tensor.cols != decl.cols {
            return Err(WeightError::Shape {
                name: name.to_owned(),
                path: tensor.file.path().to_owned(),
                found: shape.to_vec(),
                expected: if decl.usage == WeightUse::Vector { vec![decl.cols] } else { vec![decl.of_rows, decl.cols] },
            });
        }
        let view = FileRows { tensor, first: decl.row_start, rows: decl.rows };
        if tensor.order == Order::Plain {
            tensor.file.will_need(view.span(0..view.rows));
        }
        Ok(view)
    }

    fn span(&self, rows: Range<usize>) -> Range<usize> {
        let at = |row: usize| self.tensor.offset + (self.first + row) * self.tensor.row_bytes;
        at(rows.start)..at(rows.end)
    }

    fn row_at(&self, place: usize) -> &[u8] {
        let start = self.tensor.offset + place * self.tensor.row_bytes;
        &self.tensor.file.bytes()[start..start + self.tensor.row_bytes]
    }

    /// Whether the order concerns a vector's elements instead of rows.
    fn reorders_within_row(&self) -> bool {
        self.tensor.rows == 1 && self.tensor.order != Order::Plain
    }
}

impl WeightRows for FileRows<'_> {
    fn encoding(&self) -> Encoding {
        self.tensor.encoding
    }

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.tensor.cols)
    }

    fn read_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.tensor.cols;
        assert!(rows.end <= self.rows && out.len() == rows.len() * cols, "rows of the view, and room for them");
        if self.reorders_within_row() {
            let mut stored = vec![0.0; cols];
            dequant::decode(self.tensor.encoding, self.row_at(0), &mut stored);
            (0..out.len()).for_each(|i| out[i] = stored[self.tensor.order.place(i)]);
            return;
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            dequant::decode(self.tensor.encoding, self.row_at(self.tensor.order.place(self.first + row)), out);
        }
    }

    fn raw_row(&self, row: usize) -> Option<&[u8]> {
        assert!(row < self.rows, "a row of the view");
        (!self.reorders_within_row()).then(|| self.row_at(self.tensor.order.place(self.first + row)))
    }

    fn release(&self, rows: Range<usize>) {
        // Reordered rows stay within their head, so the span is right up to a head at either end.
        self.tensor.file.release(self.span(rows));
    }
}
