//! What comes in: files of samples, text and chats as transformers reads them, classes.

use std::path::{Path, PathBuf};

use fisher_cli::models::ModelConfig;
use fisher_cli::samples::{
    Chat, Classes, Conversation, Form, Reader, TaskData, TaskFile, Text, Tokens,
};
use fisher_tests::golden::folder;
use rstest::rstest;
use serde_json::{Value, json};

const IGNORE: i64 = -100;

/// A tokenizer that tests/golden/tokens.py made, and what transformers makes of texts by it.
struct Case {
    folder: PathBuf,
    expected: Value,
}

impl Case {
    fn new(name: &str) -> Self {
        let folder = folder("tokens").join(name);
        let expected = std::fs::read(folder.join("expected.json")).expect("expected.json");
        Self {
            expected: serde_json::from_slice(&expected).expect("JSON"),
            folder,
        }
    }

    fn rows(&self, what: &str) -> &[Value] {
        self.expected[what].as_array().expect("a list")
    }

    fn text(&self) -> Text {
        Text::read(&self.folder).expect("a tokenizer")
    }
}

fn numbers(row: &Value, key: &str) -> Vec<i64> {
    let list = row[key].as_array().expect("a list").iter();
    list.map(|n| n.as_i64().expect("a number")).collect()
}

fn word<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().expect("a text")
}

const CASES: [&str; 6] = [
    "bytes",
    "bytes-eos",
    "bytes-config",
    "unigram-first",
    "bpe-always",
    "bpe-prepended",
];

#[test]
fn texts_and_completions_are_those_of_transformers() {
    for name in CASES {
        let case = Case::new(name);
        let text = case.text();
        for row in case.rows("texts") {
            let tokens = text.tokens(word(row, "text"), true).expect("tokens");
            assert_eq!(tokens.ids, numbers(row, "ids"), "{name}: {row}");
        }
        for row in case.rows("completions") {
            let (prompt, completion) = (word(row, "prompt"), word(row, "completion"));
            let (tokens, labels) = text.completed(prompt, completion).expect("tokens");
            assert_eq!(tokens.ids, numbers(row, "ids"), "{name}: {row}");
            assert_eq!(labels, numbers(row, "labels"), "{name}: {row}");
        }
    }
}

#[test]
fn chats_are_those_of_transformers() {
    let mut chats = 0;
    for name in CASES {
        let case = Case::new(name);
        let text = case.text();
        for row in case.rows("chats") {
            let chat = Chat::read(&case.folder).expect("a template");
            // As a line has it: the order of keys shows in what templates write of tools.
            let line = std::fs::read_to_string(case.folder.join("expected.json")).expect("a file");
            let place = line
                .lines()
                .find(|line| line.contains(&format!("\"text\": {}", row["text"])))
                .expect("a line");
            let place = place.trim_end_matches(',');
            #[derive(serde::Deserialize)]
            struct Row {
                line: Conversation,
            }
            let Row { line } = serde_json::from_str(place).expect("a chat");
            let rendered = chat.render(&line).expect("a text");
            assert_eq!(rendered.text, word(row, "text"), "{name}");
            let tokens = text.tokens(&rendered.text, false).expect("tokens");
            assert_eq!(tokens.ids, numbers(row, "ids"), "{name}");
            let labels = tokens.labels(&rendered.turns).expect("labels");
            assert_eq!(labels, numbers(row, "labels"), "{name}: {}", rendered.text);
            chats += 1;
        }
    }
    assert_eq!(chats, 9);
}

/// Without a prompt a completion is a text.
#[test]
fn a_completion_alone_is_a_text() {
    for name in CASES {
        let text = Case::new(name).text();
        for written in ["the cat sat", " the cat", "café", "x "] {
            let whole: Tokens = text.tokens(written, true).expect("tokens");
            let (tokens, labels) = text.completed("", written).expect("tokens");
            assert_eq!(tokens, whole, "{name}");
            assert_eq!(labels, whole.ids, "{name}");
        }
    }
}

