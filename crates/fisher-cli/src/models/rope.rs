//! Rotary positions as `config.json` asks for them: how fast each pair of elements turns.

use serde_json::Value;

use super::error::Result;
use super::fields::Fields;

/// How queries and keys are turned by their positions (Su et al. 2021, RoFormer).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Angles by which each pair turns from one position to the next.
    pub frequencies: Vec<f64>,
    /// The same in sequences of more tokens than so many.
    pub beyond: Option<(usize, Vec<f64>)>,
    /// What is turned is multiplied by this, queries and keys alike.
    pub factor: f64,
    /// Whether element `2i` turns with `2i + 1`, and not with the one half a head further.
    pub neighbours: bool,
}

/// Where a family has its rotary positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeDefaults {
    /// `rope_theta` where none is given.
    pub(super) theta: f64,
    /// The share of a head that turns where none is given; `None` where it is always all of it.
    pub(super) share: Option<f64>,
    /// Whether neighbours turn together.
    pub(super) neighbours: bool,
}

impl RopeDefaults {
    pub(super) const PLAIN: Self = Self {
        theta: 10_000.0,
        share: None,
        neighbours: false,
    };

    pub(super) const fn neighbours(theta: f64) -> Self {
        Self {
            theta,
            neighbours: true,
            ..Self::PLAIN
        }
    }

    pub(super) const fn theta(theta: f64) -> Self {
        Self {
            theta,
            ..Self::PLAIN
        }
    }

    pub(super) const fn share(share: f64) -> Self {
        Self {
            share: Some(share),
            ..Self::PLAIN
        }
    }

    /// Of a model with heads of `width` and `longest` positions.
    pub(super) fn read(self, fields: &Fields, width: usize, longest: usize) -> Result<Rope> {
        let nothing = Value::Object(Default::default());
        let (scaling, place) = parameters(fields, &nothing)?;
        let outside = Self {
            theta: fields.real("rope_theta", self.theta)?,
            ..self
        };
        outside.of(&Fields::inside(scaling, place), fields, width, longest)
    }

    /// Of layers that see all positions, and of those with a window, whose base is `local`. What is
    /// scaled is only the first.
    pub(super) fn read_both(
        self,
        local: f64,
        fields: &Fields,
        width: usize,
        longest: usize,
    ) -> Result<[Rope; 2]> {
        let nothing = Value::Object(Default::default());
        let (scaling, place) = parameters(fields, &nothing)?;
        let local = fields.real("rope_local_base_freq", local)?;
        let local = Self {
            theta: local,
            ..self
        };
        let apart = |kind: &str| scaling.get(kind).filter(|of| of.is_object());
        let (full, sliding) = match (apart("full_attention"), apart("sliding_attention")) {
            (None, None) => (scaling, &nothing),
            (full, sliding) => (full.unwrap_or(&nothing), sliding.unwrap_or(&nothing)),
        };
        let of = |defaults: Self, json, kind: &str| {
            let inside = Fields::inside(json, &format!("{place}{kind}."));
            defaults.of(&inside, fields, width, longest)
        };
        // A theta outside is the global one.
        let global = Self {
            theta: fields.real("rope_theta", self.theta)?,
            ..self
        };
        Ok([
            of(global, full, "full_attention")?,
            of(local, sliding, "sliding_attention")?,
        ])
    }

    fn of(self, inside: &Fields, fields: &Fields, width: usize, longest: usize) -> Result<Rope> {
        let theta = inside.real("rope_theta", self.theta)?;
        let field = "partial_rotary_factor";
        let share = fields.real(field, self.share.unwrap_or(1.0))?;
        let share = inside.real(field, share)?;
        if self.share.is_none() && share != 1.0 {
            let place = if inside.get(field).is_some() {
                inside
            } else {
                fields
            };
            return Err(place.unsupported(field, "1 in this family"));
        }
        let turned = (width as f64 * share) as usize;
        if turned == 0 || turned % 2 == 1 || turned > width {
            return Err(inside.unsupported(
                "partial_rotary_factor",
                "a share that makes an even number of elements of each head",
            ));
        }
        let old = inside.text("type", Some("default"))?;
        let kind = inside.text("rope_type", Some(&old))?;
        let plain: Vec<f64> = (0..turned / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / turned as f64))
            .collect();
        let mut rope = Rope {
            frequencies: plain,
            beyond: None,
            factor: 1.0,
            neighbours: self.neighbours,
        };
        let field = "original_max_position_embeddings";
        let trained = [fields.maybe_number(field)?, inside.maybe_number(field)?];
        let trained = trained.into_iter().flatten().next().unwrap_or(longest);
        match &*kind {
            "default" => {}
            "linear" => {
                let factor = inside.real("factor", 1.0)?;
                rope.frequencies.iter_mut().for_each(|f| *f /= factor);
            }
            // Within max_position_embeddings, and no sequence is longer, it is the default.
            "dynamic" => {
                inside.real("factor", 1.0)?;
            }
            "llama3" => llama3(inside, &mut rope, trained)?,
            "yarn" => yarn(inside, &mut rope, theta, [trained, longest])?,
            "longrope" | "su" => longrope(inside, &mut rope, [trained, longest])?,
            _ => {
                let known = "default, linear, dynamic, yarn, longrope or llama3";
                return Err(inside.unsupported("rope_type", known));
            }
        }
        inside.nothing_else()?;
        Ok(rope)
    }
}

