//! Pictures as PNG.

use fisher_metrics::picture::{ColorScale, HeatMap, Picture};

/// A PNG of twice the SVG's size.
#[test]
fn a_png_shows_what_the_svg_does() {
    let map = HeatMap {
        title: "shares".into(),
        rows: vec!["layer 0".into(), "layer 1".into()],
        columns: (0..3).map(|head| head.to_string()).collect(),
        axes: ["layer".into(), "head".into()],
        values: vec![vec![Some(0.1), Some(0.2), None]; 2],
        marked: Vec::new(),
        scale: ColorScale::Sequential,
        quantity: "share".into(),
    };
    let picture = Picture {
        title: "Shares".into(),
        note: String::new(),
        maps: vec![map],
    };
    let folder = tempfile::tempdir().expect("a folder");
    picture.save(folder.path().join("map.png")).expect("a file");
    let png = std::fs::read(folder.path().join("map.png")).expect("a file");
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    // Width in pixels, twice the SVG's.
    let width = u32::from_be_bytes(png[16..20].try_into().expect("4 bytes"));
    let svg = picture.svg();
    assert!(svg.contains(&format!("width=\"{}\"", width / 2)), "{width}");
    assert!(picture.save(folder.path().join("no/map.png")).is_err());
}
