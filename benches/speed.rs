//! Training step, decoding and data loading on the CPU backend.
//!
//! `cargo bench -p sesqui-benches`; PyTorch's side is `peers/pytorch_small_gpt.py`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use burn::module::{Module, Param};
use burn::optim::{GradientsAccumulator, ModuleOptimizer};
use burn::tensor::Device;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sesqui_benches::Shape;
use sesqui_dataset::DatasetConfig;
use sesqui_dataset::encode::encode_all;
use sesqui_dataset::read::BadRows;
use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
use sesqui_distill::Supervised;
use sesqui_eval::{LatentMethod, Method};
use sesqui_kernels::AdamW;
use sesqui_model::latent::{Continuation, Feedback, LatentTransformer, SlotPositions};
use sesqui_reason::{Decoding, HaltConfig, greedy};
use sesqui_shortcut::{EntryPosition, ExitRule, KeyValueRule, Landing, ShortcutConfig, Shortcuts};
use sesqui_trainer::workers::Workers;

const NEW_TOKENS: usize = 64;

/// Parts of a training step, side by side.
const PARTS: usize = 2;

fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(20);
    for shape in [Shape::small_gpt(), Shape::arith_dag()] {
        let device = Device::flex().autodiff();
        let mut model = Supervised::new(shape.transformer(&device).unwrap());
        let mut optimizer = ModuleOptimizer::from(AdamW::new([0.9, 0.999], 1e-5, 0.01));
        let devices = vec![device; PARTS];
        let workers = Workers::new(&devices, PARTS);
        let parts = shape.training_parts(PARTS);
        group.throughput(Throughput::Elements((shape.batch * shape.seq) as u64));
        group.bench_function(shape.name, |bencher| {
            bencher.iter(|| {
                let mut gradients = GradientsAccumulator::new();
                for (output, part) in workers.compute(&model, parts.clone()).unwrap() {
                    gradients.accumulate(&model, part);
                    black_box(output.losses.into_data());
                }
                model = optimizer.step(3e-4, model.clone(), gradients.grads());
            });
        });
    }
    group.finish();
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    for shape in [Shape::small_gpt(), Shape::arith_dag()] {
        let device = Device::flex();
        let model = shape.transformer(&device).unwrap().valid();
        // Nothing stops early: no token has this id.
        let decoding = Decoding {
            stop: u32::MAX,
            max_tokens: NEW_TOKENS,
        };
        for batch in [1, 32] {
            let prompt = shape.prompt(batch, 8);
            group.throughput(Throughput::Elements((batch * NEW_TOKENS) as u64));
            group.bench_with_input(
                BenchmarkId::new(shape.name, batch),
                &prompt,
                |bencher, prompt| {
                    bencher.iter(|| black_box(greedy(&model, prompt, decoding, &device).unwrap()));
                },
            );
        }
    }
    group.finish();
}

/// Six latent steps and an answer of two tokens; rows leave at different layers, so that groups are
/// uneven.
fn latent(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("latent");
    group.sample_size(20);
    let shape = Shape::arith_dag();
    let device = Device::flex();
    let backbone = shape.transformer(&device).unwrap();
    let model = LatentTransformer::new(backbone, &Feedback::default(), 0, &device);
    let mut config = ShortcutConfig::default();
    config.router.hidden = 32;
    let mut shortcuts = Shortcuts::new(&config, &shape.model, 1, &device);
    // Untrained routers say the same of every state; these differ from row to row.
    for (router, adapter) in shortcuts.routers.iter_mut().zip(&shortcuts.adapters) {
        let weight = adapter.down.weight.val().narrow(0, 0, 32).narrow(1, 0, 1);
        router.output.weight = Param::from_tensor(weight);
    }
    let leaves =
        |row: usize, slot: usize, boundary: usize| (row + slot + boundary).is_multiple_of(3);
    let staircase = ExitRule::Plan {
        shortcuts: Some(&shortcuts),
        leaves: &leaves,
    };
    let hosts = shortcuts.routers_on_host();
    let routers = ExitRule::Routers {
        shortcuts: &shortcuts,
        hosts: &hosts,
        // What they say on average at the start.
        threshold: 0.7,
    };
    for (name, rule) in [
        ("full", ExitRule::Full),
        ("staircase", staircase),
        ("routers", routers),
    ] {
        let method = LatentMethod {
            model: &model,
            device: &device,
            latent_steps: 6,
            order: sesqui_model::LatentOrder::Sequential,
            trained_latents: 6,
            positions: SlotPositions::Contiguous,
            rule,
            key_values: KeyValueRule::Holes,
            landing: Landing::SameBoundary,
            entry_position: EntryPosition::EveryEntry,
            refinement: None,
            halt: (&HaltConfig::Never, None),
            continuation: Continuation::Answer,
            answer_start: &[3],
            decoding: Decoding {
                stop: u32::MAX,
                max_tokens: 2,
            },
        };
        for batch in [1, 64] {
            let prompt = shape.prompt(batch, 37);
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_with_input(BenchmarkId::new(name, batch), &prompt, |bencher, prompt| {
                bencher.iter(|| black_box(method.respond(prompt).unwrap()));
            });
        }
    }
    group.finish();
}

fn data(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("data");
    group.sample_size(10);
    let config = DatasetConfig::default();
    group.bench_function("arith-dag generate", |bencher| {
        bencher.iter(|| black_box(config.load(None, 1, BadRows::Fail).unwrap()));
    });
    let corpus = config.load(None, 1, BadRows::Fail).unwrap();
    let format = Default::default();
    let texts = corpus.train.iter().map(|problem| problem.question.as_str());
    let markers = ["||", "####", "<<", ">>", "="];
    let tokenizer = Tokenizer::from_config(
        &TokenizerConfig::default(),
        "".as_ref(),
        texts.chain(markers),
    )
    .unwrap();
    group.throughput(Throughput::Elements(corpus.train.len() as u64));
    group.bench_function("arith-dag encode", |bencher| {
        bencher.iter(|| black_box(encode_all(&tokenizer, &format, &corpus.train).unwrap()));
    });
    group.finish();
}

fn settled(criterion: &mut Criterion) {
    sesqui::memory::keep_freed_memory();
    training(criterion);
    decoding(criterion);
    latent(criterion);
    data(criterion);
}

criterion_group!(benches, settled);
criterion_main!(benches);
