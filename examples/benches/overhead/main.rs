//! What collecting costs next to an ordinary training step.

mod cases;
mod comparison;
mod cube;
mod launches;
mod machine;
mod memory;
mod models;
mod names;
mod python;
mod rounds;
mod subject;
mod times;
mod ways;

use std::process::ExitCode;

use burn::tensor::Device;
use clap::{Parser, ValueEnum};
use fisher_examples::device::Backend;

use crate::cases::{Case, Visitor};
use crate::comparison::Comparison;
use crate::launches::Launches;
use crate::memory::Peak;
use crate::python::{Against, Python};
use crate::times::Times;
use crate::ways::Way;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Time and peak memory of every way to collect, next to forward and backward of the same batch.
///
/// All ways take turns, so that they see the same weather; the ratio is the median over rounds. Peak
/// memory is that of a process of its own. Prints a table in Markdown, then one line of JSON for each
/// case and way.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Where to compute
    #[arg(long, value_enum, default_value = "flex")]
    device: Backend,
    /// Rounds, of which the median counts; batches, where launches are counted
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Small shapes, one round: whether it runs, not how fast
    #[arg(long)]
    quick: bool,
    /// Only this case
    #[arg(long, value_enum)]
    case: Vec<Case>,
    /// Only these ways, and plain
    #[arg(long, value_enum)]
    way: Vec<Way>,
    /// Do not measure memory
    #[arg(long)]
    no_memory: bool,
    /// Next to the same cases in PyTorch, with hooks, Opacus and BackPACK; the latter two where they
    /// are installed
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// The Python that has PyTorch
    #[arg(long, default_value = "python3", requires = "against")]
    python: String,
    /// PyTorch's device, such as `cuda`; by default `cuda` for `--device cuda`, and `cpu` otherwise
    #[arg(long, requires = "against")]
    python_device: Option<String>,
    /// Kernels launched and bytes held for a batch, in the place of time: on devices of CubeCL
    #[arg(long, conflicts_with = "against")]
    launches: bool,
    /// Run one way some times, print the peak memory, and nothing else
    #[arg(long, hide = true)]
    peak: bool,
    /// Seed of weights and data
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What `cargo bench` adds to every command line
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> ExitCode {
    // `RUST_LOG=fisher_train=debug` tells where the time of a trace goes.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome {
    let device = arguments.device.device()?;
    device.seed(arguments.seed);
    let rounds = match arguments.quick {
        true => 1,
        false => arguments.rounds.max(1),
    };
    let machine = machine::describe(arguments.device, &device);
    if arguments.peak {
        return visit(arguments, &device, &mut Peak::new(&arguments.way));
    }
    if arguments.launches {
        let mut launches = Launches::new(&device, &arguments.way, arguments.rounds.max(1))?;
        println!("{machine}\n\n{}", launches.head());
        visit(arguments, &device, &mut launches)?;
        println!();
        launches.lines.iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    if arguments.against.is_some() {
        let python = Python {
            program: &arguments.python,
            device: match (&arguments.python_device, arguments.device) {
                (Some(device), _) => device,
                (None, Backend::Cuda) => "cuda",
                (None, _) => "cpu",
            },
        };
        // Before anything is measured: whether there is a PyTorch.
        let torch = python.torch()?;
        let mut comparison = Comparison::new(rounds, arguments.quick);
        visit(arguments, &device, &mut comparison)?;
        eprintln!("measuring PyTorch");
        let theirs = python.measure(comparison.cases(), rounds, arguments.seed)?;
        println!("{machine}\n{torch}\n");
        comparison.print(&theirs);
        return Ok(());
    }
    let mut times = Times::new(arguments.device, &arguments.way, rounds);
    times.quick = arguments.quick;
    times.memory = !arguments.no_memory;
    println!("{machine}\n\n{}", times.head());
    visit(arguments, &device, &mut times)?;
    println!();
    times.lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// The cases that were asked for, one after another.
fn visit(arguments: &Arguments, device: &Device, visitor: &mut impl Visitor) -> Outcome {
    let device = device.clone().autodiff();
    for &case in Case::value_variants() {
        if arguments.case.is_empty() || arguments.case.contains(&case) {
            case.visit(arguments.quick, &device, visitor)?;
        }
    }
    Ok(())
}
