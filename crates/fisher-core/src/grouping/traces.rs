//! Traces: sums that span several parameters, over whole layers and whole attention heads.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::groups::Grouping;
use super::heads::HeadLayout;
use super::margins::Margins;
use super::scheme::{GroupReduction, Scheme};
use crate::error::Result;
use crate::model::Catalogue;

/// Layers and attention heads as wholes.
///
/// The error bar of a sum over parameters does not follow from the error bars of its parts, which
/// vary together. So the contributions of each sample are summed first, over the whole layer or
/// the whole head, and the sums are accumulated. They are traces of the diagonal Fisher: sums,
/// whatever the statistics' [`GroupReduction`] is.
///
/// A layer is everything under one numbered path, such as `decoder.layers.3`; outside of those it
/// is the module that holds the parameters, such as `embedding`. A head is its slices of Q, K, V
/// and O; a key/value head that several query heads share counts to each of them in equal parts, so
/// that heads add up to what attention has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    layers: Vec<String>,
    heads: Vec<HeadKey>,
    /// Path of a parameter to its layer.
    layer_of: BTreeMap<String, usize>,
    /// Path of a parameter to its slices: the grouping, and the first of the heads it feeds.
    slices: BTreeMap<String, Vec<HeadSlices>>,
}

/// One attention head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadKey {
    /// The path of the attention layer.
    pub attention: String,
    /// The number of the query head.
    pub head: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HeadSlices {
    grouping: Grouping,
    first: usize,
    /// Query heads per group: more than one where key/value heads are shared.
    shared: usize,
}

impl Totals {
    pub(crate) fn of(catalogue: &Catalogue, heads: &HeadLayout) -> Result<Self> {
        let mut layers = Vec::new();
        let mut layer_of = BTreeMap::new();
        for (index, (layer, parameters)) in catalogue.layers().into_iter().enumerate() {
            layers.push(layer);
            layer_of.extend(parameters.into_iter().map(|p| (p.path().to_owned(), index)));
        }

        let mut keys = Vec::new();
        let mut slices: BTreeMap<String, Vec<HeadSlices>> = BTreeMap::new();
        for attention in heads.attention() {
            let parameters = attention.paths().filter_map(|path| catalogue.get(path));
            let parameters: Vec<_> = parameters.collect();
            if parameters.is_empty() {
                continue;
            }
            let first = keys.len();
            keys.extend((0..attention.heads()).map(|head| HeadKey {
                attention: attention.name().into(),
                head,
            }));
            for parameter in parameters {
                for grouping in Grouping::of(parameter, &Scheme::Head, heads)? {
                    let shared = attention.heads() / grouping.groups();
                    let of = slices.entry(parameter.path().into()).or_default();
                    of.push(HeadSlices {
                        grouping,
                        first,
                        shared,
                    });
                }
            }
        }
        Ok(Self {
            layers,
            heads: keys,
            layer_of,
            slices,
        })
    }

    /// Names of the layers, in order.
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// The layer that the parameter at `path` belongs to.
    pub fn layer_of(&self, path: &str) -> Option<&str> {
        self.layer_of.get(path).map(|&layer| &*self.layers[layer])
    }

    /// The heads, in order.
    pub fn heads(&self) -> &[HeadKey] {
        &self.heads
    }

    /// Leave all heads out where some share key/value heads; whether that is so.
    pub(crate) fn leave_out_shared(&mut self) -> bool {
        let shared = self.slices.values().flatten().any(|of| of.shared > 1);
        if shared {
            self.heads.clear();
            self.slices.clear();
        }
        shared
    }

    /// The number of layers and heads.
    pub(crate) fn values(&self) -> usize {
        self.layers.len() + self.heads.len()
    }

