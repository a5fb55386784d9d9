//! From files of samples to sequences of tokens: JSON lines in several forms, text by the folder's
//! tokenizer, chats by its template.

mod batches;
mod chat;
mod classes;
mod error;
mod form;
mod lines;
mod numbers;
mod reader;
mod settings;
mod task;
mod text;

pub use batches::batches;
pub use chat::{Chat, Conversation, Rendered};
pub use classes::Classes;
pub use error::InputError;
pub use form::Form;
pub(crate) use lines::there;
pub use reader::Reader;
pub use settings::TokenizerSettings;
pub use task::{BadLine, Part, TaskData, TaskFile};
pub use text::{Added, Text, Tokens};
