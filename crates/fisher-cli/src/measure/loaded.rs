//! How the model is loaded, on the command line.

use std::path::PathBuf;

use clap::Args;

use crate::models::{Adapter, Loading, WeightType};

/// How the model is loaded.
#[derive(Args, Debug, Clone, Default)]
pub struct LoadArgs {
    /// Folder of a LoRA on --model, as PEFT saves it: adapter_config.json and adapter_model.safetensors.
    /// What is measured are its factors A and B, the model's own weights are not
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Take the adapter into the weights, W + s B A, and measure those
    #[arg(long, requires = "adapter")]
    pub merge_adapter: bool,
    /// The type of the weights in memory, and of what is computed with them
    #[arg(long, value_enum, value_name = "TYPE", default_value = "float32")]
    pub dtype: WeightType,
}

impl LoadArgs {
    /// What they ask for.
    pub fn loading(&self) -> Loading {
        let adapter = self.adapter.clone().map(|folder| Adapter {
            folder,
            merged: self.merge_adapter,
        });
        Loading {
            adapter,
            weights: self.dtype,
        }
    }
}
