//! The weights of a module: one after the other, and all in one hash.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use sha2::{Digest, Sha256};

use super::walk::{Place, PlaceVisitor, visit_places};
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
    struct Reader<F>(F);
    impl<F: FnMut(&str, TensorData)> PlaceVisitor for Reader<F> {
        type Error = Error;

        fn visit<const D: usize>(&mut self, place: Place, param: &Param<Tensor<D>>) -> Result<()> {
            let path = place.path;
            let data = param.val().try_to_data();
            let data = data.map_err(|e| Error::device(format!("parameter `{path}`: {e}")))?;
            (self.0)(&path, data);
            Ok(())
        }
    }
    visit_places(&module.valid(), &mut Reader(take))
}
