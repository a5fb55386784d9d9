//! The gates of a model: its layers, heads and channels.

use super::set::{GateKind, GatePart, GateSet};
use crate::error::Result;
use crate::grouping::{Attention, Grouping, HeadLayout, Scheme};
use crate::model::{Catalogue, Parameter, Role};

impl GateSet {
    /// A gate on each layer: all trainable weights under one numbered path
    /// ([`Catalogue::layers`]).
    ///
    /// # Errors
    /// [`Error::Scheme`](crate::Error::Scheme) for a parameter without elements.
    pub fn layers(catalogue: &Catalogue) -> Result<Vec<Self>> {
        let whole = |parameter: &&Parameter| part(parameter, &Scheme::Tensor);
        let layer = |(name, parameters): (String, Vec<&Parameter>)| {
            let parts = parameters.iter().map(whole).collect::<Result<_>>()?;
            Self::new(GateKind::Layer, name, parts)
        };
        catalogue.layers().into_iter().map(layer).collect()
    }

    /// A gate on what each attention head puts out: its slice of the output projection, and of the adapter's factor
    /// that has heads. Of a projection that is frozen and has no adapter that trains there is none.
    ///
    /// # Errors
    /// [`Error::Scheme`](crate::Error::Scheme)
    pub fn heads(catalogue: &Catalogue, heads: &HeadLayout) -> Result<Vec<Self>> {
        let of = |attention| {
            let parts = blocks(catalogue, heads, attention, "head.O")?;
            gates(GateKind::Head, attention, parts)
        };
        let sets = heads.attention().iter().map(of);
        Ok(sets
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// A gate on what each key/value head puts out that several query heads read: its slice of V and of the bias
    /// beside it. Attention where no head is shared has none: its heads' gates say the same.
    ///
    /// # Errors
    /// [`Error::Scheme`](crate::Error::Scheme)
    pub fn kv_heads(catalogue: &Catalogue, heads: &HeadLayout) -> Result<Vec<Self>> {
        let shared = heads.attention().iter();
        let shared = shared.filter(|attention| attention.kv_heads() < attention.heads());
        let of = |attention| {
            let mut parts = blocks(catalogue, heads, attention, "head.V")?;
            let biases: Vec<GatePart> = parts
                .iter()
                .filter_map(|part| bias_beside(catalogue, part))
                .filter(|bias| parts.iter().all(|part| part.path != bias.path))
                .collect();
            parts.extend(biases);
            gates(GateKind::KvHead, attention, parts)
        };
        let sets = shared.map(of);
        Ok(sets
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// A gate on each output channel, with its bias, of every matrix and kernel that has no heads. Where nothing tells
    /// the output channels of a transposed convolution they are on its inputs, as in
    /// [`Scheme::default_of`].
    ///
    /// # Errors
    /// [`Error::Scheme`](crate::Error::Scheme)
    pub fn channels(catalogue: &Catalogue, heads: &HeadLayout) -> Result<Vec<Self>> {
        let mut sets = Vec::new();
        for parameter in catalogue.parameters() {
            let scheme = Scheme::default_of(parameter, heads);
            let bias = match scheme {
                Scheme::OutputChannel => true,
                Scheme::InputChannel => false,
                _ => continue,
            };
            let weight = part(parameter, &scheme)?;
            let bias = bias_beside(catalogue, &weight).filter(|_| bias);
            let parts = std::iter::once(weight).chain(bias).collect();
            sets.push(Self::new(GateKind::Channel, parameter.path(), parts)?);
        }
        Ok(sets)
    }

    /// A gate on each group of a parameter, for each grouping that `scheme` means.
    ///
    /// # Errors
    /// [`Error::Scheme`](crate::Error::Scheme) when the scheme does not fit the parameter.
    pub fn of(parameter: &Parameter, scheme: &Scheme, heads: &HeadLayout) -> Result<Vec<Self>> {
        let groupings = Grouping::of(parameter, scheme, heads)?.into_iter();
        groupings
            .map(|grouping| {
                let name = format!("{}|{}", parameter.path(), grouping.label());
                let path = parameter.path().to_owned();
                Self::new(GateKind::Custom, name, vec![GatePart { path, grouping }])
            })
            .collect()
    }
}

fn gates(kind: GateKind, attention: &Attention, parts: Vec<GatePart>) -> Result<Option<GateSet>> {
    if parts.is_empty() {
        return Ok(None);
    }
    GateSet::new(kind, attention.name(), parts).map(Some)
}

/// The slices of one block of an attention layer, in all that trains of it.
fn blocks(
    catalogue: &Catalogue,
    heads: &HeadLayout,
    attention: &Attention,
    label: &str,
) -> Result<Vec<GatePart>> {
    let mut parts = Vec::new();
    for path in attention.paths() {
        let Some(parameter) = catalogue.get(path) else {
            continue; // frozen
        };
        let groupings = Grouping::of(parameter, &Scheme::Head, heads)?.into_iter();
        let of_block = groupings.filter(|grouping| grouping.label() == label);
        parts.extend(of_block.map(|grouping| GatePart {
            path: path.into(),
            grouping,
        }));
    }
    Ok(parts)
}

/// A parameter under a scheme that means one grouping.
fn part(parameter: &Parameter, scheme: &Scheme) -> Result<GatePart> {
    let mut groupings = Grouping::of(parameter, scheme, &HeadLayout::none())?;
    Ok(GatePart {
        path: parameter.path().into(),
        grouping: groupings.swap_remove(0),
    })
}

/// The bias of the outputs that `weight` is sliced by, if it has one that trains.
fn bias_beside(catalogue: &Catalogue, weight: &GatePart) -> Option<GatePart> {
    let path = format!("{}bias", weight.path.strip_suffix("weight")?);
    let bias = catalogue.get(&path).filter(|p| p.role() == Role::Vector)?;
    let grouping = weight.grouping.of_bias(bias.shape())?;
    Some(GatePart { path, grouping })
}
