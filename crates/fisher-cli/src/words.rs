//! Numbers of things in words.

/// `no samples`, `1 sample`, `2 samples`.
pub(crate) fn count(n: usize, what: &str) -> String {
    match n {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// A number to three digits: `2.11`, `10.8`, `0.25`, `3.1e-7`.
pub(crate) fn figures(x: f64) -> String {
    let rounded = format!("{x:.2e}");
    let (digits, power) = rounded.split_once('e').unwrap_or((&rounded, "0"));
    let short = |text: &str| {
        let decimals = text.contains('.');
        let text = text.trim_end_matches(|c| decimals && c == '0');
        text.trim_end_matches('.').to_owned()
    };
    match power.parse::<i32>() {
        Ok(power @ -3..=5) => {
            let decimals = usize::try_from(2 - power).unwrap_or(0);
            short(&format!("{x:.decimals$}"))
        }
        _ => format!("{}e{power}", short(digits)),
    }
}

/// `512`, `4.9 thousand`, `134.5 million`, `7.2 billion`.
pub(crate) fn amount(n: usize) -> String {
    let of = |unit: f64, name: &str| format!("{:.1} {name}", n as f64 / unit);
    match n {
        0..1000 => n.to_string(),
        1000..1_000_000 => of(1e3, "thousand"),
        1_000_000..1_000_000_000 => of(1e6, "million"),
        _ => of(1e9, "billion"),
    }
}

/// A number of bytes, to be read.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
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
    fn numbers_have_three_digits() {
        for (number, text) in [
            (2.113, "2.11"),
            (10.83, "10.8"),
            (0.25, "0.25"),
            (0.0, "0"),
            (-0.1864, "-0.186"),
            (0.001_234_5, "0.00123"),
            (3.101e-7, "3.1e-7"),
            (9.999, "10"),
            (1234.6, "1235"),
            (5e9, "5e9"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(figures(number), text);
        }
    }

    #[test]
    fn phases_have_names() {
        assert_eq!(phases(&[6]), "phase 6 (interference)");
        assert_eq!(
            phases(&[2, 3, 5]),
            "phases 2 (importance), 3 (masks) and 5 (conflicts)"
        );
    }
}
