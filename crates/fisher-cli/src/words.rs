//! Numbers of things in words.

/// `no samples`, `1 sample`, `2 samples`.
pub(crate) fn count(n: usize, what: &str) -> String {
    match n {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// `phase 2 (importance)`, `phases 2 (importance) and 4 (overlap)`.
pub(crate) fn phases(phases: &[u8]) -> String {
    const NAMES: [&str; 7] = [
        "statistics",
        "importance",
        "masks",
        "overlap",
        "conflicts",
        "interference",
        "merging and scaling",
    ];
    let named = |phase: &u8| {
        let name = usize::from(*phase)
            .checked_sub(1)
            .and_then(|at| NAMES.get(at));
        name.map_or_else(|| phase.to_string(), |name| format!("{phase} ({name})"))
    };
    let named: Vec<String> = phases.iter().map(named).collect();
    match &*named {
        [] => "no phase".into(),
        [one] => format!("phase {one}"),
        [first @ .., last] => format!("phases {} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_have_names() {
        assert_eq!(phases(&[6]), "phase 6 (interference)");
        assert_eq!(
            phases(&[2, 3, 5]),
            "phases 2 (importance), 3 (masks) and 5 (conflicts)"
        );
    }
}