/// Wherever a text is cut, what counts is what follows, and with each further letter of the prompt no more.
#[test]
fn labels_follow_the_border() {
    for name in CASES {
        let text = Case::new(name).text();
        let whole = "the cat  sat, naïve café \u{1f980}\n two";
        let mut before = usize::MAX;
        for (border, _) in whole.char_indices() {
            let (tokens, labels) = text
                .completed(&whole[..border], &whole[border..])
                .expect("tokens");
            let counted = labels.iter().filter(|label| **label != IGNORE).count();
            assert!(counted <= before && counted > 0, "{name} at {border}");
            let first = labels
                .iter()
                .position(|label| *label != IGNORE)
                .expect("a label");
            assert_eq!(labels[first..], tokens.ids[first..], "{name} at {border}");
            before = counted;
        }
    }
}

#[rstest]
#[case("bytes", "the tokenizer adds nothing before or after a sample")]
#[case(
    "bytes-eos",
    "the tokenizer adds nothing before each sample and `</s>` after"
)]
#[case("bytes-config", "the tokenizer adds nothing before or after a sample")]
#[case(
    "bpe-always",
    "the tokenizer adds `<s>` before each sample and `</s>` after"
)]
#[case(
    "unigram-first",
    "the tokenizer adds `<s>` before each sample and nothing after"
)]
fn what_is_added_is_said(#[case] name: &str, #[case] said: &str) {
    assert_eq!(Case::new(name).text().added().to_string(), said);
}

/// Read a file of samples for a model by a tokenizer.
fn read(tokens: &Path, classes: Option<Classes>, bytes: &[u8]) -> Result<TaskData, String> {
    // Its vocabulary is small: words are checked against it elsewhere.
    let mut config: Value = serde_json::from_slice(
        &std::fs::read(folder("llama-gqa").join("config.json")).expect("a file"),
    )
    .expect("JSON");
    config["vocab_size"] = 1000.into();
    let model = tempfile::tempdir().expect("a folder");
    std::fs::write(model.path().join("config.json"), config.to_string()).expect("a file");
    let path = model.path().join("lines.jsonl");
    std::fs::write(&path, bytes).expect("a file");
    let config = ModelConfig::read(model.path()).expect("a model");
    let reader = Reader {
        classes,
        ..Reader::new(&config, tokens)
    };
    let name = "alpha".into();
    let task = TaskFile { name, path };
    reader.read(&task).map_err(|e| e.to_string())
}

fn plain(bytes: &[u8]) -> Result<TaskData, String> {
    read(&Case::new("bytes").folder, None, bytes)
}

#[test]
fn a_byte_order_mark_means_nothing() {
    let data = plain(b"\xef\xbb\xbf{\"input_ids\": [1, 2]}\r\n\r\n{\"text\": \"the cat\"}\r\n")
        .expect("samples");
    assert_eq!(data.ids, [json!(1), json!(3)]);
    assert_eq!(
        data.forms.into_iter().collect::<Vec<_>>(),
        [Form::Tokens, Form::Text]
    );
}

#[rstest]
#[case(b"\xff\xfe{\0\"\0", "UTF-16", "iconv -f UTF-16")]
#[case(b"{\0\"\0i\0d\0", "UTF-16", "iconv")]
#[case(b"\x1f\x8b\x08\0\0", "packed by gzip", "gzip -dc")]
#[case(b"\x28\xb5\x2f\xfd\0", "packed by Zstandard", "zstd -dc")]
#[case(b"PAR1\x15\x04", "Parquet", "read_parquet")]
#[case(b"", "empty", "download")]
#[case(
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
    "git-LFS pointer",
    "git lfs pull"
)]
#[case(b"<!DOCTYPE html>\n<html>", "web page", "download it again")]
#[case(b"[\n  {\"text\": \"x\"}\n]\n", "one JSON list", "jq -c '.[]'")]
#[case(b"[{\"text\": \"x\"}]", "one JSON list", "jq")]
#[case(b"{\n  \"text\": \"x\"\n}\n", "several lines", "jq -c .")]
#[case(b"text,label\nthe cat,1\n", "line 1: not JSON", "read_csv")]
#[case(b"the cat sat\n", "line 1: not JSON", "each line is an object")]
#[case(b"\n \n", "no samples", "no bad lines")]
#[case(
    b"{\"text\": \"the cat sat\"}\n{\"text\": \"x",
    "line 2: not JSON",
    "string at column 11 "
)]
fn what_is_no_json_lines_is_named(#[case] bytes: &[u8], #[case] what: &str, #[case] advice: &str) {
    let error = plain(bytes).expect_err("no lines");
    assert!(
        error.contains("lines.jsonl") && error.contains(what) && error.contains(advice),
        "{error}"
    );
}

