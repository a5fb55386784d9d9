//! What a page tells of samples token by token.

use std::fmt::Write;

use super::parts::{escaped, number, percent, visible};
use crate::measure::{SampleTokens, Share, TokenRow, key};

/// Tokens that are drawn.
const DRAWN: usize = 4096;
/// Tokens that are listed of a sample.
const LISTED: usize = 8;

/// Samples with their tokens colored by loss.
pub(super) fn tokens(samples: &[SampleTokens]) -> String {
    let mut text = String::new();
    if samples.is_empty() {
        return text;
    }
    text.push_str(
        "<p>Each token's color is the loss of predicting it, against the largest of its sample; tokens without a color are not \
         predicted. The gradient's norm is that of this one label's loss; the gradients of a sample's labels add up to the \
         sample's. One token is one observation: this is a description, and nothing is tested.</p>",
    );
    let mut left = DRAWN;
    for sample in samples {
        let _ = write!(
            text,
            "<h3>{}: {}</h3>",
            escaped(&sample.task),
            escaped(&key(&sample.id))
        );
        if sample.tokens.len() > left {
            text.push_str("<p class=soft>Too many tokens to draw: they are in tokens.json.</p>");
            continue;
        }
        left -= sample.tokens.len();
        let losses = sample
            .tokens
            .iter()
            .filter_map(|t| Some(t.label.as_ref()?.loss));
        let largest = losses.fold(0.0, f64::max);
        text.push_str("<p style=\"white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9\">");
        for token in &sample.tokens {
            span(&mut text, token, largest);
        }
        text.push_str("</p>");
        list(&mut text, sample);
    }
    text
}

fn span(text: &mut String, token: &TokenRow, largest: f64) {
    let shown = shown(token);
    let Some(label) = &token.label else {
        let _ = write!(text, "<span title=\"not predicted\">{shown}</span>");
        return;
    };
    let depth = if largest > 0.0 {
        0.75 * label.loss / largest
    } else {
        0.0
    };
    let top = |shares: &[Share]| {
        let first = shares.first();
        first.map_or(String::new(), |s| {
            format!("; {} {}", escaped(&s.name), percent(Some(s.share)))
        })
    };
    let _ = write!(
        text,
        "<span style=\"background:rgba(200,80,40,{depth:.2})\" title=\"loss {}, gradient norm {}{}{}\">{shown}</span>",
        number(label.loss),
        number(label.gradient_norm),
        top(&label.layers),
        top(&label.heads)
    );
}

/// The token's text; its number where there is none, or nothing to see of it.
fn shown(token: &TokenRow) -> String {
    match token.text.as_deref() {
        Some(text) if !text.is_empty() => escaped(&visible(text)),
        _ => format!("{}\u{a0}", token.token),
    }
}

fn list(text: &mut String, sample: &SampleTokens) {
    let mut rows: Vec<_> = sample
        .tokens
        .iter()
        .enumerate()
        .filter_map(|(at, token)| Some((at, token, token.label.as_ref()?)))
        .collect();
    rows.sort_by(|a, b| b.2.gradient_norm.total_cmp(&a.2.gradient_norm));
    text.push_str(
        "<details><summary>Tokens with the largest gradients</summary><div class=scroll tabindex=0><table><thead><tr>\
         <th scope=col class=n>position</th><th scope=col>token</th><th scope=col class=n>loss</th>\
         <th scope=col class=n>gradient norm</th><th scope=col>layers</th><th scope=col>heads</th></tr></thead><tbody>",
    );
    let named = |shares: &[Share]| {
        let shares = shares.iter();
        let shares = shares.map(|s| format!("{} {}", escaped(&s.name), percent(Some(s.share))));
        shares.collect::<Vec<_>>().join(", ")
    };
    for (at, token, label) in rows.into_iter().take(LISTED) {
        let _ = write!(
            text,
            "<tr><td class=n>{at}</td><td class=name>{}</td><td class=n>{}</td><td class=n>{}</td><td class=name>{}</td>\
             <td class=name>{}</td></tr>",
            shown(token),
            number(label.loss),
            number(label.gradient_norm),
            named(&label.layers),
            named(&label.heads)
        );
    }
    text.push_str("</tbody></table></div></details>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_seen() {
        let token = |text: &str| TokenRow {
            token: 7,
            text: Some(text.into()),
            label: None,
        };
        assert_eq!(shown(&token("\n\n")), "⏎⏎");
        assert_eq!(shown(&token("\ta<")), "⇥a&lt;");
        assert_eq!(shown(&token("")), "7\u{a0}");
    }
}
