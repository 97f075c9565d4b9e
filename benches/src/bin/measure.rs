//! One measurement in one process, as one JSON object on one line: `peers/side_by_side.py` runs it in turn with
//! PyTorch's, `growth` many times over.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use burn::tensor::{Device, Distribution, Tensor};
use clap::{Parser, ValueEnum};
use serde_json::json;
use sesqui::backend::settle;
use sesqui::cli::DeviceArguments;
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{Misuse, report};
use sesqui::output::say;
use sesqui::start::computes;
use sesqui_benches::Shape;
use sesqui_benches::work::{
    ANSWER_TOKENS, Decode, Exits, LATENT_STEPS, Latents, NEW_TOKENS, PROMPT_TOKENS,
    QUESTION_TOKENS, Training,
};
use sesqui_eval::statistics::median;
use sesqui_model::Precision;
use sesqui_model::flops::Flops;

/// Time one kind of work on one shape, a few times.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// What to time
    #[arg(value_enum)]
    work: Work,

    /// small-gpt, arith-dag or gpt2-small
    #[arg(long, value_name = "NAME", default_value = "small-gpt")]
    shape: String,

    /// Rows at once [default: 1; for train, the shape's]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,

    /// Tokens of a training row [default: the shape's]
    #[arg(long, value_name = "N")]
    seq: Option<usize>,

    /// Tokens before what is decoded [default: 8; for latent steps 37]
    #[arg(long, value_name = "N")]
    prompt: Option<usize>,

    /// Layers [default: the shape's]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,

    /// Latent steps of a question
    #[arg(long, value_name = "N", default_value_t = LATENT_STEPS)]
    latent_steps: usize,

    /// Timed repetitions, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: usize,

    /// f32, bf16 or f16
    #[arg(long, value_name = "FLOATS", default_value = "f32")]
    precision: String,

    #[command(flatten)]
    devices: DeviceArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    /// A training step: forward, backward, update.
    Train,
    /// 64 tokens after a prompt of 8.
    Decode,
    /// Latent steps and an answer of two tokens, all layers.
    Latent,
    /// The same on a staircase: a third of the boundaries is left at.
    Staircase,
    /// The same where routers decide.
    Routers,
    /// A matrix product of 1536 x 1536 x 1536.
    MatrixRate,
    /// Reading a vector of 256 MB.
    Bandwidth,
}

