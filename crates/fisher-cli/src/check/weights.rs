//! Weights that are no numbers.

use burn::module::Module;
use burn::tensor::TensorData;
use fisher_core::model::for_each_weight;

use super::finding::{Finding, Judged};
use crate::measure::Result;
use crate::models::Naming;

/// Tensors that are named.
const NAMED: usize = 8;

/// Look at every weight.
///
/// # Errors
/// When the device does not give them.
pub(super) fn weights<M: Module>(model: &M, naming: &Naming) -> Result<Vec<Finding>> {
    let (mut tensors, mut elements) = (0, 0);
    let (mut broken, mut empty) = (Vec::new(), Vec::new());
    for_each_weight(model, |path, data: TensorData| {
        let name = naming.get(path).map_or(path, |named| &named.name);
        let (mut nan, mut infinite, mut zero) = (0, 0, true);
        for weight in data.iter::<f64>() {
            nan += usize::from(weight.is_nan());
            infinite += usize::from(weight.is_infinite());
            zero &= weight == 0.0;
        }
        tensors += 1;
        elements += data.num_elements();
        if nan + infinite > 0 {
            broken.push(format!("{name} ({nan} NaN, {infinite} infinite)"));
        }
        if zero && data.shape().num_dims() > 1 {
            empty.push(name.to_owned());
        }
    })?;
    let all = format!("all {elements} weights of {tensors} tensors");
    let mut findings = vec![match broken.len() {
        0 => Finding::new("weights", Judged::Fine, format!("{all} are finite")),
        n => {
            let said = format!(
                "of {all}, those of {n} are not all finite: {}",
                few(&broken)
            );
            Finding::new("weights", Judged::Wrong, said)
        }
    }];
    if !empty.is_empty() {
        let said = format!("{} of zeros alone: {}", matrices(empty.len()), few(&empty));
        findings.push(Finding::new("weights", Judged::Warning, said));
    }
    Ok(findings)
}

fn matrices(count: usize) -> String {
    match count {
        1 => "a matrix is".into(),
        n => format!("{n} matrices are"),
    }
}

/// The first, and how many more there are.
pub(super) fn few(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
