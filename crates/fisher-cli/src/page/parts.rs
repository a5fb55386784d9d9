//! The small parts of a page: numbers, bars, tables, escaped words.

use std::fmt::Write;

use fisher_metrics::importance::Ranked;
use fisher_metrics::picture::{HeatMap, escape};
use fisher_metrics::shares::Share;
use serde_json::Value;

/// Words as HTML, also inside attributes.
pub(super) fn escaped(words: &str) -> String {
    escape(words).replace('\'', "&#39;")
}

/// Line ends and tabs as signs that can be seen.
pub(super) fn visible(text: &str) -> String {
    let sign = |letter| match letter {
        '\n' => '⏎',
        '\r' => '␍',
        '\t' => '⇥',
        letter => letter,
    };
    text.chars().map(sign).collect()
}

/// A number with three digits: plain, or as a power of ten.
pub(super) fn number(value: f64) -> String {
    let text = match value.abs() {
        0.0 => "0".into(),
        size if !size.is_finite() => return "not finite".into(),
        size if (0.001..100_000.0).contains(&size) => {
            let decimals = (2.0 - size.log10().floor()).max(0.0) as usize;
            format!("{value:.decimals$}")
        }
        _ => {
            let text = format!("{value:.2e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            let power: String = power.chars().map(raised).collect();
            format!("{digits}\u{2009}×\u{2009}10{power}")
        }
    };
    text.replace('-', "−")
}

/// A digit or a sign of a power. No markup, so that numbers may stand in attributes too.
fn raised(letter: char) -> char {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    match letter.to_digit(10) {
        Some(digit) => DIGITS[digit as usize],
        None => '⁻',
    }
}

/// The same, or a dash where it is undefined.
pub(super) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "<span title=\"undefined\">–</span>".into(), number)
}

/// A share in per cent.
pub(super) fn percent(share: Option<f64>) -> String {
    let text = share.map(|share| format!("{}\u{a0}%", hundredths(share)));
    text.unwrap_or_else(|| "–".into())
}

/// A share in per cent, without the mark. What is small is not 0.
fn hundredths(share: f64) -> String {
    match 100.0 * share {
        small if small > 0.0 && small < 0.05 => "&lt;\u{a0}0.1".into(),
        share => format!("{share:.1}"),
    }
}

/// Whether the samples leave every rank of a table open.
pub(super) fn untold(ranked: &[Ranked]) -> bool {
    let open = |of: &Ranked| {
        of.ranks
            .is_some_and(|r| (r.best, r.worst) == (1, ranked.len()))
    };
    ranked.len() > 1 && ranked.iter().all(open)
}

/// Rows shown before the rest is folded away.
const SHOWN: usize = 10;
/// Rows at all: more are in report.json.
const ROWS: usize = 50;

/// A ranking with its error bars; `title` is its caption.
pub(super) fn ranking(page: &mut String, title: &str, ranked: &[Ranked]) {
    if ranked.is_empty() {
        return;
    }
    let upper = |r: &Ranked| r.interval.map_or(r.fisher, |i| i.upper.max(r.fisher));
    let most = ranked.iter().map(upper).fold(0.0, f64::max);
    let (first, rest) = ranked.split_at(ranked.len().min(SHOWN));
    rows(page, Some(title), first, 1, most);
    if !rest.is_empty() {
        let (shown, left) = rest.split_at(rest.len().min(ROWS));
        let _ = write!(page, "<details><summary>{} more</summary>", rest.len());
        rows(page, None, shown, SHOWN + 1, most);
        if !left.is_empty() {
            let _ = write!(
                page,
                "<p class=soft>{} more are in report.json.</p>",
                left.len()
            );
        }
        page.push_str("</details>");
    }
}

fn rows(page: &mut String, title: Option<&str>, ranked: &[Ranked], from: usize, most: f64) {
    page.push_str("<table class=rank>");
    if let Some(title) = title {
        let _ = write!(page, "<caption>{}</caption>", escaped(title));
    }
    page.push_str(
        "<thead><tr><th scope=col>rank</th><th scope=col>name</th><th scope=col class=n>share</th>\
         <th scope=col class=n>F</th><th scope=col class=n>effective samples</th>\
         <th scope=col>F with its 95\u{a0}% interval</th></tr></thead><tbody>",
    );
    for (i, entry) in ranked.iter().enumerate() {
        let open = || format!("({})", from + i);
        let effective = entry.effective.map(|n| format!("{n:.1}"));
        let _ = write!(
            page,
            "<tr><td>{}</td><th scope=row class=name>{}</th><td class=n>{}</td>\
             <td class=\"n extra\">{}</td><td class=\"n extra\">{}</td><td class=bar>{}</td></tr>",
            entry.ranks.map_or_else(open, |ranks| ranks.to_string()),
            escaped(&entry.name),
            share(entry.share),
            number(entry.fisher),
            effective.unwrap_or_else(|| "–".into()),
            bar(entry, most),
        );
    }
    page.push_str("</tbody></table>");
}

