//! The backlog of a rehearsal over time as an SVG: all of it, then each wave, windows shaded.
//! One self-contained file, for light and dark screens. Pure text. Floor 4.

use std::fmt::Write as _;

use super::report::{Report, WaveReport};
use crate::plan::Timestamp;

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 220.0;
const TOP: f64 = 84.0;
/// Height of the panel of all mail, and of one wave's.
const TOTAL: f64 = 220.0;
const ROW: f64 = 30.0;
/// Room below the panel of all mail: its axis and the heading of the waves.
const BETWEEN: f64 = 74.0;
const BELOW: f64 = 56.0;
const PLOT: f64 = WIDTH - LEFT - RIGHT;
/// Longest name of a wave that is shown whole.
const NAME: usize = 20;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Steps of the time axis; the first that gives few enough ticks is taken.
const STEPS: [u64; 13] = [
    MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    7 * DAY,
];
const TICKS: u64 = 12;

const STYLE: &str = "\
svg{font:12px system-ui,-apple-system,'Segoe UI',sans-serif}\
.paper{fill:#fff}.ink{fill:#18212d}.dim{fill:#596575}.head{font-size:17px;font-weight:600}\
.axis{stroke:#8793a2}.grid{stroke:#e4e9ef}.window{fill:#f0a92e;fill-opacity:.3}\
.area{fill:#2a6bd1;fill-opacity:.5}.line{fill:none;stroke:#2a6bd1;stroke-width:1.5}\
@media (prefers-color-scheme:dark){.paper{fill:#12171e}.ink{fill:#e8edf3}.dim{fill:#9aa7b6}\
.axis{stroke:#66727f}.grid{stroke:#27303b}.window{fill:#d9962a;fill-opacity:.32}\
.area{fill:#6aa5ff;fill-opacity:.5}.line{stroke:#7db0ff}}";

/// Draws it.
pub fn draw(report: &Report, from: Timestamp) -> String {
    let rows = to_f64(report.waves.len() as u64);
    let height = TOP + TOTAL + BETWEEN + rows * ROW + BELOW;
    let chart = Chart { report, from, length: report.length_ms.max(1) };
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>Messages that waited, {} to \
         {}</title>\n<style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" \
         height=\"{height}\"/>\n",
        report.from, report.to
    );
    chart.heading(&mut out);
    chart.total(&mut out);
    let top = TOP + TOTAL + BETWEEN;
    let bottom = top + rows * ROW;
    text(&mut out, LEFT, top - 14.0, "start", "ink", "Each wave, drawn to its own peak");
    chart.time_axis(&mut out, top, bottom);
    for (wave, at) in report.waves.iter().zip(0_u64..) {
        chart.wave(&mut out, wave, top + to_f64(at) * ROW);
    }
    out.push_str("</svg>\n");
    out
}

struct Chart<'a> {
    report: &'a Report,
    from: Timestamp,
    length: u64,
}

