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
}
