//! Accuracy against cost, a point for each method.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{PooledRow, Report};
use crate::ink::{INKS, PALE};

/// Pixels of a panel, one for each test set, and of its margins: left, above, right, below.
const PANEL: (i32, i32) = (860, 460);
const MARGIN: (i32, i32, i32, i32) = (70, 60, 250, 60);
/// Pixels below the panels.
const FOOT: i32 = 28;

/// What an answer costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Floating-point operations, prompt and answer included.
    Flops,
    /// Milliseconds from the prompt to the last token.
    Milliseconds,
}

impl Cost {
    /// Both, with the name of their picture.
    pub const ALL: [(Self, &'static str); 2] = [
        (Self::Flops, "pareto_flops"),
        (Self::Milliseconds, "pareto_ms"),
    ];

    fn of(self, row: &PooledRow) -> f64 {
        match self {
            Self::Flops => row.flops / 1e6,
            Self::Milliseconds => row.total_ms,
        }
    }

    fn caption(self) -> &'static str {
        match self {
            Self::Flops => "MFLOPs per question, prompt and answer included",
            Self::Milliseconds => "milliseconds per question, from the prompt to the last token",
        }
    }
}

/// The methods of a study as an SVG document, one panel for each test set: `cost` across on a logarithmic
/// scale, accuracy upwards with its 95 % interval. Methods that none beats in both are joined; a thin line leads
/// through a latent method with fewer and more latent steps. `None` where nothing has a cost, as times that were
/// not measured.
///
/// # Errors
///
/// When the drawing library fails.
pub fn svg(report: &Report, cost: Cost) -> Result<Option<String>> {
    let panels: Vec<Panel<'_>> = report
        .places()
        .into_iter()
        .map(|place| Panel::new(report, place, cost))
        .filter(|panel| !panel.methods.is_empty())
        .collect();
    if panels.is_empty() {
        return Ok(None);
    }
    let mut text = String::new();
    {
        let size = (PANEL.0, PANEL.1 * panels.len() as i32 + FOOT);
        let area = SVGBackend::with_string(&mut text, (size.0 as u32, size.1 as u32));
        let area = area.into_drawing_area();
        let failed = |error| anyhow!("Pareto plot: {error}");
        area.fill(&WHITE).map_err(failed)?;
        for (index, panel) in panels.iter().enumerate() {
            panel
                .draw(&area, PANEL.1 * index as i32)
                .map_err(|error| anyhow!("Pareto plot: {error}"))?;
        }
        let note = "accuracy over all seeds with its 95 % interval; joined: methods that none beats in both; \
                    thin: other numbers of latent steps";
        write(&area, note, 12, HPos::Left, (24, size.1 - 12))
            .map_err(|error| anyhow!("Pareto plot: {error}"))?;
        area.present()
            .map_err(|error| anyhow!("Pareto plot: {error}"))?;
    }
    Ok(Some(text))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn write<'a>(area: &Area<'a>, text: &str, size: i32, across: HPos, at: (i32, i32)) -> Drawn<'a> {
    let style = ("sans-serif", size).into_font().color(&BLACK);
    area.draw_text(text, &style.pos(Pos::new(across, VPos::Center)), at)
}

/// One test set.
struct Panel<'a> {
    heading: String,
    cost: Cost,
    methods: Vec<&'a PooledRow>,
    /// For each method its rows by number of latent steps.
    lines: Vec<Vec<&'a PooledRow>>,
}

impl<'a> Panel<'a> {
    fn new(report: &'a Report, (dataset, split): (&str, &str), cost: Cost) -> Self {
        let here = |row: &&PooledRow| (&*row.dataset, &*row.split) == (dataset, split);
        let costs = |row: &&PooledRow| cost.of(row) > 0.0;
        let methods: Vec<&PooledRow> = report.methods().filter(here).filter(costs).collect();
        let lines = methods.iter().map(|method| {
            let rows = report.by_latent_steps(method).into_iter();
            rows.map(|(_, row)| row).filter(costs).collect()
        });
        let seeds = methods.iter().map(|row| row.seeds.len()).max();
        Self {
            heading: match seeds {
                Some(1) => format!("{dataset} {split}, one seed"),
                seeds => format!("{dataset} {split}, {} seeds", seeds.unwrap_or(0)),
            },
            cost,
            lines: lines.collect(),
            methods,
        }
    }

