//! Which gates: the configuration.

use std::collections::{BTreeMap, BTreeSet};

use burn::config::Config;
use burn::module::{Module, Param, ParamGroup};
use burn::tensor::{Device, Tensor};

use super::collector::{Gated, Gates};
use super::scores::GateScores;
use super::set::GateSet;
use crate::error::{Error, Result, list};
use crate::gradient::{ContributionUnit, GradientUnit, PerToken, TokenSum, sides};
use crate::grouping::{AttentionConfig, GroupReduction, HeadLayout, Scheme};
use crate::kind::FisherKind;
use crate::model::{Catalogue, Place, PlaceVisitor, hash_weights, visit_places};
use crate::provenance::Provenance;

/// Which gates a model has, and what is kept of each sample.
#[derive(Config, Debug)]
pub struct GatesConfig {
    /// A gate on each layer.
    #[config(default = true)]
    pub layers: bool,
    /// A gate on each attention head, and on each key/value head that several query heads share.
    #[config(default = true)]
    pub heads: bool,
    /// A gate on each output channel of matrices and kernels without heads.
    #[config(default = true)]
    pub channels: bool,
    /// Gates on other groups of some parameters besides.
    #[config(default = "Vec::new()")]
    pub schemes: Vec<(ParamGroup, Scheme)>,
    /// The heads of the model's attention, which are then found by the names of its projections; no heads when absent.
    pub attention: Option<AttentionConfig>,
    /// How many numbers, one a sample and gate, are kept of a task at most. Where there are more, none are kept and the
    /// means and errors go on. 2²² are 32 MiB.
    #[config(default = "1 << 22")]
    pub rows: usize,
    /// Which Fisher the gradients that will come are of.
    #[config(default = "FisherKind::Empirical")]
    pub kind: FisherKind,
}

impl GatesConfig {
    /// Gates on the trainable weights of `model`, as they are now.
    ///
    /// ```
    /// use fisher_core::gates::GatesConfig;
    /// use fisher_core::grouping::AttentionConfig;
    /// # fn example(model: burn::nn::attention::MultiHeadAttention) -> fisher_core::Result<()> {
    /// let attention = AttentionConfig::new(8);
    /// let gates = GatesConfig::new().with_attention(Some(attention)).init(&model)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoParameters`] when nothing is trainable or a pattern matches nothing,
    /// [`Error::HeadLayout`] when attention is configured and projections are not recognized, [`Error::Scheme`] when a
    /// scheme does not fit, [`Error::Argument`] when no gate is left, [`Error::Device`] when the weights cannot be read.
    pub fn init<M: Module>(&self, model: &M) -> Result<Gates> {
        let catalogue = Catalogue::of(model)?;
        let heads = match &self.attention {
            Some(attention) => HeadLayout::recognize(&catalogue, attention)?,
            None => HeadLayout::none(),
        };
        self.init_with_heads(model, &heads)
    }

    /// The same, with heads whose layout was made by hand.
    ///
    /// # Errors
    /// As [`GatesConfig::init`].
    pub fn init_with_heads<M: Module>(&self, model: &M, heads: &HeadLayout) -> Result<Gates> {
        let catalogue = Catalogue::of(model)?;
        self.init_of(model, self.sets(&catalogue, heads)?)
    }

    /// The same, with gates of the caller's choice: only those.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when a gate is on what does not train, [`Error::Shape`] when a grouping is not of
    /// its parameter, [`Error::Argument`] without gates, [`Error::Device`] when the weights cannot be read.
    pub fn init_of<M: Module>(&self, model: &M, sets: Vec<GateSet>) -> Result<Gates> {
        let catalogue = Catalogue::of(model)?;
        let mut weights = Flat {
            wanted: catalogue.parameters().iter().map(|p| p.path()).collect(),
            found: BTreeMap::new(),
        };
        visit_places(&model.valid(), &mut weights)?;
        let weights = weights.found;
        self.init_for(&catalogue, sets, weights, hash_weights(model)?)
    }

