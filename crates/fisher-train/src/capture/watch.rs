//! Which batches, and which of their samples, are compared with samples alone.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::gradients::all_shortest;

/// Samples that come in batches until the loss of one is compared with its loss alone.
pub(crate) const EVERY: usize = 32;

/// Which batches to look at: those unlike all before them, the first for one, and some of the others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    seen: HashSet<u64>,
    since: usize,
    looks: usize,
}

impl Watch {
    /// Whether no batch of this shape came before.
    pub(crate) fn is_new(&mut self, shape: impl Hash) -> bool {
        let new = self.seen.insert(digest(shape));
        if new {
            self.look();
        }
        new
    }

    /// Look at the next batch of this shape as at the first.
    pub(crate) fn forget(&mut self, shape: impl Hash) {
        self.seen.remove(&digest(shape));
    }

    /// Whether `every` samples have come since the last batch that was looked at, with `samples` more.
    pub(crate) fn is_due(&mut self, samples: usize, every: usize) -> bool {
        self.since += samples;
        let due = self.since >= every;
        if due {
            self.look();
        }
        due
    }

    /// A sample to look at: of those with the fewest active tokens, beside the most padding, another
    /// each time.
    pub(crate) fn shortest(&self, tokens: &[u64]) -> usize {
        let all = all_shortest(tokens);
        all[self.looks % all.len()]
    }

    fn look(&mut self) {
        self.since = 0;
        self.looks += 1;
    }
}

fn digest(shape: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    shape.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_shapes_and_one_in_so_many_samples_are_looked_at() {
        let mut watch = Watch::default();
        let mut looked = |shape: usize| watch.is_new(shape) || watch.is_due(4, 12);
        let batches = [5, 5, 5, 5, 6, 5, 6, 5, 5];
        let looked: Vec<bool> = batches.into_iter().map(&mut looked).collect();
        let expected = [true, false, false, true, true, false, false, true, false];
        assert_eq!(looked, expected);
    }
}
