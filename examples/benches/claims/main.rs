//! How often what is said is true: sizes, false discoveries, coverage and power by simulation.
//!
//! Prints Markdown; `docs/claims.md` holds what it printed.

mod conflicts;
mod curvature;
mod datamodels;
mod draws;
mod gates;
mod influence;
mod interference;
mod intervals;
mod kinds;
mod left_out;
mod overlap;
mod ranks;
mod retrained;

use clap::{Parser, ValueEnum};

/// Simulate what intervals, ranks and tests promise, and print how often it holds.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// What to simulate; everything when absent
    #[arg(value_enum)]
    topics: Vec<Topic>,
    /// Runs of each cell
    #[arg(long, default_value_t = 400)]
    runs: usize,
    /// What `cargo bench` adds to every command line
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Topic {
    Intervals,
    Ranks,
    Conflicts,
    Interference,
    Overlap,
    Gates,
    Kinds,
    Curvature,
    Influence,
}

fn main() {
    let arguments = Arguments::parse();
    let all = Topic::value_variants();
    let topics = if arguments.topics.is_empty() {
        all
    } else {
        &arguments.topics
    };
    for topic in topics {
        let tables = match topic {
            Topic::Intervals => intervals::tables(arguments.runs),
            Topic::Ranks => ranks::tables(arguments.runs),
            Topic::Conflicts => conflicts::tables(arguments.runs),
            Topic::Interference => interference::tables(arguments.runs),
            Topic::Overlap => overlap::tables(arguments.runs),
            Topic::Gates => gates::tables(arguments.runs),
            Topic::Kinds => kinds::tables(arguments.runs),
            Topic::Curvature => curvature::tables(arguments.runs),
            Topic::Influence => influence::tables(arguments.runs),
        };
        for table in tables {
            println!("{table}\n");
        }
    }
}
