//! `report.html`: one file, no script, nothing to fetch.

use std::fmt::Write;

use fisher_core::Statistics;
use fisher_metrics::{ConflictReport, ImportanceReport, InterferenceReport, Ranked};

use super::analysis::Findings;

/// Rows of a table before the rest is left to `report.json`.
const ROWS: usize = 20;

const STYLE: &str = "
:root{--ink:#16181d;--soft:#555b66;--line:#d9dce1;--bar:#3b5b8c;--page:#fff}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:2rem 1.25rem 4rem;background:var(--page);color:var(--ink);
 font:1rem/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.9rem;border-top:2px solid var(--ink)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
p,ul{max-width:46rem}.soft{color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem;margin:.4rem 0 1rem}
th,td{text-align:left;padding:.28rem .8rem .28rem 0;border-bottom:1px solid var(--line);vertical-align:middle}
th{font-weight:600;border-bottom-color:var(--ink)}
td.n,th.n{text-align:right;white-space:nowrap}
td.name{overflow-wrap:anywhere;min-width:9rem}
figure{margin:1rem 0;overflow-x:auto}figure svg{max-width:100%;height:auto}
.warn{border-left:4px solid var(--ink);padding:.1rem 0 .1rem .9rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:34rem){body{padding:1.2rem .9rem 3rem}dl{grid-template-columns:1fr}dt{margin-top:.4rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}h2,h3{break-after:avoid}tr,figure{break-inside:avoid}
 .scroll,figure{overflow:visible}}
";

/// What a page tells.
pub struct Page<'a> {
    /// What was run: names and values.
    pub run: Vec<(String, String)>,
    /// What to know before reading on.
    pub warnings: &'a [String],
    /// Of all tasks.
    pub statistics: &'a Statistics,
    /// What was found.
    pub findings: &'a Findings,
}

impl Page<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let tasks: Vec<&str> = self.statistics.tasks().collect();
        let title = format!("What {} depend on", tasks.join(" and "));
        let mut page = String::new();
        let _ = write!(
            page,
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{0}</title><style>{STYLE}</style></head><body><header><h1>{0}</h1>\
             <p class=\"soft\">Diagonal empirical Fisher information of a model\'s parameters, from the \
             gradient of every sample.</p></header><main>",
            escaped(&title)
        );
        self.about(&mut page);
        for report in &self.findings.importance {
            importance(&mut page, report);
        }
        self.alike(&mut page);
        for (space, report) in &self.findings.conflicts {
            conflicts(&mut page, space, report);
        }
        for (settings, report) in &self.findings.interference {
            interference(&mut page, settings, report);
        }
        page.push_str("</main></body></html>\n");
        page
    }

    fn about(&self, page: &mut String) {
        page.push_str("<section><h2>What was run</h2><dl>");
        for (name, value) in &self.run {
            let _ = write!(
                page,
                "<dt>{}</dt><dd>{}</dd>",
                escaped(name),
                escaped(value)
            );
        }
        page.push_str("</dl>");
        list(page, self.warnings);
        page.push_str(
            "<p>A large Fisher value means that small changes of those weights change the loss of the \
             task\'s samples much. Intervals are of 95&nbsp;%; where two overlap, which of the two is \
             larger is not known.</p></section>",
        );
    }

    fn alike(&self, page: &mut String) {
        let Findings {
            comparison,
            overlap,
            ..
        } = self.findings;
        if comparison.is_none() && overlap.is_empty() {
            return;
        }
        page.push_str("<section><h2>How alike the tasks are</h2>");
        if let Some(comparison) = comparison {
            let _ = write!(
                page,
                "<p>Shares of the Fisher over all groups: cosine {}, rank correlation {}, \
                 Jensen-Shannon divergence {}.</p>",
                number(comparison.cosine),
                number(comparison.spearman),
                number(comparison.jensen_shannon)
            );
        }
        if !overlap.is_empty() {
            page.push_str(
                "<p>What remains when the least important groups of each task are removed. Of two random \
                 masks that keep half, a third is shared: only \u{3ba} compares across sparsities.</p>\
                 <div class=\"scroll\"><table><thead><tr><th>scope and share removed</th>\
                 <th class=\"n\">Jaccard</th><th class=\"n\">\u{3ba}</th><th class=\"n\">both keep</th>\
                 <th class=\"n\">only one</th><th>advice for merging</th></tr></thead><tbody>",
            );
            for (key, report) in overlap {
                let all = &report.all;
                let advice = report.advice.map_or("none".into(), |a| format!("{a:?}"));
                let _ = write!(
                    page,
                    "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                     <td class=\"n\">{} of {}</td><td class=\"n\">{}</td><td>{}</td></tr>",
                    escaped(key),
                    number(all.jaccard),
                    number(all.kappa),
                    all.both,
                    all.n,
                    all.only_a + all.only_b,
                    escaped(&words(&advice))
                );
            }
            page.push_str("</tbody></table></div>");
        }
        page.push_str("</section>");
    }
}

