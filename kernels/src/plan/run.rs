//! Running a plan: the checks that make its pointers sound, and the phases.

mod experts;
mod rows;

use super::op::Embedding;
use super::{Matrix, Part, Phase, Plan, Region, RowOp, RowSet};
use crate::acts::Glu;
use crate::attention::AttendArgs;
use crate::gemm::{TileArgs, Tiles};
use crate::packed::{GROUP, PANEL};
use crate::team::{Counter, Team, Worker};

/// One sequence's rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub row: usize,
    /// Rows.
    pub rows: usize,
    /// Position of the first row; the row after it is one further, and so on.
    pub position: usize,
    /// First block of the sequence in [`StepInput::tables`].
    pub table: usize,
    /// Its blocks.
    pub blocks: usize,
    /// Its length that decides between rotary frequencies; the same in every step of the sequence.
    pub rope_len: usize,
}

/// What a step works on. Rows of a sequence are consecutive.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// Token per row.
    pub tokens: &'a [u32],
    /// Position per row.
    pub positions: &'a [u32],
    /// Cache slot per row.
    pub slots: &'a [u32],
    /// The sequences, covering all rows in order.
    pub spans: &'a [Span],
    /// Block tables, end to end.
    pub tables: &'a [u32],
    /// Rows whose logits are wanted.
    pub outputs: &'a [u32],
}

/// A step's input breaks the plan's contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StepError(pub String);

/// Rows of one sequence for one attention task per head.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    span: u32,
    first: u32,
    rows: u32,
}

/// Everything a worker needs.
struct Context<'a> {
    plan: &'a Plan,
    input: &'a StepInput<'a>,
    tasks: &'a [Task],
    arena: *mut u8,
    logits: *mut f32,
}

// SAFETY: workers write disjoint parts of the arena, the logits and the caches within a phase (see the module's head),
// and phases are separated by barriers.
unsafe impl Sync for Context<'_> {}

impl Plan {
    /// Runs one step; `logits` holds `outputs * logits_stride` values.
    pub fn run(&mut self, team: &mut Team, input: &StepInput<'_>, logits: &mut [f32]) -> Result<(), StepError> {
        self.check(team, input, logits)?;
        let mut tasks = std::mem::take(&mut self.tasks);
        self.cut_tasks(input, team.len(), &mut tasks);
        self.counters.iter_mut().for_each(Counter::reset);
        let context =
            Context { plan: self, input, tasks: &tasks, arena: self.arena.as_mut_ptr(), logits: logits.as_mut_ptr() };
        team.run(&|worker| {
            for (phase, counter) in context.plan.phases.iter().zip(&context.plan.counters) {
                context.phase(phase, counter, worker);
                worker.barrier();
            }
        });
        self.tasks = tasks;
        Ok(())
    }

