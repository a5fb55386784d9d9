//! Heat maps as SVG, and with the feature `png` as PNG.

use std::fmt::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// What the shades of a [`HeatMap`] stand for. Dark and light differ in black and white too.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ColorScale {
    /// From light (the smallest value) to dark (the largest).
    Sequential,
    /// From dark (negative) to light (positive), as far on either side of 0; what each end means.
    Signed {
        /// What dark stands for.
        negative: String,
        /// What light stands for.
        positive: String,
    },
}

/// A matrix of numbers as a matrix of shades.
///
/// Where there is room the numbers stand in the cells; a reader's pointer shows them always.
/// Cells that are marked have a frame and an asterisk.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// The title.
    pub title: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// What rows and columns are.
    pub axes: [String; 2],
    /// The numbers, by row; `None` is left blank.
    pub values: Vec<Vec<Option<f64>>>,
    /// Cells that are marked, by row.
    pub marked: Vec<Vec<bool>>,
    /// What the shades stand for.
    pub scale: ColorScale,
    /// What the numbers are.
    pub quantity: String,
}

/// One or more heat maps, side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The title over all.
    pub title: String,
    /// What marks mean, or what else must be said under the maps.
    pub note: String,
    /// The maps.
    pub maps: Vec<HeatMap>,
}

const MARGIN: f64 = 16.0;
const FONT: f64 = 12.0;
const LEGEND: f64 = 62.0;
/// How far a legend is set in at most.
const INDENT: f64 = 60.0;
/// The width of a letter, roughly.
const LETTER: f64 = 0.58 * FONT;

impl Picture {
    /// The picture as SVG: text, no script, no file or font beside it.
    pub fn svg(&self) -> String {
        let mut body = String::new();
        let (mut x, mut y) = (MARGIN, MARGIN + 2.2 * FONT);
        let (mut width, mut row) = (0f64, 0f64);
        for map in &self.maps {
            let [w, h] = map.size();
            // Two abreast, where they are small.
            if x > MARGIN && x + w > 760.0 {
                (x, y) = (MARGIN, y + row + MARGIN);
                row = 0.0;
            }
            map.draw(&mut body, x, y);
            row = row.max(h);
            x += w + 2.0 * MARGIN;
            width = width.max(x);
        }
        let lines = wrap(&self.note, (width.max(400.0) / LETTER) as usize);
        let top = y + row + MARGIN;
        let height = top + lines.len() as f64 * 1.4 * FONT + MARGIN;
        let longest = self.title.chars().count() as f64 * 1.25 * LETTER;
        let width = width.max(longest + 2.0 * MARGIN);
        for (i, line) in lines.iter().enumerate() {
            let at = top + i as f64 * 1.4 * FONT;
            text(&mut body, [MARGIN, at], "start", FONT, "#222", line);
        }
        let mut svg = head([width, height], &self.title, &self.note);
        svg += "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
        text(
            &mut svg,
            [MARGIN, MARGIN + FONT],
            "start",
            1.25 * FONT,
            "#000",
            &self.title,
        );
        svg + &body + "</svg>\n"
    }

    /// Write the picture to `path`: `.svg`, or with the feature `png` also `.png`.
    ///
    /// # Errors
    /// [`Error::Write`] when the file cannot be written, or is of another kind.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let error = |reason: String| Error::Write {
            path: path.into(),
            reason,
        };
        let bytes = match path.extension().and_then(|e| e.to_str()) {
            Some("svg") => self.svg().into_bytes(),
            #[cfg(feature = "png")]
            Some("png") => self.png().map_err(error)?,
            _ => {
                let kinds = if cfg!(feature = "png") {
                    "a picture is written as .svg or .png"
                } else {
                    "a picture is written as .svg, or as .png with the feature `png`"
                };
                return Err(error(kinds.into()));
            }
        };
        std::fs::write(path, bytes).map_err(|e| error(e.to_string()))
    }

    #[cfg(feature = "png")]
    fn png(&self) -> Result<Vec<u8>, String> {
        use resvg::{tiny_skia, usvg};
        /// Pixels for each unit of the SVG.
        const ZOOM: f32 = 2.0;
        let mut options = usvg::Options::default();
        // A font that comes along: the machine may have none.
        let fonts = options.fontdb_mut();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        fonts.load_font_data(epaint_default_fonts::HACK_REGULAR.to_vec());
        fonts.set_sans_serif_family("Ubuntu");
        let tree = usvg::Tree::from_str(&self.svg(), &options).map_err(|e| e.to_string())?;
        let size = tree.size();
        let [width, height] = [size.width(), size.height()].map(|s| (s * ZOOM).ceil() as u32);
        let mut pixels = tiny_skia::Pixmap::new(width, height).ok_or("the picture is too large")?;
        let zoom = tiny_skia::Transform::from_scale(ZOOM, ZOOM);
        resvg::render(&tree, zoom, &mut pixels.as_mut());
        pixels.encode_png().map_err(|e| e.to_string())
    }
}

