//! `loss.svg`: training and validation loss over steps, as plain SVG text.
//!
//! Written by hand, so that the file depends on the records alone and needs no
//! font or renderer to be made. Readable with one point or a hundred thousand:
//! long curves are drawn as a faint range of their extremes with the mean in
//! front. Axes are linear. Losses that are not finite, and single spikes that
//! would flatten everything else, are left out and said so in the plot.
//! Neighbour: `metrics.rs` reads the records.

use std::fmt::Write;

use super::metrics::Record;
use crate::data::Split;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 56.0;
/// More training points than this are summarised in as many buckets.
const BUCKETS: usize = 300;

const TRAIN: &str = "#1f6fb4";
const VALIDATION: &str = "#d95f02";

/// Draws the losses of `records` and marks the evaluation of step `best`; without one, the least
/// validation loss. (The best weights are not those of the least loss where another metric decides,
/// or where the last evaluation saw more of the split than the others.)
///
/// # Examples
///
/// ```
/// use entrenar_train::data::Split;
/// use entrenar_train::run::{Record, loss_plot};
///
/// let svg = loss_plot(&[Record::new(1, 0.1, Split::Train, 2.0), Record::new(2, 0.2, Split::Train, 1.5)], None);
/// assert!(svg.starts_with("<svg") && svg.contains("train"));
/// ```
pub fn loss_plot(records: &[Record], best: Option<u64>) -> String {
    let curve = |split| -> Vec<(f64, f64)> {
        let mut points: Vec<_> = records
            .iter()
            .filter(|record| record.split == split && record.loss.value().is_finite())
            .map(|record| (record.step as f64, record.loss.value()))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let (train, validation) = (curve(Split::Train), curve(Split::Validation));
    let dropped = records
        .iter()
        .filter(|record| !record.loss.value().is_finite())
        .count();
    let frame = Frame::around(&train, &validation);
    let mut svg = String::new();
    frame.open(&mut svg);
    frame.axes(&mut svg);
    // Curves that leave the frame (clipped spikes) must not cover the labels.
    let _ = writeln!(
        svg,
        r#"<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{:.1}" height="{:.1}"/></clipPath>"#,
        WIDTH - LEFT - RIGHT,
        HEIGHT - TOP - BOTTOM
    );
    let _ = writeln!(svg, r#"<g clip-path="url(#plot)">"#);
    frame.train(&mut svg, &train);
    frame.line(&mut svg, &validation, VALIDATION, 2.0);
    svg.push_str("</g>\n");
    // Markers may touch the frame: a point on its edge should be seen whole.
    frame.markers(&mut svg, &validation, VALIDATION);
    if train.len() <= 2 {
        frame.markers(&mut svg, &train, TRAIN);
    }
    let best = match best {
        Some(step) => validation.iter().copied().rfind(|at| at.0 == step as f64),
        None => validation
            .iter()
            .copied()
            .min_by(|a, b| a.1.total_cmp(&b.1)),
    };
    if let Some(best) = best {
        frame.ring(&mut svg, best);
    }
    legend(&mut svg, &train, &validation, best);
    frame.notes(&mut svg, train.iter().chain(&validation), dropped);
    svg.push_str("</svg>\n");
    svg
}

/// The ranges of both axes, widened to whole ticks.
struct Frame {
    x: Axis,
    y: Axis,
}

struct Axis {
    low: f64,
    high: f64,
    tick: f64,
}

impl Axis {
    /// An axis over `low..=high` with about `count` ticks at round numbers.
    fn new(low: f64, high: f64, count: f64, whole: bool) -> Self {
        let (low, high) = if high > low {
            (low, high)
        } else {
            // One value: leave some room on both sides.
            let room = if whole {
                1.0
            } else {
                (low.abs() * 0.1).max(1e-6)
            };
            (low - room, high + room)
        };
        let rough = (high - low) / count;
        let power = 10f64.powf(rough.log10().floor());
        let mut tick = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|step| step * power)
            .into_iter()
            .find(|&step| step >= rough)
            .unwrap_or(power);
        if whole {
            tick = tick.max(1.0).round();
        }
        Self {
            low: (low / tick).floor() * tick,
            high: (high / tick).ceil() * tick,
            tick,
        }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let (low, tick) = (self.low, self.tick);
        let count = ((self.high - low) / tick).round() as usize;
        (0..=count.min(50)).map(move |index| low + index as f64 * tick)
    }

    /// A tick's label with as many decimals as the ticks differ by.
    fn label(&self, value: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if self.tick < 1e-4 || largest >= 1e7 {
            return format!("{value:.2e}");
        }
        let decimals = (0..6).find(|&digits| {
            let scaled = self.tick * 10f64.powi(digits);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        });
        // −0 would print a sign.
        format!("{:.*}", decimals.unwrap_or(6) as usize, value + 0.0)
    }
}

impl Frame {
    fn around(train: &[(f64, f64)], validation: &[(f64, f64)]) -> Self {
        let all = || train.iter().chain(validation).copied();
        let low = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::min);
        let high = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max);
        let (first, last) = (
            low(&mut all().map(|point| point.0)).unwrap_or(0.0),
            high(&mut all().map(|point| point.0)).unwrap_or(1.0),
        );
        let least = low(&mut all().map(|point| point.1)).unwrap_or(0.0);
        let most = high(&mut all().map(|point| point.1)).unwrap_or(1.0);
        let mut losses: Vec<f64> = all().map(|point| point.1).collect();
        losses.sort_by(f64::total_cmp);
        // A spike far above 98 of 100 points would flatten the rest to a line.
        let usual = losses.get(losses.len() * 98 / 100).copied().unwrap_or(most);
        let ceiling = least + (usual - least) * 4.0;
        let most = if losses.len() >= 50 && usual > least && most > ceiling {
            usual + (usual - least) * 0.5
        } else {
            most
        };
        // Starting at 0 or at the first step should not depend on the first step being 1.
        let first = if first <= last * 0.1 { 0.0 } else { first };
        let mut x = Axis::new(first, last, 8.0, true);
        // The curve should reach the right edge: only the left end needs to be a round number.
        if last > first {
            x.high = last;
        }
        Self {
            x,
            y: Axis::new(least, most, 6.0, false),
        }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + (step - self.x.low) / (self.x.high - self.x.low) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        HEIGHT - BOTTOM - (loss - self.y.low) / (self.y.high - self.y.low) * (HEIGHT - TOP - BOTTOM)
    }

    fn open(&self, svg: &mut String) {
        // `write!` to a String cannot fail.
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\">\n\
             <title>Loss over steps</title>\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>"
        );
    }

    fn axes(&self, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for value in self.y.ticks() {
            let y = self.y(value);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444444\">{}</text>",
                LEFT - 8.0,
                y + 4.5,
                self.y.label(value)
            );
        }
        for value in self
            .x
            .ticks()
            .filter(|&value| value <= self.x.high * (1.0 + 1e-9))
        {
            let x = self.x(value);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#888888\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444444\">{}</text>",
                bottom + 5.0,
                bottom + 20.0,
                self.x.label(value)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888888\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#222222\">step</text>\n\
             <text x=\"20\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#222222\" transform=\"rotate(-90 20 {:.1})\">loss</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 14.0,
            (TOP + bottom) / 2.0,
            (TOP + bottom) / 2.0
        );
    }

    /// The training curve: as it is, or the range of extremes with the mean in front.
    fn train(&self, svg: &mut String, points: &[(f64, f64)]) {
        if points.len() <= BUCKETS {
            self.line(svg, points, TRAIN, 1.5);
            return;
        }
        let buckets: Vec<Bucket> = (0..BUCKETS)
            .map(|n| {
                Bucket::of(&points[n * points.len() / BUCKETS..(n + 1) * points.len() / BUCKETS])
            })
            .collect();
        let upper = buckets.iter().map(|bucket| (bucket.step, bucket.most));
        let lower = buckets
            .iter()
            .rev()
            .map(|bucket| (bucket.step, bucket.least));
        let _ = writeln!(
            svg,
            r#"<path d="{}Z" fill="{TRAIN}" fill-opacity="0.22" stroke="none"/>"#,
            self.path(upper.chain(lower))
        );
        let means: Vec<_> = buckets
            .iter()
            .map(|bucket| (bucket.step, bucket.mean))
            .collect();
        self.line(svg, &means, TRAIN, 1.5);
    }

    fn line(&self, svg: &mut String, points: &[(f64, f64)], colour: &str, width: f64) {
        if points.len() > 1 {
            let _ = writeln!(
                svg,
                r#"<path d="{}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>"#,
                self.path(points.iter().copied())
            );
        }
    }

    fn path(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut path = String::new();
        for (index, (step, loss)) in points.enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            // Points far outside would make viewers draw kilometres of line.
            let y = self.y(loss).clamp(-HEIGHT, 2.0 * HEIGHT);
            let _ = write!(path, "{letter}{:.1} {y:.1}", self.x(step));
        }
        path
    }

    fn markers(&self, svg: &mut String, points: &[(f64, f64)], colour: &str) {
        // Many markers would hide the line that they are meant to mark.
        if points.len() > 60 {
            return;
        }
        for &(step, loss) in points.iter().filter(|point| point.1 <= self.y.high) {
            let _ = writeln!(
                svg,
                r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#,
                self.x(step),
                self.y(loss)
            );
        }
    }

    fn ring(&self, svg: &mut String, (step, loss): (f64, f64)) {
        let _ = writeln!(
            svg,
            r#"<circle cx="{:.1}" cy="{:.1}" r="6.5" fill="none" stroke="{VALIDATION}" stroke-width="1.5"/>"#,
            self.x(step),
            self.y(loss)
        );
    }

    /// Says what is not drawn.
    fn notes<'a>(
        &self,
        svg: &mut String,
        points: impl Iterator<Item = &'a (f64, f64)>,
        dropped: usize,
    ) {
        let above = points.filter(|point| point.1 > self.y.high).count();
        let mut notes = Vec::new();
        if above > 0 {
            notes.push(format!("{above} above the axis"));
        }
        if dropped > 0 {
            notes.push(format!("{dropped} not finite"));
        }
        if !notes.is_empty() {
            let _ = writeln!(
                svg,
                r##"<text x="{:.1}" y="{:.1}" text-anchor="end" font-size="11" fill="#a03020">losses not drawn: {}</text>"##,
                WIDTH - RIGHT,
                HEIGHT - 14.0,
                notes.join(", ")
            );
        }
    }
}

