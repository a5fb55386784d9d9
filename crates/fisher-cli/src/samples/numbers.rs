//! Samples that are tokens already.

use serde_json::Value;

/// Tokens and their labels, the tokens themselves where there are none.
pub(super) fn given(
    tokens: Option<&Value>,
    labels: Option<&Value>,
) -> Result<(Vec<i64>, Vec<i64>), String> {
    let tokens = numbers(tokens.unwrap_or(&Value::Null), "input_ids")?;
    let labels = match labels {
        Some(labels) => numbers(labels, "labels")?,
        None => tokens.clone(),
    };
    Ok((tokens, labels))
}

/// Without the padding at the end that an attention mask tells.
pub(super) fn unpadded(
    mut tokens: Vec<i64>,
    mut labels: Vec<i64>,
    mask: Option<&Value>,
) -> Result<(Vec<i64>, Vec<i64>), String> {
    let Some(mask) = mask else {
        return Ok((tokens, labels));
    };
    let mask = numbers(mask, "attention_mask")?;
    let active = mask.iter().take_while(|m| **m == 1).count();
    if mask.len() != tokens.len() || mask[active..].iter().any(|m| *m != 0) {
        return Err(
            "`attention_mask` must have a 1 for each token and then a 0 for each one of padding"
                .into(),
        );
    }
    tokens.truncate(active);
    labels.truncate(active);
    Ok((tokens, labels))
}

fn numbers(value: &Value, key: &str) -> Result<Vec<i64>, String> {
    let values = value.as_array().into_iter().flatten().map(Value::as_i64);
    let numbers: Option<Vec<i64>> = values.collect();
    let numbers = numbers.filter(|_| value.is_array());
    numbers.ok_or_else(|| format!("`{key}` is not a list of whole numbers"))
}
