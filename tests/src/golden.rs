//! Golden cases: tiny checkpoints and their numbers in float64.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{ContributionUnit, Gradient, GradientBatch};
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig};
use safetensors::SafeTensors;
use serde_json::Value;

/// A golden case.
pub struct Golden {
    name: &'static str,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    expected: Value,
    config: Value,
}

/// The cases.
pub const CASES: [&str; 2] = ["llama-gqa", "gpt2-fused"];
/// Their tasks.
pub const TASKS: [&str; 2] = ["alpha", "beta_two"];

impl Golden {
    /// Read a case.
    ///
    /// # Panics
    /// When its files are not as `regenerate.py` writes them.
    pub fn load(name: &'static str) -> Self {
        let read = |file: &str| std::fs::read(folder(name).join(file)).expect("a golden file");
        let json = |file: &str| serde_json::from_slice(&read(file)).expect("JSON");
        let bytes = read("expected.safetensors");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensor = |(name, view): (String, safetensors::tensor::TensorView)| {
            let values = view.data().chunks_exact(8);
            let values = values.map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
            (name, (view.shape().to_vec(), values.collect()))
        };
        Self {
            name,
            tensors: file.tensors().into_iter().map(tensor).collect(),
            expected: json("expected.json"),
            config: json("config.json"),
        }
    }

    /// Values of a tensor of `expected.safetensors`.
    pub fn values(&self, name: &str) -> &[f64] {
        &self.tensors[name].1
    }

    /// Shape and values of a tensor of `expected.safetensors`.
    pub fn tensor(&self, name: &str) -> (&[usize], &[f64]) {
        let (shape, values) = &self.tensors[name];
        (shape, values)
    }

    /// The folder of the case.
    pub fn folder(&self) -> PathBuf {
        folder(self.name)
    }

    /// Names of the tensors that begin with `prefix`, without it.
    pub fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tensors
            .keys()
            .filter_map(move |name| name.strip_prefix(prefix))
    }

    /// The samples of a task.
    pub fn samples(&self, task: &str) -> Vec<Sample> {
        let task = &self.expected["tasks"][task];
        let ids = task["ids"].as_array().expect("ids").iter();
        let tokens = task["tokens"].as_array().expect("tokens").iter();
        ids.zip(tokens)
            .map(|(id, t)| Sample::new(id.to_string(), t.as_u64().expect("tokens")))
            .collect::<Result<_, _>>()
            .expect("active tokens")
    }

    /// What `expected.json` says at a pointer such as `/overlap/global@0.5/all/n`.
    pub fn expected(&self, pointer: &str) -> &Value {
        let found = self.expected.pointer(pointer);
        found.unwrap_or_else(|| panic!("{pointer} is not in expected.json"))
    }

    /// `expected-{topic}.json`, which `oracles/{topic}.py` writes.
    ///
    /// # Panics
    /// When there is none.
    pub fn oracle(&self, topic: &str) -> Value {
        let path = self.folder().join(format!("expected-{topic}.json"));
        let bytes = std::fs::read(path).expect("a golden file");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// The checkpoint's weights, by name.
    pub fn weights(&self) -> BTreeMap<String, Vec<f64>> {
        let bytes = std::fs::read(folder(self.name).join("model.safetensors"));
        let bytes = bytes.expect("a golden file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let weights = |(name, view): (String, safetensors::tensor::TensorView)| {
            let values = view.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
            (name, values.map(f64::from).collect())
        };
        file.tensors().into_iter().map(weights).collect()
    }

    /// The parameters, in the checkpoint's orientation.
    pub fn catalogue(&self) -> Catalogue {
        let gpt2 = self.name.starts_with("gpt2");
        let prefix = "alpha/mean/";
        let parameters = self.names(prefix).map(|path| {
            let shape = self.tensors[&format!("{prefix}{path}")].0.clone();
            let role = match () {
                () if shape.len() == 1 => Role::Vector,
                () if ["embed_tokens", "wte", "wpe"]
                    .iter()
                    .any(|e| path.contains(e)) =>
                {
                    Role::Embedding
                }
                () => Role::Matrix,
            };
            let orientation = if gpt2 {
                Orientation::InputOutput
            } else {
                Orientation::OutputInput
            };
            Parameter::new(path, shape, role, orientation)
        });
        Catalogue::new(parameters.collect()).expect("parameters")
    }

    /// The head layout, recognized by name.
    pub fn heads(&self) -> HeadLayout {
        let number = |key: &str| self.config[key].as_u64().map(|n| n as usize);
        let heads = number("num_attention_heads")
            .or(number("n_head"))
            .expect("heads");
        let config = AttentionConfig::new(heads)
            .with_kv_heads(number("num_key_value_heads"))
            .with_d_k(number("head_dim"))
            .with_d_v(number("head_dim"));
        HeadLayout::recognize(&self.catalogue(), &config).expect("a layout")
    }

    /// Empty statistics for the case.
    pub fn statistics<C: ContributionUnit>(
        &self,
        config: &StatisticsConfig,
        device: &Device,
    ) -> Statistics<C> {
        config
            .init_for(&self.catalogue(), &self.heads(), self.name.into(), device)
            .expect("statistics")
    }

    /// A store of both tasks' gradients, filled in batches of `size`.
    pub fn store(
        &self,
        config: &GradientStoreConfig,
        size: usize,
        device: &Device,
    ) -> GradientStore {
        let store = config.init_for(&self.catalogue(), self.name.into());
        let mut store = store.expect("a store");
        for task in TASKS {
            let count = self.samples(task).len();
            for start in (0..count).step_by(size) {
                let batch = self.batch(task, start..count.min(start + size), device);
                store.push(task, &batch).expect("gradients");
            }
        }
        store
    }

    /// The gradients of samples `range` of a task, as one batch in float32.
    pub fn batch(
        &self,
        task: &str,
        range: std::ops::Range<usize>,
        device: &Device,
    ) -> GradientBatch {
        let samples = self.samples(task)[range].to_vec();
        let mut batch = GradientBatch::new(samples.clone());
        for parameter in self.catalogue().parameters() {
            let rows = samples.iter().flat_map(|sample| {
                let name = format!("{task}/gradient/{}/{}", sample.id(), parameter.path());
                self.values(&name).iter().map(|&g| g as f32)
            });
            let data = TensorData::new(rows.collect(), [samples.len(), parameter.elements()]);
            let tensor = Tensor::<2>::from_data(data, device);
            batch.insert(parameter.path(), Gradient::token_sum(tensor));
        }
        batch
    }
}

/// The folder of a case. Where the package lies is asked at run time: a target folder that several
/// checkouts share may hold this code compiled in another.
pub fn folder(case: &str) -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    let here = here.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(here).join("golden").join(case)
}
