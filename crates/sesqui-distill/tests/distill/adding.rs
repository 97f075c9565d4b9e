//! The example of `docs/adding-a-method.md`: it compiles, it is the one on the page, and it does what the page
//! says.

use sesqui_distill::{Rollout, Supervised};

use crate::support::{Data, assert_close, gradients, tracked, values};

// The page, from here …
use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use sesqui_dataset::batch::SequenceBatch;
use sesqui_distill::align::{learned, with_total};
use sesqui_distill::loss::next_token_loss;
use sesqui_model::{Transformer, Visibility};
use sesqui_trainer::StepOutput;

/// A backbone whose every layer learns to say the next token, through the head they share: losses from
/// intermediate layers (LITE, arXiv 2310.18581).
#[derive(Module, Debug)]
pub struct EveryLayer {
    /// The model being trained.
    pub backbone: Transformer,
    /// Weight of the layers below the last, together.
    below: f64,
}

impl EveryLayer {
    /// The loss that is minimised, that of the last layer, and the mean of those below, nats per token.
    const NAMES: &[&str] = &["loss", "last", "below"];

    /// Trains `backbone`, which has two layers at least.
    pub fn new(backbone: Transformer, below: f64) -> Self {
        Self { backbone, below }
    }

    /// `[3]`, in the order of the names.
    fn losses(&self, batch: &SequenceBatch) -> Tensor<1> {
        let backbone = &self.backbone;
        let device = &backbone.token_embedding.weight.val().device();
        let upload = |values: &[i32]| -> Tensor<2, Int> {
            let shape = [batch.batch, batch.seq];
            Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let positions = upload(&batch.position_ids);
        let visible = Visibility::causal(batch.seq, device);
        let context = backbone.context(positions.clone(), visible);
        // States before the final norm, [batch, seq, d_model], after one layer more each time.
        let mut hidden = backbone.embed(upload(&batch.input_ids), positions);
        let mut losses = Vec::new();
        for layer in 0..backbone.layers.len() {
            hidden = backbone.run_layers(layer..layer + 1, hidden, &context);
            losses.push(next_token_loss(backbone, hidden.clone(), batch));
        }
        let last = losses.remove(losses.len() - 1);
        let below = Tensor::cat(losses, 0).mean();
        with_total(vec![(1.0, last), (self.below, below)])
    }
}

impl TrainStep for EveryLayer {
    type Input = SequenceBatch;
    type Output = StepOutput;

    fn step(&self, batch: SequenceBatch) -> TrainOutput<StepOutput> {
        learned(self, Self::NAMES, self.losses(&batch), batch.tokens)
    }
}

impl InferenceStep for EveryLayer {
    type Input = SequenceBatch;
    type Output = StepOutput;

    fn step(&self, batch: SequenceBatch) -> StepOutput {
        StepOutput {
            names: Self::NAMES,
            losses: self.losses(&batch),
            tokens: batch.tokens,
        }
    }
}
// … to here.

#[test]
fn the_page_shows_this_file() {
    let own = include_str!("adding.rs");
    let from = own.find("// The page, from here").unwrap();
    let to = own.find("// … to here").unwrap();
    let shown = own[from..to].split_once('\n').unwrap().1.trim();
    let page = include_str!("../../../../docs/adding-a-method.md");
    assert!(
        page.contains(&format!("```rust\n{shown}\n```")),
        "docs/adding-a-method.md shows another example; put this in:\n{shown}"
    );
}

/// With no weight below, the total is supervised fine-tuning to the last bit, and so are its gradients; with
/// one, it is the sum, and a loss of the last layer alone is not what the layers below follow.
#[test]
fn the_example_is_supervised_fine_tuning_and_more() {
    let data = Data::new();
    let device = tracked();
    let backbone = data.teacher(3, &device);
    let batch = data.mixed(Rollout::TeacherForced).teacher;
    let plain = TrainStep::step(&Supervised::new(backbone.clone()), batch.clone());
    let alone = TrainStep::step(&EveryLayer::new(backbone.clone(), 0.0), batch.clone());
    let both = TrainStep::step(&EveryLayer::new(backbone.clone(), 0.5), batch);

    let [loss, last, below] = values(both.item.losses)[..] else {
        panic!("three losses")
    };
    assert_close("sum", &[loss], &[last + 0.5 * below], 1e-6);
    assert_eq!(values(plain.item.losses), [last]);
    let of = |grads| gradients(&backbone, &grads);
    let (plain, alone, both) = (of(plain.grads), of(alone.grads), of(both.grads));
    assert_eq!(plain, alone);
    assert_eq!(plain.len(), both.len());
    let moved = plain.iter().zip(&both).filter(|(one, other)| one != other);
    // All but the last layer's.
    assert!(moved.count() > plain.len() / 2);
}
