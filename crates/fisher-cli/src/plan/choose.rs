//! A level for each of some items under a budget, with the least sum of costs.

/// Something that gets one of some levels.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What a level takes of the budget, for each unit of the level: weights of a tensor, or inputs and outputs of a matrix.
    pub size: u64,
    /// Levels, rising: bits, ranks.
    pub levels: Vec<u32>,
    /// The cost at each level.
    pub costs: Vec<f64>,
}

/// A level for each item.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Which of its levels each item gets.
    pub levels: Vec<usize>,
    /// `Σ size · level`.
    pub spent: u64,
    /// The sum of the costs.
    pub cost: f64,
    /// No choice within the budget costs less than this: the optimum of the linear relaxation, in which items may lie
    /// between two levels.
    pub bound: f64,
    /// Items of a group that has two levels, since the budget ended inside of it.
    pub split: Vec<usize>,
}

impl Item {
    fn spent(&self, at: usize) -> u64 {
        self.size * u64::from(self.levels[at])
    }

    /// Several that are to have the same level as one.
    fn pooled<'a>(items: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        items.into_iter().cloned().reduce(|mut all, item| {
            all.size += item.size;
            // Levels that one of them lacks are none of theirs together.
            let kept = all
                .levels
                .iter()
                .zip(&all.costs)
                .filter_map(|(level, cost)| {
                    let at = item.levels.iter().position(|other| other == level)?;
                    Some((*level, cost + item.costs[at]))
                });
            (all.levels, all.costs) = kept.unzip();
            all
        })
    }

    /// Levels on the lower convex hull of the costs, from the first one to the cheapest.
    fn hull(&self) -> Vec<usize> {
        let mut hull: Vec<usize> = Vec::new();
        for at in 0..self.levels.len() {
            if hull
                .last()
                .is_some_and(|&last| self.costs[at] >= self.costs[last])
            {
                continue;
            }
            while let [.., before, last] = *hull {
                if self.gain(before, last) > self.gain(last, at) {
                    break;
                }
                hull.pop();
            }
            hull.push(at);
        }
        hull
    }

    /// What a step between two levels takes off the cost, for each unit of the budget.
    fn gain(&self, from: usize, to: usize) -> f64 {
        (self.costs[from] - self.costs[to]) / (self.spent(to) - self.spent(from)) as f64
    }
}

/// From one level of a group to the next on its hull.
struct Step {
    group: usize,
    gain: f64,
    from: u32,
    to: u32,
}

/// The least sum of costs that steps along convex hulls find, those that gain most first, with the same level for all items of a
/// group; `None` where the lowest levels take more than the budget.
///
/// Where the last step ends at the budget it is the optimum (it has a Lagrange multiplier). Where a step does not fit, the members of
/// its group that gain most by it go it alone so far as the budget goes; that group is then split. What is left to be had is at most
/// the difference to [`Choice::bound`], the bound of these groups.
///
/// # Panics
/// When an item is in no group, or the levels of an item do not rise.
pub fn choose(items: &[Item], groups: &[Vec<usize>], budget: u64) -> Option<Choice> {
    let mut levels = vec![0; items.len()];
    let mut steps = Vec::new();
    let mut grouped = 0;
    for (group, members) in groups.iter().enumerate() {
        grouped += members.len();
        let Some(pooled) = Item::pooled(members.iter().map(|&at| &items[at])) else {
            continue;
        };
        let hull = pooled.hull();
        for &at in members {
            levels[at] = place(&items[at], *pooled.levels.first()?)?;
        }
        steps.extend(hull.windows(2).map(|pair| Step {
            group,
            gain: pooled.gain(pair[0], pair[1]),
            from: pooled.levels[pair[0]],
            to: pooled.levels[pair[1]],
        }));
    }
    assert_eq!(grouped, items.len(), "every item is in one group");
    // Of equal gains the earlier group's comes first, and of a group the lower step.
    steps.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    let spent = |levels: &[usize]| -> u64 {
        items
            .iter()
            .zip(levels)
            .map(|(item, &at)| item.spent(at))
            .sum()
    };
    let cost = |levels: &[usize]| -> f64 {
        items
            .iter()
            .zip(levels)
            .map(|(item, &at)| item.costs[at])
            .sum()
    };
    let mut left = budget.checked_sub(spent(&levels))?;
    let mut bound = None;
    let mut split = vec![false; groups.len()];
    for step in &steps {
        if split[step.group] {
            continue;
        }
        let members = &groups[step.group];
        let taken = |at: usize| items[at].size * u64::from(step.to - step.from);
        let all: u64 = members.iter().map(|&at| taken(at)).sum();
        if all > left {
            bound.get_or_insert_with(|| cost(&levels) - step.gain * left as f64);
        }
        let ends = |at: usize| {
            let place = |level| place(&items[at], level).unwrap_or_default();
            (place(step.from), place(step.to))
        };
        let mut order: Vec<(f64, usize)> = members
            .iter()
            .map(|&at| (items[at].gain(ends(at).0, ends(at).1), at))
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (gain, at) in order {
            if taken(at) <= left && (all <= left || gain > 0.0) {
                levels[at] = ends(at).1;
                left -= taken(at);
            } else {
                split[step.group] = true;
            }
        }
    }
    let mixed = groups.iter().filter(|members| {
        let mut of = members.iter().map(|&at| items[at].levels[levels[at]]);
        let first = of.next();
        of.any(|level| Some(level) != first)
    });
    Some(Choice {
        split: mixed.flatten().copied().collect(),
        spent: spent(&levels),
        cost: cost(&levels),
        bound: bound.unwrap_or_else(|| cost(&levels)),
        levels,
    })
}

fn place(item: &Item, level: u32) -> Option<usize> {
    item.levels.iter().position(|other| *other == level)
}
