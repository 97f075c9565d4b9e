//! Training step, decoding and data loading on the CPU backend.
//!
//! `cargo bench -p sesqui-benches`; PyTorch's side is `peers/pytorch_small_gpt.py`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use burn::module::Module;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::Device;
use burn::train::TrainStep;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sesqui_benches::Shape;
use sesqui_dataset::DatasetConfig;
use sesqui_dataset::encode::encode_all;
use sesqui_dataset::read::BadRows;
use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};
use sesqui_distill::Supervised;
use sesqui_reason::{Decoding, greedy};

const NEW_TOKENS: usize = 64;

fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(20);
    for shape in [Shape::small_gpt(), Shape::arith_dag()] {
        let device = Device::flex().autodiff();
        let mut model = Supervised::new(shape.transformer(&device).unwrap());
        let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_weight_decay(0.01).init();
        let batch = shape.training_batch();
        group.throughput(Throughput::Elements((shape.batch * shape.seq) as u64));
        group.bench_function(shape.name, |bencher| {
            bencher.iter(|| {
                let output = TrainStep::step(&model, batch.clone());
                model = optimizer.step(3e-4, model.clone(), output.grads);
                black_box(output.item.losses.into_data());
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
    data(criterion);
}

criterion_group!(benches, settled);
criterion_main!(benches);
