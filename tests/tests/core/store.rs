//! The store of per-sample gradients: what is kept, where, and what happens when it goes wrong.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use burn::module::ParamGroup;
use burn::tensor::{Device, Tensor};
use fisher_core::Error;
use fisher_core::gradient::{Gradient, GradientBatch, GradientSink};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::StatisticsConfig;
use fisher_core::store::{GradientStore, GradientStoreConfig, Precision};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn catalogue() -> Catalogue {
    let matrix = Parameter::new("w", [2, 3], Role::Matrix, Orientation::InputOutput);
    let bias = Parameter::new("b", [3], Role::Vector, Orientation::InputOutput);
    Catalogue::new(vec![matrix, bias]).expect("parameters")
}

/// Samples `range`, their gradients made of their numbers.
fn batch(range: std::ops::Range<usize>) -> GradientBatch {
    let samples = range
        .clone()
        .map(|i| Sample::new(format!("s{i}"), 1 + i as u64 % 4));
    let samples: Vec<Sample> = samples.collect::<Result<_, _>>().expect("tokens");
    let mut batch = GradientBatch::new(samples);
    for (path, elements) in [("w", 6), ("b", 3)] {
        let values: Vec<f32> = range.clone().flat_map(|i| row(i, path, elements)).collect();
        let tensor = Tensor::<1>::from_floats(values.as_slice(), &flex());
        let tensor = tensor.reshape([range.len(), elements]);
        batch.insert(path, Gradient::token_sum(tensor));
    }
    batch
}

fn row(sample: usize, path: &str, elements: usize) -> Vec<f32> {
    let value = |e: usize| ((sample * 7 + e * 3 + path.len()) as f32).sin();
    (0..elements).map(value).collect()
}

fn fill(store: &mut GradientStore, range: std::ops::Range<usize>, size: usize) {
    let end = range.end;
    for start in range.step_by(size) {
        store
            .push("t", &batch(start..end.min(start + size)))
            .expect("a push");
    }
}

fn assert_holds(store: &GradientStore, count: usize) {
    assert_eq!(store.samples("t").len(), count);
    for i in 0..count {
        for (path, elements) in [("w", 6), ("b", 3)] {
            let found = store.gradient("t", &format!("s{i}"), path);
            assert_eq!(
                *found.expect("a gradient"),
                row(i, path, elements),
                "{path} of {i}"
            );
        }
        let part = store.row("t", i, "w", 2..5).expect("a row");
        assert_eq!(*part, row(i, "w", 6)[2..5]);
    }
}

/// Nine elements of four bytes a sample.
const SAMPLE: usize = 36;

#[rstest]
#[case::in_memory(1 << 20, false)]
#[case::on_disk(0, true)]
#[case::in_part(5 * SAMPLE, true)]
fn what_goes_in_comes_out(#[case] memory: usize, #[case] on_disk: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(memory)
        .with_folder(on_disk.then(|| folder.path().join("store")))
        .with_shard(3 * SAMPLE as u64);
    let mut store = config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut store, 0..11, 2);
    assert_holds(&store, 11);

    let usage = store.usage();
    assert!(usage.memory <= usage.budget, "{usage}");
    assert_eq!(usage.samples, 11);
    // Room for five: two batches of two, and the last, of one.
    let expected = if on_disk { memory } else { 11 * SAMPLE };
    assert_eq!(usage.memory, expected);
    assert_eq!(usage.disk, if on_disk { 11 * SAMPLE as u64 } else { 0 });
    if on_disk {
        store.sync().expect("a disk");
        let files = std::fs::read_dir(folder.path().join("store")).expect("files");
        assert_eq!(
            files.count(),
            6,
            "the index, and a shard for three samples at most"
        );
        let read = GradientStore::open(folder.path().join("store")).expect("a store");
        assert_holds(&read, 11);
        read.verify().expect("whole");
    }
}

#[test]
fn memory_without_a_folder_has_an_end() {
    let config = GradientStoreConfig::new(5 * SAMPLE);
    let mut store = config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut store, 0..4, 2);
    let error = store.push("t", &batch(4..6)).expect_err("full");
    assert!(matches!(error, Error::Budget { needed, budget }
        if needed == 6 * SAMPLE && budget == 5 * SAMPLE));
    let error = error.to_string();
    assert!(
        error.contains("folder") && error.contains("precision"),
        "{error}"
    );
    assert_holds(&store, 4);
}

