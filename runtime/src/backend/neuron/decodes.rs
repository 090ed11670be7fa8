//! Which decode modules a step runs: the executor cuts by it, and the planner counts by it.
//!
//! What a step needs of a class is rows up to its highest and the length of its longest. A module covers that if its part of
//! the class has as many rows and reads as far. Classes that one module covers run together, so that weights are read once.
//!
//! Invariant: a class that some module covers is run, whatever other classes need; nothing is allocated in a choice.

use super::interface::{CacheShape, ModuleKind, ModuleSpec};

/// What is needed of a class; nothing where there are no rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Need {
    /// Its first rows.
    pub rows: usize,
    /// Positions before this step.
    pub len: usize,
}

/// The decode modules of a layout, those that read least first.
#[derive(Clone, Debug)]
pub struct Decodes {
    modules: Vec<Decode>,
}

/// A decode module.
#[derive(Clone, Debug)]
pub struct Decode {
    /// Its index.
    pub module: usize,
    /// Cache positions that it reads.
    pub positions: usize,
    /// By class of the layout.
    reaches: Vec<Reach>,
}

/// What a module has of a class.
#[derive(Clone, Copy, Debug, Default)]
struct Reach {
    /// The class's first row among those of the module.
    first: usize,
    has: Need,
}

impl Decodes {
    /// Of modules of `classes`; others than decodes are left out.
    pub fn new<'a>(classes: &[CacheShape], modules: impl IntoIterator<Item = &'a ModuleSpec>) -> Decodes {
        let mut found = vec![];
        for (module, spec) in modules.into_iter().enumerate() {
            if !matches!(spec.kind, ModuleKind::Decode { .. }) {
                continue;
            }
            let (mut reaches, mut first) = (vec![Reach::default(); classes.len()], 0);
            for part in &spec.parts {
                if let Some(class) = classes.iter().position(|class| *class == part.class) {
                    reaches[class] = Reach { first, has: Need { rows: part.rows, len: part.len } };
                }
                first += part.rows;
            }
            found.push(Decode { module, positions: spec.positions(), reaches });
        }
        found.sort_by_key(|decode| decode.positions);
        Decodes { modules: found }
    }

    /// Of the modules that cover the first class of which something is needed, the one that covers most of the others; of
    /// those, the one that reads least.
    pub fn choose(&self, needs: &[Need]) -> Option<&Decode> {
        let first = needs.iter().position(|need| need.rows > 0)?;
        let all = needs.iter().filter(|need| need.rows > 0).count();
        let mut best = None;
        for decode in self.modules.iter().filter(|decode| decode.covers(first, needs[first])) {
            let covered = (first..needs.len()).filter(|class| decode.covers(*class, needs[*class])).count();
            if best.is_none_or(|(most, _)| covered > most) {
                best = Some((covered, decode));
            }
            if covered == all {
                break;
            }
        }
        best.map(|(_, decode)| decode)
    }

    /// All of them.
    pub fn all(&self) -> &[Decode] {
        &self.modules
    }

    /// The longest that is read of all `rows` rows of a class.
    pub fn longest(&self, class: usize, rows: usize) -> Option<usize> {
        let has = self.modules.iter().map(|decode| decode.reaches[class].has);
        has.filter(|has| rows > 0 && has.rows == rows).map(|has| has.len).max()
    }
}

impl Decode {
    /// Of how many classes it has rows.
    pub fn classes(&self) -> usize {
        self.reaches.iter().filter(|reach| reach.has.rows > 0).count()
    }

    /// Whether something is needed of the class and it has it.
    pub fn covers(&self, class: usize, need: Need) -> bool {
        let has = self.reaches[class].has;
        need.rows > 0 && has.rows >= need.rows && has.len >= need.len
    }

    /// Which of its rows is this one of the class.
    pub fn row(&self, class: usize, row: usize) -> usize {
        self.reaches[class].first + row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::neuron::interface::Part;

    const SHORT: CacheShape = CacheShape { rows: 4, positions: 40 };
    const LONG: CacheShape = CacheShape { rows: 2, positions: 100 };

    fn chosen(modules: &[ModuleSpec], needs: &[(usize, usize)]) -> Vec<usize> {
        let decodes = Decodes::new(&[SHORT, LONG], modules);
        let mut needs: Vec<Need> = needs.iter().map(|(rows, len)| Need { rows: *rows, len: *len }).collect();
        let mut calls = vec![];
        while let Some(decode) = decodes.choose(&needs) {
            calls.push(decode.module);
            needs
                .iter_mut()
                .enumerate()
                .filter(|(i, n)| decode.covers(*i, **n))
                .for_each(|(_, n)| *n = Need::default());
        }
        assert!(needs.iter().all(|need| need.rows == 0), "{needs:?} are left");
        calls
    }

    #[test]
    fn classes_run_together_where_a_module_covers_them_and_alone_where_none_does() {
        let part = |class, rows, len| Part { class, rows, len };
        let alone = |part: Part| ModuleSpec::decode(vec![part]);
        let modules = [
            ModuleSpec::decode(vec![part(SHORT, 4, 36), part(LONG, 2, 90)]),
            ModuleSpec::decode(vec![part(SHORT, 4, 20), part(LONG, 2, 40)]),
            alone(part(SHORT, 4, 36)),
            alone(part(LONG, 2, 60)),
        ];
        for (needs, calls) in [
            ([(1, 20), (2, 40)], vec![1]),
            ([(1, 21), (1, 3)], vec![0]),
            // One class of two: what reads least.
            ([(4, 21), (0, 0)], vec![2]),
            ([(0, 0), (1, 50)], vec![3]),
            ([(0, 0), (1, 61)], vec![0]),
            ([(0, 0), (0, 0)], vec![]),
        ] {
            assert_eq!(chosen(&modules, &needs), calls, "{needs:?}");
        }
        // Without the one that covers all, each by itself.
        assert_eq!(chosen(&modules[1..], &[(1, 30), (1, 50)]), [1, 2]);
        assert_eq!(chosen(&modules[2..], &[(1, 30), (1, 50)]), [0, 1]);
        let decodes = Decodes::new(&[SHORT, LONG], &modules);
        assert_eq!([decodes.longest(0, 4), decodes.longest(1, 2), decodes.longest(1, 1)], [Some(36), Some(90), None]);
        assert_eq!(decodes.choose(&[Need { rows: 1, len: 36 }, Need { rows: 1, len: 90 }]).unwrap().row(1, 1), 5);
    }
}
