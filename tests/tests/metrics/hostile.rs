//! Files whose every number and name was changed, by somebody who can compute checksums: what comes of
//! them is an error or sound, and never a panic.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use burn::module::ParamGroup;
use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{Gradient, GradientBatch, GradientSink, PerToken, SampleGradient};
use fisher_core::grouping::{Attention, AttentionConfig, HeadLayout, Scheme};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Averages, Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig, Precision, Usage};
use fisher_metrics::importance::ImportanceConfig;
use fisher_metrics::pruning::Scores;
use fisher_metrics::ranking::RankingConfig;
use fisher_tests::backend::Backend;
use fisher_tests::signed::Signed;
use rstest::rstest;
use serde_json::{Value, json};

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

/// Attention with grouped queries, a table, a kernel and vectors.
fn catalogue() -> Catalogue {
    let of = |path: &str, shape: &[usize], role| {
        Parameter::new(path, shape, role, Orientation::InputOutput)
    };
    let parameters = vec![
        of("layers.0.q", &[4, 4], Role::Matrix),
        of("layers.0.k", &[4, 2], Role::Matrix),
        of("layers.0.v", &[4, 2], Role::Matrix),
        of("layers.0.o", &[4, 4], Role::Matrix),
        of("layers.1.kernel", &[2, 3, 2], Role::Convolution),
        of("layers.1.bias", &[3], Role::Vector),
        of("table", &[3, 4], Role::Embedding),
        of("head", &[4, 3], Role::Matrix),
    ];
    Catalogue::new(parameters).expect("parameters")
}

fn batch(shapes: &[(String, usize)], id: &str) -> GradientBatch {
    let mut batch = GradientBatch::new(vec![Sample::new(id, 2).expect("tokens")]);
    for (path, elements) in shapes {
        let row: Vec<f32> = (0..*elements).map(|e| e as f32 - 1.5).collect();
        let row = Tensor::<1>::from_floats(row.as_slice(), &flex());
        batch.insert(path, Gradient::token_sum(row.reshape([1, *elements])));
    }
    batch
}

fn shapes(catalogue: &Catalogue) -> Vec<(String, usize)> {
    let parameters = catalogue.parameters().iter();
    parameters
        .map(|p| (p.path().to_owned(), p.elements()))
        .collect()
}

fn statistics() -> Statistics {
    let catalogue = catalogue();
    let config = AttentionConfig::new(2).with_kv_heads(Some(1));
    let paths = ["layers.0.q", "layers.0.k", "layers.0.v", "layers.0.o"];
    let attention = Attention::separate("layers.0", paths, &config, &catalogue);
    let heads = HeadLayout::new(vec![attention.expect("attention")]).expect("a layout");
    let scheme = |path: &str, scheme| (ParamGroup::from_path(path), scheme);
    let ids = vec![0, 1, 1, 0, 2, 2, 0, 1, 2, 2, 1, 0];
    let config = StatisticsConfig::new()
        .with_seed(Some(3))
        .with_schemes(vec![
            scheme("table", Scheme::Custom { ids }),
            scheme("head", Scheme::Buckets { size: 5 }),
            scheme("layers.1.kernel", Scheme::Tensor),
        ]);
    let statistics = config.init_for(&catalogue, &heads, "m".into(), &flex());
    let mut statistics: Statistics = statistics.expect("statistics");
    for id in ["a", "b"] {
        let batch = batch(&shapes(&catalogue), id);
        statistics.push("task", batch).expect("gradients");
    }
    statistics
}

/// The place of every value in a document, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(values) => values
            .iter()
            .enumerate()
            .for_each(|(i, v)| places(v, &format!("{at}/{i}"), found)),
        Value::Object(values) => values.iter().for_each(|(key, v)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            places(v, &format!("{at}/{key}"), found);
        }),
        _ => {}
    }
}

fn strings(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            found.insert(text.clone());
        }
        Value::Array(values) => values.iter().for_each(|v| strings(v, found)),
        Value::Object(values) => values.iter().for_each(|(key, v)| {
            found.insert(key.clone());
            strings(v, found);
        }),
        _ => {}
    }
}

