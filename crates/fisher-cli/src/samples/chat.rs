//! Chats as text, by the folder's template.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::settings::{TokenizerSettings, json};

/// A template that makes text of a chat, as transformers' `apply_chat_template` does.
#[derive(Debug)]
pub struct Chat {
    environment: Environment<'static>,
    special: BTreeMap<String, String>,
    /// The file that it is from.
    pub source: &'static str,
}

/// A chat, as a line tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct Conversation {
    /// Objects with `role` and `content`, and what else the template reads.
    messages: Vec<Value>,
    /// Tools that the template tells of.
    #[serde(default)]
    tools: Option<Value>,
    /// What else the template asks for.
    #[serde(default)]
    chat_template_kwargs: BTreeMap<String, Value>,
}

/// A chat as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Where in it, in bytes, stands what the assistant said.
    pub turns: Vec<Range<usize>>,
}

/// The name of the usual template.
const DEFAULT: &str = "default";
/// The name of one for chats with tools.
const TOOLS: &str = "tool_use";

impl Chat {
    /// Read the template of a folder: chat_template.jinja, chat_template.json, or `chat_template` in
    /// tokenizer_config.json.
    ///
    /// # Errors
    /// Why there is none.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let settings = TokenizerSettings::read(folder)?;
        let file = folder.join("chat_template.jinja");
        let (source, templates) = if file.exists() {
            let text = std::fs::read_to_string(&file);
            let text = text.map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            ("chat_template.jinja", text.into())
        } else if let Some(of) = json(&folder.join("chat_template.json"))? {
            ("chat_template.json", of["chat_template"].clone())
        } else if let Some(template) = settings.template {
            ("tokenizer_config.json", template)
        } else {
            return Err(format!(
                "{} has no template for chats, neither chat_template.jinja nor `chat_template` in \
                 tokenizer_config.json: put there the one that the model was trained with, or give `prompt` and \
                 `completion`",
                folder.display()
            ));
        };
        let mut environment = environment().map_err(|e| e.to_string())?;
        let named = match &templates {
            serde_json::Value::String(template) => vec![(DEFAULT, &**template)],
            several => {
                let several = several.as_array().into_iter().flatten();
                let several =
                    several.map(|of| Some((of["name"].as_str()?, of["template"].as_str()?)));
                several.collect::<Option<_>>().unwrap_or_default()
            }
        };
        for (name, template) in named {
            let template = without_generation(template);
            let added = environment.add_template_owned(name.to_owned(), template);
            added.map_err(|e| format!("the chat template of {source} cannot be read: {e}"))?;
        }
        if environment.get_template(DEFAULT).is_err() {
            return Err(format!(
                "{source} has no chat template of the name `{DEFAULT}`"
            ));
        }
        Ok(Self {
            environment,
            special: settings.special,
            source,
        })
    }

    /// A chat as text. What the assistant says begins where the template ends that is asked to go on with
    /// a turn of the assistant's, and ends with that turn, less white space at its end.
    ///
    /// # Errors
    /// What the template says; when a chat does not begin as its first turns do.
    pub fn render(&self, chat: &Conversation) -> Result<Rendered, String> {
        let messages = chat.messages.iter().map(message);
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        let text = self.text(chat, &messages, false)?;
        let mut turns = Vec::new();
        for (at, message) in messages.iter().enumerate() {
            if message
                .get_attr("role")
                .is_ok_and(|role| role.as_str() == Some("assistant"))
            {
                let before = self.text(chat, &messages[..at], true)?;
                let with = self.text(chat, &messages[..=at], false)?;
                let wrong = if !text.starts_with(&with) {
                    "otherwise when others follow"
                } else if !with.starts_with(&before) {
                    "otherwise than it asks for one"
                } else {
                    ""
                };
                if !wrong.is_empty() {
                    return Err(format!(
                        "the chat template ({}) writes turn {} {wrong}, so what the assistant says cannot be told from \
                         the rest: give each answer as a `prompt` and a `completion`, or chats that end with it",
                        self.source,
                        at + 1
                    ));
                }
                turns.push(before.len()..with.trim_end().len().max(before.len()));
            }
        }
        if turns.is_empty() {
            return Err("no message is of the role `assistant`: nothing counts".into());
        }
        Ok(Rendered { text, turns })
    }

    fn text(&self, chat: &Conversation, messages: &[Value], go_on: bool) -> Result<String, String> {
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        let special = self.special.iter();
        context.extend(special.map(|(name, token)| (&**name, Value::from(&**token))));
        let tools = chat.tools.clone().filter(|tools| !tools.is_none());
        let name = match &tools {
            Some(_) if self.environment.get_template(TOOLS).is_ok() => TOOLS,
            _ => DEFAULT,
        };
        context.insert("tools", tools.unwrap_or(Value::from(())));
        context.insert("documents", Value::from(()));
        let more = chat.chat_template_kwargs.iter();
        context.extend(more.map(|(name, value)| (&**name, value.clone())));
        context.insert("messages", messages.iter().cloned().collect());
        context.insert("add_generation_prompt", go_on.into());
        let template = self.environment.get_template(name);
        let text = template.and_then(|template| template.render(Value::from_pairs(context)));
        text.map_err(|error| match error.kind() {
            ErrorKind::InvalidOperation if error.detail().is_some() => {
                format!("the chat template: {}", error.detail().unwrap_or_default())
            }
            _ => format!("the chat template: {error}"),
        })
    }
}