impl HeatMap {
    /// The map alone as SVG, to be put into a page: text, no script.
    pub fn svg(&self) -> String {
        let mut svg = head(self.size(), &self.title, &self.quantity);
        self.draw(&mut svg, 0.0, 0.0);
        svg + "</svg>\n"
    }

    fn cell(&self) -> [f64; 2] {
        match self.columns.len().max(self.rows.len()) {
            0..=16 => [46.0, 30.0],
            17..=40 => [16.0; 2],
            n => [(640.0 / n as f64).max(2.0); 2],
        }
    }

    /// Room for the names of the rows, and whether names are told apart at all.
    fn labels(&self) -> (f64, bool) {
        let shown = self.cell()[1] >= FONT;
        let longest = self.rows.iter().map(|r| r.chars().count()).max();
        let width = longest.unwrap_or(0) as f64 * LETTER + 8.0;
        (if shown { width } else { 1.6 * FONT }, shown)
    }

    /// The longest column name, if they must stand upright.
    fn upright(&self) -> Option<f64> {
        let longest = self.columns.iter().map(|c| c.chars().count()).max();
        let width = longest.unwrap_or(0) as f64 * LETTER;
        (width > self.cell()[0] - 4.0).then_some(width)
    }

    fn header(&self) -> f64 {
        let names = match (self.labels().1, self.upright()) {
            (true, Some(width)) => width + 6.0,
            (true, None) => 1.4 * FONT,
            (false, _) => 0.0,
        };
        3.0 * FONT + names
    }

    fn size(&self) -> [f64; 2] {
        let [w, h] = self.cell();
        let (left, _) = self.labels();
        let title = self.title.chars().count() as f64 * LETTER * 1.1;
        // The legend's words may be longer than the map is wide.
        let words = self.quantity.chars().count() as f64 * 0.9 * LETTER;
        let legend = left.min(INDENT) + words.max(self.legend_width());
        let width = (left + self.columns.len() as f64 * w).max(300.0);
        let width = width.max(title).max(legend);
        [width, self.header() + self.rows.len() as f64 * h + LEGEND]
    }

    /// The values of the two ends of the scale.
    fn range(&self) -> [f64; 2] {
        let values = self.values.iter().flatten().flatten().copied();
        match self.scale {
            ColorScale::Sequential => [
                values.clone().fold(f64::INFINITY, f64::min),
                values.fold(f64::NEG_INFINITY, f64::max),
            ],
            ColorScale::Signed { .. } => {
                let largest = values.fold(0.0, |m: f64, x| m.max(x.abs()));
                [-largest, largest]
            }
        }
    }