impl Chart<'_> {
    fn heading(&self, out: &mut String) {
        let Report { from, to, seed, totals, upstream_rate, .. } = self.report;
        text(out, LEFT, 28.0, "start", "ink head", "Rehearsal: messages that waited");
        let line = format!(
            "{from} to {to}, seed {seed}: {} messages, {} waves, upstreams at {} a second",
            grouped(totals.sent),
            self.report.waves.len(),
            grouped(u64::from(*upstream_rate)),
        );
        text(out, LEFT, 48.0, "start", "dim", &line);
        let _ = writeln!(
            out,
            "<rect class=\"window\" x=\"{LEFT}\" y=\"59\" width=\"14\" height=\"12\"/>"
        );
        text(out, LEFT + 20.0, 69.0, "start", "dim", "window (until it is released)");
    }

    /// The panel of all mail.
    fn total(&self, out: &mut String) {
        let (top, bottom) = (TOP, TOP + TOTAL);
        let most = self.report.backlog.iter().copied().max().unwrap_or(0);
        let (step, ceiling) = scale(most);
        let mut value = 0;
        while value <= ceiling {
            let y = bottom - TOTAL * to_f64(value) / to_f64(ceiling);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>",
                LEFT + PLOT
            );
            text(out, LEFT - 8.0, y + 4.0, "end", "dim", &grouped(value));
            value += step;
        }
        let middle = (top + bottom) / 2.0;
        let _ = writeln!(
            out,
            "<text class=\"dim\" text-anchor=\"middle\" transform=\"translate(60 {middle:.1}) \
             rotate(-90)\">messages waiting, all mail</text>"
        );
        self.time_axis(out, top, bottom);
        for (from, to) in merged(self.report.waves.iter().map(|wave| wave.shade)) {
            self.shade(out, (from, to), top, TOTAL);
        }
        self.area(out, &self.report.backlog, ceiling, bottom, TOTAL);
    }

    /// One wave's row.
    fn wave(&self, out: &mut String, wave: &WaveReport, top: f64) {
        let bottom = top + ROW - 4.0;
        let height = ROW - 8.0;
        let _ = write!(
            out,
            "<g><title>{}: {} to {}, {} held</title>",
            escaped(&wave.id),
            wave.opens,
            wave.closes,
            grouped(wave.held.messages)
        );
        self.shade(out, wave.shade, bottom - height, height);
        let most = wave.backlog.iter().copied().max().unwrap_or(0);
        self.area(out, &wave.backlog, most.max(1), bottom, height);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{bottom:.1}\" x2=\"{:.1}\" y2=\"{bottom:.1}\"/>",
            LEFT + PLOT
        );
        text(out, LEFT - 8.0, bottom - 6.0, "end", "ink", &shortened(&wave.id));
        let drain = match (wave.drain_ms, wave.held.messages) {
            (_, 0) => "held nothing".to_owned(),
            (Some(ms), _) => format!("peak {}, drained in {}", grouped(most), seconds(ms)),
            (None, _) => format!("peak {}, not drained", grouped(most)),
        };
        text(out, LEFT + PLOT + 8.0, bottom - 6.0, "start", "dim", &drain);
        out.push_str("</g>\n");
    }

    fn shade(&self, out: &mut String, (from, to): (u64, u64), top: f64, height: f64) {
        let (left, right) = (self.x(from), self.x(to));
        // One that is short beside the whole is still to be seen.
        let width = (right - left).max(1.0);
        let _ = writeln!(
            out,
            "<rect class=\"window\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\"/>"
        );
    }

    /// What waited, as an area up to `ceiling`.
    fn area(&self, out: &mut String, points: &[u64], ceiling: u64, bottom: f64, height: f64) {
        let count = to_f64(points.len().max(1) as u64);
        let x = |at: usize| LEFT + PLOT * to_f64(at as u64) / count;
        let y = |value: u64| bottom - height * to_f64(value) / to_f64(ceiling);
        let mut line = String::new();
        let mut last = None;
        for (at, &value) in points.iter().enumerate() {
            if last != Some(value) {
                let command = if last.is_none() { 'M' } else { 'H' };
                let _ = match last {
                    None => write!(line, "{command}{:.1} {:.1}", x(at), y(value)),
                    Some(_) => write!(line, "{command}{:.1}V{:.1}", x(at), y(value)),
                };
                last = Some(value);
            }
        }
        let _ = write!(line, "H{:.1}", x(points.len()));
        let _ = writeln!(out, "<path class=\"area\" d=\"{line}V{bottom:.1}H{LEFT}Z\"/>");
        let _ = writeln!(out, "<path class=\"line\" d=\"{line}\"/>");
    }

    fn time_axis(&self, out: &mut String, top: f64, bottom: f64) {
        let fits = |step: &&u64| self.length / **step <= TICKS;
        let step = STEPS.iter().find(fits).copied().unwrap_or(7 * DAY);
        let mut at = self.from.0.next_multiple_of(step);
        while at <= self.from.0 + self.length {
            let x = self.x(at - self.from.0);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
            );
            text(out, x, bottom + 17.0, "middle", "dim", &self.tick(at));
            at += step;
        }
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom:.1}\" x2=\"{:.1}\" y2=\"{bottom:.1}\"/>",
            LEFT + PLOT
        );
        text(out, LEFT + PLOT / 2.0, bottom + 36.0, "middle", "dim", "time (UTC)");
    }

    /// `06:00`; midnight is `01-20`, the day that begins.
    fn tick(&self, at: u64) -> String {
        let text = Timestamp(at).to_string();
        let part = if at.is_multiple_of(DAY) { text.get(5..10) } else { text.get(11..16) };
        part.unwrap_or(&text).to_owned()
    }

    fn x(&self, ms: u64) -> f64 {
        LEFT + PLOT * to_f64(ms.min(self.length)) / to_f64(self.length)
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(text)
    );
}

/// Step and end of an axis that goes up to `most`: at most six steps of 1, 2 or 5 times a power
/// of ten.
fn scale(most: u64) -> (u64, u64) {
    let mut power = 1_u64;
    loop {
        for factor in [1, 2, 5] {
            let step = power.saturating_mul(factor);
            if most.div_ceil(step) <= 6 {
                return (step, step.saturating_mul(most.div_ceil(step).max(1)));
            }
        }
        power = power.saturating_mul(10);
    }
}

/// Spans of time, those that touch as one.
fn merged(spans: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = spans.collect();
    all.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (from, to) in all {
        match out.last_mut() {
            Some((_, end)) if from <= *end => *end = to.max(*end),
            _ => out.push((from, to)),
        }
    }
    out
}

/// `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `0.421 s`, `75.3 s`, `12 min`.
pub(crate) fn seconds(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{:03} s", ms / 1000, ms % 1000),
        10_000..600_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min", ms / MINUTE),
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[allow(clippy::cast_precision_loss, reason = "places on a page")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_steps() {
        for (most, wanted) in
            [(0, (1, 1)), (1, (1, 1)), (6, (1, 6)), (7, (2, 8)), (12_345, (5000, 15_000))]
        {
            assert_eq!(scale(most), wanted, "{most}");
        }
    }

    #[test]
    fn numbers_and_times_are_read_easily() {
        assert_eq!([grouped(0), grouped(999), grouped(1_234_567)], ["0", "999", "1,234,567"]);
        let told = [seconds(421), seconds(75_310), seconds(720_000)];
        assert_eq!(told, ["0.421 s", "75.3 s", "12 min"]);
    }

    #[test]
    fn windows_that_touch_are_shaded_once() {
        let spans = [(50, 60), (0, 10), (5, 20), (20, 25)];
        assert_eq!(merged(spans.into_iter()), [(0, 25), (50, 60)]);
    }
}
