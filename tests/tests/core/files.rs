//! The file format: identity, merging, faults, and reading it from Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gradient::{Gradient, GradientBatch, PerToken, Raw};
use fisher_core::grouping::{GroupReduction, HeadLayout, Scheme};
use fisher_core::kind::FisherKind;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{Golden, TASKS};
use fisher_tests::signed::Signed;
use proptest::prelude::*;
use rstest::rstest;
use sha2::{Digest, Sha256};

/// Statistics of samples `range` of both tasks, pushed two by two.
fn golden(range: std::ops::Range<usize>, device: &Device) -> Statistics {
    golden_in(false, range, device)
}

fn golden_in(compensated: bool, range: std::ops::Range<usize>, device: &Device) -> Statistics {
    let golden = Golden::load("gpt2-fused");
    let config = StatisticsConfig::new()
        .with_seed(Some(3))
        .with_compensated(compensated);
    let mut statistics = golden.statistics(&config, device);
    for task in TASKS {
        for start in range.clone().step_by(2) {
            let batch = golden.batch(task, start..range.end.min(start + 2), device);
            statistics.push(task, batch).expect("gradients");
        }
    }
    statistics
}

fn save(statistics: &Statistics, folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    statistics.save(&path).expect("a file");
    path
}

#[rstest]
fn what_is_saved_is_loaded_bit_for_bit(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(false, true)] compensated: bool,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let statistics = golden_in(compensated, 0..3, &device);
    let first = save(&statistics, folder.path(), "first.safetensors");
    let loaded = Statistics::<PerToken>::load(&first, &device).expect("statistics");
    let second = save(&loaded, folder.path(), "second.safetensors");
    let bytes = |path: &Path| std::fs::read(path).expect("a file");
    assert!(bytes(&first) == bytes(&second), "the bytes differ");
    assert_eq!(loaded.provenance(), statistics.provenance());
    for task in TASKS {
        let (a, b) = (
            loaded.task(task).expect("a task"),
            statistics.task(task).expect("a task"),
        );
        assert_eq!(a.samples(), b.samples());
        for ((path, a), (_, b)) in a.parameters().zip(b.parameters()) {
            let read = |p: &fisher_core::statistics::ParameterStatistics| {
                p.elementwise().expect("elements").read().expect("values")
            };
            assert_eq!(read(a), read(b), "{path}");
        }
    }
}

#[test]
fn shards_of_different_devices_merge() {
    let Some(wgpu) = Backend::Wgpu.device() else {
        return;
    };
    let flex = Backend::Flex.device().expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let layers = |s: &Statistics| {
        let task = s.task("alpha").expect("a task");
        task.layers().mean.expect("samples")
    };
    let expected = layers(&golden(0..5, &flex));
    for (first, second) in [(&flex, &wgpu), (&wgpu, &flex)] {
        let path = save(&golden_in(true, 0..3, second), folder.path(), "file");
        let mut merged = golden(3..5, first);
        let theirs = Statistics::<PerToken>::load(&path, first).expect("statistics");
        merged.merge(theirs).expect("they belong together");
        let named = "layers of two devices";
        fisher_tests::tolerance::assert_close(named, &layers(&merged), &expected, 1e-6, 0.0);
    }
}