fn main() -> ExitCode {
    keep_freed_memory();
    let arguments = Arguments::parse();
    settle();
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Something to run, with what one run of it amounts to.
struct Job {
    run: Box<dyn FnMut() -> Result<()>>,
    /// Tokens, questions, operations or bytes.
    units: f64,
    unit: &'static str,
    /// Floating-point operations, where they are counted.
    flops: Option<f64>,
}

fn measure(arguments: &Arguments) -> Result<()> {
    if arguments.repetitions == 0 {
        return Err(Misuse("--repetitions: give at least 1".into()).into());
    }
    let place = arguments.devices.open()?;
    computes(place.workers(), precision(&arguments.precision)?)?;
    let shape = shape(arguments)?;
    let mut job = job(arguments, &shape, place.workers())?;
    (job.run)()?;
    let mut milliseconds = Vec::with_capacity(arguments.repetitions);
    for _ in 0..arguments.repetitions {
        let begun = Instant::now();
        (job.run)()?;
        milliseconds.push(1e3 * begun.elapsed().as_secs_f64());
    }
    let middle = median(&milliseconds).unwrap_or_default();
    let work = arguments
        .work
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    say(json!({
        "work": work,
        "shape": shape.name,
        "batch": batch(arguments, &shape),
        "precision": arguments.precision,
        "device": place.description(),
        "milliseconds": milliseconds,
        "milliseconds_median": middle,
        "unit": job.unit,
        "per_second": 1e3 * job.units / middle,
        "flops_per_second": job.flops.map(|flops| 1e3 * flops / middle),
        "peak_megabytes": peak_megabytes(),
    }))
}

fn shape(arguments: &Arguments) -> Result<Shape> {
    let name = &arguments.shape;
    let mut shape = Shape::named(name).ok_or_else(|| {
        Misuse(format!(
            "--shape {name}: give small-gpt, arith-dag or gpt2-small"
        ))
    })?;
    if let Some(layers) = arguments.layers {
        shape.model.layers = layers;
    }
    if let Some(seq) = arguments.seq {
        shape.seq = seq;
        shape.model.context = shape.model.context.max(seq);
    }
    if let (Work::Train, Some(batch)) = (arguments.work, arguments.batch) {
        shape.batch = batch;
    }
    let more = NEW_TOKENS.max(arguments.latent_steps + ANSWER_TOKENS) + 1;
    shape.model.context = shape.model.context.max(prompt(arguments) + more);
    shape.model.validate()?;
    shape.precision = precision(&arguments.precision)?;
    Ok(shape)
}

fn precision(name: &str) -> Result<Precision> {
    match name {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        "f16" => Ok(Precision::F16),
        _ => Err(Misuse(format!("--precision {name}: give f32, bf16 or f16")).into()),
    }
}

fn prompt(arguments: &Arguments) -> usize {
    let usual = match arguments.work {
        Work::Decode => PROMPT_TOKENS,
        _ => QUESTION_TOKENS,
    };
    arguments.prompt.unwrap_or(usual)
}

fn batch(arguments: &Arguments, shape: &Shape) -> usize {
    match arguments.work {
        Work::Train => shape.batch,
        _ => arguments.batch.unwrap_or(1),
    }
}

fn job(arguments: &Arguments, shape: &Shape, devices: &[Device]) -> Result<Job> {
    let batch = batch(arguments, shape);
    let home = devices[0].clone();
    let exits = match arguments.work {
        Work::Staircase => Exits::Staircase,
        Work::Routers => Exits::Routers,
        _ => Exits::Full,
    };
    Ok(match arguments.work {
        Work::Train => {
            let mut training = Training::new(shape, devices)?;
            let tokens = (shape.batch * shape.seq) as f64;
            let flops = Flops::new(&shape.model, shape.vocabulary);
            let forward = flops.layers(0, shape.seq) + shape.seq as f64 * flops.head();
            Job {
                run: Box::new(move || {
                    let loss = training.step().map_err(anyhow::Error::msg)?;
                    match loss.is_finite() {
                        true => Ok(()),
                        false => Err(anyhow!("the loss is {loss}")),
                    }
                }),
                units: tokens,
                unit: "tokens",
                // A backward pass is two forward ones.
                flops: Some(3.0 * shape.batch as f64 * forward),
            }
        }
        Work::Decode => {
            let decode = Decode::new(shape, batch, prompt(arguments), &home)?;
            let tokens = batch * NEW_TOKENS;
            Job {
                run: Box::new(move || match decode.run() {
                    found if found == tokens => Ok(()),
                    found => Err(anyhow!("{found} tokens instead of {tokens}")),
                }),
                units: tokens as f64,
                unit: "tokens",
                flops: None,
            }
        }
        Work::Latent | Work::Staircase | Work::Routers => {
            let latents = Latents::new(shape, exits, [batch, prompt(arguments)], &home)?;
            let latents = latents.with_steps(arguments.latent_steps);
            Job {
                run: Box::new(move || {
                    std::hint::black_box(latents.run());
                    Ok(())
                }),
                units: batch as f64,
                unit: "questions",
                flops: None,
            }
        }
        Work::MatrixRate => {
            let n = 1536;
            let uniform = Distribution::Uniform(-1.0, 1.0);
            let [a, b]: [Tensor<2>; 2] =
                std::array::from_fn(|_| Tensor::random([n, n], uniform, &home));
            let flops = 2.0 * (n as f64).powi(3);
            Job {
                run: Box::new(move || read(a.clone().matmul(b.clone()).narrow(0, 0, 1))),
                units: flops,
                unit: "operations",
                flops: Some(flops),
            }
        }
        Work::Bandwidth => {
            let n = 64 << 20;
            let vector: Tensor<1> = Tensor::ones([n], &home);
            Job {
                run: Box::new(move || read(vector.clone().sum())),
                units: 4.0 * n as f64,
                unit: "bytes",
                flops: None,
            }
        }
    })
}

/// Waits for a result.
fn read<const D: usize>(tensor: Tensor<D>) -> Result<()> {
    let data = tensor.into_data();
    data.iter::<f32>().next().context("an empty result")?;
    Ok(())
}

/// The most memory of the host that this process has held; absent where the system does not say.
fn peak_megabytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes / 1e3)
}