    fn draw(&self, out: &mut String, x: f64, y: f64) {
        let [w, h] = self.cell();
        let (left, named) = self.labels();
        let [low, high] = self.range();
        let share = |value: f64| {
            if high > low {
                ((value - low) / (high - low)).clamp(0.0, 1.0)
            } else {
                0.5
            }
        };
        text(out, [x, y + FONT], "start", 1.1 * FONT, "#000", &self.title);
        let axes = format!("rows: {}, columns: {}", self.axes[0], self.axes[1]);
        text(out, [x, y + 2.4 * FONT], "start", 0.9 * FONT, "#444", &axes);
        let (x0, y0) = (x + left, y + self.header());
        if named {
            for (i, name) in self.rows.iter().enumerate() {
                let at = [x0 - 5.0, y0 + (i as f64 + 0.5) * h + 0.35 * FONT];
                text(out, at, "end", FONT.min(h - 2.0), "#222", name);
            }
            for (j, name) in self.columns.iter().enumerate() {
                let at = [x0 + (j as f64 + 0.5) * w, y0 - 5.0];
                match self.upright() {
                    None => text(out, at, "middle", FONT, "#222", name),
                    Some(_) => {
                        let (cx, cy) = (at[0] + 0.35 * FONT, at[1]);
                        let size = FONT.min(w - 2.0);
                        let _ = writeln!(
                            out,
                            "<text x=\"{cx:.1}\" y=\"{cy:.1}\" font-size=\"{size:.1}\" fill=\"#222\" \
                             transform=\"rotate(-90 {cx:.1} {cy:.1})\">{}</text>",
                            escape(name)
                        );
                    }
                }
            }
        }
        for (i, row) in self.values.iter().enumerate() {
            for (j, value) in row.iter().enumerate() {
                let Some(value) = *value else { continue };
                let marked = self.marked.get(i).and_then(|m| m.get(j)) == Some(&true);
                let at = [x0 + j as f64 * w, y0 + i as f64 * h];
                let shade = self.shade(share(value));
                let _ = writeln!(
                    out,
                    "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{w:.2}\" height=\"{h:.2}\" fill=\"{}\"\
                     {}><title>{}, {}: {}{}</title></rect>",
                    at[0],
                    at[1],
                    hex(shade),
                    if marked {
                        " stroke=\"#000\" stroke-width=\"2\""
                    } else {
                        ""
                    },
                    escape(&self.rows[i]),
                    escape(&self.columns[j]),
                    short(value, 4),
                    if marked { " *" } else { "" },
                );
                if w > 40.0 {
                    let at = [at[0] + 0.5 * w, at[1] + 0.5 * h + 0.35 * FONT];
                    let ink = if luminance(shade) < 0.35 {
                        "#fff"
                    } else {
                        "#000"
                    };
                    let star = if marked { "*" } else { "" };
                    let label = format!("{}{star}", short(value, 2));
                    text(out, at, "middle", 0.85 * FONT, ink, &label);
                }
            }
        }
        let y = y0 + self.rows.len() as f64 * h + 10.0;
        self.legend(out, x0.min(x + INDENT), y, [low, high]);
    }

    /// As wide as what stands at its ends.
    fn legend_width(&self) -> f64 {
        match &self.scale {
            ColorScale::Sequential => 220.0,
            ColorScale::Signed { negative, positive } => {
                let letters = negative.chars().count().max(positive.chars().count()) + 9;
                (2.0 * letters as f64 * 0.85 * LETTER).max(220.0)
            }
        }
    }

    fn legend(&self, out: &mut String, x: f64, y: f64, [low, high]: [f64; 2]) {
        let width = self.legend_width();
        let steps = 44;
        for step in 0..steps {
            let at = f64::from(step) / f64::from(steps - 1);
            let _ = writeln!(
                out,
                "<rect x=\"{:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"10\" fill=\"{}\"/>",
                x + f64::from(step) * width / f64::from(steps),
                width / f64::from(steps) + 0.5,
                hex(self.shade(at))
            );
        }
        let _ = writeln!(
            out,
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width}\" height=\"10\" fill=\"none\" \
             stroke=\"#444\"/>"
        );
        let ends = match &self.scale {
            ColorScale::Sequential => [String::new(), String::new()],
            ColorScale::Signed { negative, positive } => {
                text(
                    out,
                    [x + 0.5 * width, y + 22.0],
                    "middle",
                    0.85 * FONT,
                    "#222",
                    "0",
                );
                [format!(" {negative}"), format!(" {positive}")]
            }
        };
        let [a, b] = [(low, &ends[0]), (high, &ends[1])].map(|(v, e)| short(v, 2) + e);
        text(out, [x, y + 22.0], "start", 0.85 * FONT, "#222", &a);
        text(out, [x + width, y + 22.0], "end", 0.85 * FONT, "#222", &b);
        text(
            out,
            [x, y + 37.0],
            "start",
            0.9 * FONT,
            "#222",
            &self.quantity,
        );
    }

    /// The shade of a share of the scale: brightness always rises or falls along it.
    fn shade(&self, share: f64) -> [u8; 3] {
        let stops: &[[u8; 3]] = match self.scale {
            ColorScale::Sequential => &[
                [247, 251, 255],
                [198, 219, 239],
                [107, 174, 214],
                [33, 113, 181],
                [8, 38, 84],
            ],
            ColorScale::Signed { .. } => &[
                [40, 9, 60],
                [122, 32, 92],
                [190, 110, 110],
                [240, 190, 130],
                [255, 250, 210],
            ],
        };
        let place = share * (stops.len() - 1) as f64;
        let i = (place as usize).min(stops.len() - 2);
        let rest = place - i as f64;
        [0, 1, 2].map(|c| {
            let [a, b] = [stops[i][c], stops[i + 1][c]].map(f64::from);
            (a + rest * (b - a)).round() as u8
        })
    }
}

