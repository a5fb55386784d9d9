//! One forward and one backward pass on Burn's capture device, which records operations and computes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use burn::backend::capture::{CaptureBackend, TensorId};
use burn::backend::ir::OperationIr;
use burn::backend::ops::FloatTensorOps;
use burn::backend::{
    Autodiff, AutodiffBackend, DispatchDevice, DispatchTensor, set_default_dtypes,
};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{
    Bool, Device, DeviceConfig, DeviceError, DeviceSettings, Int, Tensor, TensorData,
};

use crate::batch::SampleMapper;
use crate::losses::SampleLosses;
use crate::placeholder::{id, placeholder};

/// Burn's `Tensor` refuses gradients on capture devices; the primitives do not.
type Tracked = Autodiff<CaptureBackend>;

/// What was recorded.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) operations: Vec<OperationIr>,
    /// Tensors that were made from values on the host.
    pub(crate) values: BTreeMap<TensorId, TensorData>,
    /// The tensors that parameters and the batch stand for.
    pub(crate) bound: HashMap<TensorId, DispatchTensor>,
    /// Tensors with samples on the first axis.
    pub(crate) batch: Vec<TensorId>,
    /// The losses, still recorded.
    pub(crate) losses: SampleLosses,
    /// `L_i`
    pub(crate) sums: TensorId,
    /// The labels that active tokens are counted in.
    pub(crate) labels: Option<TensorId>,
    /// The gradient of each place where a parameter is; one that no loss reaches has none.
    pub(crate) gradients: Vec<(ParamId, TensorId)>,
}

/// Record the losses of a batch of `samples` and their gradients with respect to the parameters `wanted`.
///
/// `model` is without autodiff. `losses` gives the losses of the model that stands for it, of a batch that
/// its mapper has carried. The error says what stood in the way.
pub(crate) fn record<M: Module>(
    model: &M,
    device: &Device,
    samples: usize,
    wanted: &HashSet<ParamId>,
    losses: impl FnOnce(&M, &mut SampleMapper) -> SampleLosses,
) -> Result<Trace, String> {
    let lent = Lent::with(device.settings());
    let device = &lent.device;
    let mut recorded = None;
    let captured = caught(|| {
        let scope = device.capture_scope(|scope| {
            recorded = Some(inside(model, device, samples, wanted, losses));
            scope.complete([], [])
        });
        scope.map_err(|error| error.to_string())
    })?;
    let trace = recorded.ok_or("nothing was recorded")??;
    Ok(Trace {
        operations: captured.graph.operations,
        values: captured.values,
        ..trace
    })
}

fn inside<M: Module>(
    model: &M,
    device: &Device,
    samples: usize,
    wanted: &HashSet<ParamId>,
    losses: impl FnOnce(&M, &mut SampleMapper) -> SampleLosses,
) -> Result<Trace, String> {
    let mut placeholders = Placeholders {
        device,
        bound: HashMap::new(),
    };
    // `valid` gives running statistics of their own: those of a clone are the model's.
    let model = model.valid().map(&mut placeholders).to_device(device);
    let model = model.map(&mut Leaves(wanted));
    let mut mapper = SampleMapper::carrier(device.clone(), samples);
    let losses = losses(&model, &mut mapper);
    let carried = mapper.carried()?;
    let [found] = losses.sums().dims();
    if found != samples {
        return Err(format!("{found} losses for {samples} samples"));
    }
    // Ones that belong to the samples, so that the gradient of every sum over them does too.
    let sums = losses.sums().clone();
    let ones = Tensor::<1>::ones([samples], (device, sums.dtype()));
    let ones_id = id(ones.clone()).ok_or("the capture device does not take tensors")?;
    let sums_id = id(sums.clone()).ok_or("the losses are not of the batch's tensors")?;
    let loss = (sums.clone() * ones).sum();
    let loss = loss.try_into_primitive::<Tracked>();
    let loss = loss.map_err(|_| "the losses depend on no parameter")?;
    let backward = Tracked::backward(loss);
    let mut gradients = Gradients {
        wanted,
        backward: &backward,
        found: Vec::new(),
    };
    model.visit(&mut gradients);
    let mut bound = placeholders.bound;
    bound.extend(carried.bound);
    let mut batch = carried.batch;
    batch.push(ones_id);
    Ok(Trace {
        operations: Vec::new(),
        values: BTreeMap::new(),
        bound,
        batch,
        labels: losses.labels().and_then(|labels| id(labels.clone())),
        sums: sums_id,
        losses,
        gradients: gradients.found,
    })
}

/// Parameters become placeholders: none of their data is read.
struct Placeholders<'a> {
    device: &'a Device,
    bound: HashMap<TensorId, DispatchTensor>,
}

