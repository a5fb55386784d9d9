//! Groups of what cannot be told apart.

use fisher_metrics::ranks::RankSet;

/// Groups of items whose ranks overlap with those of the first of the group, which has the largest score of it: from the largest score
/// on, an item opens a group of its own once its best rank lies beyond the worst of the group's first.
///
/// Overlapping is not transitive, so that the last of a group may be told from the first of the next by less than from others of
/// its own; but no two that are in different groups for certain are put together, with the first of its group as the witness.
pub fn tie_groups(scores: &[f64], ranks: &[RankSet]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for at in order {
        match groups.last_mut() {
            Some(group) if ranks[at].best <= ranks[group[0]].worst => group.push(at),
            _ => groups.push(vec![at]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_begin_where_ranks_no_longer_overlap() {
        let set = |best, worst| RankSet { best, worst };
        let ranks = [set(3, 4), set(1, 2), set(2, 4), set(1, 2), set(5, 5)];
        let scores = [1.0, 5.0, 2.0, 4.0, 0.1];
        // 1 and 3 tie; 2 may be second as 1 may; 0 is third at best.
        let groups = tie_groups(&scores, &ranks);
        assert_eq!(groups, [vec![1, 3, 2], vec![0], vec![4]]);
    }
}
