//! Whether scores of influence predict what retraining does.

use burn::data::dataloader::batcher::Batcher;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use fisher_core::factors::FactorsConfig;
use fisher_core::model::{Catalogue, Parameter};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_examples::model::{CausalTransformer, CausalTransformerConfig};
use fisher_examples::tasks::{CONTEXT, Data, Item, Task, TaskBatch, TaskBatcher, VOCABULARY};
use fisher_metrics::curvature::influence::{InfluenceConfig, Inverse};
use fisher_metrics::curvature::kronecker::Kronecker;
use fisher_metrics::damping::Damping;
use fisher_train::batch::SampleLoss;
use fisher_train::capture::CaptureConfig;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{SliceRandom, index};

use crate::datamodels;
use crate::left_out::{self, range};
use crate::retrained::{Retrained, deviations, shuffled};

/// Samples of each task to train on.
const TRAIN: usize = 128;
/// Samples of each task whose losses are predicted.
const QUERIES: usize = 16;
/// Samples of a step.
const BATCH: usize = 32;
/// The first learning rate; it falls to 0 in a line.
const RATE: f64 = 3e-3;
/// Seeds of initializations, and steps: about where the loss of held-out samples is lowest, and until training samples are known by heart.
const MODELS: [(u64, usize); 3] = [(1, 150), (2, 150), (1, 400)];
/// Every subset is trained on in two orders of its samples.
const ORDERS: u64 = 2;
const DAMPINGS: [f64; 6] = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0];
/// Times that scores are given to other samples than theirs.
const SHUFFLES: u64 = 20;

/// Half of the training samples is drawn `runs` times, at least 32.
pub(crate) fn tables(runs: usize) -> Vec<String> {
    let mut tables = vec![left_out::table(), datamodels::table()];
    tables.extend(of_subsets(runs.max(32)));
    tables
}

/// What is trained on, what is predicted, and which halves.
struct Setting {
    device: Device,
    train: Vec<Item>,
    queries: Vec<Item>,
    subsets: Vec<Vec<bool>>,
}

impl Setting {
    fn new(subsets: usize) -> Self {
        let data = Data::generate([TRAIN, QUERIES, 0], 0);
        let rng = &mut StdRng::seed_from_u64(0);
        let n = data.train.len();
        let half = |_| {
            let mut is_in = vec![false; n];
            let chosen = index::sample(rng, n, n / 2);
            chosen.into_iter().for_each(|i| is_in[i] = true);
            is_in
        };
        Self {
            device: Device::flex().autodiff(),
            subsets: (0..subsets).map(half).collect(),
            queries: Task::ALL.map(|task| data.held_out(task).to_vec()).concat(),
            train: data.train,
        }
    }

    /// The numbers of all subsets.
    fn all(&self) -> Vec<usize> {
        (0..self.subsets.len()).collect()
    }

    fn batches(&self, items: &[Item], device: &Device) -> Vec<TaskBatch> {
        let batches = items.chunks(BATCH);
        batches
            .map(|items| TaskBatcher.batch(items.to_vec(), device))
            .collect()
    }

    fn fresh(&self, seed: u64) -> CausalTransformer {
        self.device.seed(seed);
        CausalTransformerConfig::new(VOCABULARY, CONTEXT)
            .with_d_model(32)
            .with_d_ff(64)
            .init(&self.device)
    }

    /// `fresh`, trained on `items` in an order of this seed: epochs end to end, cut into batches. What falls is the mean over samples
    /// of the sum over tokens, of which gradients in a store are.
    fn trained(
        &self,
        fresh: &CausalTransformer,
        items: &[&Item],
        seed: u64,
        steps: usize,
    ) -> CausalTransformer {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut model = fresh.clone();
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
        let mut order: Vec<&Item> = Vec::new();
        for step in 0..steps {
            while order.len() < BATCH {
                let mut epoch = items.to_vec();
                epoch.shuffle(rng);
                order.extend(epoch);
            }
            let batch = order.drain(..BATCH).cloned().collect();
            let batch = TaskBatcher.batch(batch, &self.device);
            let loss = model.sample_losses(&batch).sums().clone().mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let rate = RATE * (1.0 - step as f64 / steps as f64);
            model = optimizer.step(rate, model, gradients);
        }
        model
    }

    /// The loss of each of `items`, summed over its tokens, and the tokens.
    fn losses(&self, model: &CausalTransformer, items: &[Item]) -> (Vec<f64>, u64) {
        let model = model.valid();
        let (mut losses, mut tokens) = (Vec::new(), 0);
        for batch in self.batches(items, &self.device.clone().inner()) {
            let of_batch = model.sample_losses(&batch);
            losses.extend(of_batch.sums().clone().into_data().iter::<f64>());
            tokens += of_batch.tokens().expect("tokens").iter().sum::<u64>();
        }
        (losses, tokens)
    }