/// A message as templates are given it: without what is null, and what the assistant thought under the
/// names that templates know.
fn message(message: &Value) -> Result<Value, String> {
    if message.kind() != ValueKind::Map {
        return Err("`messages` is no list of objects with `role` and `content`".into());
    }
    let mut fields: Vec<(Value, Value)> = Vec::new();
    for key in message.try_iter().map_err(|e| e.to_string())? {
        let value = message.get_item(&key).map_err(|e| e.to_string())?;
        if !value.is_none() {
            fields.push((key, value));
        }
    }
    let find = |name: &str| {
        let field = fields.iter().find(|(key, _)| key.as_str() == Some(name));
        field.map(|(_, value)| value.clone())
    };
    if find("role").is_none_or(|role| role.as_str().is_none()) {
        return Err("a message has no `role`".into());
    }
    let thought = ["reasoning_content", "thinking", "reasoning"]
        .into_iter()
        .find_map(&find);
    let missing = ["thinking", "reasoning_content"]
        .into_iter()
        .filter(|name| find(name).is_none());
    let more = thought.into_iter().flat_map(|thought| {
        missing
            .clone()
            .map(move |name| (name.into(), thought.clone()))
    });
    let more: Vec<(Value, Value)> = more.collect();
    Ok(Value::from_pairs(fields.into_iter().chain(more)))
}

/// Jinja as transformers sets it up. There is no `strftime_now`: samples would be others tomorrow, and
/// templates have a date for where it is not there; `chat_template_kwargs` may give one.
fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(python);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |said: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, said))
    });
    Ok(environment)
}

/// Write a value as Python does.
fn python(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool if value.is_true() => Ok(out.write_str("True")?),
        ValueKind::Bool => Ok(out.write_str("False")?),
        ValueKind::Seq | ValueKind::Map => Err(Error::new(
            ErrorKind::InvalidOperation,
            "it writes a list or an object where it wants a text: give `content` as a text",
        )),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// JSON as Python's `json.dumps` writes it.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let bytes = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent);
            written(value, PrettyFormatter::with_indent(indent.as_bytes()))
        }
        None => written(value, OneLine),
    };
    let wrong = |e: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, e.to_string());
    let text = String::from_utf8(bytes.map_err(|e| wrong(&e))?);
    Ok(Value::from_safe_string(text.map_err(|e| wrong(&e))?))
}

fn written(value: &Value, formatter: impl Formatter) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(bytes)
}

/// `{"a": 1, "b": [1, 2]}`.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// A template without its `{% generation %}`, by which transformers may mark what the assistant says:
/// Jinja does not know it.
fn without_generation(template: &str) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, tag)) = rest.split_once("{%") {
        text.push_str(before);
        text.push_str("{%");
        let Some((inside, after)) = tag.split_once("%}") else {
            rest = tag;
            continue;
        };
        let inside = match inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+')
        {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.into(),
        };
        text.push_str(&inside);
        text.push_str("%}");
        rest = after;
    }
    text + rest
}
