//! What a model chooses among.

use serde::Serialize;

/// What a model chooses among when it predicts, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcomes {
    /// Tokens of its vocabulary, at every token that counts.
    Tokens(usize),
    /// Classes, once a sample.
    Classes(usize),
}

impl Outcomes {
    /// The loss, in nats, of a model that gives all of them the same probability: `ln` of their number.
    pub fn uniform_loss(self) -> f64 {
        let (Self::Tokens(count) | Self::Classes(count)) = self;
        (count as f64).ln()
    }

    /// What that is the logarithm of, and what a loss is counted by: `["vocabulary", "token"]` or
    /// `["classes", "sample"]`.
    pub fn words(self) -> [&'static str; 2] {
        match self {
            Self::Tokens(_) => ["vocabulary", "token"],
            Self::Classes(_) => ["classes", "sample"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_probabilities_lose_the_logarithm_of_their_number() {
        assert_eq!(Outcomes::Classes(1).uniform_loss(), 0.0);
        assert_eq!(Outcomes::Classes(2).uniform_loss(), std::f64::consts::LN_2);
        assert_eq!(Outcomes::Tokens(10).uniform_loss(), std::f64::consts::LN_10);
    }
}
