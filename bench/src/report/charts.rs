//! Pictures, as SVG without scripts, fonts or anything else from elsewhere.
//!
//! Invariant: a series of a void row says so in its label and is drawn dashed. Must not know what is shown.

use std::fmt::Display;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::RGBColor;

use crate::Failure;

const SIZE: (u32, u32) = (640, 390);
const TEXT: RGBColor = RGBColor(74, 85, 101);
const GRID: RGBColor = RGBColor(227, 231, 237);
/// Told apart by hue and by lightness.
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 86, 165),
    RGBColor(214, 106, 20),
    RGBColor(42, 133, 86),
    RGBColor(160, 42, 86),
    RGBColor(111, 88, 201),
    RGBColor(140, 110, 20),
    RGBColor(30, 140, 160),
    RGBColor(90, 90, 90),
];

/// Points that belong together.
#[derive(Debug, Clone, Default)]
pub struct Series {
    pub label: String,
    pub points: Vec<(f64, f64)>,
    /// Which of the colours.
    pub colour: usize,
    /// Dots, with these words beside them, instead of a line alone.
    pub dots: Option<Vec<String>>,
    pub thin: bool,
    pub void: bool,
}

/// What is drawn: x linear, y logarithmic.
pub struct Chart<'a> {
    pub x: &'a str,
    pub y: &'a str,
    pub x_label: &'a dyn Fn(f64) -> String,
    /// Where labels stand; none is about eight of them at round numbers.
    pub x_ticks: Option<Vec<f64>>,
    pub series: &'a [Series],
    /// Upright lines with words.
    pub marks: &'a [(f64, String)],
    /// A level line, such as a promise.
    pub level: Option<f64>,
}

/// An axis with labels at given places.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    log: bool,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        from + (f64::from(to - from) * part.clamp(0.0, 1.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().copied().filter(|t| (self.low..=self.high).contains(t)).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

fn drawn<T, E: Display>(result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|e| format!("a picture cannot be drawn: {e}").into())
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((low.min(v), high.max(v)))
    })
}

/// Round numbers within a range, about eight of them.
fn linear_ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 8.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * power).find(|s| *s >= raw);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|v| *v <= high + step * 1e-9).take(20).collect()
}

/// 1, 2 and 5 times the powers of ten within a range.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = powers.flat_map(|p| [1.0, 2.0, 5.0].map(|f| f * 10f64.powi(p)));
    all.filter(|v| (low..=high).contains(v)).collect()
}

