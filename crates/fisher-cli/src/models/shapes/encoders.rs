//! BERT and its kin: encoders with a head for classes.

use serde_json::Value;

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::shape::{Activation, Longest, Order, Output, Shape};
use super::dialect::{Dialect, Inner};
use super::gpt::OLD;
use super::setting::Number;
use super::setting::Setting::{Field, Is};

pub(crate) const BERT: Dialect = Dialect {
    width: Number(&["hidden_size"], Some(768)),
    heads: Number(&["num_attention_heads"], Some(12)),
    layers: Number(&["num_hidden_layers"], Some(12)),
    inner: Inner::Number(Number(&["intermediate_size"], Some(3072))),
    longest: Field("max_position_embeddings", 512),
    epsilon: Field("layer_norm_eps", 1e-12),
    order: Order::Sum,
    activation: Field("hidden_act", Activation::Gelu),
    then: |shape, longest, fields| bert(shape, longest, fields, 0),
    ..OLD
};

pub(crate) const ROBERTA: Dialect = Dialect {
    then: |shape, longest, fields| {
        // Positions are counted from behind the padding's number: without one there are none.
        let padding = fields.index("pad_token_id", 1)?;
        if fields.is_null("pad_token_id") || padding >= longest.tokens - 1 {
            let supported = "a whole number from 0 that leaves positions behind it";
            return Err(fields.unsupported("pad_token_id", supported));
        }
        bert(shape, longest, fields, padding + 1)
    },
    ..BERT
};

pub(crate) const DISTILBERT: Dialect = Dialect {
    width: Number(&["dim"], Some(768)),
    heads: Number(&["n_heads"], Some(12)),
    layers: Number(&["n_layers"], Some(6)),
    inner: Inner::FourWidths(Some("hidden_dim")),
    epsilon: Is(1e-12),
    activation: Field("activation", Activation::Gelu),
    then: |shape, longest, fields| {
        // How the table was begun; it is in the file all the same.
        fields.get("sinusoidal_pos_embds");
        encoder(shape, fields, [longest.tokens, 0], Activation::Relu)
    },
    ..BERT
};

/// The first `unused` positions are of no token.
fn bert(shape: &mut Shape, longest: &mut Longest, fields: &Fields, unused: usize) -> Result<()> {
    encoder(shape, fields, [longest.tokens, unused], Activation::Tanh)?;
    shape.embedding.types = fields.number("type_vocab_size", Some(2))?;
    longest.tokens -= unused;
    if fields.flag("is_decoder", false)? {
        return Err(fields.unsupported("is_decoder", "false"));
    }
    Ok(())
}

/// Every position sees all; positions are learnt; out come classes, by a layer with `activation`.
fn encoder(
    shape: &mut Shape,
    fields: &Fields,
    positions: [usize; 2],
    activation: Activation,
) -> Result<()> {
    shape.attention.causal = false;
    shape.embedding.positions = Some(positions);
    shape.embedding.norm = true;
    shape.last_norm = false;
    shape.output = classes(fields, activation)?;
    Ok(())
}

/// Classes, of which every sample has one.
fn classes(fields: &Fields, activation: Activation) -> Result<Output> {
    let names = fields.get("id2label").map(|names| {
        let names = names.as_object();
        names.ok_or_else(|| fields.unsupported("id2label", "an object, from numbers to names"))
    });
    let named = names.transpose()?.map_or(2, |names| names.len());
    let count = fields.number("num_labels", Some(named))?;
    let classifier = |name: &Value| {
        let name = name.as_str();
        name.is_some_and(|name| name.ends_with("ForSequenceClassification"))
    };
    let architectures = fields.get("architectures").map(Value::as_array);
    let fits =
        architectures.is_none_or(|all| all.is_some_and(|a| a.first().is_none_or(classifier)));
    if !fits {
        let supported = "a list that begins with a ..ForSequenceClassification";
        return Err(fields.unsupported("architectures", supported));
    }
    let kind = fields.text("problem_type", Some("single_label_classification"))?;
    if count < 2 || kind != "single_label_classification" {
        let supported = "single_label_classification of two classes or more";
        return Err(fields.unsupported("problem_type", supported));
    }
    Ok(Output::Classes { count, activation })
}
