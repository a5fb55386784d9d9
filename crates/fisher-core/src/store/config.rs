//! The configuration of a store.

use std::path::PathBuf;

use burn::config::Config;
use burn::module::{Module, ParamGroup};

use super::gradients::GradientStore;
use super::index::{Header, Stored};
use super::precision::Precision;
use super::shards::Shards;
use crate::error::{Result, check_argument};
use crate::grouping::{AttentionConfig, HeadLayout};
use crate::kind::FisherKind;
use crate::model::{Catalogue, hash_weights};

/// Configuration of a [`GradientStore`].
///
/// A sample takes four bytes (two in half precision) for every element of the parameters that are
/// kept: 64 samples of the attention of a 7-billion-parameter model take half a terabyte, so choose
/// parameters with `only`, such as [`HeadLayout::group`](crate::grouping::HeadLayout::group).
#[derive(Config, Debug)]
pub struct GradientStoreConfig {
    /// Bytes of gradients to hold in memory. Taking in a batch needs some 20 MB besides, whatever
    /// its size.
    pub memory: usize,
    /// Where gradients go on disk. With a folder every sample is written there, so that a
    /// collection can be resumed, and as many as `memory` allows are held in memory besides.
    /// Without one, samples beyond `memory` are an error.
    pub folder: Option<PathBuf>,
    /// The type to keep them in.
    #[config(default = "Precision::Float32")]
    pub precision: Precision,
    /// Which Fisher the gradients are of: that of the statistics they are collected with.
    #[config(default = "FisherKind::Empirical")]
    pub kind: FisherKind,
    /// The heads of the model's attention, for comparisons by head, which are then found by the names
    /// of its projections; no heads when absent.
    pub attention: Option<AttentionConfig>,
    /// The parameters to keep; all trainable ones when absent.
    pub only: Option<ParamGroup>,
    /// Bytes after which a new file is begun.
    #[config(default = 1073741824)]
    pub shard: u64,
}

impl GradientStoreConfig {
    /// A store for gradients of `model`, with what its folder already has.
    ///
    /// # Errors
    /// [`Error::NoParameters`](crate::Error::NoParameters) when no trainable parameter is to be
    /// kept, [`Error::HeadLayout`](crate::Error::HeadLayout) when attention is configured and not
    /// recognized, [`Error::Argument`](crate::Error::Argument) for files of 0 bytes; with a folder,
    /// [`Error::Io`](crate::Error::Io),
    /// [`Error::Format`](crate::Error::Format) or [`Error::Version`](crate::Error::Version) when it
    /// cannot be used, [`Error::OtherStore`](crate::Error::OtherStore) when it is of other weights,
    /// parameters, kind or precision, and [`Error::StoreLocked`](crate::Error::StoreLocked) when
    /// another program writes to it.
    pub fn init<M: Module>(&self, model: &M) -> Result<GradientStore> {
        let device = model.devices().first().cloned().unwrap_or_default();
        let store = self.init_for(&Catalogue::of(model)?, hash_weights(model)?)?;
        Ok(store.with_device(&device))
    }

    /// A store for gradients of the parameters in `catalogue`. `model` identifies the weights, as
    /// [`hash_weights`] does.
    ///
    /// # Errors
    /// As [`GradientStoreConfig::init`].
    pub fn init_for(&self, catalogue: &Catalogue, model: String) -> Result<GradientStore> {
        check_argument(self.shard > 0, "shard", "above 0", self.shard)?;
        let heads = match &self.attention {
            Some(attention) => HeadLayout::recognize(catalogue, attention)?,
            None => HeadLayout::none(),
        };
        let catalogue = match &self.only {
            Some(group) => catalogue.filter(group)?,
            None => catalogue.clone(),
        };
        let stored = catalogue.parameters().iter().map(|p| Stored {
            path: p.path().into(),
            shape: p.shape().to_vec(),
            role: p.role(),
            orientation: p.orientation(),
        });
        let header = Header::new(model, self.kind, self.precision, stored.collect());
        let (shards, entries) = match &self.folder {
            Some(folder) => {
                let (shards, entries) = Shards::write(folder, &header, self.shard)?;
                (Some(shards), entries)
            }
            None => (None, Vec::new()),
        };
        let store = GradientStore::new(header, self.memory, shards, entries)?;
        Ok(store.with_heads(heads))
    }
}
