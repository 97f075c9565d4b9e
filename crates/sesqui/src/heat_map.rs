//! Accuracy over a grid of two settings as a picture.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels of a cell, and of the margins on its left and above it.
const CELL: (i32, i32) = (128, 56);
const MARGIN: (i32, i32) = (112, 92);
/// Pixels below and to the right of the cells.
const REST: (i32, i32) = (24, 40);
/// Fill of the lowest and of the highest accuracy of a grid.
const LOW: (u8, u8, u8) = (247, 251, 255);
const HIGH: (u8, u8, u8) = (8, 81, 156);

/// Every pair of two settings, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// What it is of; further lines stand below the first.
    pub heading: String,
    /// What the labels of the rows are.
    pub down: String,
    /// Labels of the columns.
    pub across: Vec<String>,
    /// The rows from above, each with its label.
    pub rows: Vec<(String, Vec<Tile>)>,
    /// What stands in a tile, below the accuracy.
    pub note: String,
}

/// One pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// Share of right answers.
    pub accuracy: f64,
    /// A few words below it.
    pub note: String,
}

impl HeatMap {
    /// As an SVG document: accuracy in percent as number and colour, the colours from the lowest to the
    /// highest accuracy of this map.
    ///
    /// # Errors
    ///
    /// When the drawing library fails.
    pub fn svg(&self) -> Result<String> {
        let columns = self.across.len() as i32;
        let longest = self.heading.lines().map(|line| line.chars().count()).max();
        // A character of the heading is about 8 pixels wide.
        let wanted = 8 * longest.unwrap_or(0) as i32 + 2 * REST.0;
        let width = (MARGIN.0 + columns * CELL.0 + REST.0).max(wanted);
        let height = MARGIN.1 + self.rows.len() as i32 * CELL.1 + REST.1;
        let mut text = String::new();
        {
            let size = (width as u32, height as u32);
            let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
            self.draw(&area, height)
                .map_err(|error| anyhow!("heat map: {error}"))?;
            area.present()
                .map_err(|error| anyhow!("heat map: {error}"))?;
        }
        Ok(text)
    }

    fn draw<'a>(&self, area: &Area<'a>, height: i32) -> Drawn<'a> {
        area.fill(&WHITE)?;
        let write = |text: &str, size: i32, color: &RGBColor, at: (i32, i32)| {
            let style = ("sans-serif", size).into_font().color(color);
            area.draw_text(text, &style.pos(Pos::new(HPos::Center, VPos::Center)), at)
        };
        let left = Pos::new(HPos::Left, VPos::Center);
        for (line, text) in self.heading.lines().enumerate() {
            let size = if line == 0 { 17 } else { 13 };
            let style = ("sans-serif", size).into_font().color(&BLACK).pos(left);
            area.draw_text(text, &style, (REST.0, 18 + 20 * line as i32))?;
        }
        let (top, middle) = (MARGIN.1, CELL.0 / 2);
        write(&self.down, 13, &BLACK, (MARGIN.0 / 2, top - 14))?;
        for (column, label) in self.across.iter().enumerate() {
            let at = (MARGIN.0 + column as i32 * CELL.0 + middle, top - 14);
            write(label, 13, &BLACK, at)?;
        }
        let shade = self.shade();
        for (row, (label, tiles)) in self.rows.iter().enumerate() {
            let y = top + row as i32 * CELL.1;
            write(label, 14, &BLACK, (MARGIN.0 / 2, y + CELL.1 / 2))?;
            for (column, tile) in tiles.iter().enumerate() {
                let x = MARGIN.0 + column as i32 * CELL.0;
                let share = shade.share(tile.accuracy);
                let ink = if share > 0.5 { &WHITE } else { &BLACK };
                let corners = [(x + 1, y + 1), (x + CELL.0 - 1, y + CELL.1 - 1)];
                area.draw(&Rectangle::new(corners, fill(share).filled()))?;
                let accuracy = format!("{:.1} %", 100.0 * tile.accuracy);
                write(&accuracy, 16, ink, (x + middle, y + 20))?;
                write(&tile.note, 12, ink, (x + middle, y + 40))?;
            }
        }
        let note = format!(
            "accuracy; {}; colour from the lowest to the highest",
            self.note
        );
        let style = ("sans-serif", 12).into_font().color(&BLACK).pos(left);
        area.draw_text(&note, &style, (REST.0, height - 16))
    }

    fn shade(&self) -> Shade {
        let tiles = || self.rows.iter().flat_map(|(_, tiles)| tiles);
        let accuracies = || tiles().map(|tile| tile.accuracy);
        Shade {
            low: accuracies().fold(f64::INFINITY, f64::min),
            high: accuracies().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// The range of accuracies that the colours span.
struct Shade {
    low: f64,
    high: f64,
}

impl Shade {
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
    use super::*;

    fn tile(accuracy: f64, note: &str) -> Tile {
        Tile {
            accuracy,
            note: note.to_owned(),
        }
    }

    fn map(rows: Vec<(String, Vec<Tile>)>) -> HeatMap {
        HeatMap {
            heading: "a <method>\n(second line)".to_owned(),
            down: "exit threshold".to_owned(),
            across: vec!["latent steps: 1".to_owned(), "latent steps: 3".to_owned()],
            rows,
            note: "layer calls".to_owned(),
        }
    }

    #[test]
    fn every_tile_has_its_colour_and_numbers() {
        let rows = vec![
            (
                "0.1".to_owned(),
                vec![tile(0.25, "2.00 calls"), tile(0.5, "4.25 calls")],
            ),
            (
                "1".to_owned(),
                vec![tile(0.5, "3.00 calls"), tile(0.75, "9.50 calls")],
            ),
        ];
        let svg = map(rows).svg().unwrap();
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
        // A background and four tiles; two of them have the colour between.
        assert_eq!(svg.matches("<rect ").count(), 5);
        assert_eq!(svg.matches("fill=\"#80A6CE\"").count(), 2);
    }

    #[test]
    fn a_grid_of_equals_has_one_colour() {
        let one = map(vec![("0.5".to_owned(), vec![tile(0.5, "")])]);
        assert_eq!(one.svg().unwrap().matches("fill=\"#80A6CE\"").count(), 1);
    }
}
