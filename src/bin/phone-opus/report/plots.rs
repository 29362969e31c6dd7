//! The plots of a report, as SVG.
//!
//! Owns: how a figure becomes a picture. May not know: what the figures mean, the page around them.
//!
//! Text and axes are drawn in black, and the page's style sheet makes that the colour of its text, so that one picture is read in light and
//! in dark; the colours of the bars are mid-tones that are told apart on both.
//!
//! Invariant: a label is no wider than its place, and nothing in it is obeyed: it is written out, and then escaped as text of SVG.

use phone_opus::internals::base::lenient;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
pub(super) use plotters::prelude::RGBColor as Colour;
use plotters::prelude::*;

use super::shown;

/// Width of a plot in its own units; the page scales it.
const WIDTH: u32 = 760;

/// Height of a plot with days or buckets below it.
const HEIGHT: u32 = 240;

/// Height of one bar of those that lie.
const BAR: u32 = 24;

/// Characters of a name beside its bar: a third of the width.
const NAME: usize = 38;

/// Labels below a plot, at most: more would run into each other.
const LABELS: usize = 12;

pub(super) const GOOD: RGBColor = RGBColor(0x2e, 0x9e, 0x5b);
pub(super) const BAD: RGBColor = RGBColor(0xd6, 0x45, 0x45);
pub(super) const DOUBT: RGBColor = RGBColor(0xc9, 0x8a, 0x00);
pub(super) const LOST: RGBColor = RGBColor(0x8a, 0x63, 0xd2);
pub(super) const CALM: RGBColor = RGBColor(0x3b, 0x82, 0xc4);

/// One row of values, drawn in one colour.
pub(super) struct Series {
    /// What it is.
    pub(super) name: &'static str,
    /// Its colour.
    pub(super) colour: RGBColor,
    /// A value for each label.
    pub(super) values: Vec<f64>,
}

impl Series {
    pub(super) fn new(name: &'static str, colour: RGBColor, values: impl IntoIterator<Item = f64>) -> Self {
        Self { name, colour, values: values.into_iter().collect() }
    }
}

/// A plot that could not be drawn, in the library's words.
pub(super) type PlotError = DrawingAreaErrorKind<std::io::Error>;

/// Standing bars, one on the other, above these labels.
pub(super) fn standing(title: &str, unit: &str, labels: &[String], series: &[Series]) -> Result<String, PlotError> {
    let tops = (0..labels.len()).map(|at| series.iter().filter_map(|one| one.values.get(at)).sum::<f64>());
    let most = ceiling(tops.fold(0.0, f64::max));
    let count = labels.len().max(1);
    let step = labels.len().div_ceil(LABELS).max(1);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(56)
            .build_cartesian_2d(Places { count, step }, 0.0..most)?;
        let label = |at: &f64| labels.get(at.round() as usize).map(|name| end_of(name)).unwrap_or_default();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&label)
            .y_labels(5)
            .y_label_formatter(&|value| number(*value))
            .y_desc(unit)
            .label_style(("sans-serif", 13))
            .draw()?;
        let mut floor = vec![0.0; labels.len()];
        for one in series {
            let bars = floor.iter_mut().zip(&one.values).enumerate().filter(|(_, (_, value))| **value > 0.0);
            let bars = bars.map(|(at, (floor, value))| {
                let from = std::mem::replace(floor, *floor + value);
                Rectangle::new([(at as f64 - 0.4, from), (at as f64 + 0.4, *floor)], one.colour.filled())
            });
            chart.draw_series(bars.collect::<Vec<_>>())?;
        }
        root.present()?;
    }
    Ok(named(&svg, title))
}

/// Lying bars beside these names.
pub(super) fn lying(title: &str, names: &[String], one: &Series) -> Result<String, PlotError> {
    let most = ceiling(one.values.iter().copied().fold(0.0, f64::max));
    let count = names.len().max(1);
    let height = 44 + BAR * u32::try_from(count).unwrap_or(1);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(270)
            .build_cartesian_2d(0.0..most, Places { count, step: 1 })?;
        // The first one is at the top.
        let index = |at: &f64| names.len().checked_sub(at.round() as usize + 1);
        let label = |at: &f64| index(at).and_then(|at| names.get(at)).map(|name| end_of(name)).unwrap_or_default();
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .y_label_formatter(&label)
            .x_labels(5)
            .x_label_formatter(&|value| number(*value))
            .label_style(("sans-serif", 13))
            .draw()?;
        let bars = one.values.iter().enumerate().filter(|(_, value)| **value > 0.0).map(|(at, value)| {
            let y = count.saturating_sub(at + 1) as f64;
            Rectangle::new([(0.0, y - 0.35), (*value, y + 0.35)], one.colour.filled())
        });
        chart.draw_series(bars.collect::<Vec<_>>())?;
        root.present()?;
    }
    Ok(named(&svg, title))
}

