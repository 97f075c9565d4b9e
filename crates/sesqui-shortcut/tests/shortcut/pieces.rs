//! Adapters and routers one by one, and the reading of settings.

use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;
use serde::de::value::{Error, MapDeserializer};
use sesqui_model::Family;
use sesqui_shortcut::early_exit::{Composed, Scale, Target};
use sesqui_shortcut::soft::{Branches, Paths, StepSource};
use sesqui_shortcut::{EarlyExitConfig, Shortcuts, SoftConfig};

use crate::support::{
    D_MODEL, Random, Setup, assert_close, plain, plain_adapter, plain_router, plain_sigmoid,
    shortcut_config, tracked, values, wide,
};

fn states(count: usize, scale: f32) -> (Vec<Vec<f32>>, Tensor<3>) {
    let mut random = Random(5);
    let rows: Vec<Vec<f32>> = (0..count)
        .map(|_| random.values(D_MODEL).iter().map(|x| x * scale).collect())
        .collect();
    let data = TensorData::new(rows.concat(), [1, count, D_MODEL]);
    (rows, Tensor::from_data(data, &plain()))
}

/// Every parameter asks for a gradient on a device that tracks, also those that start as constants.
#[test]
fn all_of_a_new_shortcut_is_trained() {
    let setup = Setup::new(Family::Gpt2, 2, 0, &tracked());
    let model = setup.model.backbone.config();
    let shortcuts = Shortcuts::new(&shortcut_config(8), model, 9, &tracked());
    for adapter in &shortcuts.adapters {
        for map in [&adapter.down, &adapter.up] {
            assert!(map.weight.val().is_require_grad());
        }
    }
    for router in &shortcuts.routers {
        for map in [router.hidden.as_ref().unwrap(), &router.output] {
            assert!(map.weight.val().is_require_grad());
            assert!(map.bias.as_ref().unwrap().val().is_require_grad());
        }
    }
}

/// A new adapter changes no bit, and a new gate says sigmoid(bias) to everyone.
#[test]
fn new_shortcuts_do_nothing() {
    let setup = Setup::new(Family::Gpt2, 3, 0, &plain());
    let (_, states) = states(7, 3.0);
    let config = shortcut_config(8);
    let shortcuts = Shortcuts::new(&config, setup.model.backbone.config(), 9, &plain());
    assert_eq!((shortcuts.routers.len(), shortcuts.adapters.len()), (3, 4));
    for adapter in &shortcuts.adapters {
        let found = adapter.forward(states.clone());
        assert_eq!(values(found), values(states.clone()));
    }
    for router in &shortcuts.routers {
        let found = values(router.forward(states.clone()));
        // One rounding of a number near 0.7.
        assert_close("gate", &found, &[plain_sigmoid(0.85); 7], 1e-7);
    }
}

#[test]
fn adapters_follow_their_formula() {
    let setup = Setup::new(Family::Gpt2, 3, 0, &plain());
    let (rows, states) = states(7, 3.0);
    for adapter in &setup.shortcuts.adapters {
        let expected: Vec<f64> = rows
            .iter()
            .flat_map(|row| plain_adapter(adapter, &wide(row)))
            .collect();
        let found = values(adapter.forward(states.clone()));
        // Values up to 10, sums of 20 products.
        assert_close("adapter", &found, &expected, 1e-5);
    }
}

/// The gate on a device, on the host and in 64-bit loops; also for a constant state, whose norm is
/// zero, and for a long one.
#[test]
fn gates_agree_wherever_they_run() {
    for width in [0, 8] {
        let setup = Setup::new(Family::Gpt2, 3, width, &plain());
        let on_host = setup.shortcuts.routers_on_host();
        for scale in [0.0, 1.0, 100.0] {
            let (rows, states) = states(7, scale);
            for (router, host) in setup.shortcuts.routers.iter().zip(&on_host) {
                let device = values(router.forward(states.clone()));
                let host: Vec<f32> = rows.iter().map(|row| host.weight(row)).collect();
                let expected: Vec<f64> = rows
                    .iter()
                    .map(|row| plain_sigmoid(plain_router(router, &wide(row))))
                    .collect();
                // A logit of a few units is exact to 1e-6, its sigmoid to a quarter of that.
                let what = format!("width {width}, scale {scale}");
                assert_close(&format!("{what}, host"), &host, &device, 1e-6);
                assert_close(&format!("{what}, loops"), &device, &expected, 1e-6);
            }
        }
    }
}

fn read<'a, T: Deserialize<'a>>(pairs: &[(&'a str, &'a str)]) -> Result<T, Error> {
    T::deserialize(MapDeserializer::new(pairs.iter().copied()))
}

#[test]
fn settings_are_read_by_name_and_unknown_ones_refused() {
    assert_eq!(read(&[]), Ok(SoftConfig::default()));
    assert_eq!(read(&[]), Ok(EarlyExitConfig::default()));
    assert_eq!(
        read(&[
            ("branches", "sum"),
            ("paths", "step"),
            ("step_source", "layer")
        ]),
        Ok(SoftConfig {
            branches: Branches::Sum,
            paths: Paths::Step,
            step_source: StepSource::Layer,
        })
    );
    assert_eq!(
        read(&[
            ("composed", "propagated"),
            ("target", "final-layer"),
            ("scale", "sum")
        ]),
        Ok(EarlyExitConfig {
            composed: Composed::Propagated,
            target: Target::FinalLayer,
            scale: Scale::Sum,
        })
    );
    assert!(read::<SoftConfig>(&[("branch", "sum")]).is_err());
    assert!(read::<EarlyExitConfig>(&[("target", "any-layer")]).is_err());
}
