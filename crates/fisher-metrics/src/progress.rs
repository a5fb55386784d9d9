//! Progress bars.

use std::borrow::Cow;

use indicatif::{ProgressBar, ProgressStyle};

/// `bar` with a name, as indicatif's `template` says; it is hidden where standard error is no terminal.
pub fn styled(bar: ProgressBar, template: &str, name: impl Into<Cow<'static, str>>) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_prefix(name)
}