#[test]
fn shards_merge_to_one_pass() {
    let device = Backend::Flex.device().expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let whole = golden(0..5, &device);
    let shards = [
        golden(0..2, &device),
        golden(2..3, &device),
        golden(3..5, &device),
    ];
    let mut merged: Option<Statistics> = None;
    for (i, shard) in shards.iter().enumerate().rev() {
        let path = save(shard, folder.path(), &format!("{i}"));
        let loaded = Statistics::load(&path, &device).expect("statistics");
        match &mut merged {
            Some(merged) => merged.merge(loaded).expect("they belong together"),
            None => merged = Some(loaded),
        }
    }
    let merged = merged.expect("shards");
    for task in TASKS {
        let (a, b) = (
            merged.task(task).expect("a task"),
            whole.task(task).expect("a task"),
        );
        assert_eq!((a.count(), a.tokens()), (b.count(), b.tokens()));
        for ((path, a), (_, b)) in a.parameters().zip(b.parameters()) {
            let read = |p: &fisher_core::statistics::ParameterStatistics| {
                let moments = p.elementwise().expect("elements").read().expect("values");
                (
                    moments.mean.expect("samples"),
                    moments.variance.expect("samples"),
                )
            };
            let ((mean_a, var_a), (mean_b, var_b)) = (read(a), read(b));
            fisher_tests::tolerance::assert_close(path, &mean_a, &mean_b, 1e-13, 1e-3);
            fisher_tests::tolerance::assert_close(path, &var_a, &var_b, 1e-13, 1e-3);
        }
    }
}

/// Statistics of one 2 × 3 matrix from one sample per id.
fn tiny(config: &StatisticsConfig, model: &str, shape: [usize; 2], ids: &[&str]) -> Statistics {
    tiny_as::<PerToken>(config, model, shape, ids)
}

fn tiny_as<C: fisher_core::gradient::ContributionUnit>(
    config: &StatisticsConfig,
    model: &str,
    shape: [usize; 2],
    ids: &[&str],
) -> Statistics<C> {
    let device = Backend::Flex.device().expect("a CPU");
    let matrix = Parameter::new("w", shape, Role::Matrix, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![matrix]).expect("a parameter");
    let mut statistics = config
        .init_for(&catalogue, &HeadLayout::none(), model.into(), &device)
        .expect("statistics");
    for (k, id) in ids.iter().enumerate() {
        let elements = shape[0] * shape[1];
        let row: Vec<f32> = (0..elements).map(|e| (e + k) as f32 - 1.5).collect();
        let row = Tensor::<2>::from_data(TensorData::new(row, [1, elements]), &device);
        let mut batch = GradientBatch::new(vec![Sample::new(*id, 2).expect("tokens")]);
        batch.insert("w", Gradient::token_sum(row));
        statistics.push("task", batch).expect("gradients");
    }
    statistics
}

#[test]
fn statistics_that_do_not_belong_together_are_refused_by_name() {
    let config = StatisticsConfig::new();
    let ours = || tiny(&config, "m", [2, 3], &["a"]);
    let scheme = vec![(burn::module::ParamGroup::from_path("w"), Scheme::Tensor)];
    let cases = [
        (
            tiny(&config, "other", [2, 3], &["b"]),
            "hash of its weights",
        ),
        (tiny(&config, "m", [3, 2], &["b"]), "parameter `w`"),
        (
            tiny(&config.clone().with_elementwise(false), "m", [2, 3], &["b"]),
            "elementwise true",
        ),
        (
            tiny(&config.clone().with_schemes(scheme), "m", [2, 3], &["b"]),
            "1 tensor",
        ),
        (
            tiny(
                &config.clone().with_reduction(GroupReduction::Sum),
                "m",
                [2, 3],
                &["b"],
            ),
            "the group reduction",
        ),
        (
            tiny(
                &config.clone().with_kind(FisherKind::MonteCarlo),
                "m",
                [2, 3],
                &["b"],
            ),
            "the Fisher kind",
        ),
        (
            tiny(&config, "m", [2, 3], &["b", "a"]),
            "sample `a` of task `task` is in both",
        ),
    ];
    for (theirs, named) in cases {
        let mut merged = ours();
        let error = merged.merge(theirs).expect_err(named).to_string();
        assert!(error.contains(named), "{error}");
        assert_eq!(
            merged.task("task").expect("a task").count(),
            1,
            "nothing changed"
        );
    }
    // Of another unit: by type in memory, by name in a file.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("raw");
    tiny_as::<Raw>(&config, "m", [2, 3], &["b"])
        .save(&path)
        .expect("a file");
    let error = Statistics::<PerToken>::load(&path, ours().device()).expect_err("raw");
    assert!(matches!(error, Error::Incompatible { .. }), "{error}");
}