    /// Every index that a kernel will follow.
    fn check(&self, team: &Team, input: &StepInput<'_>, logits: &[f32]) -> Result<(), StepError> {
        let limits = &self.limits;
        let fail = |what: String| Err(StepError(what));
        let rows = input.tokens.len();
        if rows > limits.max_rows || input.spans.len() > limits.max_seqs || input.outputs.len() > limits.max_outputs {
            return fail(format!(
                "{rows} rows, {} sequences or {} outputs exceed the plan",
                input.spans.len(),
                input.outputs.len()
            ));
        }
        if team.len() > limits.threads {
            return fail(format!("a team of {} runs a plan for {}", team.len(), limits.threads));
        }
        if input.positions.len() != rows || input.slots.len() != rows {
            return fail("positions and slots are one per row".into());
        }
        if logits.len() < input.outputs.len() * self.logits_stride() {
            return fail(format!("{} logits do not hold {} rows", logits.len(), input.outputs.len()));
        }
        if let Some(o) = input.outputs.iter().find(|o| **o as usize >= rows) {
            return fail(format!("output row {o} of {rows}"));
        }
        let embeddings = self.phases.iter().flat_map(|p| match p {
            Phase::Rows { ops, .. } => ops.as_slice(),
            _ => &[],
        });
        for op in embeddings {
            let RowOp::Embed { table, index, .. } = op else { continue };
            let entries = table.rows();
            match index {
                Embedding::Token => {
                    if let Some(t) = input.tokens.iter().find(|t| **t as usize >= entries) {
                        return fail(format!("token {t} of a vocabulary of {entries}"));
                    }
                }
                Embedding::Position(offset) => {
                    if let Some(p) = input.positions.iter().find(|p| offset.saturating_add(**p as usize) >= entries) {
                        return fail(format!("position {p} plus {offset} of a table of {entries}"));
                    }
                }
            }
        }
        let mut row = 0;
        for s in input.spans {
            if s.row != row || s.rows == 0 {
                return fail("sequences must cover the rows in order".into());
            }
            let (left, blocks) = (rows - row, input.tables.len().checked_sub(s.table));
            if s.rows > left || blocks.is_none_or(|b| s.blocks > b) {
                return fail("a sequence exceeds the rows or the tables".into());
            }
            row += s.rows;
            if (s.row..row).any(|r| input.positions[r] as usize != s.position.wrapping_add(r - s.row)) {
                return fail("positions of a sequence are consecutive".into());
            }
        }
        if row != rows {
            return fail(format!("sequences cover {row} of {rows} rows"));
        }
        for cache in &self.caches {
            let (blocks, len) = (cache.shape.blocks, cache.shape.block_len);
            if input.tables.iter().any(|b| *b as usize >= blocks) {
                return fail(format!("a block table exceeds {blocks} blocks"));
            }
            for s in input.spans {
                if (s.position + s.rows).div_ceil(len) > s.blocks {
                    return fail(format!("{} blocks do not hold {} positions", s.blocks, s.position + s.rows));
                }
                // Slots follow the table: no two rows of a valid batch share one.
                for r in s.row..s.row + s.rows {
                    let position = input.positions[r] as usize;
                    let block = input.tables[s.table + position / len] as usize;
                    if input.slots[r] as usize != block * len + position % len {
                        return fail(format!("slot of row {r} is not the table's"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Cuts sequences into attention tasks: small enough to share out, large enough to reuse keys.
    fn cut_tasks(&self, input: &StepInput<'_>, workers: usize, tasks: &mut Vec<Task>) {
        tasks.clear();
        let rows = input.tokens.len();
        let size = rows.div_ceil(4 * workers).clamp(1, 16);
        for (i, s) in input.spans.iter().enumerate() {
            // Later rows see more keys: they go first, so that no long task is left for the end.
            let mut end = s.rows;
            while end > 0 {
                let first = end.saturating_sub(size);
                tasks.push(Task { span: i as u32, first: first as u32, rows: (end - first) as u32 });
                end = first;
            }
        }
    }
}

impl Context<'_> {
    fn rows(&self, set: RowSet) -> usize {
        match set {
            RowSet::Tokens => self.input.tokens.len(),
            RowSet::Outputs => self.input.outputs.len(),
        }
    }

    /// Row `r` of a region.
    fn row(&self, region: &Region, r: usize) -> *mut f32 {
        let base = if region.logits { self.logits } else { self.arena.cast::<f32>() };
        // SAFETY: the layout holds the most rows of every region, `check` bounds the rows and the logits.
        unsafe { base.add(region.at + r * region.stride) }
    }

    fn phase(&self, phase: &Phase, counter: &Counter, worker: Worker<'_>) {
        match phase {
            Phase::Rows { set, ops } => {
                let rows = self.rows(*set);
                let chunk = rows.div_ceil(worker.count * 4).clamp(1, 16);
                worker.claim(counter, rows, chunk, |claimed| {
                    for row in claimed {
                        ops.iter().for_each(|op| self.row_op(op, *set, row));
                    }
                });
            }
            Phase::Linear { rows, parts } => {
                let rows = self.rows(*rows);
                let total = parts.iter().map(|p| p.matrix.weight.panels()).sum::<usize>();
                if rows > 0 {
                    worker.claim_shares(counter, total, |claimed| {
                        claimed.for_each(|i| self.linear_panel(parts, i, rows))
                    });
                }
            }
            Phase::Gated { rows, gate, up, glu, out } => {
                let rows = self.rows(*rows);
                let total = gate.weight.panels();
                if rows > 0 {
                    worker.claim_shares(counter, total, |claimed| {
                        claimed.for_each(|panel| self.gated_panel([gate, up], *glu, out, (panel, panel), (0, rows)));
                    });
                }
            }
            Phase::Dispatch { rows, shares, table } => {
                if worker.is_first() {
                    self.dispatch(self.rows(*rows), shares, table);
                }
            }
            Phase::Gather { x, acts, fine, table } => self.gather(x, acts, *fine, table, counter, worker),
            Phase::ExpertsIn { gate, up, glu, out, table } => {
                self.experts_in([gate, up], *glu, out, table, counter, worker);
            }
            Phase::Repack { x, act, table } => self.repack(x, act, table, counter, worker),
            Phase::ExpertsOut { down, out, table } => self.experts_out(down, out, table, counter, worker),
            Phase::Attend { q, out, cache, heads, how } => {
                let cache = &self.plan.caches[*cache];
                let kv_heads = cache.shape.heads;
                let scratch = self.plan.scratch_at + worker.id * self.plan.scratch_len;
                let kernel = self.plan.kernels.attend[cache.shape.stored as usize];
                worker.claim(counter, self.tasks.len() * kv_heads, 1, |claimed| {
                    for i in claimed {
                        let task = self.tasks[i / kv_heads];
                        let s = self.input.spans[task.span as usize];
                        let first = s.row + task.first as usize;
                        let args = AttendArgs {
                            q: self.row(q, first),
                            q_stride: q.stride,
                            out: self.row(out, first),
                            out_stride: out.stride,
                            rows: task.rows as usize,
                            position: s.position + task.first as usize,
                            group: heads / kv_heads,
                            head: i % kv_heads,
                            scale: how.scale,
                            window: how.window,
                            softcap: how.softcap,
                            sinks: how.sinks.as_ref().map_or(std::ptr::null(), |s| s.as_ptr()),
                            alibi: how.alibi.as_ref().map_or(std::ptr::null(), |s| s.as_ptr()),
                            cache,
                            table: &self.input.tables[s.table..s.table + s.blocks],
                            // SAFETY: the arena holds one scratch per member.
                            scratch: unsafe { self.arena.cast::<f32>().add(scratch) },
                        };
                        // SAFETY: the table's kernels are available; rows, blocks and positions were checked; tasks
                        // are disjoint in rows and heads of `out`.
                        unsafe { kernel(&args) };
                    }
                });
            }
        }
    }

    /// Panel `i` of the parts' panels end to end, for all rows.
    fn linear_panel(&self, parts: &[Part], mut i: usize, rows: usize) {
        for part in parts {
            let panels = part.matrix.weight.panels();
            if i >= panels {
                i -= panels;
                continue;
            }
            return self.product_panel(&part.matrix, &part.out, (i, i), (0, rows));
        }
    }

    /// Panel `panel` of a stack for `rows` rows from `base` on, written to column `column * PANEL` of `out`.
    fn product_panel(&self, m: &Matrix, out: &Region, (panel, column): (usize, usize), (base, rows): (usize, usize)) {
        let tiles = Tiles::new(rows, self.plan.kernels.tile);
        for tile in 0..tiles.count() {
            let (first, n) = tiles.at(tile);
            // SAFETY: `out` has these rows, of at least as many values as a matrix has panels' rows.
            let to = unsafe { self.row(out, base + first).add(column * PANEL) };
            self.tile(m, panel, (base + first, n), to, out.stride);
        }
    }

    /// The same of both matrices, combined.
    fn gated_panel(
        &self,
        [gate, up]: [&Matrix; 2],
        glu: Glu,
        out: &Region,
        (panel, column): (usize, usize),
        (base, rows): (usize, usize),
    ) {
        let tiles = Tiles::new(rows, self.plan.kernels.tile);
        let mut g = [0.0_f32; PANEL * crate::attention::MAX_TILE];
        let mut u = g;
        for tile in 0..tiles.count() {
            let (first, n) = tiles.at(tile);
            self.tile(gate, panel, (base + first, n), g.as_mut_ptr(), PANEL);
            self.tile(up, panel, (base + first, n), u.as_mut_ptr(), PANEL);
            for t in 0..n {
                // SAFETY: as `product_panel`; the set is available.
                unsafe {
                    let to = self.row(out, base + first + t).add(column * PANEL);
                    (self.plan.kernels.glu)(glu, g.as_ptr().add(t * PANEL), u.as_ptr().add(t * PANEL), to, PANEL);
                }
            }
        }
    }

    /// One panel for the `n` rows from `first` on, which are packed as one tile.
    fn tile(&self, m: &Matrix, panel: usize, (first, n): (usize, usize), out: *mut f32, out_stride: usize) {
        let act = &m.act;
        let (codes, meta) = act.kind.bytes(act.cols);
        // SAFETY: the layout holds the packed form of every row; a tile's part starts at its first row's share.
        let args = unsafe {
            TileArgs {
                panel: m.weight.panel(panel),
                cols: act.cols,
                act: self.arena.add(act.codes + first * codes),
                meta: self.arena.add(act.meta + first * meta),
                out,
                out_stride,
                bias: m.bias.as_ref().map_or(std::ptr::null(), |b| b[panel * PANEL..][..PANEL].as_ptr()),
            }
        };
        // SAFETY: the set is available, the pointers as just made, `n` at most the set's tile.
        unsafe { self.plan.kernels.tiles[m.weight.stored() as usize][n - 1](&args) }
    }
}

/// Panels of experts a worker claims at once, which differ in rows: some tens of kilobytes, so that a stream is worth starting, but at least a few
/// claims per worker.
fn panels_per_claim(total: usize, panel_bytes: usize, workers: usize) -> usize {
    let by_size = (96 << 10) / panel_bytes.max(1);
    by_size.min(total.div_ceil(workers * 4)).max(1)
}

const _: () = assert!(GROUP.is_multiple_of(PANEL));
