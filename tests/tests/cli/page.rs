//! The report of `fisher measure`, looked at by a real browser.

use std::path::Path;
use std::process::Command;

use fisher_cli::Cli;
use fisher_tests::backend::skip;
use fisher_tests::golden::{TASKS, folder};
use serde_json::Value;

/// Asks the page, in a frame of a width, what a reader sees of it.
const PROBE: &str = r#"
const page = document.querySelector('iframe').contentDocument;
const seen = e => { const box = e.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
const all = selector => [...page.querySelectorAll(selector)];
const luminance = color => {
  const [r, g, b] = color.match(/[\d.]+/g).map(c => (c / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = e => {
  for (; e; e = e.parentElement) {
    const color = page.defaultView.getComputedStyle(e).backgroundColor;
    if (!/, 0\)$/.test(color)) return luminance(color);
  }
  return 1;
};
const contrast = e => {
  const pair = [luminance(page.defaultView.getComputedStyle(e).color), ground(e)].sort();
  return (pair[1] + 0.05) / (pair[0] + 0.05);
};
document.title = 'PROBE' + JSON.stringify({
  wide: page.documentElement.scrollWidth,
  sections: all('section h2').map(h => h.textContent),
  maps: all('figure.map > svg').filter(seen).length,
  cells: all('figure.map > svg rect > title').filter(t => seen(t.parentElement)).length,
  named: all('figure.map > svg').every(svg => svg.querySelector('title').textContent),
  labelled: all('svg').every(svg => svg.getAttribute('role') === 'img'),
  tables: all('table').filter(seen).length,
  headed: all('table').every(table => table.querySelector('th[scope=col], th')),
  bars: all('.bar svg').filter(seen).length,
  links: all('nav a').filter(a => !page.querySelector(a.getAttribute('href'))).length,
  outside: all('script, link, img, iframe, [src], [href^="http"]').length,
  contrast: Math.min(...all('p, li, th, td, summary, dt, dd, h1, h2, h3, caption').filter(seen).map(contrast)),
  text: page.body.innerText.length,
}) + 'END';
"#;

/// A browser, if the machine has one.
fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let works = |name: &&str| {
        Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    };
    let found = names.into_iter().find(works);
    if found.is_none() {
        skip("the report in a browser: no chromium (Debian's package chromium has one)");
    }
    found
}

/// What a browser says of the page at a width.
fn look(browser: &str, page: &str, width: usize, folder: &Path) -> Value {
    let inner = page.replace('&', "&amp;").replace('"', "&quot;");
    let outer = format!(
        "<!doctype html><body><iframe style=\"border:0;width:{width}px;height:900px\" \
         srcdoc=\"{inner}\"></iframe><script>onload = () => {{ {PROBE} }}</script>"
    );
    let file = folder.join(format!("{width}.html"));
    std::fs::write(&file, outer).expect("a page");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!(
            "--user-data-dir={}",
            folder.join("profile").display()
        ))
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("a browser");
    let dom = String::from_utf8_lossy(&output.stdout);
    let said = dom
        .split_once("PROBE{")
        .and_then(|(_, rest)| rest.split_once("}END"));
    let (said, _) = said.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(&format!("{{{said}}}")).expect("JSON")
}

#[test]
fn a_browser_shows_maps_and_tables_on_a_desk_and_on_a_phone() {
    let Some(browser) = browser() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let model = folder("llama-gqa");
    let out = work.path().join("out");
    let task = |name: &str, file: &str| format!("{name}={}", model.join(file).display());
    // Names of tasks are free text.
    let hostile = "<script>alert(1)</script> & \"co\"";
    let [a, b] = TASKS.map(|task| format!("{task}.jsonl"));
    let arguments = [
        "fisher",
        "measure",
        "--model",
        &model.display().to_string(),
        "--out",
        &out.display().to_string(),
        "--task",
        &task(hostile, &a),
        "--task",
        &task("beta", &b),
    ];
    let cli = Cli::read(arguments.map(str::to_owned)).expect("arguments");
    cli.run().expect("a run");
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    for width in [360, 1200] {
        let seen = look(browser, &page, width, work.path());
        let number = |what: &str| {
            seen[what]
                .as_f64()
                .unwrap_or_else(|| panic!("{what}: {seen}"))
        };
        assert!(number("wide") <= width as f64, "wider than {width}: {seen}");
        assert_eq!(
            seen["sections"].as_array().expect("sections").len(),
            7,
            "{seen}"
        );
        // Two of heads, two of cosines, and Q, K, V, O for two settings.
        assert_eq!(number("maps"), 12.0, "{seen}");
        // 2 × 8 heads, 2 × 30 pairs, 8 × 8 cells.
        assert_eq!(number("cells"), 16.0 + 60.0 + 64.0, "{seen}");
        // Layers and heads of both tasks, masks, conflicts twice: others are folded away.
        assert!(number("tables") >= 7.0 && number("bars") >= 26.0, "{seen}");
        assert_eq!(number("links") + number("outside"), 0.0, "{seen}");
        // WCAG 2.2 AA for text.
        assert!(number("contrast") >= 4.5, "{seen}");
        for what in ["named", "labelled", "headed"] {
            assert_eq!(seen[what], true, "{what}: {seen}");
        }
    }
    assert!(!page.contains("<script"), "a task's name is no markup");
}