#[test]
fn tasks_are_keys_and_never_parsed() {
    let device = Backend::Flex.device().expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let names = [
        "beta_two",
        "beta",
        "two",
        "a/mean",
        "a%2Fmean",
        "a",
        "",
        "ünï\n\"code\"",
    ];
    let config = StatisticsConfig::new();
    let one = tiny(&config, "m", [2, 3], &["1/2_3"]);
    let mut all: Statistics = tiny(&config, "m", [2, 3], &[]);
    for name in names {
        let tokens = vec![Sample::new(name, 1).expect("tokens")];
        let mut batch = GradientBatch::new(tokens);
        batch.insert("w", Gradient::token_sum(Tensor::<2>::ones([1, 6], &device)));
        all.push(name, batch).expect("gradients");
    }
    all.merge(one).expect("they belong together");
    let path = save(&all, folder.path(), "tasks");
    let loaded = Statistics::<PerToken>::load(&path, &device).expect("statistics");
    let mut expected: Vec<&str> = names.into_iter().chain(["task"]).collect();
    expected.sort_unstable();
    assert_eq!(loaded.tasks().collect::<Vec<_>>(), expected);
    for name in names {
        assert_eq!(loaded.task(name).expect("a task").samples()[0].id, name);
    }
    let error = loaded.task("bet").expect_err("no substring").to_string();
    assert!(error.contains("beta_two"), "{error}");
}

#[test]
fn custom_groups_survive_the_file_and_take_more_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    let scheme = Scheme::Custom {
        ids: vec![1, 0, 0, 1, 1, 2],
    };
    let group = burn::module::ParamGroup::from_path("w");
    let config = StatisticsConfig::new().with_schemes(vec![(group, scheme)]);
    let first = tiny(&config, "m", [2, 3], &["a"]);
    let path = save(&first, folder.path(), "custom");
    let mut resumed = Statistics::<PerToken>::load(&path, first.device()).expect("statistics");
    resumed
        .merge(tiny(&config, "m", [2, 3], &["b"]))
        .expect("they belong together");
    let of = |s: &Statistics| {
        let task = s.task("task").expect("a task");
        let welford = task
            .parameter("w")
            .expect("w")
            .group("custom")
            .expect("groups")
            .clone();
        welford.read().expect("values").mean.expect("samples")
    };
    // Groups lie beside the header, which may not grow with the parameter.
    let file = Signed::read(&path);
    let (dtype, shape, ids) = &file.tensors["%groups/custom/w"];
    assert_eq!((*dtype, &**shape), (safetensors::Dtype::U32, &[2, 3][..]));
    let ids: Vec<u8> = ids.iter().step_by(4).copied().collect();
    assert_eq!(ids, [1, 0, 0, 1, 1, 2]);
    // Both samples have gradients −1.5 .. 3.5, squared over 2 tokens.
    assert_eq!(of(&resumed), of(&tiny(&config, "m", [2, 3], &["a"])));
    let expected = [(0.25 + 0.25) / 4.0, (2.25 + 2.25 + 6.25) / 6.0, 12.25 / 2.0];
    fisher_tests::tolerance::assert_close("groups", &of(&first), &expected, 1e-6, 0.0);
}

/// Before, the groups of a parameter of this size were 120 MB of a header that may have 100.
#[test]
fn custom_groups_of_a_large_parameter_are_saved() {
    let elements = 1usize << 24;
    let folder = tempfile::tempdir().expect("a folder");
    let device = Backend::Flex.device().expect("a CPU");
    let matrix = Parameter::new("w", [elements], Role::Vector, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![matrix]).expect("a parameter");
    let ids: Vec<u32> = (0..elements as u32).map(|e| e / 4).collect();
    let scheme = Scheme::Custom { ids };
    let group = burn::module::ParamGroup::from_path("w");
    let config = StatisticsConfig::new()
        .with_elementwise(false)
        .with_schemes(vec![(group, scheme)]);
    let heads = HeadLayout::none();
    let statistics: fisher_core::Result<Statistics> =
        config.init_for(&catalogue, &heads, "m".into(), &device);
    let path = save(&statistics.expect("statistics"), folder.path(), "large");
    let bytes = std::fs::metadata(&path).expect("a file").len();
    assert!(bytes < 4 * elements as u64 + 10_000, "{bytes} bytes");
    Statistics::<PerToken>::load(&path, &device).expect("statistics");
}

