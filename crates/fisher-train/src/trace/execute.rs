//! A trace carried out on a real device, as far as recipes need it.

use std::collections::{HashMap, HashSet};

use burn::backend::capture::TensorId;
use burn::backend::ir::{BackendIr, HandleKind, IrVisitorMut, OperationIr, TensorIr, TensorStatus};
use burn::backend::{BackendTensor, DispatchDevice, DispatchKindConversion, DispatchTensor, Shape};
use burn::module::ParamId;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Int, Slice, Tensor};
use burn_router::TensorInterpreter;
use fisher_core::gradient::SampleGradient;

use super::recipe::{Patches, Recipe, Side, Tail, Use};
use super::record::Trace;
use crate::losses::SampleLosses;

/// What was computed.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) losses: SampleLosses,
    /// The gradients of every use of a parameter.
    pub(crate) uses: Vec<(ParamId, SampleGradient)>,
    /// Operations that were carried out, of all.
    pub(crate) operations: (usize, usize),
}

/// Carry out `trace` on `device` up to what the recipes of parameters need.
pub(crate) fn execute(
    trace: Trace,
    recipes: &[(ParamId, Recipe)],
    device: &Device,
    samples: usize,
) -> Result<Executed, String> {
    let device = device.clone().without_autodiff();
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(device) => {
            // On one of the threads that its operations share: each of them would wake these anew.
            rayon::scope(|_| run::<burn::backend::Flex>(trace, recipes, device, samples))
        }
        #[cfg(feature = "ndarray")]
        #[allow(deprecated)] // supported for as long as Burn has it
        DispatchDevice::NdArray(device) => {
            run::<burn::backend::NdArray>(trace, recipes, device, samples)
        }
        #[cfg(any(feature = "wgpu", feature = "cuda", feature = "cpu"))]
        DispatchDevice::Cube(device) => run::<burn::backend::Cube>(trace, recipes, device, samples),
        other => Err(format!("traces are not carried out on {other:?}")),
    }
}

fn run<B: BackendIr>(
    trace: Trace,
    recipes: &[(ParamId, Recipe)],
    device: &B::Device,
    samples: usize,
) -> Result<Executed, String>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    let Trace {
        operations,
        mut values,
        bound,
        sums,
        labels,
        losses,
        ..
    } = trace;
    let tensors = recipes.iter().flat_map(|(_, recipe)| recipe.tensors());
    let roots: HashSet<TensorId> = tensors.map(|t| t.id).chain([sums]).chain(labels).collect();
    let live = Live::new(&operations, &bound, roots);
    let mut run = Run::<B>::new(device);
    for (id, tensor) in bound {
        if live.needed.contains(&id) {
            let tensor = DispatchTensor::try_into_backend(tensor)?;
            run.bind(id, tensor)?;
        }
    }
    values.retain(|id, _| live.needed.contains(id));
    for (id, data) in values {
        run.interpreter.register_tensor_data_id(id, data);
    }
    for &at in &live.kept {
        live.run(at, &operations, &mut run.interpreter);
    }
    let mut uses = Vec::new();
    for (parameter, recipe) in recipes {
        match recipe {
            Recipe::Uses(parts) => {
                for part in parts {
                    uses.push((*parameter, run.part(part, samples)));
                }
            }
            Recipe::Tail(tail) => {
                let rows = run.tail(tail, &operations, samples);
                uses.push((*parameter, SampleGradient::full(rows)));
            }
        }
    }
    let sums = run.float::<1>(&root(sums, &operations)?);
    let labels = match labels {
        Some(id) => Some(run.int::<2>(&root(id, &operations)?)),
        None => None,
    };
    Ok(Executed {
        losses: losses.computed(sums, labels),
        uses,
        operations: (live.kept.len(), operations.len()),
    })
}

/// Which operations are needed, and until when their results are.
struct Live {
    /// In order.
    kept: Vec<usize>,
    needed: HashSet<TensorId>,
    /// The last operation that reads a tensor which may then go.
    last: HashMap<TensorId, usize>,
}

