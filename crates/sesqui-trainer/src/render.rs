//! What a person sees while training: Burn's dashboard, a plain log, or nothing.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use burn::train::Interrupter;
use burn::train::metric::{
    MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{MetricState, MetricsRenderer};
use sesqui_run::MetricRow;

/// What is about to be trained.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the stage.
    pub stage: String,
    /// Optimizer steps in all.
    pub steps: u64,
    /// Steps done before, when resuming.
    pub done: u64,
    /// Steps between lines of the plain log.
    pub log_every: u64,
}

/// Where progress goes. Lines always go to the log file as well.
pub struct Renderer {
    screen: Screen,
    log: Box<dyn Write + Send>,
    plan: Option<Plan>,
}

enum Screen {
    Dashboard {
        renderer: Option<Box<dyn MetricsRenderer>>,
        interrupter: Interrupter,
    },
    Plain(Box<dyn Write + Send>),
    None,
}

/// Series of the dashboard: name, unit, whether higher is better.
const SERIES: [(&str, &str, bool); 5] = [
    ("Loss", "nats", false),
    ("Learning rate", "", false),
    ("Gradient norm", "", false),
    ("Tokens per second", "tokens/s", true),
    ("Accuracy", "%", true),
];

impl Renderer {
    /// Burn's terminal dashboard, whose keys can stop the run; `log` gets the plain lines.
    pub fn dashboard(interrupter: Interrupter, log: Box<dyn Write + Send>) -> Self {
        let mut renderer: Box<dyn MetricsRenderer> =
            Box::new(TuiMetricsRendererWrapper::new(interrupter.clone(), None));
        for (name, unit, higher_is_better) in SERIES {
            renderer.register_metric(MetricDefinition {
                metric_id: id(name),
                name: Arc::new(name.to_owned()),
                description: None,
                attributes: NumericAttributes {
                    unit: Some(unit.to_owned()),
                    higher_is_better,
                }
                .into(),
            });
        }
        Self {
            screen: Screen::Dashboard {
                renderer: Some(renderer),
                interrupter,
            },
            log,
            plan: None,
        }
    }

    /// One line every few steps, to `screen` and `log`.
    pub fn plain(screen: Box<dyn Write + Send>, log: Box<dyn Write + Send>) -> Self {
        Self {
            screen: Screen::Plain(screen),
            log,
            plan: None,
        }
    }

    /// Nothing on the screen.
    pub fn none(log: Box<dyn Write + Send>) -> Self {
        Self {
            screen: Screen::None,
            log,
            plan: None,
        }
    }

    /// Announces a stage.
    pub fn start(&mut self, plan: Plan) {
        self.line(&match plan.done {
            0 => format!("{}: {} steps", plan.stage, plan.steps),
            done => format!(
                "{}: {} steps, resuming after step {done}",
                plan.stage, plan.steps
            ),
        });
        let (steps, label) = (plan.steps as usize, plan.stage.clone());
        self.draw(|renderer| {
            renderer.start(1, 1, Some(steps), Some(&label));
            renderer.start_split("train", steps);
        });
        self.plan = Some(plan);
    }

    /// A training step.
    pub fn step(&mut self, row: &MetricRow) {
        let Some(plan) = &self.plan else { return };
        let due = row.step.is_multiple_of(plan.log_every)
            || row.step == plan.steps
            || row.step == plan.done + 1;
        if due {
            let line = step_line(plan, row);
            self.line(&line);
        }
        let values = [
            ("Loss", row.loss),
            ("Learning rate", row.learning_rate),
            ("Gradient norm", row.gradient_norm),
            ("Tokens per second", row.tokens_per_second),
        ];
        let step = row.step as usize;
        self.draw(|renderer| {
            for (name, value) in values {
                if let Some(value) = value {
                    renderer.update_train(numeric(name, value));
                }
            }
            renderer.update_split(step);
        });
    }

    /// A validation begins, which may take as long as many steps.
    pub fn validating(&mut self) {
        self.draw(|renderer| {
            renderer.start_split("valid", 1);
            renderer.update_split(0);
        });
    }

    /// Whether the screen is a plain log, beside which something else may be drawn.
    pub fn is_plain(&self) -> bool {
        matches!(self.screen, Screen::Plain(_))
    }