#[test]
fn a_killed_writer_leaves_a_store_that_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0)
        .with_folder(Some(folder.path().into()))
        .with_shard(4 * SAMPLE as u64);
    let open = || config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut open(), 0..6, 2);

    // Killed between the gradients and their line, and within a line.
    let append = |file: &str, bytes: &[u8]| {
        let file = OpenOptions::new()
            .append(true)
            .open(folder.path().join(file));
        file.expect("a file").write_all(bytes).expect("written");
    };
    append("shard-00001.bin", &[7; 50]);
    // No line speaks of that: those samples never were there.
    assert_holds(&GradientStore::open(folder.path()).expect("readable"), 6);
    append("index.jsonl", br#"{"task":"t","samples":[{"id":"s6","#);
    let mut store = open();
    assert_holds(&store, 6);
    fill(&mut store, 6..11, 2);
    drop(store);
    let store = open();
    assert_holds(&store, 11);
    store.verify().expect("whole");
}

/// A copy that broke off is not taken for a store with fewer samples, wherever it broke off.
#[test]
fn a_copy_that_broke_off_is_refused_until_it_is_repaired() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole");
    let config = GradientStoreConfig::new(0)
        .with_folder(Some(whole.clone()))
        .with_shard(2 * SAMPLE as u64);
    let store = config.init_for(&catalogue(), "m".into());
    fill(&mut store.expect("a store"), 0..3, 1);
    let files = ["index.jsonl", "shard-00000.bin", "shard-00001.bin"];
    let files = files.map(|name| (name, std::fs::read(whole.join(name)).expect("bytes")));
    let copy = folder.path().join("copy");
    let lines = files[0].1.iter().filter(|&&b| b == b'\n').count();
    assert_eq!(lines, 4);
    for (at, (cut, bytes)) in files.iter().enumerate() {
        for length in 0..bytes.len() {
            let _ = std::fs::remove_dir_all(&copy);
            std::fs::create_dir(&copy).expect("a folder");
            for (name, bytes) in &files {
                std::fs::write(copy.join(name), bytes).expect("written");
            }
            std::fs::write(copy.join(cut), &bytes[..length]).expect("written");
            let opened = GradientStore::open(&copy);
            match (at, &opened) {
                // An index that ends with a line is whole; nothing tells of another.
                (0, Ok(store)) if bytes[..length].ends_with(b"\n") => {
                    let lines = bytes[..length].iter().filter(|&&b| b == b'\n').count();
                    assert_eq!(store.samples("t").len(), lines - 1);
                    continue;
                }
                (0, Err(Error::Format { .. })) if !bytes[..length].contains(&b'\n') => continue,
                // The first shard is not the last.
                (1, Err(Error::Format { .. })) => continue,
                (0 | 2, Err(error @ Error::Truncated { .. })) => {
                    let text = error.to_string();
                    assert!(text.contains("copy") && text.contains("repair"), "{text}");
                }
                other => panic!("{cut} cut at {length}: {other:?}"),
            }
            let left = match at {
                0 => bytes[..length].iter().filter(|&&b| b == b'\n').count() - 1,
                _ => 2,
            };
            assert_holds(&GradientStore::repair(&copy).expect("repaired"), left);
            assert_holds(&GradientStore::open(&copy).expect("whole again"), left);
        }
    }
    // All three samples in one shard, of which nothing came.
    let config = config.with_folder(Some(folder.path().join("one")));
    let store = config
        .with_shard(1 << 20)
        .init_for(&catalogue(), "m".into());
    fill(&mut store.expect("a store"), 0..3, 1);
    let shard = folder.path().join("one/shard-00000.bin");
    std::fs::write(shard, []).expect("written");
    let error = GradientStore::open(folder.path().join("one")).expect_err("nothing came");
    let named = error.to_string();
    assert!(named.contains("3 of the 3 samples"), "{named}");
}

/// Half a line of a program that is writing will be whole.
#[test]
fn a_reader_does_not_mind_a_line_that_is_being_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0).with_folder(Some(folder.path().into()));
    let mut writer = config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut writer, 0..2, 2);
    let index = OpenOptions::new()
        .append(true)
        .open(folder.path().join("index.jsonl"));
    let mut index = index.expect("an index");
    index.write_all(br#"{"task":"t","samp"#).expect("written");
    assert_holds(&GradientStore::open(folder.path()).expect("readable"), 2);
    drop(writer);
    let error = GradientStore::open(folder.path()).expect_err("nobody writes");
    assert!(matches!(error, Error::Truncated { .. }), "{error}");
}

