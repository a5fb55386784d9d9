//! The weights of a module: one after the other, and all in one hash.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use sha2::{Digest, Sha256};

use crate::container::hex;
use crate::error::{Error, Result};

/// SHA-256 over path, shape, type and values of all float parameters of a module, frozen or not,
/// in the order of their paths; in hexadecimal.
///
/// Equal weights hash equally wherever they lie, and so do a model and its
/// [`valid`](Module::valid) copy, between two steps of training too: see [`for_each_weight`]. Reads
/// every parameter from the device once.
///
/// # Errors
/// [`Error::Device`] when the device does not give the values.
pub fn hash_weights<M: Module>(module: &M) -> Result<String> {
    let mut digests: Vec<(String, Vec<u8>)> = Vec::new();
    for_each_weight(module, |path, data| {
        let mut hash = Sha256::new();
        let (shape, dtype) = (data.shape().to_vec(), data.dtype());
        hash.update(format!("{path}\0{shape:?}\0{dtype:?}\0").as_bytes());
        hash.update(data.as_bytes());
        digests.push((path.to_owned(), hash.finalize().to_vec()));
    })?;
    digests.sort();
    let mut hash = Sha256::new();
    digests.iter().for_each(|(_, digest)| hash.update(digest));
    Ok(hex(&hash.finalize()))
}

/// Gives every float parameter of a module, trainable or not, by path and on the host.
///
/// Running statistics, such as a batch norm's, are those that the model computes with when it is
/// evaluated: Burn keeps them one update behind until [`valid`](Module::valid), or the next step of
/// training, asks for them. The last update is then taken in, in the module too.
///
/// # Errors
/// [`Error::Device`], naming the parameter, when the device does not give its values.
pub fn for_each_weight<M: Module>(module: &M, take: impl FnMut(&str, TensorData)) -> Result<()> {
    struct Reader<F> {
        names: Vec<String>,
        take: F,
        error: Option<Error>,
    }
    impl<F: FnMut(&str, TensorData)> ModuleVisitor for Reader<F> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.names.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.names.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.names.join(".");
            match param.val().try_to_data() {
                Ok(data) => (self.take)(&path, data),
                Err(error) => {
                    self.error = Some(Error::Device {
                        reason: format!("parameter `{path}`: {error}"),
                    });
                }
            }
        }
    }
    let mut reader = Reader {
        names: Vec::new(),
        take,
        error: None,
    };
    module.valid().visit(&mut reader);
    reader.error.map_or(Ok(()), Err)
}
