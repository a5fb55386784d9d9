//! The lowest of many scores, read run by run.

use std::borrow::Cow;

use crate::error::Result;

/// As many scores are put side by side to be told apart.
const SIDE_BY_SIDE: u64 = 1 << 21;
/// Bits of a score that are looked at in one pass.
const BITS: u32 = 16;

/// What the lowest scores end at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Lowest {
    /// The largest of the lowest; minus infinity for none.
    pub(super) threshold: f64,
    /// How many of the lowest are equal to it.
    pub(super) ties: usize,
}

/// The `count` lowest, by [`f64::total_cmp`], of the scores that `run` gives for each of `runs`:
/// several times each, since there may be more of them than fit in memory.
///
/// A few passes count the scores by their leading bits, until few enough have the same ones as the
/// score that is looked for.
///
/// # Errors
/// Those of `run`.
pub(super) fn lowest<'a>(
    runs: usize,
    count: usize,
    mut run: impl FnMut(usize) -> Result<Cow<'a, [f64]>>,
) -> Result<Lowest> {
    if count == 0 {
        return Ok(Lowest {
            threshold: f64::NEG_INFINITY,
            ties: 0,
        });
    }
    // The score is the `rank`-th lowest of those whose bits above `shift` are `prefix`.
    let (mut prefix, mut shift, mut rank) = (0, u64::BITS, count as u64);
    while shift > 0 {
        let mut counts = vec![0u64; 1 << BITS];
        let below = shift - BITS;
        for r in 0..runs {
            for key in run(r)?.iter().copied().map(key) {
                if shift == u64::BITS || key >> shift == prefix {
                    counts[(key >> below) as usize & ((1 << BITS) - 1)] += 1;
                }
            }
        }
        let mut bucket = 0;
        while counts[bucket] < rank {
            rank -= counts[bucket];
            bucket += 1;
        }
        prefix = prefix << BITS | bucket as u64;
        shift = below;
        if counts[bucket] <= SIDE_BY_SIDE {
            break;
        }
    }
    if shift == 0 {
        return Ok(Lowest {
            threshold: score(prefix),
            ties: rank as usize,
        });
    }
    let mut keys = Vec::new();
    for r in 0..runs {
        let of_run = run(r)?;
        let of_run = of_run.iter().copied().map(key);
        keys.extend(of_run.filter(|key| key >> shift == prefix));
    }
    let (lower, found, _) = keys.select_nth_unstable(rank as usize - 1);
    let equal = lower.iter().filter(|key| *key == found).count();
    Ok(Lowest {
        threshold: score(*found),
        ties: equal + 1,
    })
}

/// Whole numbers in the order of [`f64::total_cmp`].
fn key(score: f64) -> u64 {
    let bits = score.to_bits();
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}

/// The other way.
fn score(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 {
        key & !(1 << 63)
    } else {
        !key
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sorted, and counted from the front.
    fn sorted(all: &[f64], count: usize) -> Lowest {
        let mut all = all.to_vec();
        all.sort_by(f64::total_cmp);
        let threshold = match count {
            0 => f64::NEG_INFINITY,
            n => all[n - 1],
        };
        let equal = |x: &&f64| x.total_cmp(&threshold).is_eq();
        Lowest {
            threshold,
            ties: all[..count].iter().filter(equal).count(),
        }
    }

    fn found(all: &[f64], run: usize, count: usize) -> Lowest {
        let runs: Vec<&[f64]> = all.chunks(run).collect();
        lowest(runs.len(), count, |r| Ok(Cow::Borrowed(runs[r]))).expect("scores")
    }

    proptest! {
        #[test]
        fn it_is_what_sorting_gives(
            all in proptest::collection::vec(prop_oneof![Just(0.0), Just(-0.0), -1e-3..1e3, Just(f64::INFINITY)], 1..60),
            run in 1usize..9,
            share in 0.0..=1.0,
        ) {
            let count = (share * all.len() as f64) as usize;
            prop_assert_eq!(found(&all, run, count), sorted(&all, count));
        }
    }

    /// More scores of the same leading bits than are put side by side, and as many equal ones.
    #[test]
    fn many_alike_are_told_apart() {
        let n = 3 * SIDE_BY_SIDE as usize;
        let near: Vec<f64> = (0..n)
            .map(|i| 1.0 + ((i * 7919) % n) as f64 * 1e-15)
            .collect();
        let equal: Vec<f64> = (0..n).map(|i| if i % 5 == 0 { 2.0 } else { 0.0 }).collect();
        for all in [near, equal] {
            for count in [1, n / 2, n] {
                assert_eq!(found(&all, 1 << 20, count), sorted(&all, count));
            }
        }
    }
}