struct Bucket {
    step: f64,
    least: f64,
    most: f64,
    mean: f64,
}

impl Bucket {
    /// Of a non-empty run of points.
    fn of(points: &[(f64, f64)]) -> Self {
        let count = points.len() as f64;
        Self {
            step: points.iter().map(|point| point.0).sum::<f64>() / count,
            least: points
                .iter()
                .map(|point| point.1)
                .fold(f64::INFINITY, f64::min),
            most: points
                .iter()
                .map(|point| point.1)
                .fold(f64::NEG_INFINITY, f64::max),
            mean: points.iter().map(|point| point.1).sum::<f64>() / count,
        }
    }
}

fn legend(
    svg: &mut String,
    train: &[(f64, f64)],
    validation: &[(f64, f64)],
    best: Option<(f64, f64)>,
) {
    let mut x = LEFT;
    let mut entry = |colour: &str, text: &str| {
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"30\" x2=\"{:.1}\" y2=\"30\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{:.1}\" y=\"34.5\" fill=\"#222222\">{text}</text>",
            x + 24.0,
            x + 32.0
        );
        // No font metrics here: 7 units a character is wide enough for 13-unit sans-serif.
        x += 32.0 + 7.0 * text.chars().count() as f64 + 24.0;
    };
    if let Some(last) = train.last() {
        entry(TRAIN, &format!("train: {}", short(last.1)));
    }
    if let Some(last) = validation.last() {
        let mut text = format!("validation: {}", short(last.1));
        if let Some((step, loss)) = best {
            let _ = write!(text, " (best: {} at step {step})", short(loss));
        }
        entry(VALIDATION, &text);
    }
    if train.is_empty() && validation.is_empty() {
        entry("#888888", "no loss was finite");
    }
}

/// Four significant digits.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let digits = if magnitude >= 1000.0 {
        0
    } else if magnitude >= 100.0 {
        1
    } else if magnitude >= 10.0 {
        2
    } else {
        4
    };
    format!("{value:.digits$}")
}