/// A store that is only read does not touch the files of the program that writes.
#[test]
fn a_store_opened_for_reading_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0)
        .with_folder(Some(folder.path().into()))
        .with_shard(2 * SAMPLE as u64);
    let mut writer = config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut writer, 0..2, 2);
    let mut reader = GradientStore::open(folder.path()).expect("a store");
    // The next shard is the writer's by now.
    fill(&mut writer, 2..4, 2);
    let error = reader.push("t", &batch(4..6)).expect_err("read only");
    assert!(error.to_string().contains("opened for reading"), "{error}");
    assert_holds(&reader, 2);
    drop(writer);
    let store = config.init_for(&catalogue(), "m".into()).expect("a store");
    store.verify().expect("whole");
    assert_holds(&store, 4);
}

/// Killed after it had begun a file and before a line spoke of it.
#[test]
fn a_file_without_a_line_does_not_stand_in_the_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0)
        .with_folder(Some(folder.path().into()))
        .with_shard(2 * SAMPLE as u64);
    let open = || config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut open(), 0..2, 2);
    std::fs::write(folder.path().join("shard-00001.bin"), [7; 5]).expect("written");
    fill(&mut open(), 2..6, 2);
    let store = open();
    assert_holds(&store, 6);
    store.verify().expect("whole");
}

/// A power cut can leave a file with its length and without its content.
#[test]
fn gradients_that_are_not_what_was_written_are_given_up_at_the_end_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0).with_folder(Some(folder.path().into()));
    let open = || config.init_for(&catalogue(), "m".into());
    fill(&mut open().expect("a store"), 0..8, 2);
    let shard = folder.path().join("shard-00000.bin");
    let damage = |samples: std::ops::Range<usize>| {
        let mut bytes = std::fs::read(&shard).expect("bytes");
        bytes[samples.start * SAMPLE..samples.end * SAMPLE].fill(0);
        std::fs::write(&shard, bytes).expect("written");
    };
    damage(4..8);
    let mut store = open().expect("a store");
    assert_holds(&store, 4);
    fill(&mut store, 4..8, 2);
    assert_holds(&store, 8);
    drop(store);
    // What good chunks follow was on the disk once.
    damage(2..4);
    assert!(matches!(open(), Err(Error::Checksum { .. })));
}

/// The powers of two that scale half precision lie in the index, and belong to the numbers.
#[test]
fn damaged_exponents_are_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0)
        .with_folder(Some(folder.path().into()))
        .with_precision(Precision::Float16);
    let store = config.init_for(&catalogue(), "m".into());
    fill(&mut store.expect("a store"), 0..2, 2);
    let index = folder.path().join("index.jsonl");
    let text = std::fs::read_to_string(&index).expect("text");
    assert!(text.contains("[[-15,"), "{text}");
    std::fs::write(&index, text.replace("[[-15,", "[[-14,")).expect("written");
    let store = GradientStore::open(folder.path()).expect("readable");
    assert!(matches!(store.verify(), Err(Error::Checksum { .. })));
}

#[test]
fn lines_whose_gradients_did_not_reach_the_disk_are_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0).with_folder(Some(folder.path().into()));
    let open = || config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut open(), 0..6, 2);
    let shard = folder.path().join("shard-00000.bin");
    let file = OpenOptions::new()
        .write(true)
        .open(&shard)
        .expect("a shard");
    file.set_len(4 * SAMPLE as u64 + 5).expect("cut");
    let mut store = open();
    fill(&mut store, 4..8, 2);
    drop(store);
    assert_holds(&open(), 8);
}

