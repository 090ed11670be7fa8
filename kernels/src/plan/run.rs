//! Running a plan: the checks that make its pointers sound, and the phases.

use super::{ActRegion, Matrix, Part, Phase, Plan, Region, RowOp, RowSet};
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
        let vocab =
            embeddings.filter_map(|op| if let RowOp::Embed { table, .. } = op { Some(table.rows()) } else { None });
        let vocab = vocab.min().unwrap_or(usize::MAX);
        if let Some(t) = input.tokens.iter().find(|t| **t as usize >= vocab) {
            return fail(format!("token {t} of a vocabulary of {vocab}"));
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
        // SAFETY: the layout holds `max_rows` rows of every region, and `check` bounds the rows.
        unsafe { self.arena.cast::<f32>().add(region.at + r * region.stride) }
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
                let bytes = parts.iter().map(|p| p.matrix.weight.bytes()).sum::<usize>() / total.max(1);
                let chunk = panels_per_claim(total, bytes, worker.count);
                if rows > 0 {
                    worker.claim(counter, total, chunk, |claimed| {
                        claimed.for_each(|i| self.linear_panel(parts, i, rows))
                    });
                }
            }
            Phase::Gated { rows, act, gate, up, out } => {
                let rows = self.rows(*rows);
                let total = gate.weight.panels();
                let bytes = gate.weight.panel_bytes() + up.weight.panel_bytes();
                let chunk = panels_per_claim(total, bytes, worker.count);
                if rows > 0 {
                    worker.claim(counter, total, chunk, |claimed| {
                        claimed.for_each(|panel| self.gated_panel(act, gate, up, out, panel, rows));
                    });
                }
            }
            Phase::Attend { q, out, cache, heads, scale, window } => {
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
                            scale: *scale,
                            window: *window,
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
            let (out, stride) = match &part.out {
                Some(region) => (self.row(region, 0), region.stride),
                None => (self.logits, self.plan.logits_stride()),
            };
            let tiles = Tiles::new(rows, self.plan.kernels.tile);
            for tile in 0..tiles.count() {
                let (first, n) = tiles.at(tile);
                // SAFETY: `out` has `rows` rows of at least `panels * PANEL` values.
                let to = unsafe { out.add(first * stride + i * PANEL) };
                self.tile(&part.act, &part.matrix, i, (first, n), to, stride);
            }
            return;
        }
    }

    /// One panel of both matrices, combined.
    fn gated_panel(&self, act: &ActRegion, gate: &Matrix, up: &Matrix, out: &Region, panel: usize, rows: usize) {
        let tiles = Tiles::new(rows, self.plan.kernels.tile);
        let mut g = [0.0_f32; PANEL * crate::attention::MAX_TILE];
        let mut u = g;
        for tile in 0..tiles.count() {
            let (first, n) = tiles.at(tile);
            self.tile(act, gate, panel, (first, n), g.as_mut_ptr(), PANEL);
            self.tile(act, up, panel, (first, n), u.as_mut_ptr(), PANEL);
            for t in 0..n {
                // SAFETY: `out` has `rows` rows of at least `panels * PANEL` values; the set is available.
                unsafe {
                    let to = self.row(out, first + t).add(panel * PANEL);
                    (self.plan.kernels.silu_mul)(g.as_ptr().add(t * PANEL), u.as_ptr().add(t * PANEL), to, PANEL);
                }
            }
        }
    }

    fn tile(
        &self,
        act: &ActRegion,
        m: &Matrix,
        panel: usize,
        (first, n): (usize, usize),
        out: *mut f32,
        out_stride: usize,
    ) {
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

    fn row_op(&self, op: &RowOp, set: RowSet, row: usize) {
        let k = self.plan.kernels;
        let floats = self.arena.cast::<f32>();
        // SAFETY (all): the set is available; regions hold this row, which only this worker touches in this phase.
        match op {
            RowOp::Angles { rope } => {
                let rope = &self.plan.ropes[*rope];
                let pairs = rope.inv_freq.len();
                let position = self.input.positions[row] as f32;
                for (i, f) in rope.inv_freq.iter().enumerate() {
                    let (sin, cos) = (position * f).sin_cos();
                    // SAFETY: the arena holds `max_rows * pairs` cosines and sines.
                    unsafe {
                        *floats.add(rope.cos + row * pairs + i) = cos * rope.amplitude;
                        *floats.add(rope.sin + row * pairs + i) = sin * rope.amplitude;
                    }
                }
            }
            RowOp::Embed { table, out } => {
                // SAFETY: as above; the token was checked against the table.
                let out = unsafe { std::slice::from_raw_parts_mut(self.row(out, row), out.stride) };
                table.row_f32(self.input.tokens[row] as usize, out);
                out[table.cols()..].fill(0.0);
            }
            RowOp::Norm { x, weight, eps, out } => {
                let (x, out, cols) = (self.row(x, row), self.row(out, row), (x.cols, x.stride));
                // SAFETY: as above.
                unsafe { (k.add_rms_norm)(x, None, weight.as_ptr(), *eps, cols, out, out) }
            }
            RowOp::AddNorm { x, delta, weight, eps, sum, out } => {
                let (delta, sum, out) = (self.row(delta, row), self.row(sum, row), self.row(out, row));
                let cols = (x.cols, x.stride);
                // SAFETY: as above.
                unsafe { (k.add_rms_norm)(self.row(x, row), Some(delta), weight.as_ptr(), *eps, cols, sum, out) }
            }
            RowOp::HeadNorm { x, weight, eps, out } => {
                // SAFETY: as above.
                unsafe {
                    (k.head_rms_norm)(
                        self.row(x, row),
                        weight.as_ptr(),
                        *eps,
                        weight.len(),
                        x.cols,
                        self.row(out, row),
                    );
                    clear_padding(self.row(out, row), out);
                }
            }
            RowOp::Rope { x, rope, head, out } => {
                let rope = &self.plan.ropes[*rope];
                let pairs = rope.inv_freq.len();
                let to = self.row(out, row);
                // SAFETY: as above; `x` and `out` are one region or disjoint.
                unsafe {
                    if x.at != out.at {
                        std::ptr::copy_nonoverlapping(self.row(x, row), to, x.stride);
                    }
                    let (cos, sin) = (floats.add(rope.cos + row * pairs), floats.add(rope.sin + row * pairs));
                    (k.rope_half)(to, *head, x.cols, cos, sin, pairs);
                }
            }
            RowOp::CacheWrite { k: key, v, cache } => {
                let slot = self.input.slots[row] as usize;
                // SAFETY: as above; `check` bounds the slot, and rows have slots of their own.
                unsafe { self.plan.caches[*cache].write(slot, self.row(key, row), self.row(v, row)) }
            }
            RowOp::Add { x, y, out } => {
                // SAFETY: as above.
                unsafe { (k.add)(self.row(x, row), self.row(y, row), self.row(out, row), x.stride) }
            }
            RowOp::Take { x, out } => {
                let from = self.row(x, self.input.outputs[row] as usize);
                // SAFETY: as above; `x` was written in an earlier phase, and the regions are disjoint.
                unsafe { std::ptr::copy_nonoverlapping(from, self.row(out, row), x.stride) }
            }
            RowOp::Pack { x, act, fine } => {
                let (first, n) = Tiles::new(self.rows(set), k.tile).of(row);
                let (codes, meta) = act.kind.bytes(act.cols);
                // SAFETY: as above; tokens of a tile write their own words of it.
                unsafe {
                    clear_padding(self.row(x, row), x);
                    let (codes, meta) =
                        (self.arena.add(act.codes + first * codes), self.arena.add(act.meta + first * meta));
                    (k.pack_row)(act.kind, self.row(x, row), act.cols, codes, meta, (row - first, n), *fine);
                }
            }
        }
    }
}

/// Panels a worker claims at once: some tens of kilobytes, so that a stream is worth starting, but at least a few
/// claims per worker.
fn panels_per_claim(total: usize, panel_bytes: usize, workers: usize) -> usize {
    let by_size = (96 << 10) / panel_bytes.max(1);
    by_size.min(total.div_ceil(workers * 4)).max(1)
}

/// Zeros the padding of a row.
unsafe fn clear_padding(row: *mut f32, region: &Region) {
    if region.cols != region.stride {
        // SAFETY: the row holds `stride` values.
        unsafe { std::ptr::write_bytes(row.add(region.cols), 0, region.stride - region.cols) };
    }
}

const _: () = assert!(GROUP.is_multiple_of(PANEL));
