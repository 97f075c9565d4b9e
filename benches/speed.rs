//! Training step, decoding and data loading on the CPU backend.
//!
//! `cargo bench -p sesqui-benches`; PyTorch's side is `peers/pytorch.py`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use burn::tensor::Device;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sesqui_benches::Shape;
use sesqui_benches::work::{
    Decode, Exits, Latents, NEW_TOKENS, PROMPT_TOKENS, QUESTION_TOKENS, Training,
};
use sesqui_dataset::DatasetConfig;
use sesqui_dataset::encode::encode_all;
use sesqui_dataset::read::BadRows;
use sesqui_dataset::tokenizer::{Tokenizer, TokenizerConfig};

/// Cores that share a training step.
const WORKERS: usize = 2;

fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(20);
    for shape in [Shape::small_gpt(), Shape::arith_dag()] {
        let mut training = Training::new(&shape, &vec![Device::flex(); WORKERS]).unwrap();
        group.throughput(Throughput::Elements((shape.batch * shape.seq) as u64));
        group.bench_function(shape.name, |bencher| {
            bencher.iter(|| black_box(training.step().unwrap()));
        });
    }
    group.finish();
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    for shape in [Shape::small_gpt(), Shape::arith_dag()] {
        for batch in [1, 32] {
            let decode = Decode::new(&shape, batch, PROMPT_TOKENS, &Device::flex()).unwrap();
            group.throughput(Throughput::Elements((batch * NEW_TOKENS) as u64));
            let id = BenchmarkId::new(shape.name, batch);
            group.bench_function(id, |bencher| bencher.iter(|| black_box(decode.run())));
        }
    }
    group.finish();
}

fn latent(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("latent");
    group.sample_size(20);
    let shape = Shape::arith_dag();
    for exits in Exits::ALL {
        for batch in [1, 64] {
            let latents =
                Latents::new(&shape, exits, [batch, QUESTION_TOKENS], &Device::flex()).unwrap();
            group.throughput(Throughput::Elements(batch as u64));
            let id = BenchmarkId::new(exits.name(), batch);
            group.bench_function(id, |bencher| bencher.iter(|| black_box(latents.run())));
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
