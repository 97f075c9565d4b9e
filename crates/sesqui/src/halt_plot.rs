//! Accuracy against latent steps, a line for each rule of halting.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::halt_study::HaltRow;
use crate::halting::family;
use crate::ink::{INKS, PALE};

/// Pixels of the picture, and of the margins: left, above, right, below.
const SIZE: (i32, i32) = (860, 540);
const MARGIN: (i32, i32, i32, i32) = (70, 60, 290, 60);

/// The rows of one study as an SVG document: mean latent steps of a trajectory across, accuracy in percent
/// upwards, with its 95 % interval. Rows that differ in their number alone are one line, in the order of
/// their steps. Lines of `heading` stand above.
///
/// # Errors
///
/// When the drawing library fails.
pub fn svg(rows: &[HaltRow], heading: &str) -> Result<String> {
    let mut text = String::new();
    {
        let size = (SIZE.0 as u32, SIZE.1 as u32);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area, rows, heading).map_err(|error| anyhow!("plot of halting: {error}"))?;
        area.present()
            .map_err(|error| anyhow!("plot of halting: {error}"))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// The lines: names, and rows by their steps.
fn lines(rows: &[HaltRow]) -> Vec<(String, Vec<&HaltRow>)> {
    let several = rows
        .iter()
        .any(|row| row.exit_threshold != rows[0].exit_threshold);
    let mut lines: Vec<(String, Vec<&HaltRow>)> = Vec::new();
    for row in rows {
        let mut name = family(&row.halt);
        if let (Some(threshold), true) = (row.exit_threshold, several) {
            name.push_str(&format!(", exits {threshold}"));
        }
        match lines.iter_mut().find(|(other, _)| *other == name) {
            Some((_, line)) => line.push(row),
            None => lines.push((name, vec![row])),
        }
    }
    for (_, line) in &mut lines {
        line.sort_by(|one, other| one.steps.total_cmp(&other.steps));
    }
    lines
}

fn draw<'a>(area: &Area<'a>, rows: &[HaltRow], heading: &str) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let write = |text: &str, size: i32, across: HPos, at: (i32, i32)| {
        let style = ("sans-serif", size).into_font().color(&BLACK);
        area.draw_text(text, &style.pos(Pos::new(across, VPos::Center)), at)
    };
    for (line, text) in heading.lines().enumerate() {
        let size = if line == 0 { 17 } else { 13 };
        write(text, size, HPos::Left, (24, 18 + 20 * line as i32))?;
    }
    let (left, top) = (MARGIN.0, MARGIN.1);
    let (right, bottom) = (SIZE.0 - MARGIN.2, SIZE.1 - MARGIN.3);
    let most = rows.iter().map(|row| row.steps).fold(1.0, f64::max).ceil();
    let lowest = rows.iter().map(|row| row.summary.ci_low);
    let floor = (lowest.fold(1.0, f64::min) * 10.0).floor().clamp(0.0, 9.0) / 10.0;
    let x = |steps: f64| left + (steps / most * f64::from(right - left)).round() as i32;
    let y = |share: f64| {
        let height = (share - floor) / (1.0 - floor);
        bottom - (height * f64::from(bottom - top)).round() as i32
    };
    // About eight marks across, whatever the number of steps.
    let every = (most / 8.0).ceil().max(1.0) as usize;
    for step in (0..=most as usize).step_by(every) {
        let at = x(step as f64);
        area.draw(&PathElement::new([(at, top), (at, bottom)], PALE))?;
        write(&step.to_string(), 13, HPos::Center, (at, bottom + 16))?;
    }
    for tenth in 0..=5 {
        let share = floor + (1.0 - floor) * f64::from(tenth) / 5.0;
        let at = y(share);
        area.draw(&PathElement::new([(left, at), (right, at)], PALE))?;
        let text = format!("{:.0} %", 100.0 * share);
        write(&text, 13, HPos::Right, (left - 8, at))?;
    }
    let caption = "latent steps per question, of one trajectory (mean)";
    write(caption, 13, HPos::Center, ((left + right) / 2, bottom + 40))?;
    for (index, (name, line)) in lines(rows).iter().enumerate() {
        let ink = INKS[index % INKS.len()];
        let points: Vec<(i32, i32)> = line
            .iter()
            .map(|row| (x(row.steps), y(row.summary.accuracy)))
            .collect();
        area.draw(&PathElement::new(points.clone(), ink.stroke_width(2)))?;
        for (row, &(across, height)) in line.iter().zip(&points) {
            let ends = [
                (across, y(row.summary.ci_low)),
                (across, y(row.summary.ci_high)),
            ];
            area.draw(&PathElement::new(ends, ink))?;
            area.draw(&Circle::new((across, height), 4, ink.filled()))?;
        }
        let at = top + 12 + 22 * index as i32;
        area.draw(&Circle::new((right + 22, at), 5, ink.filled()))?;
        write(name, 13, HPos::Left, (right + 34, at))?;
    }
    let note =
        "accuracy with its 95 % interval; what deciding costs is in the rows, not in the steps";
    write(note, 12, HPos::Left, (24, SIZE.1 - 10))
}

#[cfg(test)]
mod tests {
    use sesqui_reason::HaltConfig;
    use sesqui_run::SummaryRow;

    use super::*;
    use crate::halting::parse;

    fn row(halt: HaltConfig, steps: f64, accuracy: f64) -> HaltRow {
        HaltRow {
            halt,
            exit_threshold: None,
            steps,
            probe_layer_calls: 0.0,
            probe_flops: 0.0,
            summary: SummaryRow {
                accuracy,
                ci_low: accuracy - 0.05,
                ci_high: accuracy,
                ..SummaryRow::default()
            },
            answers: Vec::new(),
        }
    }

    #[test]
    fn every_rule_is_a_line_and_every_row_a_point() {
        let mut rows = vec![
            row(HaltConfig::Never, 6.0, 0.9),
            row(HaltConfig::Never, 2.0, 0.4),
        ];
        for (text, steps, accuracy) in [
            ("entropy=0.1", 4.0, 0.8),
            ("entropy=1", 1.0, 0.35),
            ("learned", 3.5, 0.85),
        ] {
            rows.extend(
                parse(text)
                    .unwrap()
                    .into_iter()
                    .map(|halt| row(halt, steps, accuracy)),
            );
        }
        let svg = svg(&rows, "a <method>\n(second line)").unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        for part in [
            "a &lt;method&gt;",
            "(second line)",
            "plain latent steps",
            "\nentropy\n",
            "\nlearned\n",
            "\n30 %\n",
            "\n100 %\n",
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        // A point for each row, and one beside each name.
        assert_eq!(svg.matches("<circle ").count(), 5 + 3);
        let names: Vec<String> = lines(&rows).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["plain latent steps", "entropy", "learned"]);
        let steps: Vec<f64> = lines(&rows)[1].1.iter().map(|row| row.steps).collect();
        assert_eq!(steps, [1.0, 4.0]);
    }
}