fn importance(page: &mut String, report: &ImportanceReport) {
    let _ = write!(
        page,
        "<section><h2>{}: layers and heads</h2><p>{} samples, {} tokens, trace {:.3e}.</p>",
        escaped(&report.task),
        report.samples,
        report.tokens,
        report.trace
    );
    ranking(page, "Layers", &report.layers);
    ranking(page, "Attention heads", &report.heads);
    page.push_str("</section>");
}

fn ranking(page: &mut String, title: &str, ranked: &[Ranked]) {
    if ranked.is_empty() {
        return;
    }
    let upper = |r: &Ranked| r.interval.map_or(r.fisher, |i| i.upper.max(r.fisher));
    let most = ranked.iter().map(upper).fold(0.0, f64::max);
    let _ = write!(
        page,
        "<h3>{title}</h3><div class=\"scroll\"><table><thead><tr><th>rank</th><th>name</th>\
         <th class=\"n\">share</th><th class=\"n\">Fisher</th><th class=\"n\">\u{b1} s.e.</th>\
         <th>with 95&nbsp;% interval</th></tr></thead><tbody>"
    );
    for (rank, entry) in ranked.iter().take(ROWS).enumerate() {
        let tie = if entry.resolved == Some(false) {
            "~"
        } else {
            ""
        };
        let _ = write!(
            page,
            "<tr><td>{}{tie}</td><td class=\"name\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{:.3e}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            rank + 1,
            escaped(&entry.name),
            entry
                .share
                .map_or("not defined".into(), |s| format!("{:.1}&nbsp;%", 100.0 * s)),
            entry.fisher,
            entry
                .standard_error
                .map_or("not defined".into(), |e| format!("{e:.1e}")),
            bar(entry, most)
        );
    }
    page.push_str("</tbody></table></div>");
    let more = ranked.len().saturating_sub(ROWS);
    let more = if more > 0 {
        format!(" {more} more are in report.json.")
    } else {
        String::new()
    };
    let _ = write!(
        page,
        "<p class=\"soft\">~: the interval overlaps a neighbour\'s, so the rank is not resolved.{more}</p>"
    );
}

/// A bar with its interval, 180 wide.
fn bar(entry: &Ranked, most: f64) -> String {
    if most <= 0.0 {
        return String::new();
    }
    let x = |value: f64| 2.0 + 176.0 * (value / most).clamp(0.0, 1.0);
    let mut svg = format!(
        "<svg width=\"180\" height=\"16\" viewBox=\"0 0 180 16\" role=\"img\" aria-label=\"{:.3e}\">\
         <rect x=\"2\" y=\"4\" width=\"{:.1}\" height=\"8\" fill=\"#3b5b8c\"/>",
        entry.fisher,
        x(entry.fisher) - 2.0
    );
    if let Some(interval) = entry.interval {
        let (low, high) = (x(interval.lower), x(interval.upper));
        let _ = write!(
            svg,
            "<path d=\"M{low:.1} 8H{high:.1}M{low:.1} 3V13M{high:.1} 3V13\" stroke=\"#000\" \
             stroke-width=\"1.5\" fill=\"none\"><title>{:.3e} to {:.3e}</title></path>",
            interval.lower, interval.upper
        );
    }
    svg + "</svg>"
}

