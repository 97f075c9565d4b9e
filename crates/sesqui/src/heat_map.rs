//! A grid of thresholds as a picture.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::sweep::{Cell, rows, steps_label, threshold_label};

/// Pixels of a cell, and of the margins on its left and above it.
const CELL: (i32, i32) = (128, 56);
const MARGIN: (i32, i32) = (112, 92);
/// Pixels below and to the right of the cells.
const REST: (i32, i32) = (24, 40);
/// Fill of the lowest and of the highest accuracy of a grid.
const LOW: (u8, u8, u8) = (247, 251, 255);
const HIGH: (u8, u8, u8) = (8, 81, 156);

/// The cells of one sweep as an SVG document: exit thresholds downwards, latent steps across, accuracy in
/// percent as number and colour, layer calls per question below it. The colours run from the lowest to
/// the highest accuracy of this grid. Lines of `heading` stand above.
///
/// # Errors
///
/// When the drawing library fails.
pub fn svg(cells: &[Cell], heading: &str) -> Result<String> {
    let grid: Vec<&[Cell]> = rows(cells).collect();
    let columns = grid.iter().map(|row| row.len()).max().unwrap_or(0) as i32;
    let longest = heading.lines().map(|line| line.chars().count()).max();
    // A character of the heading is about 8 pixels wide.
    let wanted = 8 * longest.unwrap_or(0) as i32 + 2 * REST.0;
    let width = (MARGIN.0 + columns * CELL.0 + REST.0).max(wanted);
    let height = MARGIN.1 + grid.len() as i32 * CELL.1 + REST.1;
    let mut text = String::new();
    {
        let size = (width as u32, height as u32);
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area, &grid, cells, heading, height).map_err(|error| anyhow!("heat map: {error}"))?;
        area.present()
            .map_err(|error| anyhow!("heat map: {error}"))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw<'a>(
    area: &Area<'a>,
    grid: &[&[Cell]],
    cells: &[Cell],
    heading: &str,
    height: i32,
) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let write = |text: &str, size: i32, color: &RGBColor, at: (i32, i32)| {
        let style = ("sans-serif", size).into_font().color(color);
        area.draw_text(text, &style.pos(Pos::new(HPos::Center, VPos::Center)), at)
    };
    let left = Pos::new(HPos::Left, VPos::Center);
    for (line, text) in heading.lines().enumerate() {
        let size = if line == 0 { 17 } else { 13 };
        let style = ("sans-serif", size).into_font().color(&BLACK).pos(left);
        area.draw_text(text, &style, (REST.0, 18 + 20 * line as i32))?;
    }
    let (top, middle) = (MARGIN.1, CELL.0 / 2);
    write("exit threshold", 13, &BLACK, (MARGIN.0 / 2, top - 14))?;
    for (column, cell) in grid.first().copied().unwrap_or_default().iter().enumerate() {
        let at = (MARGIN.0 + column as i32 * CELL.0 + middle, top - 14);
        let steps = format!("latent steps: {}", steps_label(cell));
        write(&steps, 13, &BLACK, at)?;
    }
    let shade = Shade::of(cells);
    for (row, line) in grid.iter().enumerate() {
        let y = top + row as i32 * CELL.1;
        for (column, cell) in line.iter().enumerate() {
            let x = MARGIN.0 + column as i32 * CELL.0;
            if column == 0 {
                let at = (MARGIN.0 / 2, y + CELL.1 / 2);
                write(&threshold_label(cell), 14, &BLACK, at)?;
            }
            let share = shade.share(cell.summary.accuracy);
            let ink = if share > 0.5 { &WHITE } else { &BLACK };
            let corners = [(x + 1, y + 1), (x + CELL.0 - 1, y + CELL.1 - 1)];
            area.draw(&Rectangle::new(corners, fill(share).filled()))?;
            let accuracy = format!("{:.1} %", 100.0 * cell.summary.accuracy);
            write(&accuracy, 16, ink, (x + middle, y + 20))?;
            let calls = format!("{:.2} calls", cell.summary.layer_calls);
            write(&calls, 12, ink, (x + middle, y + 40))?;
        }
    }
    let note =
        "accuracy; layer calls per question while reasoning; colour from the lowest to the highest";
    let style = ("sans-serif", 12).into_font().color(&BLACK).pos(left);
    area.draw_text(note, &style, (REST.0, height - 16))
}

/// The range of accuracies that the colours span.
struct Shade {
    low: f64,
    high: f64,
}

impl Shade {
    fn of(cells: &[Cell]) -> Self {
        let accuracies = || cells.iter().map(|cell| cell.summary.accuracy);
        Self {
            low: accuracies().fold(f64::INFINITY, f64::min),
            high: accuracies().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// 0 for the lowest accuracy, 1 for the highest; the middle where they are one.
    fn share(&self, accuracy: f64) -> f64 {
        if self.high > self.low {
            (accuracy - self.low) / (self.high - self.low)
        } else {
            0.5
        }
    }
}

fn fill(share: f64) -> RGBColor {
    let mix = |low: u8, high: u8| {
        (f64::from(low) + share * (f64::from(high) - f64::from(low))).round() as u8
    };
    RGBColor(mix(LOW.0, HIGH.0), mix(LOW.1, HIGH.1), mix(LOW.2, HIGH.2))
}

#[cfg(test)]
mod tests {
    use sesqui_run::SummaryRow;

    use super::*;

    fn cell(exit_threshold: f64, latent_steps: usize, accuracy: f64, layer_calls: f64) -> Cell {
        Cell {
            exit_threshold: Some(exit_threshold),
            latent_steps,
            asked: latent_steps.into(),
            summary: SummaryRow {
                accuracy,
                layer_calls,
                ..SummaryRow::default()
            },
            answers: Vec::new(),
        }
    }

    #[test]
    fn every_cell_has_its_colour_and_numbers() {
        let cells = [
            cell(0.1, 1, 0.25, 2.0),
            cell(0.1, 3, 0.5, 4.25),
            cell(1.0, 1, 0.5, 3.0),
            cell(1.0, 3, 0.75, 9.5),
        ];
        let svg = svg(&cells, "a <method>\n(second line)").unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        for part in [
            "a &lt;method&gt;",
            "(second line)",
            "25.0 %",
            "2.00 calls",
            "75.0 %",
            "9.50 calls",
            "latent steps: 3",
            "\n0.1\n",
            "#F7FBFF",
            "#08519C",
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        // A background and four cells; two of them have the colour between.
        assert_eq!(svg.matches("<rect ").count(), 5);
        assert_eq!(svg.matches("fill=\"#80A6CE\"").count(), 2);
    }

    #[test]
    fn a_grid_of_equals_has_one_colour() {
        let one = svg(&[cell(0.5, 0, 0.5, 1.0)], "x").unwrap();
        assert_eq!(one.matches("fill=\"#80A6CE\"").count(), 1);
    }
}
