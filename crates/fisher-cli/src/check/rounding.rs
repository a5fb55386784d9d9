//! Whether gradients bear that weights are rounded.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use fisher_core::gradient::GradientBatch;
use fisher_core::model::{Catalogue, PathMapper, map_paths};
use fisher_core::read;
use fisher_train::capture::PerSample;

use super::finding::{Finding, Judged};
use crate::measure::Result;
use crate::models::{Sequence, Sequences, Transformer};

/// How far the gradient of a sample moves when the weights are rounded to a type.
///
/// # Errors
/// What the library refused.
pub(super) fn rounding(
    model: &Transformer,
    (task, sample): (&str, &Sequence),
    device: &Device,
) -> Result<Vec<Finding>> {
    let batch = Sequences::new(std::slice::from_ref(sample), device);
    let gradient = |model: &Transformer| -> Result<GradientBatch> {
        let catalogue = Catalogue::of(model)?;
        let paths = catalogue.parameters().iter().map(|p| p.path());
        Ok(PerSample::new(model, paths)?.gradient(&batch, 0)?.gradients)
    };
    let before = gradient(model)?;
    let mut findings = Vec::new();
    for (test, name, dtype) in [
        ("weights as bfloat16", "bfloat16", DType::BF16),
        ("weights as float16", "float16", DType::F16),
    ] {
        let after = gradient(&map_paths(model.clone(), &mut Cast(dtype)))?;
        let off = distance(&before, &after)?;
        let named = format!("sample `{}` of task `{task}`", sample.id);
        let said = if off == 0.0 {
            format!(
                "the gradient of {named}, in float32, stays as it is when weights are rounded to {name}"
            )
        } else {
            format!(
                "the gradient of {named} moves by this part of its norm when weights are rounded to {name}, arithmetic still in float32"
            )
        };
        findings.push(Finding::bounded(test, [off, 0.25], Judged::Warning, said));
    }
    Ok(findings)
}

/// The distance of two gradients, as a part of the norm of the first.
fn distance(before: &GradientBatch, after: &GradientBatch) -> Result<f64> {
    let (mut distance, mut size) = (0.0, 0.0);
    for (path, own) in before.iter() {
        let Some(other) = after.get(path) else {
            continue;
        };
        let [own, other] = [read(own.to_full())?, read(other.to_full())?];
        size += own.iter().map(|g| g * g).sum::<f64>();
        let pairs = own.iter().zip(&other);
        distance += pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    }
    Ok(if distance > 0.0 {
        (distance / size).sqrt()
    } else {
        0.0
    })
}

/// Rounds weights to a type and back.
struct Cast(DType);

impl PathMapper for Cast {
    fn map<const D: usize>(&mut self, _path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            let tracked = tensor.is_require_grad();
            let device = tensor.device();
            let data = tensor.to_data();
            let own = data.dtype();
            let data = data.convert_dtype(self.0).convert_dtype(own);
            Tensor::<D>::from_data(data, (&device, own))
                .detach()
                .set_require_grad(tracked)
        })
    }
}