/// A number as short as can be.
pub fn short(v: f64) -> String {
    match v {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 && v.fract().abs() < 1e-9 => format!("{v:.0}"),
        v if v >= 1.0 && v.fract().abs() < 1e-9 => format!("{v:.0}"),
        v => format!("{v:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// Draws a chart; none if there is not a single point.
///
/// # Errors
/// If drawing fails.
pub fn draw(chart: &Chart<'_>) -> Result<Option<String>, Failure> {
    let points = || chart.series.iter().flat_map(|s| s.points.iter());
    let Some(ys) = range(points().map(|p| p.1).chain(chart.level)) else { return Ok(None) };
    let Some(xs) = range(points().map(|p| p.0)) else { return Ok(None) };
    let xs = if xs.1 > xs.0 { xs } else { (xs.0 - 0.5, xs.1 + 0.5) };
    // Room for the words beside dots.
    let dotted = chart.series.iter().any(|s| s.dots.is_some());
    let room = if dotted { xs.1 - xs.0 } else { 0.0 };
    let xs = (xs.0 - room * 0.04, xs.1 + room * 0.12);
    // Room for the legend above.
    let low = (ys.0 / 1.3).max(1e-4);
    let high = ys.1 * (ys.1 / low).powf(0.11 * (chart.series.len().min(8) as f64)).max(1.5);
    let x_ticks = chart.x_ticks.clone().unwrap_or_else(|| linear_ticks(xs.0, xs.1));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let text = ("sans-serif", 13).into_font().color(&TEXT);
        let mut on = drawn(
            ChartBuilder::on(&root)
                .margin(10)
                .margin_right(22)
                .x_label_area_size(44)
                .y_label_area_size(62)
                .build_cartesian_2d(
                    Axis { low: xs.0, high: xs.1, ticks: x_ticks.clone(), log: false },
                    Axis { low, high, ticks: log_ticks(low, high), log: true },
                ),
        )?;
        drawn(
            on.configure_mesh()
                .x_desc(chart.x)
                .y_desc(chart.y)
                .x_labels(x_ticks.len())
                .y_labels(20)
                .x_label_formatter(&|x| (chart.x_label)(*x))
                .y_label_formatter(&|y| short(*y))
                .label_style(text.clone())
                .axis_style(TEXT)
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .draw(),
        )?;
        if let Some(level) = chart.level {
            let line = PathElement::new(vec![(xs.0, level), (xs.1, level)], TEXT.mix(0.6));
            drawn(on.draw_series(std::iter::once(line)))?;
        }
        for (x, words) in chart.marks {
            let line = PathElement::new(vec![(*x, low), (*x, high)], TEXT.stroke_width(1));
            drawn(on.draw_series(std::iter::once(line)))?;
            let at = EmptyElement::at((*x, low)) + Text::new(words.clone(), (5, -16), text.clone());
            drawn(on.draw_series(std::iter::once(at)))?;
        }
        chart.series.iter().try_for_each(|s| series(&mut on, s, &text))?;
        drawn(
            on.configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .label_font(text)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .draw(),
        )?;
        drawn(root.present())?;
    }
    Ok(Some(svg))
}

type On<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

fn series(on: &mut On<'_, '_>, s: &Series, text: &TextStyle<'_>) -> Result<(), Failure> {
    let colour = COLOURS[s.colour % COLOURS.len()];
    let style = colour.stroke_width(if s.thin { 1 } else { 2 });
    let label = if s.void { format!("{} (void)", s.label) } else { s.label.clone() };
    let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style);
    let line = s.points.iter().copied();
    if s.void {
        let dashed = DashedLineSeries::new(line, 6, 5, style);
        drawn(on.draw_series(dashed))?.label(label).legend(legend);
    } else {
        drawn(on.draw_series(LineSeries::new(line, style)))?.label(label).legend(legend);
    }
    for (p, words) in s.points.iter().zip(s.dots.iter().flatten()) {
        let fill = if s.void { WHITE.filled() } else { colour.filled() };
        let dot = EmptyElement::at(*p)
            + Circle::new((0, 0), 4, fill)
            + Circle::new((0, 0), 4, colour.stroke_width(1))
            + Text::new(words.clone(), (6, -15), text.clone());
        drawn(on.draw_series(std::iter::once(dot)))?;
    }
    Ok(())
}

/// A bar of [`bars`].
pub struct Bar {
    pub label: String,
    /// Solid.
    pub inner: f64,
    /// Pale, from where the solid ends.
    pub outer: Option<f64>,
}

/// Bars from the left, one below the other.
///
/// # Errors
/// If drawing fails.
pub fn bars(bars: &[Bar], x: &str) -> Result<Option<String>, Failure> {
    let longest = range(bars.iter().map(|b| b.outer.unwrap_or(b.inner)));
    let Some((_, longest)) = longest.filter(|(_, l)| *l > 0.0) else { return Ok(None) };
    let mut svg = String::new();
    {
        let height = 60 + 26 * u32::try_from(bars.len())?;
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        let text = ("sans-serif", 13).into_font().color(&TEXT);
        let count = bars.len() as f64;
        let mut on = drawn(
            ChartBuilder::on(&root)
                .margin(8)
                .margin_right(22)
                .x_label_area_size(40)
                .y_label_area_size(90)
                .build_cartesian_2d(0.0..longest * 1.04, 0.0..count),
        )?;
        drawn(
            on.configure_mesh()
                .x_desc(x)
                .disable_y_mesh()
                .y_labels(0)
                .x_label_formatter(&|v| short(*v))
                .label_style(text.clone())
                .axis_style(TEXT)
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .draw(),
        )?;
        for (i, bar) in bars.iter().enumerate() {
            let top = count - i as f64 - 0.2;
            let fill = COLOURS[0];
            if let Some(outer) = bar.outer {
                let pale =
                    Rectangle::new([(bar.inner, top), (outer, top - 0.6)], fill.mix(0.3).filled());
                drawn(on.draw_series(std::iter::once(pale)))?;
            }
            let solid = Rectangle::new([(0.0, top), (bar.inner, top - 0.6)], fill.filled());
            drawn(on.draw_series(std::iter::once(solid)))?;
            let at = EmptyElement::at((0.0, top - 0.3))
                + Text::new(bar.label.clone(), (-82, -6), text.clone());
            drawn(on.draw_series(std::iter::once(at)))?;
        }
        drawn(root.present())?;
    }
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_chart_shows_its_series_and_nothing_from_elsewhere() {
        let series = [
            Series {
                label: "good".into(),
                points: vec![(0.0, 1.0), (1.0, 10.0)],
                ..Series::default()
            },
            Series {
                label: "late".into(),
                points: vec![(0.0, 2.0), (1.0, 20.0)],
                void: true,
                colour: 1,
                ..Series::default()
            },
        ];
        let chart = Chart {
            x: "x",
            y: "ms",
            x_label: &short,
            x_ticks: None,
            series: &series,
            marks: &[(0.5, "knee".into())],
            level: Some(10.0),
        };
        let svg = draw(&chart).unwrap().unwrap();
        assert!(svg.contains("late (void)") && svg.contains("good\n") && svg.contains("knee"));
        let links = svg.matches("http").count() - svg.matches("http://www.w3.org/2000/svg").count();
        assert_eq!((links, svg.contains("<script")), (0, false));
        assert!(draw(&Chart { series: &[], level: None, ..chart }).unwrap().is_none());
    }

    #[test]
    fn bars_need_something_to_show() {
        let bar = |inner| Bar { label: "embed".into(), inner, outer: Some(inner * 2.0) };
        assert!(bars(&[bar(3.0)], "ms").unwrap().unwrap().contains("embed"));
        assert!(bars(&[bar(0.0)], "ms").unwrap().is_none());
    }

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        assert_eq!(linear_ticks(0.0, 60.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(linear_ticks(51.0, 129.0).first(), Some(&60.0));
        assert_eq!(log_ticks(0.3, 25.0), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.05, 1.0, 2.5, 100.0, 1234.0].map(short), ["0.05", "1", "2.5", "100", "1234"]);
    }
}