    /// The mean loss of a token.
    fn loss(&self, model: &CausalTransformer, items: &[Item]) -> f64 {
        let (losses, tokens) = self.losses(model, items);
        losses.iter().sum::<f64>() / tokens as f64
    }

    fn seen(&self, model: &CausalTransformer) -> Seen {
        let catalogue = Catalogue::of(model).expect("parameters");
        let paths = catalogue.parameters().iter().map(Parameter::path);
        let mut capture = CaptureConfig::new().init(model, paths).expect("an engine");
        let mut store = GradientStoreConfig::new(1 << 30)
            .init(model)
            .expect("a store");
        let mut statistics: Statistics = StatisticsConfig::new().init(model).expect("statistics");
        let mut factors = FactorsConfig::new().init(model).expect("factors");
        let train = self.batches(&self.train, &self.device);
        for batch in &train {
            let sinks = (&mut statistics, (&mut store, &mut factors));
            capture.accumulate(batch, "train", sinks).expect("a batch");
        }
        for batch in self.batches(&self.queries, &self.device) {
            let outcomes = capture.accumulate(&batch, "queries", &mut store);
            outcomes.expect("a batch");
        }
        let kfac = Kronecker::of(&factors, "train").expect("samples");
        let mut corrections = kfac.corrections(&self.device).expect("statistics");
        for batch in &train {
            let outcomes = capture.accumulate(batch, "train", &mut corrections);
            outcomes.expect("a batch");
        }
        let ekfac = kfac.clone().corrected(&corrections);
        Seen {
            ekfac: ekfac.expect("the same samples"),
            kfac,
            statistics,
            store,
        }
    }
}

/// Of one model, at the samples of both sides.
struct Seen {
    store: GradientStore,
    statistics: Statistics,
    kfac: Kronecker,
    ekfac: Kronecker,
}

impl Seen {
    fn scores(&self, inverse: Inverse, damping: f64) -> Vec<f64> {
        let config = InfluenceConfig::new()
            .with_damping(Damping::Relative(damping))
            .with_progress(false);
        let influence = config.init().expect("settings");
        let report = influence.forward((&self.store, "train"), (&self.store, "queries"), inverse);
        report.expect("scores").scores
    }

    /// Scores by their name and λ.
    fn all(&self) -> Vec<(String, Vec<f64>)> {
        let inverses = [
            ("exact", Inverse::Exact),
            ("EKFAC", Inverse::Kronecker(&self.ekfac)),
            ("KFAC", Inverse::Kronecker(&self.kfac)),
            ("diagonal", Inverse::Diagonal(&self.statistics, "train")),
        ];
        let mut all = Vec::new();
        for (name, inverse) in inverses {
            for damping in DAMPINGS {
                all.push((format!("{name} | {damping}"), self.scores(inverse, damping)));
            }
        }
        all.push(("products | –".into(), self.scores(Inverse::Identity, 1.0)));
        all
    }
}

/// What is found of one initialization.
struct Found {
    /// A row of what training did.
    training: String,
    rows: Vec<Row>,
}

/// A name, a score, and what it is more than that of products.
type Row = (String, String, Option<String>);

