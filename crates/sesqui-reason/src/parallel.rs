//! Latent steps all at once, several times over: Jacobi iterations (PCCoT, arXiv 2506.18582).

use burn::tensor::{Device, Int, Tensor, TensorData};
use sesqui_model::{KvCache, LatentTransformer};

/// What iterations came to.
pub(crate) struct Iterated {
    /// The cache with the question and the latent steps of the last iteration.
    pub cache: KvCache,
    /// What each latent step was made of in the last iteration, `[batch, 1, d_model]` each.
    pub inputs: Vec<Tensor<3>>,
    /// The last step's state after the final norm, `[batch, 1, d_model]`.
    pub last: Tensor<3>,
}

/// Runs latent steps at `positions` `[row][slot]` behind `cache`, `passes` times over. First all are made of
/// `asked` `[batch, 1, d_model]`, the question's last state after the final norm, then each of what the step
/// before it came to the last time.
pub(crate) fn iterated(
    model: &LatentTransformer,
    mut cache: KvCache,
    asked: Tensor<3>,
    positions: &[Vec<i32>],
    passes: usize,
    device: &Device,
) -> Iterated {
    let slots = positions.first().map_or(0, Vec::len);
    if slots == 0 {
        return Iterated {
            cache,
            inputs: Vec::new(),
            last: asked,
        };
    }
    let [rows, _, d_model] = asked.dims();
    let real = vec![true; rows * slots];
    let at =
        Tensor::<2, Int>::from_data(TensorData::new(positions.concat(), [rows, slots]), device);
    let layers = 0..model.backbone.layers.len();
    let mut fed = asked.clone().expand([rows, slots, d_model]);
    let run = |fed: &Tensor<3>, cache: &mut KvCache| {
        let inputs = model.latent_inputs(fed.clone(), at.clone());
        let hidden =
            model
                .backbone
                .run_layers_cached(layers.clone(), inputs, at.clone(), &real, cache);
        model.backbone.final_norm(hidden)
    };
    for _ in 1..passes {
        let states = run(&fed, &mut cache.clone());
        if slots > 1 {
            let before = states.narrow(1, 0, slots - 1);
            fed = Tensor::cat(vec![asked.clone(), before], 1);
        }
    }
    let states = run(&fed, &mut cache);
    Iterated {
        cache,
        inputs: (0..slots)
            .map(|slot| fed.clone().narrow(1, slot, 1))
            .collect(),
        last: states.narrow(1, slots - 1, 1),
    }
}