#[rstest]
#[case(r#"{"messages": "x"}"#, "cannot be made sense of")]
#[case(r#"{"messages": ["x"]}"#, "list of objects")]
#[case(r#"{"messages": [{"content": "x"}]}"#, "no `role`")]
#[case(r#"{"messages": [{"role": "user", "content": "x"}]}"#, "`assistant`")]
#[case(r#"{"messages": [], "text": "x"}"#, "give one of them")]
#[case(r#"{"messages": [], "labels": [1]}"#, "belong to `input_ids`")]
#[case(r#"{"messages": [], "completion": "x"}"#, "belongs to `prompt`")]
#[case(r#"{"text": "x", "label": 1}"#, "no classifier: leave `label` out")]
#[case(r#"{"text": ""}"#, "no token counts: the text is empty")]
#[case(r#"{"prompt": "the cat", "completion": ""}"#, "of the completion")]
#[case(
    r#"{"conversations": [{"from": "human", "value": "x"}]}"#,
    "into `messages` by `jq"
)]
#[case(
    r#"{"instruction": "x", "input": "", "output": "y"}"#,
    "into `prompt` and `completion`"
)]
fn bad_chats_and_labels_are_named(#[case] line: &str, #[case] reason: &str) {
    let error = plain(line.as_bytes()).expect_err("a bad line");
    assert!(
        error.contains("line 1") && error.contains(reason),
        "{error}"
    );
}

