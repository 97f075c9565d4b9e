//! The gradient of a whole module: its norm, and scaling it.
//!
//! Burn clips per tensor; transformers are clipped by the norm over all tensors together.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// Whether any parameter asks for a gradient. A backward pass without one panics in Burn.
pub fn wanted<M: Module>(module: &M) -> bool {
    struct Visitor(bool);
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= param.val().is_require_grad();
        }
    }
    let mut visitor = Visitor(false);
    module.visit(&mut visitor);
    visitor.0
}

/// Sum of squares of all gradients, `[1]`, on the device; `None` where there are no gradients.
pub fn squared_norm<M: Module>(module: &M, gradients: &GradientsParams) -> Option<Tensor<1>> {
    struct Visitor<'a> {
        gradients: &'a GradientsParams,
        sum: Option<Tensor<1>>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                let square = gradient.square().sum();
                self.sum = Some(match self.sum.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        }
    }
    let mut visitor = Visitor {
        gradients,
        sum: None,
    };
    module.visit(&mut visitor);
    visitor.sum
}

/// Multiplies all gradients by `factor`.
pub fn scale<M: Module>(module: &M, gradients: &mut GradientsParams, factor: f64) {
    struct Visitor<'a> {
        gradients: &'a mut GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients
                    .register(param.id, gradient.mul_scalar(self.factor));
            }
        }
    }
    module.visit(&mut Visitor { gradients, factor });
}
