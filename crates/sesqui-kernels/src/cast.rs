//! From wide floats to narrow ones and back, under autodiff too.

use burn::tensor::{DType, Tensor};

/// What the derivative by an f16 is held multiplied by. An f16 ends at 6e-8, where derivatives of a mean over a batch
/// go on, and at 65,504: a derivative above 64 becomes infinite, which whoever looks at the norm of the gradient sees
/// (Micikevicius et al. 2018, section 3.2). A power of two, so that nothing is rounded on its account.
const F16_DERIVATIVES: f64 = 1024.0;

/// `tensor` with elements of `dtype`. The derivative by what is f16 is larger than it is by a factor that every cast to
/// f16 puts in on the way back and every cast from f16 takes out: what is wide has its own.
pub fn cast<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    match (tensor.dtype(), dtype) {
        (from, to) if from == to => tensor,
        (DType::F32, DType::F16) => passing(tensor, 1.0 / F16_DERIVATIVES).cast(dtype),
        (DType::F16, DType::F32) => passing(tensor.cast(dtype), F16_DERIVATIVES),
        _ => tensor.cast(dtype),
    }
}

/// `tensor`, whose derivative passes multiplied by `factor`.
fn passing<const D: usize>(tensor: Tensor<D>, factor: f64) -> Tensor<D> {
    if !tensor.is_autodiff() {
        return tensor;
    }
    // Zero to the bit, with a derivative of 1.
    let constant = tensor.clone().detach().set_require_grad(false);
    let nothing = tensor.clone() - constant;
    tensor + nothing.mul_scalar(factor - 1.0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// A derivative of 1e-9 is nothing to an f16.
    #[test]
    fn derivatives_that_an_f16_does_not_have_pass_through_it() {
        for slope in [1e-9f32, 3e-4, 3.0] {
            let device = Device::flex().autodiff();
            let x = Tensor::<1>::from_floats([0.1, -2.5, 3.25], &device).require_grad();
            let narrow = cast(x.clone(), DType::F16);
            assert_eq!(narrow.dtype(), DType::F16);
            let wide = cast(narrow.clone() * narrow, DType::F32);
            let found = (wide * slope).sum().backward();
            let found: Vec<f32> = x.grad(&found).unwrap().into_data().iter().collect();
            for (found, x) in found.iter().zip([0.1, -2.5, 3.25]) {
                let expected = 2.0 * x * slope;
                // An f16 has 11 bits of significand; below 6e-5 it has steps of 6e-8, half of which the derivative
                // by the square may be off, times 2x, and each of the two products that make it that by x.
                let most = expected.abs() * 2e-3 + 6e-8 / 1024.0 * (x.abs() + 1.0);
                assert!((found - expected).abs() <= most, "{found} for {expected}");
            }
            let rounded: Vec<f32> = cast(cast(x, DType::F16), DType::F32)
                .into_data()
                .iter()
                .collect();
            assert_eq!(rounded[1..], [-2.5, 3.25]);
        }
    }
}