impl ModuleMapper for Placeholders<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| placeholder(tensor, self.device, &mut self.bound))
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        param.map(|tensor| placeholder(tensor, self.device, &mut self.bound))
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        param.map(|tensor| placeholder(tensor, self.device, &mut self.bound))
    }
}

/// Parameters whose gradients are asked for.
struct Leaves<'a>(&'a HashSet<ParamId>);

impl ModuleMapper for Leaves<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.0.contains(&param.id) {
            return param;
        }
        param.map(
            |tensor| match tensor.clone().try_into_primitive::<CaptureBackend>() {
                Ok(primitive) => {
                    let leaf =
                        Tracked::float_set_require_grad(Tracked::from_inner(primitive), true);
                    Tensor::from_primitive::<Tracked>(leaf)
                }
                Err(_) => tensor,
            },
        )
    }
}

struct Gradients<'a> {
    wanted: &'a HashSet<ParamId>,
    backward: &'a <Tracked as AutodiffBackend>::Gradients,
    found: Vec<(ParamId, TensorId)>,
}

impl ModuleVisitor for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.wanted.contains(&param.id)
            && let Ok(leaf) = param.base().try_into_primitive::<Tracked>()
            && let Some(gradient) = Tracked::grad(&leaf, self.backward)
        {
            self.found.push((param.id, gradient.id()));
        }
    }
}

/// Capture devices that nobody uses, with their settings: a process can have but 65,536 of them, and each is
/// configured once.
static IDLE: Mutex<Vec<(DeviceSettings, Device)>> = Mutex::new(Vec::new());

/// A capture device with the settings of a real one.
struct Lent {
    settings: DeviceSettings,
    device: Device,
}

impl Lent {
    fn with(settings: DeviceSettings) -> Self {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = idle.iter().position(|(of, _)| *of == settings) {
            let (settings, device) = idle.swap_remove(at);
            return Self { settings, device };
        }
        drop(idle);
        let device = Device::capture();
        // Asks for the types there are, which only a scope answers.
        let configured = device.capture_scope(|scope| {
            if let Err(error) = configure(&device, &settings) {
                tracing::debug!(%error, "the capture device keeps its own types");
            }
            scope.complete([], [])
        });
        if let Err(error) = configured {
            tracing::debug!(%error, "the capture device keeps its own types");
        }
        Self { settings, device }
    }
}

/// Burn keeps the types of a device twice: for tensors, and for the backend below them.
fn configure(device: &Device, settings: &DeviceSettings) -> Result<(), DeviceError> {
    let DeviceSettings {
        float_dtype: float,
        int_dtype: int,
        bool_dtype: bool,
        ..
    } = *settings;
    if let DispatchDevice::Capture(device) = device.as_dispatch() {
        set_default_dtypes::<CaptureBackend>(device, float, int, bool)?;
    }
    let config = DeviceConfig::default().float_dtype(float).int_dtype(int);
    device.clone().configure(config.bool_dtype(bool))
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push((self.settings, self.device.clone()));
    }
}

/// What `run` gives; or what it said when it panicked, as Burn does at what it cannot record or carry out.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("it panicked").to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Burn says that capture devices have no autodiff, and its primitives do. Should a release close that, this is the
    /// test that says so: `Engine::Auto` goes by the loop then, with a warning.
    #[test]
    fn burn_takes_gradients_on_capture_devices() {
        let device = Device::capture();
        let graph = device.capture_scope(|scope| {
            let x = Tensor::<1>::ones([2], &device);
            let x = x.try_into_primitive::<CaptureBackend>().expect("captured");
            let x = Tracked::float_set_require_grad(Tracked::from_inner(x), true);
            let y = Tensor::<1>::from_primitive::<Tracked>(x.clone());
            let loss = (y.clone() * y).sum().try_into_primitive::<Tracked>();
            let gradients = Tracked::backward(loss.expect("tracked"));
            assert!(Tracked::grad(&x, &gradients).is_some());
            scope.complete([], [])
        });
        assert!(graph.expect("a graph").graph.operations.len() > 3);
    }

    /// One device serves all traces with its settings, also after one that panicked.
    #[test]
    fn capture_devices_are_lent_again() {
        let settings = Device::flex().settings();
        let mut devices = HashSet::new();
        for _ in 0..100 {
            let lent = Lent::with(settings);
            assert_eq!(lent.device.settings().int_dtype, settings.int_dtype);
            assert_eq!(lent.device.settings().bool_dtype, settings.bool_dtype);
            devices.insert(format!("{:?}", lent.device));
        }
        // Other tests may hold some.
        assert!(devices.len() < 20, "{devices:?}");
        let failed = record(
            &burn::nn::LinearConfig::new(2, 2).init(&Device::flex()),
            &Device::flex(),
            2,
            &HashSet::new(),
            |_, _| panic!("on purpose"),
        );
        assert_eq!(failed.expect_err("a panic"), "on purpose");
    }
}
