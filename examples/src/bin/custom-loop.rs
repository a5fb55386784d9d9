//! A hand-written training loop with a hook: what it needs is marked 1, 2 and 3.

use std::error::Error;

use burn::optim::AdamWConfig;
use burn::optim::GradientsParams;
use fisher_core::grouping::AttentionConfig;
use fisher_core::statistics::StatisticsConfig;
use fisher_examples::device::Backend;
use fisher_examples::model::CausalTransformerConfig;
use fisher_examples::tasks::{CONTEXT, Data, Task, VOCABULARY};
use fisher_examples::training::loader;
use fisher_train::batch::SampleLoss;
use fisher_train::monitor::{HookConfig, Schedule};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Backend::Flex.device()?.autodiff();
    device.seed(0);
    let data = Data::generate([1000, 0, 64], 0);
    let config = CausalTransformerConfig::new(VOCABULARY, CONTEXT).with_dropout(0.1);
    let mut model = config.init(&device);
    let mut optimizer = AdamWConfig::new().init();

    // 1. Say when to look, and at what: here at 64 samples of each task, every 8 batches.
    let probes = Task::ALL.map(|task| -> Result<_, Box<dyn Error>> {
        let batches = loader(data.probe(task), &device)
            .iter()
            .collect::<Result<Vec<_>, _>>();
        Ok((task.name().to_owned(), batches.map_err(|e| e.to_string())?))
    });
    let probes = probes.into_iter().collect::<Result<Vec<_>, _>>()?;
    let schedule = Schedule::new().with_every_steps(Some(8)).with_at_end(true);
    let statistics = StatisticsConfig::new()
        .with_elementwise(false)
        .with_attention(Some(AttentionConfig::new(config.heads)));
    let hook = HookConfig::new(schedule)
        .with_statistics(statistics)
        .init(&model, probes)?;

    for _epoch in 0..3 {
        for batch in loader(&data.train, &device).iter() {
            let batch = batch.map_err(|e| e.to_string())?;
            hook.step(&model, &batch)?; // 2. Before each training step.

            let loss = model.sample_losses(&batch).means().mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(3e-3, model, gradients);
        }
        hook.end_epoch();
    }
    hook.finish(&model)?; // 3. After training.

    for reading in hook.history().readings() {
        for (name, task) in &reading.tasks {
            let (loss, trace) = (
                task.loss.unwrap_or(f64::NAN),
                task.trace.unwrap_or(f64::NAN),
            );
            println!(
                "{:>3} batches  {name:<9}  loss {loss:.3}  trace {trace:.2}",
                reading.step
            );
        }
    }
    Ok(())
}