/// How an SVG begins.
fn head([width, height]: [f64; 2], title: &str, description: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{width:.0}\" \
         height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\">\n<title>{}</title>\n<desc>{}</desc>\n",
        escape(title),
        escape(description)
    )
}

fn text(out: &mut String, [x, y]: [f64; 2], anchor: &str, size: f64, fill: &str, words: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size:.1}\" \
         fill=\"{fill}\">{}</text>",
        escape(words)
    );
}

/// Words as XML.
#[doc(hidden)]
pub fn escape(words: &str) -> String {
    let mut escaped = String::new();
    for letter in words.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Not allowed in XML, whatever a sample is called.
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A number in few letters.
fn short(value: f64, digits: usize) -> String {
    let plain = match value.abs() {
        0.0 => "0".into(),
        x if (0.01..1000.0).contains(&x) => format!("{value:.digits$}"),
        _ => format!("{value:.0$e}", digits - 1),
    };
    plain.replace('-', "−")
}

fn wrap(words: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Relative luminance, as contrast is measured by (WCAG 2.2).
fn luminance(shade: [u8; 3]) -> f64 {
    let linear = shade.map(|c| (f64::from(c) / 255.0).powf(2.2));
    0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(scale: ColorScale) -> HeatMap {
        HeatMap {
            title: "a <title> & \"more\"".into(),
            rows: vec!["r\u{1}0".into(), "r1".into()],
            columns: vec!["c0".into()],
            axes: ["row".into(), "column".into()],
            values: vec![vec![Some(-2.0)], vec![None]],
            marked: vec![vec![true]],
            scale,
            quantity: "q".into(),
        }
    }

    #[test]
    fn brightness_tells_values_apart_without_color() {
        for scale in [
            ColorScale::Sequential,
            ColorScale::Signed {
                negative: String::new(),
                positive: String::new(),
            },
        ] {
            let map = map(scale);
            let shades = (0..=100).map(|i| luminance(map.shade(f64::from(i) / 100.0)));
            let shades: Vec<f64> = shades.collect();
            let rising = shades[100] > shades[0];
            assert!(shades.windows(2).all(|w| (w[1] > w[0]) == rising));
            assert!((shades[100] - shades[0]).abs() > 0.8);
        }
    }

    #[test]
    fn words_are_escaped() {
        let svg = Picture {
            title: "<script>".into(),
            note: String::new(),
            maps: vec![map(ColorScale::Sequential)],
        }
        .svg();
        assert!(!svg.contains("<script") && !svg.contains('\u{1}'));
        assert!(svg.contains("a &lt;title&gt; &amp; &quot;more&quot;"));
        assert!(svg.contains("c0: −2.0000 *"), "{svg}");
    }

    #[test]
    fn other_kinds_of_file_are_refused() {
        let picture = Picture {
            title: String::new(),
            note: String::new(),
            maps: Vec::new(),
        };
        let error = picture.save("picture.gif").expect_err("refused");
        assert!(error.to_string().contains("picture.gif"), "{error}");
    }
}