/// A share, and its interval where it has one.
pub(super) fn share(share: Option<Share>) -> String {
    let Some(share) = share else {
        return percent(None);
    };
    let interval = share.interval.map(|of| {
        let [lower, upper] = [of.lower, of.upper].map(hundredths);
        format!(" <small>({lower}\u{2009}to\u{2009}{upper})</small>")
    });
    percent(Some(share.value)) + &interval.unwrap_or_default()
}

/// A bar with a whisker for its interval.
fn bar(entry: &Ranked, most: f64) -> String {
    let x = |value: f64| {
        if most > 0.0 {
            300.0 * (value / most).clamp(0.0, 1.0)
        } else {
            0.0
        }
    };
    let mut label = String::from("no interval");
    let mut whisker = String::new();
    if let Some(interval) = entry.interval {
        let (low, high) = (x(interval.lower), x(interval.upper));
        label = format!("{} to {}", number(interval.lower), number(interval.upper));
        // White under black, so that it shows on the bar and beside it.
        for (ink, width) in [("#fff", 4), ("#17191c", 1)] {
            let _ = write!(
                whisker,
                "<path d=\"M{low:.1} 9H{high:.1}M{low:.1} 4V14M{high:.1} 4V14\" stroke=\"{ink}\" \
                 stroke-width=\"{width}.5\" fill=\"none\"/>"
            );
        }
    }
    format!(
        "<svg viewBox=\"-3 0 306 18\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{label}\">\
         <title>{label}</title><rect y=\"3\" width=\"{:.1}\" height=\"12\" fill=\"#7d9cc0\"/>{whisker}</svg>",
        x(entry.fisher)
    )
}

/// Where numbers are that are too many for the page.
pub(super) const IN_REPORT: &str = "the numbers are in report.json";

/// A heat map, and its numbers as a table for who cannot see it, or where they are.
pub(super) fn figure(page: &mut String, map: &HeatMap, caption: &str, elsewhere: &str) {
    let svg = map.svg();
    let _ = write!(page, "<figure class=map>{svg}");
    if !caption.is_empty() {
        let _ = write!(page, "<figcaption>{}</figcaption>", escaped(caption));
    }
    if map.rows.len() * map.columns.len() > NUMBERS {
        let _ = write!(
            page,
            "<p class=soft>Too many cells for a table: {elsewhere}.</p></figure>"
        );
        return;
    }
    let _ = write!(
        page,
        "<details><summary>As numbers</summary>{}</details></figure>",
        numbers(map)
    );
}

/// Cells that stand as numbers too.
const NUMBERS: usize = 600;

fn numbers(map: &HeatMap) -> String {
    let mut table = String::from("<div class=scroll tabindex=0><table><thead><tr><th></th>");
    for column in &map.columns {
        let _ = write!(table, "<th scope=col class=n>{}</th>", escaped(column));
    }
    table.push_str("</tr></thead><tbody>");
    for (i, (name, values)) in map.rows.iter().zip(&map.values).enumerate() {
        let _ = write!(table, "<tr><th scope=row>{}</th>", escaped(name));
        for (j, value) in values.iter().enumerate() {
            let marked = map.marked.get(i).and_then(|row| row.get(j)) == Some(&true);
            let star = if marked { "\u{a0}*" } else { "" };
            let _ = write!(table, "<td class=n>{}{star}</td>", maybe(*value));
        }
        table.push_str("</tr>");
    }
    table + "</tbody></table></div>"
}

/// What a reader must know.
pub(super) fn note(page: &mut String, words: &str) {
    let _ = write!(
        page,
        "<p class=note><b>Note.</b>{}</p>",
        escaped(&sentence(words))
    );
}

/// With a capital and a full stop.
pub(super) fn sentence(words: &str) -> String {
    let mut letters = words.trim_end_matches('.').chars();
    let first: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    format!("{first}{}.", letters.as_str())
}

/// A setting as text.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => {
            const SHOWN: usize = 12;
            let mut words: Vec<String> = values.iter().take(SHOWN).map(plain).collect();
            if values.len() > SHOWN {
                words.push(format!("{} more", values.len() - SHOWN));
            }
            words.join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_stay_words() {
        assert_eq!(
            escaped("<b onclick='x'>&\"\u{1}"),
            "&lt;b onclick=&#39;x&#39;&gt;&amp;&quot;\u{fffd}"
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(0.25), "0.250");
        assert_eq!(number(-1.5e-7), "−1.50\u{2009}×\u{2009}10⁻⁷");
        assert_eq!(number(3.21e12), "3.21\u{2009}×\u{2009}10¹²");
        assert_eq!(percent(Some(0.0004)), "&lt;\u{a0}0.1\u{a0}%");
        assert_eq!(percent(Some(0.0)), "0.0\u{a0}%");
        assert_eq!(percent(Some(0.0005)), "0.1\u{a0}%");
        assert_eq!(maybe(None), "<span title=\"undefined\">–</span>");
        assert_eq!(sentence("it is so"), "It is so.");
    }
}