/// Documents like this one with one thing changed, and what that is: every number to hostile ones,
/// every name to others (so many at most), every list and object with two transposed, one more or one
/// less.
fn changed(document: &Value, most: usize) -> Vec<(String, Value)> {
    let (mut at, mut names) = (Vec::new(), BTreeSet::new());
    places(document, "", &mut at);
    strings(document, &mut names);
    let every = names.len().div_ceil(most).max(1);
    let names: Vec<String> = names.into_iter().step_by(every).collect();
    let mut all = Vec::new();
    for place in at {
        let mut change = |what: String, to: Value| {
            let mut document = document.clone();
            *document.pointer_mut(&place).expect("a place") = to;
            all.push((format!("{place}: {what}"), document));
        };
        match document.pointer(&place).expect("a place") {
            Value::Number(_) => {
                for number in [
                    json!(0),
                    json!(1),
                    json!(2),
                    json!(3),
                    json!(u32::MAX),
                    json!(1u64 << 40),
                    json!(i64::MAX),
                    json!(u64::MAX),
                    json!(-1),
                    json!(0.5),
                    json!(1e300),
                    Value::Null,
                ] {
                    change(number.to_string(), number);
                }
            }
            Value::String(_) => {
                for name in &names {
                    change(name.clone(), json!(name));
                }
            }
            Value::Bool(is) => change((!is).to_string(), json!(!is)),
            Value::Array(values) => {
                for i in 0..values.len() {
                    let mut transposed = values.clone();
                    transposed.swap(0, i);
                    change(format!("0 and {i} transposed"), json!(transposed));
                    let mut less = values.clone();
                    less.remove(i);
                    change(format!("without {i}"), json!(less));
                    let mut more = values.clone();
                    more.push(values[i].clone());
                    change(format!("{i} once more"), json!(more));
                }
            }
            Value::Object(values) => {
                for (key, value) in values {
                    let mut less = values.clone();
                    less.remove(key);
                    change(format!("without `{key}`"), json!(less));
                    for other in ["", "a/b", "%", "task"] {
                        let mut renamed = less.clone();
                        renamed.insert(other.into(), value.clone());
                        change(format!("`{key}` is `{other}`"), json!(renamed));
                    }
                    for (other, there) in values.iter().take_while(|(other, _)| *other != key) {
                        let mut transposed = values.clone();
                        transposed.insert(key.clone(), there.clone());
                        transposed.insert(other.clone(), value.clone());
                        let what = format!("`{key}` and `{other}` transposed");
                        change(what, json!(transposed));
                    }
                }
            }
            Value::Null => {}
        }
    }
    all
}

/// Run what must not panic.
fn sound<T>(what: &str, run: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => value,
        Err(_) => panic!("a panic came of {what}"),
    }
}

/// Everything that is done with statistics, as far as it is allowed.
fn use_statistics(mut loaded: Statistics, names: &BTreeSet<String>, folder: &Path) {
    for name in names {
        let _ = (loaded.totals().layer_of(name), loaded.shape(name));
    }
    let tasks: Vec<String> = loaded.tasks().map(str::to_owned).collect();
    let paths: Vec<String> = loaded.paths().map(str::to_owned).collect();
    let elements = |path: &String| {
        let shape = loaded.shape(path).expect("a shape");
        (path.clone(), shape.iter().product())
    };
    let shapes: Vec<(String, usize)> = paths.iter().map(elements).collect();
    for task in &tasks {
        let _ = ImportanceConfig::new()
            .init()
            .expect("a level")
            .forward(&loaded, task);
        let _ = RankingConfig::new()
            .init()
            .expect("a ranking")
            .forward(&loaded, task);
        let _ = Scores::grouped(&loaded, task);
        let _ = Scores::elementwise(&loaded, task);
        for (_, parameter) in loaded.task(task).expect("a task").parameters() {
            for (grouping, welford) in parameter.groups() {
                assert_eq!(grouping.groups(), welford.elements());
                assert_eq!(grouping.sizes().len(), grouping.groups());
                grouping.group_of_elements();
                (0..grouping.groups()).for_each(|group| drop(grouping.ranges(group)));
            }
        }
        loaded.push(task, batch(&shapes, "new")).expect("gradients");
        let next = vec![Sample::new("next", 1).expect("tokens")];
        loaded.begin(task, &next).expect("a new sample");
        for (path, elements) in &shapes {
            let zeros = SampleGradient::Zero {
                samples: 1,
                elements: *elements,
                device: flex(),
            };
            loaded.put(path, zeros).expect("a parameter");
        }
        loaded.commit().expect("all parameters");
    }
    let mut good = statistics();
    let _ = good.merge(loaded.clone());
    let path = folder.join("again");
    loaded.save(&path).expect("a file");
    Statistics::<PerToken>::load(&path, &flex()).expect("what was saved");
}

