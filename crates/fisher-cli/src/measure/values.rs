//! Values of flags: phases, settings, divisions of a gradient, sizes.

use std::str::FromStr;

use fisher_metrics::damping::Damping;
use fisher_metrics::interference::InterferenceConfig;
use fisher_metrics::scaling::ScalingConfig;
use fisher_train::apply::FisherScale;
use fisher_train::kinds::Fisher;
use serde::{Deserialize, Serialize};

/// Which Fisher is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Labels of the data
    Empirical,
    /// Labels drawn from the model's predictions; --seed is theirs too
    MonteCarlo,
    /// The expectation over the model's predictions: a pass for every token of the vocabulary at every position, for
    /// tiny vocabularies
    Exact,
}

impl Kind {
    /// As the library knows it.
    pub fn fisher(self, draws: u32, seed: u64) -> Fisher {
        match self {
            Self::Empirical => Fisher::AsGiven,
            Self::MonteCarlo => Fisher::MonteCarlo {
                draws: draws as usize,
                seed,
            },
            Self::Exact => Fisher::Exact,
        }
    }
}

/// The type of gradients that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// float32
    Full,
    /// float16, every row scaled by a power of two
    Half,
}

impl From<Precision> for fisher_core::store::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Full => Self::Float32,
            Precision::Half => Self::Float16,
        }
    }
}

/// The scale that the Fishers of models to be merged are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeScale {
    /// As they are: the model that is less sure of its task counts for more
    None,
    /// The mean of F over all weights is 1: models count for as much as each other
    Trace,
    /// The root mean square of F in every tensor is 1: models count for as much in every tensor
    Norm,
}

impl From<MergeScale> for FisherScale {
    fn from(scale: MergeScale) -> Self {
        match scale {
            MergeScale::None => Self::None,
            MergeScale::Trace => Self::Trace,
            MergeScale::Norm => Self::Norm,
        }
    }
}

/// Which phases, from 1 to 7.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases(pub Vec<u8>);

