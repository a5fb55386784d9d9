//! Which part of the samples a job of an array is to measure, by what its launcher says of it.

use crate::samples::Part;

/// The variable that says a part outright: `INDEX/OF`.
const GIVEN: &str = "FISHER_PART";
/// The variable that says how many parts there are.
const OF: &str = "FISHER_PARTS";

/// What a launcher sets for the jobs of an array.
struct Launcher {
    name: &'static str,
    /// The number of this job.
    index: &'static str,
    /// The number of the first job, unless a variable says another.
    base: usize,
    first: Option<&'static str>,
    count: Count,
}

/// How many jobs there are.
enum Count {
    In(&'static str),
    /// The number of the last job is in a variable.
    Last(&'static str),
    /// It does not say.
    Unsaid,
}

const LAUNCHERS: [Launcher; 9] = [
    Launcher {
        name: "Slurm",
        index: "SLURM_ARRAY_TASK_ID",
        base: 0,
        first: Some("SLURM_ARRAY_TASK_MIN"),
        count: Count::Last("SLURM_ARRAY_TASK_MAX"),
    },
    Launcher {
        name: "PBS",
        index: "PBS_ARRAY_INDEX",
        base: 0,
        first: None,
        count: Count::Unsaid,
    },
    Launcher {
        name: "Torque",
        index: "PBS_ARRAYID",
        base: 0,
        first: None,
        count: Count::Unsaid,
    },
    Launcher {
        name: "Grid Engine",
        index: "SGE_TASK_ID",
        base: 1,
        first: Some("SGE_TASK_FIRST"),
        count: Count::Last("SGE_TASK_LAST"),
    },
    Launcher {
        name: "LSF",
        index: "LSB_JOBINDEX",
        base: 1,
        first: None,
        count: Count::Last("LSB_JOBINDEX_END"),
    },
    Launcher {
        name: "AWS Batch",
        index: "AWS_BATCH_JOB_ARRAY_INDEX",
        base: 0,
        first: None,
        count: Count::In("AWS_BATCH_JOB_ARRAY_SIZE"),
    },
    Launcher {
        name: "Google Batch",
        index: "BATCH_TASK_INDEX",
        base: 0,
        first: None,
        count: Count::In("BATCH_TASK_COUNT"),
    },
    Launcher {
        name: "Cloud Run",
        index: "CLOUD_RUN_TASK_INDEX",
        base: 0,
        first: None,
        count: Count::In("CLOUD_RUN_TASK_COUNT"),
    },
    Launcher {
        name: "Kubernetes",
        index: "JOB_COMPLETION_INDEX",
        base: 0,
        first: None,
        count: Count::Unsaid,
    },
];

/// Read `--part`: `INDEX/OF`, or `auto` for what the environment says.
///
/// # Errors
/// What is missing or contradicts itself.
pub(super) fn part(text: &str) -> Result<Part, String> {
    match text {
        "auto" => of_job(|name| std::env::var(name).ok().filter(|value| !value.is_empty())),
        given => given.parse(),
    }
}

/// The part by these variables: `FISHER_PART`, or those of the one launcher that set any.
fn of_job(variable: impl Fn(&str) -> Option<String>) -> Result<Part, String> {
    if let Some(given) = variable(GIVEN) {
        let part: Result<Part, String> = given.parse();
        let part = part.map_err(|e| format!("{GIVEN}={given}: {e}"))?;
        return Ok(Part {
            source: Some(GIVEN),
            ..part
        });
    }
    let set = |launcher: &&Launcher| variable(launcher.index).is_some_and(|v| v != "undefined");
    let found: Vec<&Launcher> = LAUNCHERS.iter().filter(set).collect();
    match *found {
        [launcher] => launcher.part(&variable),
        [] => Err(format!(
            "no job array says which part this is: looked for {GIVEN} (INDEX/OF), {}",
            names(LAUNCHERS.iter())
        )),
        _ => Err(format!(
            "{} are set: say which part this is by {GIVEN}=INDEX/OF",
            names(found.into_iter())
        )),
    }
}

fn names<'a>(launchers: impl Iterator<Item = &'a Launcher>) -> String {
    let names = launchers.map(|launcher| format!("{} ({})", launcher.index, launcher.name));
    names.collect::<Vec<_>>().join(", ")
}

impl Launcher {
    fn part(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Part, String> {
        let Self { name, index, .. } = self;
        let number = |variable: &str, value: String| {
            let number = value.trim().parse::<usize>();
            number.map_err(|_| format!("{variable}={value} is no whole number"))
        };
        let needed = |name: &str| {
            let value = variable(name);
            let value = value.ok_or_else(|| {
                format!("{index} is set and {name} is not: say how many parts there are by {OF}")
            });
            number(name, value?)
        };
        let job = needed(index)?;
        let total = variable(OF).map(|value| number(OF, value)).transpose()?;
        // Of jobs that are submitted again, the launcher says where those begin, and not where all did.
        let first = match self.first {
            Some(first) if total.is_none() => needed(first)?,
            _ => self.base,
        };
        let of = match (total, &self.count) {
            (Some(total), _) => total,
            (None, Count::In(variable)) => needed(variable)?,
            (None, Count::Last(variable)) => (needed(variable)? + 1).saturating_sub(first),
            (None, Count::Unsaid) => {
                return Err(format!(
                    "{name} sets {index}={job} and does not say of how many: set {OF}"
                ));
            }
        };
        if total.is_none() && (first > 1 || of < 2) {
            return Err(format!(
                "{index}={job}, in an array that goes from {first} to {}: that does not say of how many \
                 parts this is one. Set {OF} to their number, where jobs count from {}, or {GIVEN} to \
                 INDEX/OF",
                (first + of).saturating_sub(1),
                self.base
            ));
        }
        let part = job.checked_sub(first).filter(|part| *part < of);
        let part = part.ok_or_else(|| format!("{index}={job} is no job of {of} from {first}"))?;
        if let Some(listed) = variable("SLURM_ARRAY_TASK_COUNT")
            && *name == "Slurm"
            && total.is_none()
            && number("SLURM_ARRAY_TASK_COUNT", listed.clone())? != of
        {
            return Err(format!(
                "SLURM_ARRAY_TASK_COUNT={listed}, and jobs are numbered from {first} to {}: an array \
                 with gaps. Set {OF} to the number of parts",
                first + of - 1
            ));
        }
        Ok(Part {
            index: part,
            of,
            source: Some(self.index),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(set: &str) -> Result<Part, String> {
        let set: Vec<(&str, &str)> = set.split(' ').filter_map(|s| s.split_once('=')).collect();
        of_job(|name| {
            let mut set = set.iter();
            let value = set.find_map(|(known, value)| (*known == name).then_some(value));
            value.map(|value| (*value).into())
        })
    }

    fn slurm(id: usize, from: usize, to: usize, count: usize) -> String {
        format!(
            "SLURM_ARRAY_TASK_ID={id} SLURM_ARRAY_TASK_MIN={from} SLURM_ARRAY_TASK_MAX={to} \
             SLURM_ARRAY_TASK_COUNT={count}"
        )
    }

    #[test]
    fn a_job_says_its_part() {
        for (set, index, of) in [
            (&*slurm(3, 0, 7, 8), 3, 8),
            (&*slurm(8, 1, 8, 8), 7, 8),
            ("SGE_TASK_ID=1 SGE_TASK_FIRST=1 SGE_TASK_LAST=4", 0, 4),
            ("LSB_JOBINDEX=4 LSB_JOBINDEX_END=4", 3, 4),
            (
                "AWS_BATCH_JOB_ARRAY_INDEX=2 AWS_BATCH_JOB_ARRAY_SIZE=3",
                2,
                3,
            ),
            ("BATCH_TASK_INDEX=0 BATCH_TASK_COUNT=2", 0, 2),
            ("CLOUD_RUN_TASK_INDEX=1 CLOUD_RUN_TASK_COUNT=2", 1, 2),
            ("JOB_COMPLETION_INDEX=5 FISHER_PARTS=6", 5, 6),
            ("PBS_ARRAY_INDEX=5 FISHER_PARTS=6", 5, 6),
            ("PBS_ARRAYID=0 FISHER_PARTS=6", 0, 6),
            ("FISHER_PART=1/2 SLURM_ARRAY_TASK_ID=9", 1, 2),
            // Some of the jobs again, with the number of all.
            (&*format!("{} FISHER_PARTS=8", slurm(3, 3, 5, 2)), 3, 8),
            (
                "SGE_TASK_ID=8 SGE_TASK_FIRST=8 SGE_TASK_LAST=8 FISHER_PARTS=8",
                7,
                8,
            ),
        ] {
            let part = found(set).unwrap_or_else(|e| panic!("{set}: {e}"));
            assert_eq!((part.index, part.of), (index, of), "{set}");
            assert!(set.contains(part.source.expect("a variable")), "{set}");
        }
    }

    #[test]
    fn what_does_not_say_it_is_refused() {
        for (set, reason) in [
            ("", "looked for FISHER_PART"),
            ("SGE_TASK_ID=undefined", "looked for FISHER_PART"),
            ("PBS_ARRAY_INDEX=5", "set FISHER_PARTS"),
            ("JOB_COMPLETION_INDEX=5", "set FISHER_PARTS"),
            ("JOB_COMPLETION_INDEX=6 FISHER_PARTS=6", "no job of 6"),
            (
                "AWS_BATCH_JOB_ARRAY_INDEX=2",
                "AWS_BATCH_JOB_ARRAY_SIZE is not",
            ),
            ("LSB_JOBINDEX=0 LSB_JOBINDEX_END=4", "no job of 4"),
            ("FISHER_PART=3", "FISHER_PART=3"),
            ("FISHER_PART=3/3", "FISHER_PART=3/3"),
            ("JOB_COMPLETION_INDEX=x FISHER_PARTS=6", "no whole number"),
            ("SLURM_ARRAY_TASK_ID=3 PBS_ARRAY_INDEX=3", "are set"),
            // Part 3 of an array, submitted again by itself, is not all of the samples.
            (&*slurm(3, 3, 3, 1), "Set FISHER_PARTS"),
            (&*slurm(0, 0, 0, 1), "Set FISHER_PARTS"),
            (&*slurm(3, 0, 7, 3), "with gaps"),
        ] {
            let error = found(set).expect_err(set);
            assert!(error.contains(reason), "{set}: {error}");
        }
    }
}
