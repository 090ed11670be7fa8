//! Which decode modules steps run, for many steps: [`Decodes::choose`], with what a class needs looked up once.

use crate::backend::neuron::decodes::{Decode, Decodes, Need};

/// Choices among decode modules.
pub struct Choices<'a> {
    decodes: &'a Decodes,
    /// What was needed of each class, and which modules cover it, a bit each.
    covering: Vec<Vec<(Need, u128)>>,
    /// Modules of several classes.
    joint: u128,
    /// By class: what covers the present step's need, where it is not run yet.
    open: Vec<Option<u128>>,
}

impl<'a> Choices<'a> {
    /// Among `decodes` of so many classes.
    pub fn new(decodes: &'a Decodes, classes: usize) -> Choices<'a> {
        let joins = |(i, decode): (usize, &Decode)| if decode.classes() > 1 { 1_u128 << i } else { 0 };
        let joint = decodes.all().iter().take(BITS).enumerate().map(joins).fold(0, |all, bit| all | bit);
        Choices { decodes, covering: vec![vec![]; classes], joint, open: vec![None; classes] }
    }

    /// Calls `run` with each module of a step, in their order.
    pub fn each(&mut self, needs: &[Need], mut run: impl FnMut(&Decode)) {
        if self.decodes.all().len() > BITS {
            let mut needs = needs.to_vec();
            while let Some(decode) = self.decodes.choose(&needs) {
                run(decode);
                let covered = needs.iter_mut().enumerate().filter(|(class, need)| decode.covers(*class, **need));
                covered.for_each(|(_, need)| *need = Need::default());
            }
            return;
        }
        for (class, need) in needs.iter().enumerate() {
            self.open[class] = if need.rows > 0 { Some(self.covering(class, *need)) } else { None };
        }
        for first in 0..self.open.len() {
            let Some(able) = self.open[first] else { continue };
            if able == 0 {
                return;
            }
            let chosen = if able & self.joint == 0 { able.trailing_zeros() } else { self.covers_most(able, first) };
            run(&self.decodes.all()[chosen as usize]);
            for open in &mut self.open[first..] {
                if open.is_some_and(|able| able >> chosen & 1 == 1) {
                    *open = None;
                }
            }
        }
    }

    /// Of the modules in `able`, the first of those that cover most classes from `first` on.
    fn covers_most(&self, able: u128, first: usize) -> u32 {
        let open = || self.open[first..].iter().flatten();
        let all = open().fold(able, |all, able| all & able);
        if all != 0 {
            return all.trailing_zeros();
        }
        let (mut left, mut best) = (able, (0, 0));
        while left != 0 {
            let bit = left.trailing_zeros();
            let covered = open().filter(|able| **able >> bit & 1 == 1).count();
            if covered > best.0 {
                best = (covered, bit);
            }
            left &= left - 1;
        }
        best.1
    }

    fn covering(&mut self, class: usize, need: Need) -> u128 {
        for (known, able) in &self.covering[class] {
            if known.rows == need.rows && known.len == need.len {
                return *able;
            }
        }
        let mut able = 0;
        for (i, decode) in self.decodes.all().iter().enumerate() {
            able |= u128::from(decode.covers(class, need)) << i;
        }
        self.covering[class].push((need, able));
        able
    }
}

/// Decode modules that are looked up; more are asked one by one.
const BITS: usize = u128::BITS as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::neuron::{CacheShape, ModuleSpec, Part};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_looked_up_is_what_the_executor_chooses(
            modules in prop::collection::vec(prop::collection::vec((0_usize..4, 1_usize..9), 3), 1..160),
            steps in prop::collection::vec(prop::collection::vec((0_usize..4, 1_usize..9), 3), 1..20),
        ) {
            let classes = [1, 2, 3].map(|i| CacheShape { rows: 3, positions: 10 * i });
            let module = |parts: &Vec<(usize, usize)>| {
                let part = |(class, (rows, len)): (&CacheShape, &(usize, usize))| Part { class: *class, rows: *rows, len: *len };
                ModuleSpec::decode(classes.iter().zip(parts).map(part).filter(|part| part.rows > 0).collect())
            };
            let modules: Vec<ModuleSpec> = modules.iter().map(module).collect();
            let decodes = Decodes::new(&classes, &modules);
            let mut choices = Choices::new(&decodes, classes.len());
            for step in steps {
                let mut needs: Vec<Need> = step
                    .iter()
                    .map(|(rows, len)| if *rows > 0 { Need { rows: *rows, len: *len } } else { Need::default() })
                    .collect();
                let (mut looked_up, mut chosen) = (vec![], vec![]);
                choices.each(&needs, |decode| looked_up.push(decode.module));
                while let Some(decode) = decodes.choose(&needs) {
                    chosen.push(decode.module);
                    needs.iter_mut().enumerate().filter(|(i, n)| decode.covers(*i, **n)).for_each(|(_, n)| *n = Need::default());
                }
                prop_assert_eq!(looked_up, chosen);
            }
        }
    }
}
