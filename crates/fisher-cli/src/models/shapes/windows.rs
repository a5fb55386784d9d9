//! Layers that see only a window of the positions before.

use serde_json::Value;

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::shape::LayerShape;
use super::setting::Setting;

/// The width of windows where `sliding_window` is missing (null or 0 is none), whether there are any,
/// and which layers have one where `layer_types` does not say so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows(
    pub(super) Option<usize>,
    pub(super) Setting<bool>,
    pub(super) Sliding,
);

pub(super) const ON_REQUEST: Setting<bool> = Setting::Field("use_sliding_window", false);

/// Which layers slide, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sliding {
    All,
    Even,
    /// All but the last of every so many.
    AllButEvery(usize),
    /// The same, of so many unless `sliding_window_pattern` says of how many.
    Pattern(usize),
    /// From layer `max_window_layers` on.
    Beyond,
    /// Even ones before layer `max_window_layers`.
    EvenBelow,
}

impl Windows {
    /// Give them to layers.
    pub(super) fn put(self, layers: &mut [LayerShape], fields: &Fields) -> Result<()> {
        let Self(default, asked, rule) = self;
        let rule = rule.read(layers.len(), fields)?;
        let asked = asked.read(|f, d| fields.flag(f, d))?;
        let width = width(fields, default)?.filter(|_| asked);
        let sliding = match fields.get("layer_types") {
            None => rule,
            Some(types) => by_types(types, layers.len()).ok_or_else(|| {
                let supported = "full_attention or sliding_attention for each layer";
                fields.unsupported("layer_types", supported)
            })?,
        };
        for (layer, sliding) in layers.iter_mut().zip(sliding) {
            layer.window = width.filter(|_| sliding);
        }
        Ok(())
    }
}

fn width(fields: &Fields, default: Option<usize>) -> Result<Option<usize>> {
    let field = "sliding_window";
    if fields.is_null(field) || fields.get(field) == Some(&0.into()) {
        return Ok(None);
    }
    Ok(fields.maybe_number(field)?.or(default))
}

impl Sliding {
    /// For each of `count` layers, whether it slides.
    fn read(self, count: usize, fields: &Fields) -> Result<Vec<bool>> {
        let bound = || fields.index("max_window_layers", 28);
        let layers = |slides: &dyn Fn(usize) -> bool| (0..count).map(slides).collect();
        Ok(match self {
            Self::All => layers(&|_| true),
            Self::Even => layers(&|l| l % 2 == 0),
            Self::AllButEvery(n) => layers(&|l| (l + 1) % n != 0),
            Self::Pattern(n) => {
                let n = fields.number("_sliding_window_pattern", Some(n))?;
                let n = fields.number("sliding_window_pattern", Some(n))?;
                layers(&|l| (l + 1) % n != 0)
            }
            Self::Beyond => {
                let from = bound()?;
                layers(&|l| l >= from)
            }
            Self::EvenBelow => {
                let until = bound()?;
                layers(&|l| l < until && l % 2 == 0)
            }
        })
    }
}

/// What `layer_types` says of each of `count` layers; none where it says something else.
fn by_types(types: &Value, count: usize) -> Option<Vec<bool>> {
    let slides = |kind: &Value| match kind.as_str()? {
        "sliding_attention" => Some(true),
        "full_attention" => Some(false),
        _ => None,
    };
    let types: Option<Vec<bool>> = types.as_array()?.iter().map(slides).collect();
    types.filter(|types| types.len() == count)
}
