//! Charts as SVG: lines with whiskers on two axes, and stacked bars.

use std::fmt::Write as _;

/// A point: the median of repeats and their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Across.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// Lowest and highest.
    pub range: (f64, f64),
}

impl Point {
    /// Of all repeats, which are not none.
    pub fn of(repeats: &[(f64, f64)]) -> Point {
        let sorted = |of: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = repeats.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (x, y) = (sorted(|p| p.0), sorted(|p| p.1));
        Point { x: x[x.len() / 2], y: y[y.len() / 2], range: (y[0], y[y.len() - 1]) }
    }
}

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// Whether a line joins the points.
    pub joined: bool,
    /// From left to right.
    pub points: Vec<Point>,
}

/// How an axis runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0.
    Linear,
    /// Evenly per doubling.
    Log2,
}

/// Lines on two axes.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Above.
    pub title: String,
    /// The axis across, with its unit.
    pub x: String,
    /// The axis up, with its unit; from 0.
    pub y: String,
    /// How the axis across runs.
    pub x_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
}

impl Chart {
    /// The picture.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let mut svg = open(&self.title, &self.y, HEIGHT);
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            middle(),
            BOTTOM + 36.0,
            escape(&self.x)
        );
        let most = points().map(|p| p.range.1).fold(0.0, f64::max);
        if !(most > 0.0) {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#888\">no data</text></svg>",
                middle(),
                BOTTOM / 2.0
            );
            return svg;
        }
        let (ticks, top) = ticks(most);
        let up = |y: f64| BOTTOM - (BOTTOM - TOP) * y / top;
        for tick in ticks {
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
                up(tick),
                LEFT - 6.0,
                up(tick) + 4.0,
                number(tick)
            );
        }
        let across = self.across(&mut svg, points().map(|p| p.x).collect());
        for (at, series) in self.series.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let mut points = series.points.clone();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            if series.joined {
                let path: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", across(p.x), up(p.y))).collect();
                let _ = write!(
                    svg,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                    path.join(" ")
                );
            }
            for p in &points {
                let x = across(p.x);
                let _ = write!(
                    svg,
                    "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\
                     <circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"><title>{}: {}, {}</title></circle>",
                    up(p.range.0),
                    up(p.range.1),
                    up(p.y),
                    escape(&series.name),
                    number(p.x),
                    number(p.y)
                );
            }
        }
        legend(&mut svg, self.series.iter().map(|s| s.name.as_str()));
        svg + "</svg>\n"
    }

    /// Draws the axis across and says where on it a value stands.
    fn across(&self, svg: &mut String, values: Vec<f64>) -> impl Fn(f64) -> f64 + use<> {
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let least = values.iter().copied().fold(most, f64::min).max(f64::MIN_POSITIVE);
        let scale = self.x_scale;
        let (marks, from, to) = match scale {
            Scale::Linear => {
                let (marks, top) = ticks(most);
                (marks, 0.0, top)
            }
            Scale::Log2 => {
                let mut marks = values;
                marks.sort_by(f64::total_cmp);
                marks.dedup();
                (marks, least.log2() - 0.3, most.log2() + 0.3)
            }
        };
        let at = move |x: f64| {
            let x = if scale == Scale::Log2 { x.max(f64::MIN_POSITIVE).log2() } else { x };
            LEFT + (RIGHT - LEFT) * (x - from) / (to - from)
        };
        for mark in marks {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                at(mark),
                BOTTOM + 17.0,
                number(mark)
            );
        }
        at
    }
}

/// A bar of parts on top of each other.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Below.
    pub name: String,
    /// Name and height of each.
    pub parts: Vec<(String, f64)>,
}

