//! Load, take gradients, score, tell.

use fisher_metrics::curvature::influence::{InfluenceConfig, Inverse};
use fisher_metrics::damping::Damping;

use super::args::{InfluenceArgs, Inverted};
use super::gradients::Gradients;
use super::told::Told;
use crate::finish::load;
use crate::measure::{Result, doing, write_out};
use crate::samples::{Reader, TaskFile, Text, there};
use crate::say::say;
use crate::words::count;

/// What the queries are called.
const QUERIES: &str = "queries";

/// Score training samples for queries.
///
/// # Errors
/// Whatever kept it from being done, in words.
pub(crate) fn influence(run: &InfluenceArgs) -> Result {
    let queries = TaskFile {
        name: QUERIES.into(),
        path: run.query.clone(),
    };
    if run.train.name == QUERIES {
        return Err(format!(
            "the training samples cannot be called `{QUERIES}`: choose another name"
        )
        .into());
    }
    [&run.train, &queries].into_iter().try_for_each(there)?;
    let operator = InfluenceConfig::new()
        .with_damping(Damping::Relative(run.damping))
        .with_memory(run.memory.0 / 2)
        .init()?;
    let device = run.device.device()?;
    let checkpoint = load(&run.model, &run.loaded, &device)?;
    let reader = |samples| Reader {
        samples,
        ..Reader::new(&checkpoint.config, &run.model)
    };
    let train = reader(run.samples).read(&run.train)?;
    let queries = reader(None).read(&queries)?;
    let selected = run.params.of(&checkpoint.catalogue, &checkpoint.heads)?;
    let selected = selected.ok_or("--params none leaves nothing to compare")?;
    let gradients = Gradients {
        catalogue: checkpoint.catalogue.filter(&selected)?,
        checkpoint: &checkpoint,
        run,
        device: &device,
    };
    let factored = matches!(run.inverse, Inverted::Ekfac | Inverted::Kfac);
    let (store, factors) = gradients.train(&train, factored)?;
    let asked = gradients.queries(&queries)?;
    let corrected = run.inverse == Inverted::Ekfac;
    let kronecker = factors.map(|of| gradients.kronecker(&of, &store, &train.name, corrected));
    let kronecker = kronecker.transpose()?;
    let inverse = match (&kronecker, run.inverse) {
        (Some(kronecker), _) => Inverse::Kronecker(kronecker),
        (None, Inverted::Exact) => Inverse::Exact,
        (None, _) => Inverse::Identity,
    };
    doing("scores");
    let report = operator.forward((&store, &train.name), (&asked, QUERIES), inverse)?;
    let told = Told {
        report: &report,
        train: &train,
        queries: &queries,
        text: Text::read(&run.model).ok(),
        top: run.top,
    };
    say!("\n{}", told.to_string().trim_end());
    if let Some(path) = &run.out {
        write_out(path, &serde_json::to_string_pretty(&told.json())?)?;
        say!(
            "\nWrote {} ({} for each of {}).",
            path.display(),
            count(train.samples.len(), "score"),
            count(queries.samples.len(), "sample")
        );
    }
    Ok(())
}
