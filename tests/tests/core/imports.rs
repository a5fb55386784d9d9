//! Imports point one way: between the folders of a crate, and between the files of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rstest::rstest;

type Graph = BTreeMap<String, BTreeSet<String>>;

/// The program text of a file, without its unit tests.
fn text(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("a file");
    let program = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = program
        .lines()
        .filter(|l| !l.trim_start().starts_with("//"));
    // What a macro names, its callers name.
    let program = lines.collect::<Vec<_>>().join("\n");
    program.replace("$crate::", "")
}

/// The names that follow `from::` anywhere: `crate::a::B` and `use crate::a` give `a`.
fn named(text: &str, from: &str) -> BTreeSet<String> {
    let from = format!("{from}::");
    let parts = text.split(&from).skip(1);
    let name = |part: &str| -> String {
        let end = part.find(|c: char| !c.is_alphanumeric() && c != '_');
        part[..end.unwrap_or(part.len())].to_owned()
    };
    parts.map(name).filter(|name| !name.is_empty()).collect()
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().expect("a name");
    stem.to_string_lossy().into_owned()
}

/// A way from a node back to it, if there is one.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn walk(graph: &Graph, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        let here = way[way.len() - 1].clone();
        for next in graph.get(&here).into_iter().flatten() {
            let back = way.contains(next);
            if !back && done.contains(next) {
                continue;
            }
            way.push(next.clone());
            if back || walk(graph, way, done) {
                return true;
            }
            way.pop();
        }
        done.insert(here);
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|node| {
        let mut way = vec![node.clone()];
        walk(graph, &mut way, &mut done).then_some(way)
    })
}

/// What the files of a folder import of the crate, and of the folder around it. Among each other they may import
/// one way, a folder in it as a file.
fn imports(folder: &Path) -> [BTreeSet<String>; 2] {
    let place = folder.display();
    let (mut outside, mut around, mut inside) = (BTreeSet::new(), BTreeSet::new(), Graph::new());
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let here = stem(&path);
        if path.is_dir() {
            let [far, near] = imports(&path);
            outside.extend(far);
            inside.insert(here, near);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = text(&path).replace("super::super::", "around::");
            if here == "mod" {
                let logic = ["fn ", "struct ", "enum ", "impl", "const "];
                let found = logic.iter().find(|word| text.contains(*word));
                assert!(found.is_none(), "{place}/mod.rs has a {found:?}");
                continue;
            }
            outside.extend(named(&text, "crate"));
            around.extend(named(&text, "around"));
            inside.insert(here, named(&text, "super"));
        }
    }
    for (file, imports) in &inside {
        let known = imports.iter().find(|import| !inside.contains_key(*import));
        assert!(known.is_none(), "{place}/{file}.rs has `super::{known:?}`");
    }
    assert_eq!(circle(&inside), None, "files of {place}");
    [outside, around]
}

#[rstest]
fn imports_point_one_way(
    #[values("fisher-core", "fisher-metrics", "fisher-train", "fisher-cli")] name: &str,
) {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let src = crates.join(name).join("src");
    // What is in the root of a crate: files, and folders by their `mod.rs`.
    let mut root = Graph::new();
    for entry in std::fs::read_dir(&src).expect("a crate") {
        let path = entry.expect("an entry").path();
        let here = stem(&path);
        if path.is_dir() {
            let [outside, around] = imports(&path);
            assert!(!outside.contains(&here), "{name}: {here} asks itself");
            assert!(around.is_empty(), "{name}: {here} has `super::super::`");
            root.insert(here, outside);
        } else if !matches!(&*here, "lib" | "main" | "prelude") {
            root.insert(here, named(&text(&path), "crate"));
        }
    }
    let nodes: BTreeSet<String> = root.keys().cloned().collect();
    for imports in root.values_mut() {
        imports.retain(|import| nodes.contains(import));
    }
    assert!(root.len() > 5, "{name}: {root:?}");
    assert_eq!(circle(&root), None, "{name}: folders");
}

#[test]
fn a_circle_is_found() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph
                .entry((*from).into())
                .or_default()
                .insert((*to).into());
        }
        graph
    };
    assert_eq!(circle(&graph(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
    let found = circle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")]));
    assert_eq!(found.expect("b and c"), ["a", "b", "c", "b"]);
}