impl Live {
    fn new(
        operations: &[OperationIr],
        bound: &HashMap<TensorId, DispatchTensor>,
        roots: HashSet<TensorId>,
    ) -> Self {
        let mut needed = roots.clone();
        let mut kept = Vec::new();
        let mut last = HashMap::new();
        for (at, operation) in operations.iter().enumerate().rev() {
            let made = || operation.outputs().map(|output| output.id);
            let given = matches!(operation, OperationIr::Init(_) | OperationIr::Drop(_))
                || made().any(|id| bound.contains_key(&id));
            if given || !made().any(|id| needed.contains(&id)) {
                continue;
            }
            kept.push(at);
            for input in operation.inputs() {
                needed.insert(input.id);
                let stays = roots.contains(&input.id) || bound.contains_key(&input.id);
                if !stays {
                    last.entry(input.id).or_insert(at);
                }
            }
        }
        kept.reverse();
        Self { kept, needed, last }
    }

    /// Carry out one operation; what nobody reads any more goes.
    fn run<B: BackendIr>(
        &self,
        at: usize,
        operations: &[OperationIr],
        interpreter: &mut TensorInterpreter<B>,
    ) {
        let mut operation = operations[at].clone();
        let mut times: HashMap<TensorId, usize> = HashMap::new();
        for input in operation.inputs() {
            *times.entry(input.id).or_default() += 1;
        }
        let dies = |id: &TensorId| self.last.get(id) == Some(&at);
        operation.visit_mut(&mut Statuses(|id| match times.get(&id) {
            None => TensorStatus::NotInit,
            // An operation that reads a tensor twice must find it twice.
            Some(1) if dies(&id) => TensorStatus::ReadWrite,
            Some(_) => TensorStatus::ReadOnly,
        }));
        let twice: Vec<TensorIr> = operation
            .inputs()
            .filter(|input| input.status == TensorStatus::ReadOnly && dies(&input.id))
            .cloned()
            .collect();
        let unread: Vec<TensorIr> = operation
            .outputs()
            .filter(|output| !self.needed.contains(&output.id))
            .cloned()
            .collect();
        interpreter.register_op(operation);
        let mut gone = HashSet::new();
        for tensor in twice.into_iter().chain(unread) {
            if gone.insert(tensor.id) {
                let status = TensorStatus::ReadWrite;
                interpreter.register_op(OperationIr::Drop(TensorIr { status, ..tensor }));
            }
        }
    }
}

/// The tensor of an id that is needed in the end.
fn root(id: TensorId, operations: &[OperationIr]) -> Result<TensorIr, String> {
    let mut tensors = operations.iter().flat_map(OperationIr::nodes);
    let found = tensors.find(|tensor| tensor.id == id);
    found
        .cloned()
        .ok_or_else(|| "a result is not in the trace".into())
}

struct Statuses<F>(F);

impl<F: FnMut(TensorId) -> TensorStatus> IrVisitorMut for Statuses<F> {
    fn visit_tensor_mut(&mut self, tensor: &mut TensorIr) {
        tensor.status = (self.0)(tensor.id);
    }
}

/// An interpreter of operations, and what comes out of it as tensors.
struct Run<B: BackendIr> {
    interpreter: TensorInterpreter<B>,
    device: B::Device,
}