    /// A validation.
    pub fn validation(&mut self, row: &MetricRow) {
        let mut line = format!("{:<10} step {:>6}  validation", row.stage, row.step);
        if let Some(loss) = row.loss {
            line.push_str(&format!("  loss {loss:.4}"));
        }
        for (name, value) in &row.values {
            line.push_str(&format!("  {name} {value:.4}"));
        }
        self.line(&line);
        let accuracy = row.values.get("accuracy").copied();
        let loss = row.loss;
        let steps = self.plan.as_ref().map_or(0, |plan| plan.steps as usize);
        let step = row.step as usize;
        self.draw(|renderer| {
            if let Some(accuracy) = accuracy {
                renderer.update_valid(numeric("Accuracy", 100.0 * accuracy));
            }
            if let Some(loss) = loss {
                renderer.update_valid(numeric("Loss", loss));
            }
            renderer.start_split("train", steps);
            renderer.update_split(step);
        });
    }

    /// The end of a stage.
    pub fn end(&mut self, message: &str) {
        self.line(message);
        self.plan = None;
        self.draw(|renderer| {
            renderer.end_split();
            renderer.update_epoch(1);
        });
    }

    /// A sentence of its own.
    pub fn line(&mut self, text: &str) {
        // A full disk or a closed pipe must not end training; the metrics file reports for itself.
        let _ = writeln!(self.log, "{text}").and_then(|()| self.log.flush());
        if let Screen::Plain(out) = &mut self.screen {
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    }

    /// Leaves the dashboard's screen, so that what follows is printed on the terminal.
    pub fn close(&mut self) {
        self.draw(|renderer| {
            renderer.end();
            let _ = renderer.on_train_end(None);
        });
        if let Screen::Dashboard { renderer, .. } = &mut self.screen {
            *renderer = None;
        }
    }

    /// Burn's dashboard reports its kill key by panicking in whoever draws; here that is a request
    /// to stop like any other.
    fn draw(&mut self, action: impl FnOnce(&mut dyn MetricsRenderer)) {
        if let Screen::Dashboard {
            renderer: slot,
            interrupter,
        } = &mut self.screen
            && let Some(mut renderer) = slot.take()
        {
            match catch_unwind(AssertUnwindSafe(|| action(renderer.as_mut()))) {
                Ok(()) => *slot = Some(renderer),
                Err(_) => {
                    interrupter.stop(Some("killed from the dashboard"));
                    std::mem::forget(renderer);
                }
            }
        }
    }
}

fn id(name: &str) -> MetricId {
    MetricId::new(Arc::new(name.to_owned()))
}

fn numeric(name: &str, value: f64) -> MetricState {
    let plain = value == 0.0 || (1e-3..1e6).contains(&value.abs());
    let text = if plain {
        format!("{value:.4}")
    } else {
        format!("{value:.3e}")
    };
    let entry = MetricEntry::new(id(name), SerializedEntry::new(text.clone(), text));
    MetricState::Numeric(entry, Some(NumericEntry::Value(value)))
}

fn step_line(plan: &Plan, row: &MetricRow) -> String {
    let percent = 100 * row.step / plan.steps.max(1);
    let mut line = format!(
        "{:<10} step {:>6}/{} {percent:>3}%",
        plan.stage, row.step, plan.steps
    );
    if let Some(loss) = row.loss {
        line.push_str(&format!("  loss {loss:.4}"));
    }
    if let Some(rate) = row.learning_rate {
        line.push_str(&format!("  lr {rate:.2e}"));
    }
    if let Some(norm) = row.gradient_norm {
        line.push_str(&format!("  norm {norm:.3}"));
    }
    if let Some(speed) = row.tokens_per_second {
        line.push_str(&format!("  {speed:.0} tok/s"));
    }
    let since = row.step.saturating_sub(plan.done);
    if since > 0 {
        let left = row.elapsed_seconds / since as f64 * plan.steps.saturating_sub(row.step) as f64;
        line.push_str(&format!("  eta {}", duration(left)));
    }
    line
}

/// `1h02m`, `3m04s` or `5s`.
pub fn duration(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0))
        .unwrap_or(Duration::MAX)
        .as_secs();
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_reads_as_one_line() {
        let plan = Plan {
            stage: "cot".into(),
            steps: 1200,
            done: 0,
            log_every: 50,
        };
        let mut row = MetricRow::new("cot", 300, "train");
        row.loss = Some(0.51234);
        row.learning_rate = Some(3e-3);
        row.gradient_norm = Some(0.9);
        row.tokens_per_second = Some(12_345.6);
        row.elapsed_seconds = 30.0;
        assert_eq!(
            step_line(&plan, &row),
            "cot        step    300/1200  25%  loss 0.5123  lr 3.00e-3  norm 0.900  12346 tok/s  eta 1m30s"
        );
    }

    #[test]
    fn durations() {
        let cases = [
            (0.0, "0s"),
            (59.9, "59s"),
            (61.0, "1m01s"),
            (3720.0, "1h02m"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}