    fn draw<'b>(&self, area: &Area<'b>, above: i32) -> Drawn<'b> {
        write(area, &self.heading, 17, HPos::Left, (24, above + 22))?;
        let (left, top) = (MARGIN.0, above + MARGIN.1);
        let (right, bottom) = (PANEL.0 - MARGIN.2, above + PANEL.1 - MARGIN.3);
        let rows = || self.methods.iter().chain(self.lines.iter().flatten());
        let costs = || rows().map(|row| self.cost.of(row));
        // A little room on both sides, in powers.
        let low = costs().fold(f64::INFINITY, f64::min) / 1.15;
        let high = costs().fold(0.0, f64::max) * 1.15;
        let lowest = rows().map(|row| row.ci_low).fold(1.0, f64::min);
        let floor = (lowest * 10.0).floor().clamp(0.0, 9.0) / 10.0;
        let x = |cost: f64| {
            let share = (cost / low).ln() / (high / low).ln();
            left + (share * f64::from(right - left)).round() as i32
        };
        let y = |share: f64| {
            let height = (share - floor) / (1.0 - floor);
            bottom - (height * f64::from(bottom - top)).round() as i32
        };
        for cost in marks(low, high) {
            let at = x(cost);
            area.draw(&PathElement::new([(at, top), (at, bottom)], PALE))?;
            write(area, &cost.to_string(), 13, HPos::Center, (at, bottom + 16))?;
        }
        for fifth in 0..=5 {
            let share = floor + (1.0 - floor) * f64::from(fifth) / 5.0;
            let at = y(share);
            area.draw(&PathElement::new([(left, at), (right, at)], PALE))?;
            let text = format!("{:.0} %", 100.0 * share);
            write(area, &text, 13, HPos::Right, (left - 8, at))?;
        }
        let caption = ((left + right) / 2, bottom + 40);
        write(area, self.cost.caption(), 13, HPos::Center, caption)?;

        let at = |row: &PooledRow| (x(self.cost.of(row)), y(row.accuracy));
        let front = front(&self.methods, self.cost);
        let front: Vec<(i32, i32)> = front.iter().map(|row| at(row)).collect();
        area.draw(&PathElement::new(front, BLACK.mix(0.35).stroke_width(2)))?;
        for (index, (method, line)) in self.methods.iter().zip(&self.lines).enumerate() {
            let ink = INKS[index % INKS.len()];
            let points: Vec<(i32, i32)> = line.iter().map(|row| at(row)).collect();
            for &point in &points {
                area.draw(&Circle::new(point, 2, ink.filled()))?;
            }
            if !points.is_empty() {
                area.draw(&PathElement::new(points, ink.mix(0.6)))?;
            }
            let (across, height) = at(method);
            let ends = [(across, y(method.ci_low)), (across, y(method.ci_high))];
            area.draw(&PathElement::new(ends, ink))?;
            mark(area, index, (across, height))?;
            let beside = top + 12 + 22 * index as i32;
            mark(area, index, (right + 22, beside))?;
            write(area, &method.method, 13, HPos::Left, (right + 34, beside))?;
        }
        Ok(())
    }
}

/// The sign of the method at `index`: a disc for the first seven, then squares, then triangles.
fn mark<'a>(area: &Area<'a>, index: usize, at: (i32, i32)) -> Drawn<'a> {
    let ink = INKS[index % INKS.len()];
    match index / INKS.len() % 3 {
        0 => area.draw(&Circle::new(at, 5, ink.filled())),
        1 => {
            let corners = [(at.0 - 5, at.1 - 5), (at.0 + 5, at.1 + 5)];
            area.draw(&Rectangle::new(corners, ink.filled()))
        }
        _ => area.draw(&TriangleMarker::new(at, 7, ink.filled())),
    }
}