/// Places for so many bars beside each other, and a label at each so many of them. The library's own labels for numbers stand where a
/// round number is, which is not below a bar.
struct Places {
    count: usize,
    step: usize,
}

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value + 0.5) / self.count as f64;
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.count).step_by(self.step).map(|at| at as f64).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        -0.5..self.count as f64 - 0.5
    }
}

/// The end of a name, which is what tells paths apart.
fn end_of(name: &str) -> String {
    let name = lenient::visible(name).replace(['\n', '\t'], " ");
    let count = name.chars().count();
    if count <= NAME {
        return name;
    }
    let end: String = name.chars().skip(count - (NAME - 1)).collect();
    format!("…{end}")
}

/// The picture with a name for who does not see it, as part of a page: no width of its own and no namespace.
fn named(svg: &str, title: &str) -> String {
    let view = svg.find("viewBox").and_then(|from| svg.get(from..)).and_then(|rest| rest.split(" xmlns").next());
    let inside = svg.find(">\n").and_then(|end| svg.get(end + 2..));
    match (view, inside) {
        (Some(view), Some(inside)) => {
            format!("<svg {view} role=\"img\" aria-label=\"{}\">\n{inside}", shown(title))
        }
        _ => svg.to_owned(),
    }
}

/// The end of an axis: a round number that is not below the greatest value.
fn ceiling(most: f64) -> f64 {
    if most <= 0.0 || !most.is_finite() {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    let round = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0];
    round.into_iter().map(|step| step * power).find(|end| *end >= most).unwrap_or(10.0 * power)
}

fn number(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value.fract().abs() < 1e-9 {
        format!("{value:.0}")
    } else if value.abs() < 0.1 {
        format!("{value:.4}").trim_end_matches('0').to_owned()
    } else {
        format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_that_no_value_exceeds() {
        for (most, end) in
            [(0.0, 1.0), (f64::NAN, 1.0), (1.0, 1.0), (1.2, 1.5), (7.6, 10.0), (101.0, 150.0), (0.034, 0.04)]
        {
            assert!((ceiling(most) - end).abs() < 1e-9, "{most}: {}", ceiling(most));
        }
        let shown: Vec<String> = [0.0, 3.0, 0.25, 0.0125, 1.5].into_iter().map(number).collect();
        assert_eq!(shown, ["0", "3", "0.25", "0.0125", "1.5"]);
    }

    #[test]
    fn each_value_is_a_bar_and_each_label_stands_as_text() {
        let hostile = "<b onload=1>\u{1b}[2J\u{202e}x".to_owned();
        let labels = vec!["one".to_owned(), "two".to_owned(), hostile.clone()];
        let series = [Series::new("good", GOOD, [1.0, 0.0, 3.0]), Series::new("bad", BAD, [2.0, 0.0, 0.0])];
        let standing = standing("a \"title\"", "jobs", &labels, &series).expect("drawn");
        assert_eq!(standing.matches("fill=\"#2E9E5B\"").count(), 2);
        assert_eq!(standing.matches("fill=\"#D64545\"").count(), 1);
        assert!(standing.contains("two") && standing.contains("a &quot;title&quot;"), "{standing}");
        let lying = lying("t", &labels, &series[0]).expect("drawn");
        for svg in [standing, lying] {
            assert!(svg.contains("&lt;b onload=1&gt;") && !svg.contains("<b"), "{svg}");
            assert!(!svg.contains("http"), "{svg}");
        }
        assert_eq!(end_of(&hostile), "<b onload=1>\\u001b[2J\\u202ex");
        assert_eq!(end_of(&"/long".repeat(20)).chars().count(), NAME);
    }

    #[test]
    fn nothing_to_draw_is_an_empty_plot() {
        assert!(standing("t", "u", &[], &[]).expect("drawn").starts_with("<svg viewBox"));
        assert!(lying("t", &[], &Series::new("x", CALM, [])).expect("drawn").ends_with("</svg>\n"));
    }
}