fn conflicts(page: &mut String, space: &str, report: &ConflictReport) {
    let space = match space {
        "raw" => "gradients as they are",
        _ => "gradients whitened by the Fisher",
    };
    let _ = write!(
        page,
        "<section><h2>Samples against samples: {space}</h2><p>{} of {} parameters are selected \
         (cosines across the tasks lower than within, false discovery rate {}); {} pairs of samples \
         conflict.</p>",
        report.selected, report.tested, report.settings.alpha, report.total
    );
    list(page, &report.warnings);
    let sentences = report.sentences(10);
    if !sentences.is_empty() {
        page.push_str("<ul>");
        for sentence in sentences {
            let _ = write!(page, "<li>{}.</li>", escaped(&sentence));
        }
        page.push_str("</ul>");
    }
    let mut slices: Vec<_> = report.slices.iter().collect();
    slices.sort_by(|a, b| a.q.unwrap_or(2.0).total_cmp(&b.q.unwrap_or(2.0)));
    page.push_str(
        "<div class=\"scroll\"><table><thead><tr><th>parameter</th><th class=\"n\">mean cosine</th>\
         <th class=\"n\">p</th><th class=\"n\">q</th><th class=\"n\">conflicting pairs</th></tr></thead><tbody>",
    );
    for slice in slices.iter().take(ROWS) {
        let _ = write!(
            page,
            "<tr><td class=\"name\">{}{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escaped(&slice.name),
            if slice.selected { " *" } else { "" },
            number(slice.mean_cosine.as_ref().map(|cosine| cosine.mean)),
            number(slice.test.as_ref().map(|test| test.p_low)),
            number(slice.q),
            slice.conflicts
        );
    }
    page.push_str("</tbody></table></div><p class=\"soft\">*: selected.</p>");
    let first = slices.first().and_then(|slice| report.picture(&slice.name));
    if let Some(picture) = first {
        figure(page, &picture.svg());
    }
    page.push_str("</section>");
}

fn interference(page: &mut String, settings: &str, report: &InterferenceReport) {
    let _ = write!(
        page,
        "<section><h2>Interference of attention heads: {}</h2>",
        escaped(settings)
    );
    list(page, &report.warnings);
    figure(page, &report.picture().svg());
    for block in report.blocks() {
        let _ = write!(
            page,
            "<h3>{block}: {}</h3><div class=\"scroll\"><table><thead><tr><th>layer</th>",
            escaped(block.meaning())
        );
        let map = report.map(block);
        let heads = map.iter().map(Vec::len).max().unwrap_or(0);
        for head in 0..heads {
            let _ = write!(page, "<th class=\"n\">head {head}</th>");
        }
        page.push_str("</tr></thead><tbody>");
        for (layer, row) in map.iter().enumerate() {
            let _ = write!(page, "<tr><td>{layer}</td>");
            for (head, mean) in row.iter().enumerate() {
                let slice = report.slice(block, layer, head);
                let health = slice
                    .and_then(|slice| slice.health)
                    .map_or(String::new(), |health| {
                        format!(
                            "F from {:.1e} to {:.1e}, median {:.1e}, ridge {:.1e}",
                            health.min, health.max, health.median, health.ridge_lambda_applied
                        )
                    });
                let _ = write!(page, "<td class=\"n\" title=\"{health}\">{mean:.3e}</td>");
            }
            page.push_str("</tr>");
        }
        page.push_str("</tbody></table></div>");
    }
    page.push_str("</section>");
}

/// A picture, which brings its title, description and hover values.
fn figure(page: &mut String, svg: &str) {
    let svg = svg.find("<svg").map_or(svg, |start| &svg[start..]);
    let _ = write!(page, "<figure>{svg}</figure>");
}

fn list(page: &mut String, warnings: &[String]) {
    for warning in warnings {
        let _ = write!(page, "<p class=\"warn\">{}</p>", escaped(warning));
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or("not defined".into(), |value| format!("{value:.3}"))
}

/// `PlainTaskArithmetic` as words.
fn words(name: &str) -> String {
    let mut words = String::new();
    for (at, c) in name.chars().enumerate() {
        if at > 0 && c.is_uppercase() {
            words.push(' ');
        }
        words.extend(c.to_lowercase());
    }
    words
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_text() {
        assert_eq!(escaped("<b>&\"x"), "&lt;b&gt;&amp;&quot;x");
        assert_eq!(words("PlainArithmetic"), "plain arithmetic");
    }
}