impl FromStr for Phases {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` names no phases: give numbers from 1 to 7, such as 1-4 or 2,5");
        let mut phases = Vec::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let [from, to] = [from, to].map(|n| n.trim().parse::<u8>().ok());
            let (Some(from), Some(to)) = (from, to) else {
                return Err(wrong());
            };
            if from < 1 || to > 7 || from > to {
                return Err(wrong());
            }
            phases.extend(from..=to);
        }
        phases.sort_unstable();
        phases.dedup();
        Ok(Self(phases))
    }
}

/// Settings of the interference, and the text that names their results.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// As it was written.
    pub text: String,
    /// What it means.
    pub config: InterferenceConfig,
}

impl FromStr for Settings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let config = parse_interference(text)?;
        config.init().map_err(|e| format!("`{text}`: {e}"))?;
        Ok(Self {
            text: text.into(),
            config,
        })
    }
}

/// How a gradient is divided: `POWER/DAMPING`, and the text that names the result.
#[derive(Debug, Clone)]
pub struct Scale {
    /// As it was written.
    pub text: String,
    /// What it means.
    pub config: ScalingConfig,
}

impl FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not POWER/DAMPING, such as 0.5/1e-6");
        let (power, damping) = text.split_once('/').ok_or_else(wrong)?;
        let [power, damping] = [power, damping].map(|n| n.trim().parse::<f64>());
        let (Ok(power), Ok(damping)) = (power, damping) else {
            return Err(wrong());
        };
        let config = ScalingConfig::new()
            .with_power(power)
            .with_damping(Damping::Absolute(damping));
        config.init().map_err(|e| format!("`{text}`: {e}"))?;
        Ok(Self {
            text: text.into(),
            config,
        })
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes(pub usize);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(char::is_alphabetic);
        let unit = match &text[digits.len()..] {
            "" | "B" => 1.0,
            "kB" | "KB" => 1e3,
            "MB" | "M" => 1e6,
            "GB" | "G" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1_048_576.0,
            "GiB" => 1_073_741_824.0,
            unit => {
                return Err(format!(
                    "`{unit}` is no unit; give B, kB, MB, GB, KiB, MiB or GiB"
                ));
            }
        };
        let number: f64 = digits
            .trim()
            .parse()
            .map_err(|_| format!("`{text}` is no size"))?;
        if number.is_finite() && number > 0.0 {
            Ok(Self((number * unit) as usize))
        } else {
            Err(format!("`{text}` is no size above 0"))
        }
    }
}

/// Read a number of things of which there must be one.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "give a whole number, 1 or more".into())
}

/// Read a share of `--sparsity`.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.trim().parse().ok();
    match share {
        Some(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Some(percent) if percent > 1.0 && percent <= 100.0 => Err(format!(
            "give a share between 0 and 1, such as 0.9 (for {text} %: {})",
            percent / 100.0
        )),
        _ => Err("give a share between 0 and 1, such as 0.9".into()),
    }
}

/// Settings of interference as they are written on the command line: `default`, or pairs such as
/// `variant=signed,pool=pooled`.
///
/// # Errors
/// What is not a setting.
pub fn parse_interference(text: &str) -> Result<InterferenceConfig, String> {
    let fail = |e: serde_json::Error| format!("`{text}`: {e}");
    let mut json = serde_json::to_value(InterferenceConfig::new()).map_err(fail)?;
    if text == "default" {
        return serde_json::from_value(json).map_err(fail);
    }
    let mut seen = Vec::new();
    for pair in text.split(',') {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("`{pair}` in `{text}` is not of the form key=value"))?;
        if seen.contains(&key) {
            return Err(format!("`{key}` comes twice in `{text}`"));
        }
        seen.push(key);
        let value: serde_json::Value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        match key {
            "ridge" | "ridge_rel" | "epsilon" => json["ridge"][key] = value,
            "variant" | "pool" | "estimate" | "aggregate" | "normalize" => json[key] = value,
            _ => {
                return Err(format!(
                    "`{key}` in `{text}` is not a setting; there are variant, pool, estimate, \
                     aggregate, normalize, epsilon, ridge, ridge_rel"
                ));
            }
        }
    }
    serde_json::from_value(json).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{Part, TaskFile};

    #[test]
    fn values_are_read_or_refused() {
        assert_eq!("2,4-6".parse(), Ok(Phases(vec![2, 4, 5, 6])));
        for wrong in ["", "0", "8", "4-2", "a"] {
            assert!(wrong.parse::<Phases>().is_err(), "{wrong}");
        }
        assert_eq!("8GiB".parse(), Ok(Bytes(8 << 30)));
        assert_eq!("500MB".parse(), Ok(Bytes(500_000_000)));
        assert_eq!((share("0.9"), share("1")), (Ok(0.9), Ok(1.0)));
        for wrong in ["90", "-0.1", "NaN", "a", "1e9", ""] {
            let error = share(wrong).expect_err(wrong);
            assert!(
                error.contains("a share between 0 and 1, such as 0.9"),
                "{error}"
            );
        }
        assert!(share("90").is_err_and(|e| e.contains("for 90 %: 0.9")));
        assert_eq!(positive("1"), Ok(1));
        for wrong in ["0", "-1", "1.5", ""] {
            assert!(positive(wrong).is_err(), "{wrong}");
        }
        assert!("8 apples".parse::<Bytes>().is_err() && "-1".parse::<Bytes>().is_err());
        let settings: Settings = "ridge=0.0,ridge_rel=0.01".parse().expect("settings");
        assert_eq!(
            (settings.config.ridge.ridge, settings.config.ridge.ridge_rel),
            (0.0, 0.01)
        );
        for wrong in [
            "variant",
            "color=red",
            "variant=loud",
            "variant=symmetric,normalize=per_token_mean",
        ] {
            assert!(wrong.parse::<Settings>().is_err(), "{wrong}");
        }
        let scale: Scale = "0.5/1e-6".parse().expect("power and damping");
        assert_eq!(scale.text, "0.5/1e-6");
        for wrong in ["1", "a/1", "1/0", "-1/1"] {
            assert!(wrong.parse::<Scale>().is_err(), "{wrong}");
        }
        assert!("a=b.jsonl".parse::<TaskFile>().is_ok() && "b.jsonl".parse::<TaskFile>().is_err());
        assert!("3/4".parse::<Part>().is_ok() && "4/4".parse::<Part>().is_err());
    }
}