    /// The gates that this configuration means for the parameters in `catalogue`.
    ///
    /// # Errors
    /// [`Error::NoParameters`] and [`Error::Scheme`], as [`GatesConfig::init`].
    pub fn sets(&self, catalogue: &Catalogue, heads: &HeadLayout) -> Result<Vec<GateSet>> {
        let mut sets = Vec::new();
        if self.layers {
            sets.extend(GateSet::layers(catalogue)?);
        }
        if self.heads {
            sets.extend(GateSet::heads(catalogue, heads)?);
            sets.extend(GateSet::kv_heads(catalogue, heads)?);
        }
        if self.channels {
            sets.extend(GateSet::channels(catalogue, heads)?);
        }
        for (group, scheme) in &self.schemes {
            catalogue.filter(group)?; // a pattern that matches nothing is a mistake
            for parameter in catalogue.parameters() {
                if parameter.matches(group) {
                    sets.extend(GateSet::of(parameter, scheme, heads)?);
                }
            }
        }
        Ok(sets)
    }

    /// Gates for gradients that come from elsewhere: of the parameters in `catalogue`, whose weights are given flattened,
    /// by path. `model` identifies the weights, as [`hash_weights`] does.
    ///
    /// # Errors
    /// As [`GatesConfig::init_of`]; [`Error::Shape`] for weights of another size or on another device than the first.
    pub fn init_for(
        &self,
        catalogue: &Catalogue,
        sets: Vec<GateSet>,
        weights: BTreeMap<String, Tensor<1>>,
        model: String,
    ) -> Result<Gates> {
        let device = weights.values().next().map(Tensor::device);
        let (Some(device), false) = (device, sets.is_empty()) else {
            return Err(Error::Argument {
                name: "gates",
                expected: "at least one, on weights that are given",
                found: format!("{} sets", sets.len()),
            });
        };
        let mut parameters: BTreeMap<String, Gated> = BTreeMap::new();
        let mut first = 0;
        for set in &sets {
            for part in set.parts() {
                let gated = match parameters.entry(part.path.clone()) {
                    std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                    std::collections::btree_map::Entry::Vacant(slot) => {
                        slot.insert(gated(catalogue, &weights, &part.path, &device)?)
                    }
                };
                if part.grouping.shape() != gated.shape {
                    return Err(Error::Shape {
                        parameter: part.path.clone(),
                        expected: format!("groups of {:?}", gated.shape),
                        found: format!("groups of {:?}", part.grouping.shape()),
                    });
                }
                let known = gated.groupings.iter().position(|g| *g == part.grouping);
                match known {
                    Some(at) => gated.firsts[at].push(first),
                    None => {
                        gated.groupings.push(part.grouping.clone());
                        gated.firsts.push(vec![first]);
                    }
                }
            }
            first += set.gates();
        }
        Ok(Gates {
            scores: GateScores {
                provenance: Provenance {
                    kind: self.kind,
                    loss: TokenSum::NAME.into(),
                    unit: PerToken::NAME.into(),
                    reduction: GroupReduction::Sum,
                    model,
                    steps: None,
                    seeds: BTreeSet::new(),
                },
                sets,
                limit: self.rows,
                tasks: BTreeMap::new(),
            },
            parameters,
            device,
            pending: None,
        })
    }
}

fn gated(
    catalogue: &Catalogue,
    weights: &BTreeMap<String, Tensor<1>>,
    path: &str,
    device: &Device,
) -> Result<Gated> {
    let shape = catalogue.require(path)?.shape().to_vec();
    let weights = weights.get(path).ok_or_else(|| Error::UnknownParameter {
        parameter: path.into(),
        known: list(weights.keys()),
    })?;
    let [first, others] = sides(&shape);
    let found = (weights.dims(), weights.device());
    if found != ([first * others], device.clone()) {
        return Err(Error::Shape {
            parameter: path.into(),
            expected: format!("{} weights on {device:?}", first * others),
            found: format!("{:?} on {:?}", found.0, found.1),
        });
    }
    Ok(Gated {
        weights: weights.clone().reshape([first, others]),
        shape,
        groupings: Vec::new(),
        firsts: Vec::new(),
    })
}

/// Handles to the weights at some paths.
struct Flat<'a> {
    wanted: BTreeSet<&'a str>,
    found: BTreeMap<String, Tensor<1>>,
}

impl PlaceVisitor for Flat<'_> {
    type Error = Error;

    fn visit<const D: usize>(&mut self, place: Place, param: &Param<Tensor<D>>) -> Result<()> {
        if self.wanted.contains(&*place.path) {
            let elements = place.shape.iter().product::<usize>();
            let weights = param.val().without_autodiff().reshape([elements]);
            self.found.insert(place.path, weights);
        }
        Ok(())
    }
}