impl<B: BackendIr> Run<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    fn new(device: &B::Device) -> Self {
        Self {
            interpreter: TensorInterpreter::new(device.clone()),
            device: device.clone(),
        }
    }

    fn bind(&mut self, id: TensorId, tensor: BackendTensor<B>) -> Result<(), String> {
        let tensor = match tensor {
            BackendTensor::Float(tensor) => HandleKind::Float(tensor),
            BackendTensor::Int(tensor) => HandleKind::Int(tensor),
            BackendTensor::Bool(tensor) => HandleKind::Bool(tensor),
            _ => return Err("quantized tensors are not traced".into()),
        };
        self.interpreter.register_tensor_to_device(id, tensor);
        Ok(())
    }

    fn get(&mut self, tensor: &TensorIr) -> HandleKind<B> {
        // It stays for others.
        let status = TensorStatus::ReadOnly;
        self.interpreter.get_tensor(&TensorIr {
            status,
            ..tensor.clone()
        })
    }

    fn float<const D: usize>(&mut self, tensor: &TensorIr) -> Tensor<D> {
        match self.get(tensor) {
            HandleKind::Float(tensor) => Tensor::from_primitive::<B>(tensor),
            _ => unreachable!("the type of a gradient is a float"),
        }
    }

    fn shaped<const D: usize>(&mut self, tensor: &TensorIr, shape: [usize; D]) -> Tensor<D> {
        let HandleKind::Float(primitive) = self.get(tensor) else {
            unreachable!("the type of a gradient is a float");
        };
        let shape = Shape::from(shape.to_vec());
        Tensor::from_primitive::<B>(B::float_reshape(primitive, shape))
    }

    fn int<const D: usize>(&mut self, tensor: &TensorIr) -> Tensor<D, Int> {
        match self.get(tensor) {
            HandleKind::Int(tensor) => Tensor::from_primitive::<B>(tensor),
            _ => unreachable!("the type of indices is an integer"),
        }
    }

    /// A tensor with its axes in this order, as `[samples, positions, columns]`; `columns` is the product of
    /// those that come last.
    fn arranged(
        &mut self,
        tensor: &TensorIr,
        axes: &[usize],
        samples: usize,
        columns: usize,
    ) -> Tensor<3> {
        let HandleKind::Float(mut primitive) = self.get(tensor) else {
            unreachable!("the type of a gradient is a float");
        };
        if !axes.is_sorted() {
            primitive = B::float_permute(primitive, axes);
        }
        let positions = tensor.shape.num_elements() / (samples * columns).max(1);
        let shape = Shape::from(vec![samples, positions, columns]);
        Tensor::from_primitive::<B>(B::float_reshape(primitive, shape))
    }

    fn side(&mut self, side: &Side, samples: usize) -> Tensor<3> {
        let (rank, columns) = (side.tensor.shape.num_dims(), side.column());
        let others = (0..rank).filter(|&axis| axis != side.axis && axis != columns);
        let axes: Vec<usize> = [side.axis]
            .into_iter()
            .chain(others)
            .chain([columns])
            .collect();
        self.arranged(&side.tensor, &axes, samples, side.columns())
    }

    fn part(&mut self, part: &Use, samples: usize) -> SampleGradient {
        match part {
            Use::Product { left, right } => SampleGradient::Outer {
                left: single(self.side(left, samples)),
                right: single(self.side(right, samples)),
            },
            Use::Lookup { ids, delta } => {
                let [rows, positions, width] = [0, 1, 2].map(|axis| delta.shape[axis]);
                let of_sample = rows * positions / samples;
                let ids = self.int::<2>(ids).expand([rows, positions]);
                SampleGradient::Rows {
                    ids: ids.reshape([samples, of_sample]),
                    delta: single(self.float::<3>(delta)).reshape([samples, of_sample, width]),
                    table: 0,
                }
            }
            Use::Patches(patches) => self.patches(patches, samples),
            Use::Sum { terms, axis, over } => {
                let rank = terms.shape.num_dims();
                let summed = over.iter().copied().filter(|other| other != axis);
                let kept: Vec<usize> = (0..rank).filter(|axis| !over.contains(axis)).collect();
                let columns = kept.iter().map(|&axis| terms.shape[axis]).product();
                let axes: Vec<usize> = [*axis].into_iter().chain(summed).chain(kept).collect();
                let terms = single(self.arranged(terms, &axes, samples, columns));
                SampleGradient::full(terms.sum_dim(1).reshape([samples, columns]))
            }
        }
    }

    fn patches(&mut self, patches: &Patches, samples: usize) -> SampleGradient {
        let Patches {
            x,
            delta,
            kernel: [height, width],
            options,
        } = patches;
        let [channels, outputs] = [x.shape[1], delta.shape[1]];
        let wide = x.shape.iter().skip(3).product();
        let frames = x.shape[0];
        let x = self.shaped(x, [frames, channels, x.shape[2], wide]);
        // Each channel by kernels that have a one at one place each.
        let places = height * width;
        let ones = Tensor::<2>::eye(places, &x.device()).cast(x.dtype());
        let ones = ones.reshape([places, 1, *height, *width]);
        let options = ConvOptions {
            groups: channels,
            ..options.clone()
        };
        let seen = conv2d(x, ones.repeat_dim(0, channels), None, options);
        let positions = delta.shape.iter().skip(2).product();
        let delta = self.shaped(delta, [frames, outputs, positions]);
        let seen = seen.reshape([frames, channels * places, positions]);
        // Several frames of a sample are positions too.
        let positions = frames / samples * positions;
        let side = |t: Tensor<3>, columns| t.swap_dims(1, 2).reshape([samples, positions, columns]);
        SampleGradient::Outer {
            left: single(side(delta, outputs)),
            right: single(side(seen, channels * places)),
        }
    }

    /// A gradient made for each sample alone, `[samples, elements]`.
    fn tail(&mut self, tail: &Tail, operations: &[OperationIr], samples: usize) -> Tensor<2> {
        let elements = tail.gradient.shape.num_elements();
        let shared: Vec<_> = tail.shared.values().map(|t| (t.id, self.get(t))).collect();
        let cuts: Vec<_> = tail
            .cuts
            .values()
            .map(|(t, axis)| (t, *axis, self.get(t)))
            .collect();
        let rows = (0..samples).map(|sample| {
            let mut one = Run::<B>::new(&self.device);
            for (id, tensor) in &shared {
                one.interpreter.register_tensor_to_device(*id, copy(tensor));
            }
            for (tensor, axis, whole) in &cuts {
                let length = tensor.shape[*axis] / samples;
                let from = (sample * length) as isize;
                let slices = (0..tensor.shape.num_dims()).map(|other| {
                    if other == *axis {
                        Slice::new(from, Some(from + length as isize), 1)
                    } else {
                        Slice::full()
                    }
                });
                let cut = cut(whole, &slices.collect::<Vec<_>>());
                one.interpreter.register_tensor_to_device(tensor.id, cut);
            }
            for &at in &tail.operations {
                let mut operation = operations[at].clone();
                let made: HashSet<TensorId> = operation.outputs().map(|t| t.id).collect();
                operation.visit_mut(&mut Statuses(|id| {
                    if made.contains(&id) {
                        TensorStatus::NotInit
                    } else {
                        TensorStatus::ReadOnly
                    }
                }));
                one.interpreter.register_op(operation);
            }
            let HandleKind::Float(row) = one.get(&tail.gradient) else {
                unreachable!("the type of a gradient is a float");
            };
            let shape = Shape::from(vec![1, elements]);
            Tensor::<2>::from_primitive::<B>(B::float_reshape(row, shape))
        });
        Tensor::cat(rows.collect(), 0)
    }
}

/// In float32 where it has fewer digits, so that products and sums lose no more of them.
fn single<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(DType::F32),
        _ => tensor,
    }
}

fn copy<B: BackendIr>(tensor: &HandleKind<B>) -> HandleKind<B> {
    match tensor {
        HandleKind::Float(tensor) => HandleKind::Float(tensor.clone()),
        HandleKind::Int(tensor) => HandleKind::Int(tensor.clone()),
        HandleKind::Bool(tensor) => HandleKind::Bool(tensor.clone()),
        HandleKind::Quantized(tensor) => HandleKind::Quantized(tensor.clone()),
    }
}

fn cut<B: BackendIr>(tensor: &HandleKind<B>, slices: &[Slice]) -> HandleKind<B> {
    match copy(tensor) {
        HandleKind::Float(tensor) => HandleKind::Float(B::float_slice(tensor, slices)),
        HandleKind::Int(tensor) => HandleKind::Int(B::int_slice(tensor, slices)),
        HandleKind::Bool(tensor) => HandleKind::Bool(B::bool_slice(tensor, slices)),
        quantized @ HandleKind::Quantized(_) => quantized,
    }
}