#[test]
fn what_is_damaged_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let fresh = |name: &str| {
        let path = folder.path().join(name);
        let config = GradientStoreConfig::new(0)
            .with_folder(Some(path.clone()))
            .with_shard(2 * SAMPLE as u64);
        let store = config.init_for(&catalogue(), "m".into());
        fill(&mut store.expect("a store"), 0..6, 2);
        path
    };
    let edit = |path: &Path, file: &str, change: &dyn Fn(String) -> String| {
        let file = path.join(file);
        let text = std::fs::read_to_string(&file).expect("text");
        std::fs::write(&file, change(text)).expect("written");
    };
    let refused = |path: &Path| GradientStore::open(path).expect_err("damaged").to_string();

    let path = fresh("flipped");
    let shard = path.join("shard-00001.bin");
    let mut bytes = std::fs::read(&shard).expect("bytes");
    bytes[3] ^= 1;
    std::fs::write(&shard, bytes).expect("written");
    let error = GradientStore::open(&path).expect("openable").verify();
    let error = error.expect_err("flipped").to_string();
    assert!(
        error.contains("shard-00001.bin") && error.contains("corrupted"),
        "{error}"
    );

    let path = fresh("version");
    edit(&path, "index.jsonl", &|t| {
        t.replace("\"fisher_store\":1", "\"fisher_store\":9")
    });
    assert!(refused(&path).contains("version 9"));

    let path = fresh("index");
    edit(&path, "index.jsonl", &|t| {
        t.replacen("\"offset\":0", "\"offset\":1", 1)
    });
    assert!(refused(&path).contains("line 2 contradicts it"));

    let path = fresh("hostile");
    edit(&path, "index.jsonl", &|t| {
        t.replacen("\"shard\":0", "\"shard\":4000000000", 1)
    });
    assert!(refused(&path).contains("shards that hold nothing"));

    // The next number has none after it.
    let path = fresh("overflowing");
    edit(&path, "index.jsonl", &|t| {
        t.replacen("\"shard\":2", "\"shard\":18446744073709551615", 1)
    });
    assert!(refused(&path).contains("shards that hold nothing"));

    let path = fresh("huge");
    edit(&path, "index.jsonl", &|t| {
        t.replace("[2,3]", "[4294967296,4294967296]")
    });
    assert!(refused(&path).contains("too large"));

    // Not the last shard: that is no interrupted write.
    let path = fresh("short");
    std::fs::write(path.join("shard-00000.bin"), [0; 9]).expect("written");
    assert!(refused(&path).contains("shorter than the index says"));

    let path = fresh("gone");
    std::fs::remove_file(path.join("shard-00002.bin")).expect("removed");
    assert!(refused(&path).contains("shard-00002.bin"));
    assert!(GradientStore::open(folder.path().join("nothing")).is_err());
}

#[test]
fn a_folder_of_something_else_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(0).with_folder(Some(folder.path().into()));
    let held = config.init_for(&catalogue(), "m".into()).expect("a store");
    // While one writes no other may.
    let error = config
        .init_for(&catalogue(), "m".into())
        .expect_err("locked");
    assert!(matches!(error, Error::StoreLocked { .. }), "{error}");
    drop(held);

    let refused = |config: GradientStoreConfig, model: &str, what: &str| {
        let error = config.init_for(&catalogue(), model.into()).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(config.clone(), "another", "hash of its weights");
    refused(
        config.clone().with_precision(Precision::Float16),
        "m",
        "precision",
    );
    let only = ParamGroup::from_path("w");
    refused(config.with_only(Some(only)), "m", "set of parameters");
}

#[test]
fn only_what_was_asked_for_is_kept() {
    let config = GradientStoreConfig::new(1 << 20).with_only(Some(ParamGroup::from_path("b")));
    let mut store = config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut store, 0..2, 2);
    assert_eq!(store.bytes_per_sample(), 12);
    assert!(matches!(
        store.gradient("t", "s0", "w"),
        Err(Error::UnknownParameter { .. })
    ));
    assert!(matches!(
        store.gradient("t", "s9", "b"),
        Err(Error::UnknownSample { .. })
    ));
    assert!(matches!(
        store.gradient("u", "s0", "b"),
        Err(Error::UnknownTask { .. })
    ));
    let none = ParamGroup::from_path("nothing");
    let config = config.with_only(Some(none));
    assert!(config.init_for(&catalogue(), "m".into()).is_err());
}

#[test]
fn bad_gradients_are_refused_by_name() {
    let config = GradientStoreConfig::new(1 << 20);
    let mut store = config.init_for(&catalogue(), "m".into()).expect("a store");
    fill(&mut store, 0..2, 2);
    assert!(
        matches!(store.push("t", &batch(1..3)), Err(Error::SampleTwice { sample, .. })
        if sample == "s1")
    );
    let rows = Tensor::<2>::from_floats([[0.0, 0.0, 0.0], [0.0, f32::NAN, 0.0]], &flex());
    let mut twice = batch(2..4);
    twice.insert("b", Gradient::token_sum(rows.clone()));
    assert!(
        matches!(store.push("t", &twice), Err(Error::ParameterTwice { parameter })
        if parameter == "b")
    );
    let mut nan = batch(2..4);
    nan.retain(|path| path != "b");
    nan.insert("b", Gradient::token_sum(rows));
    assert!(
        matches!(store.push("t", &nan), Err(Error::NonFinite { sample, parameter })
        if sample == "s3" && parameter == "b")
    );
    let mut missing = GradientBatch::new(vec![Sample::new("s5", 1).expect("tokens")]);
    let wide = Tensor::<2>::zeros([1, 7], &flex());
    assert!(matches!(
        store.push("t", &missing),
        Err(Error::MissingParameter { .. })
    ));
    missing.insert("w", Gradient::token_sum(wide));
    assert!(matches!(
        store.push("t", &missing),
        Err(Error::Shape { .. })
    ));
    assert_holds(&store, 2);
}

