//! Taps: where a batch's per-sample gradients can be read after one backward pass.
//!
//! A tap is a tensor of zeros that is added to a layer's output and requires gradients: after the
//! backward pass its gradient is `δ = ∂L/∂y` at every sample and position. With the layer's input
//! that gives per-sample gradients in closed form: `g_i = Σ_t x_itᵀ δ_it` for a matrix.

use std::cell::RefCell;
use std::collections::HashSet;

use burn::module::ParamId;
use burn::tensor::{Gradients, Int, Tensor};

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What taps leave behind during one forward pass.
#[derive(Debug, Default)]
struct Recorder {
    /// Parameters that gradients are wanted of.
    wanted: HashSet<ParamId>,
    entries: Vec<Entry>,
}

/// One call of one layer.
pub(crate) struct Entry {
    /// The length of the output's first axis, which should be the samples.
    first: usize,
    delta: Delta,
    uses: Vec<(ParamId, Use)>,
}

/// Takes the tap's gradient, `[rows, outputs]`, the rows being samples × positions.
type Delta = Box<dyn FnOnce(&mut Gradients) -> Option<Tensor<2>>>;

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("first", &self.first)
            .field("uses", &self.uses)
            .finish_non_exhaustive()
    }
}

/// What a call of a layer was, and the gradient of its output.
#[derive(Debug)]
pub(crate) struct Tap {
    /// The length of the output's first axis, which should be the samples.
    pub(crate) first: usize,
    /// `[rows, outputs]`; `None` when the loss does not depend on it.
    pub(crate) delta: Option<Tensor<2>>,
    pub(crate) uses: Vec<(ParamId, Use)>,
}

impl Entry {
    pub(crate) fn take(self, gradients: &mut Gradients) -> Tap {
        Tap {
            first: self.first,
            delta: (self.delta)(gradients),
            uses: self.uses,
        }
    }
}

/// How a parameter takes part in a layer.
#[derive(Debug, Clone)]
pub(crate) enum Use {
    /// `y = x W` with this input, `[rows, inputs]`.
    Input(Tensor<2>),
    /// `y = x Wᵀ`, or a convolution by its patches, with this input.
    Transposed(Tensor<2>),
    /// `y = W[ids]`, ids of `[rows]`.
    Lookup(Tensor<1, Int>),
    /// `y = W ⊙ x` with this input, `[rows, elements]`.
    Scale(Tensor<2>),
    /// `y = .. + W`.
    Shift,
}

impl Use {
    /// The layer's input, where its values matter.
    pub(crate) fn input(&self) -> Option<&Tensor<2>> {
        match self {
            Self::Input(input) | Self::Transposed(input) | Self::Scale(input) => Some(input),
            Self::Lookup(_) | Self::Shift => None,
        }
    }
}

/// Run `forward` with taps recording for the parameters wanted.
pub(crate) fn record<T>(wanted: &HashSet<ParamId>, forward: impl FnOnce() -> T) -> (T, Vec<Entry>) {
    /// Puts back what was there, also when `forward` panics.
    struct Scope(Option<Recorder>);
    impl Drop for Scope {
        fn drop(&mut self) {
            RECORDER.with(|recorder| *recorder.borrow_mut() = self.0.take());
        }
    }
    let fresh = Recorder {
        wanted: wanted.clone(),
        entries: Vec::new(),
    };
    let outer = RECORDER.with(|recorder| recorder.borrow_mut().replace(fresh));
    let scope = Scope(outer);
    let output = forward();
    let entries = RECORDER.with(|recorder| recorder.borrow_mut().take());
    drop(scope);
    (
        output,
        entries.map(|recorder| recorder.entries).unwrap_or_default(),
    )
}

/// Whether a recorder listens for one of these parameters.
pub(crate) fn listens(parameters: &[Option<ParamId>]) -> bool {
    RECORDER.with(|recorder| {
        let recorder = recorder.borrow();
        let wants = |id: &ParamId| recorder.as_ref().is_some_and(|r| r.wanted.contains(id));
        parameters.iter().flatten().any(wants)
    })
}

/// Put a tap behind an output, and add the layer's `shift` to it, such as a bias: the tap is the
/// shift, laid out over all positions, so it costs no addition of its own. `uses` says how
/// parameters took part; `rows` lays the tap's gradient out as `[rows, outputs]`.
pub(crate) fn tap<const D: usize>(
    output: Tensor<D>,
    shift: Option<Tensor<D>>,
    uses: Vec<(ParamId, Use)>,
    rows: impl Fn(Tensor<D>) -> Tensor<2> + 'static,
) -> Tensor<D> {
    let shape = output.dims();
    // A vector has no axis of samples.
    let first = if D > 1 { shape[0] } else { 1 };
    let (output, leaf) = match output.is_tracked() {
        true => {
            let device = output.device();
            let shift = shift.unwrap_or_else(|| Tensor::zeros([1; D], (&device, output.dtype())));
            let tap = shift.expand(shape).detach().require_grad();
            (output + tap.clone(), tap)
        }
        // An output that depends on nothing that is tracked can be the tap itself.
        false => {
            let output = match shift {
                Some(shift) => output + shift,
                None => output,
            };
            let tap = output.detach().require_grad();
            (tap.clone(), tap)
        }
    };
    RECORDER.with(|recorder| {
        if let Some(recorder) = &mut *recorder.borrow_mut() {
            let wanted = |(id, _): &(ParamId, Use)| recorder.wanted.contains(id);
            recorder.entries.push(Entry {
                first,
                uses: uses.into_iter().filter(wanted).collect(),
                delta: Box::new(move |gradients| leaf.grad_remove(gradients).map(rows)),
            });
        }
    });
    output
}

/// The last axis as columns, everything before as rows.
pub(crate) fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<2> {
    let dims = tensor.dims();
    let columns = dims[D - 1];
    let rows = dims.iter().product::<usize>() / columns;
    tensor.reshape([rows, columns])
}