    /// Elements of every layer and of every head, given the shape of every parameter. Those of shared
    /// key/value heads are counted in equal parts.
    pub(crate) fn elements<'a>(&self, shape: impl Fn(&str) -> &'a [usize]) -> [Vec<f64>; 2] {
        let mut elements = [&self.layers[..], &[]].map(|l| vec![0.0; l.len()]);
        elements[1] = vec![0.0; self.heads.len()];
        for (path, layer) in &self.layer_of {
            elements[0][*layer] += shape(path).iter().product::<usize>() as f64;
        }
        for slices in self.slices.values().flatten() {
            for (group, size) in slices.grouping.sizes().into_iter().enumerate() {
                let heads = slices.first + group * slices.shared;
                for head in &mut elements[1][heads..heads + slices.shared] {
                    *head += size as f64 / slices.shared as f64;
                }
            }
        }
        elements
    }

    /// The head slices of a parameter.
    pub(crate) fn groupings(&self, path: &str) -> impl Iterator<Item = &Grouping> {
        let slices = self.slices.get(path).into_iter().flatten();
        slices.map(|slices| &slices.grouping)
    }

    /// Whether parameters, given by path and shape, and totals fit together: for what comes from a
    /// file.
    pub(crate) fn check(&self, shapes: &BTreeMap<&str, &[usize]>) -> Result<(), String> {
        let shape = |path: &str| shapes.get(path).copied();
        let covered: BTreeSet<usize> = self.layer_of.values().copied().collect();
        let every_layer = covered.into_iter().eq(0..self.layers.len());
        let every_parameter = self.layer_of.keys().eq(shapes.keys());

        // Each attention layer's slices have its width, and the layers lie end to end.
        let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
        for (path, slices) in self
            .slices
            .iter()
            .flat_map(|(p, all)| all.iter().map(move |s| (p, s)))
        {
            let width = slices.grouping.groups().checked_mul(slices.shared);
            let fits = shape(path) == Some(slices.grouping.shape());
            let width = width.filter(|&width| fits && width > 0);
            let width =
                width.ok_or_else(|| format!("the heads of `{path}` do not fit its shape"))?;
            if *widths.entry(slices.first).or_insert(width) != width {
                return Err(format!(
                    "`{path}` has another number of heads than its layer"
                ));
            }
        }
        let mut end = Some(0usize);
        for (&first, &width) in &widths {
            end = end
                .filter(|&end| end == first)
                .and_then(|end| end.checked_add(width));
        }
        if every_layer && every_parameter && end == Some(self.heads.len()) {
            Ok(())
        } else {
            Err("the totals do not cover the layers and heads they name".into())
        }
    }
}

/// The sums of one batch, filled parameter by parameter.
#[derive(Debug, Clone)]
pub(crate) struct BatchTotals {
    layers: Vec<Option<Tensor<2>>>,
    /// By the first head of their attention layer.
    heads: BTreeMap<usize, Tensor<2>>,
}

impl BatchTotals {
    pub(crate) fn new(totals: &Totals) -> Self {
        Self {
            layers: vec![None; totals.layers.len()],
            heads: BTreeMap::new(),
        }
    }

    /// Take in one parameter: `[samples, 1]` row sums, and sums over each of its
    /// [`Totals::groupings`].
    pub(crate) fn add_sums(
        &mut self,
        totals: &Totals,
        path: &str,
        sum: Tensor<2>,
        heads: Vec<Tensor<2>>,
    ) {
        self.add_layer(totals, path, sum);
        let slices = totals.slices.get(path).into_iter().flatten();
        for (slices, sums) in slices.zip(heads) {
            self.add_heads(slices, sums);
        }
    }

    /// Take in one parameter by sums over one of its sides; `None` where they do not tell the
    /// heads.
    pub(crate) fn add_margins(
        &mut self,
        totals: &Totals,
        path: &str,
        margins: &Margins,
        sum: Tensor<2>,
    ) -> Option<()> {
        let dtype = sum.dtype();
        self.add_layer(totals, path, sum);
        for slices in totals.slices.get(path).into_iter().flatten() {
            let grouping = &slices.grouping;
            let sums = grouping.reduce_margins(margins, GroupReduction::Sum)?;
            self.add_heads(slices, sums.cast(dtype));
        }
        Some(())
    }

    fn add_layer(&mut self, totals: &Totals, path: &str, sum: Tensor<2>) {
        if let Some(&layer) = totals.layer_of.get(path) {
            let slot = &mut self.layers[layer];
            *slot = Some(match slot.take() {
                Some(total) => total + sum,
                None => sum,
            });
        }
    }

    fn add_heads(&mut self, slices: &HeadSlices, sums: Tensor<2>) {
        let [samples, groups] = sums.dims();
        // Each shared kv head in equal parts to its query heads, which are neighbours.
        let sums = sums
            .div_scalar(slices.shared as f64)
            .reshape([samples, groups, 1])
            .repeat_dim(2, slices.shared)
            .reshape([samples, groups * slices.shared]);
        let total = match self.heads.remove(&slices.first) {
            Some(total) => total + sums,
            None => sums,
        };
        self.heads.insert(slices.first, total);
    }

    /// Of layers and then of heads, `[samples, layers + heads]`.
    pub(crate) fn finish(self) -> Tensor<2> {
        let parts = self.layers.into_iter().flatten();
        Tensor::cat(parts.chain(self.heads.into_values()).collect(), 1)
    }
}
