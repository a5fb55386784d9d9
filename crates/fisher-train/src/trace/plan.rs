//! How the per-sample gradients of a parameter follow from a trace: where its gradient sums over the samples,
//! the sum is left out.

use burn::backend::capture::TensorId;

use super::graph::Graph;
use super::recipe::Recipe;

impl Graph<'_> {
    /// How to get the per-sample gradients whose sum is `gradient`; or why there is no way.
    pub(crate) fn recipe(&self, gradient: TensorId) -> Result<Recipe, String> {
        let mut uses = Vec::new();
        if self.uses(gradient, false, &mut uses).is_some() {
            return Ok(Recipe::Uses(uses));
        }
        self.tail(gradient).map(Recipe::Tail)
    }
}