/// A file as versions before schema 3 wrote it.
fn without_what_is_new(file: &mut Signed, task: &str) {
    file.tensors
        .retain(|name, _| !name.contains("/total_m3/") && !name.contains("/unit_"));
    let counts = file.about["tasks"][task].as_object_mut().expect("counts");
    counts.retain(|name, _| !name.contains("/total_m3/") && !name.contains("/unit_"));
}

/// Heads that share keys and values were counted otherwise, and are left out; layers are not.
#[test]
fn shared_heads_of_schema_2_are_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = Backend::Flex.device().expect("a CPU");
    let golden = Golden::load("llama-gqa");
    let mut new: Statistics = golden.statistics(&StatisticsConfig::new(), &device);
    let batch = golden.batch("alpha", 0..4, &device);
    new.push("alpha", batch).expect("gradients");
    let path = save(&new, folder.path(), "file");
    let mut file = Signed::read(&path);
    file.about["schema"] = 2.into();
    without_what_is_new(&mut file, "alpha");
    file.write(&path);
    let old = Statistics::<PerToken>::load(&path, &device).expect("statistics");
    assert!(old.totals().heads().is_empty() && !new.totals().heads().is_empty());
    let layers = |statistics: &Statistics| statistics.task("alpha").expect("it").layers().mean;
    assert_eq!(layers(&old), layers(&new));
    let error = new.mergeable(&old).expect_err("other heads");
    assert!(error.to_string().contains("0 heads"), "{error}");
}

/// As the version before wrote it: groups in the header, and samples that were counted twice.
#[test]
fn files_of_schema_1_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let scheme = Scheme::Custom {
        ids: vec![1, 0, 0, 1, 1, 2],
    };
    let group = burn::module::ParamGroup::from_path("w");
    let config = StatisticsConfig::new().with_schemes(vec![(group, scheme)]);
    let new = tiny(&config, "m", [2, 3], &["a", "b"]);
    let path = save(&new, folder.path(), "file");
    let mut file = Signed::read(&path);
    file.about["schema"] = 1.into();
    let custom = file
        .about
        .pointer_mut("/plan/parameters/w/groupings/0/plan/custom");
    custom.expect("the groups")["ids"] = serde_json::json!([1, 0, 0, 1, 1, 2]);
    file.tensors.remove("%groups/custom/w").expect("the groups");
    without_what_is_new(&mut file, "task");
    file.write(&path);
    let mut old = Statistics::<PerToken>::load(&path, new.device()).expect("statistics");
    old.same_configuration(&new).expect("the same");
    let of = |statistics: &Statistics| statistics.task("task").expect("a task").layers();
    let (found, expected) = (of(&old), of(&new));
    assert_eq!(
        (&found.mean, &found.variance),
        (&expected.mean, &expected.variance)
    );
    assert!(found.skewness.is_none() && expected.skewness.is_some());
    // It stays so when others are joined, and when it is saved again.
    old.merge(tiny(&config, "m", [2, 3], &["c"]))
        .expect("others");
    let again = save(&old, folder.path(), "again");
    let again = Statistics::<PerToken>::load(&again, new.device()).expect("statistics");
    for statistics in [&old, &again] {
        let task = statistics.task("task").expect("a task");
        assert_eq!((task.count(), task.layers().skewness), (3, None));
        assert!(task.layer_units().is_none() && task.layers().standard_error.is_some());
    }
    let old = Statistics::<PerToken>::load(&path, new.device()).expect("statistics");

    let samples = br#"[{"id":"a","tokens":2},{"id":"a","tokens":2}]"#.to_vec();
    let tensor = (safetensors::Dtype::U8, vec![samples.len()], samples);
    file.tensors.insert("task/samples".into(), tensor);
    file.write(&path);
    let twice = Statistics::<PerToken>::load(&path, old.device()).expect("statistics");
    assert_eq!(twice.task("task").expect("a task").count(), 2);
    let error = old.clone().merge(twice).expect_err("it is in both");
    assert!(matches!(error, Error::DuplicateSample { .. }), "{error}");
}

