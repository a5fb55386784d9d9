//! Which parameters have factors, and of which positions: the configuration.

use std::collections::BTreeMap;

use burn::config::Config;
use burn::module::{Module, ParamGroup};

use super::block::Layout;
use super::collector::Factors;
use super::positions::Positions;
use crate::error::{Error, Result};
use crate::gradient::{ContributionUnit, GradientUnit, PerToken, TokenSum};
use crate::grouping::GroupReduction;
use crate::kind::FisherKind;
use crate::model::{Catalogue, hash_weights};
use crate::provenance::Provenance;

/// Which parameters have factors, and of which positions.
#[derive(Config, Debug)]
pub struct FactorsConfig {
    /// What a layer's positions are to each other.
    #[config(default = "Positions::Expand")]
    pub positions: Positions,
    /// The parameters that have factors; all when absent.
    pub only: Option<ParamGroup>,
    /// Sides of more elements keep a diagonal. A matrix of 4096 × 4096 takes 128 MiB, for every task.
    #[config(default = 4096)]
    pub largest: usize,
    /// Which Fisher the gradients that will come are of.
    #[config(default = "FisherKind::Empirical")]
    pub kind: FisherKind,
}

impl FactorsConfig {
    /// Factors of the trainable parameters of `model`, of no samples yet.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when nothing is trainable or a pattern matches nothing, [`Error::Argument`] when `largest` is 0,
    /// [`Error::Device`] when the weights cannot be read.
    pub fn init<M: Module>(&self, model: &M) -> Result<Factors> {
        self.init_for(&Catalogue::of(model)?, hash_weights(model)?)
    }

    /// The same for gradients that come from elsewhere. `model` identifies the weights, as [`hash_weights`] does.
    ///
    /// # Errors
    /// As [`FactorsConfig::init`].
    pub fn init_for(&self, catalogue: &Catalogue, model: String) -> Result<Factors> {
        if self.largest == 0 {
            return Err(Error::Argument {
                name: "largest",
                expected: "above 0",
                found: "0".into(),
            });
        }
        let chosen = match &self.only {
            Some(group) => catalogue.filter(group)?,
            None => catalogue.clone(),
        };
        let parameters = chosen.parameters().iter();
        let layouts = parameters.map(|p| (p.path().to_owned(), Layout::of(p, self.largest)));
        Ok(Factors {
            provenance: Provenance {
                kind: self.kind,
                loss: TokenSum::NAME.into(),
                unit: PerToken::NAME.into(),
                reduction: GroupReduction::Sum,
                model,
                steps: None,
                seeds: Default::default(),
            },
            positions: self.positions,
            layouts: layouts.collect(),
            tasks: BTreeMap::new(),
            pending: None,
        })
    }
}
