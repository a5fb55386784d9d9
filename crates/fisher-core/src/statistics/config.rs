//! What to accumulate: the configuration of statistics.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use burn::config::Config;
use burn::module::{Module, ParamGroup};
use burn::tensor::Device;

use super::accumulators::Statistics;
use super::plan::{ParameterPlan, Plan};
use crate::error::{Error, Result, list};
use crate::gradient::{ContributionUnit, GradientUnit, TokenSum};
use crate::grouping::{AttentionConfig, GroupReduction, Grouping, HeadLayout, Scheme, Totals};
use crate::kind::FisherKind;
use crate::model::{Catalogue, Parameter, hash_weights};
use crate::provenance::Provenance;

/// What to accumulate.
///
/// Every accumulator keeps a mean and a variance: 16 bytes an element. Elementwise statistics of
/// all parameters therefore take four times the memory of a float32 model for each task; grouped
/// ones take next to nothing.
#[derive(Config, Debug)]
pub struct StatisticsConfig {
    /// Accumulate every element of the parameters selected by `elementwise_only`.
    #[config(default = true)]
    pub elementwise: bool,
    /// The parameters to accumulate by element; all when absent.
    pub elementwise_only: Option<ParamGroup>,
    /// Keep the variance of elements as well as their mean. Without it elements have no error bars
    /// and take half the memory; groups, layers and heads always have theirs.
    #[config(default = true)]
    pub variance: bool,
    /// Accumulate groups.
    #[config(default = true)]
    pub grouped: bool,
    /// Schemes other than the default one; the first match counts.
    #[config(default = "Vec::new()")]
    pub schemes: Vec<(ParamGroup, Scheme)>,
    /// What a group's number stands for.
    #[config(default = "GroupReduction::Mean")]
    pub reduction: GroupReduction,
    /// The heads of the model's attention, which are then found by the names of its projections; no
    /// heads when absent.
    pub attention: Option<AttentionConfig>,
    /// Take sums of squares over groups from products of positions with positions where that is
    /// cheaper than the gradients themselves.
    #[config(default = true)]
    pub ghost: bool,
    /// Accumulate in compensated float32 also where the device has float64: for GPUs whose float64
    /// is slow.
    #[config(default = false)]
    pub compensated: bool,
    /// Which Fisher the gradients that will come are of. This is its name, and no more: how it is collected says
    /// `CollectorConfig::fisher` of `fisher-train`, and collection refuses losses of another kind.
    /// Gradients that are pushed by hand are taken at their word.
    #[config(default = "FisherKind::Empirical")]
    pub kind: FisherKind,
    /// The seed of the run, for the record.
    pub seed: Option<u64>,
}

impl StatisticsConfig {
    /// Empty statistics of all trainable parameters of `model`, on its device, per token.
    ///
    /// ```
    /// use fisher_core::grouping::AttentionConfig;
    /// use fisher_core::statistics::StatisticsConfig;
    /// # fn example(model: burn::nn::attention::MultiHeadAttention) -> fisher_core::Result<()> {
    /// let attention = AttentionConfig::new(8);
    /// let statistics = StatisticsConfig::new().with_attention(Some(attention)).init(&model)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoParameters`] when nothing is trainable or a pattern of the configuration matches
    /// nothing, [`Error::HeadLayout`] when attention is configured and projections are not
    /// recognized, [`Error::Scheme`] when a scheme does not fit, [`Error::Device`] when the weights
    /// cannot be read.
    pub fn init<M: Module>(&self, model: &M) -> Result<Statistics> {
        self.init_as(model)
    }

    /// The same, of contributions in another unit, such as [`Raw`](crate::gradient::Raw).
    ///
    /// # Errors
    /// As [`StatisticsConfig::init`].
    pub fn init_as<C: ContributionUnit, M: Module>(&self, model: &M) -> Result<Statistics<C>> {
        let heads = self.heads(&Catalogue::of(model)?)?;
        self.init_with_heads(model, &heads)
    }

    /// The same, with heads whose layout was made by hand.
    ///
    /// # Errors
    /// As [`StatisticsConfig::init`]; [`Error::HeadLayout`] when attention projections are not in a
    /// layout that is not empty.
    pub fn init_with_heads<C: ContributionUnit, M: Module>(
        &self,
        model: &M,
        heads: &HeadLayout,
    ) -> Result<Statistics<C>> {
        let device = model.devices().first().cloned().unwrap_or_default();
        self.init_for(&Catalogue::of(model)?, heads, hash_weights(model)?, &device)
    }

    /// Where the configured attention heads lie: nowhere, if none are configured.
    ///
    /// # Errors
    /// [`Error::HeadLayout`] when projections are not recognized.
    pub fn heads(&self, catalogue: &Catalogue) -> Result<HeadLayout> {
        match &self.attention {
            Some(attention) => HeadLayout::recognize(catalogue, attention),
            None => Ok(HeadLayout::none()),
        }
    }

    /// Empty statistics of the parameters in `catalogue`, for gradients that come from elsewhere
    /// or for a part of a model. `model` identifies the weights, as [`hash_weights`] does.
    ///
    /// # Errors
    /// As [`StatisticsConfig::init_with_heads`].
    pub fn init_for<C: ContributionUnit>(
        &self,
        catalogue: &Catalogue,
        heads: &HeadLayout,
        model: String,
        device: &Device,
    ) -> Result<Statistics<C>> {
        let unmentioned = heads.unmentioned(catalogue);
        if !heads.attention().is_empty() && !unmentioned.is_empty() {
            return Err(Error::HeadLayout {
                reason:
                    "the layout leaves out parameters that are named as attention projections, \
                         or lie in one; what belongs to no single head is given to \
                         `HeadLayout::with_headless`"
                        .into(),
                found: list(unmentioned),
            });
        }
        let groups = self.schemes.iter().map(|(group, _)| group);
        for group in groups.chain(&self.elementwise_only) {
            catalogue.filter(group)?; // a pattern that matches nothing is a mistake
        }
        let mut parameters = BTreeMap::new();
        for parameter in catalogue.parameters() {
            let plan = self.plan(parameter, heads)?;
            parameters.insert(parameter.path().to_owned(), plan);
        }
        Ok(Statistics {
            provenance: Provenance {
                kind: self.kind,
                loss: TokenSum::NAME.into(),
                unit: C::NAME.into(),
                reduction: self.reduction,
                model,
                steps: None,
                seeds: self.seed.into_iter().collect(),
            },
            plan: Plan {
                parameters,
                totals: Totals::of(catalogue, heads)?,
                compensated: self.compensated,
            },
            tasks: BTreeMap::new(),
            device: device.clone().without_autodiff(),
            ghost: self.ghost,
            pending: None,
            half: false,
            unit: PhantomData,
        })
    }

    fn plan(&self, parameter: &Parameter, heads: &HeadLayout) -> Result<ParameterPlan> {
        let matches = |group: &ParamGroup| parameter.matches(group);
        let scheme = self.schemes.iter().find(|(group, _)| matches(group));
        let scheme = match scheme {
            Some((_, scheme)) => scheme.clone(),
            None => Scheme::default_of(parameter, heads),
        };
        Ok(ParameterPlan {
            shape: parameter.shape().to_vec(),
            role: parameter.role(),
            elementwise: self.elementwise && self.elementwise_only.as_ref().is_none_or(matches),
            variance: self.variance,
            groupings: if self.grouped {
                Grouping::of(parameter, &scheme, heads)?
            } else {
                Vec::new()
            },
        })
    }
}