/// The methods that no other beats in accuracy at the same cost or less, cheapest first.
fn front<'a>(methods: &[&'a PooledRow], cost: Cost) -> Vec<&'a PooledRow> {
    let mut sorted = methods.to_vec();
    sorted.sort_by(|one, other| {
        let by_cost = cost.of(one).total_cmp(&cost.of(other));
        by_cost.then(other.accuracy.total_cmp(&one.accuracy))
    });
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|row| {
        let better = row.accuracy > best;
        best = best.max(row.accuracy);
        better
    });
    sorted
}

/// Round numbers between `low` and `high`, some ten at most.
fn marks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let steps: &[f64] = match (high / low).log10() {
        wide if wide > 3.0 => &[1.0],
        wide if wide > 1.2 => &[1.0, 2.0, 5.0],
        _ => &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    };
    decades
        .flat_map(|decade| {
            // Through text, so that 0.3 does not become 0.30000000000000004.
            steps
                .iter()
                .filter_map(move |step| format!("{step}e{decade}").parse::<f64>().ok())
        })
        .filter(|mark| (low..=high).contains(mark))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sesqui_run::Schema;

    use super::*;

    fn row(method: &str, asked: Option<usize>, accuracy: f64, cost: f64) -> PooledRow {
        PooledRow {
            dataset: "d".to_owned(),
            split: "test".to_owned(),
            method: method.to_owned(),
            asked,
            seeds: vec![1, 2],
            accuracy,
            ci_low: accuracy - 0.04,
            ci_high: (accuracy + 0.04).min(1.0),
            latent_steps: 6.0,
            flops: cost * 1e6,
            ..PooledRow::default()
        }
    }

    fn report(pooled: Vec<PooledRow>) -> Report {
        Report {
            schema: Schema,
            command: String::new(),
            commits: BTreeSet::new(),
            machines: BTreeSet::new(),
            date: String::new(),
            reference: "cot".to_owned(),
            unfinished: Vec::new(),
            rows: Vec::new(),
            pooled,
            paired: Vec::new(),
            unpaired: None,
        }
    }

    #[test]
    fn every_method_is_a_point_and_other_numbers_of_steps_a_line() {
        let rows = vec![
            row("no-cot", None, 0.25, 11.0),
            row("cot", None, 0.99, 23.0),
            row("latent", None, 0.98, 13.0),
            row("latent", Some(3), 0.6, 12.0),
            row("worse", None, 0.5, 20.0),
        ];
        let front: Vec<&str> = front(&rows.iter().collect::<Vec<_>>(), Cost::Flops)
            .iter()
            .map(|row| row.method.as_str())
            .collect();
        assert_eq!(front, ["no-cot", "latent", "latent", "cot"]);
        let report = report(rows);
        let svg = svg(&report, Cost::Flops).unwrap().unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        for part in [
            "d test, 2 seeds",
            "\nno-cot\n",
            "\ncot\n",
            "\nworse\n",
            "MFLOPs per question",
            "\n20 %\n",
            "\n100 %\n",
            "\n15\n",
        ] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        // Four methods and their signs beside their names; two small points on the line of one.
        assert_eq!(svg.matches("<circle ").count(), 2 * 4 + 2);
        // No times were measured.
        assert_eq!(super::svg(&report, Cost::Milliseconds).unwrap(), None);
    }

    #[test]
    fn marks_are_round_and_few() {
        assert_eq!(marks(9.0, 27.0), [10.0, 15.0, 20.0, 25.0]);
        assert_eq!(marks(0.25, 0.45), [0.25, 0.3, 0.4]);
        assert_eq!(marks(0.9, 90.0), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(marks(0.5, 20_000.0), [1.0, 10.0, 100.0, 1_000.0, 10_000.0]);
    }
}