/// `rope_scaling`, or `rope_parameters` as newer files have it.
fn parameters<'a>(fields: &Fields<'a>, nothing: &'a Value) -> Result<(&'a Value, &'static str)> {
    let old = fields.get("rope_scaling").map(|old| (old, "rope_scaling."));
    let new = fields
        .get("rope_parameters")
        .map(|new| (new, "rope_parameters."));
    let (found, place) = old.or(new).unwrap_or((nothing, ""));
    if found.is_object() {
        Ok((found, place))
    } else {
        Err(fields.unsupported(place.trim_end_matches('.'), "an object"))
    }
}

/// Slow turns are slowed further, fast ones are left, and in between both are mixed.
fn llama3(inside: &Fields, rope: &mut Rope, trained: usize) -> Result<()> {
    let factor = inside.real("factor", 1.0)?;
    let low = inside.real("low_freq_factor", 1.0)?;
    let high = inside.real("high_freq_factor", 4.0)?;
    for frequency in &mut rope.frequencies {
        // How often it turns within the trained length.
        let turns = trained as f64 * *frequency / std::f64::consts::TAU;
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        *frequency *= (1.0 - kept) / factor + kept;
    }
    Ok(())
}

/// Peng et al. 2023, YaRN: as `llama3`, by the number of the pair, and all is scaled.
fn yarn(inside: &Fields, rope: &mut Rope, theta: f64, lengths: [usize; 2]) -> Result<()> {
    let [trained, longest] = lengths.map(|n| n as f64);
    let factor = inside.real("factor", longest / trained)?;
    let [fast, slow] = [("beta_fast", 32.0), ("beta_slow", 1.0)].map(|(f, d)| inside.real(f, d));
    let [all, one] = ["mscale_all_dim", "mscale"].map(|field| inside.maybe_real(field));
    let scale = |by: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * by * factor.ln() + 1.0
        }
    };
    let natural = match (one?, all?) {
        (Some(one), Some(all)) => scale(one) / scale(all),
        _ => scale(1.0),
    };
    rope.factor = inside.real("attention_factor", natural)?;
    let pairs = rope.frequencies.len();
    let elements = 2.0 * pairs as f64;
    let element = |turns: f64| {
        elements * (trained / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (element(fast?), element(slow?));
    if inside.flag("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(elements - 1.0));
    if low == high {
        high += 0.001;
    }
    for (i, frequency) in rope.frequencies.iter_mut().enumerate() {
        let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        *frequency *= slowed / factor + (1.0 - slowed);
    }
    Ok(())
}

/// Ding et al. 2024, LongRoPE: a factor for each pair, other ones in long sequences, and all is scaled.
fn longrope(inside: &Fields, rope: &mut Rope, [trained, longest]: [usize; 2]) -> Result<()> {
    let factor = inside.real("factor", longest as f64 / trained as f64)?;
    let natural = if factor <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / (trained as f64).ln()).sqrt()
    };
    rope.factor = inside.real("attention_factor", natural)?;
    let slowed = |field: &str| {
        let factors = inside.reals(field)?;
        if factors.len() != rope.frequencies.len() {
            return Err(inside.unsupported(field, "a factor for each pair of elements that turns"));
        }
        let pairs = rope.frequencies.iter().zip(factors);
        Ok(pairs
            .map(|(frequency, factor)| frequency / factor)
            .collect())
    };
    let (short, long) = (slowed("short_factor")?, slowed("long_factor")?);
    rope.frequencies = short;
    rope.beyond = Some((trained, long));
    Ok(())
}
