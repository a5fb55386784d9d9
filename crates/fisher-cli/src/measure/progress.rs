//! How far work is that takes its time.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use fisher_metrics::progress::styled;
use indicatif::{HumanDuration, ProgressBar};

/// Between two lines where standard error is no terminal.
const EVERY: Duration = Duration::from_secs(10);

/// Say on standard error what is done now, where there is no measure of how far it is.
pub(crate) fn doing(what: &str) {
    // Who closed it does not want to hear.
    let _ = writeln!(std::io::stderr(), "  {what} ..");
}

/// A bar with rate and time left; plain lines, now and then, where there is no terminal to draw it on.
#[derive(Debug)]
pub(crate) struct Progress {
    task: String,
    unit: &'static str,
    bar: ProgressBar,
    plain: bool,
    done: u64,
    total: u64,
    /// Tokens that took no time: an earlier run had them.
    skipped: u64,
    start: Instant,
    told: Option<Instant>,
}

impl Progress {
    /// In tokens.
    pub(crate) fn new(task: &str, total: u64) -> Self {
        Self::of(task, total, "tokens")
    }

    pub(crate) fn of(task: &str, total: u64, unit: &'static str) -> Self {
        let template = format!(
            "  {{prefix}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}, {{per_sec}}, {{eta}} left"
        );
        let bar = styled(ProgressBar::new(total), &template, task.to_owned());
        let plain = !std::io::stderr().is_terminal();
        if !plain {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Self {
            task: task.to_owned(),
            unit,
            bar,
            plain,
            done: 0,
            total,
            skipped: 0,
            start: Instant::now(),
            told: None,
        }
    }

    /// So many were there.
    pub(crate) fn skip(&mut self, tokens: u64) {
        self.skipped += tokens;
        self.done += tokens;
        self.bar.inc(tokens);
        self.bar.reset_eta();
        self.start = Instant::now();
    }

    /// So many more are done.
    pub(crate) fn advance(&mut self, tokens: u64) {
        self.done += tokens;
        self.bar.inc(tokens);
        let due = self.told.is_none_or(|told| told.elapsed() >= EVERY);
        if !(self.plain && due) || tokens == 0 || self.done == self.total {
            return;
        }
        self.told = Some(Instant::now());
        // Who closed it does not want to hear.
        let line = self.line(self.start.elapsed());
        let _ = writeln!(std::io::stderr(), "  {line}");
    }

    fn line(&self, elapsed: Duration) -> String {
        let rate = (self.done - self.skipped) as f64 / elapsed.as_secs_f64().max(1e-3);
        let left = (self.total - self.done) as f64 / rate.max(1e-9);
        let left = HumanDuration(Duration::from_secs(left.min(1e9) as u64));
        let (task, unit, done, total) = (&self.task, self.unit, self.done, self.total);
        format!("{task}: {done} of {total} {unit}, {rate:.1} {unit}/s, about {left} left")
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_took_time() {
        let mut progress = Progress::new("alpha", 1000);
        progress.skip(400);
        progress.advance(100);
        assert_eq!(
            progress.line(Duration::from_secs(10)),
            "alpha: 500 of 1000 tokens, 10.0 tokens/s, about 50 seconds left"
        );
    }
}
