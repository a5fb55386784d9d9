//! `--adapter` on the command line.

use std::path::PathBuf;

use clap::Args;

use crate::models::Adapter;

/// A low-rank adapter on the model.
#[derive(Args, Debug, Clone, Default)]
pub struct AdapterArgs {
    /// Folder of a LoRA on --model, as PEFT saves it: adapter_config.json and adapter_model.safetensors.
    /// What is measured are its factors A and B, the model's own weights are not
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Take the adapter into the weights, W + s B A, and measure those
    #[arg(long, requires = "adapter")]
    pub merge_adapter: bool,
}

impl AdapterArgs {
    /// The adapter, if there is one.
    pub fn adapter(&self) -> Option<Adapter> {
        let folder = self.adapter.clone()?;
        Some(Adapter {
            folder,
            merged: self.merge_adapter,
        })
    }
}
