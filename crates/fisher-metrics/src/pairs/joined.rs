//! Things that are put together.

use std::collections::BTreeMap;

/// Things that are put together (union-find); the smallest of each set is its root.
pub(crate) struct Joined(Vec<usize>);

impl Joined {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    pub(crate) fn root(&mut self, mut of: usize) -> usize {
        while self.0[of] != of {
            self.0[of] = self.0[self.0[of]];
            of = self.0[of];
        }
        of
    }

    pub(crate) fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }

    /// The sets by number, from 0 without gaps, in the order of their roots.
    pub(crate) fn numbers(&mut self) -> Vec<usize> {
        let roots: Vec<usize> = (0..self.0.len()).map(|i| self.root(i)).collect();
        renumbered(&roots)
    }
}

/// Numbers from 0 without gaps, in the order in which they come.
pub(crate) fn renumbered(of: &[usize]) -> Vec<usize> {
    let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
    let number = |x: &usize| {
        let next = seen.len();
        *seen.entry(*x).or_insert(next)
    };
    of.iter().map(number).collect()
}