fn of_model(setting: &Setting, (seed, steps): (u64, usize)) -> Found {
    let fresh = setting.fresh(seed);
    let everything: Vec<&Item> = setting.train.iter().collect();
    let model = setting.trained(&fresh, &everything, 0, steps);
    let [untrained, of_train, of_queries] = [
        setting.loss(&fresh, &setting.queries),
        setting.loss(&model, &setting.train),
        setting.loss(&model, &setting.queries),
    ];
    eprintln!(
        "seed {seed}, {steps} steps: {untrained:.2} untrained, {of_train:.2} of training samples, {of_queries:.2} of queries"
    );
    // [orders][subsets][queries]
    let mut retrained = vec![Vec::new(); ORDERS as usize];
    let mut half_trained = 0.0;
    for (number, subset) in setting.subsets.iter().enumerate() {
        let chosen = setting.train.iter().zip(subset);
        let items: Vec<&Item> = chosen.filter(|of| *of.1).map(|of| of.0).collect();
        for order in 0..ORDERS {
            let model = setting.trained(&fresh, &items, 1 + order, steps);
            let (losses, tokens) = setting.losses(&model, &setting.queries);
            half_trained += losses.iter().sum::<f64>() / tokens as f64;
            retrained[order as usize].push(losses);
        }
        if number % 8 == 7 {
            let of = setting.subsets.len();
            eprintln!(
                "seed {seed}, {steps} steps: retrained on {} of {of} halves",
                number + 1
            );
        }
    }
    half_trained /= (ORDERS as usize * setting.subsets.len()) as f64;
    let of_orders: Vec<Vec<f64>> = retrained.iter().map(|of| turned(of)).collect();
    let [between, within] = deviations(&of_orders, setting.subsets.len());
    let pairs = of_orders[0].iter().zip(&of_orders[1]);
    let mean: Vec<f64> = pairs.map(|(a, b)| 0.5 * (a + b)).collect();
    let retrained = Retrained {
        subsets: &setting.subsets,
        losses: &mean,
    };
    let scores = setting.seen(&model).all();
    let (_, products) = scores.last().expect("products");
    let row = |(name, scores): &(String, Vec<f64>)| {
        let above = (scores != products).then(|| retrained.difference(scores, products));
        (name.clone(), retrained.score(scores), above)
    };
    let mut rows: Vec<Row> = scores.iter().map(row).collect();
    let same_task = setting.queries.iter().flat_map(|query| {
        let train = setting.train.iter();
        train.map(|item| f64::from(u8::from(item.task == query.task)))
    });
    let name = "1 of the same task, else 0 | –".into();
    rows.push(row(&(name, same_task.collect())));
    let of_others = (0..SHUFFLES).map(|seed| {
        let scores = shuffled(products, setting.train.len(), seed);
        retrained.correlations(&scores)(&setting.all())
    });
    let of_others: Vec<f64> = of_others.collect();
    rows.push((
        "products, of other samples | –".into(),
        range(&of_others),
        None,
    ));
    // Each half is a sample of its own, and its score is what the other order made of it.
    let each = datamodels::each(setting.subsets.len());
    let other = Retrained {
        subsets: &each,
        losses: &of_orders[1],
    };
    let fell: Vec<f64> = of_orders[0].iter().map(|loss| -loss).collect();
    rows.push((
        "retraining, one order for the other | –".into(),
        other.score(&fell),
        None,
    ));
    Found {
        training: format!(
            "| {seed} | {steps} | {untrained:.2} | {of_train:.2} | {of_queries:.2} | {half_trained:.2} | {between:.2} | {within:.2} |\n"
        ),
        rows,
    }
}

fn of_subsets(subsets: usize) -> [String; 2] {
    let setting = Setting::new(subsets);
    let found = MODELS.map(|model| of_model(&setting, model));
    let n = setting.train.len();
    let mut training = format!(
        "**A transformer retrained on halves.** Two layers of width 32, {n} samples of induction and maximum, half of each; AdamW, steps of {BATCH} samples; \
         {subsets} random halves of the samples, each trained on in two orders from the same initialization. Losses of a token in nats: \
         of {} queries untrained, of the training samples and of the queries by the model trained on everything, of the queries by models trained on halves. Then the \
         standard deviation of a query's loss, summed over its tokens (root mean square over queries): between halves, without what is of the order, and between orders.\n\n\
         | initialization | steps | untrained | training samples | queries | queries, of halves | between halves | between orders |\n|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        setting.queries.len()
    );
    found.iter().for_each(|of| training += &of.training);
    let mut scores = format!(
        "**Linear datamodeling score** of the same models: the mean over queries of Spearman's correlation over {subsets} halves between the sum of scores and the \
         mean loss of two retrained models [95 %], and how much more that is than of products [95 %, of the same halves]. λ is a multiple of the mean eigenvalue of each parameter, or of tr F / n where the whole Fisher is inverted. Scores of \
         other samples: the mean of {SHUFFLES} permutations (least to greatest).\n\n| scores | λ"
    );
    for (seed, steps) in MODELS {
        scores += &format!(" | seed {seed}, {steps} steps | above products");
    }
    scores += &format!(" |\n|---|--:{}|\n", "|--:|--:".repeat(MODELS.len()));
    for row in 0..found[0].rows.len() {
        scores += &format!("| {}", found[0].rows[row].0);
        for (_, score, above) in found.iter().map(|of| &of.rows[row]) {
            scores += &format!(" | {score} | {}", above.as_deref().unwrap_or("–"));
        }
        scores += " |\n";
    }
    [training, scores]
}

/// `[subsets][queries]` to `[queries, subsets]`.
fn turned(losses: &[Vec<f64>]) -> Vec<f64> {
    let queries = 0..losses[0].len();
    queries
        .flat_map(|j| losses.iter().map(move |of| of[j]))
        .collect()
}
