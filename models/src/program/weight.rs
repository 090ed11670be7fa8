//! Weights a program needs, as views of checkpoint tensors.
//!
//! A view is data: which rows of a tensor, in which order, transposed or not. How a checkpoint of the reference
//! implementation lays out its tensors is said here and nowhere else; other dialects (GGUF) are tables inside the sources,
//! see [`crate::weights`].

use std::fmt;

/// What a weight is used for; a backend chooses its stored type by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightUse {
    /// Matrix of a linear op, `[out, in]`.
    Linear,
    /// Token embedding or output head, `[vocab, hidden]`; may serve as both.
    Vocabulary,
    /// A norm weight, a bias or the like, one row; always held in f32.
    Vector,
}

/// How a weight is split when a program runs on several cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parallel {
    /// Split by output rows.
    Column,
    /// Split by input columns; the outputs are summed.
    Row,
    /// Whole on every core.
    Replicated,
}

/// Which part of a checkpoint tensor a weight is. Rows of a matrix `[out, in]`; elements of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Rows of the whole tensor.
    pub of_rows: usize,
    /// Its row that is the view's first.
    pub start: usize,
    /// Rows that lie together.
    pub run: usize,
    /// From the first row of a run to the first of the next; `run` where nothing lies between.
    pub step: usize,
    /// The tensor is `[in, out]`: its columns are the rows meant here.
    pub transposed: bool,
    /// The tensor holds `w - 1`.
    pub plus_one: bool,
}

impl View {
    /// All of a tensor of `rows` rows.
    pub fn whole(rows: usize) -> View {
        View::part(0, rows, rows)
    }

    /// `rows` rows from `start` on, of a tensor of `of_rows`.
    pub fn part(start: usize, rows: usize, of_rows: usize) -> View {
        View { of_rows, start, run: rows, step: rows, transposed: false, plus_one: false }
    }

    /// Runs of `run` rows, `step` apart, the first at `start`.
    pub fn every(start: usize, (run, step): (usize, usize), of_rows: usize) -> View {
        View { run, step, ..View::part(start, run, of_rows) }
    }

    /// The same of a tensor that is stored `[in, out]`.
    pub fn transposed(self) -> View {
        View { transposed: true, ..self }
    }

    /// Where the tensor has row `row` of the view.
    pub fn row(&self, row: usize) -> usize {
        self.start + row / self.run * self.step + row % self.run
    }
}

/// A weight a program needs, and where its bytes come from: a view of a checkpoint tensor under its Hugging Face name.
///
/// With `experts`, the weight is that many matrices (or vectors) of one shape, one after the other. A `{}` in the name
/// stands for the expert's number where each has a tensor of its own; otherwise the tensor has the experts as its first
/// axis, and `view` is of each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightDecl {
    /// Tensor name as the reference implementation's checkpoint has it.
    pub name: String,
    /// Rows (1 for a vector); of one expert.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Which part of the tensor.
    pub view: View,
    /// How many experts, where it is a stack of them.
    pub experts: Option<usize>,
    /// What it is used for.
    pub usage: WeightUse,
    /// How it is split over cores.
    pub parallel: Parallel,
}

impl WeightDecl {
    /// All rows of all experts: what a source's view of it has.
    pub fn all_rows(&self) -> usize {
        self.rows.saturating_mul(self.experts.unwrap_or(1))
    }

    /// Whether the view lies within its tensor.
    pub fn view_is_within(&self) -> bool {
        let View { of_rows, start, run, step, .. } = self.view;
        let units = if self.usage == WeightUse::Vector { self.cols } else { self.rows };
        let last = units.checked_sub(1);
        let row = last
            .filter(|_| run > 0 && step >= run)
            .and_then(|last| (last / run).checked_mul(step)?.checked_add(last % run)?.checked_add(start));
        row.is_some_and(|row| row < of_rows)
    }

    /// The declaration of one expert's part, its number in the name.
    pub fn of_expert(&self, expert: usize) -> WeightDecl {
        WeightDecl { name: self.name.replace("{}", &expert.to_string()), experts: None, ..self.clone() }
    }
}

impl fmt::Display for WeightDecl {
    /// `name [rows, cols]`, then what is not plain of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.name)?;
        if let Some(n) = self.experts {
            write!(f, "{n} experts ")?;
        }
        write!(f, "[{}, {}]", self.rows, self.cols)?;
        let View { of_rows, start, run, step, transposed, plus_one } = self.view;
        let units = if self.usage == WeightUse::Vector { self.cols } else { self.rows };
        if of_rows != units {
            write!(f, " from row {start} of {of_rows}")?;
        }
        if run != units {
            write!(f, " {run} of every {step}")?;
        }
        for (is, what) in [(transposed, " transposed"), (plus_one, " plus one")] {
            if is {
                f.write_str(what)?;
            }
        }
        write!(f, " {:?} {:?}", self.usage, self.parallel)
    }
}
