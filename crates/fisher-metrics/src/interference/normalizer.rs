//! The Fisher that normalizes scores, and what each side of a score is weighed by.

use super::config::{FisherEstimate, InterferenceConfig, Normalize, Pool, Variant};
use crate::damping::Health;
use crate::error::Result;
use crate::pairs::{Rows, Slice, Work, fisher, for_each_run};

/// F over every slice, made ready to divide by.
pub(super) struct Fishers {
    pub(super) health: Vec<Health>,
    /// Of every slice, of every row of A where they differ, else one.
    pub(super) lambdas: Vec<Vec<f64>>,
    /// `1/Î` (`Î^-1.5` for the natural variant) of every slice and element, where no sample leaves F
    /// and the variant is not the full one.
    pub(super) inverse: Vec<Vec<f64>>,
    pub(super) left_out: Option<LeftOut>,
}

/// What it takes to leave a sample out.
pub(super) struct LeftOut {
    /// `n_A F_A`, or half of it where F is pooled, of every slice.
    sums: Vec<Vec<f64>>,
    /// What task B adds to F.
    rest: Option<Vec<Vec<f64>>>,
    count: f64,
    share: f64,
}

impl Fishers {
    pub(super) fn new(
        config: &InterferenceConfig,
        slices: &[Slice],
        rows: [&Rows; 2],
        work: &Work,
    ) -> Result<Self> {
        let [a, b] = rows;
        let (tasks, share): (&[_], _) = match config.pool {
            Pool::A => (&[(a, 1.0)], 1.0),
            Pool::B => (&[(b, 1.0)], 0.0),
            Pool::Pooled => (&[(a, 0.5), (b, 0.5)], 0.5),
        };
        if config.estimate == FisherEstimate::LeaveOneOut && share > 0.0 {
            return Self::leaving_out(config, slices, tasks, share, work);
        }
        let mut fisher = fisher(slices, tasks, work.bytes)?;
        let health: Vec<Health> = fisher
            .iter()
            .map(|f| config.ridge.health(&mut f.clone()))
            .collect();
        for (fisher, health) in fisher.iter_mut().zip(&health) {
            let lambda = health.ridge_lambda_applied;
            let damped = |f: f64| config.ridge.damped(f, lambda);
            let entries = fisher.iter_mut();
            entries.for_each(|f| *f = config.variant.inverse(damped(*f)));
        }
        Ok(Self {
            inverse: fisher,
            lambdas: health
                .iter()
                .map(|h| vec![h.ridge_lambda_applied])
                .collect(),
            left_out: None,
            health,
        })
    }

    /// `tasks` begin with A, whose part of F is `share`.
    fn leaving_out(
        config: &InterferenceConfig,
        slices: &[Slice],
        tasks: &[(&Rows, f64)],
        share: f64,
        work: &Work,
    ) -> Result<Self> {
        let (first, others) = tasks.split_at(1);
        let rows = first[0].0;
        let mut sums = fisher(slices, first, work.bytes)?;
        let rest = (!others.is_empty()).then(|| fisher(slices, others, work.bytes));
        let rest = rest.transpose()?;
        let health = |(slice, sum): (usize, &Vec<f64>)| {
            let mut all = sum.clone();
            let rest = rest.iter().flat_map(|rest| &rest[slice]);
            all.iter_mut().zip(rest).for_each(|(f, rest)| *f += rest);
            config.ridge.health(&mut all)
        };
        let health = sums.iter().enumerate().map(health).collect();
        let count = rows.len() as f64;
        sums.iter_mut().flatten().for_each(|f| *f *= count);
        let left_out = LeftOut {
            sums,
            rest,
            count,
            share,
        };
        Ok(Self {
            health,
            lambdas: left_out.lambdas(config, slices, rows, work)?,
            inverse: Vec::new(),
            left_out: Some(left_out),
        })
    }
}

impl LeftOut {
    /// F at one element of a slice without a sample whose gradient there is `g`.
    fn fisher(&self, slice: usize, at: usize, g: f32, tokens: f64) -> f64 {
        let own = self.share * (f64::from(g) * f64::from(g)) / tokens;
        let rest = self.rest.as_ref().map_or(0.0, |rest| rest[slice][at]);
        // A sum less its largest term can round to below 0.
        ((self.sums[slice][at] - own) / (self.count - 1.0)).max(0.0) + rest
    }

