//! `--part` and where a part goes.

use fisher_cli::Cli;

fn read(more: &[&str]) -> Result<String, String> {
    let fixed = ["fisher", "measure", "--model", "m", "--task", "a=a.jsonl"];
    let arguments = fixed.iter().chain(more).map(|s| (*s).to_owned());
    let cli = Cli::read(arguments).map_err(|e| e.to_string())?;
    Ok(format!("{cli:?}"))
}

#[test]
fn the_folder_bears_the_parts_number() {
    let said = read(&["--part", "3/256", "--out", "out/part-{part}"]).expect("arguments");
    assert!(said.contains("\"out/part-003\""), "{said}");
    let said = read(&["--part", "3/4", "--out", "{part}/{part}"]).expect("arguments");
    assert!(said.contains("\"3/3\""), "{said}");
    let error = read(&["--out", "out/part-{part}"]).expect_err("no part");
    assert!(error.contains("there is no --part"), "{error}");
}

/// A part is said, or somebody else says it; nothing is assumed.
#[test]
fn a_part_is_said_or_refused() {
    for wrong in ["4/4", "x", "1", "-1/2"] {
        let error = read(&["--out", "o", &format!("--part={wrong}")]).expect_err(wrong);
        assert!(error.contains("INDEX/OF"), "{error}");
    }
    // Nothing sets them where tests run.
    for auto in [
        &["--part", "--out", "o"][..],
        &["--out", "o", "--part", "auto"],
    ] {
        let error = read(auto).expect_err("no array");
        for said in [
            "no job array",
            "FISHER_PART",
            "SLURM_ARRAY_TASK_ID",
            "Kubernetes",
        ] {
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
