//! What a path is that is no checkpoint folder, and what to do about it.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use crate::content::Content;

/// The configuration of a LoRA adapter.
pub(super) const ADAPTER: &str = "adapter_config.json";

/// Whether a path is a folder with config.json and weights that can be read, as far as its files' names
/// and first bytes tell.
///
/// # Errors
/// [`Error::NoCheckpoint`], which says what it is and what to do.
pub(super) fn recognize(path: &Path) -> Result<()> {
    if !path.exists() {
        return Err(absent(path));
    }
    if !path.is_dir() {
        return Err(file(path));
    }
    if let Some(error) = cache(path) {
        return Err(error);
    }
    let names = names(path)?;
    let config = path.join("config.json");
    if !config.exists() {
        return Err(without_config(path, &names));
    }
    readable(&config)?;
    let weights = |name: &&String| name.ends_with(".safetensors") && name.starts_with("model");
    if names.iter().any(|name| name == INDEX) {
        return readable(&path.join(INDEX));
    }
    match names.iter().find(weights) {
        Some(name) if name == SINGLE => readable(&path.join(SINGLE)),
        // A shard.
        Some(name) if name.contains("-of-") => Err(no(
            path,
            format!("has {name} without {INDEX}"),
            "the index says what is where; download it too",
        )),
        _ => Err(without_weights(path, &names)),
    }
}

/// Weights in one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// What is in which of several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Files that are something else; a safetensors file that cannot be read may be one.
///
/// # Errors
/// [`Error::NoCheckpoint`] for a pointer of git-LFS, a web page and the like; [`Error::Io`].
pub(super) fn readable(path: &Path) -> Result<()> {
    match Content::of_file(path).map_err(|e| Error::io(path, e))? {
        Some(content @ (Content::Empty | Content::LfsPointer | Content::Html | Content::Gguf)) => {
            Err(no(path, format!("is {content}"), &content.advice(path)))
        }
        _ => Ok(()),
    }
}

fn no(path: &Path, what: impl Into<String>, advice: &str) -> Error {
    Error::NoCheckpoint {
        path: path.into(),
        what: what.into(),
        advice: advice.into(),
    }
}