/// A batch may come parameter by parameter; only what was begun last can be kept.
#[rstest]
fn a_batch_comes_in_parts(
    #[values(Precision::Float32, Precision::Float16)] precision: Precision,
    #[values(0, 1 << 20)] memory: usize,
) {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |name: &str| {
        let config = GradientStoreConfig::new(memory)
            .with_precision(precision)
            .with_folder(Some(folder.path().join(name)));
        config.init_for(&catalogue(), "m".into()).expect("a store")
    };
    let (mut parts, mut whole) = (open("parts"), open("whole"));
    let first = batch(0..3);
    let of = |batch: &GradientBatch, path| batch.get(path).expect("a gradient").clone();
    let error = parts.put("w", of(&first, "w"));
    assert!(matches!(error, Err(Error::NoBatch)), "{error:?}");
    let error = parts.commit();
    assert!(matches!(error, Err(Error::NoBatch)), "{error:?}");
    let stale = batch(7..9);
    parts.begin("t", stale.samples()).expect("room");
    parts.put("w", of(&stale, "w")).expect("a part");
    parts.put("b", of(&stale, "b")).expect("a part");
    parts.begin("t", first.samples()).expect("room");
    parts.put("b", of(&first, "b")).expect("a part");
    let error = parts.put("b", of(&first, "b"));
    assert!(
        matches!(error, Err(Error::ParameterTwice { .. })),
        "{error:?}"
    );
    let error = parts.put("c", of(&first, "b"));
    assert!(
        matches!(error, Err(Error::UnknownParameter { .. })),
        "{error:?}"
    );
    let error = parts.put("w", of(&first, "b"));
    assert!(matches!(error, Err(Error::Shape { .. })), "{error:?}");
    parts.put("w", of(&first, "w")).expect("a part");
    parts.commit().expect("kept");
    // Half a batch is none.
    let second = batch(3..5);
    parts.begin("t", second.samples()).expect("room");
    parts.put("w", of(&second, "w")).expect("a part");
    let error = parts.commit();
    assert!(
        matches!(error, Err(Error::MissingParameter { .. })),
        "{error:?}"
    );
    let error = parts.commit();
    assert!(matches!(error, Err(Error::NoBatch)), "{error:?}");
    // A whole batch takes the place of one that was begun.
    parts.begin("t", stale.samples()).expect("room");
    parts.put("w", of(&stale, "w")).expect("a part");
    parts.push("t", &second).expect("room");
    let error = parts.commit();
    assert!(matches!(error, Err(Error::NoBatch)), "{error:?}");

    whole.push("t", &first).expect("room");
    whole.push("t", &second).expect("room");
    for store in [&parts, &whole] {
        store.verify().expect("whole");
        assert_eq!(store.samples("t").len(), 5);
    }
    drop((parts, whole));
    for file in ["index.jsonl", "shard-00000.bin"] {
        let bytes = |name: &str| std::fs::read(folder.path().join(name).join(file));
        assert_eq!(
            bytes("parts").expect("bytes"),
            bytes("whole").expect("bytes"),
            "{file}"
        );
    }
}

