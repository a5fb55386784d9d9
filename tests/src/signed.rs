//! Files of statistics and averages made by hand, with a right checksum.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A file, open for every change.
#[derive(Debug, Clone)]
pub struct Signed {
    key: String,
    /// The metadata, as JSON.
    pub about: Value,
    /// Type, shape and bytes by name.
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Signed {
    /// The file at `path`.
    ///
    /// # Panics
    /// When it is none.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
        let metadata = header.metadata().as_ref().expect("metadata");
        let (key, text) = metadata.iter().next().expect("metadata");
        let tensor = |(name, view): (String, TensorView)| {
            let bytes = view.data().to_vec();
            (name, (view.dtype(), view.shape().to_vec(), bytes))
        };
        Self {
            key: key.clone(),
            about: serde_json::from_str(text).expect("JSON"),
            tensors: file.tensors().into_iter().map(tensor).collect(),
        }
    }

    /// Write it to `path`, signed.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn write(&self, path: &Path) {
        let mut about = self.about.clone();
        let mut hash = Sha256::new();
        about["sha256"] = "".into();
        hash.update(about.to_string());
        for (name, (dtype, shape, bytes)) in &self.tensors {
            hash.update(serde_json::to_vec(&(name, dtype, shape)).expect("JSON"));
            hash.update(bytes);
        }
        let digest = hash.finalize();
        let digest: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        about["sha256"] = digest.into();
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (name, view.expect("a tensor"))
        });
        let metadata = Some([(self.key.clone(), about.to_string())].into());
        let bytes = safetensors::serialize(views, metadata).expect("safetensors");
        std::fs::write(path, bytes).expect("written");
    }
}
