//! Samples that look like copies of each other.

use super::task::TaskStatistics;

/// How far totals of copies may differ, relatively: what batches of other lengths round.
const ALIKE: f64 = 1e-6;

impl TaskStatistics {
    /// Ids of samples that look like copies: equal tokens, and the traces of all layers and heads equal to 1e-6. They
    /// are not independent, so that error bars over samples are too small. Looked for among samples that
    /// are units by themselves: those of clusters are taken for dependent already, and where units were put together
    /// ([`TaskStatistics::layer_units`]) none is found.
    pub fn copies(&self) -> Vec<Vec<String>> {
        // One number alone may be alike by chance.
        let columns = self.rows.columns();
        if !self.has_units() || columns < 2 {
            return Vec::new();
        }
        let units: Vec<&[f64]> = self.rows.sums().chunks(columns).collect();
        let alone = self.rows.sizes().iter().map(|size| *size == 1);
        let alone: Vec<bool> = alone.collect();
        let samples = self.counted().zip(self.rows.unit_of());
        let samples = samples.filter(|(_, unit)| alone[**unit as usize]);
        let mut samples: Vec<(u64, &[f64], &str)> = samples
            .map(|(sample, unit)| (sample.tokens, units[*unit as usize], &*sample.id))
            .collect();
        let trace = |values: &[f64]| values.iter().sum::<f64>();
        samples.sort_by(|a, b| (a.0.cmp(&b.0)).then(trace(a.1).total_cmp(&trace(b.1))));
        let mut copies = Vec::new();
        let mut rest = &samples[..];
        while let [(tokens, first, id), others @ ..] = rest {
            let alike = others.iter().take_while(|(t, values, _)| {
                let close = |(a, b): (&f64, &f64)| (a - b).abs() <= ALIKE * a.abs().max(b.abs());
                t == tokens && first.iter().zip(*values).all(close)
            });
            let ids: Vec<String> = alike.map(|(_, _, id)| (*id).to_owned()).collect();
            rest = &others[ids.len()..];
            // No gradient at all is no sign of a copy.
            if !ids.is_empty() && trace(first) > 0.0 {
                copies.push([vec![(*id).to_owned()], ids].concat());
            }
        }
        copies
    }
}
