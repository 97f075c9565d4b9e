//! How time and memory grow with the work: one picture for each of sequence length, rows, latent steps and layers.
//!
//! Every point is `measure` in a process of its own, so that its memory is its own too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use indicatif::ProgressBar;
use plotters::prelude::*;
use serde_json::Value;
use sesqui::ink::INKS;
use sesqui::misuse::report;
use sesqui::output::say;
use sesqui_run::atomic_write;

/// Measure how time and memory grow, and draw a picture for each thing that grows.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Folder for pictures and rows
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// small-gpt, arith-dag or gpt2-small
    #[arg(long, value_name = "NAME", default_value = "small-gpt")]
    shape: String,

    /// As of train
    #[arg(long, value_name = "BACKEND", default_value = "cpu")]
    backend: String,

    /// Timed repetitions of each point, of which the median is drawn
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
}

/// What grows: its name, what `measure` calls it for training and for answers, its values.
struct Axis {
    name: &'static str,
    file: &'static str,
    values: &'static [usize],
    /// The work that has it, with the flag it goes by.
    works: &'static [(&'static str, &'static str)],
}

const AXES: [Axis; 4] = [
    Axis {
        name: "tokens of a training row, or before the answer",
        file: "sequence",
        values: &[16, 32, 64, 128, 256, 512],
        works: &[
            ("train", "--seq"),
            ("decode", "--prompt"),
            ("latent", "--prompt"),
            ("staircase", "--prompt"),
        ],
    },
    Axis {
        name: "rows at once",
        file: "rows",
        values: &[1, 2, 4, 8, 16, 32, 64],
        works: &[
            ("train", "--batch"),
            ("decode", "--batch"),
            ("latent", "--batch"),
            ("staircase", "--batch"),
        ],
    },
    Axis {
        name: "latent steps",
        file: "latent-steps",
        values: &[1, 2, 4, 8, 16, 32],
        works: &[
            ("latent", "--latent-steps"),
            ("staircase", "--latent-steps"),
        ],
    },
    Axis {
        name: "layers",
        file: "layers",
        values: &[1, 2, 4, 8, 16],
        works: &[
            ("train", "--layers"),
            ("decode", "--layers"),
            ("latent", "--layers"),
            ("staircase", "--layers"),
        ],
    },
];

/// Rows of a training step where they do not grow: fewer than the shape's, so that long ones get through.
const TRAINING_ROWS: &str = "8";

fn main() -> ExitCode {
    match growth(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// A point of a line: what grows, milliseconds, megabytes.
type Point = (usize, f64, f64);

/// What of a point is drawn.
type Quantity = fn(&Point) -> f64;

fn growth(arguments: &Arguments) -> Result<()> {
    let program = std::env::current_exe()?.with_file_name("measure");
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot create {}", arguments.out.display()))?;
    let points = AXES.iter().map(|axis| axis.values.len() * axis.works.len());
    let bar = ProgressBar::new(points.sum::<usize>() as u64);
    let mut rows: Vec<Value> = Vec::new();
    for axis in &AXES {
        let mut lines: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
        for (work, flag) in axis.works {
            for value in axis.values {
                let row = point(&program, arguments, work, flag, *value)?;
                let number = |key: &str| row[key].as_f64().unwrap_or_default();
                let found = (
                    *value,
                    number("milliseconds_median"),
                    number("peak_megabytes"),
                );
                lines.entry(work).or_default().push(found);
                rows.push(serde_json::json!({ axis.file: value, "measured": row }));
                bar.inc(1);
            }
        }
        let picture = arguments.out.join(format!("growth-{}.svg", axis.file));
        atomic_write(&picture, svg(axis, &arguments.shape, &lines)?.as_bytes())?;
    }
    bar.finish_and_clear();
    let text = serde_json::to_string_pretty(&rows)?;
    atomic_write(&arguments.out.join("growth.json"), text.as_bytes())?;
    say(format!("pictures and rows: {}", arguments.out.display()))
}

fn point(
    program: &Path,
    arguments: &Arguments,
    work: &str,
    flag: &str,
    value: usize,
) -> Result<Value> {
    let mut command = Command::new(program);
    command.args([work, "--shape", &arguments.shape, flag, &value.to_string()]);
    command.args(["--backend", &arguments.backend]);
    command.args(["--repetitions", &arguments.repetitions.to_string()]);
    if work == "train" && flag != "--batch" {
        command.args(["--batch", TRAINING_ROWS]);
    }
    let output = command
        .output()
        .with_context(|| format!("cannot run {}; build it too", program.display()))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!("{work} {flag} {value}: {error}"));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Time on the left, memory on the right, both axes of each logarithmic.
fn svg(axis: &Axis, shape: &str, lines: &BTreeMap<&str, Vec<Point>>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (1080, 440)).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw: {error}");
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let (left, right) = area.split_horizontally(540);
        let quantities: [(&str, Quantity); 2] = [
            ("milliseconds", |point| point.1),
            ("megabytes held at most", |point| point.2),
        ];
        for (area, (caption, of)) in [left, right].into_iter().zip(quantities) {
            let all = || lines.values().flatten();
            let (low, high) = all().fold((f64::MAX, 0.0_f64), |(low, high), point| {
                (low.min(of(point)), high.max(of(point)))
            });
            let (first, last) = (axis.values[0], axis.values[axis.values.len() - 1]);
            let mut chart = ChartBuilder::on(&area)
                .caption(format!("{caption}, {shape}"), ("sans-serif", 17))
                .margin(14)
                .x_label_area_size(44)
                .y_label_area_size(64)
                .build_cartesian_2d(
                    (first as f64..last as f64).log_scale(),
                    (low * 0.7..high * 1.4).log_scale(),
                )
                .map_err(|error| failed(&error))?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .x_desc(axis.name)
                .label_style(("sans-serif", 13))
                .x_label_formatter(&|value| format!("{value:.0}"))
                .y_label_formatter(&|value| match *value >= 10.0 {
                    true => format!("{value:.0}"),
                    false => format!("{value:.1}"),
                })
                .draw()
                .map_err(|error| failed(&error))?;
            for (index, (work, points)) in lines.iter().enumerate() {
                let ink = INKS[index % INKS.len()];
                let places: Vec<(f64, f64)> = points
                    .iter()
                    .map(|point| (point.0 as f64, of(point)))
                    .collect();
                chart
                    .draw_series([PathElement::new(places.clone(), ink.stroke_width(2))])
                    .map_err(|error| failed(&error))?
                    .label(*work)
                    .legend(move |(x, y)| {
                        PathElement::new([(x, y), (x + 18, y)], ink.stroke_width(2))
                    });
                chart
                    .draw_series(
                        places
                            .iter()
                            .map(|place| Circle::new(*place, 3, ink.filled())),
                    )
                    .map_err(|error| failed(&error))?;
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.8))
                .label_font(("sans-serif", 13))
                .draw()
                .map_err(|error| failed(&error))?;
        }
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(text)
}