#[test]
fn statistics_are_refused_or_sound() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    statistics().save(&path).expect("a file");
    let good = Signed::read(&path);
    let mut names = BTreeSet::new();
    strings(&good.about, &mut names);
    good.write(&path);
    let loaded = Statistics::<PerToken>::load(&path, &flex()).expect("it is good");
    use_statistics(loaded, &names, folder.path());

    let mut accepted = 0;
    for (what, about) in changed(&good.about, 99) {
        let mut file = good.clone();
        file.about = about;
        file.write(&path);
        let loaded = sound(&what, || Statistics::<PerToken>::load(&path, &flex()));
        if let Ok(loaded) = loaded {
            accepted += 1;
            sound(&what, || use_statistics(loaded, &names, folder.path()));
        }
    }
    assert!(accepted > 0, "a seed may be any number");
    let samples = serde_json::from_slice(&good.tensors["task/samples"].2).expect("JSON");
    for (what, samples) in changed(&samples, 99) {
        let mut file = good.clone();
        let bytes = samples.to_string().into_bytes();
        let tensor = file.tensors.get_mut("task/samples").expect("samples");
        (tensor.1, tensor.2) = (vec![bytes.len()], bytes);
        file.write(&path);
        let loaded = sound(&what, || Statistics::<PerToken>::load(&path, &flex()));
        if let Ok(loaded) = loaded {
            sound(&what, || use_statistics(loaded, &names, folder.path()));
        }
    }
    // Every tensor missing, of another shape, or in another's place.
    let tensors: Vec<String> = good.tensors.keys().cloned().collect();
    for name in &tensors {
        for other in &tensors {
            let mut file = good.clone();
            let tensor = file.tensors.remove(name).expect("a tensor");
            file.tensors.insert(other.clone(), tensor);
            file.write(&path);
            let what = format!("`{name}` as `{other}`");
            let loaded = sound(&what, || Statistics::<PerToken>::load(&path, &flex()));
            assert_eq!(loaded.is_ok(), name == other, "{what}");
        }
        let mut file = good.clone();
        file.tensors.get_mut(name).expect("a tensor").1.insert(0, 1);
        file.write(&path);
        let loaded = sound(name, || Statistics::<PerToken>::load(&path, &flex()));
        assert!(loaded.is_err() || name == "task/samples", "{name}");
    }
}

#[test]
fn averages_are_refused_or_sound() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    let mut averages = Averages::<PerToken>::new(0.9).expect("beta");
    averages.push(&statistics(), "task").expect("means");
    averages.save(&path).expect("a file");
    let good = Signed::read(&path);
    for (what, about) in changed(&good.about, 99) {
        let mut file = good.clone();
        file.about = about;
        file.write(&path);
        let loaded = sound(&what, || Averages::<PerToken>::load(&path, &flex()));
        if let Ok(mut loaded) = loaded {
            sound(&what, || {
                loaded.push(&statistics(), "task").expect("means");
                assert!(loaded.layers("task").is_some());
                loaded.save(&path).expect("a file");
                Averages::<PerToken>::load(&path, &flex()).expect("what was saved");
            });
        }
    }
}

#[rstest]
fn a_store_is_refused_or_sound(
    #[values(Precision::Float32, Precision::Float16)] precision: Precision,
) {
    let folder = tempfile::tempdir().expect("a folder");
    let catalogue = catalogue();
    let shapes = shapes(&catalogue);
    let config = GradientStoreConfig::new(0)
        .with_folder(Some(folder.path().into()))
        .with_precision(precision)
        .with_shard(500);
    let mut store = config.init_for(&catalogue, "m".into()).expect("a store");
    for id in ["a", "b", "c"] {
        store.push("task", &batch(&shapes, id)).expect("gradients");
    }
    drop(store);
    let index = folder.path().join("index.jsonl");
    let text = std::fs::read_to_string(&index).expect("text");
    let files: Vec<_> = std::fs::read_dir(folder.path())
        .expect("a folder")
        .map(|e| e.expect("a file").path())
        .map(|path| (std::fs::read(&path).expect("bytes"), path))
        .collect();
    assert!(files.len() > 2, "the index and more than one shard");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let used = |store: &GradientStore| -> Usage {
        let _ = store.verify();
        let tasks: Vec<&str> = store.tasks().collect();
        for task in tasks {
            for sample in store.samples(task) {
                for parameter in store.catalogue().parameters() {
                    let row = store.gradient(task, sample.id(), parameter.path());
                    assert_eq!(row.expect("a row").len(), parameter.elements());
                }
            }
            for parameter in store.catalogue().parameters() {
                store.fisher(task, parameter.path()).expect("a Fisher");
            }
        }
        store.usage()
    };
    used(&GradientStore::open(folder.path()).expect("it is good"));
    for at in 0..lines.len() {
        for (what, line) in changed(&lines[at], 6) {
            let what = format!("line {at}{what}");
            for (bytes, path) in &files {
                std::fs::write(path, bytes).expect("written");
            }
            let mut lines = lines.clone();
            lines[at] = line;
            let text: Vec<String> = lines.iter().map(|l| format!("{l}\n")).collect();
            std::fs::write(&index, text.concat()).expect("written");
            if let Ok(store) = sound(&what, || GradientStore::open(folder.path())) {
                sound(&what, || used(&store));
            }
            sound(&what, || drop(GradientStore::repair(folder.path())));
            let store = sound(&what, || config.init_for(&catalogue, "m".into()));
            if let Ok(mut store) = store {
                sound(&what, || {
                    used(&store);
                    store.push("task", &batch(&shapes, "new")).expect("new");
                    used(&store);
                });
            }
        }
    }
}
