//! The same level for all, so far as the budget goes: what a plan is compared with.

use super::choose::Item;

/// The highest level that all can have; and the next one for the first of them, in the order of their names, while the budget lasts.
pub(super) fn uniform(items: &[Item], budget: u64) -> Option<Vec<usize>> {
    let at = |item: &Item, level: u32| item.levels.iter().rposition(|other| *other <= level);
    let spent = |levels: &[usize]| -> u64 {
        let items = items.iter().zip(levels);
        items
            .map(|(item, &at)| item.size * u64::from(item.levels[at]))
            .sum()
    };
    let all =
        |level: u32| -> Option<Vec<usize>> { items.iter().map(|item| at(item, level)).collect() };
    let mut known: Vec<u32> = items.iter().flat_map(|item| item.levels.clone()).collect();
    known.sort_unstable();
    known.dedup();
    let fits = |level: &u32| all(*level).is_some_and(|levels| spent(&levels) <= budget);
    let place = known.iter().rposition(fits)?;
    let mut levels = all(known[place])?;
    let Some(next) = known.get(place + 1) else {
        return Some(levels);
    };
    for (index, item) in items.iter().enumerate() {
        let before = levels[index];
        levels[index] = at(item, *next)?;
        if spent(&levels) > budget {
            levels[index] = before;
            break;
        }
    }
    Some(levels)
}

/// How that choice is called.
pub(super) fn uniform_name(asked: f64) -> String {
    if asked.fract() == 0.0 {
        format!("{asked} for all")
    } else {
        format!(
            "{} and {} in the order of names",
            asked.floor(),
            asked.ceil()
        )
    }
}