/// Parameters of more elements than are read at once, wide and high, come whole.
#[rstest]
fn large_parameters_come_in_slices(
    #[values(Precision::Float32, Precision::BFloat16)] precision: Precision,
    #[values(0, 1 << 27)] memory: usize,
) {
    let (wide, high) = ((1 << 21) + 3, 300_007);
    let of = |path: &str, elements: usize| {
        Parameter::new(path, [elements], Role::Vector, Orientation::InputOutput)
    };
    let parameters = vec![of("wide", wide), of("small", 3), of("high", high)];
    let catalogue = Catalogue::new(parameters).expect("parameters");
    let folder = tempfile::tempdir().expect("a folder");
    let config = GradientStoreConfig::new(memory)
        .with_precision(precision)
        .with_folder(Some(folder.path().into()));
    let mut store = config.init_for(&catalogue, "m".into()).expect("a store");
    let value = |sample: usize, e: usize| ((e + 7 * sample) % 251) as f32 - 125.0;
    let batch = |bad: Option<(usize, usize)>| {
        let samples = (0..7).map(|i| Sample::new(i.to_string(), 1).expect("tokens"));
        let mut batch = GradientBatch::new(samples.collect());
        for (path, elements) in [("wide", wide), ("small", 3), ("high", high)] {
            let mut values: Vec<f32> = (0..7)
                .flat_map(|i| (0..elements).map(move |e| value(i, e)))
                .collect();
            if let Some((sample, e)) = bad.filter(|_| path == "wide") {
                values[sample * elements + e] = f32::INFINITY;
            }
            let data = burn::tensor::TensorData::new(values, [7, elements]);
            batch.insert(
                path,
                Gradient::token_sum(Tensor::<2>::from_data(data, &flex())),
            );
        }
        batch
    };
    let error = store
        .push("t", &batch(Some((5, wide - 1))))
        .expect_err("infinite");
    assert!(
        matches!(&error, Error::NonFinite { sample, parameter } if sample == "5" && parameter == "wide"),
        "{error}"
    );
    let good = batch(None);
    store.push("t", &good).expect("a push");
    store.compare("t", &good).expect("the same");
    store.verify().expect("whole");
    let read = GradientStore::open(folder.path()).expect("a store");
    for store in [&store, &read] {
        for sample in 0..7 {
            for (path, elements) in [("wide", wide), ("small", 3), ("high", high)] {
                let row = store
                    .gradient("t", &sample.to_string(), path)
                    .expect("a row");
                // Whole numbers below 128 have seven bits: bfloat16 keeps them.
                let wrong = (0..elements).find(|&e| row[e] != value(sample, e));
                assert_eq!(wrong, None, "{path} of {sample}");
            }
        }
    }
}

/// The Fisher of the store is that of statistics filled with the same gradients.
#[rstest]
fn the_fisher_is_the_statistics(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let store = golden.store(&GradientStoreConfig::new(1 << 24), 4, &device);
        let mut statistics: fisher_core::statistics::Statistics =
            golden.statistics(&StatisticsConfig::new(), &device);
        for task in TASKS {
            let all = 0..golden.samples(task).len();
            let batch = golden.batch(task, all, &device);
            statistics.push(task, batch).expect("gradients");
            for path in golden.names(&format!("{task}/mean/")) {
                let found = store.fisher(task, path).expect("a Fisher");
                let of = statistics.task(task).expect("a task");
                let welford = of.parameter(path).expect("a parameter").elementwise();
                let read = welford.expect("elements").read().expect("values");
                assert_close(path, &found, &read.mean.expect("samples"), GOLDEN, 1e-6);
                let expected = golden.values(&format!("{task}/mean/{path}"));
                assert_close(path, &found, expected, GOLDEN, 1e-6);
            }
        }
    }
}

/// Half precision on disk and in memory, read back the same.
#[rstest]
#[case(Precision::Float16, 2f64.powi(-11))]
#[case(Precision::BFloat16, 2f64.powi(-8))]
fn half_precision_is_as_good_as_it_says(#[case] precision: Precision, #[case] relative: f64) {
    let golden = Golden::load("llama-gqa");
    let folder = tempfile::tempdir().expect("a folder");
    let full = golden.store(&GradientStoreConfig::new(1 << 24), 3, &flex());
    let config = GradientStoreConfig::new(1 << 24).with_precision(precision);
    let held = golden.store(&config, 3, &flex());
    let config = GradientStoreConfig::new(0)
        .with_precision(precision)
        .with_folder(Some(folder.path().into()));
    let on_disk = golden.store(&config, 3, &flex());
    assert_eq!(2 * held.usage().memory, full.usage().memory);
    assert_eq!(on_disk.usage().disk, held.usage().memory as u64);
    for task in TASKS {
        for sample in full.samples(task) {
            for path in golden.names("alpha/mean/") {
                let [x, y, z] = [&full, &held, &on_disk].map(|store| {
                    let row = store.gradient(task, sample.id(), path);
                    row.expect("a gradient").into_owned()
                });
                assert_eq!(y, z);
                let largest = x.iter().fold(0f64, |m, x| m.max(f64::from(*x).abs()));
                for (x, y) in x.iter().zip(y) {
                    let bound = (relative * f64::from(*x).abs()).max(2f64.powi(-39) * largest);
                    assert!(f64::from(x - y).abs() <= bound, "{path}: {x:e} as {y:e}");
                }
            }
        }
    }
}