/// What a template refuses is said in its own words; what cannot be split is not guessed.
#[test]
fn templates_refuse_and_are_refused() {
    let llama = Case::new("unigram-first").folder;
    let line = br#"{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}"#;
    let error = read(&llama, None, line).expect_err("a bad order");
    assert!(error.contains("roles must alternate"), "{error}");
    let line = br#"{"messages": [{"role": "user", "content": [{"type": "text"}]}, {"role": "assistant", "content": "y"}]}"#;
    let error = read(&llama, None, line).expect_err("parts");
    assert!(error.contains("the chat template"), "{error}");

    let error = read(&Case::new("bytes-eos").folder, None, line).expect_err("no template");
    assert!(
        error.contains("no template for chats") && error.contains("chat_template.jinja"),
        "{error}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let from = Case::new("bytes").folder;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), folder.path().join(file)).expect("a copy");
    }
    let write = |template: &str| {
        std::fs::write(folder.path().join("chat_template.jinja"), template).expect("a template");
    };
    let chat =
        br#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#;
    let chat: Vec<u8> = chat.iter().copied().filter(|b| *b != b'\n').collect();
    // Only the last answer is written.
    write(
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}<{{ m.content }}>{% endif %}{% endfor %}",
    );
    let error = read(folder.path(), None, &chat).expect_err("not stable");
    assert!(
        error.contains("writes turn 2 otherwise") && error.contains("`prompt`"),
        "{error}"
    );
    write(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
    );
    let error = read(folder.path(), None, &chat).expect_err("other words");
    assert!(error.contains("than it asks for one"), "{error}");
    write("{% for m in messages %}{{ m.content ");
    let error = read(folder.path(), None, &chat).expect_err("no template");
    assert!(error.contains("chat_template.jinja"), "{error}");
    // A date that would be another tomorrow.
    write("{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}|{% endfor %}");
    let error = read(folder.path(), None, &chat).expect_err("no date");
    assert!(error.contains("strftime_now"), "{error}");
    write(
        "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26{% endif %}{% for m in messages %}{{ m.content }}|{% endfor %}",
    );
    read(folder.path(), None, &chat).expect("a sample");

    // By name, as older folders have them.
    std::fs::remove_file(folder.path().join("chat_template.jinja")).expect("a file");
    let config = folder.path().join("tokenizer_config.json");
    let template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let tools =
        "{{ tools | length }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let settings = json!({
        "eos_token": {"content": "</s>", "lstrip": false},
        "chat_template": [
            {"name": "default", "template": template},
            {"name": "tool_use", "template": tools},
        ],
    });
    std::fs::write(&config, settings.to_string()).expect("a file");
    let labels = |line: &[u8]| {
        let data = read(folder.path(), None, line).expect("a sample");
        (
            data.samples[0].tokens.clone(),
            data.samples[0].labels.clone(),
        )
    };
    let text = Text::read(folder.path()).expect("a tokenizer");
    let ids = |written: &str| text.tokens(written, false).expect("tokens").ids;
    let (tokens, of_chat) = labels(&chat);
    assert_eq!(tokens, ids("a</s>b</s>c</s>d</s>"));
    let counted = [ids("b</s>"), ids("d</s>")].concat();
    assert_eq!(
        of_chat
            .into_iter()
            .filter(|l| *l != IGNORE)
            .collect::<Vec<_>>(),
        counted
    );
    let with = String::from_utf8(chat)
        .expect("text")
        .replacen('{', "{\"tools\": [1, 2],", 1);
    assert_eq!(labels(with.as_bytes()).0, ids("2a</s>b</s>c</s>d</s>"));
}

/// A classifier's samples have a class, by number or by name, and no other labels.
#[test]
fn classes_are_read_by_number_or_name() {
    let names = [("no".to_owned(), 0), ("yes".to_owned(), 1)].into();
    let classes = Classes::new(3, names).expect("classes");
    assert_eq!(classes.count(), 3);
    let tokens = Case::new("bytes-eos").folder;
    let of = |lines: &str| read(&tokens, Some(classes.clone()), lines.as_bytes());
    let data = of(
        "{\"text\": \"the cat\", \"label\": 2}\n{\"text\": \"x\", \"label\": \"yes\"}\n\
                   {\"input_ids\": [5], \"label\": 0}",
    )
    .expect("samples");
    let found: Vec<Option<usize>> = data.samples.iter().map(|sample| sample.class).collect();
    assert_eq!(found, [Some(2), Some(1), Some(0)]);
    for sample in &data.samples {
        assert_eq!(sample.active(), 1);
        assert!(sample.labels.iter().all(|label| *label == IGNORE));
    }
    assert_eq!(data.samples[0].tokens.last(), Some(&0), "the end is added");
    for (line, reason) in [
        (r#"{"text": "x"}"#, "give the class as `label`"),
        (
            r#"{"text": "x", "label": 3}"#,
            "no class: there are 0 to 2, or `no`, `yes`",
        ),
        (r#"{"text": "x", "label": -1}"#, "no class"),
        (r#"{"text": "x", "label": "maybe"}"#, "no class"),
        (r#"{"text": "x", "label": 0.5}"#, "no class"),
        (
            r#"{"text": "x", "text_pair": "y", "label": 1}"#,
            "`text_pair`",
        ),
        (
            r#"{"prompt": "x", "completion": "y", "label": 1}"#,
            "is a classifier",
        ),
        (
            r#"{"input_ids": [1], "labels": [1], "label": 1}"#,
            "is a classifier",
        ),
    ] {
        let error = of(line).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    let error = Classes::new(2, [("yes".to_owned(), 2)].into()).expect_err("no class");
    assert!(error.contains("`yes`"), "{error}");
}