    /// λ of every slice and row: the median of F without the row.
    fn lambdas(
        &self,
        config: &InterferenceConfig,
        slices: &[Slice],
        rows: &Rows,
        work: &Work,
    ) -> Result<Vec<Vec<f64>>> {
        let mut lambdas = vec![Vec::new(); slices.len()];
        let mut without: Vec<Vec<f64>> = slices.iter().map(|s| vec![0.0; s.elements]).collect();
        for row in 0..rows.len() {
            let one = rows.cut(row..row + 1);
            for_each_run(slices, &one, work.bytes, |slice, _, at, run| {
                let into = &mut without[slice][at..at + run.len()];
                for (k, (into, &g)) in into.iter_mut().zip(run).enumerate() {
                    *into = self.fisher(slice, at + k, g, one.tokens[0]);
                }
            })?;
            for (lambdas, without) in lambdas.iter_mut().zip(&mut without) {
                lambdas.push(config.ridge.lambda(without));
            }
        }
        Ok(lambdas)
    }

    /// The side of task A, every row divided by an `Î` of its own. Rows count from `first`.
    pub(super) fn weigh_left(
        &self,
        config: &InterferenceConfig,
        rows: &Rows,
        first: usize,
        lambdas: &[Vec<f64>],
    ) -> impl Fn(usize, usize, usize, &[f32], &mut [f64]) {
        let (variant, ridge) = (config.variant, config.ridge.clone());
        let tokens = rows.tokens.clone();
        move |slice, row, at, run, into| {
            let (lambda, share) = (lambdas[slice][first + row], variant.share(tokens[row]));
            for (k, (into, &g)) in into.iter_mut().zip(run).enumerate() {
                let damped = ridge.damped(self.fisher(slice, at + k, g, tokens[row]), lambda);
                *into = left(variant, g, variant.inverse(damped), share);
            }
        }
    }
}

/// What task A's sample gives to one term: `C/Î`, `g/Î` or `√C/Î`; `share` is [`Variant::share`]. In
/// float64: the square of a gradient and the inverse of F are out of float32's range long before
/// their product is.
#[inline(always)]
fn left(variant: Variant, g: f32, inverse: f64, share: f64) -> f64 {
    let g = f64::from(g);
    match variant {
        Variant::Unsigned | Variant::Natural => g * g * inverse * share,
        Variant::Symmetric => g.abs() * inverse * share,
        Variant::Signed | Variant::Full => g * inverse,
    }
}

impl Variant {
    /// What the tokens of a sample of task A multiply its terms by.
    fn share(self, tokens: f64) -> f64 {
        match self {
            Self::Symmetric => tokens.sqrt().recip(),
            _ => tokens.recip(),
        }
    }

    /// The power of `Î` that its terms are multiplied by.
    fn inverse(self, damped: f64) -> f64 {
        match self {
            Self::Natural => (damped * damped.sqrt()).recip(),
            _ => damped.recip(),
        }
    }
}

impl Normalize {
    /// What `g_j` of a sample of so many tokens, out of a task's total, is multiplied by.
    pub(super) fn factor(self, tokens: f64, total: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::PerTokenMean => tokens.recip(),
            Self::PerTokenSum => total.recip(),
        }
    }
}

pub(super) fn weigh_left(
    variant: Variant,
    rows: &Rows,
    inverse: &[Vec<f64>],
) -> impl Fn(usize, usize, usize, &[f32], &mut [f64]) {
    let shares: Vec<f64> = rows.tokens.iter().map(|t| variant.share(*t)).collect();
    move |slice, row, at, run, into| {
        let share = shares[row];
        let inverse = &inverse[slice][at..at + run.len()];
        let terms = into.iter_mut().zip(run).zip(inverse);
        // One loop each, so that none asks for the variant inside.
        macro_rules! fill {
            ($($variant:ident)|+) => {
                match variant {
                    $(Variant::$variant => terms.for_each(|((into, &g), &inverse)| {
                        *into = left(Variant::$variant, g, inverse, share);
                    }),)+
                }
            };
        }
        fill!(Unsigned | Signed | Symmetric | Natural | Full)
    }
}

/// The side of task B: `|g|`, `g` or `√C`, normalized. `all` are the rows of the whole task.
pub(super) fn weigh_right(
    config: &InterferenceConfig,
    rows: &Rows,
    all: &Rows,
) -> impl Fn(usize, usize, usize, &[f32], &mut [f64]) + use<> {
    let variant = config.variant;
    let total: f64 = all.tokens.iter().sum();
    let factor = |tokens: &f64| match variant {
        Variant::Symmetric => tokens.sqrt().recip(),
        _ => config.normalize.factor(*tokens, total),
    };
    let factors: Vec<f64> = rows.tokens.iter().map(factor).collect();
    move |_, row, _, run, into| {
        let factor = factors[row];
        let terms = into.iter_mut().zip(run);
        match variant {
            Variant::Signed | Variant::Full => {
                terms.for_each(|(into, &g)| *into = f64::from(g) * factor);
            }
            _ => terms.for_each(|(into, &g)| *into = f64::from(g.abs()) * factor),
        }
    }
}