#[test]
fn damaged_files_give_typed_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = tiny(&StatisticsConfig::new(), "m", [2, 3], &["a", "b"]);
    let path = save(&good, folder.path(), "good");
    let bytes = std::fs::read(&path).expect("a file");
    let load = |bytes: &[u8]| {
        let path = folder.path().join("bad");
        std::fs::write(&path, bytes).expect("a file");
        Statistics::<PerToken>::load(&path, good.device()).map(|_| ())
    };
    load(&bytes).expect("the file is good");

    // Cut anywhere.
    for length in (0..bytes.len()).step_by(7) {
        let error = load(&bytes[..length]).expect_err("cut");
        assert!(matches!(error, Error::Format { .. }), "{length}: {error}");
    }
    // One bit of the data flipped: the checksum sees it.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    for at in (header..bytes.len()).step_by(11) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 16;
        let error = load(&flipped).expect_err("flipped");
        assert!(matches!(error, Error::Checksum { .. }), "{at}: {error}");
    }
    // A byte of the header changed: never accepted, never a panic.
    for at in 0..header {
        let mut changed = bytes.clone();
        changed[at] = changed[at].wrapping_add(1);
        match load(&changed) {
            Err(Error::Format { .. } | Error::Checksum { .. } | Error::Version { .. }) => {}
            // The alignment's blanks after the JSON carry nothing.
            Ok(()) => panic!("byte {at} of the header does not matter"),
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    let text = String::from_utf8_lossy(&bytes[8..header]).into_owned();
    let with_header = |text: &str| {
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.as_bytes());
        file.extend(&bytes[header..]);
        file
    };
    for found in [0, 4] {
        let schema = format!(r#"\"schema\":{found}"#);
        let other_version = text.replacen(r#"\"schema\":3"#, &schema, 1);
        let error = load(&with_header(&other_version)).expect_err("version");
        let named = matches!(error, Error::Version { found: f, supported: 3, .. } if f == found);
        assert!(named, "{error}");
    }
    // Headers that claim more than there is.
    for hostile in [
        u64::MAX.to_le_bytes().to_vec(),
        [&99_000_000u64.to_le_bytes()[..], b"{}"].concat(),
        with_header(
            r#"{"w":{"dtype":"F64","shape":[9223372036854775807,9],"data_offsets":[0,8]}}"#,
        ),
        with_header("{}"),
        with_header("not json"),
    ] {
        let error = load(&hostile).expect_err("hostile");
        assert!(matches!(error, Error::Format { .. }), "{error}");
    }
    let missing = Statistics::<PerToken>::load(folder.path().join("none"), good.device());
    assert!(matches!(missing.expect_err("no file"), Error::Io { .. }));
}

/// Someone who can compute the checksum still cannot make a file that panics or allocates.
#[test]
fn hostile_files_with_a_right_checksum_give_typed_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = tiny(&StatisticsConfig::new(), "m", [2, 3], &["a", "b"]);
    let path = save(&good, folder.path(), "good");
    let bytes = std::fs::read(&path).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let metadata = header.metadata().as_ref().expect("metadata")["fisher"].clone();
    let digest = metadata.split("\"sha256\":\"").nth(1).expect("a digest")[..64].to_owned();
    for (from, to) in [
        (r#""shape":[2,3]"#, r#""shape":[200000000000,300000000000]"#),
        (r#""shape":[2,3]"#, r#""shape":[2,2]"#),
        (r#""shape":[2,3]"#, r#""shape":[]"#),
        (r#""layers":["w"]"#, r#""layers":[]"#),
        (r#""layer_of":{"w":0}"#, r#""layer_of":{"w":5}"#),
        (r#""per":3"#, r#""per":3000000000000"#),
        (r#""repeats":1"#, r#""repeats":0"#),
        (r#""axis":1"#, r#""axis":2"#),
        (r#""elementwise":true"#, r#""elementwise":7"#),
        (r#""tasks":{"task""#, r#""tasks":{"other""#),
        (r#""task/mean/w":2"#, r#""task/mean/v":2"#),
        (
            r#""task/mean/w":2"#,
            r#""task/mean/w":18446744073709551615"#,
        ),
        (r#""layers":["w"]"#, r#""layers":["w","x"]"#),
        (r#""heads":[]"#, r#""heads":[{"attention":"a","head":0}]"#),
        (r#""loss":"token_sum""#, r#""loss":"token_mean""#),
        // A Fisher that nothing here collects.
        (r#""kind":"empirical""#, r#""kind":"per_token""#),
    ] {
        assert!(metadata.contains(from), "{from} is not in {metadata}");
        let text = metadata.replace(from, to).replace(&digest, "");
        let mut hash = Sha256::new();
        hash.update(&text);
        let mut names = file.names();
        names.sort();
        for name in names {
            let view = file.tensor(name).expect("a tensor");
            let about = serde_json::to_vec(&(name, view.dtype(), view.shape())).expect("JSON");
            hash.update(about);
            hash.update(view.data());
        }
        let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let text = text.replace(r#""sha256":"""#, &format!(r#""sha256":"{found}""#));
        let path = folder.path().join("hostile");
        let metadata = Some([("fisher".to_owned(), text)].into());
        safetensors::serialize_to_file(file.tensors(), metadata, &path).expect("a file");
        match Statistics::<PerToken>::load(&path, good.device()) {
            Err(Error::Format { .. }) => {}
            Err(other) => panic!("{from} to {to}: {other}"),
            Ok(_) => panic!("{from} to {to} was accepted"),
        }
    }
}

#[test]
fn a_write_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = tiny(&StatisticsConfig::new(), "m", [2, 3], &["a"]);
    let path = save(&old, folder.path(), "file");
    let before = std::fs::read(&path).expect("a file");
    let error = old
        .save(folder.path().join("no/such/folder"))
        .expect_err("no folder");
    assert!(matches!(error, Error::Io { .. }));
    assert_eq!(std::fs::read(&path).expect("a file"), before);
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("a folder")
        .collect();
    assert_eq!(left.len(), 1, "no temporary file is left");
}

/// This test, started again as a child that may write 4 kB at most, finds the disk full.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_of_the_disk() {
    const TARGET: &str = "FISHER_TEST_FULL_DISK";
    if let Some(path) = std::env::var_os(TARGET) {
        let device = Backend::Flex.device().expect("a CPU");
        let old = std::fs::read(&path).expect("a file");
        let error = golden(0..4, &device).save(&path).expect_err("it is full");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(std::fs::read(&path).expect("a file"), old);
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    std::fs::write(&path, "what was there").expect("written");
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "files::a_full_disk_is_an_error_of_the_disk"])
        .env(TARGET, &path)
        .output()
        .expect("a child");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    let left = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 1, "no temporary file is left");
}

/// This test, started again as a child, writes one file over and over until it is killed. What it
/// leaves half goes with the next file that is written there.
#[test]
fn a_kill_in_the_middle_of_a_write_leaves_a_whole_file() {
    const TARGET: &str = "FISHER_TEST_WRITE_UNTIL_KILLED";
    if let Some(path) = std::env::var_os(TARGET) {
        let device = Backend::Flex.device().expect("a CPU");
        let versions = [golden(0..4, &device), golden(0..2, &device)];
        loop {
            versions.iter().for_each(|s| s.save(&path).expect("a file"));
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let device = Backend::Flex.device().expect("a CPU");
    let path = folder.path().join("file");
    for round in 0..10u64 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "files::a_kill_in_the_middle_of_a_write_leaves_a_whole_file",
            ])
            .env(TARGET, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("a child");
        // It is at it once the file is there anew; then it is killed at some point of a write.
        let start = std::time::Instant::now();
        while !path.exists() {
            assert!(start.elapsed().as_secs() < 60, "the child never wrote");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(3000 + 1777 * round));
        assert!(
            child.try_wait().expect("a child").is_none(),
            "the child ended by itself"
        );
        child.kill().expect("a running child");
        child.wait().expect("an end");
        let loaded = Statistics::<PerToken>::load(&path, &device).expect("a whole file");
        let count = loaded.task("alpha").expect("a task").count();
        assert!(count == 2 || count == 4, "{count} samples");
        std::fs::remove_file(&path).expect("a file");
    }
    golden(0..2, &device).save(&path).expect("a file");
    let left = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(left, 1, "no temporary file is left");
}

#[test]
fn python_reads_it_with_safetensors_alone() {
    let python = Command::new("python3")
        .args(["-c", "import safetensors, numpy"])
        .output();
    if !python.is_ok_and(|out| out.status.success()) {
        fisher_tests::backend::skip("Python: no python3 with safetensors and numpy");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let device = Backend::Flex.device().expect("a CPU");
    let path = save(
        &golden(0..5, &device),
        folder.path(),
        "statistics.safetensors",
    );
    let expected = fisher_tests::golden::folder("gpt2-fused").join("expected.safetensors");
    let program = r#"
import hashlib, json, sys
import numpy as np
from safetensors import safe_open
with safe_open(sys.argv[1], "np") as ours, safe_open(sys.argv[2], "np") as golden:
    text = ours.metadata()["fisher"]
    about = json.loads(text)
    assert about["schema"] == 3 and about["provenance"]["unit"] == "per_token", about
    digest = hashlib.sha256(text.replace(about["sha256"], "", 1).encode())
    compared = 0
    for name in sorted(ours.keys()):
        array = ours.get_tensor(name)
        kind = {"float64": "F64", "float32": "F32", "uint8": "U8", "uint32": "U32"}[str(array.dtype)]
        digest.update(json.dumps([name, kind, list(array.shape)], separators=(",", ":")).encode())
        digest.update(array.tobytes())
        if name in golden.keys() and name.startswith("alpha/"):
            wanted = golden.get_tensor(name)
            assert array.shape == wanted.shape, name
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-11 * abs(wanted).max())
            compared += 1
    assert digest.hexdigest() == about["sha256"]
    samples = json.loads(ours.get_tensor("alpha/samples").tobytes())
    assert [s["id"] for s in samples] == ["3", "13", "23", "33", "43"], samples
    assert [s["tokens"] for s in samples] == [9, 7, 6, 8, 3], samples
    assert compared > 100, compared
"#;
    let out = Command::new("python3")
        .args(["-c", program])
        .arg(&path)
        .arg(expected)
        .output();
    let out = out.expect("python3");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn save_and_load_are_the_identity(
        rows in 1usize..4,
        columns in 1usize..4,
        ids in prop::collection::hash_set(".{0,8}", 0..6),
        elementwise in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let config = StatisticsConfig::new().with_elementwise(elementwise);
        let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
        let statistics = tiny(&config, "m", [rows, columns], &ids);
        let first = save(&statistics, folder.path(), "first");
        let loaded = Statistics::<PerToken>::load(&first, statistics.device());
        let second = save(&loaded.expect("statistics"), folder.path(), "second");
        prop_assert_eq!(std::fs::read(first).expect("a file"), std::fs::read(second).expect("a file"));
    }
}