/// Names on the hub are `owner/name`, and of old ones `name`.
fn absent(path: &Path) -> Error {
    let text = path.to_string_lossy();
    let parts: Vec<&str> = text.split('/').collect();
    let word = |part: &&str| {
        let mut letters = part.chars();
        !part.starts_with('.')
            && !part.is_empty()
            && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if parts.len() <= 2 && parts.iter().all(word) {
        let name = parts.last().unwrap_or(&"model");
        let advice = format!(
            "if it is a model's name on the Hugging Face hub, download it first: `hf download {text} --local-dir \
             ./models/{name}`, and give that folder"
        );
        return no(path, "is no folder here", &advice);
    }
    no(path, "is not there", "give the folder of a model")
}

fn file(path: &Path) -> Error {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    if path.extension().is_some_and(|end| end == "gguf") {
        return no(path, "is GGUF", GGUF);
    }
    if parent.join("config.json").exists() {
        let advice = format!("give its folder, {}", parent.display());
        return no(path, "is a file", &advice);
    }
    no(
        path,
        "is a file",
        "give the folder of a model, with config.json and model.safetensors",
    )
}

const GGUF: &str = "weights of llama.cpp are not read; take the model's own folder, or turn it back by transformers: \
                    `AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE).save_pretrained(NEW)`, and the \
                    tokenizer likewise";

/// A folder of the hub's cache, which has models further inside.
fn cache(path: &Path) -> Option<Error> {
    let inside = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
        folders.sort();
        folders
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let repository = match path.join("snapshots") {
        snapshots if snapshots.is_dir() && !path.join("config.json").exists() => snapshots,
        _ if name == "snapshots" => path.into(),
        _ => {
            let models = inside(path).into_iter().filter(|folder| {
                let name = folder.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("models--") && folder.join("snapshots").is_dir()
            });
            let snapshots = models.flat_map(|model| inside(&model.join("snapshots")));
            let snapshots: Vec<PathBuf> = snapshots.collect();
            return (!snapshots.is_empty()).then(|| {
                let advice = format!("give the folder of one snapshot: {}", some(&snapshots));
                no(
                    path,
                    "is a cache of the Hugging Face hub, with several models",
                    &advice,
                )
            });
        }
    };
    let snapshots = inside(&repository);
    if snapshots.is_empty() {
        let advice = "download the model anew";
        return Some(no(
            path,
            "is a cache of the Hugging Face hub without a snapshot",
            advice,
        ));
    }
    // What the hub called the newest.
    let main = repository.with_file_name("refs").join("main");
    let main = std::fs::read_to_string(main).unwrap_or_default();
    let main = snapshots
        .iter()
        .find(|s| s.ends_with(main.trim()) && !main.trim().is_empty());
    let advice = match main {
        Some(main) => format!("give the folder of its snapshot: {}", main.display()),
        None => format!("give the folder of one snapshot: {}", some(&snapshots)),
    };
    Some(no(path, "is a cache of the Hugging Face hub", &advice))
}

/// The first of some paths, and that there are more.
fn some(paths: &[PathBuf]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = paths
        .iter()
        .take(SHOWN)
        .map(|p| p.display().to_string())
        .collect();
    let more = if paths.len() > SHOWN { ", .." } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let io = |e| Error::io(folder, e);
    let entries = std::fs::read_dir(folder).map_err(io)?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        Ok(entry
            .map_err(io)?
            .file_name()
            .to_string_lossy()
            .into_owned())
    };
    let mut names = entries.map(name).collect::<Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

fn without_config(path: &Path, names: &[String]) -> Error {
    let ends = |end: &str| names.iter().any(|name| name.ends_with(end));
    if names.iter().any(|name| name == ADAPTER) {
        return adapter(path);
    }
    if ends(".gguf") {
        return no(path, "has GGUF and no config.json", GGUF);
    }
    if names
        .iter()
        .any(|name| name.starts_with("consolidated.") && name.ends_with(".pth"))
    {
        return no(
            path,
            "has weights as Meta publishes them (consolidated.*.pth)",
            "they are not read; take the folder of the same model in Hugging Face's form, or convert it by \
             transformers' `convert_llama_weights_to_hf.py`",
        );
    }
    let within = names.iter().map(|name| path.join(name));
    let within: Vec<PathBuf> = within.filter(|p| p.join("config.json").exists()).collect();
    if !within.is_empty() {
        let advice = format!("give the folder of a model inside: {}", some(&within));
        return no(path, "has no config.json", &advice);
    }
    no(
        path,
        "has no config.json",
        "give a model's folder, with config.json and model.safetensors, as `save_pretrained` writes it",
    )
}

/// A LoRA adapter without the weights it is for.
fn adapter(path: &Path) -> Error {
    let text = std::fs::read_to_string(path.join(ADAPTER)).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let base = json["base_model_name_or_path"].as_str();
    let base = base.map_or(String::new(), |base| format!(" of {base}"));
    no(
        path,
        format!("is an adapter (PEFT){base}, not a model"),
        "give the folder of the model that it is for as --model, and this one as --adapter; where a whole model is \
         wanted (--merge-with), load both by peft and save one: `model.merge_and_unload().save_pretrained(NEW)`, and the \
         tokenizer likewise",
    )
}

fn without_weights(path: &Path, names: &[String]) -> Error {
    let first = |ends: &[&str]| {
        let mut found = names.iter();
        found.find(|name| ends.iter().any(|end| name.ends_with(end)))
    };
    const SAVE: &str = "only safetensors are read; turn it into those by transformers: \
                        `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)`, and the tokenizer likewise";
    if names.iter().any(|name| name == ADAPTER) {
        return adapter(path);
    }
    if let Some(name) = first(&[".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"]) {
        return no(
            path,
            format!("has its weights in another format ({name})"),
            SAVE,
        );
    }
    if let Some(name) = first(&[".gguf"]) {
        return no(path, format!("has its weights as GGUF ({name})"), GGUF);
    }
    if let Some(name) = first(&[".safetensors"]) {
        let advice = format!("if {name} is the whole model, rename it to {SINGLE}");
        return no(path, format!("has neither {SINGLE} nor {INDEX}"), &advice);
    }
    if let Some(name) = first(&[".incomplete"]) {
        return no(
            path,
            format!("has no weights yet ({name})"),
            "finish the download",
        );
    }
    no(
        path,
        format!("has config.json and no weights, neither {SINGLE} nor {INDEX}"),
        "download them too",
    )
}