/// Bars beside each other, one a row.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let height = TOP + 26.0 * bars.len().max(1) as f64 + 60.0;
    let mut svg = open(title, "", height);
    let _ =
        write!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>", middle(), height - 10.0, escape(unit));
    let most = bars.iter().map(|bar| bar.parts.iter().map(|(_, x)| x).sum::<f64>()).fold(0.0, f64::max);
    if !(most > 0.0 && most.is_finite()) {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#888\">no data</text></svg>",
            middle(),
            TOP + 20.0
        );
        return svg;
    }
    let mut names: Vec<&str> = bars.iter().flat_map(|bar| bar.parts.iter().map(|(name, _)| name.as_str())).collect();
    names.sort_unstable();
    names.dedup();
    let (ticks, top) = ticks(most);
    let left = LEFT + 90.0;
    let wide = |x: f64| (RIGHT - left) * x / top;
    for tick in ticks {
        let x = left + wide(tick);
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{0}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{1}\" text-anchor=\"middle\">{2}</text>",
            height - 46.0,
            height - 30.0,
            number(tick)
        );
    }
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + 26.0 * row as f64 + 4.0;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 13.0,
            escape(&bar.name)
        );
        let mut x = left;
        for (name, value) in &bar.parts {
            let colour = COLOURS[names.iter().position(|n| n == name).unwrap_or(0) % COLOURS.len()];
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"><title>{}: {}</title></rect>",
                wide(*value),
                escape(name),
                number(*value)
            );
            x += wide(*value);
        }
    }
    legend(&mut svg, names.into_iter());
    svg + "</svg>\n"
}

fn open(title: &str, y: &str, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui,sans-serif\" font-size=\"12\" role=\"img\"><title>{0}</title>\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><text x=\"{LEFT}\" y=\"18\" font-size=\"15\" font-weight=\"600\">{0}</text>",
        escape(title)
    );
    if !y.is_empty() {
        let _ = write!(
            svg,
            "<text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (TOP + BOTTOM) / 2.0,
            escape(y)
        );
    }
    svg
}

fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str>) {
    let mut y = TOP;
    for (at, name) in names.enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let _ = write!(svg, "<rect x=\"{}\" y=\"{y:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>", RIGHT + 14.0);
        for line in lines(name) {
            let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\">{}</text>", RIGHT + 29.0, y + 9.0, escape(&line));
            y += 16.0;
        }
    }
}

/// A name in lines that a legend has room for, as far as its commas allow.
fn lines(name: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for part in name.split_inclusive(", ") {
        match lines.last_mut() {
            Some(line) if line.len() + part.trim_end().len() <= LEGEND => line.push_str(part),
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

/// Round numbers from 0 to at least `most`, and the last of them.
fn ticks(most: f64) -> (Vec<f64>, f64) {
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|by| by * power).find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let count = (most / step).ceil().clamp(1.0, 10.0) as usize;
    let ticks: Vec<f64> = (0..=count).map(|i| i as f64 * step).collect();
    let top = count as f64 * step;
    (ticks, top)
}

/// A number as short as it can be said.
fn number(x: f64) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{x:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Text within HTML or SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn middle() -> f64 {
    (LEFT + RIGHT) / 2.0
}

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 300.0;
/// Bytes of a legend's line.
const LEGEND: usize = 36;

/// Okabe and Ito's, which the colour-blind can tell apart.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_take_several_lines() {
        let name = "weights auto, cache default, threads 1, wait brief";
        assert_eq!(lines(name), ["weights auto, cache default, ", "threads 1, wait brief"]);
        assert_eq!(lines("frontier"), ["frontier"]);
    }

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        for most in [0.003, 0.9, 1.0, 7.3, 42.0, 1234.5] {
            let (ticks, top) = ticks(most);
            assert!(top >= most && (2..=11).contains(&ticks.len()) && ticks[0] == 0.0, "{most}: {ticks:?}");
        }
        assert_eq!([0.0, 0.25, 12.0, 1200.0, 0.0031].map(number), ["0", "0.25", "12", "1200", "0.0031"]);
    }

    #[test]
    fn a_point_is_the_median_of_its_repeats() {
        let point = Point::of(&[(1.0, 5.0), (1.0, 2.0), (1.0, 9.0)]);
        assert_eq!(point, Point { x: 1.0, y: 5.0, range: (2.0, 9.0) });
    }
}
